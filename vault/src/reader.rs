//! The reader: a point's streams out of its packs, in order, every byte checked.
//!
//! Invariants:
//! - A chunk is handed out only if its seal opens and the SHA-256 of its plaintext is its id.
//! - Neighbouring chunks of one pack are read in one range; a few ranges are read ahead. Memory: [`READ_AHEAD`] + 1 ranges of
//!   [`RANGE_MAX`] sealed bytes, and what they hold uncompressed.
//! - Only the ranges that are needed are read.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use crate::blocking::{self, with_cancel};
use crate::error::Error;
use crate::id::Id;
use crate::meter::Meter;
use crate::repository::index::{Index, Place};
use crate::repository::snapshot::Snapshot;
use crate::repository::tree::Tree;
use crate::repository::{Repository, pack_key};
use crate::store;

/// Sealed bytes that are read in one piece at most.
pub const RANGE_MAX: u32 = 4 << 20;
/// Ranges that are read before they are needed.
pub const READ_AHEAD: usize = 3;
/// The largest chunk that restic's format knows of in practice; a claim of more is damage, and would cost memory.
const MAX_BLOB: usize = 64 << 20;

/// A stream of a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub size: u64,
}

/// Why a stream could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The vault's side.
    #[error(transparent)]
    Vault(#[from] Error),
    /// The output's side.
    #[error("write the output")]
    Output(#[source] std::io::Error),
}

/// An open recovery point.
#[derive(Debug)]
pub struct PointReader {
    repository: Arc<Repository>,
    index: Index,
    snapshot: Snapshot,
    tree: Tree,
    streams: Vec<StreamInfo>,
}

/// Chunks that lie side by side in one pack.
#[derive(Debug)]
struct Range {
    pack: Id,
    start: u32,
    end: u32,
    blobs: Vec<(Id, Place)>,
}

impl PointReader {
    /// Reads the index, the snapshot and its tree.
    pub async fn open(repository: Arc<Repository>, snapshot_id: Id, cancel: &CancellationToken) -> Result<Self, Error> {
        let snapshot = repository.snapshot(&snapshot_id, cancel).await?;
        let index = repository.load_index(cancel).await?;
        let place = index.find(&snapshot.tree)?;
        let range = Range {
            pack: index.pack(place.pack).id,
            start: place.offset,
            end: place.offset + place.length,
            blobs: vec![(snapshot.tree, place)],
        };
        let blobs = with_cancel(cancel, read_range(repository.clone(), range)).await?;
        let tree = Tree::from_blob(&snapshot.tree, &blobs.concat())?;
        let streams = tree
            .nodes
            .iter()
            .filter(|node| node.kind == "file")
            .map(|node| StreamInfo { name: node.name.clone(), size: node.size })
            .collect();
        Ok(Self { repository, index, snapshot, tree, streams })
    }

    /// The point's streams, by name.
    pub fn streams(&self) -> &[StreamInfo] {
        &self.streams
    }

    /// The snapshot's record.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The stream's bytes, in order. Ends with an error at the first thing that is not as it should be; what came before was right.
    pub fn chunks(&self, name: &str, cancel: &CancellationToken) -> Result<BoxStream<'_, Result<Bytes, Error>>, Error> {
        let node = self.tree.nodes.iter().find(|node| node.kind == "file" && node.name == name);
        let node = node.ok_or_else(|| {
            Error::damaged(format!("the point's tree {}", self.snapshot.tree), format!("it has no stream {name}"))
        })?;
        let content = node.content.as_deref().unwrap_or(&[]);
        let cancel = cancel.clone();
        let repository = self.repository.clone();
        let ranges = Ranges { index: &self.index, content: content.iter(), waiting: None };
        Ok(stream::iter(ranges)
            .map(move |range| {
                let (repository, cancel) = (repository.clone(), cancel.clone());
                async move { with_cancel(&cancel, read_range(repository, range?)).await }
            })
            .buffered(READ_AHEAD)
            .map_ok(|chunks| stream::iter(chunks.into_iter().map(Ok)))
            .try_flatten()
            .boxed())
    }

    /// Writes the stream to `output`, and flushes it. Returns its bytes, which are as many as the point says.
    pub async fn copy_stream<W: AsyncWrite + Unpin + Send>(
        &self,
        name: &str,
        output: &mut W,
        meter: &Meter,
        cancel: &CancellationToken,
    ) -> Result<u64, CopyError> {
        let mut chunks = self.chunks(name, cancel)?;
        let mut copied = 0;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            let written = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(Error::Cancelled.into()),
                written = output.write_all(&chunk) => written,
            };
            written.map_err(CopyError::Output)?;
            copied += chunk.len() as u64;
            meter.add_read(chunk.len() as u64);
        }
        output.flush().await.map_err(CopyError::Output)?;
        self.check_size(name, copied)?;
        Ok(copied)
    }

    /// Fails when a stream's chunks are not as many bytes as its size says.
    pub fn check_size(&self, name: &str, copied: u64) -> Result<(), Error> {
        match self.streams.iter().find(|stream| stream.name == name) {
            Some(stream) if stream.size != copied => Err(Error::damaged(
                format!("the stream {name}"),
                format!("its chunks have {copied} bytes, its size says {}", stream.size),
            )),
            _ => Ok(()),
        }
    }
}

/// Groups a stream's chunks into ranges.
struct Ranges<'a> {
    index: &'a Index,
    content: std::slice::Iter<'a, Id>,
    waiting: Option<Range>,
}

impl Iterator for Ranges<'_> {
    type Item = Result<Range, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        for id in self.content.by_ref() {
            let place = match self.index.find(id) {
                Ok(place) => place,
                Err(error) => return Some(Err(error)),
            };
            let (pack, end) = (self.index.pack(place.pack).id, place.offset + place.length);
            match &mut self.waiting {
                Some(range) if range.pack == pack && range.end == place.offset && end - range.start <= RANGE_MAX => {
                    range.end = end;
                    range.blobs.push((*id, place));
                }
                _ => {
                    let next = Range { pack, start: place.offset, end, blobs: vec![(*id, place)] };
                    if let Some(range) = self.waiting.replace(next) {
                        return Some(Ok(range));
                    }
                }
            }
        }
        self.waiting.take().map(Ok)
    }
}

async fn read_range(repository: Arc<Repository>, range: Range) -> Result<Vec<Bytes>, Error> {
    let what = format!("pack {}", range.pack);
    let bytes = match repository.store().get(&pack_key(&range.pack), Some(range.start.into()..range.end.into())).await {
        Err(store::Error::NotFound { .. }) => return Err(Error::damaged(what, "it is missing")),
        Err(store::Error::Rejected { detail, .. }) => {
            return Err(Error::damaged(what, format!("it is too short ({detail})")));
        }
        other => other?,
    };
    if bytes.len() != (range.end - range.start) as usize {
        return Err(Error::damaged(what, "it is too short"));
    }
    let key = repository.key().clone();
    blocking::run(move || {
        let mut chunks = Vec::with_capacity(range.blobs.len());
        for (id, place) in &range.blobs {
            let at = (place.offset - range.start) as usize;
            let damaged = |detail: String| Error::damaged(&what, format!("blob {id}: {detail}"));
            let sealed = &bytes[at..at + place.length as usize];
            let opened = key.open(sealed).map_err(|error| damaged(error.to_string()))?;
            let plain = match place.raw_length() {
                None => opened,
                Some(raw_length) if raw_length as usize > MAX_BLOB => {
                    return Err(damaged("it is too large".to_owned()));
                }
                Some(raw_length) => {
                    zstd::bulk::decompress(&opened, raw_length as usize).map_err(|error| damaged(error.to_string()))?
                }
            };
            if Id::of(&plain) != *id {
                return Err(damaged("its bytes are not those that its id stands for".to_owned()));
            }
            chunks.push(Bytes::from(plain));
        }
        Ok(chunks)
    })
    .await
}
