//! What a restore into a database is asked for.

use serde::{Deserialize, Serialize};

/// What of a point is restored into a database, and how. The default is everything, and nothing beside it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestoreOptions {
    /// Only these schemas; with no tables either: everything.
    pub schemas: Vec<String>,
    /// Only these tables.
    pub tables: Vec<String>,
    /// Missing roles are made.
    pub globals: bool,
    /// What fails is left under its temporary name.
    pub keep_failed: bool,
    /// `full`, `sample`, `none`, or empty: by size.
    pub verify: String,
}

impl RestoreOptions {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
