//! Deleting what no archived point needs any more: whole packs, never before their 180 days are over, nothing rewritten but indexes.
//!
//! ```text
//! 1. needed:   every snapshot in the archive, and every soft-deleted point's sealed snapshot
//! 2. prune/<n>.json     names the packs that will go, so that a check without a key does not miss them
//! 3. index files        new ones without those packs, then the old ones are deleted
//! 4. packs              deleted
//! ```
//! A kill leaves packs that no index names: the next prune deletes them. Under the maintenance lease: no copy runs meanwhile, and a point
//! that is in the archive at step 1 is only soft-deleted by the same maintenance.
//!
//! When a pack came is told by the event `archived` of the point whose list brought it. A pack that no list names (a copy was interrupted
//! and never repeated) goes at once while it is online; when it lies in the Archive tier its age is not known, and it stays.

use std::collections::{HashMap, HashSet};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use super::blobs::{self, Needs};
use crate::blocking::with_cancel;
use crate::commit;
use crate::error::Error;
use crate::id::Id;
use crate::points::{self, PointState};
use crate::records::{self, PruneMark};
use crate::repository::index::{Index, IndexFile};
use crate::repository::snapshot::Snapshot;
use crate::repository::{FileKind, Repository};
use crate::store::{self, Entry, Put, Store, Tier};

/// Days that Azure charges for in the Archive tier whether a blob is there or not.
pub const MINIMUM_DAYS: i64 = 180;
/// Deletions at once.
const DELETIONS: usize = 16;

/// What an archive prune did, or would do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PruneReport {
    /// Packs that went.
    pub deleted: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Packs that nothing needs and that are younger than [`MINIMUM_DAYS`], or of unknown age.
    pub young: u64,
    /// Packs that nothing needs and that an immutability date or a hold protects.
    pub protected: u64,
    /// Packs that are needed.
    pub needed: u64,
}

/// Deletes the packs that nothing needs, as of `now`. With `dry_run` it only tells. May be repeated after a kill.
pub async fn prune(
    repository: &Repository,
    now: jiff::Timestamp,
    dry_run: bool,
    cancel: &CancellationToken,
) -> Result<PruneReport, Error> {
    with_cancel(cancel, prune_now(repository, now, dry_run, cancel)).await
}

async fn prune_now(
    repository: &Repository,
    now: jiff::Timestamp,
    dry_run: bool,
    cancel: &CancellationToken,
) -> Result<PruneReport, Error> {
    let archive = super::open(repository)?;
    let store = &**archive.store();
    let packs = blobs::list_packs(store).await?;
    if packs.is_empty() {
        return Ok(PruneReport::default());
    }
    let index = archive.load_index(cancel).await?;
    // The files before the logs: a point that is deleted between has its bytes in its log by then.
    let listed: Vec<Entry> = store::list(store, FileKind::Snapshot.prefix()).try_collect().await?;
    let points = points::read_all(&**repository.store(), cancel).await?;
    let needed = needed(&archive, &index, listed, &points, cancel).await?;
    let since = listed_since(store, &points).await?;
    let mut report = PruneReport::default();
    let mut doomed: Vec<(Id, &Entry)> = Vec::new();
    for (id, pack) in &packs {
        let old = match since.get(id) {
            Some(since) => now.duration_since(*since).as_hours() >= MINIMUM_DAYS * 24,
            None => pack.tier != Tier::Archive,
        };
        if needed.contains(id) {
            report.needed += 1;
        } else if pack.protection.forbids_deletion(now) {
            report.protected += 1;
        } else if !old {
            report.young += 1;
        } else {
            report.deleted += 1;
            report.deleted_bytes += pack.size;
            doomed.push((*id, pack));
        }
    }
    if !dry_run && !doomed.is_empty() {
        delete(&archive, store, doomed).await?;
    }
    Ok(report)
}

async fn delete(archive: &Repository, store: &dyn Store, doomed: Vec<(Id, &Entry)>) -> Result<(), Error> {
    let ids: HashSet<Id> = doomed.iter().map(|(id, _)| *id).collect();
    mark(store, &ids).await?;
    drop_from_indexes(archive, store, &ids).await?;
    let deletions = doomed.into_iter().map(|(_, pack)| async { store.delete(&pack.key).await.map_err(Error::from) });
    let deletions: Vec<_> = deletions.collect();
    stream::iter(deletions).buffer_unordered(DELETIONS).try_collect().await
}

async fn mark(store: &dyn Store, ids: &HashSet<Id>) -> Result<(), Error> {
    let mut marked: Vec<Id> = ids.iter().copied().collect();
    marked.sort_unstable();
    loop {
        let epoch = records::current_epoch(store).await? + 1;
        let create_time = crate::clock::now();
        let mark =
            PruneMark { version: records::VERSION, epoch, create_time, marked: marked.clone(), candidates: Vec::new() };
        if records::put(store, &records::numbered(records::PRUNE, epoch), &mark).await? == Put::Created {
            return Ok(());
        }
    }
}

/// Every index file that names one of the packs is written anew without them.
async fn drop_from_indexes(archive: &Repository, store: &dyn Store, gone: &HashSet<Id>) -> Result<(), Error> {
    let entries: Vec<Entry> = store::list(store, FileKind::Index.prefix()).try_collect().await?;
    for entry in entries {
        let Ok(id) = entry.key.name().parse::<Id>() else { continue };
        let file = match archive.index_file(&id).await {
            Ok(Some(file)) => file,
            Ok(None) => continue,
            // A check names it; what it told is not lost by leaving it.
            Err(Error::Damaged { .. }) => continue,
            Err(error) => return Err(error),
        };
        let before = file.packs.len();
        let packs: Vec<_> = file.packs.into_iter().filter(|pack| !gone.contains(&pack.id)).collect();
        if packs.len() == before {
            continue;
        }
        if !packs.is_empty() {
            archive.put_index(&IndexFile { supersedes: vec![id], packs }).await?;
        }
        store.delete(&entry.key).await?;
    }
    Ok(())
}

/// The packs of everything that is, or can be, listed in the archive.
async fn needed(
    archive: &Repository,
    index: &Index,
    listed: Vec<Entry>,
    points: &[PointState],
    cancel: &CancellationToken,
) -> Result<HashSet<Id>, Error> {
    let mut needs = Needs::default();
    for entry in listed {
        let Ok(id) = entry.key.name().parse::<Id>() else { continue };
        needs.add(archive, index, archive.snapshot(&id, cancel).await?.tree).await?;
    }
    for point in points.iter().filter(|point| point.soft_deleted.is_some() && !point.purged) {
        let Some(sealed) = point.sealed_snapshot()? else { continue };
        let snapshot: Snapshot = archive.open_snapshot(&point.id, sealed).await?;
        // One that was never archived has its tree in the hot repository only.
        if index.get(&snapshot.tree).is_some() {
            needs.add(archive, index, snapshot.tree).await?;
        }
    }
    let mut packs = blobs::packs_of(index, &needs.data)?;
    packs.extend(blobs::packs_of(index, &needs.trees)?);
    Ok(packs)
}

/// When each pack came: not before the point that brought it was recorded as archived. Packs of points that are not recorded are left out
/// only when nothing lists them; else they are as young as can be.
async fn listed_since(store: &dyn Store, points: &[PointState]) -> Result<HashMap<Id, jiff::Timestamp>, Error> {
    let archived: HashMap<Id, jiff::Timestamp> =
        points.iter().filter_map(|point| Some((point.id, point.archived_at?))).collect();
    let lists = commit::read_pack_lists(store).await?;
    let since = lists.iter().flat_map(|(_, list)| {
        let time = archived.get(&list.snapshot_id).copied().unwrap_or(jiff::Timestamp::MAX);
        list.packs.iter().map(move |pack| (pack.id, time))
    });
    Ok(since.collect())
}
