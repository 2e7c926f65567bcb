//! `VMSnapshotScriptPluginConfig.json`.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use vaultferry_proto::Problem;

use super::{CONFIG_FILE, Kind, files};

/// Azure's, and what is left out.
const DEFAULT_TIMEOUT_S: u64 = 30;
const LONGEST_TIMEOUT_S: u64 = 1800;
/// More tries than that have never helped anybody, within half an hour.
const MOST_RETRIES: u32 = 100;

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Config {
    pre: Option<Script>,
    post: Option<Script>,
    /// Of all tries of one script.
    pub(super) timeout: Duration,
    /// A script that fails costs the point's application consistency, not the backup.
    pub(super) continue_on_failure: bool,
    pub(super) fs_freeze_enabled: bool,
}

/// One script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Script {
    /// Below the folder: names only.
    pub(super) path: PathBuf,
    pub(super) params: Vec<String>,
    /// Tries after the first.
    pub(super) retries: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wire {
    #[serde(default)]
    #[allow(dead_code, reason = "Azure's name for its runner; whatever it is, these scripts are meant")]
    plugin_name: Option<String>,
    #[serde(default)]
    pre_script_location: String,
    #[serde(default)]
    post_script_location: String,
    #[serde(default)]
    pre_script_params: Vec<String>,
    #[serde(default)]
    post_script_params: Vec<String>,
    #[serde(default)]
    pre_script_no_of_retries: u32,
    #[serde(default)]
    post_script_no_of_retries: u32,
    #[serde(default = "default_timeout")]
    timeout_in_seconds: u64,
    #[serde(default = "yes")]
    continue_backup_on_failure: bool,
    #[serde(default = "yes")]
    fs_freeze_enabled: bool,
    // How often Azure's runner looks whether a script has ended: here one waits for it.
    #[serde(default, rename = "ScriptsExecutionPollTimeSeconds")]
    #[allow(dead_code, reason = "taken, and of no use here")]
    poll_time: Option<u64>,
}

fn default_timeout() -> u64 {
    DEFAULT_TIMEOUT_S
}

fn yes() -> bool {
    true
}

impl Config {
    /// Reads the text of the file in `folder`. The fault is told without the file's values: a parameter may be a password.
    pub(super) fn parse(text: &str, folder: &Path) -> Result<Self, Problem> {
        let shown = folder.join(CONFIG_FILE);
        let refused = |fault: String| files::refused(format!("{}: {fault}", shown.display()));
        let wire: Wire = serde_json::from_str(text).map_err(|error| match error.to_string() {
            words if words.starts_with("unknown field") => refused(words),
            _ => {
                let (line, column) = (error.line(), error.column());
                refused(format!("line {line}, column {column}: this is no JSON, or a value is of the wrong type"))
            }
        })?;
        if !(1..=LONGEST_TIMEOUT_S).contains(&wire.timeout_in_seconds) {
            return Err(refused(format!("timeoutInSeconds must be from 1 to {LONGEST_TIMEOUT_S}")));
        }
        let script = |location: &str, params: Vec<String>, retries: u32, which: &str| {
            if location.trim().is_empty() {
                return Ok(None);
            }
            if retries > MOST_RETRIES {
                return Err(refused(format!("{which}ScriptNoOfRetries must be at most {MOST_RETRIES}")));
            }
            let path = below(Path::new(location.trim()), folder).ok_or_else(|| {
                refused(format!("{which}ScriptLocation must be a file in {}: copy the script there", folder.display()))
            })?;
            // The empty texts of Azure's template stand for none.
            let params = params.into_iter().filter(|param| !param.is_empty()).collect();
            Ok(Some(Script { path, params, retries }))
        };
        Ok(Self {
            pre: script(&wire.pre_script_location, wire.pre_script_params, wire.pre_script_no_of_retries, "pre")?,
            post: script(&wire.post_script_location, wire.post_script_params, wire.post_script_no_of_retries, "post")?,
            timeout: Duration::from_secs(wire.timeout_in_seconds),
            continue_on_failure: wire.continue_backup_on_failure,
            fs_freeze_enabled: wire.fs_freeze_enabled,
        })
    }

    /// `None`: none is configured.
    pub(super) fn script(&self, kind: Kind) -> Option<&Script> {
        match kind {
            Kind::Pre => self.pre.as_ref(),
            Kind::Post => self.post.as_ref(),
        }
    }
}

/// The path below the folder, without `..`; `None` when it leads elsewhere.
fn below(location: &Path, folder: &Path) -> Option<PathBuf> {
    let relative = if location.is_absolute() { location.strip_prefix(folder).ok()? } else { location };
    let mut path = PathBuf::new();
    for component in relative.components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (path != Path::new("")).then_some(path)
}
