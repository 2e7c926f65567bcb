//! Legal holds: what is held, what is let go, and what a kill at any call leaves.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use vaultferry_vault::commit;
use vaultferry_vault::holds::Changed;
use vaultferry_vault::location::Access;
use vaultferry_vault::meter::Meter;
use vaultferry_vault::points::{self, PointState};
use vaultferry_vault::prune;
use vaultferry_vault::records;
use vaultferry_vault::repository::{FileKind, Repository};
use vaultferry_vault::store::folder::Folder;
use vaultferry_vault::store::memory::Memory;
use vaultferry_vault::store::{self, Shared};
use vaultferry_vault::writer::{Backup, Options, SnapshotMeta};
use vaultferry_vault::{Error, Id, archive, holds, immutability};

#[path = "support/dying.rs"]
mod dying;
#[path = "support/fake_blob.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod fake_blob;
#[path = "support/record.rs"]
mod record;

use dying::{Dying, Last};
use fake_blob::FakeBlob;
use record::record;

const INSTANCE: &str = "0123456789abcdef0123456789abcdef";

fn never() -> CancellationToken {
    CancellationToken::new()
}

fn password() -> SecretString {
    SecretString::from("5e".repeat(32))
}

/// A committed point of two streams: one that all points have, and one of its own.
async fn point(repository: &Arc<Repository>, job: &str, own: &'static [u8]) -> Id {
    let (meter, cancel) = (Arc::new(Meter::default()), never());
    let mut backup = Backup::begin(repository.clone(), Options::default(), meter, &cancel).await.expect("begin");
    backup.write_stream("common", &b"the same bytes"[..], &cancel).await.expect("write");
    backup.write_stream("own", own, &cancel).await.expect("write");
    let meta = SnapshotMeta { time: jiff::Timestamp::now(), hostname: "host".to_owned(), tags: Vec::new() };
    let staged = backup.stage(meta, &cancel).await.expect("stage");
    let record = record(job, &staged);
    commit::prepare(&**repository.store(), &record, &cancel).await.expect("prepare");
    commit::publish(&**repository.store(), &record, &cancel).await.expect("publish");
    record.snapshot_id
}

async fn two_points(store: &Shared) -> (Arc<Repository>, Id, Id) {
    let repository = Arc::new(Repository::init(store.clone(), &password(), &never()).await.expect("init"));
    let first = point(&repository, "1", b"what only the first has").await;
    let second = point(&repository, "2", b"what only the second has").await;
    (repository, first, second)
}

/// As the coordinator holds and releases.
async fn hold(repository: &Repository, id: &Id) -> Result<(), Error> {
    holds::hold(repository, id, &never()).await?;
    points::hold(&**repository.store(), id, "audit", &never()).await
}

async fn release(repository: &Repository, id: &Id) -> Result<(), Error> {
    points::release(&**repository.store(), id, &never()).await?;
    holds::release(repository, id, &never()).await.map(|_| ())
}

async fn held_points(store: &Shared, only: Option<&Id>) -> Vec<PointState> {
    holds::held_points(&**store, only, &never()).await.expect("told")
}

async fn complete_own(store: &Shared, only: Option<&Id>) -> Changed {
    let held = held_points(store, only).await;
    holds::complete_own(&**store, &held, &never()).await.expect("complete")
}

async fn on_hold(store: &Shared) -> BTreeSet<String> {
    let entries: Vec<store::Entry> = store::list(&**store, "").try_collect().await.expect("list");
    entries.into_iter().filter(|entry| entry.protection.legal_hold).map(|entry| entry.key.to_string()).collect()
}

/// What the point stands on, found by other means than by holding it.
async fn needed(repository: &Repository, id: &Id) -> BTreeSet<String> {
    let files = immutability::files_of_point(repository, id, &never()).await.expect("files");
    files.into_iter().map(|key| key.to_string()).collect()
}

async fn state(store: &Shared, id: &Id) -> PointState {
    points::read(&**store, id, &never()).await.expect("known")
}

fn soon() -> jiff::Timestamp {
    jiff::Timestamp::now() + Duration::from_secs(3600)
}

fn is_protected<T: std::fmt::Debug>(result: Result<T, Error>) {
    assert!(matches!(result, Err(Error::PointProtected { .. })), "{result:?}");
}

async fn what_others_need_stays(store: Shared) {
    let (repository, first, second) = two_points(&store).await;
    assert!(holds::is_supported(&*store, &never()).await.expect("told"));
    assert_eq!(on_hold(&store).await, BTreeSet::new());
    hold(&repository, &first).await.expect("hold");
    let of_first = needed(&repository, &first).await;
    assert_eq!(on_hold(&store).await, of_first);
    hold(&repository, &second).await.expect("hold");
    let of_second = needed(&repository, &second).await;
    assert_eq!(on_hold(&store).await, &of_first | &of_second);
    let packs = |files: &BTreeSet<String>| files.iter().filter(|file| file.starts_with("repo/data/")).count();
    assert!(packs(&(&of_first & &of_second)) > 0 && packs(&(&of_first - &of_second)) > 0, "shared and own packs");

    // The log has the first word.
    is_protected(holds::release(&repository, &first, &never()).await);
    assert_eq!(on_hold(&store).await, &of_first | &of_second);
    points::release(&*store, &first, &never()).await.expect("release");
    // Interrupted there, the point is not deleted by half.
    is_protected(points::soft_delete(&*store, &first, soon(), &never()).await);
    assert!(state(&store, &first).await.soft_deleted.is_none());
    release(&repository, &first).await.expect("again");
    assert_eq!(on_hold(&store).await, of_second);
    points::soft_delete(&*store, &first, soon(), &never()).await.expect("its own file is free");
    is_protected(points::soft_delete(&*store, &second, soon(), &never()).await);
    for file in &of_second {
        let refused = store.delete(&store::Key::new(file.clone()).expect("a key")).await;
        assert!(matches!(refused, Err(store::Error::Protected { .. })), "{file}: {refused:?}");
    }
    release(&repository, &second).await.expect("release");
    assert_eq!(on_hold(&store).await, BTreeSet::new());
    let changed = holds::release(&repository, &second, &never()).await.expect("not held is no error");
    assert_eq!((changed.files, changed.missing), (of_second.len() as u64 + 2, 0), "the log's later events too");
}

async fn fake_store(fake: &FakeBlob) -> Shared {
    let access = Access {
        location: format!("azure://{}/vault", fake_blob::ACCOUNT).parse().expect("location"),
        endpoint: Some(fake.endpoint()),
        credential: Some(FakeBlob::account_key()),
        store_deadline: Duration::from_secs(20),
    };
    access.create_instance(INSTANCE).await.expect("container");
    access.open_instance(INSTANCE).expect("store")
}

#[tokio::test]
async fn a_hold_is_taken_off_what_no_other_point_needs() {
    what_others_need_stays(Arc::new(Memory::new("holds"))).await;
    let fake = FakeBlob::start(fake_blob::Account::default()).await;
    what_others_need_stays(fake_store(&fake).await).await;
}

#[tokio::test]
async fn a_folder_is_told_apart() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store: Shared = Arc::new(Folder::new(dir.path().to_owned()));
    let (repository, first, _) = two_points(&store).await;
    assert!(!holds::is_supported(&*store, &never()).await.expect("told"));
    let refused = holds::hold(&repository, &first, &never()).await;
    assert!(matches!(refused, Err(Error::Store(store::Error::Unsupported { .. }))), "{refused:?}");
    // The event alone holds, and a completion says why it does nothing.
    points::hold(&*store, &first, "audit", &never()).await.expect("hold");
    let held = held_points(&store, None).await;
    assert_eq!(held.len(), 1);
    for refused in
        [holds::complete(&repository, &held, &never()).await, holds::complete_own(&*store, &held, &never()).await]
    {
        assert!(matches!(refused, Err(Error::Store(store::Error::Unsupported { .. }))), "{refused:?}");
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Hold,
    Release,
}

/// Whoever dies at any call: what the log holds is on hold, and the same again ends it. The second point is held all the time.
#[tokio::test]
async fn a_kill_at_any_call_is_made_good_by_the_same_call() {
    for (step, last) in [
        (Step::Hold, Last::NotDone),
        (Step::Hold, Last::Done),
        (Step::Release, Last::NotDone),
        (Step::Release, Last::Done),
    ] {
        let mut kills = 0;
        for dies_at in 1.. {
            let store: Shared = Arc::new(Memory::new("kill"));
            let (repository, first, second) = two_points(&store).await;
            hold(&repository, &second).await.expect("hold");
            if matches!(step, Step::Release) {
                hold(&repository, &first).await.expect("hold");
            }
            let run = async |repository: &Repository| match step {
                Step::Hold => hold(repository, &first).await,
                Step::Release => release(repository, &first).await,
            };
            let dying = Arc::new(Dying::new(store.clone(), dies_at, last));
            let shared: Shared = dying.clone();
            let killed = match Repository::open(shared, &password(), &never()).await {
                Ok(repository) => run(&repository).await,
                Err(error) => Err(error),
            };
            if !dying.died() {
                killed.expect("nothing went wrong");
                break;
            }
            kills += 1;
            let held = on_hold(&store).await;
            for id in [&first, &second] {
                let wanted = needed(&repository, id).await;
                let is_held = state(&store, id).await.held.is_some();
                assert!(!is_held || wanted.is_subset(&held), "{step:?} died at {dies_at} ({last:?}): {id}");
            }
            // Of a hold that was given up the same as of a release.
            if matches!(step, Step::Hold) && kills % 2 == 0 {
                release(&repository, &first).await.expect("release");
                assert_eq!(on_hold(&store).await, needed(&repository, &second).await, "{dies_at} ({last:?})");
                continue;
            }
            run(&repository).await.expect("it can be repeated");
            let mut wanted = needed(&repository, &second).await;
            if matches!(step, Step::Hold) {
                wanted.extend(needed(&repository, &first).await);
                assert!(state(&store, &first).await.held.is_some());
            }
            let held = on_hold(&store).await;
            assert!(wanted.is_subset(&held), "{step:?} died at {dies_at} ({last:?})");
            let more: Vec<&String> = held.difference(&wanted).filter(|file| !file.starts_with("points/")).collect();
            assert!(more.is_empty(), "{step:?} died at {dies_at} ({last:?}): {more:?}");
        }
        assert!(kills > 10, "{step:?}: {kills}");
    }
}

#[tokio::test]
async fn a_point_is_held_wherever_it_is() {
    let store: Shared = Arc::new(Memory::new("places"));
    let (repository, archived, deleted) = two_points(&store).await;
    archive::copy_point(&repository, &archived, "job", &Arc::default(), &never()).await.expect("archive");
    hold(&repository, &archived).await.expect("hold");
    let held = on_hold(&store).await;
    assert!(held.contains(&format!("archive/repo/snapshots/{archived}")), "{held:?}");
    let packs = |prefix: &str| held.iter().filter(|file| file.starts_with(prefix)).count();
    assert!(packs("archive/repo/data/") >= 2 && packs("repo/data/") >= 2, "{held:?}");
    // The file that would go is on hold: refused before the event, not after it.
    is_protected(points::remove_from_vault(&*store, &archived, &never()).await);
    assert!(!state(&store, &archived).await.removed_from_vault);
    release(&repository, &archived).await.expect("release");
    assert_eq!(on_hold(&store).await, BTreeSet::new());
    points::remove_from_vault(&*store, &archived, &never()).await.expect("remove");
    hold(&repository, &archived).await.expect("hold");
    let held = on_hold(&store).await;
    assert!(held.iter().all(|file| !file.starts_with("repo/")), "only the archive has it: {held:?}");
    release(&repository, &archived).await.expect("release");

    // Deleted, and its time has come: its data is held all the same, and nothing gives it up.
    points::soft_delete(&*store, &deleted, jiff::Timestamp::now(), &never()).await.expect("delete");
    let changed = holds::hold(&repository, &deleted, &never()).await.expect("hold");
    assert_eq!(changed.missing, 0);
    points::hold(&*store, &deleted, "audit", &never()).await.expect("hold");
    assert!(on_hold(&store).await.iter().any(|file| file.starts_with("repo/data/")));
    assert_eq!(points::purge_due(&*store, jiff::Timestamp::now(), &never()).await.expect("purge"), []);
    release(&repository, &deleted).await.expect("release");
    assert_eq!(on_hold(&store).await, BTreeSet::new());
    assert_eq!(points::purge_due(&*store, jiff::Timestamp::now(), &never()).await.expect("purge"), [deleted]);
    assert_eq!(holds::hold(&repository, &deleted, &never()).await.expect("nothing").files, 0, "purged");
}

async fn what_is_written_later_is_held_too(store: Shared) {
    let (repository, archived, deleted) = two_points(&store).await;
    let complete = async |only: Option<&Id>| {
        let held = held_points(&store, only).await;
        holds::complete(&repository, &held, &never()).await.expect("complete")
    };
    assert_eq!(complete(None).await.files, 0);
    assert_eq!(on_hold(&store).await, BTreeSet::new(), "nothing is held that the log does not hold");

    hold(&repository, &archived).await.expect("hold");
    archive::copy_point(&repository, &archived, "job", &Arc::default(), &never()).await.expect("archive");
    let below = |files: &BTreeSet<String>, prefix: &str| files.iter().any(|file| file.starts_with(prefix));
    assert!(!below(&on_hold(&store).await, "archive/"));
    // Without the key, what is the point's alone: its snapshot file there, and the events since.
    complete_own(&store, Some(&archived)).await;
    let held = on_hold(&store).await;
    assert!(held.contains(&format!("archive/repo/snapshots/{archived}")), "{held:?}");
    let event = records::numbered(&records::point_events(&archived), 3);
    assert!(held.contains(event.as_str()), "{event} is not on hold: {held:?}");
    assert!(!below(&held, "archive/repo/data/"), "{held:?}");
    let changed = complete(Some(&archived)).await;
    assert!(changed.files > 0 && changed.missing == 0, "{changed:?}");
    let held = on_hold(&store).await;
    let in_archive = needed(&archive::open(&repository).expect("archive"), &archived).await;
    assert!(below(&in_archive, "repo/data/"), "{in_archive:?}");
    for file in in_archive {
        assert!(held.contains(&format!("archive/{file}")), "{file} is not on hold: {held:?}");
    }
    assert!(!held.contains(&format!("repo/snapshots/{deleted}")), "the other point is not held");
    assert_eq!(complete(None).await.files, 0, "only what is missing is asked for");

    points::soft_delete(&*store, &deleted, soon(), &never()).await.expect("delete");
    hold(&repository, &deleted).await.expect("hold");
    points::undelete(&*store, &deleted, &never()).await.expect("undelete");
    let snapshot = format!("repo/snapshots/{deleted}");
    assert!(!on_hold(&store).await.contains(&snapshot));
    complete_own(&store, None).await;
    assert!(on_hold(&store).await.contains(&snapshot));

    // A release lets go of all of it.
    release(&repository, &archived).await.expect("release");
    assert!(!below(&on_hold(&store).await, "archive/"));
    release(&repository, &deleted).await.expect("release");
    assert_eq!(on_hold(&store).await, BTreeSet::new());
}

#[tokio::test]
async fn files_that_come_after_a_hold_are_held_by_whoever_brought_them() {
    what_is_written_later_is_held_too(Arc::new(Memory::new("later"))).await;
    let fake = FakeBlob::start(fake_blob::Account::default()).await;
    what_is_written_later_is_held_too(fake_store(&fake).await).await;
}

/// What a completion has read of the log may be old when it comes to the files.
#[tokio::test]
async fn a_completion_leaves_the_files_as_the_log_says() {
    for with_key in [false, true] {
        let store: Shared = Arc::new(Memory::new("meanwhile"));
        let (repository, first, _) = two_points(&store).await;
        let complete = async |held: &[PointState]| {
            let completed = match with_key {
                true => holds::complete(&repository, held, &never()).await,
                false => holds::complete_own(&*store, held, &never()).await,
            };
            completed.expect("complete");
        };
        hold(&repository, &first).await.expect("hold");
        let held = held_points(&store, None).await;
        release(&repository, &first).await.expect("release");
        complete(&held).await;
        assert_eq!(on_hold(&store).await, BTreeSet::new(), "released meanwhile (key: {with_key})");
        hold(&repository, &first).await.expect("hold");
        complete(&held).await;
        let (needed, on_hold) = (needed(&repository, &first).await, on_hold(&store).await);
        assert!(needed.is_subset(&on_hold), "held again (key: {with_key}): {on_hold:?}");
    }
}

#[tokio::test]
async fn a_point_that_cannot_be_read_keeps_no_other_from_its_hold() {
    let memory = Arc::new(Memory::new("damaged"));
    let store: Shared = memory.clone();
    let (repository, damaged, good) = two_points(&store).await;
    for id in [&damaged, &good] {
        hold(&repository, id).await.expect("hold");
    }
    archive::copy_point(&repository, &good, "job", &Arc::default(), &never()).await.expect("archive");
    points::proven(&*store, &damaged, "job", &never()).await.expect("an event");
    let own = &needed(&repository, &damaged).await - &needed(&repository, &good).await;
    for pack in own.iter().filter(|file| file.starts_with("repo/data/")) {
        assert!(memory.damage(&store::Key::new(pack.clone()).expect("a key"), |bytes| bytes.truncate(1)));
    }
    let held = held_points(&store, None).await;
    let completed = holds::complete(&repository, &held, &never()).await;
    assert!(matches!(completed, Err(Error::Damaged { .. })), "{completed:?}");
    let held = on_hold(&store).await;
    let event = records::numbered(&records::point_events(&damaged), 3);
    assert!(held.contains(event.as_str()), "{event} is not on hold: {held:?}");
    for file in needed(&archive::open(&repository).expect("archive"), &good).await {
        assert!(held.contains(&format!("archive/{file}")), "{file} is not on hold: {held:?}");
    }
}

/// A release that stopped before the files: the data is not needed any more, and a prune leaves it as long as it is on hold.
#[tokio::test]
async fn a_prune_keeps_what_is_on_hold() {
    let store: Shared = Arc::new(Memory::new("prune"));
    let (repository, first, second) = two_points(&store).await;
    let only_first = &needed(&repository, &first).await - &needed(&repository, &second).await;
    let packs: Vec<store::Key> = only_first
        .iter()
        .filter(|file| file.starts_with("repo/data/"))
        .map(|file| store::Key::new(file.clone()).expect("a key"))
        .collect();
    for pack in &packs {
        store.set_legal_hold(pack, true).await.expect("hold");
    }
    points::soft_delete(&*store, &first, jiff::Timestamp::now(), &never()).await.expect("delete");
    let prune =
        async || prune::run(&repository, &prune::Options::default(), &Meter::default(), &never()).await.expect("prune");
    for _ in 0..3 {
        let report = prune().await;
        assert_eq!((report.deleted.packs, report.refused.packs), (0, 0), "{report:?}");
    }
    assert_eq!(prune().await.plan.protected.packs, packs.len() as u64);
    for pack in &packs {
        assert!(store.head(pack).await.expect("head").is_some(), "{pack}");
        store.set_legal_hold(pack, false).await.expect("release");
    }
    assert_eq!(prune().await.deleted.packs, packs.len() as u64);
    assert!(store.head(&FileKind::Snapshot.key(&second)).await.expect("head").is_some());
}
