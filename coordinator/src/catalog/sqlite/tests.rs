use vaultferry_vault::records::PointCreated;

use super::*;
use crate::catalog::Credential;

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
    }
}

fn job(id: u8, instance: &str, request: Option<&str>) -> Job {
    Job {
        id: format!("{id:032x}"),
        create_time: jiff::Timestamp::from_second(i64::from(id)).expect("a time"),
        instance_id: instance.to_owned(),
        instance_name: instance.to_owned(),
        work: Work::Backup { rule: "Default".to_owned() },
        status: Status::InProgress,
        scheduled: false,
        request_id: request.map(str::to_owned),
        warnings: Vec::new(),
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
            streams: Vec::new(),
            source_bytes: 10,
            stored_bytes: 5,
            sealed_snapshot: String::new(),
            prune_epoch: 0,
        },
    }
}

fn point(n: u8, time_s: i64) -> Point {
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
    }
}

fn open() -> (tempfile::TempDir, Sqlite) {
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
    catalog.acknowledge(&job.id).await.expect("acknowledge");
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

/// The journal is a promise, too: an agent that is updated while a staged record waits must commit it.
#[tokio::test]
async fn a_catalog_of_version_1_is_read() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("catalog.sqlite");
    let script = include_str!("../../../tests/golden/catalog-v1.sql");
    Connection::open(&path).expect("opens").execute_batch(script).expect("the golden script runs");
    let catalog = Sqlite::open(&path).expect("opens");
    let unfinished = catalog.unfinished_jobs().await.expect("list");
    assert_eq!(unfinished, [job(1, "i", Some("slot:i:2026-11-22T02:00:00Z"))]);
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
    };
    catalog.insert_policy(policy).await.expect("insert");
}
