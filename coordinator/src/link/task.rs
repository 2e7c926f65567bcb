//! The link's task: connects, registers, listens and tells, again and again until the agent stops.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vaultferry_proto::service::v1 as wire;

use super::Config;
use super::assign::{Assign, Wanted};
use super::backoff::Backoff;
use super::client::{Client, Error, call, connect, failed};
use super::deliver::Deliver;
use crate::api::Api;
use crate::catalog::Catalog;
use crate::job::Shared;
use crate::owner;

/// What speaks to the backup service. It begins with [`Task::run`].
#[derive(Debug)]
pub(crate) struct Task {
    config: Config,
    api: Api,
    catalog: Arc<dyn Catalog>,
    agent_id: String,
    vault_id: String,
    news: Arc<Notify>,
}

impl Task {
    /// None when the link is not to a service.
    pub(crate) fn new(config: Config, api: Api, shared: &Shared, vault_id: String) -> Option<Self> {
        let news = shared.link.news.clone()?;
        let (catalog, agent_id) = (shared.catalog.clone(), shared.agent_id.clone());
        Some(Self { config, api, catalog, agent_id, vault_id, news })
    }

    /// Runs until `stop`. An item of the assignments that is being done then comes to its end, or fails as calls of a stopping agent do.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let (wanted, newest) = watch::channel(None);
        let assign = Assign::new(self.api.clone(), self.catalog.clone(), self.news.clone());
        tokio::join!(assign.run(newest, stop.clone()), self.connections(wanted, stop));
    }

    async fn connections(&self, wanted: watch::Sender<Option<Wanted>>, stop: CancellationToken) {
        let mut backoff = Backoff::new();
        // Told once for each time, not for each try.
        let mut away: Option<Instant> = None;
        loop {
            let connection = Connection::default();
            let error = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                ended = self.connection(&connection, &wanted, away) => match ended {
                    Err(error) => error,
                },
            };
            if connection.registered.load(Ordering::Relaxed) {
                away = None;
            }
            if connection.useful.load(Ordering::Relaxed) {
                backoff = Backoff::new();
            }
            let endpoint = &self.config.endpoint;
            match away {
                Some(_) => tracing::debug!(endpoint, "the backup service is still away: {error}"),
                None => {
                    tracing::warn!(
                        endpoint,
                        "the backup service is away; jobs go on, and it is told of them later: {error}"
                    );
                    away = Some(Instant::now());
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff.wait()) => {}
            }
        }
    }

    /// One connection, until it breaks.
    async fn connection(
        &self,
        connection: &Connection,
        wanted: &watch::Sender<Option<Wanted>>,
        away: Option<Instant>,
    ) -> Result<Infallible, Error> {
        let mut client = connect(&self.config).await?;
        let request = wire::RegisterRequest {
            agent_id: self.agent_id.clone(),
            sequence: self.catalog.next_sequence().await?,
            hostname: owner::hostname(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            vault_id: self.vault_id.clone(),
            applied_version: self.catalog.link_state().await?.applied_version,
        };
        let service = call("Register", client.register(request)).await?;
        if service.service_id.is_empty() {
            return Err(Error::Call { call: "Register", detail: "the service does not say who it is".to_owned() });
        }
        let state = self.catalog.register_service(&service.service_id, service.last_sequence).await?;
        connection.registered.store(true, Ordering::Relaxed);
        let away_s = away.map_or(0, |since| since.elapsed().as_secs());
        tracing::info!(
            endpoint = self.config.endpoint,
            service = service.service_id,
            away_s,
            "the backup service answers"
        );
        let deliver = Deliver {
            catalog: self.catalog.clone(),
            agent_id: self.agent_id.clone(),
            news: self.news.clone(),
            look_again: self.config.look_again(),
        };
        let useful = || connection.useful.store(true, Ordering::Relaxed);
        let listening = self.listen(client.clone(), &service.service_id, state.applied_version, wanted, useful);
        let (never, _) = tokio::try_join!(listening, deliver.run(client, useful))?;
        match never {}
    }

    /// Takes in what the service wants.
    async fn listen(
        &self,
        mut client: Client,
        service_id: &str,
        applied_version: u64,
        wanted: &watch::Sender<Option<Wanted>>,
        useful: impl Fn(),
    ) -> Result<Infallible, Error> {
        const CALL: &str = "WatchAssignments";
        let request = wire::WatchAssignmentsRequest {
            agent_id: self.agent_id.clone(),
            sequence: self.catalog.next_sequence().await?,
            applied_version,
        };
        let mut messages = call(CALL, client.watch_assignments(request)).await?;
        loop {
            let message = messages.message().await.map_err(|status| failed(CALL, &status))?;
            let Some(message) = message else {
                return Err(Error::Call { call: CALL, detail: "the service has ended it".to_owned() });
            };
            let Some(assignments) = message.assignments else { continue };
            let new = Wanted { service_id: service_id.to_owned(), assignments: Arc::new(assignments) };
            if wanted.send_if_modified(|current| new.replaces(current)) {
                useful();
            }
        }
    }
}

/// What became of a connection.
#[derive(Debug, Default)]
struct Connection {
    /// The service has answered.
    registered: AtomicBool,
    /// It has taken or given something, so it is worth coming back soon.
    useful: AtomicBool,
}
