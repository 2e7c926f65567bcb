//! Legal holds of points: which files the storage is asked to hold, and which to let go.
//!
//! ```text
//!            first                  then              a kill between leaves                        which is ended by
//! hold       the files ([`hold`])   the event Held    files on hold that no event asks for         hold or release again
//! release    the event Released     the files         the same                                     release again
//! ```
//! Invariants:
//! - From the event `held` to the event `released` every file that the point stands on is on hold; [`release`] refuses a point that the
//!   log still holds ([`Error::PointProtected`]).
//! - Packs, config and keys are shared by points: what another held point stands on stays on hold ([`to_release`]). When what that is
//!   cannot be read, nothing is let go.
//! - Both are for a point wherever it is: in the hot store, in the archive store, in both, or soft-deleted (then its data, its log and no
//!   snapshot file).
//! - Repeating either does no harm.
//!
//! What is written for a point after its hold (an undeleted snapshot file, an event, a copy in the archive, a password record, a pack that
//! takes a damaged one's place) is put on hold by whoever wrote it, after the fact: [`complete`], [`complete_own`]. A kill between leaves such a
//! file without its hold until the next prune, which completes every point's.
//!
//! One hold or release of an instance at a time: the caller sees to it. A completion may run beside either. It looks afterwards for points
//! that were released meanwhile, and a release for points that have more files than it knew of.
//!
//! Limits: memory as for one index and 64 bytes for each blob of the points that are held. A hold that somebody set by other means on a file
//! of the point goes with its release. When a chunk lies in two packs one of them is held, and that may be another one when the hold is
//! released: then the first stays on hold, and a prune tells of a protected pack.
//!
//! A folder can do none of it ([`is_supported`]): there the event alone holds. What Azure does was tried on a fake service only.

use std::collections::BTreeSet;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use crate::archive::{
    self,
    blobs::{self, Needs},
};
use crate::blocking::with_cancel;
use crate::error::Error;
use crate::id::Id;
use crate::immutability::{self, CONCURRENT};
use crate::points::{self, PointState};
use crate::records;
use crate::repository::{FileKind, Repository, config_key, pack_key};
use crate::store::{self, Key, Store};

/// What the storage was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changed {
    /// Files that are on hold now, or are no longer.
    pub files: u64,
    /// Files that should be there and are not: a check tells more.
    pub missing: u64,
}

/// True when the instance's storage can put files on legal hold. Changes nothing; needs the same right as a hold.
pub async fn is_supported(store: &dyn Store, cancel: &CancellationToken) -> Result<bool, Error> {
    immutability::is_supported(store, &config_key(), cancel).await
}

/// Puts every file that the point stands on on legal hold; the event that holds it in the log comes after this. Gives up at the first
/// refusal; some files are on hold then: repeat it, or [`release`]. A point that is purged or was never listed has no files.
pub async fn hold(repository: &Repository, id: &Id, cancel: &CancellationToken) -> Result<Changed, Error> {
    let hold = async {
        let state = points::read(&**repository.store(), id, cancel).await?;
        let files = files_of(repository, &[&state], cancel).await?;
        Ok(set(&**repository.store(), files, true).await?)
    };
    with_cancel::<_, Error>(cancel, hold).await
}

/// Takes the hold off every file of the point that no other held point stands on; the log has ended the point's hold before this. Some
/// files may still be on hold after an error: repeat it. [`Error::PointProtected`] when the log says that the point is held.
pub async fn release(repository: &Repository, id: &Id, cancel: &CancellationToken) -> Result<Changed, Error> {
    let release = async {
        let store = &**repository.store();
        let states = points::read_all(store, cancel).await?;
        let state = states.iter().find(|state| state.id == *id).ok_or(Error::PointNotFound { id: *id })?;
        if let Some(note) = &state.held {
            return Err(Error::PointProtected { id: *id, detail: format!("it is held: {note}") });
        }
        let held: Vec<&PointState> = states.iter().filter(|other| is_held(other)).collect();
        let files = files_of(repository, &[state], cancel).await?;
        let kept = match held.is_empty() {
            true => BTreeSet::new(),
            false => files_of(repository, &held, cancel).await?,
        };
        let changed = set(store, to_release(files, &kept), false).await?;
        // A point that came to the archive meanwhile may stand on packs that were let go just now.
        let told = |states: &[&PointState]| states.iter().map(|state| (state.id, state.events)).collect::<Vec<_>>();
        let now = held_points(store, None, cancel).await?;
        let now: Vec<&PointState> = now.iter().collect();
        if told(&now) != told(&held) {
            set_missing(repository, &now, cancel).await?;
        }
        Ok(changed)
    };
    with_cancel::<_, Error>(cancel, release).await
}

/// True when the log of the point holds it, or of any point.
pub async fn is_any_held(store: &dyn Store, only: Option<&Id>, cancel: &CancellationToken) -> Result<bool, Error> {
    Ok(!held_points(store, only, cancel).await?.is_empty())
}

/// Puts on hold what the point, or every point that is held, stands on and what is not on hold yet. Does nothing for points that the log does
/// not hold. Gives the files that it had to hold. Repeat it after an error.
pub async fn complete(
    repository: &Repository,
    only: Option<&Id>,
    cancel: &CancellationToken,
) -> Result<Changed, Error> {
    let complete = async {
        let store = &**repository.store();
        let held = held_points(store, only, cancel).await?;
        let changed = set_missing(repository, &held.iter().collect::<Vec<_>>(), cancel).await?;
        for state in &held {
            // Released meanwhile: the release may have been at these files before.
            if points::read(store, &state.id, cancel).await?.held.is_none() {
                match release(repository, &state.id, cancel).await {
                    // And held again.
                    Ok(_) | Err(Error::PointProtected { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(changed)
    };
    with_cancel::<_, Error>(cancel, complete).await
}

/// The same for the files that are the point's alone, its log and its snapshot files, which needs no key. A hold that is released meanwhile
/// may stay on a few of them until it is released again.
pub async fn complete_own(store: &dyn Store, only: Option<&Id>, cancel: &CancellationToken) -> Result<Changed, Error> {
    let complete = async {
        let mut files = BTreeSet::new();
        for state in held_points(store, only, cancel).await? {
            files.extend(own_files(store, &state).await?);
        }
        Ok(set(store, files, true).await?)
    };
    with_cancel::<_, Error>(cancel, complete).await
}

/// The point, or all points, that the log holds.
async fn held_points(
    store: &dyn Store,
    only: Option<&Id>,
    cancel: &CancellationToken,
) -> Result<Vec<PointState>, Error> {
    let mut states = match only {
        Some(id) => vec![points::read(store, id, cancel).await?],
        None => points::read_all(store, cancel).await?,
    };
    states.retain(is_held);
    Ok(states)
}

/// Holds what is not on hold of what these points stand on: one listing, and a request for each such file.
async fn set_missing(
    repository: &Repository,
    states: &[&PointState],
    cancel: &CancellationToken,
) -> Result<Changed, Error> {
    if states.is_empty() {
        return Ok(Changed::default());
    }
    let store = &**repository.store();
    let mut files = files_of(repository, states, cancel).await?;
    let mut entries = store::list(store, "");
    while let Some(entry) = entries.next().await {
        let entry = entry?;
        if entry.protection.legal_hold {
            files.remove(&entry.key);
        }
    }
    Ok(set(store, files, true).await?)
}

/// What may be let go of a point's files when those in `kept` belong to points that are held.
pub fn to_release(mut files: BTreeSet<Key>, kept: &BTreeSet<Key>) -> BTreeSet<Key> {
    files.retain(|key| !kept.contains(key));
    files
}

fn exists(state: &PointState) -> bool {
    !state.purged && !state.abandoned
}

fn is_held(state: &PointState) -> bool {
    state.held.is_some() && exists(state)
}

/// Every file that these points stand on together, each once, by its key in the instance's store.
async fn files_of(
    repository: &Repository,
    states: &[&PointState],
    cancel: &CancellationToken,
) -> Result<BTreeSet<Key>, Error> {
    let mut files = BTreeSet::new();
    let standing: Vec<&PointState> = states.iter().copied().filter(|state| exists(state)).collect();
    let deleted = |state: &PointState| state.soft_deleted.is_some();
    let hot = |state: &&PointState| state.in_vault || (deleted(state) && !state.removed_from_vault);
    let hot: Vec<&PointState> = standing.iter().copied().filter(hot).collect();
    let archived = |state: &&PointState| state.in_archive || (deleted(state) && state.archived);
    let archived: Vec<&PointState> = standing.iter().copied().filter(archived).collect();
    if !hot.is_empty() {
        files.extend(data_of(repository, &hot, cancel).await?);
    }
    if !archived.is_empty() {
        for key in data_of(&archive::open(repository)?, &archived, cancel).await? {
            files.insert(archived_key(&key)?);
        }
    }
    for state in hot.iter().chain(&archived) {
        files.extend(own_files(&**repository.store(), state).await?);
    }
    Ok(files)
}

/// The point's log, and its snapshot files where they are.
async fn own_files(store: &dyn Store, state: &PointState) -> Result<Vec<Key>, Error> {
    let mut files = immutability::keys(store, &records::point_events(&state.id)).await?;
    let snapshot = FileKind::Snapshot.key(&state.id);
    if state.in_archive {
        files.push(archived_key(&snapshot)?);
    }
    if state.in_vault {
        files.push(snapshot);
    }
    Ok(files)
}

/// The key in the instance's store of a file of its archive.
fn archived_key(key: &Key) -> Result<Key, Error> {
    Key::new(format!("{}{key}", records::ARCHIVE)).map_err(Error::internal)
}

/// The packs of these points, and what opens them, by their keys in the repository's own store.
async fn data_of(
    repository: &Repository,
    states: &[&PointState],
    cancel: &CancellationToken,
) -> Result<Vec<Key>, Error> {
    let mut files = immutability::common_files(&**repository.store()).await?;
    let index = repository.load_index(cancel).await?;
    let mut needs = Needs::default();
    for state in states {
        let snapshot = match state.sealed_snapshot()? {
            Some(sealed) => repository.open_snapshot(&state.id, sealed).await?,
            None => repository.snapshot(&state.id, cancel).await?,
        };
        needs.add(repository, &index, snapshot.tree).await?;
    }
    let (data, trees) = (blobs::packs_of(&index, &needs.data)?, blobs::packs_of(&index, &needs.trees)?);
    files.extend(data.union(&trees).map(pack_key));
    Ok(files)
}

/// 16 at once. What is not there is counted, and does not keep the others from their hold.
async fn set(store: &dyn Store, files: BTreeSet<Key>, hold: bool) -> Result<Changed, store::Error> {
    let one = async |key: Key| match store.set_legal_hold(&key, hold).await {
        Ok(()) => Ok(Changed { files: 1, missing: 0 }),
        Err(store::Error::NotFound { .. }) => Ok(Changed { files: 0, missing: 1 }),
        Err(error) => Err(error),
    };
    let all: Vec<_> = files.into_iter().map(one).collect();
    let sum = |sum: Changed, one: Changed| async move {
        Ok(Changed { files: sum.files + one.files, missing: sum.missing + one.missing })
    };
    stream::iter(all).buffer_unordered(CONCURRENT).try_fold(Changed::default(), sum).await
}
