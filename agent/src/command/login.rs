//! Where the agent finds a secret, and what a path means to it: the agent has another working folder and another environment.

use std::path::Path;

use vaultferry_proto::control::v1::{CredentialReference, credential_reference::From};
use vaultferry_proto::{Problem, Reason};

use crate::args::Login;
use crate::config::is_variable_name;

/// The request's credential.
pub(super) fn reference(login: &Login) -> Result<Option<CredentialReference>, Problem> {
    let from = match (&login.passfile, &login.password_env) {
        (Some(path), _) => From::Passfile(absolute(path)?),
        (None, Some(name)) => From::PasswordEnv(variable("--password-env", name)?),
        (None, None) => return Ok(None),
    };
    Ok(Some(CredentialReference { from: Some(from) }))
}

/// The variable's name; refuses what looks like the secret itself, without repeating it.
pub(super) fn variable(flag: &str, name: &str) -> Result<String, Problem> {
    if is_variable_name(name) {
        return Ok(name.to_owned());
    }
    let message = format!("{flag} takes the name of a variable of the agent's environment, not the secret itself");
    Err(Problem::new(Reason::InvalidRequest, message))
}

/// The path as the agent has to read it. Symbolic links and ".." stay as they are.
pub(super) fn absolute(path: &Path) -> Result<String, Problem> {
    let refuse = |why: String| Problem::new(Reason::InvalidRequest, format!("the path {} {why}", path.display()));
    let absolute = std::path::absolute(path).map_err(|error| refuse(format!("cannot be made absolute: {error}")))?;
    absolute.into_os_string().into_string().map_err(|_| refuse("is not Unicode".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_the_wrong_place_is_not_repeated() {
        let problem = variable("--password-env", "hunter2!").unwrap_err();
        assert!(!format!("{problem:?}").contains("hunter2"));
        assert_eq!(variable("--password-env", "PGPASSWORD_SHOP").unwrap(), "PGPASSWORD_SHOP");
    }

    #[test]
    fn paths_become_absolute() {
        let here = std::env::current_dir().unwrap();
        let passfile = Some("pgpass".into());
        let reference = reference(&Login { passfile, password_env: None }).unwrap().unwrap();
        assert_eq!(reference.from, Some(From::Passfile(here.join("pgpass").to_str().unwrap().to_owned())));
    }
}
