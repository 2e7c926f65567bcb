//! `vaultferry vault check` and `vaultferry vault prune`: jobs of many instances at once.

use prost::{Message, Name};
use tokio_util::sync::CancellationToken;
use vaultferry_coordinator::vault::{Access, Location};
use vaultferry_plugin_maintenance::{Checked, check_offline};
use vaultferry_proto::control::v1::{
    Job, Problem as Told, StartCheckRequest, StartCheckResponse, StartPruneRequest, StartPruneResponse,
};
use vaultferry_proto::{Problem, Reason};

use super::{Context, Outcome, job};
use crate::args::{VaultCheck, VaultPrune, Wait};
use crate::client::Client;
use crate::config::Purpose;
use crate::output::{findings, text};
use crate::wait;

/// A response with the jobs that were started.
trait Started: Message + Name + Clone {
    fn jobs(&mut self) -> &mut Vec<Job>;
    fn not_started(&self) -> &[Told];
}

impl Started for StartCheckResponse {
    fn jobs(&mut self) -> &mut Vec<Job> {
        &mut self.jobs
    }

    fn not_started(&self) -> &[Told] {
        &self.not_started
    }
}

impl Started for StartPruneResponse {
    fn jobs(&mut self) -> &mut Vec<Job> {
        &mut self.jobs
    }

    fn not_started(&self) -> &[Told] {
        &self.not_started
    }
}

pub(super) async fn check(context: &Context, command: VaultCheck) -> Result<Outcome, Problem> {
    if command.offline {
        return offline(context, command).await;
    }
    let request = StartCheckRequest {
        read_data_percent: command.read_data_percent(),
        instances: command.instances,
        keyless: command.keyless,
        request_id: job::new_request_id(),
    };
    let mut client = context.client().await?;
    let call = |client: Client| {
        let request = request.clone();
        async move { client.maintenance().start_check(request).await }
    };
    let answer = client.idempotent(call).await?;
    started(context, client, &command.wait, answer).await
}

pub(super) async fn prune(context: &Context, command: VaultPrune) -> Result<Outcome, Problem> {
    let request =
        StartPruneRequest { instances: command.instances, dry_run: command.dry_run, request_id: job::new_request_id() };
    let mut client = context.client().await?;
    let call = |client: Client| {
        let request = request.clone();
        async move { client.maintenance().start_prune(request).await }
    };
    let answer = client.idempotent(call).await?;
    started(context, client, &command.wait, answer).await
}

/// Prints the jobs, or watches one after the other and prints them as they ended. The first failure is the command's.
async fn started<M: Started>(
    context: &Context,
    client: Client,
    wait: &Wait,
    mut answer: M,
) -> Result<Outcome, Problem> {
    for told in answer.not_started() {
        context.output.warning(told);
    }
    if !wait.wait {
        let jobs = answer.jobs().clone();
        context.output.message(&answer, |_| text::jobs(&jobs))?;
        context.output.hint("Watch one: vaultferry job watch ID");
        return Ok(Outcome::Done);
    }
    let mut failed = None;
    for job in answer.jobs().iter_mut() {
        let Some(ended) = wait::watch(client.clone(), &job.id, context.output).await? else {
            return Ok(Outcome::Detached);
        };
        *job = ended;
    }
    let jobs = answer.jobs().clone();
    context.output.message(&answer, |_| {
        let texts: Vec<String> = jobs.iter().map(wait::ended_text).collect();
        if texts.is_empty() { "Nothing is protected yet.".to_owned() } else { texts.join("\n\n") }
    })?;
    for job in jobs {
        match wait::conclude(job, context.output) {
            Err(problem) if failed.is_none() => failed = Some(problem),
            // The first one is the command's error; the others are told beside it.
            Err(problem) => context.output.problem(&problem),
            Ok(()) => {}
        }
    }
    match (failed, answer.not_started().first()) {
        (Some(problem), _) => {
            context.output.problem(&problem);
            Ok(Outcome::Failed)
        }
        (None, Some(told)) => {
            let reason = told.reason.parse().unwrap_or(Reason::MaintenanceBusy);
            Err(Problem::new(reason, told.message.clone()).with_fix(told.fix.clone()))
        }
        (None, None) => Ok(Outcome::Done),
    }
}

/// The keyless check in this process.
async fn offline(context: &Context, command: VaultCheck) -> Result<Outcome, Problem> {
    let access = match &command.location {
        Some(folder) => {
            let folder = std::path::absolute(folder)
                .map_err(|error| Problem::new(Reason::InvalidRequest, format!("{}: {error}", folder.display())))?;
            let store_deadline = crate::config::DEFAULT_STORE_DEADLINE;
            Access { location: Location::Folder(folder), endpoint: None, credential: None, store_deadline }
        }
        None => context.settings(Purpose::Agent)?.access(),
    };
    let cancel = CancellationToken::new();
    let percent = command.read_data_percent();
    let check = check_offline(&access, &command.instances, percent, &cancel);
    let checked = tokio::select! {
        checked = check => checked?,
        signal = tokio::signal::ctrl_c() => {
            signal.map_err(|error| Problem::new(Reason::Internal, format!("cannot wait for Ctrl-C: {error}")))?;
            return Err(Problem::new(Reason::Cancelled, "the check was stopped"));
        }
    };
    context.output.value(&findings::to_json(&checked), || findings::to_text(&checked, percent))?;
    let damage: u64 = checked.iter().map(Checked::damage_count).sum();
    if damage == 0 {
        return Ok(Outcome::Done);
    }
    let message = format!("{damage} findings are damage");
    Err(Problem::new(Reason::RepositoryDamaged, message))
}
