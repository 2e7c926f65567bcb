//! Another version of a policy, and its deletion.
//!
//! ```text
//! update: document ─ preview for every linked instance ─ confirmed? ─ policies/<name>/<n+1>.json ─ catalog: version n+1, and slots
//! killed:                                                          └── nothing happened ──┘└── the next start takes it over ──┘
//! ```

use jiff::Timestamp;
use vaultferry_proto::control::v1 as wire;
use vaultferry_proto::{Problem, Reason};

use super::super::{Api, convert};
use super::next_version;
use crate::catalog::{Error, Instance, Policy};
use crate::expiry;
use crate::policy::{self, Document, Preview};

/// Changes of points in one answer; the figures count all.
const MAX_CHANGES: usize = 10_000;
/// Instances that a refusal names.
const NAMED: usize = 20;

impl Api {
    pub(super) async fn change_policy(
        &self,
        request: wire::UpdatePolicyRequest,
    ) -> Result<wire::UpdatePolicyResponse, Problem> {
        let document = policy::parse(&request.document)?;
        let _one_at_a_time = self.policies.lock().await;
        if !request.preview {
            self.check_owner().await?;
            self.adopt_policy(&document.name).await?;
        }
        let Some(before) = self.newest_policy(&document.name).await? else {
            let message = format!("no policy is called {:?}, which is the name in the document", document.name);
            let fix = "Create it with vaultferry policy create -f FILE, or correct the name in the document.";
            return Err(Problem::new(Reason::PolicyNotFound, message).with_fix(fix));
        };
        if before.document == request.document {
            return response(before.clone(), before, &[], request.preview);
        }
        if request.seen_version != 0 && request.seen_version != before.version {
            let message = format!(
                "the change was made from version {} of the policy {}, and version {} is there now",
                request.seen_version, before.name, before.version
            );
            return Err(Problem::new(Reason::PolicyRaced, message));
        }
        let old = policy::parse(&before.document)?;
        check_source_type(&old, &document)?;
        let now = vaultferry_vault::clock::now();
        let linked = self.linked_to(&before.name).await?;
        let mut changes = Vec::with_capacity(linked.len());
        for instance in linked {
            let points = expiry::facts(&*self.catalog, &instance.id).await?;
            let preview = policy::preview(&old, &document, &points, now, true);
            changes.push((instance, preview));
        }
        let next = next_version(&before, request.document);
        if !request.preview {
            let what = format!("version {} of the policy {}", next.version, next.name);
            let previews = changes.iter().map(|(instance, preview)| (instance.name.as_str(), preview));
            policy::check_confirmed(&what, previews, request.confirm_shorter)?;
            let slots = self.settled_slots(&old, &changes, now).await?;
            self.keep_policy(&next).await?;
            self.catalog.change_policy(next.clone(), slots).await.map_err(raced)?;
            tracing::info!(
                policy = next.name,
                version = next.version,
                instances = changes.len(),
                "the policy was changed"
            );
        }
        response(next, before, &changes, request.preview)
    }

    /// Deletes it; returns the version that was deleted.
    pub(super) async fn remove_policy(&self, name: &str) -> Result<Policy, Problem> {
        let _one_at_a_time = self.policies.lock().await;
        let name = self.find_policy(name).await?.name;
        self.check_owner().await?;
        self.adopt_policy(&name).await?;
        let policy = self.find_policy(&name).await?;
        let mut linked: Vec<String> =
            self.linked_to(&policy.name).await?.into_iter().map(|instance| instance.name).collect();
        let servers = self.catalog.servers().await?.into_iter().filter(|server| server.policy == policy.name);
        linked.extend(servers.map(|server| format!("the server {}", server.name)));
        if !linked.is_empty() {
            let names: Vec<&str> = linked.iter().take(NAMED).map(String::as_str).collect();
            let more = match linked.len() - names.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let message = format!("the policy {} is linked to {}{more}", policy.name, names.join(", "));
            return Err(Problem::new(Reason::PolicyInUse, message));
        }
        let deletion = Policy { deleted: true, ..next_version(&policy, policy.document.clone()) };
        self.keep_policy(&deletion).await?;
        self.catalog.insert_policy(deletion).await.map_err(raced)?;
        tracing::info!(policy = policy.name, version = policy.version, "the policy was deleted");
        Ok(policy)
    }

    /// The instances that follow the policy, by name.
    async fn linked_to(&self, policy: &str) -> Result<Vec<Instance>, Problem> {
        let mut instances = self.catalog.instances().await?;
        instances.retain(|instance| instance.policy == policy);
        Ok(instances)
    }

    /// From when on the new schedule counts, for every instance for which that is now.
    async fn settled_slots(
        &self,
        old: &Document,
        changes: &[(Instance, Preview)],
        now: Timestamp,
    ) -> Result<Vec<(String, Timestamp)>, Problem> {
        let mut slots = Vec::new();
        for (instance, _) in changes {
            let done = self.catalog.last_slot(&instance.id).await?.unwrap_or(instance.create_time);
            slots.extend(policy::slots_settled(old, done, now).map(|slot| (instance.id.clone(), slot)));
        }
        Ok(slots)
    }
}

/// Instances are of one type and stay so.
fn check_source_type(old: &Document, new: &Document) -> Result<(), Problem> {
    if old.source_type == new.source_type {
        return Ok(());
    }
    let message =
        format!("the policy {} is for {}, and cannot become one for {}", old.name, old.source_type, new.source_type);
    let fix = "Leave source_type as it is, or create a policy under another name.";
    Err(Problem::new(Reason::PolicySourceTypeMismatch, message).with_fix(fix))
}

/// The version was there already: somebody else has the catalog open, which its lock forbids, or a record came in at this very moment.
fn raced(error: Error) -> Problem {
    match error {
        Error::Taken(what) => Problem::new(Reason::PolicyRaced, format!("{what} was made at this very moment")),
        error => error.into(),
    }
}

fn response(
    policy: Policy,
    previous: Policy,
    changes: &[(Instance, Preview)],
    preview: bool,
) -> Result<wire::UpdatePolicyResponse, Problem> {
    let mut room = MAX_CHANGES;
    let instances = changes.iter().map(|(instance, change)| {
        let change = convert::instance_change(&instance.id, &instance.name, change, room);
        room -= change.points.len();
        change
    });
    Ok(wire::UpdatePolicyResponse {
        instances: instances.collect(),
        policy: Some(convert::policy(policy)?),
        previous: Some(convert::policy(previous)?),
        needs_confirmation: changes.iter().any(|(_, change)| change.needs_confirmation()),
        preview,
    })
}
