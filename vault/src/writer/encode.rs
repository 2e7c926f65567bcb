//! What is done to each new blob off the async threads: compress, seal.

use std::io::Cursor;
use std::sync::{Mutex, PoisonError};

use zstd::bulk::Compressor;

use super::Compression;
use super::buffers::{Buffer, Buffers};
use crate::error::Error;
use crate::id::Id;
use crate::repository::crypto::{NONCE_LEN, SealKey};
use crate::repository::pack::{BlobKind, SealedBlob};

/// A blob that is ready for its pack.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) id: Id,
    /// The sealed bytes.
    pub(super) sealed: Buffer,
    /// Bytes before compression; `None` when it is stored uncompressed.
    pub(super) raw_length: Option<u32>,
}

/// Compressors are kept: each has a MiB of tables, which to make anew costs as much as some chunks.
#[derive(Default)]
pub(super) struct Encoder {
    compression: Compression,
    ready: Mutex<Vec<Compressor<'static>>>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("compression", &self.compression).finish_non_exhaustive()
    }
}

impl Encoder {
    pub(super) fn new(compression: Compression) -> Self {
        Self { compression, ready: Mutex::default() }
    }

    /// Compresses the blob if that makes it smaller, and seals it.
    pub(super) fn encode(&self, id: Id, mut plain: Buffer, key: &SealKey, buffers: &Buffers) -> Result<Encoded, Error> {
        let length = plain.plain().len();
        if let Some(mut sealed) = self.compress(&plain, buffers)? {
            buffers.put(plain);
            sealed.seal(key)?;
            return Ok(Encoded { id, sealed, raw_length: Some(u32::try_from(length).map_err(Error::internal)?) });
        }
        plain.seal(key)?;
        Ok(Encoded { id, sealed: plain, raw_length: None })
    }

    fn compress(&self, plain: &Buffer, buffers: &Buffers) -> Result<Option<Buffer>, Error> {
        let Compression::Level(level) = self.compression else { return Ok(None) };
        let kept = self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut compressor = match kept {
            Some(compressor) => compressor,
            None => Compressor::new(level).map_err(Error::internal)?,
        };
        let source = plain.plain();
        let mut out = buffers.get(zstd::zstd_safe::compress_bound(source.len()));
        let mut room = Cursor::new(out.bytes_mut());
        room.set_position(NONCE_LEN as u64);
        let compressed = compressor.compress_to_buffer(source, &mut room).map_err(Error::internal)?;
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).push(compressor);
        if compressed < source.len() {
            return Ok(Some(out));
        }
        buffers.put(out);
        Ok(None)
    }
}

/// The blob of a tree, compressed if that makes it smaller. Level 3: trees are small beside the data.
pub(super) fn tree(id: Id, plain: &[u8], key: &SealKey) -> Result<SealedBlob, Error> {
    let compressed = zstd::bulk::compress(plain, 3).map_err(Error::internal)?;
    let (bytes, raw_length) = if compressed.len() < plain.len() {
        (compressed.as_slice(), Some(u32::try_from(plain.len()).map_err(Error::internal)?))
    } else {
        (plain, None)
    };
    Ok(SealedBlob { id, kind: BlobKind::Tree, sealed: key.seal(bytes)?, raw_length })
}
