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
//! What is written for a point after its hold (an undeleted snapshot file, an event, a copy in the archive) is put on hold by whoever wrote it,
//! after the fact: [`complete`], [`complete_own`]. Password records, packs that take a damaged one's place, and what a kill left are without
//! their hold until the next prune, which completes every point's. A point that cannot be read keeps no other from its completion, and is
//! told after it.
//!
//! One hold or release of an instance at a time: the caller sees to it. A completion may run beside either. It looks afterwards for points
//! that were released meanwhile, and a release for points that have more files than it knew of.
//!
//! Limits: memory as for one index, 64 bytes for each blob of the points that are held, and the name of each file that is on hold. A hold that
//! somebody set by other means on a file of the point goes with its release. When a chunk lies in two packs one of them is held, and that may
//! be another one when the hold is released: then the first stays on hold, and a prune tells of a protected pack.
//!
//! A folder can do none of it ([`is_supported`]): there the event alone holds. What Azure does was tried on a fake service only.

use std::collections::BTreeSet;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use crate::archive::{self, blobs::Needs};
use crate::blocking::with_cancel;
use crate::error::Error;
use crate::id::Id;
use crate::immutability::{self, CONCURRENT};
use crate::points::{self, PointState};
use crate::records;
use crate::repository::index::Index;
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

impl Changed {
    fn and(self, other: Self) -> Self {
        Self { files: self.files + other.files, missing: self.missing + other.missing }
    }
}

/// True when the instance's storage can put files on legal hold. Needs the same right as a hold. Writes back what the config has, so it must
/// not run beside a hold, a release or a completion.
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
        if told(&now.iter().collect::<Vec<_>>()) != told(&held) {
            set_missing(repository, &now, cancel).await?;
        }
        Ok(changed)
    };
    with_cancel::<_, Error>(cancel, release).await
}

/// The point when the log holds it, or all points that it holds: for [`complete`] and [`complete_own`].
pub async fn held_points(
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

/// Puts on hold what these points stand on and what is not on hold yet; `held` is what [`held_points`] has told. What was released since
/// is let go again. Gives the files that it had to hold. Repeat it after an error: what could be read is on hold then.
/// [`store::Error::Unsupported`] where the storage can hold nothing; that costs a listing and a request.
pub async fn complete(
    repository: &Repository,
    held: &[PointState],
    cancel: &CancellationToken,
) -> Result<Changed, Error> {
    let complete = async {
        let store = &**repository.store();
        let completed = set_missing(repository, held, cancel).await;
        if is_unsupported(&completed) {
            return completed;
        }
        for state in held {
            // Released meanwhile: the release may have been at these files before.
            if points::read(store, &state.id, cancel).await?.held.is_none() {
                match release(repository, &state.id, cancel).await {
                    // And held again.
                    Ok(_) | Err(Error::PointProtected { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        completed
    };
    with_cancel::<_, Error>(cancel, complete).await
}

/// The same for the files that are the points' alone, their logs and their snapshot files, which needs no key.
pub async fn complete_own(
    store: &dyn Store,
    held: &[PointState],
    cancel: &CancellationToken,
) -> Result<Changed, Error> {
    let complete = async {
        let mut files = BTreeSet::new();
        for state in held {
            files.extend(own_files(store, state).await?);
        }
        let completed = set(store, files, true).await.map_err(Error::from);
        if is_unsupported(&completed) {
            return completed;
        }
        for state in held {
            // Released meanwhile, or held again: the files follow the log until it stays as it is.
            let mut on_hold = true;
            loop {
                let now = points::read(store, &state.id, cancel).await?;
                if is_held(&now) == on_hold {
                    break;
                }
                on_hold = !on_hold;
                set(store, own_files(store, &now).await?.into_iter().collect(), on_hold).await?;
            }
        }
        completed
    };
    with_cancel::<_, Error>(cancel, complete).await
}

/// The storage refused the first hold, so there is nothing to let go.
fn is_unsupported(result: &Result<Changed, Error>) -> bool {
    matches!(result, Err(Error::Store(store::Error::Unsupported { .. })))
}

/// Holds what is not on hold of what these points stand on: one listing, and a request for each such file. First what is the points' alone:
/// it is known without their trees, and where the storage can hold nothing this tells before anything large is read. After an error what
/// could be read is on hold, unless the storage itself refused.
async fn set_missing(
    repository: &Repository,
    states: &[PointState],
    cancel: &CancellationToken,
) -> Result<Changed, Error> {
    if states.is_empty() {
        return Ok(Changed::default());
    }
    let store = &**repository.store();
    let states: Vec<&PointState> = states.iter().collect();
    let on_hold = on_hold(store).await?;
    let own = set(store, without(own_files_of(store, &states).await?, &on_hold), true).await?;
    let mut data = BTreeSet::new();
    let known = add_data(repository, &states, &mut data, cancel).await;
    let data = set(store, without(data, &on_hold), true).await?;
    known.map(|()| own.and(data))
}

/// Every file of the instance that is on legal hold.
async fn on_hold(store: &dyn Store) -> Result<BTreeSet<Key>, Error> {
    let mut files = BTreeSet::new();
    let mut entries = store::list(store, "");
    while let Some(entry) = entries.next().await {
        let entry = entry?;
        if entry.protection.legal_hold {
            files.insert(entry.key);
        }
    }
    Ok(files)
}

/// What may be let go of a point's files when those in `kept` belong to points that are held.
pub fn to_release(files: BTreeSet<Key>, kept: &BTreeSet<Key>) -> BTreeSet<Key> {
    without(files, kept)
}

fn without(mut files: BTreeSet<Key>, others: &BTreeSet<Key>) -> BTreeSet<Key> {
    files.retain(|key| !others.contains(key));
    files
}

fn exists(state: &PointState) -> bool {
    !state.purged && !state.abandoned
}

fn is_held(state: &PointState) -> bool {
    state.held.is_some() && exists(state)
}

/// Something of it is in the hot store. Of a soft-deleted point this is its data.
fn is_hot(state: &PointState) -> bool {
    exists(state) && (state.in_vault || (state.soft_deleted.is_some() && !state.removed_from_vault))
}

/// The same of the archive.
fn is_archived(state: &PointState) -> bool {
    exists(state) && (state.in_archive || (state.soft_deleted.is_some() && state.archived))
}

/// Every file that these points stand on together, each once, by its key in the instance's store.
async fn files_of(
    repository: &Repository,
    states: &[&PointState],
    cancel: &CancellationToken,
) -> Result<BTreeSet<Key>, Error> {
    let mut files = own_files_of(&**repository.store(), states).await?;
    add_data(repository, states, &mut files, cancel).await?;
    Ok(files)
}

/// Those of them that belong to one point each.
async fn own_files_of(store: &dyn Store, states: &[&PointState]) -> Result<BTreeSet<Key>, Error> {
    let mut files = BTreeSet::new();
    for state in states {
        if is_hot(state) || is_archived(state) {
            files.extend(own_files(store, state).await?);
        }
    }
    Ok(files)
}

/// Adds those that points share. After an error, the first of possibly several, what could be read was added.
async fn add_data(
    repository: &Repository,
    states: &[&PointState],
    files: &mut BTreeSet<Key>,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let hot: Vec<&PointState> = states.iter().copied().filter(|state| is_hot(state)).collect();
    let archived: Vec<&PointState> = states.iter().copied().filter(|state| is_archived(state)).collect();
    let in_hot = match hot.is_empty() {
        true => Ok(()),
        false => add_data_of(repository, &hot, files, cancel).await,
    };
    if archived.is_empty() {
        return in_hot;
    }
    let mut below = BTreeSet::new();
    let in_archive = add_data_of(&archive::open(repository)?, &archived, &mut below, cancel).await;
    for key in &below {
        files.insert(archived_key(key)?);
    }
    in_hot.and(in_archive)
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

/// Adds the packs of these points, and what opens them, by their keys in the repository's own store. Errors as for [`add_data`].
async fn add_data_of(
    repository: &Repository,
    states: &[&PointState],
    files: &mut BTreeSet<Key>,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    files.extend(immutability::common_files(&**repository.store()).await?);
    let index = repository.load_index(cancel).await?;
    let (mut needs, mut packs, mut known) = (Needs::default(), BTreeSet::new(), Ok(()));
    for state in states {
        known = known.and(add_needs(repository, &index, state, &mut needs, cancel).await);
    }
    for id in needs.data.iter().chain(&needs.trees) {
        match index.find(id) {
            Ok(place) => {
                packs.insert(index.pack_id(place.pack));
            }
            Err(error) => known = known.and(Err(error)),
        }
    }
    files.extend(packs.iter().map(pack_key));
    known
}

async fn add_needs(
    repository: &Repository,
    index: &Index,
    state: &PointState,
    needs: &mut Needs,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let snapshot = match state.sealed_snapshot()? {
        Some(sealed) => repository.open_snapshot(&state.id, sealed).await?,
        None => repository.snapshot(&state.id, cancel).await?,
    };
    needs.add(repository, index, snapshot.tree).await
}

/// 16 at once. What is not there is counted, and does not keep the others from their hold.
async fn set(store: &dyn Store, files: BTreeSet<Key>, hold: bool) -> Result<Changed, store::Error> {
    let one = async |key: Key| match store.set_legal_hold(&key, hold).await {
        Ok(()) => Ok(Changed { files: 1, missing: 0 }),
        Err(store::Error::NotFound { .. }) => Ok(Changed { files: 0, missing: 1 }),
        Err(error) => Err(error),
    };
    let all: Vec<_> = files.into_iter().map(one).collect();
    let sum = |sum: Changed, one: Changed| async move { Ok(sum.and(one)) };
    stream::iter(all).buffer_unordered(CONCURRENT).try_fold(Changed::default(), sum).await
}
