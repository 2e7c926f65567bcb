//! Buffers of chunks that are used again and again, because memory that is given back and taken anew at every chunk costs more than
//! hashing it.

use std::sync::{Mutex, PoisonError};

use super::chunker;
use crate::error::Error;
use crate::repository::crypto::{NONCE_LEN, OVERHEAD, SealKey};

/// Bytes that are asked of the input at once at most: a pipe of the greatest size that needs no privilege holds four of them, and a
/// second-level cache one.
pub(super) const PIECE: usize = 256 << 10;

/// What a buffer reserves; the system gives memory only to what is written of it. A largest chunk, the piece that reached past it, and
/// what sealing and compressing add.
const CAPACITY: usize = chunker::MAX + PIECE + OVERHEAD;

/// Memory of buffers that wait for their next use, at most: fresh pages for every chunk cost more than cutting it.
const WAITING: usize = 16 << 20;

/// Room for a nonce, and then the bytes of a blob.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    /// The most that it has held.
    touched: usize,
}

impl Buffer {
    fn new(capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity.max(CAPACITY));
        bytes.resize(NONCE_LEN, 0);
        Self { bytes, touched: 0 }
    }

    /// The blob's bytes, before they are sealed.
    pub(super) fn plain(&self) -> &[u8] {
        &self.bytes[NONCE_LEN..]
    }

    /// All of it: what is appended is the blob's.
    pub(super) fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The sealed bytes, after [`Buffer::seal`].
    pub(super) fn sealed(&self) -> &[u8] {
        &self.bytes
    }

    /// Moves all but the first `length` bytes of the blob to `rest`, which is emptied before.
    pub(super) fn split_off(&mut self, length: usize, rest: &mut Vec<u8>) {
        self.touched = self.touched.max(self.bytes.len());
        rest.clear();
        rest.extend_from_slice(&self.bytes[NONCE_LEN + length..]);
        self.bytes.truncate(NONCE_LEN + length);
    }

    pub(super) fn seal(&mut self, key: &SealKey) -> Result<(), Error> {
        key.seal_in_place(&mut self.bytes)
    }
}

/// Buffers that wait for their next use; the one that was put back last comes first, because a processor's cache may still hold it.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    buffers: Vec<Buffer>,
    /// What they have touched.
    bytes: usize,
}

impl Buffers {
    /// An empty buffer for `length` bytes; more than a largest chunk may be asked for.
    pub(super) fn get(&self, length: usize) -> Buffer {
        let kept = if length + OVERHEAD <= CAPACITY { self.lock().pop() } else { None };
        kept.unwrap_or_else(|| Buffer::new(length + OVERHEAD))
    }

    /// Takes a buffer back.
    pub(super) fn put(&self, mut buffer: Buffer) {
        buffer.touched = buffer.touched.max(buffer.bytes.len());
        buffer.bytes.truncate(NONCE_LEN);
        let mut waiting = self.lock();
        if waiting.bytes + buffer.touched <= WAITING {
            waiting.bytes += buffer.touched;
            waiting.buffers.push(buffer);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn pop(&mut self) -> Option<Buffer> {
        let buffer = self.buffers.pop()?;
        self.bytes -= buffer.touched;
        Some(buffer)
    }
}
