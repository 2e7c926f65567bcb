//! The backup service of every second year: it is away for hours, loses messages and answers, and hears the same again. What it was told must
//! be what happened.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::{self, BoxStream, StreamExt as _};
use jiff::Timestamp;
use tokio_stream::StreamExt as _;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};
use vaultferry_proto::control::v1::job;
use vaultferry_proto::service::v1 as wire;
use vaultferry_proto::service::v1::link_service_server::{LinkService, LinkServiceServer};

use super::world::World;
use crate::link::in_process::Host;
use crate::plugin::in_process::Io;

/// Bytes on their way between both ends.
const PIPE: usize = 64 << 10;

/// What the service is like, and what it knows.
#[derive(Debug, Default)]
pub struct State {
    /// Nobody answers until then.
    pub away_until: Option<Timestamp>,
    /// So many of a thousand messages do not arrive, or their answers do not, or they arrive twice.
    pub faults: u32,
    /// By their jobs.
    pub commits: BTreeMap<String, wire::Commit>,
    /// The latest report of each job.
    pub jobs: BTreeMap<String, wire::JobReport>,
    last_sequence: u64,
}

impl State {
    fn is_away(&self) -> bool {
        self.away_until.is_some_and(|until| vaultferry_vault::clock::now() < until)
    }

    fn saw(&mut self, sequence: u64) {
        self.last_sequence = self.last_sequence.max(sequence);
    }

    /// The facts of a commit never change. What is wrong otherwise.
    fn commit(&mut self, commit: wire::Commit) -> Option<String> {
        match self.commits.get(&commit.job_id) {
            Some(known) if *known == commit => None,
            Some(known) => Some(format!("other facts of a commit: {known:?} {commit:?}")),
            None => {
                self.commits.insert(commit.job_id.clone(), commit);
                None
            }
        }
    }

    fn report(&mut self, report: wire::JobReport) -> Option<String> {
        let Some(job) = &report.job else { return Some("a report without a job".to_owned()) };
        self.last_sequence = self.last_sequence.max(report.sequence);
        let is_backup = job.status() == job::Status::Completed && job.operation() == job::Operation::Backup;
        if is_backup && !self.commits.contains_key(&job.id) {
            return Some(format!("the service hears of the completed backup {} before its commit", job.id));
        }
        if self.jobs.get(&job.id).is_none_or(|known| known.sequence <= report.sequence) {
            self.jobs.insert(job.id.clone(), report);
        }
        None
    }
}

/// Serves one agent's life.
#[derive(Debug)]
pub struct Service {
    pub world: Arc<World>,
    /// Of the newest connection; those before it are of no use.
    server: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Service {
    pub fn new(world: Arc<World>) -> Self {
        Self { world, server: Mutex::default() }
    }
}

impl Host for Service {
    fn connect(&self) -> Option<Box<dyn Io>> {
        if self.world.state().service.is_away() {
            return None;
        }
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let service = LinkServiceServer::new(Answers(self.world.clone()));
        let router = tonic::transport::Server::builder().add_service(service);
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(theirs)).merge(tokio_stream::pending());
        let server = AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = router.serve_with_incoming(incoming).await;
        }));
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        Some(Box::new(ours))
    }
}

struct Answers(Arc<World>);

impl Answers {
    /// Takes what is told, as far as the faults let it; what must not be is noted.
    fn take(&self, sequence: u64, mut keep: impl FnMut(&mut State) -> Vec<String>) -> Result<(), Status> {
        let lost = || Err(Status::unavailable("the weather"));
        let mut state = self.0.state();
        if state.service.is_away() {
            return lost();
        }
        let faults = state.service.faults;
        let fault = if state.dice.chance(faults) { state.dice.below(3) } else { u64::MAX };
        if fault == 0 {
            return lost();
        }
        state.service.saw(sequence);
        let mut broken = keep(&mut state.service);
        if fault == 1 {
            broken.extend(keep(&mut state.service));
        }
        let now = vaultferry_vault::clock::now();
        state.broken.extend(broken.into_iter().map(|what| format!("{now} {what}")));
        if fault == 2 { lost() } else { Ok(()) }
    }
}

#[tonic::async_trait]
impl LinkService for Answers {
    async fn register(
        &self,
        request: Request<wire::RegisterRequest>,
    ) -> Result<Response<wire::RegisterResponse>, Status> {
        let last_sequence = self.0.state().service.last_sequence;
        self.take(request.into_inner().sequence, |_| Vec::new())?;
        Ok(Response::new(wire::RegisterResponse { service_id: "the-year".to_owned(), last_sequence }))
    }

    type WatchAssignmentsStream = BoxStream<'static, Result<wire::WatchAssignmentsResponse, Status>>;

    /// It assigns nothing: what people do is in the story.
    async fn watch_assignments(
        &self,
        _: Request<wire::WatchAssignmentsRequest>,
    ) -> Result<Response<Self::WatchAssignmentsStream>, Status> {
        Ok(Response::new(stream::pending().boxed()))
    }

    async fn report_assignments(
        &self,
        _: Request<wire::ReportAssignmentsRequest>,
    ) -> Result<Response<wire::ReportAssignmentsResponse>, Status> {
        Ok(Response::new(wire::ReportAssignmentsResponse {}))
    }

    async fn confirm_commits(
        &self,
        request: Request<wire::ConfirmCommitsRequest>,
    ) -> Result<Response<wire::ConfirmCommitsResponse>, Status> {
        let request = request.into_inner();
        self.take(request.sequence, |service| {
            request.commits.iter().filter_map(|commit| service.commit(commit.clone())).collect()
        })?;
        Ok(Response::new(wire::ConfirmCommitsResponse {}))
    }

    async fn report_jobs(
        &self,
        request: Request<wire::ReportJobsRequest>,
    ) -> Result<Response<wire::ReportJobsResponse>, Status> {
        let request = request.into_inner();
        self.take(request.sequence, |service| {
            request.reports.iter().filter_map(|report| service.report(report.clone())).collect()
        })?;
        Ok(Response::new(wire::ReportJobsResponse {}))
    }
}
