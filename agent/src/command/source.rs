//! `vaultferry discover` and `vaultferry server`

use std::path::PathBuf;

use vaultferry_proto::control::v1::{
    self as wire, AddServerRequest, AzureScope, DiscoverContainersRequest, DiscoverSourcesRequest, ListServersRequest,
    RemoveServerRequest, ScanServersRequest,
};
use vaultferry_proto::{Problem, Reason};

use super::{Context, Outcome, grants, list, login};
use crate::args::{Azure, Discover, DiscoverContainers, DiscoverPostgres, DiscoverVm, Server, ServerAdd};
use crate::client::Client;
use crate::output::source as text;

pub(super) async fn discover(context: &Context, command: Discover) -> Result<Outcome, Problem> {
    match command {
        Discover::Postgres(command) => discover_postgres(context, *command).await,
        Discover::Vm(command) => discover_vm(context, command).await,
        Discover::Containers(command) => discover_containers(context, command).await,
    }
}

/// The part of Azure that is named; `None`: no subscription is.
fn scope(azure: Azure) -> Option<AzureScope> {
    let Azure { subscription, resource_group, azure_identity } = azure;
    subscription.map(|subscription_id| AzureScope {
        subscription_id,
        resource_group: resource_group.unwrap_or_default(),
        identity: azure_identity.unwrap_or_default(),
    })
}

async fn discover_containers(context: &Context, command: DiscoverContainers) -> Result<Outcome, Problem> {
    let credential_env = command.credential_env.map(|name| login::variable("--credential-env", &name)).transpose()?;
    let request = DiscoverContainersRequest {
        account: command.account.unwrap_or_default(),
        credential_env: credential_env.unwrap_or_default(),
        azure: scope(command.azure),
        prefix: command.prefix.unwrap_or_default(),
    };
    let client = context.client().await?;
    let answer = client.sources().discover_containers(request).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| text::containers(&response.containers))?;
    Ok(Outcome::Done)
}

async fn discover_postgres(context: &Context, command: DiscoverPostgres) -> Result<Outcome, Problem> {
    if command.grants.print_grants {
        return grants::print(context, &command.grants);
    }
    if command.azure.subscription.is_some() && command.login.client_cert.is_some() {
        let message = "a client certificate goes with servers that are named, not with --subscription";
        return Err(Problem::new(Reason::InvalidRequest, message).with_fix("Name the servers, or log in another way."));
    }
    let request = DiscoverSourcesRequest {
        server_uris: login::with_certificates(
            &command.login,
            list::with_file(command.servers, command.file.as_deref())?,
        )?,
        credential: login::reference(&command.login)?,
        azure: scope(command.azure),
        user: command.user.unwrap_or_default(),
        port: command.port.map(u32::from).unwrap_or_default(),
        ssl_mode: command.sslmode.unwrap_or_default(),
        extensions: command.extensions,
    };
    discover_sources(context, request).await
}

/// Folders of the agent's machine, as the servers that they are here.
async fn discover_vm(context: &Context, command: DiscoverVm) -> Result<Outcome, Problem> {
    let uri = |folder: &PathBuf| -> Result<String, Problem> {
        Ok(vaultferry_plugin_vm::uri::of_path(&login::absolute(folder)?))
    };
    let server_uris = command.folders.iter().map(uri).collect::<Result<Vec<String>, Problem>>()?;
    discover_sources(context, DiscoverSourcesRequest { server_uris, ..Default::default() }).await
}

async fn discover_sources(context: &Context, request: DiscoverSourcesRequest) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let answer = client.sources().discover_sources(request).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| text::discovered(&response.servers))?;
    let told = answer.servers.iter().filter_map(|server| text::untold(server).map(|problem| (server, problem)));
    let mut problems: Vec<(&wire::DiscoveredServer, Problem)> = told.collect();
    if problems.len() <= 1 {
        return problems.pop().map_or(Ok(Outcome::Done), |(_, problem)| Err(problem));
    }
    let each: Vec<String> =
        problems.iter().map(|(server, problem)| format!("{}: {}", text::named(&server.uri), problem.message)).collect();
    let what = match problems.iter().all(|(server, _)| server.problem.is_some()) {
        true => "could not be asked",
        false => "did not tell what they were asked for",
    };
    let message = format!("{} of {} servers {what}: {}", each.len(), answer.servers.len(), each.join("; "));
    let (_, first) = problems.swap_remove(0);
    Err(Problem { message, ..first })
}

pub(super) async fn server(context: &Context, command: Server) -> Result<Outcome, Problem> {
    match command {
        Server::Add(command) => add(context, *command).await,
        Server::List => {
            let client = context.client().await?;
            let answer = client.sources().list_servers(ListServersRequest {}).await;
            let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
            context.output.message(&answer, |response| text::servers(&response.servers))?;
            Ok(Outcome::Done)
        }
        Server::Scan { server } => scan(context, server.unwrap_or_default()).await,
        Server::Remove { server } => remove(context, server).await,
    }
}

/// The same again is no error, so a broken connection is no reason to doubt.
async fn add(context: &Context, command: ServerAdd) -> Result<Outcome, Problem> {
    let request = AddServerRequest {
        server_uri: login::with_certificate(&command.login, command.server)?,
        policy: command.policy.unwrap_or_default(),
        include: command.include,
        exclude: command.exclude,
        credential: login::reference(&command.login)?,
        region: command.region.unwrap_or_default(),
    };
    let call = |client: Client| {
        let request = request.clone();
        async move { client.sources().add_server(request).await }
    };
    let answer = context.client().await?.idempotent(call).await?;
    context.output.message(&answer, |response| text::servers(response.server.as_slice()))?;
    if answer.policy_created {
        let policy = answer.server.as_ref().map(|server| server.policy.as_str()).unwrap_or_default();
        context.output.hint(&text::policy_created(policy));
    }
    Ok(Outcome::Done)
}

async fn scan(context: &Context, server: String) -> Result<Outcome, Problem> {
    let request = ScanServersRequest { server };
    let call = |client: Client| {
        let request = request.clone();
        async move { client.sources().scan_servers(request).await }
    };
    let answer = context.client().await?.idempotent(call).await?;
    context.output.message(&answer, |response| text::servers(&response.servers))?;
    match answer.servers.iter().find_map(|server: &wire::Server| server.problem.as_ref()) {
        Some(problem) => Err(text::problem(problem)),
        None => Ok(Outcome::Done),
    }
}

/// Asked once: after an answer that was lost, there is no such server any more.
async fn remove(context: &Context, server: String) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let answer = client.sources().remove_server(RemoveServerRequest { server }).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| {
        let name = response.server.as_ref().map(|server| server.name.as_str()).unwrap_or_default();
        format!("The server {name} is no source any more. Its databases stay protected as they are.")
    })?;
    Ok(Outcome::Done)
}

/// What stands for all sources that are not protected and were to be; `None` when there is none. The answer itself tells each.
/// `all_or_none`: one that is protected already is in the way, too.
pub(super) fn unready(response: &wire::CreateBackupInstancesResponse, all_or_none: bool) -> Option<Problem> {
    let results = &response.results;
    let unready: Vec<_> = results.iter().filter_map(|result| text::lacking(result, all_or_none)).collect();
    let first = text::problem_of(unready.first()?);
    let message = match (unready.len(), response.instances.len()) {
        (count, 0) => format!("{count} of {} sources are not ready; nothing was protected", results.len()),
        (count, made) => {
            format!("{count} of {} sources are not ready and were left out; {made} were protected", results.len())
        }
    };
    let fix = "Mend what each of them lacks, then run the command again; or leave them out with --only-ready.";
    Some(Problem { reason: first.reason, message, fix: fix.to_owned() })
}
