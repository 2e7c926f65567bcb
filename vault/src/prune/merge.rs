//! Index files after a prune: those that name deleted packs are written anew without them, and many small ones become few.
//!
//! Invariants:
//! - Every new file is durable before the first old one is deleted, so at any time some file names each pack that is kept. Readers that
//!   meet the change list again (`Repository::load_index`).
//! - Only files that this prune has read are replaced: what a running backup writes meanwhile stays.
//! - A pack that is missing stays named as long as a needed blob has no other place: it may come back.
//! - Memory: one file in the making and one being read, tens of MiB.

use std::collections::HashSet;

use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::census::{Census, File};
use crate::error::Error;
use crate::id::Id;
use crate::meter::Meter;
use crate::repository::index::{IndexFile, IndexPack};
use crate::repository::{FileKind, Repository};

/// Blobs of a full index file: about 8 MiB of JSON, at 160 bytes for each.
const FULL: usize = 50_000;
/// Files below this are small: two of them make one that is not too large.
const SMALL: usize = FULL / 2;
/// Deletions at once.
const DELETIONS: usize = 16;

/// What became of the index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Merged {
    /// Index files that were replaced.
    pub removed: u64,
    /// Index files that replace them.
    pub written: u64,
}

/// The files to replace: those that name a pack which goes, or repeat another one, and the small ones when there are `many` of them.
pub(super) fn to_replace<'a>(census: &'a Census, gone: &HashSet<Id>, many: usize) -> Vec<&'a File> {
    let drops = |number: &u32| drops(census, *number, gone);
    let small = census.files.iter().filter(|file| file.blobs < SMALL).count();
    let replaced = |file: &&File| {
        file.repeats || file.packs.iter().any(drops) || file.packs.is_empty() || (small >= many && file.blobs < SMALL)
    };
    census.files.iter().filter(replaced).collect()
}

fn drops(census: &Census, number: u32, gone: &HashSet<Id>) -> bool {
    let pack = &census.packs[number as usize];
    gone.contains(&pack.id) || (!census.present.contains_key(&pack.id) && pack.need.is_none())
}

/// Replaces the files by new ones that name the same packs, but for those that go. `gone` are deleted afterwards, by the caller.
pub(super) async fn merge(
    repository: &Repository,
    census: &Census,
    gone: &HashSet<Id>,
    many: usize,
    meter: &Meter,
) -> Result<Merged, Error> {
    let files = to_replace(census, gone, many);
    let dropped: HashSet<Id> = (0..census.packs.len() as u32)
        .filter(|number| drops(census, *number, gone))
        .map(|number| census.packs[number as usize].id)
        .collect();
    let replaced: HashSet<Id> = files.iter().map(|file| file.id).collect();
    let kept = census.files.iter().filter(|file| !replaced.contains(&file.id)).flat_map(|file| &file.packs);
    let mut named: HashSet<Id> = kept.map(|number| census.packs[*number as usize].id).collect();
    let mut merged = Merged::default();
    let mut open = Open::default();
    for file in &files {
        // Another prune may have replaced it; then its packs are named elsewhere, and this file is not to be relied on either way.
        let Some(read) = repository.index_file(&file.id).await? else { continue };
        for pack in read.packs {
            if !dropped.contains(&pack.id) && named.insert(pack.id) {
                open.add(pack);
            }
            if open.blobs >= FULL {
                merged.written += u64::from(open.write(repository, meter).await?);
            }
        }
    }
    merged.written += u64::from(open.write(repository, meter).await?);
    merged.removed = files.len() as u64;
    let old: Vec<Id> = files.iter().map(|file| file.id).collect();
    stream::iter(old)
        .map(|id| async move { repository.store().delete(&FileKind::Index.key(&id)).await })
        .buffer_unordered(DELETIONS)
        .try_collect::<()>()
        .await?;
    Ok(merged)
}

/// An index file in the making.
#[derive(Debug, Default)]
struct Open {
    packs: Vec<IndexPack>,
    blobs: usize,
}

impl Open {
    fn add(&mut self, pack: IndexPack) {
        self.blobs += pack.len();
        self.packs.push(pack);
    }

    /// False when there was nothing to write.
    async fn write(&mut self, repository: &Repository, meter: &Meter) -> Result<bool, Error> {
        let Self { packs, .. } = std::mem::take(self);
        if packs.is_empty() {
            return Ok(false);
        }
        // Nothing is said to be superseded: a reader that believed it would miss what the next new file names, were this prune killed.
        let (id, sealed) = repository.seal_json(&IndexFile { supersedes: Vec::new(), packs })?;
        meter.add_stored(sealed.len() as u64);
        repository.store().put_if_absent(&FileKind::Index.key(&id), sealed.into()).await?;
        Ok(true)
    }
}
