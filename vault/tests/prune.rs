//! Prune on real repositories: what goes, what stays, beside backups, killed at every call, in every order a seed gives.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;
use vaultferry_vault::commit::{self, Record};
use vaultferry_vault::lease::Lease;
use vaultferry_vault::location::{Access, Location};
use vaultferry_vault::meter::Meter;
use vaultferry_vault::points;
use vaultferry_vault::prune::{self, Options, Plan, Report};
use vaultferry_vault::reader::PointReader;
use vaultferry_vault::records;
use vaultferry_vault::repository::{FileKind, PACKS, Repository};
use vaultferry_vault::store::faulty::{Faulty, Operation};
use vaultferry_vault::store::{self, Key, memory::Memory};
use vaultferry_vault::writer::{self, Backup, SnapshotMeta, Staged};
use vaultferry_vault::{Error, Id};

#[path = "support/dying.rs"]
mod dying;
#[path = "prune/orders.rs"]
mod orders;
#[path = "support/record.rs"]
mod record;
#[path = "support/scheduler.rs"]
mod scheduler;

use dying::{Dying, Last};
use record::record;
use scheduler::Scheduler;

const INSTANCE: &str = "0123456789abcdef0123456789abcdef";
/// So that a killed prune does not hold up the next one.
const AT_ONCE: Duration = Duration::ZERO;

fn never() -> CancellationToken {
    CancellationToken::new()
}

fn password() -> SecretString {
    SecretString::from("5e".repeat(32))
}

async fn repository(store: &store::Shared) -> Arc<Repository> {
    Arc::new(Repository::init(store.clone(), &password(), &never()).await.expect("init"))
}

async fn open(store: &store::Shared) -> Result<Arc<Repository>, Error> {
    Repository::open(store.clone(), &password(), &never()).await.map(Arc::new)
}

/// The content of a stream: a chunk or two that only this number gives.
fn content(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; 3000];
    StdRng::seed_from_u64(number).fill(&mut bytes[..]);
    bytes
}

/// Stages a backup of these streams.
async fn stage(repository: &Arc<Repository>, streams: &[u64]) -> Result<Staged, Error> {
    let options = writer::Options::default();
    let mut backup = Backup::begin(repository.clone(), options, Arc::new(Meter::default()), &never()).await?;
    for number in streams {
        match backup.write_stream(&format!("s{number}"), &content(*number)[..], &never()).await {
            Ok(_) => {}
            Err(writer::WriteError::Vault(error)) => return Err(error),
            Err(error) => panic!("{error}"),
        }
    }
    let meta = SnapshotMeta { time: jiff::Timestamp::now(), hostname: "host".to_owned(), tags: Vec::new() };
    backup.stage(meta, &never()).await
}

/// As the coordinator does it: a commit that is refused is abandoned.
async fn commit(store: &store::Shared, record: &Record) -> Result<(), Error> {
    let prepare = async {
        commit::verify(&**store, record, &never()).await?;
        commit::prepare(&**store, record, &never()).await
    };
    if let Err(error) = prepare.await {
        commit::abandon(&**store, record, &never()).await?;
        return Err(error);
    }
    commit::publish(&**store, record, &never()).await
}

async fn back_up(repository: &Arc<Repository>, job: &str, streams: &[u64]) -> Result<Id, Error> {
    let record = record(job, &stage(repository, streams).await?);
    commit(repository.store(), &record).await?;
    Ok(record.snapshot_id)
}

fn options() -> Options {
    Options { lease_term: AT_ONCE, ..Options::default() }
}

async fn run(repository: &Repository) -> Result<Report, Error> {
    prune::run(repository, &options(), &Meter::default(), &never()).await
}

async fn plan(repository: &Repository) -> Plan {
    prune::plan(repository, &options(), &never()).await.expect("plan")
}

/// Deletes a point so that the next prune purges it.
async fn delete(store: &store::Shared, id: &Id) {
    points::soft_delete(&**store, id, jiff::Timestamp::UNIX_EPOCH, &never()).await.expect("delete");
}

async fn names(store: &store::Shared, prefix: &str) -> Vec<String> {
    store::list(&**store, prefix).map(|entry| entry.expect("entry").key.to_string()).collect().await
}

/// Reads every point that is listed, byte by byte; every stream's content is known from its name. Gives how many there are.
async fn read_everything(store: &store::Shared) -> Result<usize, String> {
    let repository = open(store).await.map_err(|error| error.to_string())?;
    let mut count = 0;
    for name in names(store, FileKind::Snapshot.prefix()).await {
        let id: Id = name.rsplit('/').next().and_then(|id| id.parse().ok()).expect("an id");
        let told = |error: Error| format!("point {id}: {error}");
        let point = PointReader::open(repository.clone(), id, &never()).await.map_err(told)?;
        for stream in point.streams() {
            let chunks: Vec<_> = point.chunks(&stream.name, &never()).map_err(told)?.collect().await;
            let mut bytes = Vec::new();
            for chunk in chunks {
                bytes.extend_from_slice(&chunk.map_err(told)?);
            }
            let number = stream.name[1..].parse().expect("a number");
            if bytes != content(number) {
                return Err(format!("point {id}: {} has other bytes", stream.name));
            }
        }
        count += 1;
    }
    Ok(count)
}

fn folder_vault() -> (tempfile::TempDir, Access) {
    let dir = tempfile::tempdir().expect("folder");
    let location = Location::Folder(dir.path().join("vault"));
    let store_deadline = Duration::from_secs(5);
    (dir, Access { location, endpoint: None, credential: None, store_deadline })
}

async fn create(access: &Access) -> store::Shared {
    access.create_root().await.expect("create");
    access.create_instance(INSTANCE).await.expect("create");
    access.open_instance(INSTANCE).expect("open")
}

/// `restic check --read-data`: no errors. Gives what it said.
fn restic_check(repository: &str) -> String {
    let output = std::process::Command::new("restic")
        .args(["--no-cache", "--no-lock", "-r", repository, "check", "--read-data"])
        .env("RESTIC_PASSWORD", password().expose_secret())
        .output()
        .expect("restic is installed (make setup)");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    text
}

/// Copies a store in memory into a folder, where restic can look at it.
async fn copy_to(store: &store::Shared, dir: &std::path::Path) -> PathBuf {
    for name in names(store, "repo/").await {
        let bytes = store.get(&Key::new(name.clone()).expect("a key"), None).await.expect("get");
        let path = dir.join(&name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("folder");
        std::fs::write(path, bytes).expect("written");
    }
    dir.join("repo")
}

#[tokio::test]
async fn what_nothing_needs_goes_with_the_second_prune_and_a_leftover_with_the_third() {
    let (_dir, access) = folder_vault();
    let store = create(&access).await;
    let repository = repository(&store).await;
    let gone = back_up(&repository, "1", &[1, 2]).await.expect("back up");
    back_up(&repository, "2", &[2, 3]).await.expect("back up");
    back_up(&repository, "3", &[4]).await.expect("back up");
    let all = names(&store, PACKS).await.len();
    assert_eq!(run(&repository).await.expect("prune").plan.mark.packs, 0, "everything is needed");
    // A backup that did not end well.
    let leftover = stage(&repository, &[2, 9]).await.expect("stage");
    delete(&store, &gone).await;
    let before = names(&store, "").await;
    let planned = plan(&repository).await;
    assert_eq!(names(&store, "").await, before, "a plan changes nothing");
    assert_eq!(planned.purge, [gone]);
    let first = run(&repository).await.expect("prune");
    assert_eq!((first.purged.clone(), Plan { purge: vec![gone], ..first.plan.clone() }), (vec![gone], planned));
    // The tree of the first point. Its data pack holds a chunk of the second.
    assert_eq!((first.plan.mark.packs, first.plan.delete.packs, first.deleted.packs), (1, 0, 0));
    assert_eq!(first.plan.note.packs, 2, "a tree and a chunk of the leftover");
    assert!(first.plan.unused_bytes > 2500, "a chunk of the first point: {}", first.plan.unused_bytes);
    assert_eq!(names(&store, PACKS).await.len(), all + 2);
    let second = run(&repository).await.expect("prune");
    assert_eq!((second.plan.delete, second.plan.mark.packs, second.plan.note.packs), (second.deleted, 2, 0));
    assert_eq!(second.deleted.packs, 1);
    let third = run(&repository).await.expect("prune");
    assert_eq!((third.deleted.packs, third.plan.mark.packs), (2, 0));
    assert_eq!(names(&store, PACKS).await.len(), all - 1);
    let refused = commit(&store, &record("4", &leftover)).await;
    assert!(matches!(refused, Err(Error::StagedIncomplete { .. })), "{refused:?}");
    assert_eq!(read_everything(&store).await, Ok(2));
    restic_check(&access.restic_repository(INSTANCE).to_string());
    let idle = run(&repository).await.expect("prune");
    assert_eq!((idle.deleted.packs, idle.plan.mark.packs, idle.plan.note.packs, idle.index.removed), (0, 0, 0, 0));
}

#[tokio::test]
async fn a_soft_deleted_points_data_stays_until_it_is_purged() {
    let store: store::Shared = Arc::new(Memory::new("memory"));
    let repository = repository(&store).await;
    let id = back_up(&repository, "1", &[1]).await.expect("back up");
    let later = jiff::Timestamp::now() + Duration::from_secs(86_400);
    points::soft_delete(&*store, &id, later, &never()).await.expect("delete");
    for purge_until in [None, Some(jiff::Timestamp::MAX), None] {
        let options = Options { purge_until, ..options() };
        let report = prune::run(&repository, &options, &Meter::default(), &never()).await.expect("prune");
        assert_eq!((report.plan.mark.packs, report.plan.kept_soft_deleted.packs), (0, 2));
    }
    points::undelete(&*store, &id, &never()).await.expect("undelete");
    assert_eq!(read_everything(&store).await, Ok(1));
    delete(&store, &id).await;
    // Whoever deletes by an earlier clock purges by that one; a later one than the machine's counts for nothing.
    let by = async |second: i64| {
        let purge_until = Some(jiff::Timestamp::from_second(second).expect("a time"));
        let options = Options { purge_until, ..options() };
        let planned = prune::plan(&repository, &options, &never()).await.expect("plan");
        let done = prune::run(&repository, &options, &Meter::default(), &never()).await.expect("prune");
        assert_eq!(planned.purge, done.purged);
        (done.purged.len(), done.plan.kept_soft_deleted.packs, done.plan.mark.packs)
    };
    assert_eq!(by(-1).await, (0, 2, 0));
    assert_eq!(by(0).await, (1, 0, 2));
    run(&repository).await.expect("prune");
    assert!(names(&store, PACKS).await.is_empty());
    let refused = points::undelete(&*store, &id, &never()).await;
    assert!(matches!(refused, Err(Error::PointNotFound { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_backup_is_committed_beside_one_prune_and_refused_after_two() {
    let store: store::Shared = Arc::new(Memory::new("memory"));
    let repository = repository(&store).await;
    for (prunes, committed) in [(0, true), (1, true), (2, false)] {
        let record = record(&format!("{prunes}"), &stage(&repository, &[prunes]).await.expect("stage"));
        for _ in 0..prunes {
            run(&repository).await.expect("prune");
        }
        match commit(&store, &record).await {
            Ok(()) => assert!(committed, "{prunes}"),
            Err(error) => assert!(!committed && matches!(error, Error::PrunedMeanwhile { .. }), "{prunes}: {error}"),
        }
        for _ in 0..3 {
            run(&repository).await.expect("prune");
        }
    }
    assert_eq!(read_everything(&store).await, Ok(2));
    // One that is suspended between its check and its end is waited for.
    let record = record("slow", &stage(&repository, &[7]).await.expect("stage"));
    commit::prepare(&*store, &record, &never()).await.expect("prepare");
    for _ in 0..4 {
        assert_eq!(run(&repository).await.expect("prune").plan.kept_unpublished.packs, 2);
    }
    commit::publish(&*store, &record, &never()).await.expect("publish");
    assert_eq!(read_everything(&store).await, Ok(3));
    // One that reuses what is marked meanwhile is refused; its packs go when it is abandoned, and its job may try again.
    let old = back_up(&repository, "old", &[8]).await.expect("back up");
    let late = self::record::record("late", &stage(&repository, &[8]).await.expect("stage"));
    delete(&store, &old).await;
    run(&repository).await.expect("prune");
    let refused = commit(&store, &late).await;
    assert!(matches!(refused, Err(Error::PrunedMeanwhile { .. })), "{refused:?}");
    back_up(&repository, "late", &[8]).await.expect("what is marked is stored again");
    for _ in 0..3 {
        run(&repository).await.expect("prune");
    }
    assert_eq!(read_everything(&store).await, Ok(4));
}

/// A repository in which a prune has everything to do.
async fn eventful(store: &store::Shared) -> Result<(), Error> {
    let repository = repository(store).await;
    let gone = back_up(&repository, "1", &[1, 2]).await?;
    for number in 0..9 {
        back_up(&repository, &format!("b{number}"), &[2, 10 + number]).await?;
    }
    stage(&repository, &[3]).await?;
    delete(store, &gone).await;
    run(&repository).await?;
    let purged = back_up(&repository, "2", &[4]).await?;
    delete(store, &purged).await;
    Ok(())
}

/// Killed at any call, a prune leaves whole points, and the next one ends the work.
#[tokio::test]
async fn a_prune_may_be_killed_at_any_call() {
    let heavy = vaultferry_tests::heavy();
    for last in [Last::NotDone, Last::Done] {
        let (mut dies_at, mut kills) = (1, 0);
        loop {
            let store: store::Shared = Arc::new(Memory::new("memory"));
            eventful(&store).await.expect("back up");
            let dying = Arc::new(Dying::new(store.clone(), dies_at, last));
            let killed = match open(&(dying.clone() as store::Shared)).await {
                Ok(repository) => run(&repository).await.map(|_| ()),
                Err(error) => Err(error),
            };
            if !dying.died() {
                killed.expect("nothing went wrong");
                break;
            }
            kills += 1;
            let place = format!("died at {dies_at} ({last:?})");
            assert_eq!(read_everything(&store).await, Ok(9), "{place}");
            let repository = open(&store).await.expect("open");
            back_up(&repository, "after", &[1, 2, 3, 4]).await.expect("back up");
            assert_eq!(read_everything(&store).await, Ok(10), "{place}");
            for _ in 0..3 {
                run(&repository).await.expect(&place);
            }
            assert_eq!(read_everything(&store).await, Ok(10), "{place}");
            let idle = plan(&repository).await;
            assert_eq!((idle.mark.packs, idle.delete.packs, idle.note.packs), (0, 0, 0), "{place}");
            if heavy || dies_at % 16 == 0 {
                let dir = tempfile::tempdir().expect("folder");
                let said = restic_check(&copy_to(&store, dir.path()).await.display().to_string());
                assert!(!said.contains("not referenced"), "{place}: {said}");
            }
            dies_at += if heavy { 1 } else { 1 + dies_at / 40 };
        }
        assert!(kills > 40, "{kills}");
    }
}

#[tokio::test]
async fn what_the_store_protects_is_skipped_and_told() {
    let memory = Arc::new(Memory::new("memory"));
    let store: store::Shared = memory.clone();
    let repository = repository(&store).await;
    let id = back_up(&repository, "1", &[1]).await.expect("back up");
    let packs = names(&store, PACKS).await;
    let protected = Key::new(packs[0].clone()).expect("a key");
    let until = jiff::Timestamp::now() + Duration::from_secs(3600);
    store::Store::protect(&*memory, &protected, until, false).await.expect("protect");
    delete(&store, &id).await;
    run(&repository).await.expect("prune");
    for deleted in [1, 0, 0] {
        let report = run(&repository).await.expect("prune");
        assert_eq!((report.plan.protected.packs, report.deleted.packs, report.refused.packs), (1, deleted, 0));
    }
    assert_eq!(names(&store, PACKS).await, packs[..1]);
}

#[tokio::test]
async fn what_no_index_names_is_no_leftover_while_an_index_is_damaged() {
    let memory = Arc::new(Memory::new("memory"));
    let store: store::Shared = memory.clone();
    let repository = repository(&store).await;
    let id = back_up(&repository, "1", &[1]).await.expect("back up");
    delete(&store, &id).await;
    back_up(&repository, "2", &[2]).await.expect("back up");
    let indexes = names(&store, FileKind::Index.prefix()).await;
    for name in &indexes {
        let key = Key::new(name.clone()).expect("a key");
        let good = store.get(&key, None).await.expect("get");
        assert!(memory.damage(&key, |bytes| bytes[20] ^= 1));
        for _ in 0..3 {
            // A tree that cannot be found ends the prune; otherwise it goes on with what it knows.
            match run(&repository).await {
                Ok(report) => assert!(!report.plan.damage.is_empty() && report.deleted.packs == 0, "{report:?}"),
                Err(error) => assert!(matches!(error, Error::Damaged { .. }), "{error}"),
            }
        }
        assert!(memory.damage(&key, |bytes| *bytes = good.to_vec()));
        assert_eq!(read_everything(&store).await, Ok(1));
    }
    for _ in 0..2 {
        run(&repository).await.expect("prune");
    }
    assert_eq!(names(&store, PACKS).await.len(), 2);
    assert_eq!(read_everything(&store).await, Ok(1));
}

#[tokio::test]
async fn small_index_files_become_few() {
    let (_dir, access) = folder_vault();
    let store = create(&access).await;
    let repository = repository(&store).await;
    for number in 0..12 {
        back_up(&repository, &format!("{number}"), &[number]).await.expect("back up");
    }
    assert_eq!(names(&store, FileKind::Index.prefix()).await.len(), 12);
    let report = run(&repository).await.expect("prune");
    assert_eq!((report.index.removed, report.index.written), (12, 1));
    assert_eq!(names(&store, FileKind::Index.prefix()).await.len(), 1);
    let again = stage(&repository, &[3]).await.expect("stage");
    assert!(again.stored_bytes < 1000, "everything is still known: {}", again.stored_bytes);
    assert_eq!(read_everything(&store).await, Ok(12));
    restic_check(&access.restic_repository(INSTANCE).to_string());
}

/// Who reads the index while others replace its files sees every blob.
#[tokio::test]
async fn an_index_that_is_merged_while_it_is_read_is_read_whole() {
    for seed in 0..40 {
        let memory: store::Shared = Arc::new(Memory::new("memory"));
        let first = repository(&memory).await;
        // More than one page of the listing.
        for number in 0..12 {
            back_up(&first, &format!("{number}"), &[number]).await.expect("back up");
        }
        let scheduler = Arc::new(Scheduler::default());
        let (pruner, reader) = (scheduler.actor(memory.clone()), scheduler.actor(memory.clone()));
        let prune = tokio::spawn(async move {
            let store: store::Shared = pruner.clone();
            let pruned = async { run(&*open(&store).await?).await }.await;
            pruner.end();
            pruned
        });
        let read = tokio::spawn(async move {
            let store: store::Shared = reader.clone();
            let staged = async { stage(&open(&store).await?, &(0..12).collect::<Vec<u64>>()).await }.await;
            reader.end();
            staged
        });
        scheduler.run(seed, None).await;
        prune.await.expect("joined").expect("prune");
        let staged = read.await.expect("joined").expect("stage");
        assert!(staged.stored_bytes < 8000, "seed {seed}: it did not see everything: {}", staged.stored_bytes);
    }
}

#[tokio::test]
async fn a_commit_reads_from_the_newest_checkpoint_on() {
    let store: store::Shared = Arc::new(Memory::new("memory"));
    let repository = repository(&store).await;
    let gone = back_up(&repository, "gone", &[1000]).await.expect("back up");
    let waits = record("waits", &stage(&repository, &[999]).await.expect("stage"));
    commit::prepare(&*store, &waits, &never()).await.expect("prepare");
    for number in 0..40 {
        back_up(&repository, &format!("{number}"), &[number]).await.expect("back up");
    }
    delete(&store, &gone).await;
    run(&repository).await.expect("prune");
    run(&repository).await.expect("prune");
    let lists = commit::read_pack_lists(&*store).await.expect("the chain holds");
    assert_eq!(lists.len(), 43);
    let checkpoints: Vec<_> = lists.iter().filter_map(|(_, list)| list.checkpoint.as_ref()).collect();
    assert_eq!(checkpoints.len(), 1);
    assert_eq!(checkpoints[0].unfinished.len(), 1);
    let pruned = prune::deletable(&*store, 0).await.expect("marks");
    let present = names(&store, PACKS).await;
    for (_, list) in &lists {
        for pack in &list.packs {
            let there = present.iter().any(|name| name.ends_with(&pack.id.to_string()));
            assert!(there || pruned.contains(&pack.id), "{} is neither there nor pruned", pack.id);
        }
    }
    let counting = Arc::new(Faulty::new(store.clone(), store::faulty::Plan::new()));
    let counted: store::Shared = counting.clone();
    let staged = stage(&repository, &[5, 50]).await.expect("stage");
    let again = record("again", &staged);
    commit(&counted, &again).await.expect("commit");
    assert!(counting.calls(Operation::Get) < 25, "{} reads", counting.calls(Operation::Get));
    // The commit that waited is found behind the checkpoint, and its job may not commit anything else.
    let other = record("waits", &stage(&repository, &[998]).await.expect("stage"));
    let refused = commit::prepare(&*store, &other, &never()).await;
    assert!(matches!(refused, Err(Error::JobAlreadyCommitted { .. })), "{refused:?}");
    commit::publish(&*store, &waits, &never()).await.expect("publish");
    assert_eq!(read_everything(&store).await, Ok(42));
    let lists = commit::read_pack_lists(&*store).await.expect("the chain holds");
    assert_eq!(lists.len(), 44, "the commit that waited wrote no second list");
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_held_by_one_renewed_given_back_and_taken_from_the_dead() {
    let store: store::Shared = Arc::new(Memory::new("memory"));
    let term = Duration::from_secs(600);
    let lease = Lease::acquire(&store, "check", term, &never()).await.expect("free");
    let refused = Lease::acquire(&store, "prune", term, &never()).await;
    assert!(matches!(refused, Err(Error::MaintenanceBusy { .. })), "{refused:?}");
    let records = async |store: &store::Shared| names(store, records::LEASES).await;
    let before = records(&store).await;
    tokio::time::sleep(term).await;
    let renewed = records(&store).await;
    assert!(renewed.len() == 1 && renewed != before, "{before:?} {renewed:?}");
    assert!(!lease.lost().is_cancelled());
    lease.release().await;
    assert!(records(&store).await.is_empty());
    // The dead do not renew. The clock of records is the machine's, which does not stand still: no term is over at once.
    let dead = Lease::acquire(&store, "prune", Duration::ZERO, &never()).await.expect("free");
    let lost = dead.lost().clone();
    let next = Lease::acquire(&store, "prune", term, &never()).await.expect("the term of the dead is over");
    tokio::time::timeout(term, lost.cancelled()).await.expect("who was not dead after all hears of it");
    assert!(!next.lost().is_cancelled());
    next.release().await;
}
