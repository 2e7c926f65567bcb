//! The catalog's words as wire messages.

use vaultferry_proto::Problem;
use vaultferry_proto::control::v1 as wire;
use vaultferry_vault::records::{Protection, VaultRecord};
use vaultferry_vault::settings::{Immutability, Settings};

use crate::catalog::{
    Attempt, Figures, Finding, InstanceFigures, Job, JobStep, Point, Policy, Report, ReportFigures, Standing, Status,
    StoredProblem, Work,
};
use crate::job::Progress;
use crate::policy;

mod policies;

pub(super) use policies::{instance_change, simulation};

pub(super) fn time(time: jiff::Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

pub(super) fn time_from(time: prost_types::Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::new(time.seconds, time.nanos).ok()
}

fn stored_problem(problem: StoredProblem) -> wire::Problem {
    wire::Problem { reason: problem.reason, message: problem.message, fix: problem.fix }
}

pub(super) fn vault(
    vault: &VaultRecord,
    settings: &Settings,
    location: &vaultferry_vault::location::Location,
) -> wire::Vault {
    let (immutability, immutability_days) = immutability(settings);
    let location = location.to_string();
    wire::Vault {
        id: vault.id.clone(),
        name: location.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned(),
        create_time: Some(time(vault.create_time)),
        location,
        region: vault.region.clone(),
        redundancy: settings.redundancy.clone(),
        format_version: vault.format_version,
        soft_delete_days: settings.soft_delete_days,
        immutability: immutability.to_owned(),
        immutability_days,
        ..wire::Vault::default()
    }
}

fn immutability(settings: &Settings) -> (&'static str, u32) {
    match settings.immutability {
        Immutability::Disabled => ("Disabled", 0),
        Immutability::Enabled => ("Enabled", settings.immutability_days),
        Immutability::Locked => ("Locked", settings.immutability_days),
    }
}

/// `number`: of their record.
pub(super) fn settings(number: u64, settings: &Settings) -> wire::VaultSettings {
    let (immutability, immutability_days) = immutability(settings);
    wire::VaultSettings {
        immutability: immutability.to_owned(),
        immutability_days,
        soft_delete_days: settings.soft_delete_days,
        redundancy: settings.redundancy.clone(),
        version: number,
        create_time: Some(time(settings.create_time)),
    }
}

pub(super) fn policy(policy: Policy) -> Result<wire::Policy, Problem> {
    let document = policy::parse(&policy.document)?;
    let next_run = document.next_slot(vaultferry_vault::clock::now());
    let schedule = wire::Schedule {
        every: document.schedule.every_text().to_owned(),
        on: document.schedule.on_texts(),
        at: document.schedule.at_texts(),
        next_run_time: next_run.map(time),
    };
    let rule = |rule: &policy::Rule| wire::RetentionRule {
        name: rule.name.clone(),
        vault: rule.vault_text.clone(),
        archive: rule.archive.as_ref().map(|archive| archive.text.clone()).unwrap_or_default(),
        tiering: rule.archive.as_ref().map(|archive| archive.tiering.as_str().to_owned()).unwrap_or_default(),
    };
    Ok(wire::Policy {
        id: policy.id,
        name: policy.name,
        version: policy.version,
        create_time: Some(time(policy.create_time)),
        source_type: document.source_type.clone(),
        time_zone: document.time_zone_name.clone(),
        schedule: Some(schedule),
        rules: document.rules.iter().map(rule).collect(),
        document: policy.document,
    })
}

/// `life`: how long each store keeps it by the policy that is linked now.
pub(super) fn point(point: Point, instance_name: &str, life: Option<policy::Life>) -> wire::RecoveryPoint {
    let stream = |stream: vaultferry_vault::records::PointStream| wire::Stream {
        name: stream.name,
        size: stream.size,
        sha256: stream.sha256,
    };
    let standing = &point.standing;
    let state = match (standing.purge_time.is_some(), standing.in_vault, standing.in_archive) {
        (true, _, _) => wire::recovery_point::State::Deleted,
        (false, true, _) => wire::recovery_point::State::Available,
        (false, false, true) => wire::recovery_point::State::Archived,
        (false, false, false) => wire::recovery_point::State::Missing,
    };
    let stay = life.map_or_else(Stay::default, |life| Stay::of(standing, life));
    wire::RecoveryPoint {
        state: state.into(),
        proven_time: standing.proven_time.map(time),
        held: standing.held.is_some(),
        hold_note: standing.held.clone().unwrap_or_default(),
        purge_time: standing.purge_time.map(time),
        immutable_until_time: standing.immutable_until.map(time),
        in_vault: standing.in_vault,
        in_archive: standing.in_archive,
        id: point.id.to_string(),
        name: format!("{instance_name} {}", point.time.strftime("%FT%TZ")),
        create_time: Some(time(point.time)),
        instance_id: point.instance_id,
        job_id: point.job_id,
        rule: point.rule,
        expire_time: life.map(|life| time(life.end())),
        keep_until_time: point.keep_until.map(time),
        vault_until_time: stay.vault_until.map(time),
        archive_from_time: stay.archive_from.map(time),
        archive_until_time: stay.archive_until.map(time),
        streams: point.streams.into_iter().map(stream).collect(),
        source_bytes: point.source_bytes,
        stored_bytes: point.stored_bytes,
        policy: point.policy,
        policy_version: point.policy_version,
        capture: point.capture.map(capture),
    }
}

fn capture(capture: vaultferry_vault::records::Capture) -> wire::Capture {
    wire::Capture {
        consistency: capture.consistency.as_str().to_owned(),
        reason: capture.reason,
        provider: capture.provider,
        synced_ms: capture.synced_ms,
        freezing_ms: capture.freezing_ms,
        frozen_ms: capture.frozen_ms,
        read_bytes: capture.read_bytes,
        base_point_id: capture.base,
        full_read_reason: capture.full_read_reason,
    }
}

/// Where a point that is not deleted is, or will be, and until when.
#[derive(Debug, Default)]
struct Stay {
    vault_until: Option<jiff::Timestamp>,
    archive_from: Option<jiff::Timestamp>,
    archive_until: Option<jiff::Timestamp>,
}

impl Stay {
    fn of(standing: &Standing, life: policy::Life) -> Self {
        if standing.purge_time.is_some() {
            return Self::default();
        }
        let planned = life.archive;
        // A copy that no rule asks for goes with its point.
        let (from, until) = match standing.in_archive {
            true => (standing.archived_time, Some(planned.map_or(life.end(), |archive| archive.until))),
            false => (planned.map(|archive| archive.from), planned.map(|archive| archive.until)),
        };
        let vault_until = standing.in_vault.then_some(life.vault_until);
        Self { vault_until, archive_from: from, archive_until: until }
    }
}

/// `progress` is that of a running job; an ended one tells its own figures. Its steps are those that the catalog has.
pub(super) fn job(job: Job, progress: Option<Progress>) -> wire::Job {
    use wire::job::{Operation, Status as WireStatus};
    let (operation, verb) = match &job.work {
        Work::Backup { .. } => (Operation::Backup, "Backup of"),
        Work::RestoreDatabase { .. } => (Operation::RestoreAsDatabase, "Restore as database of"),
        Work::RestoreFiles { .. } => (Operation::RestoreAsFiles, "Restore as files of"),
        Work::RestoreDisk { .. } => (Operation::RestoreAsDisk, "Restore as disk of"),
        Work::ConfigureProtection => (Operation::ConfigureProtection, "Configure protection of"),
        Work::StopProtection { purge_time: None } => (Operation::StopProtection, "Stop protection of"),
        Work::StopProtection { purge_time: Some(_) } => {
            (Operation::StopProtection, "Stop protection and delete data of")
        }
        Work::UndeleteInstance => (Operation::UndeleteInstance, "Undelete"),
        Work::ChangePolicy { .. } => (Operation::ChangePolicy, "Change policy of"),
        Work::Check { .. } => (Operation::Check, "Check of"),
        Work::VerifyPoint { .. } => (Operation::VerifyPoint, "Verify a point of"),
        Work::Prune { dry_run: false } => (Operation::Prune, "Prune of"),
        Work::Prune { dry_run: true } => (Operation::Prune, "Dry run of a prune of"),
        Work::DeletePoint { .. } => (Operation::DeletePoint, "Delete a point of"),
        Work::UndeletePoint { .. } => (Operation::UndeletePoint, "Undelete a point of"),
        Work::ArchivePoint { .. } => (Operation::ArchivePoint, "Archive a point of"),
        Work::Tier { remove_from_vault: false, .. } => (Operation::Tier, "Copy to the archive store a point of"),
        Work::Tier { remove_from_vault: true, .. } => (Operation::Tier, "Move to the archive store a point of"),
    };
    let (rule, keep_until) = match &job.work {
        Work::Backup { rule, keep_until, .. } => (rule.clone(), *keep_until),
        _ => (String::new(), None),
    };
    let mut point_id = job.work.point_id();
    let finding_count = job.report.as_ref().map_or(0, |report| report.finding_count);
    let report = job.report.as_ref().and_then(|report| self::report(report, &job.work));
    let mut progress = progress.map(|progress| wire::Progress {
        phase: progress.phase,
        bytes_read: progress.bytes_read,
        bytes_stored: progress.bytes_stored,
        bytes_total: progress.bytes_total,
        bytes_per_second: progress.bytes_per_second,
        note: progress.note,
    });
    let Attempt { number, first, next } = job.attempt;
    let (status, end_time, problem) = match job.status {
        Status::InProgress => (WireStatus::InProgress, None, None),
        Status::Cancelling => (WireStatus::Cancelling, None, None),
        Status::Cancelled { end_time } => (WireStatus::Cancelled, Some(end_time), None),
        Status::Failed { end_time, problem } => (WireStatus::Failed, Some(end_time), Some(problem)),
        Status::Completed { end_time, point_id: made, bytes_read, bytes_stored } => {
            point_id = made.or(point_id);
            progress = Some(wire::Progress {
                phase: "done".to_owned(),
                bytes_read,
                bytes_stored,
                bytes_total: bytes_read,
                bytes_per_second: 0,
                note: job.report.as_ref().map(note).unwrap_or_default(),
            });
            let clean = job.warnings.is_empty();
            (if clean { WireStatus::Completed } else { WireStatus::CompletedWithWarnings }, Some(end_time), None)
        }
    };
    wire::Job {
        id: job.id,
        name: format!("{verb} {}", job.instance_name),
        create_time: Some(time(job.create_time)),
        operation: operation.into(),
        status: status.into(),
        instance_id: job.instance_id,
        instance_name: job.instance_name,
        scheduled: job.scheduled,
        end_time: end_time.map(time),
        progress,
        problem: problem.map(stored_problem),
        warnings: job.warnings.into_iter().map(stored_problem).collect(),
        point_id: point_id.map(|id| id.to_string()).unwrap_or_default(),
        rule,
        target: job.work.target().unwrap_or_default(),
        findings: Vec::new(),
        finding_count,
        report,
        keep_until_time: keep_until.map(time),
        retry_of: first.unwrap_or_default(),
        attempt: number,
        next_attempt_time: next.map(time),
        steps: job.steps.into_iter().map(step).collect(),
    }
}

pub(super) fn step(step: JobStep) -> wire::Step {
    wire::Step {
        name: step.name,
        start_time: Some(time(step.start)),
        end_time: Some(time(step.end)),
        bytes_read: step.bytes_read,
        bytes_stored: step.bytes_stored,
    }
}

/// What people want to know of an ended job besides its bytes.
fn note(report: &Report) -> String {
    match &report.figures {
        Some(ReportFigures::Backup { snapshot_held_ms, .. }) => {
            let seconds = snapshot_held_ms.div_ceil(1000);
            format!("the source's snapshot was held for {seconds} s")
        }
        Some(ReportFigures::Restore { checked }) => checked.clone(),
        Some(ReportFigures::Check(_) | ReportFigures::Prune(_) | ReportFigures::Archive { .. }) | None => String::new(),
    }
}

pub(super) fn finding(finding: Finding) -> wire::Finding {
    let point = |(id, at): (vaultferry_vault::Id, Option<_>)| wire::AffectedPoint {
        id: id.to_string(),
        create_time: at.map(time),
    };
    wire::Finding {
        kind: finding.kind,
        damage: finding.damage,
        file: finding.file,
        message: finding.message,
        points: finding.points.into_iter().map(point).collect(),
    }
}

fn report(report: &Report, work: &Work) -> Option<wire::job::Report> {
    let probability = |ppm: u32| f64::from(ppm) / 1e6;
    let (keyless, read_data_percent) = match work {
        Work::Check { keyless, read_data_ppm } => (*keyless, f64::from(*read_data_ppm) / 1e4),
        _ => (false, 100.0),
    };
    Some(match report.figures.clone()? {
        ReportFigures::Check(check) => wire::job::Report::CheckReport(wire::CheckReport {
            keyless,
            read_data_percent,
            points: check.points,
            packs: check.packs,
            pack_bytes: check.pack_bytes,
            files_read: check.files_read,
            bytes_read: check.bytes_read,
            blobs_read: check.blobs_read,
            files_unreadable: check.files_unreadable,
            seed: check.seed,
            packs_drawn: check.packs_drawn,
            detects_one: probability(check.detects_one_ppm),
            detects_one_percent: probability(check.detects_one_percent_ppm),
        }),
        ReportFigures::Prune(prune) => wire::job::Report::PruneReport(wire::PruneReport {
            dry_run: matches!(work, Work::Prune { dry_run: true }),
            epoch: prune.epoch,
            packs_marked: prune.packs_marked,
            bytes_marked: prune.bytes_marked,
            packs_deleted: prune.packs_deleted,
            bytes_deleted: prune.bytes_deleted,
            packs_noted: prune.packs_noted,
            bytes_noted: prune.bytes_noted,
            packs_protected: prune.packs_protected,
            bytes_protected: prune.bytes_protected,
            bytes_kept: prune.bytes_kept,
            bytes_kept_deleted: prune.bytes_kept_deleted,
            bytes_kept_uncommitted: prune.bytes_kept_uncommitted,
            bytes_unused: prune.bytes_unused,
            points_purged: prune.points_purged,
            index_files: prune.index_files,
            index_files_replaced: prune.index_files_replaced,
            archive_packs_deleted: prune.archive_packs_deleted,
            archive_bytes_deleted: prune.archive_bytes_deleted,
            damage: prune.damage,
        }),
        ReportFigures::Archive { packs, bytes } => {
            wire::job::Report::ArchiveReport(wire::ArchiveReport { packs, bytes })
        }
        ReportFigures::Backup { snapshot_held_ms, snapshot_transactions } => {
            wire::job::Report::BackupReport(wire::BackupReport { snapshot_held_ms, snapshot_transactions })
        }
        ReportFigures::Restore { checked } => wire::job::Report::RestoreReport(wire::RestoreReport { checked }),
    })
}

pub(super) fn summary(figures: &Figures) -> wire::Summary {
    wire::Summary {
        instances_protected: figures.protected,
        instances_pending: figures.pending,
        points: figures.points,
        jobs_completed: figures.completed,
        jobs_failed: figures.failed,
        jobs_in_progress: figures.in_progress,
        stored_bytes: figures.stored_bytes,
        oldest_point_time: figures.oldest.map(time),
        newest_point_time: figures.newest.map(time),
        instances_paused: figures.paused,
        instances_stopped: figures.stopped,
    }
}

/// `next`: its next backup.
pub(super) fn instance_summary(
    figures: InstanceFigures,
    next: Option<jiff::Timestamp>,
    now: jiff::Timestamp,
) -> wire::InstanceSummary {
    let age_s = |point: Option<jiff::Timestamp>| {
        point.map_or(0, |point| u64::try_from(now.duration_since(point).as_secs()).unwrap_or(0))
    };
    // D17's words.
    let state = match figures.instance.protection {
        Protection::Active if figures.points == 0 => "Protected - (pending initial backup)",
        Protection::Active => "Protected",
        Protection::Paused { .. } => "Paused",
        Protection::Stopped { .. } => "Stopped - (data retained)",
        Protection::Deleted { .. } | Protection::Purged { .. } => "Stopped - (data deleted)",
    };
    wire::InstanceSummary {
        id: figures.instance.id,
        name: figures.instance.name,
        protection_state_text: state.to_owned(),
        last_good_time: figures.last_good.map(time),
        last_proven_time: figures.last_proven.map(time),
        last_good_age_s: age_s(figures.last_good),
        last_proven_age_s: age_s(figures.last_proven),
        point_count: figures.points,
        stored_bytes: figures.stored_bytes,
        stored_bytes_30d: figures.stored_bytes_since,
        next_backup_time: next.map(time),
    }
}
