//! The repository as a whole: what is written is read back, a damaged vault is named, a commit happens once, restic agrees.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use rand::{RngExt as _, SeedableRng as _};
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;
use vaultferry_vault::commit;
use vaultferry_vault::location::{Access, Location};
use vaultferry_vault::meter::Meter;
use vaultferry_vault::reader::PointReader;
use vaultferry_vault::records::{self, PolicyRecord, PruneMark};
use vaultferry_vault::repository::{FileKind, PACKS, Repository};
use vaultferry_vault::store::{self, memory::Memory};
use vaultferry_vault::writer::{Backup, Options, SnapshotMeta, Staged};
use vaultferry_vault::{Error, Id, admin};

#[path = "support/record.rs"]
mod record;

use record::record;

fn password() -> SecretString {
    SecretString::from("5e".repeat(32))
}

fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rand::rngs::StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

async fn repository(store: &store::Shared) -> Arc<Repository> {
    Arc::new(Repository::init(store.clone(), &password(), &CancellationToken::new()).await.expect("init"))
}

async fn stage(repository: &Arc<Repository>, streams: &[(&str, &[u8])]) -> Staged {
    let cancel = CancellationToken::new();
    let meter = Arc::new(Meter::default());
    let mut backup = Backup::begin(repository.clone(), Options::default(), meter, &cancel).await.expect("begin");
    for (name, bytes) in streams {
        let summary = backup.write_stream(name, *bytes, &cancel).await.expect("write");
        assert_eq!(summary.size, bytes.len() as u64);
    }
    let time = jiff::Timestamp::from_second(1_800_000_000).expect("a time");
    let meta = SnapshotMeta { time, hostname: "host".to_owned(), tags: vec!["job=1".to_owned()] };
    backup.stage(meta, &cancel).await.expect("stage")
}

async fn commit(store: &store::Shared, job: &str, staged: &Staged) -> Result<(), Error> {
    let (record, cancel) = (record(job, staged), CancellationToken::new());
    commit::verify(&**store, &record, &cancel).await?;
    commit::prepare(&**store, &record, &cancel).await?;
    commit::publish(&**store, &record, &cancel).await
}

async fn read(repository: &Arc<Repository>, snapshot: Id, name: &str) -> Result<Vec<u8>, Error> {
    let cancel = CancellationToken::new();
    let point = PointReader::open(repository.clone(), snapshot, &cancel).await?;
    let mut chunks = point.chunks(name, &cancel)?;
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    point.check_size(name, bytes.len() as u64)?;
    Ok(bytes)
}

async fn keys(store: &store::Shared, prefix: &str) -> Vec<store::Key> {
    store::list(&**store, prefix).map(|entry| entry.expect("entry").key).collect().await
}

#[tokio::test]
async fn streams_come_back() {
    let store: store::Shared = Arc::new(Memory::new("memory"));
    let repository = repository(&store).await;
    let (big, text) = (random(1, 40 << 20), b"hello ".repeat(700_000));
    let streams: [(&str, &[u8]); 4] = [("database.dump", &big), ("text", &text), ("empty", b""), ("one", b"x")];
    let staged = stage(&repository, &streams).await;
    assert_eq!(staged.source_bytes, streams.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
    assert!(keys(&store, FileKind::Snapshot.prefix()).await.is_empty(), "staged is not visible");
    commit(&store, "1", &staged).await.expect("commit");
    for (name, bytes) in streams {
        assert!(read(&repository, staged.snapshot_id, name).await.expect("read") == bytes, "{name}");
    }
    assert!(matches!(read(&repository, staged.snapshot_id, "none").await, Err(Error::Damaged { .. })));
}

#[tokio::test]
async fn an_unchanged_second_backup_stores_next_to_nothing_and_a_changed_one_is_the_second_state() {
    let store: store::Shared = Arc::new(Memory::new("memory"));
    let repository = repository(&store).await;
    let mut bytes = random(2, 30 << 20);
    let first = stage(&repository, &[("s", &bytes)]).await;
    commit(&store, "1", &first).await.expect("commit");
    let second = stage(&repository, &[("s", &bytes)]).await;
    assert!(second.stored_bytes < first.stored_bytes / 1000, "{} of {}", second.stored_bytes, first.stored_bytes);
    let old = bytes.clone();
    bytes.splice(10 << 20..10 << 20, *b"inserted");
    let third = stage(&repository, &[("s", &bytes)]).await;
    assert!(third.stored_bytes < first.stored_bytes / 3);
    commit(&store, "3", &third).await.expect("commit");
    assert!(read(&repository, third.snapshot_id, "s").await.expect("read") == bytes);
    assert!(read(&repository, first.snapshot_id, "s").await.expect("read") == old);
}

#[tokio::test]
async fn an_interrupted_backup_is_reused() {
    let store: store::Shared = Arc::new(Memory::new("memory"));
    let repository = repository(&store).await;
    let bytes = random(3, 100 << 20);
    let cancel = CancellationToken::new();
    let meter = Arc::new(Meter::default());
    let mut backup =
        Backup::begin(repository.clone(), Options::default(), meter.clone(), &cancel).await.expect("begin");
    let broken = tokio::io::AsyncReadExt::chain(&bytes[..95 << 20], BreaksAfter(64 << 20, meter.clone()));
    backup.write_stream("s", broken, &cancel).await.expect_err("the input broke");
    let meta = SnapshotMeta { time: jiff::Timestamp::now(), hostname: String::new(), tags: Vec::new() };
    backup.stage(meta, &cancel).await.expect_err("a broken stream is never staged");
    let uploaded = meter.stored();
    let again = stage(&repository, &[("s", &bytes)]).await;
    // What was uploaded is reused but for two packs at most: one that waits for another to share its index file, and one whose end
    // of the upload was not seen.
    let (total, lost) = (100 << 20, 40 << 20);
    assert!(uploaded + again.stored_bytes < total + lost, "{uploaded} then {}", again.stored_bytes);
}

/// Fails when so many bytes are stored.
struct BreaksAfter(u64, Arc<Meter>);

impl tokio::io::AsyncRead for BreaksAfter {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        if self.1.stored() < self.0 {
            context.waker().wake_by_ref();
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(Err(std::io::Error::other("broken")))
    }
}

#[tokio::test]
async fn every_kind_of_damage_is_named_and_what_can_be_read_again_heals() {
    let bytes = random(4, 20 << 20);
    for prefix in [PACKS, FileKind::Index.prefix(), FileKind::Snapshot.prefix(), "repo/config"] {
        for change in ["flip", "cut", "remove"] {
            let memory = Arc::new(Memory::new("memory"));
            let store: store::Shared = memory.clone();
            let repository_first = repository(&store).await;
            let staged = stage(&repository_first, &[("s", &bytes)]).await;
            commit(&store, "1", &staged).await.expect("commit");
            for key in keys(&store, if prefix.ends_with('/') { prefix } else { "repo/" }).await {
                if !key.as_str().starts_with(prefix) {
                    continue;
                }
                let mut file = store.get(&key, None).await.expect("get").to_vec();
                store.delete(&key).await.expect("delete");
                let middle = file.len() / 2;
                match change {
                    "flip" => file[middle] ^= 1,
                    "cut" => file.truncate(middle),
                    _ => continue,
                }
                store.put_if_absent(&key, file.into()).await.expect("put");
            }
            let opened = Repository::open(store.clone(), &password(), &CancellationToken::new()).await;
            let error = match opened {
                Ok(opened) => read(&Arc::new(opened), staged.snapshot_id, "s").await.expect_err("damage is found"),
                Err(error) => error,
            };
            assert!(matches!(error, Error::Damaged { .. }), "{prefix} {change}: {error}");
            let heals = prefix == FileKind::Index.prefix() || (prefix == PACKS && change != "flip");
            if heals && change == "remove" {
                let again = stage(&repository_first, &[("s", &bytes)]).await;
                commit(&store, "2", &again).await.expect("commit");
                assert!(read(&repository_first, staged.snapshot_id, "s").await.expect("healed") == bytes, "{prefix}");
            }
        }
    }
}

#[tokio::test]
async fn a_commit_happens_once_and_can_be_repeated_from_every_step() {
    let store: store::Shared = Arc::new(Memory::new("memory"));
    let repository = repository(&store).await;
    let staged = stage(&repository, &[("s", b"one")]).await;
    let (record, cancel) = (record("1", &staged), CancellationToken::new());
    for _ in 0..2 {
        commit::prepare(&*store, &record, &cancel).await.expect("prepare");
    }
    assert!(!commit::is_committed(&*store, &staged.snapshot_id, &cancel).await.expect("ask"));
    for _ in 0..2 {
        commit(&store, "1", &staged).await.expect("commit");
    }
    assert!(commit::is_committed(&*store, &staged.snapshot_id, &cancel).await.expect("ask"));
    assert_eq!(keys(&store, FileKind::Snapshot.prefix()).await.len(), 1);
    assert_eq!(keys(&store, records::PACK_LISTS).await.len(), 1);
    let other = stage(&repository, &[("s", b"two")]).await;
    assert!(matches!(commit(&store, "1", &other).await, Err(Error::JobAlreadyCommitted { .. })));
    commit(&store, "2", &other).await.expect("another job may");
    let lists = commit::read_pack_lists(&*store).await.expect("lists");
    assert_eq!(lists[1].1.previous, Some(lists[0].0));
    assert!(lists[1].1.packs.iter().all(|pack| !lists[0].1.packs.contains(pack)), "a pack is listed once");
}

#[tokio::test]
async fn missing_or_marked_packs_are_not_committed() {
    let store: store::Shared = Arc::new(Memory::new("memory"));
    let repository = repository(&store).await;
    let staged = stage(&repository, &[("s", &random(5, 1 << 20))]).await;
    let mark = |epoch, marked| PruneMark {
        version: 1,
        epoch,
        create_time: jiff::Timestamp::UNIX_EPOCH,
        marked,
        candidates: Vec::new(),
    };
    let place = |epoch| records::numbered(records::PRUNE, epoch);
    // A prune that began meanwhile and marked something else does not matter; one that marked our pack does.
    records::put(&*store, &place(1), &mark(1, vec![Id::of(b"other")])).await.expect("mark");
    commit::verify(&*store, &record("1", &staged), &CancellationToken::new()).await.expect("not ours");
    store.delete(&place(1)).await.expect("delete");
    records::put(&*store, &place(1), &mark(1, vec![staged.packs[0].0])).await.expect("mark");
    let refused = commit::verify(&*store, &record("1", &staged), &CancellationToken::new()).await;
    assert!(matches!(refused, Err(Error::PrunedMeanwhile { seen: 0, now: 1 })), "{refused:?}");
    // After two prunes deleting has begun, whatever was marked.
    let staged = stage(&repository, &[("s", &random(6, 1 << 20))]).await;
    assert_eq!(staged.prune_epoch, 1);
    for epoch in [2, 3] {
        records::put(&*store, &place(epoch), &mark(epoch, Vec::new())).await.expect("mark");
    }
    let refused = commit::verify(&*store, &record("2", &staged), &CancellationToken::new()).await;
    assert!(matches!(refused, Err(Error::PrunedMeanwhile { seen: 1, now: 3 })), "{refused:?}");
    let staged = stage(&repository, &[("s", &random(7, 1 << 20))]).await;
    let pack =
        keys(&store, PACKS).await.into_iter().find(|key| key.name() == staged.packs[0].0.to_string()).expect("there");
    store.delete(&pack).await.expect("delete");
    assert!(matches!(commit(&store, "3", &staged).await, Err(Error::StagedIncomplete { .. })));
}

#[tokio::test]
async fn an_interrupted_init_goes_on() {
    let store: store::Shared = Arc::new(Memory::new("memory"));
    let cancel = CancellationToken::new();
    let first = Repository::init(store.clone(), &password(), &cancel).await.expect("init");
    drop(first);
    // Killed between the key file and the config: the second call must use the same master key.
    store.delete(&store::Key::new("repo/config").expect("key")).await.expect("delete");
    let repository = repository(&store).await;
    assert_eq!(keys(&store, FileKind::KeyFile.prefix()).await.len(), 1);
    let staged = stage(&repository, &[("s", b"one")]).await;
    commit(&store, "1", &staged).await.expect("commit");
    let wrong = Repository::open(store.clone(), &SecretString::from("wrong"), &cancel).await;
    assert!(matches!(wrong, Err(Error::KeyWrong { .. })));
}

#[tokio::test]
async fn restic_reads_what_we_write() {
    let dir = tempfile::tempdir().expect("folder");
    let access = Access {
        location: Location::Folder(dir.path().join("vault")),
        endpoint: None,
        credential: None,
        store_deadline: Duration::from_secs(5),
    };
    let cancel = CancellationToken::new();
    access.create_root().await.expect("create");
    access.create_instance("0123456789abcdef0123456789abcdef").await.expect("create");
    let store = access.open_instance("0123456789abcdef0123456789abcdef").expect("open");
    let repository = Arc::new(Repository::init(store.clone(), &password(), &cancel).await.expect("init"));
    let (mut big, text) = (random(8, 35 << 20), b"row of text\t12345\n".repeat(200_000));
    for job in ["1", "2"] {
        let staged = stage(&repository, &[("database.dump", &big), ("database.json", &text), ("empty", b"")]).await;
        commit(&store, job, &staged).await.expect("commit");
        big[1000] ^= 1;
        // Snapshots of one second are the same to restic's "latest".
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    big[1000] ^= 1;
    let restic = |args: &[&str]| {
        let output = std::process::Command::new("restic")
            .args(["--no-cache", "--no-lock", "-r"])
            .arg(access.restic_repository("0123456789abcdef0123456789abcdef"))
            .args(args)
            .env("RESTIC_PASSWORD", password().expose_secret())
            .output()
            .expect("restic is installed (make setup)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    restic(&["check", "--read-data"]);
    assert!(restic(&["dump", "latest", "/database.json"]) == text);
    assert!(restic(&["dump", "latest", "/empty"]).is_empty());
    let snapshots: serde_json::Value = serde_json::from_slice(&restic(&["snapshots", "--json"])).expect("JSON");
    assert_eq!(snapshots.as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn what_an_abandoned_backup_has_uploaded_is_reused() {
    let store: store::Shared = Arc::new(Memory::new("memory"));
    let repository = repository(&store).await;
    let bytes = random(9, 20 << 20);
    let cancel = CancellationToken::new();
    let meter = Arc::new(Meter::default());
    let mut backup =
        Backup::begin(repository.clone(), Options::default(), meter.clone(), &cancel).await.expect("begin");
    backup.write_stream("s", &bytes[..19 << 20], &cancel).await.expect("write");
    backup.abandon(&cancel).await;
    assert!(meter.stored() > 19 << 20, "all that was read is there: {}", meter.stored());
    let again = stage(&repository, &[("s", &bytes)]).await;
    // New are the last MiB, and the chunk that the first backup's end had cut, which is 8 MiB at most.
    assert!(again.stored_bytes < 10 << 20, "{}", again.stored_bytes);
}

#[tokio::test]
async fn a_policys_version_in_the_vault_is_never_another_document() {
    let root: store::Shared = Arc::new(Memory::new("memory"));
    let policy = |document: &str, second| PolicyRecord {
        version: records::VERSION,
        name: "nightly".to_owned(),
        policy_version: 1,
        create_time: jiff::Timestamp::from_second(second).expect("a time"),
        document: document.to_owned(),
        id: String::new(),
        deleted: false,
    };
    for (document, second, kept) in [("a", 1, true), ("a", 1, true), ("a", 2, true), ("b", 1, false)] {
        let answer = admin::put_policy(&root, &policy(document, second), &CancellationToken::new()).await.expect("put");
        assert_eq!(answer, kept, "{document} {second}");
    }
    let deletion = PolicyRecord { deleted: true, ..policy("a", 1) };
    assert!(!admin::put_policy(&root, &deletion, &CancellationToken::new()).await.expect("put"), "it is no deletion");
    let deletion = PolicyRecord { policy_version: 2, ..deletion };
    assert!(admin::put_policy(&root, &deletion, &CancellationToken::new()).await.expect("put"));
    // What is known already is not read again.
    let read = async |name: Option<&str>, known: &[u32]| {
        let known = known.iter().map(|version| ("nightly".to_owned(), *version)).collect();
        let (records, unreadable) =
            admin::policies_beside(&root, name, &known, &CancellationToken::new()).await.expect("read");
        assert!(unreadable.is_empty());
        records.iter().map(|record| (record.policy_version, record.deleted)).collect::<Vec<_>>()
    };
    assert_eq!(read(None, &[]).await, [(1, false), (2, true)]);
    assert_eq!(read(Some("nightly"), &[1]).await, [(2, true)]);
    assert_eq!(read(Some("night"), &[]).await, [], "a beginning of a name is another name");
    assert_eq!(read(None, &[1, 2]).await, []);
}
