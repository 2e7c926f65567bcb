//! Starts backups when their policies say so.
//!
//! Invariants:
//! - Each slot starts one job at most: the slot is part of the job's request id, which the catalog keeps unique.
//! - Slots that were missed (agent down, backup still running) are caught up by one run, for the last of them.
//! - Clocks may jump: slots are computed anew from the wall clock at least every [`LONGEST_SLEEP`].

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};

use crate::catalog::{Catalog, Instance, Work};
use crate::job::Jobs;
use crate::policy::{self, DEFAULT_RULE};

/// A jump of the clock is noticed after this at the latest.
const LONGEST_SLEEP: Duration = Duration::from_secs(20);

/// The scheduler's task.
#[derive(Debug)]
pub struct Scheduler {
    catalog: Arc<dyn Catalog>,
    jobs: Jobs,
    changed: Arc<Notify>,
}

impl Scheduler {
    /// `changed` is notified when instances or policies change.
    pub fn new(catalog: Arc<dyn Catalog>, jobs: Jobs, changed: Arc<Notify>) -> Self {
        Self { catalog, jobs, changed }
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            let sleep = match self.start_due().await {
                Ok(next) => next.map_or(LONGEST_SLEEP, until).min(LONGEST_SLEEP),
                Err(problem) => {
                    tracing::error!("the scheduler tries again in {LONGEST_SLEEP:?}: {problem}");
                    LONGEST_SLEEP
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(sleep) => {}
                () = self.changed.notified() => {}
                () = self.jobs.wait_for_an_end() => {}
            }
        }
    }

    /// Starts what is due, and tells when the next one is.
    async fn start_due(&self) -> Result<Option<Timestamp>, Problem> {
        let mut next = None;
        for instance in self.catalog.instances().await? {
            let Some(policy) = self.catalog.policy(&instance.policy).await? else { continue };
            let policy = policy::parse(&policy.document)?;
            let now = Timestamp::now();
            let last = self.catalog.last_slot(&instance.id).await?.unwrap_or(instance.create_time);
            if let Some(slot) = policy.last_slot(last, now) {
                self.start(&instance, slot).await?;
            }
            let slot = policy.next_slot(now);
            next = [next, slot].into_iter().flatten().min();
        }
        Ok(next)
    }

    async fn start(&self, instance: &Instance, slot: Timestamp) -> Result<(), Problem> {
        let request = format!("slot:{}:{slot}", instance.id);
        let work = Work::Backup { rule: DEFAULT_RULE.to_owned() };
        match self.jobs.start(instance, work, Some(request), true).await {
            Ok(job) => tracing::info!(job = job.id, instance = instance.name, %slot, "scheduled backup"),
            // The slot stays due, and is looked at again when that job has ended.
            Err(problem) if problem.reason == Reason::InstanceBusy => {
                tracing::info!(instance = instance.name, %slot, "a backup is running; the schedule waits for it");
                return Ok(());
            }
            Err(problem) => return Err(problem),
        }
        Ok(self.catalog.set_last_slot(&instance.id, slot).await?)
    }
}

fn until(time: Timestamp) -> Duration {
    Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)
}

/// The next time at which an instance's schedule starts a backup.
pub fn next_backup(document: &policy::Document) -> Option<Timestamp> {
    document.next_slot(Timestamp::now())
}
