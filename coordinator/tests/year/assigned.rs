//! What the backup service of a year assigns: policies, instances, and backups on demand, told again and again, late, twice, and in another
//! order. What the agent says of it must be what there is, and each request must have one job.

use jiff::{SignedDuration, Timestamp};
use vaultferry_proto::service::v1 as wire;
use vaultferry_proto::service::v1::assignment_result::Item;

use super::agent::Year;
use super::check::{FAULTS, text};
use super::dice::Dice;
use super::policies;
use super::world::Source;
use crate::api;
use crate::catalog::link::LinkRecords as _;
use crate::catalog::{Catalog as _, Instance, Work};

/// The service changes its mind after so many of a thousand steps of the story.
const OFTEN: u32 = 300;
/// Instances that it assigns.
const MOST: usize = 2;

/// The service's own view of what it wants.
struct Wish<'a> {
    wanted: &'a mut wire::Assignments,
    dice: &'a mut Dice,
}

impl Wish<'_> {
    /// Something else than before, in words. The second one is the source that is new.
    fn change(&mut self, all: &[Instance], has_room: bool, now: Timestamp) -> (String, Option<String>) {
        if self.wanted.policies.is_empty() {
            return (self.policy(), None);
        }
        match self.dice.below(10) {
            0 | 1 => (self.policy(), None),
            2..5 if has_room && self.wanted.instances.len() < MOST => self.instance(),
            2..5 => (self.link(), None),
            5 => ("the same again".to_owned(), None),
            _ => (self.backup(all, now), None),
        }
    }

    /// A policy that was not assigned before, or the same one in other words: a new version that means the same.
    fn policy(&mut self) -> String {
        let policy = self.dice.pick(policies::ASSIGNED);
        let document = format!("{}# version {} of the assignments\n", policy.document(), self.wanted.version);
        let name = policy.name.to_owned();
        self.wanted.policies.retain(|known| known.name != name);
        self.wanted.policies.push(wire::PolicyAssignment { name, document, confirm_shorter: true });
        format!("the policy {}", policy.name)
    }

    /// One of the policies that it has assigned.
    fn any_policy(&mut self) -> String {
        self.dice.pick(&self.wanted.policies).name.clone()
    }

    fn instance(&mut self) -> (String, Option<String>) {
        let policy = self.any_policy();
        let name = format!("fleet-{}", self.wanted.instances.len() + 1);
        let source_uri = format!("postgres://backup@{name}/shop");
        let told = format!("the instance {name} by {policy}");
        self.wanted.instances.push(wire::InstanceAssignment {
            name,
            source_uri: source_uri.clone(),
            policy,
            confirm_shorter: true,
            ..wire::InstanceAssignment::default()
        });
        (told, Some(source_uri))
    }

    fn link(&mut self) -> String {
        let policy = self.any_policy();
        let count = self.wanted.instances.len();
        if count == 0 {
            return "the same again".to_owned();
        }
        let instance = &mut self.wanted.instances[usize::try_from(self.dice.below(count as u64)).expect("small")];
        instance.policy.clone_from(&policy);
        format!("{} by {policy}", instance.name)
    }

    fn backup(&mut self, all: &[Instance], now: Timestamp) -> String {
        let Some(instance) = (!all.is_empty()).then(|| self.dice.pick(all)) else { return "nothing".to_owned() };
        let id = (u128::from(self.dice.next()) << 64) | u128::from(self.dice.next());
        let request_id = uuid::Uuid::from_u128(id).to_string();
        let keep_until = match self.dice.chance(300) {
            true => (now + SignedDuration::from_hours(24 * self.dice.between(8, 60))).to_string(),
            false => String::new(),
        };
        let told = format!("a backup of {} as {request_id}", instance.name);
        let instance = instance.name.clone();
        self.wanted.backups.push(wire::BackupAssignment { request_id, instance, rule: String::new(), keep_until });
        told
    }
}

impl Year {
    /// The service may want something else from here on.
    pub(super) async fn assign(&mut self, most: usize) -> Result<(), String> {
        let all = self.catalog.instances().await.map_err(text)?;
        let (wanted, told) = {
            let mut state = self.world.state();
            let state = &mut *state;
            let service = &mut state.service;
            if !state.has_service || !service.dice.chance(OFTEN) {
                return Ok(());
            }
            let mut wanted = service.assigned.last().cloned().unwrap_or_default();
            wanted.version += 1;
            let (done, dice) = (&service.done, &mut service.dice);
            // A request is named until the agent has told of its job, and now and then longer: it must not start another one.
            wanted.backups.retain(|backup| !done.contains_key(&backup.request_id) || dice.chance(300));
            let mut wish = Wish { wanted: &mut wanted, dice };
            let (told, source) = wish.change(&all, all.len() < most, vaultferry_vault::clock::now());
            if let Some(uri) = source {
                let base = service.dice.next();
                state.sources.insert(uri, Source { away_until: Timestamp::MIN, base });
            }
            service.assign(wanted.clone());
            (wanted, told)
        };
        self.world.tell(format!("the service assigns version {}: {told}", wanted.version));
        for assigned in &wanted.instances {
            if let Some(instance) = all.iter().find(|instance| instance.name == assigned.name) {
                // Whenever the agent hears of it, it may be linked from here on; and it is linked anew when somebody has linked another one.
                self.book.may_be_linked(&instance.id, &instance.policy);
                self.book.may_be_linked(&instance.id, &assigned.policy);
            }
        }
        Ok(())
    }

    /// True when the agent is done with what the service wants, and the service has heard of it.
    pub(super) async fn has_done_all(&self) -> Result<bool, String> {
        let newest = self.world.state().service.assigned.last().map_or(0, |newest| newest.version);
        let state = self.catalog.link_state().await.map_err(text)?;
        Ok(state.outcome.is_none() && state.applied_version == newest)
    }

    /// What the service was told of its newest version is what there is.
    pub(super) async fn check_assigned(&self) -> Result<(), String> {
        let (wanted, told) = {
            let state = self.world.state();
            let Some(wanted) = state.service.assigned.last().cloned() else { return Ok(()) };
            (wanted, state.service.outcome.clone())
        };
        let told = match told {
            Some(told) if told.complete && told.version == wanted.version => told,
            other => return Err(format!("version {} is not done with, says the agent: {other:?}", wanted.version)),
        };
        let policies = wanted.policies.iter().map(|policy| Item::Policy(policy.name.clone()));
        let instances = wanted.instances.iter().map(|instance| Item::Instance(instance.name.clone()));
        let backups = wanted.backups.iter().map(|backup| Item::RequestId(backup.request_id.clone()));
        let items: Vec<Item> = policies.chain(instances).chain(backups).collect();
        let named: Vec<Item> = told.results.iter().filter_map(|result| result.item.clone()).collect();
        if items != named {
            return Err(format!("the agent tells of other items than were assigned: {named:?} and {items:?}"));
        }
        for result in &told.results {
            let reason = result.problem.as_ref().map(|problem| problem.reason.as_str());
            if reason.is_some_and(|reason| FAULTS.contains(&reason)) || reason.is_some() != result.id.is_empty() {
                return Err(format!("what is assigned was not done by a fault of the program: {result:?}"));
            }
            if !self.is_so(&wanted, result).await? {
                return Err(format!("it is not as the service was told: {result:?}"));
            }
        }
        // Also of requests that are named no more.
        let done = self.world.state().service.done.clone();
        for (request_id, job_id) in &done {
            self.check_request(request_id, Some(job_id)).await?;
        }
        Ok(())
    }

    async fn is_so(&self, wanted: &wire::Assignments, result: &wire::AssignmentResult) -> Result<bool, String> {
        match &result.item {
            // Nothing speaks against a policy that is valid.
            Some(Item::Policy(name)) => {
                let assigned = wanted.policies.iter().find(|policy| policy.name == *name);
                let known = self.catalog.policy(name).await.map_err(text)?;
                Ok(known.is_some_and(|known| {
                    known.id == result.id && Some(known.document) == assigned.map(|a| a.document.clone())
                }))
            }
            Some(Item::Instance(_)) if result.id.is_empty() => Ok(true),
            Some(Item::Instance(name)) => {
                let assigned = wanted.instances.iter().find(|instance| instance.name == *name);
                let known = self.catalog.instance(&result.id).await.map_err(text)?;
                // A person may have deleted it since.
                let is_given_up = self.world.state().given_up.contains(&result.id);
                let is_assigned = |known: Instance| {
                    known.id == result.id && Some(known.source_uri) == assigned.map(|a| a.source_uri.clone())
                };
                Ok(known.map_or(is_given_up, is_assigned))
            }
            Some(Item::RequestId(request_id)) => {
                let job_id = Some(result.id.as_str()).filter(|id| !id.is_empty());
                self.check_request(request_id, job_id).await.map(|()| true)
            }
            None => Ok(false),
        }
    }

    /// The request has that job, or none.
    async fn check_request(&self, request_id: &str, job_id: Option<&str>) -> Result<(), String> {
        let key = api::request_key(request_id).map_err(text)?.unwrap_or_default();
        let job = self.catalog.job_of_request(&key).await.map_err(text)?;
        let is_backup = job.as_ref().is_none_or(|job| matches!(job.work, Work::Backup { .. }));
        match job.as_ref().map(|job| job.id.as_str()) == job_id && is_backup {
            true => Ok(()),
            false => Err(format!("the request {request_id} has the job {job:?}, and the service was told {job_id:?}")),
        }
    }
}
