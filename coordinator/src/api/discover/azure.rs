//! What a subscription has: its servers (P35), and the containers that files can be restored to (P64-P66).
//!
//! Invariants:
//! - A plugin asks Azure Resource Manager, with what its identity needs of the agent's environment and nothing else of it.
//! - The vault's own containers, and those that Azure keeps for itself (`$logs`), are no targets: they are not told.
//! - Servers of another region than the vault's are told, and not asked.

use std::time::Duration;

use secrecy::SecretString;
use vaultferry_proto::control::v1 as wire;
use vaultferry_proto::plugin::v1 as plugin_wire;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::location::Location;
use vaultferry_vault::store::{azure, retry};
use vaultferry_vault::target;

use super::{Api, PluginClient, credential};
use crate::api::is_same_region;
use crate::catalog::Credential;
use crate::job::{self, env_of};

/// Any plugin knows Azure; this one is always there.
const PLUGIN: &str = "postgres";
/// Names another Resource Manager than the public cloud's: plugins/sdk/src/azure/arm.rs reads it.
const ENDPOINT_VARIABLE: &str = "VAULTFERRY_RESOURCE_MANAGER";
/// Servers of one scope. Each is a login, four at a time.
const MAX_FOUND: usize = 500;
/// Longest text of a scope; its plugin reads it closely.
const MAX_TEXT: usize = 1024;
/// For the list of an account's containers: half of what an answer may take.
const LISTING: Duration = Duration::from_secs(60);
/// Of one answer, as the plugins' (plugins/sdk/src/azure/containers.rs): about 20 MB of the 64 MiB that the command line takes.
const MAX_CONTAINERS: usize = 100_000;
/// Longest name of a container.
const MAX_CONTAINER: usize = 63;
/// Hexadecimal digits after the vault's name in the name of an instance's container.
const INSTANCE_ID_DIGITS: usize = 32;

/// A server that may be asked.
#[derive(Debug)]
pub(super) struct Candidate {
    /// What is known of it before. It is not asked when it is left out.
    pub(super) known: wire::DiscoveredServer,
    private_network: bool,
}

impl Candidate {
    /// A server of which nothing but its URI is known.
    pub(super) fn named(uri: String) -> Self {
        Self { known: wire::DiscoveredServer { uri, ..wire::DiscoveredServer::default() }, private_network: false }
    }

    /// Why it could not be asked, with what Azure tells of its network.
    pub(super) fn explain(&self, problem: Problem) -> Problem {
        if !self.private_network || problem.reason != Reason::UserErrorMissingNetworkSecurityPermissions {
            return problem;
        }
        let message = format!("{}; Azure says that it is reached from private networks only", problem.message);
        let fix = "Run an agent in the server's virtual network, or in one that is peered with it (and resolves its private DNS zone), or \
                   make a private endpoint for this machine's network.";
        Problem::new(problem.reason, message).with_fix(fix)
    }
}

impl Api {
    /// The flexible servers of a subscription, by name.
    pub(super) async fn servers_in_azure(
        &self,
        scope: &wire::AzureScope,
        request: &wire::DiscoverSourcesRequest,
        login: &Credential,
    ) -> Result<Vec<Candidate>, Problem> {
        if request.user.is_empty() {
            let message = "servers of a subscription need the role to log in as";
            return Err(Problem::new(Reason::InvalidRequest, message).with_fix("Name it: --user backup."));
        }
        let (scope, pass_env) = plugin_scope(scope, login)?;
        let request = plugin_wire::FindServersRequest {
            scope: Some(scope),
            user: request.user.clone(),
            port: request.port,
            ssl_mode: request.ssl_mode.clone(),
        };
        let call = |mut plugin: PluginClient, _: String| async move { plugin.find_servers(request).await };
        let answer = self.ask_plugin_with(PLUGIN, pass_env, "find servers", call).await?;
        if answer.servers.len() > MAX_FOUND {
            let message = format!("there are {} servers; at most {MAX_FOUND} are asked at once", answer.servers.len());
            let fix = "Ask one resource group after the other: --resource-group.";
            return Err(Problem::new(Reason::InvalidRequest, message).with_fix(fix));
        }
        let region = &self.vault.region;
        Ok(answer.servers.into_iter().map(|server| candidate(server, region)).collect())
    }

    /// See `DiscoverContainers` in source.proto.
    pub(in crate::api) async fn containers(
        &self,
        mut request: wire::DiscoverContainersRequest,
    ) -> Result<Vec<wire::DiscoveredContainer>, Problem> {
        // Its address is a host's name, where case does not count; everywhere else it does.
        request.account.make_ascii_lowercase();
        let invalid = |message: &str, fix: &str| Err(Problem::new(Reason::InvalidRequest, message).with_fix(fix));
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !request.account.is_empty() && !is_account(&request.account) {
            return invalid("that is not the name of a storage account", "az storage account list shows the names.");
        }
        if request.prefix.len() > MAX_CONTAINER || !plain(&request.prefix) {
            return invalid("no container's name begins so", "Names have lower-case letters, digits and hyphens.");
        }
        let found = match &request.azure {
            Some(_) if !request.credential_env.is_empty() => {
                return invalid(
                    "an account is asked with its credential, a subscription with an identity, not both",
                    "Leave --credential-env or --subscription out.",
                );
            }
            None if request.account.is_empty() => {
                return invalid(
                    "nothing is named",
                    "Name a storage account (--account), or a subscription (--subscription).",
                );
            }
            Some(scope) => self.containers_in_azure(scope, &request).await?,
            None => self.containers_of_account(&request).await?,
        };
        // Azure's own: logs, and the pages of a web site.
        let is_system = |container: &wire::DiscoveredContainer| container.name.starts_with('$');
        Ok(found.into_iter().filter(|container| !is_system(container) && !self.is_of_vault(container)).collect())
    }

    async fn containers_in_azure(
        &self,
        scope: &wire::AzureScope,
        request: &wire::DiscoverContainersRequest,
    ) -> Result<Vec<wire::DiscoveredContainer>, Problem> {
        let (scope, pass_env) = plugin_scope(scope, &Credential::None)?;
        let (account, prefix) = (request.account.clone(), request.prefix.clone());
        let request = plugin_wire::FindContainersRequest { scope: Some(scope), account, prefix };
        let call = |mut plugin: PluginClient, _: String| async move { plugin.find_containers(request).await };
        let answer = self.ask_plugin_with(PLUGIN, pass_env, "find containers", call).await?;
        let found = answer.containers.into_iter().map(|found| container(found.account, found.name, found.region));
        Ok(found.collect())
    }

    async fn containers_of_account(
        &self,
        request: &wire::DiscoverContainersRequest,
    ) -> Result<Vec<wire::DiscoveredContainer>, Problem> {
        let vault = &self.shared.vault;
        let is_vaults = matches!(&vault.location, Location::Azure { account, .. } if *account == request.account);
        let credential = match request.credential_env.as_str() {
            "" if is_vaults => vault.credential.clone(),
            "" => {
                let message = format!("there is no credential for the account {}", request.account);
                let fix = "Name a variable of the agent's environment that holds a SAS or an account key (--credential-env), or ask Azure \
                           Resource Manager (--subscription).";
                return Err(Problem::new(Reason::InvalidRequest, message).with_fix(fix));
            }
            name => {
                check_variable(name, "--credential-env")?;
                job::files_credential(name)?.and_then(stored)
            }
        };
        let endpoint = job::endpoint_for(vault, &format!("azure://{}/", request.account));
        let retry = retry::Config { deadline: vault.store_deadline.min(LISTING) };
        let listing = async {
            let listed = target::containers(&request.account, &request.prefix, &endpoint, credential, retry).await;
            listed.map_err(|error| {
                let fix = "Name a credential that may list containers: an account key, or a SAS for the account (srt=s) with the right l.";
                Problem::from(error).with_fix(fix)
            })
        };
        let names = self.in_time(listing).await?;
        if names.len() > MAX_CONTAINERS {
            let message = format!("{} has more than {MAX_CONTAINERS} such containers", request.account);
            let fix = "Ask for a part of them: --prefix BEGINNING.";
            return Err(Problem::new(Reason::InvalidRequest, message).with_fix(fix));
        }
        Ok(names.into_iter().map(|name| container(request.account.clone(), name, String::new())).collect())
    }

    /// Nothing is restored into the vault itself.
    fn is_of_vault(&self, container: &wire::DiscoveredContainer) -> bool {
        let Location::Azure { account, name } = &self.shared.vault.location else { return false };
        let rest = container.name.strip_prefix(name.as_str());
        container.account == *account
            && rest.is_some_and(|rest| {
                let id = rest.strip_prefix('-').unwrap_or_default();
                let is_id = id.len() == INSTANCE_ID_DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit());
                rest.is_empty() || is_id
            })
    }
}

/// True for what Azure takes for the name of a storage account.
fn is_account(text: &str) -> bool {
    (3..=24).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

fn container(account: String, name: String, region: String) -> wire::DiscoveredContainer {
    wire::DiscoveredContainer { uri: format!("azure://{account}/{name}"), account, name, region }
}

fn stored(credential: plugin_wire::StoreCredential) -> Option<azure::Credential> {
    match (credential.sas.is_empty(), credential.account_key.is_empty()) {
        (false, _) => Some(azure::Credential::Sas(SecretString::from(credential.sas))),
        (true, false) => Some(azure::Credential::AccountKey(SecretString::from(credential.account_key))),
        (true, true) => None,
    }
}

/// What a variable that a plugin is given may be called is said in one place.
fn check_variable(name: &str, flag: &str) -> Result<(), Problem> {
    use wire::credential_reference::From::PasswordEnv;
    let reference = wire::CredentialReference { from: Some(PasswordEnv(name.to_owned())) };
    credential(Some(reference)).map(|_| ()).map_err(|_| {
        let message = format!("{flag} takes the name of a variable of the agent's environment");
        Problem::new(Reason::InvalidRequest, message)
    })
}

/// The scope as a plugin gets it, and the variables that it needs. Whoever logs in to servers as an identity, and names none for Azure, is
/// that identity there, too.
fn plugin_scope(
    scope: &wire::AzureScope,
    login: &Credential,
) -> Result<(plugin_wire::AzureScope, Vec<String>), Problem> {
    let identity = match (scope.identity.as_str(), login) {
        ("", Credential::Identity(identity)) if !identity.starts_with("key-vault:") => identity.clone(),
        (named, _) => named.to_owned(),
    };
    for text in [&scope.subscription_id, &scope.resource_group, &identity] {
        if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
            return Err(Problem::new(
                Reason::InvalidRequest,
                "a part of Azure's scope is too long, or has control characters",
            ));
        }
    }
    let mut pass_env = env_of(&Credential::Identity(identity.clone()));
    pass_env.push(ENDPOINT_VARIABLE.to_owned());
    if let Some(name) = identity.strip_prefix("env:") {
        check_variable(name, "the identity env:VARIABLE")?;
        pass_env.push(name.to_owned());
    }
    let (subscription_id, resource_group) = (scope.subscription_id.clone(), scope.resource_group.clone());
    Ok((plugin_wire::AzureScope { subscription_id, resource_group, identity }, pass_env))
}

fn candidate(server: plugin_wire::FoundServer, vault_region: &str) -> Candidate {
    let left_out = left_out(&server, vault_region).unwrap_or_default();
    let plugin_wire::FoundServer { name, uri, version, replica, state, region, private_network, .. } = server;
    let known = wire::DiscoveredServer { uri, name, version, replica, state, region, left_out, ..Default::default() };
    Candidate { known, private_network }
}

/// Why a server is not asked.
fn left_out(server: &plugin_wire::FoundServer, vault_region: &str) -> Option<String> {
    let are_known = !vault_region.trim().is_empty() && !server.region.is_empty();
    if are_known && !is_same_region(&server.region, vault_region) {
        return Some(format!("it is in {}, the vault in {vault_region}", server.region));
    }
    if !server.running {
        let id = &server.resource_id;
        return Some(format!("it is {}; to start it: az postgres flexible-server start --ids {id}", server.state));
    }
    server.uri.is_empty().then(|| "Azure has no name for it yet".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(region: &str, running: bool) -> plugin_wire::FoundServer {
        plugin_wire::FoundServer {
            name: "shop".to_owned(),
            uri: "postgres://u@h:5432/".to_owned(),
            state: if running { "Ready" } else { "Stopped" }.to_owned(),
            running,
            region: region.to_owned(),
            resource_id: "/subscriptions/s/shop".to_owned(),
            ..plugin_wire::FoundServer::default()
        }
    }

    #[test]
    fn servers_that_are_not_for_this_vault_or_do_not_run_are_told_and_not_asked() {
        for (region, vault) in [("westeurope", "westeurope"), ("westeurope", "West Europe"), ("", "x"), ("x", "")] {
            assert_eq!(left_out(&found(region, true), vault), None, "{region} {vault}");
        }
        let elsewhere = left_out(&found("eastus", true), "West Europe").expect("left out");
        assert!(elsewhere.contains("eastus") && elsewhere.contains("West Europe"), "{elsewhere}");
        let stopped = left_out(&found("", false), "").expect("left out");
        assert!(stopped.contains("Stopped") && stopped.contains("start --ids /subscriptions/s/shop"), "{stopped}");
        let new = plugin_wire::FoundServer { uri: String::new(), ..found("", true) };
        assert!(left_out(&new, "").is_some());
    }

    #[test]
    fn an_account_has_a_name_that_azure_would_take() {
        for (text, expected) in
            [("abc", true), ("acct2", true), ("ab", false), ("a-b-c", false), ("Acct", false), ("", false)]
        {
            assert_eq!(is_account(text), expected, "{text}");
        }
        assert!(is_account(&"a".repeat(24)) && !is_account(&"a".repeat(25)));
    }

    #[test]
    fn whoever_logs_in_as_an_identity_is_it_in_azure_too() {
        let scope = |identity: &str| wire::AzureScope { identity: identity.to_owned(), ..Default::default() };
        let managed = Credential::Identity("managed:1-2".to_owned());
        let secret = Credential::Identity("key-vault:https://v.vault.azure.net/secrets/s".to_owned());
        for (named, login, identity) in [
            ("", &managed, "managed:1-2"),
            ("workload", &managed, "workload"),
            ("", &secret, ""),
            ("", &Credential::None, ""),
        ] {
            let (scope, variables) = plugin_scope(&scope(named), login).expect("valid");
            assert_eq!(scope.identity, identity);
            assert!(variables.iter().any(|name| name == ENDPOINT_VARIABLE), "{variables:?}");
        }
        let (_, variables) = plugin_scope(&scope("env:ARM_TOKEN"), &Credential::None).expect("valid");
        assert!(variables.iter().any(|name| name == "ARM_TOKEN"));
        for bad in ["env:LD_PRELOAD", "env:PATH", "env:", "a\nb"] {
            assert!(plugin_scope(&scope(bad), &Credential::None).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_private_server_that_does_not_answer_is_explained() {
        let private = Candidate { private_network: true, ..Candidate::named("u".to_owned()) };
        let network = || Problem::new(Reason::UserErrorMissingNetworkSecurityPermissions, "h did not answer");
        assert!(private.explain(network()).fix.contains("virtual network"));
        assert_eq!(Candidate::named("u".to_owned()).explain(network()), network());
        let other = Problem::new(Reason::TlsFailed, "no");
        assert_eq!(private.explain(other.clone()), other);
    }
}
