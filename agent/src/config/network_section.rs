//! `[network]`: the way out of this machine, for everything but the backup service and the sources themselves.
//!
//! What is read here holds no secret: a proxy's login is named.

use vaultferry_coordinator::vault::network::{Bypass, Credential, STRAIGHT, Settings};

use super::reader::{Faults, Section};
use super::{Purpose, Surroundings, values};

pub(super) fn read(
    mut section: Section,
    surroundings: &Surroundings,
    purpose: Purpose,
    faults: &mut Faults,
) -> Settings {
    let proxy = section.parsed("proxy", faults, proxy);
    let variable = section.parsed("proxy_credential_env", faults, values::variable_name);
    let file = section.parsed("proxy_credential_file", faults, values::absolute_path);
    let no_proxy = section.list("no_proxy", faults).unwrap_or_default();
    let ca_file = section.parsed("ca_file", faults, values::absolute_path);
    let is_faulty = section.is_faulty("proxy", faults);
    section.finish(faults);
    if let Err(entry) = Bypass::new(&no_proxy) {
        faults.add("network.no_proxy", format!("{entry:?} is no name, address, network or \"*\""));
    }
    let is_agent = purpose == Purpose::Agent;
    if let Some(variable) = &variable
        && is_agent
        && surroundings.variable(variable).is_none()
    {
        let fault = format!("the environment has no variable {variable}, or it is empty");
        faults.add("network.proxy_credential_env", fault);
    }
    for (key, path) in [("proxy_credential_file", &file), ("ca_file", &ca_file)] {
        if let Some(path) = path
            && is_agent
            && let Err(error) = std::fs::File::open(path)
        {
            faults.add(&format!("network.{key}"), format!("cannot be read: {error}"));
        }
    }
    let credential = match (variable, file) {
        (Some(_), Some(_)) => {
            faults.add("network", "a proxy's credential is in a variable or in a file, not in both");
            None
        }
        (Some(variable), None) => Some(Credential::Env(variable)),
        (None, Some(file)) => Some(Credential::File(file)),
        (None, None) => None,
    };
    if credential.is_some() && !is_faulty && proxy.as_deref().is_none_or(|proxy| proxy == STRAIGHT) {
        faults.add("network", "a proxy's credential needs proxy = \"http://host:port\"");
    }
    Settings { proxy, credential, no_proxy, ca_file }
}

/// The text is not repeated: somebody may have written a password into it.
fn proxy(text: &str) -> Result<String, String> {
    let wrong = || "must be http://host:port or \"none\"".to_owned();
    if text == STRAIGHT {
        return Ok(text.to_owned());
    }
    let url = url::Url::parse(text).map_err(|_| wrong())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a login; name it with proxy_credential_env or proxy_credential_file".to_owned());
    }
    let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    if url.scheme() == "http" && url.host().is_some() && is_bare { Ok(text.to_owned()) } else { Err(wrong()) }
}
