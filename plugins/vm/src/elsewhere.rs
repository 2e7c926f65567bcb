//! On systems whose disks cannot be frozen and snapshotted by this version: everything is refused.

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::{BackupJob, CleanUpJob, Reporter, RestoreJob, Source, Validated, Workload};
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::writer::Staged;

use crate::Vm;

fn refused() -> Problem {
    Problem::new(Reason::PluginNotFound, "machines' disks are not supported on this system yet")
        .with_fix("Run an agent on Linux, on the machine or on its host.")
}

#[async_trait]
impl Workload for Vm {
    fn source_type(&self) -> &'static str {
        "vm"
    }

    async fn validate(&self, _: Source, _: &str, _: &CancellationToken) -> Result<Validated, Problem> {
        Err(refused())
    }

    async fn backup(&self, _: BackupJob, _: &Reporter, _: &CancellationToken) -> Result<Staged, Problem> {
        Err(refused())
    }

    async fn restore(&self, _: RestoreJob, _: &Reporter, _: &CancellationToken) -> Result<u64, Problem> {
        Err(refused())
    }

    async fn clean_up(&self, _: CleanUpJob, _: &CancellationToken) -> Result<(), Problem> {
        Err(refused())
    }
}
