//! The end of a deleted instance: its points are deleted, then purged with its space, then it is gone.

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use vaultferry_proto::Problem;
use vaultferry_vault::records::Protection;

use super::Change;
use crate::catalog::{Instance, Point, ReportFigures, Status, Work};
use crate::job::Jobs;

/// From a prune to the next one, as long as there is something left for it.
const PRUNE_AGAIN: SignedDuration = SignedDuration::from_hours(24);
/// How far back the last prune is looked for: an instance that is purged is pruned once a day.
const PRUNES_SINCE: SignedDuration = SignedDuration::from_hours(7 * 24);

/// For retention's run, at the end of an instance's turn; `clock` is the time by which it deletes. Of a deleted instance: deletes the points
/// that are listed yet (an interrupted deletion, a hold that was released); prunes when its time is over; forgets it when nothing is left.
pub(crate) async fn go_on_deleting(jobs: &Jobs, instance: &Instance, clock: Timestamp) -> Result<(), Problem> {
    let Protection::Deleted { purge_time, .. } = instance.protection else { return Ok(()) };
    let catalog = &jobs.shared().catalog;
    let listed = catalog.points(&instance.id, None, u32::MAX).await?;
    if listed.iter().any(|point| is_deletable(point, clock)) {
        let purge_time = match clock < purge_time {
            true => purge_time,
            // What is deleted so late can be brought back for some days, too.
            false => jobs.shared().purge_time(&CancellationToken::new()).await?,
        };
        let work = Work::StopProtection { purge_time: Some(purge_time) };
        return jobs.start(instance, work, None, true).await.map(|_| ());
    }
    let is_over = clock >= purge_time && listed.is_empty();
    if !is_over || !catalog.deleted_points(&instance.id, None, 1).await?.is_empty() {
        return Ok(());
    }
    match last_prune(jobs, instance).await? {
        LastPrune::Clean => forget(jobs, instance).await,
        LastPrune::Waits => Ok(()),
        LastPrune::Due => jobs.start(instance, Work::Prune { dry_run: false }, None, true).await.map(|_| ()),
    }
}

/// True when neither a hold nor a date keeps the point.
pub(crate) fn is_deletable(point: &Point, now: Timestamp) -> bool {
    point.standing.held.is_none() && point.standing.immutable_until.is_none_or(|until| until <= now)
}

enum LastPrune {
    /// It found nothing to do, and left nothing.
    Clean,
    /// It is not long ago.
    Waits,
    /// There was none, or it left something for this one.
    Due,
}

async fn last_prune(jobs: &Jobs, instance: &Instance) -> Result<LastPrune, Problem> {
    let now = vaultferry_vault::clock::now();
    let from = now.checked_sub(PRUNES_SINCE).unwrap_or(Timestamp::MIN);
    let all = jobs.shared().catalog.jobs_of(&instance.id, &["prune"], from, u32::MAX).await?;
    let is_prune = |work: &Work| matches!(work, Work::Prune { dry_run: false });
    let last = all.into_iter().find(|job| is_prune(&job.work));
    let Some(job) = last else { return Ok(LastPrune::Due) };
    if let Status::Completed { .. } = job.status
        && let Some(ReportFigures::Prune(figures)) = job.report.and_then(|report| report.figures)
        && figures.packs_marked + figures.packs_noted + figures.packs_deleted + figures.packs_protected == 0
        && figures.points_purged == 0
    {
        return Ok(LastPrune::Clean);
    }
    Ok(if job.create_time + PRUNE_AGAIN <= now { LastPrune::Due } else { LastPrune::Waits })
}

/// The instance is gone: its name and its source are free. What stays in the vault are its records, some KiB.
async fn forget(jobs: &Jobs, instance: &Instance) -> Result<(), Problem> {
    let cancel = CancellationToken::new();
    let change = Change::begin(jobs, &instance.id, &cancel).await?;
    // It may have been brought back since.
    if change.instance().protection != instance.protection || jobs.check_idle(change.instance()).await.is_err() {
        return Ok(());
    }
    let gone = Instance {
        protection: Protection::Purged { since: vaultferry_vault::clock::now() },
        ..change.instance().clone()
    };
    change.write(gone, &cancel).await?;
    tracing::info!(instance = instance.name, "the deleted instance's time is over, and nothing of it is left");
    Ok(())
}
