//! The writer: streams in, packs and indexes out, and a *staged* snapshot at the end that nobody sees until it is committed.
//!
//! ```text
//! input ─> chunker ─> [hash, look up, compress, seal]* ─> packer ─> [hash, upload]* ─> index files ─> Staged
//!          (1 task)   (blocking pool, in order)           (1 pack)   (several in flight)
//! ```
//! Invariants:
//! - Memory is bounded: `bytes_in_flight` is shared out between chunks on their way and packs on their way; a slow store holds up the
//!   uploads, these the packer, it the chunks, and they the input (and so pg_dump).
//! - Durable order: packs, then the index files that name them, then (elsewhere) the snapshot. Index files go out as the backup runs,
//!   so the next backup finds what an interrupted one has uploaded.
//! - Only packs that the store has, with the right size, are reused: what is missing is stored again.
//! - A stream whose input failed poisons the backup: [`Backup::stage`] refuses it.
//! - Dropping a [`Backup`] at any time leaves unreferenced packs and indexes, and nothing visible.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncRead;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::MIN_BYTES_IN_FLIGHT;
use crate::blocking::with_cancel;
use crate::error::Error;
use crate::id::Id;
use crate::meter::Meter;
use crate::records;
use crate::repository::index::{Index, IndexFile, IndexPack};
use crate::repository::pack::{BlobKind, Builder, Finished, SealedBlob};
use crate::repository::snapshot::Snapshot;
use crate::repository::tree::{self, Node, Tree};
use crate::repository::{Repository, pack_key};

pub mod chunker;
mod encode;

use chunker::Chunker;
use encode::Encoded;

/// Packs are closed at this size: restic's default.
const PACK_SIZE: usize = 16 << 20;

/// How a backup is written.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// zstd level, 1 to 19.
    pub compression_level: i32,
    /// User data in memory at most, in bytes; less than [`MIN_BYTES_IN_FLIGHT`] counts as that.
    pub bytes_in_flight: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { compression_level: 1, bytes_in_flight: 64 << 20 }
    }
}

/// A stream that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSummary {
    /// Its name in the point.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// SHA-256 of them, in hexadecimal.
    pub sha256: String,
}

/// What the snapshot says of its origin.
#[derive(Debug, Clone)]
pub struct SnapshotMeta {
    /// When the source was read.
    pub time: jiff::Timestamp,
    /// The machine that the agent runs on.
    pub hostname: String,
    /// `job=<id>` and others.
    pub tags: Vec<String>,
}

/// Everything is uploaded but the snapshot file. See [`crate::commit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// SHA-256 of `sealed`.
    pub snapshot_id: Id,
    /// The snapshot file.
    pub sealed: Bytes,
    /// The prune epoch at the backup's beginning.
    pub prune_epoch: u64,
    /// Every pack that the point needs, new or reused, with its size; ascending.
    pub packs: Vec<(Id, u64)>,
    /// The streams, in the order in which they were written.
    pub streams: Vec<StreamSummary>,
    /// Bytes of all streams.
    pub source_bytes: u64,
    /// Bytes that this backup added to the store.
    pub stored_bytes: u64,
    /// When the source was read.
    pub time: jiff::Timestamp,
}

/// Why a stream could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The vault's side.
    #[error(transparent)]
    Vault(#[from] Error),
    /// The input's side.
    #[error("read the input")]
    Input(#[source] std::io::Error),
}

/// What is known of the repository's blobs, shared with the encoders.
#[derive(Debug)]
struct Known {
    index: Index,
    /// New blobs whose pack is not stored yet.
    claimed: HashSet<Id>,
}

/// A backup in the making.
#[derive(Debug)]
pub struct Backup {
    repository: Arc<Repository>,
    options: Options,
    meter: Arc<Meter>,
    prune_epoch: u64,
    known: Arc<Mutex<Known>>,
    open_pack: Builder,
    uploads: JoinSet<Result<Finished, Error>>,
    /// Stored, and not named by an index file yet.
    unindexed: Vec<IndexPack>,
    indexed: usize,
    nodes: Vec<Node>,
    streams: Vec<StreamSummary>,
    poisoned: bool,
}

impl Backup {
    /// Reads the prune epoch, then the list of packs and the index.
    pub async fn begin(
        repository: Arc<Repository>,
        options: Options,
        meter: Arc<Meter>,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        let store = repository.store().clone();
        // The epoch first: a prune that begins after this is seen at the commit. What is marked may be deleted while this backup runs,
        // and is stored again.
        let (prune_epoch, marked) = with_cancel(cancel, records::current_mark(&*store)).await?;
        let index = repository.load_index_to_write(&marked.into_iter().collect(), cancel).await?;
        Ok(Self {
            repository,
            options,
            meter,
            prune_epoch,
            known: Arc::new(Mutex::new(Known { index, claimed: HashSet::new() })),
            open_pack: Builder::new(BlobKind::Data),
            uploads: JoinSet::new(),
            unindexed: Vec::new(),
            indexed: 0,
            nodes: Vec::new(),
            streams: Vec::new(),
            poisoned: false,
        })
    }

    /// Writes a stream to its end. That its source is complete is for the caller to know, before it stages.
    /// After an error or a dropped future the backup is good for nothing but being dropped.
    pub async fn write_stream<R: AsyncRead + Unpin + Send>(
        &mut self,
        name: &str,
        input: R,
        cancel: &CancellationToken,
    ) -> Result<StreamSummary, WriteError> {
        tree::check_name(name)?;
        if self.streams.iter().any(|stream| stream.name == name) {
            return Err(Error::Internal(format!("the stream {name} is there already")).into());
        }
        self.poisoned = true;
        let (size, sha256, content) = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Error::Cancelled.into()),
            result = self.write_chunks(input) => result?,
        };
        self.poisoned = false;
        let summary = StreamSummary { name: name.to_owned(), size, sha256: hex::encode(sha256) };
        self.streams.push(summary.clone());
        self.nodes.push(Node::file(name, jiff::Timestamp::UNIX_EPOCH, size, content));
        Ok(summary)
    }

    async fn write_chunks<R: AsyncRead + Unpin + Send>(
        &mut self,
        input: R,
    ) -> Result<(u64, [u8; 32], Vec<Id>), WriteError> {
        let mut chunker = Chunker::new(input, self.repository.chunker_seed());
        let (mut hasher, mut size, mut ended) = (Sha256::new(), 0_u64, false);
        let mut content = Vec::new();
        let mut encoding: FuturesOrdered<JoinHandle<Result<Encoded, Error>>> = FuturesOrdered::new();
        let (budget, width) = self.encode_limits();
        let mut in_flight = 0_usize;
        loop {
            // A largest chunk must still fit; with nothing in flight one always may come.
            let room = encoding.is_empty() || (in_flight + chunker::MAX <= budget && encoding.len() < width);
            tokio::select! {
                biased;
                // A stored pack gets into an index file soon, not when the next pack is full: a slow source may be killed before.
                Some(done) = self.uploads.join_next(), if !self.uploads.is_empty() => {
                    self.note_stored(&done.map_err(Error::internal)??)?;
                    self.index_stored(false).await?;
                }
                Some(done) = encoding.next(), if !encoding.is_empty() => {
                    let encoded = done.map_err(Error::internal)??;
                    in_flight -= encoded.raw_length;
                    content.push(encoded.id);
                    if let Some(blob) = encoded.new {
                        self.add_data(blob).await?;
                    }
                }
                chunk = chunker.next(), if !ended && room => match chunk.map_err(WriteError::Input)? {
                    Some(chunk) => {
                        hasher.update(&chunk);
                        size += chunk.len() as u64;
                        self.meter.add_read(chunk.len() as u64);
                        in_flight += chunk.len();
                        encoding.push_back(self.encode(BlobKind::Data, chunk));
                    }
                    None => ended = true,
                },
                else => break,
            }
        }
        Ok((size, hasher.finalize().into(), content))
    }

    /// Bytes and number of chunks that may be on their way. A quarter of the memory goes to chunks, the rest to packs.
    fn encode_limits(&self) -> (usize, usize) {
        let budget = usize::try_from(self.bytes_in_flight() / 4).unwrap_or(usize::MAX);
        // Two more than cores, so that none waits for the next chunk.
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        (budget, cores + 2)
    }

    fn upload_limit(&self) -> usize {
        // Three quarters of the memory, less the pack in the making.
        let packs = usize::try_from(self.bytes_in_flight() * 3 / 4).unwrap_or(usize::MAX) / PACK_SIZE;
        packs.saturating_sub(1).clamp(1, 16)
    }

    fn bytes_in_flight(&self) -> u64 {
        self.options.bytes_in_flight.max(MIN_BYTES_IN_FLIGHT)
    }

    fn encode(&self, kind: BlobKind, plain: Vec<u8>) -> JoinHandle<Result<Encoded, Error>> {
        let (known, key, level) = (self.known.clone(), self.repository.key().clone(), self.options.compression_level);
        tokio::task::spawn_blocking(move || {
            encode::encode(kind, &plain, &key, level, |id| {
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                known.index.get(id).is_none() && known.claimed.insert(*id)
            })
        })
    }

    async fn add_data(&mut self, blob: SealedBlob) -> Result<(), Error> {
        self.open_pack.add(&blob, PACK_SIZE + (PACK_SIZE >> 3))?;
        drop(blob);
        if self.open_pack.len() >= PACK_SIZE {
            self.close_pack(BlobKind::Data).await?;
        }
        Ok(())
    }

    /// Sends the open pack on its way and begins another; waits while too many are on their way.
    async fn close_pack(&mut self, next: BlobKind) -> Result<(), Error> {
        let pack = std::mem::replace(&mut self.open_pack, Builder::new(next));
        if pack.is_empty() {
            return Ok(());
        }
        while self.uploads.len() >= self.upload_limit() {
            self.finish_upload().await?;
        }
        let (repository, meter) = (self.repository.clone(), self.meter.clone());
        self.uploads.spawn(async move {
            let key = repository.key().clone();
            let mut pack = crate::blocking::run(move || pack.finish(&key)).await?;
            let bytes = Bytes::from(std::mem::take(&mut pack.bytes));
            let len = bytes.len() as u64;
            repository.store().put_if_absent(&pack_key(&pack.id), bytes).await?;
            meter.add_stored(len);
            Ok(pack)
        });
        self.index_stored(false).await
    }

    async fn finish_upload(&mut self) -> Result<bool, Error> {
        let Some(done) = self.uploads.join_next().await else { return Ok(false) };
        self.note_stored(&done.map_err(Error::internal)??)?;
        Ok(true)
    }

    fn note_stored(&mut self, pack: &Finished) -> Result<(), Error> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.index.add_pack(pack.id, &pack.blobs)?;
        for blob in &pack.blobs {
            known.claimed.remove(&blob.id);
        }
        self.unindexed.push(IndexPack::new(pack.id, &pack.blobs));
        Ok(())
    }

    /// Writes an index file when enough packs wait for one, or for all that wait. The number that is enough grows with the backup, so
    /// that a long one leaves tens of index files, not thousands, and a kill still wastes an eighth of the work at most.
    async fn index_stored(&mut self, all: bool) -> Result<(), Error> {
        let enough = if all { 1 } else { (self.indexed / 8).clamp(2, 512) };
        if self.unindexed.len() < enough {
            return Ok(());
        }
        let file = IndexFile { supersedes: Vec::new(), packs: std::mem::take(&mut self.unindexed) };
        self.repository.put_index(&file).await?;
        self.indexed += file.packs.len();
        Ok(())
    }

    /// Gives the backup up, so that the next one finds what was uploaded: waits for the packs on their way and writes their index file.
    /// Best effort: what fails here costs a later upload and nothing else.
    pub async fn abandon(mut self, cancel: &CancellationToken) {
        let finish = async {
            while self.finish_upload().await? {}
            self.index_stored(true).await
        };
        if let Err(error) = with_cancel(cancel, finish).await {
            tracing::info!("what a failed backup has uploaded may have to be uploaded again: {error}");
        }
    }

    /// Uploads what is left, the tree and the last index, and seals the snapshot. Nothing is visible after it.
    pub async fn stage(mut self, meta: SnapshotMeta, cancel: &CancellationToken) -> Result<Staged, Error> {
        if self.poisoned {
            return Err(Error::Internal("a stream of this backup was not written to its end".to_owned()));
        }
        with_cancel(cancel, self.stage_now(meta)).await
    }

    async fn stage_now(&mut self, meta: SnapshotMeta) -> Result<Staged, Error> {
        let mut nodes = std::mem::take(&mut self.nodes);
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        for node in &mut nodes {
            let time = meta.time.to_string();
            (node.mtime, node.atime, node.ctime) = (time.clone(), time.clone(), time);
        }
        let root = Tree { nodes };
        let tree = self.encode(BlobKind::Tree, root.to_blob()?).await.map_err(Error::internal)??;
        self.close_pack(BlobKind::Tree).await?;
        if let Some(blob) = tree.new {
            self.open_pack.add(&blob, blob.sealed.len())?;
        }
        self.close_pack(BlobKind::Data).await?;
        while self.finish_upload().await? {}
        self.index_stored(true).await?;
        let packs = self.referenced_packs(&root, &tree.id)?;
        let snapshot = Snapshot {
            time: meta.time.to_string(),
            tree: tree.id,
            paths: self.streams.iter().map(|stream| format!("/{}", stream.name)).collect(),
            hostname: meta.hostname,
            username: "vaultferry".to_owned(),
            tags: meta.tags,
            program_version: concat!("vaultferry ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let (snapshot_id, sealed) = self.repository.seal_json(&snapshot)?;
        let streams = std::mem::take(&mut self.streams);
        Ok(Staged {
            snapshot_id,
            sealed: sealed.into(),
            prune_epoch: self.prune_epoch,
            packs,
            source_bytes: streams.iter().map(|stream| stream.size).sum(),
            streams,
            stored_bytes: self.meter.stored(),
            time: meta.time,
        })
    }

    fn referenced_packs(&self, root: &Tree, tree: &Id) -> Result<Vec<(Id, u64)>, Error> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let blobs = root.nodes.iter().flat_map(|node| node.content.iter().flatten());
        let mut packs = BTreeSet::new();
        for id in blobs.chain([tree]) {
            let pack = known.index.pack(known.index.find(id)?.pack);
            packs.insert((pack.id, pack.size));
        }
        Ok(packs.into_iter().collect())
    }
}
