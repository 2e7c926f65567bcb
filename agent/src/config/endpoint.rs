//! Where an agent listens.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// `sockaddr_un` holds 108 bytes on Linux, one of them the ending zero.
const LONGEST_SOCKET_PATH: usize = 107;

/// A unix socket, written `unix:///path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    path: PathBuf,
}

impl Endpoint {
    /// The endpoint at an absolute path.
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix("unix://") else {
            let is_later = ["https:", "http:", "npipe:"].iter().any(|scheme| text.starts_with(scheme));
            let fault =
                if is_later { "this version has only unix sockets: unix:///path" } else { "must be unix:///path" };
            return Err(fault.to_owned());
        };
        if !Path::new(path).is_absolute() {
            return Err("must be an absolute path after unix://, with three slashes: unix:///path".to_owned());
        }
        if path.len() > LONGEST_SOCKET_PATH {
            return Err(format!("a socket's path has at most {LONGEST_SOCKET_PATH} bytes"));
        }
        Ok(Self { path: PathBuf::from(path) })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.path.display())
    }
}
