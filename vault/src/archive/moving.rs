//! Moving a point from the vault store into the archive.
//!
//! ```text
//!                                         killed behind it, the point is …           and the repetition
//! 1. copy blobs                           in the vault store                         copies what is missing
//! 2. verify                               in the vault store                         verifies again
//! 3. tiers, pack list                     in the vault store                         does what is not done
//! 4. snapshot file in the archive         in both, complete                          goes on behind the copy
//! 5. event `archived`                     in both, complete                          verifies, removes
//! 6. event `removed-from-vault`           in both, complete                          deletes the file, as the log says
//! 7. snapshot file in the hot store goes  in the archive, complete                   finds nothing to do
//! ```
//! Invariant: at every instant one of the two stores, or both, has the point complete and listed.
//!
//! Data in the hot store that only this point needed goes with later prunes.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::verify::verify;
use super::{Copied, copy_point};
use crate::error::Error;
use crate::id::Id;
use crate::meter::Meter;
use crate::points;
use crate::repository::Repository;

/// Copies the point into the archive, or verifies the copy that is there, and takes the point out of the hot store. May be repeated after an
/// error, a kill or a cancellation at any instant; a point that was moved is success.
///
/// As [`copy_point`]; and [`Error::PointProtected`] when the hot snapshot file is immutable or on legal hold: then the copy stays.
pub async fn move_point(
    repository: &Arc<Repository>,
    snapshot_id: &Id,
    job_id: &str,
    meter: &Arc<Meter>,
    cancel: &CancellationToken,
) -> Result<Copied, Error> {
    let copied = copy_point(repository, snapshot_id, job_id, meter, cancel).await?;
    if copied.existed {
        // A copy of months ago is the only one from now on.
        let archive = super::open(repository)?;
        let snapshot = archive.snapshot(snapshot_id, cancel).await?;
        verify(&archive, snapshot.tree, cancel).await?;
    }
    points::remove_from_vault(&**repository.store(), snapshot_id, cancel).await?;
    Ok(copied)
}
