//! Secrets in Azure Key Vault.
//!
//! ```text
//! GET https://NAME.vault.azure.net/secrets/SECRET[/VERSION]?api-version=7.4        Authorization: Bearer …
//! ```
//! Invariants:
//! - A token for Key Vault goes to a host of Key Vault only: whoever may name a source may not have it sent elsewhere.
//! - No error, log line or `Debug` output holds a token or a secret. Nothing is kept.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use url::Url;
use vaultferry_proto::{Problem, Reason};
use zeroize::Zeroizing;

use super::ask::{Failure, Service, Settings, busy};
use super::identity::InvalidIdentity;
use super::token::{KEY_VAULT, TokenSource};
use super::{is_local, is_safe};
use crate::workload::unless_cancelled;

/// What the names of all vaults of the public cloud end with.
const HOSTS: &str = ".vault.azure.net";
const API_VERSION: &str = "7.4";

const SETTINGS: Settings =
    Settings { direct: false, connect: Duration::from_secs(10), deadline: Duration::from_secs(25), again: busy };

/// The address of a secret: `https://NAME.vault.azure.net/secrets/SECRET`, with or without a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretUrl(Url);

impl FromStr for SecretUrl {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        let url = Url::parse(text).map_err(|_| InvalidIdentity)?;
        let known = is_local(&url) || url.host_str().is_some_and(|host| host.ends_with(HOSTS));
        let bare = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        let plain = |text: &str| {
            (1..=127).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let mut segments = url.path().trim_start_matches('/').split('/');
        let named = segments.next() == Some("secrets") && segments.next().is_some_and(plain);
        let version = segments.next().is_none_or(plain) && segments.next().is_none();
        if !known || !is_safe(&url) || !bare || url.password().is_some() || !named || !version {
            return Err(InvalidIdentity);
        }
        Ok(Self(url))
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl SecretUrl {
    /// The secret's value as it is now, without a newline at its end (files that were uploaded have one). Waits 25 s at most, besides
    /// the wait for the token.
    pub async fn read(&self, tokens: &dyn TokenSource, cancel: &CancellationToken) -> Result<SecretString, Problem> {
        let token = tokens.token(KEY_VAULT, cancel).await?;
        // Proxies are for the way out, not for an emulator on this machine.
        let service = Service::new(Settings { direct: is_local(&self.0), ..SETTINGS })?;
        let mut url = self.0.clone();
        url.query_pairs_mut().append_pair("api-version", API_VERSION);
        let asked =
            async { Ok(service.ask(|client| client.get(url.clone()).bearer_auth(token.expose_secret())).await) };
        match unless_cancelled(asked, cancel).await? {
            Ok(answer) => self.value(&answer),
            Err(failure) => Err(self.problem(failure)),
        }
    }

    fn value(&self, answer: &[u8]) -> Result<SecretString, Problem> {
        #[derive(Deserialize)]
        struct Answer {
            value: String,
        }
        let answer = serde_json::from_slice::<Answer>(answer).map_err(|_| {
            Problem::new(Reason::KeyVaultUnavailable, format!("Key Vault's answer for {self} cannot be read"))
        })?;
        let value = Zeroizing::new(answer.value);
        Ok(SecretString::from(value.trim_end_matches(['\r', '\n'])))
    }

    fn problem(&self, failure: Failure) -> Problem {
        match failure {
            Failure::Away(detail) => {
                let message = format!("Key Vault did not give the secret {self}: {detail}");
                let fix = "Look at the network between this machine and Key Vault (its firewall, too), then try again.";
                Problem::new(Reason::KeyVaultUnavailable, message).with_fix(fix)
            }
            Failure::Refused { status: 401 | 403, detail } => {
                let message = format!("the identity may not read the secret {self}: {detail}");
                let fix = "az role assignment create --role \"Key Vault Secrets User\" --assignee PRINCIPAL-ID --scope KEY-VAULT-RESOURCE-ID";
                Problem::new(Reason::KeyVaultAccessDenied, message).with_fix(fix)
            }
            Failure::Refused { status: 404, .. } => {
                let message = format!("Key Vault has no secret {self}, or not this version of it");
                let fix = "Look at its name: az keyvault secret list --vault-name NAME --query \"[].id\".";
                Problem::new(Reason::UserErrorDBUserAuthFailed, message).with_fix(fix)
            }
            Failure::Refused { detail, .. } => {
                let message = format!("Key Vault does not give the secret {self}: {detail}");
                Problem::new(Reason::KeyVaultAccessDenied, message)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_to_key_vault_only() {
        for text in [
            "https://my.vault.azure.net/secrets/pg-backup",
            "https://my.vault.azure.net/secrets/pg-backup/0a1b",
            "http://127.0.0.1:8443/secrets/x",
        ] {
            assert_eq!(text.parse::<SecretUrl>().expect(text).to_string(), text);
        }
        for text in [
            "",
            "https://evil.example/secrets/x",
            "https://vault.azure.net.evil.example/secrets/x",
            "https://evil-vault.azure.net/secrets/x",
            "http://my.vault.azure.net/secrets/x",
            "https://my.vault.azure.net/keys/x",
            "https://my.vault.azure.net/secrets/",
            "https://my.vault.azure.net/secrets/a/b/c",
            "https://my.vault.azure.net/secrets/a?x=y",
            "https://u:p@my.vault.azure.net/secrets/a",
        ] {
            assert_eq!(text.parse::<SecretUrl>(), Err(InvalidIdentity), "{text}");
        }
    }

    #[test]
    fn a_newline_at_the_end_is_none_of_the_secret() {
        let url: SecretUrl = "https://my.vault.azure.net/secrets/x".parse().unwrap();
        assert_eq!(url.value(br#"{"value": " a b \r\n"}"#).unwrap().expose_secret(), " a b ");
        let problem = url.value(br#"{"values": "hunter2"}"#).unwrap_err();
        assert!(!format!("{problem:?}").contains("hunter2"), "{problem}");
    }
}
