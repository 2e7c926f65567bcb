//! The control plane of Vaultferry: API, policies, jobs, catalog, and the processes of plugins.
//!
//! Invariants:
//! - No payload byte passes here: names, states, counts, digests and sealed snapshots only.
//! - No plugin is linked: each runs as a process of its own and is spoken to over gRPC.
//! - Wire types stop in `api/`, in `link/` and at `job/session.rs`; everything else uses the catalog's words.

mod adopt;
mod api;
pub mod catalog;
mod expiry;
mod job;
mod lifecycle;
mod link;
mod offline;
mod owner;
pub mod plugin;
pub mod policy;
mod rebuild;
mod recorded;
mod scheduler;
mod service;
mod space;
/// What looks into payload stays outside of `src`.
#[cfg(test)]
#[path = "../tests/year/year.rs"]
mod year;

pub use job::Limits;
pub use link::Config as LinkConfig;
pub use offline::{
    Attached, InitOutcome, Rotation, add_recovery_key, attach, default_key_path, init_vault, list_keys,
    rebuild_catalog, remove_recovery_key, rotate_key, upgrade,
};
pub use rebuild::Rebuilt;
pub use service::{Config, Service};

/// The least that a read limit may be. A source that is read slower takes a day for 9 GB, and holds its snapshot as long.
pub const LEAST_READ_BYTES_PER_S: u64 = 100_000;

/// What the configuration of a vault is made of, so that whoever configures a coordinator need not know the vault's own crate.
pub mod vault {
    pub use vaultferry_vault::MIN_BYTES_IN_FLIGHT;
    pub use vaultferry_vault::admin::{Cleaned, InstanceKey, KeyList, KeyPlace, RecoveryKey, Rotated};
    pub use vaultferry_vault::keys::{AzureKeyVault, FixedToken, InvalidKeyUrl, KeyUrl, TokenFile, TokenSource};
    pub use vaultferry_vault::location::{Access, InvalidLocation, Location};
    pub use vaultferry_vault::network;
    pub use vaultferry_vault::store::azure::Credential;
}
