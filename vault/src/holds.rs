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
//! One hold or release of an instance at a time: the caller sees to it. A hold that is set while a release reads the logs could lose a file
//! that both points stand on.
//!
//! Limits: memory as for one index and 64 bytes for each blob of the points that are held. A hold that somebody set by other means on a file
//! of the point goes with its release. When a chunk lies in two packs one of them is held, and that may be another one when the hold is
//! released: then the first stays on hold, and a prune tells of a protected pack. What is written after the hold (an undeleted snapshot
//! file, a copy in the archive, a new password record) is not on hold until [`hold`] is repeated.
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
        let held: Vec<&PointState> = states.iter().filter(|other| other.held.is_some() && exists(other)).collect();
        let files = files_of(repository, &[state], cancel).await?;
        let kept = match held.is_empty() {
            true => BTreeSet::new(),
            false => files_of(repository, &held, cancel).await?,
        };
        Ok(set(store, to_release(files, &kept), false).await?)
    };
    with_cancel::<_, Error>(cancel, release).await
}

/// What may be let go of a point's files when those in `kept` belong to points that are held.
pub fn to_release(mut files: BTreeSet<Key>, kept: &BTreeSet<Key>) -> BTreeSet<Key> {
    files.retain(|key| !kept.contains(key));
    files
}

fn exists(state: &PointState) -> bool {
    !state.purged && !state.abandoned
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
        let with_file = hot.iter().filter(|state| state.in_vault).map(|state| state.id);
        files.extend(with_file.map(|id| FileKind::Snapshot.key(&id)));
        files.extend(data_of(repository, &hot, cancel).await?);
    }
    if !archived.is_empty() {
        let mut below: Vec<Key> = data_of(&archive::open(repository)?, &archived, cancel).await?;
        let with_file = archived.iter().filter(|state| state.in_archive).map(|state| state.id);
        below.extend(with_file.map(|id| FileKind::Snapshot.key(&id)));
        for key in below {
            files.insert(Key::new(format!("{}{key}", records::ARCHIVE)).map_err(Error::internal)?);
        }
    }
    for state in hot.iter().chain(&archived) {
        files.extend(immutability::keys(&**repository.store(), &records::point_events(&state.id)).await?);
    }
    Ok(files)
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
