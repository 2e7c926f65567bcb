//! The link's words as messages of `vaultferry.service.v1`.

use vaultferry_proto::control::v1 as control;
use vaultferry_proto::service::v1 as wire;

use crate::api;
use crate::catalog::link::{Item, ItemResult, JobReport};
use crate::catalog::{Credential, OutboxEntry, StoredProblem};

/// A commit's facts, which are the same whenever they are told.
pub(super) fn commit(entry: OutboxEntry) -> wire::Commit {
    wire::Commit { job_id: entry.job_id, point: Some(api::point_message(entry.point)) }
}

pub(super) fn report(report: JobReport) -> wire::JobReport {
    wire::JobReport { sequence: report.sequence, job: Some(api::job_message(report.job)) }
}

pub(super) fn result(result: ItemResult) -> wire::AssignmentResult {
    use wire::assignment_result::Item as WireItem;
    let item = match result.item {
        Item::Policy(name) => WireItem::Policy(name),
        Item::Instance(name) => WireItem::Instance(name),
        Item::Backup(request_id) => WireItem::RequestId(request_id),
    };
    wire::AssignmentResult { item: Some(item), id: result.id, problem: result.problem.map(problem) }
}

fn problem(StoredProblem { reason, message, fix }: StoredProblem) -> control::Problem {
    control::Problem { reason, message, fix }
}

/// Whether that is where the instance finds its password already.
pub(super) fn is_same_credential(reference: &control::CredentialReference, credential: &Credential) -> bool {
    use control::credential_reference::From;
    match (&reference.from, credential) {
        (None, Credential::None) => true,
        (Some(From::Passfile(path)), Credential::Passfile(known)) => std::path::Path::new(path) == known,
        (Some(From::PasswordEnv(name)), Credential::PasswordEnv(known)) => name == known,
        (Some(From::Identity(identity)), Credential::Identity(known)) => identity == known,
        _ => false,
    }
}
