//! What the coordinator asks for, and who does it.

use std::sync::Once;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::network::{self, Place};
use vaultferry_plugin_sdk::workload::unless_cancelled;
use vaultferry_plugin_sdk::{
    BackupJob, CleanUpJob, Discovered, Reporter, RestoreJob, RestoreTarget, Source, Validated, Workload, files,
};
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::writer::Staged;

use crate::{Vm, backup, discover, restore, scripts, validate};

/// The first call of this process.
static STARTED: Once = Once::new();

/// Once in a process: runs what killed backups owe, beside whatever was asked for. A backup of the same folder waits for it.
fn start() {
    STARTED.call_once(|| {
        tokio::spawn(finish_scripts());
    });
}

/// So long a clean-up, whose own work is done, waits for scripts: less than the coordinator waits for it.
const SCRIPTS_PATIENCE: Duration = Duration::from_secs(300);

async fn scripts_finished() -> Result<(), Problem> {
    finish_scripts().await;
    Ok(())
}

/// Runs the post-scripts that killed backups owe. What fails is told.
async fn finish_scripts() {
    for (folder, result) in scripts::run_leftovers().await {
        match result {
            Ok(_) => tracing::warn!(folder = %folder.display(), "the post-script of a killed backup was run"),
            Err(problem) => {
                tracing::error!(folder = %folder.display(), %problem, fix = problem.fix, "the post-script of a killed backup failed");
            }
        }
    }
}

#[async_trait]
impl Workload for Vm {
    fn source_type(&self) -> &'static str {
        "vm"
    }

    async fn validate(
        &self,
        source: Source,
        settings_json: &str,
        cancel: &CancellationToken,
    ) -> Result<Validated, Problem> {
        start();
        validate::validate(&source, settings_json, cancel).await
    }

    async fn discover(&self, server: Source, _: &str, cancel: &CancellationToken) -> Result<Discovered, Problem> {
        start();
        discover::discover(&server, cancel).await
    }

    async fn backup(&self, job: BackupJob, reporter: &Reporter, cancel: &CancellationToken) -> Result<Staged, Problem> {
        start();
        let access = job.vault.access.clone();
        match backup::backup(job, reporter, cancel).await {
            Ok(staged) => Ok(staged),
            Err(problem) => Err(network::explain(problem, &access, &Place::default(), cancel).await),
        }
    }

    async fn restore(&self, job: RestoreJob, reporter: &Reporter, cancel: &CancellationToken) -> Result<u64, Problem> {
        start();
        match &job.target {
            RestoreTarget::Disk(target) => restore::restore(&job, target, reporter, cancel).await,
            RestoreTarget::Files(destination) => files::restore(&job, destination, reporter, cancel).await,
            RestoreTarget::Database(_) => Err(no_database()),
        }
    }

    async fn clean_up(&self, job: CleanUpJob, cancel: &CancellationToken) -> Result<(), Problem> {
        // First, since scripts take as long as they like.
        let cleaned = match &job.target {
            RestoreTarget::Disk(target) => restore::clean_up(&job.job_id, target, cancel).await,
            RestoreTarget::Files(destination) => files::clean_up(&job.job_id, destination, cancel).await,
            RestoreTarget::Database(_) => Err(no_database()),
        };
        // What is left of them then, the next process runs.
        let _ = tokio::time::timeout(SCRIPTS_PATIENCE, unless_cancelled(scripts_finished(), cancel)).await;
        cleaned
    }
}

fn no_database() -> Problem {
    Problem::new(Reason::InvalidRequest, "a point of a machine holds disks, no database")
        .with_fix("Restore it as a disk, or as files.")
}
