//! What the coordinator asks for, and who does it.

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::{
    BackupJob, CleanUpJob, Discovered, Reporter, RestoreJob, RestoreTarget, Source, Validated, Workload, files,
};
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::writer::Staged;

use crate::{Vm, backup, discover, restore, validate};

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
        validate::validate(&source, settings_json, cancel).await
    }

    async fn discover(&self, server: Source, _: &str, cancel: &CancellationToken) -> Result<Discovered, Problem> {
        discover::discover(&server, cancel).await
    }

    async fn backup(&self, job: BackupJob, reporter: &Reporter, cancel: &CancellationToken) -> Result<Staged, Problem> {
        backup::backup(job, reporter, cancel).await
    }

    async fn restore(&self, job: RestoreJob, reporter: &Reporter, cancel: &CancellationToken) -> Result<u64, Problem> {
        match &job.target {
            RestoreTarget::Disk(target) => restore::restore(&job, target, reporter, cancel).await,
            RestoreTarget::Files(destination) => files::restore(&job, destination, reporter, cancel).await,
            RestoreTarget::Database(_) => Err(no_database()),
        }
    }

    async fn clean_up(&self, job: CleanUpJob, cancel: &CancellationToken) -> Result<(), Problem> {
        match &job.target {
            RestoreTarget::Disk(target) => restore::clean_up(&job.job_id, target, cancel).await,
            RestoreTarget::Files(destination) => files::clean_up(&job.job_id, destination, cancel).await,
            RestoreTarget::Database(_) => Err(no_database()),
        }
    }
}

fn no_database() -> Problem {
    Problem::new(Reason::InvalidRequest, "a point of a machine holds disks, no database")
        .with_fix("Restore it as a disk, or as files.")
}
