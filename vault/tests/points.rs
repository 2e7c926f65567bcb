//! A point's life: deleted, brought back, purged, held; killed at every call between; raced.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;
use vaultferry_vault::commit::{self, Record};
use vaultferry_vault::location::{Access, Location};
use vaultferry_vault::meter::Meter;
use vaultferry_vault::points::{self, PointState};
use vaultferry_vault::records::{self, PointCreated, PointEventKind};
use vaultferry_vault::repository::{FileKind, Repository};
use vaultferry_vault::store::{self, Key, memory::Memory};
use vaultferry_vault::writer::{Backup, Options, SnapshotMeta};
use vaultferry_vault::{Error, Id};

#[path = "support/dying.rs"]
mod dying;

use dying::{Dying, Last};

fn never() -> CancellationToken {
    CancellationToken::new()
}

fn soon() -> jiff::Timestamp {
    jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24)
}

fn created(job: &str) -> PointCreated {
    PointCreated {
        job_id: job.to_owned(),
        rule: "Default".to_owned(),
        policy: "nightly".to_owned(),
        policy_version: 1,
        slot: None,
        keep_until: None,
        streams: Vec::new(),
        source_bytes: 3,
        stored_bytes: 3,
        sealed_snapshot: String::new(),
        prune_epoch: 0,
        capture: None,
    }
}

fn record(job: &str, sealed: &'static [u8]) -> Record {
    Record {
        snapshot_id: Id::of(sealed),
        sealed: Bytes::from_static(sealed),
        prune_epoch: 0,
        packs: Vec::new(),
        time: jiff::Timestamp::UNIX_EPOCH,
        created: created(job),
    }
}

/// A committed point; its bytes are no real snapshot, which nothing here looks at.
async fn point(store: &store::Shared, job: &str, sealed: &'static [u8]) -> Id {
    let record = record(job, sealed);
    commit::prepare(&**store, &record, &never()).await.expect("prepare");
    commit::publish(&**store, &record, &never()).await.expect("publish");
    record.snapshot_id
}

async fn state(store: &store::Shared, id: &Id) -> PointState {
    let state = points::read(&**store, id, &never()).await.expect("read");
    let all = points::read_all(&**store, &never()).await.expect("read all");
    assert_eq!(all.iter().find(|state| state.id == *id), Some(&state), "both readings agree");
    state
}

fn hot(id: &Id) -> Key {
    FileKind::Snapshot.key(id)
}

fn archived(id: &Id) -> Key {
    Key::new(format!("archive/{}", hot(id))).expect("a key")
}

#[tokio::test]
async fn a_point_is_deleted_brought_back_with_its_bytes_and_purged() {
    let store: store::Shared = Arc::new(Memory::new("memory"));
    let id = point(&store, "1", b"sealed").await;
    let purge_time = soon();
    for _ in 0..2 {
        let counts = points::soft_delete(&*store, &id, purge_time, &never()).await.expect("delete");
        assert_eq!(counts, purge_time);
        let deleted = state(&store, &id).await;
        assert_eq!((deleted.is_listed(), deleted.soft_deleted), (false, Some(purge_time)));
        assert_eq!(deleted.sealed_snapshot().expect("sealed").as_deref(), Some(&b"sealed"[..]));
    }
    let later = soon() + jiff::SignedDuration::from_hours(1);
    assert_eq!(points::soft_delete(&*store, &id, later, &never()).await.expect("again"), purge_time);
    for _ in 0..2 {
        points::undelete(&*store, &id, &never()).await.expect("undelete");
        assert_eq!(store.get(&hot(&id), None).await.expect("listed"), &b"sealed"[..]);
        assert_eq!(state(&store, &id).await.soft_deleted, None);
    }
    points::soft_delete(&*store, &id, purge_time, &never()).await.expect("delete");
    let now = jiff::Timestamp::now();
    assert!(points::purge_due(&*store, now, &never()).await.expect("purge").is_empty(), "its time has not come");
    assert_eq!(points::purge_due(&*store, later, &never()).await.expect("purge"), [id]);
    assert!(points::purge_due(&*store, later, &never()).await.expect("purge").is_empty());
    assert!(state(&store, &id).await.purged);
    let refused = points::undelete(&*store, &id, &never()).await;
    assert!(matches!(refused, Err(Error::PointNotFound { .. })), "{refused:?}");
    let refused = points::read(&*store, &Id::of(b"none"), &never()).await;
    assert!(matches!(refused, Err(Error::PointNotFound { .. })), "{refused:?}");
}

#[tokio::test]
async fn points_that_are_asked_for_are_read_without_the_logs_of_the_others() {
    let memory = Arc::new(Memory::new("memory"));
    let store: store::Shared = memory.clone();
    let first = point(&store, "1", b"first").await;
    let second = point(&store, "2", b"second").await;
    let broken = point(&store, "3", b"third").await;
    points::soft_delete(&*store, &second, soon(), &never()).await.expect("delete");
    let expected: Vec<PointState> = points::read_all(&*store, &never())
        .await
        .expect("read all")
        .into_iter()
        .filter(|state| state.id != broken)
        .collect();
    let log = records::numbered(&records::point_events(&broken), 1);
    assert!(memory.damage(&log, |bytes| bytes.truncate(5)));
    points::read_all(&*store, &never()).await.expect_err("a log cannot be read");
    let ids = HashSet::from([first, second, Id::of(b"none")]);
    assert_eq!(points::read_these(&*store, &ids, &never()).await.expect("these"), expected);
    assert_eq!(points::read_these(&*store, &HashSet::new(), &never()).await.expect("none"), []);
}

#[tokio::test]
async fn holds_and_immutability_forbid_what_they_should() {
    let memory = Arc::new(Memory::new("memory"));
    let store: store::Shared = memory.clone();
    let id = point(&store, "1", b"sealed").await;
    points::hold(&*store, &id, "audit", &never()).await.expect("hold");
    let refused = points::soft_delete(&*store, &id, soon(), &never()).await;
    assert!(matches!(refused, Err(Error::PointProtected { .. })), "{refused:?}");
    assert!(state(&store, &id).await.is_listed());
    points::release(&*store, &id, &never()).await.expect("release");
    points::soft_delete(&*store, &id, soon(), &never()).await.expect("released");
    points::hold(&*store, &id, "audit", &never()).await.expect("a deleted point can be held");
    let later = soon() + jiff::SignedDuration::from_hours(1);
    assert!(points::purge_due(&*store, later, &never()).await.expect("purge").is_empty(), "held");
    points::release(&*store, &id, &never()).await.expect("release");
    assert_eq!(points::purge_due(&*store, later, &never()).await.expect("purge"), [id]);
    let immutable = point(&store, "2", b"other").await;
    store::Store::protect(&*memory, &hot(&immutable), soon(), false).await.expect("protect");
    let refused = points::soft_delete(&*store, &immutable, soon(), &never()).await;
    assert!(matches!(refused, Err(Error::PointProtected { .. })), "{refused:?}");
    assert_eq!(state(&store, &immutable).await.events, 1, "a refusal writes nothing");
    assert!(state(&store, &immutable).await.immutable_until.is_some());
    points::proven(&*store, &immutable, "job", &never()).await.expect("proven");
    assert!(state(&store, &immutable).await.proven.is_some());
}

#[tokio::test]
async fn what_was_never_published_is_not_to_be_acted_on_and_can_be_abandoned() {
    let store: store::Shared = Arc::new(Memory::new("memory"));
    let record = record("1", b"sealed");
    commit::prepare(&*store, &record, &never()).await.expect("prepare");
    let id = record.snapshot_id;
    for refused in [
        points::soft_delete(&*store, &id, soon(), &never()).await.map(|_| ()),
        points::undelete(&*store, &id, &never()).await,
        points::hold(&*store, &id, "", &never()).await,
    ] {
        assert!(matches!(refused, Err(Error::PointNotFound { .. })), "{refused:?}");
    }
    assert_eq!(points::finish_interrupted(&*store, &never()).await.expect("finish"), 0, "it may still be published");
    for _ in 0..2 {
        points::abandon(&*store, &id, &never()).await.expect("abandon");
    }
    let abandoned = state(&store, &id).await;
    assert_eq!((abandoned.abandoned, abandoned.events), (true, 2));
    points::abandon(&*store, &Id::of(b"left no record"), &never()).await.expect("nothing to do");
    let refused = commit::prepare(&*store, &record, &never()).await;
    assert!(matches!(refused, Err(Error::StagedIncomplete { .. })), "given up is given up: {refused:?}");
}

#[tokio::test]
async fn only_commits_that_did_not_end_are_unfinished_and_no_published_point_is_abandoned() {
    let store: store::Shared = Arc::new(Memory::new("memory"));
    let listed = point(&store, "1", b"listed").await;
    let deleted = point(&store, "2", b"deleted").await;
    points::soft_delete(&*store, &deleted, soon(), &never()).await.expect("delete");
    let [left, abandoned] = [record("3", b"left"), record("4", b"abandoned")];
    for record in [&left, &abandoned] {
        commit::prepare(&*store, record, &never()).await.expect("prepare");
    }
    assert!(points::abandon(&*store, &abandoned.snapshot_id, &never()).await.expect("abandon"));
    let unfinished = points::unfinished(&*store, &never()).await.expect("read");
    assert_eq!(unfinished.iter().map(|state| state.id).collect::<Vec<_>>(), [left.snapshot_id]);
    assert_eq!(unfinished[0].created.job_id, "3");
    for settled in [listed, deleted, abandoned.snapshot_id] {
        let before = state(&store, &settled).await;
        assert!(!points::abandon(&*store, &settled, &never()).await.expect("nothing to do"));
        assert_eq!(state(&store, &settled).await, before);
    }
    commit::publish(&*store, &left, &never()).await.expect("publish");
    assert!(points::unfinished(&*store, &never()).await.expect("read").is_empty());
}

/// Both copies of an archived point go and come back; a removal leaves the archive's.
#[tokio::test]
async fn an_archived_point_lives_in_both_stores() {
    let store: store::Shared = Arc::new(Memory::new("memory"));
    let id = point(&store, "1", b"sealed").await;
    let refused = points::remove_from_vault(&*store, &id, &never()).await;
    assert!(matches!(refused, Err(Error::PointNotFound { .. })), "{refused:?}");
    store.put_if_absent(&archived(&id), Bytes::from_static(b"sealed")).await.expect("copy");
    let event = PointEventKind::Archived { job_id: "2".to_owned() };
    points::append(&*store, &id, event, &never()).await.expect("archived");
    let places = async |store: &store::Shared| {
        let state = state(store, &id).await;
        (state.in_vault, state.in_archive)
    };
    points::soft_delete(&*store, &id, soon(), &never()).await.expect("delete");
    assert_eq!(places(&store).await, (false, false));
    points::undelete(&*store, &id, &never()).await.expect("undelete");
    assert_eq!(places(&store).await, (true, true));
    points::remove_from_vault(&*store, &id, &never()).await.expect("remove");
    assert_eq!(places(&store).await, (false, true));
    points::soft_delete(&*store, &id, soon(), &never()).await.expect("delete");
    points::undelete(&*store, &id, &never()).await.expect("undelete");
    assert_eq!(places(&store).await, (false, true));
}

/// Dies at every call of every step; what is left is one of the two legal states after the next maintenance, and the step can be repeated.
#[tokio::test]
async fn a_kill_at_any_call_leaves_a_legal_state() {
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Step {
        Delete,
        Undelete,
        Purge,
        Remove,
    }
    for step in [Step::Delete, Step::Undelete, Step::Purge, Step::Remove] {
        for last in [Last::NotDone, Last::Done] {
            let mut kills = 0;
            for dies_at in 1.. {
                let store: store::Shared = Arc::new(Memory::new("memory"));
                let id = point(&store, "1", b"sealed").await;
                store.put_if_absent(&archived(&id), Bytes::from_static(b"sealed")).await.expect("copy");
                let event = PointEventKind::Archived { job_id: "2".to_owned() };
                points::append(&*store, &id, event, &never()).await.expect("archived");
                if matches!(step, Step::Undelete | Step::Purge) {
                    points::soft_delete(&*store, &id, jiff::Timestamp::UNIX_EPOCH, &never()).await.expect("delete");
                }
                let run = async |store: &store::Shared| match step {
                    Step::Delete => points::soft_delete(&**store, &id, soon(), &never()).await.map(|_| ()),
                    Step::Undelete => points::undelete(&**store, &id, &never()).await,
                    Step::Purge => points::purge_due(&**store, jiff::Timestamp::now(), &never()).await.map(|_| ()),
                    Step::Remove => points::remove_from_vault(&**store, &id, &never()).await,
                };
                let dying = Arc::new(Dying::new(store.clone(), dies_at, last));
                let killed = run(&(dying.clone() as store::Shared)).await;
                if !dying.died() {
                    killed.expect("nothing went wrong");
                    break;
                }
                kills += 1;
                points::finish_interrupted(&*store, &never()).await.expect("finish");
                assert_eq!(points::finish_interrupted(&*store, &never()).await.expect("finish"), 0, "nothing is left");
                let after = state(&store, &id).await;
                let places = (after.in_vault, after.in_archive);
                let legal = match (after.purged, after.soft_deleted.is_some(), after.removed_from_vault) {
                    (false, false, false) => places == (true, true),
                    (false, false, true) => places == (false, true),
                    _ => places == (false, false),
                };
                assert!(legal, "{step:?} died at {dies_at} ({last:?}): {after:?}");
                run(&store).await.expect("it can be repeated");
                let after = state(&store, &id).await;
                let done = match step {
                    Step::Delete => after.soft_deleted.is_some() && !after.is_listed(),
                    Step::Undelete => after.soft_deleted.is_none() && after.in_vault && after.in_archive,
                    Step::Purge => after.purged,
                    Step::Remove => !after.in_vault && after.in_archive,
                };
                assert!(done, "{step:?} died at {dies_at} ({last:?}): {after:?}");
            }
            assert!(kills > 5, "{step:?}: {kills}");
        }
    }
}

/// Of an undelete and a purge exactly one happens, and the other one knows.
#[tokio::test]
async fn an_undelete_and_a_purge_that_race_do_not_both_happen() {
    let (mut undeleted, mut purged) = (0, 0);
    for round in 0..40_u64 {
        let memory: store::Shared = Arc::new(Memory::new("memory"));
        let id = point(&memory, "1", b"sealed").await;
        points::soft_delete(&*memory, &id, jiff::Timestamp::UNIX_EPOCH, &never()).await.expect("delete");
        let slow = |seed| -> store::Shared { Arc::new(parked::Yielding::new(memory.clone(), round * 2 + seed)) };
        let (one, two) = (slow(0), slow(1));
        let (now, cancel) = (jiff::Timestamp::now(), never());
        let (undelete, purge) =
            tokio::join!(points::undelete(&*one, &id, &cancel), points::purge_due(&*two, now, &cancel));
        let (undelete_won, purge_won) = (undelete.is_ok(), !purge.expect("purge").is_empty());
        assert!(undelete_won != purge_won, "round {round}");
        let after = state(&memory, &id).await;
        assert_eq!((after.is_listed(), after.purged), (undelete_won, purge_won), "round {round}");
        (undeleted, purged) = (undeleted + u32::from(undelete_won), purged + u32::from(purge_won));
    }
    assert!(undeleted > 0 && purged > 0, "both orders were tried: {undeleted} {purged}");
}

mod parked {
    //! A store that lets others go first, as often as a seed says.

    use std::ops::Range;
    use std::sync::{Mutex, PoisonError};

    use async_trait::async_trait;
    use bytes::Bytes;
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};
    use vaultferry_vault::store::{Entry, Error, Key, Page, Put, Shared, Store, Tier};

    #[derive(Debug)]
    pub struct Yielding(Shared, Mutex<StdRng>);

    impl Yielding {
        pub fn new(inner: Shared, seed: u64) -> Self {
            Self(inner, Mutex::new(StdRng::seed_from_u64(seed)))
        }

        async fn wait(&self) {
            let times = self.1.lock().unwrap_or_else(PoisonError::into_inner).random_range(0..6);
            for _ in 0..times {
                tokio::task::yield_now().await;
            }
        }
    }

    #[async_trait]
    impl Store for Yielding {
        fn location(&self) -> &str {
            self.0.location()
        }

        async fn head(&self, key: &Key) -> Result<Option<Entry>, Error> {
            self.wait().await;
            self.0.head(key).await
        }

        async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
            self.wait().await;
            self.0.get(key, range).await
        }

        async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put, Error> {
            self.wait().await;
            self.0.put_if_absent(key, body).await
        }

        async fn list_page(&self, prefix: &str, next: Option<&str>) -> Result<Page, Error> {
            self.wait().await;
            self.0.list_page(prefix, next).await
        }

        async fn delete(&self, key: &Key) -> Result<(), Error> {
            self.wait().await;
            self.0.delete(key).await
        }

        async fn set_tier(&self, key: &Key, tier: Tier) -> Result<(), Error> {
            self.0.set_tier(key, tier).await
        }

        async fn copy(&self, from: &Key, to: &Key) -> Result<Put, Error> {
            self.0.copy(from, to).await
        }

        async fn protect(&self, key: &Key, until: jiff::Timestamp, locked: bool) -> Result<(), Error> {
            self.0.protect(key, until, locked).await
        }

        async fn set_legal_hold(&self, key: &Key, hold: bool) -> Result<(), Error> {
            self.0.set_legal_hold(key, hold).await
        }
    }
}

#[tokio::test]
async fn restic_lists_a_point_again_that_was_deleted_and_brought_back() {
    let dir = tempfile::tempdir().expect("folder");
    let access = Access {
        location: Location::Folder(dir.path().join("vault")),
        endpoint: None,
        credential: None,
        store_deadline: std::time::Duration::from_secs(5),
    };
    let instance = "0123456789abcdef0123456789abcdef";
    access.create_root().await.expect("create");
    access.create_instance(instance).await.expect("create");
    let store = access.open_instance(instance).expect("open");
    let password = SecretString::from("5e".repeat(32));
    let repository = Arc::new(Repository::init(store.clone(), &password, &never()).await.expect("init"));
    let mut backup =
        Backup::begin(repository, Options::default(), Arc::new(Meter::default()), &never()).await.expect("begin");
    backup.write_stream("s", &b"hello"[..], &never()).await.expect("write");
    let meta = SnapshotMeta { time: jiff::Timestamp::now(), hostname: "host".to_owned(), tags: Vec::new() };
    let staged = backup.stage(meta, &never()).await.expect("stage");
    let record = Record {
        snapshot_id: staged.snapshot_id,
        sealed: staged.sealed,
        prune_epoch: staged.prune_epoch,
        packs: staged.packs,
        time: staged.time,
        created: created("1"),
    };
    commit::verify(&*store, &record, &never()).await.expect("verify");
    commit::prepare(&*store, &record, &never()).await.expect("prepare");
    commit::publish(&*store, &record, &never()).await.expect("publish");
    let restic = |args: &[&str]| {
        let output = std::process::Command::new("restic")
            .args(["--no-cache", "--no-lock", "-r"])
            .arg(access.restic_repository(instance))
            .args(args)
            .env("RESTIC_PASSWORD", password.expose_secret())
            .output()
            .expect("restic is installed (make setup)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    points::soft_delete(&*store, &record.snapshot_id, soon(), &never()).await.expect("delete");
    let snapshots: serde_json::Value = serde_json::from_slice(&restic(&["snapshots", "--json"])).expect("JSON");
    assert_eq!(snapshots.as_array().map(Vec::len), Some(0));
    points::undelete(&*store, &record.snapshot_id, &never()).await.expect("undelete");
    assert_eq!(restic(&["dump", "latest", "/s"]), b"hello");
    restic(&["check", "--read-data"]);
}
