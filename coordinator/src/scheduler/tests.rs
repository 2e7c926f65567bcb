use std::time::Instant;

use vaultferry_vault::Id;
use vaultferry_vault::records::{PointStream, Protection};

use super::*;
use crate::catalog::sqlite::Sqlite;
use crate::catalog::{Credential, JobFilter, Point, Policy, Standing};
use crate::lifecycle::tests::world;

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn document(name: &str) -> String {
    format!(
        "name = \"{name}\"\nsource_type = \"postgres\"\ntime_zone = \"Europe/Berlin\"\n[schedule]\nevery = \"day\"\nat = [\"02:00\"]\n\
         jitter = \"PT4H\"\n[[rule]]\nname = \"Default\"\nvault = \"P30D\"\n"
    )
}

fn policy(name: &str) -> Policy {
    Policy {
        id: format!("{name:0>32}"),
        name: name.to_owned(),
        version: 1,
        create_time: time(0),
        document: document(name),
        deleted: false,
    }
}

fn instance(number: u32, policy: &str) -> Instance {
    Instance {
        id: format!("{number:032x}"),
        name: format!("database-{number:05}"),
        // Its first slot is still to come.
        create_time: Timestamp::now(),
        source_type: "postgres".to_owned(),
        source_uri: format!("postgres://backup@db{number}.example.net:5432/shop"),
        source_identity: format!("postgres://db{number}.example.net:5432/shop"),
        region: String::new(),
        policy: policy.to_owned(),
        credential: Credential::PasswordEnv("PGPASSWORD".to_owned()),
        protection: Protection::Active,
        unsettled: false,
    }
}

fn point(instance: u32, number: u32) -> Point {
    Point {
        id: Id::of(format!("{instance}/{number}").as_bytes()),
        instance_id: format!("{instance:032x}"),
        job_id: format!("{number:032x}"),
        time: time(1_700_000_000 + i64::from(number) * 86_400),
        rule: "Default".to_owned(),
        policy: "nightly".to_owned(),
        policy_version: 1,
        slot: None,
        keep_until: None,
        streams: vec![PointStream { name: "database.dump".to_owned(), size: 1 << 30, sha256: String::new() }],
        source_bytes: 1 << 30,
        stored_bytes: 1 << 20,
        capture: None,
        // The first of each is proven.
        standing: Standing { proven_time: (number == 0).then(|| time(5)), ..Standing::default() },
    }
}

fn scheduled(number: u32, policy: &Arc<Document>) -> Scheduled {
    Scheduled { instance: instance(number, "nightly"), policy: policy.clone(), done: time(0) }
}

#[test]
fn the_agenda_names_the_earliest_and_keeps_the_times_of_who_has_not_changed() {
    let nightly = Arc::new(policy::parse(&document("nightly")).expect("a policy"));
    let all: Vec<Scheduled> = (0..3).map(|number| scheduled(number, &nightly)).collect();
    let id = |number: usize| all[number].instance.id.clone();
    let mut agenda = Agenda::default();
    agenda.replace(time(10), all.clone());
    assert_eq!(agenda.next(), Some(time(10)), "who is new is looked at");
    for (number, next) in [(0, Some(30)), (1, Some(20)), (2, None)] {
        agenda.note(&id(number), time(0), next.map(time));
    }
    agenda.note("unknown", time(0), Some(time(1)));
    assert!(agenda.due(time(19)).is_none());
    assert_eq!(agenda.due(time(30)).map(|one| one.instance.id.clone()), Some(id(1)));
    // The same again changes no time; another name, another version and another slot do.
    agenda.replace(time(15), all.clone());
    assert_eq!(agenda.next(), Some(time(20)));
    let mut renamed = all.clone();
    renamed[2].instance.name = "renamed".to_owned();
    agenda.replace(time(16), renamed.clone());
    assert_eq!(agenda.due(time(16)).map(|one| one.instance.id.clone()), Some(id(2)));
    agenda.note(&id(2), time(0), None);
    renamed[1].policy = Arc::new((*nightly).clone());
    agenda.replace(time(17), renamed.clone());
    assert_eq!(agenda.due(time(17)).map(|one| one.instance.id.clone()), Some(id(1)));
    agenda.note(&id(1), time(5), Some(time(40)));
    renamed[1].done = time(5);
    agenda.replace(time(18), renamed.clone());
    assert_eq!(agenda.next(), Some(time(30)), "the scheduler's own step is no change");
    renamed[1].done = time(6);
    agenda.replace(time(18), renamed[1..].to_vec());
    assert_eq!(agenda.next(), Some(time(18)));
    agenda.note(&id(1), time(6), None);
    assert_eq!(agenda.next(), None, "who is gone is forgotten");
    agenda.look_at_all(time(19));
    assert_eq!((agenda.next(), agenda.done(&id(1))), (Some(time(19)), Some(time(6))));
}

#[tokio::test]
async fn a_change_is_seen_and_a_look_at_nothing_new_reads_nothing() {
    let dir = tempfile::tempdir().expect("folder");
    let jobs = world(dir.path()).await;
    let catalog = jobs.shared().catalog.clone();
    let mut scheduler = Scheduler::new(catalog.clone(), jobs, Arc::default());
    // The world's instance names a policy that is not there.
    assert_eq!(scheduler.start_due().await.expect("a look"), None);
    catalog.insert_policy(policy("nightly")).await.expect("inserted");
    let broken = Policy { document: "name = 5".to_owned(), ..policy("broken") };
    catalog.insert_policy(broken).await.expect("inserted");
    catalog.insert_instances(vec![instance(1, "nightly"), instance(2, "broken")]).await.expect("inserted");
    let shop = catalog.instance("shop").await.expect("found").expect("it is there");
    catalog.set_last_slot(&shop.id, Timestamp::now()).await.expect("noted");
    let next = scheduler.start_due().await.expect("a look").expect("there is a schedule");
    assert!(next > Timestamp::now());
    assert_eq!(scheduler.agenda.next(), Some(next));
    let generation = catalog.generation().await.expect("a number");
    assert_eq!(scheduler.seen, Some(generation));
    // A clock that was set back: everybody is looked at, and nobody starts.
    scheduler.last_look = Timestamp::now() + jiff::SignedDuration::from_hours(1);
    assert_eq!(scheduler.start_due().await.expect("a look"), Some(next));
    let paused = Protection::Paused { since: time(0) };
    for name in ["shop", "database-00001"] {
        let instance = catalog.instance(name).await.expect("found").expect("it is there");
        catalog.save_instance(Instance { protection: paused.clone(), ..instance }).await.expect("saved");
    }
    assert_ne!(catalog.generation().await.expect("a number"), generation);
    assert_eq!(scheduler.start_due().await.expect("a look"), None);
    assert!(catalog.unfinished_jobs().await.expect("jobs").is_empty());
}

/// The largest catalog that one agent is made for, and a tenth of it in every run.
#[tokio::test]
async fn ten_thousand_instances_with_a_million_points() {
    let heavy = std::env::var_os("VAULTFERRY_TEST_ALL").is_some_and(|value| value == "1");
    let (instances, points_each) = if heavy { (10_000_u32, 100_u32) } else { (1_000, 10) };
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("catalog.sqlite");
    {
        let catalog = Sqlite::open(&path).expect("catalog");
        for number in 0..10 {
            catalog.insert_policy(policy(&format!("nightly-{number}"))).await.expect("inserted");
        }
        let all = (1..=instances).map(|number| instance(number, &format!("nightly-{}", number % 10))).collect();
        catalog.insert_instances(all).await.expect("inserted");
        for first in (1..=instances).step_by(100) {
            let batch =
                (first..(first + 100).min(instances + 1)).flat_map(|one| (0..points_each).map(move |n| point(one, n)));
            catalog.insert_points(batch.collect()).await.expect("inserted");
        }
        catalog.into_single_file().await.expect("closed");
    }
    let mut told = Vec::new();
    let mut took = |what: &str, started: Instant, limit: Duration| {
        let elapsed = started.elapsed();
        told.push(format!("{what} {elapsed:.1?} (limit {limit:?})"));
        elapsed <= limit
    };
    let millis = Duration::from_millis;
    let mut good = true;

    let started = Instant::now();
    let jobs = world(dir.path()).await;
    let catalog = jobs.shared().catalog.clone();
    let mut scheduler = Scheduler::new(catalog.clone(), jobs, Arc::default());
    let next = scheduler.start_due().await.expect("a look").expect("there are schedules");
    good &= took("start-up with the first look", started, Duration::from_secs(3));

    let started = Instant::now();
    for _ in 0..10 {
        assert_eq!(scheduler.start_due().await.expect("a look"), Some(next));
    }
    good &= took("ten looks of the scheduler", started, millis(200));

    let some = format!("{:032x}", instances / 2);
    let started = Instant::now();
    let page = catalog.points(&some, None, 1000).await.expect("points");
    good &= took("a page of points", started, millis(50)) && page.len() == points_each as usize;
    let started = Instant::now();
    let last = page.last().map(|point| (point.time, point.id));
    assert!(catalog.points(&some, last, 1000).await.expect("points").is_empty());
    good &= took("the page behind it", started, millis(50));
    let started = Instant::now();
    catalog.jobs(JobFilter { limit: 1000, ..JobFilter::default() }).await.expect("jobs");
    good &= took("a page of jobs", started, millis(50));
    let started = Instant::now();
    assert_eq!(catalog.figures(time(0)).await.expect("figures").points, u64::from(instances * points_each));
    good &= took("the summary", started, Duration::from_secs(1));
    // The points' days lie one behind the other: half of them are since then.
    let since = point(1, points_each / 2).time;
    let started = Instant::now();
    let page = catalog.instance_figures(since, 0, 1001).await.expect("figures");
    good &= took("the summary of a thousand instances", started, Duration::from_secs(1));
    let (first, second) = (&page[0], &page[1]);
    assert_eq!((first.instance.name.as_str(), first.points, first.last_good), ("shop", 0, None));
    assert_eq!((second.points, second.stored_bytes), (u64::from(points_each), u64::from(points_each) << 20));
    assert_eq!(second.stored_bytes_since, u64::from(points_each / 2) << 20);
    assert_eq!((second.last_good, second.last_proven), (Some(point(1, points_each - 1).time), Some(point(1, 0).time)));
    let started = Instant::now();
    let page = catalog.instance_figures(since, instances - 9, 1001).await.expect("figures");
    good &= took("its last page", started, Duration::from_secs(1)) && page.len() == 10;
    let started = Instant::now();
    assert!(catalog.stored_since(since).await.expect("bytes") >= u64::from(instances * points_each / 2) << 20);
    good &= took("what was stored since then", started, Duration::from_secs(1));

    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("unknown").trim().to_owned();
    println!(
        "measured: {instances} instances, {} points: {}; peak memory {peak}",
        instances * points_each,
        told.join(", ")
    );
    assert!(good, "{told:?}");
    let kib: u64 = peak.split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
    assert!(kib < 200 << 10, "{peak}");
}
