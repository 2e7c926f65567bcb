//! The commit: a staged backup becomes a recovery point, at one instant, once.
//!
//! ```text
//! verify:  every pack is there with its size, and no prune marked one   (may be repeated)
//! 1. packs/<n>.json               the packs that are new to the lists   (may be repeated: the same job and snapshot are found)
//! 2. points/<snapshot>/1.json     rule, policy, streams                 (the same bytes are success)
//! 3. repo/snapshots/<snapshot>    the sealed bytes: THE commit          (the same name is the same bytes)
//! ```
//! Invariants:
//! - The point is visible if and only if step 3 happened. A kill between the steps leaves records of a point that is not listed, and the
//!   repetition with the same journaled bytes finishes them.
//! - A job commits one snapshot at most: its id stands in the pack lists.
//! - Only names, sizes and sealed bytes are handled here; no key is needed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use crate::blocking::with_cancel;
use crate::error::Error;
use crate::id::Id;
use crate::records::{self, ListedPack, PackList, PointCreated, PointEvent, PointEventKind, PruneMark};
use crate::repository::{FileKind, list_packs};
use crate::store::{Put, Store};

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
    // One prune has begun since: it has only marked so far, and what it marked must not be needed. After two, deleting has begun.
    let marked = if now == seen + 1 {
        records::get::<PruneMark>(store, &records::numbered(records::PRUNE, now)).await?.marked
    } else {
        return Err(Error::PrunedMeanwhile { seen, now });
    };
    if record.packs.iter().any(|(id, _)| marked.contains(id)) {
        return Err(Error::PrunedMeanwhile { seen, now });
    }
    Ok(())
}

/// Steps 1 and 2: everything but the point itself. After an error the point is certainly not visible.
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
        match records::put(store, &key, &event).await? {
            Put::Created => Ok(()),
            Put::Existed => Err(Error::damaged(key.to_string(), "it is another event than this commit's")),
        }
    };
    with_cancel(cancel, prepare).await
}

/// Step 3: makes the point visible. After an error, or when dropped, it is unknown whether it is: ask by calling this again, which is
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
    loop {
        let lists = read_pack_lists(store).await?;
        let mut listed = std::collections::HashSet::new();
        for (_, list) in &lists {
            if list.job_id == record.created.job_id {
                if list.snapshot_id == record.snapshot_id {
                    return Ok(());
                }
                let (job_id, snapshot_id) = (list.job_id.clone(), list.snapshot_id.to_string());
                return Err(Error::JobAlreadyCommitted { job_id, snapshot_id });
            }
            listed.extend(list.packs.iter().map(|pack| pack.id));
        }
        let new = record.packs.iter().filter(|(id, _)| !listed.contains(id));
        let list = PackList {
            version: records::VERSION,
            previous: lists.last().map(|(hash, _)| *hash),
            job_id: record.created.job_id.clone(),
            snapshot_id: record.snapshot_id,
            packs: new.map(|(id, size)| ListedPack { id: *id, size: *size }).collect(),
        };
        let next = lists.len() as u64 + 1;
        if records::put(store, &records::numbered(records::PACK_LISTS, next), &list).await? == Put::Created {
            return Ok(());
        }
        // Another commit took the number: read what it wrote and come after it.
    }
}

/// Every pack list with the hash of its bytes, in order. A gap or a broken chain is damage.
pub async fn read_pack_lists(store: &dyn Store) -> Result<Vec<(Id, PackList)>, Error> {
    let numbers = records::numbers(store, records::PACK_LISTS).await?;
    let lists: Vec<(u64, Id, PackList)> = stream::iter(numbers)
        .map(|n| async move {
            let key = records::numbered(records::PACK_LISTS, n);
            let bytes = store.get(&key, None).await?;
            let list = records::from_bytes(&format!("{key} in {}", store.location()), &bytes)?;
            Ok::<_, Error>((n, Id::of(&bytes), list))
        })
        // 16 reads at once hide the store's latency; a list is some KiB.
        .buffered(16)
        .try_collect()
        .await?;
    let mut previous = None;
    let mut chain = Vec::with_capacity(lists.len());
    for (expected, (n, hash, list)) in (1..).zip(lists) {
        if n != expected || list.previous != previous {
            let what = format!("{} in {}", records::numbered(records::PACK_LISTS, n), store.location());
            return Err(Error::damaged(what, "it does not follow the pack list before it"));
        }
        previous = Some(hash);
        chain.push((hash, list));
    }
    Ok(chain)
}
