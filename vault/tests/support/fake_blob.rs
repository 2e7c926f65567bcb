//! A stand-in for the Blob service, in memory, for what Azurite lacks: versions, immutability, legal holds, and an Archive tier that makes
//! one wait. It answers as the REST API's pages say (status, `x-ms-error-code`, headers) to what a store of ours asks, and to nothing else.
//!
//! What it models:
//! - Account `fakeaccount`, addressed by path. A request is authorized by `SharedKey fakeaccount:…` (not verified: Azurite does that) or by
//!   a container SAS, whose signature, container, expiry and letters are verified.
//! - Deleting a blob makes its bytes a previous version, protected or not; a version that is protected is not deleted. A locked date
//!   is never shortened.
//! - A blob in the Archive tier cannot be read; a copy or a change of tier out of it waits until [`FakeBlob::finish_rehydration`].
//!
//! It speaks HTTP/1.1 with content-length only: all that the client sends.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use secrecy::SecretString;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use url::Url;
use vaultferry_vault::store::azure::Credential;

pub const ACCOUNT: &str = "fakeaccount";
const RFC1123: &str = "%a, %d %b %Y %H:%M:%S GMT";

/// What kind of account it is.
#[derive(Debug, Clone, Copy)]
pub struct Account {
    /// Version-level immutability is on, and with it versions.
    pub immutability: bool,
    /// `Standard_GRS`, …
    pub sku: &'static str,
}

impl Default for Account {
    fn default() -> Self {
        Self { immutability: true, sku: "Standard_GRS" }
    }
}

/// The running service; it ends with its runtime.
#[derive(Debug, Clone)]
pub struct FakeBlob {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    account: Account,
    containers: BTreeMap<String, Container>,
    versions: u64,
    log: Vec<String>,
}

#[derive(Debug, Default)]
struct Container {
    blobs: BTreeMap<String, Blob>,
    /// By name and version.
    previous: BTreeMap<(String, String), Blob>,
}

#[derive(Debug, Clone)]
struct Blob {
    body: Vec<u8>,
    version: String,
    tier: String,
    pending: bool,
    until: Option<jiff::Timestamp>,
    locked: bool,
    hold: bool,
}

impl Blob {
    fn protected(&self) -> Option<&'static str> {
        if self.hold {
            return Some("BlobImmutableDueToLegalHold");
        }
        self.until.is_some_and(|until| until > jiff::Timestamp::now()).then_some("BlobImmutableDueToPolicy")
    }
}

/// A request, taken apart.
#[derive(Debug)]
struct Request {
    method: String,
    container: String,
    blob: String,
    query: HashMap<String, String>,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    fn query(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

#[derive(Debug, Default)]
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    /// `content-length` of an answer to HEAD.
    length: Option<usize>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// An error's status and its name.
type Refusal = (u16, &'static str);

impl FakeBlob {
    /// Starts the service on a free port of 127.0.0.1.
    pub async fn start(account: Account) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let state = State { account, containers: BTreeMap::new(), versions: 0, log: Vec::new() };
        let fake = Self { port, state: Arc::new(Mutex::new(state)) };
        let serving = fake.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let fake = serving.clone();
                tokio::spawn(async move { fake.serve(stream).await });
            }
        });
        fake
    }

    pub fn endpoint(&self) -> Url {
        Url::parse(&format!("http://127.0.0.1:{}/{ACCOUNT}", self.port)).expect("a URL")
    }

    /// The account's key: anything, as long as it is base64.
    pub fn key() -> SecretString {
        SecretString::from(BASE64_STANDARD.encode("the key of the fake account"))
    }

    pub fn account_key() -> Credential {
        Credential::AccountKey(Self::key())
    }

    /// What waits comes out of the archive.
    pub fn finish_rehydration(&self) {
        let mut state = self.state();
        let blobs = state.containers.values_mut().flat_map(|container| container.blobs.values_mut());
        for blob in blobs.filter(|blob| blob.pending) {
            (blob.pending, blob.tier) = (false, "Hot".to_owned());
        }
    }

    /// Every request so far: method, what it is about, and its status.
    pub fn log(&self) -> Vec<String> {
        self.state().log.clone()
    }

    /// How many previous versions of blobs are left.
    pub fn previous_versions(&self) -> usize {
        self.state().containers.values().map(|container| container.previous.len()).sum()
    }

    /// A blob's tier, and whether it is on its way out of the archive.
    pub fn state_of(&self, container: &str, blob: &str) -> Option<(String, bool)> {
        self.state().containers.get(container)?.blobs.get(blob).map(|blob| (blob.tier.clone(), blob.pending))
    }

    /// The blobs of a container that are on legal hold, ascending.
    pub fn on_hold(&self, container: &str) -> Vec<String> {
        let state = self.state();
        let blobs = state.containers.get(container).map(|container| &container.blobs);
        let held = blobs.into_iter().flatten().filter(|(_, blob)| blob.hold);
        held.map(|(name, _)| name.clone()).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the fake")
    }

    async fn serve(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        while let Some(request) = read_request(&mut stream).await {
            let head = request.method == "HEAD";
            let answer = {
                let mut state = self.state();
                let answer = state.answer(&request).unwrap_or_else(|(status, code)| {
                    let body =
                        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{code}.</Message></Error>");
                    Answer { body: body.into_bytes(), ..Answer::new(status).with("x-ms-error-code", code) }
                });
                let comp = request.query("comp");
                let what = if request.header("x-ms-copy-source").is_empty() { comp } else { "copy" };
                state.log.push(format!("{} {what} {} {}", request.method, request.blob, answer.status));
                answer
            };
            let mut text =
                format!("HTTP/1.1 {} -\r\nx-ms-version: 2026-04-06\r\nx-ms-request-id: 1\r\n", answer.status);
            for (name, value) in &answer.headers {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
            text.push_str(&format!("content-length: {}\r\n\r\n", answer.length.unwrap_or(answer.body.len())));
            let mut bytes = text.into_bytes();
            if !head {
                bytes.extend_from_slice(&answer.body);
            }
            if stream.get_mut().write_all(&bytes).await.is_err() {
                return;
            }
        }
    }
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    if stream.read_line(&mut line).await.ok()? == 0 {
        return None;
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let url = Url::parse(&format!("http://h{target}")).ok()?;
    let path = url.path().strip_prefix(&format!("/{ACCOUNT}/")).unwrap_or_default().to_owned();
    let (container, blob) = path.split_once('/').unwrap_or((&path, ""));
    let query = url.query_pairs().map(|(name, value)| (name.to_lowercase(), value.into_owned())).collect();
    Some(Request { method, container: container.to_owned(), blob: blob.to_owned(), query, headers, body })
}

impl State {
    fn answer(&mut self, request: &Request) -> Result<Answer, Refusal> {
        assert!(!request.header("x-ms-version").is_empty(), "every request tells its version");
        let letters = letters(request)?;
        // An account's key may do everything.
        let may = |wanted: &str| {
            let allowed = letters.as_ref().is_none_or(|letters| wanted.chars().any(|letter| letters.contains(letter)));
            if allowed { Ok(()) } else { Err((403, "AuthorizationPermissionMismatch")) }
        };
        let (restype, comp) = (request.query("restype"), request.query("comp"));
        match (request.method.as_str(), restype, comp) {
            ("GET", "account", "properties") => {
                may("r")?;
                return Ok(Answer::new(200)
                    .with("x-ms-sku-name", self.account.sku)
                    .with("x-ms-account-kind", "StorageV2"));
            }
            ("PUT", "container", "") => {
                may("")?;
                if self.containers.contains_key(&request.container) {
                    return Err((409, "ContainerAlreadyExists"));
                }
                self.containers.insert(request.container.clone(), Container::default());
                return Ok(Answer::new(201));
            }
            _ => {}
        }
        let (immutability, versions) = (self.account.immutability, &mut self.versions);
        let container = self.containers.get_mut(&request.container).ok_or((404, "ContainerNotFound"))?;
        *versions += 1;
        let version = format!("2026-01-01T00:00:00.{:07}Z", *versions);
        match (request.method.as_str(), restype, comp) {
            ("GET", "container", "list") => may("l").map(|()| container.list(request)),
            ("HEAD", "", "") => {
                may("r")?;
                let blob = container.blobs.get(&request.blob).ok_or((404, "BlobNotFound"))?;
                let answer = blob.describe(Answer { length: Some(blob.body.len()), ..Answer::new(200) });
                Ok(if immutability { answer.with("x-ms-version-id", blob.version.clone()) } else { answer })
            }
            ("GET", "", "") => may("r").and_then(|()| container.get(request)),
            ("PUT", "", "") if !request.header("x-ms-copy-source").is_empty() => {
                container.may_create(request, &may)?;
                if letters.is_some() {
                    may_read_source(request)?;
                }
                container.copy(request, version)
            }
            ("PUT", "", "") => {
                assert_eq!(request.header("x-ms-blob-type"), "BlockBlob");
                container.may_create(request, &may)?;
                let body = request.body.clone();
                container.blobs.insert(request.blob.clone(), Blob::new(body, version));
                Ok(Answer::new(201))
            }
            ("PUT", "", "tier") => may("w").and_then(|()| container.set_tier(request)),
            ("PUT", "", "immutabilityPolicies" | "legalhold") => {
                may("i")?;
                if !immutability {
                    return Err((409, "FeatureNotEnabled"));
                }
                let blob = container.blobs.get_mut(&request.blob).ok_or((404, "BlobNotFound"))?;
                if comp == "legalhold" { blob.set_hold(request) } else { blob.set_policy(request) }
            }
            ("DELETE", "", "") => container.delete(request, immutability, &may),
            other => panic!("the fake does not know {other:?}"),
        }
    }
}

impl Container {
    /// Creating needs `c` or `w`; a blob that is there is refused for `c` before its condition is looked at.
    fn may_create(&self, request: &Request, may: &impl Fn(&str) -> Result<(), Refusal>) -> Result<(), Refusal> {
        may("cw")?;
        if !self.blobs.contains_key(&request.blob) {
            return Ok(());
        }
        may("w").map_err(|_| (403, "UnauthorizedBlobOverwrite"))?;
        if request.header("if-none-match") == "*" { Err((409, "BlobAlreadyExists")) } else { Ok(()) }
    }

    fn get(&self, request: &Request) -> Result<Answer, Refusal> {
        let blob = self.blobs.get(&request.blob).ok_or((404, "BlobNotFound"))?;
        if blob.pending {
            return Err((409, "BlobBeingRehydrated"));
        }
        if blob.tier == "Archive" {
            return Err((409, "BlobArchived"));
        }
        let range = [request.header("x-ms-range"), request.header("range")].into_iter().find(|range| !range.is_empty());
        let Some(range) = range else {
            return Ok(blob.describe(Answer { body: blob.body.clone(), ..Answer::new(200) }));
        };
        let (begin, end) = range.trim_start_matches("bytes=").split_once('-').expect("a range");
        let begin: usize = begin.parse().expect("a number");
        let size = blob.body.len();
        if begin >= size {
            return Err((416, "InvalidRange"));
        }
        let end = end.parse::<usize>().map_or(size, |end| (end + 1).min(size));
        let answer = Answer { body: blob.body[begin..end].to_vec(), ..Answer::new(206) };
        Ok(blob.describe(answer).with("content-range", format!("bytes {begin}-{}/{size}", end - 1)))
    }

    fn list(&self, request: &Request) -> Answer {
        let limit: usize = request.query("maxresults").parse().unwrap_or(5000);
        let (prefix, marker) = (request.query("prefix"), request.query("marker"));
        let include = request.query("include");
        let mut text = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults><Blobs>");
        let mut found = self.blobs.iter().filter(|(name, _)| name.starts_with(prefix) && name.as_str() >= marker);
        for (name, blob) in found.by_ref().take(limit) {
            text.push_str(&format!(
                "<Blob><Name>{name}</Name><Properties><Content-Length>{}</Content-Length><BlobType>BlockBlob</BlobType>\
                 <AccessTier>{}</AccessTier>",
                blob.body.len(),
                blob.tier
            ));
            if blob.pending {
                text.push_str("<ArchiveStatus>rehydrate-pending-to-hot</ArchiveStatus>");
            }
            if let (Some(until), true) = (blob.until, include.contains("immutabilitypolicy")) {
                let mode = if blob.locked { "locked" } else { "unlocked" };
                text.push_str(&format!(
                    "<ImmutabilityPolicyUntilDate>{}</ImmutabilityPolicyUntilDate>\
                     <ImmutabilityPolicyMode>{mode}</ImmutabilityPolicyMode>",
                    until.strftime(RFC1123)
                ));
            }
            if blob.hold && include.contains("legalhold") {
                text.push_str("<LegalHold>true</LegalHold>");
            }
            text.push_str("</Properties></Blob>");
        }
        let next = found.next().map_or("", |(name, _)| name.as_str());
        text.push_str(&format!("</Blobs><NextMarker>{next}</NextMarker></EnumerationResults>"));
        Answer { body: text.into_bytes(), ..Answer::new(200) }.with("content-type", "application/xml")
    }

    fn copy(&mut self, request: &Request, version: String) -> Result<Answer, Refusal> {
        let source = Url::parse(request.header("x-ms-copy-source")).expect("the source is a URL");
        let from = source.path().strip_prefix(&format!("/{ACCOUNT}/{}/", request.container));
        let from = self.blobs.get(from.expect("the same container")).cloned().ok_or((404, "CannotVerifyCopySource"))?;
        let mut copy = Blob::new(from.body, version);
        let offline = from.tier == "Archive";
        if offline {
            // Both headers are needed then.
            assert_eq!(
                (request.header("x-ms-access-tier"), request.header("x-ms-rehydrate-priority")),
                ("Hot", "Standard")
            );
            (copy.tier, copy.pending) = ("Archive".to_owned(), true);
        }
        self.blobs.insert(request.blob.clone(), copy);
        Ok(Answer::new(202)
            .with("x-ms-copy-id", "1")
            .with("x-ms-copy-status", if offline { "pending" } else { "success" }))
    }

    fn set_tier(&mut self, request: &Request) -> Result<Answer, Refusal> {
        let blob = self.blobs.get_mut(&request.blob).ok_or((404, "BlobNotFound"))?;
        let tier = request.header("x-ms-access-tier");
        if blob.pending {
            return Err((409, "BlobBeingRehydrated"));
        }
        if blob.tier == "Archive" && tier != "Archive" {
            blob.pending = true;
            return Ok(Answer::new(202));
        }
        blob.tier = tier.to_owned();
        Ok(Answer::new(200))
    }

    fn delete(
        &mut self,
        request: &Request,
        versions: bool,
        may: &impl Fn(&str) -> Result<(), Refusal>,
    ) -> Result<Answer, Refusal> {
        let version = request.query("versionid");
        if version.is_empty() {
            may("d")?;
            let blob = self.blobs.remove(&request.blob).ok_or((404, "BlobNotFound"))?;
            if versions {
                self.previous.insert((request.blob.clone(), blob.version.clone()), blob);
            }
            return Ok(Answer::new(202));
        }
        may("x")?;
        let key = (request.blob.clone(), version.to_owned());
        let blob = self.previous.get(&key).ok_or((404, "BlobNotFound"))?;
        if let Some(code) = blob.protected() {
            return Err((409, code));
        }
        self.previous.remove(&key);
        Ok(Answer::new(202))
    }
}

impl Blob {
    fn new(body: Vec<u8>, version: String) -> Self {
        Self { body, version, tier: "Hot".to_owned(), pending: false, until: None, locked: false, hold: false }
    }

    fn describe(&self, answer: Answer) -> Answer {
        let mut answer = answer
            .with("x-ms-blob-type", "BlockBlob")
            .with("etag", "\"1\"")
            .with("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            .with("x-ms-access-tier", self.tier.clone());
        if self.pending {
            answer = answer.with("x-ms-archive-status", "rehydrate-pending-to-hot");
        }
        if let Some(until) = self.until {
            answer = answer
                .with("x-ms-immutability-policy-until-date", until.strftime(RFC1123).to_string())
                .with("x-ms-immutability-policy-mode", if self.locked { "locked" } else { "unlocked" });
        }
        if self.hold { answer.with("x-ms-legal-hold", "true") } else { answer }
    }

    fn set_policy(&mut self, request: &Request) -> Result<Answer, Refusal> {
        let until = request.header("x-ms-immutability-policy-until-date");
        let until = jiff::fmt::strtime::parse(RFC1123, until).map_err(|_| (400, "InvalidHeaderValue"))?;
        let until = until.to_datetime().expect("a date and a time").in_tz("UTC").expect("in UTC").timestamp();
        if until <= jiff::Timestamp::now() {
            return Err((400, "InvalidHeaderValue"));
        }
        let locked = request.header("x-ms-immutability-policy-mode").eq_ignore_ascii_case("locked");
        if self.locked && (!locked || self.until.is_some_and(|old| old > until)) {
            return Err((409, "BlobImmutableDueToPolicy"));
        }
        (self.until, self.locked) = (Some(until), locked);
        Ok(Answer::new(200))
    }

    fn set_hold(&mut self, request: &Request) -> Result<Answer, Refusal> {
        self.hold = match request.header("x-ms-legal-hold") {
            "true" => true,
            "false" => false,
            _ => return Err((400, "InvalidHeaderValue")),
        };
        Ok(Answer::new(200))
    }
}

/// The letters of the request's SAS; `None` for the account's key.
fn letters(request: &Request) -> Result<Option<String>, Refusal> {
    if request.header("authorization").starts_with(&format!("SharedKey {ACCOUNT}:")) {
        return Ok(None);
    }
    verify(&request.query, &request.container).map(Some)
}

/// The source of a copy is read with the signature in its own URL.
fn may_read_source(request: &Request) -> Result<(), Refusal> {
    let source = Url::parse(request.header("x-ms-copy-source")).expect("the source is a URL");
    let query = source.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
    match verify(&query, &request.container) {
        Ok(letters) if letters.contains('r') => Ok(()),
        _ => Err((403, "CannotVerifyCopySource")),
    }
}

fn verify(query: &HashMap<String, String>, container: &str) -> Result<String, Refusal> {
    let field = |name: &str| query.get(name).map_or("", String::as_str);
    let resource = format!("/blob/{ACCOUNT}/{container}");
    // Identifier, address and protocol are empty; after the kind come seven more empty fields.
    let rest = "\n".repeat(7);
    let text = format!("{}\n\n{}\n{resource}\n\n\n\n{}\n{}{rest}", field("sp"), field("se"), field("sv"), field("sr"));
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, b"the key of the fake account");
    let signature = BASE64_STANDARD.encode(aws_lc_rs::hmac::sign(&key, text.as_bytes()));
    let expiry: Result<jiff::Timestamp, _> = field("se").parse();
    let valid = field("sr") == "c" && expiry.is_ok_and(|expiry| expiry > jiff::Timestamp::now());
    let order = "racwdxyltfmeopi";
    let places: Vec<usize> = field("sp").chars().filter_map(|letter| order.find(letter)).collect();
    if !valid || signature != field("sig") || places.len() != field("sp").len() || !places.is_sorted() {
        return Err((403, "AuthenticationFailed"));
    }
    Ok(field("sp").to_owned())
}
