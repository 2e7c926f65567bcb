//! The commands: each makes one request of the agent (or works on the vault's configuration) and prints the answer.

use vaultferry_coordinator::vault::network;
use vaultferry_proto::control::v1::GetSummaryRequest;
use vaultferry_proto::status::chain;
use vaultferry_proto::{Problem, Reason};

use crate::args::{Args, Command, Global, Plugin, Summary};
use crate::client::Client;
use crate::config::{self, Endpoint, Purpose, Settings, Surroundings};
use crate::output::{Output, text};

mod agent;
mod backup;
mod confirm;
mod grants;
mod instance;
mod job;
mod list;
mod login;
mod maintenance;
mod network_check;
mod point;
mod policy;
mod restore;
mod source;
mod vault;

/// How a command ended, when there is nothing more to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// What was asked for is done.
    Done,
    /// Watching was ended by hand; how the job ends is not known.
    Detached,
    /// A job failed, whose problem was told. It says nothing of this process: faults of the configuration have an exit code of their own.
    Failed,
}

/// What every command works with.
pub struct Context {
    pub global: Global,
    pub surroundings: Surroundings,
    pub output: Output,
}

impl Context {
    /// The whole configuration.
    fn settings(&self, purpose: Purpose) -> Result<Settings, Problem> {
        let settings = config::load(self.global.config.as_deref(), &self.surroundings, purpose)?;
        if purpose == Purpose::Agent {
            // Before the first client of the vault or its key is made.
            network::install(&settings.network).map_err(|fault| wrong_network(&fault))?;
        }
        Ok(settings)
    }

    /// The agent at --endpoint, or at the configuration's first listener.
    async fn client(&self) -> Result<Client, Problem> {
        Client::connect(self.endpoint()?).await
    }

    fn endpoint(&self) -> Result<Endpoint, Problem> {
        if let Some(endpoint) = &self.global.endpoint {
            return Ok(endpoint.clone());
        }
        let settings = self.settings(Purpose::Client)?;
        let first = settings.listen.into_iter().next();
        first.ok_or_else(|| Problem::new(Reason::InvalidConfiguration, "the configuration names no listener"))
    }
}

/// Runs the command that the arguments name.
pub async fn run(args: Args, surroundings: Surroundings, output: Output) -> Result<Outcome, Problem> {
    if matches!(args.command, Command::Plugin(_)) {
        network::install_in_plugin().map_err(|fault| wrong_network(&fault))?;
    }
    let context = Context { global: args.global, surroundings, output };
    match args.command {
        Command::Agent(command) => agent::run(&context, command).await,
        Command::Vault(command) => vault::run(&context, command).await,
        Command::Policy(command) => policy::run(&context, command).await,
        Command::Discover(command) => source::discover(&context, command).await,
        Command::Instance(command) => instance::run(&context, command).await,
        Command::Server(command) => source::server(&context, command).await,
        Command::Backup(command) => backup::run(&context, command).await,
        Command::Point(command) => point::run(&context, command).await,
        Command::Restore(command) => restore::run(&context, command).await,
        Command::Job(command) => job::run(&context, command).await,
        Command::Summary(command) => summary(&context, command).await,
        Command::Plugin(Plugin::Postgres) => {
            let served = vaultferry_plugin_sdk::serve(vaultferry_plugin_postgres::Postgres).await;
            served.map_err(|error| Problem::new(Reason::Internal, chain(&error)))?;
            Ok(Outcome::Done)
        }
        Command::Plugin(Plugin::Vm) => {
            thaw_leftovers().await;
            let served = vaultferry_plugin_sdk::serve(vaultferry_plugin_vm::Vm).await;
            served.map_err(|error| Problem::new(Reason::Internal, chain(&error)))?;
            Ok(Outcome::Done)
        }
        Command::Plugin(Plugin::Maintenance) => {
            let served = vaultferry_plugin_maintenance::serve().await;
            served.map_err(|error| Problem::new(Reason::Internal, chain(&error)))?;
            Ok(Outcome::Done)
        }
    }
}

fn wrong_network(fault: &network::Invalid) -> Problem {
    Problem::new(Reason::InvalidConfiguration, fault.to_string())
}

/// Thaws what the processes of an earlier freeze left frozen that are no more. What cannot be looked after is told; the start goes on.
async fn thaw_leftovers() {
    #[cfg(target_os = "linux")]
    match tokio::task::spawn_blocking(vaultferry_plugin_vm::freeze::thaw_leftovers).await {
        Ok(Ok(thawed)) => {
            for mount in thawed {
                tracing::warn!(mount = %mount.display(), "thawed: it was frozen for a snapshot whose processes were all killed");
            }
        }
        Ok(Err(problem)) => tracing::error!(%problem, fix = problem.fix, "cannot look after what was frozen"),
        Err(error) => tracing::error!(%error, "cannot look after what was frozen"),
    }
}

async fn summary(context: &Context, command: Summary) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let request = GetSummaryRequest { instances: command.instances, ..GetSummaryRequest::default() };
    let answer = client.summaries().get_summary(request).await.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| text::summary(response, command.instances))?;
    if !answer.next_page_token.is_empty() {
        context.output.hint(&format!(
            "These are the {} that need a look most; the others have newer points, or are stopped.",
            answer.instances.len()
        ));
    }
    Ok(Outcome::Done)
}
