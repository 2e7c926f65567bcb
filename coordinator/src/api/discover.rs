//! What servers have (V4-V7, P35), and how plugins are asked without a job.
//!
//! Invariants:
//! - Nothing is changed, at the server or here.
//! - A server that cannot be asked is told with its reason; the others are asked all the same. One that Azure tells of and that is not
//!   for this vault, or does not run, is told with that, and is not asked.
//! - A plugin that is asked ends with its answer, with [`ANSWER_TIMEOUT`], or with its caller.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use tonic::transport::Channel;
use tonic::{Response, Status};
use vaultferry_proto::control::v1 as wire;
use vaultferry_proto::control::v1::discovered_source::State;
use vaultferry_proto::plugin::v1 as plugin_wire;
use vaultferry_proto::plugin::v1::workload_plugin_client::WorkloadPluginClient;
use vaultferry_proto::{Problem, Reason};

use super::Api;
use super::instance::{check_uri, credential, source_type};
use crate::catalog::Credential;
use crate::job::{self, env_of, source};
use crate::plugin::{Plugin, Start};

mod azure;

use azure::Candidate;

/// Sources or servers that are asked at once: each is a process of some MB, and a login.
pub(super) const AT_ONCE: usize = 4;
/// A catalog of a hundred thousand tables is read in seconds; what takes longer than this hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Servers in one request.
const MAX_SERVERS: usize = 100;

/// A workload plugin's interface.
pub(super) type PluginClient = WorkloadPluginClient<Channel>;

impl Api {
    /// Waits for a plugin's answer, but not for ever, and no longer than the agent runs. What is not waited for is dropped, which ends
    /// its plugin.
    async fn in_time<T>(&self, answer: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => {
                Err(Problem::new(Reason::Interrupted, "the agent stops").with_fix("Try again when it runs."))
            }
            answer = tokio::time::timeout(ANSWER_TIMEOUT, answer) => answer.unwrap_or_else(|_| {
                let message = format!("there was no answer in {} s", ANSWER_TIMEOUT.as_secs());
                let fix = "Look at the server: what keeps it from answering a login or a query of its catalog? Then try again.";
                Err(Problem::new(Reason::PluginTimeout, message).with_fix(fix))
            }),
        }
    }

    /// Starts the plugin for a type of source, makes one call (with the section of the configuration that is its own), and ends it; in time
    /// ([`Api::in_time`]), or with its caller.
    pub(super) async fn ask_plugin<T, F, Answer>(
        &self,
        source_type: &str,
        credential: &Credential,
        purpose: &str,
        call: F,
    ) -> Result<T, Problem>
    where
        F: FnOnce(PluginClient, String) -> Answer,
        Answer: Future<Output = Result<Response<T>, Status>>,
    {
        self.ask_plugin_with(source_type, env_of(credential), purpose, call).await
    }

    /// The same for a plugin that sees these variables of the agent's environment.
    async fn ask_plugin_with<T, F, Answer>(
        &self,
        source_type: &str,
        pass_env: Vec<String>,
        purpose: &str,
        call: F,
    ) -> Result<T, Problem>
    where
        F: FnOnce(PluginClient, String) -> Answer,
        Answer: Future<Output = Result<Response<T>, Status>>,
    {
        self.in_time(self.ask_patiently(source_type, pass_env, purpose, call)).await
    }

    async fn ask_patiently<T, F, Answer>(
        &self,
        source_type: &str,
        pass_env: Vec<String>,
        purpose: &str,
        call: F,
    ) -> Result<T, Problem>
    where
        F: FnOnce(PluginClient, String) -> Answer,
        Answer: Future<Output = Result<Response<T>, Status>>,
    {
        let command = job::command(&self.shared, source_type)?;
        let start = Start { command, source_type, purpose, runtime_dir: &self.shared.runtime_dir, pass_env };
        let mut plugin = Plugin::start(start).await?;
        let answer = match call(plugin.client(), command.settings_json.clone()).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(plugin.problem(&status).await),
        };
        plugin.stop().await;
        answer
    }

    /// What a server has, in its plugin's words. The URI's type is told beside it.
    pub(super) async fn ask_server(
        &self,
        uri: &str,
        credential: &Credential,
    ) -> Result<(&'static str, plugin_wire::DiscoverResponse), Problem> {
        self.ask_server_for(uri, credential, false).await
    }

    /// The same, also for each source's extensions if they are wanted.
    async fn ask_server_for(
        &self,
        uri: &str,
        credential: &Credential,
        extensions: bool,
    ) -> Result<(&'static str, plugin_wire::DiscoverResponse), Problem> {
        check_uri(uri)?;
        let source_type = source_type(uri)?;
        let server = source(uri, credential);
        let call = |mut plugin: PluginClient, settings_json| async move {
            plugin.discover(plugin_wire::DiscoverRequest { server: Some(server), settings_json, extensions }).await
        };
        let answer = self.ask_plugin(source_type, credential, "discover", call).await?;
        Ok((source_type, answer))
    }

    /// See `DiscoverSources` in source.proto.
    pub(super) async fn discover(
        &self,
        request: wire::DiscoverSourcesRequest,
    ) -> Result<Vec<wire::DiscoveredServer>, Problem> {
        let credential = credential(request.credential.clone())?;
        let candidates = match &request.azure {
            Some(_) if !request.server_uris.is_empty() => {
                return Err(Problem::new(Reason::InvalidRequest, "name servers or a subscription, not both"));
            }
            Some(scope) => self.servers_in_azure(scope, &request, &credential).await?,
            None if request.server_uris.is_empty() || request.server_uris.len() > MAX_SERVERS => {
                let message = format!("name 1 to {MAX_SERVERS} servers, not {}", request.server_uris.len());
                return Err(Problem::new(Reason::InvalidRequest, message));
            }
            None => request.server_uris.into_iter().map(Candidate::named).collect(),
        };
        let (api, extensions) = (self.clone(), request.extensions);
        let asked = stream::iter(candidates).map(move |candidate| {
            let (api, credential) = (api.clone(), credential.clone());
            async move { api.discover_one(candidate, &credential, extensions).await }
        });
        let servers: Vec<Result<_, Problem>> = asked.buffered(AT_ONCE).collect().await;
        servers.into_iter().collect()
    }

    async fn discover_one(
        &self,
        candidate: Candidate,
        credential: &Credential,
        extensions: bool,
    ) -> Result<wire::DiscoveredServer, Problem> {
        if !candidate.known.left_out.is_empty() {
            return Ok(candidate.known);
        }
        match self.ask_server_for(&candidate.known.uri, credential, extensions).await {
            Err(problem) => {
                let problem = Some(candidate.explain(problem).into());
                let known = candidate.known;
                let uri = if check_uri(&known.uri).is_ok() { known.uri } else { String::new() };
                Ok(wire::DiscoveredServer { uri, problem, ..known })
            }
            Ok((_, answer)) => {
                let mut sources = Vec::with_capacity(answer.sources.len());
                for source in answer.sources {
                    sources.push(self.discovered(source).await?);
                }
                Ok(wire::DiscoveredServer {
                    name: answer.server_name,
                    version: answer.server_version,
                    replica: answer.replica,
                    sources,
                    ..candidate.known
                })
            }
        }
    }

    /// With what the vault knows of it.
    async fn discovered(&self, source: plugin_wire::DiscoveredSource) -> Result<wire::DiscoveredSource, Problem> {
        let instance = self.catalog.instance_of_source(&source.source_identity).await?;
        let (state, problem) = match (&instance, source.obstacle) {
            (Some(_), _) => (State::Protected, None),
            (None, Some(obstacle)) => (State::CannotBeProtected, Some(problem(obstacle))),
            (None, None) => (State::NotProtected, None),
        };
        let protection_state_text = match &instance {
            Some(instance) => self.protection_text(instance).await?.to_owned(),
            None => String::new(),
        };
        Ok(wire::DiscoveredSource {
            uri: source.uri,
            name: source.name,
            size_bytes: source.size_bytes,
            version: source.server_version,
            encoding: source.encoding,
            replica: source.replica,
            allows_connections: source.allows_connections,
            state: state.into(),
            problem,
            instance: instance.map(|instance| instance.name).unwrap_or_default(),
            protection_state_text,
            extensions: source.extensions,
            extensions_problem: source.extensions_problem.map(self::problem),
        })
    }
}

/// A plugin's warning as a problem of the contract.
pub(super) fn problem(warning: plugin_wire::PluginWarning) -> wire::Problem {
    wire::Problem { reason: warning.reason, message: warning.message, fix: warning.fix }
}
