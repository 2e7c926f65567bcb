//! Copies and moves to the archive store, and what a restore from there needs.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::Reporter;
use vaultferry_proto::Problem;
use vaultferry_proto::plugin::v1::{ArchiveReport, RehydrationReport};
use vaultferry_vault::{Id, archive};

use super::{Done, Job, Report, open_listed, when_free};

pub(super) async fn copy_point(
    job: &Job,
    id: Id,
    remove_from_vault: bool,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<Done, Problem> {
    let (repository, _) = open_listed(job, id, reporter, cancel).await?;
    reporter.phase("archiving");
    let archived = || async {
        match remove_from_vault {
            false => archive::copy_point(&repository, &id, &job.id, reporter.meter(), cancel).await,
            true => archive::move_point(&repository, &id, &job.id, reporter.meter(), cancel).await,
        }
    };
    let copied = when_free(reporter, cancel, archived).await?;
    let report = ArchiveReport { packs: copied.packs, bytes: copied.stored_bytes };
    Ok(Done { report: Some(Report::Archive(report)), ..Done::default() })
}

pub(super) async fn rehydrate(
    job: &Job,
    id: Id,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<Done, Problem> {
    reporter.phase("rehydrating");
    let repository = job.vault.open(cancel).await?;
    let told = archive::rehydrate(&repository, &id, &job.id, cancel).await?;
    let estimate: Duration = told.estimate(vaultferry_vault::clock::now());
    let report = RehydrationReport { waiting: told.waiting, ready: told.ready, estimate_s: estimate.as_secs() };
    Ok(Done { report: Some(Report::Rehydration(report)), ..Done::default() })
}

pub(super) async fn clean_up(job: &Job, reporter: &Reporter, cancel: &CancellationToken) -> Result<Done, Problem> {
    reporter.phase("cleaning up");
    let repository = job.vault.open(cancel).await?;
    let removed = archive::clean_up_rehydrated(&repository, &job.id, cancel).await?;
    tracing::info!(removed, "removed copies that a restore has read");
    Ok(Done::default())
}
