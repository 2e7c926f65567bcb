//! What the link to the backup service must not forget: how far it is with the service's assignments, and which jobs it has to tell about.
//!
//! Invariants:
//! - Numbers ([`LinkState`]'s sequence) are never given twice, also over restarts.
//! - While the link reports, a job's report waits from the transaction that changed the job until the service has it. A job that changes
//!   again before has one report, with a greater number.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Error, Job, Point, StoredProblem};

/// Messages in one page: a few KiB each.
pub const OUTBOX_PAGE: u32 = 100;

/// How far the link is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkState {
    /// The service whose versions count; empty: none was spoken to yet.
    pub service_id: String,
    /// The last version of its assignments that is done with; 0: none.
    pub applied_version: u64,
    /// What it has not acknowledged of that, with its number.
    pub outcome: Option<(u64, Outcome)>,
}

/// What has become of a version of the assignments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The version.
    pub version: u64,
    /// It is done with: nothing of it is tried again.
    pub complete: bool,
    /// One for each item.
    pub results: Vec<ItemResult>,
}

/// What has become of an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemResult {
    /// Which one.
    pub item: Item,
    /// Of the policy, the instance or the backup's job; empty when there is a problem.
    pub id: String,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<StoredProblem>,
}

/// An item of the assignments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Item {
    /// A policy, by its name.
    Policy(String),
    /// An instance, by its name.
    Instance(String),
    /// A backup, by its request's id.
    Backup(String),
}

/// A job that the service has to hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobReport {
    /// Of its last change.
    pub sequence: u64,
    /// As it is now.
    pub job: Job,
}

/// The part of the catalog that the link works with; see [`Catalog`](super::Catalog) for what holds of each method.
#[async_trait]
pub trait LinkRecords: Send + Sync {
    /// From now on changes of jobs are, or are not, to be reported. Off, everything that waits for a service is forgotten.
    async fn set_reporting(&self, reporting: bool) -> Result<(), Error>;
    /// How far the link is.
    async fn link_state(&self) -> Result<LinkState, Error>;
    /// Notes which service answers, and that it knows numbers up to `last_sequence`: those that wait, and those to come, are greater then.
    /// With another service the versions begin anew. Returns the state afterwards.
    async fn register_service(&self, service_id: &str, last_sequence: u64) -> Result<LinkState, Error>;
    /// A number for a message, greater than all before.
    async fn next_sequence(&self) -> Result<u64, Error>;
    /// Notes what has become of a version that is newer than all that are done with. False, and nothing is noted, when it is not, or when the
    /// versions are of another service by now.
    async fn set_outcome(&self, service_id: &str, outcome: Outcome) -> Result<bool, Error>;
    /// The service has the outcome of that number; a later one stays.
    async fn acknowledge_outcome(&self, sequence: u64) -> Result<(), Error>;
    /// The job that a request has started; the request's id as the job has it.
    async fn job_of_request(&self, request_id: &str) -> Result<Option<Job>, Error>;
    /// Puts commits into the outbox that an earlier catalog may have told of, or not: telling them again changes nothing.
    async fn queue_commits(&self, points: Vec<Point>) -> Result<(), Error>;
    /// Reports that wait, the oldest first; a page of them ([`OUTBOX_PAGE`]). Those of jobs whose commit waits too come after it.
    async fn job_reports(&self) -> Result<Vec<JobReport>, Error>;
    /// The service has these: ids of jobs with the numbers of their reports. What changed since stays.
    async fn acknowledge_reports(&self, reports: Vec<(String, u64)>) -> Result<(), Error>;
}
