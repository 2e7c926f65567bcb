//! From sealed ranges of packs to plain bytes: read, open in place, decompress, hash.
//!
//! Memory: the plain bytes of a range lie in one buffer, which comes back to the [`Pool`] when the last reader has dropped its piece, so
//! that gigabytes pass through a few buffers instead of as many fresh pages.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Semaphore;

use super::ranges::{RAW_MAX, Range, Wanted, raw_length};
use crate::blocking;
use crate::error::Error;
use crate::id::Id;
use crate::repository::Repository;
use crate::repository::crypto::{OVERHEAD, SealKey};
use crate::repository::pack::PackedBlob;

/// The largest chunk that restic's format knows of in practice; a claim of more is damage, and would cost memory.
const MAX_BLOB: usize = 64 << 20;
/// Idle buffers of [`RAW_MAX`] bytes that are kept for the next range.
const IDLE_BUFFERS: usize = 3;

/// Buffers of [`RAW_MAX`] bytes.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    fn take(self: &Arc<Self>, length: usize) -> Pooled {
        let reused = if length <= RAW_MAX { self.idle().pop() } else { None };
        let bytes = reused.unwrap_or_else(|| vec![0; length.max(RAW_MAX)]);
        Pooled { bytes, pool: Arc::clone(self) }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer that goes back to its pool.
struct Pooled {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let mut idle = self.pool.idle();
        if self.bytes.len() == RAW_MAX && idle.len() < IDLE_BUFFERS {
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}

/// The sealed bytes of a range. A pack that is missing or too short is [`Error::Damaged`], one that is archived is
/// [`crate::store::Error::Archived`].
pub(crate) async fn fetch(repository: &Repository, range: &Range) -> Result<Bytes, Error> {
    repository.pack_range(&range.pack, range.start.into()..range.end.into()).await
}

/// Reads a range and hands out its plain bytes in order, in as few pieces as can be. `workers` limits how many ranges are decoded at
/// once.
pub(crate) async fn read(
    repository: Arc<Repository>,
    range: Range,
    pool: Arc<Pool>,
    workers: Arc<Semaphore>,
) -> Result<Vec<Bytes>, Error> {
    let sealed = fetch(&repository, &range).await?;
    let permit = workers.acquire_owned().await.map_err(Error::internal)?;
    let key = repository.key().clone();
    blocking::run(move || {
        let _permit = permit;
        decode(&key, sealed, &range, &pool)
    })
    .await
}

fn decode(key: &SealKey, sealed: Bytes, range: &Range, pool: &Arc<Pool>) -> Result<Vec<Bytes>, Error> {
    let damaged =
        |id: &Id, detail: String| Error::damaged(format!("pack {}", range.pack), format!("blob {id}: {detail}"));
    if let Some(large) = range.blobs.iter().find(|blob| raw_length(&blob.place) > MAX_BLOB) {
        return Err(damaged(&large.id, "it is too large".to_owned()));
    }
    // Bytes that nobody else holds are opened where they are.
    let mut sealed = sealed.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    let mut plain = pool.take(range.raw);
    let (mut at, mut cuts) = (0, Vec::new());
    for blob in &range.blobs {
        let length = raw_length(&blob.place);
        let output = &mut plain.bytes[at..at + length];
        decode_blob(key, slice_of(&mut sealed, range, blob), &blob.id, blob.place.raw_length().is_some(), output)
            .map_err(|detail| damaged(&blob.id, detail))?;
        if blob.times > 1 {
            cuts.push((at, at + length, blob.times));
        }
        at += length;
    }
    Ok(pieces(Bytes::from_owner(plain), at, &cuts))
}

/// `bytes[..end]`, with the blobs that are wanted several times repeated.
fn pieces(bytes: Bytes, end: usize, cuts: &[(usize, usize, u32)]) -> Vec<Bytes> {
    let (mut pieces, mut at) = (Vec::new(), 0);
    for (from, to, times) in cuts {
        if at < *from {
            pieces.push(bytes.slice(at..*from));
        }
        let repeated = bytes.slice(*from..*to);
        pieces.extend((0..*times).map(|_| repeated.clone()));
        at = *to;
    }
    if at < end {
        pieces.push(bytes.slice(at..end));
    }
    pieces
}

/// The blob's part of the range's sealed bytes.
fn slice_of<'a>(sealed: &'a mut [u8], range: &Range, blob: &Wanted) -> &'a mut [u8] {
    let at = (blob.place.offset - range.start) as usize;
    &mut sealed[at..at + blob.place.length as usize]
}

/// Opens, decompresses and hashes one blob into `output`, which has the length of its plaintext. `sealed` is spoiled.
fn decode_blob(key: &SealKey, sealed: &mut [u8], id: &Id, compressed: bool, output: &mut [u8]) -> Result<(), String> {
    let opened = key.open_in_place(sealed).map_err(|error| error.to_string())?;
    if compressed {
        let length =
            blocking::with_decompressor(|decompressor| decompressor.decompress_to_buffer(opened, &mut *output))
                .map_err(|error| error.to_string())?;
        if length != output.len() {
            return Err(format!("it has {length} bytes instead of {}", output.len()));
        }
    } else if opened.len() == output.len() {
        output.copy_from_slice(opened);
    } else {
        return Err("its length is not what the index says".to_owned());
    }
    if Id::of(output) != *id {
        return Err("its bytes are not those that its id stands for".to_owned());
    }
    Ok(())
}

/// Checks every blob of the range and gives back what is wrong with which. Nothing is handed out.
pub(crate) fn verify(key: &SealKey, sealed: Bytes, range: &Range, pool: &Arc<Pool>) -> Vec<(Id, String)> {
    let mut sealed = sealed.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    let check = |blob: &Wanted| {
        let compressed = blob.place.raw_length().is_some();
        verify_blob(key, slice_of(&mut sealed, range, blob), &blob.id, compressed, raw_length(&blob.place), pool)
    };
    range.blobs.iter().map(check).filter_map(Result::err).collect()
}

/// Checks every blob of a whole pack, as its header tells them.
pub(crate) fn verify_pack(key: &SealKey, pack: Bytes, blobs: &[PackedBlob], pool: &Arc<Pool>) -> Vec<(Id, String)> {
    let mut pack = pack.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    let check = |blob: &PackedBlob| {
        let from = blob.offset as usize;
        let sealed = pack.get_mut(from..from.saturating_add(blob.length as usize));
        let sealed = sealed.ok_or_else(|| (blob.id, "it reaches past the pack's end".to_owned()))?;
        let raw_length = blob.raw_length.unwrap_or(blob.length.saturating_sub(OVERHEAD as u32)) as usize;
        verify_blob(key, sealed, &blob.id, blob.raw_length.is_some(), raw_length, pool)
    };
    blobs.iter().map(check).filter_map(Result::err).collect()
}

fn verify_blob(
    key: &SealKey,
    sealed: &mut [u8],
    id: &Id,
    compressed: bool,
    raw_length: usize,
    pool: &Arc<Pool>,
) -> Result<(), (Id, String)> {
    if raw_length > MAX_BLOB {
        return Err((*id, "it is too large".to_owned()));
    }
    let mut plain = pool.take(raw_length);
    decode_blob(key, sealed, id, compressed, &mut plain.bytes[..raw_length]).map_err(|detail| (*id, detail))
}
