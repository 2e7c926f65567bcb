//! What happens in a year, drawn from its seed.

use std::time::Duration;

use jiff::SignedDuration;
use tonic::Request;
use vaultferry_proto::control::v1 as wire;
use vaultferry_proto::control::v1::backup_instance_service_server::BackupInstanceService as _;
use vaultferry_proto::control::v1::backup_service_server::BackupService as _;
use vaultferry_proto::control::v1::instance_lifecycle_service_server::InstanceLifecycleService as _;
use vaultferry_proto::control::v1::job_service_server::JobService as _;
use vaultferry_proto::control::v1::maintenance_service_server::MaintenanceService as _;
use vaultferry_proto::control::v1::policy_service_server::PolicyService as _;
use vaultferry_proto::control::v1::recovery_point_service_server::RecoveryPointService as _;
use vaultferry_proto::control::v1::restore_service_server::RestoreService as _;
use vaultferry_proto::{Problem, Reason};

use super::agent::{Ended, Year};
use super::policies;
use super::shape::Shape;
use super::world::{Source, Weather};
use crate::api::Api;
use crate::catalog::{Catalog as _, Instance, Job, Work};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
/// The year, and then some calm days in which everything must come to where it belongs.
const YEAR: Duration = Duration::from_secs(335 * DAY);
const CALM_DAYS: u64 = 30;
/// A kill comes within so many steps.
const LAST_STEP: u64 = 300;

fn hours(hours: i64) -> SignedDuration {
    SignedDuration::from_hours(hours)
}

impl Year {
    /// Lives until something ends the agent's life, or the year is over.
    pub(super) async fn story(&mut self, api: &Api) -> Result<Ended, String> {
        if self.catalog.instances().await.map_err(|error| error.to_string())?.is_empty() {
            self.set_up(api).await?;
        }
        loop {
            if self.elapsed() >= YEAR {
                self.calm();
                tokio::time::sleep(Duration::from_secs(CALM_DAYS * DAY)).await;
                self.check(api, true).await?;
                return Ok(Ended::Over);
            }
            for _ in 0..=self.below(2) {
                if let Some(ended) = self.event(api).await? {
                    return Ok(ended);
                }
            }
            self.assign(self.shape().most + 1).await?;
            let wait = 4 * HOUR + self.below(10 * DAY);
            tokio::time::sleep(Duration::from_secs(wait)).await;
            self.glance().await?;
            let is_broken = !self.world.state().broken.is_empty();
            if is_broken || self.chance(700) {
                self.calm();
                self.check(api, false).await?;
            }
        }
    }

    fn shape(&self) -> Shape {
        self.world.state().shape
    }

    fn below(&self, end: u64) -> u64 {
        self.world.state().dice.below(end)
    }

    fn chance(&self, of_a_thousand: u32) -> bool {
        self.world.state().dice.chance(of_a_thousand)
    }

    fn pick<'a, T>(&self, items: &'a [T]) -> &'a T {
        self.world.state().dice.pick(items)
    }

    /// Nothing goes wrong from here on, but what has begun already.
    pub(super) fn calm(&self) {
        let mut state = self.world.state();
        (state.weather, state.plugin_faults) = (Weather::Calm, 0);
        (state.service.away_until, state.service.faults) = (None, 0);
        state.sources.values_mut().for_each(|source| source.away_until = jiff::Timestamp::MIN);
        state.agent.spare();
    }

    async fn set_up(&mut self, api: &Api) -> Result<(), String> {
        for policy in policies::ALL {
            let request = wire::CreatePolicyRequest { document: policy.document(), ..Default::default() };
            api.create_policy(Request::new(request)).await.map_err(|status| format!("{}: {status}", policy.name))?;
        }
        let shape = self.shape();
        for number in 0..shape.first {
            let policy = shape.opening.filter(|_| number == 0);
            self.protect(api, policy).await?.map_err(|problem| problem.to_string())?;
        }
        if shape.opening == Some("hourly") {
            tokio::time::sleep(Duration::from_secs(2 * DAY)).await;
            let all = self.catalog.instances().await.map_err(|error| error.to_string())?;
            if let Some(short) = all.iter().find(|instance| instance.policy == "hourly") {
                match all.len() {
                    1 => self.change_policy(api, short, "weekly").await?,
                    _ => self.delete(api, short).await?,
                }
            }
        }
        Ok(())
    }

    /// Another source is protected.
    async fn protect(&mut self, api: &Api, policy: Option<&str>) -> Result<Result<(), Problem>, String> {
        let policy = policy.unwrap_or_else(|| *self.pick(self.shape().policies));
        let uri = {
            let mut state = self.world.state();
            let uri = format!("postgres://backup@db{}/shop", state.sources.len());
            let base = state.dice.next();
            state.sources.insert(uri.clone(), Source { away_until: jiff::Timestamp::MIN, base });
            uri
        };
        self.world.tell(format!("protect {uri} by {policy}"));
        let request = wire::CreateBackupInstancesRequest {
            source_uris: vec![uri],
            policy: policy.to_owned(),
            ..wire::CreateBackupInstancesRequest::default()
        };
        self.answered(api.create_backup_instances(Request::new(request)).await.map(|_| ()))
    }

    /// A refusal is an answer, too; an internal fault is none.
    fn answered(&self, answer: Result<(), tonic::Status>) -> Result<Result<(), Problem>, String> {
        let Err(status) = answer else { return Ok(Ok(())) };
        let problem = Problem::from_status(&status, Reason::Internal);
        self.world.tell(format!("refused: {problem}"));
        match problem.reason {
            Reason::Internal | Reason::RepositoryDamaged | Reason::VaultUnreadable => {
                Err(format!("refused: {problem}"))
            }
            _ => Ok(Err(problem)),
        }
    }

    /// One thing happens; it may end the agent's life.
    async fn event(&mut self, api: &Api) -> Result<Option<Ended>, String> {
        match self.below(100) {
            0..12 => {
                let steps = self.below(LAST_STEP);
                self.world.tell(format!("the agent is killed {steps} steps from now"));
                self.world.state().agent.kill_after(i64::try_from(steps).expect("small"));
            }
            12..16 => {
                self.world.tell("the agent is stopped");
                return Ok(Some(Ended::Stopped));
            }
            16..28 => {
                let often = 20 + self.below(300) as u32;
                self.world.tell(format!("{often} of 1000 calls to the vault fail"));
                self.world.state().weather = Weather::Storm(often);
            }
            28..34 => {
                let time = Duration::from_secs(300 + self.below(8 * HOUR));
                self.world.tell(format!("the vault is away for {time:?}"));
                self.world.state().weather = Weather::Away;
                tokio::time::sleep(time).await;
                self.world.state().weather = Weather::Calm;
            }
            34..44 => {
                let faults = 100 + self.below(700) as u32;
                self.world.tell(format!("{faults} of 1000 plugins die or hang"));
                self.world.state().plugin_faults = faults;
            }
            44..47 if self.world.state().has_service => {
                // Its agent asks for it every minute.
                let away = SignedDuration::from_mins(20 * self.below(9) as i64);
                let away_until = vaultferry_vault::clock::now() + away;
                let faults = 50 + self.below(400) as u32;
                self.world.tell(format!(
                    "the backup service is away until {away_until}, then {faults} of 1000 messages are lost"
                ));
                self.world.state().service.go_away(away_until, faults);
            }
            44..52 => {
                let away_until = vaultferry_vault::clock::now() + hours(self.below(240) as i64);
                let mut state = self.world.state();
                let uris: Vec<String> = state.sources.keys().cloned().collect();
                let uri = state.dice.pick(&uris).clone();
                state.sources.entry(uri).and_modify(|source| source.away_until = away_until);
            }
            52..56 => self.jump(),
            _ => self.people(api).await?,
        }
        Ok(None)
    }

    fn jump(&mut self) {
        let by = match self.below(3) {
            0 => hours(-1 - self.below(26) as i64),
            1 => hours(1 + self.below(48) as i64),
            _ => hours(24 * (1 + self.below(31) as i64)),
        };
        if by.is_negative() {
            self.book.set_back = self.book.set_back.max(vaultferry_vault::clock::now());
        }
        self.world.tell(format!("the clock jumps by {} hours", by.as_hours()));
        self.world.jump(by);
    }

    /// Somebody wants something.
    async fn people(&mut self, api: &Api) -> Result<(), String> {
        let all = self.catalog.instances().await.map_err(|error| error.to_string())?;
        let instance = self.pick(&all).clone();
        let name = instance.name.clone();
        let most = self.shape().most;
        match self.below(25) {
            0..5 => self.back_up(api, &instance).await?,
            5..9 => self.link(api, &instance).await?,
            9 => {
                self.world.tell(format!("pause {name}"));
                let request = wire::PauseProtectionRequest { instance: name };
                self.answered(api.pause_protection(Request::new(request)).await.map(|_| ()))?.ok();
            }
            10 => {
                self.world.tell(format!("stop {name}, its data retained"));
                let request = wire::StopProtectionRequest { instance: name, ..Default::default() };
                self.answered(api.stop_protection(Request::new(request)).await.map(|_| ()))?.ok();
            }
            11..14 => self.resume(api, &all).await?,
            14..17 => self.hold_or_release(api, &instance).await?,
            17 => {
                let alive = all.iter().filter(|instance| !instance.protection.is_deleted()).count();
                if alive > 2 {
                    self.delete(api, &instance).await?;
                }
            }
            18 => {
                self.world.tell("prune everything");
                let request = wire::StartPruneRequest::default();
                self.answered(api.start_prune(Request::new(request)).await.map(|_| ()))?.ok();
                self.back_up(api, &instance).await?;
            }
            19 if all.len() < most => {
                self.protect(api, None).await?.ok();
            }
            20..22 => self.restore(api, &instance).await?,
            22.. => self.cancel(api, &instance).await?,
            _ => {}
        }
        Ok(())
    }

    async fn back_up(&mut self, api: &Api, instance: &Instance) -> Result<(), String> {
        let mut request = wire::StartBackupRequest { instance: instance.name.clone(), ..Default::default() };
        if self.chance(300) {
            let until = vaultferry_vault::clock::now() + hours(24 * (8 + self.below(60) as i64));
            request.keep_until = until.to_string();
        }
        self.world.tell(format!("back {} up, kept until {:?}", instance.name, request.keep_until));
        self.answered(api.start_backup(Request::new(request)).await.map(|_| ()))?.ok();
        Ok(())
    }

    /// A point is brought back, if there is one.
    async fn restore(&mut self, api: &Api, instance: &Instance) -> Result<(), String> {
        let points = self.catalog.points(&instance.id, None, 50).await.map_err(|error| error.to_string())?;
        if points.is_empty() {
            return Ok(());
        }
        let point = self.pick(&points).id.to_string();
        self.world.tell(format!("restore {point} of {}", instance.name));
        let request = wire::StartRestoreDatabaseRequest {
            instance: instance.name.clone(),
            point,
            target_uri: "postgres://restore@target/".to_owned(),
            database: "shop".to_owned(),
            ..wire::StartRestoreDatabaseRequest::default()
        };
        self.answered(api.start_restore_database(Request::new(request)).await.map(|_| ()))?.ok();
        Ok(())
    }

    /// Somebody begins something and thinks better of it.
    async fn cancel(&mut self, api: &Api, instance: &Instance) -> Result<(), String> {
        match self.chance(400) {
            true => self.restore(api, instance).await?,
            false => self.back_up(api, instance).await?,
        }
        // No time passes while a job is at work: it comes some way, or to its end.
        for _ in 0..self.below(1000) {
            tokio::task::yield_now().await;
        }
        let unfinished = self.catalog.unfinished_jobs().await.map_err(|error| error.to_string())?;
        let may_be_cancelled =
            |job: &&Job| matches!(job.work, Work::Backup { .. } | Work::RestoreDatabase { .. } | Work::Prune { .. });
        for job in unfinished.iter().filter(may_be_cancelled) {
            self.world.tell(format!("cancel the job {} ({}) of {}", job.id, job.work.name(), job.instance_name));
            // Whatever comes of it, it may be cancelled from here on.
            self.book.cancelled.insert(job.id.clone());
            let request = wire::CancelJobRequest { job: job.id.clone() };
            self.answered(api.cancel_job(Request::new(request)).await.map(|_| ()))?.ok();
        }
        Ok(())
    }

    /// Another policy is linked, the hourly one for some days only.
    async fn link(&mut self, api: &Api, instance: &Instance) -> Result<(), String> {
        // In most years by the week: a year's worth of jobs is not what finds faults.
        let is_dense = self.shape().dense || self.chance(150);
        let choice: Vec<&policies::Policy> =
            policies::ALL.iter().filter(|policy| is_dense || policy.hours > 24).collect();
        let policy = self.pick(&choice).name;
        self.change_policy(api, instance, policy).await?;
        if policy == "hourly" {
            tokio::time::sleep(Duration::from_secs(DAY)).await;
            self.change_policy(api, instance, "weekly").await?;
        }
        Ok(())
    }

    async fn change_policy(&mut self, api: &Api, instance: &Instance, policy: &str) -> Result<(), String> {
        self.world.tell(format!("link {} to {policy}", instance.name));
        // Whatever comes of it, it may be linked from here on.
        self.book.may_be_linked(&instance.id, &instance.policy);
        self.book.may_be_linked(&instance.id, policy);
        let request = wire::ChangePolicyRequest {
            instance: instance.name.clone(),
            policy: policy.to_owned(),
            preview: false,
            confirmed: true,
        };
        self.answered(api.change_policy(Request::new(request)).await.map(|_| ()))?.ok();
        Ok(())
    }

    /// It is deleted with all its points.
    async fn delete(&mut self, api: &Api, instance: &Instance) -> Result<(), String> {
        self.world.tell(format!("stop {}, its data deleted", instance.name));
        self.world.state().given_up.push(instance.id.clone());
        let request =
            wire::StopProtectionRequest { instance: instance.name.clone(), delete_data: true, confirmed: true };
        self.answered(api.stop_protection(Request::new(request)).await.map(|_| ()))?.ok();
        Ok(())
    }

    /// Everybody is protected again, but for some who were deleted.
    async fn resume(&mut self, api: &Api, all: &[Instance]) -> Result<(), String> {
        for instance in all.iter().filter(|instance| instance.protection.is_deleted()) {
            if self.chance(600) {
                self.world.tell(format!("undelete {}", instance.name));
                let request = wire::UndeleteBackupInstanceRequest { instance: instance.name.clone() };
                self.answered(api.undelete_backup_instance(Request::new(request)).await.map(|_| ()))?.ok();
            }
        }
        let stopped = |instance: &&Instance| !instance.protection.is_active() && !instance.protection.is_deleted();
        for instance in all.iter().filter(stopped) {
            self.world.tell(format!("resume {}", instance.name));
            let request = wire::ResumeProtectionRequest {
                instance: instance.name.clone(),
                policy: String::new(),
                confirmed: true,
            };
            self.answered(api.resume_protection(Request::new(request)).await.map(|_| ()))?.ok();
        }
        Ok(())
    }

    async fn hold_or_release(&mut self, api: &Api, instance: &Instance) -> Result<(), String> {
        let points = self.catalog.points(&instance.id, None, 50).await.map_err(|error| error.to_string())?;
        if points.is_empty() {
            return Ok(());
        }
        let point = self.pick(&points).clone();
        let (name, id) = (instance.name.clone(), point.id.to_string());
        if point.standing.held.is_none() {
            self.world.tell(format!("hold {id}"));
            let request = wire::HoldRecoveryPointRequest { instance: name, point: id, note: "a case".to_owned() };
            if self.answered(api.hold_recovery_point(Request::new(request)).await.map(|_| ()))?.is_ok() {
                self.book.held.insert(point.id);
            }
        } else {
            self.world.tell(format!("release {id}"));
            self.book.held.remove(&point.id);
            let request = wire::ReleaseRecoveryPointRequest { instance: name, point: id };
            self.answered(api.release_recovery_point(Request::new(request)).await.map(|_| ()))?.ok();
        }
        Ok(())
    }
}
