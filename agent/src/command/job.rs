//! `vaultferry job`, and what every command that starts a job does with it.

use prost::{Message, Name};
use vaultferry_proto::control::v1::{self, CancelJobRequest, GetJobRequest, ListJobsRequest};
use vaultferry_proto::{Problem, Reason};

use super::{Context, Outcome};
use crate::args::{Job, JobList, Wait};
use crate::client::Client;
use crate::output::text;
use crate::output::units::to_wire;
use crate::wait;

pub(super) async fn run(context: &Context, command: Job) -> Result<Outcome, Problem> {
    match command {
        Job::List(filter) => list(context, filter).await,
        Job::Show { job } => show(context, job).await,
        Job::Watch { job } => watch(context, job).await,
        Job::Cancel { job } => cancel(context, job).await,
    }
}

async fn list(context: &Context, filter: JobList) -> Result<Outcome, Problem> {
    let request = ListJobsRequest {
        status: filter.status.unwrap_or_default(),
        operation: filter.operation.unwrap_or_default(),
        from: filter.from.map(to_wire),
        to: filter.to.map(to_wire),
    };
    let client = context.client().await?;
    let answer = client.jobs().list_jobs(request).await.map_err(|status| client.problem(&status))?;
    context.output.message(&answer.into_inner(), |response| text::jobs(&response.jobs))?;
    Ok(Outcome::Done)
}

async fn show(context: &Context, job: String) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let answer = client.jobs().get_job(GetJobRequest { job }).await.map_err(|status| client.problem(&status))?;
    context.output.message(&answer.into_inner(), |response| text::job(response.job.as_ref()))?;
    Ok(Outcome::Done)
}

/// Asks for the job first, so that the whole id is watched even if another job with the same beginning starts meanwhile.
async fn watch(context: &Context, job: String) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let answer = client.jobs().get_job(GetJobRequest { job }).await.map_err(|status| client.problem(&status))?;
    wait(context, client, answer.into_inner().job.as_ref()).await
}

async fn cancel(context: &Context, job: String) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let answer = client.jobs().cancel_job(CancelJobRequest { job }).await.map_err(|status| client.problem(&status))?;
    context.output.message(&answer.into_inner(), |response| text::job(response.job.as_ref()))?;
    Ok(Outcome::Done)
}

/// The rest of a command that has just started a job: watches it, or prints the answer.
pub(super) async fn started<M: Message + Name>(
    context: &Context,
    client: Client,
    wait: &Wait,
    answer: M,
    job: fn(&M) -> Option<&v1::Job>,
) -> Result<Outcome, Problem> {
    if wait.wait {
        return self::wait(context, client, job(&answer)).await;
    }
    context.output.message(&answer, |answer| text::job(job(answer)))?;
    if let Some(job) = job(&answer) {
        context.output.hint(&format!("Watch it: vaultferry job watch {}", job.id));
    }
    Ok(Outcome::Done)
}

/// See [`wait::until_end`].
async fn wait(context: &Context, client: Client, job: Option<&v1::Job>) -> Result<Outcome, Problem> {
    let Some(job) = job.filter(|job| !job.id.is_empty()) else {
        return Err(Problem::new(Reason::Internal, "the agent's answer has no job"));
    };
    wait::until_end(client, &job.id, context.output).await
}

/// Makes a repeated start the same job.
pub(super) fn new_request_id() -> String {
    uuid::Uuid::now_v7().to_string()
}
