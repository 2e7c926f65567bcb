//! What the system says of proxies: the environment, `/etc/environment`, and the Azure agent's configuration (V46).

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::{Bypass, Invalid, Proxy};

/// Read by logins, and so not by services: whoever sets a proxy there means the whole machine.
const ENVIRONMENT_FILE: &str = "/etc/environment";
/// The Azure Linux agent's.
const AGENT_FILE: &str = "/etc/waagent.conf";

/// The variables of a process, and its system's files. A value of its own, so that tests need not change the process's.
#[derive(Clone, Default)]
pub struct Surroundings {
    variables: HashMap<String, String>,
    environment_file: String,
    agent_file: String,
}

impl Surroundings {
    /// This process's, and this machine's. Files that are not there, or cannot be read, say nothing.
    pub fn of_process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let read = |path: &str| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
        Self { variables, environment_file: read(ENVIRONMENT_FILE), agent_file: read(AGENT_FILE) }
    }

    /// Made up.
    pub fn new(variables: &[(&str, &str)], environment_file: &str, agent_file: &str) -> Self {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { variables, environment_file: environment_file.to_owned(), agent_file: agent_file.to_owned() }
    }

    /// A variable's value; an empty one counts as not set.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).filter(|value| !value.is_empty()).cloned()
    }

    /// The first of the names that the environment has, else the file; with the place for messages.
    fn first(&self, names: &[&str], in_file: &[&str]) -> Option<(String, String)> {
        for name in names {
            if let Some(value) = self.variable(name) {
                return Some((value, format!("{name} of the environment")));
            }
        }
        in_file.iter().find_map(|name| {
            let value = assigned(&self.environment_file, name)?;
            Some((value, format!("{name} in {ENVIRONMENT_FILE}")))
        })
    }

    /// The proxies for `https` and for `http`.
    pub(super) fn proxies(&self, bypass: &Arc<Bypass>) -> Result<(Option<Proxy>, Option<Proxy>), Invalid> {
        let all = ["ALL_PROXY", "all_proxy"];
        let secure = ["HTTPS_PROXY", "https_proxy", all[0], all[1]];
        // HTTP_PROXY in capitals is what a CGI program's caller may set: nobody reads it.
        let plain = ["http_proxy", all[0], all[1]];
        let in_file = [secure[0], secure[1], all[0], all[1], plain[0]];
        let https = self.first(&secure, &in_file).or_else(|| self.of_agent());
        let http = self.first(&plain, &plain).or_else(|| self.of_agent());
        let parse = |found: Option<(String, String)>| {
            found.map(|(value, origin)| Proxy::parse(&value, &origin, Arc::clone(bypass))).transpose()
        };
        let known = |fault: Invalid| {
            Invalid(format!(
                "{fault}; name a proxy with [network] proxy = \"http://host:port\", or say proxy = \"none\""
            ))
        };
        Ok((parse(https).map_err(known)?, parse(http).map_err(known)?))
    }

    /// What is reached straight, as the system says: `a,b,c`.
    pub(super) fn no_proxy(&self) -> String {
        let names = ["NO_PROXY", "no_proxy"];
        self.first(&names, &names).map(|(list, _)| list).unwrap_or_default()
    }

    fn of_agent(&self) -> Option<(String, String)> {
        let set = |name| assigned(&self.agent_file, name).filter(|value| value != "None");
        let (host, port) = (set("HttpProxy.Host")?, set("HttpProxy.Port")?);
        Some((format!("{host}:{port}"), format!("HttpProxy.Host in {AGENT_FILE}")))
    }
}

/// `name=value`, also quoted and after `export`; the last one counts, an empty one is none.
fn assigned(text: &str, name: &str) -> Option<String> {
    let value = |line: &str| {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (known, value) = line.split_once('=')?;
        (known.trim() == name).then(|| value.trim().trim_matches(['"', '\'']).to_owned())
    };
    text.lines().filter_map(value).next_back().filter(|value| !value.is_empty())
}
