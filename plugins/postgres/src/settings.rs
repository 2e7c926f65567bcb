//! The `[postgres]` section of the configuration.

use std::path::PathBuf;

use serde::Deserialize;
use vaultferry_proto::{Problem, Reason};

/// Settings of this plugin. Unknown keys are refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Folders with `pg_dump` and `pg_restore`; empty: Debian's places, then PATH.
    pub client_dirs: Vec<PathBuf>,
}

impl Settings {
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
        let problem = Settings::parse(r#"{"client_dir": "/opt"}"#).unwrap_err();
        assert_eq!(problem.reason, Reason::InvalidConfiguration);
    }
}
