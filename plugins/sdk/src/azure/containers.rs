//! The containers of storage accounts, as Resource Manager tells them: what files can be restored to (P64-P66). The same for every plugin.
//!
//! - All of it has 90 s, however many accounts there are; eight of them are asked at a time.
//! - Azure is asked for the names that are wanted alone, page after page. Of a page nothing is kept but names; of them, over all accounts,
//!   [`MOST_CONTAINERS`] at most, which is what one answer to the agent holds. More is an error, and never a part of it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};

use super::arm;
use super::scope::Scope;

/// Of the provider Microsoft.Storage.
const API_VERSION: &str = "2023-01-01";
/// Each is one request or a few; Azure lets a subscription's readers have many more at a time.
const AT_ONCE: usize = 8;
/// Below the 120 s that the agent waits for a plugin's answer.
const LIMIT: Duration = Duration::from_secs(90);
/// Containers of one page. Azure tells some 1 KB of each, and an answer is read up to 8 MiB.
const PAGE: &str = "2000";
/// 150 bytes each at most, with long names: an answer to the agent may have 16 MiB.
pub const MOST_CONTAINERS: usize = 100_000;

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
    let found = tokio::time::timeout(LIMIT, find_patiently(scope, account, prefix, cancel)).await;
    found.unwrap_or_else(|_| {
        let message = format!("the storage accounts of {} were not all asked in {} s", scope.path(), LIMIT.as_secs());
        let fix = "Ask for less at a time: one account (--account), or a resource group (--resource-group).";
        Err(Problem::new(Reason::AzureUnavailable, message).with_fix(fix))
    })
}

async fn find_patiently(
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
    let count = AtomicUsize::new(0);
    let mut asked = Vec::new();
    // Accounts for files only have no containers.
    for known in accounts.into_iter().filter(|known| known.kind != "FileStorage") {
        let (client, count) = (&client, &count);
        asked.push(async move {
            match containers_of(client, &known, prefix, count, cancel).await {
                // It was deleted since the accounts were listed; the others are told all the same.
                Err(problem) if problem.reason == Reason::AzureNotFound && account.is_empty() => Ok(Vec::new()),
                found => found,
            }
        });
    }
    let found: Vec<Vec<Container>> = stream::iter(asked).buffered(AT_ONCE).try_collect().await?;
    let mut found: Vec<Container> = found.into_iter().flatten().collect();
    found.sort_unstable();
    Ok(found)
}

/// `count` is of all accounts.
async fn containers_of(
    client: &arm::Client,
    account: &Account,
    prefix: &str,
    count: &AtomicUsize,
    cancel: &CancellationToken,
) -> Result<Vec<Container>, Problem> {
    let path = format!("{}/blobServices/default/containers", account.id);
    let mut parameters = vec![("$maxpagesize", PAGE)];
    if !prefix.is_empty() {
        // Of this list it is the beginning of a name.
        parameters.push(("$filter", prefix));
    }
    let region = super::region(&account.location);
    let mut found = Vec::new();
    let keep = |page: Vec<Item>| {
        let items = page.into_iter().filter(|item| !item.properties.deleted && item.name.starts_with(prefix));
        let before = found.len();
        found.extend(items.map(|item| Container {
            account: account.name.clone(),
            name: item.name,
            region: region.clone(),
        }));
        let new = found.len() - before;
        match count.fetch_add(new, Ordering::Relaxed) + new > MOST_CONTAINERS {
            true => Err(too_many()),
            false => Ok(()),
        }
    };
    client.list_pages(&path, API_VERSION, &parameters, keep, cancel).await?;
    Ok(found)
}

fn too_many() -> Problem {
    let message = format!("there are more than {MOST_CONTAINERS} containers");
    let fix = "Ask for a part of them: --account ACCOUNT, --prefix BEGINNING, or --resource-group GROUP.";
    Problem::new(Reason::InvalidRequest, message).with_fix(fix)
}
