//! `JobService`.

use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use vaultferry_proto::control::v1::job_service_server::JobService;
use vaultferry_proto::control::v1::{
    CancelJobRequest, CancelJobResponse, GetJobRequest, GetJobResponse, Job as WireJob, ListJobsRequest,
    ListJobsResponse, WatchJobRequest, WatchJobResponse, job::Operation, job::Status as WireStatus,
};
use vaultferry_proto::{Problem, Reason};

use super::{Api, convert};
use crate::catalog::{Job, JobFilter};

/// Jobs in one answer.
const MAX_JOBS: u32 = 1000;
/// How far back jobs are listed when nobody says from when on.
const LISTED: jiff::SignedDuration = jiff::SignedDuration::from_hours(7 * 24);
/// A watcher hears from a quiet job this often.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// A busy job is not told more often than this.
const PACE: Duration = Duration::from_millis(200);

impl Api {
    async fn find_job(&self, id: &str) -> Result<Job, Problem> {
        let missing = || Problem::new(Reason::JobNotFound, format!("no job, or more than one, has the id {id:?}"));
        self.catalog.job(id).await?.ok_or_else(missing)
    }

    fn job_to_wire(&self, job: Job) -> WireJob {
        let progress = self.jobs.progress(&job.id);
        convert::job(job, progress)
    }

    /// With its steps up to now.
    fn with_steps(&self, mut job: Job) -> WireJob {
        // One that has ended has written them down.
        let running = self.jobs.steps(&job.id).filter(|_| !job.status.has_ended());
        let goes_on = running.is_some();
        job.steps = running.unwrap_or(job.steps);
        let mut job = self.job_to_wire(job);
        if let Some(last) = job.steps.last_mut().filter(|_| goes_on) {
            last.end_time = None;
        }
        job
    }

    /// With its steps, and its findings, once it has any.
    async fn job_with_findings(&self, job: Job) -> Result<WireJob, Problem> {
        let findings = match job.report {
            Some(_) => self.catalog.findings(&job.id).await?,
            None => Vec::new(),
        };
        Ok(WireJob { findings: findings.into_iter().map(convert::finding).collect(), ..self.with_steps(job) })
    }

    async fn list(&self, request: ListJobsRequest) -> Result<Vec<WireJob>, Problem> {
        let status = status_of(&request.status)?;
        let operation = operation_of(&request.operation)?;
        let to = request.to.and_then(convert::time_from);
        let from = request.from.and_then(convert::time_from).or_else(|| {
            let end = to.unwrap_or_else(vaultferry_vault::clock::now);
            end.checked_sub(LISTED).ok()
        });
        let statuses = status.map(written_status).unwrap_or_default();
        let operations = operation.map(written_operation).unwrap_or_default();
        let without_steps = |job: Job| WireJob { steps: Vec::new(), ..self.job_to_wire(job) };
        let mut limit = MAX_JOBS;
        loop {
            let filter = JobFilter { from, to, limit };
            let found = self.catalog.jobs_like(filter, statuses, operations).await?;
            let is_all = found.len() < limit as usize;
            // Of completed ones only the jobs themselves say whether they have warnings.
            let wanted = found.into_iter().map(without_steps).filter(|job| {
                status.is_none_or(|status| job.status() == status)
                    && operation.is_none_or(|operation| job.operation() == operation)
            });
            let wanted: Vec<WireJob> = wanted.take(MAX_JOBS as usize).collect();
            if is_all || wanted.len() == MAX_JOBS as usize {
                return Ok(wanted);
            }
            limit = limit.saturating_mul(8);
        }
    }
}

/// A status as the catalog writes it; empty: any.
fn written_status(status: WireStatus) -> &'static [&'static str] {
    match status {
        WireStatus::Unspecified => &[],
        WireStatus::InProgress => &["in-progress"],
        WireStatus::Cancelling => &["cancelling"],
        WireStatus::Completed | WireStatus::CompletedWithWarnings => &["completed"],
        WireStatus::Failed => &["failed"],
        WireStatus::Cancelled => &["cancelled"],
    }
}

/// An operation as the catalog writes it; empty: any, for names that jobs of this program do not have.
fn written_operation(operation: Operation) -> &'static [&'static str] {
    match operation {
        Operation::Backup => &["backup"],
        Operation::RestoreAsDatabase => &["restore-database"],
        Operation::RestoreAsFiles => &["restore-files"],
        Operation::RestoreAsDisk => &["restore-disk"],
        Operation::ConfigureProtection => &["configure-protection"],
        Operation::StopProtection => &["stop-protection"],
        Operation::UndeleteInstance => &["undelete-instance"],
        Operation::ChangePolicy => &["change-policy"],
        Operation::Check => &["check"],
        Operation::VerifyPoint => &["verify-point"],
        Operation::Prune => &["prune"],
        Operation::DeletePoint => &["delete-point"],
        Operation::UndeletePoint => &["undelete-point"],
        Operation::ArchivePoint => &["archive-point"],
        Operation::Tier => &["tier"],
        Operation::Unspecified => &[],
    }
}

fn status_of(text: &str) -> Result<Option<WireStatus>, Problem> {
    use WireStatus::{Cancelled, Cancelling, Completed, CompletedWithWarnings, Failed, InProgress};
    let all = [InProgress, Completed, CompletedWithWarnings, Failed, Cancelling, Cancelled];
    one_of("status", text, &all, WireStatus::as_str_name)
}

fn operation_of(text: &str) -> Result<Option<Operation>, Problem> {
    use Operation::{
        ArchivePoint, Backup, ChangePolicy, Check, ConfigureProtection, DeletePoint, Prune, RestoreAsDatabase,
        RestoreAsDisk, RestoreAsFiles, StopProtection, Tier, UndeleteInstance, UndeletePoint, VerifyPoint,
    };
    let all = [
        Backup,
        RestoreAsDatabase,
        RestoreAsFiles,
        RestoreAsDisk,
        ConfigureProtection,
        Check,
        VerifyPoint,
        Prune,
        DeletePoint,
        UndeletePoint,
        ArchivePoint,
        Tier,
        StopProtection,
        UndeleteInstance,
        ChangePolicy,
    ];
    // D17: the portal's name for it.
    if text.eq_ignore_ascii_case("ConfigureBackup") {
        return Ok(Some(ConfigureProtection));
    }
    one_of("operation", text, &all, Operation::as_str_name)
}

fn one_of<T: Copy>(what: &str, text: &str, all: &[T], name: impl Fn(&T) -> &'static str) -> Result<Option<T>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    let found = all.iter().copied().find(|value| name(value).eq_ignore_ascii_case(text));
    found.map(Some).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(&name).collect();
        Problem::new(Reason::InvalidRequest, format!("the {what} {text:?} is not one of {}", names.join(", ")))
    })
}

#[tonic::async_trait]
impl JobService for Api {
    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        let job = self.find_job(&request.into_inner().job).await?;
        Ok(Response::new(GetJobResponse { job: Some(self.job_with_findings(job).await?) }))
    }

    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        Ok(Response::new(ListJobsResponse { jobs: self.list(request.into_inner()).await? }))
    }

    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<WatchJobResponse, Status>> + Send>>;

    async fn watch_job(&self, request: Request<WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let id = self.find_job(&request.into_inner().job).await?.id;
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let api = self.clone();
        tokio::spawn(async move {
            loop {
                // Subscribed before the catalog is asked: a change in between is seen.
                let watch = api.jobs.watch(&id);
                let answer = api.find_job(&id).await;
                let ended = answer.as_ref().map_or(true, |job| job.status.has_ended());
                let answer = match answer {
                    Ok(job) => api.job_with_findings(job).await,
                    Err(problem) => Err(problem),
                };
                let answer = answer.map(|job| WatchJobResponse { job: Some(job) }).map_err(Status::from);
                if sender.send(answer).await.is_err() || ended {
                    return;
                }
                tokio::select! {
                    () = api.stopping.cancelled() => return,
                    () = sender.closed() => return,
                    () = tokio::time::sleep(HEARTBEAT) => {}
                    () = changed(watch) => {}
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Result<Response<CancelJobResponse>, Status> {
        let job = self.find_job(&request.into_inner().job).await?;
        self.jobs.cancel(&job).await?;
        let job = self.find_job(&job.id).await?;
        Ok(Response::new(CancelJobResponse { job: Some(self.job_to_wire(job)) }))
    }
}

/// Returns at the next change, but not sooner than the pace allows. A job that does not run here may end in the catalog at any time.
async fn changed(watch: Option<tokio::sync::watch::Receiver<crate::job::Progress>>) {
    tokio::time::sleep(PACE).await;
    match watch {
        // An error says that the job has ended, which is a change.
        Some(mut watch) => drop(watch.changed().await),
        None => tokio::time::sleep(PACE).await,
    }
}
