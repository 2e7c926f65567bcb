//! Index files: sealed JSON (`{"packs":[{"id", "blobs":[…]}]}`), named by the SHA-256 of their bytes. Source: "Indexing" in restic's
//! doc/design.rst.

use serde::{Deserialize, Serialize};

use crate::id::Id;
use crate::repository::pack::{BlobKind, PackedBlob};

/// What an index file holds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct IndexFile {
    /// Index files that this one replaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub supersedes: Vec<Id>,
    /// Packs, each with all of its blobs.
    pub packs: Vec<IndexPack>,
}

/// A pack and what is in it.
#[derive(Debug, Serialize, Deserialize)]
pub struct IndexPack {
    /// Its name.
    pub id: Id,
    pub(super) blobs: Vec<IndexBlob>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct IndexBlob {
    id: Id,
    #[serde(rename = "type")]
    kind: BlobKind,
    offset: u32,
    length: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    uncompressed_length: u32,
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl IndexPack {
    /// A pack with these blobs.
    pub fn new(id: Id, blobs: &[PackedBlob]) -> Self {
        let blobs = blobs.iter().map(|blob| IndexBlob {
            id: blob.id,
            kind: blob.kind,
            offset: blob.offset,
            length: blob.length,
            uncompressed_length: blob.raw_length.unwrap_or(0),
        });
        Self { id, blobs: blobs.collect() }
    }

    /// How many blobs are in it.
    pub fn len(&self) -> usize {
        self.blobs.len()
    }

    /// True when no blob is in it.
    pub fn is_empty(&self) -> bool {
        self.blobs.is_empty()
    }

    /// The blobs, in the order in which they lie in the pack. Fails when they do not lie side by side from its beginning, which is what
    /// a pack's header says of them.
    pub fn packed_blobs(&self) -> Result<Vec<PackedBlob>, String> {
        let mut blobs: Vec<PackedBlob> = self.blobs.iter().map(IndexBlob::packed).collect();
        blobs.sort_unstable_by_key(|blob| (blob.offset, blob.length));
        let mut end = 0_u32;
        for blob in &blobs {
            if blob.offset != end {
                return Err(format!("the blobs of pack {} do not lie side by side", self.id));
            }
            end = end.checked_add(blob.length).ok_or_else(|| format!("pack {} reaches past 4 GiB", self.id))?;
        }
        Ok(blobs)
    }
}

impl IndexBlob {
    fn packed(&self) -> PackedBlob {
        let raw_length = (self.uncompressed_length != 0).then_some(self.uncompressed_length);
        PackedBlob { id: self.id, kind: self.kind, offset: self.offset, length: self.length, raw_length }
    }
}
