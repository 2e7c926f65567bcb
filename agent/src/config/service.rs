//! `[service]`: the backup service that the agent reports to.

use std::path::PathBuf;

use secrecy::SecretString;

use super::reader::{Faults, Section};
use super::{Purpose, Surroundings, values};

/// `[service]`
#[derive(Debug)]
pub struct Service {
    /// `https://host:port`; `http://` with an address of this machine only.
    pub endpoint: String,
    /// Certificate authorities (PEM); none: the system's.
    pub ca: Option<PathBuf>,
    /// The agent's certificate (PEM) and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The variable that holds the bearer token.
    pub token_env: Option<String>,
    /// Its value; none when the variable is not set, which is a fault for [`Purpose::Agent`].
    pub token: Option<SecretString>,
}

/// None when the section is left out.
pub(super) fn read(
    root: &mut Section,
    surroundings: &Surroundings,
    purpose: Purpose,
    faults: &mut Faults,
) -> Option<Service> {
    let is_there = root.has("service");
    let mut section = root.section("service", faults);
    if !is_there {
        return None;
    }
    let endpoint = section.parsed("endpoint", faults, values::service_endpoint);
    if endpoint.is_none() && !section.is_faulty("endpoint", faults) {
        faults.add("service.endpoint", "is missing: https://host:port");
    }
    let is_plain = endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let mut file = |key: &'static str| {
        let path = section.parsed(key, faults, values::absolute_path)?;
        let name = format!("service.{key}");
        if is_plain {
            faults.add(&name, "is for an endpoint https://… only");
        } else if purpose == Purpose::Agent
            && let Err(error) = std::fs::File::open(&path)
        {
            faults.add(&name, format!("cannot be read: {error}"));
        }
        Some(path)
    };
    let (ca, cert, key) = (file("ca"), file("cert"), file("key"));
    let identity = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ if section.is_faulty("cert", faults) || section.is_faulty("key", faults) => None,
        _ => {
            faults.add("service", "cert and key go together");
            None
        }
    };
    let token_env = section.parsed("token_env", faults, values::variable_name);
    section.finish(faults);
    let token = token_env.as_ref().and_then(|variable| {
        let value = surroundings.variable(variable);
        if value.is_none() && purpose == Purpose::Agent {
            faults.add("service.token_env", format!("the environment has no variable {variable}, or it is empty"));
        }
        value.map(|value| SecretString::from(value.to_owned()))
    });
    Some(Service { endpoint: endpoint?, ca, identity, token_env, token })
}
