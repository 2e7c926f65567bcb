//! The connection to the agent.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;
use vaultferry_proto::control::v1::backup_instance_service_client::BackupInstanceServiceClient;
use vaultferry_proto::control::v1::backup_service_client::BackupServiceClient;
use vaultferry_proto::control::v1::instance_lifecycle_service_client::InstanceLifecycleServiceClient;
use vaultferry_proto::control::v1::job_service_client::JobServiceClient;
use vaultferry_proto::control::v1::maintenance_service_client::MaintenanceServiceClient;
use vaultferry_proto::control::v1::policy_service_client::PolicyServiceClient;
use vaultferry_proto::control::v1::recovery_point_service_client::RecoveryPointServiceClient;
use vaultferry_proto::control::v1::restore_plan_service_client::RestorePlanServiceClient;
use vaultferry_proto::control::v1::restore_service_client::RestoreServiceClient;
use vaultferry_proto::control::v1::source_service_client::SourceServiceClient;
use vaultferry_proto::control::v1::summary_service_client::SummaryServiceClient;
use vaultferry_proto::control::v1::vault_service_client::VaultServiceClient;
use vaultferry_proto::status::DOMAIN;
use vaultferry_proto::{Problem, Reason};

use crate::config::Endpoint;

/// How long a lost agent is waited for: a restart with its clean-up takes seconds.
pub const RECONNECT_FOR: Duration = Duration::from_secs(30);
/// Between two tries.
pub const RECONNECT_EVERY: Duration = Duration::from_millis(500);
/// A list of 10,000 instances is a few megabytes; gRPC's own limit of 4 MiB is too near.
const LONGEST_MESSAGE: usize = 64 << 20;

/// A connected agent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
    channel: Channel,
}

macro_rules! services {
    ($($name:ident: $client:ident,)*) => {
        $(pub fn $name(&self) -> $client<Channel> {
            $client::new(self.channel.clone()).max_decoding_message_size(LONGEST_MESSAGE)
        })*
    };
}

impl Client {
    services! {
        instances: BackupInstanceServiceClient,
        lifecycles: InstanceLifecycleServiceClient,
        backups: BackupServiceClient,
        jobs: JobServiceClient,
        maintenance: MaintenanceServiceClient,
        policies: PolicyServiceClient,
        points: RecoveryPointServiceClient,
        restore_plans: RestorePlanServiceClient,
        restores: RestoreServiceClient,
        sources: SourceServiceClient,
        summaries: SummaryServiceClient,
        vaults: VaultServiceClient,
    }

    /// Connects, once. Errors: [`Reason::AgentUnreachable`] with the endpoint's name.
    #[cfg(unix)]
    pub async fn connect(endpoint: Endpoint) -> Result<Self, Problem> {
        let path = endpoint.path().to_path_buf();
        // Asked first by itself, for an error that says what is wrong with the socket.
        if let Err(error) = tokio::net::UnixStream::connect(&path).await {
            return Err(unreachable(&endpoint, &error));
        }
        let connector = tower::service_fn(move |_: tonic::transport::Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        let channel = tonic::transport::Endpoint::from_static("http://agent.invalid")
            .connect_timeout(Duration::from_secs(5))
            // A stopped or hung agent still accepts connections; only an unanswered ping shows it.
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(20))
            .connect_with_connector(connector)
            .await
            .map_err(|error| unreachable(&endpoint, &error))?;
        Ok(Self { endpoint, channel })
    }

    /// Not on this system yet.
    #[cfg(not(unix))]
    pub async fn connect(endpoint: Endpoint) -> Result<Self, Problem> {
        Err(unreachable(&endpoint, &std::io::Error::other("unix sockets are not supported on this system yet")))
    }

    /// Where it listens.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// A call's failure as a problem; a broken connection is [`Reason::AgentUnreachable`].
    pub fn problem(&self, status: &Status) -> Problem {
        let problem = Problem::from_status(status, Reason::AgentUnreachable);
        if is_broken(status) { unreachable(&self.endpoint, &problem.message) } else { problem }
    }

    /// Calls something that is idempotent by its request id: when the connection breaks before the answer, it is made again and the call repeated,
    /// for [`RECONNECT_FOR`]. Afterwards it is not known whether the call took effect.
    pub async fn idempotent<T, F, Answer>(&mut self, call: F) -> Result<T, Problem>
    where
        F: Fn(Client) -> Answer,
        Answer: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + RECONNECT_FOR;
        loop {
            let status = match call(self.clone()).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            if !is_broken(&status) || Instant::now() >= deadline {
                return Err(self.problem(&status));
            }
            tokio::time::sleep(RECONNECT_EVERY).await;
            if let Ok(client) = Self::connect(self.endpoint.clone()).await {
                *self = client;
            }
        }
    }
}

/// Whether the connection, and not the agent, answered.
pub fn is_broken(status: &Status) -> bool {
    let from_agent = status.get_details_error_info().is_some_and(|info| info.domain == DOMAIN);
    // HTTP/2 resets come as Internal, lost streams as Unknown or Cancelled.
    let may_break = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal);
    !from_agent && may_break
}

fn unreachable(endpoint: &Endpoint, error: &dyn std::fmt::Display) -> Problem {
    Problem::new(Reason::AgentUnreachable, format!("the agent at {endpoint} does not answer: {error}"))
}
