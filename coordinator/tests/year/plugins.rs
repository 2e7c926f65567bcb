//! Plugins in this process: a workload that makes its streams up, and the real maintenance plugin, each behind a pipe that breaks when its
//! process is killed.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use futures::TryStreamExt as _;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio_stream::StreamExt as _;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::transport::server::Router;
use tonic::{Request, Response, Status};
use vaultferry_plugin_sdk::{BackupJob, CleanUpJob, Reporter, RestoreJob, Runner, Source, Validated, Workload};
use vaultferry_proto::plugin::v1 as wire;
use vaultferry_proto::plugin::v1::maintenance_plugin_server::{MaintenancePlugin, MaintenancePluginServer};
use vaultferry_proto::plugin::v1::workload_plugin_server::WorkloadPluginServer;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::location::Location;
use vaultferry_vault::reader::PointReader;
use vaultferry_vault::writer::{Backup, SnapshotMeta, Staged, WriteError};

use super::dice::Dice;
use super::process::Process;
use super::world::{GuestPlace, Made, World};
use crate::plugin::in_process::{Guest, Host, Io};

/// Bytes on their way between both ends.
const PIPE: usize = 64 << 10;
/// A plugin's process ends after so many steps at the most, when it is to be killed at one of them.
const LAST_STEP: u64 = 80;

/// Which plugin.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Workload,
    Maintenance,
}

/// Serves plugins of a kind.
#[derive(Debug)]
pub struct Plugins {
    pub world: Arc<World>,
    pub kind: Kind,
}

#[derive(Debug)]
struct Running {
    process: Arc<Process>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    _server: AbortOnDropHandle<()>,
    _place: Arc<GuestPlace>,
}

impl Host for Plugins {
    fn serve(&self) -> (Box<dyn Guest>, Box<dyn Io>) {
        let process = Arc::<Process>::default();
        {
            let mut state = self.world.state();
            let faults = state.plugin_faults;
            if state.dice.chance(faults) {
                let steps = i64::try_from(state.dice.below(LAST_STEP)).expect("small");
                if state.dice.chance(800) { process.kill_after(steps) } else { process.hang_after(steps) }
            }
        }
        let place = Arc::new(self.world.guest(process.clone()));
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let runner = Runner::new(shutdown.clone(), tasks.clone());
        let router = self.router(&process, place.0.clone(), runner);
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let theirs = Breaking::new(theirs, &process);
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(theirs)).merge(tokio_stream::pending());
        let served = router.serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
        let server = AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = served.await;
        }));
        let ours = Breaking::new(ours, &process);
        (Box::new(Running { process, shutdown, tasks, _server: server, _place: place }), Box::new(ours))
    }
}

impl Plugins {
    fn router(&self, process: &Arc<Process>, folder: PathBuf, runner: Runner) -> Router {
        let mut server = tonic::transport::Server::builder();
        match self.kind {
            Kind::Workload => {
                let madeup = MadeUp { world: self.world.clone(), process: process.clone(), folder };
                server.add_service(WorkloadPluginServer::new(vaultferry_plugin_sdk::service(madeup, runner)))
            }
            Kind::Maintenance => {
                let inner = vaultferry_plugin_maintenance::service(runner);
                let location = folder.display().to_string();
                server.add_service(MaintenancePluginServer::new(Elsewhere { inner, location }))
            }
        }
    }
}

#[async_trait]
impl Guest for Running {
    async fn stop(&mut self) {
        if self.process.is_stopped() {
            return;
        }
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Whatever of it still runs comes no further.
        self.process.kill();
        self.shutdown.cancel();
    }
}

/// A pipe's end that breaks when the process dies, and is silent when it hangs.
struct Breaking {
    inner: DuplexStream,
    process: Arc<Process>,
    dead: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Breaking {
    fn new(inner: DuplexStream, process: &Arc<Process>) -> Self {
        let dead = Box::pin(process.dead().clone().cancelled_owned());
        Self { inner, process: process.clone(), dead }
    }
}

impl tonic::transport::server::Connected for Breaking {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Breaking {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.dead.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if self.process.is_stopped() {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for Breaking {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        if self.process.dead().is_cancelled() {
            return Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// The maintenance plugin, seeing the vault's folder as its own process does.
struct Elsewhere<S> {
    inner: S,
    location: String,
}

#[tonic::async_trait]
impl<S: MaintenancePlugin> MaintenancePlugin for Elsewhere<S> {
    type RunStream = S::RunStream;

    async fn get_info(
        &self,
        request: Request<wire::GetInfoRequest>,
    ) -> Result<Response<wire::GetInfoResponse>, Status> {
        self.inner.get_info(request).await
    }

    async fn run(&self, mut request: Request<wire::MaintenanceRequest>) -> Result<Response<Self::RunStream>, Status> {
        if let Some(vault) = &mut request.get_mut().vault {
            vault.location.clone_from(&self.location);
        }
        self.inner.run(request).await
    }
}

/// A workload whose sources are in the world.
struct MadeUp {
    world: Arc<World>,
    process: Arc<Process>,
    folder: PathBuf,
}

impl MadeUp {
    /// What the source holds now; it changes with every look.
    fn look(&self, uri: &str) -> Result<Vec<(String, Vec<u8>)>, Problem> {
        let now = vaultferry_vault::clock::now();
        let mut state = self.world.state();
        let state = &mut *state;
        let away = || Problem::new(Reason::UserErrorServerConnectionClosed, "the source does not answer");
        let source = state.sources.get_mut(uri).ok_or_else(away)?;
        if now < source.away_until {
            return Err(away());
        }
        if state.dice.chance(100) {
            source.base = state.dice.next();
        }
        let length = state.dice.below(1500) as usize;
        let streams = [("base.bin", Dice::new(source.base).bytes(6000)), ("news.bin", state.dice.bytes(length))];
        Ok(streams.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect())
    }
}

#[async_trait]
impl Workload for MadeUp {
    fn source_type(&self) -> &'static str {
        "postgres"
    }

    async fn validate(&self, source: Source, _: &str, _: &CancellationToken) -> Result<Validated, Problem> {
        self.process.step().await;
        let name = source.uri.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(Validated { source_identity: source.uri, suggested_name: name, findings: Vec::new() })
    }

    async fn backup(&self, job: BackupJob, reporter: &Reporter, cancel: &CancellationToken) -> Result<Staged, Problem> {
        let mut vault = job.vault;
        vault.access.location = Location::Folder(self.folder.clone());
        let repository = vault.open(cancel).await?;
        let options = vault.write_options(job.compression);
        let mut backup = Backup::begin(repository, options, reporter.meter().clone(), cancel).await?;
        let time = vaultferry_vault::clock::now();
        let streams = match self.look(&job.source.uri) {
            Ok(streams) => streams,
            Err(problem) => {
                backup.abandon(cancel).await;
                return Err(problem);
            }
        };
        for (name, bytes) in &streams {
            self.process.step().await;
            backup.write_stream(name, bytes.as_slice(), cancel).await.map_err(|error| match error {
                WriteError::Vault(error) => Problem::from(error),
                WriteError::Input(error) => Problem::new(Reason::Internal, error.to_string()),
            })?;
        }
        let meta = SnapshotMeta { time, hostname: "simulated".to_owned(), tags: job.tags };
        let staged = backup.stage(meta, cancel).await?;
        self.world.state().made.insert(staged.snapshot_id, Made { job_id: job.job_id, streams });
        Ok(staged)
    }

    async fn restore(&self, mut job: RestoreJob, _: &Reporter, cancel: &CancellationToken) -> Result<u64, Problem> {
        job.vault.access.location = Location::Folder(self.folder.clone());
        let repository = job.open(cancel).await?;
        let point = PointReader::open(repository, job.snapshot_id, cancel).await?;
        let mut streams = Vec::new();
        for stream in point.streams() {
            self.process.step().await;
            let pieces: Vec<bytes::Bytes> = point.chunks(&stream.name, cancel)?.try_collect().await?;
            streams.push((stream.name.clone(), pieces.concat()));
        }
        self.process.step().await;
        self.world.restored(&job.job_id, &job.snapshot_id, &streams);
        Ok(streams.iter().map(|(_, bytes)| bytes.len() as u64).sum())
    }

    async fn clean_up(&self, _: CleanUpJob, _: &CancellationToken) -> Result<(), Problem> {
        Ok(())
    }
}
