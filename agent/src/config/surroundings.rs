//! What the configuration takes from outside: variables, and who runs us. A value of its own, so that tests do not touch the process's.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::Endpoint;

/// The environment of a process.
#[derive(Debug, Default)]
pub struct Surroundings {
    variables: HashMap<String, String>,
    is_root: bool,
}

impl Surroundings {
    /// This process's. Variables that are not Unicode are left out.
    pub fn of_process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self { variables, is_root: is_root() }
    }

    #[cfg(test)]
    pub(super) fn new(variables: &[(&str, &str)], is_root: bool) -> Self {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { variables, is_root }
    }

    /// A variable's value; an empty one counts as not set.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// `VAULTFERRY__SECTION__KEY`
    pub(super) fn configuration_variables(&self) -> HashMap<String, String> {
        let is_ours = |name: &str| name.to_ascii_uppercase().starts_with("VAULTFERRY__");
        self.variables
            .iter()
            .filter(|(name, _)| is_ours(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    fn folder(&self, variable: &str) -> Option<PathBuf> {
        self.variable(variable).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    /// /var/lib/vaultferry for root; else the user's state folder; none without a home.
    pub(super) fn default_state_dir(&self) -> Option<PathBuf> {
        if cfg!(windows) {
            return self.folder("ProgramData").map(|dir| dir.join("vaultferry"));
        }
        if self.is_root {
            return Some(PathBuf::from("/var/lib/vaultferry"));
        }
        let state_home = self.folder("XDG_STATE_HOME").or_else(|| Some(self.folder("HOME")?.join(".local/state")))?;
        Some(state_home.join("vaultferry"))
    }

    /// /run/vaultferry/control.sock for root; else in the user's run-time folder, or in `state_dir` when there is none.
    pub(super) fn default_endpoint(&self, state_dir: &Path) -> Endpoint {
        let path = if self.is_root {
            PathBuf::from("/run/vaultferry/control.sock")
        } else {
            match self.folder("XDG_RUNTIME_DIR") {
                Some(dir) => dir.join("vaultferry/control.sock"),
                None => state_dir.join("control.sock"),
            }
        };
        Endpoint::at(path)
    }
}

#[cfg(unix)]
fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[cfg(not(unix))]
fn is_root() -> bool {
    false
}
