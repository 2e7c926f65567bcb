//! Does with points what their policies say: deletes them when their time is over, moves them between the stores before that, and gives back
//! the space.
//!
//! ```text
//! every hour, for each instance of which something may be due (`quiet.rs`), in a task of its own:
//!    points ─> policy::plan ─┬─ Expire ─> a job that soft-deletes the point; it can be undeleted until its purge time
//!                            ├─ Purge, or a prune is half done ─> a prune
//!                            └─ CopyToArchive, MoveToArchive, RemoveFromVault ─> a Tier job, one after the other   (`tier.rs`)
//!                                                                                 and a prune when something was moved
//! behind each commit, for its instance, when its policy copies at once: CopyToArchive
//! ```
//! Invariants:
//! - What is deleted, and how much of it in one run, is [`policy::plan`]'s word alone: the last good point stays, held and immutable ones
//!   too, and a clock that jumped deletes little.
//! - The clock that was trusted is kept before anything is deleted, so that a kill in a run does not make that run's step again.
//! - A run counts once an hour, as the catalog remembers it: the run of a start that comes earlier deletes nothing, and its clock goes no
//!   faster than by those steps ([`between_runs`]). What it may do is what is repeated for nothing: moves, prunes that are due, which purge by
//!   that clock ([`purge_until`]), the end of a deletion that was cut off.
//! - Deletions and moves are jobs like everybody's: they are listed, they can be watched, and a kill in one is made good.
//! - One at a time works on an instance: its run, or what a commit has made due at once. A job of the other's would cut a run short.
//! - Nothing is planned while a maintenance job of the instance runs, of this life or an earlier one: the plan would be of what was.
//! - A copy that takes hours holds up nothing but the rest of its own instance's run.
//! - Of an instance that was stopped nothing expires: its points stay, or are deleted all together ([`crate::lifecycle`]).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::Id;

use crate::catalog::{Catalog, Exclusive, ExpiryRun, Instance, Job, Point, ReportFigures, Status, Work};
use crate::job::{Jobs, Shared};
use crate::lifecycle;
use crate::policy::{self, Plan, PointFacts, Rule, Run, Step, Stores, Tiering, Warning};

mod quiet;
#[cfg(test)]
mod tests;
mod tier;

use quiet::{Quiet, State};
use tier::Which;

/// Between two runs. The limits of a run are made for this.
pub(crate) const EVERY: Duration = Duration::from_secs(3600);
/// Instances whose points are in memory and whose points are deleted at once: as many as jobs run by default.
const INSTANCES_AT_ONCE: usize = 4;
/// Between two looks whether a maintenance job has ended that this process did not start.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// From a prune to the next one that the agent starts by itself: packs are deleted a day after they were marked at the earliest.
const PRUNE_AGAIN: SignedDuration = SignedDuration::from_hours(24);
/// Among the last prunes and moves there is a prune, as a rule.
const LAST_JOBS: u32 = 8;
/// How far back the last prune is looked for.
const PRUNES_SINCE: SignedDuration = SignedDuration::from_hours(24 * 60);

/// The task that deletes and moves. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Expiry {
    shared: Arc<Shared>,
    jobs: Jobs,
    instances: Arc<Semaphore>,
    /// Copies at once. They are long, and take the places of backups among the running jobs.
    copies: Arc<Semaphore>,
    /// Points whose Tier job has failed, and since when.
    failed: Arc<Mutex<HashMap<Id, Instant>>>,
    /// Instances that a run passes over.
    quiet: Arc<Quiet>,
    /// Whose turn it is at an instance, by its id. Before `instances` and `copies`.
    turns: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
}

impl Expiry {
    /// It begins with [`Expiry::run`].
    pub fn new(shared: Arc<Shared>, jobs: Jobs) -> Self {
        let (instances, copies) = (Arc::new(Semaphore::new(INSTANCES_AT_ONCE)), Arc::new(Semaphore::new(1)));
        Self { shared, jobs, instances, copies, failed: Arc::default(), quiet: Arc::default(), turns: Arc::default() }
    }

    fn turn(&self, instance_id: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.entry(instance_id.to_owned()).or_default().clone()
    }

    fn keep_turns_of(&self, instance_ids: &HashSet<&str>) {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // One that somebody has is of an instance that is going, or that has just come.
        turns.retain(|id, turn| instance_ids.contains(id.as_str()) || Arc::strong_count(turn) > 1);
    }

    /// Runs at once and then after each `every`, until `stop`; and copies behind each commit what has to be in the archive store at once. A job
    /// that it has begun goes on then, or is interrupted like any other.
    pub async fn run(self, every: Duration, stop: CancellationToken) {
        let mut at_work: HashMap<String, JoinHandle<()>> = HashMap::new();
        let mut copying = JoinSet::new();
        let (mut first, mut next) = (true, Instant::now());
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep_until(next) => {
                    // An instance whose last run is not over has no other one beside it.
                    at_work.retain(|_, task| !task.is_finished());
                    if stop.run_until_cancelled(self.begin(first, every, &mut at_work)).await.is_none() {
                        break;
                    }
                    (first, next) = (false, Instant::now() + every);
                }
                instance_id = self.jobs.next_commit() => {
                    copying.spawn(self.clone().copy_at_once(instance_id));
                }
                Some(_) = copying.join_next() => {}
            }
        }
        copying.shutdown().await;
        at_work.values().for_each(JoinHandle::abort);
        for (_, task) in at_work {
            // It was aborted, or its panic has been told.
            let _ = task.await;
        }
    }

    /// `first`: of this life of the agent.
    async fn begin(&self, first: bool, every: Duration, at_work: &mut HashMap<String, JoinHandle<()>>) {
        lifecycle::settle_all(&self.jobs, &CancellationToken::new()).await;
        lifecycle::give_up_all(&self.shared, &CancellationToken::new()).await;
        let instances = match self.shared.catalog.instances().await {
            Ok(instances) => instances,
            Err(error) => return tracing::error!("expired points are looked for again in {every:?}: {error}"),
        };
        let ids: HashSet<&str> = instances.iter().map(|instance| instance.id.as_str()).collect();
        self.quiet.keep_only(&ids);
        self.keep_turns_of(&ids);
        for instance in instances {
            match self.is_quiet(&instance).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => return tracing::error!("expired points are looked for again in {every:?}: {error}"),
            }
            at_work.entry(instance.id.clone()).or_insert_with(|| tokio::spawn(self.clone().run_once(instance, first)));
        }
    }

    /// True when nothing of the instance is due.
    async fn is_quiet(&self, instance: &Instance) -> Result<bool, Problem> {
        let state = self.state_of(&instance.id).await?;
        Ok(self.quiet.holds(&instance.id, state, vaultferry_vault::clock::now()))
    }

    async fn state_of(&self, instance_id: &str) -> Result<State, Problem> {
        let catalog = &self.shared.catalog;
        Ok(State { generation: catalog.generation().await?, points: catalog.point_changes(instance_id).await? })
    }

    async fn run_once(self, instance: Instance, first: bool) {
        match self.expire(&instance, first).await {
            Ok(()) => {}
            Err(problem) if problem.reason == Reason::MaintenanceBusy || lifecycle::is_refusal(&problem) => {
                tracing::info!(
                    instance = instance.name,
                    "the next run does what is due in the vault: {}",
                    problem.message
                );
            }
            Err(problem) => {
                tracing::error!(
                    instance = instance.name,
                    "what is due in the vault is not all done: {}",
                    problem.message
                );
            }
        }
    }

    async fn expire(&self, instance: &Instance, first: bool) -> Result<(), Problem> {
        let turn = self.turn(&instance.id);
        let _one_at_a_time = turn.lock().await;
        self.wait_until_free(instance).await?;
        let place = self.instances.acquire().await.map_err(closed)?;
        let catalog = &self.shared.catalog;
        // It may have been stopped, or linked to another policy, while its turn was waited for. From here on no job that it does not allow
        // begins (`lifecycle::check_allows`). Asked before what it counts is read.
        let state = self.state_of(&instance.id).await?;
        let found = catalog.instance(&instance.id).await?;
        let Some(instance) = found.as_ref() else { return Ok(()) };
        let now = vaultferry_vault::clock::now();
        let last = catalog.expiry_run(&instance.id).await?;
        let early = first && last.is_some_and(|last| is_early(&last, now));
        let until = last.filter(|_| first).and_then(|last| between_runs(&last, now));
        let clock = last.map(|last| last.clock);
        let Some(plan) = self.plan(instance, until.unwrap_or(now), clock).await? else { return Ok(()) };
        for warning in plan.warnings.iter().filter(|_| !plan.actions.is_empty()) {
            match warning {
                Warning::Deferred { .. } => tracing::info!(instance = instance.name, "{warning}"),
                // That was asked for.
                Warning::NoGoodPoint if instance.protection.is_deleted() => {}
                _ => tracing::warn!(instance = instance.name, "{warning}"),
            }
        }
        if !early {
            // Of a start by a clock that was set back: what was trusted stays trusted.
            let kept = until.and(clock).map_or(plan.clock, |clock| clock.max(plan.clock));
            catalog.set_expiry_run(&instance.id, ExpiryRun { clock: kept, time: Some(now) }).await?;
        }
        let mut purge = false;
        for action in &plan.actions {
            match action.step {
                Step::Expire | Step::Purge if early => {}
                Step::Expire => self.delete(instance, &action.point).await?,
                Step::Purge => purge = true,
                // The steps between the stores come below: what gives back space does not wait for them.
                Step::Keep { .. } | Step::CopyToArchive | Step::MoveToArchive | Step::RemoveFromVault => {}
            }
        }
        let prune = self.prune_due(instance).await?;
        if purge || prune == PruneDue::Now {
            self.finish(instance, Work::Prune { dry_run: false }).await?;
        }
        drop(place);
        if self.tier(instance, plan.clock, Which::All).await? && self.prune_due(instance).await? == PruneDue::Now {
            self.finish(instance, Work::Prune { dry_run: false }).await?;
        }
        lifecycle::go_on_deleting(&self.jobs, instance, plan.clock).await?;
        let rest = match prune {
            // A deleted instance's end hangs on more than its points.
            _ if instance.protection.is_deleted() => None,
            PruneDue::Now => None,
            PruneDue::Later(due) => quiet::until(&plan, now).map(|until| until.min(due)),
            PruneDue::No => quiet::until(&plan, now),
        };
        self.quiet.note(&instance.id, state, now, rest);
        Ok(())
    }

    /// Copies to the archive store what a commit of the instance may have made due there. What cannot be done now is left to the next run.
    async fn copy_at_once(self, instance_id: String) {
        let copied = async {
            let Some(instance) = self.shared.catalog.instance(&instance_id).await? else { return Ok(()) };
            let Some(policy) = self.shared.catalog.policy(&instance.policy).await? else { return Ok(()) };
            let document = policy::parsed(&policy.document)?;
            let is_immediate =
                |rule: &Rule| rule.archive.as_ref().is_some_and(|archive| archive.tiering == Tiering::Immediate);
            if !document.rules.iter().any(is_immediate) {
                return Ok(());
            }
            let turn = self.turn(&instance.id);
            let _one_at_a_time = turn.lock().await;
            self.wait_until_free(&instance).await?;
            let last = self.shared.catalog.expiry_run(&instance.id).await?;
            let clock = policy::deletion_time(vaultferry_vault::clock::now(), last.map(|last| last.clock));
            self.tier(&instance, clock, Which::Copies).await.map(|_| ())
        };
        let copied: Result<(), Problem> = copied.await;
        if let Err(problem) = copied {
            tracing::info!(instance_id, "the next run copies what is due in the archive store: {}", problem.message);
        }
    }

    /// What is to be done with the instance's points; `None`: its policy is gone.
    async fn plan(
        &self,
        instance: &Instance,
        now: Timestamp,
        clock: Option<Timestamp>,
    ) -> Result<Option<Plan>, Problem> {
        let Some(policy) = self.shared.catalog.policy(&instance.policy).await? else { return Ok(None) };
        let document = policy::parsed(&policy.document)?;
        let mut points = facts(&*self.shared.catalog, &instance.id).await?;
        lifecycle::keep_listed(instance, &mut points);
        Ok(Some(policy::plan(&document, &points, &Run { now, clock, reference: None, protected: true })))
    }

    /// Waits for the end of the instance's maintenance job, if there is one: also of one that an earlier life has left, and that is being
    /// ended now.
    async fn wait_until_free(&self, instance: &Instance) -> Result<(), Problem> {
        loop {
            let running = self.shared.catalog.unfinished_jobs().await?;
            let is_in_the_way = |work: &Work| work.exclusive() == Some(Exclusive::Maintenance);
            if !running.iter().any(|job| job.instance_id == instance.id && is_in_the_way(&job.work)) {
                return Ok(());
            }
            tokio::select! {
                () = self.jobs.wait_for_an_end() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// Soft-deletes a point.
    async fn delete(&self, instance: &Instance, point: &str) -> Result<(), Problem> {
        let point_id =
            point.parse().map_err(|_| Problem::new(Reason::Internal, format!("{point} is no point's id")))?;
        let purge_time = self.shared.purge_time(&CancellationToken::new()).await?;
        tracing::info!(instance = instance.name, point, %purge_time, "the point has expired, and is soft-deleted");
        self.finish(instance, Work::DeletePoint { point_id, purge_time }).await.map(|_| ())
    }

    /// Starts a job and waits for its end; true when it has completed. What it failed of, it has told itself.
    async fn finish(&self, instance: &Instance, work: Work) -> Result<bool, Problem> {
        let job = self.jobs.start(instance, work, None, true).await?;
        while let Some(mut watch) = self.jobs.watch(&job.id) {
            // An error says that the job has ended.
            if watch.changed().await.is_err() {
                break;
            }
        }
        let ended = self.shared.catalog.job(&job.id).await?;
        Ok(ended.is_some_and(|job| matches!(job.status, Status::Completed { .. })))
    }

    /// [`prune_due`], asked of the instance's jobs.
    async fn prune_due(&self, instance: &Instance) -> Result<PruneDue, Problem> {
        let now = vaultferry_vault::clock::now();
        let from = now.checked_sub(PRUNES_SINCE).unwrap_or(Timestamp::MIN);
        let (catalog, operations) = (&self.shared.catalog, &["prune", "tier"]);
        let mut jobs = catalog.jobs_of(&instance.id, operations, from, LAST_JOBS).await?;
        // What was before the last prune does not matter.
        if jobs.len() >= LAST_JOBS as usize && !jobs.iter().any(is_prune) {
            jobs = catalog.jobs_of(&instance.id, operations, from, u32::MAX).await?;
        }
        Ok(prune_due(jobs.into_iter(), now))
    }
}

/// By what time a prune purges that begins now: what the last run's clock allows, and a step more than it when the next run is due.
pub(crate) fn purge_until(last: Option<&ExpiryRun>, now: Timestamp) -> Timestamp {
    let between = last.and_then(|last| between_runs(last, now));
    between.unwrap_or_else(|| policy::deletion_time(now, last.map(|last| last.clock)))
}

/// True when the run before a start's began less than [`EVERY`] ago, so that the start's counts as none. One that began in time to come, by a
/// clock that was set back since, does not keep a year of starts from counting.
fn is_early(last: &ExpiryRun, now: Timestamp) -> bool {
    let since = last.time.map(|time| now.duration_since(time)).filter(|since| *since >= SignedDuration::ZERO);
    since.zip(SignedDuration::try_from(EVERY).ok()).is_some_and(|(since, every)| since < every)
}

/// The time by which is deleted when the last run began less than [`EVERY`] ago; `None`: the next one is due. By a clock that was set back it
/// may seem to have begun in time to come: then nobody knows how long ago it was, and the clock of deletion stays where it is.
fn between_runs(last: &ExpiryRun, now: Timestamp) -> Option<Timestamp> {
    let since = now.duration_since(last.time?);
    let is_early = SignedDuration::try_from(EVERY).is_ok_and(|every| since < every);
    is_early.then(|| policy::deletion_time_between(now, last.clock, since))
}

/// Whether the agent starts a prune by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PruneDue {
    Now,
    /// The last one is not long enough ago; it is then.
    Later(Timestamp),
    No,
}

fn is_prune(job: &Job) -> bool {
    job.work == Work::Prune { dry_run: false }
}

/// `Now` when the last prune failed or left work for the next one, or a point has left the vault store since it began; and it was long enough
/// ago. The jobs are one instance's, newest first.
fn prune_due(mut jobs: impl Iterator<Item = Job>, now: Timestamp) -> PruneDue {
    // Also one that failed or was killed may have taken its point out, or left something in the archive.
    let is_move = |job: &Job| matches!(job.work, Work::Tier { remove_from_vault: true, .. });
    let Some(last) = jobs.find(|job| is_prune(job) || is_move(job)) else { return PruneDue::No };
    let moved = is_move(&last);
    let prune = if moved { jobs.find(is_prune) } else { Some(last) };
    let Some(prune) = prune else { return PruneDue::Now };
    let is_wanted = moved
        || match prune.report.and_then(|report| report.figures) {
            Some(ReportFigures::Prune(figures)) => {
                figures.packs_marked > 0 || figures.packs_noted > 0 || figures.packs_deleted > 0
            }
            // It failed, or was killed.
            _ => true,
        };
    let due = prune.create_time + PRUNE_AGAIN;
    match is_wanted {
        false => PruneDue::No,
        true if due > now => PruneDue::Later(due),
        true => PruneDue::Now,
    }
}

fn closed(error: tokio::sync::AcquireError) -> Problem {
    Problem::new(Reason::Internal, error.to_string())
}

/// An instance's points, deleted ones too, in the order in which they were committed.
pub(crate) async fn facts(catalog: &dyn Catalog, instance_id: &str) -> Result<Vec<PointFacts>, Problem> {
    Ok(catalog.all_points(instance_id).await?.iter().map(fact).collect())
}

/// A point as policies see it.
pub(crate) fn fact(point: &Point) -> PointFacts {
    let standing = &point.standing;
    // A copy that is listed and not recorded is not counted on: the job that should have recorded it does so when it is repeated. Where it
    // is all there is, it counts.
    let otherwise = (!standing.in_vault).then_some(point.time);
    let archived = standing.in_archive.then(|| standing.archived_time.or(otherwise)).flatten();
    PointFacts {
        id: point.id.to_string(),
        time: point.time,
        slot: point.slot,
        rule: point.rule.clone(),
        keep_until: point.keep_until,
        held: standing.held.is_some(),
        immutable_until: standing.immutable_until,
        stores: Stores { vault: standing.in_vault, archived },
        damaged: false,
        purge_time: standing.purge_time,
    }
}
