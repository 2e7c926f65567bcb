//! `MaintenanceService`: checks, prunes, and what happens to single points.

use tonic::{Request, Response, Status};
use vaultferry_proto::control::v1::maintenance_service_server::MaintenanceService;
use vaultferry_proto::control::v1::{
    Job as WireJob, Problem as WireProblem, StartArchivePointRequest, StartArchivePointResponse, StartCheckRequest,
    StartCheckResponse, StartDeletePointRequest, StartDeletePointResponse, StartPruneRequest, StartPruneResponse,
    StartUndeletePointRequest, StartUndeletePointResponse, StartVerifyPointRequest, StartVerifyPointResponse,
};
use vaultferry_proto::{Problem, Reason};

use super::restore::request_id_of;
use super::{Api, convert};
use crate::catalog::{Instance, Point, Work};

/// Instances named in one request.
const MAX_NAMED: usize = 1000;

impl Api {
    /// One job for each named instance, or for all. Of one instance a refusal is the answer; of several it is told beside the jobs.
    async fn start_for(
        &self,
        names: &[String],
        work: Work,
        request_id: &str,
    ) -> Result<(Vec<WireJob>, Vec<WireProblem>), Problem> {
        if names.len() > MAX_NAMED {
            return Err(Problem::new(Reason::InvalidRequest, format!("at most {MAX_NAMED} instances can be named")));
        }
        let mut instances: Vec<Instance> = Vec::new();
        for name in names {
            let instance = self.find_instance(name).await?;
            if !instances.iter().any(|other| other.id == instance.id) {
                instances.push(instance);
            }
        }
        if names.is_empty() {
            instances = self.catalog.instances().await?;
        }
        let request_id = request_id_of(request_id)?;
        let (mut jobs, mut not_started) = (Vec::new(), Vec::new());
        for instance in &instances {
            // One request, a job for each instance: each has an id of its own.
            let request_id = request_id.as_ref().map(|id| format!("{id}:{}", instance.id));
            match self.start_job(instance, work.clone(), request_id).await {
                Ok(job) => jobs.push(job),
                Err(problem) if instances.len() > 1 && problem.reason == Reason::MaintenanceBusy => {
                    not_started.push(problem.into());
                }
                Err(problem) => return Err(problem),
            }
        }
        Ok((jobs, not_started))
    }

    async fn check(&self, request: StartCheckRequest) -> Result<StartCheckResponse, Problem> {
        let read_data_ppm = ppm_of(request.read_data_percent)?;
        let work = Work::Check { keyless: request.keyless, read_data_ppm };
        let (jobs, not_started) = self.start_for(&request.instances, work, &request.request_id).await?;
        Ok(StartCheckResponse { jobs, not_started })
    }

    async fn prune(&self, request: StartPruneRequest) -> Result<StartPruneResponse, Problem> {
        let work = Work::Prune { dry_run: request.dry_run };
        let (jobs, not_started) = self.start_for(&request.instances, work, &request.request_id).await?;
        Ok(StartPruneResponse { jobs, not_started })
    }

    async fn verify_point(&self, request: StartVerifyPointRequest) -> Result<WireJob, Problem> {
        let instance = self.find_instance(&request.instance).await?;
        let point = self.find_point(&instance, &request.point).await?;
        self.start_on(&instance, Work::VerifyPoint { point_id: point.id }, &request.request_id).await
    }

    async fn delete_point(&self, request: StartDeletePointRequest) -> Result<WireJob, Problem> {
        let instance = self.find_instance(&request.instance).await?;
        let point = self.find_any_point(&instance, &request.point).await?;
        if point.standing.purge_time.is_none() {
            check_deletable(&point)?;
        }
        let purge_time = self.shared.purge_time(&self.stopping).await?;
        let work = Work::DeletePoint { point_id: point.id, purge_time };
        self.start_on(&instance, work, &request.request_id).await
    }

    async fn undelete_point(&self, request: StartUndeletePointRequest) -> Result<WireJob, Problem> {
        let instance = self.find_instance(&request.instance).await?;
        let point = self.find_any_point(&instance, &request.point).await?;
        self.start_on(&instance, Work::UndeletePoint { point_id: point.id }, &request.request_id).await
    }

    async fn archive_point(&self, request: StartArchivePointRequest) -> Result<WireJob, Problem> {
        let instance = self.find_instance(&request.instance).await?;
        let point = self.find_point(&instance, &request.point).await?;
        self.start_on(&instance, Work::ArchivePoint { point_id: point.id }, &request.request_id).await
    }

    async fn start_on(&self, instance: &Instance, work: Work, request_id: &str) -> Result<WireJob, Problem> {
        self.start_job(instance, work, request_id_of(request_id)?).await
    }

    pub(super) async fn start_job(
        &self,
        instance: &Instance,
        work: Work,
        request_id: Option<String>,
    ) -> Result<WireJob, Problem> {
        if self.stopping.is_cancelled() {
            return Err(Problem::new(Reason::AgentUnreachable, "the agent is stopping and takes no new jobs"));
        }
        let job = self.jobs.start(instance, work, request_id, false).await?;
        let progress = self.jobs.progress(&job.id);
        Ok(convert::job(job, progress))
    }
}

/// Told at once what the vault would say later. The vault has the last word: its records are read again by the job.
fn check_deletable(point: &Point) -> Result<(), Problem> {
    if let Some(note) = &point.standing.held {
        let message = format!("the point {} is held: {note}", point.id);
        let fix = "Release it first, if that is right: vaultferry point release INSTANCE POINT.";
        return Err(Problem::new(Reason::DataProtected, message).with_fix(fix));
    }
    match point.standing.immutable_until {
        Some(until) if until > vaultferry_vault::clock::now() => {
            let message = format!("the point {} is immutable until {until}", point.id);
            Err(Problem::new(Reason::DataProtected, message))
        }
        _ => Ok(()),
    }
}

fn ppm_of(percent: f64) -> Result<u32, Problem> {
    if !(0.0..=100.0).contains(&percent) {
        let message = format!("read_data_percent is {percent}; it must be from 0 to 100");
        return Err(Problem::new(Reason::InvalidRequest, message));
    }
    let ppm = (percent / 100.0 * f64::from(Work::ALL_DATA)).round() as u32;
    // What is asked for is never rounded to nothing.
    Ok(if percent > 0.0 { ppm.max(1) } else { 0 })
}

#[tonic::async_trait]
impl MaintenanceService for Api {
    async fn start_check(&self, request: Request<StartCheckRequest>) -> Result<Response<StartCheckResponse>, Status> {
        Ok(Response::new(self.check(request.into_inner()).await?))
    }

    async fn start_prune(&self, request: Request<StartPruneRequest>) -> Result<Response<StartPruneResponse>, Status> {
        Ok(Response::new(self.prune(request.into_inner()).await?))
    }

    async fn start_verify_point(
        &self,
        request: Request<StartVerifyPointRequest>,
    ) -> Result<Response<StartVerifyPointResponse>, Status> {
        let job = self.verify_point(request.into_inner()).await?;
        Ok(Response::new(StartVerifyPointResponse { job: Some(job) }))
    }

    async fn start_delete_point(
        &self,
        request: Request<StartDeletePointRequest>,
    ) -> Result<Response<StartDeletePointResponse>, Status> {
        let job = self.delete_point(request.into_inner()).await?;
        Ok(Response::new(StartDeletePointResponse { job: Some(job) }))
    }

    async fn start_undelete_point(
        &self,
        request: Request<StartUndeletePointRequest>,
    ) -> Result<Response<StartUndeletePointResponse>, Status> {
        let job = self.undelete_point(request.into_inner()).await?;
        Ok(Response::new(StartUndeletePointResponse { job: Some(job) }))
    }

    async fn start_archive_point(
        &self,
        request: Request<StartArchivePointRequest>,
    ) -> Result<Response<StartArchivePointResponse>, Status> {
        let job = self.archive_point(request.into_inner()).await?;
        Ok(Response::new(StartArchivePointResponse { job: Some(job) }))
    }
}
