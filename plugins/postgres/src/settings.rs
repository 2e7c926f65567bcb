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
    /// A snapshot that is held for longer is a warning of the job, in seconds.
    pub snapshot_budget_s: u32,
    /// A backup whose snapshot is held for so long is ended, in seconds. `None`: never.
    pub snapshot_limit_s: Option<u32>,
    /// Somebody who waits for longer for a table that pg_dump has locked is a warning of the job, in seconds.
    pub ddl_budget_s: u32,
    /// A backup for which somebody waits for so long gives way, in seconds. `None`: never.
    pub yield_to_ddl_s: Option<u32>,
    /// Bytes that pg_dump's output is read with in a second at most, on average. `None`: no limit.
    pub read_limit_bytes_per_s: Option<u64>,
    /// A standby that is further behind is a finding, in seconds.
    pub replica_lag_s: u32,
}

impl Default for Settings {
    /// Half a minute is longer than most statements that lock a table, and short enough for whoever queues up behind pg_dump's other
    /// locks; four tries outlast a short migration.
    ///
    /// Four hours are what the largest recommended database (P16) takes at 30 MB/s. Whoever waits for a table for a minute has users who
    /// wait for him. A standby that replays at all is seconds behind, five minutes are a fault. Nothing ends a backup that nobody wants ended.
    fn default() -> Self {
        Self {
            client_dirs: Vec::new(),
            lock_timeout_s: 30,
            lock_retries: 3,
            snapshot_budget_s: 4 * 3600,
            snapshot_limit_s: None,
            ddl_budget_s: 60,
            yield_to_ddl_s: None,
            read_limit_bytes_per_s: None,
            replica_lag_s: 300,
        }
    }
}

impl Settings {
    /// How long one try of pg_dump waits for its table locks.
    pub fn lock_timeout(&self) -> Duration {
        // For pg_dump, 0 would mean for ever.
        Duration::from_secs(u64::from(self.lock_timeout_s.max(1)))
    }

    /// How old a snapshot may become without a warning.
    pub fn snapshot_budget(&self) -> Duration {
        Duration::from_secs(self.snapshot_budget_s.into())
    }

    /// How old a snapshot may become at all.
    pub fn snapshot_limit(&self) -> Option<Duration> {
        self.snapshot_limit_s.map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// How long somebody may wait for pg_dump without a warning.
    pub fn ddl_budget(&self) -> Duration {
        Duration::from_secs(self.ddl_budget_s.into())
    }

    /// How long somebody may wait for pg_dump at all.
    pub fn yield_to_ddl(&self) -> Option<Duration> {
        self.yield_to_ddl_s.map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// The same with the limit that one backup has of its own, if it has one.
    #[must_use]
    pub fn limited(self, read_bytes_per_s: Option<u64>) -> Self {
        Self { read_limit_bytes_per_s: read_bytes_per_s.or(self.read_limit_bytes_per_s), ..self }
    }

    /// How far behind its primary a standby may be.
    pub fn replica_lag(&self) -> Duration {
        Duration::from_secs(self.replica_lag_s.into())
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
        assert_eq!(settings.snapshot_budget(), Duration::from_secs(14_400));
        assert_eq!(
            (settings.snapshot_limit(), settings.yield_to_ddl(), settings.read_limit_bytes_per_s),
            (None, None, None)
        );
        let limits = r#"{"snapshot_limit_s": 7200, "yield_to_ddl_s": 120, "read_limit_bytes_per_s": 5000000000}"#;
        let settings = Settings::parse(limits).unwrap();
        assert_eq!(settings.snapshot_limit(), Some(Duration::from_secs(7200)));
        assert_eq!(settings.yield_to_ddl(), Some(Duration::from_secs(120)));
        assert_eq!(settings.read_limit_bytes_per_s, Some(5_000_000_000));
        assert_eq!(settings.clone().limited(None), settings);
        assert_eq!(settings.limited(Some(100_000)).read_limit_bytes_per_s, Some(100_000));
        let settings = Settings::parse(r#"{"lock_timeout_s": 0, "lock_retries": 0}"#).unwrap();
        assert_eq!((settings.lock_timeout(), settings.lock_retries), (Duration::from_secs(1), 0));
        let problem = Settings::parse(r#"{"client_dir": "/opt"}"#).unwrap_err();
        assert_eq!(problem.reason, Reason::InvalidConfiguration);
    }
}
