//! Pack lists as a prune sees them: which packs a finished commit has listed, and checkpoints, so that a commit need not read all lists.
//!
//! Invariants:
//! - A checkpoint continues the hash chain as any list does, and is written by the same rule: create the next number, or read again.
//! - It names every pack that the lists before it name, but for those that a prune has deleted. A pack that is missing for another reason
//!   stays named, so that a check finds it missing.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures::StreamExt as _;

use super::marks;
use crate::commit::{self, ListedPackList};
use crate::error::Error;
use crate::id::Id;
use crate::points::PointState;
use crate::records::{self, Checkpoint, ListedCommit, ListedPack, PACK_LISTS, PackList};
use crate::repository::PACKS;
use crate::store::{self, Put, Store};

/// Lists after the newest checkpoint that make another one worth its size: two batches of a commit's reads.
const EVERY: usize = 32;

/// The packs that the lists name, but for those of commits that have not come to their end.
pub(super) async fn finished_packs(store: &dyn Store, states: &[PointState]) -> Result<HashSet<Id>, Error> {
    let settled: HashSet<Id> = states.iter().filter(|state| state.is_settled()).map(|state| state.id).collect();
    let lists = commit::read_recent_pack_lists(store).await?;
    let finished =
        lists.iter().filter(|list| list.list.checkpoint.is_some() || settled.contains(&list.list.snapshot_id));
    Ok(finished.flat_map(|list| &list.list.packs).map(|pack| pack.id).collect())
}

/// Writes a checkpoint when there are many lists after the newest one.
pub(super) async fn write(store: &dyn Store, states: &[PointState]) -> Result<(), Error> {
    loop {
        let lists = commit::read_recent_pack_lists(store).await?;
        let since = lists.iter().filter(|list| list.list.checkpoint.is_none()).count();
        let Some(last) = lists.last().filter(|_| since >= EVERY) else { return Ok(()) };
        let list = PackList {
            version: records::VERSION,
            previous: Some(last.hash),
            job_id: String::new(),
            snapshot_id: Id::from_bytes([0; 32]),
            packs: packs(store, &lists).await?,
            checkpoint: Some(Checkpoint {
                prune_epoch: records::current_epoch(store).await?,
                unfinished: unfinished(&lists, states),
            }),
        };
        let key = records::numbered(PACK_LISTS, last.number + 1);
        if records::put(store, &key, &list).await? == Put::Created {
            return Ok(());
        }
    }
}

async fn packs(store: &dyn Store, lists: &[ListedPackList]) -> Result<Vec<ListedPack>, Error> {
    let known_epoch = lists.first().and_then(|first| first.list.checkpoint.as_ref()).map_or(0, |c| c.prune_epoch);
    // One mark earlier: two in a row count.
    let deletable = marks::deletable(store, known_epoch.saturating_sub(1)).await?;
    let mut listed: BTreeMap<Id, u64> =
        lists.iter().flat_map(|list| &list.list.packs).map(|pack| (pack.id, pack.size)).collect();
    let mut gone: HashSet<Id> = deletable.into_iter().filter(|id| listed.contains_key(id)).collect();
    let mut entries = store::list(store, PACKS);
    while let Some(entry) = entries.next().await {
        if let Ok(id) = entry?.key.name().parse::<Id>() {
            gone.remove(&id);
        }
    }
    listed.retain(|id, _| !gone.contains(id));
    Ok(listed.into_iter().map(|(id, size)| ListedPack { id, size }).collect())
}

/// The commits of these lists that were neither published nor given up.
fn unfinished(lists: &[ListedPackList], states: &[PointState]) -> Vec<ListedCommit> {
    let states: HashMap<Id, &PointState> = states.iter().map(|state| (state.id, state)).collect();
    let waits = |snapshot: &Id| states.get(snapshot).is_none_or(|state| !state.is_settled());
    let commits = lists.iter().flat_map(|list| commit::commits(&list.list));
    commits
        .filter(|(_, snapshot)| waits(snapshot))
        .map(|(job_id, snapshot_id)| ListedCommit { job_id: job_id.to_owned(), snapshot_id })
        .collect()
}
