//! Protects sources: looked at, named, written into the vault, and after it into the catalog.
//!
//! ```text
//! URIs ─ readiness of each, four at a time ─ all ready? ─┬─ default policy, when it is wanted and missing ─ names ─┐
//!        (a caller that goes away ends it here)          │      ┌──────────────────────────────────────────────────┘
//!                                                        │      └─ vault: instances/<id>/… ─ catalog, all at once ─ a job for each
//!                                                        └─ what is not ready is told, and kept as a failed job
//! ```
//! Invariants:
//! - Nothing is protected unless every source is ready, or the caller has said that the others are left out.
//! - One source has one instance. That is looked at when the source is, and again while nothing else can be protected.
//! - A URI that may hold a password is repeated nowhere.
//! - Once the first instance is being written, the work goes on without its caller ([`crate::job::Jobs::detached`]). Killed before the
//!   catalog has them, none is protected, and the next start takes back what lies in the vault ([`crate::lifecycle::give_up_all`]).

use futures::{StreamExt as _, stream};
use vaultferry_proto::control::v1 as wire;
use vaultferry_proto::control::v1::source_readiness::{Note, State};
use vaultferry_proto::plugin::v1::ReadinessFinding;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::admin;
use vaultferry_vault::records::Protection;

use super::super::Api;
use super::super::discover::AT_ONCE;
use super::super::readiness::refuse_blocking;
use super::{check_type, check_uri, credential, done, is_name, source_type};
use crate::catalog::{Credential, Error, Instance, Job, Status as JobStatus, Work};
use crate::policy::{self, Document};
use crate::{job, lifecycle, recorded};

/// Sources in one request.
const MAX_SOURCES: usize = 1000;

/// What becomes of all when a source is not ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum Unready {
    /// The call fails with its reason.
    Fail,
    /// Nothing is protected, and the results tell why.
    Report,
    /// The others are protected.
    LeaveOut,
}

/// What is to be protected, and how.
#[derive(Debug, Clone)]
pub(in crate::api) struct Order {
    pub(in crate::api) source_uris: Vec<String>,
    /// Empty: the default policy.
    pub(in crate::api) policy: String,
    /// Empty: made from the source.
    pub(in crate::api) name: String,
    pub(in crate::api) region: String,
    pub(in crate::api) credential: Credential,
    pub(in crate::api) unready: Unready,
    /// Nothing is protected.
    pub(in crate::api) check_only: bool,
    /// The scan of a server asks, and tells by itself what is not ready: no failed jobs, every hour the same.
    pub(in crate::api) by_scan: bool,
}

/// What came of an [`Order`].
#[derive(Debug)]
pub(crate) struct Protected {
    /// Those that were made.
    pub(crate) instances: Vec<Instance>,
    /// One for each source, in their order.
    pub(in crate::api) results: Vec<Looked>,
    /// The policy's name.
    pub(in crate::api) policy: String,
    /// It was made just now.
    pub(in crate::api) policy_created: bool,
}

/// A source that was looked at.
#[derive(Debug, Clone)]
pub(in crate::api) struct Looked {
    /// Empty when a password may stand in it.
    uri: String,
    pub(in crate::api) found: Found,
    /// The plugin's, if it could look.
    findings: Vec<ReadinessFinding>,
}

/// What was found.
#[derive(Debug, Clone)]
pub(in crate::api) enum Found {
    /// Everything is there that a backup needs.
    Ready(Ready),
    /// Something is not.
    NotReady(Problem),
    /// An instance of this vault has it.
    Taken(Box<Instance>, Problem),
}

/// A source that passed its readiness check.
#[derive(Debug, Clone)]
pub(in crate::api) struct Ready {
    source_type: &'static str,
    identity: String,
    suggested_name: String,
}

/// A policy that instances are to follow.
#[derive(Debug)]
pub(in crate::api) struct Followed {
    pub(in crate::api) name: String,
    pub(in crate::api) document: Document,
    /// The default policy's document, when that is wanted and not there.
    missing: Option<String>,
}

impl Looked {
    /// It could not be looked at, or need not be.
    fn not_ready(uri: String, problem: Problem) -> Self {
        Self { uri, found: Found::NotReady(problem), findings: Vec::new() }
    }

    /// Why it is not protected; `None` when it is ready.
    pub(in crate::api) fn problem(&self) -> Option<&Problem> {
        match &self.found {
            Found::Ready(_) => None,
            Found::NotReady(problem) | Found::Taken(_, problem) => Some(problem),
        }
    }

    /// `made`: the instances that came of it.
    pub(super) fn to_wire(&self, made: &[Instance]) -> wire::SourceReadiness {
        let (state, instance) = match &self.found {
            Found::Ready(ready) => {
                let made = made.iter().find(|instance| instance.source_identity == ready.identity);
                (State::Ready, made.map(|instance| instance.name.clone()).unwrap_or_default())
            }
            Found::NotReady(_) => (State::NotReady, String::new()),
            Found::Taken(instance, _) => (State::AlreadyProtected, instance.name.clone()),
        };
        let note = |finding: &ReadinessFinding| Note {
            reason: finding.reason.clone(),
            message: finding.message.clone(),
            fix: finding.fix.clone(),
        };
        let obstacle = |problem: &Problem| Note {
            reason: problem.reason.to_string(),
            message: problem.message.clone(),
            fix: problem.fix.clone(),
        };
        let noted = |blocking| self.findings.iter().filter(move |finding| finding.blocking == blocking).map(note);
        // What stands in the way at the source is told whole; the problem is its first.
        let obstacles: Vec<Note> = match &self.found {
            Found::NotReady(_) if self.findings.iter().any(|finding| finding.blocking) => noted(true).collect(),
            _ => self.problem().map(obstacle).into_iter().collect(),
        };
        wire::SourceReadiness {
            source_uri: self.uri.clone(),
            state: state.into(),
            obstacles,
            warnings: noted(false).collect(),
            instance,
        }
    }
}

impl Api {
    /// See `CreateBackupInstances` in instance.proto.
    pub(crate) async fn create_instances(
        &self,
        request: wire::CreateBackupInstancesRequest,
    ) -> Result<Protected, Problem> {
        use wire::create_backup_instances_request::Unready as Asked;
        let unready = match request.unready() {
            Asked::Unspecified => Unready::Fail,
            Asked::Report => Unready::Report,
            Asked::LeaveOut => Unready::LeaveOut,
        };
        self.protect(Order {
            source_uris: request.source_uris,
            policy: request.policy,
            name: request.name,
            region: request.region,
            credential: credential(request.credential)?,
            unready,
            check_only: request.check_only,
            by_scan: false,
        })
        .await
    }

    /// The one way to protect sources.
    pub(in crate::api) async fn protect(&self, order: Order) -> Result<Protected, Problem> {
        let followed = self.policy_for(&order.policy, &order.source_uris).await?;
        check_request(&order.source_uris, &order.name)?;
        let fails = order.unready == Unready::Fail && !order.check_only;
        let types: Vec<_> = order.source_uris.iter().map(|uri| self.check_beforehand(uri, &order, &followed)).collect();
        if fails && let Some(problem) = types.iter().find_map(|checked| checked.as_ref().err()) {
            return Err(problem.clone());
        }
        if !order.check_only {
            self.check_owner().await?;
        }
        let mut looked = self.look_at_all(&order, types).await;
        refuse_twice(&mut looked);
        let unready = looked.iter().filter(|looked| looked.problem().is_some()).count();
        if !order.check_only && !order.by_scan {
            self.keep_failures(&order, &looked, &followed.name).await?;
        }
        if fails && let Some(problem) = looked.iter().find_map(Looked::problem) {
            return Err(of_several(problem, unready, looked.len()));
        }
        let refused = unready > 0 && order.unready != Unready::LeaveOut;
        if order.check_only || refused || unready == looked.len() {
            let (policy, instances) = (followed.name, Vec::new());
            return Ok(Protected { instances, results: looked, policy, policy_created: false });
        }
        let api = self.clone();
        self.jobs.detached(async move { api.protect_ready(&order, looked, followed).await }).await
    }

    /// What can be known of a source without asking it: its type.
    fn check_beforehand(&self, uri: &str, order: &Order, followed: &Followed) -> Result<&'static str, Problem> {
        check_uri(uri)?;
        self.check_region(&order.region, "source")?;
        let source_type = source_type(uri)?;
        check_type(&followed.document, source_type)?;
        Ok(source_type)
    }

    /// P36: is everything there that a backup of each source needs? Asked of the plugin; nothing is changed at the source.
    async fn look_at_all(&self, order: &Order, types: Vec<Result<&'static str, Problem>>) -> Vec<Looked> {
        let (api, credential) = (self.clone(), order.credential.clone());
        let sources = order.source_uris.clone().into_iter().zip(types);
        let looks = stream::iter(sources).map(move |(uri, source_type)| {
            let (api, credential) = (api.clone(), credential.clone());
            async move {
                match source_type {
                    Ok(source_type) => api.look_at(uri, source_type, &credential).await,
                    Err(problem) => {
                        let uri = if check_uri(&uri).is_ok() { uri } else { String::new() };
                        Looked::not_ready(uri, problem)
                    }
                }
            }
        });
        // Boxed, because the compiler does not see through the closure's `'static` in a future that moves between threads.
        looks.buffered(AT_ONCE).boxed().collect().await
    }

    async fn look_at(&self, uri: String, source_type: &'static str, credential: &Credential) -> Looked {
        let answer = match self.look_at_source(&uri, source_type, credential, None).await {
            Err(problem) => return Looked::not_ready(uri, problem),
            Ok(answer) => answer,
        };
        let refused = refuse_blocking(&answer.findings);
        let (identity, suggested_name) = (answer.source_identity, answer.suggested_name);
        let found = match (self.check_unprotected(&identity, None).await, refused) {
            (Ok(()), Ok(())) => Found::Ready(Ready { source_type, identity, suggested_name }),
            (Ok(()), Err(problem)) => Found::NotReady(problem),
            (Err(problem), _) => match self.catalog.instance_of_source(&identity).await {
                Ok(Some(instance)) => Found::Taken(Box::new(instance), problem),
                Ok(None) | Err(_) => Found::NotReady(problem),
            },
        };
        Looked { uri, found, findings: answer.findings }
    }

    /// P40: that it did not come to be configured is found among the jobs, too.
    async fn keep_failures(&self, order: &Order, looked: &[Looked], policy: &str) -> Result<(), Problem> {
        for looked in looked {
            let Found::NotReady(problem) = &looked.found else { continue };
            let wanted = if order.name.is_empty() { last_part(&looked.uri) } else { order.name.clone() };
            let ready = Ready { source_type: "", identity: String::new(), suggested_name: String::new() };
            // Of an instance that there is not: the job has its name, and no id.
            let instance = planned(String::new(), wanted, order, looked, &ready, policy);
            let status = JobStatus::failed(problem);
            let job = Job { status, ..job::new_job(&instance, Work::ConfigureProtection, None, false) };
            tracing::info!(job = job.id, reason = %problem.reason, "a source is not ready: {}", problem.message);
            self.catalog.insert_job(job).await?;
        }
        Ok(())
    }

    async fn protect_ready(
        &self,
        order: &Order,
        looked: Vec<Looked>,
        followed: Followed,
    ) -> Result<Protected, Problem> {
        let policy_created = self.make_missing(&followed).await?;
        // From here until it is linked, the policy is neither deleted nor changed, and names stay free.
        let _one_at_a_time = self.policies.lock().await;
        let instances = self.name_instances(&looked, order, &followed.name).await?;
        self.keep_policy(&self.find_policy(&followed.name).await?).await?;
        if let Err(problem) = self.make(&instances).await {
            // None of them is an instance; the hourly run tries again what the vault does not take now.
            lifecycle::give_up_all(&self.shared, &self.stopping).await;
            return Err(problem);
        }
        for instance in &instances {
            // P40: configuring protection is an operation whose record can be found among the jobs.
            let job = Job { scheduled: order.by_scan, ..done(instance, Work::ConfigureProtection) };
            tracing::info!(job = job.id, instance = instance.name, source = instance.source_identity, "protected");
            self.catalog.insert_job(job).await?;
        }
        self.changed.notify_one();
        Ok(Protected { instances, results: looked, policy: followed.name, policy_created })
    }

    /// Makes the instances in the vault, and then in the catalog.
    async fn make(&self, instances: &[Instance]) -> Result<(), Problem> {
        let _making = self.shared.making.lock().await;
        self.catalog.begin_instances(instances.to_vec()).await?;
        for instance in instances {
            let record = recorded::instance_record(instance);
            admin::create_instance(&self.shared.vault, &self.shared.vault_key, &record, &self.stopping).await?;
        }
        job::pause_at(&self.shared.state_dir, "instances-recorded").await;
        self.catalog.insert_instances(instances.to_vec()).await.map_err(|error| match error {
            Error::Taken(what) => Problem::new(Reason::NameTaken, format!("{what} was taken at this very moment")),
            other => other.into(),
        })
    }

    /// A name that was asked for must be free; one that is made from the source is made unique.
    async fn name_instances(&self, looked: &[Looked], order: &Order, policy: &str) -> Result<Vec<Instance>, Problem> {
        let mut instances: Vec<Instance> = Vec::new();
        for looked in looked {
            let Found::Ready(ready) = &looked.found else { continue };
            self.check_unprotected(&ready.identity, None).await?;
            let wanted = if order.name.is_empty() { &ready.suggested_name } else { &order.name };
            let mut free = wanted.to_owned();
            let mut number = 1;
            while instances.iter().any(|other| other.name == free) || self.catalog.instance(&free).await?.is_some() {
                if !order.name.is_empty() {
                    let message = format!("an instance is called {free:?} already");
                    return Err(Problem::new(Reason::NameTaken, message));
                }
                number += 1;
                free = format!("{wanted}-{number}");
            }
            instances.push(planned(admin::new_id()?, free, order, looked, ready, policy));
        }
        Ok(instances)
    }

    /// The policy of that name or id; for "" the default one, which need not be there yet.
    pub(in crate::api) async fn policy_for(&self, name: &str, uris: &[String]) -> Result<Followed, Problem> {
        if !name.is_empty() {
            let policy = self.find_policy(name).await?;
            return Ok(Followed { document: policy::parse(&policy.document)?, name: policy.name, missing: None });
        }
        let source_type = uris.iter().find_map(|uri| source_type(uri).ok()).unwrap_or("postgres");
        let name = policy::default_policy(source_type);
        match self.catalog.policy(&name).await? {
            Some(policy) => Ok(Followed { document: policy::parse(&policy.document)?, name, missing: None }),
            None => {
                let text = policy::default_document(source_type, &local_zone());
                Ok(Followed { document: policy::parse(&text)?, name, missing: Some(text) })
            }
        }
    }

    /// Makes the default policy when it is wanted and missing; true when it did. Somebody else may have made it meanwhile: that counts.
    pub(in crate::api) async fn make_missing(&self, followed: &Followed) -> Result<bool, Problem> {
        let Some(document) = followed.missing.clone() else { return Ok(false) };
        let request = wire::CreatePolicyRequest { document, ..wire::CreatePolicyRequest::default() };
        match self.create(request).await {
            Ok((policy, _)) => {
                tracing::info!(policy = policy.name, "made the default policy");
                Ok(true)
            }
            Err(problem) if problem.reason == Reason::NameTaken => Ok(false),
            Err(problem) => Err(problem),
        }
    }
}

fn planned(id: String, name: String, order: &Order, looked: &Looked, ready: &Ready, policy: &str) -> Instance {
    Instance {
        id,
        name,
        create_time: vaultferry_vault::clock::now(),
        source_type: ready.source_type.to_owned(),
        source_uri: looked.uri.clone(),
        source_identity: ready.identity.clone(),
        region: order.region.clone(),
        policy: policy.to_owned(),
        credential: order.credential.clone(),
        protection: Protection::Active,
        unsettled: false,
    }
}

fn check_request(uris: &[String], name: &str) -> Result<(), Problem> {
    let invalid = |message: String| Err(Problem::new(Reason::InvalidRequest, message));
    if uris.is_empty() || uris.len() > MAX_SOURCES {
        return invalid(format!("name 1 to {MAX_SOURCES} sources, not {}", uris.len()));
    }
    if !name.is_empty() && uris.len() > 1 {
        return invalid("a name goes with one source only; several get names of their own".to_owned());
    }
    if !is_name(name) && !name.is_empty() {
        return invalid("an instance's name has at most 128 bytes, and no control characters".to_owned());
    }
    Ok(())
}

/// The same source a second time is not ready, however it is spelt.
fn refuse_twice(looked: &mut [Looked]) {
    for index in 1..looked.len() {
        let (before, after) = looked.split_at_mut(index);
        let Found::Ready(ready) = &after[0].found else { continue };
        let same = |other: &Looked| matches!(&other.found, Found::Ready(first) if first.identity == ready.identity);
        if before.iter().any(same) {
            let message = format!("{} is given twice", ready.identity);
            let problem = Problem::new(Reason::SourceAlreadyProtected, message).with_fix("Name each source once.");
            after[0].found = Found::NotReady(problem);
        }
    }
}

/// The first problem, which stands for all.
fn of_several(first: &Problem, unready: usize, all: usize) -> Problem {
    if all == 1 {
        return first.clone();
    }
    let message =
        format!("{unready} of {all} sources are not ready, and nothing is protected; the first: {}", first.message);
    Problem { message, ..first.clone() }
}

/// What a source is called before it could be asked: the last part of its path, or its server.
fn last_part(uri: &str) -> String {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest).split('?').next().unwrap_or_default();
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = authority.rsplit('@').next().unwrap_or_default();
    let part = [path.rsplit('/').next().unwrap_or_default(), host].into_iter().find(|part| !part.is_empty());
    part.unwrap_or("a source").to_owned()
}

/// The machine's time zone by its IANA name, or UTC when it has none.
fn local_zone() -> String {
    let zone = jiff::tz::TimeZone::system();
    let name = zone.iana_name().filter(|name| *name != "Etc/Unknown" && jiff::tz::TimeZone::get(name).is_ok());
    name.unwrap_or("UTC").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(identity: &str) -> Looked {
        let ready =
            Ready { source_type: "postgres", identity: identity.to_owned(), suggested_name: identity.to_owned() };
        Looked { uri: format!("postgres://u@h/{identity}"), found: Found::Ready(ready), findings: Vec::new() }
    }

    #[test]
    fn a_source_that_is_given_twice_is_ready_once() {
        let mut looked = [ready("a"), ready("b"), ready("a"), ready("a")];
        refuse_twice(&mut looked);
        let reasons = looked.map(|looked| looked.problem().map(|problem| problem.reason));
        let twice = Some(Reason::SourceAlreadyProtected);
        assert_eq!(reasons, [None, None, twice, twice]);
    }

    #[test]
    fn a_source_that_was_not_asked_is_called_by_its_uri() {
        for (uri, name) in [
            ("postgres://u@h:5432/shop?sslmode=require", "shop"),
            ("postgres://u@/shop?host=/run/postgresql", "shop"),
            ("postgres://u@h:5432/", "h:5432"),
            ("postgres://u@h", "h"),
            ("", "a source"),
        ] {
            assert_eq!(last_part(uri), name, "{uri}");
        }
    }

    #[test]
    fn the_machines_zone_is_one_that_policies_know() {
        policy::parse(&policy::default_document("postgres", &local_zone())).expect("valid");
    }

    #[test]
    fn a_request_names_some_sources_and_a_name_is_for_one() {
        let uris = |count: usize| vec!["postgres://u@h/a".to_owned(); count];
        for (count, name, good) in [(1, "", true), (MAX_SOURCES, "", true), (1, "shop", true)].into_iter().chain([
            (0, "", false),
            (MAX_SOURCES + 1, "", false),
            (2, "shop", false),
            (1, "a\nb", false),
        ]) {
            assert_eq!(check_request(&uris(count), name).is_ok(), good, "{count} {name:?}");
        }
    }
}
