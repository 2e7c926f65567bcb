//! Starts backups when their policies say so.
//!
//! Invariants:
//! - Only instances whose policy is followed have a schedule: not paused, stopped or deleted ones.
//! - Each slot starts one job at most: the slot is part of the job's request id, which the catalog keeps unique.
//! - Slots that were missed (agent down, backup still running) are caught up by one run, for the last of them, or skipped, as the policy
//!   says. Skipped ones are told.
//! - A look costs what is due, not what is there ([`agenda`]): the catalog is read again only when instances or policies have changed, when
//!   the clock was set back, and after an error.
//! - Clocks may jump: the wall clock is looked at at least every [`LONGEST_SLEEP`].

use std::collections::HashMap;
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

mod agenda;
#[cfg(test)]
mod tests;

use agenda::{Agenda, Scheduled};

/// A jump of the clock is noticed after this at the latest.
pub(crate) const LONGEST_SLEEP: Duration = Duration::from_secs(20);

/// An instance that has to wait is not due at the same moment again.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// The scheduler's task.
#[derive(Debug)]
pub struct Scheduler {
    catalog: Arc<dyn Catalog>,
    jobs: Jobs,
    changed: Arc<Notify>,
    agenda: Agenda,
    /// The catalog's state that the agenda is of; none: it has to be read.
    seen: Option<u64>,
    /// When the agenda was last looked at.
    last_look: Timestamp,
    /// Instances whose slot waits for the end of a job, by id.
    busy: Vec<String>,
    /// The newest versions of all policies, by name: none for a document that this program does not understand.
    documents: HashMap<String, (u32, Option<Arc<Document>>)>,
}

/// What has become of an instance that was due.
enum Looked {
    /// It is due again then; `None`: never.
    Again(Option<Timestamp>),
    /// Its slot waits for the end of another job.
    Busy,
}

impl Scheduler {
    /// `changed` is notified when instances or policies change.
    pub fn new(catalog: Arc<dyn Catalog>, jobs: Jobs, changed: Arc<Notify>) -> Self {
        Self {
            catalog,
            jobs,
            changed,
            agenda: Agenda::default(),
            seen: None,
            last_look: Timestamp::UNIX_EPOCH,
            busy: Vec::new(),
            documents: HashMap::new(),
        }
    }

    /// Runs until `stop`, looking at the clock after `longest_sleep` at the latest.
    pub async fn run(mut self, longest_sleep: Duration, stop: CancellationToken) {
        loop {
            let sleep = match self.start_due().await {
                Ok(next) => next.map_or(longest_sleep, until).min(longest_sleep),
                Err(problem) => {
                    // Where it stopped is not known: everything is looked at anew.
                    (self.seen, self.agenda) = (None, Agenda::default());
                    tracing::error!("the scheduler tries again in {longest_sleep:?}: {problem}");
                    longest_sleep
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
    async fn start_due(&mut self) -> Result<Option<Timestamp>, Problem> {
        // Asked before the catalog is read: a change in between is seen the next time.
        let generation = self.catalog.generation().await?;
        let now = vaultferry_vault::clock::now();
        if self.seen != Some(generation) {
            let all = self.read().await?;
            self.agenda.replace(now, all);
            self.seen = Some(generation);
        }
        if now < self.last_look {
            self.agenda.look_at_all(now);
        }
        self.last_look = now;
        for id in std::mem::take(&mut self.busy) {
            if let Some(done) = self.agenda.done(&id) {
                self.agenda.note(&id, done, Some(now));
            }
        }
        while let Some(scheduled) = self.agenda.due(now).cloned() {
            let Scheduled { instance, policy, mut done } = scheduled;
            match self.start_due_of(&instance, &policy, &mut done, now).await? {
                Looked::Again(next) => self.agenda.note(&instance.id, done, next),
                Looked::Busy => {
                    self.agenda.note(&instance.id, done, None);
                    self.busy.push(instance.id);
                }
            }
        }
        Ok(self.agenda.next())
    }

    /// Every instance that has a schedule.
    async fn read(&mut self) -> Result<Vec<Scheduled>, Problem> {
        let policies = self.catalog.policies().await?;
        let mut before = std::mem::take(&mut self.documents);
        for policy in policies {
            let known = before.remove(&policy.name).filter(|(version, _)| *version == policy.version);
            let document = known.map(|(_, document)| document).unwrap_or_else(|| {
                let parsed = policy::parse(&policy.document).map_err(|problem| {
                    tracing::error!(policy = policy.name, "nothing is backed up by this policy: {problem}");
                });
                parsed.ok().map(Arc::new)
            });
            self.documents.insert(policy.name, (policy.version, document));
        }
        let mut slots = self.catalog.last_slots().await?;
        let active = self.catalog.instances().await?.into_iter().filter(|instance| instance.protection.is_active());
        let scheduled = active.filter_map(|instance| {
            let (_, document) = self.documents.get(&instance.policy)?;
            let done = slots.remove(&instance.id).unwrap_or(instance.create_time);
            Some(Scheduled { policy: document.clone()?, done, instance })
        });
        Ok(scheduled.collect())
    }

    /// The same for one instance, whose slots up to `done` are dealt with; it is moved on with each slot.
    async fn start_due_of(
        &self,
        instance: &Instance,
        policy: &Document,
        done: &mut Timestamp,
        now: Timestamp,
    ) -> Result<Looked, Problem> {
        loop {
            // Each turn deals with a later slot, so there is an end.
            *done = match policy.due(*done, now, &instance.id) {
                Due::Start { slot, late } => {
                    if !self.start(instance, policy, slot, late).await? {
                        return Ok(Looked::Busy);
                    }
                    slot
                }
                Due::Skip(slot) => {
                    tracing::warn!(instance = instance.name, %slot, "a backup was missed, and the policy says to skip it");
                    self.catalog.set_last_slot(&instance.id, slot).await?;
                    slot
                }
                Due::Wait(time) => return Ok(Looked::Again(Some(time.max(now + SHORTEST_WAIT)))),
                Due::Never => return Ok(Looked::Again(None)),
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
        let work = Work::Backup { rule, slot: Some(slot), keep_until: None, read_bytes_per_s: None };
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
    Duration::try_from(time.duration_since(vaultferry_vault::clock::now())).unwrap_or(Duration::ZERO)
}

/// The next time at which an instance's schedule starts a backup.
pub fn next_backup(document: &Document, instance_id: &str) -> Option<Timestamp> {
    document.next_slot(vaultferry_vault::clock::now()).map(|slot| document.start_time(slot, instance_id))
}
