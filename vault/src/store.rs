//! Stores: where a vault's files lie. One small trait, several implementations, one conformance suite (`tests/store_conformance.rs`).
//!
//! Invariants:
//! - A file is created once and never changed: there is no overwrite. [`Store::put_if_absent`] is atomic: a reader sees the whole file or none.
//! - When `put_if_absent` has answered, the file survives a power cut (folder: fsync of file and folder).
//! - Listings hold complete files only, never a temporary one, in ascending order of their keys.
//! - Every future may be dropped. A dropped put or delete has happened or not; it never leaves half a file under its key.
//! - Errors say what a caller can do about them ([`Error::is_retryable`]); retrying is done in one place, [`retry::Retrying`].

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};

pub mod azure;
pub mod faulty;
pub mod folder;
pub mod memory;
pub mod prefixed;
pub mod retry;

/// A file's place in a store: segments of `A-Z a-z 0-9 . _ -` joined by `/`; no empty segment, none that begins with a dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// Longest key, in bytes. Azure allows 1024; paths of file systems are shorter.
    pub const MAX_LEN: usize = 240;

    /// Checks and makes a key. Everything that comes from outside goes through here, so no key leaves its store's folder.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidKey> {
        let text = text.into();
        let valid_segment = |segment: &str| {
            !segment.is_empty()
                && !segment.starts_with('.')
                && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        };
        if text.len() > Self::MAX_LEN || !text.split('/').all(valid_segment) {
            return Err(InvalidKey(text));
        }
        Ok(Self(text))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is not a key.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a valid name for a file of a vault")]
pub struct InvalidKey(pub String);

/// What a store tells of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub key: Key,
    /// Its size in bytes.
    pub size: u64,
    /// Where it lies now. A file that is being rehydrated lies in [`Tier::Archive`] until it can be read.
    pub tier: Tier,
    /// On its way out of [`Tier::Archive`].
    pub rehydrating: bool,
    /// What keeps it from being deleted.
    pub protection: Protection,
}

impl Entry {
    /// A file that can be read and deleted at once.
    pub fn new(key: Key, size: u64) -> Self {
        Self { key, size, tier: Tier::Hot, rehydrating: false, protection: Protection::default() }
    }
}

/// What the store itself does against the deletion of a file. A folder protects nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Protection {
    /// The file cannot be deleted before.
    pub immutable_until: Option<jiff::Timestamp>,
    /// The date can be moved further away only, by nobody ever nearer.
    pub locked: bool,
    /// The file cannot be deleted until the hold is taken away.
    pub legal_hold: bool,
}

impl Protection {
    /// True when a deletion at `now` would be refused.
    pub fn forbids_deletion(&self, now: jiff::Timestamp) -> bool {
        self.legal_hold || self.immutable_until.is_some_and(|until| until > now)
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.legal_hold, self.immutable_until) {
            (true, _) => f.write_str("it is on legal hold"),
            (false, Some(until)) => write!(f, "it is immutable until {until}"),
            (false, None) => f.write_str("nothing protects it"),
        }
    }
}

/// How many copies a storage account keeps, and how far from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redundancy {
    /// In one data centre.
    Local,
    /// In several zones of one region.
    Zone,
    /// In a second region too.
    Geo,
}

impl Redundancy {
    /// As `vault.json` and the settings write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "locally-redundant",
            Self::Zone => "zone-redundant",
            Self::Geo => "geo-redundant",
        }
    }
}

/// One page of a listing.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// In ascending order of their keys.
    pub entries: Vec<Entry>,
    /// Give this to the next call; `None` after the last page.
    pub next: Option<String>,
}

/// What became of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The file is new and durable.
    Created,
    /// A file of that key was there already; its content was not compared and not touched.
    Existed,
}

/// How quickly, and how dearly, a file can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Read at once.
    Hot,
    /// Read at once, cheaper to keep and dearer to read.
    Cool,
    /// Must be rehydrated for hours before it can be read.
    Archive,
}

/// A place for files that are written once. See the module for what every implementation promises.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// For messages: where the store is. Never holds a credential.
    fn location(&self) -> &str;

    /// What is known of the file, or `None` when it is not there.
    async fn head(&self, key: &Key) -> Result<Option<Entry>, Error>;

    /// The whole file, or the range of it. A range that reaches past the end is [`Error::Rejected`]: the caller knows the sizes.
    /// A file in [`Tier::Archive`] is [`Error::Archived`].
    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, Error>;

    /// Creates the file. Never overwrites.
    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put, Error>;

    /// One page of the files whose key begins with `prefix` (empty, or ending with `/`). A prefix where nothing is gives an empty page.
    async fn list_page(&self, prefix: &str, next: Option<&str>) -> Result<Page, Error>;

    /// Deletes the file; one that is not there is no error. Only maintenance has a credential that may. [`Error::Protected`] when an
    /// immutability date or a legal hold forbids it.
    async fn delete(&self, key: &Key) -> Result<(), Error>;

    /// Moves the file to a tier. A folder has one tier only, and does nothing.
    async fn set_tier(&self, key: &Key, tier: Tier) -> Result<(), Error>;

    /// Copies a file inside the store, without its bytes passing here. Never overwrites. From [`Tier::Archive`] the copy is rehydrated:
    /// it exists at once, with [`Entry::rehydrating`], and can be read hours later; the original stays where it is.
    async fn copy(&self, from: &Key, to: &Key) -> Result<Put, Error>;

    /// Forbids the deletion before `until`; a date that is set already is moved further away only. `locked` can never be undone.
    /// [`Error::Unsupported`] where the storage cannot do it (a folder; an account without version-level immutability).
    async fn protect(&self, key: &Key, until: jiff::Timestamp, locked: bool) -> Result<(), Error>;

    /// Sets or clears a legal hold. [`Error::Unsupported`] as for [`Store::protect`].
    async fn set_legal_hold(&self, key: &Key, hold: bool) -> Result<(), Error>;
}

/// Every file under `prefix`, page after page, in ascending order; memory holds one page.
pub fn list<'a>(store: &'a dyn Store, prefix: &'a str) -> BoxStream<'a, Result<Entry, Error>> {
    enum State {
        First,
        Next(String),
        End,
    }
    stream::unfold(State::First, move |state| async move {
        let next = match &state {
            State::First => None,
            State::Next(token) => Some(token.as_str()),
            State::End => return None,
        };
        let (items, state): (Vec<Result<Entry, Error>>, State) = match store.list_page(prefix, next).await {
            Ok(page) => (page.entries.into_iter().map(Ok).collect(), page.next.map_or(State::End, State::Next)),
            Err(error) => (vec![Err(error)], State::End),
        };
        Some((stream::iter(items), state))
    })
    .flatten()
    .boxed()
}

/// Refuses a range that is turned round or reaches past the end.
fn check_range(store: &str, key: &Key, range: &Range<u64>, size: u64) -> Result<(), Error> {
    if range.start <= range.end && range.end <= size {
        return Ok(());
    }
    let detail = format!("{key} has {size} bytes; {}..{} is not within it", range.start, range.end);
    Err(Error::Rejected { store: store.to_owned(), detail })
}

/// A shared store of any kind.
pub type Shared = Arc<dyn Store>;

/// Why a store did not do what it was asked. The messages name the store, never a credential.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file.
    #[error("{key} is not in {store}")]
    NotFound {
        /// Where.
        store: String,
        /// What.
        key: String,
    },
    /// There is no such store (folder or container).
    #[error("{store} does not exist")]
    NoStore {
        /// Where.
        store: String,
    },
    /// The credential is missing, wrong, expired, or lacks the right.
    #[error("{store} refused access: {detail}")]
    AccessDenied {
        /// Where.
        store: String,
        /// The store's own words.
        detail: String,
    },
    /// A folder that cannot be written (rights, read-only file system).
    #[error("{store} cannot be written: {detail}")]
    NotWritable {
        /// Where.
        store: String,
        /// The system's own words.
        detail: String,
    },
    /// No space (or quota) is left.
    #[error("no space is left in {store}")]
    Full {
        /// Where.
        store: String,
    },
    /// No answer, a broken connection, or an answer that says to come again (408, 429, 5xx); an I/O error of a folder.
    #[error("{store} is not available: {detail}")]
    Unavailable {
        /// Where.
        store: String,
        /// What was seen.
        detail: String,
    },
    /// The file lies in [`Tier::Archive`] and must be rehydrated before it can be read.
    #[error("{key} in {store} is archived and must be rehydrated first")]
    Archived {
        /// Where.
        store: String,
        /// What.
        key: String,
    },
    /// An immutability date or a legal hold forbids the deletion.
    #[error("{key} in {store} is protected from deletion: {detail}")]
    Protected {
        /// Where.
        store: String,
        /// What.
        key: String,
        /// By what, and until when.
        detail: String,
    },
    /// The storage cannot do this at all.
    #[error("{store} cannot {what}")]
    Unsupported {
        /// Where.
        store: String,
        /// What was asked, as a verb.
        what: String,
    },
    /// The store understood and refused; asking again will not help.
    #[error("{store} rejected the request: {detail}")]
    Rejected {
        /// Where.
        store: String,
        /// The store's own words.
        detail: String,
    },
}

impl Error {
    /// True when the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
