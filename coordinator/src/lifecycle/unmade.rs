//! Instances whose making was cut off between the vault and the catalog.
//!
//! ```text
//! catalog: these are being made ─ vault: store, password, repository, record of each ─ catalog: they are instances, and not being made
//! ```
//! Killed before the last step, none of them is protected, and nobody has been told of one. The vault's records would make a rebuilt catalog
//! think otherwise, and the next instance of the same source be left out of it; so what was recorded is recorded as gone.
//!
//! Invariants:
//! - Only what the catalog says was being made, and has no row, is given up; such an instance never had a backup.
//! - Nothing is made while it runs ([`Shared::making`]). It runs before the agent serves, for whoever has just failed to make them, and with
//!   each run of retention.
//! - What the vault does not answer stays noted, and is given up by the next one of these.

use tokio_util::sync::CancellationToken;
use vaultferry_proto::Problem;
use vaultferry_vault::admin;
use vaultferry_vault::manifest::{self, Scope};
use vaultferry_vault::records::Protection;

use crate::catalog::Instance;
use crate::job::Shared;
use crate::recorded;

/// Records in the vault that the instances that were being made are gone.
pub(crate) async fn give_up_all(shared: &Shared, cancel: &CancellationToken) {
    // Whoever makes some now gives up by himself what he does not come to an end with.
    let Ok(_nobody_makes_any) = shared.making.try_lock() else { return };
    let unmade = match shared.catalog.unmade_instances().await {
        Ok(unmade) => unmade,
        Err(error) => return tracing::error!("instances whose making was cut off are looked for again later: {error}"),
    };
    for instance in unmade {
        match give_up(shared, &instance, cancel).await {
            Ok(()) => tracing::info!(
                instance = instance.name,
                source = instance.source_identity,
                "the making of this instance was cut off; its source is not protected"
            ),
            Err(_) if cancel.is_cancelled() => return,
            Err(problem) => tracing::warn!(
                instance = instance.name,
                "the making of this instance was cut off, and its records in the vault are taken back later: {}",
                problem.message
            ),
        }
    }
}

async fn give_up(shared: &Shared, instance: &Instance, cancel: &CancellationToken) -> Result<(), Problem> {
    let store = shared.vault.open_instance(&instance.id)?;
    // Without a record it is no instance. A store that was never made says so.
    let newest = match admin::newest_instance(&store, cancel).await {
        Ok(newest) => newest,
        Err(error) if is_missing(&error) => None,
        Err(error) => return Err(error.into()),
    };
    if newest.is_some_and(|(_, newest)| !matches!(newest.protection, Protection::Purged { .. })) {
        crate::owner::check(&shared.vault, &shared.agent_id, cancel).await?;
        let protection = Protection::Purged { since: vaultferry_vault::clock::now() };
        let record = recorded::instance_record(&Instance { protection, ..instance.clone() });
        admin::put_instance(&store, &record, cancel).await?;
        if let Err(error) = manifest::append(&*store, Scope::Instance, &[], cancel).await {
            tracing::info!(instance = instance.name, "the record is not covered by a manifest yet: {error}");
        }
    }
    Ok(shared.catalog.forget_unmade(&instance.id).await?)
}

fn is_missing(error: &vaultferry_vault::Error) -> bool {
    use vaultferry_vault::store::Error::{NoStore, NotFound};
    matches!(error, vaultferry_vault::Error::Store(NoStore { .. } | NotFound { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::tests::world;

    /// Killed before and behind the record of the vault, and once more while it is taken back.
    #[tokio::test]
    async fn what_was_being_made_is_gone_in_the_vault_and_what_is_there_stays() {
        let dir = tempfile::tempdir().expect("folder");
        let jobs = world(dir.path()).await;
        let (shared, cancel) = (jobs.shared(), CancellationToken::new());
        let shop = shared.catalog.instance("shop").await.expect("find").expect("there");
        let [made, left, begun] = ["a", "b", "c"].map(|name| Instance {
            id: name.repeat(32),
            name: name.to_owned(),
            source_identity: format!("postgres://h:5432/{name}"),
            ..shop.clone()
        });
        let all = vec![made.clone(), left.clone(), begun.clone()];
        shared.catalog.begin_instances(all).await.expect("begun");
        for instance in [&made, &left] {
            let record = recorded::instance_record(instance);
            admin::create_instance(&shared.vault, &shared.vault_key, &record, &cancel).await.expect("made");
        }
        shared.catalog.insert_instances(vec![made.clone()]).await.expect("inserted");
        let state = async || {
            let (all, unreadable) = admin::instances(&shared.vault, &cancel).await.expect("instances");
            assert!(unreadable.is_empty(), "{unreadable:?}");
            let alive = all.into_iter().filter(|one| !matches!(one.protection, Protection::Purged { .. }));
            alive.map(|one| one.name).collect::<Vec<_>>()
        };
        assert_eq!(state().await, ["shop", "a", "b"]);
        give_up_all(shared, &cancel).await;
        assert_eq!(state().await, ["shop", "a"]);
        assert!(shared.catalog.unmade_instances().await.expect("unmade").is_empty());
        assert_eq!(shared.catalog.instances().await.expect("instances").len(), 2);
        // Killed between the vault and the catalog it does the same again, and writes no second record.
        let store = shared.vault.open_instance(&left.id).expect("store");
        let number = async || admin::newest_instance(&store, &cancel).await.expect("read").expect("a record").0;
        let before = number().await;
        shared.catalog.begin_instances(vec![left.clone()]).await.expect("begun");
        give_up_all(shared, &cancel).await;
        assert_eq!((state().await, number().await), (vec!["shop".to_owned(), "a".to_owned()], before));
    }
}
