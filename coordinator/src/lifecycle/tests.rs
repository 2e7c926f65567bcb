use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vaultferry_vault::admin::{self, KeyPlace};
use vaultferry_vault::location::{Access, Location, RoleAccess};

use super::*;
use crate::catalog::sqlite::Sqlite;
use crate::catalog::{Catalog, Credential, Inserted};
use crate::job::{Jobs, Shared, new_job};
use crate::link::Link;
use crate::recorded;

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn instance(protection: Protection) -> Instance {
    Instance {
        id: "0123456789abcdef0123456789abcdef".to_owned(),
        name: "shop".to_owned(),
        create_time: time(0),
        source_type: "postgres".to_owned(),
        source_uri: "postgres://u@h/shop".to_owned(),
        source_identity: "postgres://h:5432/shop".to_owned(),
        region: String::new(),
        policy: "nightly".to_owned(),
        credential: Credential::PasswordEnv("SHOP".to_owned()),
        protection,
        unsettled: false,
    }
}

/// Active, paused, stopped, deleted (until second 100), purged.
fn states() -> [Protection; 5] {
    let since = time(1);
    let before = Box::new(Protection::Paused { since });
    [
        Protection::Active,
        Protection::Paused { since },
        Protection::Stopped { since },
        Protection::Deleted { since, purge_time: time(100), before },
        Protection::Purged { since },
    ]
}

/// The new state, or the reason of the refusal.
fn outcome(result: Result<Protection, Problem>) -> String {
    match result {
        Ok(Protection::Active) => "active".to_owned(),
        Ok(Protection::Paused { since }) => format!("paused {}", since.as_second()),
        Ok(Protection::Stopped { since }) => format!("stopped {}", since.as_second()),
        Ok(Protection::Deleted { since, purge_time, .. }) => {
            format!("deleted {} {}", since.as_second(), purge_time.as_second())
        }
        Ok(Protection::Purged { .. }) => "purged".to_owned(),
        Err(problem) => problem.reason.to_string(),
    }
}

#[test]
fn every_state_meets_every_wish() {
    let all = |wish: fn(&Instance) -> Result<Protection, Problem>| {
        states().map(|state| outcome(wish(&instance(state)))).join(", ")
    };
    assert_eq!(
        all(|instance| paused(instance, time(2))),
        "paused 2, paused 1, ProtectionStopped, InstanceDeleted, InstanceNotFound"
    );
    assert_eq!(all(resumed), "active, active, active, InstanceDeleted, InstanceNotFound");
    assert_eq!(
        all(|instance| stopped(instance, time(2))),
        "stopped 2, stopped 2, stopped 1, InstanceDeleted, InstanceNotFound"
    );
    assert_eq!(
        all(|instance| deleted(instance, time(2), time(50))),
        "deleted 2 50, deleted 2 50, deleted 2 50, deleted 1 100, InstanceNotFound"
    );
}

#[test]
fn what_is_brought_back_is_what_it_was_and_not_for_ever() {
    for before in &states()[..3] {
        let gone = deleted(&instance(before.clone()), time(2), time(50)).expect("deleted");
        let back = undeleted(&instance(gone.clone()), time(49)).expect("in time").expect("it was deleted");
        assert_eq!(back, (before.clone(), time(50)));
        assert_eq!(undeleted(&instance(gone), time(50)).expect_err("too late").reason, Reason::InstanceDeleted);
        assert_eq!(undeleted(&instance(before.clone()), time(49)), Ok(None));
    }
    let purged = instance(Protection::Purged { since: time(1) });
    assert_eq!(undeleted(&purged, time(0)).expect_err("gone").reason, Reason::InstanceNotFound);
}

#[test]
fn a_backup_begins_only_while_the_instance_is_protected() {
    let backup = |slot| Work::Backup { rule: "Default".to_owned(), slot, keep_until: None, read_bytes_per_s: None };
    let undelete = Work::UndeletePoint { point_id: vaultferry_vault::Id::of(b"a") };
    let allowed = |work: &Work| states().map(|state| check_allows(&instance(state), work, false).is_ok());
    assert_eq!(allowed(&backup(Some(time(9)))), [true, false, false, false, false]);
    assert_eq!(allowed(&backup(None)), [true, true, false, false, false]);
    assert_eq!(allowed(&undelete), [true, true, true, false, false]);
    assert_eq!(allowed(&Work::Prune { dry_run: false }), [true; 5]);
    // People may delete a point of a stopped instance; retention, which had planned that before it was stopped, may not.
    let point_id = vaultferry_vault::Id::of(b"a");
    for work in [Work::DeletePoint { point_id, purge_time: time(9) }, Work::Tier { point_id, remove_from_vault: true }]
    {
        assert_eq!(allowed(&work), [true; 5]);
        let planned = states().map(|state| check_allows(&instance(state), &work, true).is_ok());
        assert_eq!(planned, [true, true, false, false, false], "{work:?}");
    }
    let problem = check_allows(&instance(states()[2].clone()), &backup(None), false).expect_err("refused");
    assert_eq!((problem.reason, is_refusal(&problem)), (Reason::ProtectionStopped, true));
    assert!(problem.fix.contains("instance resume"), "{problem:?}");
}

#[test]
fn retention_leaves_the_points_of_a_stopped_instance_alone() {
    let document = "name = \"p\"\nsource_type = \"postgres\"\ntime_zone = \"UTC\"\n[schedule]\nevery = \"day\"\nat = [\"02:00\"]\n\
                    [[rule]]\nname = \"Default\"\nvault = \"P7D\"\n";
    let document = crate::policy::parse(document).expect("a document");
    let day = 86_400;
    let points: Vec<PointFacts> = (0..30)
        .map(|n| PointFacts {
            // The first three were deleted before, and one of them is due.
            purge_time: (n < 3).then(|| time((n + 2999) * day)),
            ..PointFacts::on_demand(format!("{n}"), time(n * day), "Default")
        })
        .collect();
    let run = crate::policy::Run { now: time(3000 * day), clock: None, reference: None, protected: true };
    let expired = |state: Protection| {
        let mut points = points.clone();
        keep_listed(&instance(state), &mut points);
        let plan = crate::policy::plan(&document, &points, &run);
        let count = |step| plan.actions.iter().filter(|action| action.step == step).count();
        (count(crate::policy::Step::Expire), count(crate::policy::Step::Purge))
    };
    // A tenth of the points in a run.
    assert_eq!(states().map(expired), [(3, 2), (3, 2), (0, 2), (0, 2), (0, 2)]);
}

/// What an agent has, without its processes.
pub(crate) async fn world(dir: &Path) -> Jobs {
    world_with(dir, BTreeMap::new()).await
}

/// The same with these plugins.
pub(crate) async fn world_with(dir: &Path, plugins: BTreeMap<String, crate::plugin::Command>) -> Jobs {
    let vault = Access {
        location: Location::Folder(dir.join("vault")),
        endpoint: None,
        credential: None,
        store_deadline: Duration::from_secs(5),
    };
    let place = KeyPlace::File(dir.join("vault.key"));
    let cancel = CancellationToken::new();
    admin::init_with(&vault, "", "geo-redundant", &place, None, &cancel).await.expect("a vault");
    let root = vault.open_root().expect("root");
    let vault_key = place.load(&root, &cancel).await.expect("key");
    let agent_id = crate::owner::agent_id(dir).expect("an id");
    crate::owner::claim_at_start(&root, &agent_id, &cancel).await.expect("owned");
    let shop = instance(Protection::Active);
    admin::create_instance(&vault, &vault_key, &recorded::instance_record(&shop), &cancel).await.expect("made");
    let catalog = Sqlite::open(&dir.join("catalog.sqlite")).expect("catalog");
    catalog.insert_instances(vec![shop]).await.expect("inserted");
    let shared = Shared {
        catalog: Arc::new(catalog),
        roles: RoleAccess::from(vault.clone()),
        vault,
        vault_key,
        vault_key_place: place,
        agent_id,
        plugins,
        runtime_dir: dir.join("run"),
        state_dir: dir.to_owned(),
        bytes_in_flight: 0,
        upload_bytes_per_s: None,
        rehydration_poll: Duration::from_secs(600),
        link: Link::default(),
        making: tokio::sync::Mutex::default(),
    };
    Jobs::new(Arc::new(shared), 1)
}

async fn newest(jobs: &Jobs, id: &str) -> (u64, Instance) {
    let store = jobs.shared().vault.open_instance(id).expect("store");
    let newest = admin::newest_instance(&store, &CancellationToken::new()).await.expect("read").expect("a record");
    (newest.0, recorded::instance_of(newest.1))
}

#[tokio::test]
async fn a_change_is_in_the_vault_and_in_the_catalog() {
    let dir = tempfile::tempdir().expect("folder");
    let jobs = world(dir.path()).await;
    let cancel = CancellationToken::new();
    let before = instance(Protection::Active);
    for _ in 0..2 {
        let change = Change::begin(&jobs, &before.id, &cancel).await.expect("begun");
        let wanted = Instance { name: "store".to_owned(), ..change.instance().clone() };
        assert_eq!(change.write(wanted.clone(), &cancel).await.expect("written"), wanted);
        assert_eq!(newest(&jobs, &before.id).await, (2, wanted.clone()), "the same again writes nothing");
        assert_eq!(jobs.shared().catalog.instance("store").await.expect("find"), Some(wanted));
    }
    assert_eq!(jobs.shared().catalog.instance("shop").await.expect("find"), None);
    // One that is purged is gone from the catalog.
    let change = Change::begin(&jobs, &before.id, &cancel).await.expect("begun");
    let gone = Instance { protection: Protection::Purged { since: time(5) }, ..change.instance().clone() };
    change.write(gone.clone(), &cancel).await.expect("written");
    assert_eq!(newest(&jobs, &before.id).await, (3, gone));
    assert!(jobs.shared().catalog.instances().await.expect("instances").is_empty());
    let missing = Change::begin(&jobs, &before.id, &cancel).await.map(|_| ()).expect_err("gone");
    assert_eq!(missing.reason, Reason::InstanceNotFound);
}

#[tokio::test]
async fn a_change_that_was_killed_is_taken_back_or_completed_as_the_vault_says() {
    let cancel = CancellationToken::new();
    let before = instance(Protection::Active);
    let since = time(7);
    let wishes = [Protection::Stopped { since }, Protection::Purged { since }];
    for (wanted, was_recorded) in wishes.iter().flat_map(|wish| [(wish, false), (wish, true)]) {
        let dir = tempfile::tempdir().expect("folder");
        let jobs = world(dir.path()).await;
        let catalog = jobs.shared().catalog.clone();
        let wanted = Instance { protection: wanted.clone(), ..before.clone() };
        catalog.save_instance(Instance { unsettled: true, ..before.clone() }).await.expect("marked");
        if was_recorded {
            let store = jobs.shared().vault.open_instance(&before.id).expect("store");
            assert!(admin::put_instance(&store, &recorded::instance_record(&wanted), &cancel).await.expect("put"));
        }
        settle_all(&jobs, &cancel).await;
        let left = catalog.instances().await.expect("instances");
        match (was_recorded, &wanted.protection) {
            (false, _) => assert_eq!(left, std::slice::from_ref(&before), "taken back"),
            (true, Protection::Purged { .. }) => assert!(left.is_empty(), "completed: {left:?}"),
            (true, _) => assert_eq!(left, [wanted], "completed"),
        }
    }
}

#[tokio::test]
async fn a_vault_that_is_away_leaves_the_mark_and_another_owners_vault_is_not_written() {
    let dir = tempfile::tempdir().expect("folder");
    let jobs = world(dir.path()).await;
    let cancel = CancellationToken::new();
    let marked = Instance { unsettled: true, ..instance(Protection::Active) };
    jobs.shared().catalog.save_instance(marked.clone()).await.expect("marked");
    std::fs::rename(dir.path().join("vault"), dir.path().join("away")).expect("moved");
    settle_all(&jobs, &cancel).await;
    assert_eq!(jobs.shared().catalog.instances().await.expect("instances"), std::slice::from_ref(&marked));
    assert!(Change::begin(&jobs, &marked.id, &cancel).await.is_err(), "nobody knows what it is");
    std::fs::rename(dir.path().join("away"), dir.path().join("vault")).expect("moved back");

    let root = jobs.shared().vault.open_root().expect("root");
    admin::owner::claim(&root, &"f".repeat(32), "elsewhere", true, &cancel).await.expect("taken over");
    let change = Change::begin(&jobs, &marked.id, &cancel).await.expect("begun");
    let before = change.instance().clone();
    let wanted = Instance { name: "store".to_owned(), ..before.clone() };
    assert_eq!(change.write(wanted, &cancel).await.expect_err("refused").reason, Reason::VaultOwnedByOther);
    assert_eq!(jobs.shared().catalog.instances().await.expect("instances"), std::slice::from_ref(&before));
    assert_eq!(newest(&jobs, &before.id).await, (1, before));
}

#[tokio::test]
async fn no_job_begins_while_an_instance_changes_and_a_stopped_one_is_left_alone() {
    let dir = tempfile::tempdir().expect("folder");
    let jobs = world(dir.path()).await;
    let cancel = CancellationToken::new();
    let shop = instance(Protection::Active);
    let change = Change::begin(&jobs, &shop.id, &cancel).await.expect("begun");
    let backup = || Work::Backup { rule: "Default".to_owned(), slot: None, keep_until: None, read_bytes_per_s: None };
    let starting = tokio::spawn({
        let (jobs, shop) = (jobs.clone(), shop.clone());
        async move { jobs.start(&shop, backup(), None, false).await }
    });
    // It has every chance to begin, and waits.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!starting.is_finished() && jobs.shared().catalog.unfinished_jobs().await.expect("jobs").is_empty());
    let wanted = Instance { protection: Protection::Stopped { since: time(9) }, ..shop.clone() };
    change.write(wanted, &cancel).await.expect("written");
    let refused = starting.await.expect("no panic").expect_err("it was stopped before the job began");
    assert_eq!(refused.reason, Reason::ProtectionStopped);
    // Nor is a point deleted that was about to expire when it was stopped.
    let expired = Work::DeletePoint { point_id: vaultferry_vault::Id::of(b"a"), purge_time: time(9) };
    let refused = jobs.start(&shop, expired, None, true).await.expect_err("refused");
    assert_eq!(refused.reason, Reason::ProtectionStopped);
    assert!(jobs.shared().catalog.unfinished_jobs().await.expect("jobs").is_empty());

    // A job that runs keeps others from what must not happen beside it.
    jobs.check_idle(&shop).await.expect("idle");
    let running = new_job(&shop, Work::Check { keyless: true, read_data_ppm: 0 }, None, false);
    assert!(matches!(jobs.shared().catalog.insert_job(running.clone()).await.expect("inserted"), Inserted::New));
    let busy = jobs.check_idle(&shop).await.expect_err("busy");
    assert_eq!(busy.reason, Reason::InstanceBusy);
    assert!(busy.message.contains(&running.id), "{busy:?}");
}
