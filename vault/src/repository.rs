//! A restic repository, version 2, below `repo/` of an instance's store: `config`, `keys/`, `index/`, `data/`, `snapshots/`.
//!
//! Source of the format: restic's doc/design.rst. Invariants:
//! - Every file but `config` is named by the SHA-256 of its bytes, and every read checks it.
//! - What is written is durable in this order: packs, the index files that name them, the snapshot that needs them.
//! - Nothing here takes restic's locks, so `restic prune|forget` must never run on a live repository.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::blocking::{self, with_cancel};
use crate::error::Error;
use crate::id::Id;
use crate::records::{self, DamageRecord};
use crate::store::{self, Key};

pub mod crypto;
pub mod index;
pub(crate) mod key_file;
pub mod pack;
pub mod polynomial;
mod range;
pub mod snapshot;
pub mod tree;

use crypto::SealKey;
use index::{Index, IndexFile};
use snapshot::Snapshot;

/// The only format version that is written and read.
pub const VERSION: u32 = 2;
/// First byte of a compressed unpacked file; `{` and `[` begin an uncompressed one.
const COMPRESSED: u8 = 2;
/// The most that an index or snapshot may grow to when decompressed: 100 times restic's own limit for what it writes.
const MAX_UNPACKED: usize = 1 << 30;

/// How often the index files are listed anew when one of them went away: a prune merges them, one after the other and seldom.
const INDEX_TRIES: u32 = 5;

/// Where the parts of a repository lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// Which blob lies where.
    Index,
    /// Recovery points.
    Snapshot,
    /// Master keys, sealed by a password.
    KeyFile,
}

impl FileKind {
    /// The folder, with the slash at its end.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Index => "repo/index/",
            Self::Snapshot => "repo/snapshots/",
            Self::KeyFile => "repo/keys/",
        }
    }

    /// The file's place.
    pub fn key(self, id: &Id) -> Key {
        Key::new(format!("{}{id}", self.prefix())).expect("an id makes a valid key")
    }

    fn what(self, id: &Id) -> String {
        match self {
            Self::Index => format!("index {id}"),
            Self::Snapshot => format!("snapshot {id}"),
            Self::KeyFile => format!("key file {id}"),
        }
    }
}

/// The folder of all packs, with the slash at its end.
pub const PACKS: &str = "repo/data/";

/// A pack's place.
pub fn pack_key(id: &Id) -> Key {
    let name = id.to_string();
    Key::new(format!("{PACKS}{}/{name}", &name[..2])).expect("an id makes a valid key")
}

pub(crate) fn config_key() -> Key {
    Key::new("repo/config").expect("a constant")
}

#[derive(Debug, Serialize, Deserialize)]
struct Config {
    version: u32,
    id: Id,
    chunker_polynomial: String,
}

/// An open repository. Cheap to share behind an `Arc`; holds the master key, and never the password.
#[derive(Debug)]
pub struct Repository {
    store: store::Shared,
    key: Arc<SealKey>,
    chunker_seed: u64,
}

impl Repository {
    /// Makes the repository if it is not there, and opens it. May be repeated after a kill at any instant.
    pub async fn init(
        store: store::Shared,
        password: &SecretString,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        let key = match find_key(&store, password, cancel).await? {
            Some(key) => key,
            None => {
                let key = SealKey::generate()?;
                let file = key_file::create(&key, password, crate::clock::now())?;
                let place = FileKind::KeyFile.key(&Id::of(&file));
                with_cancel(cancel, store.put_if_absent(&place, file.into())).await?;
                key
            }
        };
        let mut id = [0; 32];
        crypto::fill_random(&mut id)?;
        let chunker_polynomial = format!("{:x}", polynomial::generate()?);
        let config = Config { version: VERSION, id: Id::from_bytes(id), chunker_polynomial };
        let sealed = key.seal(&serde_json::to_vec(&config).map_err(Error::internal)?)?;
        with_cancel(cancel, store.put_if_absent(&config_key(), sealed.into())).await?;
        // Read back what stands there: an earlier, interrupted init may have written it.
        Self::open_with(store, key, cancel).await
    }

    /// Opens the repository. [`Error::KeyWrong`] when no key file opens with the password.
    pub async fn open(
        store: store::Shared,
        password: &SecretString,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        let key = find_key(&store, password, cancel).await?;
        let key = key.ok_or_else(|| Error::KeyWrong { what: format!("the repository in {}", store.location()) })?;
        Self::open_with(store, key, cancel).await
    }

    async fn open_with(store: store::Shared, key: SealKey, cancel: &CancellationToken) -> Result<Self, Error> {
        let what = || format!("the repository's config in {}", store.location());
        let sealed = match with_cancel(cancel, store.get(&config_key(), None)).await {
            Err(Error::Store(store::Error::NotFound { .. })) => return Err(Error::damaged(what(), "it is missing")),
            other => other?,
        };
        let plain = key.open(&sealed).map_err(|error| Error::damaged(what(), error.to_string()))?;
        let chunker_seed = decode_config(&what(), &plain)?;
        Ok(Self { store, key: Arc::new(key), chunker_seed })
    }

    /// The instance's store.
    pub fn store(&self) -> &store::Shared {
        &self.store
    }

    /// A repository with the same key and config in another store.
    pub(crate) fn over(&self, store: store::Shared) -> Self {
        Self { store, key: self.key.clone(), chunker_seed: self.chunker_seed }
    }

    pub(crate) fn key(&self) -> &Arc<SealKey> {
        &self.key
    }

    pub(crate) fn chunker_seed(&self) -> u64 {
        self.chunker_seed
    }

    /// The bytes and the name of an index or snapshot file: JSON, compressed, sealed. Nothing is stored.
    pub(crate) fn seal_json<T: Serialize>(&self, value: &T) -> Result<(Id, Vec<u8>), Error> {
        let json = serde_json::to_vec(value).map_err(Error::internal)?;
        let mut plain = vec![COMPRESSED];
        plain.extend(zstd::bulk::compress(&json, 3).map_err(Error::internal)?);
        let sealed = self.key.seal(&plain)?;
        Ok((Id::of(&sealed), sealed))
    }

    /// Stores an index file and returns its name.
    pub(crate) async fn put_index(&self, file: &IndexFile) -> Result<Id, Error> {
        let (id, sealed) = self.seal_json(file)?;
        self.store.put_if_absent(&FileKind::Index.key(&id), sealed.into()).await?;
        Ok(id)
    }

    /// Reads, checks and opens an index or snapshot file.
    pub(crate) async fn get_json<T: DeserializeOwned + Send + 'static>(
        &self,
        kind: FileKind,
        id: &Id,
    ) -> Result<T, Error> {
        match self.store.get(&kind.key(id), None).await {
            Err(store::Error::NotFound { .. }) => Err(Error::damaged(kind.what(id), "it is missing")),
            other => self.open_json(kind, id, other?).await,
        }
    }

    /// Checks and opens the bytes of an index or snapshot file.
    pub(crate) async fn open_json<T: DeserializeOwned + Send + 'static>(
        &self,
        kind: FileKind,
        id: &Id,
        sealed: Bytes,
    ) -> Result<T, Error> {
        let (id, key) = (*id, self.key.clone());
        blocking::run(move || {
            let damaged = |detail: String| Error::damaged(kind.what(&id), detail);
            if Id::of(&sealed) != id {
                return Err(damaged("its bytes are not those that its name stands for".to_owned()));
            }
            let plain = key.open(&sealed).map_err(|error| damaged(error.to_string()))?;
            drop(sealed);
            decode_json(&plain).map_err(|error| damaged(error.to_string()))
        })
        .await
    }

    /// The snapshot of that name. Every byte is checked.
    pub async fn snapshot(&self, id: &Id, cancel: &CancellationToken) -> Result<Snapshot, Error> {
        with_cancel(cancel, self.get_json(FileKind::Snapshot, id)).await
    }

    /// A snapshot from bytes that lie elsewhere than in its file. Every byte is checked.
    pub(crate) async fn open_snapshot(&self, id: &Id, sealed: Bytes) -> Result<Snapshot, Error> {
        self.open_json(FileKind::Snapshot, id, sealed).await
    }

    /// As [`Repository::snapshot`]; `None` when it is not there.
    pub(crate) async fn snapshot_file(&self, id: &Id) -> Result<Option<Snapshot>, Error> {
        self.find_json(FileKind::Snapshot, id).await
    }

    /// An index file, checked; `None` when it is not there.
    pub(crate) async fn index_file(&self, id: &Id) -> Result<Option<IndexFile>, Error> {
        self.find_json(FileKind::Index, id).await
    }

    async fn find_json<T: DeserializeOwned + Send + 'static>(
        &self,
        kind: FileKind,
        id: &Id,
    ) -> Result<Option<T>, Error> {
        match self.store.get(&kind.key(id), None).await {
            Err(store::Error::NotFound { .. }) => Ok(None),
            sealed => self.open_json(kind, id, sealed?).await.map(Some),
        }
    }

    /// Loads every index file, and lists the packs first: a pack that is missing, or has another size than its blobs foretell, is left
    /// out and remembered as damage. So what was stored again after a loss is found, whichever index is read first. A blob of a pack
    /// whose bytes were found altered (`damaged/`) is taken from another pack when one has it. For readers.
    pub async fn load_index(&self, cancel: &CancellationToken) -> Result<Index, Error> {
        with_cancel(cancel, self.load_index_now(None)).await
    }

    /// Like [`Repository::load_index`], without the packs whose bytes were found altered, and without those that a prune has marked: what
    /// only they hold is stored again. For writers.
    pub async fn load_index_to_write(&self, marked: &HashSet<Id>, cancel: &CancellationToken) -> Result<Index, Error> {
        with_cancel(cancel, self.load_index_now(Some(marked))).await
    }

    async fn load_index_now(&self, marked: Option<&HashSet<Id>>) -> Result<Index, Error> {
        let suspect = suspect_packs(&*self.store).await?;
        let packs = list_packs(&*self.store).await?;
        let (mut index, mut aside) = (Index::default(), Vec::new());
        self.each_index_file(|id, file| match file {
            Ok(file) => {
                let added = index.add_file(file, &packs, |pack| {
                    if marked.is_some_and(|marked| marked.contains(&pack.id)) {
                        return None;
                    }
                    if !suspect.contains(&pack.id) {
                        return Some(pack);
                    }
                    aside.push(pack);
                    None
                });
                if let Err(detail) = added {
                    index.note_damaged(format!("index {id} is damaged: {detail}"));
                }
            }
            Err(what) => index.note_damaged(what),
        })
        .await?;
        // After all others, so that they are the last choice.
        for pack in aside {
            if marked.is_some() {
                index.note_damaged(format!("pack {} was found altered", pack.id));
            } else if let Ok(blobs) = pack.packed_blobs() {
                index.add_pack(pack.id, &blobs)?;
            }
        }
        for what in index.damaged() {
            tracing::warn!(
                store = self.store.location(),
                "{what}; what it held is found elsewhere, or stored again by the next backup"
            );
        }
        Ok(index)
    }

    /// Gives every index file once, or how it is damaged.
    ///
    /// A merge writes its new files before it deletes the old ones, and a listing is not of one instant: a new file may appear behind it,
    /// and an old one be gone before it comes there. So the listing is repeated until it shows nothing new.
    pub(crate) async fn each_index_file(
        &self,
        mut take: impl FnMut(Id, Result<IndexFile, String>),
    ) -> Result<(), Error> {
        let mut read = HashSet::new();
        for _ in 0..INDEX_TRIES {
            let mut listed = Vec::new();
            let mut entries = store::list(&*self.store, FileKind::Index.prefix());
            while let Some(entry) = entries.next().await {
                if let Ok(id) = entry?.key.name().parse::<Id>()
                    && !read.contains(&id)
                {
                    listed.push(id);
                }
            }
            drop(entries);
            if listed.is_empty() {
                return Ok(());
            }
            let mut files = futures::stream::iter(listed)
                .map(|id| async move {
                    match self.store.get(&FileKind::Index.key(&id), None).await {
                        Ok(sealed) => Ok(Some((id, sealed))),
                        Err(store::Error::NotFound { .. }) => Ok(None),
                        Err(error) => Err(error),
                    }
                })
                // 4 reads at once hide the store's latency; an index file of ours is some MiB at most. They are opened one by one.
                .buffered(4);
            while let Some(file) = files.next().await {
                let Some((id, sealed)) = file? else { continue };
                match self.open_json::<IndexFile>(FileKind::Index, &id, sealed).await {
                    Ok(file) => take(id, Ok(file)),
                    Err(Error::Damaged { what, detail }) => take(id, Err(format!("{what} is damaged: {detail}"))),
                    Err(error) => return Err(error),
                }
                read.insert(id);
            }
        }
        Err(Error::Internal("index files change faster than they can be read".to_owned()))
    }
}

/// Packs whose bytes were found altered, according to the damage records.
async fn suspect_packs(store: &dyn store::Store) -> Result<HashSet<Id>, Error> {
    let mut packs = HashSet::new();
    for number in records::numbers(store, records::DAMAGED).await? {
        let record: DamageRecord = records::get(store, &records::numbered(records::DAMAGED, number)).await?;
        packs.extend(record.packs);
    }
    Ok(packs)
}

/// The JSON of an unsealed index or snapshot file, compressed or not.
pub(crate) fn decode_json<T: DeserializeOwned>(plain: &[u8]) -> Result<T, Box<dyn std::error::Error>> {
    Ok(match plain.split_first() {
        Some((&COMPRESSED, compressed)) => serde_json::from_slice(&blocking::decompress(compressed, MAX_UNPACKED)?)?,
        _ => serde_json::from_slice(plain)?,
    })
}

/// The chunker's seed of an unsealed config.
pub(crate) fn decode_config(what: &str, plain: &[u8]) -> Result<u64, Error> {
    let config: Config = serde_json::from_slice(plain).map_err(|error| Error::damaged(what, error.to_string()))?;
    if config.version != VERSION {
        let detail = format!("it has version {}", config.version);
        return Err(Error::Unreadable { what: what.to_owned(), detail });
    }
    u64::from_str_radix(&config.chunker_polynomial, 16)
        .map_err(|_| Error::damaged(what, "its polynomial is not a number"))
}

/// Every pack in the store, with its size. Memory: 40 bytes each.
pub(crate) async fn list_packs(store: &dyn store::Store) -> Result<HashMap<Id, u64>, store::Error> {
    let mut packs = HashMap::new();
    let mut entries = store::list(store, PACKS);
    while let Some(entry) = entries.next().await {
        let entry = entry?;
        if let Ok(id) = entry.key.name().parse() {
            packs.insert(id, entry.size);
        }
    }
    Ok(packs)
}

async fn find_key(
    store: &store::Shared,
    password: &SecretString,
    cancel: &CancellationToken,
) -> Result<Option<SealKey>, Error> {
    let find = async {
        let mut entries = store::list(&**store, FileKind::KeyFile.prefix());
        while let Some(entry) = entries.next().await {
            let entry = entry?;
            let bytes = store.get(&entry.key, None).await?;
            if Id::of(&bytes).to_string() != entry.key.name() {
                return Err(Error::damaged(
                    format!("key file {}", entry.key.name()),
                    "its bytes are not those of its name",
                ));
            }
            let (name, password) = (entry.key.name().to_owned(), password.clone());
            if let Some(key) = blocking::run(move || key_file::open(&name, &bytes, &password)).await? {
                return Ok(Some(key));
            }
        }
        Ok(None)
    };
    with_cancel(cancel, find).await
}
