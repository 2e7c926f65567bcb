use vaultferry_vault::records::{PointCreated, Protection};

use super::*;
use crate::catalog::{Attempt, CheckFigures, Credential, ReportFigures, RestoreOptions, Work};

mod attempts;
mod pages;
mod summary;
mod unmade;

fn instance(name: &str) -> Instance {
    Instance {
        id: format!("{name:0>32}"),
        name: name.to_owned(),
        create_time: jiff::Timestamp::UNIX_EPOCH,
        source_type: "postgres".to_owned(),
        source_uri: format!("postgres://u@h/{name}"),
        source_identity: format!("postgres://h:5432/{name}"),
        region: String::new(),
        policy: "nightly".to_owned(),
        credential: Credential::PasswordEnv("PGPASS".to_owned()),
        protection: Protection::Active,
        unsettled: false,
    }
}

pub(super) fn job(id: u8, instance: &str, request: Option<&str>) -> Job {
    Job {
        id: format!("{id:032x}"),
        create_time: jiff::Timestamp::from_second(i64::from(id)).expect("a time"),
        instance_id: instance.to_owned(),
        instance_name: instance.to_owned(),
        work: Work::Backup { rule: "Default".to_owned(), slot: None, keep_until: None, read_bytes_per_s: None },
        status: Status::InProgress,
        scheduled: false,
        request_id: request.map(str::to_owned),
        warnings: Vec::new(),
        rehydrating: false,
        report: None,
        queued: false,
        attempt: Attempt::default(),
        steps: Vec::new(),
    }
}

fn record() -> commit::Record {
    commit::Record {
        snapshot_id: Id::of(b"sealed"),
        sealed: bytes::Bytes::from_static(b"sealed"),
        prune_epoch: 3,
        packs: vec![(Id::of(b"a"), 1), (Id::of(b"b"), 1 << 40)],
        time: jiff::Timestamp::from_second(1_800_000_000).expect("a time"),
        created: PointCreated {
            job_id: format!("{:032x}", 1),
            rule: "Default".to_owned(),
            policy: "nightly".to_owned(),
            policy_version: 1,
            slot: None,
            keep_until: None,
            streams: Vec::new(),
            source_bytes: 10,
            stored_bytes: 5,
            sealed_snapshot: String::new(),
            prune_epoch: 0,
            capture: None,
        },
    }
}

pub(super) fn point(n: u8, time_s: i64) -> Point {
    Point {
        id: Id::of(&[n]),
        instance_id: "i".to_owned(),
        job_id: format!("{n:032x}"),
        time: jiff::Timestamp::from_second(time_s).expect("a time"),
        rule: "Default".to_owned(),
        policy: "nightly".to_owned(),
        policy_version: 1,
        streams: Vec::new(),
        source_bytes: 10,
        stored_bytes: 5,
        slot: None,
        keep_until: None,
        capture: None,
        standing: Standing::default(),
    }
}

pub(super) fn open() -> (tempfile::TempDir, Sqlite) {
    let dir = tempfile::tempdir().expect("folder");
    let catalog = Sqlite::open(&dir.path().join("catalog.sqlite")).expect("opens");
    (dir, catalog)
}

#[tokio::test]
async fn one_backup_of_an_instance_runs_and_a_request_starts_one_job() {
    let (_dir, catalog) = open();
    assert!(matches!(catalog.insert_job(job(1, "i", Some("r"))).await.expect("insert"), Inserted::New));
    match catalog.insert_job(job(2, "i", Some("r"))).await.expect("insert") {
        Inserted::Known(known) => assert_eq!(known.id, job(1, "i", None).id),
        other => panic!("{other:?}"),
    }
    assert!(matches!(catalog.insert_job(job(3, "i", None)).await.expect("insert"), Inserted::Busy(_)));
    assert!(matches!(catalog.insert_job(job(4, "other", None)).await.expect("insert"), Inserted::New));
    assert_eq!(catalog.unfinished_jobs().await.expect("list").len(), 2);
}

#[tokio::test]
async fn jobs_of_an_instance_are_found_by_their_operations_without_the_others() {
    let (_dir, catalog) = open();
    let prune = |id: u8, instance: &str| Job {
        work: Work::Prune { dry_run: false },
        status: Status::Cancelled { end_time: jiff::Timestamp::UNIX_EPOCH },
        ..job(id, instance, None)
    };
    for job in [prune(1, "i"), prune(2, "i"), prune(3, "other"), job(4, "i", None), prune(5, "i")] {
        assert!(matches!(catalog.insert_job(job).await.expect("insert"), Inserted::New));
    }
    let from = |second: i64| jiff::Timestamp::from_second(second).expect("a time");
    let ids = |jobs: Vec<Job>| jobs.into_iter().map(|job| job.id).collect::<Vec<_>>();
    let prunes = catalog.jobs_of("i", &["prune", "tier"], from(2), 9).await.expect("jobs");
    assert_eq!(ids(prunes), [5, 2].map(|id| format!("{id:032x}")));
    for limit in [3, 9] {
        let both = catalog.jobs_of("i", &["prune", "backup"], jiff::Timestamp::MIN, limit).await.expect("jobs");
        let newest = [5, 4, 2, 1].into_iter().take(limit as usize);
        assert_eq!(ids(both), newest.map(|id| format!("{id:032x}")).collect::<Vec<_>>());
    }
    assert!(catalog.jobs_of("i", &["tier"], from(0), 9).await.expect("jobs").is_empty());
    // By the index, whatever else there is.
    let plan: String = catalog
        .run(|tx| {
            let sql =
                "explain query plan select body from jobs where instance_id = 'i' and operation in ('prune', 'tier')
                       and create_time >= 0 order by create_time desc, id desc";
            Ok(tx.query_row(sql, [], |row| row.get(3))?)
        })
        .await
        .expect("a plan");
    assert!(plan.contains("jobs_by_instance (instance_id=? AND operation=? AND create_time>?)"), "{plan}");
}

#[tokio::test]
async fn a_job_that_has_ended_never_changes_and_forgets_its_staged_record() {
    let (_dir, catalog) = open();
    let job = job(1, "i", None);
    catalog.insert_job(job.clone()).await.expect("insert");
    let overtaken = commit::Record { prune_epoch: 0, ..record() };
    assert_ne!(overtaken, record());
    for record in [overtaken, record()] {
        catalog.stage(&job.id, record).await.expect("a job stages again after a prune overtook it");
    }
    assert_eq!(catalog.staged(&job.id).await.expect("staged"), Some(record()));
    for _ in 0..2 {
        catalog.complete_backup(&job.id, point(1, 100), Vec::new()).await.expect("complete");
    }
    assert_eq!(catalog.staged(&job.id).await.expect("staged"), None);
    let cancelled = Status::Cancelled { end_time: jiff::Timestamp::now() };
    assert!(!catalog.set_status(&job.id, cancelled, Vec::new()).await.expect("asked"));
    let stored = catalog.job(&job.id[..]).await.expect("job").expect("there");
    assert!(matches!(stored.status, Status::Completed { point_id: Some(_), .. }));
    let outbox = catalog.outbox().await.expect("outbox");
    assert_eq!(outbox, [OutboxEntry { job_id: job.id.clone(), point: point(1, 100) }]);
    catalog.acknowledge(vec![job.id.clone()]).await.expect("acknowledge");
    assert!(catalog.outbox().await.expect("outbox").is_empty());
}

#[tokio::test]
async fn points_come_newest_first_page_by_page() {
    let (_dir, catalog) = open();
    for n in 1..=5 {
        catalog.complete_backup("none", point(n, i64::from(n) * 10), Vec::new()).await.expect("point");
    }
    let mut seen = Vec::new();
    let mut before = None;
    loop {
        let page = catalog.points("i", before, 2).await.expect("page");
        let Some(last) = page.last() else { break };
        before = Some((last.time, last.id));
        seen.extend(page.into_iter().map(|point| point.id));
    }
    assert_eq!(seen, (1..=5).rev().map(|n| Id::of(&[n])).collect::<Vec<_>>());
    let prefix = &Id::of(&[3]).to_string()[..8];
    assert_eq!(catalog.points_by_prefix("i", prefix).await.expect("find").len(), 1);
    let figures = catalog.figures(jiff::Timestamp::UNIX_EPOCH).await.expect("figures");
    assert_eq!((figures.points, figures.stored_bytes), (5, 25));
}

#[tokio::test]
async fn names_and_sources_are_unique_and_all_or_none_is_added() {
    let (_dir, catalog) = open();
    catalog.insert_instances(vec![instance("a"), instance("b")]).await.expect("insert");
    let taken = catalog.insert_instances(vec![instance("c"), instance("b")]).await;
    assert!(matches!(taken, Err(Error::Taken(_))), "{taken:?}");
    assert!(catalog.instance("c").await.expect("find").is_none());
    assert_eq!(catalog.instance(&instance("a").id).await.expect("find"), Some(instance("a")));
    assert_eq!(catalog.instance_of_source("postgres://h:5432/b").await.expect("find"), Some(instance("b")));
}

#[tokio::test]
async fn a_maintenance_job_runs_alone_on_its_instance_but_beside_a_backup() {
    let (_dir, catalog) = open();
    let maintenance = |id, work| Job { work, ..job(id, "i", None) };
    assert!(matches!(catalog.insert_job(job(1, "i", None)).await.expect("insert"), Inserted::New));
    let prune = maintenance(2, Work::Prune { dry_run: false });
    assert!(matches!(catalog.insert_job(prune).await.expect("insert"), Inserted::New));
    let point_id = Id::of(b"p");
    for work in [
        Work::Check { keyless: true, read_data_ppm: 0 },
        Work::VerifyPoint { point_id },
        Work::Prune { dry_run: true },
        Work::DeletePoint { point_id, purge_time: jiff::Timestamp::UNIX_EPOCH },
        Work::UndeletePoint { point_id },
        Work::ArchivePoint { point_id },
        Work::Tier { point_id, remove_from_vault: true },
    ] {
        let inserted = catalog.insert_job(maintenance(3, work.clone())).await.expect("insert");
        assert!(matches!(&inserted, Inserted::Busy(id) if *id == job(2, "i", None).id), "{work:?}: {inserted:?}");
    }
    let restore = Work::RestoreFiles { point_id, to: "/t".to_owned(), credential_env: String::new() };
    assert!(matches!(catalog.insert_job(maintenance(4, restore)).await.expect("insert"), Inserted::New));
    let overwrite = "/dev/vdb".to_owned();
    let disk = Work::RestoreDisk { point_id, to: overwrite.clone(), disk: "disk1".to_owned(), overwrite };
    assert!(matches!(catalog.insert_job(maintenance(5, disk.clone())).await.expect("insert"), Inserted::New));
    let kept = catalog.job(&maintenance(5, disk.clone()).id).await.expect("found").expect("there");
    assert_eq!((kept.work.point_id(), kept.work), (Some(point_id), disk));
}

#[tokio::test]
async fn findings_are_kept_beside_their_job_and_replaced() {
    let (_dir, catalog) = open();
    let check = Job { work: Work::Check { keyless: false, read_data_ppm: Work::ALL_DATA }, ..job(1, "i", None) };
    catalog.insert_job(check.clone()).await.expect("insert");
    let finding = |n: u8| Finding {
        kind: "altered".to_owned(),
        damage: true,
        file: format!("repo/data/{n}"),
        message: "m".to_owned(),
        points: vec![(Id::of(&[n]), None)],
    };
    let figures = Some(ReportFigures::Archive { packs: 1, bytes: 2 });
    let report = Report { finding_count: 2, figures };
    for findings in [vec![finding(1)], vec![finding(3), finding(2)]] {
        catalog.set_report(&check.id, report.clone(), findings.clone()).await.expect("report");
        assert_eq!(catalog.findings(&check.id).await.expect("findings"), findings);
    }
    catalog
        .set_status(&check.id, Status::Cancelled { end_time: jiff::Timestamp::now() }, Vec::new())
        .await
        .expect("end");
    catalog.set_report(&check.id, Report::default(), Vec::new()).await.expect("report");
    assert_eq!(catalog.job(&check.id).await.expect("find").expect("there").report, Some(report), "an ended job stays");
    assert_eq!(catalog.findings(&check.id).await.expect("findings").len(), 2);
}

#[tokio::test]
async fn a_deleted_point_counts_nowhere_and_a_purged_one_is_gone() {
    let (_dir, catalog) = open();
    catalog.insert_points((1..=4).map(|n| point(n, i64::from(n))).collect()).await.expect("points");
    let purge_time = Some(jiff::Timestamp::from_second(1_900_000_000).expect("a time"));
    let deleted = Standing { purge_time, ..Standing::default() };
    let held = Standing { held: Some("audit".to_owned()), in_archive: true, ..Standing::default() };
    let changes = vec![
        (Id::of(&[1]), Some(deleted.clone())),
        (Id::of(&[2]), None),
        (Id::of(&[3]), Some(held.clone())),
        (Id::of(&[9]), Some(held.clone())),
    ];
    catalog.set_standings("i", changes).await.expect("set");
    let listed = catalog.points("i", None, 10).await.expect("points");
    assert_eq!(listed, [point(4, 4), Point { standing: held, ..point(3, 3) }]);
    assert_eq!(
        catalog.deleted_points("i", None, 10).await.expect("points"),
        [Point { standing: deleted, ..point(1, 1) }]
    );
    assert_eq!(catalog.point_count("i").await.expect("count"), 2);
    let figures = catalog.figures(jiff::Timestamp::UNIX_EPOCH).await.expect("figures");
    assert_eq!((figures.points, figures.stored_bytes), (2, 15), "a deleted point's bytes are still stored");
    assert_eq!(figures.oldest, Some(point(3, 3).time));
    catalog.set_standings("i", vec![(Id::of(&[1]), Some(Standing::default()))]).await.expect("undeleted");
    assert_eq!(catalog.points("i", None, 10).await.expect("points").len(), 3);
}

#[tokio::test]
async fn a_newer_catalog_is_refused() {
    let (dir, catalog) = open();
    drop(catalog);
    let path = dir.path().join("catalog.sqlite");
    Connection::open(&path).expect("opens").pragma_update(None, "user_version", schema::VERSION + 1).expect("set");
    let error = Sqlite::open(&path).expect_err("refused").to_string();
    assert!(error.contains(&format!("version {}", schema::VERSION + 1)), "{error}");
}

fn policy(name: &str, version: u32, deleted: bool) -> Policy {
    Policy {
        id: format!("id-of-{name}"),
        name: name.to_owned(),
        version,
        create_time: jiff::Timestamp::from_second(i64::from(version)).expect("a time"),
        document: format!("# {name} {version}"),
        deleted,
    }
}

#[tokio::test]
async fn the_newest_version_of_a_policy_counts_and_a_deletion_is_one() {
    let (_dir, catalog) = open();
    for version in [policy("a", 1, false), policy("a", 2, false), policy("b", 1, false)] {
        catalog.insert_policy(version).await.expect("insert");
    }
    assert!(matches!(catalog.insert_policy(policy("a", 2, true)).await, Err(Error::Taken(_))));
    assert_eq!(catalog.policies().await.expect("list"), [policy("a", 2, false), policy("b", 1, false)]);
    catalog.insert_policy(policy("a", 3, true)).await.expect("deleted");
    assert_eq!(catalog.policies().await.expect("list"), [policy("b", 1, false)]);
    for name in ["a", "id-of-a"] {
        assert_eq!(catalog.policy(name).await.expect("find"), None, "{name}");
    }
    catalog.insert_policy(policy("a", 4, false)).await.expect("made anew");
    assert_eq!(catalog.policy("id-of-a").await.expect("find"), Some(policy("a", 4, false)));
    let versions = [policy("a", 1, false), policy("a", 2, false), policy("a", 3, true), policy("a", 4, false)];
    assert_eq!(catalog.policy_versions("a").await.expect("versions"), versions);
    assert_eq!(catalog.all_policies().await.expect("all").len(), 5);
}

#[tokio::test]
async fn a_change_of_a_policy_notes_slots_with_it_or_not_at_all() {
    let (_dir, catalog) = open();
    let time = |second| jiff::Timestamp::from_second(second).expect("a time");
    catalog.set_last_slot("later", time(20)).await.expect("set");
    catalog.set_last_slot("earlier", time(5)).await.expect("set");
    let slots = |second| ["later", "earlier", "none"].map(|id| (id.to_owned(), time(second))).to_vec();
    catalog.change_policy(policy("a", 1, false), slots(10)).await.expect("changed");
    for (instance, second) in [("later", 20), ("earlier", 10), ("none", 10)] {
        assert_eq!(catalog.last_slot(instance).await.expect("slot"), Some(time(second)), "{instance}");
    }
    assert!(matches!(catalog.change_policy(policy("a", 1, false), slots(30)).await, Err(Error::Taken(_))));
    assert_eq!(catalog.last_slot("none").await.expect("slot"), Some(time(10)), "nothing of it happened");
}

#[tokio::test]
async fn an_instance_changes_its_name_and_its_source_and_keeps_its_id() {
    let (_dir, catalog) = open();
    catalog.insert_instances(vec![instance("shop"), instance("other")]).await.expect("insert");
    for taken in [
        Instance { name: "other".to_owned(), ..instance("shop") },
        Instance { source_identity: instance("other").source_identity, ..instance("shop") },
        instance("nobody"),
    ] {
        assert!(matches!(catalog.save_instance(taken.clone()).await, Err(Error::Taken(_))), "{taken:?}");
        assert_eq!(catalog.instances().await.expect("instances"), [instance("other"), instance("shop")]);
    }
    let since = jiff::Timestamp::UNIX_EPOCH;
    let moved = Instance {
        name: "shop 2".to_owned(),
        source_identity: "postgres://new:5432/shop".to_owned(),
        protection: Protection::Stopped { since },
        unsettled: true,
        ..instance("shop")
    };
    catalog.save_instance(moved.clone()).await.expect("saved");
    assert_eq!(catalog.instance("shop").await.expect("find"), None);
    assert_eq!(catalog.instance("shop 2").await.expect("find"), Some(moved.clone()));
    assert_eq!(catalog.instance_of_source(&moved.source_identity).await.expect("find"), Some(moved.clone()));
    catalog.set_last_slot(&moved.id, since).await.expect("slot");
    for _ in 0..2 {
        catalog.remove_instance(&moved.id).await.expect("removed");
        assert_eq!(catalog.instances().await.expect("instances"), [instance("other")]);
        assert_eq!(catalog.last_slot(&moved.id).await.expect("slot"), None);
    }
    catalog.insert_instances(vec![instance("shop")]).await.expect("name and source are free");
}

#[tokio::test]
async fn instances_are_counted_by_their_state() {
    let (_dir, catalog) = open();
    let since = jiff::Timestamp::UNIX_EPOCH;
    let deleted = Protection::Deleted { since, purge_time: since, before: Box::default() };
    let states = [
        ("a", Protection::Active),
        ("b", Protection::Active),
        ("c", Protection::Paused { since }),
        ("d", Protection::Stopped { since }),
        ("e", deleted),
    ];
    for (name, protection) in states {
        catalog.insert_instances(vec![Instance { protection, ..instance(name) }]).await.expect("insert");
        let point = Point { instance_id: instance(name).id, ..point(1, 1) };
        if name != "b" {
            catalog.insert_points(vec![point]).await.expect("point");
        }
    }
    let figures = catalog.figures(since).await.expect("figures");
    assert_eq!((figures.protected, figures.pending, figures.paused, figures.stopped), (1, 1, 1, 1));
}

#[tokio::test]
async fn slots_and_clocks_are_each_instance_s_own() {
    let (_dir, catalog) = open();
    let time = |second| jiff::Timestamp::from_second(second).expect("a time");
    for instance in ["a", "b"] {
        assert_eq!(catalog.last_slot(instance).await.expect("slot"), None);
        assert_eq!(catalog.expiry_run(instance).await.expect("run"), None);
    }
    catalog.set_last_slot("a", time(1)).await.expect("set");
    let run = |clock: i64, at: i64| ExpiryRun { clock: time(clock), time: Some(time(at)) };
    catalog.set_expiry_run("a", run(2, 5)).await.expect("set");
    catalog.set_expiry_run("a", run(3, 6)).await.expect("set again");
    catalog.set_expiry_run("b", ExpiryRun { clock: time(4), time: None }).await.expect("set");
    assert_eq!(catalog.last_slot("a").await.expect("slot"), Some(time(1)));
    assert_eq!(catalog.last_slot("b").await.expect("slot"), None);
    assert_eq!(catalog.expiry_run("a").await.expect("run"), Some(run(3, 6)));
    assert_eq!(catalog.expiry_run("b").await.expect("run"), Some(ExpiryRun { clock: time(4), time: None }));
}

/// A catalog as a script of its own version left it.
fn golden(script: &str) -> (tempfile::TempDir, Sqlite) {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("catalog.sqlite");
    Connection::open(&path).expect("opens").execute_batch(script).expect("the golden script runs");
    let catalog = Sqlite::open(&path).expect("opens");
    (dir, catalog)
}

/// The journal is a promise, too: an agent that is updated while a staged record waits must commit it.
#[tokio::test]
async fn a_catalog_of_version_1_is_read_and_brought_up() {
    let (dir, catalog) = golden(include_str!("../../../tests/golden/catalog-v1.sql"));
    holds_the_golden_rows(&catalog).await;
    // It is a catalog of the newest version now: everything that is new in it works, also after another opening.
    let deleted = Standing { purge_time: Some(jiff::Timestamp::UNIX_EPOCH), ..Standing::default() };
    catalog.set_standings("i", vec![(Id::of(&[2]), Some(deleted))]).await.expect("set");
    drop(catalog);
    let catalog = Sqlite::open(&dir.path().join("catalog.sqlite")).expect("opens again");
    assert!(catalog.points("i", None, 10).await.expect("points").is_empty());
    assert_eq!(catalog.deleted_points("i", None, 10).await.expect("points").len(), 1);
    assert!(catalog.findings("none").await.expect("findings").is_empty());
}

#[tokio::test]
async fn a_catalog_of_version_2_is_read() {
    let (_dir, catalog) = golden(include_str!("../../../tests/golden/catalog-v2.sql"));
    holds_the_golden_rows(&catalog).await;
    let check = catalog.job(&format!("{:032x}", 4)).await.expect("find").expect("there");
    assert_eq!(check.work, Work::Check { keyless: false, read_data_ppm: 50_000 });
    assert!(matches!(
        check.report,
        Some(Report { finding_count: 1, figures: Some(ReportFigures::Check(CheckFigures { seed: 7, .. })) })
    ));
    assert_eq!(catalog.findings(&check.id).await.expect("findings"), [golden_finding()]);
    let deleted = catalog.deleted_points("i", None, 10).await.expect("points");
    assert_eq!(deleted, [Point { standing: golden_standing(), ..point(5, 50) }]);
    let restore = catalog.job(&format!("{:032x}", 6)).await.expect("find").expect("there");
    assert!(restore.rehydrating);
}

fn golden_finding() -> Finding {
    Finding {
        kind: "altered".to_owned(),
        damage: true,
        file: "repo/data/00/00".to_owned(),
        message: "m".to_owned(),
        points: vec![(Id::of(&[2]), Some(jiff::Timestamp::UNIX_EPOCH))],
    }
}

fn golden_standing() -> Standing {
    let time = |second| jiff::Timestamp::from_second(second).ok();
    Standing {
        proven_time: time(1),
        held: Some("audit".to_owned()),
        purge_time: time(2),
        immutable_until: time(3),
        in_vault: false,
        in_archive: true,
        archived_time: None,
    }
}

async fn holds_the_golden_rows(catalog: &Sqlite) {
    let unfinished = catalog.unfinished_jobs().await.expect("list");
    assert_eq!(unfinished[0], job(1, "i", Some("slot:i:2026-11-22T02:00:00Z")));
    assert_eq!(catalog.staged(&unfinished[0].id).await.expect("staged"), Some(record()));
    assert_eq!(catalog.instance("shop").await.expect("find"), Some(instance("shop")));
    assert_eq!(catalog.outbox().await.expect("outbox").len(), 1);
    assert_eq!(catalog.points("i", None, 10).await.expect("points"), [point(2, 20)]);
    let restore = catalog.job(&format!("{:032x}", 3)).await.expect("find").expect("there");
    assert!(matches!(restore.work, Work::RestoreDatabase { no_owner: true, .. }), "{restore:?}");
    assert!(matches!(restore.status, Status::Failed { .. }));
    assert_eq!(catalog.policy("nightly").await.expect("find").expect("there").version, 1);
}

/// Writes the golden script's rows, for a new schema version: `UPDATE_GOLDEN=1`, then sqlite3's `.dump`.
#[tokio::test]
async fn golden_rows() {
    let Some(path) = std::env::var_os("WRITE_CATALOG") else { return };
    let catalog = Sqlite::open(Path::new(&path)).expect("opens");
    catalog.insert_job(job(1, "i", Some("slot:i:2026-11-22T02:00:00Z"))).await.expect("insert");
    catalog.stage(&job(1, "i", None).id, record()).await.expect("stage");
    catalog.insert_instances(vec![instance("shop")]).await.expect("insert");
    catalog.complete_backup("job-2", point(2, 20), Vec::new()).await.expect("point");
    let mut restore = job(3, "i", None);
    restore.work = Work::RestoreDatabase {
        point_id: Id::of(&[2]),
        target_uri: "postgres://u@h/".to_owned(),
        database: "shop2".to_owned(),
        no_owner: true,
        credential: Credential::Passfile("/etc/pass".into()),
        options: RestoreOptions::default(),
    };
    restore.status = Status::Failed {
        end_time: jiff::Timestamp::UNIX_EPOCH,
        problem: StoredProblem { reason: "Interrupted".to_owned(), message: "m".to_owned(), fix: "f".to_owned() },
    };
    catalog.insert_job(restore).await.expect("insert");
    let policy = Policy {
        id: "p".to_owned(),
        name: "nightly".to_owned(),
        version: 1,
        create_time: jiff::Timestamp::UNIX_EPOCH,
        document: "name = \"nightly\"\n".to_owned(),
        deleted: false,
    };
    catalog.insert_policy(policy).await.expect("insert");
    let check = Job { work: Work::Check { keyless: false, read_data_ppm: 50_000 }, ..job(4, "i", None) };
    catalog.insert_job(check.clone()).await.expect("insert");
    let figures = CheckFigures { points: 1, seed: 7, detects_one_ppm: 50_000, ..CheckFigures::default() };
    let figures = ReportFigures::Check(figures);
    let report = Report { finding_count: 1, figures: Some(figures) };
    catalog.set_report(&check.id, report, vec![golden_finding()]).await.expect("report");
    let failed = Status::Failed {
        end_time: jiff::Timestamp::UNIX_EPOCH,
        problem: StoredProblem { reason: "RepositoryDamaged".to_owned(), message: "m".to_owned(), fix: "f".to_owned() },
    };
    catalog.set_status(&check.id, failed, Vec::new()).await.expect("end");
    catalog.insert_points(vec![Point { standing: golden_standing(), ..point(5, 50) }]).await.expect("point");
    let files = Work::RestoreFiles { point_id: Id::of(&[5]), to: "/t".to_owned(), credential_env: "V".to_owned() };
    catalog.insert_job(Job { work: files, rehydrating: true, ..job(6, "i", None) }).await.expect("insert");
}
