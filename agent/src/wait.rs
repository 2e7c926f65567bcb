//! Watches a job until it ends.
//!
//! Limits: a lost agent is looked for during [`RECONNECT_FOR`], so that a restart of the agent is lived through. Watching never touches the job.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;
use vaultferry_proto::control::v1::job::Status as State;
use vaultferry_proto::control::v1::{GetJobResponse, Job, WatchJobRequest};
use vaultferry_proto::{Problem, Reason};

use crate::client::{Client, RECONNECT_EVERY, RECONNECT_FOR, is_broken};
use crate::command::Outcome;
use crate::output::{Output, text};
use crate::progress::Progress;

/// The agent sends the job at least every 10 s; a stream that is silent three times as long is broken.
const LONGEST_SILENCE: Duration = Duration::from_secs(30);

/// Watches, prints the job as it ended, and turns its end into an outcome. Ctrl-C ends the watching only.
///
/// A job that failed or was cancelled is [`Outcome::Failed`], and its problem is told. Errors: [`Reason::AgentUnreachable`] when the agent
/// stays away (the job may run on).
pub async fn until_end(client: Client, job_id: &str, output: Output) -> Result<Outcome, Problem> {
    let Some(job) = watch(client, job_id, output).await? else { return Ok(Outcome::Detached) };
    let response = GetJobResponse { job: Some(job) };
    output.message(&response, |response| response.job.as_ref().map(ended_text).unwrap_or_default())?;
    match conclude(response.job.unwrap_or_default(), output) {
        Ok(()) => Ok(Outcome::Done),
        Err(problem) => {
            output.problem(&problem);
            Ok(Outcome::Failed)
        }
    }
}

/// A job that has ended, as text. Problem and warnings follow on standard error; a terminal shows both streams.
pub fn ended_text(job: &Job) -> String {
    text::job(Some(&Job { problem: None, warnings: Vec::new(), ..job.clone() }))
}

/// Watches until the job has ended; prints progress only. `None`: Ctrl-C ended the watching.
pub async fn watch(client: Client, job_id: &str, output: Output) -> Result<Option<Job>, Problem> {
    let mut progress = Progress::new();
    let watched = tokio::select! {
        ended = follow(client, job_id, &mut progress) => ended.map(Some),
        signal = tokio::signal::ctrl_c() => signal.map(|()| None).map_err(|error| Problem::new(Reason::Internal, format!("cannot wait for Ctrl-C: {error}"))),
    };
    progress.finish();
    let watched = watched?;
    if watched.is_none() {
        output.hint(&format!(
            "The job goes on. Watch it again: vaultferry job watch {job_id}\nCancel it: vaultferry job cancel {job_id}"
        ));
    }
    Ok(watched)
}

/// Tells a job's warnings. Errors: its own problem, when it failed or was cancelled.
pub fn conclude(job: Job, output: Output) -> Result<(), Problem> {
    for warning in &job.warnings {
        output.warning(warning);
    }
    let (otherwise, message) = match job.status() {
        State::Completed | State::CompletedWithWarnings => return Ok(()),
        State::Cancelled => (Reason::Cancelled, format!("the job {} was cancelled", job.id)),
        State::Failed | State::Unspecified | State::InProgress | State::Cancelling => {
            (Reason::Internal, format!("the job {} failed without a reason", job.id))
        }
    };
    Err(match job.problem {
        None => Problem::new(otherwise, message),
        Some(told) => match told.reason.parse::<Reason>() {
            Ok(reason) if told.fix.is_empty() => Problem::new(reason, told.message),
            Ok(reason) => Problem::new(reason, told.message).with_fix(told.fix),
            // A newer agent knows reasons that we do not.
            Err(()) => Problem::new(otherwise, format!("{}: {}", told.reason, told.message)).with_fix(told.fix),
        },
    })
}

fn has_ended(job: &Job) -> bool {
    match job.status() {
        State::Completed | State::CompletedWithWarnings | State::Failed | State::Cancelled => true,
        State::Unspecified | State::InProgress | State::Cancelling => false,
    }
}

/// The job at its end, over as many connections as it takes.
async fn follow(mut client: Client, job_id: &str, progress: &mut Progress) -> Result<Job, Problem> {
    // When the connection broke, until the job is heard of again.
    let mut lost_since = None;
    loop {
        let broken = match watch_once(&client, job_id, progress, &mut lost_since).await {
            Ok(job) => return Ok(job),
            Err(status) if is_broken(&status) => status,
            Err(status) => return Err(client.problem(&status)),
        };
        if lost_since.get_or_insert_with(Instant::now).elapsed() >= RECONNECT_FOR {
            let problem = client.problem(&broken);
            let message = format!("{}; the job {job_id} may still run", problem.message);
            let fix = format!("Start the agent, then: vaultferry job watch {job_id}");
            return Err(Problem::new(Reason::AgentUnreachable, message).with_fix(fix));
        }
        progress.lost();
        tokio::time::sleep(RECONNECT_EVERY).await;
        if let Ok(again) = Client::connect(client.endpoint().clone()).await {
            client = again;
        }
    }
}

/// One stream, until the job or the stream ends.
async fn watch_once(
    client: &Client,
    job_id: &str,
    progress: &mut Progress,
    lost_since: &mut Option<Instant>,
) -> Result<Job, Status> {
    let silence = |_| Status::unavailable("it was silent for 30 s");
    let request = WatchJobRequest { job: job_id.to_owned() };
    let opened = tokio::time::timeout(LONGEST_SILENCE, async { client.jobs().watch_job(request).await }).await;
    let mut stream = opened.map_err(silence)??.into_inner();
    loop {
        let message = tokio::time::timeout(LONGEST_SILENCE, stream.message()).await.map_err(silence)??;
        // The stream ends before the job does when the agent shuts down.
        let Some(job) = message.and_then(|response| response.job) else {
            return Err(Status::unavailable("it closed the connection"));
        };
        *lost_since = None;
        progress.update(&job);
        if has_ended(&job) {
            return Ok(job);
        }
    }
}
