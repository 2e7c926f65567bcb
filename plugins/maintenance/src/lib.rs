//! The maintenance plugin: everything that reads, deletes or moves what lies in a vault, but is no backup and no restore.
//!
//! Invariants:
//! - A task may be killed at any instant and run again; what order makes that safe is the vault crate's business, not this one's.
//! - Nothing here knows policies, schedules or catalogs. What is to be done to which point is said by the coordinator.
//! - This process alone gets the credential that may delete.
//!
//! [`check_offline`] does the keyless check without a coordinator, for a vault whose agent is gone.

mod offline;
mod service;
mod task;
mod wire;

pub use offline::{Checked, check_offline};
pub use task::{Affected, Done, Finding, Report};

use vaultferry_plugin_sdk::Runner;
use vaultferry_plugin_sdk::serve::Error;
use vaultferry_proto::plugin::v1::maintenance_plugin_server::MaintenancePlugin;
use vaultferry_proto::plugin::v1::maintenance_plugin_server::MaintenancePluginServer;

/// Serves until the host is gone or says stop. Must run in a multi-threaded Tokio runtime.
pub async fn serve() -> Result<(), Error> {
    vaultferry_plugin_sdk::priority::yield_to_others();
    vaultferry_plugin_sdk::serve_router(|runner| {
        tonic::transport::Server::builder().add_service(MaintenancePluginServer::new(service(runner)))
    })
    .await
}

/// The service itself, whose tasks run in the runner. A plugin's own process has [`serve`].
pub fn service(runner: Runner) -> impl MaintenancePlugin {
    service::Service::new(runner)
}
