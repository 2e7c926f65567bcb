//! Azure Resource Manager as far as Vaultferry asks it, with what its REST reference promises: lists in pages with a `nextLink`, errors as
//! `{"error": {"code", "message"}}`, 429 with `Retry-After`, a correlation id in every answer, and operations that go on after the answer.
//!
//! | path below `/subscriptions/ID` | |
//! |---|---|
//! | `[/resourceGroups/RG]/providers/Microsoft.DBforPostgreSQL/flexibleServers` | the servers |
//! | `[/resourceGroups/RG]/providers/Microsoft.Storage/storageAccounts` | the accounts |
//! | `…/storageAccounts/NAME/blobServices/default/containers` | an account's containers; `$filter` is the beginning of their names, `$maxpagesize` bounds a page |
//! | `/things/NAME` | PUT: 201 and `Azure-AsyncOperation`; POST `/things/NAME/start`: 202 and `Location`; DELETE: 202 and `Location` |

use std::collections::{BTreeSet, VecDeque};
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::http::Request;

/// The token that it takes.
pub const TOKEN: &str = "eyJ0-arm-token-of-the-test";
/// The only subscription that it knows.
pub const SUBSCRIPTION: &str = "6b2f4c1e-0000-4000-8000-0123456789ab";
/// The only resource group.
pub const GROUP: &str = "databases";
/// In every answer.
pub const CORRELATION_ID: &str = "c0ffee00-1111-4222-8333-444455556666";
/// Items of a page, until [`FakeArm::pages_of`] says otherwise.
const PAGE: usize = 2;
/// Polls until an operation has ended.
const POLLS: u32 = 2;

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// 429 with `Retry-After` in seconds.
    Busy(u64),
    /// 503.
    Broken,
    /// 500.
    Failed,
    /// No fault.
    Fine,
    /// 404, as for what was deleted a moment ago.
    Gone,
    /// 403, as for an identity without a role.
    Forbidden,
    /// The connection is closed without an answer, after the request was read.
    Lost,
    /// 302 to another place.
    Moved,
    /// 200 with more bytes than anybody should read.
    Endless,
    /// 200 with a `nextLink` to another host.
    LeadsAway,
    /// 200 without items, and a `nextLink` to another spelling of the same question; the next one of these leads back.
    Circles,
    /// 200 with something that is no JSON.
    Garbage,
}

/// A server. It ends with the test's process.
#[derive(Debug, Clone)]
pub struct FakeArm {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    page: Option<usize>,
    servers: Vec<Value>,
    accounts: Vec<(Value, Vec<Value>)>,
    things: BTreeSet<String>,
    operations: Vec<Operation>,
    faults: VecDeque<Fault>,
    calls: Vec<String>,
}

#[derive(Debug, Default)]
struct Operation {
    polls: u32,
    fails: bool,
}

/// What is answered.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl Answer {
    fn new(status: u16, body: &Value) -> Self {
        Self { status, headers: Vec::new(), body: body.to_string() }
    }

    fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: String::new() }
    }

    fn refused(status: u16, code: &str, message: &str) -> Self {
        Self::new(status, &json!({ "error": { "code": code, "message": message } }))
    }

    fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }
}

impl FakeArm {
    /// A subscription with nothing in it.
    #[track_caller]
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let server = Self { port, state: Arc::default() };
        let serving = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = serving.clone();
                // A client that goes away in the middle is no fault of the server.
                std::thread::spawn(move || server.serve(stream));
            }
        });
        server
    }

    /// What `VAULTFERRY_RESOURCE_MANAGER` is to be.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// A flexible server as the reference shows one; `properties` are laid over the usual ones.
    #[track_caller]
    pub fn add_server(&self, name: &str, location: &str, host: &str, properties: &Value) {
        let mut usual = json!({
            "fullyQualifiedDomainName": host, "version": "15", "minorVersion": "7", "administratorLogin": "cloudsa", "state": "Ready",
            "availabilityZone": "1", "storage": { "storageSizeGB": 512 },
            "backup": { "backupRetentionDays": 7, "geoRedundantBackup": "Disabled" },
            "network": { "publicNetworkAccess": "Enabled" }, "highAvailability": { "mode": "Disabled" },
            "replicationRole": "Primary", "replicaCapacity": 5
        });
        for (name, value) in properties.as_object().expect("an object") {
            usual[name] = value.clone();
        }
        let id = format!(
            "/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{name}"
        );
        self.state().servers.push(json!({
            "sku": { "name": "Standard_D4ds_v5", "tier": "GeneralPurpose" }, "properties": usual, "location": location,
            "tags": {}, "id": id, "name": name, "type": "Microsoft.DBforPostgreSQL/flexibleServers"
        }));
    }

    /// A storage account with these containers.
    pub fn add_account(&self, name: &str, location: &str, containers: &[&str]) {
        let id = format!(
            "/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.Storage/storageAccounts/{name}"
        );
        let container = |container: &&str| {
            json!({
                "id": format!("{id}/blobServices/default/containers/{container}"), "name": container,
                "type": "Microsoft.Storage/storageAccounts/blobServices/containers", "etag": "\"0x1\"",
                "properties": { "deleted": false, "publicAccess": "None", "leaseStatus": "Unlocked" }
            })
        };
        let containers = containers.iter().map(container).collect();
        let account = json!({
            "id": id, "name": name, "location": location, "kind": "StorageV2", "sku": { "name": "Standard_GRS", "tier": "Standard" },
            "type": "Microsoft.Storage/storageAccounts", "properties": { "provisioningState": "Succeeded" }
        });
        self.state().accounts.push((account, containers));
    }

    /// So many items of a list come in one answer; fewer where the question wants fewer (`$maxpagesize`).
    pub fn pages_of(&self, items: usize) {
        self.state().page = Some(items);
    }

    /// The next requests fail, in this order.
    pub fn fail(&self, faults: &[Fault]) {
        self.state().faults.extend(faults);
    }

    /// Method and path of every request so far, failed ones too.
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let request = Request::read(&stream)?;
        let Request { method, target, body: asked, .. } = &request;
        let Answer { status, headers, body } = self.answer(method, target, request.header("authorization"), asked)?;
        let mut more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        if !body.is_empty() {
            more.push_str("content-type: application/json; charset=utf-8\r\n");
        }
        write!(
            stream,
            "HTTP/1.1 {status} X\r\n{more}x-ms-correlation-request-id: {CORRELATION_ID}\r\nx-ms-request-id: 1\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
        .ok()
    }

    fn answer(&self, method: &str, target: &str, authorization: Option<String>, body: &[u8]) -> Option<Answer> {
        let mut state = self.state();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        state.calls.push(format!("{method} {path}"));
        match state.faults.pop_front() {
            None | Some(Fault::Fine) => {}
            Some(Fault::Lost) => return None,
            Some(Fault::Circles) => return Some(self.circle(target)),
            Some(fault) => return Some(faulty(fault)),
        }
        if authorization.as_deref() != Some(&format!("Bearer {TOKEN}")) {
            return Some(Answer::refused(401, "InvalidAuthenticationToken", "The access token is invalid."));
        }
        if let Some(number) = path.strip_prefix("/operations/").and_then(|number| number.parse().ok()) {
            return Some(state.poll(number));
        }
        if let Some(number) = path.strip_prefix("/results/").and_then(|number| number.parse().ok()) {
            return Some(state.wait(number));
        }
        let parameter = |name: &str| {
            query
                .split('&')
                .find_map(|pair| pair.split_once('=').filter(|(known, _)| *known == name))
                .map(|(_, value)| value)
        };
        if parameter("api-version").is_none_or(str::is_empty) {
            let message = "The api-version query parameter (?api-version=) is required for all requests.";
            return Some(Answer::refused(400, "MissingApiVersionParameter", message));
        }
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let ["subscriptions", subscription, rest @ ..] = segments.as_slice() else {
            return Some(Answer::refused(404, "InvalidResourceType", "The resource type could not be found."));
        };
        if !subscription.eq_ignore_ascii_case(SUBSCRIPTION) {
            let message = format!("The subscription '{subscription}' could not be found.");
            return Some(Answer::refused(404, "SubscriptionNotFound", &message));
        }
        let filter = parameter("$filter").or(parameter("%24filter")).unwrap_or_default();
        let rest = match rest {
            ["resourceGroups", group, ..] if !group.eq_ignore_ascii_case(GROUP) => {
                let message = format!("Resource group '{group}' could not be found.");
                return Some(Answer::refused(404, "ResourceGroupNotFound", &message));
            }
            ["resourceGroups", _, rest @ ..] => rest,
            rest => rest,
        };
        let items = match rest {
            ["providers", "Microsoft.DBforPostgreSQL", "flexibleServers"] => state.servers.clone(),
            ["providers", "Microsoft.Storage", "storageAccounts"] => {
                state.accounts.iter().map(|(account, _)| account.clone()).collect()
            }
            ["providers", "Microsoft.Storage", "storageAccounts", name, "blobServices", "default", "containers"] => {
                let account = state.accounts.iter().find(|(account, _)| account["name"] == *name);
                let containers = account.map(|(_, containers)| containers.as_slice()).unwrap_or_default();
                let named = |item: &&Value| item["name"].as_str().is_some_and(|name| name.starts_with(filter));
                containers.iter().filter(named).cloned().collect()
            }
            ["things", name, ..] => return Some(self.change(&mut state, method, name, body)),
            _ => return Some(Answer::refused(404, "InvalidResourceType", "The resource type could not be found.")),
        };
        let from: usize =
            parameter("$skiptoken").or(parameter("%24skiptoken")).and_then(|text| text.parse().ok()).unwrap_or(0);
        let wanted = parameter("$maxpagesize").or(parameter("%24maxpagesize"));
        let most = wanted.and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
        let size = state.page.unwrap_or(PAGE).min(most).max(1);
        let page: Vec<Value> = items.iter().skip(from).take(size).cloned().collect();
        let mut answer = json!({ "value": page });
        if from + size < items.len() {
            let api_version = parameter("api-version").unwrap_or_default();
            let next =
                format!("http://127.0.0.1:{}{path}?api-version={api_version}&$skiptoken={}", self.port, from + size);
            // What was asked for holds for all pages.
            let also =
                |name: &str, value: &str| if value.is_empty() { String::new() } else { format!("&{name}={value}") };
            let (filter, most) = (also("$filter", filter), also("$maxpagesize", wanted.unwrap_or_default()));
            answer["nextLink"] = json!(format!("{next}{filter}{most}"));
        }
        Some(Answer::new(200, &answer))
    }

    /// An empty page that leads to `target` with one more parameter, or back to the one without it.
    fn circle(&self, target: &str) -> Answer {
        let next = match target.strip_suffix("&again=1") {
            Some(first) => first.to_owned(),
            None => format!("{target}&again=1"),
        };
        Answer::new(200, &json!({ "value": [], "nextLink": format!("http://127.0.0.1:{}{next}", self.port) }))
    }

    /// A thing is made, asked to do something, or deleted: all of them take two polls. One called `bad` fails.
    fn change(&self, state: &mut State, method: &str, name: &str, body: &[u8]) -> Answer {
        let number = state.operations.len();
        state.operations.push(Operation { polls: 0, fails: name == "bad" });
        let status = format!("http://127.0.0.1:{}/operations/{number}", self.port);
        let result = format!("http://127.0.0.1:{}/results/{number}", self.port);
        match method {
            "PUT" => {
                state.things.insert(name.to_owned());
                let body: Value = serde_json::from_slice(body).unwrap_or_default();
                let made = json!({ "name": name, "properties": { "provisioningState": "Creating", "asked": body } });
                Answer::new(201, &made).with("Azure-AsyncOperation", status).with("Retry-After", 0)
            }
            "DELETE" if !state.things.remove(name) => {
                Answer::refused(404, "ResourceNotFound", "The thing was not found.")
            }
            "DELETE" | "POST" => Answer::empty(202).with("Location", result).with("Retry-After", 0),
            _ => Answer::new(200, &json!({ "name": name })),
        }
    }
}

impl State {
    fn poll(&mut self, number: usize) -> Answer {
        let Some(operation) = self.operations.get_mut(number) else {
            return Answer::refused(404, "NotFound", "There is no such operation.");
        };
        operation.polls += 1;
        let answer = match (operation.polls > POLLS, operation.fails) {
            (false, _) => json!({ "status": "InProgress" }),
            (true, false) => json!({ "status": "Succeeded" }),
            (true, true) => json!({ "status": "Failed", "error": { "code": "Broken", "message": "the thing broke" } }),
        };
        Answer::new(200, &answer).with("Retry-After", 0)
    }

    fn wait(&mut self, number: usize) -> Answer {
        let Some(operation) = self.operations.get_mut(number) else {
            return Answer::refused(404, "NotFound", "There is no such operation.");
        };
        operation.polls += 1;
        match (operation.polls > POLLS, operation.fails) {
            (false, _) => Answer::empty(202).with("Retry-After", 0),
            (true, false) => Answer::new(200, &json!({ "done": true })),
            (true, true) => Answer::refused(409, "Conflict", "somebody else is at it"),
        }
    }
}

fn faulty(fault: Fault) -> Answer {
    match fault {
        Fault::Busy(seconds) => {
            let message = "Number of read requests for the subscription exceeded the limit.";
            Answer::refused(429, "SubscriptionRequestsThrottled", message).with("Retry-After", seconds)
        }
        Fault::Broken => Answer::refused(503, "ServiceUnavailable", "The service is unavailable."),
        Fault::Failed => Answer::refused(500, "InternalServerError", "Encountered internal server error."),
        Fault::Forbidden => {
            let message =
                "The client with object id 'x' does not have authorization to perform the action over the scope.";
            Answer::refused(403, "AuthorizationFailed", message)
        }
        Fault::Gone => Answer::refused(404, "ResourceNotFound", "The resource was not found."),
        Fault::Moved => Answer::empty(302).with("Location", "http://127.0.0.1:1/"),
        Fault::Endless => Answer { status: 200, headers: Vec::new(), body: "[".repeat(9 << 20) },
        Fault::LeadsAway => {
            Answer::new(200, &json!({ "value": [], "nextLink": "https://evil.example/subscriptions?api-version=1" }))
        }
        Fault::Garbage => Answer { status: 200, headers: Vec::new(), body: "<html>a proxy's page</html>".to_owned() },
        // Closed without an answer, or answered otherwise, before it comes to this.
        Fault::Lost | Fault::Fine | Fault::Circles => Answer::empty(500),
    }
}
