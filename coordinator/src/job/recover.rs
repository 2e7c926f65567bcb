//! What the agent does with the jobs of an earlier life, before it takes new ones. The table is in ARCHITECTURE.md.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};

use super::queue::Need;
use super::{Jobs, maintenance, restore, whole};
use crate::catalog::{Exclusive, Job, Status};

/// No put takes as long: a pack has 24 MiB at most, and a store's deadline is minutes.
const UNFINISHED_AGE: Duration = Duration::from_secs(3600);

impl Jobs {
    /// Ends the plugins of an earlier life, goes on with staged jobs, and ends the others. Returns when every job is being worked on or
    /// has ended; commits and clean-ups go on in their own tasks.
    pub async fn recover(&self) -> Result<(), Problem> {
        let catalog = &self.shared.catalog;
        for process in catalog.plugin_processes().await? {
            crate::plugin::reap::reap(&process);
            catalog.clear_plugin_process(&process.job_id).await?;
        }
        self.sweep().await?;
        for job in catalog.unfinished_jobs().await? {
            if catalog.staged(&job.id).await?.is_some() {
                tracing::info!(job = job.id, "going on with the commit of an earlier life");
                self.spawn(job, None, true);
            } else if whole::is_whole(&job.work) && job.status == Status::InProgress {
                tracing::info!(job = job.id, "going on with all points of an instance");
                self.spawn_again(job).await?;
            } else if job.rehydrating && job.status == Status::InProgress {
                tracing::info!(job = job.id, "going on to wait for an archived point");
                self.spawn_again(job).await?;
            } else if job.queued && job.status == Status::InProgress {
                tracing::info!(job = job.id, "going on to wait for a job's turn");
                self.spawn_again(job).await?;
            } else if restore::leaves_something(&job.work) || job.work.exclusive() == Some(Exclusive::Maintenance) {
                self.clean_up_later(job);
            } else {
                self.end_interrupted(&job, "").await?;
            }
        }
        // A kill between a commit's end and its confirmation leaves a message in the outbox.
        self.shared.link.confirm(&**catalog).await;
        Ok(())
    }

    /// Goes on with a job from its beginning.
    async fn spawn_again(&self, job: Job) -> Result<(), Problem> {
        let instance = self.shared.catalog.instance(&job.instance_id).await?;
        // Without its instance it fails by itself.
        let source = instance.map(|instance| instance.source_identity).unwrap_or_default();
        let need = Need::of(&job.work, &source);
        self.spawn(job, need, false);
        Ok(())
    }

    /// Half-written files of killed processes. The vault may be away; then they wait for another start.
    async fn sweep(&self) -> Result<(), Problem> {
        let instances = self.shared.catalog.instances().await?;
        let folders = instances.iter().map(|instance| Some(instance.id.as_str())).chain([None]);
        for folder in folders {
            match self.shared.vault.sweep_temporary(folder, UNFINISHED_AGE).await {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "removed unfinished files of an earlier life from the vault"),
                Err(error) => tracing::warn!("unfinished files in the vault cannot be removed: {error}"),
            }
        }
        Ok(())
    }

    fn clean_up_later(&self, job: Job) {
        let jobs = self.clone();
        self.inner.tasks.spawn(async move {
            let cancel: CancellationToken = jobs.inner.stop.child_token();
            let (cleaned, otherwise) = match job.work.exclusive() {
                Some(Exclusive::Maintenance) => {
                    (maintenance::clean_up(&jobs, &job, &cancel).await, "what it had begun could not be ended")
                }
                Some(Exclusive::Backup) | None => {
                    (restore::clean_up(&jobs, &job, &cancel).await, "what it left could not be removed")
                }
            };
            let left = match cleaned {
                Ok(()) => String::new(),
                Err(problem) if problem.reason == Reason::Cancelled => return,
                Err(problem) => format!("; {otherwise}: {}", problem.message),
            };
            if let Err(problem) = jobs.end_interrupted(&job, &left).await {
                tracing::error!(job = job.id, "an interrupted job cannot be ended: {problem}");
            }
        });
    }

    async fn end_interrupted(&self, job: &Job, left: &str) -> Result<(), Problem> {
        let status = if job.status == Status::Cancelling {
            Status::Cancelled { end_time: vaultferry_vault::clock::now() }
        } else {
            let message = format!("the agent or its machine stopped while the job ran{left}");
            Status::failed(&Problem::new(Reason::Interrupted, message))
        };
        tracing::info!(job = job.id, instance = job.instance_name, "a job of an earlier life was interrupted{left}");
        // A scheduled backup's next attempt is planned with its end, and whoever waits for one hears of it.
        self.write_end(job, status, Vec::new()).await?;
        self.inner.ended.notify_waiters();
        Ok(())
    }
}
