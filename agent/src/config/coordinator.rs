//! The settings in the coordinator's words.

use std::collections::BTreeMap;
use std::sync::Arc;

use vaultferry_coordinator::LinkConfig;
use vaultferry_coordinator::plugin::{Command, MAINTENANCE};
use vaultferry_coordinator::vault::{
    Access, AzureKeyVault, Credential, FixedToken, KeyPlace, Location, TokenFile, TokenSource,
};
use vaultferry_proto::{Problem, Reason};

use super::{CredentialKind, Key, Settings, Token};

/// Below `state_dir`, where a vault is when no other place is configured.
const DEFAULT_VAULT_DIR: &str = "vault";

impl Settings {
    /// The vault's location: the configured one, or the default folder.
    pub fn location(&self) -> Location {
        match &self.vault.location {
            Some(location) => location.clone(),
            None => Location::Folder(self.state_dir.join(DEFAULT_VAULT_DIR)),
        }
    }

    /// What the coordinator is opened with. Holds the vault's credential.
    ///
    /// Errors: the path of this executable cannot be found, or a path has bytes that are not Unicode.
    pub fn to_coordinator(&self) -> Result<vaultferry_coordinator::Config, Problem> {
        let program = std::env::current_exe().map_err(|error| {
            Problem::new(Reason::Internal, format!("cannot find the path of this program: {error}"))
        })?;
        let not_handed = |what: &str, error: serde_json::Error| {
            let message = format!("{what} cannot be handed to the plugin: {error}");
            Problem::new(Reason::InvalidConfiguration, message)
        };
        let postgres = serde_json::to_string(&self.postgres);
        let postgres = postgres.map_err(|error| not_handed("postgres.client_dirs", error))?;
        let vm = serde_json::to_string(&self.vm).map_err(|error| not_handed("a path of [vm]", error))?;
        let plugin = |name: &str, settings_json: String| {
            let args = vec!["plugin".into(), name.into()];
            (name.to_owned(), Command { program: program.clone(), args, settings_json })
        };
        let plugins =
            BTreeMap::from([plugin("postgres", postgres), plugin("vm", vm), plugin(MAINTENANCE, String::new())]);
        Ok(vaultferry_coordinator::Config {
            state_dir: self.state_dir.clone(),
            listen: self.listen.iter().map(|endpoint| endpoint.path().to_path_buf()).collect(),
            vault: self.access(),
            vault_key: self.key_place()?,
            maintenance: self.maintenance(),
            region: self.vault.region.clone(),
            plugins,
            bytes_in_flight: self.limits.bytes_in_flight,
            upload_bytes_per_s: self.limits.upload,
            limits: self.limits.jobs,
            rehydration_poll: self.limits.rehydration_poll,
            create_default_vault: self.vault.location.is_none(),
            service: self.link(),
        })
    }

    /// The backup service. Holds the token.
    fn link(&self) -> Option<LinkConfig> {
        self.service.as_ref().map(|service| LinkConfig {
            endpoint: service.endpoint.clone(),
            ca: service.ca.clone(),
            identity: service.identity.clone(),
            token: service.token.clone(),
        })
    }

    fn key_place(&self) -> Result<KeyPlace, Problem> {
        let (key, token) = match &self.vault.key {
            Key::File(Some(path)) => return Ok(KeyPlace::File(path.clone())),
            Key::File(None) => return Ok(KeyPlace::File(vaultferry_coordinator::default_key_path(&self.state_dir))),
            Key::KeyVault { key, token } => (key, token),
        };
        let token: Box<dyn TokenSource> = match token {
            Token::File(path) => Box::new(TokenFile(path.clone())),
            Token::Variable { secret: Some(secret), .. } => Box::new(FixedToken(secret.clone())),
            Token::Variable { variable, secret: None } => {
                let message = format!("the environment has no variable {variable}, or it is empty");
                return Err(Problem::new(Reason::InvalidConfiguration, message));
            }
        };
        let key = AzureKeyVault::new(key.clone(), token, self.limits.store_deadline)?;
        Ok(KeyPlace::Wrapped(Arc::new(key)))
    }

    /// The credential that may delete, when there is one apart.
    fn maintenance(&self) -> Option<Credential> {
        let secret = self.vault.azure.as_ref()?.maintenance_secret.clone()?;
        Some(Credential::Sas(secret))
    }

    /// The vault, and what it takes to get in. Holds its credential.
    pub fn access(&self) -> Access {
        let azure = self.vault.azure.as_ref();
        let credential = azure.and_then(|azure| {
            let secret = azure.secret.clone()?;
            Some(match azure.credential {
                CredentialKind::AccessKey => Credential::AccountKey(secret),
                CredentialKind::Sas => Credential::Sas(secret),
            })
        });
        Access {
            location: self.location(),
            endpoint: azure.and_then(|azure| azure.endpoint.clone()),
            credential,
            store_deadline: self.limits.store_deadline,
        }
    }
}
