//! `SourceService`: what servers have, and servers that are sources themselves (`scan.rs` protects what is new there).
//!
//! ```text
//! add:    the server is asked ─ servers/<id>/<n+1>.json ─ catalog ─ first scan
//! killed: └─ nothing happened ─┘└─ of a server that is known, the next start takes it over; a new one has to be added again ─┘
//! remove: servers/<id>/<n+1>.json says so ─ catalog                  killed between them: the next start completes it
//! ```
//! Invariants:
//! - A server's id is made of its identity: adding it again writes on where it was, whatever was lost between.
//! - A record that is being written comes to its end although its caller goes away.

use tonic::{Request, Response, Status};
use vaultferry_proto::control::v1 as wire;
use vaultferry_proto::control::v1::source_service_server::SourceService;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::{admin, records};

use super::Api;
use super::instance::{check_type, check_uri, credential, source_type};
use crate::catalog::Server;
use crate::job::pause_at;
use crate::recorded;

mod pattern;
mod scan;

pub(super) use scan::Scans;

/// Patterns of each kind.
const MAX_PATTERNS: usize = 100;
/// Longest pattern in bytes: names of databases have 63.
const MAX_PATTERN: usize = 256;

impl Api {
    /// The server, and whether the default policy was made for it.
    async fn add_server(&self, request: wire::AddServerRequest) -> Result<(Server, bool), Problem> {
        let uri = request.server_uri;
        check_uri(&uri)?;
        self.check_region(&request.region, "server")?;
        check_patterns("include", &request.include)?;
        check_patterns("exclude", &request.exclude)?;
        let credential = credential(request.credential)?;
        let followed = self.policy_for(&request.policy, std::slice::from_ref(&uri)).await?;
        check_type(&followed.document, source_type(&uri)?)?;
        self.check_owner().await?;
        let (source_type, answer) = self.ask_server(&uri, &credential).await?;
        let server = Server {
            id: records::server_id(&answer.server_identity),
            name: answer.server_name,
            create_time: vaultferry_vault::clock::now(),
            source_type: source_type.to_owned(),
            server_uri: uri,
            server_identity: answer.server_identity,
            region: request.region,
            policy: followed.name.clone(),
            credential,
            include: request.include,
            exclude: request.exclude,
        };
        let api = self.clone();
        let keep = async move {
            let policy_created = api.make_missing(&followed).await?;
            Ok::<_, Problem>((api.keep_server(server).await?, policy_created))
        };
        self.jobs.detached(keep).await
    }

    async fn keep_server(&self, server: Server) -> Result<Server, Problem> {
        // Its policy is not deleted meanwhile.
        let _one_at_a_time = self.policies.lock().await;
        self.find_policy(&server.policy).await?;
        let before = self.catalog.servers().await?.into_iter().find(|other| other.id == server.id);
        let create_time = before.as_ref().map_or(server.create_time, |before| before.create_time);
        let server = Server { create_time, ..server };
        let root = self.shared.vault.open_root()?;
        admin::put_server(&root, &recorded::server_record(&server, false), &self.stopping).await?;
        pause_at(&self.shared.state_dir, "server-recorded").await;
        if before.as_ref() != Some(&server) {
            self.catalog.save_server(server.clone()).await?;
            tracing::info!(server = server.name, policy = server.policy, "the server is a source");
        }
        Ok(server)
    }

    async fn remove_server(&self, name: &str) -> Result<Server, Problem> {
        let _one_at_a_time = self.policies.lock().await;
        let server = self.find_server(name).await?;
        self.check_owner().await?;
        let root = self.shared.vault.open_root()?;
        admin::put_server(&root, &recorded::server_record(&server, true), &self.stopping).await?;
        pause_at(&self.shared.state_dir, "server-recorded").await;
        self.catalog.remove_server(&server.id).await?;
        self.scans.forget(&server.id);
        tracing::info!(server = server.name, "the server is no source any more");
        Ok(server)
    }

    /// The server of that name, id or URI.
    async fn find_server(&self, name: &str) -> Result<Server, Problem> {
        let servers = self.catalog.servers().await?;
        let is_meant =
            |server: &Server| [&server.name, &server.id, &server.server_uri].into_iter().any(|known| known == name);
        servers.into_iter().find(is_meant).ok_or_else(|| {
            // A URI may have a password in it.
            let named = if name.contains("://") { "that URI".to_owned() } else { format!("the name {name:?}") };
            Problem::new(Reason::ServerNotFound, format!("no server of {named} is a source"))
        })
    }

    async fn all_servers(&self) -> Result<Vec<wire::Server>, Problem> {
        let mut servers = Vec::new();
        for server in self.catalog.servers().await? {
            servers.push(self.to_wire_server(server).await?);
        }
        Ok(servers)
    }

    async fn scan_now(&self, name: &str) -> Result<Vec<wire::Server>, Problem> {
        let servers = match name {
            "" => self.catalog.servers().await?,
            name => vec![self.find_server(name).await?],
        };
        self.scan_each(&servers).await;
        let mut scanned = Vec::with_capacity(servers.len());
        for server in servers {
            scanned.push(self.to_wire_server(server).await?);
        }
        Ok(scanned)
    }
}

fn check_patterns(which: &str, patterns: &[String]) -> Result<(), Problem> {
    let invalid = |message: String| Err(Problem::new(Reason::InvalidRequest, message));
    if patterns.len() > MAX_PATTERNS {
        return invalid(format!("at most {MAX_PATTERNS} patterns to {which} are possible, not {}", patterns.len()));
    }
    let bad =
        |pattern: &String| pattern.is_empty() || pattern.len() > MAX_PATTERN || pattern.chars().any(char::is_control);
    match patterns.iter().any(bad) {
        true => invalid(format!("a pattern to {which} has 1 to {MAX_PATTERN} bytes, and no control characters")),
        false => Ok(()),
    }
}

#[tonic::async_trait]
impl SourceService for Api {
    async fn discover_sources(
        &self,
        request: Request<wire::DiscoverSourcesRequest>,
    ) -> Result<Response<wire::DiscoverSourcesResponse>, Status> {
        let servers = self.discover(request.into_inner()).await?;
        Ok(Response::new(wire::DiscoverSourcesResponse { servers }))
    }

    async fn discover_containers(
        &self,
        request: Request<wire::DiscoverContainersRequest>,
    ) -> Result<Response<wire::DiscoverContainersResponse>, Status> {
        let containers = self.containers(request.into_inner()).await?;
        Ok(Response::new(wire::DiscoverContainersResponse { containers }))
    }

    async fn add_server(
        &self,
        request: Request<wire::AddServerRequest>,
    ) -> Result<Response<wire::AddServerResponse>, Status> {
        let (server, policy_created) = Api::add_server(self, request.into_inner()).await?;
        self.scan(&server.id).await;
        let server = Some(self.to_wire_server(server).await?);
        Ok(Response::new(wire::AddServerResponse { server, policy_created }))
    }

    async fn list_servers(
        &self,
        _: Request<wire::ListServersRequest>,
    ) -> Result<Response<wire::ListServersResponse>, Status> {
        Ok(Response::new(wire::ListServersResponse { servers: self.all_servers().await? }))
    }

    async fn scan_servers(
        &self,
        request: Request<wire::ScanServersRequest>,
    ) -> Result<Response<wire::ScanServersResponse>, Status> {
        let servers = self.scan_now(&request.into_inner().server).await?;
        Ok(Response::new(wire::ScanServersResponse { servers }))
    }

    async fn remove_server(
        &self,
        request: Request<wire::RemoveServerRequest>,
    ) -> Result<Response<wire::RemoveServerResponse>, Status> {
        let (api, request) = (self.clone(), request.into_inner());
        let server = self.jobs.detached(async move { Api::remove_server(&api, &request.server).await }).await?;
        let server = Some(self.to_wire_server(server).await?);
        Ok(Response::new(wire::RemoveServerResponse { server }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_have_limits() {
        let many = |count: usize| vec!["a*".to_owned(); count];
        assert_eq!(check_patterns("include", &many(MAX_PATTERNS)), Ok(()));
        for bad in
            [many(MAX_PATTERNS + 1), vec![String::new()], vec!["a".repeat(MAX_PATTERN + 1)], vec!["a\nb".to_owned()]]
        {
            assert_eq!(check_patterns("include", &bad).map_err(|problem| problem.reason), Err(Reason::InvalidRequest));
        }
    }
}
