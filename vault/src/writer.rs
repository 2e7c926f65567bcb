//! The writer: streams in, packs and indexes out, and a *staged* snapshot at the end that nobody sees until it is committed.
//!
//! ```text
//! stream ─> cut, hash, look up ─> [compress, seal]* ─┐
//!           (while it is read)    (one per processor) ├─> packer ─> [hash, upload]* ─> index files ─> Staged
//! stream ─> cut, hash, look up ─> [compress, seal]* ─┘    (1 pack)   (several in flight)
//! ```
//! Invariants:
//! - Memory is bounded: `bytes_in_flight` is shared out between chunks on their way and packs on their way; a slow store holds up the
//!   uploads, these the packer, it the chunks, and they the inputs (and so pg_dump). Beside it, compression has as much working memory as
//!   the chunks that it works on, and the index 48 bytes for each known chunk.
//! - Durable order: packs, then the index files that name them, then (elsewhere) the snapshot. Index files go out as the backup runs,
//!   so the next backup finds what an interrupted one has uploaded.
//! - Only packs that the store has, with the right size, are reused, and none that was found altered or that the newest prune epoch has
//!   marked: what is missing is stored again.
//! - A stream that was begun and not written to its end poisons the backup: [`Backup::stage`] refuses it.
//! - Dropping a [`Backup`] and its [`Streams`] at any time ends the uploads and leaves unreferenced packs and indexes, nothing visible.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::Stream;
use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;

use crate::blocking::with_cancel;
use crate::error::Error;
use crate::id::Id;
use crate::meter::Meter;
use crate::records;
use crate::repository::Repository;
use crate::repository::snapshot::Snapshot;
use crate::repository::tree::{self, Node, Tree};

mod buffers;
pub mod chunker;
mod core;
mod encode;
mod image;
mod packer;
mod stream;
mod throttle;

use self::core::{Core, lock};
use image::Image;
pub use image::{Extent, IMAGE_CHUNK};
use packer::Packer;
use stream::{Chunks, Cut};
pub use throttle::Throttle;

/// Packs are at most this large: restic's default.
pub const PACK_SIZE: usize = 16 << 20;
/// Streams that are longer are stored in parts of this size: the tree of a part of 16 GiB is about a MiB.
pub const PART_SIZE: u64 = 16 << 30;

/// How chunks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: for sources that are compressed already.
    Off,
    /// zstd of this level, 1 to 19.
    Level(i32),
}

impl Default for Compression {
    fn default() -> Self {
        Self::Level(1)
    }
}

/// How a backup is written.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How chunks are compressed.
    pub compression: Compression,
    /// User data in memory at most, in bytes; less than [`crate::MIN_BYTES_IN_FLIGHT`] counts as that. Every stream that is written at
    /// the same time needs 8 MiB and a piece of the quarter of it that chunks have; streams wait for each other when it is less.
    pub bytes_in_flight: u64,
    /// Bytes that are sent to the store in a second at most, on average; `None`: no limit.
    pub upload_bytes_per_s: Option<u64>,
    /// [`PART_SIZE`], but in tests. A multiple of [`IMAGE_CHUNK`].
    pub part_size: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            compression: Compression::default(),
            bytes_in_flight: 64 << 20,
            upload_bytes_per_s: None,
            part_size: PART_SIZE,
        }
    }
}

/// A stream that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSummary {
    /// Its name in the point.
    pub name: String,
    /// Its bytes.
    pub size: u64,
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
    /// The streams, in the order in which they were begun.
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

/// A backup in the making.
#[derive(Debug)]
pub struct Backup {
    shared: Arc<Shared>,
    prune_epoch: u64,
}

/// Writes streams of a backup, also several at once. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Streams {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    core: Arc<Core>,
    packer: Packer,
    part_size: u64,
    begun: Mutex<Vec<Begun>>,
}

/// A stream that was begun, and what it became when it was written to its end.
#[derive(Debug)]
struct Begun {
    name: String,
    done: Option<(StreamSummary, Node)>,
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
        let core = Arc::new(Core::new(repository, &options, meter, index));
        let packer = Packer::new(core.clone());
        let part_size = options.part_size.max(IMAGE_CHUNK as u64);
        let shared = Arc::new(Shared { core, packer, part_size, begun: Mutex::default() });
        Ok(Self { shared, prune_epoch })
    }

    /// What writes streams, also several at once.
    pub fn streams(&self) -> Streams {
        Streams { shared: self.shared.clone() }
    }

    /// Writes a stream to its end: [`Streams::write`], for those who have one after the other.
    pub async fn write_stream<R: AsyncRead + Unpin + Send>(
        &mut self,
        name: &str,
        input: R,
        cancel: &CancellationToken,
    ) -> Result<StreamSummary, WriteError> {
        self.streams().write(name, input, cancel).await
    }

    /// Gives the backup up, so that the next one finds what was read: sends what is ready and writes its index file. Best effort: what
    /// fails here costs a later upload and nothing else.
    pub async fn abandon(self, cancel: &CancellationToken) {
        let finish = async {
            let finished = self.shared.packer.finish().await;
            self.shared.core.index_stored(true).await?;
            finished
        };
        if let Err(error) = with_cancel(cancel, finish).await {
            tracing::info!("what a failed backup has uploaded may have to be uploaded again: {error}");
        }
    }

    /// Uploads what is left, the tree and the last index, and seals the snapshot. Nothing is visible after it.
    pub async fn stage(self, meta: SnapshotMeta, cancel: &CancellationToken) -> Result<Staged, Error> {
        let (mut streams, mut nodes) = (Vec::new(), Vec::new());
        for stream in std::mem::take(&mut *lock(&self.shared.begun)) {
            let Some((summary, node)) = stream.done else {
                return Err(Error::Internal(format!("the stream {} was not written to its end", stream.name)));
            };
            streams.push(summary);
            nodes.push(node);
        }
        with_cancel(cancel, self.stage_now(meta, streams, nodes)).await
    }

    async fn stage_now(
        &self,
        meta: SnapshotMeta,
        streams: Vec<StreamSummary>,
        mut nodes: Vec<Node>,
    ) -> Result<Staged, Error> {
        let Shared { core, packer, .. } = &*self.shared;
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        for node in &mut nodes {
            let time = meta.time.to_string();
            (node.mtime, node.atime, node.ctime) = (time.clone(), time.clone(), time);
        }
        let paths = nodes.iter().map(|node| format!("/{}", node.name)).collect();
        let tree = stream::put_tree(core, packer, &Tree { nodes }).await?;
        packer.finish().await?;
        let snapshot = Snapshot {
            time: meta.time.to_string(),
            tree,
            paths,
            hostname: meta.hostname,
            username: "vaultferry".to_owned(),
            tags: meta.tags,
            program_version: concat!("vaultferry ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let (snapshot_id, sealed) = core.repository.seal_json(&snapshot)?;
        Ok(Staged {
            snapshot_id,
            sealed: sealed.into(),
            prune_epoch: self.prune_epoch,
            packs: core.needed_packs(),
            source_bytes: streams.iter().map(|stream| stream.size).sum(),
            streams,
            stored_bytes: core.meter.stored(),
            time: meta.time,
        })
    }
}

impl Streams {
    /// Writes a stream to its end. That its source is complete is for the caller to know, before it stages. After an error or a dropped
    /// future the backup is good for nothing but [`Backup::abandon`].
    pub async fn write<R: AsyncRead + Unpin + Send>(
        &self,
        name: &str,
        input: R,
        cancel: &CancellationToken,
    ) -> Result<StreamSummary, WriteError> {
        let mut chunks = Cut::new(input, self.shared.core.repository.chunker_seed());
        let (number, node) = self.write_chunks(name, &mut chunks, cancel).await?;
        Ok(self.done(number, node, name))
    }

    /// Writes a disk image of `length` bytes, of which `extents` tells which are data, which are zeros that nobody needs to read, and which
    /// are chunks of an earlier point. They follow each other without gaps. As for [`Streams::write`]; [`WriteError::Input`] when they are
    /// more or less than `length`, or name a chunk wrongly ([`Extent::Same`]).
    pub async fn write_image<S: Stream<Item = std::io::Result<Extent>> + Unpin + Send>(
        &self,
        name: &str,
        length: u64,
        extents: S,
        cancel: &CancellationToken,
    ) -> Result<StreamSummary, WriteError> {
        let mut chunks = Image::new(extents, length);
        let (number, node) = self.write_chunks(name, &mut chunks, cancel).await?;
        Ok(self.done(number, node, name))
    }

    /// Bytes of a chunk that [`Extent::Same`] may name in this backup: the store has its pack, whole, and no prune has marked it. `None`: the
    /// chunk has to be read and written. The answer holds until the backup's end.
    pub fn known_chunk(&self, id: &Id) -> Option<u64> {
        self.shared.core.known(id)
    }

    async fn write_chunks<C: Chunks>(
        &self,
        name: &str,
        chunks: &mut C,
        cancel: &CancellationToken,
    ) -> Result<(usize, Node), WriteError> {
        let number = self.begin(name)?;
        let written = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Error::Cancelled.into()),
            written = stream::write(&self.shared, name, self.shared.part_size, chunks) => written,
        };
        Ok((number, written?))
    }

    fn begin(&self, name: &str) -> Result<usize, Error> {
        tree::check_name(name)?;
        let mut begun = lock(&self.shared.begun);
        if begun.iter().any(|stream| stream.name == name) {
            return Err(Error::Internal(format!("the stream {name} is there already")));
        }
        begun.push(Begun { name: name.to_owned(), done: None });
        Ok(begun.len() - 1)
    }

    fn done(&self, number: usize, node: Node, name: &str) -> StreamSummary {
        let summary = StreamSummary { name: name.to_owned(), size: node.size };
        if let Some(stream) = lock(&self.shared.begun).get_mut(number) {
            stream.done = Some((summary.clone(), node));
        }
        summary
    }
}
