//! The containers of storage accounts, as Resource Manager tells them: what files can be restored to (P64-P66). The same for every plugin.

use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};

use super::scope::Scope;

/// Of the provider Microsoft.Storage.
const API_VERSION: &str = "2023-01-01";

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Container {
    /// Its storage account.
    pub account: String,
    /// Its own name.
    pub name: String,
    /// Its account's region: `westeurope`.
    pub region: String,
}

#[derive(Deserialize)]
struct Account {
    id: String,
    name: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    kind: String,
}

#[derive(Deserialize)]
struct Item {
    name: String,
    #[serde(default)]
    properties: Properties,
}

#[derive(Deserialize, Default)]
struct Properties {
    /// It can be brought back for some days, and takes no files meanwhile.
    #[serde(default)]
    deleted: bool,
}

/// By account and name: those whose name begins with `prefix`, of one account (empty: of all). An account that is not there is
/// [`Reason::AzureNotFound`].
pub async fn find(
    scope: &Scope,
    account: &str,
    prefix: &str,
    cancel: &CancellationToken,
) -> Result<Vec<Container>, Problem> {
    let client = scope.reader()?;
    let path = format!("{}/providers/Microsoft.Storage/storageAccounts", scope.path());
    let mut accounts: Vec<Account> = client.list(&path, API_VERSION, cancel).await?;
    if !account.is_empty() {
        accounts.retain(|known| known.name.eq_ignore_ascii_case(account));
        if accounts.is_empty() {
            let message = format!("{} has no storage account {account}, or does not show it", scope.path());
            return Err(Problem::new(Reason::AzureNotFound, message));
        }
    }
    let mut found = Vec::new();
    // Accounts for files only have no containers.
    for account in accounts.into_iter().filter(|account| account.kind != "FileStorage") {
        let path = format!("{}/blobServices/default/containers", account.id);
        let items: Vec<Item> = client.list(&path, API_VERSION, cancel).await?;
        let items = items.into_iter().filter(|item| !item.properties.deleted && item.name.starts_with(prefix));
        found.extend(items.map(|item| Container {
            account: account.name.clone(),
            name: item.name,
            region: super::region(&account.location),
        }));
    }
    found.sort_unstable();
    Ok(found)
}
