//! Starts backups when their policies say so.
//!
//! Invariants:
//! - Only instances whose policy is followed have a schedule: not paused, stopped or deleted ones.
//! - Each slot starts one job at most: the slot is part of the job's request id, which the catalog keeps unique.
//! - Slots that were missed (agent down, backup still running) are caught up by one run, for the last of them, or skipped, as the policy
//!   says. Skipped ones are told.
//! - Clocks may jump: slots are computed anew from the wall clock at least every [`LONGEST_SLEEP`].

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};

use crate::catalog::{Catalog, Instance, Work};
use crate::expiry;
use crate::job::Jobs;
use crate::lifecycle;
use crate::policy::{self, Document, Due};

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
        for instance in self.catalog.instances().await?.into_iter().filter(|instance| instance.protection.is_active()) {
            let Some(policy) = self.catalog.policy(&instance.policy).await? else { continue };
            let policy = policy::parse(&policy.document)?;
            let wait = self.start_due_of(&instance, &policy, Timestamp::now()).await?;
            next = [next, wait].into_iter().flatten().min();
        }
        Ok(next)
    }

    /// The same for one instance.
    async fn start_due_of(
        &self,
        instance: &Instance,
        policy: &Document,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, Problem> {
        let mut done = self.catalog.last_slot(&instance.id).await?.unwrap_or(instance.create_time);
        loop {
            // Each turn deals with a later slot, so there is an end.
            done = match policy.due(done, now, &instance.id) {
                Due::Start { slot, late } => {
                    if !self.start(instance, policy, slot, late).await? {
                        return Ok(None);
                    }
                    slot
                }
                Due::Skip(slot) => {
                    tracing::warn!(instance = instance.name, %slot, "a backup was missed, and the policy says to skip it");
                    self.catalog.set_last_slot(&instance.id, slot).await?;
                    slot
                }
                Due::Wait(time) => return Ok(Some(time)),
                Due::Never => return Ok(None),
            };
        }
    }

    /// False when the slot has to wait for the end of another backup, or the instance has no schedule any more.
    async fn start(
        &self,
        instance: &Instance,
        policy: &Document,
        slot: Timestamp,
        late: bool,
    ) -> Result<bool, Problem> {
        let request = format!("slot:{}:{slot}", instance.id);
        // Backups of an instance run one after the other, so no other point comes before this one's.
        let points = expiry::facts(&*self.catalog, &instance.id).await?;
        let rule = policy::rule_for(policy, slot, &points).name.clone();
        let work = Work::Backup { rule, slot: Some(slot), keep_until: None };
        match self.jobs.start(instance, work, Some(request), true).await {
            Ok(job) => tracing::info!(job = job.id, instance = instance.name, %slot, late, "scheduled backup"),
            // The slot stays due, and is looked at again when that job has ended.
            Err(problem) if problem.reason == Reason::InstanceBusy => {
                tracing::info!(instance = instance.name, %slot, "a backup is running; the schedule waits for it");
                return Ok(false);
            }
            // It was stopped or paused at this very moment.
            Err(problem) if lifecycle::is_refusal(&problem) => return Ok(false),
            Err(problem) => return Err(problem),
        }
        self.catalog.set_last_slot(&instance.id, slot).await?;
        Ok(true)
    }
}

fn until(time: Timestamp) -> Duration {
    Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)
}

/// The next time at which an instance's schedule starts a backup.
pub fn next_backup(document: &Document, instance_id: &str) -> Option<Timestamp> {
    document.next_slot(Timestamp::now()).map(|slot| document.start_time(slot, instance_id))
}
