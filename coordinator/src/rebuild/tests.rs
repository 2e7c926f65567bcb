use std::path::PathBuf;
use std::time::Duration;

use vaultferry_vault::admin::KeyPlace;
use vaultferry_vault::keys::WrapKey;
use vaultferry_vault::location::{Access, Location};
use vaultferry_vault::records::{PointCreated, PointStream, Protection};

use super::*;
use crate::catalog::{Credential, Finding, Instance, Job, JobFilter, Policy, Report, Server, Status, Work};

mod damaged;

fn config(dir: &Path) -> Config {
    let location = Location::Folder(dir.join("vault"));
    Config {
        state_dir: dir.join("state"),
        listen: Vec::new(),
        vault: Access { location, endpoint: None, credential: None, store_deadline: Duration::from_secs(5) },
        vault_key: KeyPlace::File(dir.join("state/vault.key")),
        maintenance: None,
        rehydration_poll: std::time::Duration::from_secs(600),
        region: None,
        plugins: BTreeMap::new(),
        bytes_in_flight: 0,
        upload_bytes_per_s: None,
        limits: crate::job::Limits::from(1),
        create_default_vault: false,
        service: None,
    }
}

/// Small numbers from a seed: the same world again when a test fails.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        // Knuth's MMIX generator; the upper bits are the better ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn id(&mut self) -> String {
        (0..32).map(|_| char::from(b"0123456789abcdef"[self.below(16) as usize])).collect()
    }

    fn time(&mut self) -> jiff::Timestamp {
        // The catalog keeps microseconds.
        jiff::Timestamp::from_microsecond(1_700_000_000_000_000 + self.below(1 << 31) as i64 * 31).expect("in range")
    }
}

/// A catalog as an agent makes it, with the records that the agent writes beside it. Points of the second list are in the vault, but not
/// listed: their commits did not come to their end, or they were deleted.
async fn world(config: &Config, seed: u64) -> Sqlite {
    let cancel = CancellationToken::new();
    let mut dice = Dice(seed);
    let key = config.vault_key.load(&config.vault.open_root().expect("root"), &cancel).await.expect("key");
    let root = config.vault.open_root().expect("root");
    let catalog = Sqlite::open(&offline::catalog_path(&config.state_dir)).expect("catalog");
    for number in 0..1 + dice.below(3) {
        let id = dice.id();
        for version in 1..=1 + dice.below(3) as u32 {
            let (name, create_time) = (format!("policy-{number}"), dice.time());
            let (document, deleted) = (format!("# {}", dice.id()), dice.below(4) == 0);
            let policy = Policy { id: id.clone(), name, version, create_time, document, deleted };
            assert!(admin::put_policy(&root, &recorded::policy_record(&policy), &cancel).await.expect("kept"));
            catalog.insert_policy(policy).await.expect("inserted");
        }
    }
    for number in 0..dice.below(3) {
        server(&catalog, &root, &mut dice, number).await;
    }
    for number in 0..dice.below(4) {
        let mut instance = instance(&mut dice, number);
        let record = recorded::instance_record(&instance);
        admin::create_instance(&config.vault, &key, &record, &cancel).await.expect("made");
        let store = config.vault.open_instance(&instance.id).expect("store");
        if dice.below(2) == 1 {
            // It was changed since: the newest record counts.
            instance.policy = format!("policy-{}", dice.below(9));
            instance.name = format!("renamed {number} 한글");
            instance.protection = protection(&mut dice);
            assert!(admin::put_instance(&store, &recorded::instance_record(&instance), &cancel).await.expect("put"));
        }
        if dice.below(3) == 0 {
            // One that is gone for good had the same name and the same source before.
            let gone =
                Instance { id: dice.id(), protection: Protection::Purged { since: dice.time() }, ..instance.clone() };
            let record = recorded::instance_record(&gone);
            admin::create_instance(&config.vault, &key, &record, &cancel).await.expect("made");
        }
        catalog.insert_instances(vec![instance.clone()]).await.expect("inserted");
        for _ in 0..dice.below(5) {
            catalog.insert_points(vec![point(&store, &mut dice, &instance.id, true).await]).await.expect("inserted");
        }
        for _ in 0..dice.below(3) {
            point(&store, &mut dice, &instance.id, false).await;
        }
    }
    catalog
}

fn instance(dice: &mut Dice, number: u64) -> Instance {
    let credential = match dice.below(4) {
        0 => Credential::None,
        1 => Credential::Passfile(PathBuf::from("/etc/pgpass")),
        2 => Credential::Identity("managed".to_owned()),
        _ => Credential::PasswordEnv("SHOP_PASSWORD".to_owned()),
    };
    Instance {
        id: dice.id(),
        name: format!("shop-{number}"),
        create_time: dice.time(),
        source_type: "postgres".to_owned(),
        source_uri: format!("postgres://u@h/shop-{number}"),
        source_identity: format!("postgres://h:5432/shop-{number}"),
        region: ["", "koreacentral"][dice.below(2) as usize].to_owned(),
        policy: "policy-0".to_owned(),
        credential,
        protection: Protection::Active,
        unsettled: false,
    }
}

/// A server that was added, may have been changed, and may have been removed.
async fn server(catalog: &Sqlite, root: &store::Shared, dice: &mut Dice, number: u64) {
    let cancel = CancellationToken::new();
    let server_identity = format!("postgres://h-{number}:5432/");
    let mut server = Server {
        id: records::server_id(&server_identity),
        name: format!("h-{number}:5432"),
        create_time: dice.time(),
        source_type: "postgres".to_owned(),
        server_uri: format!("postgres://u@h-{number}/"),
        server_identity,
        region: String::new(),
        policy: "policy-0".to_owned(),
        credential: Credential::Passfile(PathBuf::from("/etc/pgpass")),
        include: Vec::new(),
        exclude: vec!["*_test".to_owned()],
    };
    for _ in 0..=dice.below(2) {
        server.policy = format!("policy-{}", dice.below(9));
        admin::put_server(root, &recorded::server_record(&server, false), &cancel).await.expect("put");
    }
    if dice.below(3) == 0 {
        assert!(admin::put_server(root, &recorded::server_record(&server, true), &cancel).await.expect("put"));
    } else {
        assert!(!admin::put_server(root, &recorded::server_record(&server, false), &cancel).await.expect("the same"));
        catalog.save_server(server).await.expect("saved");
    }
}

/// What may have become of an instance.
fn protection(dice: &mut Dice) -> Protection {
    let (since, purge_time) = (dice.time(), dice.time());
    match dice.below(4) {
        0 => Protection::Active,
        1 => Protection::Paused { since },
        2 => Protection::Stopped { since },
        _ => Protection::Deleted { since, purge_time, before: Box::new(Protection::Paused { since }) },
    }
}

async fn point(store: &store::Shared, dice: &mut Dice, instance_id: &str, listed: bool) -> Point {
    let sealed = dice.id();
    let (id, time) = (Id::of(sealed.as_bytes()), dice.time());
    let created = PointCreated {
        job_id: dice.id(),
        rule: ["Default", "Monthly"][dice.below(2) as usize].to_owned(),
        policy: "policy-0".to_owned(),
        policy_version: 1 + dice.below(9) as u32,
        slot: None,
        keep_until: None,
        streams: vec![PointStream { name: "database.dump".to_owned(), size: dice.below(99), sha256: dice.id() }],
        source_bytes: dice.below(1 << 30),
        stored_bytes: dice.below(1 << 20),
        sealed_snapshot: String::new(),
        prune_epoch: 0,
        capture: None,
    };
    let event = PointEvent { version: 1, time, event: PointEventKind::Created(created.clone()) };
    records::put(&**store, &records::numbered(&records::point_events(&id), 1), &event).await.expect("event");
    if listed {
        store.put_if_absent(&FileKind::Snapshot.key(&id), sealed.into_bytes().into()).await.expect("snapshot");
    }
    recorded::point_of(instance_id, id, time, created)
}

/// Everything that a rebuild must give back.
async fn all(catalog: &Sqlite) -> (Vec<Policy>, Vec<Instance>, Vec<Vec<Point>>, Vec<Server>) {
    let instances = catalog.instances().await.expect("instances");
    let mut points = Vec::new();
    for instance in &instances {
        points.push(catalog.points(&instance.id, None, 1000).await.expect("points"));
    }
    let servers = catalog.servers().await.expect("servers");
    (catalog.all_policies().await.expect("policies"), instances, points, servers)
}

async fn made(seed: u64) -> (tempfile::TempDir, Config, Sqlite) {
    let dir = tempfile::tempdir().expect("folder");
    let config = config(dir.path());
    offline::init_vault(&config, "geo-redundant").await.expect("init");
    let catalog = world(&config, seed).await;
    (dir, config, catalog)
}

fn opened(config: &Config) -> Sqlite {
    Sqlite::open(&offline::catalog_path(&config.state_dir)).expect("catalog")
}

#[tokio::test]
async fn a_rebuilt_catalog_is_the_catalog() {
    let (mut points, mut instances, mut servers) = (0, 0, 0);
    for seed in 0..24 {
        let (_dir, config, catalog) = made(seed).await;
        let before = all(&catalog).await;
        catalog.into_single_file().await.expect("closed");
        let rebuilt = offline::rebuild_catalog(&config, false).await.expect("rebuilt");
        assert!(rebuilt.problems.is_empty(), "seed {seed}: {:?}", rebuilt.problems);
        let catalog = opened(&config);
        let after = all(&catalog).await;
        assert_eq!(after, before, "seed {seed}");
        servers += after.3.len();
        for (instance, points) in after.1.iter().zip(&after.2) {
            let slot = catalog.last_slot(&instance.id).await.expect("slot");
            assert_eq!(slot, points.iter().map(|point| point.time).max(), "seed {seed}");
        }
        let kept = Sqlite::open(&rebuilt.kept.expect("the old one is kept")).expect("opens");
        assert_eq!(all(&kept).await, before, "seed {seed}");
        instances += after.1.len();
        points += after.2.iter().map(Vec::len).sum::<usize>();
    }
    let enough = instances > 10 && points > 20 && servers > 5;
    assert!(enough, "{instances} instances, {points} points, {servers} servers: the worlds are too small");
}

/// As a kill leaves it: with what was written last only in its journal.
#[tokio::test]
async fn the_catalog_of_a_killed_agent_is_kept_with_its_journal() {
    let (dir, config, catalog) = made(3).await;
    let before = all(&catalog).await;
    let path = offline::catalog_path(&config.state_dir);
    let copy = dir.path().join("killed");
    std::fs::create_dir(&copy).expect("folder");
    for ending in ["", "-wal"] {
        std::fs::copy(with_ending(&path, ending), copy.join(format!("catalog{ending}"))).expect("copied");
    }
    assert!(copy.join("catalog-wal").metadata().expect("there").len() > 0, "the journal is not empty");
    catalog.into_single_file().await.expect("closed");
    for ending in ["", "-wal"] {
        std::fs::copy(copy.join(format!("catalog{ending}")), with_ending(&path, ending)).expect("as it was killed");
    }
    let rebuilt = offline::rebuild_catalog(&config, false).await.expect("rebuilt");
    let kept = Sqlite::open(&rebuilt.kept.expect("kept")).expect("opens");
    assert_eq!(all(&kept).await, before);
    assert_eq!(all(&opened(&config)).await, before);
}

#[tokio::test]
async fn what_cannot_be_read_is_told_and_the_rest_is_there() {
    // The first world that has a point.
    let mut seed = 0;
    let (dir, config, catalog, instances, points) = loop {
        let (dir, config, catalog) = made(seed).await;
        let (_, instances, points, _) = all(&catalog).await;
        if points.iter().any(|points| !points.is_empty()) {
            break (dir, config, catalog, instances, points);
        }
        seed += 1;
    };
    catalog.into_single_file().await.expect("closed");
    let (instance, point) = instances
        .iter()
        .zip(&points)
        .find_map(|(instance, points)| Some((instance, points.first()?)))
        .expect("the seed has a point");
    let instance_dir = dir.path().join("vault/instances").join(&instance.id);
    let event = instance_dir.join(format!("points/{}/0000000001.json", point.id));
    std::fs::write(&event, b"{").expect("damaged");
    let rebuilt = offline::rebuild_catalog(&config, false).await.expect("rebuilt");
    assert_eq!(rebuilt.problems.len(), 1, "{:?}", rebuilt.problems);
    assert!(rebuilt.problems[0].contains(&point.id.to_string()), "{:?}", rebuilt.problems);
    let listed: usize = points.iter().map(Vec::len).sum();
    assert_eq!((rebuilt.instances, rebuilt.points), (instances.len() as u64, listed as u64 - 1));
    // An instance whose record is damaged takes nothing else with it.
    let newest = std::fs::read_dir(instance_dir.join("instance")).expect("records").count();
    let record = instance_dir.join(format!("instance/{newest:010}.json"));
    std::fs::write(record, b"[]").expect("damaged");
    let rebuilt = offline::rebuild_catalog(&config, false).await.expect("rebuilt");
    assert_eq!((rebuilt.instances, rebuilt.problems.len()), (instances.len() as u64 - 1, 1), "{:?}", rebuilt.problems);
}

#[tokio::test]
async fn a_store_that_does_not_answer_leaves_the_catalog_as_it_is() {
    let (dir, config, catalog) = made(7).await;
    let before = all(&catalog).await;
    catalog.into_single_file().await.expect("closed");
    std::fs::rename(dir.path().join("vault"), dir.path().join("away")).expect("the disk is away");
    for refused in
        [offline::rebuild_catalog(&config, false).await.err(), offline::attach(&config, None, true).await.err()]
    {
        let refused = refused.expect("refused");
        assert_eq!(refused.reason, Reason::VaultNotFound);
        assert_eq!(refused.message, format!("there is no vault at {}", dir.path().join("vault").display()));
        assert!(refused.fix.starts_with("Check the vault's path or address"), "{}", refused.fix);
        assert!(!refused.fix.contains("vault init"), "a new vault would hide the old one: {}", refused.fix);
    }
    assert_eq!(all(&opened(&config)).await, before);
    let kept = std::fs::read_dir(&config.state_dir).expect("state").flatten();
    assert_eq!(kept.filter(|entry| entry.file_name().to_string_lossy().contains("before")).count(), 0);
}

#[tokio::test]
async fn nothing_is_done_beside_a_running_agent_or_with_a_strangers_key() {
    let (_dir, config, _catalog) = made(9).await;
    let lock = offline::lock(&config.state_dir).expect("an agent runs");
    for refused in [
        offline::rebuild_catalog(&config, false).await.err(),
        offline::upgrade(&config).await.err(),
        offline::rotate_key(&config).await.err(),
        offline::attach(&config, None, true).await.err(),
    ] {
        assert_eq!(refused.expect("refused").reason, Reason::InvalidConfiguration);
    }
    drop(lock);
    let stranger = WrapKey::generate().expect("random").to_text();
    let refused = offline::attach(&config, Some(stranger), true).await.expect_err("refused");
    assert_eq!(refused.reason, Reason::VaultKeyWrong);
    offline::attach(&config, None, false).await.expect("nobody owns it, and the key is there");
}

#[test]
fn early_records_get_stable_ids() {
    let early = |version| records::PolicyRecord {
        version: 1,
        name: "nightly".to_owned(),
        policy_version: version,
        create_time: jiff::Timestamp::UNIX_EPOCH,
        document: String::new(),
        id: String::new(),
        deleted: false,
    };
    let ids = [1, 2].map(|version| recorded::policy_of(early(version)).id);
    assert_eq!(ids[0], ids[1]);
    assert!(ids[0].len() == 32 && ids[0].bytes().all(|byte| byte.is_ascii_hexdigit()));
}

fn job(number: u8, status: Status) -> Job {
    let finding_count = 1;
    Job {
        id: format!("{number:032x}"),
        create_time: jiff::Timestamp::from_second(i64::from(number)).expect("a time"),
        instance_id: format!("{number}"),
        instance_name: "shop".to_owned(),
        work: Work::Check { keyless: false, read_data_ppm: Work::ALL_DATA },
        status,
        scheduled: false,
        request_id: Some(format!("request:{number}")),
        warnings: Vec::new(),
        rehydrating: false,
        report: Some(Report { finding_count, figures: None }),
        queued: false,
        attempt: crate::catalog::Attempt::default(),
        steps: Vec::new(),
    }
}

#[tokio::test]
async fn the_history_of_jobs_comes_from_the_newest_copy_that_can_be_read() {
    let (dir, config, catalog) = made(3).await;
    let root = config.vault.open_root().expect("root");
    let put = async |name: &str, body: bytes::Bytes| {
        let key = Key::new(format!("catalog/{name}.sqlite.zst")).expect("a key");
        root.put_if_absent(&key, body).await.expect("put");
    };
    put("20260101T000000Z", crate::catalog::copy::read(&config.state_dir).await.expect("read")).await;
    let ended = job(1, Status::Cancelled { end_time: jiff::Timestamp::UNIX_EPOCH });
    let finding = Finding {
        kind: "altered".to_owned(),
        damage: true,
        file: "repo/data/1".to_owned(),
        message: "m".to_owned(),
        points: Vec::new(),
    };
    catalog.insert_history(vec![(ended.clone(), vec![finding.clone()])]).await.expect("inserted");
    catalog.insert_job(job(2, Status::InProgress)).await.expect("inserted");
    put("20260102T000000Z", crate::catalog::copy::read(&config.state_dir).await.expect("read")).await;
    put("20260103T000000Z", bytes::Bytes::from_static(b"no copy of anything")).await;
    put("20260104T000000Z", zstd::stream::encode_all(&b"no catalog"[..], 1).expect("zstd").into()).await;
    // Some KiB that would fill a disk.
    let endless = std::io::Read::take(std::io::repeat(0), 100 << 20);
    put("20260105T000000Z", zstd::stream::encode_all(endless, 1).expect("zstd").into()).await;
    let before = all(&catalog).await;
    catalog.into_single_file().await.expect("closed");
    // Of a rebuild that was killed, when there were more copies.
    std::fs::write(dir.path().join("state/catalog-history-77.sqlite"), b"left").expect("written");

    let rebuilt = offline::rebuild_catalog(&config, true).await.expect("rebuilt");
    assert_eq!(rebuilt.jobs, 1);
    let told = rebuilt.problems.join("\n");
    assert!(rebuilt.problems.len() == 3 && told.contains("20260103") && told.contains("20260104"), "{told}");
    let hostile = rebuilt.problems.iter().find(|problem| problem.contains("20260105")).expect("it is told");
    assert!(hostile.contains("is passed over") && hostile.contains("this is no copy of a catalog"), "{hostile}");
    let catalog = opened(&config);
    assert_eq!(all(&catalog).await, before);
    let jobs = catalog.jobs(JobFilter { limit: 10, ..JobFilter::default() }).await.expect("jobs");
    assert_eq!(jobs, std::slice::from_ref(&ended));
    assert_eq!(catalog.findings(&ended.id).await.expect("findings"), [finding]);
    // The same again, and a job that is there stays as it is.
    catalog.insert_history(vec![(job(1, Status::InProgress), Vec::new()), (ended, Vec::new())]).await.expect("again");
    assert_eq!(catalog.jobs(JobFilter { limit: 10, ..JobFilter::default() }).await.expect("jobs"), jobs);
    drop(catalog);
    let left: Vec<_> = std::fs::read_dir(dir.path().join("state"))
        .expect("listed")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("catalog-history") || name.starts_with("catalog-copy"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let rebuilt = offline::rebuild_catalog(&config, false).await.expect("rebuilt");
    assert_eq!((rebuilt.jobs, rebuilt.problems.len()), (0, 0));
}

#[tokio::test]
async fn a_service_is_told_again_of_every_point() {
    let mut told = 0;
    for seed in 0..6 {
        let (_dir, mut config, catalog) = made(seed).await;
        let points: BTreeSet<Id> = all(&catalog).await.2.into_iter().flatten().map(|point| point.id).collect();
        catalog.into_single_file().await.expect("closed");
        offline::rebuild_catalog(&config, false).await.expect("rebuilt");
        assert!(opened(&config).outbox().await.expect("outbox").is_empty(), "seed {seed}: nobody is to be told");
        let (endpoint, ca, identity, token) = ("http://127.0.0.1:1".to_owned(), None, None, None);
        config.service = Some(crate::link::Config { endpoint, ca, identity, token, in_process: None });
        offline::rebuild_catalog(&config, false).await.expect("rebuilt");
        let outbox = opened(&config).outbox().await.expect("outbox");
        assert!(outbox.iter().all(|entry| entry.job_id == entry.point.job_id), "seed {seed}");
        let queued: BTreeSet<Id> = outbox.into_iter().map(|entry| entry.point.id).collect();
        assert!(points.is_subset(&queued), "seed {seed}: {points:?} {queued:?}");
        told += queued.len();
    }
    assert!(told > 5, "{told} points: the worlds are too small");
}
