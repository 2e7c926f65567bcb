//! Scans of servers: what is new there and matches is protected.
//!
//! ```text
//! at the start, every hour, and when asked:
//!    Discover ─┬─ left out by the patterns
//!              ├─ has an instance, whatever its state: left alone
//!              └─ has none ─ the same way as CreateBackupInstances: ready ─> protected; not ready ─> told, and tried again by the next scan
//! ```
//! Invariants:
//! - One scan of a server at a time, and never a second instance of a source: identities are unique, and the lock of the policies is held
//!   while instances are made.
//! - A server that does not answer holds up its own scan. Others wait for it when [`AT_ONCE`] are silent at a time.
//! - A database that has gone is told as missing, and its instance stays as it is.
//! - What a scan has found is not stored: the next start scans again. Killed anywhere, what was protected is protected.
//! - An instance whose data was deleted holds its source until it is gone for good; after that the database is new.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use vaultferry_proto::control::v1 as wire;
use vaultferry_proto::control::v1::server_database::State;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::percent;

use super::super::instance::{Found, Order, Unready};
use super::super::{Api, convert, discover};
use super::pattern;
use crate::catalog::Server;

/// Between two scans of a server.
const EVERY: Duration = Duration::from_secs(3600);
/// Sources of one order.
const CHUNK: usize = 1000;
/// Servers of one round that are scanned at a time: each is asked by a process of some MB, which mostly waits.
const AT_ONCE: usize = 8;
/// Servers whose new databases are looked at at a time, in all: each has a few such processes, and they work.
const PROTECTED_AT_ONCE: usize = 2;

/// What the scans of this life have found.
#[derive(Debug)]
pub(in crate::api) struct Scans {
    /// Whose turn it is at a server, by its id. Before `protecting`.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    protecting: Semaphore,
    /// By the servers' ids.
    found: Mutex<HashMap<String, Scan>>,
}

impl Default for Scans {
    fn default() -> Self {
        let protecting = Semaphore::new(PROTECTED_AT_ONCE);
        Self { turns: Mutex::default(), protecting, found: Mutex::default() }
    }
}

/// What is known of a server.
#[derive(Debug, Clone, Default)]
struct Scan {
    /// When its databases were last listed.
    time: Option<jiff::Timestamp>,
    /// Why the last scan came to no end.
    problem: Option<Problem>,
    databases: Vec<Seen>,
}

/// A database of a server.
#[derive(Debug, Clone)]
struct Seen {
    name: String,
    identity: String,
    left_out: bool,
    /// Why it was not protected.
    problem: Option<wire::Problem>,
}

impl Scans {
    fn turn(&self, server_id: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.entry(server_id.to_owned()).or_default().clone()
    }

    fn get(&self, server_id: &str) -> Scan {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).get(server_id).cloned().unwrap_or_default()
    }

    fn put(&self, server_id: &str, scan: Scan) {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).insert(server_id.to_owned(), scan);
    }

    /// The server is no source any more.
    pub(super) fn forget(&self, server_id: &str) {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).remove(server_id);
    }
}

impl Api {
    /// Scans every server now and every hour, until `stop`.
    pub(crate) async fn scan_servers(mut self, stop: CancellationToken) {
        self.stopping = stop.clone();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.scan_all() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    async fn scan_all(&self) {
        match self.catalog.servers().await {
            Err(error) => tracing::error!("servers are scanned again in {EVERY:?}: {error}"),
            Ok(servers) => self.scan_each(&servers).await,
        }
    }

    /// One scan of each, several at a time.
    pub(super) async fn scan_each(&self, servers: &[Server]) {
        let api = self.clone();
        let ids: Vec<String> = servers.iter().map(|server| server.id.clone()).collect();
        let scans = stream::iter(ids).map(move |id| {
            let api = api.clone();
            async move { api.scan(&id).await }
        });
        // Boxed, because the compiler does not see through the closure in a future that moves between threads.
        scans.buffer_unordered(AT_ONCE).boxed().for_each(|()| std::future::ready(())).await;
    }

    /// One scan, whose outcome is kept for whoever asks. Dropping it leaves what it has protected.
    pub(super) async fn scan(&self, server_id: &str) {
        let turn = self.scans.turn(server_id);
        let _one_at_a_time = turn.lock().await;
        let before = self.scans.get(server_id);
        let server = match self.catalog.servers().await {
            Ok(servers) => servers.into_iter().find(|server| server.id == server_id),
            Err(error) => return tracing::error!("a server is scanned again in {EVERY:?}: {error}"),
        };
        // It was removed while this scan waited for its turn.
        let Some(server) = server else { return };
        let scan = match self.look_over(&server).await {
            Ok(databases) => Scan { time: Some(vaultferry_vault::clock::now()), problem: None, databases },
            Err(problem) => {
                // Once, and not every hour.
                let is_known = before.problem.as_ref().map(|problem| problem.reason) == Some(problem.reason);
                if !is_known && !self.stopping.is_cancelled() {
                    tracing::warn!(server = server.name, "the server could not be scanned: {problem}");
                }
                Scan { problem: Some(problem), ..before }
            }
        };
        self.scans.put(server_id, scan);
    }

    /// Lists the server's databases, and protects what is new.
    async fn look_over(&self, server: &Server) -> Result<Vec<Seen>, Problem> {
        let (_, answer) = self.ask_server(&server.server_uri, &server.credential).await?;
        let (mut databases, mut new) = (Vec::with_capacity(answer.sources.len()), Vec::new());
        for source in answer.sources {
            let left_out = !is_wanted(server, &source.name);
            let is_known = self.catalog.instance_of_source(&source.source_identity).await?.is_some();
            let problem = source.obstacle.map(discover::problem);
            if !left_out && !is_known && problem.is_none() {
                new.push((databases.len(), source.uri));
            }
            databases.push(Seen { name: source.name, identity: source.source_identity, left_out, problem });
        }
        if new.is_empty() {
            return Ok(databases);
        }
        let _few_at_a_time = self.scans.protecting.acquire().await;
        // That may have taken long. What a person has changed meanwhile counts: the server may be gone, or have other patterns.
        if !self.catalog.servers().await?.contains(server) {
            return Ok(databases);
        }
        for chunk in new.chunks(CHUNK) {
            let order = Order {
                source_uris: chunk.iter().map(|(_, uri)| uri.clone()).collect(),
                policy: server.policy.clone(),
                name: String::new(),
                region: server.region.clone(),
                credential: server.credential.clone(),
                unready: Unready::LeaveOut,
                check_only: false,
                by_scan: true,
            };
            let protected = self.protect(order).await?;
            for ((index, _), looked) in chunk.iter().zip(protected.results) {
                if let Found::NotReady(problem) = looked.found {
                    databases[*index].problem = Some(problem.into());
                }
            }
        }
        Ok(databases)
    }

    /// The server, with how each of its databases stands at this moment.
    pub(super) async fn to_wire_server(&self, server: Server) -> Result<wire::Server, Problem> {
        let scan = self.scans.get(&server.id);
        let mut databases = Vec::with_capacity(scan.databases.len());
        for seen in &scan.databases {
            databases.push(self.to_wire_database(seen).await?);
        }
        let gone = if scan.time.is_some() { State::Missing } else { State::Protected };
        for instance in self.catalog.instances().await? {
            let Some(name) = instance.source_identity.strip_prefix(&server.server_identity) else { continue };
            let is_seen = scan.databases.iter().any(|seen| seen.identity == instance.source_identity);
            if is_seen || instance.protection.is_deleted() {
                continue;
            }
            databases.push(wire::ServerDatabase {
                name: decoded(name),
                state: gone.into(),
                protection_state_text: self.protection_text(&instance).await?.to_owned(),
                instance: instance.name,
                problem: None,
            });
        }
        databases.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(wire::Server {
            id: server.id,
            name: server.name,
            create_time: Some(convert::time(server.create_time)),
            uri: server.server_uri,
            source_type: server.source_type,
            policy: server.policy,
            region: server.region,
            include: server.include,
            exclude: server.exclude,
            scan_time: scan.time.map(convert::time),
            problem: scan.problem.map(Into::into),
            databases,
        })
    }

    async fn to_wire_database(&self, seen: &Seen) -> Result<wire::ServerDatabase, Problem> {
        let database = wire::ServerDatabase { name: seen.name.clone(), ..wire::ServerDatabase::default() };
        if let Some(instance) = self.catalog.instance_of_source(&seen.identity).await? {
            let protection_state_text = self.protection_text(&instance).await?.to_owned();
            let (state, instance) = (State::Protected.into(), instance.name);
            return Ok(wire::ServerDatabase { state, instance, protection_state_text, ..database });
        }
        if seen.left_out {
            return Ok(wire::ServerDatabase { state: State::LeftOut.into(), ..database });
        }
        // Its instance went away after the scan.
        let new =
            || Problem::new(Reason::InstanceNotFound, "it is not protected yet").with_fix("The next scan does it.");
        let problem = Some(seen.problem.clone().unwrap_or_else(|| new().into()));
        Ok(wire::ServerDatabase { state: State::NotReady.into(), problem, ..database })
    }
}

fn is_wanted(server: &Server, name: &str) -> bool {
    let any = |patterns: &[String]| patterns.iter().any(|pattern| pattern::matches(pattern, name));
    (server.include.is_empty() || any(&server.include)) && !any(&server.exclude)
}

/// The name that is percent-encoded in an identity; what is no such thing is left as it is.
fn decoded(text: &str) -> String {
    percent::decode(text).unwrap_or_else(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Credential;

    fn server(include: &[&str], exclude: &[&str]) -> Server {
        let texts = |patterns: &[&str]| patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        Server {
            id: String::new(),
            name: String::new(),
            create_time: jiff::Timestamp::UNIX_EPOCH,
            source_type: "postgres".to_owned(),
            server_uri: String::new(),
            server_identity: String::new(),
            region: String::new(),
            policy: String::new(),
            credential: Credential::None,
            include: texts(include),
            exclude: texts(exclude),
        }
    }

    #[test]
    fn what_is_excluded_is_left_out_although_it_is_included() {
        for (include, exclude, name, wanted) in [
            (&[][..], &[][..], "shop", true),
            (&["shop*"], &[], "shop", true),
            (&["shop*"], &[], "stock", false),
            (&["a", "shop*"], &["*_test"], "shop_test", false),
            (&[], &["postgres"], "postgres", false),
            (&[], &["postgres"], "postgres2", true),
        ] {
            assert_eq!(is_wanted(&server(include, exclude), name), wanted, "{include:?} {exclude:?} {name}");
        }
    }

    #[test]
    fn a_missing_database_has_the_name_that_it_had() {
        for (text, name) in
            [("shop", "shop"), ("%EB%B0%B1%EC%97%85%20%22a%2Fb", "백업 \"a/b"), ("100%", "100%"), ("%zz", "%zz")]
        {
            assert_eq!(decoded(text), name);
        }
    }
}
