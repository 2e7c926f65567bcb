//! The contract of Vaultferry: the gRPC interfaces of the agent (`control`), of its plugins (`plugin`) and of the backup service that
//! agents report to (`service`), and the stable reasons that every failure carries.
//!
//! Invariants:
//! - Packages are folders; v1 never changes incompatibly (`tests/golden/descriptors.txt` shows every change as a diff).
//! - Every failure that crosses a process border is a [`Problem`]: a [`Reason`], what happened, and the fix.
//! - This crate knows nothing of stores, databases or jobs.

pub mod json;
pub mod status;

pub use status::{Problem, Reason};

/// The agent's interface for operators and programs.
pub mod control {
    /// Version 1; never changes incompatibly.
    #[allow(clippy::all)]
    pub mod v1 {
        tonic::include_proto!("vaultferry.control.v1");
    }
}

/// The interface between the coordinator and a workload plugin's process.
pub mod plugin {
    /// Version 1; never changes incompatibly.
    #[allow(clippy::all)]
    pub mod v1 {
        tonic::include_proto!("vaultferry.plugin.v1");
    }
}

/// The interface of a backup service, which agents call.
pub mod service {
    /// Version 1; never changes incompatibly.
    #[allow(clippy::all)]
    pub mod v1 {
        tonic::include_proto!("vaultferry.service.v1");
    }
}

/// The descriptors of every message and service above, as an encoded `FileDescriptorSet`, for reflection and JSON.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
