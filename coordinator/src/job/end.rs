//! How jobs end: what is written of it, and what may come after.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};

use super::{End, Jobs};
use crate::catalog::{Job, JobStep, Status, StoredProblem};

impl Jobs {
    /// Writes the job's end. Tries until the catalog takes it: a job without an end would hang for ever.
    pub(super) async fn end(&self, job: &Job, result: Result<End, Problem>, cancel: &CancellationToken) {
        let result = match result {
            // Nobody is there to start it again: the next life finds it unfinished, and does.
            Err(problem) if job.scheduled && self.is_stopped_by(&problem) => Ok(End::LeftToRestart),
            other => other,
        };
        let (status, warnings) = match result {
            Ok(End::Done(ref outcome)) => (Some(outcome.completed()), outcome.warnings.clone()),
            Ok(End::Recorded | End::LeftToRestart) => (None, Vec::new()),
            Err(ref problem) => (Some(self.unsuccessful(problem.clone(), cancel)), Vec::new()),
        };
        match (&result, &status) {
            (Ok(End::LeftToRestart), _) => tracing::info!(job = job.id, "the job goes on at the next start"),
            (_, Some(Status::Failed { problem, .. })) => {
                tracing::error!(
                    job = job.id,
                    instance = job.instance_name,
                    reason = problem.reason,
                    "job failed: {}",
                    problem.message
                );
            }
            (_, Some(Status::Cancelled { .. })) => tracing::info!(job = job.id, "job cancelled"),
            _ => tracing::info!(job = job.id, "job completed"),
        }
        if let Some(status) = status {
            while let Err(error) = self.write_end(job, status.clone(), warnings.clone()).await {
                tracing::error!(job = job.id, "the job's end cannot be written, trying again: {error}");
                tokio::select! {
                    // The restart finds the job unfinished and ends it.
                    () = self.inner.stop.cancelled() => break,
                    () = tokio::time::sleep(Duration::from_secs(5)) => {}
                }
            }
        }
        if let Ok(End::Recorded) = result {
            self.note_commit(&job.instance_id);
        }
        self.shared.link.wake();
        // Watchers see their channel close, and ask the catalog.
        self.lock().remove(&job.id);
        self.inner.ended.notify_waiters();
    }

    /// With its steps, and the next attempt when there is one.
    pub(super) async fn write_end(
        &self,
        job: &Job,
        status: Status,
        warnings: Vec<StoredProblem>,
    ) -> Result<(), Problem> {
        let catalog = &self.shared.catalog;
        self.keep_steps(job).await?;
        match self.next_attempt(job, &status).await? {
            Some(retry) => {
                tracing::info!(job = job.id, attempt = retry.number, "the backup is tried again at {}", retry.due);
                catalog.fail_and_retry(&job.id, status, retry).await?;
            }
            None => {
                catalog.set_status(&job.id, status, warnings).await?;
            }
        }
        Ok(())
    }

    /// Notes in the catalog what the job has done so far.
    pub(super) async fn keep_steps(&self, job: &Job) -> Result<(), Problem> {
        let Some(steps) = self.steps(&job.id) else { return Ok(()) };
        Ok(self.shared.catalog.set_steps(&job.id, steps).await?)
    }

    /// What a running job has done, up to now. `None`: it does not run.
    pub fn steps(&self, job_id: &str) -> Option<Vec<JobStep>> {
        self.lock().get(job_id).map(|running| running.steps.until(vaultferry_vault::clock::now()))
    }

    fn is_stopped_by(&self, problem: &Problem) -> bool {
        self.inner.stop.is_cancelled() && problem.reason == Reason::Cancelled
    }

    fn unsuccessful(&self, problem: Problem, cancel: &CancellationToken) -> Status {
        if self.is_stopped_by(&problem) {
            let message = "the agent was stopped while the job ran; nothing half-done is left";
            return Status::failed(&Problem::new(Reason::Interrupted, message));
        }
        if cancel.is_cancelled() {
            return Status::Cancelled { end_time: vaultferry_vault::clock::now() };
        }
        Status::failed(&problem)
    }
}
