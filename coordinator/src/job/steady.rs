//! Jobs begin, and instances change, one after the other: what a job begins with holds until it has begun.

use std::sync::Arc;

use tokio::sync::OwnedRwLockWriteGuard;
use vaultferry_proto::{Problem, Reason};

use super::{Jobs, Shared};
use crate::catalog::{Instance, Work};
use crate::lifecycle;

impl Jobs {
    /// What all jobs share.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// No job begins while the answer lives; those that wait begin afterwards. Waits for those that are just beginning, which is short.
    pub(crate) async fn hold_starts(&self) -> OwnedRwLockWriteGuard<()> {
        self.inner.changes.clone().write_owned().await
    }

    /// [`Reason::InstanceBusy`] while a job of the instance runs, or waits for its turn.
    pub(crate) async fn check_idle(&self, instance: &Instance) -> Result<(), Problem> {
        let unfinished = self.shared.catalog.unfinished_jobs().await?;
        match unfinished.into_iter().find(|job| job.instance_id == instance.id) {
            None => Ok(()),
            Some(job) => {
                let message = format!("job {} ({}) of {} is running", job.id, job.work.name(), instance.name);
                Err(Problem::new(Reason::InstanceBusy, message))
            }
        }
    }

    /// Refuses what the instance, as it is now, does not allow.
    pub(super) async fn check_allowed(&self, instance: &Instance, work: &Work, scheduled: bool) -> Result<(), Problem> {
        let depends = match work {
            Work::Backup { .. } | Work::UndeletePoint { .. } => true,
            Work::DeletePoint { .. } | Work::Tier { .. } => scheduled,
            _ => false,
        };
        if !depends {
            return Ok(());
        }
        let gone = || Problem::new(Reason::InstanceNotFound, format!("{} is gone", instance.name));
        let now = self.shared.catalog.instance(&instance.id).await?.ok_or_else(gone)?;
        lifecycle::check_allows(&now, work, scheduled)
    }

    /// Does something that must come to its end although the caller may go away. The agent's end waits for it as for a job.
    pub(crate) async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Problem>> + Send + 'static,
    ) -> Result<T, Problem> {
        let done = self.inner.tasks.spawn(work).await;
        done.map_err(|error| Problem::new(Reason::Internal, format!("it came to no end: {error}")))?
    }
}
