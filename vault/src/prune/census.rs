//! The census of a repository: which pack holds which blobs, which of them are needed, and which pack is kept for each.
//!
//! Invariants:
//! - Memory is 25 bytes for each blob and about 100 for each pack: a blob is known by the first 16 bytes of its id. Two blobs that shared
//!   them would be taken for one that lies in two packs; that 2^64 blobs are wanted for such a pair is what makes it safe.
//! - A blob that is needed has exactly one *holder*: the pack that is kept for it. Packs that must not be relied on (missing, damaged,
//!   marked) are holders only when nothing else has the blob.
//! - Index files are read before packs are listed: what an index file names was stored before it, so that a pack which is not listed
//!   is really gone.

use std::collections::{HashMap, HashSet};

use futures::StreamExt as _;

use crate::error::Error;
use crate::id::Id;
use crate::repository::index::IndexFile;
use crate::repository::pack::{self, BlobKind};
use crate::repository::{PACKS, Repository};
use crate::store;

/// Entries that are reserved at once, so that memory is not doubled to grow.
const GROWTH: usize = 1 << 20;

/// Why a blob is needed; the first that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    Listed = 1,
    SoftDeleted = 2,
    Unpublished = 3,
}

#[derive(Debug, Clone, Copy)]
struct Blob {
    key: [u8; 16],
    pack: u32,
    length: u32,
}

/// Where a tree lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct TreePlace {
    pub(super) pack: u32,
    pub(super) offset: u32,
    pub(super) length: u32,
    pub(super) raw_length: Option<u32>,
}

/// A pack that an index names.
#[derive(Debug)]
pub(super) struct Pack {
    pub(super) id: Id,
    /// As its blobs foretell it.
    pub(super) size: u64,
    /// It is there, with that size.
    pub(super) sound: bool,
    /// Why it is kept; `None`: it is no blob's holder.
    pub(super) need: Option<Need>,
    /// Bytes of its blobs.
    pub(super) blob_bytes: u64,
    /// Of those that are needed, here or elsewhere.
    pub(super) needed_bytes: u64,
    /// Of those that it is the holder of.
    pub(super) held_bytes: u64,
}

/// An index file that was read.
#[derive(Debug)]
pub(super) struct File {
    pub(super) id: Id,
    pub(super) blobs: usize,
    pub(super) packs: Vec<u32>,
    /// It names a pack that a file before it names, too.
    pub(super) repeats: bool,
}

/// A pack file that is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Present {
    pub(super) size: u64,
    /// The store forbids its deletion.
    pub(super) protected: bool,
}

#[derive(Debug, Default)]
pub(super) struct Census {
    blobs: Vec<Blob>,
    /// By the first of the blobs of one key; 0: not needed.
    needs: Vec<u8>,
    pub(super) packs: Vec<Pack>,
    numbers: HashMap<Id, u32>,
    trees: HashMap<Id, Vec<TreePlace>>,
    pub(super) files: Vec<File>,
    pub(super) present: HashMap<Id, Present>,
    /// Index files that cannot be used.
    pub(super) damaged_files: Vec<String>,
    /// Blobs that are needed and that no index names, or whose packs are all unsound; the first few by name.
    pub(super) lost: u64,
    pub(super) lost_names: Vec<Id>,
}

/// Packs that should not be relied on.
#[derive(Debug, Default)]
pub(super) struct Shunned {
    pub(super) damaged: HashSet<Id>,
    pub(super) doomed: HashSet<Id>,
    pub(super) marked: HashSet<Id>,
}

impl Census {
    /// Reads every index file, then lists the packs.
    pub(super) async fn take(repository: &Repository, now: jiff::Timestamp) -> Result<Self, Error> {
        let mut census = Self::default();
        repository
            .each_index_file(|id, file| match file {
                Ok(file) => census.add_file(id, &file),
                Err(damage) => census.damaged_files.push(damage),
            })
            .await?;
        let mut entries = store::list(&**repository.store(), PACKS);
        while let Some(entry) = entries.next().await {
            let entry = entry?;
            if let Ok(id) = entry.key.name().parse::<Id>() {
                let protected = entry.protection.forbids_deletion(now);
                census.present.insert(id, Present { size: entry.size, protected });
            }
        }
        drop(entries);
        for pack in &mut census.packs {
            pack.sound = census.present.get(&pack.id).is_some_and(|present| present.size == pack.size);
        }
        census.blobs.sort_unstable_by(|a, b| a.key.cmp(&b.key).then(a.pack.cmp(&b.pack)));
        census.needs = vec![0; census.blobs.len()];
        Ok(census)
    }

    fn add_file(&mut self, id: Id, file: &IndexFile) {
        let mut listed = File { id, blobs: 0, packs: Vec::with_capacity(file.packs.len()), repeats: false };
        for pack in &file.packs {
            if let Some(number) = self.numbers.get(&pack.id) {
                listed.repeats = true;
                listed.packs.push(*number);
                continue;
            }
            let blobs = match pack.packed_blobs() {
                Ok(blobs) => blobs,
                Err(detail) => {
                    // The file is left as it is, and what it names is not taken for leftover.
                    self.damaged_files.push(format!("index {id} is damaged: {detail}"));
                    return;
                }
            };
            let number = u32::try_from(self.packs.len()).unwrap_or(u32::MAX);
            let blob_bytes = blobs.iter().map(|blob| u64::from(blob.length)).sum();
            self.packs.push(Pack {
                id: pack.id,
                size: pack::file_size(blobs.iter()),
                sound: false,
                need: None,
                blob_bytes,
                needed_bytes: 0,
                held_bytes: 0,
            });
            self.numbers.insert(pack.id, number);
            if self.blobs.capacity() - self.blobs.len() < blobs.len() {
                self.blobs.reserve_exact(blobs.len().max(GROWTH));
            }
            for blob in &blobs {
                self.blobs.push(Blob { key: key_of(&blob.id), pack: number, length: blob.length });
                if blob.kind == BlobKind::Tree {
                    let (offset, length, raw_length) = (blob.offset, blob.length, blob.raw_length);
                    let place = TreePlace { pack: number, offset, length, raw_length };
                    self.trees.entry(blob.id).or_default().push(place);
                }
            }
            listed.blobs += blobs.len();
            listed.packs.push(number);
        }
        self.files.push(listed);
    }

    /// Where the tree lies, the soundest place first.
    pub(super) fn tree_places(&self, id: &Id) -> Vec<TreePlace> {
        let mut places = self.trees.get(id).cloned().unwrap_or_default();
        places.sort_by_key(|place| !self.packs[place.pack as usize].sound);
        places
    }

    /// Notes that the blob is needed. Call it for the stronger needs first.
    pub(super) fn need(&mut self, id: &Id, need: Need) {
        let key = key_of(id);
        let first = self.blobs.partition_point(|blob| blob.key < key);
        match self.blobs.get(first) {
            Some(blob) if blob.key == key => {
                if self.needs[first] == 0 {
                    self.needs[first] = need as u8;
                }
            }
            _ => self.note_lost(*id),
        }
    }

    fn note_lost(&mut self, id: Id) {
        self.lost += 1;
        if self.lost_names.len() < 10 {
            self.lost_names.push(id);
        }
    }

    /// Chooses a holder for every blob that is needed.
    pub(super) fn choose_holders(&mut self, shunned: &Shunned) {
        let runs = |blobs: &[Blob], first: usize| {
            first + blobs[first..].iter().take_while(|blob| blob.key == blobs[first].key).count()
        };
        let mut first = 0;
        while first < self.blobs.len() {
            let end = runs(&self.blobs, first);
            if self.needs[first] != 0 {
                for blob in &self.blobs[first..end] {
                    self.packs[blob.pack as usize].needed_bytes += u64::from(blob.length);
                }
            }
            first = end;
        }
        // Blobs that one pack has leave no choice; those that several have then prefer a pack that is kept anyway.
        for alone in [true, false] {
            first = 0;
            while first < self.blobs.len() {
                let end = runs(&self.blobs, first);
                if let Some(need) = need_of(self.needs[first])
                    && (end - first == 1) == alone
                {
                    let best = self.blobs[first..end].iter().min_by_key(|blob| self.rank(blob.pack, shunned)).copied();
                    if let Some(blob) = best {
                        let pack = &mut self.packs[blob.pack as usize];
                        pack.need = Some(pack.need.map_or(need, |other| other.min(need)));
                        pack.held_bytes += u64::from(blob.length);
                        if !pack.sound {
                            self.lost += 1;
                        }
                    }
                }
                first = end;
            }
        }
    }

    /// The least is the best holder. Among equals a pack that is kept anyway, then the one with the least waste.
    fn rank(&self, number: u32, shunned: &Shunned) -> (bool, bool, bool, bool, bool, u64, Id) {
        let pack = &self.packs[number as usize];
        let waste = (pack.blob_bytes - pack.needed_bytes) * 1000 / pack.blob_bytes.max(1);
        (
            !pack.sound,
            shunned.damaged.contains(&pack.id),
            shunned.doomed.contains(&pack.id),
            shunned.marked.contains(&pack.id),
            pack.need.is_none(),
            waste,
            pack.id,
        )
    }

    /// True when the pack is the holder of a blob that is needed.
    pub(super) fn is_holder(&self, id: &Id) -> bool {
        self.numbers.get(id).is_some_and(|number| self.packs[*number as usize].need.is_some())
    }

    /// True when an index names it.
    pub(super) fn is_indexed(&self, id: &Id) -> bool {
        self.numbers.contains_key(id)
    }

    /// True when everything that is needed was found, so that what no index names is needed by nothing.
    pub(super) fn is_complete(&self) -> bool {
        self.lost == 0 && self.damaged_files.is_empty()
    }
}

fn key_of(id: &Id) -> [u8; 16] {
    let mut key = [0; 16];
    key.copy_from_slice(&id.as_bytes()[..16]);
    key
}

fn need_of(byte: u8) -> Option<Need> {
    match byte {
        1 => Some(Need::Listed),
        2 => Some(Need::SoftDeleted),
        3 => Some(Need::Unpublished),
        _ => None,
    }
}
