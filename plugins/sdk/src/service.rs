//! The gRPC face of a [`Workload`]: one call is one job of the [`Runner`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use vaultferry_proto::Problem;
use vaultferry_proto::plugin::v1 as proto;
use vaultferry_proto::plugin::v1::workload_plugin_server::WorkloadPlugin;
use vaultferry_vault::records::Capture;
use vaultferry_vault::writer::Staged;

use crate::report::SourceCost;
use crate::runner::{Event, Runner};
use crate::wire;
use crate::workload::{Source, Workload};

/// Serves one workload.
pub(crate) struct Service<W> {
    pub(crate) workload: Arc<W>,
    pub(crate) runner: Runner,
    /// The process is this plugin's alone, and lets others go first while it backs up.
    pub(crate) own_process: bool,
}

/// The service of a workload in a process that does other things too. A plugin's own process has [`crate::serve()`].
pub fn service<W: Workload>(workload: W, runner: Runner) -> impl WorkloadPlugin {
    Service { workload: Arc::new(workload), runner, own_process: false }
}

/// Sources that are asked at once for their extensions.
const ASKED_AT_ONCE: usize = 4;
/// For all of them: half of what the agent waits for the whole answer.
const EXTENSIONS_LIMIT: Duration = Duration::from_secs(60);

impl<W: Workload> Service<W> {
    /// Asks those sources that nothing stands in the way of. One that does not tell in time has the reason in the place of its extensions.
    async fn add_extensions(
        &self,
        sources: &mut [proto::DiscoveredSource],
        server: &Source,
        settings_json: &str,
        cancel: &CancellationToken,
    ) {
        let mut asked = Vec::new();
        let mut waiting = BTreeSet::new();
        for (index, source) in sources.iter().enumerate().filter(|(_, source)| source.obstacle.is_none()) {
            let one = Source { uri: source.uri.clone(), credential: server.credential.clone() };
            asked.push(async move { (index, self.workload.extensions(one, settings_json, cancel).await) });
            waiting.insert(index);
        }
        let end = Instant::now() + EXTENSIONS_LIMIT;
        let mut answers = stream::iter(asked).buffer_unordered(ASKED_AT_ONCE);
        while let Ok(Some((index, answer))) = tokio::time::timeout_at(end, answers.next()).await {
            waiting.remove(&index);
            match answer {
                Ok(extensions) => sources[index].extensions = extensions,
                Err(problem) => {
                    let source = &sources[index].source_identity;
                    tracing::info!(source, "its extensions are not known: {problem}");
                    sources[index].extensions_problem = Some(warning(problem));
                }
            }
        }
        for index in waiting {
            let message =
                format!("its extensions were not told within {} s, for all sources", EXTENSIONS_LIMIT.as_secs());
            let fix = "Look at the server: what keeps logins waiting there? Then ask again.";
            let problem = Problem::new(vaultferry_proto::Reason::PluginTimeout, message).with_fix(fix);
            sources[index].extensions_problem = Some(warning(problem));
        }
    }
}

fn warning(problem: Problem) -> proto::PluginWarning {
    let Problem { reason, message, fix } = problem;
    proto::PluginWarning { reason: reason.to_string(), message, fix }
}

type Events<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl<W: Workload> WorkloadPlugin for Service<W> {
    async fn get_info(
        &self,
        _request: Request<proto::GetInfoRequest>,
    ) -> Result<Response<proto::GetInfoResponse>, Status> {
        Ok(Response::new(proto::GetInfoResponse {
            source_type: self.workload.source_type().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn validate(
        &self,
        request: Request<proto::ValidateRequest>,
    ) -> Result<Response<proto::ValidateResponse>, Status> {
        let (source, settings_json, former) = wire::validate_from(request.into_inner())?;
        let cancel = self.runner.cancellation();
        let validated = match former {
            None => self.workload.validate(source, &settings_json, &cancel).await?,
            Some(former) => self.workload.validate_again(source, &settings_json, former, &cancel).await?,
        };
        Ok(Response::new(wire::validated_to(validated)))
    }

    async fn discover(
        &self,
        request: Request<proto::DiscoverRequest>,
    ) -> Result<Response<proto::DiscoverResponse>, Status> {
        let (server, settings_json, extensions) = wire::discover_from(request.into_inner())?;
        let cancel = self.runner.cancellation();
        let discovered = self.workload.discover(server.clone(), &settings_json, &cancel).await?;
        let mut answer = wire::discovered_to(discovered);
        if extensions {
            self.add_extensions(&mut answer.sources, &server, &settings_json, &cancel).await;
        }
        Ok(Response::new(answer))
    }

    async fn find_servers(
        &self,
        request: Request<proto::FindServersRequest>,
    ) -> Result<Response<proto::FindServersResponse>, Status> {
        let (scope, login) = wire::find_servers_from(request.into_inner())?;
        let cancel = self.runner.cancellation();
        let servers = self.workload.find_servers(&scope, &login, &cancel).await?;
        Ok(Response::new(wire::found_servers_to(servers)))
    }

    async fn find_containers(
        &self,
        request: Request<proto::FindContainersRequest>,
    ) -> Result<Response<proto::FindContainersResponse>, Status> {
        let proto::FindContainersRequest { scope, account, prefix } = request.into_inner();
        let scope = wire::scope_from(scope)?;
        let cancel = self.runner.cancellation();
        let containers = crate::azure::containers::find(&scope, &account, &prefix, &cancel).await?;
        Ok(Response::new(wire::found_containers_to(containers)))
    }

    type BackupStream = Events<proto::BackupEvent>;

    async fn backup(&self, request: Request<proto::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let job = wire::backup_from(request.into_inner())?;
        tracing::info!(job = job.job_id, instance = job.instance_name, "backup begins");
        if self.own_process {
            crate::priority::yield_to_others();
        }
        let workload = Arc::clone(&self.workload);
        let events = self.runner.run(move |reporter, cancel| async move {
            let staged = workload.backup(job, &reporter, &cancel).await?;
            Ok((staged, reporter.source_cost(), reporter.capture()))
        });
        Ok(Response::new(events.flat_map(|event| stream::iter(backup_events(event))).boxed()))
    }

    type RestoreStream = Events<proto::RestoreEvent>;

    async fn restore(&self, request: Request<proto::RestoreRequest>) -> Result<Response<Self::RestoreStream>, Status> {
        let job = wire::restore_from(request.into_inner())?;
        tracing::info!(job = job.job_id, "restore begins");
        let workload = Arc::clone(&self.workload);
        let events = self.runner.run(move |reporter, cancel| async move {
            let bytes = workload.restore(job, &reporter, &cancel).await?;
            Ok((bytes, reporter.checked()))
        });
        Ok(Response::new(events.map(|event| restore_event(event).map_err(Status::from)).boxed()))
    }

    async fn plan_restore(
        &self,
        request: Request<proto::PlanRestoreRequest>,
    ) -> Result<Response<proto::PlanRestoreResponse>, Status> {
        let job = wire::plan_from(request.into_inner())?;
        let cancel = self.runner.cancellation();
        let plan = self.workload.plan_restore(job, &cancel).await?;
        Ok(Response::new(wire::plan_to(plan)))
    }

    async fn clean_up(
        &self,
        request: Request<proto::CleanUpRequest>,
    ) -> Result<Response<proto::CleanUpResponse>, Status> {
        let job = wire::clean_up_from(request.into_inner())?;
        tracing::info!(job = job.job_id, "clean-up begins");
        let cancel = self.runner.cancellation();
        self.workload.clean_up(job, &cancel).await?;
        Ok(Response::new(proto::CleanUpResponse {}))
    }
}

fn backup_events(event: Event<(Staged, SourceCost, Option<Capture>)>) -> Vec<Result<proto::BackupEvent, Status>> {
    match event {
        Event::Progress(progress) => vec![Ok(wire::backup_progress(progress))],
        Event::Warning(warning) => vec![Ok(wire::backup_warning(warning))],
        Event::Done((staged, cost, capture)) => wire::staged_to(staged, cost, capture).into_iter().map(Ok).collect(),
        Event::Failed(problem) => vec![Err(problem.into())],
    }
}

fn restore_event(event: Event<(u64, String)>) -> Result<proto::RestoreEvent, Problem> {
    match event {
        Event::Progress(progress) => Ok(wire::restore_progress(progress)),
        Event::Warning(warning) => Ok(wire::restore_warning(warning)),
        Event::Done((bytes, checked)) => Ok(wire::restored_to(bytes, checked)),
        Event::Failed(problem) => Err(problem),
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests;
