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
