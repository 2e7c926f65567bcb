//! The way out of this machine: which proxy a connection takes, and whom it trusts. One for the whole process.
//!
//! ```text
//! [network] proxy       the configuration's, for every address
//!    else HTTPS_PROXY, ALL_PROXY (https), http_proxy, ALL_PROXY (http) of the environment
//!    else the same in /etc/environment, where http_proxy is for https too
//!    else HttpProxy.Host and HttpProxy.Port in /etc/waagent.conf
//!    else straight
//! ```
//! Invariants:
//! - Every HTTP client of the program that leaves the machine is made by [`client`], so that one place decides. What is asked next door (the
//!   machine's metadata service) is not made here, and takes no proxy.
//! - This machine itself is never reached through a proxy.
//! - [`Settings`] have no secret in them, and so go to plugins as they are; a login is named, and read by each process. What is read of it
//!   is in no error, log line or `Debug` output.
//! - Proxies are spoken to by HTTP, as they nearly all are: what passes them is TLS from end to end. A login goes to them in the clear.
//!
//! Limits: a proxy's login is Basic; NTLM, Kerberos, SOCKS and proxy scripts (PAC) are not known. Settings are read once: a change needs a
//! new start.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use url::{Host, Url};
use zeroize::Zeroizing;

mod bypass;
mod system;

#[cfg(test)]
mod tests;

pub use bypass::{Bypass, is_this_machine};
pub use system::Surroundings;

/// A plugin finds its [`Settings`] in this variable, as JSON.
pub const VARIABLE: &str = "VAULTFERRY_NETWORK";
/// In the place of a proxy's address: go straight, whatever the system says.
pub const STRAIGHT: &str = "none";
/// What a system says of proxies; in the environment of plugins too.
const SYSTEM_VARIABLES: [&str; 7] =
    ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "http_proxy", "NO_PROXY", "no_proxy"];
/// A login has some dozen characters.
const LOGIN_MAX: u64 = 4 << 10;
/// A system's whole bundle has some hundred KB.
const AUTHORITIES_MAX: u64 = 16 << 20;

/// `[network]`, without secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// `http://host:port`, or [`STRAIGHT`]; none: as the system says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// Where the proxy's login is; only with `proxy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Credential>,
    /// What is reached straight: names (with all below them), addresses, networks (`10.0.0.0/8`), `*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub no_proxy: Vec<String>,
    /// More authorities (PEM) beside the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// Where `user:password` is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Credential {
    /// In a variable of the environment.
    Env(String),
    /// In a file's first line.
    File(PathBuf),
}

/// What is wrong with the settings: a sentence that begins with the key. Holds no value that could be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// A proxy, and how one logs in there.
#[derive(Clone)]
pub struct Proxy {
    url: Url,
    login: Option<(String, SecretString)>,
    bypass: Arc<Bypass>,
    origin: String,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let login = self.login.as_ref().map(|_| "[REDACTED]");
        f.debug_struct("Proxy").field("url", &self.url.as_str()).field("login", &login).finish_non_exhaustive()
    }
}

impl Proxy {
    /// `text` is `http://[user:password@]host:port`; a system's may lack the scheme.
    fn parse(text: &str, origin: &str, bypass: Arc<Bypass>) -> Result<Self, Invalid> {
        let wrong = || Invalid(format!("{origin}: is not a proxy's address http://host:port"));
        let text = text.trim();
        let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let mut url = Url::parse(&whole).map_err(|_| wrong())?;
        if url.scheme() != "http" || url.host().is_none() || url.path() != "/" || url.query().is_some() {
            return Err(wrong());
        }
        let login = match (url.username(), url.password()) {
            ("", None) => None,
            (user, password) => Some((unescaped(user), SecretString::from(unescaped(password.unwrap_or_default())))),
        };
        url.set_username("").and_then(|()| url.set_password(None)).map_err(|()| wrong())?;
        Ok(Self { url, login, bypass, origin: origin.to_owned() })
    }

    /// `http://host:port/`, without the login.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Who named it: `[network] proxy`, `HTTPS_PROXY of the environment`, `/etc/waagent.conf`.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The value of `Proxy-Authorization`; none when no login is known.
    pub fn authorization(&self) -> Option<Zeroizing<String>> {
        let (user, password) = self.login.as_ref()?;
        let login = Zeroizing::new(format!("{user}:{}", password.expose_secret()));
        Some(Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(login.as_bytes()))))
    }

    fn is_for(&self, url: &Url) -> bool {
        url.host().is_some_and(|host| !self.bypass.matches(&host))
    }
}

/// The way out. See the module.
#[derive(Debug, Clone, Default)]
pub struct Network {
    https: Option<Proxy>,
    http: Option<Proxy>,
    authorities: Option<Authorities>,
}

/// What `ca_file` holds.
#[derive(Debug, Clone)]
struct Authorities {
    pem: Arc<[u8]>,
    certificates: Vec<reqwest::Certificate>,
}

impl Network {
    /// Works the settings out in these surroundings. Reads files, sends nothing.
    pub fn new(settings: &Settings, surroundings: &Surroundings) -> Result<Self, Invalid> {
        let authorities = settings.ca_file.as_deref().map(authorities).transpose()?;
        let mut bypass = Bypass::new(&settings.no_proxy)
            .map_err(|entry| Invalid(format!("network.no_proxy: {entry:?} is no name, address, network or \"*\"")))?;
        let Some(proxy) = settings.proxy.as_deref() else {
            if settings.credential.is_some() {
                return Err(Invalid("network: a proxy's credential needs proxy = \"http://host:port\"".to_owned()));
            }
            bypass.extend(&surroundings.no_proxy());
            let (https, http) = surroundings.proxies(&Arc::new(bypass))?;
            return Ok(Self { https, http, authorities });
        };
        if proxy == STRAIGHT {
            return Ok(Self { https: None, http: None, authorities });
        }
        let mut proxy = Proxy::parse(proxy, "[network] proxy", Arc::new(bypass))?;
        if proxy.login.is_some() {
            return Err(Invalid(
                "network.proxy: holds a login; name it with proxy_credential_env or proxy_credential_file".to_owned(),
            ));
        }
        proxy.login = settings.credential.as_ref().map(|credential| login(credential, surroundings)).transpose()?;
        Ok(Self { https: Some(proxy.clone()), http: Some(proxy), authorities })
    }

    /// The proxy that a connection to `url` takes; none: straight.
    pub fn proxy_for(&self, url: &Url) -> Option<&Proxy> {
        let proxy = if url.scheme() == "https" { &self.https } else { &self.http };
        proxy.as_ref().filter(|proxy| proxy.is_for(url))
    }

    /// The proxies for `https` and for `http`, for whoever shows them.
    pub fn proxies(&self) -> [Option<&Proxy>; 2] {
        [self.https.as_ref(), self.http.as_ref()]
    }

    /// The additional authorities, in PEM.
    pub fn authorities_pem(&self) -> Option<&[u8]> {
        self.authorities.as_ref().map(|authorities| &*authorities.pem)
    }

    /// A client that goes this way. Whatever the builder knew of proxies is forgotten.
    pub fn client(&self, builder: reqwest::ClientBuilder) -> Result<reqwest::Client, reqwest::Error> {
        let mut builder = builder.no_proxy();
        for (scheme, proxy) in [("https", &self.https), ("http", &self.http)] {
            let Some(proxy) = proxy else { continue };
            let chosen = proxy.clone();
            let way = move |url: &Url| (url.scheme() == scheme && chosen.is_for(url)).then(|| chosen.url.clone());
            let mut way = reqwest::Proxy::custom(way);
            if let Some((user, password)) = &proxy.login {
                way = way.basic_auth(user, password.expose_secret());
            }
            builder = builder.proxy(way);
        }
        if let Some(authorities) = &self.authorities {
            builder = builder.tls_certs_merge(authorities.certificates.iter().cloned());
        }
        builder.build()
    }
}

fn authorities(path: &Path) -> Result<Authorities, Invalid> {
    let invalid = |fault: &dyn fmt::Display| Invalid(format!("network.ca_file: {} {fault}", path.display()));
    let unreadable = |error: std::io::Error| invalid(&format!("cannot be read: {error}"));
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() || metadata.len() > AUTHORITIES_MAX {
        return Err(invalid(&"is no file of certificates"));
    }
    let pem = std::fs::read(path).map_err(unreadable)?;
    let certificates = reqwest::Certificate::from_pem_bundle(&pem);
    let certificates = certificates.ok().filter(|certificates| !certificates.is_empty());
    let certificates = certificates.ok_or_else(|| invalid(&"holds no certificate in PEM"))?;
    Ok(Authorities { pem: pem.into(), certificates })
}

fn login(credential: &Credential, surroundings: &Surroundings) -> Result<(String, SecretString), Invalid> {
    let (text, place) = match credential {
        Credential::Env(name) => {
            let missing = || {
                Invalid(format!("network.proxy_credential_env: the environment has no variable {name}, or it is empty"))
            };
            (Zeroizing::new(surroundings.variable(name).ok_or_else(missing)?), format!("the variable {name}"))
        }
        Credential::File(path) => {
            let unreadable = |error: &dyn fmt::Display| {
                Invalid(format!("network.proxy_credential_file: {} cannot be read: {error}", path.display()))
            };
            let metadata = std::fs::metadata(path).map_err(|error| unreadable(&error))?;
            if !metadata.is_file() || metadata.len() > LOGIN_MAX {
                return Err(unreadable(&"it is no small file"));
            }
            let text = std::fs::read_to_string(path).map_err(|error| unreadable(&error))?;
            (Zeroizing::new(text), path.display().to_string())
        }
    };
    let first = text.lines().next().unwrap_or_default().trim();
    match first.split_once(':') {
        Some((user, password)) if !user.is_empty() && !user.chars().any(char::is_control) => {
            Ok((user.to_owned(), SecretString::from(password.to_owned())))
        }
        _ => Err(Invalid(format!("network: {place} does not hold user:password"))),
    }
}

/// Percent-decoded, as the login in a URL is.
fn unescaped(text: &str) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let (bytes, mut plain, mut at) = (text.as_bytes(), Vec::new(), 0);
    while let Some(&byte) = bytes.get(at) {
        let value = match (digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (Some(high), Some(low)) if byte == b'%' => u8::try_from(high * 16 + low).ok(),
            _ => None,
        };
        plain.push(value.unwrap_or(byte));
        at += if value.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// What this process uses, with the settings that it came from.
static OF_PROCESS: OnceLock<(Settings, Network)> = OnceLock::new();

/// Decides the way for this process, before its first client is made. The first one stays; the same again is no error.
pub fn install(settings: &Settings) -> Result<(), Invalid> {
    let network = Network::new(settings, &Surroundings::of_process())?;
    let (installed, _) = OF_PROCESS.get_or_init(|| (settings.clone(), network));
    if installed == settings { Ok(()) } else { Err(Invalid("network: was decided otherwise already".to_owned())) }
}

/// In a plugin's process: as the agent that started it does.
pub fn install_in_plugin() -> Result<(), Invalid> {
    let settings = match std::env::var(VARIABLE) {
        Ok(text) => {
            serde_json::from_str(&text).map_err(|error| Invalid(format!("{VARIABLE} cannot be read: {error}")))?
        }
        // Started by hand.
        Err(_) => Settings::default(),
    };
    install(&settings)
}

/// The way that this process's connections take: as it was decided by [`install`], else as the system says.
pub fn of_process() -> &'static Network {
    &installed().1
}

fn installed() -> &'static (Settings, Network) {
    OF_PROCESS.get_or_init(|| {
        let settings = Settings::default();
        let network = Network::new(&settings, &Surroundings::of_process());
        let network = network.unwrap_or_else(|fault| {
            tracing::warn!("connections go straight, without a proxy: {fault}");
            Network::default()
        });
        (settings, network)
    })
}

/// A client that goes the process's way.
pub fn client(builder: reqwest::ClientBuilder) -> Result<reqwest::Client, reqwest::Error> {
    of_process().client(builder)
}

/// What a plugin's environment needs, so that it goes the same way as this process: the settings, and the variables that they name.
pub fn for_plugins() -> Vec<(String, OsString)> {
    let (settings, _) = installed();
    let mut variables: Vec<(String, OsString)> = Vec::new();
    // Texts, paths that came from a text, and nothing else: this does not fail.
    if let Ok(json) = serde_json::to_string(settings) {
        variables.push((VARIABLE.to_owned(), json.into()));
    }
    let mut names: Vec<&str> = SYSTEM_VARIABLES.to_vec();
    if let Some(Credential::Env(name)) = &settings.credential {
        names.push(name);
    }
    for name in names {
        if let Some(value) = std::env::var_os(name) {
            variables.push((name.to_owned(), value));
        }
    }
    variables
}

/// Where a storage account's blobs are in the public cloud. The account's name is a [`crate::location::Location`]'s, which has checked it.
pub fn blob_endpoint(account: &str) -> Option<Url> {
    Url::parse(&format!("https://{account}.blob.core.windows.net/")).ok()
}

/// `host:port` of an address, for messages and for `CONNECT`.
pub fn authority(url: &Url) -> Option<String> {
    let port = url.port_or_known_default()?;
    Some(match url.host()? {
        Host::Ipv6(address) => format!("[{address}]:{port}"),
        host => format!("{host}:{port}"),
    })
}
