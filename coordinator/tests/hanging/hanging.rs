//! A workload plugin that says who it is, and hangs in every other call, for the tests of those who wait.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use vaultferry_plugin_sdk::{BackupJob, CleanUpJob, Reporter, RestoreJob, Runner, Source, Validated, Workload};
use vaultferry_proto::Problem;
use vaultferry_proto::plugin::v1::workload_plugin_server::WorkloadPluginServer;
use vaultferry_vault::writer::Staged;

use super::Command;
use super::in_process::{Guest, Host, Io};

/// How it is started.
pub(crate) fn command() -> Command {
    let host: Arc<dyn Host> = Arc::new(Hanging);
    Command { program: PathBuf::new(), args: Vec::new(), settings_json: String::new(), in_process: Some(host) }
}

#[derive(Debug)]
struct Hanging;

#[derive(Debug)]
struct Served {
    _server: AbortOnDropHandle<()>,
}

#[async_trait]
impl Guest for Served {
    async fn stop(&mut self) {}
}

impl Host for Hanging {
    fn serve(&self) -> (Box<dyn Guest>, Box<dyn Io>) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let runner = Runner::new(CancellationToken::new(), TaskTracker::new());
        let service = WorkloadPluginServer::new(vaultferry_plugin_sdk::service(Hangs, runner));
        let router = tonic::transport::Server::builder().add_service(service);
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(theirs)).merge(tokio_stream::pending());
        let server = AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = router.serve_with_incoming(incoming).await;
        }));
        (Box::new(Served { _server: server }), Box::new(ours))
    }
}

struct Hangs;

#[async_trait]
impl Workload for Hangs {
    fn source_type(&self) -> &'static str {
        "postgres"
    }

    async fn validate(&self, _: Source, _: &str, _: &CancellationToken) -> Result<Validated, Problem> {
        std::future::pending().await
    }

    async fn backup(&self, _: BackupJob, _: &Reporter, _: &CancellationToken) -> Result<Staged, Problem> {
        std::future::pending().await
    }

    async fn restore(&self, _: RestoreJob, _: &Reporter, _: &CancellationToken) -> Result<u64, Problem> {
        std::future::pending().await
    }

    async fn clean_up(&self, _: CleanUpJob, _: &CancellationToken) -> Result<(), Problem> {
        std::future::pending().await
    }
}
