//! Pack files: `sealed blob … || sealed header || length of the sealed header (u32, little endian)`.
//!
//! The header is one entry per blob, in the order of the blobs:
//! - plain: type (0 data, 1 tree), length (u32 LE), id (32);
//! - compressed: type (2 data, 3 tree), length (u32 LE), length of the plaintext (u32 LE), id (32).
//!
//! Lengths are those of the sealed blobs. Data and tree blobs never share a pack. Source: "Pack Format" in restic's doc/design.rst.

use std::borrow::Borrow;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::id::Id;
use crate::repository::crypto::{OVERHEAD, SealKey};

/// Bytes of the header's entry for a compressed blob; one for an uncompressed blob has 4 less.
const COMPRESSED_ENTRY: usize = 41;

/// What a blob holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlobKind {
    /// A chunk of a stream.
    Data,
    /// A directory.
    Tree,
}

/// A blob, compressed if that was worth it, and sealed.
#[derive(Debug)]
pub struct SealedBlob {
    /// SHA-256 of the plaintext.
    pub id: Id,
    /// What it holds.
    pub kind: BlobKind,
    /// The sealed bytes.
    pub sealed: Vec<u8>,
    /// Bytes before compression; `None` when it is stored uncompressed.
    pub raw_length: Option<u32>,
}

/// A blob's place in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedBlob {
    /// SHA-256 of the plaintext.
    pub id: Id,
    /// What it holds.
    pub kind: BlobKind,
    /// Where the sealed blob begins.
    pub offset: u32,
    /// Bytes of the sealed blob.
    pub length: u32,
    /// Bytes before compression; `None` when it is stored uncompressed.
    pub raw_length: Option<u32>,
}

impl PackedBlob {
    fn header_entry_len(&self) -> u64 {
        if self.raw_length.is_some() { COMPRESSED_ENTRY as u64 } else { 37 }
    }
}

/// The size of the pack that holds exactly these blobs.
pub fn file_size<B: Borrow<PackedBlob>>(blobs: impl Iterator<Item = B>) -> u64 {
    let payload: u64 = blobs.map(|blob| u64::from(blob.borrow().length) + blob.borrow().header_entry_len()).sum();
    payload + OVERHEAD as u64 + 4
}

/// A pack in the making, in memory.
#[derive(Debug)]
pub struct Builder {
    kind: BlobKind,
    bytes: Vec<u8>,
    blobs: Vec<PackedBlob>,
}

/// A finished pack: its bytes, its name, and what is in it.
#[derive(Debug)]
pub struct Finished {
    /// SHA-256 of the bytes.
    pub id: Id,
    /// The file.
    pub bytes: Vec<u8>,
    /// Its blobs, in order.
    pub blobs: Vec<PackedBlob>,
}

impl Builder {
    /// An empty pack for blobs of one kind.
    pub fn new(kind: BlobKind) -> Self {
        Self::with_buffer(kind, Vec::new())
    }

    /// An empty pack that is made in this buffer, which must be empty.
    pub fn with_buffer(kind: BlobKind, bytes: Vec<u8>) -> Self {
        Self { kind, bytes, blobs: Vec::new() }
    }

    /// Bytes so far, without the header.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True when no blob was added.
    pub fn is_empty(&self) -> bool {
        self.blobs.is_empty()
    }

    /// The size of the file, at most, if another blob of so many sealed bytes were added.
    pub fn size_with(&self, length: usize) -> u64 {
        (self.bytes.len() + length + (self.blobs.len() + 1) * COMPRESSED_ENTRY + OVERHEAD + 4) as u64
    }

    /// Adds a blob; `capacity` bytes are reserved at the first one.
    ///
    /// # Panics
    /// When the blob is of the other kind: a bug of the caller.
    pub fn add(&mut self, blob: &SealedBlob, capacity: usize) -> Result<(), Error> {
        assert_eq!(self.kind, blob.kind, "data and tree blobs never share a pack");
        if self.bytes.capacity() == 0 {
            self.bytes.reserve_exact(capacity.max(blob.sealed.len()));
        }
        self.add_sealed(blob.id, &blob.sealed, blob.raw_length)
    }

    /// Adds a blob of the pack's kind.
    pub fn add_sealed(&mut self, id: Id, sealed: &[u8], raw_length: Option<u32>) -> Result<(), Error> {
        let length_of =
            |length: usize| u32::try_from(length).map_err(|_| Error::Internal("a pack is too large".to_owned()));
        let (offset, length) = (length_of(self.bytes.len())?, length_of(sealed.len())?);
        self.blobs.push(PackedBlob { id, kind: self.kind, offset, length, raw_length });
        self.bytes.extend_from_slice(sealed);
        Ok(())
    }

    /// Seals the header and names the file. Hashes all bytes: call it off the async threads.
    pub fn finish(mut self, key: &SealKey) -> Result<Finished, Error> {
        let mut header = Vec::with_capacity(self.blobs.len() * COMPRESSED_ENTRY);
        for blob in &self.blobs {
            let kind = match (blob.kind, blob.raw_length) {
                (BlobKind::Data, None) => 0,
                (BlobKind::Tree, None) => 1,
                (BlobKind::Data, Some(_)) => 2,
                (BlobKind::Tree, Some(_)) => 3,
            };
            header.push(kind);
            header.extend_from_slice(&blob.length.to_le_bytes());
            if let Some(raw_length) = blob.raw_length {
                header.extend_from_slice(&raw_length.to_le_bytes());
            }
            header.extend_from_slice(blob.id.as_bytes());
        }
        let before = self.bytes.len();
        self.bytes.reserve_exact(header.len() + OVERHEAD + 4);
        key.seal_into(&header, &mut self.bytes)?;
        let header_len = u32::try_from(self.bytes.len() - before).map_err(Error::internal)?;
        self.bytes.extend_from_slice(&header_len.to_le_bytes());
        Ok(Finished { id: Id::of(&self.bytes), bytes: self.bytes, blobs: self.blobs })
    }
}

/// The blobs of a pack file, from its header. For rebuilding an index, for checks and for tests.
pub fn parse(name: &Id, bytes: &[u8], key: &SealKey) -> Result<Vec<PackedBlob>, Error> {
    parse_tail(name, bytes.len() as u64, bytes, key)
}

/// The bytes at the end of a pack that hold the header of these blobs, with its length.
pub fn tail_len<'a>(blobs: impl Iterator<Item = &'a PackedBlob>) -> u64 {
    blobs.map(PackedBlob::header_entry_len).sum::<u64>() + OVERHEAD as u64 + 4
}

/// The blobs of a pack file of `size` bytes, from its last bytes, among which the whole header must be.
pub fn parse_tail(name: &Id, size: u64, bytes: &[u8], key: &SealKey) -> Result<Vec<PackedBlob>, Error> {
    let damaged = |detail: &str| Error::damaged(format!("pack {name}"), detail);
    let short = || damaged("it is too short");
    let (rest, length) = bytes.split_last_chunk::<4>().ok_or_else(short)?;
    let header_len = u32::from_le_bytes(*length) as usize;
    let header_at = rest.len().checked_sub(header_len).ok_or_else(short)?;
    let payload = size.checked_sub((bytes.len() - header_at) as u64).ok_or_else(short)?;
    let header = key.open(&rest[header_at..]).map_err(|error| damaged(&error.to_string()))?;
    let (mut blobs, mut offset, mut entries) = (Vec::new(), 0_u32, header.as_slice());
    while let Some((&kind, after)) = entries.split_first() {
        let (kind, compressed) = match kind {
            0 => (BlobKind::Data, false),
            1 => (BlobKind::Tree, false),
            2 => (BlobKind::Data, true),
            3 => (BlobKind::Tree, true),
            other => return Err(damaged(&format!("its header has an entry of the unknown type {other}"))),
        };
        let (length, mut after) = after.split_first_chunk::<4>().ok_or_else(short)?;
        let mut raw_length = None;
        if compressed {
            let (raw, rest) = after.split_first_chunk::<4>().ok_or_else(short)?;
            (raw_length, after) = (Some(u32::from_le_bytes(*raw)), rest);
        }
        let (id, after) = after.split_first_chunk::<32>().ok_or_else(short)?;
        let length = u32::from_le_bytes(*length);
        blobs.push(PackedBlob { id: Id::from_bytes(*id), kind, offset, length, raw_length });
        offset = offset.checked_add(length).ok_or_else(short)?;
        entries = after;
    }
    if u64::from(offset) != payload {
        return Err(damaged("its blobs and its header do not add up"));
    }
    Ok(blobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_is_read_back_and_has_the_size_that_was_foretold() {
        let key = SealKey::generate().expect("random");
        let mut builder = Builder::new(BlobKind::Data);
        for i in 0..20_u32 {
            let plain = vec![i as u8; i as usize * 13];
            let raw_length = (i % 3 == 0).then_some(i * 100);
            let blob = SealedBlob {
                id: Id::of(&plain),
                kind: BlobKind::Data,
                sealed: key.seal(&plain).expect("seal"),
                raw_length,
            };
            builder.add(&blob, 1024).expect("fits");
        }
        let pack = builder.finish(&key).expect("finish");
        assert_eq!(pack.bytes.len() as u64, file_size(pack.blobs.iter()));
        assert_eq!(parse(&pack.id, &pack.bytes, &key).expect("parse"), pack.blobs);
        for cut in [0, 3, 4, 40, pack.bytes.len() - 1] {
            assert!(parse(&pack.id, &pack.bytes[..cut], &key).is_err(), "cut at {cut}");
        }
    }
}
