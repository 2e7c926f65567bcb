//! `InstanceLifecycleService`: what becomes of instances after they were made.
//!
//! Invariants:
//! - A change that has begun comes to its end although its caller goes away ([`crate::job::Jobs::detached`]).
//! - `Api::policies` is taken before a [`Change`] is begun, never after it.

use tonic::{Request, Response, Status};
use vaultferry_proto::control::v1 as wire;
use vaultferry_proto::control::v1::instance_lifecycle_service_server::InstanceLifecycleService;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::records::Protection;

use super::{Api, convert, instance, readiness};
use crate::catalog::{Instance, Point, Work};
use crate::expiry;
use crate::lifecycle::{self, Change};
use crate::policy::{self, Document, Preview, Run, Step, Why};

/// Points that one answer names; the figures count all.
const MAX_CHANGES: usize = 10_000;
/// Points that a refusal names.
const NAMED: usize = 3;

impl Api {
    async fn begin(&self, name: &str) -> Result<Change, Problem> {
        let instance = self.find_instance(name).await?;
        Change::begin(&self.jobs, &instance.id, &self.stopping).await
    }

    async fn write(&self, change: Change, protection: Protection) -> Result<Instance, Problem> {
        let wanted = Instance { protection, ..change.instance().clone() };
        let (name, before) = (wanted.name.clone(), change.instance().protection.clone());
        let instance = change.write(wanted, &self.stopping).await?;
        if instance.protection != before {
            tracing::info!(instance = name, protection = ?instance.protection, "the instance's protection has changed");
        }
        Ok(instance)
    }

    async fn pause(&self, name: &str) -> Result<Instance, Problem> {
        let change = self.begin(name).await?;
        let protection = lifecycle::paused(change.instance(), vaultferry_vault::clock::now())?;
        self.write(change, protection).await
    }

    async fn resume(&self, request: wire::ResumeProtectionRequest) -> Result<Instance, Problem> {
        let _one_at_a_time = self.policies.lock().await;
        let change = self.begin(&request.instance).await?;
        let before = change.instance().clone();
        let protection = lifecycle::resumed(&before)?;
        let policy = match request.policy.as_str() {
            "" => self.find_policy(&before.policy).await?,
            other => self.find_policy(other).await?,
        };
        if before.protection.is_active() {
            if policy.name == before.policy {
                return Ok(before);
            }
            let message = format!("{} is protected already, by the policy {}", before.name, before.policy);
            let fix = "Link another policy with vaultferry instance change-policy INSTANCE --policy NAME.";
            return Err(Problem::new(Reason::InvalidRequest, message).with_fix(fix));
        }
        let document = policy::parse(&policy.document)?;
        instance::check_type(&document, &before.source_type)?;
        let (_, preview) = self.consequences(&before, &document).await?;
        policy::check_confirmed(
            &format!("the policy {}", policy.name),
            [(before.name.as_str(), &preview)],
            request.confirmed,
        )?;
        if !request.confirmed {
            self.check_none_is_over(&before, &document).await?;
        }
        self.keep_policy(&policy).await?;
        // The slots that passed meanwhile were not missed. Of an instance that has no schedule the mark means nothing, should this end here.
        self.catalog.set_last_slot(&before.id, vaultferry_vault::clock::now()).await?;
        let wanted = Instance { protection, policy: policy.name, ..before };
        let instance = change.write(wanted, &self.stopping).await?;
        self.catalog.insert_job(instance::done(&instance, Work::ConfigureProtection)).await?;
        tracing::info!(instance = instance.name, policy = instance.policy, "the instance is protected again");
        Ok(instance)
    }

    /// Retained points stay for ever; protected again, some of them may have outlived their rules.
    async fn check_none_is_over(&self, instance: &Instance, document: &Document) -> Result<(), Problem> {
        if !lifecycle::keeps_for_ever(instance) {
            return Ok(());
        }
        let mut points = expiry::facts(&*self.catalog, &instance.id).await?;
        points.retain(|point| point.purge_time.is_none());
        let run = Run { now: vaultferry_vault::clock::now(), clock: None, reference: None, protected: true };
        let plan = policy::plan(document, &points, &run);
        let over =
            plan.actions.iter().filter(|action| action.step == Step::Expire || action.why == Why::RunLimit).count();
        if over == 0 {
            return Ok(());
        }
        let message = format!(
            "as soon as {} is protected again, the time of {over} of its {} points is over; now they stay for ever",
            instance.name,
            points.len()
        );
        let fix = "They would be deleted softly, some in each hour. If that is meant, say so with --yes; or link a policy that keeps them \
                   longer with --policy NAME, or hold them (vaultferry point hold).";
        Err(Problem::new(Reason::RetentionShortened, message).with_fix(fix))
    }

    async fn stop(&self, request: wire::StopProtectionRequest) -> Result<(Instance, Option<wire::Job>), Problem> {
        if request.delete_data {
            return self.delete(&request.instance, request.confirmed).await;
        }
        let change = self.begin(&request.instance).await?;
        let before = change.instance().protection.clone();
        let protection = lifecycle::stopped(change.instance(), vaultferry_vault::clock::now())?;
        let instance = self.write(change, protection).await?;
        if instance.protection != before {
            self.catalog.insert_job(instance::done(&instance, Work::StopProtection { purge_time: None })).await?;
        }
        Ok((instance, None))
    }

    /// The instance is deleted at once, its points by a job. What a kill leaves of them is deleted by the next run of retention.
    async fn delete(&self, name: &str, confirmed: bool) -> Result<(Instance, Option<wire::Job>), Problem> {
        let change = self.begin(name).await?;
        let before = change.instance();
        let is_new = !before.protection.is_deleted();
        if is_new {
            if !confirmed {
                let message = format!("this deletes {} with all of its points", before.name);
                let fix = "If that is meant, say so with --yes. To keep the points: --retain-data.";
                return Err(Problem::new(Reason::InvalidRequest, message).with_fix(fix));
            }
            self.jobs.check_idle(before).await?;
            let points = self.catalog.points(&before.id, None, u32::MAX).await?;
            check_deletable(before, &points)?;
        }
        let purge_time = self.shared.purge_time(&self.stopping).await?;
        let protection = lifecycle::deleted(before, vaultferry_vault::clock::now(), purge_time)?;
        let instance = self.write(change, protection).await?;
        let Protection::Deleted { purge_time, .. } = instance.protection else { return Ok((instance, None)) };
        let work = Work::StopProtection { purge_time: Some(purge_time) };
        if let Some(running) = self.running(&instance, &work).await? {
            return Ok((instance, Some(running)));
        }
        if !is_new && self.catalog.point_count(&instance.id).await? == 0 {
            return Ok((instance, None));
        }
        let job = self.start_job(&instance, work, None).await?;
        Ok((instance, Some(job)))
    }

    async fn undelete(&self, name: &str) -> Result<(Instance, Option<wire::Job>), Problem> {
        let instance = self.find_instance(name).await?;
        if lifecycle::undeleted(&instance, vaultferry_vault::clock::now())?.is_none() {
            return Ok((instance, None));
        }
        let job = match self.running(&instance, &Work::UndeleteInstance).await? {
            Some(running) => running,
            None => self.start_job(&instance, Work::UndeleteInstance, None).await?,
        };
        Ok((instance, Some(job)))
    }

    /// The job of the instance that does just that: an answer that was lost is given again.
    async fn running(&self, instance: &Instance, work: &Work) -> Result<Option<wire::Job>, Problem> {
        let unfinished = self.catalog.unfinished_jobs().await?;
        let found = unfinished.into_iter().find(|job| job.instance_id == instance.id && job.work == *work);
        Ok(found.map(|job| {
            let progress = self.jobs.progress(&job.id);
            convert::job(job, progress)
        }))
    }

    async fn rename(&self, request: wire::RenameBackupInstanceRequest) -> Result<Instance, Problem> {
        if !instance::is_name(&request.name) {
            let message = "an instance's name has 1 to 128 bytes, and no control characters";
            return Err(Problem::new(Reason::InvalidRequest, message));
        }
        let _one_at_a_time = self.policies.lock().await;
        let change = self.begin(&request.instance).await?;
        let before = change.instance().clone();
        if before.name == request.name {
            return Ok(before);
        }
        check_not_deleted(&before)?;
        self.jobs.check_idle(&before).await?;
        if self.catalog.instance(&request.name).await?.is_some() {
            let message = format!("an instance is called {:?} already", request.name);
            return Err(Problem::new(Reason::NameTaken, message));
        }
        let old_name = before.name.clone();
        let instance = change.write(Instance { name: request.name, ..before }, &self.stopping).await?;
        tracing::info!(instance = instance.name, old_name, "the instance was renamed");
        Ok(instance)
    }

    async fn move_elsewhere(&self, request: wire::MoveBackupInstanceRequest) -> Result<Instance, Problem> {
        instance::check_uri(&request.source_uri)?;
        self.check_region(&request.region, "source")?;
        let instance = self.find_instance(&request.instance).await?;
        check_not_deleted(&instance)?;
        let source_type = instance::source_type(&request.source_uri)?;
        if source_type != instance.source_type {
            let message =
                format!("{} is of the type {}, the new source of {source_type}", instance.name, instance.source_type);
            let fix = "Protect it as an instance of its own: vaultferry instance create.";
            return Err(Problem::new(Reason::InvalidSource, message).with_fix(fix));
        }
        let credential = match request.credential {
            None => instance.credential.clone(),
            named => instance::credential(named)?,
        };
        self.jobs.check_idle(&instance).await?;
        self.check_owner().await?;
        let answer = self.ask_readiness(&request.source_uri, source_type, &credential).await?;
        let _one_at_a_time = self.policies.lock().await;
        let change = self.begin(&instance.id).await?;
        let before = change.instance().clone();
        check_not_deleted(&before)?;
        self.jobs.check_idle(&before).await?;
        self.check_unprotected(&answer.source_identity, Some(&before.id)).await?;
        let wanted = Instance {
            source_uri: request.source_uri,
            source_identity: answer.source_identity,
            region: if request.region.is_empty() { before.region.clone() } else { request.region },
            credential,
            ..before
        };
        let instance = change.write(wanted, &self.stopping).await?;
        tracing::info!(
            instance = instance.name,
            source = instance.source_identity,
            "the instance's source is elsewhere now"
        );
        Ok(instance)
    }

    async fn link_policy(&self, request: wire::ChangePolicyRequest) -> Result<wire::ChangePolicyResponse, Problem> {
        let _one_at_a_time = self.policies.lock().await;
        let change = self.begin(&request.instance).await?;
        let before = change.instance().clone();
        if !matches!(before.protection, Protection::Active | Protection::Paused { .. }) {
            let problem = lifecycle::refusal(&before);
            return Err(match before.protection {
                Protection::Stopped { .. } => problem.with_fix(
                    "Link the policy when you protect it again: vaultferry instance resume INSTANCE --policy NAME.",
                ),
                _ => problem,
            });
        }
        let policy = self.find_policy(&request.policy).await?;
        let document = policy::parse(&policy.document)?;
        instance::check_type(&document, &before.source_type)?;
        let (old, preview) = self.consequences(&before, &document).await?;
        let mut response = wire::ChangePolicyResponse {
            instance: None,
            change: Some(convert::instance_change(&before.id, &before.name, &preview, MAX_CHANGES)),
            needs_confirmation: preview.needs_confirmation(),
            preview: request.preview,
        };
        let mut instance = before.clone();
        if !request.preview && policy.name != before.policy {
            let what = format!("the policy {}", policy.name);
            policy::check_confirmed(&what, [(before.name.as_str(), &preview)], request.confirmed)?;
            self.keep_policy(&policy).await?;
            let done = self.catalog.last_slot(&before.id).await?.unwrap_or(before.create_time);
            if let Some(slot) =
                old.as_ref().and_then(|old| policy::slots_settled(old, done, vaultferry_vault::clock::now()))
            {
                // The old schedule has nothing there; should this end here, nothing is missed.
                self.catalog.set_last_slot(&before.id, slot).await?;
            }
            instance = change.write(Instance { policy: policy.name.clone(), ..before }, &self.stopping).await?;
            self.catalog.insert_job(instance::done(&instance, Work::ChangePolicy { policy: policy.name })).await?;
            tracing::info!(instance = instance.name, policy = instance.policy, "another policy was linked");
        }
        response.instance = Some(self.to_wire_instance(instance).await?);
        Ok(response)
    }

    /// The policy that is linked now, if it is there, and what the other one would do to the instance's points.
    async fn consequences(&self, instance: &Instance, new: &Document) -> Result<(Option<Document>, Preview), Problem> {
        let old = self.catalog.policy(&instance.policy).await?;
        let old = old.map(|policy| policy::parse(&policy.document)).transpose()?;
        let points = expiry::facts(&*self.catalog, &instance.id).await?;
        let preview = policy::preview(old.as_ref().unwrap_or(new), new, &points, vaultferry_vault::clock::now(), true);
        Ok((old, preview))
    }

    /// All that is found, whether a backup is possible or not.
    async fn validate(&self, name: &str) -> Result<wire::ValidateBackupInstanceResponse, Problem> {
        let instance = self.find_instance(name).await?;
        check_not_deleted(&instance)?;
        let (uri, source_type, former) =
            (&instance.source_uri, &instance.source_type, self.former_backup(&instance).await?);
        let answer = self.look_at_source(uri, source_type, &instance.credential, former).await?;
        let told = |warning: vaultferry_proto::plugin::v1::PluginWarning| wire::Problem {
            reason: warning.reason,
            message: warning.message,
            fix: warning.fix,
        };
        Ok(wire::ValidateBackupInstanceResponse {
            instance: Some(self.to_wire_instance(instance).await?),
            warnings: answer.warnings.into_iter().map(told).collect(),
            findings: answer.findings.into_iter().map(readiness::to_wire_finding).collect(),
        })
    }

    /// The instance for the answer; whoever waits for instances to change is told.
    async fn told(&self, instance: Instance) -> Result<Option<wire::BackupInstance>, Problem> {
        self.changed.notify_one();
        Ok(Some(self.to_wire_instance(instance).await?))
    }
}

fn check_not_deleted(instance: &Instance) -> Result<(), Problem> {
    if instance.protection.is_deleted() { Err(lifecycle::refusal(instance)) } else { Ok(()) }
}

/// Names the points that a hold or a date keeps. The vault has the last word: each deletion asks it again.
fn check_deletable(instance: &Instance, points: &[Point]) -> Result<(), Problem> {
    let now = vaultferry_vault::clock::now();
    let kept: Vec<&Point> = points.iter().filter(|point| !lifecycle::is_deletable(point, now)).collect();
    if kept.is_empty() {
        return Ok(());
    }
    let named: Vec<String> = kept
        .iter()
        .take(NAMED)
        .map(|point| match (&point.standing.held, point.standing.immutable_until) {
            (Some(note), _) => format!("{} is held: {note}", point.id),
            (None, Some(until)) => format!("{} is immutable until {until}", point.id),
            (None, None) => point.id.to_string(),
        })
        .collect();
    let more = if kept.len() > NAMED { format!("; and {} more", kept.len() - NAMED) } else { String::new() };
    let message = format!(
        "{} of the {} points of {} must stay: {}{more}",
        kept.len(),
        points.len(),
        instance.name,
        named.join("; ")
    );
    let fix = "Release them first (vaultferry point release INSTANCE POINT), wait until their dates, or keep the data: vaultferry instance \
               stop INSTANCE --retain-data.";
    Err(Problem::new(Reason::DataProtected, message).with_fix(fix))
}

#[tonic::async_trait]
impl InstanceLifecycleService for Api {
    async fn pause_protection(
        &self,
        request: Request<wire::PauseProtectionRequest>,
    ) -> Result<Response<wire::PauseProtectionResponse>, Status> {
        let (api, request) = (self.clone(), request.into_inner());
        let instance = self.jobs.detached(async move { api.pause(&request.instance).await }).await?;
        Ok(Response::new(wire::PauseProtectionResponse { instance: self.told(instance).await? }))
    }

    async fn resume_protection(
        &self,
        request: Request<wire::ResumeProtectionRequest>,
    ) -> Result<Response<wire::ResumeProtectionResponse>, Status> {
        let (api, request) = (self.clone(), request.into_inner());
        let instance = self.jobs.detached(async move { api.resume(request).await }).await?;
        Ok(Response::new(wire::ResumeProtectionResponse { instance: self.told(instance).await? }))
    }

    async fn stop_protection(
        &self,
        request: Request<wire::StopProtectionRequest>,
    ) -> Result<Response<wire::StopProtectionResponse>, Status> {
        let (api, request) = (self.clone(), request.into_inner());
        let (instance, job) = self.jobs.detached(async move { api.stop(request).await }).await?;
        Ok(Response::new(wire::StopProtectionResponse { instance: self.told(instance).await?, job }))
    }

    async fn undelete_backup_instance(
        &self,
        request: Request<wire::UndeleteBackupInstanceRequest>,
    ) -> Result<Response<wire::UndeleteBackupInstanceResponse>, Status> {
        let (instance, job) = self.undelete(&request.into_inner().instance).await?;
        Ok(Response::new(wire::UndeleteBackupInstanceResponse { instance: self.told(instance).await?, job }))
    }

    async fn rename_backup_instance(
        &self,
        request: Request<wire::RenameBackupInstanceRequest>,
    ) -> Result<Response<wire::RenameBackupInstanceResponse>, Status> {
        let (api, request) = (self.clone(), request.into_inner());
        let instance = self.jobs.detached(async move { api.rename(request).await }).await?;
        Ok(Response::new(wire::RenameBackupInstanceResponse { instance: self.told(instance).await? }))
    }

    async fn move_backup_instance(
        &self,
        request: Request<wire::MoveBackupInstanceRequest>,
    ) -> Result<Response<wire::MoveBackupInstanceResponse>, Status> {
        let (api, request) = (self.clone(), request.into_inner());
        let instance = self.jobs.detached(async move { api.move_elsewhere(request).await }).await?;
        Ok(Response::new(wire::MoveBackupInstanceResponse { instance: self.told(instance).await? }))
    }

    async fn change_policy(
        &self,
        request: Request<wire::ChangePolicyRequest>,
    ) -> Result<Response<wire::ChangePolicyResponse>, Status> {
        let (api, request) = (self.clone(), request.into_inner());
        let response = self.jobs.detached(async move { api.link_policy(request).await }).await?;
        self.changed.notify_one();
        Ok(Response::new(response))
    }

    async fn validate_backup_instance(
        &self,
        request: Request<wire::ValidateBackupInstanceRequest>,
    ) -> Result<Response<wire::ValidateBackupInstanceResponse>, Status> {
        Ok(Response::new(self.validate(&request.into_inner().instance).await?))
    }
}
