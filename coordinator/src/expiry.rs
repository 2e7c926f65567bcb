//! Deletes points when the time is over that their policy gives them, and gives back the space of deleted ones.
//!
//! ```text
//! every hour, for each instance:
//!    points ─> policy::plan ─┬─ Expire ─> a job that soft-deletes the point; it can be undeleted until its purge time
//!                            └─ Purge, or a prune is half done ─> a prune
//! ```
//! Invariants:
//! - What is deleted, and how much of it in one run, is [`policy::plan`]'s word alone: the last good point stays, held and immutable ones
//!   too, and a clock that jumped deletes little.
//! - The clock that was trusted is kept before anything is deleted, so that a kill in a run does not make that run's step again.
//! - Deletions are jobs like everybody's: they are listed, they can be watched, and a kill in one is made good.
//! - Of an instance that was stopped nothing expires: its points stay, or are deleted all together ([`crate::lifecycle`]).
//! - A run that finds the instance's maintenance busy leaves the rest to the next run.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};

use crate::catalog::{Catalog, Instance, JobFilter, Point, ReportFigures, Work};
use crate::job::{Jobs, Shared};
use crate::lifecycle;
use crate::policy::{self, PointFacts, Run, Step, Stores, Warning};

/// Between two runs. The limits of a run are made for this.
const EVERY: Duration = Duration::from_secs(3600);
/// From a prune to the one that ends what it began: packs are deleted a day after they were marked at the earliest.
const PRUNE_AGAIN: SignedDuration = SignedDuration::from_hours(24);
/// How far back the last prune is looked for.
const PRUNES_SINCE: SignedDuration = SignedDuration::from_hours(24 * 60);

/// The task that deletes.
#[derive(Debug)]
pub struct Expiry {
    shared: Arc<Shared>,
    jobs: Jobs,
}

impl Expiry {
    /// It begins with [`Expiry::run`].
    pub fn new(shared: Arc<Shared>, jobs: Jobs) -> Self {
        Self { shared, jobs }
    }

    /// Runs at once and then every hour, until `stop`. A job that it has begun goes on then, or is interrupted like any other.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.run_once() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    async fn run_once(&self) {
        lifecycle::settle_all(&self.jobs, &CancellationToken::new()).await;
        let instances = match self.shared.catalog.instances().await {
            Ok(instances) => instances,
            Err(error) => return tracing::error!("expired points are looked for again in {EVERY:?}: {error}"),
        };
        for instance in instances {
            match self.expire(&instance).await {
                Ok(()) => {}
                Err(problem) if problem.reason == Reason::MaintenanceBusy => {
                    tracing::info!(
                        instance = instance.name,
                        "the next run deletes what has expired: {}",
                        problem.message
                    );
                }
                Err(problem) => {
                    tracing::error!(instance = instance.name, "expired points are not deleted: {}", problem.message);
                }
            }
        }
    }

    async fn expire(&self, instance: &Instance) -> Result<(), Problem> {
        let catalog = &self.shared.catalog;
        let Some(policy) = catalog.policy(&instance.policy).await? else { return Ok(()) };
        let document = policy::parse(&policy.document)?;
        let mut points = facts(&**catalog, &instance.id).await?;
        lifecycle::keep_listed(instance, &mut points);
        let clock = catalog.expiry_clock(&instance.id).await?;
        let now = Timestamp::now();
        let run = Run { now, clock, reference: None, protected: true };
        let plan = policy::plan(&document, &points, &run);
        for warning in plan.warnings.iter().filter(|_| !points.is_empty()) {
            match warning {
                Warning::Deferred { .. } => tracing::info!(instance = instance.name, "{warning}"),
                // That was asked for.
                Warning::NoGoodPoint if instance.protection.is_deleted() => {}
                _ => tracing::warn!(instance = instance.name, "{warning}"),
            }
        }
        catalog.set_expiry_clock(&instance.id, plan.clock).await?;
        let mut purge = false;
        for action in &plan.actions {
            match action.step {
                Step::Expire => self.delete(instance, &action.point).await?,
                Step::Purge => purge = true,
                // Policies with an archive are refused (policy::check_acted_on), until something moves points there.
                Step::Keep { .. } | Step::CopyToArchive | Step::MoveToArchive | Step::RemoveFromVault => {}
            }
        }
        if purge || self.is_prune_half_done(instance).await? {
            self.finish(instance, Work::Prune { dry_run: false }).await?;
        }
        lifecycle::go_on_deleting(&self.jobs, instance, plan.clock).await
    }

    /// Soft-deletes a point.
    async fn delete(&self, instance: &Instance, point: &str) -> Result<(), Problem> {
        let point_id =
            point.parse().map_err(|_| Problem::new(Reason::Internal, format!("{point} is no point's id")))?;
        let purge_time = self.shared.purge_time(&CancellationToken::new()).await?;
        tracing::info!(instance = instance.name, point, %purge_time, "the point has expired, and is soft-deleted");
        self.finish(instance, Work::DeletePoint { point_id, purge_time }).await
    }

    /// Starts a job and waits for its end, whatever that is: the job tells it.
    async fn finish(&self, instance: &Instance, work: Work) -> Result<(), Problem> {
        let job = self.jobs.start(instance, work, None, true).await?;
        while let Some(mut watch) = self.jobs.watch(&job.id) {
            // An error says that the job has ended.
            if watch.changed().await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// True when the last prune failed or left work for the next one, and was long enough ago.
    async fn is_prune_half_done(&self, instance: &Instance) -> Result<bool, Problem> {
        let from = Timestamp::now().checked_sub(PRUNES_SINCE).ok();
        let jobs = self.shared.catalog.jobs(JobFilter { from, to: None, limit: u32::MAX }).await?;
        let is_prune = |work: &Work| matches!(work, Work::Prune { dry_run: false });
        let last = jobs.into_iter().find(|job| job.instance_id == instance.id && is_prune(&job.work));
        let Some(job) = last.filter(|job| job.create_time + PRUNE_AGAIN <= Timestamp::now()) else { return Ok(false) };
        Ok(match job.report.and_then(|report| report.figures) {
            Some(ReportFigures::Prune(figures)) => {
                figures.packs_marked > 0 || figures.packs_noted > 0 || figures.packs_deleted > 0
            }
            // It failed, or was killed.
            _ => true,
        })
    }
}

/// An instance's points, deleted ones too, in the order in which they were committed.
pub(crate) async fn facts(catalog: &dyn Catalog, instance_id: &str) -> Result<Vec<PointFacts>, Problem> {
    let mut points = catalog.points(instance_id, None, u32::MAX).await?;
    points.extend(catalog.deleted_points(instance_id, None, u32::MAX).await?);
    // Backups of an instance run one after the other, and the ids of jobs grow with time.
    points.sort_by(|a, b| (&a.job_id, a.time).cmp(&(&b.job_id, b.time)));
    Ok(points.into_iter().map(fact).collect())
}

fn fact(point: Point) -> PointFacts {
    let standing = point.standing;
    PointFacts {
        id: point.id.to_string(),
        time: point.time,
        slot: point.slot,
        rule: point.rule,
        keep_until: None,
        held: standing.held.is_some(),
        immutable_until: standing.immutable_until,
        // Copies are made by hand, and end with their point.
        stores: Stores { vault: standing.in_vault, archived: standing.in_archive.then_some(point.time) },
        damaged: false,
        purge_time: standing.purge_time,
    }
}
