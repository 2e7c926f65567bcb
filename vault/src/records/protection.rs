//! How an instance is protected, as its newest record says.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Whether an instance is backed up, and what becomes of its points.
///
/// | state | scheduled backups | backups on demand | points |
/// |---|---|---|---|
/// | `Active` | yes | yes | expire by the policy |
/// | `Paused` | no | yes | expire by the policy |
/// | `Stopped` | no | no | stay for ever |
/// | `Deleted` | no | no | are soft-deleted |
/// | `Purged` | no | no | are gone |
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Protection {
    /// The policy is followed. Left out of records.
    #[default]
    Active,
    /// The schedule is suspended.
    Paused {
        /// When it was.
        since: Timestamp,
    },
    /// Protection was stopped, and the data retained.
    Stopped {
        /// When it was.
        since: Timestamp,
    },
    /// Protection was stopped, and the data deleted softly: the instance can be brought back until `purge_time`, with the points whose
    /// purge time is the same.
    Deleted {
        /// When it was.
        since: Timestamp,
        /// Until then it can be brought back.
        purge_time: Timestamp,
        /// What it was before, and is again when it is brought back.
        before: Box<Protection>,
    },
    /// A deleted instance whose time is over and whose points are gone. Final: its name and its source are free again.
    Purged {
        /// When it was.
        since: Timestamp,
    },
}

impl Protection {
    /// True when the policy's schedule starts backups.
    pub fn is_active(&self) -> bool {
        *self == Self::Active
    }

    /// True when the instance was deleted, whether it can be brought back or not.
    pub fn is_deleted(&self) -> bool {
        matches!(self, Self::Deleted { .. } | Self::Purged { .. })
    }
}
