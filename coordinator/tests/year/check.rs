//! What must hold at every moment at which nothing is going on. After a step of the story what has changed in it is looked at, and everything
//! once a week. (What must hold at *every* moment, that a listed point can be read, is looked at in any weather: [`Year::glance`].)
//!
//! | invariant | how it is seen |
//! |---|---|
//! | no job is in progress for ever | all end within two days of calm |
//! | a point is listed if and only if it is complete and readable | every byte is compared with what the plugin read, and every file checked |
//! | a completed backup has its point, a failed one has none | by the ids of jobs in the vault's records |
//! | a slot has one point at the most | by the slots of completed jobs and of listed points |
//! | the last point of a protected instance stays | at every deletion (`store.rs`), and here |
//! | nothing is deleted, or leaves the vault store, that the plan keeps | a naive reference (`policies.rs`), by any policy that may have been linked |
//! | held points stay | those whose hold was answered |
//! | a restore that has completed has brought its point back | every byte, when the plugin ends (`world.rs`) |
//! | a job is cancelled when somebody has asked for it | by the ids of jobs |
//! | the catalog is what a rebuild makes of the vault | compared row by row |
//! | every commit is confirmed | the outbox is empty |
//! | the backup service knows the commits and ends that there are, and no others | by the ids and statuses of jobs |
//! | what the backup service assigns is done, each request once (`assigned.rs`) | by what it was told, and what there is |
//! | the schedule goes on, what has expired goes | at the end of the year |
//! | no job fails for a reason that is a fault of the program | by its reason |

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use tonic::Request;
use vaultferry_proto::control::v1 as wire;
use vaultferry_proto::control::v1::maintenance_service_server::MaintenanceService as _;
use vaultferry_vault::Id;
use vaultferry_vault::points::PointState;
use vaultferry_vault::repository::Repository;
use vaultferry_vault::store::Key;

use super::agent::Year;
use super::contents::{Mark, Seen};
use super::policies::Policy;
use crate::api::Api;
use crate::catalog::link::LinkRecords as _;
use crate::catalog::{Catalog as _, Instance, Job, JobFilter, Status, Work};

/// Everything is looked at after so long, whether it has changed or not.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
/// What a rebuild makes of points is compared every week; so many weeks are from one rebuild of a whole catalog to the next.
const REBUILD_EVERY: u64 = 4;
/// No job takes as long when nothing goes wrong any more.
const PATIENCE: Duration = Duration::from_secs(2 * 24 * 3600);
/// A failed job with one of these reasons is a fault of the program.
pub const FAULTS: [&str; 6] =
    ["Internal", "RepositoryDamaged", "StagedIncomplete", "JobAlreadyCommitted", "VaultUnreadable", "PrunedMeanwhile"];

/// What the checks remember.
#[derive(Debug)]
pub struct Book {
    /// Jobs that were looked at.
    seen: HashSet<String>,
    /// Completed backups by instance and slot.
    slots: HashMap<(String, Timestamp), Vec<String>>,
    /// Points whose bytes were compared, and whether in the vault store.
    pub read: HashSet<(Id, bool)>,
    /// Points whose makers were looked at.
    pub known: HashSet<Id>,
    /// Instances that have had a point.
    pub had_point: HashSet<String>,
    /// Points whose hold was answered.
    pub held: HashSet<Id>,
    /// Jobs that somebody has wanted to be cancelled.
    pub cancelled: HashSet<String>,
    /// Files of the repositories that were there at the last check.
    pub files: HashMap<String, BTreeSet<Key>>,
    /// What the instances were at the last check.
    pub marks: HashMap<String, Mark>,
    /// When everything is looked at, counted from the beginning of the year.
    next_full: Duration,
    /// Policies that may have been linked since the last check.
    linked: BTreeMap<String, BTreeSet<String>>,
    pub repositories: HashMap<String, Arc<Repository>>,
    /// The latest that the clock has said before somebody set it back: what was due then stays due.
    pub set_back: Timestamp,
    /// The earliest that the clock has said since the last check.
    since: Timestamp,
}

impl Book {
    pub fn new() -> Self {
        Self {
            seen: HashSet::new(),
            slots: HashMap::new(),
            read: HashSet::new(),
            known: HashSet::new(),
            had_point: HashSet::new(),
            held: HashSet::new(),
            cancelled: HashSet::new(),
            files: HashMap::new(),
            marks: HashMap::new(),
            next_full: WEEK,
            linked: BTreeMap::new(),
            repositories: HashMap::new(),
            set_back: Timestamp::MIN,
            since: Timestamp::MIN,
        }
    }

    /// From here on that policy may be the instance's.
    pub fn may_be_linked(&mut self, instance_id: &str, policy: &str) {
        self.linked.entry(instance_id.to_owned()).or_default().insert(policy.to_owned());
    }
}

pub fn never() -> CancellationToken {
    CancellationToken::new()
}

pub fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Year {
    /// Waits until nothing is going on, and looks at what has changed since the last time; at everything once a week, and at the end of the
    /// year, after calm days (`last`). At every fourth of these the agent checks, too, and a catalog is rebuilt.
    pub(super) async fn check(&mut self, api: &Api, last: bool) -> Result<(), String> {
        let full = last || self.elapsed() >= self.book.next_full;
        self.totals.checks += 1;
        self.totals.full_checks += u64::from(full);
        let rebuild = last || (full && self.totals.full_checks % REBUILD_EVERY == 1);
        self.world.tell(if full { "check everything" } else { "check what has changed" });
        self.settle().await?;
        let mut jobs = self.new_jobs().await?;
        let mut all = self.look(&jobs, full).await?;
        let mut wrong = self.out_of_line(&all).await?;
        if rebuild || wrong.is_some() {
            // It brings what bad weather kept from the catalog.
            api.start_check(Request::new(wire::StartCheckRequest { keyless: true, ..Default::default() }))
                .await
                .map_err(text)?;
            self.settle().await?;
            jobs.extend(self.new_jobs().await?);
            all = self.look(&jobs, full).await?;
            wrong = self.out_of_line(&all).await?;
        }
        if let Some(broken) = self.world.state().broken.first().cloned().or(wrong) {
            return Err(broken);
        }
        for job in &jobs {
            self.check_told(job)?;
            match all.iter().find(|seen| seen.instance.id == job.instance_id) {
                Some(seen) => self.check_job(job, seen)?,
                // Purged after somebody has deleted it.
                None if self.world.state().given_up.contains(&job.instance_id) => {}
                None => return Err(format!("the instance of the job {} is gone", job.id)),
            }
        }
        for seen in &all {
            self.check_points(seen, last).await?;
            self.check_files(seen, full).await?;
        }
        let instances = self.catalog.instances().await.map_err(text)?;
        for instance in &instances {
            self.check_schedule(instance).await?;
        }
        if rebuild {
            self.check_catalog(&instances).await?;
        }
        if full {
            self.book.next_full = self.elapsed() + WEEK;
        }
        if last {
            all.iter().try_for_each(|seen| self.check_end(seen))?;
        }
        let outbox = self.catalog.outbox().await.map_err(text)?;
        if let Some(entry) = outbox.first() {
            return Err(format!("the commit of the job {} waits for its confirmation", entry.job_id));
        }
        self.check_assigned().await?;
        all.into_iter().for_each(|seen| self.mark(seen));
        let is_alive = |id: &String| instances.iter().any(|one| one.id == *id && !one.protection.is_deleted());
        self.world.state().given_up.retain(|id| !is_alive(id));
        self.book.linked.clear();
        for instance in &instances {
            self.book.may_be_linked(&instance.id, &instance.policy);
        }
        self.book.since = vaultferry_vault::clock::now();
        Ok(())
    }

    async fn settle(&self) -> Result<(), String> {
        let begun = tokio::time::Instant::now();
        loop {
            let unfinished = self.catalog.unfinished_jobs().await.map_err(text)?;
            let instances = self.catalog.instances().await.map_err(text)?;
            let unsettled = instances.iter().find(|instance| instance.unsettled);
            let unmade = self.catalog.unmade_instances().await.map_err(text)?;
            if unfinished.is_empty() && unsettled.is_none() && unmade.is_empty() && self.is_told().await? {
                return Ok(());
            }
            if unfinished.iter().any(|job| job.rehydrating) {
                self.world.finish_rehydration();
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!(
                    "in progress for ever: {:?}, unsettled for ever: {unsettled:?}, unmade: {unmade:?}",
                    unfinished.first()
                ));
            }
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
    }

    /// True when a backup service has heard of everything.
    async fn is_told(&self) -> Result<bool, String> {
        if !self.world.state().has_service {
            return Ok(true);
        }
        let (commits, jobs) = (self.catalog.outbox().await, self.catalog.job_reports().await);
        Ok(commits.map_err(text)?.is_empty() && jobs.map_err(text)?.is_empty() && self.has_done_all().await?)
    }

    /// The backup service knows how the job has ended, and its commit if and only if there is one.
    fn check_told(&self, job: &Job) -> Result<(), String> {
        let state = self.world.state();
        if !state.has_service {
            return Ok(());
        }
        let reported = state.service.jobs.get(&job.id).and_then(|report| report.job.as_ref());
        if reported.is_none_or(|told| told.end_time.is_none()) {
            return Err(format!("the service has not heard of the end of {job:?}: {reported:?}"));
        }
        let point = match &job.status {
            Status::Completed { point_id, .. } => point_id.map(|id| id.to_string()),
            _ => None,
        };
        let commit = state.service.commits.get(&job.id).and_then(|commit| commit.point.as_ref());
        let told = commit.map(|point| point.id.clone());
        match told == point {
            true => Ok(()),
            false => Err(format!("the service knows the point {told:?} of the job {}, which made {point:?}", job.id)),
        }
    }

    /// Jobs that have ended since the last check, oldest first.
    async fn new_jobs(&mut self) -> Result<Vec<Job>, String> {
        // A clock that was set back by some days may have made jobs before that.
        let from = self.book.since.checked_sub(SignedDuration::from_hours(7 * 24)).ok();
        let filter = JobFilter { from, to: None, limit: u32::MAX };
        let mut jobs = self.catalog.jobs(filter).await.map_err(text)?;
        jobs.retain(|job| self.book.seen.insert(job.id.clone()));
        jobs.reverse();
        Ok(jobs)
    }

    fn check_job(&mut self, job: &Job, seen: &Seen) -> Result<(), String> {
        let of_job = || seen.states.iter().filter(|state| state.created.job_id == job.id);
        match &job.status {
            Status::InProgress | Status::Cancelling => return Err(format!("it has not ended: {job:?}")),
            Status::Completed { .. } => self.totals.completed += 1,
            Status::Failed { problem, .. } => {
                self.totals.failed += 1;
                if FAULTS.contains(&problem.reason.as_str()) {
                    return Err(format!("a job failed by a fault of the program: {job:?}"));
                }
            }
            Status::Cancelled { .. } if self.book.cancelled.contains(&job.id) => self.totals.cancelled += 1,
            Status::Cancelled { .. } => return Err(format!("nobody has cancelled it: {job:?}")),
        }
        match (&job.work, &job.status) {
            (Work::Backup { slot, .. }, Status::Completed { point_id, .. }) => {
                if !of_job().any(|state| Some(state.id) == *point_id && !state.abandoned) {
                    return Err(format!("the completed backup has no point: {job:?}"));
                }
                if let Some(slot) = slot {
                    let done = self.book.slots.entry((job.instance_id.clone(), *slot)).or_default();
                    done.push(job.id.clone());
                    if done.len() > 1 {
                        return Err(format!("the slot {slot} of {} was backed up twice: {done:?}", job.instance_name));
                    }
                }
            }
            (Work::RestoreDatabase { .. }, Status::Completed { .. }) => {
                if !self.world.state().restored.contains(&job.id) {
                    return Err(format!("the completed restore has restored nothing: {job:?}"));
                }
                self.totals.restored += 1;
            }
            (Work::Backup { .. }, _) => {
                if let Some(state) = of_job().find(|state| state.is_listed() || state.soft_deleted.is_some()) {
                    return Err(format!("the failed backup {} has a point: {}", job.id, state.id));
                }
            }
            (Work::DeletePoint { point_id, .. }, _) if job.scheduled => {
                self.check_step(job, seen, point_id, "deleted", |policy, state| {
                    let (created, archived) = (&state.created, state.archived_at);
                    policy.end(&created.rule, state.time, created.keep_until, archived)
                })?;
            }
            (Work::Tier { point_id, remove_from_vault: true }, _) => {
                self.check_step(job, seen, point_id, "moved", |policy, state| {
                    policy.vault_until(&state.created.rule, state.time, state.created.keep_until)
                })?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Some policy that may have been linked must allow it at the job's time.
    fn check_step(
        &self,
        job: &Job,
        seen: &Seen,
        point: &Id,
        what: &str,
        from: impl Fn(&Policy, &PointState) -> Timestamp,
    ) -> Result<(), String> {
        let state = seen.states.iter().find(|state| state.id == *point);
        let state = state.ok_or_else(|| format!("the job is about a point that nobody knows: {job:?}"))?;
        let mut linked: BTreeSet<&str> = BTreeSet::from([seen.instance.policy.as_str()]);
        linked.extend(self.book.linked.get(&job.instance_id).into_iter().flatten().map(String::as_str));
        let earliest = linked.iter().map(|name| from(Policy::named(name), state)).min();
        if earliest.is_some_and(|earliest| earliest <= job.create_time.max(self.book.set_back)) {
            return Ok(());
        }
        let (rule, time) = (&state.created.rule, state.time);
        Err(format!(
            "a point of {time} by {rule} ({linked:?}) was {what} at {}, before {earliest:?}: {job:?}",
            job.create_time
        ))
    }

    /// No slot is forgotten.
    async fn check_schedule(&self, instance: &Instance) -> Result<(), String> {
        if !instance.protection.is_active() {
            return Ok(());
        }
        let policy = Policy::named(&instance.policy);
        let done = self.catalog.last_slot(&instance.id).await.map_err(text)?.unwrap_or(instance.create_time);
        match is_late(policy, done.max(instance.create_time)) {
            true => Err(format!("the schedule of {} stands still since {done}", instance.name)),
            false => Ok(()),
        }
    }

    /// At the end of the year there is a new point for the last slots, and nothing is left that has expired long ago.
    fn check_end(&self, seen: &Seen) -> Result<(), String> {
        if !seen.instance.protection.is_active() {
            return Ok(());
        }
        let now = vaultferry_vault::clock::now();
        let policy = Policy::named(&seen.instance.policy);
        let mut listed: Vec<&PointState> = seen.states.iter().filter(|state| state.is_listed()).collect();
        listed.sort_by_key(|state| state.time);
        let newest = listed.pop().map(|state| state.time);
        if policy.hours < 20 * 24 && newest.is_none_or(|newest| is_late(policy, newest)) {
            return Err(format!("the newest point of {} is of {newest:?}", seen.instance.name));
        }
        let long_over = |state: &&&PointState| {
            let (created, archived) = (&state.created, state.archived_at);
            let end = policy.end(&created.rule, state.time, created.keep_until, archived);
            state.held.is_none() && end + SignedDuration::from_hours(10 * 24) < now
        };
        match listed.iter().find(long_over) {
            Some(state) => Err(format!("a point of {} is there long after its end: {state:?}", seen.instance.name)),
            None => Ok(()),
        }
    }
}

/// A window that is closed may hold a slot up for a day.
fn is_late(policy: &Policy, time: Timestamp) -> bool {
    vaultferry_vault::clock::now().duration_since(time) > SignedDuration::from_hours(2 * policy.hours + 26)
}
