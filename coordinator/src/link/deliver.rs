//! Tells the service what there is to tell: commits, jobs, and what has become of its assignments.
//!
//! Invariants:
//! - Commits come before jobs: whoever hears that a backup has completed has heard of its point.
//! - A page is in memory at a time, and is forgotten by the catalog only after the service has taken it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use vaultferry_proto::service::v1 as wire;

use super::client::{Client, Error, call};
use super::wire::{commit, report, result};
use crate::catalog::Catalog;

/// What was done without waking the link (an operation that took no time, a job of an earlier life) is told after this at the latest.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What is told, and by whom.
#[derive(Debug, Clone)]
pub(super) struct Deliver {
    pub(super) catalog: Arc<dyn Catalog>,
    pub(super) agent_id: String,
    pub(super) news: Arc<Notify>,
    pub(super) look_again: Duration,
}

impl Deliver {
    /// Delivers over this connection until it breaks. `delivered` is called whenever the service has taken something.
    pub(super) async fn run(&self, mut client: Client, delivered: impl Fn()) -> Result<Infallible, Error> {
        loop {
            while self.commits(&mut client).await? || self.jobs(&mut client).await? || self.outcome(&mut client).await?
            {
                delivered();
            }
            tokio::select! {
                () = self.news.notified() => {}
                () = tokio::time::sleep(self.look_again) => {}
            }
        }
    }

    /// A page of commits; false when none waits.
    async fn commits(&self, client: &mut Client) -> Result<bool, Error> {
        let page = self.catalog.outbox().await?;
        if page.is_empty() {
            return Ok(false);
        }
        let job_ids: Vec<String> = page.iter().map(|entry| entry.job_id.clone()).collect();
        let request = wire::ConfirmCommitsRequest {
            agent_id: self.agent_id.clone(),
            sequence: self.catalog.next_sequence().await?,
            commits: page.into_iter().map(commit).collect(),
        };
        call("ConfirmCommits", client.confirm_commits(request)).await?;
        for job in &job_ids {
            tracing::info!(job, "commit confirmed to the backup service");
        }
        self.catalog.acknowledge(job_ids).await?;
        Ok(true)
    }

    /// A page of job reports; false when none waits.
    async fn jobs(&self, client: &mut Client) -> Result<bool, Error> {
        let page = self.catalog.job_reports().await?;
        if page.is_empty() {
            return Ok(false);
        }
        let told = page.iter().map(|report| (report.job.id.clone(), report.sequence)).collect();
        let request = wire::ReportJobsRequest {
            agent_id: self.agent_id.clone(),
            sequence: self.catalog.next_sequence().await?,
            reports: page.into_iter().map(report).collect(),
        };
        call("ReportJobs", client.report_jobs(request)).await?;
        self.catalog.acknowledge_reports(told).await?;
        Ok(true)
    }

    /// What has become of the assignments; false when that is known.
    async fn outcome(&self, client: &mut Client) -> Result<bool, Error> {
        let Some((sequence, outcome)) = self.catalog.link_state().await?.outcome else { return Ok(false) };
        let request = wire::ReportAssignmentsRequest {
            agent_id: self.agent_id.clone(),
            // Its own number: of two outcomes the later one counts, in whatever order they come.
            sequence,
            version: outcome.version,
            complete: outcome.complete,
            results: outcome.results.into_iter().map(result).collect(),
        };
        call("ReportAssignments", client.report_assignments(request)).await?;
        self.catalog.acknowledge_outcome(sequence).await?;
        Ok(true)
    }
}
