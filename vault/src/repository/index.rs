//! The index in memory: which blob lies where.
//!
//! ```text
//! packs:   id, number of its first blob             36 bytes each, numbered from 0
//! blobs:   id, length, length before compression    40 bytes each, numbered from 0, in the order of packs and in packs
//! tables:  number of a pack or a blob by its id     4 bytes a slot, at least 73 % full (`table.rs`)
//! ```
//! Invariants:
//! - Memory: at most 48 bytes for each blob, with all that belongs to it. Nothing is ever copied as a whole to make room, so this also
//!   holds while the index is loaded.
//! - A blob's offset is the sum of the lengths before it in its pack, which is looked up by number: neither is stored.
//! - Numbers are dense and never change, so a bit for each blob is enough to mark blobs.
//! - A blob that lies in several packs has several numbers. Looking it up finds the one that was added first; the others are seen only
//!   when the packs are walked through.
//! - A damaged index file is remembered, not fatal: what it told may stand in another one, and only a blob that is needed and not found
//!   is a failure.

use std::collections::HashMap;

use crate::error::Error;
use crate::id::Id;
use crate::repository::pack::{self, BlobKind, PackedBlob};

mod file;
mod table;

pub use file::{IndexFile, IndexPack};
use table::Table;

/// Blobs, or packs, that are given memory at once: 160 KiB of blobs, little for a small repository and far from the many tiny pieces that
/// an allocator is slow with.
const BLOCK: usize = 4096;
/// Marks the length of a tree blob. Blobs are far smaller than 2 GiB.
const TREE: u32 = 1 << 31;

/// A pack that the index knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pack {
    /// Its name.
    pub id: Id,
    /// Its size in bytes, as its blobs foretell it.
    pub size: u64,
}

/// A blob's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The blob's own number.
    pub number: u32,
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

#[derive(Debug)]
struct PackEntry {
    id: Id,
    first: u32,
}

#[derive(Debug)]
struct BlobEntry {
    id: Id,
    /// With [`TREE`].
    length: u32,
    raw_length: u32,
}

impl BlobEntry {
    fn length(&self) -> u32 {
        self.length & !TREE
    }
}

/// Where every blob of a repository is.
#[derive(Debug, Default)]
pub struct Index {
    packs: Blocks<PackEntry>,
    blobs: Blocks<BlobEntry>,
    pack_numbers: Table,
    blob_numbers: Table,
    damaged: Vec<String>,
}

impl Index {
    /// Adds a pack and its blobs, which lie side by side in it; one that is known already is left as it is. Returns its number.
    pub fn add_pack(&mut self, id: Id, blobs: &[PackedBlob]) -> Result<u32, Error> {
        if let Some(number) = self.pack_number(&id) {
            return Ok(number);
        }
        let too_many = || Error::Internal("the repository has too many blobs for this program".to_owned());
        if self.blobs.len() + blobs.len() >= table::MAX_NUMBER as usize {
            return Err(too_many());
        }
        let pack_number = u32::try_from(self.packs.len()).map_err(|_| too_many())?;
        let first = u32::try_from(self.blobs.len()).map_err(|_| too_many())?;
        self.packs.push(PackEntry { id, first });
        self.pack_numbers.put(&id, pack_number, |number| &self.packs.get(number).id);
        for (number, blob) in (first..).zip(blobs) {
            let kind = if blob.kind == BlobKind::Tree { TREE } else { 0 };
            let (length, raw_length) = (blob.length | kind, blob.raw_length.unwrap_or(0));
            self.blobs.push(BlobEntry { id: blob.id, length, raw_length });
            let id_of = |number| &self.blobs.get(number).id;
            if self.blob_numbers.get(&blob.id, id_of).is_none() {
                self.blob_numbers.put(&blob.id, number, id_of);
            }
        }
        Ok(pack_number)
    }

    /// Adds what the file names of the packs that are there, with the right size; the others are remembered as damage. Packs that
    /// `set_aside` takes are not added.
    pub(crate) fn add_file(
        &mut self,
        file: IndexFile,
        there: &HashMap<Id, u64>,
        mut set_aside: impl FnMut(IndexPack) -> Option<IndexPack>,
    ) -> Result<(), String> {
        for pack in file.packs {
            let blobs = pack.packed_blobs()?;
            match (there.get(&pack.id), pack::file_size(blobs.iter())) {
                (Some(actual), size) if *actual == size => {
                    if let Some(pack) = set_aside(pack) {
                        self.add_pack(pack.id, &blobs).map_err(|error| error.to_string())?;
                    }
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

    /// How many blobs there are. Numbers of blobs are less than this.
    pub fn len(&self) -> usize {
        self.blobs.len()
    }

    /// True when no blob is known.
    pub fn is_empty(&self) -> bool {
        self.blobs.len() == 0
    }

    /// How many packs there are. Numbers of packs are less than this.
    pub fn pack_count(&self) -> usize {
        self.packs.len()
    }

    /// The blob's number, if it is known.
    pub fn number(&self, id: &Id) -> Option<u32> {
        self.blob_numbers.get(id, |number| &self.blobs.get(number).id)
    }

    /// The blob's place, if it is known.
    pub fn get(&self, id: &Id) -> Option<Place> {
        let number = self.number(id)?;
        let pack = self.pack_of(number);
        let blob = self.blobs.get(number);
        let offset = (self.packs.get(pack).first..number).map(|before| self.blobs.get(before).length()).sum();
        Some(Place { number, pack, offset, length: blob.length(), raw_length: blob.raw_length })
    }

    /// The blob's place; a blob that is needed and not known is damage.
    pub fn find(&self, id: &Id) -> Result<Place, Error> {
        self.get(id).ok_or_else(|| self.lost(id))
    }

    fn lost(&self, id: &Id) -> Error {
        let detail = match self.damaged.first() {
            Some(first) => format!("it is lost; {first}"),
            None => "no index names it".to_owned(),
        };
        Error::damaged(format!("blob {id}"), detail)
    }

    /// The pack's number, if it is known.
    pub fn pack_number(&self, id: &Id) -> Option<u32> {
        self.pack_numbers.get(id, |number| &self.packs.get(number).id)
    }

    /// The number of the pack in which the blob of that number lies.
    pub fn pack_of(&self, blob: u32) -> u32 {
        let (mut low, mut high) = (0, self.packs.len() as u32);
        // The last pack that begins at or before the blob; a pack without blobs begins where the next one does.
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.packs.get(middle).first <= blob {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The pack of that number.
    pub fn pack(&self, number: u32) -> Pack {
        let size = pack::file_size(self.blobs(number).map(|(_, blob)| blob));
        Pack { id: self.packs.get(number).id, size }
    }

    /// The name of the pack of that number.
    pub fn pack_id(&self, number: u32) -> Id {
        self.packs.get(number).id
    }

    /// Every pack with its number, in the order in which they were added.
    pub fn packs(&self) -> impl Iterator<Item = (u32, Pack)> {
        (0..self.packs.len() as u32).map(|number| (number, self.pack(number)))
    }

    /// The blobs of the pack of that number, each with its own number, in the order in which they lie in it. A blob is looked up under
    /// another number ([`Index::number`]) when an earlier pack has it too.
    pub fn blobs(&self, pack: u32) -> impl Iterator<Item = (u32, PackedBlob)> {
        let first = self.packs.get(pack).first;
        let next = pack + 1;
        let end = if (next as usize) < self.packs.len() { self.packs.get(next).first } else { self.blobs.len() as u32 };
        let mut offset = 0;
        (first..end).map(move |number| {
            let blob = self.blobs.get(number);
            let kind = if blob.length & TREE == 0 { BlobKind::Data } else { BlobKind::Tree };
            let raw_length = (blob.raw_length != 0).then_some(blob.raw_length);
            let packed = PackedBlob { id: blob.id, kind, offset, length: blob.length(), raw_length };
            offset += blob.length();
            (number, packed)
        })
    }

    #[cfg(test)]
    fn allocated(&self) -> usize {
        self.packs.allocated() + self.blobs.allocated() + self.pack_numbers.allocated() + self.blob_numbers.allocated()
    }
}

/// A list that grows without moving what is in it.
#[derive(Debug)]
struct Blocks<T> {
    blocks: Vec<Vec<T>>,
    len: usize,
}

impl<T> Default for Blocks<T> {
    fn default() -> Self {
        Self { blocks: Vec::new(), len: 0 }
    }
}

impl<T> Blocks<T> {
    fn push(&mut self, value: T) {
        if self.len.is_multiple_of(BLOCK) {
            // The first block grows as it is used.
            self.blocks.push(if self.len == 0 { Vec::new() } else { Vec::with_capacity(BLOCK) });
        }
        if let Some(last) = self.blocks.last_mut() {
            last.push(value);
            self.len += 1;
        }
    }

    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, number: u32) -> &T {
        &self.blocks[number as usize / BLOCK][number as usize % BLOCK]
    }

    #[cfg(test)]
    fn allocated(&self) -> usize {
        let blocks: usize = self.blocks.iter().map(|block| block.capacity() * size_of::<T>()).sum();
        blocks + self.blocks.capacity() * size_of::<Vec<T>>()
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    fn id(number: u64) -> Id {
        Id::of(&number.to_le_bytes())
    }

    /// A pack of `count` blobs whose ids begin at `first`.
    fn blobs(first: u64, count: u64) -> Vec<PackedBlob> {
        let mut offset = 0;
        let blobs = (first..first + count).map(|n| {
            let length = 1000 + (n % 77) as u32;
            let raw_length = (n % 3 != 0).then_some(length * 2);
            let kind = if first.is_multiple_of(5) { BlobKind::Tree } else { BlobKind::Data };
            let blob = PackedBlob { id: id(n), kind, offset, length, raw_length };
            offset += length;
            blob
        });
        blobs.collect()
    }

    #[test]
    fn every_blob_is_found_where_it_was_put_and_no_other() {
        let mut random = rand::rngs::StdRng::seed_from_u64(11);
        let mut index = Index::default();
        let (mut first, mut packs) = (0, Vec::new());
        while first < 30_000 {
            let count = random.random_range(0..60);
            packs.push((id(u64::MAX - first), blobs(first, count)));
            first += count;
        }
        packs.dedup_by_key(|(id, _)| *id);
        for (number, (id, blobs)) in packs.iter().enumerate() {
            assert_eq!(index.add_pack(*id, blobs).expect("added"), number as u32);
            assert_eq!(index.add_pack(*id, &[]).expect("known"), number as u32);
        }
        // Blobs that another pack has too are found where they were first.
        let again = index.add_pack(id(u64::MAX / 2), &blobs(0, 40)).expect("added");
        for (number, (id, blobs)) in (0..).zip(&packs) {
            let pack = index.pack(number);
            assert_eq!((pack.id, pack.size), (*id, pack::file_size(blobs.iter())));
            assert_eq!(index.pack_number(id), Some(number));
            for blob in blobs {
                let place = index.find(&blob.id).expect("known");
                let found = (index.pack(place.pack).id, place.offset, place.length, place.raw_length());
                assert_eq!(found, (*id, blob.offset, blob.length, blob.raw_length));
            }
            assert!(index.blobs(number).map(|(_, blob)| blob).eq(blobs.iter().copied()));
        }
        assert_eq!(index.blobs(again).count(), 40);
        assert!(index.blobs(again).all(|(number, blob)| index.number(&blob.id) != Some(number)));
        assert_eq!(index.packs().count(), packs.len() + 1);
        assert!((first..first + 10_000).all(|n| index.get(&id(n)).is_none()));
        assert!(matches!(index.find(&id(first)), Err(Error::Damaged { .. })));
    }

    #[test]
    fn five_million_blobs_take_at_most_48_bytes_each() {
        // 40 blobs of 400 KB make a pack, as with chunks of 1 MiB that are compressed to 2 / 5.
        const COUNT: u64 = 5_000_000;
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
            statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
        };
        let (before, mut index, mut most) = (resident(), Index::default(), 0_f64);
        for first in (0..COUNT).step_by(40) {
            index.add_pack(id(u64::MAX - first), &blobs(first, 40)).expect("added");
            if first % 100_000 == 0 && first >= 1_000_000 {
                most = most.max(index.allocated() as f64 / index.len() as f64);
            }
        }
        let grown = resident().saturating_sub(before) as f64 / COUNT as f64;
        assert!(most <= 48.0, "{most:.2} bytes");
        assert!(grown <= 50.0, "{grown:.2} bytes resident");
        assert_eq!(index.find(&id(4_999_999)).expect("known").pack, 124_999);
    }

    #[test]
    fn a_pack_whose_blobs_leave_holes_is_refused() {
        let mut blobs = blobs(1, 3);
        IndexPack::new(id(0), &blobs).packed_blobs().expect("side by side");
        blobs.swap(0, 2);
        IndexPack::new(id(0), &blobs).packed_blobs().expect("in any order");
        blobs.remove(1);
        IndexPack::new(id(0), &blobs).packed_blobs().expect_err("a hole");
    }
}
