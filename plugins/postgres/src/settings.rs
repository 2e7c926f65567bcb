//! The `[postgres]` section of the configuration.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use vaultferry_proto::{Problem, Reason};

/// Settings of this plugin. Unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Folders with `pg_dump` and `pg_restore`; empty: Debian's places, then PATH.
    pub client_dirs: Vec<PathBuf>,
    /// How long one try of pg_dump waits for its table locks, in seconds; at least 1.
    pub lock_timeout_s: u32,
    /// How often it is tried again after that.
    pub lock_retries: u32,
}

impl Default for Settings {
    /// Half a minute is longer than most statements that lock a table, and short enough for whoever queues up behind pg_dump's other
    /// locks; four tries outlast a short migration.
    fn default() -> Self {
        Self { client_dirs: Vec::new(), lock_timeout_s: 30, lock_retries: 3 }
    }
}

impl Settings {
    /// How long one try of pg_dump waits for its table locks.
    pub fn lock_timeout(&self) -> Duration {
        // For pg_dump, 0 would mean for ever.
        Duration::from_secs(u64::from(self.lock_timeout_s.max(1)))
    }

    /// Reads the JSON that the coordinator hands over; nothing at all means the defaults.
    pub fn parse(json: &str) -> Result<Self, Problem> {
        if json.trim().is_empty() || json.trim() == "null" {
            return Ok(Self::default());
        }
        serde_json::from_str(json)
            .map_err(|error| Problem::new(Reason::InvalidConfiguration, format!("section [postgres]: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_means_defaults_and_unknown_keys_are_refused() {
        assert_eq!(Settings::parse("").unwrap(), Settings::default());
        assert_eq!(Settings::parse("{}").unwrap(), Settings::default());
        let settings = Settings::parse(r#"{"client_dirs": ["/opt/pg/bin"]}"#).unwrap();
        assert_eq!(settings.client_dirs, [PathBuf::from("/opt/pg/bin")]);
        assert_eq!((settings.lock_timeout(), settings.lock_retries), (Duration::from_secs(30), 3));
        let settings = Settings::parse(r#"{"lock_timeout_s": 0, "lock_retries": 0}"#).unwrap();
        assert_eq!((settings.lock_timeout(), settings.lock_retries), (Duration::from_secs(1), 0));
        let problem = Settings::parse(r#"{"client_dir": "/opt"}"#).unwrap_err();
        assert_eq!(problem.reason, Reason::InvalidConfiguration);
    }
}
