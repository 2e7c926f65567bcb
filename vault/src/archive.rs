//! The archive store of an instance: copies of points for years, in the tier that costs least and takes hours to read.
//!
//! ```text
//! archive/repo/config, keys/       byte copies of the hot repository's: the same key opens both
//! archive/repo/data/               packs of up to 64 MiB; those of data blobs lie in Tier::Archive, those of tree blobs are online
//! archive/repo/index/, snapshots/  online; a point has the same snapshot id in both repositories
//! archive/packs/<n>.json           plain pack lists, as the hot ones
//! archive/prune/<n>.json           packs that were deleted, written before they are
//! archive/rehydrated/data/…        copies of archived packs that can be read, while a restore needs them
//! archive/rehydrated/requests/<job>.json   which restore needs them, and since when
//! ```
//! Invariants:
//! - A point is in the archive if and only if its snapshot file is in `archive/repo/snapshots/`; that is written last. Order of
//!   [`copy_point`]: config and keys, packs, the indexes that name them, all of it read back (`verify.rs`), tiers, pack list, snapshot,
//!   event `archived`. A kill anywhere leaves what the repetition takes up, and nothing that is listed.
//! - Only blobs that the archive does not have are copied. Each is opened and hashed on its way, and its sealed bytes are kept as they are.
//! - Packs are never rewritten. They are deleted whole, when nothing needs any blob of them, 180 days after they came at the earliest:
//!   Azure charges for these days anyway.
//! - The archive lies in the instance's own store: a credential that may work on the instance may work on its archive.
//! - Copying, pruning and removing run under the instance's maintenance lease, one at a time; restores may run beside them.
//!
//! [`move_point`] copies a point and takes it out of the hot store; its module has the table of what a kill leaves.
//!
//! Not here: which point is archived when (the policy says it), and waiting for a rehydration (the caller asks again).

use tokio_util::sync::CancellationToken;

use crate::blocking::with_cancel;
use crate::error::Error;
use crate::id::Id;
use crate::repository::{FileKind, Repository};
use crate::store::Shared;

pub(crate) mod blobs;
mod copy;
mod moving;
mod prune;
mod rehydrate;
mod verify;
mod view;

pub use copy::{Copied, copy_point};
pub use moving::move_point;
pub use prune::{MINIMUM_DAYS, PruneReport, prune};
pub use rehydrate::{Rehydration, Request, clean_up_rehydrated, rehydrate, rehydration_state, requests};

/// Where readable copies of archived packs lie, below [`crate::records::ARCHIVE`]: `data/` below it is as `repo/data/`.
const REHYDRATED: &str = "rehydrated/data/";
/// Where the requests for them lie.
const REQUESTS: &str = "rehydrated/requests/";

/// The archive of an instance as a store of its own, for [`Repository::open`] and for checks: keys are as in the hot store (`repo/…`,
/// `packs/…`). A pack that is archived is read from its rehydrated copy when there is one, else it is [`crate::store::Error::Archived`].
pub fn store(instance: &Shared) -> Result<Shared, Error> {
    Ok(view::View::over(instance)?)
}

/// The archive's repository, opened with the key of the hot one. Sends nothing: a point that is not in the archive is told when it is read.
pub fn open(repository: &Repository) -> Result<Repository, Error> {
    Ok(repository.over(store(repository.store())?))
}

/// True when the point has a complete copy in the archive.
pub async fn contains(instance: &Shared, snapshot_id: &Id, cancel: &CancellationToken) -> Result<bool, Error> {
    let archive = store(instance)?;
    Ok(with_cancel(cancel, archive.head(&FileKind::Snapshot.key(snapshot_id))).await?.is_some())
}
