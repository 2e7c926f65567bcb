//! The gRPC face of a [`Workload`]: one call is one job.
//!
//! | who ends | what happens to the other |
//! |---|---|
//! | the coordinator drops the call | the stream is dropped, its guard cancels the job's token; the job cleans up and ends |
//! | the job ends | its outcome is the stream's last item |
//! | the job panics | the stream ends with the reason Internal, never without a last item |
//!
//! Progress is made by the stream itself, from a timer, so that it comes also while the job waits for a lock somewhere, and never
//! queues up when the coordinator reads slowly.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};
use vaultferry_proto::plugin::v1 as proto;
use vaultferry_proto::plugin::v1::workload_plugin_server::WorkloadPlugin;
use vaultferry_proto::{Problem, Reason};

use crate::report::{Progress, Reporter, Warning};
use crate::wire;
use crate::workload::Workload;

/// The protocol asks for one event in 5 s at least; people want to see more.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Serves one workload. Jobs run in `tasks`, under children of `shutdown`.
pub(crate) struct Service<W> {
    pub(crate) workload: Arc<W>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) tasks: TaskTracker,
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
        let (source, settings_json) = wire::validate_from(request.into_inner())?;
        let cancel = self.shutdown.child_token();
        let validated = self.workload.validate(source, &settings_json, &cancel).await?;
        Ok(Response::new(wire::validated_to(validated)))
    }

    type BackupStream = Events<proto::BackupEvent>;

    async fn backup(&self, request: Request<proto::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let job = wire::backup_from(request.into_inner())?;
        tracing::info!(job = job.job_id, instance = job.instance_name, "backup begins");
        let workload = Arc::clone(&self.workload);
        let events = self.run(move |reporter, cancel| async move { workload.backup(job, &reporter, &cancel).await });
        Ok(Response::new(events.flat_map(|event| stream::iter(backup_events(event))).boxed()))
    }

    type RestoreStream = Events<proto::RestoreEvent>;

    async fn restore(&self, request: Request<proto::RestoreRequest>) -> Result<Response<Self::RestoreStream>, Status> {
        let job = wire::restore_from(request.into_inner())?;
        tracing::info!(job = job.job_id, "restore begins");
        let workload = Arc::clone(&self.workload);
        let events = self.run(move |reporter, cancel| async move { workload.restore(job, &reporter, &cancel).await });
        Ok(Response::new(events.map(|event| restore_event(event).map_err(Status::from)).boxed()))
    }

    async fn clean_up(
        &self,
        request: Request<proto::CleanUpRequest>,
    ) -> Result<Response<proto::CleanUpResponse>, Status> {
        let job = wire::clean_up_from(request.into_inner())?;
        tracing::info!(job = job.job_id, "clean-up begins");
        let cancel = self.shutdown.child_token();
        self.workload.clean_up(job, &cancel).await?;
        Ok(Response::new(proto::CleanUpResponse {}))
    }
}

/// What a running job's stream yields; `Done` and `Failed` are last.
enum Event<T> {
    Progress(Progress),
    Warning(Warning),
    Done(T),
    Failed(Problem),
}

impl<W: Workload> Service<W> {
    /// Starts a job in a task of its own; dropping the stream cancels it.
    fn run<T, F>(&self, work: impl FnOnce(Reporter, CancellationToken) -> F) -> BoxStream<'static, Event<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Problem>> + Send + 'static,
    {
        let (reporter, warnings) = Reporter::new();
        let cancel = self.shutdown.child_token();
        let (outcome_sender, outcome) = oneshot::channel();
        let work = work(reporter.clone(), cancel.clone());
        self.tasks.spawn(async move {
            let result = work.await;
            match &result {
                Ok(_) => tracing::info!("job ends"),
                Err(problem) => tracing::info!(reason = %problem.reason, "job fails: {}", problem.message),
            }
            // An error means that the caller has dropped the call and wants no answer.
            let _ = outcome_sender.send(result);
        });
        let mut ticker = tokio::time::interval(PROGRESS_INTERVAL);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let running = Running { reporter, warnings, outcome, ticker, _guard: cancel.drop_guard() };
        stream::unfold(Some(running), |running| async {
            let mut running = running?;
            let event = running.next().await;
            let ended = matches!(event, Event::Done(_) | Event::Failed(_));
            Some((event, (!ended).then_some(running)))
        })
        .boxed()
    }
}

struct Running<T> {
    reporter: Reporter,
    warnings: mpsc::Receiver<Warning>,
    outcome: oneshot::Receiver<Result<T, Problem>>,
    ticker: Interval,
    _guard: DropGuard,
}

impl<T> Running<T> {
    /// The next event. Warnings come before the outcome.
    async fn next(&mut self) -> Event<T> {
        tokio::select! {
            biased;
            Some(warning) = self.warnings.recv() => Event::Warning(warning),
            outcome = &mut self.outcome => match outcome {
                Ok(Ok(done)) => Event::Done(done),
                Ok(Err(problem)) => Event::Failed(problem),
                Err(_) => Event::Failed(Problem::new(Reason::Internal, "the plugin's task ended without a result")),
            },
            _ = self.ticker.tick() => Event::Progress(self.reporter.progress()),
        }
    }
}

fn backup_events(event: Event<vaultferry_vault::writer::Staged>) -> Vec<Result<proto::BackupEvent, Status>> {
    match event {
        Event::Progress(progress) => vec![Ok(wire::backup_progress(progress))],
        Event::Warning(warning) => vec![Ok(wire::backup_warning(warning))],
        Event::Done(staged) => wire::staged_to(staged).into_iter().map(Ok).collect(),
        Event::Failed(problem) => vec![Err(problem.into())],
    }
}

fn restore_event(event: Event<u64>) -> Result<proto::RestoreEvent, Problem> {
    match event {
        Event::Progress(progress) => Ok(wire::restore_progress(progress)),
        Event::Warning(warning) => Ok(wire::restore_warning(warning)),
        Event::Done(bytes) => Ok(wire::restored_to(bytes)),
        Event::Failed(problem) => Err(problem),
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests;
