//! What an identity of Azure is made of, small and fake: the machine's metadata service (IMDS), Entra's token endpoint, a key vault with
//! secrets, all at one address; and a PostgreSQL server's front that takes tokens for passwords, each token once.
//!
//! Only the shapes of questions and answers are Microsoft's; a token here is a random text.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::agent::Setup;
use crate::http::Request;
use crate::postgres::{Server, quote};
use crate::{process, random_hex, wait_for};

/// What a token for PostgreSQL is for.
pub const POSTGRES: &str = "https://ossrdbms-aad.database.windows.net";
/// What a token for Key Vault is for.
pub const KEY_VAULT: &str = "https://vault.azure.net";
/// The client id that the fake knows, of a user-assigned identity and of a workload.
pub const CLIENT_ID: &str = "6b2f4c1e-0000-4000-8000-0123456789ab";
/// The directory that the fake knows.
pub const TENANT_ID: &str = "11111111-2222-4333-8444-555555555555";
/// Longest wait for what takes a moment.
const SOON: Duration = Duration::from_secs(20);

/// What goes wrong with one question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: it is the one after it that fails.
    Fine,
    /// 429 with `Retry-After` in seconds.
    Busy(u64),
    /// 500.
    Broken,
    /// 403.
    Forbidden,
    /// 400: the machine has no such identity.
    NoIdentity,
    /// A token that nobody knows.
    Worthless,
}

/// The services. They end with the test's process.
#[derive(Debug, Clone)]
pub struct FakeAzure {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    issued: Vec<Token>,
    faults: VecDeque<Fault>,
    questions: Vec<String>,
    assertion: String,
    secret: Option<(String, String)>,
}

#[derive(Debug, Clone)]
struct Token {
    value: String,
    resource: String,
    logins: usize,
    worthless: bool,
}

impl FakeAzure {
    /// A machine with a system-assigned identity and a user-assigned one.
    #[track_caller]
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let fake = Self { port, state: Arc::default() };
        fake.state().assertion = format!("federated-{}", random_hex(40));
        let serving = fake.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let fake = serving.clone();
                // A client that goes away in the middle is no fault of the services.
                thread::spawn(move || fake.serve(stream));
            }
        });
        fake
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// An agent on this machine.
    #[must_use]
    pub fn machine(&self, setup: Setup) -> Setup {
        setup.env("AZURE_POD_IDENTITY_AUTHORITY_HOST", &self.url())
    }

    /// What the platform writes into the file of a workload's token.
    pub fn assertion(&self) -> String {
        self.state().assertion.clone()
    }

    /// The next questions fail, in this order.
    pub fn fail(&self, faults: &[Fault]) {
        self.state().faults.extend(faults);
    }

    /// Nothing fails any more.
    pub fn fail_no_more(&self) {
        self.state().faults.clear();
    }

    /// Keeps a secret; its address.
    pub fn set_secret(&self, name: &str, value: &str) -> String {
        self.state().secret = Some((name.to_owned(), value.to_owned()));
        format!("{}/secrets/{name}", self.url())
    }

    /// The values of all tokens so far for a resource, in the order in which they were issued.
    pub fn issued(&self, resource: &str) -> Vec<String> {
        self.state().issued.iter().filter(|token| token.resource == resource).map(|token| token.value.clone()).collect()
    }

    /// How many of them have let somebody in.
    pub fn logins(&self) -> usize {
        self.state().issued.iter().map(|token| token.logins).sum()
    }

    /// The questions so far, failed ones too: method and address without what is secret in them.
    pub fn questions(&self) -> Vec<String> {
        self.state().questions.clone()
    }

    /// Lets in by a token for PostgreSQL, once.
    fn take(&self, password: &str) -> bool {
        let mut state = self.state();
        let good = |token: &&mut Token| token.value == password && token.resource == POSTGRES;
        match state.issued.iter_mut().find(good) {
            Some(token) if token.logins == 0 && !token.worthless => {
                token.logins += 1;
                true
            }
            _ => false,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let request = Request::read(&stream)?;
        let question = Question {
            metadata: request.header("metadata").as_deref() == Some("true"),
            authorization: request.header("authorization").unwrap_or_default(),
            method: request.method,
            target: request.target,
            body: String::from_utf8(request.body).ok()?,
        };
        let (status, more, answer) = self.answer(&question);
        let answer = answer.to_string();
        let length = answer.len();
        write!(
            stream,
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{more}content-length: {length}\r\nconnection: close\r\n\r\n{answer}"
        )
        .ok()
    }

    fn answer(&self, question: &Question) -> (u16, String, Value) {
        let mut state = self.state();
        state.questions.push(format!("{} {}", question.method, question.target));
        let entra = |status: u16, code: &str, words: &str| {
            (status, String::new(), json!({ "error": code, "error_description": words }))
        };
        let worthless = match state.faults.pop_front() {
            None | Some(Fault::Fine) => false,
            Some(Fault::Worthless) => true,
            Some(Fault::Busy(seconds)) => {
                let (_, _, answer) = entra(429, "too_many_requests", "try later");
                return (429, format!("retry-after: {seconds}\r\n"), answer);
            }
            Some(Fault::Broken) => return entra(500, "server_error", "it broke"),
            Some(Fault::Forbidden) => {
                let words = json!({ "code": "Forbidden", "message": "the caller has no right on the secret" });
                return (403, String::new(), json!({ "error": words }));
            }
            Some(Fault::NoIdentity) => return entra(400, "invalid_request", "Identity not found"),
        };
        let (path, query) = question.target.split_once('?').unwrap_or((question.target.as_str(), ""));
        let parameter = |text: &str, name: &str| {
            text.split('&').find_map(|pair| Some(unescape(pair.split_once('=').filter(|(known, _)| *known == name)?.1)))
        };
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (resource, whose) = match (question.method.as_str(), segments.as_slice()) {
            ("GET", ["metadata", "identity", "oauth2", "token"]) => {
                if !question.metadata || parameter(query, "api-version").as_deref() != Some("2018-02-01") {
                    return entra(400, "bad_request_102", "Required metadata header not specified");
                }
                (parameter(query, "resource"), parameter(query, "client_id"))
            }
            ("POST", [tenant, "oauth2", "v2.0", "token"]) => {
                let field = |name: &str| parameter(&question.body, name);
                if *tenant != TENANT_ID || field("client_assertion") != Some(state.assertion.clone()) {
                    return entra(401, "invalid_client", "AADSTS700211: No matching federated identity record found.");
                }
                let scope = field("scope").unwrap_or_default();
                (scope.strip_suffix("/.default").map(str::to_owned), field("client_id"))
            }
            ("GET", ["secrets", name]) => return secret(&state, question, name),
            _ => return entra(404, "not_found", "there is no such service"),
        };
        if whose.is_some_and(|whose| whose != CLIENT_ID) {
            return entra(400, "invalid_request", "Identity not found");
        }
        let Some(resource) = resource.filter(|resource| [POSTGRES, KEY_VAULT].contains(&resource.as_str())) else {
            return entra(400, "invalid_resource", "AADSTS500011: The resource principal was not found.");
        };
        // As long as real ones.
        let value = format!("eyJ0eXAiOiJKV1Qi.{}", random_hex(700));
        state.issued.push(Token { value: value.clone(), resource: resource.clone(), logins: 0, worthless });
        let answer = json!({
            "access_token": value, "expires_in": "3599", "token_type": "Bearer", "resource": resource
        });
        (200, String::new(), answer)
    }
}

struct Question {
    method: String,
    target: String,
    metadata: bool,
    authorization: String,
    body: String,
}

fn secret(state: &State, question: &Question, name: &str) -> (u16, String, Value) {
    let refused = |status: u16, code: &str, message: &str| {
        (status, String::new(), json!({ "error": { "code": code, "message": message } }))
    };
    let bearer = question.authorization.strip_prefix("Bearer ").unwrap_or_default();
    let known = |token: &Token| token.value == bearer && token.resource == KEY_VAULT && !token.worthless;
    if !state.issued.iter().any(known) {
        return refused(401, "Unauthorized", "AKV10022: Invalid audience.");
    }
    if !question.target.ends_with("?api-version=7.4") {
        return refused(400, "BadParameter", "api-version is not supported");
    }
    match &state.secret {
        Some((known, value)) if known == name => (200, String::new(), json!({ "value": value, "id": name })),
        _ => refused(404, "SecretNotFound", "A secret with this name was not found in this key vault."),
    }
}

/// Undoes what forms and queries do to a text.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next(), rest.next()].map(|digit| char::from(digit.unwrap_or(b'0')));
                u8::from_str_radix(&String::from_iter(digits), 16).unwrap_or(b'?')
            }
            plain => plain,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The front of a server that asks for a password in clear text, as Azure Database for PostgreSQL does of Entra's users, and takes each
/// token of [`FakeAzure`] once. Whoever is let in is passed on to the server, which trusts the role.
#[derive(Debug)]
pub struct TokenFront {
    port: u16,
}

impl TokenFront {
    /// Makes the role at the server, with the right to read everything.
    #[track_caller]
    pub fn start(server: &Server, azure: &FakeAzure, role: &str) -> Self {
        let hba = server.data_dir().join("pg_hba.conf");
        let rules = std::fs::read_to_string(&hba).expect("read pg_hba.conf");
        std::fs::write(&hba, format!("host all {} 127.0.0.1/32 trust\n{rules}", quote(role)))
            .expect("write pg_hba.conf");
        let role = quote(role);
        server.psql("postgres", &format!("create role {role} login bypassrls; grant pg_read_all_data to {role}"));
        server.psql("postgres", "select pg_reload_conf()");
        // The postmaster reads its rules a moment later.
        wait_for("the server to trust the role", SOON, || {
            let mut psql = server.client("psql", "postgres");
            psql.env("PGUSER", role.trim_matches('"')).args(["-XqAt", "-w", "-c", "select 1"]);
            (process::run(&mut psql, b"", SOON).code == 0).then_some(())
        });
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen on a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let (azure, behind) = (azure.clone(), server.port());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let azure = azure.clone();
                // A client that goes away breaks its own thread only.
                thread::spawn(move || front(client, behind, &azure).is_ok());
            }
        });
        Self { port }
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }
}

fn front(mut client: TcpStream, behind: u16, azure: &FakeAzure) -> io::Result<()> {
    /// Protocol 3.0; whatever else comes first asks for TLS or GSSAPI, or is a cancellation.
    const STARTUP: u32 = 196_608;
    const CANCEL: u32 = 80_877_102;
    let startup = loop {
        let mut length = [0; 4];
        client.read_exact(&mut length)?;
        let mut body = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4).min(1 << 16)];
        client.read_exact(&mut body)?;
        let [a, b, c, d, ..] = body[..] else { return Ok(()) };
        let code = u32::from_be_bytes([a, b, c, d]);
        let whole = [&length[..], &body].concat();
        match code {
            STARTUP => break whole,
            CANCEL => return TcpStream::connect(("127.0.0.1", behind))?.write_all(&whole),
            _ => client.write_all(b"N")?,
        }
    };
    // AuthenticationCleartextPassword.
    client.write_all(b"R\0\0\0\x08\0\0\0\x03")?;
    let mut head = [0; 5];
    client.read_exact(&mut head)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let mut password = vec![0; length.saturating_sub(4).min(1 << 16)];
    client.read_exact(&mut password)?;
    let password = String::from_utf8_lossy(&password);
    if head[0] != b'p' || !azure.take(password.trim_end_matches('\0')) {
        let fields = b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user \"app\"\0\0";
        let length = u32::try_from(fields.len() + 4).expect("short");
        return client.write_all(&[&b"E"[..], &length.to_be_bytes(), fields].concat());
    }
    let mut server = TcpStream::connect(("127.0.0.1", behind))?;
    server.write_all(&startup)?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let sending = thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut server, &mut client);
    let _ = client.shutdown(Shutdown::Both);
    let _ = sending.join();
    Ok(())
}
