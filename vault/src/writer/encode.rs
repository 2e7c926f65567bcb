//! What is done to each blob on the blocking pool: hash, look up, compress, seal.

use std::cell::RefCell;

use zstd::bulk::Compressor;

use crate::error::Error;
use crate::id::Id;
use crate::repository::crypto::SealKey;
use crate::repository::pack::{BlobKind, SealedBlob};

/// A blob that went through.
#[derive(Debug)]
pub(super) struct Encoded {
    /// SHA-256 of the plaintext.
    pub(super) id: Id,
    /// Bytes of the plaintext.
    pub(super) raw_length: usize,
    /// The sealed blob, when the repository does not have it yet.
    pub(super) new: Option<SealedBlob>,
}

thread_local! {
    /// A compressor keeps some hundred KiB of tables; the pool's threads keep theirs.
    static COMPRESSOR: RefCell<Option<(i32, Compressor<'static>)>> = const { RefCell::new(None) };
}

/// `claim` says whether the blob is new, and keeps others from storing it too. It is asked before anything is compressed.
pub(super) fn encode(
    kind: BlobKind,
    plain: &[u8],
    key: &SealKey,
    level: i32,
    claim: impl FnOnce(&Id) -> bool,
) -> Result<Encoded, Error> {
    let id = Id::of(plain);
    let raw_length = plain.len();
    if !claim(&id) {
        return Ok(Encoded { id, raw_length, new: None });
    }
    let compressed = compress(plain, level).map_err(Error::internal)?;
    let blob = if compressed.len() < plain.len() {
        let raw_length = u32::try_from(plain.len()).map_err(Error::internal)?;
        SealedBlob { id, kind, sealed: key.seal(&compressed)?, raw_length: Some(raw_length) }
    } else {
        SealedBlob { id, kind, sealed: key.seal(plain)?, raw_length: None }
    };
    Ok(Encoded { id, raw_length, new: Some(blob) })
}

fn compress(plain: &[u8], level: i32) -> std::io::Result<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|slot| {
        if slot.as_ref().is_none_or(|(ready, _)| *ready != level) {
            *slot = Some((level, Compressor::new(level)?));
        }
        let (_, compressor) = slot.as_mut().expect("set just above");
        compressor.compress(plain)
    })
}
