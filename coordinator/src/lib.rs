//! The control plane of Vaultferry: API, policies, jobs, catalog, and the processes of plugins.
//!
//! Invariants:
//! - No payload byte passes here: names, states, counts, digests and sealed snapshots only.
//! - No plugin is linked: each runs as a process of its own and is spoken to over gRPC.
//! - Wire types stop in `api/` and at `job/session.rs`; everything else uses the catalog's words.

mod api;
pub mod catalog;
mod job;
mod link;
pub mod plugin;
pub mod policy;
mod scheduler;
mod service;

pub use service::{Config, InitOutcome, Service, init_vault};

/// What the configuration of a vault is made of, so that whoever configures a coordinator need not know the vault's own crate.
pub mod vault {
    pub use vaultferry_vault::MIN_BYTES_IN_FLIGHT;
    pub use vaultferry_vault::location::{Access, InvalidLocation, Location};
    pub use vaultferry_vault::store::azure::Credential;
}
