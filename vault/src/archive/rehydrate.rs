//! Reading an archived point again: its packs are copied out of the Archive tier, which takes hours, and the copies go after the restore.
//!
//! Nothing here waits: [`rehydrate`] asks, tells how it stands, and may be called as often as one likes, also by another process after a
//! restart. A request is a record, so that one restore's clean-up leaves what another one still needs. A copy that a clean-up took at a bad
//! instant is asked for again by the next call; until then the point reads as [`store::Error::Archived`].

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::blobs::{self, Needs};
use super::{REHYDRATED, REQUESTS, view};
use crate::blocking::with_cancel;
use crate::error::Error;
use crate::id::Id;
use crate::records;
use crate::repository::{Repository, pack_key};
use crate::store::{Entry, Key, Store, Tier};

/// What Azure promises for Standard priority: up to 15 hours.
const LONGEST: Duration = Duration::from_secs(15 * 3600);
/// Copies that are asked for, or deleted, at once.
const REQUESTS_AT_ONCE: usize = 16;

/// How far the rehydration of a point is. A point whose packs are all online has `waiting` 0 from the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rehydration {
    /// Packs that cannot be read yet.
    pub waiting: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Packs that can be read.
    pub ready: u64,
    /// When the store should be done at the latest; `None` when nothing waits, or nothing was asked for.
    pub ready_by: Option<jiff::Timestamp>,
}

impl Rehydration {
    /// True when the point can be read.
    pub fn is_ready(&self) -> bool {
        self.waiting == 0
    }

    /// How long it may still take, at most, seen at `now`; zero when it is ready or overdue.
    pub fn estimate(&self, now: jiff::Timestamp) -> Duration {
        let left = self.ready_by.map(|by| by.duration_since(now)).unwrap_or_default();
        Duration::try_from(left).unwrap_or_default()
    }
}

/// `archive/rehydrated/requests/<job>.json`: a restore that needs the copies of a point's packs. Deleted by its clean-up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// 1.
    pub version: u32,
    /// When it was asked for.
    pub create_time: jiff::Timestamp,
    /// The job that restores.
    pub job_id: String,
    /// The point.
    pub snapshot_id: Id,
}

/// Asks for a readable copy of every archived pack that the point needs, once for each, and tells how it stands. `job_id` names the
/// restore until [`clean_up_rehydrated`].
pub async fn rehydrate(
    repository: &Repository,
    snapshot_id: &Id,
    job_id: &str,
    cancel: &CancellationToken,
) -> Result<Rehydration, Error> {
    with_cancel(cancel, rehydrate_now(repository, snapshot_id, job_id, cancel)).await
}

async fn rehydrate_now(
    repository: &Repository,
    snapshot_id: &Id,
    job_id: &str,
    cancel: &CancellationToken,
) -> Result<Rehydration, Error> {
    let archive = super::open(repository)?;
    let store = &**archive.store();
    let needed = needed(&archive, [*snapshot_id], cancel).await?;
    let (packs, copies) = (blobs::list_packs(store).await?, blobs::list(store, REHYDRATED).await?);
    let missing: Vec<&Id> = needed.iter().filter(|id| state(**id, &packs, &copies) == State::Archived).collect();
    if needed.iter().any(|id| packs.get(id).is_some_and(|pack| pack.tier == Tier::Archive)) {
        let record = Request {
            version: records::VERSION,
            create_time: crate::clock::now(),
            job_id: job_id.to_owned(),
            snapshot_id: *snapshot_id,
        };
        // One that is there is ours, from an earlier call: its time counts.
        store.put_if_absent(&request_key(job_id)?, records::to_bytes(&record)?.into()).await?;
    }
    let asked = missing.into_iter().map(|id| {
        let wrong = copies_wrongly(*id, &packs, &copies);
        async move {
            let copy = copy_key(id)?;
            if wrong {
                store.delete(&copy).await?;
            }
            store.copy(&pack_key(id), &copy).await?;
            Ok::<_, Error>(())
        }
    });
    let asked: Vec<_> = asked.collect();
    let () = stream::iter(asked).buffer_unordered(REQUESTS_AT_ONCE).try_collect().await?;
    tell(store, &needed, &packs, job_id).await
}

/// How it stands, without asking for anything.
pub async fn rehydration_state(
    repository: &Repository,
    snapshot_id: &Id,
    job_id: &str,
    cancel: &CancellationToken,
) -> Result<Rehydration, Error> {
    let state = async {
        let archive = super::open(repository)?;
        let needed = needed(&archive, [*snapshot_id], cancel).await?;
        let packs = blobs::list_packs(&**archive.store()).await?;
        tell(&**archive.store(), &needed, &packs, job_id).await
    };
    with_cancel(cancel, state).await
}

/// Ends the restore's request, and deletes every copy that no other request needs. May be repeated. Returns how many copies went.
pub async fn clean_up_rehydrated(
    repository: &Repository,
    job_id: &str,
    cancel: &CancellationToken,
) -> Result<u64, Error> {
    let clean_up = async {
        let archive = super::open(repository)?;
        let store = &**archive.store();
        store.delete(&request_key(job_id)?).await?;
        let copies = blobs::list(store, REHYDRATED).await?;
        if copies.is_empty() {
            return Ok(0);
        }
        let others = requests_in(store).await?;
        // Collected: an iterator that borrows would keep this future from being sent between threads.
        let snapshots: Vec<Id> = others.iter().map(|request| request.snapshot_id).collect();
        let needed = needed(&archive, snapshots, cancel).await?;
        let gone: Vec<_> = copies.iter().filter(|(id, _)| !needed.contains(*id)).collect();
        let count = gone.len() as u64;
        let deletions = gone.into_iter().map(|(_, copy)| async { store.delete(&copy.key).await.map_err(Error::from) });
        let deletions: Vec<_> = deletions.collect();
        let () = stream::iter(deletions).buffer_unordered(REQUESTS_AT_ONCE).try_collect().await?;
        Ok::<_, Error>(count)
    };
    with_cancel(cancel, clean_up).await
}

/// The restores that have asked and not cleaned up: those whose job has ended are to be cleaned up by whoever finds them.
pub async fn requests(repository: &Repository, cancel: &CancellationToken) -> Result<Vec<Request>, Error> {
    let archive = super::store(repository.store())?;
    with_cancel(cancel, requests_in(&*archive)).await
}

async fn requests_in(store: &dyn Store) -> Result<Vec<Request>, Error> {
    let entries: Vec<Entry> = crate::store::list(store, REQUESTS).try_collect().await?;
    stream::iter(entries)
        .map(|entry| async move { records::get::<Request>(store, &entry.key).await })
        .buffered(REQUESTS_AT_ONCE)
        .try_collect()
        .await
}

/// The packs of data blobs that the points need.
async fn needed(
    archive: &Repository,
    snapshots: impl IntoIterator<Item = Id>,
    cancel: &CancellationToken,
) -> Result<HashSet<Id>, Error> {
    let mut snapshots = snapshots.into_iter().peekable();
    if snapshots.peek().is_none() {
        return Ok(HashSet::new());
    }
    let index = archive.load_index(cancel).await?;
    let mut needs = Needs::default();
    for id in snapshots {
        let snapshot = archive.snapshot(&id, cancel).await?;
        needs.add(archive, &index, snapshot.tree).await?;
    }
    blobs::packs_of(&index, &needs.data)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Waiting,
    /// And no good copy is on its way.
    Archived,
}

fn state(id: Id, packs: &HashMap<Id, Entry>, copies: &HashMap<Id, Entry>) -> State {
    if packs.get(&id).is_none_or(|pack| pack.tier != Tier::Archive) {
        // Online, or missing: a reader will tell.
        return State::Ready;
    }
    match copies.get(&id) {
        Some(copy) if copy.rehydrating => State::Waiting,
        Some(copy) if copy.tier != Tier::Archive && !copies_wrongly(id, packs, copies) => State::Ready,
        _ => State::Archived,
    }
}

/// A copy that failed half-way has another size, or lies in the archive without moving.
fn copies_wrongly(id: Id, packs: &HashMap<Id, Entry>, copies: &HashMap<Id, Entry>) -> bool {
    let (Some(pack), Some(copy)) = (packs.get(&id), copies.get(&id)) else { return false };
    !copy.rehydrating && (copy.size != pack.size || copy.tier == Tier::Archive)
}

async fn tell(
    store: &dyn Store,
    needed: &HashSet<Id>,
    packs: &HashMap<Id, Entry>,
    job_id: &str,
) -> Result<Rehydration, Error> {
    let copies = blobs::list(store, REHYDRATED).await?;
    let mut told = Rehydration::default();
    for id in needed {
        if state(*id, packs, &copies) == State::Ready {
            told.ready += 1;
        } else {
            told.waiting += 1;
            told.waiting_bytes += packs.get(id).map_or(0, |pack| pack.size);
        }
    }
    let key = request_key(job_id)?;
    if told.waiting > 0 && store.head(&key).await?.is_some() {
        let request: Request = records::get(store, &key).await?;
        told.ready_by = request.create_time.checked_add(LONGEST).ok();
    }
    Ok(told)
}

fn request_key(job_id: &str) -> Result<Key, Error> {
    Key::new(format!("{REQUESTS}{job_id}.json")).map_err(Error::internal)
}

fn copy_key(id: &Id) -> Result<Key, Error> {
    view::rehydrated_key(&pack_key(id)).ok_or_else(|| Error::internal("a pack has no place for its copy"))
}
