//! Snapshots: a recovery point's record, as restic reads it.

use serde::{Deserialize, Serialize};

use crate::id::Id;

/// The record. Unknown fields of other writers are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When the source was read, RFC 3339.
    pub time: String,
    /// The root directory.
    pub tree: Id,
    /// What was backed up; `/` and the streams' names.
    pub paths: Vec<String>,
    /// The machine that the agent runs on.
    pub hostname: String,
    /// Always `vaultferry`.
    #[serde(default)]
    pub username: String,
    /// `job=<id>` and what else the coordinator gives.
    #[serde(default)]
    pub tags: Vec<String>,
    /// `vaultferry <version>`.
    #[serde(default)]
    pub program_version: String,
}
