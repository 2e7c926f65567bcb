//! Jobs: long operations with a journal, so that a kill at any instant leaves them in a state from which a restart goes on.
//!
//! ```text
//! backup:   insert ─ plugin reads and uploads ─ journal the staged record ─ verify ─ prepare ─ publish ─ complete + outbox ─ confirm
//! killed:     └── no staged record: Failed (Interrupted) ──┘└──── staged record: verify and commit again ────┘└─ confirm again
//! restore:  insert ─ (rehydrate) ─ plugin restores ─ complete     killed: the plugin's leftovers are removed, Failed (Interrupted);
//!                                                              while rehydrating: goes on waiting
//! maintenance: insert ─ plugin works in the vault ─ catalog brought in line ─ complete
//!                                                    killed: the vault's work is ended, the catalog brought in line, Failed (Interrupted);
//!                                                              with all points of an instance: goes on
//! ```
//! Invariants:
//! - Every job ends; none is InProgress without somebody working on it, or a place in the queue ([`queue`]).
//! - A backup is Completed if and only if its point is published.
//! - Whoever waits for a job sees every change ([`Jobs::watch`]).

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, RwLock, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::admin::{self, KeyPlace};
use vaultferry_vault::keys::WrapKey;
use vaultferry_vault::location::{Access, RoleAccess};
use vaultferry_vault::settings::{self, Settings};

use crate::catalog::{Attempt, Catalog, Exclusive, Inserted, Instance, Job, Status, StoredProblem, Work};
use crate::link::Link;
use crate::plugin;

mod backup;
mod end;
mod holds;
mod leftovers;
mod maintenance;
mod pause;
mod queue;
mod recover;
mod restore;
mod retry;
mod session;
mod steady;
mod steps;
mod whole;

pub(crate) use holds::set_legal_hold;
pub(crate) use maintenance::{note_standing, standing};
pub(crate) use pause::at as pause_at;
pub use queue::Limits;
pub(crate) use restore::{endpoint_for, files_credential, plan_request};
pub(crate) use retry::LONGEST_SLEEP as LONGEST_RETRY_SLEEP;
pub(crate) use session::{command, env_of, source};

use queue::{Need, Queue, Ticket, Turn};
use steps::Steps;

/// How long interrupted jobs may take to end: a plugin gives itself 20 s to remove what it made, and its host 25 s.
const INTERRUPT_TIMEOUT: Duration = Duration::from_secs(30);

/// How far a running job is. Not stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// See `Progress.phase` in job.proto.
    pub phase: String,
    /// Read from the source, or restored.
    pub bytes_read: u64,
    /// Added to the vault.
    pub bytes_stored: u64,
    /// 0: not known.
    pub bytes_total: u64,
    /// Over the last seconds.
    pub bytes_per_second: u64,
    /// More of the phase, for people.
    pub note: String,
}

/// What all jobs share.
#[derive(Debug)]
pub struct Shared {
    /// The journal.
    pub catalog: Arc<dyn Catalog>,
    /// The vault.
    pub vault: Access,
    /// The same, with the rights of each part of the program.
    pub roles: RoleAccess,
    /// Unwraps the repositories' passwords.
    pub vault_key: WrapKey,
    /// Where that key is kept.
    pub vault_key_place: KeyPlace,
    /// Who this agent is, for the vault.
    pub agent_id: String,
    /// Plugins by source type.
    pub plugins: std::collections::BTreeMap<String, plugin::Command>,
    /// Where plugins' sockets are.
    pub runtime_dir: std::path::PathBuf,
    /// For the pause hook of tests.
    pub state_dir: std::path::PathBuf,
    /// User data in memory of one plugin at most.
    pub bytes_in_flight: u64,
    /// Bytes that one plugin sends to the vault in a second at most; `None`: no limit.
    pub upload_bytes_per_s: Option<u64>,
    /// Between two questions whether an archived point can be read.
    pub rehydration_poll: Duration,
    /// To the backup service.
    pub link: Link,
    /// Held while instances are being made, and while what is left of such is given up.
    pub making: tokio::sync::Mutex<()>,
}

impl Shared {
    /// The vault's settings, as they are now.
    pub(crate) async fn settings(&self, cancel: &CancellationToken) -> Result<Settings, vaultferry_vault::Error> {
        let root = self.vault.open_root()?;
        let vault = admin::open(&root, cancel).await?;
        Ok(settings::current(&*root, &vault, cancel).await?.1)
    }

    /// Until when a point that is deleted now can be brought back.
    pub(crate) async fn purge_time(&self, cancel: &CancellationToken) -> Result<jiff::Timestamp, Problem> {
        let days = i64::from(self.settings(cancel).await?.soft_delete_days);
        // Hours and not days: a day of the calendar is a matter of time zones.
        let soft = jiff::SignedDuration::from_hours(days * 24);
        vaultferry_vault::clock::now()
            .checked_add(soft)
            .map_err(|error| Problem::new(Reason::Internal, error.to_string()))
    }
}

#[derive(Debug)]
struct Running {
    /// Somebody wants the job to stop.
    cancel: CancellationToken,
    progress: watch::Sender<Progress>,
    steps: Steps,
}

/// Starts, watches and ends jobs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Jobs {
    shared: Arc<Shared>,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    queue: Arc<Queue>,
    running: Mutex<HashMap<String, Running>>,
    tasks: TaskTracker,
    /// The agent stops soon: what only waits ends now, and goes on at the next start.
    draining: CancellationToken,
    /// The agent stops: what can be interrupted is.
    stop: CancellationToken,
    /// A job ended: a schedule, or another attempt, may have waited for it.
    ended: Notify,
    /// Instances of which a point was committed that nobody has heard of ([`Jobs::next_commit`]).
    committed: Mutex<BTreeSet<String>>,
    news: Notify,
    /// Read while a job begins, written while an instance changes.
    changes: Arc<RwLock<()>>,
}

impl Jobs {
    /// Jobs above the limits wait ([`queue`]).
    pub fn new(shared: Arc<Shared>, limits: impl Into<Limits>) -> Self {
        let inner = Inner {
            queue: Queue::new(limits.into()),
            running: Mutex::default(),
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            stop: CancellationToken::new(),
            ended: Notify::new(),
            committed: Mutex::default(),
            news: Notify::new(),
            changes: Arc::default(),
        };
        Self { shared, inner: Arc::new(inner) }
    }

    /// Journals a job and begins to work on it. A request that is known gives its first job. What the instance's state does not allow is
    /// refused ([`crate::lifecycle::check_allows`]).
    pub async fn start(
        &self,
        instance: &Instance,
        work: Work,
        request_id: Option<String>,
        scheduled: bool,
    ) -> Result<Job, Problem> {
        self.start_attempt(instance, work, request_id, scheduled, Attempt::default()).await
    }

    /// The same for an attempt after the first.
    async fn start_attempt(
        &self,
        instance: &Instance,
        work: Work,
        request_id: Option<String>,
        scheduled: bool,
        attempt: Attempt,
    ) -> Result<Job, Problem> {
        let _no_change = self.inner.changes.read().await;
        self.check_allowed(instance, &work, scheduled).await?;
        let job = Job { attempt, ..new_job(instance, work, request_id, scheduled) };
        match self.shared.catalog.insert_job(job.clone()).await? {
            Inserted::New => {}
            Inserted::Known(known) => return Ok(*known),
            Inserted::Busy(other) => {
                return Err(match job.work.exclusive() {
                    Some(Exclusive::Maintenance) => {
                        let message = format!("job {other} is at work in the vault of {} already", instance.name);
                        Problem::new(Reason::MaintenanceBusy, message)
                    }
                    Some(Exclusive::Backup) | None => {
                        let message = format!("job {other} is backing {} up already", instance.name);
                        Problem::new(Reason::InstanceBusy, message)
                    }
                });
            }
        }
        let need = Need::of(&job.work, &instance.source_identity);
        self.spawn(job.clone(), need, false);
        Ok(job)
    }

    /// Works on a journaled job in a task of its own, until it has ended. `resume`: its staged record is committed, for which it needs no
    /// place.
    fn spawn(&self, job: Job, need: Option<Need>, resume: bool) {
        let progress = Progress { phase: "starting".to_owned(), ..Progress::default() };
        let mut steps = Steps::after(job.steps.clone());
        steps.note(&progress, vaultferry_vault::clock::now());
        let cancel = self.inner.stop.child_token();
        let running = Running { cancel: cancel.clone(), progress: watch::channel(progress).0, steps };
        self.lock().insert(job.id.clone(), running);
        // Here and not in the task, so that jobs queue in the order in which they came. A restore that has to wait for the archive first is
        // in nobody's way meanwhile.
        let enters_later = resume || restore::leaves_something(&job.work);
        let ticket = need.clone().filter(|_| !enters_later).map(|need| self.inner.queue.enter(need));
        self.shared.link.wake();
        let jobs = self.clone();
        self.inner.tasks.spawn(async move {
            tracing::info!(job = job.id, instance = job.instance_name, operation = job.work.name(), "job begins");
            let result = match resume {
                true => backup::commit_staged(&jobs, &job, true).await,
                false => jobs.work(&job, need, ticket, &cancel).await,
            };
            jobs.end(&job, result, &cancel).await;
        });
    }

    /// `ticket`: its place in the queue, when it has one already.
    async fn work(
        &self,
        job: &Job,
        need: Option<Need>,
        ticket: Option<Ticket>,
        cancel: &CancellationToken,
    ) -> Result<End, Problem> {
        if restore::leaves_something(&job.work) {
            self.check_owner(cancel).await?;
            if restore::rehydrate(self, job, cancel).await? == Rehydrated::NotYet {
                return Ok(End::LeftToRestart);
            }
        }
        let ticket = ticket.or_else(|| need.map(|need| self.inner.queue.enter(need)));
        let _place = match ticket {
            Some(ticket) => match self.turn(job, ticket, cancel).await? {
                Turn::Come(place) => Some(place),
                Turn::NotYet => return Ok(End::LeftToRestart),
            },
            None => None,
        };
        self.check_owner(cancel).await?;
        match &job.work {
            Work::Backup { rule, slot, keep_until, .. } => {
                backup::run(self, job, backup::Kept { rule, slot: *slot, keep_until: *keep_until }, cancel).await
            }
            Work::RestoreDatabase { .. } | Work::RestoreFiles { .. } | Work::RestoreDisk { .. } => {
                restore::run(self, job, cancel).await
            }
            Work::StopProtection { purge_time: Some(purge_time) } => {
                whole::delete(self, job, *purge_time, cancel).await
            }
            Work::UndeleteInstance => whole::undelete(self, job, cancel).await,
            Work::ConfigureProtection | Work::StopProtection { purge_time: None } | Work::ChangePolicy { .. } => {
                Ok(End::Done(Outcome::default()))
            }
            Work::Check { .. }
            | Work::VerifyPoint { .. }
            | Work::Prune { .. }
            | Work::DeletePoint { .. }
            | Work::UndeletePoint { .. }
            | Work::ArchivePoint { .. }
            | Work::Tier { .. } => maintenance::run(self, job, cancel).await,
        }
    }

    /// Only the vault's owner works in it.
    async fn check_owner(&self, cancel: &CancellationToken) -> Result<(), Problem> {
        Ok(crate::owner::check(&self.shared.vault, &self.shared.agent_id, cancel).await?)
    }

    /// Asks a job to stop. Best effort; a job that has ended is left as it is.
    pub async fn cancel(&self, job: &Job) -> Result<(), Problem> {
        if job.status.has_ended() {
            return Ok(());
        }
        self.shared.catalog.set_status(&job.id, Status::Cancelling, Vec::new()).await?;
        if let Some(running) = self.lock().get(&job.id) {
            running.cancel.cancel();
            running.progress.send_modify(|_| {});
        }
        Ok(())
    }

    /// How far a running job is. `None`: it does not run.
    pub fn progress(&self, job_id: &str) -> Option<Progress> {
        self.lock().get(job_id).map(|running| running.progress.borrow().clone())
    }

    /// Told at every change of a running job; closed when it has ended. `None`: it does not run.
    pub fn watch(&self, job_id: &str) -> Option<watch::Receiver<Progress>> {
        self.lock().get(job_id).map(|running| running.progress.subscribe())
    }

    /// Waits until some job has ended.
    pub async fn wait_for_an_end(&self) {
        self.inner.ended.notified().await;
    }

    /// Waits until a point of an instance was committed, and gives the instance's id. Each is told once; several commits of one may be told as
    /// one. For one listener. Dropping it loses nothing.
    pub(crate) async fn next_commit(&self) -> String {
        loop {
            if let Some(instance_id) = self.committed().pop_first() {
                return instance_id;
            }
            self.inner.news.notified().await;
        }
    }

    /// A point of the instance was committed.
    fn note_commit(&self, instance_id: &str) {
        self.committed().insert(instance_id.to_owned());
        self.inner.news.notify_one();
    }

    fn committed(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.inner.committed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, job_id: &str, change: impl FnOnce(&mut Progress)) {
        if let Some(running) = self.lock().get_mut(job_id) {
            running.progress.send_modify(change);
            running.steps.note(&running.progress.borrow(), vaultferry_vault::clock::now());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Running>> {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for running jobs until the deadline, interrupts the rest, and waits for their ends. New jobs must not come any more.
    pub async fn drain(&self, deadline: Duration) {
        self.inner.tasks.close();
        self.inner.draining.cancel();
        if tokio::time::timeout(deadline, self.inner.tasks.wait()).await.is_err() {
            let left: Vec<String> = self.lock().keys().cloned().collect();
            tracing::info!(jobs = ?left, "interrupting the jobs that did not finish in {deadline:?}");
            self.inner.stop.cancel();
            // What a restart can go on with (a commit that the store does not answer) is left to it.
            if tokio::time::timeout(INTERRUPT_TIMEOUT, self.inner.tasks.wait()).await.is_err() {
                tracing::info!("some jobs go on at the next start");
            }
        }
    }
}

/// How the work on a job came to its end, when it did not fail.
#[derive(Debug)]
enum End {
    /// It did what it was for.
    Done(Outcome),
    /// The same, and the catalog knows: a backup ends in the transaction that adds its point.
    Recorded,
    /// The agent stops, and the restart goes on with the job.
    LeftToRestart,
}

/// Whether a restore's point can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rehydrated {
    /// Now.
    Ready,
    /// The agent stops; the next start goes on waiting.
    NotYet,
}

/// What a job that did what it was for has to tell.
#[derive(Debug, Default)]
struct Outcome {
    bytes_read: u64,
    bytes_stored: u64,
    warnings: Vec<StoredProblem>,
}

impl Outcome {
    fn completed(&self) -> Status {
        Status::Completed {
            end_time: vaultferry_vault::clock::now(),
            point_id: None,
            bytes_read: self.bytes_read,
            bytes_stored: self.bytes_stored,
        }
    }
}

/// A job that begins now.
pub fn new_job(instance: &Instance, work: Work, request_id: Option<String>, scheduled: bool) -> Job {
    Job {
        // Version 7: ids in the order of their times.
        id: uuid::Uuid::now_v7().simple().to_string(),
        create_time: vaultferry_vault::clock::now(),
        instance_id: instance.id.clone(),
        instance_name: instance.name.clone(),
        work,
        status: Status::InProgress,
        scheduled,
        request_id,
        warnings: Vec::new(),
        rehydrating: false,
        report: None,
        queued: false,
        attempt: Attempt::default(),
        steps: Vec::new(),
    }
}
