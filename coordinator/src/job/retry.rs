//! Scheduled backups that have failed are tried again, as their policies say (`[retry]`).
//!
//! ```text
//! attempt 1 fails ─[one transaction]─► job Failed + attempt 2 planned ─(pause)─► job of attempt 2 ─► … until `attempts`
//!                                              │
//!    given up: the next slot's backup is due, or the instance is paused, stopped, or has dealt with a later slot
//! ```
//! Invariants:
//! - What is planned is journaled with the failure, in one transaction: a kill forgets neither, and a job that has not failed has no successor.
//! - An attempt is one job at most: the request id of its job is made of the first job's id and its own number.
//! - A planned attempt is no job: it holds nobody up, neither a backup on demand nor whoever stops the instance.
//! - A job that was cancelled, or that nobody but a person has asked for, is not tried again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};

use super::Jobs;
use crate::catalog::{Attempt, Job, Retry, Status, Work};
use crate::lifecycle;
use crate::policy::{self, Document};

/// A jump of the clock is noticed after this at the latest, when an attempt is planned.
pub(crate) const LONGEST_SLEEP: Duration = Duration::from_secs(20);
/// When none is, the end of the next job that fails tells of one; this is for what nobody has thought of.
const IDLE: Duration = Duration::from_secs(3600);

/// True when the same job, begun again a while later with nothing changed by a person, may succeed. Every reason has to be sorted in.
pub(super) fn is_mendable(reason: Reason) -> bool {
    match reason {
        // The network, a server or a service was away, or somebody else was at it.
        Reason::AgentUnreachable
        | Reason::VaultUnavailable
        | Reason::KeyVaultUnavailable
        | Reason::AzureUnavailable
        | Reason::IdentityUnavailable
        | Reason::UserErrorMissingNetworkSecurityPermissions
        | Reason::ExtensionSnapshotFailedNoNetwork
        | Reason::UserErrorServerConnectionClosed
        | Reason::LockTimeout
        | Reason::ReplicaConflict
        | Reason::DdlWaits
        | Reason::ConsistencyNotReached
        | Reason::InstanceBusy
        | Reason::MaintenanceBusy
        | Reason::PolicyRaced
        | Reason::VaultSettingsRaced => true,
        // The work was cut off, or overtaken.
        Reason::Interrupted
        | Reason::PluginCrashed
        | Reason::PluginTimeout
        | Reason::FreezeFailed
        | Reason::StagedIncomplete
        | Reason::PrunedMeanwhile => true,
        // A snapshot overflowed, or somebody was at the disk; later there may be room, and quiet.
        Reason::SnapshotFailed | Reason::SourceInUse | Reason::SourceChanged => true,
        // pg_dump may have met a table that was just dropped, a deadlock, or a machine without memory; so may we.
        Reason::DumpFailed | Reason::Internal => true,
        // An application was too busy to be quieted.
        Reason::ScriptFailed => true,
        // Somebody asked for something that cannot be.
        Reason::InvalidRequest
        | Reason::InvalidPolicy
        | Reason::InvalidSource
        | Reason::RuleNotFound
        | Reason::PolicySourceTypeMismatch
        | Reason::RetentionShortened
        | Reason::PolicyInUse
        | Reason::RegionMismatch
        | Reason::PolicyNotFound
        | Reason::InstanceNotFound
        | Reason::PointNotFound
        | Reason::JobNotFound
        | Reason::ServerNotFound
        | Reason::NameTaken
        | Reason::SourceAlreadyProtected
        | Reason::ProtectionStopped
        | Reason::InstanceDeleted
        | Reason::NoRecoveryPoint
        | Reason::InvalidConfiguration
        | Reason::Cancelled => false,
        // A person has to mend something first.
        Reason::PluginNotFound
        | Reason::PluginProtocol
        | Reason::VaultNotFound
        | Reason::VaultUnreadable
        | Reason::VaultNotWritable
        | Reason::VaultFull
        | Reason::VaultSpaceLow
        | Reason::VaultAccessDenied
        | Reason::VaultKeyMissing
        | Reason::VaultKeyWrong
        | Reason::KeyVaultAccessDenied
        | Reason::RepositoryDamaged
        | Reason::JobAlreadyCommitted
        | Reason::PointArchived
        | Reason::DataProtected
        | Reason::FreezeRefused
        | Reason::VaultUnsupported
        | Reason::VaultSettingsLocked
        | Reason::VaultOwnedByOther
        | Reason::ScriptNotAllowed
        | Reason::UserErrorDBUserAuthFailed
        | Reason::UserErrorMSIMissingPermissions
        | Reason::UserErrorBackupUserAuthFailed
        | Reason::UserErrorDBNotFound
        | Reason::UserErrorDatabaseNameAlreadyInUse
        | Reason::UserErrorMissingDBPermissions
        | Reason::RowSecurityHidesRows
        | Reason::PoolerUnsupported
        | Reason::TooFewLocks
        | Reason::DumpWarned
        | Reason::GlobalsNotRead
        | Reason::TlsFailed
        | Reason::ClientNotFound
        | Reason::ClientTooOld
        | Reason::RestoreFailed
        | Reason::RestoreIncomplete
        | Reason::PartlyRestored
        | Reason::AlsoRestored
        | Reason::RolesMissing
        | Reason::ExtensionMissing
        | Reason::LocaleMissing
        | Reason::TargetFull
        | Reason::SizeAboveRecommended
        | Reason::SnapshotTooOld
        | Reason::ReplicaBehind
        | Reason::DiskUnreadable
        | Reason::ChangeTrackingLost
        | Reason::TargetInUse
        | Reason::SnapshotUnsupported
        | Reason::TargetExists
        | Reason::TargetNotWritable
        | Reason::UserErrorContainerNotAccessible
        | Reason::AzureNotFound
        | Reason::AzureRefused => false,
    }
}

/// The next attempt at a job that fails now; `None`: there is none.
pub(super) fn next(job: &Job, reason: Reason, document: &Document, now: Timestamp) -> Option<Retry> {
    let Work::Backup { slot, .. } = &job.work else { return None };
    let number = job.attempt.number + 1;
    if !job.scheduled || !is_mendable(reason) || number > document.retry.attempts {
        return None;
    }
    let first = job.attempt.first.clone().unwrap_or_else(|| job.id.clone());
    // That the agent's own life ended says nothing of the source or the vault; but not twice, as it may be the backup that ends it.
    let at_once = reason == Reason::Interrupted && number == 2;
    let pause = if at_once { SignedDuration::ZERO } else { document.retry.pause(number, &first) };
    let due = document.opens(now.checked_add(pause).ok()?);
    // A slot is missing in journals of early versions.
    let until = document.next_slot(slot.unwrap_or(job.create_time));
    let until = until.map(|slot| document.start_time(slot, &job.instance_id));
    let in_time = until.is_none_or(|until| due < until);
    let instance_id = job.instance_id.clone();
    in_time.then(|| Retry { instance_id, due, until, first, number, work: job.work.clone() })
}

/// What became of an attempt whose time has come.
enum Begun {
    /// Its job is there, or it is given up.
    Done,
    /// Another backup of the instance is at work.
    Later,
}

impl Jobs {
    /// The next attempt at a job that ends so, if there is one.
    pub(super) async fn next_attempt(&self, job: &Job, status: &Status) -> Result<Option<Retry>, Problem> {
        let (Status::Failed { problem, .. }, true) = (status, job.scheduled) else { return Ok(None) };
        let Ok(reason) = problem.reason.parse() else { return Ok(None) };
        let catalog = &self.shared.catalog;
        let Some(instance) = catalog.instance(&job.instance_id).await? else { return Ok(None) };
        let Some(policy) = catalog.policy(&instance.policy).await? else { return Ok(None) };
        let Ok(document) = policy::parsed(&policy.document) else { return Ok(None) };
        Ok(next(job, reason, &document, vaultferry_vault::clock::now()))
    }

    /// Begins planned attempts when they are due, until `stop`, looking at the clock after `longest_sleep` at the latest. Those of an earlier
    /// life are among them.
    pub async fn run_retries(self, longest_sleep: Duration, stop: CancellationToken) {
        loop {
            // Heard from here on, so that no end falls between the look and the wait.
            let ended = self.inner.ended.notified();
            let mut ended = std::pin::pin!(ended);
            ended.as_mut().enable();
            let sleep = match self.begin_due().await {
                Ok(Some(sleep)) => sleep.min(longest_sleep),
                Ok(None) => IDLE.max(longest_sleep),
                Err(problem) => {
                    tracing::error!("failed backups are tried again in {longest_sleep:?}: {problem}");
                    longest_sleep
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(sleep) => {}
                () = ended => {}
            }
        }
    }

    /// Begins what is due; how long until the next one is, or is looked at again. `None`: none is planned.
    async fn begin_due(&self) -> Result<Option<Duration>, Problem> {
        let now = vaultferry_vault::clock::now();
        let mut waits = false;
        for retry in self.shared.catalog.retries().await? {
            if retry.due > now {
                return Ok(Some(Duration::try_from(retry.due.duration_since(now)).unwrap_or(LONGEST_SLEEP)));
            }
            match self.begin_attempt(&retry, now).await? {
                Begun::Done => self.shared.catalog.remove_retry(retry).await?,
                Begun::Later => waits = true,
            }
        }
        Ok(waits.then_some(LONGEST_SLEEP))
    }

    async fn begin_attempt(&self, retry: &Retry, now: Timestamp) -> Result<Begun, Problem> {
        let catalog = &self.shared.catalog;
        let given_up = |why: &str| {
            tracing::info!(job = retry.first, attempt = retry.number, "the backup is not tried again: {why}");
            Ok(Begun::Done)
        };
        let Some(instance) = catalog.instance(&retry.instance_id).await? else {
            return given_up("the instance is gone");
        };
        if retry.until.is_some_and(|until| until <= now) {
            return given_up("the next one of the schedule is due");
        }
        let Work::Backup { slot, .. } = &retry.work else { return Ok(Begun::Done) };
        if let (Some(slot), Some(last)) = (*slot, catalog.last_slot(&instance.id).await?)
            && last > slot
        {
            return given_up("a later one of the schedule was dealt with");
        }
        let attempt = Attempt { number: retry.number, first: Some(retry.first.clone()), next: None };
        let request = format!("retry:{}:{}", retry.first, retry.number);
        match self.start_attempt(&instance, retry.work.clone(), Some(request), true, attempt).await {
            Ok(job) => {
                tracing::info!(job = job.id, attempt = retry.number, first = retry.first, "the backup is tried again");
                Ok(Begun::Done)
            }
            Err(problem) if problem.reason == Reason::InstanceBusy => Ok(Begun::Later),
            Err(problem) if lifecycle::is_refusal(&problem) => given_up(&problem.message),
            Err(problem) => Err(problem),
        }
    }
}

#[cfg(test)]
mod tests;
