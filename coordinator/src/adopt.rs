//! Brings into the catalog what the vault has of policies and servers and the catalog has not: a version is written into the vault first, and
//! a kill, or an answer that was lost, can come between that and the catalog.
//!
//! Invariants:
//! - A version that is in the vault happened. It counts from the next start of the agent on, or from the next change of that policy.
//! - Only versions that the catalog lacks are read, so an ordinary start costs one listing.
//! - At a start only policies and servers are looked after that the catalog knows: a catalog is made again from a vault as a whole, or not at
//!   all (`vault rebuild-catalog`). A server in a catalog without its instances would protect everything a second time.

use std::collections::BTreeSet;

use tokio_util::sync::CancellationToken;
use vaultferry_proto::Problem;
use vaultferry_vault::{admin, store};

use crate::catalog::{Catalog, Error, Policy};
use crate::{policy, recorded};

/// Takes over what is missing of the policy of that name, known or not, or of all that the catalog knows. What cannot be read, or is of a newer
/// program, is told in the log and left out. After an error some may have been taken; repeating it takes the rest.
pub(crate) async fn policies(
    catalog: &dyn Catalog,
    root: &store::Shared,
    name: Option<&str>,
    cancel: &CancellationToken,
) -> Result<(), Problem> {
    let mut versions = match name {
        Some(name) => catalog.policy_versions(name).await?,
        None => catalog.all_policies().await?,
    };
    let known: BTreeSet<(String, u32)> =
        versions.iter().map(|version| (version.name.clone(), version.version)).collect();
    let (missing, unreadable) = admin::policies_beside(root, name, &known, cancel).await?;
    for error in unreadable {
        tracing::warn!("a version of a policy in the vault is not taken into the catalog: {error}");
    }
    for record in missing {
        let mut version = recorded::policy_of(record);
        if name.is_none() && !versions.iter().any(|other| other.name == version.name) {
            continue;
        }
        if let Err(problem) = policy::parse(&version.document) {
            tracing::warn!(
                policy = version.name,
                version = version.version,
                "a version of a policy in the vault is not taken into the catalog: {}",
                problem.message
            );
            continue;
        }
        // Versions of one policy have one id, also when early ones were recorded without.
        if let Some(id) = versions.iter().find(|other| other.name == version.name).map(|other| other.id.clone()) {
            version.id = id;
        }
        match insert(catalog, version.clone()).await? {
            true => tracing::info!(
                policy = version.name,
                version = version.version,
                "a version of a policy was in the vault only, and counts from now on"
            ),
            false => continue,
        }
        versions.push(version);
    }
    Ok(())
}

/// Takes over what was done last with the servers that the catalog knows. What cannot be read is told in the log and left as it is.
pub(crate) async fn servers(
    catalog: &dyn Catalog,
    root: &store::Shared,
    cancel: &CancellationToken,
) -> Result<(), Problem> {
    let known = catalog.servers().await?;
    if known.is_empty() {
        return Ok(());
    }
    let (records, unreadable) = admin::servers(root, cancel).await?;
    for error in unreadable {
        tracing::warn!("what the vault says of a server is not taken into the catalog: {error}");
    }
    for record in records {
        let Some(before) = known.iter().find(|server| server.id == record.id) else { continue };
        match recorded::server_of(record) {
            Some(server) if server == *before => continue,
            Some(server) => catalog.save_server(server).await?,
            None => catalog.remove_server(&before.id).await?,
        }
        tracing::info!(server = before.name, "a change of a server was in the vault only, and counts from now on");
    }
    Ok(())
}

/// False when somebody else has inserted it meanwhile.
async fn insert(catalog: &dyn Catalog, version: Policy) -> Result<bool, Error> {
    match catalog.insert_policy(version).await {
        Ok(()) => Ok(true),
        Err(Error::Taken(_)) => Ok(false),
        Err(error) => Err(error),
    }
}
