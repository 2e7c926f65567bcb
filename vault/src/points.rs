//! A point's life: the log of its events, and the snapshot files that make it listed.
//!
//! ```text
//!             event first              then the files                    a kill between is finished by `finish_interrupted`
//! created     (commit: its record)     repo/snapshots/<id> is created    no: only its job knows whether it may go on
//! soft delete SoftDeleted + the bytes  the files are deleted             deletes them
//! undelete    Undeleted                the files are written again       writes them
//! purge       Purged                   (none is left)                    -
//! removal     RemovedFromVault         the hot file is deleted           deletes it, when the archive's is there
//! ```
//! Invariants:
//! - A point is listed if and only if a snapshot file of it is there, in the hot store or in the archive.
//! - The log is the order of things. An event that depends on the state is written under the number that follows the state that was
//!   read; when somebody else took that number, the state is read again and the question asked anew. So of an undelete and a purge that
//!   race exactly one happens, and the other one is told so.
//! - Whoever changed the files reads the log once more, and goes on until it has not grown. So the one who is last leaves the files as
//!   the log says, whatever happened between.
//! - `Purged` and `Abandoned` are final. From soft delete to `Purged` the log holds the snapshot's bytes, and a prune keeps its data.
//!
//! Limits: a point's state is read from one small file for each of its events. Cancellation and errors leave the event written or not,
//! and the files as before, as after, or between; repeating the call or [`finish_interrupted`] ends it.

use std::collections::{HashMap, HashSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use crate::blocking::with_cancel;
use crate::error::Error;
use crate::id::Id;
use crate::records::{self, PointEvent, PointEventKind};
use crate::store::{self, Put, Store};

mod state;

pub use state::PointState;
use state::{Files, Misplaced, Place, Wanted};

/// Where all points' events lie.
const POINTS: &str = "points/";
/// Events that are read at once: hides the store's latency; an event is some KiB.
const READS: usize = 16;

/// Every point that the vault has ever known, listed or not, by id. The snapshot files are listed before the logs are read: a point that
/// is deleted between has its bytes in its log by then.
pub async fn read_all(store: &dyn Store, cancel: &CancellationToken) -> Result<Vec<PointState>, Error> {
    with_cancel(cancel, read_some(store, None)).await
}

/// The same of these points only. An id that the vault has never known is left out. It costs the listings and these points' logs: those of the
/// years of points that are gone for good are not read.
pub async fn read_these(
    store: &dyn Store,
    ids: &HashSet<Id>,
    cancel: &CancellationToken,
) -> Result<Vec<PointState>, Error> {
    with_cancel(cancel, read_some(store, Some(ids))).await
}

/// `wanted`: of these; `None`: of all.
async fn read_some(store: &dyn Store, wanted: Option<&HashSet<Id>>) -> Result<Vec<PointState>, Error> {
    let files = Files::list(store).await?;
    let mut logs = list_logs(store).await?;
    if let Some(wanted) = wanted {
        logs.retain(|(id, _)| wanted.contains(id));
    }
    let files = &files;
    stream::iter(logs)
        .map(|(id, count)| async move { PointState::from_events(id, read_events(store, &id, count).await?, files) })
        .buffered(READS)
        .try_collect()
        .await
}

/// As [`read_all`], of which some were read a moment ago: what has come to its end does not change any more, and is not read once more.
pub(crate) async fn read_again(
    store: &dyn Store,
    before: Vec<PointState>,
    cancel: &CancellationToken,
) -> Result<Vec<PointState>, Error> {
    let ended = before.into_iter().filter(|state| state.purged || state.abandoned);
    let mut ended: HashMap<Id, PointState> = ended.map(|state| (state.id, state)).collect();
    let again = async {
        let files = &Files::list(store).await?;
        let logs = list_logs(store).await?.into_iter();
        // Something may be noted of it all the same, such as a proof that was under way.
        let logs = logs.map(|(id, count)| (id, count, ended.remove(&id).filter(|state| state.events == count)));
        let logs: Vec<(Id, u64, Option<PointState>)> = logs.collect();
        stream::iter(logs)
            .map(|(id, count, known)| async move {
                match known {
                    Some(state) => Ok(state),
                    None => PointState::from_events(id, read_events(store, &id, count).await?, files),
                }
            })
            .buffered(READS)
            .try_collect()
            .await
    };
    with_cancel(cancel, again).await
}

/// Every point's id, and the number of its last event.
async fn list_logs(store: &dyn Store) -> Result<Vec<(Id, u64)>, store::Error> {
    let mut logs: Vec<(Id, u64)> = Vec::new();
    let mut entries = store::list(store, POINTS);
    while let Some(entry) = entries.next().await {
        let key = entry?.key;
        let mut parts = key.as_str()[POINTS.len()..].split('/');
        let id = parts.next().and_then(|id| id.parse::<Id>().ok());
        let number = parts.next().and_then(|name| name.strip_suffix(".json")).and_then(|n| n.parse::<u64>().ok());
        let (Some(id), Some(number)) = (id, number) else { continue };
        match logs.last_mut() {
            // A log has no gaps; what was written behind the listing is read the next time.
            Some((last, count)) if *last == id => *count = (*count).max(number),
            _ => logs.push((id, number)),
        }
    }
    Ok(logs)
}

/// The point of that id, listed or not. [`Error::PointNotFound`] when the vault has never known it.
pub async fn read(store: &dyn Store, id: &Id, cancel: &CancellationToken) -> Result<PointState, Error> {
    with_cancel(cancel, read_now(store, id)).await
}

async fn read_now(store: &dyn Store, id: &Id) -> Result<PointState, Error> {
    let files = Files::of(store, id).await?;
    let count = records::numbers(store, &records::point_events(id)).await?.last().copied();
    let count = count.ok_or(Error::PointNotFound { id: *id })?;
    PointState::from_events(*id, read_events(store, id, count).await?, &files)
}

async fn read_events(store: &dyn Store, id: &Id, count: u64) -> Result<Vec<PointEvent>, Error> {
    let mut events = Vec::new();
    for n in 1..=count {
        let key = records::numbered(&records::point_events(id), n);
        let event = match records::get(store, &key).await {
            Err(Error::Store(store::Error::NotFound { .. })) => {
                return Err(Error::damaged(format!("the log of point {id}"), format!("event {n} is missing")));
            }
            other => other?,
        };
        events.push(event);
    }
    Ok(events)
}

/// Adds an event that depends on nothing, such as a proof. The point must be known ([`Error::PointNotFound`]).
pub async fn append(store: &dyn Store, id: &Id, kind: PointEventKind, cancel: &CancellationToken) -> Result<(), Error> {
    change(store, id, cancel, |_| Ok(Some(kind.clone()))).await.map(|_| ())
}

/// Forbids the deletion until [`release`]. A point that is held already gets the new note. Soft-deleted points can be held.
pub async fn hold(store: &dyn Store, id: &Id, note: &str, cancel: &CancellationToken) -> Result<(), Error> {
    let decide = |state: &PointState| {
        known_to_people(state)?;
        let same = state.held.as_deref() == Some(note);
        Ok((!same).then(|| PointEventKind::Held { note: note.to_owned() }))
    };
    change(store, id, cancel, decide).await.map(|_| ())
}

/// Ends a hold. A point that is not held is left as it is.
pub async fn release(store: &dyn Store, id: &Id, cancel: &CancellationToken) -> Result<(), Error> {
    let decide = |state: &PointState| {
        known_to_people(state)?;
        Ok(state.held.is_some().then_some(PointEventKind::Released))
    };
    change(store, id, cancel, decide).await.map(|_| ())
}

/// Records that a job has read every byte of the point and found it right.
pub async fn proven(store: &dyn Store, id: &Id, job_id: &str, cancel: &CancellationToken) -> Result<(), Error> {
    append(store, id, PointEventKind::Proven { job_id: job_id.to_owned() }, cancel).await
}

/// Takes a listed point from the list; until `purge_time` it can be brought back. One that is deleted already keeps its time.
/// [`Error::PointProtected`] when it is held or immutable. Gives the time that counts.
pub async fn soft_delete(
    store: &dyn Store,
    id: &Id,
    purge_time: jiff::Timestamp,
    cancel: &CancellationToken,
) -> Result<jiff::Timestamp, Error> {
    let delete = async {
        loop {
            let state = read_now(store, id).await?;
            known_to_people(&state)?;
            if let Some(purge_time) = state.soft_deleted {
                settle(store, id).await?;
                return Ok::<_, Error>(purge_time);
            }
            if !state.is_listed() && state.wanted == Wanted::Present {
                // An undelete has not written the file yet.
                settle(store, id).await?;
                continue;
            }
            state.check_deletable(crate::clock::now())?;
            let place = if state.in_vault { Place::Hot } else { Place::Archive };
            let sealed = match store.get(&place.key(id), None).await {
                Err(store::Error::NotFound { .. }) => continue,
                other => other?,
            };
            if Id::of(&sealed) != *id {
                return Err(Error::damaged(
                    format!("snapshot {id}"),
                    "its bytes are not those that its name stands for",
                ));
            }
            let event = PointEventKind::SoftDeleted { purge_time, sealed_snapshot: STANDARD.encode(&sealed) };
            if put_event(store, id, state.events + 1, event).await? == Put::Created {
                settle(store, id).await?;
                return Ok(purge_time);
            }
        }
    };
    with_cancel(cancel, delete).await
}

/// Lists a soft-deleted point again, with the same snapshot bytes. One that is listed is left as it is. [`Error::PointNotFound`] when it is
/// purged: of this and a purge that race, the first in the log wins.
pub async fn undelete(store: &dyn Store, id: &Id, cancel: &CancellationToken) -> Result<(), Error> {
    let decide = |state: &PointState| {
        known_to_people(state)?;
        Ok(state.soft_deleted.is_some().then_some(PointEventKind::Undeleted))
    };
    change(store, id, cancel, decide).await?;
    with_cancel(cancel, settle(store, id)).await
}

/// Purges the soft-deleted points whose time has come by `now`, but not those that are held or immutable. Their data goes with later
/// prunes. Gives their ids.
pub async fn purge_due(store: &dyn Store, now: jiff::Timestamp, cancel: &CancellationToken) -> Result<Vec<Id>, Error> {
    purge(store, &read_all(store, cancel).await?, now, cancel).await
}

/// [`finish_interrupted`] and then [`purge_due`], at the cost of one of them. The states are those from before both.
pub(crate) async fn finish_and_purge(
    store: &dyn Store,
    now: jiff::Timestamp,
    cancel: &CancellationToken,
) -> Result<(u64, Vec<Id>, Vec<PointState>), Error> {
    let states = read_all(store, cancel).await?;
    let mended = finish(store, &states, cancel).await?;
    let purged = purge(store, &states, now, cancel).await?;
    Ok((mended, purged, states))
}

/// Of these, which were read some time ago: each is read once more before it is purged.
async fn purge(
    store: &dyn Store,
    states: &[PointState],
    now: jiff::Timestamp,
    cancel: &CancellationToken,
) -> Result<Vec<Id>, Error> {
    let due = |state: &PointState| is_due(state, now);
    let mut purged = Vec::new();
    for state in states.iter().filter(|state| due(state)) {
        let decide = |state: &PointState| Ok(due(state).then_some(PointEventKind::Purged));
        if change(store, &state.id, cancel, decide).await? {
            purged.push(state.id);
        }
    }
    Ok(purged)
}

/// True when [`purge_due`] would purge it.
pub(crate) fn is_due(state: &PointState, now: jiff::Timestamp) -> bool {
    let time_has_come = state.soft_deleted.is_some_and(|purge_time| purge_time <= now);
    time_has_come && !state.purged && state.check_deletable(now).is_ok()
}

/// Takes an archived point's part out of the hot store: the copy in the archive is the point from then on. [`Error::PointNotFound`] when
/// it has no copy there; [`Error::PointProtected`] when the hot snapshot file is immutable, or on legal hold. A
/// hold that is in the log only does not matter: nothing is lost.
pub async fn remove_from_vault(store: &dyn Store, id: &Id, cancel: &CancellationToken) -> Result<(), Error> {
    let decide = |state: &PointState| {
        known_to_people(state)?;
        if !state.archived || !state.in_archive {
            return Err(Error::PointNotFound { id: state.id });
        }
        if state.in_vault {
            state.check_no_legal_hold()?;
        }
        match state.immutable_until {
            Some(until) if state.in_vault && until > crate::clock::now() => {
                Err(Error::PointProtected { id: state.id, detail: format!("it is immutable until {until}") })
            }
            _ => Ok((!state.removed_from_vault).then_some(PointEventKind::RemovedFromVault)),
        }
    };
    change(store, id, cancel, decide).await?;
    with_cancel(cancel, settle(store, id)).await
}

/// Records that a commit is given up for good: its publication has not happened, and never will. The caller must know that; a prune takes
/// the point's data from then on. Does nothing when the commit left no record, or has come to its end already, well or not; true when it
/// was given up by this call.
pub async fn abandon(store: &dyn Store, id: &Id, cancel: &CancellationToken) -> Result<bool, Error> {
    let decide = |state: &PointState| Ok((!state.is_settled()).then_some(PointEventKind::Abandoned));
    match change(store, id, cancel, decide).await {
        Err(Error::PointNotFound { .. }) => Ok(false),
        other => other,
    }
}

/// The points whose commit wrote its record and has not come to its end: it is going on, or nobody goes on with it and nobody has said so.
/// A point whose snapshot file was lost looks the same: only the job that made it tells.
///
/// Reads few logs: a point that was published, and is not listed now, has a second event.
pub async fn unfinished(store: &dyn Store, cancel: &CancellationToken) -> Result<Vec<PointState>, Error> {
    let unfinished = async {
        let files = &Files::list(store).await?;
        let there = |id: &Id| files.hot.contains_key(id) || files.archive.contains_key(id);
        let logs = list_logs(store).await?.into_iter().filter(|(id, count)| *count == 1 && !there(id));
        stream::iter(logs)
            .map(|(id, count)| async move { PointState::from_events(id, read_events(store, &id, count).await?, files) })
            .buffered(READS)
            .try_collect()
            .await
    };
    with_cancel(cancel, unfinished).await
}

/// True when the commit of that snapshot was given up. False when the vault does not know it.
pub(crate) async fn is_abandoned(store: &dyn Store, id: &Id) -> Result<bool, Error> {
    match read_now(store, id).await {
        Ok(state) => Ok(state.abandoned),
        Err(Error::PointNotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Brings every soft delete, undelete and removal that was interrupted to its end. Gives how many points it had to mend.
pub async fn finish_interrupted(store: &dyn Store, cancel: &CancellationToken) -> Result<u64, Error> {
    finish(store, &read_all(store, cancel).await?, cancel).await
}

/// Of these, which were read some time ago: the log is read once more before a file is touched.
async fn finish(store: &dyn Store, states: &[PointState], cancel: &CancellationToken) -> Result<u64, Error> {
    let mut mended = 0;
    for state in states {
        if !state.misplaced().is_empty() {
            with_cancel(cancel, settle(store, &state.id)).await?;
            mended += 1;
        }
    }
    Ok(mended)
}

/// What was never published is not for people to act on; what is purged is gone.
fn known_to_people(state: &PointState) -> Result<(), Error> {
    let was_published = state.is_listed() || state.wanted != Wanted::AsItIs;
    if state.purged || !was_published {
        return Err(Error::PointNotFound { id: state.id });
    }
    Ok(())
}

/// Reads the state, lets `decide` say which event follows it, and writes that under the next number; from the beginning when another event
/// took the number. False when there was nothing to write.
async fn change(
    store: &dyn Store,
    id: &Id,
    cancel: &CancellationToken,
    decide: impl Fn(&PointState) -> Result<Option<PointEventKind>, Error>,
) -> Result<bool, Error> {
    let change = async {
        loop {
            let state = read_now(store, id).await?;
            let Some(kind) = decide(&state)? else { return Ok::<_, Error>(false) };
            if put_event(store, id, state.events + 1, kind).await? == Put::Created {
                return Ok(true);
            }
        }
    };
    with_cancel(cancel, change).await
}

async fn put_event(store: &dyn Store, id: &Id, n: u64, event: PointEventKind) -> Result<Put, Error> {
    let event = PointEvent { version: records::VERSION, time: crate::clock::now(), event };
    records::put(store, &records::numbered(&records::point_events(id), n), &event).await
}

/// Makes the files what the log says, until the log has not grown meanwhile.
async fn settle(store: &dyn Store, id: &Id) -> Result<(), Error> {
    loop {
        let state = read_now(store, id).await?;
        for misplaced in state.misplaced() {
            match misplaced {
                Misplaced::Delete(place) => store.delete(&place.key(id)).await?,
                Misplaced::Write(place) => {
                    let sealed = state.sealed_snapshot()?.ok_or_else(|| {
                        Error::damaged(format!("the log of point {id}"), "it lacks the bytes of the snapshot")
                    })?;
                    store.put_if_absent(&place.key(id), sealed).await?;
                }
            }
        }
        if records::numbers(store, &records::point_events(id)).await?.last() == Some(&state.events) {
            return Ok(());
        }
    }
}
