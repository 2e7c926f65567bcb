//! What can go wrong with a vault, and how its users are told.

use vaultferry_proto::{Problem, Reason};

use crate::id::Id;
use crate::store;

/// A failure of the data path, the commit, or the vault's own records. Nothing of it holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store did not do what was asked.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Bytes in the vault are not what their name or format says, or something that is referred to is not there.
    #[error("{what} is damaged: {detail}")]
    Damaged {
        /// Which file or blob.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// No vault was made at the location.
    #[error("there is no vault at {location}")]
    NoVault {
        /// Where.
        location: String,
    },
    /// A record has a version or a form that this program does not know.
    #[error("{what} cannot be read: {detail}")]
    Unreadable {
        /// Which record.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The vault key's file is missing or not a key.
    #[error("the vault key {path} {detail}")]
    KeyMissing {
        /// The file.
        path: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The key does not open what was wrapped with another one.
    #[error("{what} does not open with this key")]
    KeyWrong {
        /// What was to be opened.
        what: String,
    },
    /// Azure Key Vault did not answer, or answered with errors until the deadline.
    #[error("the key {key} in Key Vault is not available: {detail}")]
    KeyVaultUnavailable {
        /// Its address.
        key: String,
        /// What happened.
        detail: String,
    },
    /// Azure Key Vault refused the token, or the token lacks a right.
    #[error("the key {key} in Key Vault must not be used: {detail}")]
    KeyVaultAccessDenied {
        /// Its address.
        key: String,
        /// Key Vault's words.
        detail: String,
    },
    /// Another agent works with the vault.
    #[error("the vault at {location} belongs to the agent {agent_id} on {hostname} since {since}")]
    OwnedByOther {
        /// The vault.
        location: String,
        /// The owner.
        agent_id: String,
        /// Its machine.
        hostname: String,
        /// When it took the vault.
        since: jiff::Timestamp,
    },
    /// A staged backup refers to a file that is missing or has another size.
    #[error("the staged backup is not complete: {detail}")]
    StagedIncomplete {
        /// Which file.
        detail: String,
    },
    /// A prune marked a pack that the staged backup refers to, or two prunes began since the backup did.
    #[error("pruning went on while the backup ran (epoch {seen} at its start, {now} now)")]
    PrunedMeanwhile {
        /// The epoch that the writer saw.
        seen: u64,
        /// The epoch at the commit.
        now: u64,
    },
    /// The job has committed another snapshot before.
    #[error("job {job_id} has committed snapshot {snapshot_id} already")]
    JobAlreadyCommitted {
        /// The job.
        job_id: String,
        /// What it committed.
        snapshot_id: String,
    },
    /// The vault has no recovery point of that id, or it is purged.
    #[error("there is no recovery point {id}")]
    PointNotFound {
        /// Which.
        id: Id,
    },
    /// A hold or an immutability date forbids the deletion of a point.
    #[error("the recovery point {id} cannot be deleted: {detail}")]
    PointProtected {
        /// Which.
        id: Id,
        /// By what.
        detail: String,
    },
    /// Another maintenance of the same repository is going on.
    #[error("another maintenance is at work in {store}: {detail}")]
    MaintenanceBusy {
        /// Where.
        store: String,
        /// Who, or since when.
        detail: String,
    },
    /// Whoever asked for the work no longer wants it.
    #[error("cancelled")]
    Cancelled,
    /// A broken invariant of this program or of the machine.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    pub(crate) fn damaged(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Damaged { what: what.into(), detail: detail.into() }
    }

    /// The problem of a command that is about an existing vault: when none is there, what helps is another path, and not a new vault.
    pub fn into_problem_of_existing_vault(self) -> Problem {
        let problem = Problem::from(self);
        if problem.reason != Reason::VaultNotFound {
            return problem;
        }
        problem.with_fix(
            "Check the vault's path or address, and that its disk is mounted: the file vault.json of a vault is not there.",
        )
    }

    pub(crate) fn internal(error: impl std::fmt::Display) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<store::Error> for Problem {
    fn from(error: store::Error) -> Self {
        let reason = match &error {
            store::Error::NotFound { .. } => Reason::RepositoryDamaged,
            store::Error::NoStore { .. } => Reason::VaultNotFound,
            store::Error::AccessDenied { .. } => Reason::VaultAccessDenied,
            store::Error::NotWritable { .. } => Reason::VaultNotWritable,
            store::Error::Full { .. } => Reason::VaultFull,
            store::Error::Archived { .. } => Reason::PointArchived,
            store::Error::Protected { .. } => Reason::DataProtected,
            store::Error::Unsupported { .. } => Reason::VaultUnsupported,
            store::Error::Unavailable { .. } | store::Error::Rejected { .. } => Reason::VaultUnavailable,
        };
        Problem::new(reason, error.to_string())
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let reason = match error {
            Error::Store(error) => return error.into(),
            Error::Damaged { .. } => Reason::RepositoryDamaged,
            Error::NoVault { .. } => Reason::VaultNotFound,
            Error::Unreadable { .. } => Reason::VaultUnreadable,
            Error::KeyMissing { .. } => Reason::VaultKeyMissing,
            Error::KeyWrong { .. } => Reason::VaultKeyWrong,
            Error::KeyVaultUnavailable { .. } => Reason::KeyVaultUnavailable,
            Error::KeyVaultAccessDenied { .. } => Reason::KeyVaultAccessDenied,
            Error::OwnedByOther { .. } => Reason::VaultOwnedByOther,
            Error::StagedIncomplete { .. } => Reason::StagedIncomplete,
            Error::PrunedMeanwhile { .. } => Reason::PrunedMeanwhile,
            Error::JobAlreadyCommitted { .. } => Reason::JobAlreadyCommitted,
            Error::PointNotFound { .. } => Reason::PointNotFound,
            Error::PointProtected { .. } => Reason::DataProtected,
            Error::MaintenanceBusy { .. } => Reason::MaintenanceBusy,
            Error::Cancelled => Reason::Cancelled,
            Error::Internal(_) => Reason::Internal,
        };
        Problem::new(reason, error.to_string())
    }
}
