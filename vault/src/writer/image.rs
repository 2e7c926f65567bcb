//! A disk image: chunks of one size at multiples of it, so that a block that changes changes one chunk, and holes that cost nothing.
//!
//! Chunks that are the same as in an earlier point are named, not read. The writer takes a name only for a chunk of the right length that
//! the store has for sure; that the disk still has these bytes there is for the caller to know.

use bytes::Bytes;
use futures::{Stream, StreamExt as _};

use super::WriteError;
use super::buffers::Buffer;
use super::core::{Core, Room};
use super::stream::{Chunk, Chunks};
use crate::id::Id;

/// Bytes of every chunk but the last: what the borders of other streams aim at too.
pub const IMAGE_CHUNK: usize = 1 << 20;

/// A piece of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// Bytes.
    Data(Bytes),
    /// So many zeros, which nobody needs to read.
    Hole(u64),
    /// Chunks that an earlier image had in this place, and that nobody needs to read: each of [`IMAGE_CHUNK`] bytes, but the image's last
    /// one, which may be shorter. The first begins at a multiple of [`IMAGE_CHUNK`]; [`super::Streams::known_chunk`] must know all of them.
    Same(Vec<Id>),
}

/// Cuts extents that follow each other without gaps.
pub(super) struct Image<S> {
    extents: S,
    /// What is left of the extent that was read last.
    extent: Extent,
    /// What is left of chunks that were named, instead of an extent.
    same: std::vec::IntoIter<Id>,
    /// Bytes of the image that are not in a chunk yet.
    left: u64,
    open: Option<(Buffer, Room)>,
    /// The chunk of zeros, once one was met.
    zeros: Option<Id>,
}

impl<S: Stream<Item = std::io::Result<Extent>> + Unpin + Send> Image<S> {
    /// The extents must be `length` bytes together.
    pub(super) fn new(extents: S, length: u64) -> Self {
        let same = Vec::new().into_iter();
        Self { extents, extent: Extent::Hole(0), same, left: length, open: None, zeros: None }
    }

    fn is_empty(&self) -> bool {
        let extent_is_empty = match &self.extent {
            Extent::Data(data) => data.is_empty(),
            Extent::Hole(length) => *length == 0,
            Extent::Same(chunks) => chunks.is_empty(),
        };
        extent_is_empty && self.same.as_slice().is_empty()
    }

    /// Reads until there is an extent, or a named chunk. False at the end.
    async fn refill(&mut self) -> Result<bool, WriteError> {
        while self.is_empty() {
            match self.extents.next().await {
                Some(extent) => match extent.map_err(WriteError::Input)? {
                    Extent::Same(chunks) => self.same = chunks.into_iter(),
                    extent => self.extent = extent,
                },
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The chunk that was named next, of `wanted` bytes; `None`: an extent is next.
    fn named(&mut self, core: &Core, wanted: usize) -> Result<Option<Chunk>, WriteError> {
        let Some(id) = self.same.as_slice().first().copied() else { return Ok(None) };
        if self.open.is_some() {
            return Err(wrong_length("chunks are named that do not begin at a chunk's border"));
        }
        match core.reuse(&id) {
            None => return Err(wrong_length("a chunk is named that the vault does not have")),
            Some(length) if length != wanted as u64 => {
                return Err(wrong_length("a chunk is named that has another length"));
            }
            Some(_) => {}
        }
        self.same.next();
        self.left -= wanted as u64;
        Ok(Some(Chunk::Same { id, length: wanted as u64 }))
    }

    /// Moves bytes from the extent to the open chunk, until it has `wanted` or the extent is empty.
    fn fill(&mut self, wanted: usize) {
        let Some((buffer, _)) = &mut self.open else { return };
        let missing = wanted - buffer.plain().len();
        match &mut self.extent {
            Extent::Data(data) => {
                let piece = data.split_to(missing.min(data.len()));
                buffer.bytes_mut().extend_from_slice(&piece);
            }
            Extent::Hole(length) => {
                let now = missing.min(usize::try_from(*length).unwrap_or(usize::MAX));
                *length -= now as u64;
                let bytes = buffer.bytes_mut();
                bytes.resize(bytes.len() + now, 0);
            }
            // They are not kept there, but in `same`.
            Extent::Same(_) => {}
        }
    }
}

fn wrong_length(message: &str) -> WriteError {
    WriteError::Input(std::io::Error::new(std::io::ErrorKind::InvalidData, message))
}

impl<S: Stream<Item = std::io::Result<Extent>> + Unpin + Send> Chunks for Image<S> {
    async fn next(&mut self, core: &Core, limit: u64) -> Result<Option<Chunk>, WriteError> {
        let wanted = self.left.min(limit).min(IMAGE_CHUNK as u64) as usize;
        if wanted == 0 {
            return match self.refill().await? {
                true => Err(wrong_length("the extents are longer than the image")),
                false => Ok(None),
            };
        }
        loop {
            if self.open.as_ref().is_some_and(|(buffer, _)| buffer.plain().len() == wanted) {
                break;
            }
            if !self.refill().await? {
                return Err(wrong_length("the extents are shorter than the image"));
            }
            if let Some(chunk) = self.named(core, wanted)? {
                return Ok(Some(chunk));
            }
            if self.open.is_none() {
                if let (Extent::Hole(length), Some(id), IMAGE_CHUNK) = (&mut self.extent, self.zeros, wanted)
                    && *length >= wanted as u64
                {
                    *length -= wanted as u64;
                    self.left -= wanted as u64;
                    return Ok(Some(Chunk::Repeated { id, length: wanted as u64 }));
                }
                let room = core.room(IMAGE_CHUNK).await?;
                self.open = Some((core.buffers.get(IMAGE_CHUNK), room));
            }
            self.fill(wanted);
        }
        let Some((bytes, room)) = self.open.take() else { return Ok(None) };
        self.left -= wanted as u64;
        let id = Id::of(bytes.plain());
        if self.zeros.is_none() && wanted == IMAGE_CHUNK && bytes.plain().iter().all(|byte| *byte == 0) {
            self.zeros = Some(id);
        }
        Ok(Some(Chunk::Bytes { id, length: wanted as u64, bytes, room }))
    }
}
