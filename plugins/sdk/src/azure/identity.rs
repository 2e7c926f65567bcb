//! Who a process is in Microsoft Entra ID, and how it gets its tokens.
//!
//! | identity | asked | with | named by |
//! |---|---|---|---|
//! | `managed`, `managed:CLIENT-ID` | the machine's metadata service (IMDS) | nothing: who asks is on the machine | `AZURE_POD_IDENTITY_AUTHORITY_HOST`, or else `http://169.254.169.254` |
//! | `workload` | Entra's token endpoint | the token that the platform keeps in a file | `AZURE_TENANT_ID`, `AZURE_CLIENT_ID`, `AZURE_FEDERATED_TOKEN_FILE`, `AZURE_AUTHORITY_HOST` |
//!
//! Invariants:
//! - The variables are read for every token: the platform replaces the file's content, and a restart of the agent is not needed.
//! - An assertion goes to an address with TLS only, or to this machine.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use url::{Url, form_urlencoded};
use vaultferry_proto::{Problem, Reason};
use zeroize::Zeroizing;

use super::ask::{Failure, Service, Settings, busy};
use super::is_safe;
use super::token::TokenSource;
use crate::workload::unless_cancelled;

// The coordinator gives these to a plugin that needs them: `env_of` in coordinator/src/job/session.rs.
const IMDS_HOST: &str = "AZURE_POD_IDENTITY_AUTHORITY_HOST";
const TENANT_ID: &str = "AZURE_TENANT_ID";
const CLIENT_ID: &str = "AZURE_CLIENT_ID";
const TOKEN_FILE: &str = "AZURE_FEDERATED_TOKEN_FILE";
const AUTHORITY_HOST: &str = "AZURE_AUTHORITY_HOST";

/// The metadata service of every virtual machine of Azure. Link-local: it is not routed, and has no TLS.
const IMDS: &str = "http://169.254.169.254";
const IMDS_API_VERSION: &str = "2018-02-01";
/// Entra of the public cloud.
const AUTHORITY: &str = "https://login.microsoftonline.com";
/// How a federated token is handed over.
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// A federated token has a few KiB; a wrong path (a disk, a dump) is not read into memory.
const LARGEST_ASSERTION: u64 = 64 << 10;

/// It is next door; elsewhere than in Azure nobody ever answers at its address.
const IMDS_SETTINGS: Settings = Settings {
    direct: true,
    connect: Duration::from_secs(2),
    deadline: Duration::from_secs(12),
    // 404 and 410: it is being updated, says its documentation.
    again: |status| matches!(status, 404 | 410) || busy(status),
};

const ENTRA_SETTINGS: Settings =
    Settings { direct: false, connect: Duration::from_secs(10), deadline: Duration::from_secs(25), again: busy };

/// Who we are in Entra.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The machine's managed identity: its own one, or the user-assigned one with that client id.
    Managed {
        /// `None`: the system-assigned one, or the only one that there is.
        client_id: Option<String>,
    },
    /// What the platform says that this process is: Kubernetes with workload identity, or any other issuer that Entra trusts.
    Workload,
}

/// The text names no identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "an identity is managed, managed:CLIENT-ID, workload, or key-vault:https://NAME.vault.azure.net/secrets/SECRET"
)]
pub struct InvalidIdentity;

impl FromStr for Identity {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        match text.split_once(':') {
            None if text == "managed" => Ok(Self::Managed { client_id: None }),
            None if text == "workload" => Ok(Self::Workload),
            Some(("managed", id)) if is_id(id) => Ok(Self::Managed { client_id: Some(id.to_owned()) }),
            _ => Err(InvalidIdentity),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Managed { client_id: None } => f.write_str("managed"),
            Self::Managed { client_id: Some(id) } => write!(f, "managed:{id}"),
            Self::Workload => f.write_str("workload"),
        }
    }
}

/// Ids of Entra are UUIDs; a tenant may go by its domain.
fn is_id(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
}

impl Identity {
    /// Who this process is when nobody says it: what the platform says, or else the machine.
    pub fn of_environment() -> Result<Self, Problem> {
        if variable(TOKEN_FILE)?.is_some() {
            return Ok(Self::Workload);
        }
        Ok(Self::Managed { client_id: variable(CLIENT_ID)? })
    }

    /// Where its tokens come from. Sends nothing.
    pub fn source(&self) -> Result<Box<dyn TokenSource>, Problem> {
        Ok(match self {
            Self::Managed { client_id } => {
                Box::new(Imds { service: Service::new(IMDS_SETTINGS)?, client_id: client_id.clone() })
            }
            Self::Workload => Box::new(Workload { service: Service::new(ENTRA_SETTINGS)? }),
        })
    }
}

fn configuration(message: String) -> Problem {
    Problem::new(Reason::InvalidConfiguration, message)
}

/// A variable of the environment; an empty one is none.
fn variable(name: &str) -> Result<Option<String>, Problem> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(configuration(format!("the variable {name} is not UTF-8"))),
    }
}

fn needed(name: &str) -> Result<String, Problem> {
    let missing = || {
        let fix = format!(
            "Set {TENANT_ID}, {CLIENT_ID} and {TOKEN_FILE} where the agent is started, and start it again. In Kubernetes the workload \
             identity webhook sets them in pods with the label azure.workload.identity/use: \"true\"."
        );
        configuration(format!("the agent's environment has no variable {name}, which the identity workload needs"))
            .with_fix(fix)
    };
    variable(name)?.ok_or_else(missing)
}

fn needed_id(name: &str) -> Result<String, Problem> {
    let value = needed(name)?;
    if is_id(&value) { Ok(value) } else { Err(configuration(format!("the variable {name} holds no id"))) }
}

/// The address that a variable names, or else the usual one, without a slash at its end.
fn address(name: &str, usual: &str) -> Result<Url, Problem> {
    let text = variable(name)?.unwrap_or_else(|| usual.to_owned());
    text.parse::<Url>()
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none())
        .filter(|url| url.username().is_empty() && url.password().is_none())
        .ok_or_else(|| configuration(format!("the variable {name} holds no address of a service")))
}

/// The path below an address.
fn below(address: &Url, path: &str) -> Url {
    let mut url = address.clone();
    url.set_path(&format!("{}/{path}", address.path().trim_end_matches('/')));
    url
}

/// The token in an answer of either service.
fn token_in(answer: &[u8], whose: &str) -> Result<SecretString, Problem> {
    #[derive(Deserialize)]
    struct Answer {
        access_token: String,
    }
    match serde_json::from_slice::<Answer>(answer) {
        Ok(answer) if !answer.access_token.is_empty() => Ok(SecretString::from(answer.access_token)),
        _ => Err(Problem::new(Reason::IdentityUnavailable, format!("{whose} answered without a token"))),
    }
}

/// The machine's metadata service.
#[derive(Debug)]
struct Imds {
    service: Service,
    client_id: Option<String>,
}

#[async_trait]
impl TokenSource for Imds {
    async fn token(&self, scope: &str, cancel: &CancellationToken) -> Result<SecretString, Problem> {
        let address = address(IMDS_HOST, IMDS)?;
        let mut url = below(&address, "metadata/identity/oauth2/token");
        let resource = scope.strip_suffix("/.default").unwrap_or(scope);
        url.query_pairs_mut().append_pair("api-version", IMDS_API_VERSION).append_pair("resource", resource);
        if let Some(client_id) = &self.client_id {
            url.query_pairs_mut().append_pair("client_id", client_id);
        }
        let asked = async { Ok(self.service.ask(|client| client.get(url.clone()).header("Metadata", "true")).await) };
        match unless_cancelled(asked, cancel).await? {
            Ok(answer) => token_in(&answer, "the metadata service"),
            Err(failure) => Err(self.problem(&address, failure)),
        }
    }
}

impl Imds {
    fn problem(&self, address: &Url, failure: Failure) -> Problem {
        match failure {
            Failure::Away(detail) => {
                let message = format!("the machine's metadata service at {address} did not give a token: {detail}");
                Problem::new(Reason::IdentityUnavailable, message)
            }
            Failure::Refused { detail, .. } => {
                let (whose, assign) = match &self.client_id {
                    Some(id) => (format!("the managed identity with the client id {id}"), " --identities IDENTITY"),
                    None => ("a system-assigned managed identity".to_owned(), ""),
                };
                let message = format!("this machine has no token of {whose}: {detail}");
                let fix = format!(
                    "Give the machine the identity: az vm identity assign --resource-group GROUP --name MACHINE{assign}. If it has several, \
                     say which: --identity managed:CLIENT-ID."
                );
                Problem::new(Reason::UserErrorMSIMissingPermissions, message).with_fix(fix)
            }
        }
    }
}

/// Entra, which trusts the platform's word for who we are.
#[derive(Debug)]
struct Workload {
    service: Service,
}

#[async_trait]
impl TokenSource for Workload {
    async fn token(&self, scope: &str, cancel: &CancellationToken) -> Result<SecretString, Problem> {
        let (tenant, client_id) = (needed_id(TENANT_ID)?, needed_id(CLIENT_ID)?);
        let authority = address(AUTHORITY_HOST, AUTHORITY)?;
        if !is_safe(&authority) {
            return Err(configuration(format!("the variable {AUTHORITY_HOST} holds an address without TLS")));
        }
        let assertion = assertion(Path::new(&needed(TOKEN_FILE)?)).await?;
        let url = below(&authority, &format!("{tenant}/oauth2/v2.0/token"));
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", client_id.as_str()),
            ("scope", scope),
            ("client_assertion_type", ASSERTION_TYPE),
            ("client_assertion", assertion.expose_secret()),
        ];
        let form = Zeroizing::new(form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish());
        let question = |client: &reqwest::Client| {
            let request = client.post(url.clone()).header("content-type", "application/x-www-form-urlencoded");
            request.body(form.as_bytes().to_vec())
        };
        let asked = async { Ok(self.service.ask(question).await) };
        match unless_cancelled(asked, cancel).await? {
            Ok(answer) => token_in(&answer, "Entra"),
            Err(Failure::Away(detail)) => {
                let message = format!("Entra at {authority} did not give a token: {detail}");
                let fix = "Let this machine reach that address (port 443), by HTTPS_PROXY in the agent's environment if need be.";
                Err(Problem::new(Reason::IdentityUnavailable, message).with_fix(fix))
            }
            Err(Failure::Refused { detail, .. }) => {
                let message = format!("Entra refuses the workload identity {client_id}: {detail}");
                let fix = "Make a federated credential of that identity for this issuer and subject: az identity federated-credential create \
                           --identity-name NAME --resource-group GROUP --name vaultferry --issuer ISSUER --subject SUBJECT.";
                Err(Problem::new(Reason::UserErrorMSIMissingPermissions, message).with_fix(fix))
            }
        }
    }
}

/// What the platform says of us, as it stands in its file now.
async fn assertion(path: &Path) -> Result<SecretString, Problem> {
    let unreadable = |why: String| {
        let message = format!("the file {} that {TOKEN_FILE} names {why}", path.display());
        configuration(message).with_fix("Let the agent's user read it; the platform writes it.")
    };
    let failed = |error: std::io::Error| unreadable(format!("cannot be read: {error}"));
    let metadata = tokio::fs::metadata(path).await.map_err(failed)?;
    if !metadata.is_file() || metadata.len() > LARGEST_ASSERTION {
        return Err(unreadable("holds no token".to_owned()));
    }
    let text = Zeroizing::new(tokio::fs::read_to_string(path).await.map_err(failed)?);
    match text.trim() {
        "" => Err(unreadable("is empty".to_owned())),
        token => Ok(SecretString::from(token)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_and_written_alike() {
        for text in ["managed", "managed:6b2f4c1e-0000-4000-8000-0123456789ab", "workload"] {
            assert_eq!(text.parse::<Identity>().expect(text).to_string(), text);
        }
        for text in ["", "Managed", "managed:", "managed:a b", "managed:a&resource=x", "workload:x", "key-vault:x"] {
            assert_eq!(text.parse::<Identity>(), Err(InvalidIdentity), "{text}");
        }
    }

    #[test]
    fn paths_go_below_an_address_with_or_without_a_slash() {
        for text in ["https://login.example", "https://login.example/"] {
            let url = below(&text.parse().expect("an address"), "t/oauth2/v2.0/token");
            assert_eq!(url.as_str(), "https://login.example/t/oauth2/v2.0/token");
        }
    }

    #[test]
    fn an_answer_without_a_token_is_not_repeated() {
        let problem = token_in(br#"{"refresh_token": "hunter2"}"#, "Entra").unwrap_err();
        assert_eq!(problem.reason, Reason::IdentityUnavailable);
        assert!(!format!("{problem:?}").contains("hunter2"));
        let token = token_in(br#"{"access_token": "t", "expires_in": "3599"}"#, "Entra").unwrap();
        assert_eq!(token.expose_secret(), "t");
        assert!(!format!("{token:?}").contains("\"t\""));
    }
}
