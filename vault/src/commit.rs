//! The commit: a staged backup becomes a recovery point, at one instant, once.
//!
//! ```text
//! verify:  every pack is there with its size, and no prune forbids one  (may be repeated)
//! 1. packs/<n>.json               the packs that are new to the lists   (may be repeated: the same job and snapshot are found)
//! 2. points/<snapshot>/1.json     rule, policy, streams, sealed bytes   (the same bytes are success)
//! 3. the prune epoch is read again                                      (refused: the point is to be abandoned)
//! 4. repo/snapshots/<snapshot>    the sealed bytes: THE commit          (the same name is the same bytes)
//! ```
//! Invariants:
//! - The point is visible if and only if step 4 happened. A kill between the steps leaves records of a point that is not listed, and the
//!   repetition with the same journaled bytes finishes them.
//! - Step 2 comes before step 3: a prune that begins after step 3 reads the record and keeps what it needs, however late step 4 comes.
//!   One that began before is seen by step 3. `prune.rs` has the whole argument.
//! - A job commits one snapshot at most: its id stands in the pack lists. One that was abandoned does not count.
//! - Only names, sizes and sealed bytes are handled here; no key is needed.

use std::collections::{HashSet, VecDeque};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use crate::blocking::with_cancel;
use crate::error::Error;
use crate::id::Id;
use crate::points;
use crate::records::{self, ListedPack, PackList, PointCreated, PointEvent, PointEventKind, PruneMark};
use crate::repository::{FileKind, list_packs};
use crate::store::{Put, Store};

/// Pack lists that are read at once: hides the store's latency; a list is some KiB, but for checkpoints.
const READS: usize = 16;

/// What the coordinator journals before it commits. The same record gives the same point, however often it is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// SHA-256 of `sealed`.
    pub snapshot_id: Id,
    /// The snapshot file.
    pub sealed: Bytes,
    /// The prune epoch at the backup's beginning.
    pub prune_epoch: u64,
    /// Every pack that the point needs, with its size.
    pub packs: Vec<(Id, u64)>,
    /// When the point was staged.
    pub time: jiff::Timestamp,
    /// What the point is born with.
    pub created: PointCreated,
}

/// Checks that everything the point needs is in the store. Changes nothing.
pub async fn verify(store: &dyn Store, record: &Record, cancel: &CancellationToken) -> Result<(), Error> {
    if Id::of(&record.sealed) != record.snapshot_id {
        return Err(Error::damaged("the staged snapshot", "its bytes are not those that its name stands for"));
    }
    with_cancel(cancel, check_packs(store, record)).await?;
    with_cancel(cancel, check_epoch(store, record)).await
}

async fn check_packs(store: &dyn Store, record: &Record) -> Result<(), Error> {
    let there = list_packs(store).await?;
    for (id, size) in &record.packs {
        let detail = match there.get(id) {
            None => format!("pack {id} is missing"),
            Some(actual) if actual != size => format!("pack {id} has {actual} bytes instead of {size}"),
            Some(_) => continue,
        };
        return Err(Error::StagedIncomplete { detail });
    }
    Ok(())
}

async fn check_epoch(store: &dyn Store, record: &Record) -> Result<(), Error> {
    let seen = record.prune_epoch;
    let now = records::current_epoch(store).await?;
    if now == seen {
        return Ok(());
    }
    // One prune has begun since: what it deletes was marked before the backup began, and is not used. What it marks must not be needed.
    // After two, packs that the backup uses may be gone.
    let marked: HashSet<Id> = if now == seen + 1 {
        let mark: PruneMark = records::get(store, &records::numbered(records::PRUNE, now)).await?;
        mark.marked.into_iter().collect()
    } else {
        return Err(Error::PrunedMeanwhile { seen, now });
    };
    if record.packs.iter().any(|(id, _)| marked.contains(id)) {
        return Err(Error::PrunedMeanwhile { seen, now });
    }
    Ok(())
}

/// Steps 1 to 3: everything but the point itself. After an error the point is certainly not visible; when it shall never be, call
/// [`abandon`], or its packs are kept for ever.
pub async fn prepare(store: &dyn Store, record: &Record, cancel: &CancellationToken) -> Result<(), Error> {
    let prepare = async {
        append_pack_list(store, record).await?;
        let created = PointCreated {
            sealed_snapshot: STANDARD.encode(&record.sealed),
            prune_epoch: record.prune_epoch,
            ..record.created.clone()
        };
        let event =
            PointEvent { version: records::VERSION, time: record.time, event: PointEventKind::Created(created) };
        let key = records::numbered(&records::point_events(&record.snapshot_id), 1);
        if records::put(store, &key, &event).await? == Put::Existed {
            return Err(Error::damaged(key.to_string(), "it is another event than this commit's"));
        }
        if points::is_abandoned(store, &record.snapshot_id).await? {
            // A kill came between that and the job's end. Prunes do not keep its packs any more.
            return Err(Error::StagedIncomplete { detail: "its commit was given up before".to_owned() });
        }
        check_epoch(store, record).await
    };
    with_cancel(cancel, prepare).await
}

/// Gives the point up for good: a later prune takes what only it needs. For a commit whose [`publish`] was never asked for, and never
/// will be. Does nothing when [`prepare`] left no record. May be repeated.
pub async fn abandon(store: &dyn Store, record: &Record, cancel: &CancellationToken) -> Result<(), Error> {
    points::abandon(store, &record.snapshot_id, cancel).await.map(|_| ())
}

/// Step 4: makes the point visible. After an error, or when dropped, it is unknown whether it is: ask by calling this again, which is
/// safe and ends in the same point.
pub async fn publish(store: &dyn Store, record: &Record, cancel: &CancellationToken) -> Result<(), Error> {
    // An existing file of that name has the same bytes: the name is their hash.
    let key = FileKind::Snapshot.key(&record.snapshot_id);
    with_cancel(cancel, store.put_if_absent(&key, record.sealed.clone())).await.map(|_| ())
}

/// True when the point is visible.
pub async fn is_committed(store: &dyn Store, snapshot_id: &Id, cancel: &CancellationToken) -> Result<bool, Error> {
    Ok(with_cancel(cancel, store.head(&FileKind::Snapshot.key(snapshot_id))).await?.is_some())
}

async fn append_pack_list(store: &dyn Store, record: &Record) -> Result<(), Error> {
    let (job_id, snapshot_id) = (&record.created.job_id, record.snapshot_id);
    loop {
        let lists = read_recent_pack_lists(store).await?;
        let mut listed = HashSet::new();
        for ListedPackList { list, .. } in &lists {
            for (job, snapshot) in commits(list).filter(|(job, _)| job == job_id) {
                if snapshot == snapshot_id {
                    return Ok(());
                }
                if !points::is_abandoned(store, &snapshot).await? {
                    let snapshot_id = snapshot.to_string();
                    return Err(Error::JobAlreadyCommitted { job_id: job.to_owned(), snapshot_id });
                }
            }
            listed.extend(list.packs.iter().map(|pack| pack.id));
        }
        let new = record.packs.iter().filter(|(id, _)| !listed.contains(id));
        let list = PackList {
            version: records::VERSION,
            previous: lists.last().map(|last| last.hash),
            job_id: job_id.clone(),
            snapshot_id,
            packs: new.map(|(id, size)| ListedPack { id: *id, size: *size }).collect(),
            checkpoint: None,
        };
        let next = lists.last().map_or(0, |last| last.number) + 1;
        if records::put(store, &records::numbered(records::PACK_LISTS, next), &list).await? == Put::Created {
            return Ok(());
        }
        // Another commit took the number: read what it wrote and come after it.
    }
}

/// The commits that a list tells of: its own, or those that were unfinished when a checkpoint was written.
pub(crate) fn commits(list: &PackList) -> impl Iterator<Item = (&str, Id)> {
    let own = list.checkpoint.is_none().then_some((list.job_id.as_str(), list.snapshot_id));
    let unfinished = list.checkpoint.iter().flat_map(|checkpoint| &checkpoint.unfinished);
    own.into_iter().chain(unfinished.map(|commit| (commit.job_id.as_str(), commit.snapshot_id)))
}

/// A pack list, where it stands, and what its bytes hash to.
#[derive(Debug)]
pub(crate) struct ListedPackList {
    pub(crate) number: u64,
    pub(crate) hash: Id,
    pub(crate) list: PackList,
}

/// The newest checkpoint among the pack lists and what follows it; all lists when there is none. The chain is checked from there on.
pub(crate) async fn read_recent_pack_lists(store: &dyn Store) -> Result<Vec<ListedPackList>, Error> {
    let mut numbers = records::numbers(store, records::PACK_LISTS).await?;
    let mut lists: VecDeque<ListedPackList> = VecDeque::new();
    while lists.front().is_none_or(|first| first.list.checkpoint.is_none()) && !numbers.is_empty() {
        let newest = numbers.split_off(numbers.len().saturating_sub(READS));
        for list in read_lists(store, newest).await?.into_iter().rev() {
            let is_checkpoint = list.list.checkpoint.is_some();
            lists.push_front(list);
            if is_checkpoint {
                break;
            }
        }
    }
    let lists: Vec<ListedPackList> = lists.into();
    check_chain(store, &lists)?;
    if let Some(first) = lists.first()
        && first.list.checkpoint.is_none()
        && first.number != 1
    {
        return Err(broken_chain(store, 1));
    }
    Ok(lists)
}

/// Every pack list with the hash of its bytes, in order. A gap or a broken chain is damage.
pub async fn read_pack_lists(store: &dyn Store) -> Result<Vec<(Id, PackList)>, Error> {
    let numbers = records::numbers(store, records::PACK_LISTS).await?;
    let lists = read_lists(store, numbers).await?;
    check_chain(store, &lists)?;
    if lists.first().is_some_and(|first| first.number != 1) {
        return Err(broken_chain(store, 1));
    }
    Ok(lists.into_iter().map(|list| (list.hash, list.list)).collect())
}

async fn read_lists(store: &dyn Store, numbers: Vec<u64>) -> Result<Vec<ListedPackList>, Error> {
    stream::iter(numbers)
        .map(|number| async move {
            let key = records::numbered(records::PACK_LISTS, number);
            let bytes = store.get(&key, None).await?;
            let list = records::from_bytes(&format!("{key} in {}", store.location()), &bytes)?;
            Ok(ListedPackList { number, hash: Id::of(&bytes), list })
        })
        .buffered(READS)
        .try_collect()
        .await
}

/// Each list follows the one before it; the first of all follows none.
fn check_chain(store: &dyn Store, lists: &[ListedPackList]) -> Result<(), Error> {
    if let Some(first) = lists.first()
        && (first.number == 1) != first.list.previous.is_none()
    {
        return Err(broken_chain(store, first.number));
    }
    for pair in lists.windows(2) {
        if pair[1].number != pair[0].number + 1 || pair[1].list.previous != Some(pair[0].hash) {
            return Err(broken_chain(store, pair[1].number));
        }
    }
    Ok(())
}

fn broken_chain(store: &dyn Store, number: u64) -> Error {
    let what = format!("{} in {}", records::numbered(records::PACK_LISTS, number), store.location());
    Error::damaged(what, "it does not follow the pack list before it")
}
