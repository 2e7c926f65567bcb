//! Prunes of the vault store and of the archive store.

use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::Reporter;
use vaultferry_proto::Problem;
use vaultferry_proto::plugin::v1::PruneReport;
use vaultferry_vault::archive;
use vaultferry_vault::prune::{self, Options, Plan};

use super::{Done, Job, LEASE_TERM, Report, when_free};

pub(super) async fn run(
    job: &Job,
    dry_run: bool,
    purge_until: Option<jiff::Timestamp>,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<Done, Problem> {
    reporter.phase("opening the vault");
    let repository = job.vault.open(cancel).await?;
    let options = Options { lease_term: LEASE_TERM, purge_until, ..Options::default() };
    let mut report = if dry_run {
        reporter.phase("planning");
        let plan = prune::plan(&repository, &options, cancel).await?;
        PruneReport {
            points_purged: plan.purge.len() as u64,
            packs_deleted: plan.delete.packs,
            bytes_deleted: plan.delete.bytes,
            ..of_plan(plan)
        }
    } else {
        reporter.phase("pruning");
        let done = when_free(reporter, cancel, || prune::run(&repository, &options, reporter.meter(), cancel)).await?;
        let (deleted, refused, purged) = (done.deleted, done.refused, done.purged.len() as u64);
        let planned = of_plan(done.plan);
        PruneReport {
            points_purged: purged,
            packs_deleted: deleted.packs,
            bytes_deleted: deleted.bytes,
            packs_protected: planned.packs_protected + refused.packs,
            bytes_protected: planned.bytes_protected + refused.bytes,
            ..planned
        }
    };
    report.dry_run = dry_run;
    reporter.phase("pruning the archive");
    let now = vaultferry_vault::clock::now();
    let archived = when_free(reporter, cancel, || archive::prune(&repository, now, dry_run, cancel)).await?;
    (report.archive_packs_deleted, report.archive_bytes_deleted) = (archived.deleted, archived.deleted_bytes);
    Ok(Done { report: Some(Report::Prune(report)), ..Done::default() })
}

/// What a prune sees, whether it is done or not.
fn of_plan(plan: Plan) -> PruneReport {
    PruneReport {
        epoch: plan.epoch,
        packs_marked: plan.mark.packs,
        bytes_marked: plan.mark.bytes,
        packs_noted: plan.note.packs,
        bytes_noted: plan.note.bytes,
        packs_protected: plan.protected.packs,
        bytes_protected: plan.protected.bytes,
        bytes_kept: plan.kept_listed.bytes,
        bytes_kept_deleted: plan.kept_soft_deleted.bytes,
        bytes_kept_uncommitted: plan.kept_unpublished.bytes,
        bytes_unused: plan.unused_bytes,
        index_files: plan.index_files,
        index_files_replaced: plan.index_files_replaced,
        damage: plan.damage,
        ..PruneReport::default()
    }
}
