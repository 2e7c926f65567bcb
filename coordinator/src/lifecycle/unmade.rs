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
//! - Nothing is made while it runs ([`Shared::making`]). It runs before the agent serves, for [`AT_START`] at most, for whoever has just
//!   failed to make them, and with each run of retention.
//! - What the vault does not answer stays noted, and is given up by the next one of these; the first one that is not answered ends this one.
//! - A vault that is not there (a disk that is not mounted) has no instances either: that says nothing of how far their making came.
//! - Which of several have a store at all, one listing tells; only those are asked by themselves. A record is sent to a store that is there
//!   alone, so no request that is still on its way can make an instance of one that the listing lacks.
//! - A store without a record gets one all the same: a request that was given up may still arrive, and finds the place taken.

use std::collections::HashSet;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vaultferry_vault::manifest::{self, Scope};
use vaultferry_vault::records::Protection;
use vaultferry_vault::{Error, admin, store};

use crate::catalog::Instance;
use crate::job::Shared;
use crate::recorded;

/// An agent that starts waits no longer for this: the first run of retention, beside the serving, does the rest.
const AT_START: Duration = Duration::from_secs(10);

/// [`give_up_all`], for [`AT_START`] at most.
pub(crate) async fn give_up_at_start(shared: &Shared, cancel: &CancellationToken) {
    if tokio::time::timeout(AT_START, give_up_all(shared, cancel)).await.is_err() {
        tracing::warn!(
            "instances whose making was cut off are taken back later: the vault takes longer than {AT_START:?}"
        );
    }
}

/// Records in the vault that the instances that were being made are gone.
pub(crate) async fn give_up_all(shared: &Shared, cancel: &CancellationToken) {
    // Whoever makes some now gives up by himself what he does not come to an end with.
    let Ok(_nobody_makes_any) = shared.making.try_lock() else { return };
    let unmade = match shared.catalog.unmade_instances().await {
        Ok(unmade) => unmade,
        Err(error) => return tracing::error!("instances whose making was cut off are looked for again later: {error}"),
    };
    if unmade.is_empty() {
        return;
    }
    let there = match stores(shared, unmade.len(), cancel).await {
        Ok(there) => there,
        Err(_) if cancel.is_cancelled() => return,
        Err(error) => {
            return tracing::warn!("instances whose making was cut off are taken back later: {error}");
        }
    };
    for instance in unmade {
        let taken = match &there {
            Some(there) if !there.contains(&instance.id) => Ok(()),
            _ => take_back(shared, &instance, cancel).await,
        };
        match taken {
            Ok(()) => {}
            Err(_) if cancel.is_cancelled() => return,
            Err(error) => {
                tracing::warn!(
                    instance = instance.name,
                    "the making of this instance was cut off, and its records in the vault are taken back later: {error}"
                );
                // The others would have the same answer, and wait as long for it.
                let is_for_all = matches!(
                    error,
                    Error::Store(store::Error::Unavailable { .. }) | Error::NoVault { .. } | Error::OwnedByOther { .. }
                );
                if is_for_all {
                    return;
                }
                continue;
            }
        }
        match shared.catalog.forget_unmade(&instance.id).await {
            Ok(()) => tracing::info!(
                instance = instance.name,
                source = instance.source_identity,
                "the making of this instance was cut off; its source is not protected"
            ),
            Err(error) => tracing::error!(
                instance = instance.name,
                "the making of this instance was cut off, and is looked at again later: {error}"
            ),
        }
    }
}

/// The instances that have a store, as one listing tells. `None`: each is to be asked by itself, because there is but one, or because the
/// credential may not list an account's containers.
async fn stores(shared: &Shared, count: usize, cancel: &CancellationToken) -> Result<Option<HashSet<String>>, Error> {
    // An empty mount point has no vault's record, and no instances; another vault that is mounted there has other ones.
    admin::open(&shared.vault.open_root()?, cancel).await?;
    crate::owner::check(&shared.vault, &shared.agent_id, cancel).await?;
    if count < 2 {
        return Ok(None);
    }
    match cancel.run_until_cancelled(shared.vault.instance_ids()).await {
        None => Err(Error::Cancelled),
        Some(Ok(ids)) => Ok(Some(ids.into_iter().collect())),
        Some(Err(store::Error::AccessDenied { .. })) => Ok(None),
        Some(Err(error)) => Err(error.into()),
    }
}

/// May be repeated: a record that says so already is left as it is.
async fn take_back(shared: &Shared, instance: &Instance, cancel: &CancellationToken) -> Result<(), Error> {
    // Before each record, as a vault may change hands between two.
    crate::owner::check(&shared.vault, &shared.agent_id, cancel).await?;
    let store = shared.vault.open_instance(&instance.id)?;
    let newest = match admin::newest_instance(&store, cancel).await {
        // Nothing is written into a store before it is there.
        Err(Error::Store(store::Error::NoStore { .. })) => return Ok(()),
        other => other?,
    };
    if newest.is_some_and(|(_, newest)| matches!(newest.protection, Protection::Purged { .. })) {
        return Ok(());
    }
    let protection = Protection::Purged { since: vaultferry_vault::clock::now() };
    let record = recorded::instance_record(&Instance { protection, ..instance.clone() });
    admin::put_instance(&store, &record, cancel).await?;
    if let Err(error) = manifest::append(&*store, Scope::Instance, &[], cancel).await {
        tracing::info!(instance = instance.name, "the record is not covered by a manifest yet: {error}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    use vaultferry_vault::simulate;
    use vaultferry_vault::store::faulty::{Faulty, Operation, Plan};
    use vaultferry_vault::store::folder::Folder;

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

    /// The vault's folder, with its stores' calls counted.
    #[derive(Debug)]
    struct Counted {
        dir: std::path::PathBuf,
        root: Arc<Faulty>,
        listings: AtomicU64,
        opened: Mutex<Vec<String>>,
    }

    impl simulate::Place for Counted {
        fn store(&self, instance_id: Option<&str>) -> store::Shared {
            let Some(id) = instance_id else { return self.root.clone() };
            self.opened.lock().expect("no panic").push(id.to_owned());
            Arc::new(Folder::new(self.dir.join("instances").join(id)))
        }

        fn instance_ids(&self) -> Vec<String> {
            self.listings.fetch_add(1, Ordering::Relaxed);
            let entries = std::fs::read_dir(self.dir.join("instances")).expect("a folder");
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect()
        }
    }

    /// A request for hundreds of sources is cut off after the first of them: the vault is not asked hundreds of times.
    #[tokio::test]
    async fn one_listing_tells_which_of_them_were_begun_at_all() {
        let dir = tempfile::tempdir().expect("folder");
        let jobs = world(dir.path()).await;
        let (shared, cancel) = (jobs.shared(), CancellationToken::new());
        let shop = shared.catalog.instance("shop").await.expect("find").expect("there");
        let begun: Vec<Instance> = (0..300)
            .map(|number| Instance {
                id: format!("{number:032x}"),
                name: format!("s{number}"),
                source_identity: format!("postgres://h:5432/s{number}"),
                ..shop.clone()
            })
            .collect();
        shared.catalog.begin_instances(begun.clone()).await.expect("begun");
        let record = recorded::instance_record(&begun[0]);
        admin::create_instance(&shared.vault, &shared.vault_key, &record, &cancel).await.expect("made");
        let vault = dir.path().join("vault");
        let root = Arc::new(Faulty::new(Arc::new(Folder::new(vault.clone())), Plan::new()));
        let (listings, opened) = (AtomicU64::default(), Mutex::default());
        let counted = Arc::new(Counted { dir: vault.clone(), root: root.clone(), listings, opened });
        simulate::put_place(&vault, Some(counted.clone()));
        give_up_all(shared, &cancel).await;
        simulate::put_place(&vault, None);
        assert!(shared.catalog.unmade_instances().await.expect("unmade").is_empty());
        assert_eq!(counted.listings.load(Ordering::Relaxed), 1);
        assert_eq!(*counted.opened.lock().expect("no panic"), [begun[0].id.clone()]);
        // The vault's record, and who owns it: at first, and before a record is written.
        assert_eq!((root.calls(Operation::Get), root.calls(Operation::List)), (3, 2));
        let store = shared.vault.open_instance(&begun[0].id).expect("store");
        let (_, newest) = admin::newest_instance(&store, &cancel).await.expect("read").expect("a record");
        assert!(matches!(newest.protection, Protection::Purged { .. }), "{newest:?}");
    }

    /// The vault's disk is not mounted: its folder is not there, or an empty one is in its place.
    #[tokio::test]
    async fn a_vault_that_is_not_there_does_not_say_that_nothing_was_made() {
        let dir = tempfile::tempdir().expect("folder");
        let jobs = world(dir.path()).await;
        let (shared, cancel) = (jobs.shared(), CancellationToken::new());
        let shop = shared.catalog.instance("shop").await.expect("find").expect("there");
        let (id, source_identity) = ("a".repeat(32), "postgres://h:5432/a".to_owned());
        let begun = Instance { id, name: "a".to_owned(), source_identity, ..shop };
        shared.catalog.begin_instances(vec![begun.clone()]).await.expect("begun");
        let record = recorded::instance_record(&begun);
        admin::create_instance(&shared.vault, &shared.vault_key, &record, &cancel).await.expect("made");
        let (vault, elsewhere) = (dir.path().join("vault"), dir.path().join("elsewhere"));
        let noted = async || shared.catalog.unmade_instances().await.expect("unmade").len();
        std::fs::rename(&vault, &elsewhere).expect("unmounted");
        give_up_all(shared, &cancel).await;
        assert_eq!(noted().await, 1);
        std::fs::create_dir(&vault).expect("a mount point");
        give_up_all(shared, &cancel).await;
        assert_eq!(noted().await, 1);
        std::fs::remove_dir(&vault).expect("it is still empty");
        std::fs::rename(&elsewhere, &vault).expect("mounted again");
        give_up_all(shared, &cancel).await;
        assert_eq!(noted().await, 0);
        let store = shared.vault.open_instance(&begun.id).expect("store");
        let (_, newest) = admin::newest_instance(&store, &cancel).await.expect("read").expect("a record");
        assert!(matches!(newest.protection, Protection::Purged { .. }), "{newest:?}");
    }

    /// The request that was to make it an instance was given up, and arrives after it was looked for.
    #[tokio::test]
    async fn a_record_that_comes_too_late_finds_its_place_taken() {
        let dir = tempfile::tempdir().expect("folder");
        let jobs = world(dir.path()).await;
        let (shared, cancel) = (jobs.shared(), CancellationToken::new());
        let shop = shared.catalog.instance("shop").await.expect("find").expect("there");
        let (id, source_identity) = ("a".repeat(32), "postgres://h:5432/a".to_owned());
        let begun = Instance { id, name: "a".to_owned(), source_identity, ..shop };
        shared.catalog.begin_instances(vec![begun.clone()]).await.expect("begun");
        shared.vault.create_instance(&begun.id).await.expect("a store");
        give_up_all(shared, &cancel).await;
        assert!(shared.catalog.unmade_instances().await.expect("unmade").is_empty());
        let record = recorded::instance_record(&begun);
        admin::create_instance(&shared.vault, &shared.vault_key, &record, &cancel).await.expect("it arrives");
        let store = shared.vault.open_instance(&begun.id).expect("store");
        let (number, newest) = admin::newest_instance(&store, &cancel).await.expect("read").expect("a record");
        assert!(number == 1 && matches!(newest.protection, Protection::Purged { .. }), "{number} {newest:?}");
    }
}
