//! One stream: its chunks met, its new ones encoded and packed, its content listed, in parts when it is long.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::task::JoinHandle;

use super::buffers::{Buffer, PIECE};
use super::chunker::{self, Cutter};
use super::core::{CHUNK_ROOM, Core, Met, Room};
use super::encode::Encoded;
use super::packer::Packer;
use super::{Shared, WriteError};
use crate::error::Error;
use crate::id::{Hasher, Id};
use crate::repository::tree::{self, Node, PART_FILE, PARTS_SUFFIX, Tree};

/// A chunk of a stream.
pub(super) enum Chunk {
    /// Bytes, which may be new.
    Bytes { id: Id, length: u64, bytes: Buffer, room: Room },
    /// The same bytes as a chunk of this stream before.
    Repeated { id: Id, length: u64 },
    /// A chunk of an earlier point, which nobody has read, and which the backup needs from now on.
    Same { id: Id, length: u64 },
}

/// What cuts a stream into chunks.
pub(super) trait Chunks: Send {
    /// The next chunk, of `limit` bytes at most; `None` at the end. Dropping the future loses nothing.
    fn next(&mut self, core: &Core, limit: u64) -> impl Future<Output = Result<Option<Chunk>, WriteError>> + Send;
}

/// Writes all chunks and returns the stream's node, whose times are still to be set, and its size.
pub(super) async fn write<C: Chunks>(
    shared: &Shared,
    name: &str,
    part_size: u64,
    chunks: &mut C,
) -> Result<Node, WriteError> {
    let mut stream = Stream {
        core: &shared.core,
        packer: &shared.packer,
        part_size,
        content: Vec::new(),
        part: 0,
        size: 0,
        parts: Vec::new(),
        encoding: FuturesOrdered::new(),
    };
    let mut ended = false;
    while !ended || !stream.encoding.is_empty() {
        let limit = stream.limit();
        tokio::select! {
            biased;
            () = shared.core.failure.wait() => shared.core.failure.check()?,
            Some(done) = stream.encoding.next(), if !stream.encoding.is_empty() => {
                let (blob, room) = done.map_err(Error::internal)??;
                stream.packer.add(blob).await?;
                drop(room);
            }
            chunk = chunks.next(&shared.core, limit), if !ended => match chunk? {
                Some(chunk) => stream.take(chunk).await?,
                None => ended = true,
            },
        }
    }
    Ok(stream.finish(name).await?)
}

/// A chunk on a worker.
type Encoding = JoinHandle<Result<(Encoded, Room), Error>>;

struct Stream<'a> {
    core: &'a Arc<Core>,
    packer: &'a Packer,
    part_size: u64,
    /// Chunks of the part.
    content: Vec<Id>,
    /// Bytes of the part.
    part: u64,
    /// Bytes of the stream.
    size: u64,
    /// Bytes and trees of the parts before.
    parts: Vec<(u64, Id)>,
    encoding: FuturesOrdered<Encoding>,
}

impl Stream<'_> {
    /// How long the next chunk may be: it ends where its part does.
    fn limit(&self) -> u64 {
        if self.part < self.part_size { self.part_size - self.part } else { self.part_size }
    }

    async fn take(&mut self, chunk: Chunk) -> Result<(), Error> {
        // Only when more comes is a full part one of several.
        if self.part == self.part_size {
            self.end_part().await?;
        }
        let (id, length, read) = match chunk {
            Chunk::Same { id, length } => (id, length, 0),
            Chunk::Repeated { id, length } => (id, length, length),
            Chunk::Bytes { id, length, bytes, room } => {
                match self.core.meet(&id) {
                    Met::Known => self.core.buffers.put(bytes),
                    Met::New => {
                        self.core.meter.add_new(length);
                        self.encoding.push_back(tokio::spawn(self.core.clone().encode(id, bytes, room)));
                    }
                }
                (id, length, length)
            }
        };
        self.content.push(id);
        self.part += length;
        self.size += length;
        self.core.meter.add_read(read);
        Ok(())
    }

    /// The times of parts are fixed, so that a part that has not changed is the same tree.
    async fn end_part(&mut self) -> Result<(), Error> {
        let (bytes, content) = (std::mem::take(&mut self.part), std::mem::take(&mut self.content));
        let node = Node::file(PART_FILE, jiff::Timestamp::UNIX_EPOCH, bytes, content);
        let id = put_tree(self.core, self.packer, &Tree { nodes: vec![node] }).await?;
        self.parts.push((bytes, id));
        Ok(())
    }

    async fn finish(mut self, name: &str) -> Result<Node, Error> {
        let time = jiff::Timestamp::UNIX_EPOCH;
        if self.parts.is_empty() {
            return Ok(Node::file(name, time, self.size, self.content));
        }
        self.end_part().await?;
        let parts = self.parts.iter().enumerate();
        let nodes = parts.map(|(n, (bytes, id))| Node::directory(&tree::part_name(n), time, *bytes, *id)).collect();
        let id = put_tree(self.core, self.packer, &Tree { nodes }).await?;
        Ok(Node::directory(&format!("{name}{PARTS_SUFFIX}"), time, self.size, id))
    }
}

/// Stores a tree if it is new, and returns its id.
pub(super) async fn put_tree(core: &Arc<Core>, packer: &Packer, tree: &Tree) -> Result<Id, Error> {
    let plain = tree.to_blob()?;
    let id = Id::of(&plain);
    if core.meet(&id) == Met::New {
        let repository = core.repository.clone();
        packer.add_tree(crate::blocking::run(move || super::encode::tree(id, &plain, repository.key())).await?).await?;
    }
    Ok(id)
}

/// Cuts an input at content-defined borders, and hashes each piece as it comes.
pub(super) struct Cut<R> {
    input: R,
    cutter: Cutter,
    /// The chunk in the making, with what it may hold.
    open: Option<(Buffer, Room)>,
    /// Bytes of it that are hashed.
    hashed: usize,
    chunk: Hasher,
    /// What was read past the last border.
    rest: Vec<u8>,
    begun: bool,
    ended: bool,
}

impl<R: AsyncRead + Unpin + Send> Cut<R> {
    pub(super) fn new(input: R, seed: u64) -> Self {
        Self {
            input,
            cutter: Cutter::new(seed),
            open: None,
            hashed: 0,
            chunk: Hasher::new(),
            rest: Vec::new(),
            begun: false,
            ended: false,
        }
    }

    /// Looks at what has come since it was called last; returns the chunk's length when its end is there.
    fn look(&mut self, limit: usize) -> Option<usize> {
        let (buffer, _) = self.open.as_ref()?;
        let come = buffer.plain();
        let within = &come[..come.len().min(limit)];
        let end = match self.cutter.find(within) {
            Some(end) => Some(end),
            None if within.len() == limit || (self.ended && !within.is_empty()) => Some(within.len()),
            None => None,
        };
        let new = &within[self.hashed..end.unwrap_or(within.len())];
        self.chunk.update(new);
        self.hashed += new.len();
        end
    }

    fn close(&mut self, length: usize) -> Option<Chunk> {
        let (mut bytes, mut room) = self.open.take()?;
        bytes.split_off(length, &mut self.rest);
        room.shrink(length);
        self.cutter.restart();
        self.hashed = 0;
        self.begun = true;
        let id = std::mem::replace(&mut self.chunk, Hasher::new()).finish();
        Some(Chunk::Bytes { id, length: length as u64, bytes, room })
    }
}

impl<R: AsyncRead + Unpin + Send> Chunks for Cut<R> {
    async fn next(&mut self, core: &Core, limit: u64) -> Result<Option<Chunk>, WriteError> {
        let greatest = if self.begun { chunker::MAX } else { chunker::HEAD };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(greatest);
        if self.open.is_none() {
            if self.ended && self.rest.is_empty() {
                return Ok(None);
            }
            let room = core.room(CHUNK_ROOM).await?;
            let mut buffer = core.buffers.get(CHUNK_ROOM);
            buffer.bytes_mut().extend_from_slice(&self.rest);
            self.rest.clear();
            self.open = Some((buffer, room));
        }
        loop {
            if let Some(length) = self.look(limit) {
                return Ok(self.close(length));
            }
            let Some((buffer, _)) = &mut self.open else { return Ok(None) };
            if self.ended {
                // Nothing came any more.
                self.open = None;
                return Ok(None);
            }
            let mut window = (&mut self.input).take(PIECE as u64);
            if window.read_buf(buffer.bytes_mut()).await.map_err(WriteError::Input)? == 0 {
                self.ended = true;
            }
        }
    }
}
