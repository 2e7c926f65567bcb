//! Targets of a "restore as files": a folder, or a container of any Azure storage account.
//!
//! Invariants:
//! - Nothing that exists is overwritten: an existing file is refused before anything is written, and again when the new one gets its
//!   name.
//! - A file is visible under its name when it is whole, not before; memory is bounded ([`FileSink::write`] waits).
//! - A restore that fails or is dropped leaves nothing that is visible: in a folder the unfinished file is removed (a killed process
//!   leaves `.vaultferry-….part`), in a container there are only blocks that were never committed, which no listing shows and which
//!   Azure forgets after a week.
//!
//! ```text
//! FilesTarget (text) -> open -> Target -> create(name) -> FileSink -> write* -> finish | abort | drop
//! ```

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use url::Url;
use vaultferry_proto::{Problem, Reason};

use crate::location::{InvalidLocation, Parsed, is_container_name, parse, shown};
use crate::store::{self, azure, retry};

mod container;
mod containers;
mod folder;
mod image;

pub use containers::containers;
pub use image::{ImageFile, data_runs, remove_unfinished};

/// Longest name of a file, in bytes: the limit of common file systems is 255.
const MAX_NAME_LEN: usize = 200;

/// Where restored files go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilesTarget {
    /// A folder, by its absolute path; made when it is missing.
    Folder(PathBuf),
    /// A container, which must exist.
    Azure {
        /// The storage account.
        account: String,
        /// The container.
        container: String,
        /// Folders in the container, joined by `/`; may be empty.
        prefix: String,
    },
}

impl FromStr for FilesTarget {
    type Err = InvalidLocation;

    fn from_str(text: &str) -> Result<Self, InvalidLocation> {
        let invalid = |detail| InvalidLocation { text: shown(text), detail };
        let (account, rest) = match parse(text, "it is neither an absolute path nor azure://account/container")? {
            Parsed::Folder(path) => return Ok(Self::Folder(path)),
            Parsed::Azure { account, rest } => (account, rest),
        };
        let (container, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if !is_container_name(container, 63) {
            return Err(invalid("a container's name is 3 to 63 lower-case letters, digits and single hyphens"));
        }
        if !prefix.is_empty() && !prefix.split('/').all(is_file_name) {
            return Err(invalid("the folders after the container have a character that file names cannot have"));
        }
        Ok(Self::Azure { account: account.to_owned(), container: container.to_owned(), prefix: prefix.to_owned() })
    }
}

impl fmt::Display for FilesTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::Azure { account, container, prefix } if prefix.is_empty() => {
                write!(f, "azure://{account}/{container}")
            }
            Self::Azure { account, container, prefix } => write!(f, "azure://{account}/{container}/{prefix}"),
        }
    }
}

/// What a container needs besides its name. A folder uses nothing of it.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Where the account's blobs are, when it is not Azure's public cloud.
    pub endpoint: Option<Url>,
    /// What proves that we may write there, and look whether a blob exists.
    pub credential: Option<azure::Credential>,
    /// How long one request is tried.
    pub retry: retry::Config,
}

/// Why a file was not restored. The messages hold no credential.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of that name is there already; it was not touched.
    #[error("{name} exists in {target}")]
    Exists {
        /// Where.
        target: String,
        /// The file.
        name: String,
    },
    /// Names of files are plain: without `/` and `\`, control characters, `<>:"|?*`, a dot at the beginning; at most 200 bytes.
    #[error("{name:?} cannot be the name of a restored file")]
    InvalidName {
        /// The name.
        name: String,
    },
    /// The container is missing, or the credential is, or has no right on it (P77).
    #[error("{target} is not accessible: {detail}")]
    NotAccessible {
        /// Where.
        target: String,
        /// The store's own words.
        detail: String,
    },
    /// The folder cannot be made or written, or no space is left in it.
    #[error("{target} cannot be written: {detail}")]
    NotWritable {
        /// Where.
        target: String,
        /// The system's own words.
        detail: String,
    },
    /// No answer, or only errors, until the deadline.
    #[error("{target} is not available: {detail}")]
    Unavailable {
        /// Where.
        target: String,
        /// What was seen.
        detail: String,
    },
    /// The target understood and refused.
    #[error("{target} rejected the request: {detail}")]
    Rejected {
        /// Where.
        target: String,
        /// The target's own words.
        detail: String,
    },
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let reason = match &error {
            Error::Exists { .. } => Reason::TargetExists,
            Error::NotWritable { .. } => Reason::TargetNotWritable,
            Error::NotAccessible { .. } | Error::Unavailable { .. } | Error::Rejected { .. } => {
                Reason::UserErrorContainerNotAccessible
            }
            Error::InvalidName { .. } => Reason::InvalidRequest,
        };
        Problem::new(reason, error.to_string())
    }
}

impl Error {
    /// A container's error, seen from a restore.
    fn from_store(error: store::Error, target: &str, name: &str) -> Self {
        use store::Error as Store;
        let target = target.to_owned();
        match error {
            Store::NoStore { .. } => Self::NotAccessible { target, detail: "the container does not exist".to_owned() },
            Store::AccessDenied { detail, .. } => Self::NotAccessible { target, detail },
            Store::NotWritable { detail, .. } => Self::NotWritable { target, detail },
            Store::Full { .. } => Self::NotWritable { target, detail: "no space is left".to_owned() },
            Store::Unavailable { detail, .. } => Self::Unavailable { target, detail },
            Store::Rejected { detail, .. } => Self::Rejected { target, detail },
            Store::NotFound { .. } => Self::Rejected { target, detail: format!("{name} is not there") },
            Store::Archived { .. } => Self::Rejected { target, detail: format!("{name} is archived") },
            Store::Protected { detail, .. } => Self::Rejected { target, detail },
            Store::Unsupported { what, .. } => Self::Rejected { target, detail: format!("it cannot {what}") },
        }
    }
}

/// A place that takes files.
#[derive(Debug, Clone)]
pub struct Target(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Folder(folder::Target),
    Container(Arc<container::Target>),
}

impl FilesTarget {
    /// Opens the target: makes a missing folder, and looks whether a container is there and lets us in ([`Error::NotAccessible`]).
    /// Whether it may be written shows with the first file.
    pub async fn open(&self, config: &Config) -> Result<Target, Error> {
        let kind = match self {
            Self::Folder(path) => Kind::Folder(folder::Target::open(path.clone()).await?),
            Self::Azure { account, container, prefix } => {
                let Some(credential) = config.credential.clone() else {
                    let detail = "no credential was given".to_owned();
                    return Err(Error::NotAccessible { target: self.to_string(), detail });
                };
                let (account, container) = (account.clone(), container.clone());
                let azure = azure::Config { account, container, endpoint: config.endpoint.clone(), credential };
                Kind::Container(Arc::new(
                    container::Target::open(self.to_string(), &azure, prefix, config.retry).await?,
                ))
            }
        };
        Ok(Target(kind))
    }
}

impl Target {
    /// Begins a file. An existing one is refused ([`Error::Exists`]) before anything is written.
    pub async fn create(&self, name: &str) -> Result<FileSink, Error> {
        if !is_file_name(name) {
            return Err(Error::InvalidName { name: name.to_owned() });
        }
        Ok(FileSink(match &self.0 {
            Kind::Folder(target) => Sink::Folder(target.create(name).await?),
            Kind::Container(target) => Sink::Container(Box::new(container::create(target, name).await?)),
        }))
    }
}

/// A file that is being restored. Dropping it is [`FileSink::abort`].
#[derive(Debug)]
pub struct FileSink(Sink);

#[derive(Debug)]
enum Sink {
    Folder(folder::Sink),
    Container(Box<container::Sink>),
}

impl FileSink {
    /// Appends bytes; waits while too much is on its way. After an error, or when the future was dropped, the file can only be aborted.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), Error> {
        match &mut self.0 {
            Sink::Folder(sink) => sink.write(bytes).await,
            Sink::Container(sink) => sink.write(bytes).await,
        }
    }

    /// Gives the file its name, durably, and returns its size in bytes. After an error nothing is visible, except when the answer of
    /// a container was lost until the deadline: then it is unknown whether the file, whole, is there.
    pub async fn finish(self) -> Result<u64, Error> {
        match self.0 {
            Sink::Folder(sink) => sink.finish().await,
            Sink::Container(sink) => sink.finish().await,
        }
    }

    /// Gives the file up. Nothing of it is visible afterwards.
    pub async fn abort(self) {
        match self.0 {
            Sink::Folder(sink) => sink.abort().await,
            Sink::Container(sink) => sink.abort().await,
        }
    }
}

/// The same rule everywhere, so that what can be restored here can be restored elsewhere too (Windows' characters).
fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME_LEN
        && !name.starts_with('.')
        && !name.ends_with(['.', ' '])
        && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\' | '<' | '>' | ':' | '"' | '|' | '?' | '*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_targets_and_texts_again() {
        for text in ["azure://account1/restored", "azure://account1/restored/2026/shop db"] {
            assert_eq!(text.parse::<FilesTarget>().expect(text).to_string(), text);
        }
        let folder = std::env::temp_dir().join("restored");
        assert_eq!(folder.display().to_string().parse(), Ok(FilesTarget::Folder(folder)));
        for text in [
            "",
            "restored",
            "azure://account1",
            "azure://account1/Restored",
            "azure://account1/restored/../x",
            "azure://account1/restored//x",
            "azure://a/restored",
        ] {
            text.parse::<FilesTarget>().expect_err(text);
        }
        let error = "azure://account1/c?sv=1&sig=secret".parse::<FilesTarget>().expect_err("a query");
        assert!(!error.to_string().contains("secret"));
    }

    #[test]
    fn names_are_plain() {
        for name in ["database.dump", "상점.dump", "disk0.raw", "a b"] {
            assert!(is_file_name(name), "{name}");
        }
        for name in ["", ".", "..", ".hidden", "a/b", "a\\b", "a\0b", "C:", "a\nb", "a?", &"x".repeat(201)] {
            assert!(!is_file_name(name), "{name:?}");
        }
    }
}
