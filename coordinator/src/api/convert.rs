//! The catalog's words as wire messages.

use vaultferry_proto::Problem;
use vaultferry_proto::control::v1 as wire;
use vaultferry_vault::records::VaultRecord;

use crate::catalog::{Figures, Job, Point, Policy, Status, StoredProblem, Work};
use crate::job::Progress;
use crate::policy;

pub(super) fn time(time: jiff::Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

pub(super) fn time_from(time: prost_types::Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::new(time.seconds, time.nanos).ok()
}

fn stored_problem(problem: StoredProblem) -> wire::Problem {
    wire::Problem { reason: problem.reason, message: problem.message, fix: problem.fix }
}

pub(super) fn vault(vault: &VaultRecord, location: &vaultferry_vault::location::Location) -> wire::Vault {
    let location = location.to_string();
    wire::Vault {
        id: vault.id.clone(),
        name: location.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned(),
        create_time: Some(time(vault.create_time)),
        location,
        region: vault.region.clone(),
        redundancy: vault.redundancy.clone(),
        format_version: vault.format_version,
        ..wire::Vault::default()
    }
}

pub(super) fn policy(policy: Policy) -> Result<wire::Policy, Problem> {
    let document = policy::parse(&policy.document)?;
    let next_run = document.next_slot(jiff::Timestamp::now());
    let day = |day: &jiff::civil::Weekday| {
        let names = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
        names[usize::from(day.to_monday_zero_offset().unsigned_abs())].to_owned()
    };
    let schedule = wire::Schedule {
        every: if document.schedule.days.is_some() { "week" } else { "day" }.to_owned(),
        on: document.schedule.days.iter().flatten().map(day).collect(),
        at: document.schedule.at.iter().map(|at| at.strftime("%H:%M").to_string()).collect(),
        next_run_time: next_run.map(time),
    };
    let rule = |rule: &policy::Rule| wire::RetentionRule { name: rule.name.clone(), vault: rule.vault_text.clone() };
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

pub(super) fn point(point: Point, instance_name: &str, expires: Option<jiff::Timestamp>) -> wire::RecoveryPoint {
    let stream = |stream: vaultferry_vault::records::PointStream| wire::Stream {
        name: stream.name,
        size: stream.size,
        sha256: stream.sha256,
    };
    wire::RecoveryPoint {
        id: point.id.to_string(),
        name: format!("{instance_name} {}", point.time.strftime("%FT%TZ")),
        create_time: Some(time(point.time)),
        instance_id: point.instance_id,
        job_id: point.job_id,
        rule: point.rule,
        expire_time: expires.map(time),
        streams: point.streams.into_iter().map(stream).collect(),
        source_bytes: point.source_bytes,
        stored_bytes: point.stored_bytes,
        policy: point.policy,
        policy_version: point.policy_version,
    }
}

/// `progress` is that of a running job; an ended one tells its own figures.
pub(super) fn job(job: Job, progress: Option<Progress>) -> wire::Job {
    use wire::job::{Operation, Status as WireStatus};
    let (operation, verb, rule, mut point_id) = match &job.work {
        Work::Backup { rule } => (Operation::Backup, "Backup of", rule.clone(), None),
        Work::RestoreDatabase { point_id, .. } => {
            (Operation::RestoreAsDatabase, "Restore as database of", String::new(), Some(*point_id))
        }
        Work::RestoreFiles { point_id, .. } => {
            (Operation::RestoreAsFiles, "Restore as files of", String::new(), Some(*point_id))
        }
        Work::ConfigureProtection => (Operation::ConfigureProtection, "Configure protection of", String::new(), None),
    };
    let mut progress = progress.map(|progress| wire::Progress {
        phase: progress.phase,
        bytes_read: progress.bytes_read,
        bytes_stored: progress.bytes_stored,
        bytes_total: progress.bytes_total,
        bytes_per_second: progress.bytes_per_second,
    });
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
    }
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
    }
}
