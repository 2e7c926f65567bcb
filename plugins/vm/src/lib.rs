//! The plugin for machines' disks: images and block devices of this machine, frozen, snapshotted, and streamed into a vault.
//!
//! ```text
//! look ─> prepare ─> pre scripts ─> freeze ─> snapshot ─> thaw ─> post scripts ─> open ─> read what has changed ─> let go ─> stage
//! ```
//! Invariants:
//! - A point holds a stream for each disk (`disk0.raw`, `disk1.raw`, …), all of one instant, each a whole image, and `machine.json`
//!   ([`machine::Machine`]): what the disks are, how they were caught, and what the next backup compares with.
//! - Nothing is kept frozen past its deadline, whoever dies ([`freeze`]); the scripts behind the snapshot run whatever came before.
//! - A point never says more than what was reached: its level of consistency has its reason and the measured times. One that is less than
//!   what the settings allow is no point but a failed job.
//! - What is taken over from an earlier point is what the snapshots' own comparison says to be unchanged; where that is not sure,
//!   everything is read, and the job says so. A mistake there costs time, never a wrong point.
//! - A restored image has its name if and only if it is complete. A device is written only when it was named twice and nothing uses it.
//!
//! Limits: Linux; disks of this machine, which is also where a host keeps the images of its guests. What it does not do: disks of other
//! hosts, formats other than raw.

pub mod machine;
pub mod plan;
pub mod settings;
pub mod uri;

#[cfg(target_os = "linux")]
mod backup;
#[cfg(target_os = "linux")]
mod base;
#[cfg(target_os = "linux")]
mod discover;
#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
pub mod extents;
#[cfg(target_os = "linux")]
pub mod freeze;
#[cfg(target_os = "linux")]
mod instant;
#[cfg(target_os = "linux")]
pub mod provider;
#[cfg(target_os = "linux")]
mod reading;
#[cfg(target_os = "linux")]
mod restore;
#[cfg(target_os = "linux")]
pub mod scripts;
#[cfg(target_os = "linux")]
mod usage;
#[cfg(target_os = "linux")]
mod validate;
#[cfg(target_os = "linux")]
mod workload;

/// The stream with [`machine::Machine`].
pub const MACHINE_STREAM: &str = "machine.json";

/// The workload `vm`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Vm;

/// The stream of a disk: `disk0.raw`.
pub fn stream_of(disk: &str) -> String {
    format!("{disk}.raw")
}
