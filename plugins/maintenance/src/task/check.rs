//! Checks of a store and of single points.

use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::{Reporter, Warning};
use vaultferry_proto::plugin::v1::CheckReport;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::check::{self, Depth, PointReport, Severity};
use vaultferry_vault::{Id, points, store};

use super::{Affected, Done, Finding, Job, Report, open_listed};

/// A check of the whole store. Damage that was read is written down, so that the next backup stores again what it held.
pub(super) async fn run(
    job: &Job,
    store: store::Shared,
    keyless: bool,
    read_data_percent: f64,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<Done, Problem> {
    let depth = depth(read_data_percent);
    reporter.phase("checking");
    let report = match keyless {
        true => check::keyless(&*store, depth, reporter.meter(), cancel).await?,
        false => check::full(&job.vault.open(cancel).await?, depth, reporter.meter(), cancel).await?,
    };
    let altered = report.altered_packs();
    if !altered.is_empty() {
        reporter.phase("noting damage");
        check::record_damage(&*store, &altered, vaultferry_vault::clock::now(), cancel).await?;
    }
    Ok(done(report))
}

/// How much is read.
pub(crate) fn depth(read_data_percent: f64) -> Depth {
    match read_data_percent {
        0.0 => Depth::Structure,
        100.0 => Depth::ReadData,
        percent => Depth::ReadSubset { percent, seed: new_seed() },
    }
}

/// Not secret: it only has to be another one each time.
fn new_seed() -> u64 {
    vaultferry_vault::clock::now().as_nanosecond() as u64 ^ u64::from(std::process::id()).rotate_left(32)
}

/// What a check tells, in the protocol's words.
pub(crate) fn done(report: check::Report) -> Done {
    let subset = report.subset;
    let figures = CheckReport {
        points: report.points,
        packs: report.packs,
        pack_bytes: report.pack_bytes,
        files_read: report.files_read,
        bytes_read: report.bytes_read,
        blobs_read: report.blobs_read,
        files_unreadable: report.not_readable,
        seed: subset.map_or(0, |subset| subset.seed),
        packs_drawn: subset.map_or(0, |subset| subset.drawn),
        detects_one: subset.map_or(0.0, |subset| subset.detection_probability(1)),
        detects_one_percent: subset.map_or(0.0, |subset| subset.detection_probability(subset.one_percent())),
    };
    let findings = report.findings.into_iter().map(finding).collect();
    Done { findings, omitted: report.omitted, report: Some(Report::Check(figures)) }
}

fn finding(finding: check::Finding) -> Finding {
    let mut message = finding.detail;
    if !finding.points_certain && finding.severity == Severity::Damage {
        message.push_str(" (only a check with the key tells which points it concerns)");
    }
    Finding {
        kind: finding.kind.as_str().to_owned(),
        damage: finding.severity == Severity::Damage,
        file: finding.file,
        message,
        points: finding.points.into_iter().map(|point| Affected { id: point.id, time: point.time }).collect(),
    }
}

/// Every byte of one point; when all is right, that is noted in the vault. What lies in the Archive tier cannot be read, which is told.
pub(super) async fn verify_point(
    job: &Job,
    id: Id,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<Done, Problem> {
    let (repository, state) = open_listed(job, id, reporter, cancel).await?;
    reporter.phase("verifying");
    reporter.expect_bytes(state.created.streams.iter().map(|stream| stream.size).sum());
    let report = check::point(&repository, id, reporter.meter(), cancel).await?;
    if report.is_proven() {
        points::proven(&**repository.store(), &id, &job.id, cancel).await?;
    } else {
        let altered = report.altered_packs();
        if !altered.is_empty() {
            check::record_damage(&**repository.store(), &altered, vaultferry_vault::clock::now(), cancel).await?;
        }
    }
    if report.not_readable > 0 {
        reporter.warn(not_proven(&report)).await;
    }
    let figures = CheckReport {
        points: 1,
        bytes_read: reporter.meter().read(),
        blobs_read: report.blobs,
        files_unreadable: report.packs_not_readable,
        ..CheckReport::default()
    };
    let findings = report.findings.into_iter().map(finding).collect();
    Ok(Done { findings, omitted: 0, report: Some(Report::Check(figures)) })
}

/// What was not looked at, and what was.
fn not_proven(report: &PointReport) -> Warning {
    let (chunks, packs) = (report.not_readable, report.packs_not_readable);
    let (place, fix) = match report.in_archive {
        true => (
            "the archive store",
            "To read every byte, restore it as files: vaultferry restore files waits for the rehydration, and checks every chunk that it reads.",
        ),
        // Somebody has moved them there, and nothing of ours rehydrates what lies in the vault store.
        false => ("the vault store", "Bring these packs online in the storage account, then verify the point again."),
    };
    Warning {
        reason: Reason::PointArchived.as_str().to_owned(),
        message: format!(
            "{chunks} chunks of the point lie in {packs} packs of {place} that cannot be read without rehydration: of these packs only their sizes were \
             compared with the index. Everything of the point that is online was read ({} chunks, its snapshot, its directories). It is not proven.",
            report.blobs
        ),
        fix: fix.to_owned(),
    }
}
