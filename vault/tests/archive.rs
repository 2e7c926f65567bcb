//! The archive store: copies are complete, deduplicated and crash-safe, reading them waits, restic reads them, and they go in time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use rand::{RngExt as _, SeedableRng as _};
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;
use vaultferry_tests::{azurite, restic};
use vaultferry_vault::archive::{self, Copied};
use vaultferry_vault::check;
use vaultferry_vault::commit;
use vaultferry_vault::location::Access;
use vaultferry_vault::meter::Meter;
use vaultferry_vault::points;
use vaultferry_vault::reader::PointReader;
use vaultferry_vault::records::{self, PointEvent, PointEventKind};
use vaultferry_vault::repository::{FileKind, Repository, pack_key};
use vaultferry_vault::store::azure::Credential;
use vaultferry_vault::store::faulty::{Faulty, Operation, Plan};
use vaultferry_vault::store::folder::Folder;
use vaultferry_vault::store::memory::Memory;
use vaultferry_vault::store::{self, Entry, Key, Shared, Tier};
use vaultferry_vault::writer::{Backup, Options, SnapshotMeta};
use vaultferry_vault::{Error, Id};

#[path = "archive/checks.rs"]
mod checks;
#[path = "support/dying.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod dying;
#[path = "support/fake_blob.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod fake_blob;
#[path = "archive/moves.rs"]
mod moves;
#[path = "support/record.rs"]
mod record;

use dying::{Dying, Last};
use fake_blob::FakeBlob;
use record::record;

const INSTANCE: &str = "0123456789abcdef0123456789abcdef";

fn password() -> SecretString {
    SecretString::from("5e".repeat(32))
}

fn cancel() -> CancellationToken {
    CancellationToken::new()
}

fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rand::rngs::StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

async fn repository(store: &Shared) -> Arc<Repository> {
    Arc::new(Repository::init(store.clone(), &password(), &cancel()).await.expect("init"))
}

/// Backs the bytes up and commits them.
async fn point(repository: &Arc<Repository>, job: &str, bytes: &[u8]) -> Id {
    let (meter, cancel) = (Arc::new(Meter::default()), cancel());
    let mut backup = Backup::begin(repository.clone(), Options::default(), meter, &cancel).await.expect("begin");
    backup.write_stream("database.dump", bytes, &cancel).await.expect("write");
    let time = jiff::Timestamp::from_second(1_800_000_000).expect("a time");
    let meta = SnapshotMeta { time, hostname: "host".to_owned(), tags: vec![format!("job={job}")] };
    let staged = backup.stage(meta, &cancel).await.expect("stage");
    let record = record(job, &staged);
    let store = repository.store();
    commit::verify(&**store, &record, &cancel).await.expect("verify");
    commit::prepare(&**store, &record, &cancel).await.expect("prepare");
    commit::publish(&**store, &record, &cancel).await.expect("publish");
    staged.snapshot_id
}

async fn copy(repository: &Arc<Repository>, id: &Id, job: &str) -> Result<Copied, Error> {
    archive::copy_point(repository, id, job, &Arc::new(Meter::default()), &cancel()).await
}

async fn read(repository: Repository, id: Id) -> Result<Vec<u8>, Error> {
    let cancel = cancel();
    let point = PointReader::open(Arc::new(repository), id, &cancel).await?;
    let mut bytes = Vec::new();
    let mut chunks = point.chunks("database.dump", &cancel)?;
    while let Some(chunk) = chunks.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes)
}

/// From the archive, opened by its password as on another machine.
async fn read_archive(store: &Shared, id: Id) -> Result<Vec<u8>, Error> {
    let repository = Repository::open(archive::store(store)?, &password(), &cancel()).await?;
    read(repository, id).await
}

async fn entries(store: &Shared, prefix: &str) -> Vec<Entry> {
    store::list(&**store, prefix).try_collect().await.expect("list")
}

async fn events(store: &Shared, id: &Id) -> Vec<PointEventKind> {
    let mut events = Vec::new();
    for entry in entries(store, &records::point_events(id)).await {
        events.push(records::get::<PointEvent>(&**store, &entry.key).await.expect("event").event);
    }
    events
}

fn is_archived(result: Result<Vec<u8>, Error>) -> bool {
    matches!(result, Err(Error::Store(store::Error::Archived { .. })))
}

async fn calls_of_opening(store: &Shared) -> u64 {
    let mut calls = 0;
    while Repository::open(Arc::new(Dying::new(store.clone(), calls + 1, Last::NotDone)), &password(), &cancel())
        .await
        .is_err()
    {
        calls += 1;
    }
    calls
}

fn is_archived_or(result: Result<Vec<u8>, Error>, bytes: &[u8]) {
    match result {
        Ok(read) => assert!(read == bytes),
        Err(Error::Store(store::Error::Archived { .. })) => {}
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archived_point_is_read_after_a_wait() {
    let memory = Arc::new(Memory::new("archive"));
    let faulty = Arc::new(Faulty::new(memory.clone(), Plan::new()));
    let store: Shared = faulty.clone();
    let repository = repository(&store).await;
    let bytes = random(1, 70 << 20);
    let id = point(&repository, "1", &bytes).await;
    let copied = copy(&repository, &id, "archive-1").await.expect("copy");
    assert!(!copied.existed && copied.packs == 3, "two packs of data, one of trees: {copied:?}");
    assert_eq!(copied.known_blobs, 0);
    assert_eq!(
        copy(&repository, &id, "archive-2").await.expect("again"),
        Copied { existed: true, ..Copied::default() }
    );
    assert_eq!(events(&store, &id).await[1..], [PointEventKind::Archived { job_id: "archive-1".to_owned() }]);

    let packs = entries(&store, "archive/repo/data/").await;
    assert!(packs.iter().all(|pack| pack.size <= 64 << 20), "{packs:?}");
    let archived = packs.iter().filter(|pack| pack.tier == Tier::Archive).count();
    assert_eq!((packs.len(), archived), (3, 2), "trees are online");
    for prefix in ["archive/repo/index/", "archive/repo/snapshots/", "archive/repo/keys/", "repo/"] {
        assert!(entries(&store, prefix).await.iter().all(|file| file.tier == Tier::Hot), "{prefix}");
    }

    // From the hot store it is gone, and it is there.
    points::remove_from_vault(&*store, &id, &cancel()).await.expect("remove");
    points::remove_from_vault(&*store, &id, &cancel()).await.expect("again");
    assert!(entries(&store, FileKind::Snapshot.prefix()).await.is_empty());
    assert_eq!(events(&store, &id).await.last(), Some(&PointEventKind::RemovedFromVault));
    assert!(archive::contains(&store, &id, &cancel()).await.expect("contains"));

    let cancel = cancel();
    assert!(is_archived(read_archive(&store, id).await), "nothing was asked for");
    let state = archive::rehydration_state(&repository, &id, "r", &cancel).await.expect("state");
    assert_eq!((state.waiting, state.ready, state.ready_by), (2, 0, None));
    for _ in 0..3 {
        let state = archive::rehydrate(&repository, &id, "r", &cancel).await.expect("rehydrate");
        assert_eq!((state.waiting, state.ready), (2, 0));
        let estimate = state.estimate(jiff::Timestamp::now());
        assert!(
            estimate > Duration::from_secs(14 * 3600) && estimate <= Duration::from_secs(15 * 3600),
            "{estimate:?}"
        );
    }
    assert_eq!(faulty.calls(Operation::Copy), 2, "each pack is asked for once");
    assert!(is_archived(read_archive(&store, id).await), "it waits");
    assert_eq!(archive::requests(&repository, &cancel).await.expect("requests").len(), 1);

    memory.finish_rehydration();
    let state = archive::rehydrate(&repository, &id, "r", &cancel).await.expect("rehydrate");
    assert!(state.is_ready() && state.ready_by.is_none(), "{state:?}");
    assert!(read_archive(&store, id).await.expect("read") == bytes);
    assert!(read(archive::open(&repository).expect("open"), id).await.expect("read") == bytes);

    assert_eq!(findings(&store).await, Vec::<String>::new(), "a check knows the archive and the copies");

    // Another restore still needs the copies; then nobody does.
    archive::rehydrate(&repository, &id, "r2", &cancel).await.expect("rehydrate");
    assert_eq!(archive::clean_up_rehydrated(&repository, "r", &cancel).await.expect("clean up"), 0);
    assert!(read_archive(&store, id).await.expect("read") == bytes);
    assert_eq!(archive::clean_up_rehydrated(&repository, "r2", &cancel).await.expect("clean up"), 2);
    assert_eq!(archive::clean_up_rehydrated(&repository, "r2", &cancel).await.expect("again"), 0);
    assert!(entries(&store, "archive/rehydrated/").await.is_empty());
    assert!(is_archived(read_archive(&store, id).await));
}

#[tokio::test]
async fn a_rehydration_that_failed_is_asked_for_again() {
    let memory = Arc::new(Memory::new("archive"));
    let store: Shared = memory.clone();
    let repository = repository(&store).await;
    let bytes = random(2, 3 << 20);
    let id = point(&repository, "1", &bytes).await;
    copy(&repository, &id, "archive").await.expect("copy");
    archive::rehydrate(&repository, &id, "r", &cancel()).await.expect("rehydrate");
    memory.finish_rehydration();
    let copy = entries(&store, "archive/rehydrated/data/").await.remove(0).key;
    assert!(memory.damage(&copy, |bytes| bytes.truncate(7)));
    let state = archive::rehydrate(&repository, &id, "r", &cancel()).await.expect("rehydrate");
    assert_eq!(state.waiting, 1);
    memory.finish_rehydration();
    assert!(read_archive(&store, id).await.expect("read") == bytes);
}

#[tokio::test]
async fn only_new_chunks_are_copied() {
    let store: Shared = Arc::new(Memory::new("archive"));
    let repository = repository(&store).await;
    let mut bytes = random(3, 20 << 20);
    let first = point(&repository, "1", &bytes).await;
    let whole = copy(&repository, &first, "a1").await.expect("copy");
    bytes[10 << 20] ^= 1;
    let second = point(&repository, "2", &bytes).await;
    let more = copy(&repository, &second, "a2").await.expect("copy");
    assert_eq!(more.copied_blobs, 2, "a chunk and the tree: {more:?}");
    assert!(more.stored_bytes < whole.stored_bytes / 2 && more.known_blobs > 10, "{more:?}");
    // What the archive has, it has from the archive: its lists name every pack once, in a chain.
    let archive = archive::store(&store).expect("store");
    let lists = commit::read_pack_lists(&*archive).await.expect("a chain");
    let mut listed: Vec<Id> = lists.iter().flat_map(|(_, list)| list.packs.iter().map(|pack| pack.id)).collect();
    listed.sort_unstable();
    let mut there: Vec<Id> =
        entries(&archive, "repo/data/").await.iter().map(|pack| pack.key.name().parse().expect("id")).collect();
    there.sort_unstable();
    assert_eq!((lists.len(), listed), (2, there));
}

#[tokio::test]
async fn a_damaged_point_does_not_get_into_the_archive() {
    let memory = Arc::new(Memory::new("archive"));
    let store: Shared = memory.clone();
    let repository = repository(&store).await;
    let id = point(&repository, "1", &random(4, 2 << 20)).await;
    let pack = entries(&store, "repo/data/").await.into_iter().max_by_key(|pack| pack.size).expect("a pack");
    assert!(memory.damage(&pack.key, |bytes| bytes[1000] ^= 1));
    let error = copy(&repository, &id, "archive").await.expect_err("damaged");
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
    assert!(!archive::contains(&store, &id, &cancel()).await.expect("contains"));
    let error = points::remove_from_vault(&*store, &id, &cancel()).await.expect_err("no copy");
    assert!(matches!(error, Error::PointNotFound { .. }), "{error:?}");
    assert_eq!(entries(&store, FileKind::Snapshot.prefix()).await.len(), 1);
}

fn restic(dir: &Path) -> restic::Repository {
    let (repository, password) = (dir.join("archive/repo"), password());
    let export = format!("RESTIC_REPOSITORY={}\nRESTIC_PASSWORD={}", repository.display(), password.expose_secret());
    restic::Repository::from_export(&export)
}

/// Every call of a copy is its last, done or not; then it is repeated. Memory shows every place; restic looks at some in a folder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_copy_is_repeated_to_one_complete_copy() {
    let bytes = random(5, 3 << 20);
    let mut n = 0;
    loop {
        n += 1;
        let mut killed = 0;
        for last in [Last::NotDone, Last::Done] {
            let dir = tempfile::tempdir().expect("tempdir");
            let looked_at = n % 9 == 1 && last == Last::NotDone;
            let store: Shared =
                if looked_at { Arc::new(Folder::new(dir.path().to_owned())) } else { Arc::new(Memory::new("killed")) };
            let id = point(&repository(&store).await, "1", &bytes).await;
            // Opening takes calls too: the copy's are counted from there.
            let dying = Arc::new(Dying::new(store.clone(), calls_of_opening(&store).await + n, last));
            let opened = Arc::new(Repository::open(dying, &password(), &cancel()).await.expect("open"));
            let first = copy(&opened, &id, "archive").await;
            killed += u64::from(first.is_err());
            let archive = archive::store(&store).expect("store");
            let is_listed = archive::contains(&store, &id, &cancel()).await.expect("contains");
            let complete = |result: Result<Vec<u8>, Error>| is_archived_or(result, &bytes);
            if is_listed {
                complete(read_archive(&store, id).await);
            }
            copy(&repository(&store).await, &id, "archive").await.expect("repeated");
            assert_eq!(entries(&archive, FileKind::Snapshot.prefix()).await.len(), 1);
            let archived = |event: &&PointEventKind| matches!(event, PointEventKind::Archived { .. });
            assert_eq!(events(&store, &id).await.iter().filter(archived).count(), 1, "call {n}");
            commit::read_pack_lists(&*archive).await.expect("a chain");
            complete(read_archive(&store, id).await);
            if looked_at {
                restic(dir.path()).check();
                assert!(read_archive(&store, id).await.expect("a folder reads at once") == bytes);
            } else {
                let tiers = entries(&archive, "repo/data/").await;
                assert!(tiers.iter().any(|pack| pack.tier == Tier::Archive), "call {n}: {tiers:?}");
            }
        }
        if killed == 0 {
            break;
        }
    }
    assert!(n > 20, "a copy makes {n} calls");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restic_reads_the_archive_of_a_folder() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store: Shared = Arc::new(Folder::new(dir.path().to_owned()));
    let repository = repository(&store).await;
    let mut bytes = random(6, 66 << 20);
    let first = point(&repository, "1", &bytes).await;
    copy(&repository, &first, "a1").await.expect("copy");
    bytes.splice(5 << 20..5 << 20, *b"inserted");
    let second = point(&repository, "2", &bytes).await;
    copy(&repository, &second, "a2").await.expect("copy");
    let restic = restic(dir.path());
    restic.check();
    let dump = restic.run(&["dump", &second.to_string(), "/database.dump"]).success();
    assert!(dump.stdout == bytes);
    // Nothing is in the Archive tier of a folder: nothing to wait for, nothing to clean up.
    let state = archive::rehydrate(&repository, &second, "r", &cancel()).await.expect("rehydrate");
    assert!(state.is_ready() && state.ready > 0, "{state:?}");
    assert!(entries(&store, "archive/rehydrated/").await.is_empty());
}

fn days(days: i64) -> jiff::Timestamp {
    jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * days)
}

async fn delete_snapshot(store: &Shared, id: &Id) {
    let key = Key::new(format!("archive/repo/snapshots/{id}")).expect("key");
    store.delete(&key).await.expect("delete");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packs_go_whole_and_not_before_their_time() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store: Shared = Arc::new(Folder::new(dir.path().to_owned()));
    let repository = repository(&store).await;
    let (one, two) = (random(7, 4 << 20), random(8, 4 << 20));
    let first = point(&repository, "1", &one).await;
    copy(&repository, &first, "a1").await.expect("copy");
    // The second point needs half of the first one's pack.
    let mixed = [&one[..2 << 20], &two].concat();
    let second = point(&repository, "2", &mixed).await;
    copy(&repository, &second, "a2").await.expect("copy");
    let third = point(&repository, "3", &random(9, 4 << 20)).await;
    copy(&repository, &third, "a3").await.expect("copy");
    let prune = async |now, dry_run| archive::prune(&repository, now, dry_run, &cancel()).await.expect("prune");
    assert_eq!(prune(days(400), false).await.deleted, 0, "all is needed");

    // Soft-deleted, it can be brought back: its packs stay.
    points::soft_delete(&*store, &third, days(14), &cancel()).await.expect("delete");
    assert!(!archive::contains(&store, &third, &cancel()).await.expect("contains"));
    assert_eq!(prune(days(400), false).await.deleted, 0, "it may come back");
    points::undelete(&*store, &third, &cancel()).await.expect("undelete");
    assert!(archive::contains(&store, &third, &cancel()).await.expect("contains"));
    points::soft_delete(&*store, &third, days(-1), &cancel()).await.expect("delete");
    points::soft_delete(&*store, &first, days(-1), &cancel()).await.expect("delete");
    assert_eq!(points::purge_due(&*store, days(0), &cancel()).await.expect("purge").len(), 2);
    let report = prune(days(179), false).await;
    assert_eq!((report.deleted, report.young), (0, 3), "{report:?}");
    let report = prune(days(181), true).await;
    assert_eq!((report.deleted, report.young, report.needed), (3, 0, 3), "a dry run: {report:?}");
    assert_eq!(prune(days(181), false).await, report);
    assert_eq!(prune(days(181), false).await.deleted, 0);
    // One point's data and tree, and the other's tree; what they share with the second stays, whole.
    assert!(read_archive(&store, second).await.expect("read") == mixed);
    let restic = restic(dir.path());
    restic.check();
    let archive = archive::store(&store).expect("store");
    let mark: records::PruneMark =
        records::get(&*archive, &records::numbered(records::PRUNE, 1)).await.expect("a mark tells what went");
    assert_eq!(mark.marked.len(), 3);
    assert_eq!(findings(&store).await, Vec::<String>::new());
}

/// What a check without a key says that is no note, of points and files of the two repositories: this instance has no records of its own.
async fn findings(store: &Shared) -> Vec<String> {
    let report = check::keyless(&**store, check::Depth::Structure, &Meter::default(), &cancel()).await.expect("check");
    let records = ["instance/", "keys/"];
    let findings = report.findings.iter().filter(|finding| {
        finding.severity != check::Severity::Note && !records.iter().any(|record| finding.file.starts_with(record))
    });
    findings.map(|finding| format!("{finding:?}")).collect()
}

#[tokio::test]
async fn a_killed_prune_is_repeated_and_loses_nothing() {
    let (one, two) = (random(10, 2 << 20), random(11, 2 << 20));
    let mut n = 0;
    loop {
        n += 1;
        let store: Shared = Arc::new(Memory::new("killed"));
        let whole = repository(&store).await;
        let first = point(&whole, "1", &one).await;
        let second = point(&whole, "2", &[&one[..], &two].concat()).await;
        copy(&whole, &first, "a1").await.expect("copy");
        copy(&whole, &second, "a2").await.expect("copy");
        delete_snapshot(&store, &second).await;
        let dying: Shared = Arc::new(Dying::new(store.clone(), calls_of_opening(&store).await + n, Last::Done));
        let opened = Repository::open(dying, &password(), &cancel()).await.expect("open");
        let killed = archive::prune(&opened, days(200), false, &cancel()).await.is_err();
        archive::prune(&whole, days(200), false, &cancel()).await.expect("repeated");
        let archive = archive::store(&store).expect("store");
        assert_eq!(entries(&archive, "repo/data/").await.len(), 2, "call {n}: the first point's data and tree");
        let (archive, cancel) = (Repository::open(archive, &password(), &cancel()).await.expect("open"), cancel());
        let index = archive.load_index(&cancel).await.expect("index");
        assert!(index.damaged().is_empty(), "call {n}: no index names what is gone");
        archive::rehydrate(&whole, &first, "r", &cancel).await.expect("all of it is there");
        if !killed {
            break;
        }
    }
    assert!(n > 10, "a prune makes {n} calls");
}

/// The requests themselves, as an emulator that is not ours takes them. It rehydrates at once; with a SAS in the source's URL it does not
/// copy out of the archive at all, so here it is the account's key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_point_in_the_archive_of_an_emulator_is_read() {
    let server = azurite::Server::start();
    let access = Access {
        location: format!("azure://{}/vault", server.vault.name()).parse().expect("location"),
        endpoint: Some(server.vault.endpoint().parse().expect("endpoint")),
        credential: Some(Credential::AccountKey(SecretString::from(server.vault.key()))),
        store_deadline: Duration::from_secs(60),
    };
    access.create_instance(INSTANCE).await.expect("container");
    let store = access.open_instance(INSTANCE).expect("store");
    let repository = repository(&store).await;
    let bytes = random(13, 3 << 20);
    let id = point(&repository, "1", &bytes).await;
    copy(&repository, &id, "archive").await.expect("copy");
    points::remove_from_vault(&*store, &id, &cancel()).await.expect("remove");
    let tiers: Vec<Tier> = entries(&store, "archive/repo/data/").await.iter().map(|pack| pack.tier).collect();
    assert_eq!(tiers.iter().filter(|tier| **tier == Tier::Archive).count(), 1, "{tiers:?}");
    assert!(is_archived(read_archive(&store, id).await));
    archive::rehydrate(&repository, &id, "r", &cancel()).await.expect("rehydrate");
    let state = archive::rehydration_state(&repository, &id, "r", &cancel()).await.expect("state");
    assert!(state.is_ready(), "{state:?}");
    assert!(read_archive(&store, id).await.expect("read") == bytes);
    assert_eq!(archive::clean_up_rehydrated(&repository, "r", &cancel()).await.expect("clean up"), 1);
    assert!(is_archived(read_archive(&store, id).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_point_in_the_archive_of_an_account_waits_and_is_read() {
    let fake = FakeBlob::start(fake_blob::Account::default()).await;
    let access = Access {
        location: format!("azure://{}/vault", fake_blob::ACCOUNT).parse().expect("location"),
        endpoint: Some(fake.endpoint()),
        credential: Some(FakeBlob::account_key()),
        store_deadline: Duration::from_secs(20),
    };
    access.create_instance(INSTANCE).await.expect("container");
    let store = access.open_instance(INSTANCE).expect("store");
    let repository = repository(&store).await;
    let bytes = random(12, 3 << 20);
    let id = point(&repository, "1", &bytes).await;
    copy(&repository, &id, "archive").await.expect("copy");
    points::remove_from_vault(&*store, &id, &cancel()).await.expect("remove");
    assert!(is_archived(read_archive(&store, id).await));
    for _ in 0..2 {
        let state = archive::rehydrate(&repository, &id, "r", &cancel()).await.expect("rehydrate");
        assert_eq!(state.waiting, 1);
        assert!(is_archived(read_archive(&store, id).await));
    }
    let copies = fake.log().iter().filter(|line| line.starts_with("PUT copy")).count();
    assert_eq!(copies, 1, "asked once");
    fake.finish_rehydration();
    assert!(archive::rehydrate(&repository, &id, "r", &cancel()).await.expect("rehydrate").is_ready());
    assert!(read_archive(&store, id).await.expect("read") == bytes);
    assert_eq!(archive::clean_up_rehydrated(&repository, "r", &cancel()).await.expect("clean up"), 1);
    let pack = entries(&store, "archive/repo/data/").await.into_iter().max_by_key(|pack| pack.size).expect("a pack");
    let container = format!("vault-{INSTANCE}");
    assert_eq!(fake.state_of(&container, pack.key.as_str()), Some(("Archive".to_owned(), false)));
}
