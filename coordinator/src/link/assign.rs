//! Does what the service assigns, by the API's own calls, and notes what became of it.
//!
//! Invariants:
//! - The newest version counts; one that is done with, or older, is passed over. So versions may come twice and in any order.
//! - Everything here may be repeated: a policy with the same document, an instance that is there, and a request that has its job are left
//!   as they are. A kill before the outcome is noted repeats the version.
//! - An item that fails keeps no other back. What may pass by itself (a store that is away, a busy instance) is tried again here; what somebody
//!   has to mend waits for the service's next version.

use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};
use vaultferry_proto::control::v1 as control;
use vaultferry_proto::control::v1::backup_instance_service_server::BackupInstanceService;
use vaultferry_proto::control::v1::backup_service_server::BackupService;
use vaultferry_proto::control::v1::instance_lifecycle_service_server::InstanceLifecycleService;
use vaultferry_proto::control::v1::policy_service_server::PolicyService;
use vaultferry_proto::service::v1 as wire;
use vaultferry_proto::{Problem, Reason};

use super::backoff::Backoff;
use super::wire::is_same_credential;
use crate::api::{self, Api};
use crate::catalog::link::{Item, ItemResult, Outcome};
use crate::catalog::{Catalog, Policy};
use crate::{lifecycle, policy};

/// A version that a service wants.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Whose version it is.
    pub(super) service_id: String,
    pub(super) assignments: Arc<wire::Assignments>,
}

impl Wanted {
    /// Puts itself in the place of an older version, or of another service's. False when it is no newer.
    pub(super) fn replaces(self, current: &mut Option<Self>) -> bool {
        let is_newer = current.as_ref().is_none_or(|current| {
            current.service_id != self.service_id || current.assignments.version < self.assignments.version
        });
        if is_newer {
            *current = Some(self);
        }
        is_newer
    }
}

/// The part of the link that works on assignments.
#[derive(Debug)]
pub(super) struct Assign {
    api: Api,
    catalog: Arc<dyn Catalog>,
    news: Arc<Notify>,
    /// The last outcome that was noted, so that a try with the same outcome is not told again.
    noted: Option<Outcome>,
}

impl Assign {
    pub(super) fn new(api: Api, catalog: Arc<dyn Catalog>, news: Arc<Notify>) -> Self {
        Self { api, catalog, news, noted: None }
    }

    /// Runs until `stop`.
    pub(super) async fn run(mut self, mut newest: watch::Receiver<Option<Wanted>>, stop: CancellationToken) {
        let mut backoff = Backoff::new();
        loop {
            let wanted = newest.borrow_and_update().clone();
            let again = match &wanted {
                Some(wanted) => self.look(wanted, &stop).await,
                None => false,
            };
            let wait = again.then(|| backoff.wait());
            let later = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = newest.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    (backoff, self.noted) = (Backoff::new(), None);
                }
                () = later => {}
            }
        }
    }

    /// Does what of the version is to be done; true when it has to be tried again.
    async fn look(&mut self, wanted: &Wanted, stop: &CancellationToken) -> bool {
        match self.try_look(wanted, stop).await {
            Ok(again) => again,
            Err(error) => {
                tracing::error!("the backup service's assignments are tried again: {error}");
                true
            }
        }
    }

    async fn try_look(&mut self, wanted: &Wanted, stop: &CancellationToken) -> Result<bool, crate::catalog::Error> {
        let state = self.catalog.link_state().await?;
        if state.service_id != wanted.service_id || wanted.assignments.version <= state.applied_version {
            return Ok(false);
        }
        let Some(outcome) = self.apply(&wanted.assignments, stop).await else { return Ok(false) };
        let complete = outcome.complete;
        if self.noted.as_ref() != Some(&outcome) {
            tell(&outcome);
            self.catalog.set_outcome(&wanted.service_id, outcome.clone()).await?;
            self.noted = Some(outcome);
            self.news.notify_one();
        }
        Ok(!complete)
    }

    /// None: the agent stops, and the next life begins with the version anew.
    async fn apply(&self, wanted: &wire::Assignments, stop: &CancellationToken) -> Option<Outcome> {
        let mut outcome = Outcome { version: wanted.version, complete: true, results: Vec::new() };
        let mut note = |item: Item, done: Result<String, Problem>| {
            let (id, problem) = match done {
                Ok(id) => (id, None),
                Err(problem) => {
                    outcome.complete &= !may_pass(problem.reason);
                    (String::new(), Some((&problem).into()))
                }
            };
            outcome.results.push(ItemResult { item, id, problem });
            if stop.is_cancelled() { None } else { Some(()) }
        };
        for policy in &wanted.policies {
            note(Item::Policy(policy.name.clone()), self.policy(policy).await)?;
        }
        for instance in &wanted.instances {
            note(Item::Instance(instance.name.clone()), self.instance(instance).await)?;
        }
        for backup in &wanted.backups {
            note(Item::Backup(backup.request_id.clone()), self.backup(backup).await)?;
        }
        Some(outcome)
    }

    /// The policy's id.
    async fn policy(&self, wanted: &wire::PolicyAssignment) -> Result<String, Problem> {
        let name = policy::parse(&wanted.document)?.name;
        if name != wanted.name {
            let message = format!("the document's name is {name:?}, and not {:?}", wanted.name);
            return Err(Problem::new(Reason::InvalidPolicy, message));
        }
        if let Some(known) = self.known_policy(&name).await? {
            return if known.document == wanted.document { Ok(known.id) } else { self.update_policy(wanted).await };
        }
        let made = self.create_policy(wanted).await;
        let is_taken = made.as_ref().is_err_and(|problem| problem.reason == Reason::NameTaken);
        if is_taken && self.known_policy(&name).await?.is_some() {
            // What a lost answer has left in the vault of an earlier version was found only now: this one comes after it.
            return self.update_policy(wanted).await;
        }
        made
    }

    async fn known_policy(&self, name: &str) -> Result<Option<Policy>, Problem> {
        Ok(self.catalog.policy(name).await?.filter(|known| known.name == name))
    }

    async fn create_policy(&self, wanted: &wire::PolicyAssignment) -> Result<String, Problem> {
        let request = control::CreatePolicyRequest {
            document: wanted.document.clone(),
            azure_policy: String::new(),
            name: String::new(),
        };
        let made = self.api.create_policy(Request::new(request)).await.map_err(problem)?.into_inner().policy;
        made.map(|policy| policy.id).ok_or_else(|| unanswered("policy"))
    }

    async fn update_policy(&self, wanted: &wire::PolicyAssignment) -> Result<String, Problem> {
        let request = control::UpdatePolicyRequest {
            document: wanted.document.clone(),
            preview: false,
            confirm_shorter: wanted.confirm_shorter,
            seen_version: 0,
        };
        let made = self.api.update_policy(Request::new(request)).await.map_err(problem)?.into_inner().policy;
        made.map(|policy| policy.id).ok_or_else(|| unanswered("policy"))
    }

    /// The instance's id.
    async fn instance(&self, wanted: &wire::InstanceAssignment) -> Result<String, Problem> {
        let known = self.catalog.instance(&wanted.name).await?.filter(|known| known.name == wanted.name);
        let Some(known) = known else { return self.protect(wanted).await };
        if known.source_uri != wanted.source_uri {
            let message = format!("{} is of another source here: {}", known.name, known.source_uri);
            return Err(Problem::new(Reason::NameTaken, message).with_fix(
                "Assign the source under another name, or move the instance at the agent: vaultferry instance move.",
            ));
        }
        if known.protection.is_deleted() {
            return Err(lifecycle::refusal(&known));
        }
        if known.policy != wanted.policy {
            let request = control::ChangePolicyRequest {
                instance: known.id.clone(),
                policy: wanted.policy.clone(),
                preview: false,
                confirmed: wanted.confirm_shorter,
            };
            // By its trait: the API has a method of that name of its own.
            InstanceLifecycleService::change_policy(&self.api, Request::new(request)).await.map_err(problem)?;
        }
        if let Some(credential) = &wanted.credential
            && !is_same_credential(credential, &known.credential)
        {
            let request = control::MoveBackupInstanceRequest {
                instance: known.id.clone(),
                source_uri: wanted.source_uri.clone(),
                credential: Some(credential.clone()),
                region: String::new(),
            };
            self.api.move_backup_instance(Request::new(request)).await.map_err(problem)?;
        }
        Ok(known.id)
    }

    async fn protect(&self, wanted: &wire::InstanceAssignment) -> Result<String, Problem> {
        if wanted.name.is_empty() {
            return Err(Problem::new(Reason::InvalidRequest, "an assigned instance needs a name"));
        }
        let request = control::CreateBackupInstancesRequest {
            source_uris: vec![wanted.source_uri.clone()],
            policy: wanted.policy.clone(),
            name: wanted.name.clone(),
            region: wanted.region.clone(),
            credential: wanted.credential.clone(),
            ..control::CreateBackupInstancesRequest::default()
        };
        let made = self.api.create_backup_instances(Request::new(request)).await.map_err(problem)?;
        let made = made.into_inner().instances.into_iter().next();
        made.map(|instance| instance.id).ok_or_else(|| unanswered("instance"))
    }

    /// The job's id.
    async fn backup(&self, wanted: &wire::BackupAssignment) -> Result<String, Problem> {
        let Some(key) = api::request_key(&wanted.request_id)? else {
            return Err(Problem::new(Reason::InvalidRequest, "an assigned backup needs a request_id"));
        };
        // Asked first: what has become of the instance since must not hide that the request has its job.
        if let Some(known) = self.catalog.job_of_request(&key).await? {
            return Ok(known.id);
        }
        let request = control::StartBackupRequest {
            instance: wanted.instance.clone(),
            rule: wanted.rule.clone(),
            request_id: wanted.request_id.clone(),
            keep_until: wanted.keep_until.clone(),
            read_bytes_per_s: 0,
        };
        let started = self.api.start_backup(Request::new(request)).await.map_err(problem)?;
        started.into_inner().job.map(|job| job.id).ok_or_else(|| unanswered("job"))
    }
}

/// Whether a problem may be gone at the next try, without anybody's doing.
fn may_pass(reason: Reason) -> bool {
    matches!(
        reason.code(),
        Code::Unavailable
            | Code::Aborted
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Cancelled
            | Code::Internal
    )
}

/// Says in the log what became of a version.
fn tell(outcome: &Outcome) {
    let failed = outcome.results.iter().filter(|result| result.problem.is_some()).count();
    let (version, complete, items) = (outcome.version, outcome.complete, outcome.results.len());
    tracing::info!(version, complete, items, failed, "the backup service's assignments");
    for result in &outcome.results {
        if let Some(problem) = &result.problem {
            let (item, reason) = (&result.item, &problem.reason);
            tracing::warn!(?item, reason, "what the backup service assigns was not done: {}", problem.message);
        }
    }
}

fn problem(status: Status) -> Problem {
    Problem::from_status(&status, Reason::Internal)
}

fn unanswered(what: &str) -> Problem {
    Problem::new(Reason::Internal, format!("the answer names no {what}"))
}
