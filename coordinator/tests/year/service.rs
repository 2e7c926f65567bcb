//! The backup service of every second year: it is away for hours, loses messages and answers, hears the same again, and says the same again
//! and out of order. What it was told must be what happened; what it wants is in `assigned.rs`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::{self, BoxStream, StreamExt as _};
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_stream::StreamExt as _;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};
use vaultferry_proto::control::v1::job;
use vaultferry_proto::service::v1 as wire;
use vaultferry_proto::service::v1::assignment_result::Item;
use vaultferry_proto::service::v1::link_service_server::{LinkService, LinkServiceServer};

use super::dice::Dice;
use super::world::World;
use crate::link::in_process::Host;
use crate::plugin::in_process::Io;

/// Bytes on their way between both ends.
const PIPE: usize = 64 << 10;

/// What the service is like, and what it knows.
#[derive(Debug)]
pub struct State {
    /// Nobody answers until then.
    pub away_until: Option<Timestamp>,
    /// So many of a thousand messages do not arrive, or their answers do not, or they arrive twice.
    pub faults: u32,
    /// By their jobs.
    pub commits: BTreeMap<String, wire::Commit>,
    /// The latest report of each job.
    pub jobs: BTreeMap<String, wire::JobReport>,
    /// What it wants, the newest last; and the version before it, which may come once more.
    pub assigned: Vec<wire::Assignments>,
    /// The jobs of its requests.
    pub done: BTreeMap<String, String>,
    /// What it was told last of its assignments.
    pub outcome: Option<wire::ReportAssignmentsRequest>,
    /// Its own, so that the rest of the story does not depend on what it wants.
    pub dice: Dice,
    last_sequence: u64,
    /// It wants something else, or is not what it was.
    news: Arc<Notify>,
}

impl State {
    pub fn new(seed: u64) -> Self {
        Self {
            away_until: None,
            faults: 0,
            commits: BTreeMap::new(),
            jobs: BTreeMap::new(),
            assigned: Vec::new(),
            done: BTreeMap::new(),
            outcome: None,
            dice: Dice::new(!seed),
            last_sequence: 0,
            news: Arc::default(),
        }
    }

    /// It goes away until then, and loses so many of a thousand messages when it is back.
    pub fn go_away(&mut self, until: Timestamp, faults: u32) {
        (self.away_until, self.faults) = (Some(until), faults);
        // Connections break.
        self.news.notify_waiters();
    }

    /// It wants that from here on.
    pub fn assign(&mut self, wanted: wire::Assignments) {
        self.assigned.push(wanted);
        let old = self.assigned.len().saturating_sub(2);
        self.assigned.drain(..old);
        self.news.notify_waiters();
    }

    /// What became of its assignments. What is wrong otherwise.
    fn told(&mut self, told: &wire::ReportAssignmentsRequest) -> Vec<String> {
        let mut broken = Vec::new();
        for result in told.results.iter().filter(|result| !result.id.is_empty()) {
            let Some(Item::RequestId(request_id)) = &result.item else { continue };
            let known = self.done.entry(request_id.clone()).or_insert_with(|| result.id.clone());
            if *known != result.id {
                broken.push(format!("the request {request_id} has two jobs, {known} and {}", result.id));
            }
        }
        if self.outcome.as_ref().is_none_or(|known| known.sequence < told.sequence) {
            self.outcome = Some(told.clone());
        }
        broken
    }

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

    async fn watch_assignments(
        &self,
        request: Request<wire::WatchAssignmentsRequest>,
    ) -> Result<Response<Self::WatchAssignmentsStream>, Status> {
        let sent = request.into_inner().applied_version;
        let watched = Watched { world: self.0.clone(), sent, later: None };
        Ok(Response::new(stream::unfold(Some(watched), Watched::next).boxed()))
    }

    async fn report_assignments(
        &self,
        request: Request<wire::ReportAssignmentsRequest>,
    ) -> Result<Response<wire::ReportAssignmentsResponse>, Status> {
        let request = request.into_inner();
        self.take(request.sequence, |service| service.told(&request))?;
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

/// An agent that waits for assignments.
struct Watched {
    world: Arc<World>,
    /// The newest version that it has heard of.
    sent: u64,
    /// Sent behind another one.
    later: Option<wire::Assignments>,
}

impl Watched {
    /// The next message; an error is the last one.
    async fn next(watched: Option<Self>) -> Option<(Result<wire::WatchAssignmentsResponse, Status>, Option<Self>)> {
        let mut watched = watched?;
        let news = watched.world.state().service.news.clone();
        loop {
            // From here on: what is new behind the look is heard, too.
            let notified = news.notified();
            match watched.look() {
                Some(Ok(wanted)) => {
                    let message = wire::WatchAssignmentsResponse { assignments: Some(wanted) };
                    return Some((Ok(message), Some(watched)));
                }
                Some(Err(status)) => return Some((Err(status), None)),
                None => notified.await,
            }
        }
    }

    /// What there is to say now. A message that is lost takes its connection with it.
    fn look(&mut self) -> Option<Result<wire::Assignments, Status>> {
        let mut state = self.world.state();
        let service = &mut state.service;
        if service.is_away() {
            return Some(Err(Status::unavailable("the weather")));
        }
        if let Some(later) = self.later.take() {
            return Some(Ok(later));
        }
        let newest = service.assigned.last().filter(|newest| newest.version > self.sent)?.clone();
        let fault = if service.dice.chance(service.faults) { service.dice.below(3) } else { u64::MAX };
        if fault == 0 {
            return Some(Err(Status::unavailable("the weather")));
        }
        self.sent = newest.version;
        match (fault, service.assigned.first()) {
            // The same again.
            (1, _) => self.later = Some(newest.clone()),
            // The one before it comes behind it.
            (2, Some(older)) => self.later = Some(older.clone()),
            _ => {}
        }
        Some(Ok(newest))
    }
}
