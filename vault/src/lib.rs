//! The stored format and the data path: one vault, its stores, and a restic repository for each backup instance.
//!
//! Invariants:
//! - A format, its writer and its reader live here and nowhere else.
//! - Files are created, never changed. Nothing is visible before [`commit::publish`] created its snapshot file.
//! - No byte of user data is written to a local disk, except into a folder vault itself or a restore's target.

pub mod admin;
pub mod archive;
mod blocking;
pub mod check;
pub mod clock;
pub mod commit;
mod error;
pub mod fuzz;
mod hash;
pub mod holds;
mod id;
pub mod immutability;
pub mod keys;
pub mod lease;
pub mod location;
pub mod manifest;
pub mod memory;
pub mod meter;
pub mod network;
pub mod percent;
pub mod points;
pub mod process;
pub mod prune;
pub mod reader;
pub mod records;
pub mod repository;
pub mod settings;
#[cfg(feature = "simulate")]
pub mod simulate;
pub mod store;
pub mod target;
pub mod writer;

pub use error::Error;
pub use id::{Id, InvalidId};

/// User data in memory, in bytes, below which writing does not work well: one largest chunk, one pack in the making, one on its way.
pub const MIN_BYTES_IN_FLIGHT: u64 = 48 << 20;
