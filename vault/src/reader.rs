//! The reader: a point's streams out of its packs, in order, every byte checked.
//!
//! ```text
//! blobs of the stream ─> ranges of packs ─> [fetch, then open, decompress, hash]* ─> pieces in order
//!                        (neighbours joined)  (several on their way)
//! ```
//! Invariants:
//! - A byte is handed out only if its blob's seal opens and the SHA-256 of the blob's plaintext is its id.
//! - Neighbouring blobs of one pack are read in one range, small gaps with them; only the ranges that are needed are read.
//! - Memory: [`BUDGET`] bytes of ranges on their way (sealed and plain), one range more that is being handed out, and a few idle buffers;
//!   32 bytes for each chunk of the point, and the index.
//! - Ranges are read and decoded while the caller is busy with the last piece. A dropped stream stops them.

use std::collections::VecDeque;
use std::ops;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::blocking::with_cancel;
use crate::error::Error;
use crate::id::Id;
use crate::meter::Meter;
use crate::repository::Repository;
use crate::repository::index::Index;
use crate::repository::snapshot::Snapshot;

pub(crate) mod decode;
pub(crate) mod ranges;
pub(crate) mod streams;

use decode::Pool;
use ranges::{Range, Ranges, raw_length};
use streams::Stream;
pub use streams::StreamInfo;

/// Bytes on their way at most, sealed and plain together, unless one range alone is larger.
pub const BUDGET: usize = 48 << 20;
/// Ranges on their way at most: enough for a store that answers after 100 ms.
const RANGES_IN_FLIGHT: usize = 16;

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
    streams: Vec<Stream>,
    infos: Vec<StreamInfo>,
}

impl PointReader {
    /// Reads the index, the snapshot and its trees.
    pub async fn open(repository: Arc<Repository>, snapshot_id: Id, cancel: &CancellationToken) -> Result<Self, Error> {
        let snapshot = repository.snapshot(&snapshot_id, cancel).await?;
        let index = repository.load_index(cancel).await?;
        let streams = with_cancel(cancel, streams::read(&repository, &index, &snapshot.tree)).await?;
        let infos = streams.iter().map(|stream| stream.info.clone()).collect();
        Ok(Self { repository, index, snapshot, streams, infos })
    }

    /// The point's streams, by name. A stream that is stored in parts is one stream here.
    pub fn streams(&self) -> &[StreamInfo] {
        &self.infos
    }

    /// The snapshot's record.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The stream's bytes, in order, in pieces of some MiB. Ends with an error at the first thing that is not as it should be; what came
    /// before was right.
    pub fn chunks(&self, name: &str, cancel: &CancellationToken) -> Result<BoxStream<'_, Result<Bytes, Error>>, Error> {
        Ok(self.read(self.stream(name)?.blobs(), cancel))
    }

    /// The stream's chunks, in order: 32 bytes of memory for each. What has been written as an image has one for each
    /// [`crate::writer::IMAGE_CHUNK`] bytes.
    pub fn chunk_ids(&self, name: &str) -> Result<Vec<Id>, Error> {
        Ok(self.stream(name)?.blobs().collect())
    }

    /// The bytes `range` of the stream, in order; only the chunks that hold them are read. A range that is turned round or reaches past
    /// the stream's end is the caller's fault ([`Error::Internal`]). Errors end the bytes as in [`PointReader::chunks`].
    pub fn range(
        &self,
        name: &str,
        range: ops::Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<BoxStream<'_, Result<Bytes, Error>>, Error> {
        let stream = self.stream(name)?;
        if range.start > range.end || range.end > stream.info.size {
            let (start, end, size) = (range.start, range.end, stream.info.size);
            return Err(Error::Internal(format!("{start}..{end} is not within the {size} bytes of {name}")));
        }
        let (mut offset, mut skip, mut blobs) = (0, 0, Vec::new());
        for id in stream.blobs() {
            if offset >= range.end {
                break;
            }
            let length = raw_length(&self.index.find(&id)?) as u64;
            if offset + length > range.start {
                if blobs.is_empty() {
                    skip = range.start - offset;
                }
                blobs.push(id);
            }
            offset += length;
        }
        if offset < range.end {
            let detail = format!("its chunks have {offset} bytes, its size says {}", stream.info.size);
            return Err(Error::damaged(format!("the stream {name}"), detail));
        }
        let pieces = self.read(blobs.into_iter(), cancel);
        Ok(trim(pieces, skip, range.end - range.start))
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
        match self.infos.iter().find(|stream| stream.name == name) {
            Some(stream) if stream.size != copied => Err(Error::damaged(
                format!("the stream {name}"),
                format!("its chunks have {copied} bytes, its size says {}", stream.size),
            )),
            _ => Ok(()),
        }
    }

    fn stream(&self, name: &str) -> Result<&Stream, Error> {
        self.streams.iter().find(|stream| stream.info.name == name).ok_or_else(|| {
            Error::damaged(format!("the point's tree {}", self.snapshot.tree), format!("it has no stream {name}"))
        })
    }

    fn read<'a>(
        &'a self,
        blobs: impl Iterator<Item = Id> + Send + 'a,
        cancel: &CancellationToken,
    ) -> BoxStream<'a, Result<Bytes, Error>> {
        let pipeline = Pipeline {
            repository: self.repository.clone(),
            ranges: Ranges::new(&self.index, blobs),
            next: None,
            on_their_way: VecDeque::new(),
            held: 0,
            ready: VecDeque::new(),
            pool: Arc::default(),
            workers: Arc::new(Semaphore::new(workers())),
            cancel: cancel.clone(),
        };
        stream::unfold(pipeline, |mut pipeline| async move { pipeline.next().await.map(|piece| (piece, pipeline)) })
            .boxed()
    }
}

/// Threads that decode at once.
pub(crate) fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
}

/// A range that is being read, and the memory that it takes.
struct OnItsWay {
    cost: usize,
    task: AbortOnDropHandle<Result<Vec<Bytes>, Error>>,
}

/// Reads ranges ahead and hands them out in order.
struct Pipeline<'a, I> {
    repository: Arc<Repository>,
    ranges: Ranges<'a, I>,
    /// Planned, and waiting for memory.
    next: Option<Result<Range, Error>>,
    on_their_way: VecDeque<OnItsWay>,
    held: usize,
    ready: VecDeque<Bytes>,
    pool: Arc<Pool>,
    workers: Arc<Semaphore>,
    cancel: CancellationToken,
}

impl<I: Iterator<Item = Id>> Pipeline<'_, I> {
    async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Some(Ok(piece));
            }
            self.start_more();
            let Some(mut first) = self.on_their_way.pop_front() else {
                // Only an error is not started at once when nothing is on its way.
                return self.next.take().and_then(|range| range.err().map(Err));
            };
            self.held -= first.cost;
            // While it is waited for, and not only when the caller comes again.
            self.start_more();
            let read = async { (&mut first.task).await.map_err(Error::internal)? };
            match with_cancel(&self.cancel, read).await {
                Ok(pieces) => self.ready.extend(pieces),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    fn start_more(&mut self) {
        while self.on_their_way.len() < RANGES_IN_FLIGHT {
            if self.next.is_none() {
                self.next = self.ranges.next();
            }
            let cost = match &self.next {
                Some(Ok(range)) => range.cost(),
                Some(Err(_)) | None => return,
            };
            if !self.on_their_way.is_empty() && self.held + cost > BUDGET {
                return;
            }
            let Some(Ok(range)) = self.next.take() else { return };
            let read = decode::read(self.repository.clone(), range, self.pool.clone(), self.workers.clone());
            self.held += cost;
            self.on_their_way.push_back(OnItsWay { cost, task: AbortOnDropHandle::new(tokio::spawn(read)) });
        }
    }
}

/// Leaves out the first `skip` bytes, and ends after `length` more.
fn trim<'a>(
    pieces: BoxStream<'a, Result<Bytes, Error>>,
    skip: u64,
    length: u64,
) -> BoxStream<'a, Result<Bytes, Error>> {
    let cut = move |(skip, left): &mut (u64, u64), piece: Result<Bytes, Error>| {
        let piece = piece.map(|mut piece| {
            let from = (piece.len() as u64).min(*skip);
            *skip -= from;
            let to = (piece.len() as u64).min(from + *left);
            *left -= to - from;
            piece.truncate(to as usize);
            piece.split_off(from as usize)
        });
        futures::future::ready(Some(piece))
    };
    pieces
        .scan((skip, length), cut)
        .filter(|piece| futures::future::ready(!piece.as_ref().is_ok_and(Bytes::is_empty)))
        .boxed()
}
