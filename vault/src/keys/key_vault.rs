//! A key in Azure Key Vault, over its REST interface: it wraps what it never sees.
//!
//! RSA-OAEP binds no context, so a random AES-256 key is wrapped by Key Vault, and the secret is sealed under it with the context:
//! ```text
//! POST {key}/wrapkey | {key}/{version}/unwrapkey ?api-version=7.4     {"alg": "RSA-OAEP-256", "value": base64url(AES key)}
//! ```
//! Invariants:
//! - The token goes to the configured key only: a record that names another host or key is refused before anything is sent, and
//!   redirects are not followed.
//! - Busy (429), failing (5xx) and silent services are asked again by the one retry layer ([`crate::store::retry`]), not before
//!   `Retry-After` is over.
//! - No error, log line or `Debug` output holds a token, a wrapped key or a secret.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use url::{Host, Url};
use zeroize::Zeroizing;

use super::{KeyWrap, WrapKey, Wrapped};
use crate::error::Error;
use crate::network;
use crate::store::{self, retry};

const ALGORITHM: &str = "RSA-OAEP-256+AES-256-GCM";
const API_VERSION: &str = "7.4";
/// For a connection to come about, as for stores.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For an answer; Key Vault's own operations take milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A longer `Retry-After` is not slept through at once: the deadline decides.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);
/// An answer has one number of 512 bytes at most, and an error some sentences.
const LARGEST_ANSWER: usize = 64 << 10;
/// The service's words are cut here.
const DETAIL_CHARS: usize = 300;

/// The address of a key: `https://NAME.vault.azure.net/keys/KEY`, with or without a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyUrl {
    /// Without the version.
    key: Url,
    version: Option<String>,
}

/// The text is no address of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key's address is https://NAME.vault.azure.net/keys/KEY, with or without /VERSION")]
pub struct InvalidKeyUrl;

impl FromStr for KeyUrl {
    type Err = InvalidKeyUrl;

    fn from_str(text: &str) -> Result<Self, InvalidKeyUrl> {
        let mut url = Url::parse(text).map_err(|_| InvalidKeyUrl)?;
        // Without TLS only an emulator on this machine is spoken to: a token must not cross a network in the clear.
        let safe = url.scheme() == "https" || (url.scheme() == "http" && is_local(&url));
        let bare = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        if !safe || !bare || url.password().is_some() {
            return Err(InvalidKeyUrl);
        }
        let path = url.path().trim_end_matches('/').to_owned();
        let mut segments = path.trim_start_matches('/').split('/');
        let (Some("keys"), Some(name)) = (segments.next(), segments.next()) else { return Err(InvalidKeyUrl) };
        let version = segments.next();
        let plain = |text: &str| {
            (1..=127).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if segments.next().is_some() || !plain(name) || !version.is_none_or(plain) {
            return Err(InvalidKeyUrl);
        }
        url.set_path(&format!("keys/{name}"));
        Ok(Self { key: url, version: version.map(str::to_owned) })
    }
}

impl fmt::Display for KeyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key.as_str())?;
        self.version.iter().try_for_each(|version| write!(f, "/{version}"))
    }
}

fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Where a bearer token for Key Vault comes from. Asked before every request, because tokens live for an hour or so.
#[async_trait]
pub trait TokenSource: fmt::Debug + Send + Sync + 'static {
    /// A token that is valid now. The error says what is missing, and never holds a token.
    async fn token(&self, cancel: &CancellationToken) -> Result<SecretString, Error>;
}

/// A token that somebody else got, as long as it is valid.
#[derive(Debug)]
pub struct FixedToken(pub SecretString);

#[async_trait]
impl TokenSource for FixedToken {
    async fn token(&self, _: &CancellationToken) -> Result<SecretString, Error> {
        Ok(self.0.clone())
    }
}

/// A file that somebody else keeps a valid token in.
#[derive(Debug)]
pub struct TokenFile(pub PathBuf);

#[async_trait]
impl TokenSource for TokenFile {
    async fn token(&self, _: &CancellationToken) -> Result<SecretString, Error> {
        let text = tokio::fs::read_to_string(&self.0).await.map_err(|error| Error::KeyVaultAccessDenied {
            key: "of the configuration".to_owned(),
            detail: format!("the token file {} cannot be read: {error}", self.0.display()),
        })?;
        Ok(SecretString::from(Zeroizing::new(text).trim()))
    }
}

/// A key in Azure Key Vault. See the module.
#[derive(Debug)]
pub struct AzureKeyVault {
    key: KeyUrl,
    token: Box<dyn TokenSource>,
    retry: retry::Config,
    client: reqwest::Client,
}

#[derive(Serialize)]
struct Question<'a> {
    alg: &'static str,
    value: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    kid: String,
    value: String,
}

impl AzureKeyVault {
    /// Sends nothing. `deadline` is how long one operation is tried.
    pub fn new(key: KeyUrl, token: Box<dyn TokenSource>, deadline: Duration) -> Result<Self, Error> {
        let builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none());
        let client = network::client(builder).map_err(Error::internal)?;
        Ok(Self { key, token, retry: retry::Config { deadline }, client })
    }

    async fn ask(
        &self,
        key: &KeyUrl,
        operation: &'static str,
        value: &[u8],
        cancel: &CancellationToken,
    ) -> Result<(String, Zeroizing<Vec<u8>>), Error> {
        let url = format!("{key}/{operation}?api-version={API_VERSION}");
        let value = Zeroizing::new(URL_SAFE_NO_PAD.encode(value));
        let question = Question { alg: "RSA-OAEP-256", value: &value };
        let body = Zeroizing::new(serde_json::to_vec(&question).map_err(Error::internal)?);
        let name = self.key.to_string();
        let tries = retry::retrying(&self.retry, &name, operation, || self.attempt(&url, &body, cancel));
        let answer = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Error::Cancelled),
            answer = tries => answer.map_err(|error| self.meaning(error))?,
        };
        let unreadable = |_| self.unavailable("its answer cannot be read".to_owned());
        let answer: Answer = serde_json::from_slice(&answer).map_err(|_| unreadable(()))?;
        let encoded = Zeroizing::new(answer.value);
        let value = URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).map_err(|_| unreadable(()))?;
        Ok((answer.kid, Zeroizing::new(value)))
    }

    /// One request. The errors are a store's, because the retry layer speaks of those; [`Self::meaning`] turns them into Key Vault's.
    async fn attempt(
        &self,
        url: &str,
        body: &[u8],
        cancel: &CancellationToken,
    ) -> Result<Zeroizing<Vec<u8>>, store::Error> {
        let store = self.key.to_string();
        let unavailable = |detail: String| store::Error::Unavailable { store: store.clone(), detail };
        let token = self.token.token(cancel).await.map_err(|error| {
            let detail = match error {
                Error::KeyVaultAccessDenied { detail, .. } => detail,
                other => other.to_string(),
            };
            store::Error::AccessDenied { store: store.clone(), detail }
        })?;
        let request = self.client.post(url).bearer_auth(token.expose_secret());
        let request = request.header("content-type", "application/json").body(body.to_vec());
        // The URL has no secret in it.
        let mut response =
            request.send().await.map_err(|error| unavailable(vaultferry_proto::status::chain(&error)))?;
        let status = response.status().as_u16();
        let wait = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let mut answer = Zeroizing::new(Vec::new());
        while let Some(piece) = response.chunk().await.map_err(|error| unavailable(error.to_string()))? {
            if answer.len() + piece.len() > LARGEST_ANSWER {
                return Err(unavailable("its answer is too long".to_owned()));
            }
            answer.extend_from_slice(&piece);
        }
        if status == 200 {
            return Ok(answer);
        }
        let detail = format!("{status} {}", message(&answer));
        match status {
            401 | 403 => Err(store::Error::AccessDenied { store, detail }),
            404 => Err(store::Error::NoStore { store }),
            408 | 429 | 500.. => {
                if let Some(wait) = wait.map(Duration::from_secs) {
                    tokio::time::sleep(wait.min(LONGEST_RETRY_AFTER)).await;
                }
                Err(unavailable(detail))
            }
            _ => Err(store::Error::Rejected { store, detail }),
        }
    }

    fn unavailable(&self, detail: String) -> Error {
        Error::KeyVaultUnavailable { key: self.key.to_string(), detail }
    }

    fn meaning(&self, error: store::Error) -> Error {
        let key = self.key.to_string();
        match error {
            store::Error::AccessDenied { detail, .. } => Error::KeyVaultAccessDenied { key, detail },
            store::Error::NoStore { .. } => {
                Error::KeyMissing { path: key, detail: "is not in Key Vault, or this version of it is not".to_owned() }
            }
            store::Error::Unavailable { detail, .. } => Error::KeyVaultUnavailable { key, detail },
            store::Error::Rejected { detail, .. } => {
                Error::KeyWrong { what: format!("what Key Vault refuses ({detail})") }
            }
            other => Error::KeyVaultUnavailable { key, detail: other.to_string() },
        }
    }

    /// The version that a record names, if it is one of the configured key.
    fn version_of(&self, key_id: &str) -> Option<KeyUrl> {
        key_id.parse::<KeyUrl>().ok().filter(|named| named.key == self.key.key && named.version.is_some())
    }
}

/// Key Vault's own code and first line of words.
fn message(body: &[u8]) -> String {
    #[derive(Deserialize, Default)]
    struct Refusal {
        #[serde(default)]
        error: Words,
    }
    #[derive(Deserialize, Default)]
    struct Words {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Words { code, message } = serde_json::from_slice::<Refusal>(body).unwrap_or_default().error;
    format!("{code} {}", message.lines().next().unwrap_or_default()).trim().chars().take(DETAIL_CHARS).collect()
}

#[async_trait]
impl KeyWrap for AzureKeyVault {
    fn id(&self) -> String {
        self.key.to_string()
    }

    fn wrapped(&self, wrapped: &Wrapped) -> bool {
        self.version_of(&wrapped.key_id).is_some()
    }

    async fn wrap(&self, secret: &[u8], context: &str, cancel: &CancellationToken) -> Result<Wrapped, Error> {
        let data_key = WrapKey::generate()?;
        let sealed = data_key.wrap(secret, context)?;
        let (key_id, wrapped_key) = self.ask(&self.key, "wrapkey", data_key.bytes(), cancel).await?;
        if self.version_of(&key_id).is_none() {
            return Err(self.unavailable(format!("it answered for another key, {key_id}")));
        }
        let wrapped_key = Some(STANDARD.encode(&*wrapped_key));
        Ok(Wrapped { algorithm: ALGORITHM.to_owned(), key_id, wrapped_key, ..sealed })
    }

    async fn unwrap(
        &self,
        wrapped: &Wrapped,
        context: &str,
        cancel: &CancellationToken,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let wrong = || Error::KeyWrong { what: format!("the key of {context} (wrapped by key {})", wrapped.key_id) };
        if wrapped.algorithm != ALGORITHM {
            let detail = format!("it is wrapped by {:?}", wrapped.algorithm);
            return Err(Error::Unreadable { what: format!("the key of {context}"), detail });
        }
        let version = self.version_of(&wrapped.key_id).ok_or_else(wrong)?;
        let wrapped_key = wrapped.wrapped_key.as_deref().and_then(|text| STANDARD.decode(text).ok());
        let (_, data_key) = self.ask(&version, "unwrapkey", &wrapped_key.ok_or_else(wrong)?, cancel).await?;
        let data_key = Zeroizing::new(<[u8; 32]>::try_from(&data_key[..]).map_err(|_| wrong())?);
        let sealed = Wrapped { algorithm: super::wrap_key::ALGORITHM.to_owned(), ..wrapped.clone() };
        WrapKey::from_bytes(data_key).unwrap(&sealed, context).map_err(|_| wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_keys() {
        for (text, version) in [
            ("https://my.vault.azure.net/keys/backup", None),
            ("https://my.vault.azure.net/keys/backup/", None),
            ("https://my.vault.azure.net/keys/backup/0a1b", Some("0a1b")),
            ("http://127.0.0.1:8443/keys/backup", None),
        ] {
            let key: KeyUrl = text.parse().expect(text);
            assert_eq!(key.version.as_deref(), version);
            assert_eq!(key.to_string(), text.trim_end_matches('/'));
        }
        for text in [
            "",
            "backup",
            "http://my.vault.azure.net/keys/backup",
            "https://my.vault.azure.net/secrets/backup",
            "https://my.vault.azure.net/keys",
            "https://my.vault.azure.net/keys/a/b/c",
            "https://my.vault.azure.net/keys/a?x=y",
            "https://user:secret@my.vault.azure.net/keys/a",
            "https://my.vault.azure.net/keys/../keys2",
            "ftp://127.0.0.1/keys/a",
        ] {
            assert_eq!(text.parse::<KeyUrl>(), Err(InvalidKeyUrl), "{text}");
        }
    }
}
