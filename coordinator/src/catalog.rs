//! The catalog: what the coordinator must not forget. A trait in domain words; SQLite is the implementation for one machine.
//!
//! Invariants:
//! - Every method is one transaction: it happened whole or not at all, and is durable when it has answered.
//! - A job that has ended never changes again.
//! - At most one backup and one maintenance job per instance are running.
//! - A staged record exists from "everything is uploaded" until the job has ended: it is what a restart commits from.
//! - The vault is the truth about points; the catalog's list of them, and how they stand, can be made again from it. What happens to a
//!   point is written into the vault first, and here after it.
//! - No credential is stored, only where to find one.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::records::{Capture, PointStream, Protection};
use vaultferry_vault::{Id, commit};

pub(crate) mod copy;
mod job;
pub mod link;
pub mod sqlite;

pub use job::{
    Attempt, CheckFigures, Exclusive, Finding, Inserted, Job, JobStep, PruneFigures, Report, ReportFigures,
    RestoreOptions, Retry, Status, StoredProblem, Work,
};

/// A version of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// 32 hexadecimal digits; the same for all versions.
    pub id: String,
    /// Unique.
    pub name: String,
    /// 1 for the first.
    pub version: u32,
    /// When this version was made.
    pub create_time: jiff::Timestamp,
    /// TOML, valid.
    pub document: String,
    /// The policy is deleted from this version on, until a later one makes it anew. The document is the one before.
    pub deleted: bool,
}

/// Where a password is to be found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Credential {
    /// No password is needed (peer, trust, certificate).
    #[default]
    None,
    /// A libpq password file.
    Passfile(PathBuf),
    /// A variable of the agent's environment.
    PasswordEnv(String),
    /// An identity in Microsoft Entra ID, or a secret in Azure Key Vault, in the words of `CredentialReference.identity`.
    Identity(String),
}

/// A data source under protection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// 32 hexadecimal digits.
    pub id: String,
    /// Unique.
    pub name: String,
    /// When it was protected.
    pub create_time: jiff::Timestamp,
    /// `postgres`, …
    pub source_type: String,
    /// Without credentials.
    pub source_uri: String,
    /// Two spellings of one source have one identity. Unique.
    pub source_identity: String,
    /// Empty: not told.
    pub region: String,
    /// The linked policy's name.
    pub policy: String,
    /// How to log in at the source.
    pub credential: Credential,
    /// Whether it is backed up, and what becomes of its points.
    #[serde(default, skip_serializing_if = "Protection::is_active")]
    pub protection: Protection,
    /// A change of it was begun and its end is not known: the vault's newest record of it counts, and is read before anything else
    /// changes (`lifecycle`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unsettled: bool,
}

/// A server whose databases are protected by themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// 32 hexadecimal digits, made of the identity.
    pub id: String,
    /// Unique, as it is made of the identity too.
    pub name: String,
    /// When it was added.
    pub create_time: jiff::Timestamp,
    /// `postgres`, …
    pub source_type: String,
    /// Without credentials.
    pub server_uri: String,
    /// Two spellings of one server have one identity, with which those of its sources begin.
    pub server_identity: String,
    /// Empty: not told.
    pub region: String,
    /// The name of the policy that new instances follow.
    pub policy: String,
    /// How to log in.
    pub credential: Credential,
    /// Patterns of names; empty: all.
    pub include: Vec<String>,
    /// What matches one of these is left out.
    pub exclude: Vec<String>,
}

/// A committed backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// The snapshot's name.
    pub id: Id,
    /// Whose point it is.
    pub instance_id: String,
    /// The job that made it.
    pub job_id: String,
    /// When the source was read.
    pub time: jiff::Timestamp,
    /// The retention rule that it carries; empty when it has `keep_until`.
    pub rule: String,
    /// The policy that was linked then.
    pub policy: String,
    /// Its version.
    pub policy_version: u32,
    /// The slot of the schedule that it was made for; `None`: on demand, or made by an early version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<jiff::Timestamp>,
    /// Made on demand to be kept until then; no rule counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_until: Option<jiff::Timestamp>,
    /// What is in it.
    pub streams: Vec<PointStream>,
    /// Bytes read from the source.
    pub source_bytes: u64,
    /// Bytes that the backup added to the vault.
    pub stored_bytes: u64,
    /// How the source was caught; `None` for sources that tell nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<Capture>,
    /// What has happened to it since.
    #[serde(default)]
    pub standing: Standing,
}

/// How a point stands: a copy of what its events in the vault say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Standing {
    /// When every byte of it was last read and found right.
    pub proven_time: Option<jiff::Timestamp>,
    /// It must not be deleted, for this reason.
    pub held: Option<String>,
    /// It is deleted: not listed, and its data may go from then on.
    pub purge_time: Option<jiff::Timestamp>,
    /// The storage refuses to delete its files before.
    pub immutable_until: Option<jiff::Timestamp>,
    /// It is in the vault store.
    pub in_vault: bool,
    /// It is in the archive store.
    pub in_archive: bool,
    /// When its copy there was last completed. `None` while a copy is listed and not recorded yet, and in rows of early versions.
    pub archived_time: Option<jiff::Timestamp>,
}

impl Default for Standing {
    /// A new point's.
    fn default() -> Self {
        Self {
            proven_time: None,
            held: None,
            purge_time: None,
            immutable_until: None,
            in_vault: true,
            in_archive: false,
            archived_time: None,
        }
    }
}

/// A plugin process of a job, to be reaped after a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginProcess {
    /// The job.
    pub job_id: String,
    /// The process, leader of its own group.
    pub pid: u32,
    /// Its start time as the system tells it, so that another process with the same number is left alone.
    pub start_time: u64,
}

/// An instance as a list tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedInstance {
    /// The instance.
    pub instance: Instance,
    /// Listed points.
    pub points: u64,
    /// The time of the newest of them.
    pub newest: Option<jiff::Timestamp>,
    /// The newest backup job that has ended as completed or failed.
    pub last_backup: Option<Job>,
}

/// A run of retention over an instance, as far as the next one has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpiryRun {
    /// By what time it deleted ([`crate::policy::Plan::clock`]).
    pub clock: jiff::Timestamp,
    /// When it began, by the machine's clock. `None` in rows of early versions.
    pub time: Option<jiff::Timestamp>,
}

/// A message to the backup service that waits for its acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxEntry {
    /// The committed job.
    pub job_id: String,
    /// The point.
    pub point: Point,
}

/// Figures of the dashboard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// Instances with a point, whose policies are followed.
    pub protected: u64,
    /// The same without one yet.
    pub pending: u64,
    /// Instances whose schedule is suspended.
    pub paused: u64,
    /// Instances whose protection was stopped, and their data retained.
    pub stopped: u64,
    /// Points of all instances.
    pub points: u64,
    /// Jobs since the time asked for, completed.
    pub completed: u64,
    /// Failed.
    pub failed: u64,
    /// Running, whenever they began.
    pub in_progress: u64,
    /// Bytes that all backups added.
    pub stored_bytes: u64,
    /// The oldest point.
    pub oldest: Option<jiff::Timestamp>,
    /// The newest point.
    pub newest: Option<jiff::Timestamp>,
}

/// An instance's figures of the dashboard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceFigures {
    /// The instance.
    pub instance: Instance,
    /// The time of its newest listed point.
    pub last_good: Option<jiff::Timestamp>,
    /// The time of the newest listed point of which every byte was found right.
    pub last_proven: Option<jiff::Timestamp>,
    /// Listed points.
    pub points: u64,
    /// Bytes that the backups of all its points added, deleted ones too.
    pub stored_bytes: u64,
    /// The same of points since the time asked for.
    pub stored_bytes_since: u64,
}

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Created at or after.
    pub from: Option<jiff::Timestamp>,
    /// Created before.
    pub to: Option<jiff::Timestamp>,
    /// At most.
    pub limit: u32,
}

/// Why the catalog did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name or an identity is taken.
    #[error("{0} is taken")]
    Taken(String),
    /// The database itself.
    #[error("the catalog {path}: {detail}")]
    Database {
        /// The file.
        path: String,
        /// Its own words.
        detail: String,
    },
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let reason = match &error {
            Error::Taken(_) => Reason::NameTaken,
            Error::Database { .. } => Reason::Internal,
        };
        Problem::new(reason, error.to_string())
    }
}

/// See the module. Every future may be dropped; the transaction then happens, or not.
#[async_trait]
pub trait Catalog: link::LinkRecords + std::fmt::Debug + Send + Sync + 'static {
    /// Another number after every change of an instance or of a policy, for who keeps a copy of them. Slots are not counted.
    async fn generation(&self) -> Result<u64, Error>;
    /// Another number after every change of the instance's points or of how they stand, for who remembers what they were. It begins anew with
    /// the process.
    async fn point_changes(&self, instance_id: &str) -> Result<u64, Error>;

    /// Adds a policy's version. [`Error::Taken`] when that version is there.
    async fn insert_policy(&self, policy: Policy) -> Result<(), Error>;
    /// The same, and notes for instances (by id) up to which slot their schedules are dealt with, never an earlier one than is noted.
    /// [`Error::Taken`] when that version is there, and nothing is noted.
    async fn change_policy(&self, policy: Policy, slots: Vec<(String, jiff::Timestamp)>) -> Result<(), Error>;
    /// The newest version, by name or id. `None` when there is none, or the policy is deleted.
    async fn policy(&self, name: &str) -> Result<Option<Policy>, Error>;
    /// The newest version of each that is not deleted, by name.
    async fn policies(&self) -> Result<Vec<Policy>, Error>;
    /// Every version of the policy of that name, oldest first, deletions too.
    async fn policy_versions(&self, name: &str) -> Result<Vec<Policy>, Error>;

    /// Notes that instances are being made in the vault: until they are inserted or forgotten, they are [`Catalog::unmade_instances`].
    async fn begin_instances(&self, instances: Vec<Instance>) -> Result<(), Error>;
    /// Instances whose making was begun and has not come to its end: it is going on, or was cut off.
    async fn unmade_instances(&self) -> Result<Vec<Instance>, Error>;
    /// Nothing in the vault counts as that instance any more. One that is not there is no error.
    async fn forget_unmade(&self, instance_id: &str) -> Result<(), Error>;
    /// Adds instances, all or none; their making has come to its end. [`Error::Taken`] names the name or source that is taken.
    async fn insert_instances(&self, instances: Vec<Instance>) -> Result<(), Error>;
    /// By name or id.
    async fn instance(&self, name: &str) -> Result<Option<Instance>, Error>;
    /// The instance that protects a source, if there is one.
    async fn instance_of_source(&self, identity: &str) -> Result<Option<Instance>, Error>;
    /// All, by name.
    async fn instances(&self) -> Result<Vec<Instance>, Error>;
    /// A page of instances by name, those after `after`: the deleted ones, or the others. With what a list tells of each.
    async fn instances_page(
        &self,
        deleted: bool,
        after: Option<String>,
        limit: u32,
    ) -> Result<Vec<ListedInstance>, Error>;
    /// Puts an instance in the place of the one with its id. [`Error::Taken`] when another one has its name or its source, or there is none
    /// with that id; nothing is changed then.
    async fn save_instance(&self, instance: Instance) -> Result<(), Error>;
    /// Forgets an instance, its slots and its clock; its points must be gone. Its jobs stay. One that is not there is no error.
    async fn remove_instance(&self, instance_id: &str) -> Result<(), Error>;

    /// The servers that are sources, by name.
    async fn servers(&self) -> Result<Vec<Server>, Error>;
    /// Adds a server, or puts it in the place of the one with its id.
    async fn save_server(&self, server: Server) -> Result<(), Error>;
    /// Forgets a server. One that is not there is no error.
    async fn remove_server(&self, server_id: &str) -> Result<(), Error>;

    /// Adds a job, unless its request is known, or a job of the instance is running that it may not run beside.
    async fn insert_job(&self, job: Job) -> Result<Inserted, Error>;
    /// By id, or by a beginning of it that only one job has.
    async fn job(&self, id: &str) -> Result<Option<Job>, Error>;
    /// Newest first.
    async fn jobs(&self, filter: JobFilter) -> Result<Vec<Job>, Error>;
    /// The same of those with one of these statuses (as [`Status`] is written: `in-progress`, `failed`, …) and one of these operations
    /// ([`Work::name`]); an empty list means all. It costs what it finds.
    async fn jobs_like(
        &self,
        filter: JobFilter,
        statuses: &'static [&'static str],
        operations: &'static [&'static str],
    ) -> Result<Vec<Job>, Error>;
    /// An instance's jobs of these operations ([`Work::name`]) that were asked for at or after `from`, newest first, so many of them at the most.
    /// It costs what it finds, not what other jobs there are.
    async fn jobs_of(
        &self,
        instance_id: &str,
        operations: &'static [&'static str],
        from: jiff::Timestamp,
        limit: u32,
    ) -> Result<Vec<Job>, Error>;
    /// The newest backup job of an instance that has ended as completed or failed.
    async fn last_backup(&self, instance_id: &str) -> Result<Option<Job>, Error>;
    /// Jobs that have not ended.
    async fn unfinished_jobs(&self) -> Result<Vec<Job>, Error>;
    /// Moves a job that has not ended to another state, adds warnings to it, and forgets its staged record when the state is an ended one.
    /// False when it had ended before.
    async fn set_status(&self, job_id: &str, status: Status, warnings: Vec<StoredProblem>) -> Result<bool, Error>;
    /// Ends a job that has not ended as failed, and plans another attempt at it, both or neither. False when it had ended before.
    async fn fail_and_retry(&self, job_id: &str, status: Status, retry: Retry) -> Result<bool, Error>;
    /// Attempts that are planned, the earliest first.
    async fn retries(&self) -> Result<Vec<Retry>, Error>;
    /// Forgets an attempt, if it is this one that is planned.
    async fn remove_retry(&self, retry: Retry) -> Result<(), Error>;
    /// Notes what a job that has not ended has done so far.
    async fn set_steps(&self, job_id: &str, steps: Vec<JobStep>) -> Result<(), Error>;
    /// Notes what a job that has not ended has found and done. Findings of an earlier call are replaced.
    async fn set_report(&self, job_id: &str, report: Report, findings: Vec<Finding>) -> Result<(), Error>;
    /// What a job has found, in its own order.
    async fn findings(&self, job_id: &str) -> Result<Vec<Finding>, Error>;
    /// Notes whether a restore that has not ended waits for its point's rehydration ([`Job::rehydrating`]).
    async fn set_rehydrating(&self, job_id: &str, rehydrating: bool) -> Result<(), Error>;

    /// Notes whether a job that has not ended waits for its turn ([`Job::queued`]).
    async fn set_queued(&self, job_id: &str, queued: bool) -> Result<(), Error>;

    /// Remembers the job's plugin process.
    async fn set_plugin_process(&self, process: PluginProcess) -> Result<(), Error>;
    /// Forgets it: the process is gone.
    async fn clear_plugin_process(&self, job_id: &str) -> Result<(), Error>;
    /// Those that are remembered.
    async fn plugin_processes(&self) -> Result<Vec<PluginProcess>, Error>;

    /// Journals what is to be committed.
    async fn stage(&self, job_id: &str, record: commit::Record) -> Result<(), Error>;
    /// What is to be committed for this job.
    async fn staged(&self, job_id: &str) -> Result<Option<commit::Record>, Error>;
    /// The commit happened: adds the point and the message to the service, and ends the job. May be repeated.
    async fn complete_backup(&self, job_id: &str, point: Point, warnings: Vec<StoredProblem>) -> Result<(), Error>;

    /// An instance's listed points, newest first, older than `before` (time and id of the last one seen).
    async fn points(
        &self,
        instance_id: &str,
        before: Option<(jiff::Timestamp, Id)>,
        limit: u32,
    ) -> Result<Vec<Point>, Error>;
    /// The same of its deleted points, which are not listed and count nowhere else.
    async fn deleted_points(
        &self,
        instance_id: &str,
        before: Option<(jiff::Timestamp, Id)>,
        limit: u32,
    ) -> Result<Vec<Point>, Error>;
    /// All points of an instance, listed and deleted, in the order in which they were committed. Of a few instances that are asked for again and
    /// again they are remembered until one of them changes.
    async fn all_points(&self, instance_id: &str) -> Result<Arc<Vec<Point>>, Error>;
    /// Notes how points stand now, in one transaction. `None`: the point is gone for good. Points that are not there are left out, and those
    /// that stand so already have not changed ([`Catalog::point_changes`]).
    async fn set_standings(&self, instance_id: &str, standings: Vec<(Id, Option<Standing>)>) -> Result<(), Error>;
    /// Adds points that the vault has, with their standing; those that are there are left as they are.
    async fn insert_points(&self, points: Vec<Point>) -> Result<(), Error>;
    /// Points whose id begins with this, listed or deleted, two at most.
    async fn points_by_prefix(&self, instance_id: &str, prefix: &str) -> Result<Vec<Point>, Error>;
    /// How many listed points an instance has.
    async fn point_count(&self, instance_id: &str) -> Result<u64, Error>;

    /// Commits that were not acknowledged, oldest first; a page of them ([`link::OUTBOX_PAGE`]).
    async fn outbox(&self) -> Result<Vec<OutboxEntry>, Error>;
    /// The service has the commits of these jobs.
    async fn acknowledge(&self, job_ids: Vec<String>) -> Result<(), Error>;

    /// The last slot of the schedule that was dealt with.
    async fn last_slot(&self, instance_id: &str) -> Result<Option<jiff::Timestamp>, Error>;
    /// The same of all instances that have one, by their ids.
    async fn last_slots(&self) -> Result<HashMap<String, jiff::Timestamp>, Error>;
    /// This slot is dealt with.
    async fn set_last_slot(&self, instance_id: &str, slot: jiff::Timestamp) -> Result<(), Error>;

    /// The last run of retention over an instance that counted as one.
    async fn expiry_run(&self, instance_id: &str) -> Result<Option<ExpiryRun>, Error>;
    /// Another one begins now.
    async fn set_expiry_run(&self, instance_id: &str, run: ExpiryRun) -> Result<(), Error>;

    /// The dashboard's figures; jobs are counted from `since`.
    async fn figures(&self, since: jiff::Timestamp) -> Result<Figures, Error>;
    /// The figures of instances that are not deleted, those with the oldest good point first (none at all is the oldest), and those whose
    /// protection was stopped at the end; from the one with the number `offset` on. Growth is counted from `since`.
    async fn instance_figures(
        &self,
        since: jiff::Timestamp,
        offset: u32,
        limit: u32,
    ) -> Result<Vec<InstanceFigures>, Error>;
    /// Bytes that backups since then have added.
    async fn stored_since(&self, since: jiff::Timestamp) -> Result<u64, Error>;

    /// Every version of every policy, by name and version, deletions too.
    async fn all_policies(&self) -> Result<Vec<Policy>, Error>;
}
