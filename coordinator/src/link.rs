//! The link to the backup service: the control plane that is told of every commit (P29), and may own policies and instances of a fleet.
//!
//! ```text
//!  catalog ── outbox, job reports ──► deliver ──► ConfirmCommits, ReportJobs ──►┐
//!                                                                              │  backup service
//!  Api ◄── policies, instances, backups ◄── assign ◄── WatchAssignments ◄───────┤
//!   └────────────── what became of them ──► deliver ──► ReportAssignments ─────►┘
//! ```
//! On one machine there is no service apart: this agent's own catalog plays its part, and takes every commit at once. The outbox is the
//! same for both: a message is written in the transaction that ends the job, and removed when it was acknowledged.
//!
//! Invariants:
//! - No job waits for the service: what there is to tell waits in the catalog, a page of it in memory, until it is acknowledged. So a kill
//!   anywhere repeats messages and loses none.
//! - What the service assigns is done by the same calls as what a person asks for ([`crate::api`]), one item after the other, and a version that
//!   is done with is never done again.
//! - What the service does not name is left alone.
//! - The agent calls, the service never does; a connection that breaks is made again after 1 s to 60 s.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::Notify;

use crate::catalog::{Catalog, Error};

mod assign;
mod backoff;
mod client;
mod deliver;
#[cfg(test)]
pub(crate) mod in_process;
mod task;
mod wire;

pub(crate) use task::Task;

/// The backup service, and what it takes to be believed there. The files are read at every connection, so that renewed ones count.
#[derive(Debug, Clone)]
pub struct Config {
    /// `https://host:port`, or `http://` with an address of this machine.
    pub endpoint: String,
    /// The certificate authorities that the service's certificate is trusted by (PEM); none: the system's.
    pub ca: Option<PathBuf>,
    /// The agent's certificate and its key (PEM).
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Sent with every call as a bearer token.
    pub token: Option<SecretString>,
    /// Served in this process instead of at the endpoint.
    #[cfg(test)]
    pub(crate) in_process: Option<in_process::Way>,
}

impl Config {
    /// Between two looks for what was done without waking the link.
    fn look_again(&self) -> Duration {
        #[cfg(test)]
        if let Some(way) = &self.in_process {
            return way.look_again;
        }
        deliver::LOOK_AGAIN
    }
}

/// Where commits are confirmed, for those who have made one. Cheap to clone; the default is this agent's own catalog.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// Of a service: its task has something to tell.
    news: Option<Arc<Notify>>,
}

impl Link {
    /// To a service, which a [`Task`] speaks to.
    pub fn of_service() -> Self {
        Self { news: Some(Arc::default()) }
    }

    /// There is something to tell: a commit, or a job that has changed. Never waits; without a service it does nothing.
    pub fn wake(&self) {
        if let Some(news) = &self.news {
            news.notify_one();
        }
    }

    /// Has what waits in the outbox delivered: at once to the own catalog, some time to a service. What cannot be delivered stays there.
    pub async fn confirm(&self, catalog: &dyn Catalog) {
        if self.news.is_some() {
            return self.wake();
        }
        if let Err(error) = acknowledge_all(catalog).await {
            tracing::warn!("commits wait for their confirmation: {error}");
        }
    }
}

async fn acknowledge_all(catalog: &dyn Catalog) -> Result<(), Error> {
    loop {
        let page = catalog.outbox().await?;
        if page.is_empty() {
            return Ok(());
        }
        for entry in &page {
            tracing::info!(job = entry.job_id, point = %entry.point.id, "commit confirmed");
        }
        catalog.acknowledge(page.into_iter().map(|entry| entry.job_id).collect()).await?;
    }
}
