//! How the agent logs in: where it finds a secret, and what a path means to it, which has another working folder and another environment.

use std::path::Path;

use vaultferry_proto::control::v1::{CredentialReference, credential_reference::From};
use vaultferry_proto::{Problem, Reason};

use crate::args::Login;
use crate::config::is_variable_name;

/// The request's credential.
pub(super) fn reference(login: &Login) -> Result<Option<CredentialReference>, Problem> {
    let from = match (&login.passfile, &login.password_env, &login.identity) {
        (Some(path), _, _) => From::Passfile(absolute(path)?),
        (None, Some(name), _) => From::PasswordEnv(variable("--password-env", name)?),
        (None, None, Some(identity)) => From::Identity(identity.clone()),
        (None, None, None) => return Ok(None),
    };
    Ok(Some(CredentialReference { from: Some(from) }))
}

/// The URI with the client certificate that the flags name, in libpq's words: it belongs to the connection, whatever the password.
pub(super) fn with_certificate(login: &Login, uri: String) -> Result<String, Problem> {
    let (Some(certificate), Some(key)) = (&login.client_cert, &login.client_key) else { return Ok(uri) };
    let (certificate, key) = (encoded(&absolute(certificate)?), encoded(&absolute(key)?));
    let separator = if uri.contains('?') { '&' } else { '?' };
    Ok(format!("{uri}{separator}sslcert={certificate}&sslkey={key}"))
}

/// The same for each of several.
pub(super) fn with_certificates(login: &Login, uris: Vec<String>) -> Result<Vec<String>, Problem> {
    uris.into_iter().map(|uri| with_certificate(login, uri)).collect()
}

/// A path as a parameter's value.
fn encoded(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'.' | b'_' | b'~');
    path.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
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
        let login = Login { passfile: Some("pgpass".into()), ..login() };
        let reference = reference(&login).unwrap().unwrap();
        assert_eq!(reference.from, Some(From::Passfile(here.join("pgpass").to_str().unwrap().to_owned())));
    }

    #[test]
    fn a_certificate_goes_into_the_uri_and_an_identity_beside_it() {
        let login = Login {
            identity: Some("managed".to_owned()),
            client_cert: Some("/etc/my certs/a&b.crt".into()),
            client_key: Some("/k.pem".into()),
            ..login()
        };
        let files = "sslcert=/etc/my%20certs/a%26b.crt&sslkey=/k.pem";
        let uris = ["postgres://u@h/d", "postgres://u@h/d?sslmode=require"].map(str::to_owned).to_vec();
        let expected = [format!("postgres://u@h/d?{files}"), format!("postgres://u@h/d?sslmode=require&{files}")];
        assert_eq!(with_certificates(&login, uris).unwrap(), expected);
        assert_eq!(reference(&login).unwrap().unwrap().from, Some(From::Identity("managed".to_owned())));
        assert_eq!(with_certificate(&self::login(), "postgres://u@h/d".to_owned()).unwrap(), "postgres://u@h/d");
    }

    fn login() -> Login {
        Login { passfile: None, password_env: None, identity: None, client_cert: None, client_key: None }
    }
}
