//! Prune marks: what they say together, and what the next one says.

use std::collections::HashSet;

use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::census::{Census, Shunned};
use crate::error::Error;
use crate::id::Id;
use crate::records::{self, DamageRecord, PRUNE, PruneMark};
use crate::store::Store;

/// Marks that are read at once.
const READS: usize = 8;

/// The newest two marks.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// 0: there is none.
    pub(super) epoch: u64,
    pub(super) marked: HashSet<Id>,
    candidates: HashSet<Id>,
    /// In both: they may be deleted, and stay marked until they are.
    doomed: HashSet<Id>,
}

impl Marks {
    pub(super) async fn read(store: &dyn Store) -> Result<Self, Error> {
        let epoch = records::current_epoch(store).await?;
        if epoch == 0 {
            return Ok(Self::default());
        }
        let newest = read_mark(store, epoch).await?;
        let before = match epoch {
            1 => HashSet::new(),
            _ => read_mark(store, epoch - 1).await?.marked.into_iter().collect(),
        };
        let marked: HashSet<Id> = newest.marked.into_iter().collect();
        let doomed = marked.intersection(&before).copied().collect();
        Ok(Self { epoch, marked, candidates: newest.candidates.into_iter().collect(), doomed })
    }

    /// What a holder should not be.
    pub(super) async fn shunned(&self, store: &dyn Store) -> Result<Shunned, Error> {
        let mut damaged = HashSet::new();
        for n in records::numbers(store, records::DAMAGED).await? {
            let record: DamageRecord = records::get(store, &records::numbered(records::DAMAGED, n)).await?;
            damaged.extend(record.packs);
        }
        Ok(Shunned { damaged, doomed: self.doomed.clone(), marked: self.marked.clone() })
    }
}

async fn read_mark(store: &dyn Store, epoch: u64) -> Result<PruneMark, Error> {
    records::get(store, &records::numbered(PRUNE, epoch)).await
}

/// What the next mark says, and what its prune deletes.
#[derive(Debug, Default)]
pub(super) struct Next {
    pub(super) mark: Vec<Id>,
    pub(super) candidates: Vec<Id>,
    pub(super) delete: Vec<Id>,
    /// Would be deleted, but the store forbids it.
    pub(super) protected: Vec<Id>,
    /// Would be deleted, but a point needs what nothing else holds. Cannot be, unless a copy was lost meanwhile.
    pub(super) spared: Vec<Id>,
}

impl Next {
    /// `listed`: packs that the pack lists name, and whose commit has come to an end.
    pub(super) fn of(marks: &Marks, census: &Census, listed: &HashSet<Id>) -> Self {
        let mut next = Self::default();
        let complete = census.is_complete();
        let mut present: Vec<&Id> = census.present.keys().collect();
        present.sort_unstable();
        for id in present {
            let doomed = marks.doomed.contains(id);
            let unneeded = match census.is_indexed(id) {
                true => !census.is_holder(id),
                false => complete,
            };
            if !unneeded && !doomed {
                continue;
            }
            let was_marked = marks.marked.contains(id);
            if !was_marked && !listed.contains(id) && !marks.candidates.contains(id) {
                next.candidates.push(*id);
                continue;
            }
            next.mark.push(*id);
            if !was_marked {
                continue;
            }
            match (unneeded, census.present[id].protected) {
                (false, _) => next.spared.push(*id),
                (true, true) => next.protected.push(*id),
                (true, false) => next.delete.push(*id),
            }
        }
        next
    }
}

/// The packs that prunes may have deleted: two marks in a row name them. A pack of a pack list that is not there is missing unless it is
/// one of these. Reads every mark after `after_epoch` (0: all).
pub async fn deletable(store: &dyn Store, after_epoch: u64) -> Result<HashSet<Id>, Error> {
    let numbers = records::numbers(store, PRUNE).await?;
    let numbers: Vec<u64> = numbers.into_iter().filter(|n| *n >= after_epoch).collect();
    let mut marks = stream::iter(numbers).map(|n| read_mark(store, n)).buffered(READS);
    let (mut deletable, mut before) = (HashSet::new(), HashSet::new());
    while let Some(mark) = marks.try_next().await? {
        let marked: HashSet<Id> = mark.marked.into_iter().collect();
        deletable.extend(marked.intersection(&before));
        before = marked;
    }
    Ok(deletable)
}
