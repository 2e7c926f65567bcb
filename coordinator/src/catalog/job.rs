//! Jobs in the catalog's words: what they do, how they stand, what they found.

use serde::{Deserialize, Serialize};
use vaultferry_proto::Problem;
use vaultferry_vault::Id;

use super::Credential;

mod options;

pub use options::RestoreOptions;

/// What a job does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "kebab-case")]
pub enum Work {
    /// A new point.
    Backup {
        /// The rule that the point will carry.
        rule: String,
        /// The slot of the schedule that it is for; `None`: on demand.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        slot: Option<jiff::Timestamp>,
        /// Until when the point is kept, instead of a rule, whose name is empty then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keep_until: Option<jiff::Timestamp>,
        /// Bytes of the source that are read in a second at most; `None`: as configured.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        read_bytes_per_s: Option<u64>,
    },
    /// A point into a new database.
    RestoreDatabase {
        /// What is restored.
        point_id: Id,
        /// The server; without credentials.
        target_uri: String,
        /// The new database.
        database: String,
        /// Neither owners nor privileges.
        no_owner: bool,
        /// How to log in there.
        credential: Credential,
        /// What of the point, and how.
        #[serde(default, skip_serializing_if = "RestoreOptions::is_default")]
        options: RestoreOptions,
    },
    /// A point's streams into files.
    RestoreFiles {
        /// What is restored.
        point_id: Id,
        /// A folder, or a container's URI.
        to: String,
        /// A variable of the agent's environment; empty: none.
        credential_env: String,
    },
    /// Disk images into new files, or one onto a block device.
    RestoreDisk {
        /// What is restored.
        point_id: Id,
        /// An absolute path.
        to: String,
        /// Which disk; empty: the only one, or all.
        disk: String,
        /// The block device whose content may be lost; empty: none.
        overwrite: String,
    },
    /// Protection was configured.
    ConfigureProtection,
    /// Protection was stopped.
    StopProtection {
        /// All points are deleted, and can be brought back until then; `None`: they stay.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        purge_time: Option<jiff::Timestamp>,
    },
    /// A deleted instance is brought back with its points.
    UndeleteInstance,
    /// Another policy was linked.
    ChangePolicy {
        /// Its name.
        policy: String,
    },
    /// A search for altered, missing and unexpected files.
    Check {
        /// Without the repository's key.
        keyless: bool,
        /// How much of the data is read, in millionths: 0 to [`Work::ALL_DATA`].
        read_data_ppm: u32,
    },
    /// Every byte of a point is read.
    VerifyPoint {
        /// Which one.
        point_id: Id,
    },
    /// Files that nothing needs are marked and deleted.
    Prune {
        /// Only told, not done.
        dry_run: bool,
    },
    /// A point is taken off the list.
    DeletePoint {
        /// Which one.
        point_id: Id,
        /// Until then it can be brought back.
        purge_time: jiff::Timestamp,
    },
    /// A deleted point is brought back.
    UndeletePoint {
        /// Which one.
        point_id: Id,
    },
    /// A point is copied to the archive store.
    ArchivePoint {
        /// Which one.
        point_id: Id,
    },
    /// A point is copied or moved to the archive store, because its policy says so.
    Tier {
        /// Which one.
        point_id: Id,
        /// It leaves the vault store when its copy is complete.
        remove_from_vault: bool,
    },
}

/// Operations of which one job per instance runs at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exclusive {
    /// Backups.
    Backup,
    /// Everything that the maintenance plugin does.
    Maintenance,
}

impl Exclusive {
    /// The names of its operations.
    pub fn operations(self) -> &'static [&'static str] {
        match self {
            Self::Backup => &["backup"],
            Self::Maintenance => &[
                "check",
                "verify-point",
                "prune",
                "delete-point",
                "undelete-point",
                "archive-point",
                "tier",
                "stop-protection",
                "undelete-instance",
            ],
        }
    }
}

impl Work {
    /// `read_data_ppm` of a check that reads everything.
    pub const ALL_DATA: u32 = 1_000_000;

    /// The operation's name in the catalog and in logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Backup { .. } => "backup",
            Self::RestoreDatabase { .. } => "restore-database",
            Self::RestoreFiles { .. } => "restore-files",
            Self::RestoreDisk { .. } => "restore-disk",
            Self::ConfigureProtection => "configure-protection",
            Self::StopProtection { .. } => "stop-protection",
            Self::UndeleteInstance => "undelete-instance",
            Self::ChangePolicy { .. } => "change-policy",
            Self::Check { .. } => "check",
            Self::VerifyPoint { .. } => "verify-point",
            Self::Prune { .. } => "prune",
            Self::DeletePoint { .. } => "delete-point",
            Self::UndeletePoint { .. } => "undelete-point",
            Self::ArchivePoint { .. } => "archive-point",
            Self::Tier { .. } => "tier",
        }
    }

    /// What it may not run beside, on the same instance. Restores run beside everything.
    pub fn exclusive(&self) -> Option<Exclusive> {
        match self {
            Self::Backup { .. } => Some(Exclusive::Backup),
            Self::RestoreDatabase { .. }
            | Self::RestoreFiles { .. }
            | Self::RestoreDisk { .. }
            | Self::ConfigureProtection
            | Self::StopProtection { purge_time: None }
            | Self::ChangePolicy { .. } => None,
            Self::StopProtection { purge_time: Some(_) }
            | Self::UndeleteInstance
            | Self::Check { .. }
            | Self::VerifyPoint { .. }
            | Self::Prune { .. }
            | Self::DeletePoint { .. }
            | Self::UndeletePoint { .. }
            | Self::ArchivePoint { .. }
            | Self::Tier { .. } => Some(Exclusive::Maintenance),
        }
    }

    /// The point that it is about, when it is about one that exists.
    pub fn point_id(&self) -> Option<Id> {
        match self {
            Self::RestoreDatabase { point_id, .. }
            | Self::RestoreFiles { point_id, .. }
            | Self::RestoreDisk { point_id, .. }
            | Self::VerifyPoint { point_id }
            | Self::DeletePoint { point_id, .. }
            | Self::UndeletePoint { point_id }
            | Self::ArchivePoint { point_id }
            | Self::Tier { point_id, .. } => Some(*point_id),
            Self::Backup { .. }
            | Self::ConfigureProtection
            | Self::StopProtection { .. }
            | Self::UndeleteInstance
            | Self::ChangePolicy { .. }
            | Self::Check { .. }
            | Self::Prune { .. } => None,
        }
    }
}

/// How a job stands. What belongs to a state is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "kebab-case")]
pub enum Status {
    /// It runs, or waits for its turn.
    InProgress,
    /// Somebody asked it to stop.
    Cancelling,
    /// It ended well (with warnings, when there are any).
    Completed {
        /// When.
        end_time: jiff::Timestamp,
        /// The point that a backup made.
        point_id: Option<Id>,
        /// Bytes read or restored.
        bytes_read: u64,
        /// Bytes added to the vault.
        bytes_stored: u64,
    },
    /// It did not do what it was for, and left nothing half-done visible.
    Failed {
        /// When.
        end_time: jiff::Timestamp,
        /// Why.
        problem: StoredProblem,
    },
    /// It was stopped on request.
    Cancelled {
        /// When.
        end_time: jiff::Timestamp,
    },
}

impl Status {
    /// True when the job will not change any more.
    pub fn has_ended(&self) -> bool {
        !matches!(self, Self::InProgress | Self::Cancelling)
    }

    /// A failure, now.
    pub fn failed(problem: &Problem) -> Self {
        Self::Failed { end_time: vaultferry_vault::clock::now(), problem: problem.into() }
    }
}

/// A [`Problem`] as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredProblem {
    /// Its name.
    pub reason: String,
    /// What happened.
    pub message: String,
    /// What to do.
    pub fix: String,
}

impl From<&Problem> for StoredProblem {
    fn from(problem: &Problem) -> Self {
        let Problem { reason, message, fix } = problem.clone();
        Self { reason: reason.to_string(), message, fix }
    }
}

/// One run of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// 32 hexadecimal digits.
    pub id: String,
    /// When it was asked for.
    pub create_time: jiff::Timestamp,
    /// On what.
    pub instance_id: String,
    /// Its name then.
    pub instance_name: String,
    /// What it does.
    pub work: Work,
    /// How it stands.
    pub status: Status,
    /// True when a schedule started it.
    pub scheduled: bool,
    /// The caller's own id for the request, or the schedule's slot; unique. None: any number of times.
    pub request_id: Option<String>,
    /// What did not stop it.
    pub warnings: Vec<StoredProblem>,
    /// A restore that waits for its point's rehydration: it has touched nothing at its target, and a restart goes on with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rehydrating: bool,
    /// What a maintenance job has to tell at its end, or a backup before it is committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// It waits for its turn and has touched nothing: a restart goes on with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub queued: bool,
    /// Which attempt it is.
    #[serde(default, skip_serializing_if = "Attempt::is_only")]
    pub attempt: Attempt,
    /// What it did, in order; kept when it ends, and when it is staged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<JobStep>,
}

/// Which attempt at a slot's backup a job is. Every job that is not tried again is the only one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// 1 for the first.
    pub number: u32,
    /// The first one's job; `None`: this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
    /// It failed, and the next one was planned for then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<jiff::Timestamp>,
}

impl Default for Attempt {
    fn default() -> Self {
        Self { number: 1, first: None, next: None }
    }
}

impl Attempt {
    fn is_only(&self) -> bool {
        *self == Self::default()
    }
}

/// A phase of a job that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStep {
    /// The phase.
    pub name: String,
    /// When it began.
    pub start: jiff::Timestamp,
    /// When it ended; not before it began.
    pub end: jiff::Timestamp,
    /// Bytes read or restored in it.
    pub bytes_read: u64,
    /// Bytes added to the vault in it.
    pub bytes_stored: u64,
}

/// Another attempt at a backup that has failed: not a job yet, so that it keeps nothing else from running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Whose backup it is. One attempt at most is planned for an instance: a later failure's takes its place.
    pub instance_id: String,
    /// When it begins.
    pub due: jiff::Timestamp,
    /// When the next slot's backup begins: from then on there is no attempt at this one. `None`: the schedule ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<jiff::Timestamp>,
    /// The first attempt's job.
    pub first: String,
    /// 2 for the one after the first.
    pub number: u32,
    /// As the first one's.
    pub work: Work,
}

/// What a maintenance job found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Of all findings; the first of them are kept beside the job ([`findings`](super::Catalog::findings)).
    pub finding_count: u64,
    /// What belongs to the operation.
    pub figures: Option<ReportFigures>,
}

/// The figures of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "kebab-case")]
pub enum ReportFigures {
    /// Of a check or a verification.
    Check(CheckFigures),
    /// Of a prune.
    Prune(PruneFigures),
    /// Of a copy to the archive store.
    Archive {
        /// Packs that were added.
        packs: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// Of a backup.
    Backup {
        /// For how long a snapshot was held at the source.
        snapshot_held_ms: u64,
        /// How many transactions began there meanwhile; 0 when nobody knows.
        #[serde(default)]
        snapshot_transactions: u64,
    },
    /// Of a restore into a database.
    Restore {
        /// What of the result was compared with the point, for people.
        checked: String,
    },
}

/// `CheckReport` in job.proto; probabilities are in millionths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields' meanings are in job.proto")]
pub struct CheckFigures {
    pub points: u64,
    pub packs: u64,
    pub pack_bytes: u64,
    pub files_read: u64,
    pub bytes_read: u64,
    pub blobs_read: u64,
    pub files_unreadable: u64,
    pub seed: u64,
    pub packs_drawn: u64,
    pub detects_one_ppm: u32,
    pub detects_one_percent_ppm: u32,
}

/// `PruneReport` in job.proto.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields' meanings are in job.proto")]
pub struct PruneFigures {
    pub epoch: u64,
    pub packs_marked: u64,
    pub bytes_marked: u64,
    pub packs_deleted: u64,
    pub bytes_deleted: u64,
    pub packs_noted: u64,
    pub bytes_noted: u64,
    pub packs_protected: u64,
    pub bytes_protected: u64,
    pub bytes_kept: u64,
    pub bytes_kept_deleted: u64,
    pub bytes_kept_uncommitted: u64,
    pub bytes_unused: u64,
    pub points_purged: u64,
    pub index_files: u64,
    pub index_files_replaced: u64,
    pub archive_packs_deleted: u64,
    pub archive_bytes_deleted: u64,
    pub damage: Vec<String>,
}

/// Something in the vault that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// `altered`, `missing`, …
    pub kind: String,
    /// Data of a point is concerned.
    pub damage: bool,
    /// The file's place in the instance's store.
    pub file: String,
    /// What is wrong with it.
    pub message: String,
    /// Points that need it, with their times as far as they are known; the first of them.
    pub points: Vec<(Id, Option<jiff::Timestamp>)>,
}

/// What came of asking for a job.
#[derive(Debug)]
pub enum Inserted {
    /// It is new.
    New,
    /// The same request was made before; this is its job.
    Known(Box<Job>),
    /// A job that it may not run beside ([`Work::exclusive`]) is running: its id.
    Busy(String),
}
