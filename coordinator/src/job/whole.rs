//! What is done to all points of an instance: deleting them when its protection ends, and bringing them back.
//!
//! Invariants:
//! - Each point is deleted or brought back as by a job of its own; one that a hold or a date keeps stays, and is named.
//! - Whatever an earlier life has begun is ended first, so the job may be killed at any point and simply runs again.

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::Id;

use super::{End, Jobs, Outcome, maintenance};
use crate::catalog::{Instance, Job, StoredProblem, Work};
use crate::lifecycle::{self, Change};

/// Points that a refusal names.
const NAMED: usize = 3;

/// True for jobs of this module: a restart goes on with them.
pub(super) fn is_whole(work: &Work) -> bool {
    matches!(work, Work::StopProtection { purge_time: Some(_) } | Work::UndeleteInstance)
}

/// Soft-deletes every listed point; until `purge_time` they can be brought back. Points that are kept fail the job at its end, by name; the
/// others are deleted.
pub(super) async fn delete(
    jobs: &Jobs,
    job: &Job,
    purge_time: Timestamp,
    cancel: &CancellationToken,
) -> Result<End, Problem> {
    if let Err(problem) = maintenance::clean_up(jobs, job, cancel).await {
        return if jobs.inner.stop.is_cancelled() { Ok(End::LeftToRestart) } else { Err(problem) };
    }
    let instance = instance_of(jobs, job).await?;
    if !instance.protection.is_deleted() {
        // It was brought back while this job waited for the next start.
        return Ok(End::Done(Outcome::default()));
    }
    let points = jobs.shared.catalog.points(&job.instance_id, None, u32::MAX).await?;
    let points = points.into_iter().map(|point| point.id).collect();
    let kept = match each(jobs, job, points, |point_id| Work::DeletePoint { point_id, purge_time }, cancel).await? {
        Steps::Done(kept) => kept,
        Steps::LeftToRestart => return Ok(End::LeftToRestart),
    };
    if kept.is_empty() {
        return Ok(End::Done(Outcome::default()));
    }
    let named: Vec<&str> = kept.iter().take(NAMED).map(String::as_str).collect();
    let more = if kept.len() > NAMED { format!("; and {} more", kept.len() - NAMED) } else { String::new() };
    let message = format!("points of {} are not deleted: {}{more}", instance.name, named.join("; "));
    let fix = "Release them, or wait until their dates; they are deleted within the hour then. Or bring all back: vaultferry instance \
               undelete INSTANCE.";
    Err(Problem::new(Reason::DataProtected, message).with_fix(fix))
}

/// Brings back the points that were deleted with the instance, and then the instance as it was. Points that are gone for good are told as
/// warnings.
pub(super) async fn undelete(jobs: &Jobs, job: &Job, cancel: &CancellationToken) -> Result<End, Problem> {
    if let Err(problem) = maintenance::clean_up(jobs, job, cancel).await {
        return if jobs.inner.stop.is_cancelled() { Ok(End::LeftToRestart) } else { Err(problem) };
    }
    let instance = instance_of(jobs, job).await?;
    let Some((_, purge_time)) = lifecycle::undeleted(&instance, vaultferry_vault::clock::now())? else {
        return Ok(End::Done(Outcome::default()));
    };
    let deleted = jobs.shared.catalog.deleted_points(&job.instance_id, None, u32::MAX).await?;
    let with_it = deleted.into_iter().filter(|point| point.standing.purge_time == Some(purge_time));
    let points = with_it.map(|point| point.id).collect();
    let lost = match each(jobs, job, points, |point_id| Work::UndeletePoint { point_id }, cancel).await? {
        Steps::Done(lost) => lost,
        Steps::LeftToRestart => return Ok(End::LeftToRestart),
    };
    let stop = &jobs.inner.stop;
    let change = match Change::begin(jobs, &job.instance_id, stop).await {
        Err(_) if stop.is_cancelled() => return Ok(End::LeftToRestart),
        change => change?,
    };
    if let Some((protection, _)) = lifecycle::undeleted(change.instance(), vaultferry_vault::clock::now())? {
        // The slots that passed meanwhile were not missed.
        jobs.shared.catalog.set_last_slot(&job.instance_id, vaultferry_vault::clock::now()).await?;
        let wanted = Instance { protection, ..change.instance().clone() };
        match change.write(wanted, stop).await {
            Err(_) if stop.is_cancelled() => return Ok(End::LeftToRestart),
            written => written?,
        };
    }
    let gone = |message: String| StoredProblem::from(&Problem::new(Reason::PointNotFound, message));
    Ok(End::Done(Outcome { warnings: lost.into_iter().map(gone).collect(), ..Outcome::default() }))
}

/// How far the steps came.
enum Steps {
    /// To their end; these points were left as they are, and why.
    Done(Vec<String>),
    /// The agent stops.
    LeftToRestart,
}

async fn each(
    jobs: &Jobs,
    job: &Job,
    points: Vec<Id>,
    work: impl Fn(Id) -> Work,
    cancel: &CancellationToken,
) -> Result<Steps, Problem> {
    let mut left = Vec::new();
    for point_id in points {
        let step = Job { work: work(point_id), ..job.clone() };
        match maintenance::run(jobs, &step, cancel).await {
            Ok(End::LeftToRestart) => return Ok(Steps::LeftToRestart),
            Ok(End::Done(_) | End::Recorded) => {}
            Err(problem) if matches!(problem.reason, Reason::DataProtected | Reason::PointNotFound) => {
                left.push(problem.message);
            }
            Err(problem) => return Err(problem),
        }
    }
    Ok(Steps::Done(left))
}

async fn instance_of(jobs: &Jobs, job: &Job) -> Result<Instance, Problem> {
    let instance = jobs.shared.catalog.instance(&job.instance_id).await?;
    instance.ok_or_else(|| Problem::new(Reason::InstanceNotFound, "the instance is gone"))
}
