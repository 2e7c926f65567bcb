//! The one place that turns the protocol's messages into tasks, and their ends into messages. Nothing from outside passes unchecked.

use tonic::Status;
use vaultferry_plugin_sdk::{Event, wire};
use vaultferry_proto::plugin::v1 as proto;
use vaultferry_proto::plugin::v1::maintenance_done::Report as ReportMessage;
use vaultferry_proto::plugin::v1::maintenance_event::Event as Sent;
use vaultferry_proto::plugin::v1::maintenance_request::Task as TaskMessage;
use vaultferry_proto::{Problem, Reason};

use crate::task::{Affected, Done, Finding, Job, Report, Task};

/// Findings that are sent; the rest is counted. The coordinator keeps no more.
const MAX_FINDINGS: usize = 1000;
/// Points that are sent with a finding.
const MAX_POINTS: usize = 100;

fn invalid(message: impl Into<String>) -> Problem {
    Problem::new(Reason::InvalidRequest, message)
}

/// A request.
pub(crate) fn job_from(request: proto::MaintenanceRequest) -> Result<Job, Problem> {
    let task = task_from(request.task.ok_or_else(|| invalid("the request lacks a task"))?)?;
    let vault = request.vault.ok_or_else(|| invalid("the request lacks vault"))?;
    let vault = if needs_key(task) { wire::vault_from(vault)? } else { wire::store_from(vault)? };
    if request.job_id.is_empty() {
        return Err(invalid("the request lacks job_id"));
    }
    Ok(Job { id: request.job_id, vault, task })
}

fn needs_key(task: Task) -> bool {
    match task {
        Task::Check { keyless, .. } => !keyless,
        Task::VerifyPoint(_)
        | Task::Prune { .. }
        | Task::ArchivePoint { .. }
        | Task::Rehydrate(_)
        | Task::CleanUpRehydrated
        | Task::LegalHold { .. } => true,
        Task::DeletePoint { .. } | Task::UndeletePoint(_) | Task::Finish => false,
    }
}

fn task_from(task: TaskMessage) -> Result<Task, Problem> {
    Ok(match task {
        TaskMessage::Check(check) => {
            let read_data_percent = check.read_data_percent;
            if !(0.0..=100.0).contains(&read_data_percent) {
                return Err(invalid(format!("read_data_percent is {read_data_percent}; it must be from 0 to 100")));
            }
            Task::Check { keyless: check.keyless, read_data_percent }
        }
        TaskMessage::VerifyPoint(task) => Task::VerifyPoint(wire::id_from(&task.snapshot_id)?),
        TaskMessage::Prune(task) => {
            let purge_until = task.purge_until.map(|time| time_from(time, "purge_until")).transpose()?;
            Task::Prune { dry_run: task.dry_run, purge_until }
        }
        TaskMessage::DeletePoint(task) => {
            let time = task.purge_time.ok_or_else(|| invalid("the request lacks purge_time"))?;
            Task::DeletePoint { id: wire::id_from(&task.snapshot_id)?, purge_time: time_from(time, "purge_time")? }
        }
        TaskMessage::UndeletePoint(task) => Task::UndeletePoint(wire::id_from(&task.snapshot_id)?),
        TaskMessage::ArchivePoint(task) => {
            let id = wire::id_from(&task.snapshot_id)?;
            Task::ArchivePoint { id, remove_from_vault: task.remove_from_vault }
        }
        TaskMessage::Rehydrate(task) => Task::Rehydrate(wire::id_from(&task.snapshot_id)?),
        TaskMessage::CleanUpRehydrated(proto::CleanUpRehydratedTask {}) => Task::CleanUpRehydrated,
        TaskMessage::Finish(proto::FinishTask {}) => Task::Finish,
        TaskMessage::LegalHold(task) => Task::LegalHold { id: wire::id_from(&task.snapshot_id)?, hold: task.hold },
    })
}

fn time_from(time: prost_types::Timestamp, name: &str) -> Result<jiff::Timestamp, Problem> {
    jiff::Timestamp::new(time.seconds, time.nanos).map_err(|error| invalid(format!("{name} is no time: {error}")))
}

/// The messages for one event of a running task; the end becomes several.
pub(crate) fn events_to(event: Event<Done>) -> Vec<Result<proto::MaintenanceEvent, Status>> {
    let sent = |event| Ok(proto::MaintenanceEvent { event: Some(event) });
    match event {
        Event::Progress(progress) => vec![sent(Sent::Progress(wire::progress_to(progress)))],
        Event::Warning(warning) => vec![sent(Sent::Warning(wire::warning_to(warning)))],
        Event::Failed(problem) => vec![Err(problem.into())],
        Event::Done(done) => {
            let ended = done_to(&done);
            // Damage first: it must not fall behind the limit.
            let (damage, rest): (Vec<Finding>, Vec<Finding>) =
                done.findings.into_iter().partition(|finding| finding.damage);
            let findings = damage.into_iter().chain(rest).take(MAX_FINDINGS);
            let mut events: Vec<_> = findings.map(|finding| sent(Sent::Finding(finding_to(finding)))).collect();
            events.push(sent(Sent::Done(ended)));
            events
        }
    }
}

fn finding_to(finding: Finding) -> proto::Finding {
    let time =
        |time: jiff::Timestamp| prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() };
    let point = |affected: Affected| proto::AffectedPoint {
        snapshot_id: affected.id.to_string(),
        time: affected.time.map(time),
    };
    proto::Finding {
        kind: finding.kind,
        damage: finding.damage,
        file: finding.file,
        message: finding.message,
        points: finding.points.into_iter().take(MAX_POINTS).map(point).collect(),
    }
}

fn done_to(done: &Done) -> proto::MaintenanceDone {
    let report = done.report.clone().map(|report| match report {
        Report::Check(report) => ReportMessage::Check(report),
        Report::Prune(report) => ReportMessage::Prune(report),
        Report::Archive(report) => ReportMessage::Archive(report),
        Report::Rehydration(report) => ReportMessage::Rehydration(report),
    });
    proto::MaintenanceDone {
        finding_count: done.findings.len() as u64 + done.omitted,
        // What was not kept may be damage: it counts as such.
        damage_count: done.findings.iter().filter(|finding| finding.damage).count() as u64 + done.omitted,
        report,
    }
}

#[cfg(test)]
mod tests {
    use vaultferry_vault::Id;

    use super::*;

    fn vault(repository_password: &str) -> proto::VaultAccess {
        proto::VaultAccess {
            location: "/nowhere".into(),
            instance_id: "0123456789abcdef0123456789abcdef".into(),
            repository_password: repository_password.into(),
            ..proto::VaultAccess::default()
        }
    }

    fn request(task: TaskMessage, password: &str) -> proto::MaintenanceRequest {
        proto::MaintenanceRequest { job_id: "job".into(), vault: Some(vault(password)), task: Some(task) }
    }

    #[test]
    fn only_tasks_that_open_nothing_come_without_a_password() {
        let id = Id::of(b"x").to_string();
        let check = |keyless| TaskMessage::Check(proto::CheckTask { keyless, read_data_percent: 5.0 });
        assert_eq!(
            job_from(request(check(true), "")).map(|job| job.task).ok(),
            Some(Task::Check { keyless: true, read_data_percent: 5.0 })
        );
        for task in [check(false), TaskMessage::VerifyPoint(proto::VerifyPointTask { snapshot_id: id })] {
            assert!(job_from(request(task.clone(), "")).is_err(), "{task:?}");
            assert!(job_from(request(task, "00")).is_ok());
        }
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        for read_data_percent in [-1.0, 100.5, f64::NAN] {
            let task = TaskMessage::Check(proto::CheckTask { keyless: true, read_data_percent });
            assert!(job_from(request(task, "")).is_err(), "{read_data_percent}");
        }
        let delete = proto::DeletePointTask { snapshot_id: Id::of(b"x").to_string(), purge_time: None };
        assert!(job_from(request(TaskMessage::DeletePoint(delete), "")).is_err());
        let undelete = proto::UndeletePointTask { snapshot_id: "x".into() };
        assert!(job_from(request(TaskMessage::UndeletePoint(undelete), "")).is_err());
    }

    #[test]
    fn damage_comes_first_and_everything_is_counted() {
        let finding = |n: usize| Finding {
            kind: "unexpected".into(),
            damage: n == 1500,
            file: n.to_string(),
            message: String::new(),
            points: Vec::new(),
        };
        let done = Done { findings: (0..2000).map(finding).collect(), omitted: 0, report: None };
        let events: Vec<Sent> =
            events_to(Event::Done(done)).into_iter().map(|event| event.unwrap().event.unwrap()).collect();
        assert_eq!(events.len(), MAX_FINDINGS + 1);
        assert!(matches!(&events[0], Sent::Finding(finding) if finding.damage && finding.file == "1500"));
        match events.last() {
            Some(Sent::Done(done)) => assert_eq!((done.finding_count, done.damage_count), (2000, 1)),
            other => panic!("{other:?}"),
        }
    }
}
