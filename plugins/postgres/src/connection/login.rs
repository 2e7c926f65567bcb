//! What a login is made with: found, or asked for, at the moment of each login.
//!
//! Invariants:
//! - A token, or a secret of Key Vault, is asked for anew by every login, ours and our children's. None is kept for the next one.
//! - A token goes over TLS, or does not leave this machine.
//! - To a child a password goes by its environment, which its user and root alone can read: not by its arguments, not by a file (libpq
//!   before 14 reads lines of 320 bytes, and a token is longer).

use std::net::IpAddr;

use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::CredentialReference;
use vaultferry_plugin_sdk::azure::identity::Identity;
use vaultferry_plugin_sdk::azure::secret::SecretUrl;
use vaultferry_plugin_sdk::azure::token::{POSTGRES, TokenSource};
use vaultferry_proto::{Problem, Reason};

use crate::passfile;
use crate::quote;
use crate::uri::{Host, Tls, Uri};

/// How a password is come by.
#[derive(Debug)]
pub(super) enum Login {
    /// The server asks for none: a certificate, peer, trust.
    Nothing,
    /// One that does not change while a job runs.
    Password(SecretString),
    /// A token is the password.
    Token(Box<dyn TokenSource>),
    /// A secret is the password.
    Secret { secret: SecretUrl, tokens: Box<dyn TokenSource> },
}

impl Login {
    /// Reads files and variables; asks no service. `database` is the one that a line of a passfile is for.
    pub(super) fn new(credential: Option<&CredentialReference>, uri: &Uri, database: &str) -> Result<Self, Problem> {
        Ok(match credential {
            None => Self::Nothing,
            Some(CredentialReference::Environment(name)) => Self::Password(passfile::of_variable(name)?),
            Some(CredentialReference::Passfile(path)) => Self::Password(passfile::of_file(path, uri, database)?),
            Some(CredentialReference::Identity(identity)) => {
                refuse_without_tls(uri)?;
                Self::Token(identity.source()?)
            }
            Some(CredentialReference::Secret(secret)) => {
                let tokens = Identity::of_environment()?.source()?;
                Self::Secret { secret: secret.clone(), tokens }
            }
        })
    }

    /// The password for one login that follows at once.
    pub(super) async fn password(&self, cancel: &CancellationToken) -> Result<Option<SecretString>, Problem> {
        match self {
            Self::Nothing => Ok(None),
            Self::Password(password) => Ok(Some(password.clone())),
            Self::Token(tokens) => tokens.token(POSTGRES, cancel).await.map(Some),
            Self::Secret { secret, tokens } => secret.read(&**tokens, cancel).await.map(Some),
        }
    }

    /// What a failed login as `user` means when a token was the password: it was good for Entra, but the server wants none of it.
    pub(super) fn refused(&self, problem: Problem, user: &str) -> Problem {
        if !matches!(self, Self::Token(_)) || problem.reason != Reason::UserErrorDBUserAuthFailed {
            return problem;
        }
        let message = format!("{}; the password was a token of Microsoft Entra ID", problem.message);
        let unknown = ["does not exist", "password authentication failed"];
        if !unknown.iter().any(|words| problem.message.contains(words)) {
            return Problem::new(Reason::UserErrorBackupUserAuthFailed, message);
        }
        let fix = format!(
            "As the server's Microsoft Entra administrator, in the database postgres: SELECT * FROM pgaadauth_create_principal({}, false, \
             false); the role's name is the identity's, and the user of the URI.",
            quote::literal(user)
        );
        Problem::new(Reason::UserErrorMSIMissingPermissions, message).with_fix(fix)
    }
}

/// A token opens every server that knows its identity, for an hour.
fn refuse_without_tls(uri: &Uri) -> Result<(), Problem> {
    let here = match &uri.host {
        Host::Socket(_) => true,
        Host::Name(name) => name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
    };
    if here || !matches!(uri.tls, Tls::Disable | Tls::Allow | Tls::Prefer) {
        return Ok(());
    }
    let message = format!("a token would go to {}, and the connection may come about without TLS", uri.server());
    Err(Problem::new(Reason::InvalidSource, message).with_fix("Add sslmode=verify-full to the URI."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_does_not_cross_a_network_in_the_clear() {
        let managed = CredentialReference::from_identity("managed").unwrap();
        let login = |uri: &str| Login::new(Some(&managed), &uri.parse().unwrap(), "d");
        for uri in [
            "postgres://u@db.example/d",
            "postgres://u@db.example/d?sslmode=disable",
            "postgres://u@192.0.2.1/d?sslmode=allow",
            "postgres://u@[2001:db8::1]/d?sslmode=prefer",
        ] {
            assert_eq!(login(uri).unwrap_err().reason, Reason::InvalidSource, "{uri}");
        }
        for uri in [
            "postgres://u@db.example/d?sslmode=require",
            "postgres://u@db.example/d?sslmode=verify-full",
            "postgres://u@localhost/d",
            "postgres://u@127.0.0.1/d",
            "postgres://u@[::1]/d",
            "postgres://u@/d?host=/run/postgresql",
        ] {
            assert!(login(uri).is_ok(), "{uri}");
        }
    }

    #[test]
    fn a_refused_token_has_reasons_of_its_own() {
        let uri: Uri = "postgres://u@localhost/d".parse().unwrap();
        let managed = CredentialReference::from_identity("managed").unwrap();
        let login = Login::new(Some(&managed), &uri, "d").unwrap();
        let refused = |reason, message: &str| login.refused(Problem::new(reason, message), "it's me");
        let auth = Reason::UserErrorDBUserAuthFailed;
        for words in ["role \"it's me\" does not exist", "password authentication failed for user \"it's me\""] {
            let problem = refused(auth, words);
            assert_eq!(problem.reason, Reason::UserErrorMSIMissingPermissions, "{words}");
            assert!(problem.fix.contains("pgaadauth_create_principal('it''s me', false, false)"), "{}", problem.fix);
        }
        let problem = refused(auth, "the access token is of another tenant");
        assert_eq!(problem.reason, Reason::UserErrorBackupUserAuthFailed);
        let other = Problem::new(Reason::UserErrorDBNotFound, "database \"d\" does not exist");
        assert_eq!(login.refused(other.clone(), "u"), other);
        // A password is a password, wherever it comes from.
        let problem = Problem::new(auth, "password authentication failed");
        assert_eq!(Login::Nothing.refused(problem.clone(), "u"), problem);
    }
}
