//! A backup service: a real gRPC server whose memory survives its restarts, with faults that a seed decides.
//!
//! It keeps the rules of `service.proto`, and writes down when an agent breaks them ([`View::violations`]).

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Server, ServerTlsConfig};
use tonic::{Request, Response, Status};
use vaultferry_proto::service::v1 as wire;
use vaultferry_proto::service::v1::link_service_server::{LinkService, LinkServiceServer};

use crate::free_port;

mod chaos;
mod pki;

pub use chaos::Dice;
use chaos::{Chaos, Fault};
pub use pki::Pki;

/// The token that the service takes.
pub const TOKEN: &str = "token-of-the-test-7f3a";
/// As `service.proto` says.
const PAGE: usize = 100;

/// A service on a port of 127.0.0.1. Dropping it ends it.
#[derive(Debug)]
pub struct FakeService {
    port: u16,
    tls: Option<ServerTlsConfig>,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

/// What the service knows of its agents.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The newest registration of each agent.
    pub agents: BTreeMap<String, wire::RegisterRequest>,
    /// By job.
    pub commits: BTreeMap<String, wire::Commit>,
    /// By job; the report with the greatest sequence.
    pub jobs: BTreeMap<String, wire::JobReport>,
    /// What became of the newest version that was reported.
    pub outcome: Option<wire::ReportAssignmentsRequest>,
    /// Messages that told nothing new.
    pub repeated: u64,
    /// Calls without the token.
    pub refused: u64,
    /// Where an agent broke the contract.
    pub violations: Vec<String>,
    last_sequence: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The newest version; sent again when the faults change.
    versions: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    view: View,
    /// Every version, oldest first.
    sets: Vec<wire::Assignments>,
    chaos: Option<Chaos>,
    /// Messages that the network holds back.
    late: Vec<Told>,
}

/// What an agent tells.
#[derive(Debug, Clone)]
enum Told {
    Registration(wire::RegisterRequest),
    Outcome(wire::ReportAssignmentsRequest),
    Commits(wire::ConfirmCommitsRequest),
    Jobs(wire::ReportJobsRequest),
}

impl FakeService {
    /// A service without TLS.
    #[track_caller]
    pub fn start() -> Self {
        let mut service = Self::prepare(None);
        service.resume();
        service
    }

    /// A service that shows the PKI's certificate, and wants one of an agent.
    #[track_caller]
    pub fn start_with_tls(pki: &Pki) -> Self {
        let mut service = Self::prepare(Some(pki.server()));
        service.resume();
        service
    }

    /// One that does not run yet.
    pub fn prepare(tls: Option<ServerTlsConfig>) -> Self {
        let shared = Shared { state: Mutex::default(), versions: watch::Sender::new(0) };
        Self { port: free_port(), tls, shared: Arc::new(shared), runtime: None }
    }

    /// Where it listens, or will.
    pub fn endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// The agent's `[service]`; [`TOKEN`] is in the variable `SERVICE_TOKEN`.
    pub fn config(&self) -> String {
        format!("[service]\nendpoint = \"{}\"\ntoken_env = \"SERVICE_TOKEN\"\n", self.endpoint())
    }

    /// Ends it in the middle of whatever it does; its memory stays.
    pub fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
    }

    /// Runs (again), on the same port.
    #[track_caller]
    pub fn resume(&mut self) {
        self.stop();
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime =
            builder.worker_threads(2).thread_name("fake-service").enable_all().build().expect("start a runtime");
        let listener = crate::wait_for("the service's port", Duration::from_secs(20), || {
            runtime.block_on(TcpListener::bind(("127.0.0.1", self.port))).ok()
        });
        let mut server = Server::builder();
        if let Some(tls) = &self.tls {
            server = server.tls_config(tls.clone()).expect("a TLS configuration");
        }
        let router = server.add_service(LinkServiceServer::new(Answers(self.shared.clone())));
        runtime.spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        self.runtime = Some(runtime);
    }

    /// From now on messages are lost, late, doubled and out of order, as the seed has it.
    pub fn go_mad(&self, seed: u64) {
        self.shared.state().chaos = Some(Chaos::new(seed));
        self.shared.versions.send_modify(|_| {});
    }

    /// No more faults; what was held back comes now, the newest first.
    pub fn calm_down(&self) {
        let mut state = self.shared.state();
        state.chaos = None;
        while let Some(told) = state.late.pop() {
            state.view.take(told);
        }
        drop(state);
        self.shared.versions.send_modify(|_| {});
    }

    /// Makes the next version out of the newest one; its number.
    pub fn assign(&self, change: impl FnOnce(&mut wire::Assignments)) -> u64 {
        let mut state = self.shared.state();
        let mut next = state.sets.last().cloned().unwrap_or_default();
        change(&mut next);
        next.version += 1;
        let version = next.version;
        state.sets.push(next);
        drop(state);
        self.shared.versions.send_replace(version);
        version
    }

    /// What it knows now.
    pub fn view(&self) -> View {
        self.shared.state().view.clone()
    }
}

impl Drop for FakeService {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What a watcher is sent who has got everything up to `sent`: the newest version, or with faults whatever there is, in any order.
    fn next_versions(&mut self, sent: u64) -> Vec<wire::Assignments> {
        match &mut self.chaos {
            Some(chaos) => chaos.some_of(&self.sets),
            None => self.sets.last().filter(|set| set.version > sent).cloned().into_iter().collect(),
        }
    }

    fn fault(&mut self) -> Fault {
        let Some(chaos) = &mut self.chaos else { return Fault::None };
        let fault = chaos.fault();
        // Now and then something comes that was held back.
        if !self.late.is_empty() && chaos.dice.below(3) == 0 {
            let index = chaos.dice.below(self.late.len() as u64) as usize;
            let told = self.late.swap_remove(index);
            self.view.take(told);
        }
        fault
    }
}

impl View {
    /// Keeps what it is told, by the rules of the contract.
    fn take(&mut self, told: Told) {
        match told {
            Told::Registration(request) => {
                self.saw(&request.agent_id, request.sequence);
                let known = self.agents.get(&request.agent_id);
                if known.is_none_or(|known| known.sequence < request.sequence) {
                    self.agents.insert(request.agent_id.clone(), request);
                }
            }
            Told::Outcome(request) => {
                self.saw(&request.agent_id, request.sequence);
                if self.outcome.as_ref().is_none_or(|known| known.sequence < request.sequence) {
                    self.outcome = Some(request);
                } else {
                    self.repeated += 1;
                }
            }
            Told::Commits(request) => {
                self.saw(&request.agent_id, request.sequence);
                self.check(request.commits.len() <= PAGE, "too many commits");
                request.commits.into_iter().for_each(|commit| self.commit(commit));
            }
            Told::Jobs(request) => {
                self.saw(&request.agent_id, request.sequence);
                self.check(request.reports.len() <= PAGE, "too many reports");
                request.reports.into_iter().for_each(|report| self.report(report));
            }
        }
    }

    fn commit(&mut self, commit: wire::Commit) {
        match self.commits.get(&commit.job_id) {
            Some(known) if *known == commit => self.repeated += 1,
            Some(known) => self.violations.push(format!("other facts of a commit: {known:?} {commit:?}")),
            None => drop(self.commits.insert(commit.job_id.clone(), commit)),
        }
    }

    fn report(&mut self, report: wire::JobReport) {
        let Some(job) = &report.job else { return self.violations.push("a report without a job".to_owned()) };
        self.last_sequence = self.last_sequence.max(report.sequence);
        let is_backup = job.status() == vaultferry_proto::control::v1::job::Status::Completed
            && job.operation() == vaultferry_proto::control::v1::job::Operation::Backup;
        if is_backup && !self.commits.contains_key(&job.id) {
            // The agent reports it only after its commit was taken, so whatever is late, the commit is here.
            self.violations.push(format!("a backup has completed before its commit: {}", job.id));
        }
        match self.jobs.get(&job.id) {
            Some(known) if known.sequence > report.sequence => self.repeated += 1,
            Some(known) if known.sequence == report.sequence => {
                self.repeated += 1;
                if *known != report {
                    self.violations.push(format!("one sequence of two reports: {known:?} {report:?}"));
                }
            }
            known => {
                if let Some(ended) = known.and_then(|known| known.job.as_ref()).filter(|job| job.end_time.is_some())
                    && ended != job
                {
                    self.violations.push(format!("an ended job has changed: {ended:?} {job:?}"));
                }
                self.jobs.insert(job.id.clone(), report);
            }
        }
    }

    fn check(&mut self, holds: bool, what: &str) {
        if !holds {
            self.violations.push(what.to_owned());
        }
    }

    fn saw(&mut self, agent_id: &str, sequence: u64) {
        self.last_sequence = self.last_sequence.max(sequence);
        self.check(agent_id.len() == 32 && sequence > 0, "no agent id, or no sequence");
    }
}

/// The service's calls.
#[derive(Debug, Clone)]
struct Answers(Arc<Shared>);

impl Answers {
    fn authenticate<T>(&self, request: Request<T>) -> Result<T, Status> {
        let token = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        if token != Some(&format!("Bearer {TOKEN}")) {
            self.0.state().view.refused += 1;
            return Err(Status::unauthenticated("no token"));
        }
        Ok(request.into_inner())
    }

    /// Takes what is told, as far as the faults let it.
    async fn take(&self, told: Told) -> Result<(), Status> {
        let lost = Err(Status::unavailable("a fault of the test"));
        let fault = self.0.state().fault();
        if let Fault::Slow(time) = fault {
            tokio::time::sleep(time).await;
        }
        let mut state = self.0.state();
        match fault {
            Fault::None | Fault::Slow(_) => state.view.take(told),
            Fault::Refused => return lost,
            Fault::LostAnswer => {
                state.view.take(told);
                return lost;
            }
            Fault::Twice => {
                state.view.take(told.clone());
                state.view.take(told);
            }
            Fault::Late => {
                state.late.push(told);
                return lost;
            }
            Fault::Echo => {
                state.view.take(told.clone());
                state.late.push(told);
            }
        }
        Ok(())
    }

    /// Sends versions until the agent, or a fault, ends it.
    async fn send_versions(self, mut sent: u64, sender: mpsc::Sender<Result<wire::WatchAssignmentsResponse, Status>>) {
        let mut versions = self.0.versions.subscribe();
        loop {
            versions.mark_unchanged();
            let next = self.0.state().next_versions(sent);
            for set in next {
                sent = sent.max(set.version);
                let message = wire::WatchAssignmentsResponse { assignments: Some(set) };
                if sender.send(Ok(message)).await.is_err() {
                    return;
                }
            }
            let dice = self.0.state().chaos.as_mut().map(|chaos| chaos.dice.below(4));
            let pause = match dice {
                // The stream breaks.
                Some(0) => return,
                Some(_) => Duration::from_millis(300),
                None => Duration::from_secs(3600),
            };
            tokio::select! {
                () = sender.closed() => return,
                changed = versions.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

#[tonic::async_trait]
impl LinkService for Answers {
    async fn register(
        &self,
        request: Request<wire::RegisterRequest>,
    ) -> Result<Response<wire::RegisterResponse>, Status> {
        let request = self.authenticate(request)?;
        let last_sequence = self.0.state().view.last_sequence;
        self.take(Told::Registration(request)).await?;
        Ok(Response::new(wire::RegisterResponse { service_id: "the-test".to_owned(), last_sequence }))
    }

    type WatchAssignmentsStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<wire::WatchAssignmentsResponse, Status>> + Send>>;

    async fn watch_assignments(
        &self,
        request: Request<wire::WatchAssignmentsRequest>,
    ) -> Result<Response<Self::WatchAssignmentsStream>, Status> {
        let request = self.authenticate(request)?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(self.clone().send_versions(request.applied_version, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn report_assignments(
        &self,
        request: Request<wire::ReportAssignmentsRequest>,
    ) -> Result<Response<wire::ReportAssignmentsResponse>, Status> {
        self.take(Told::Outcome(self.authenticate(request)?)).await?;
        Ok(Response::new(wire::ReportAssignmentsResponse {}))
    }

    async fn confirm_commits(
        &self,
        request: Request<wire::ConfirmCommitsRequest>,
    ) -> Result<Response<wire::ConfirmCommitsResponse>, Status> {
        self.take(Told::Commits(self.authenticate(request)?)).await?;
        Ok(Response::new(wire::ConfirmCommitsResponse {}))
    }

    async fn report_jobs(
        &self,
        request: Request<wire::ReportJobsRequest>,
    ) -> Result<Response<wire::ReportJobsResponse>, Status> {
        self.take(Told::Jobs(self.authenticate(request)?)).await?;
        Ok(Response::new(wire::ReportJobsResponse {}))
    }
}
