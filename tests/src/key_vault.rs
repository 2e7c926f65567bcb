//! A small Azure Key Vault: real RSA keys behind the two operations that the vault key needs, with versions, a token, and faults.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::http::Request;

/// The token that the server takes.
pub const TOKEN: &str = "eyJ0-secret-token-of-the-test";

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// 429 with `Retry-After` in seconds.
    Busy(u64),
    /// 503.
    Broken,
    /// 403.
    Forbidden,
    /// The connection is closed without an answer.
    Lost,
    /// 302 to another place.
    Moved,
}

/// A server with one key, `keys/backup`. It ends with the test's process.
#[derive(Debug, Clone)]
pub struct KeyVault {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    versions: Vec<(String, Vec<u8>)>,
    faults: VecDeque<Fault>,
    calls: Vec<String>,
}

impl KeyVault {
    /// A server with the first version of its key.
    #[track_caller]
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let server = Self { port, state: Arc::default() };
        server.add_version();
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

    /// Without a version.
    pub fn key(&self) -> String {
        format!("http://127.0.0.1:{}/keys/backup", self.port)
    }

    /// Makes another version, which wraps from then on.
    #[track_caller]
    pub fn add_version(&self) {
        let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).expect("an RSA key");
        let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&key).expect("encodes");
        let mut state = self.state();
        let version = format!("{:032x}", state.versions.len() + 1);
        state.versions.push((version, der.as_ref().to_vec()));
    }

    /// The next requests fail, in this order.
    pub fn fail(&self, faults: &[Fault]) {
        self.state().faults.extend(faults);
    }

    /// The operations so far (`wrapkey`, `unwrapkey`), failed ones too.
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let request = Request::read(&stream)?;
        let (status, more, answer) = self.answer(&request.target, request.header("authorization"), &request.body)?;
        let answer = answer.to_string();
        let length = answer.len();
        write!(
            stream,
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{more}content-length: {length}\r\nconnection: close\r\n\r\n{answer}"
        )
        .ok()
    }

    fn answer(&self, path: &str, authorization: Option<String>, body: &[u8]) -> Option<(u16, String, Value)> {
        let refused = |status: u16, code: &str, message: &str| {
            Some((status, String::new(), json!({ "error": { "code": code, "message": message } })))
        };
        let mut state = self.state();
        let (path, query) = path.split_once('?')?;
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let operation = *segments.last()?;
        state.calls.push(operation.to_owned());
        match state.faults.pop_front() {
            None => {}
            Some(Fault::Busy(seconds)) => {
                let (_, _, answer) = refused(429, "Throttled", "too many requests")?;
                return Some((429, format!("retry-after: {seconds}\r\n"), answer));
            }
            Some(Fault::Broken) => return refused(503, "ServiceUnavailable", "try later"),
            Some(Fault::Forbidden) => return refused(403, "Forbidden", "the caller has no right on the key"),
            Some(Fault::Lost) => return None,
            Some(Fault::Moved) => {
                return Some((302, "location: http://127.0.0.1:1/keys/backup\r\n".to_owned(), json!({})));
            }
        }
        if authorization.as_deref() != Some(&format!("Bearer {TOKEN}")) {
            return refused(401, "Unauthorized", "AKV10000: Request is missing a Bearer or PoP token.");
        }
        let question: Value = serde_json::from_slice(body).ok()?;
        if query != "api-version=7.4" || question["alg"] != "RSA-OAEP-256" {
            return refused(400, "BadParameter", "api-version or algorithm is not supported");
        }
        let value = URL_SAFE_NO_PAD.decode(question["value"].as_str()?).ok()?;
        let version = match segments[..] {
            ["keys", "backup", "wrapkey"] => state.versions.last(),
            ["keys", "backup", version, _] => state.versions.iter().find(|(known, _)| known == version),
            _ => None,
        };
        let Some((version, der)) = version else {
            return refused(404, "KeyNotFound", "A key with this name/version was not found.");
        };
        let key = PrivateDecryptingKey::from_pkcs8(der).ok()?;
        let done = match operation {
            "wrapkey" => {
                let key = OaepPublicEncryptingKey::new(key.public_key()).ok()?;
                let mut output = vec![0; key.ciphertext_size()];
                key.encrypt(&OAEP_SHA256_MGF1SHA256, &value, &mut output, None).map(|bytes| bytes.to_vec())
            }
            _ => {
                let key = OaepPrivateDecryptingKey::new(key).ok()?;
                let mut output = vec![0; key.min_output_size()];
                key.decrypt(&OAEP_SHA256_MGF1SHA256, &value, &mut output, None).map(|bytes| bytes.to_vec())
            }
        };
        match done {
            Ok(bytes) => {
                let kid = format!("http://127.0.0.1:{}/keys/backup/{version}", self.port);
                Some((200, String::new(), json!({ "kid": kid, "value": URL_SAFE_NO_PAD.encode(bytes) })))
            }
            Err(_) => refused(400, "BadParameter", "the value cannot be decrypted"),
        }
    }
}
