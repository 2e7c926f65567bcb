//! The vault's plain records: JSON files, created once and never changed. `docs/format.md` shows each of them.
//!
//! ```text
//! the vault's own store                          an instance's store
//!   vault.json            VaultRecord              instance/<version>.json        InstanceRecord
//!   keys/recovery-<id>.json  RecoveryKeyRecord      keys/<n>.json                  PasswordRecord
//!   policies/<name>/<version>.json  PolicyRecord   points/<snapshot>/<n>.json     PointEvent
//!   keys/vault/<n>.json   VaultKeyRecord
//!   servers/<id>/<n>.json  ServerRecord
//!   owner/<n>.json        OwnerRecord              packs/<n>.json                 PackList
//!                                                  prune/<n>.json                 PruneMark
//!                                                  damaged/<n>.json               DamageRecord
//!                                                  repo/…                         restic's
//!                                                  archive/repo/…, archive/packs/<n>.json   the archive store
//! ```
//! In a folder vault an instance's store is `instances/<id>/` below the vault's own. Invariants:
//! - Every record has `version`; a reader refuses a version that it does not know, and ignores fields that it does not know.
//! - Nothing here is secret: passwords and keys are wrapped.
//! - Numbered records (`<n>`) count from 1 without gaps, ten digits, so that listings are in order. Only wrapped keys are ever deleted.

use futures::StreamExt as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::id::Id;
use crate::keys::Wrapped;
use crate::store::{self, Key, Put, Store};

mod capture;
mod event;
mod protection;
mod server;

pub use capture::{Capture, Consistency};
pub use protection::Protection;
pub use server::{SERVERS, ServerRecord, server, server_id};

/// The version of every record of this program.
pub const VERSION: u32 = 1;
/// The version of the vault's layout as a whole.
pub const FORMAT_VERSION: u32 = 1;

/// `vault.json`: what the vault is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultRecord {
    /// 1.
    pub version: u32,
    /// 32 hexadecimal digits.
    pub id: String,
    /// When it was made.
    pub create_time: jiff::Timestamp,
    /// Sources and targets in other regions are refused; empty: no region is checked.
    pub region: String,
    /// `geo-redundant` by default (V49), or `locally-redundant`: what the storage below is set to. It is recorded, not enforced, here.
    pub redundancy: String,
    /// The layout: 1.
    pub format_version: u32,
    /// Days for which new files cannot be changed; 0: off.
    pub immutability_days: u32,
    /// Days between deletion and purge.
    pub soft_delete_days: u32,
}

/// `keys/recovery-<id of the recovery key>.json`: the vault key as its text, wrapped by the recovery key. Context: `vault-key`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryKeyRecord {
    /// 1.
    pub version: u32,
    /// When it was made.
    pub create_time: jiff::Timestamp,
    /// The wrapped vault key.
    pub vault_key: Wrapped,
    /// The id of the vault key in it. Not there in records of early versions, which a vault has of its first vault key only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault_key_id: Option<String>,
}

/// `keys/vault/<n>.json`: the vault key as its text, wrapped by a key in Azure Key Vault. Context: `vault-key`. The highest n whose key is
/// the configured one counts. Not there when the vault key is in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultKeyRecord {
    /// 1.
    pub version: u32,
    /// When it was made.
    pub create_time: jiff::Timestamp,
    /// The wrapped vault key.
    pub vault_key: Wrapped,
    /// The id of the vault key in it.
    pub vault_key_id: String,
}

/// `policies/<name>/<version>.json`: a policy as its author wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// 1.
    pub version: u32,
    /// Its name.
    pub name: String,
    /// 1 for the first.
    pub policy_version: u32,
    /// When this version was made.
    pub create_time: jiff::Timestamp,
    /// TOML.
    pub document: String,
    /// 32 hexadecimal digits, the same for all versions. Empty in records of early versions.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// This version says that the policy is deleted; a later one may make it anew. `document` is that of the version before, so that a
    /// program which does not know this field goes on as before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
}

/// `instance/<version>.json`: what is protected, how, and since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// 1.
    pub version: u32,
    /// 32 hexadecimal digits.
    pub id: String,
    /// For people.
    pub name: String,
    /// When the instance was made.
    pub create_time: jiff::Timestamp,
    /// `postgres`, …
    pub source_type: String,
    /// Without credentials.
    pub source_uri: String,
    /// The source's region; empty: not told.
    pub region: String,
    /// The linked policy's name.
    pub policy: String,
    /// Where the agent finds the password; never the password itself.
    #[serde(default, skip_serializing_if = "SourceLogin::is_default")]
    pub login: SourceLogin,
    /// Two spellings of one source have one identity. Empty in records of early versions.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source_identity: String,
    /// Whether it is backed up, and what becomes of its points.
    #[serde(default, skip_serializing_if = "Protection::is_active")]
    pub protection: Protection,
}

/// How the agent logs in at a source: where to look, never what it finds there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceLogin {
    /// The client's own defaults.
    #[default]
    Default,
    /// A libpq password file on the agent's machine.
    Passfile(String),
    /// A variable of the agent's environment.
    PasswordEnv(String),
    /// `managed`, `managed:CLIENT-ID`, `workload`: who the agent is in Microsoft Entra ID; `key-vault:URL`: a secret in Azure Key Vault.
    Identity(String),
}

impl SourceLogin {
    /// Left out of records.
    pub fn is_default(&self) -> bool {
        *self == Self::Default
    }
}

/// `keys/<n>.json`: the repository's password, wrapped by the vault key. Context: `instance:<id>`. The highest n that the vault key
/// wrapped counts; a rotation adds one and deletes those before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PasswordRecord {
    /// 1.
    pub version: u32,
    /// When it was made.
    pub create_time: jiff::Timestamp,
    /// The wrapped password: 64 hexadecimal digits.
    pub password: Wrapped,
}

/// `points/<snapshot>/<n>.json`: something that happened to a point. Event 1 is always `created`. Later versions add kinds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "event::AnyEvent")]
pub struct PointEvent {
    /// 1.
    pub version: u32,
    /// When it happened.
    pub time: jiff::Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub event: PointEventKind,
}

/// What can happen to a point.
#[allow(clippy::large_enum_variant)] // most events are of the large kind
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum PointEventKind {
    /// It was committed (if its snapshot file is there).
    Created(PointCreated),
    /// Its commit was given up for good: the snapshot file was not written and never will be.
    Abandoned,
    /// Every byte of it was read back and was right.
    Proven {
        /// The job that did it.
        job_id: String,
    },
    /// It must not be deleted until it is released, whatever its rule says.
    Held {
        /// Why, in the words of whoever holds it.
        note: String,
    },
    /// The hold is over.
    Released,
    /// It is no longer listed, and can be brought back until `purge_time`.
    SoftDeleted {
        /// Its data may go from then on.
        purge_time: jiff::Timestamp,
        /// Its snapshot file, so that it can be written again (base64).
        sealed_snapshot: String,
    },
    /// It is listed again.
    Undeleted,
    /// It is gone for good; its data goes with the next prune.
    Purged,
    /// Its copy in the archive store was verified, and is complete and listed there.
    Archived {
        /// The job that copied it.
        job_id: String,
    },
    /// It is no longer in the hot store; the copy in the archive store is the point now.
    RemovedFromVault,
}

/// What a point is born with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointCreated {
    /// The job that made it.
    pub job_id: String,
    /// The retention rule that it carries; empty when it has `keep_until`.
    pub rule: String,
    /// The policy that was linked, and its version.
    pub policy: String,
    /// Of the policy.
    pub policy_version: u32,
    /// The slot of the schedule that it was made for; `None`: on demand, or made by an early version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<jiff::Timestamp>,
    /// Made on demand to be kept until then, whatever the rules say; `rule` is empty then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_until: Option<jiff::Timestamp>,
    /// The streams in it.
    pub streams: Vec<PointStream>,
    /// Bytes read from the source.
    pub source_bytes: u64,
    /// Bytes that this backup added to the vault.
    pub stored_bytes: u64,
    /// The snapshot file (base64), so that a prune sees what a commit is about to publish. Empty in records of early versions.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sealed_snapshot: String,
    /// The prune epoch that the backup saw when it began.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub prune_epoch: u64,
    /// How the source was caught; `None` for sources that tell nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<Capture>,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// A stream of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointStream {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// SHA-256 of them, in hexadecimal. Empty, and left out, where the writer did not make it: see decision 0022.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha256: String,
}

/// `packs/<n>.json`: the packs that a commit brought in. All lists together name every pack that any point needs, so that whoever can
/// read the store finds altered, missing and unexpected packs without a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackList {
    /// 1.
    pub version: u32,
    /// SHA-256 of the bytes of the list before; left out in the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Id>,
    /// The job that commits.
    pub job_id: String,
    /// The snapshot that it commits.
    pub snapshot_id: Id,
    /// Packs that no earlier list names, ascending; in a checkpoint all that the lists before it name and no prune has deleted.
    pub packs: Vec<ListedPack>,
    /// Set when a prune wrote the list, so that commits need not read those before it. Its `job_id` is empty then, and its
    /// `snapshot_id` all zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
}

/// What a checkpoint among the pack lists knows beside the packs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The newest prune epoch when it was written.
    pub prune_epoch: u64,
    /// Commits that had listed their packs and were neither published nor given up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unfinished: Vec<ListedCommit>,
}

/// A commit in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedCommit {
    /// The job that commits.
    pub job_id: String,
    /// The snapshot that it commits.
    pub snapshot_id: Id,
}

/// A pack in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedPack {
    /// Its name: the SHA-256 of its bytes.
    pub id: Id,
    /// Its bytes.
    pub size: u64,
}

/// `prune/<n>.json`: the beginning of prune epoch n. A pack that two marks in a row name may be deleted, and stays marked until it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneMark {
    /// 1.
    pub version: u32,
    /// n.
    pub epoch: u64,
    /// When it began.
    pub create_time: jiff::Timestamp,
    /// Packs that nothing needs and that no backup may use from now on, ascending.
    pub marked: Vec<Id>,
    /// Packs that no point has ever needed, seen for the first time, ascending: a running backup may have just stored them, so the next
    /// epoch marks them at the earliest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Id>,
}

/// `damaged/<n>.json`: packs whose bytes were found altered. Their chunks are stored again by the next backup that meets them, and are
/// read from elsewhere when they can be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamageRecord {
    /// 1.
    pub version: u32,
    /// When it was found.
    pub create_time: jiff::Timestamp,
    /// Altered packs, ascending.
    pub packs: Vec<Id>,
}

/// `owner/<n>.json` in the vault's own store: which agent works with the vault from then on. The highest n counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerRecord {
    /// 1.
    pub version: u32,
    /// When it took the vault over.
    pub create_time: jiff::Timestamp,
    /// Of the agent's state folder: 32 hexadecimal digits.
    pub agent_id: String,
    /// Its machine, for people.
    pub hostname: String,
}

/// A record's bytes: indented JSON and a line feed, for readers with nothing but a pager.
pub fn to_bytes<T: Serialize>(record: &T) -> Result<Vec<u8>, Error> {
    let mut bytes = serde_json::to_vec_pretty(record).map_err(Error::internal)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// How every record of [`VERSION`] begins that [`to_bytes`] has made: the version is its first field.
const BEGINNING: &[u8] = b"{\n  \"version\": 1";
const _: () = assert!(VERSION == 1, "BEGINNING says so");

/// True when the version is seen without reading the record to its end. A second field of that name makes a record unreadable by itself.
fn begins_with_version(bytes: &[u8]) -> bool {
    let rest = bytes.strip_prefix(BEGINNING);
    rest.and_then(<[u8]>::first).is_some_and(|next| matches!(next, b',' | b'\n'))
}

/// Reads a record's bytes, its version first.
pub fn from_bytes<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Error> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let unreadable = |detail: String| Error::Unreadable { what: what.to_owned(), detail };
    if begins_with_version(bytes) {
        return serde_json::from_slice(bytes).map_err(|error| unreadable(error.to_string()));
    }
    let versioned: Versioned = serde_json::from_slice(bytes).map_err(|error| unreadable(error.to_string()))?;
    if versioned.version != VERSION {
        return Err(unreadable(format!("it has version {}, this program knows version {VERSION}", versioned.version)));
    }
    serde_json::from_slice(bytes).map_err(|error| unreadable(error.to_string()))
}

/// Reads a record.
pub async fn get<T: DeserializeOwned>(store: &dyn Store, key: &Key) -> Result<T, Error> {
    from_bytes(&format!("{key} in {}", store.location()), &store.get(key, None).await?)
}

/// Creates a record. One that stands there with the same bytes is success, so that a retry after a kill or a lost answer is;
/// with other bytes it is `Put::Existed`.
pub async fn put<T: Serialize>(store: &dyn Store, key: &Key, record: &T) -> Result<Put, Error> {
    put_bytes(store, key, to_bytes(record)?).await
}

/// As [`put`], for bytes that are made already.
pub async fn put_bytes(store: &dyn Store, key: &Key, bytes: Vec<u8>) -> Result<Put, Error> {
    match store.put_if_absent(key, bytes.clone().into()).await? {
        Put::Created => Ok(Put::Created),
        Put::Existed if *store.get(key, None).await? == bytes => Ok(Put::Created),
        Put::Existed => Ok(Put::Existed),
    }
}

/// The key of a numbered record: `<prefix><n>.json`. The prefix ends with a slash.
pub fn numbered(prefix: &str, n: u64) -> Key {
    Key::new(format!("{prefix}{n:010}.json")).expect("prefixes are made of ids and constants")
}

/// The numbers of the records below a prefix, ascending.
pub async fn numbers(store: &dyn Store, prefix: &str) -> Result<Vec<u64>, store::Error> {
    let mut numbers = Vec::new();
    let mut entries = store::list(store, prefix);
    while let Some(entry) = entries.next().await {
        let entry = entry?;
        if let Some(number) = entry.key.name().strip_suffix(".json").and_then(|name| name.parse().ok()) {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

/// Where prune marks lie.
pub const PRUNE: &str = "prune/";
/// Where the leases of maintenance lie.
pub const LEASES: &str = "lease/";
/// Where damage records lie.
pub const DAMAGED: &str = "damaged/";
/// Where owner records lie, in the vault's own store.
pub const OWNERS: &str = "owner/";
/// Where an instance's archive store lies in its store: again `repo/` and `packs/`.
pub const ARCHIVE: &str = "archive/";
/// Where the vault key lies, wrapped by Azure Key Vault, in the vault's own store.
pub const VAULT_KEYS: &str = "keys/vault/";
/// Where everything that wraps the vault key lies, in the vault's own store.
pub const KEYS: &str = "keys/";
/// Where the vault key lies, wrapped by recovery keys, in the vault's own store: names begin with this.
pub const RECOVERY_KEYS: &str = "keys/recovery-";
/// Where policies lie, in the vault's own store.
pub const POLICIES: &str = "policies/";
/// Copies of the agent's catalog in the vault's own store; no records.
pub const CATALOGS: &str = "catalog/";
/// Where wrapped passwords lie, in an instance's store.
pub const PASSWORDS: &str = "keys/";
/// Where the records of an instance itself lie, in its store.
pub const INSTANCE: &str = "instance/";
/// Where pack lists lie.
pub const PACK_LISTS: &str = "packs/";

/// Where a point's events lie.
pub fn point_events(snapshot_id: &Id) -> String {
    format!("points/{snapshot_id}/")
}

/// The number of the newest prune epoch; 0 before the first prune.
pub async fn current_epoch(store: &dyn Store) -> Result<u64, store::Error> {
    Ok(numbers(store, PRUNE).await?.last().copied().unwrap_or(0))
}

/// The number of the newest prune epoch, and the packs that it marks. 0 and none before the first prune.
pub async fn current_mark(store: &dyn Store) -> Result<(u64, Vec<Id>), Error> {
    match current_epoch(store).await? {
        0 => Ok((0, Vec::new())),
        epoch => Ok((epoch, get::<PruneMark>(store, &numbered(PRUNE, epoch)).await?.marked)),
    }
}
