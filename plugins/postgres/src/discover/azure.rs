//! The flexible servers of a subscription (P35), as Azure Resource Manager tells them. None of them is asked, and nothing is changed.

use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::azure::{Scope, region};
use vaultferry_plugin_sdk::{FoundServer, ServerLogin};
use vaultferry_proto::Problem;
use vaultferry_vault::percent::encode;

use crate::uri::{DEFAULT_PORT, Uri};

/// Of the provider Microsoft.DBforPostgreSQL.
const API_VERSION: &str = "2022-12-01";
/// A flexible server has a certificate of a public authority, for its own name.
const STRICTEST: &str = "verify-full";

/// One server, with what is used of it.
#[derive(Deserialize)]
struct Item {
    id: String,
    name: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    properties: Properties,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Properties {
    fully_qualified_domain_name: Option<String>,
    version: Option<String>,
    minor_version: Option<String>,
    state: Option<String>,
    replication_role: Option<String>,
    source_server_resource_id: Option<String>,
    network: Option<Network>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Network {
    public_network_access: Option<String>,
    delegated_subnet_resource_id: Option<String>,
}

/// By name. Wrong words of the login are refused before anything is asked.
pub(crate) async fn find(
    scope: &Scope,
    login: &ServerLogin,
    cancel: &CancellationToken,
) -> Result<Vec<FoundServer>, Problem> {
    uri("server.invalid", login)?;
    let client = scope.reader()?;
    let path = format!("{}/providers/Microsoft.DBforPostgreSQL/flexibleServers", scope.path());
    let items: Vec<Item> = client.list(&path, API_VERSION, cancel).await?;
    let mut servers = items.into_iter().map(|item| server(item, login)).collect::<Result<Vec<_>, Problem>>()?;
    servers.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    Ok(servers)
}

fn server(item: Item, login: &ServerLogin) -> Result<FoundServer, Problem> {
    let Properties { version, minor_version, state, replication_role, network, .. } = item.properties;
    let network = network.unwrap_or_default();
    let host = item.properties.fully_qualified_domain_name.filter(|host| !host.is_empty());
    let version = version.unwrap_or_default();
    let version = match minor_version.filter(|minor| !minor.is_empty() && !version.is_empty()) {
        Some(minor) => format!("{version}.{minor}"),
        None => version,
    };
    // The role is said of servers that take part in replication; what a server is a copy of is said of copies alone.
    let replica = match replication_role.as_deref() {
        Some(role) if !role.is_empty() => role.ends_with("Replica"),
        _ => item.properties.source_server_resource_id.is_some_and(|id| !id.is_empty()),
    };
    let state = state.unwrap_or_default();
    Ok(FoundServer {
        name: item.name,
        uri: host.map(|host| uri(&host, login)).transpose()?,
        version,
        replica,
        // While its settings or its size change it mostly answers.
        running: matches!(state.as_str(), "Ready" | "Updating"),
        state,
        region: region(&item.location),
        private_network: network.delegated_subnet_resource_id.is_some_and(|id| !id.is_empty())
            || network.public_network_access.is_some_and(|access| access.eq_ignore_ascii_case("Disabled")),
        resource_id: item.id,
    })
}

/// The server's URI, which the plugin itself must be able to read.
fn uri(host: &str, login: &ServerLogin) -> Result<String, Problem> {
    let port = login.port.unwrap_or(DEFAULT_PORT);
    let mode = login.ssl_mode.as_deref().unwrap_or(STRICTEST);
    let text = format!("postgres://{}@{}:{port}/?sslmode={}", encode(&login.user), encode(host), encode(mode));
    text.parse::<Uri>().map(|_| text)
}

#[cfg(test)]
mod tests {
    use vaultferry_proto::Reason;

    use super::*;

    fn login() -> ServerLogin {
        ServerLogin { user: "backup@contoso.com".to_owned(), port: None, ssl_mode: None }
    }

    fn found(json: &str) -> FoundServer {
        server(serde_json::from_str(json).expect("an item"), &login()).expect("a server")
    }

    #[test]
    fn a_server_is_told_as_azure_tells_it() {
        let primary = found(
            r#"{"id": "/subscriptions/s/x", "name": "shop", "location": "West Europe", "properties": {
                "fullyQualifiedDomainName": "shop.postgres.database.azure.com", "version": "15", "minorVersion": "7",
                "state": "Ready", "replicationRole": "Primary", "unknown": [1],
                "network": {"publicNetworkAccess": "Enabled"}}}"#,
        );
        assert_eq!(
            primary.uri.as_deref(),
            Some("postgres://backup%40contoso.com@shop.postgres.database.azure.com:5432/?sslmode=verify-full")
        );
        assert_eq!((primary.version.as_str(), primary.region.as_str()), ("15.7", "westeurope"));
        assert!(primary.running && !primary.replica && !primary.private_network, "{primary:?}");
        let replica = found(
            r#"{"id": "i", "name": "copy", "properties": {"state": "Stopped", "replicationRole": "AsyncReplica",
                "network": {"delegatedSubnetResourceId": "/subscriptions/s/subnet"}}}"#,
        );
        assert!(!replica.running && replica.replica && replica.private_network, "{replica:?}");
        assert_eq!(replica.uri, None);
        let bare =
            found(r#"{"id": "i", "name": "new", "properties": {"sourceServerResourceId": "/s", "state": "Updating"}}"#);
        assert!(bare.running && bare.replica && bare.version.is_empty(), "{bare:?}");
    }

    #[test]
    fn wrong_words_of_the_login_are_refused() {
        for login in [
            ServerLogin { user: String::new(), ..login() },
            ServerLogin { ssl_mode: Some("sometimes".to_owned()), ..login() },
            ServerLogin { port: Some(0), ..login() },
        ] {
            assert_eq!(uri("h", &login).unwrap_err().reason, Reason::InvalidSource, "{login:?}");
        }
    }
}
