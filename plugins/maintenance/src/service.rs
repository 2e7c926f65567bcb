//! The gRPC face: one call is one task.

use futures::stream::{self, BoxStream, StreamExt as _};
use tonic::{Request, Response, Status};
use vaultferry_plugin_sdk::Runner;
use vaultferry_proto::plugin::v1 as proto;
use vaultferry_proto::plugin::v1::maintenance_plugin_server::MaintenancePlugin;

use crate::{task, wire};

/// What the coordinator expects this plugin to call itself.
const TYPE: &str = "maintenance";

pub(crate) struct Service {
    runner: Runner,
}

impl Service {
    pub(crate) fn new(runner: Runner) -> Self {
        Self { runner }
    }
}

#[tonic::async_trait]
impl MaintenancePlugin for Service {
    async fn get_info(
        &self,
        _request: Request<proto::GetInfoRequest>,
    ) -> Result<Response<proto::GetInfoResponse>, Status> {
        Ok(Response::new(proto::GetInfoResponse {
            source_type: TYPE.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    type RunStream = BoxStream<'static, Result<proto::MaintenanceEvent, Status>>;

    async fn run(&self, request: Request<proto::MaintenanceRequest>) -> Result<Response<Self::RunStream>, Status> {
        let job = wire::job_from(request.into_inner())?;
        tracing::info!(job = job.id, task = job.task.name(), "maintenance begins");
        let events = self.runner.run(move |reporter, cancel| async move { task::run(&job, &reporter, &cancel).await });
        Ok(Response::new(events.flat_map(|event| stream::iter(wire::events_to(event))).boxed()))
    }
}
