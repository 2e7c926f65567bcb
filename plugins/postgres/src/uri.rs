//! Where a database is: `postgres://user@host:port/database?sslmode=…`, as libpq reads it, but stricter.
//!
//! - One host, one user, no password. Parameters: `host` (a socket's folder, or a name), `port`, `sslmode`, `sslrootcert`, `sslcert`,
//!   `sslkey`; each once.
//! - What would have no effect, or another one than its writer thinks, is refused: a trusted certificate that nothing is checked with, a
//!   client certificate for a connection that may come about without TLS.
//! - Everything may be percent-encoded. Nothing here is ever handed on as text that another parser would take apart.
//! - An error never repeats what stands before the database's name: a password may be in it by mistake.
//!
//! The `url` crate is not used: it resolves `..`, refuses an empty host after a user, and knows no folder as a host.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use vaultferry_proto::{Problem, Reason};

/// PostgreSQL's registered port.
pub const DEFAULT_PORT: u16 = 5432;

/// A parsed source or target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    /// The role to log in as.
    pub user: String,
    /// The server.
    pub host: Host,
    /// The server's port; for a socket, the number in its name.
    pub port: u16,
    /// The database; `None` when the URI names none.
    pub database: Option<String>,
    /// How much TLS.
    pub tls: Tls,
    /// How we prove who we are in TLS; only with a mode that insists on TLS.
    pub client_certificate: Option<ClientCertificate>,
}

/// libpq's `sslcert` and `sslkey`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Our certificate, and those between it and its authority, in PEM. Absolute.
    pub cert_path: PathBuf,
    /// Its key, in PEM, not encrypted, which its owner alone may read. Absolute.
    pub key_path: PathBuf,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A name or an address, in lower case.
    Name(String),
    /// The folder of a Unix socket, without a slash at its end.
    Socket(String),
}

/// libpq's `sslmode`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// No TLS.
    Disable,
    /// TLS without a check of the certificate when the server insists on it, else none.
    Allow,
    /// TLS without a check of the certificate when the server offers it, else none. The default.
    Prefer,
    /// TLS without a check of the certificate.
    Require,
    /// TLS, and the certificate is one of a trusted authority, for whatever name. Also what libpq makes of `require` with a `sslrootcert`.
    VerifyCa {
        /// The certificates to trust, in PEM.
        root_cert_path: PathBuf,
    },
    /// TLS, and the certificate is checked for the host's name.
    VerifyFull {
        /// The certificates to trust, in PEM; `None` means the system's.
        root_cert_path: Option<PathBuf>,
    },
}

fn invalid(message: impl Into<String>) -> Problem {
    Problem::new(Reason::InvalidSource, message)
}

impl FromStr for Uri {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let rest = strip_scheme(text).ok_or_else(|| invalid("the URI does not begin with postgres://"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, address) = match authority.rsplit_once('@') {
            Some((user, address)) => (parse_user(user)?, address),
            None => return Err(invalid("the URI names no user: postgres://user@host/database")),
        };
        let (host, port) = split_port(address)?;
        let parameters = Parameters::parse(query)?;
        if port.is_some() && parameters.port.is_some() {
            return Err(invalid("the URI names two ports"));
        }
        let host = choose_host(decode(host, "host")?, parameters.host.clone())?;
        let tls = parameters.tls()?;
        Ok(Self {
            user,
            port: port.or(parameters.port).unwrap_or(DEFAULT_PORT),
            database: match decode(database, "database's name")? {
                name if name.is_empty() => None,
                name => Some(name),
            },
            client_certificate: parameters.client_certificate(&host, &tls)?,
            host,
            tls,
        })
    }
}

impl Uri {
    /// The database, for a source, which must name one.
    pub fn source_database(&self) -> Result<&str, Problem> {
        let message = "the URI names no database: postgres://user@host:port/database";
        self.database.as_deref().ok_or_else(|| invalid(message))
    }

    /// The same for every spelling, user and TLS mode of one database.
    pub fn identity(&self) -> String {
        let database = encode(self.database.as_deref().unwrap_or_default());
        format!("postgres://{}:{}/{database}", self.host.encoded(), self.port)
    }

    /// `host:port` or the socket's folder and port, for messages.
    pub fn server(&self) -> String {
        match &self.host {
            Host::Name(name) if name.contains(':') => format!("[{name}]:{}", self.port),
            Host::Name(name) => format!("{name}:{}", self.port),
            Host::Socket(dir) => format!("{dir}/.s.PGSQL.{}", self.port),
        }
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let database = encode(self.database.as_deref().unwrap_or_default());
        write!(f, "postgres://{}@{}:{}/{database}", encode(&self.user), self.host.encoded(), self.port)
    }
}

impl Host {
    fn encoded(&self) -> String {
        match self {
            Self::Name(name) if name.contains(':') => format!("[{name}]"),
            Self::Name(name) => encode(name),
            Self::Socket(dir) => encode(dir),
        }
    }

    /// As libpq's `host` parameter.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Name(text) | Self::Socket(text) => text,
        }
    }
}

fn strip_scheme(text: &str) -> Option<&str> {
    let (scheme, rest) = text.split_once("://")?;
    let known = scheme.eq_ignore_ascii_case("postgres") || scheme.eq_ignore_ascii_case("postgresql");
    known.then_some(rest)
}

fn parse_user(text: &str) -> Result<String, Problem> {
    if text.contains(':') {
        return Err(invalid("the URI has a password in it"));
    }
    match decode(text, "user's name")? {
        user if user.is_empty() => Err(invalid("the URI names no user: postgres://user@host/database")),
        user => Ok(user),
    }
}

/// Takes `host`, `host:port`, `[v6]` or `[v6]:port` apart.
fn split_port(address: &str) -> Result<(&str, Option<u16>), Problem> {
    if let Some(rest) = address.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(|| invalid("an address begins with [ and has no ]"))?;
        return match rest.strip_prefix(':') {
            None if rest.is_empty() => Ok((host, None)),
            None => Err(invalid("something that is no port follows the address in brackets")),
            Some(port) => Ok((host, Some(parse_port(port)?))),
        };
    }
    match address.split_once(':') {
        None => Ok((address, None)),
        Some((host, port)) => Ok((host, Some(parse_port(port)?))),
    }
}

fn parse_port(text: &str) -> Result<u16, Problem> {
    match text.parse::<u16>() {
        Ok(port @ 1..) => Ok(port),
        Ok(0) | Err(_) => Err(invalid("the port is not a number from 1 to 65535")),
    }
}

fn choose_host(in_authority: String, in_query: Option<String>) -> Result<Host, Problem> {
    let host = match (in_authority.is_empty(), in_query) {
        (false, None) => in_authority,
        (true, Some(host)) if !host.is_empty() => host,
        (true, _) => {
            return Err(invalid("the URI names no host; for a socket: postgres://user@/database?host=/folder"));
        }
        (false, Some(_)) => return Err(invalid("the URI names two hosts")),
    };
    if host.contains(',') {
        return Err(invalid("the URI names several hosts; one is possible"));
    }
    if host.starts_with('/') {
        let dir = host.trim_end_matches('/');
        return Ok(Host::Socket(if dir.is_empty() { "/".to_owned() } else { dir.to_owned() }));
    }
    if host.starts_with('@') || host.contains(['/', '\\', ' ']) {
        return Err(invalid("the host is neither a name nor an address nor an absolute folder"));
    }
    Ok(Host::Name(host.to_lowercase()))
}

#[derive(Default)]
struct Parameters {
    host: Option<String>,
    port: Option<u16>,
    ssl_mode: Option<String>,
    ssl_root_cert: Option<String>,
    ssl_cert: Option<String>,
    ssl_key: Option<String>,
}

impl Parameters {
    fn parse(query: &str) -> Result<Self, Problem> {
        let mut parameters = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let twice = match name {
                "host" => parameters.host.replace(decode(value, name)?).is_some(),
                "port" => parameters.port.replace(parse_port(value)?).is_some(),
                "sslmode" => parameters.ssl_mode.replace(decode(value, name)?).is_some(),
                "sslrootcert" => parameters.ssl_root_cert.replace(decode(value, name)?).is_some(),
                "sslcert" => parameters.ssl_cert.replace(decode(value, name)?).is_some(),
                "sslkey" => parameters.ssl_key.replace(decode(value, name)?).is_some(),
                "password" | "sslpassword" => return Err(invalid("the URI has a password in it")),
                _ => {
                    let known = "host, port, sslmode, sslrootcert, sslcert and sslkey are known";
                    return Err(invalid(format!("the URI has an unknown parameter; {known}")));
                }
            };
            if twice {
                return Err(invalid(format!("the URI has the parameter {name} twice")));
            }
        }
        Ok(parameters)
    }

    fn tls(&self) -> Result<Tls, Problem> {
        let root_cert_path = self.ssl_root_cert.as_deref().map(PathBuf::from);
        match (self.ssl_mode.as_deref(), root_cert_path) {
            (Some("disable"), None) => Ok(Tls::Disable),
            (Some("allow"), None) => Ok(Tls::Allow),
            (None | Some("prefer"), None) => Ok(Tls::Prefer),
            (Some("require"), None) => Ok(Tls::Require),
            // libpq's word for "those that this system trusts".
            (Some("verify-full"), Some(path)) if path.as_os_str() == "system" => {
                Ok(Tls::VerifyFull { root_cert_path: None })
            }
            (Some("verify-full"), root_cert_path) => Ok(Tls::VerifyFull { root_cert_path }),
            (Some("require" | "verify-ca"), Some(path)) if path.as_os_str() == "system" => {
                Err(invalid("sslrootcert=system goes with sslmode=verify-full only").with_fix(
                    "Use sslmode=verify-full: anybody gets a certificate of an authority that all systems trust, for a name of their own.",
                ))
            }
            (Some("require" | "verify-ca"), Some(root_cert_path)) => Ok(Tls::VerifyCa { root_cert_path }),
            (Some("verify-ca"), None) => Err(invalid("sslmode=verify-ca needs sslrootcert").with_fix(
                "Add sslrootcert=/path/to/the/authority.pem, or use sslmode=verify-full, which trusts the system's authorities and checks the name.",
            )),
            (None | Some("disable" | "allow" | "prefer"), Some(_)) => {
                let message = "sslrootcert has an effect with sslmode=verify-ca and sslmode=verify-full only";
                Err(invalid(message).with_fix("Add sslmode=verify-full."))
            }
            (Some(_), _) => {
                let known = "disable, allow, prefer, require, verify-ca and verify-full";
                Err(invalid(format!("sslmode is not one of {known}")))
            }
        }
    }

    fn client_certificate(&self, host: &Host, tls: &Tls) -> Result<Option<ClientCertificate>, Problem> {
        let (cert_path, key_path) = match (self.ssl_cert.as_deref(), self.ssl_key.as_deref()) {
            (None, None) => return Ok(None),
            (Some(certificate), Some(key)) => (PathBuf::from(certificate), PathBuf::from(key)),
            _ => return Err(invalid("sslcert and sslkey go together")),
        };
        if !cert_path.is_absolute() || !key_path.is_absolute() {
            return Err(invalid("sslcert and sslkey are absolute paths on the agent's machine"));
        }
        let weak = matches!(tls, Tls::Disable | Tls::Allow | Tls::Prefer);
        if weak || matches!(host, Host::Socket(_)) {
            let message = "a client certificate is shown in TLS only, and this connection may come about without it";
            return Err(invalid(message).with_fix("Add sslmode=verify-full to the URI, and name the host."));
        }
        Ok(Some(ClientCertificate { cert_path, key_path }))
    }
}

/// Percent-decodes; `what` names the part in an error, which never repeats the text.
fn decode(text: &str, what: &str) -> Result<String, Problem> {
    let bad = || invalid(format!("the {what} in the URI is not percent-encoded UTF-8"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let [high, low, tail @ ..] = tail else { return Err(bad()) };
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let (Some(high), Some(low)) = (digit(*high), digit(*low)) else { return Err(bad()) };
            bytes.push(u8::try_from(high * 16 + low).map_err(|_| bad())?);
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    let decoded = String::from_utf8(bytes).map_err(|_| bad())?;
    if decoded.chars().any(char::is_control) {
        return Err(invalid(format!("the {what} in the URI has a control character in it")));
    }
    Ok(decoded)
}

/// Percent-encodes everything but what RFC 3986 calls unreserved.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests;
