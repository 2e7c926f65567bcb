//! The `[vm]` section of the configuration.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use vaultferry_proto::{Problem, Reason};

/// Longer than this nothing is kept frozen: whoever writes waits.
const MOST_FROZEN_S: u32 = 60;

/// What becomes of a backup whose file systems could not be frozen, or did not stay so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFreezeFailure {
    /// The job fails.
    #[default]
    Fail,
    /// The point is as after a power cut, and says so.
    CrashConsistent,
}

/// Settings of this plugin. Unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Who takes the snapshots; `None`: the best that the disks allow.
    pub provider: Option<String>,
    /// The mount points to freeze; `None`: those of file systems that lie on the disks and are mounted here.
    pub freeze: Option<Vec<PathBuf>>,
    /// When what is frozen is thawed, whatever happens, in seconds: 1 to 60.
    pub freeze_deadline_s: u32,
    /// What becomes of a backup that could not freeze.
    pub on_freeze_failure: OnFreezeFailure,
    /// The folder with scripts; `None`: none are run.
    pub scripts: Option<PathBuf>,
    /// How much of what is said to be unchanged is read all the same, and compared: 0 to 100.
    pub sample_percent: u32,
    /// Bytes of the disks that are read in a second at most, on average. `None`: no limit.
    pub read_limit_bytes_per_s: Option<u64>,
}

impl Default for Settings {
    /// Ten seconds are long for a snapshot, and what programs that write bear.
    fn default() -> Self {
        Self {
            provider: None,
            freeze: None,
            freeze_deadline_s: 10,
            on_freeze_failure: OnFreezeFailure::Fail,
            scripts: None,
            sample_percent: 0,
            read_limit_bytes_per_s: None,
        }
    }
}

impl Settings {
    /// When what is frozen is thawed at the latest.
    pub fn freeze_deadline(&self) -> Duration {
        Duration::from_secs(self.freeze_deadline_s.clamp(1, MOST_FROZEN_S).into())
    }

    /// The same with the limit that one backup has of its own, if it has one.
    #[must_use]
    pub fn limited(self, read_bytes_per_s: Option<u64>) -> Self {
        Self { read_limit_bytes_per_s: read_bytes_per_s.or(self.read_limit_bytes_per_s), ..self }
    }

    /// Reads the JSON that the coordinator hands over; nothing at all means the defaults.
    pub fn parse(json: &str) -> Result<Self, Problem> {
        if json.trim().is_empty() || json.trim() == "null" {
            return Ok(Self::default());
        }
        serde_json::from_str(json)
            .map_err(|error| Problem::new(Reason::InvalidConfiguration, format!("section [vm]: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_means_defaults_and_unknown_keys_are_refused() {
        assert_eq!(Settings::parse("").unwrap(), Settings::default());
        assert_eq!(Settings::parse("{}").unwrap(), Settings::default());
        let all = r#"{"provider":"reflink","freeze":["/mnt/a"],"freeze_deadline_s":5,"on_freeze_failure":"crash-consistent","scripts":"/etc/vaultferry/vm","sample_percent":5,"read_limit_bytes_per_s":50000000}"#;
        let settings = Settings::parse(all).unwrap();
        assert_eq!(settings.on_freeze_failure, OnFreezeFailure::CrashConsistent);
        assert_eq!((settings.freeze_deadline(), settings.sample_percent), (Duration::from_secs(5), 5));
        assert_eq!(settings.clone().limited(Some(9)).read_limit_bytes_per_s, Some(9));
        assert_eq!(settings.limited(None).read_limit_bytes_per_s, Some(50_000_000));
        let problem = Settings::parse(r#"{"colour": "blue"}"#).unwrap_err();
        assert_eq!(problem.reason, Reason::InvalidConfiguration);
        let long = Settings { freeze_deadline_s: 999, ..Settings::default() };
        assert_eq!(long.freeze_deadline(), Duration::from_secs(60));
    }
}
