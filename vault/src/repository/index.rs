//! Index files, and the index in memory: which blob lies where.
//!
//! Memory: 48 bytes for each blob, 40 for each pack. Index files are sealed JSON (`{"packs":[{"id", "blobs":[…]}]}`), named by the
//! SHA-256 of their bytes. Source: "Indexing" in restic's doc/design.rst. A damaged index file is remembered, not fatal: what it told
//! may stand in another one, and only a blob that is needed and not found is a failure.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::id::Id;
use crate::repository::pack::{self, BlobKind, PackedBlob};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct IndexFile {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) supersedes: Vec<Id>,
    pub(crate) packs: Vec<IndexPack>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct IndexPack {
    pub(crate) id: Id,
    pub(crate) blobs: Vec<IndexBlob>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct IndexBlob {
    id: Id,
    #[serde(rename = "type")]
    kind: String,
    offset: u32,
    length: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    uncompressed_length: u32,
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl IndexPack {
    pub(crate) fn new(id: Id, blobs: &[PackedBlob]) -> Self {
        let blobs = blobs
            .iter()
            .map(|blob| IndexBlob {
                id: blob.id,
                kind: match blob.kind {
                    BlobKind::Data => "data".to_owned(),
                    BlobKind::Tree => "tree".to_owned(),
                },
                offset: blob.offset,
                length: blob.length,
                uncompressed_length: blob.raw_length.unwrap_or(0),
            })
            .collect();
        Self { id, blobs }
    }

    fn packed_blobs(&self) -> Result<Vec<PackedBlob>, String> {
        self.blobs
            .iter()
            .map(|blob| {
                let kind = match blob.kind.as_str() {
                    "data" => BlobKind::Data,
                    "tree" => BlobKind::Tree,
                    other => return Err(format!("it names a blob of the unknown type {other:?}")),
                };
                if blob.offset.checked_add(blob.length).is_none() {
                    return Err("a blob reaches past 4 GiB".to_owned());
                }
                let raw_length = (blob.uncompressed_length != 0).then_some(blob.uncompressed_length);
                Ok(PackedBlob { id: blob.id, kind, offset: blob.offset, length: blob.length, raw_length })
            })
            .collect()
    }
}

/// A pack that the index knows.
#[derive(Debug, Clone, Copy)]
pub struct Pack {
    /// Its name.
    pub id: Id,
    /// Its size in bytes, as its blobs foretell it.
    pub size: u64,
}

/// A blob's place.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The number of the pack in [`Index::pack`].
    pub pack: u32,
    /// Where the sealed blob begins.
    pub offset: u32,
    /// Bytes of the sealed blob.
    pub length: u32,
    /// Bytes before compression; 0 when it is stored uncompressed.
    raw_length: u32,
}

impl Place {
    /// Bytes before compression; `None` when it is stored uncompressed.
    pub fn raw_length(&self) -> Option<u32> {
        (self.raw_length != 0).then_some(self.raw_length)
    }
}

/// Where every blob of a repository is.
#[derive(Debug, Default)]
pub struct Index {
    packs: Vec<Pack>,
    pack_numbers: HashMap<Id, u32>,
    blobs: HashMap<Id, Place>,
    damaged: Vec<String>,
}

impl Index {
    /// Adds a pack and its blobs; one that is known already is left as it is.
    pub fn add_pack(&mut self, id: Id, blobs: &[PackedBlob]) -> Result<u32, Error> {
        if let Some(number) = self.pack_numbers.get(&id) {
            return Ok(*number);
        }
        let number = u32::try_from(self.packs.len()).map_err(Error::internal)?;
        self.packs.push(Pack { id, size: pack::file_size(blobs.iter()) });
        self.pack_numbers.insert(id, number);
        for blob in blobs {
            let (offset, length) = (blob.offset, blob.length);
            self.blobs.entry(blob.id).or_insert(Place {
                pack: number,
                offset,
                length,
                raw_length: blob.raw_length.unwrap_or(0),
            });
        }
        Ok(number)
    }

    /// Adds what the file names of the packs that are there, with the right size; the others are remembered as damage.
    pub(crate) fn add_file(&mut self, file: &IndexFile, there: &HashMap<Id, u64>) -> Result<(), String> {
        for pack in &file.packs {
            let blobs = pack.packed_blobs()?;
            match (there.get(&pack.id), pack::file_size(blobs.iter())) {
                (Some(actual), size) if *actual == size => {
                    self.add_pack(pack.id, &blobs).map_err(|error| error.to_string())?;
                }
                (Some(actual), size) => {
                    self.damaged.push(format!("pack {} has {actual} bytes instead of {size}", pack.id));
                }
                (None, _) => self.damaged.push(format!("pack {} is missing", pack.id)),
            }
        }
        Ok(())
    }

    pub(crate) fn note_damaged(&mut self, what: String) {
        self.damaged.push(what);
    }

    /// Index files that could not be used, and packs that are missing or have another size.
    pub fn damaged(&self) -> &[String] {
        &self.damaged
    }

    /// The blob's place, if it is known.
    pub fn get(&self, id: &Id) -> Option<&Place> {
        self.blobs.get(id)
    }

    /// The blob's place; a blob that is needed and not known is damage.
    pub fn find(&self, id: &Id) -> Result<Place, Error> {
        self.get(id).copied().ok_or_else(|| {
            let detail = match self.damaged.first() {
                Some(first) => format!("it is lost; {first}"),
                None => "no index names it".to_owned(),
            };
            Error::damaged(format!("blob {id}"), detail)
        })
    }

    /// The pack of that number.
    pub fn pack(&self, number: u32) -> Pack {
        self.packs[number as usize]
    }
}
