//! What every workload plugin is made with.
//!
//! A plugin implements [`Workload`] and calls [`serve()`]; the rest is here: the protocol with the coordinator, progress, cancellation,
//! child processes, and what all workloads do alike ([`files`]).
//!
//! Invariants:
//! - A workload sees domain types only; [`wire`] is the one place that knows the generated ones.
//! - A job is cancelled by its [`CancellationToken`](tokio_util::sync::CancellationToken): when the coordinator drops the call, when
//!   it is gone (standard input ends), and on SIGTERM. Nothing runs on afterwards, and no child is left.
//! - Payload bytes go from the source to the store (or back) through bounded buffers; nothing is set down on a local disk.
//!
//! What is not here: any knowledge of a workload, of policies or of points. Several plugins need it, or it does not belong here.

pub mod azure;
pub mod child;
pub mod files;
mod host;
pub mod network;
pub mod priority;
pub mod readiness;
pub mod report;
mod runner;
pub mod serve;
mod service;
pub mod wire;
pub mod workload;

pub use host::{free_bytes, hostname};
pub use readiness::Finding;
pub use report::{Progress, Reporter, SourceCost, Warning};
pub use runner::{Event, Runner};
pub use serve::{serve, serve_router};
pub use service::service;
pub use workload::{
    BackupJob, CleanUpJob, CredentialReference, DatabaseTarget, Discovered, DiscoveredSource, DiskTarget,
    FilesDestination, FoundServer, RestoreJob, RestorePlan, RestoreTarget, ServerLogin, Source, Validated, VaultAccess,
    Verify, Workload,
};
