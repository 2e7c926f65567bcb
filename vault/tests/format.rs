//! The stored format is a promise: every record's bytes are pinned, and a vault that version 1 wrote is read.
//!
//! `tests/golden/vault-v1` was written by `generate` below with `UPDATE_GOLDEN=1`, once. It is never written again for
//! version 1; a new format version gets a folder of its own beside it, and this test goes on reading the old one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use secrecy::ExposeSecret as _;
use tokio_util::sync::CancellationToken;
use vaultferry_vault::commit::{self, Record};
use vaultferry_vault::keys::{WrapKey, Wrapped};
use vaultferry_vault::location::{Access, Location};
use vaultferry_vault::meter::Meter;
use vaultferry_vault::reader::PointReader;
use vaultferry_vault::records::{
    self, InstanceRecord, ListedPack, PackList, PasswordRecord, PointCreated, PointEvent, PointEventKind, PointStream,
    PolicyRecord, Protection, PruneMark, RecoveryKeyRecord, ServerRecord, SourceLogin, VaultRecord,
};
use vaultferry_vault::repository::{FileKind, Repository};
use vaultferry_vault::writer::{Backup, Options, SnapshotMeta};
use vaultferry_vault::{Id, admin, store};

const INSTANCE: &str = "0123456789abcdef0123456789abcdef";

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn time() -> jiff::Timestamp {
    "2026-11-21T02:00:00Z".parse().expect("a time")
}

fn wrapped() -> Wrapped {
    Wrapped {
        algorithm: "AES-256-GCM".to_owned(),
        key_id: "0011223344556677".to_owned(),
        nonce: "AAAAAAAAAAAAAAAA".to_owned(),
        ciphertext: "AAAA".to_owned(),
        wrapped_key: None,
    }
}

fn created() -> PointCreated {
    PointCreated {
        job_id: "job-1".to_owned(),
        rule: "Default".to_owned(),
        policy: "nightly".to_owned(),
        policy_version: 1,
        slot: None,
        keep_until: None,
        streams: vec![PointStream { name: "database.dump".to_owned(), size: 5, sha256: Id::of(b"hello").to_string() }],
        source_bytes: 5,
        stored_bytes: 900,
        sealed_snapshot: String::new(),
        prune_epoch: 0,
        capture: None,
    }
}

fn every_record() -> Vec<(&'static str, Vec<u8>)> {
    let bytes = |record: Result<Vec<u8>, _>| record.expect("serializes");
    let vault = VaultRecord {
        version: 1,
        id: INSTANCE.to_owned(),
        create_time: time(),
        region: "koreacentral".to_owned(),
        redundancy: "geo-redundant".to_owned(),
        format_version: 1,
        immutability_days: 0,
        soft_delete_days: 14,
    };
    let policy = PolicyRecord {
        version: 1,
        name: "nightly".to_owned(),
        policy_version: 1,
        create_time: time(),
        document: "name = \"nightly\"\n".to_owned(),
        id: String::new(),
        deleted: false,
    };
    let instance = InstanceRecord {
        version: 1,
        id: INSTANCE.to_owned(),
        name: "shop".to_owned(),
        create_time: time(),
        source_type: "postgres".to_owned(),
        source_uri: "postgres://backup@db/shop".to_owned(),
        region: String::new(),
        policy: "nightly".to_owned(),
        login: vaultferry_vault::records::SourceLogin::Default,
        source_identity: String::new(),
        protection: Protection::Active,
    };
    let packs = |previous| PackList {
        version: 1,
        previous,
        job_id: "job-1".to_owned(),
        snapshot_id: Id::of(b"snapshot"),
        packs: vec![ListedPack { id: Id::of(b"pack"), size: 4 }],
        checkpoint: None,
    };
    let event = PointEvent { version: 1, time: time(), event: PointEventKind::Created(created()) };
    let prune =
        PruneMark { version: 1, epoch: 1, create_time: time(), marked: vec![Id::of(b"pack")], candidates: Vec::new() };
    let recovery = RecoveryKeyRecord { version: 1, create_time: time(), vault_key: wrapped(), vault_key_id: None };
    let identity = "postgres://db:5432/";
    let server = ServerRecord {
        version: 1,
        id: records::server_id(identity),
        name: "db:5432".to_owned(),
        create_time: time(),
        source_type: "postgres".to_owned(),
        server_uri: "postgres://backup@db/".to_owned(),
        server_identity: identity.to_owned(),
        region: String::new(),
        policy: "nightly".to_owned(),
        login: SourceLogin::Passfile("/etc/vaultferry/pgpass".to_owned()),
        include: Vec::new(),
        exclude: vec!["*_test".to_owned()],
        removed: false,
    };
    let password = PasswordRecord { version: 1, create_time: time(), password: wrapped() };
    vec![
        ("vault.json", bytes(records::to_bytes(&vault))),
        ("recovery-key.json", bytes(records::to_bytes(&recovery))),
        ("policy.json", bytes(records::to_bytes(&policy))),
        ("instance.json", bytes(records::to_bytes(&instance))),
        ("password.json", bytes(records::to_bytes(&password))),
        ("point-event.json", bytes(records::to_bytes(&event))),
        ("packs-first.json", bytes(records::to_bytes(&packs(None)))),
        ("packs-next.json", bytes(records::to_bytes(&packs(Some(Id::of(b"first")))))),
        ("prune.json", bytes(records::to_bytes(&prune))),
        ("server.json", bytes(records::to_bytes(&server))),
    ]
}

#[test]
fn every_records_bytes_are_pinned() {
    for (name, bytes) in every_record() {
        let path = golden().join("records").join(name);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("folder");
            std::fs::write(&path, &bytes).expect("written");
        }
        let expected = std::fs::read(&path).expect("golden file");
        assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(&expected), "{name}");
    }
    assert_eq!(records::numbered(records::PACK_LISTS, 7).as_str(), "packs/0000000007.json");
}

/// What the record of an instance says of its protection; without it, the policy is followed.
#[test]
fn the_protection_of_an_instance_is_pinned() {
    let (_, plain) = every_record().swap_remove(3);
    let read = |bytes: &[u8]| records::from_bytes::<InstanceRecord>("instance", bytes).expect("reads");
    assert_eq!(read(&plain).protection, Protection::Active);
    let (since, purge_time) = (time(), "2026-12-05T02:00:00Z".parse().expect("a time"));
    let paused = Protection::Paused { since };
    let paused_text = r#"{"state":"paused","since":"2026-11-21T02:00:00Z"}"#;
    for (protection, text) in [
        (paused.clone(), paused_text.to_owned()),
        (Protection::Stopped { since }, r#"{"state":"stopped","since":"2026-11-21T02:00:00Z"}"#.to_owned()),
        (
            Protection::Deleted { since, purge_time, before: Box::new(paused) },
            format!(
                "{{\"state\":\"deleted\",\"since\":\"2026-11-21T02:00:00Z\",\"purge_time\":\"2026-12-05T02:00:00Z\",\
                 \"before\":{paused_text}}}"
            ),
        ),
        (Protection::Purged { since }, r#"{"state":"purged","since":"2026-11-21T02:00:00Z"}"#.to_owned()),
    ] {
        assert_eq!(serde_json::to_string(&protection).expect("serializes"), text);
        let record = InstanceRecord { protection, ..read(&plain) };
        assert_eq!(read(&records::to_bytes(&record).expect("serializes")), record);
    }
}

#[test]
fn an_unknown_version_is_refused_and_an_unknown_field_is_not() {
    let (_, bytes) = every_record().swap_remove(8);
    let text = String::from_utf8(bytes).expect("text");
    let newer = text.replace("\"version\": 1", "\"version\": 2");
    let error = records::from_bytes::<PruneMark>("prune", newer.as_bytes()).expect_err("refused");
    assert!(error.to_string().contains("version 2"), "{error}");
    let more = text.replace("\"epoch\": 1", "\"epoch\": 1, \"later\": true");
    assert_eq!(records::from_bytes::<PruneMark>("prune", more.as_bytes()).expect("read").epoch, 1);
}

fn content(name: &str) -> Vec<u8> {
    match name {
        "database.dump" => (0..3_000_000_u32).map(|i| (i / 1000) as u8).collect(),
        _ => b"{\"format_version\": 1}".to_vec(),
    }
}

fn access(dir: &Path) -> Access {
    let store_deadline = Duration::from_secs(5);
    Access { location: Location::Folder(dir.to_owned()), endpoint: None, credential: None, store_deadline }
}

/// Writes the golden vault. Only for a new format version.
async fn generate(dir: &Path) {
    let cancel = CancellationToken::new();
    let access = access(dir);
    let made =
        admin::init(&access, "koreacentral", "geo-redundant", &dir.join("test.key"), &cancel).await.expect("init");
    let recovery = made.recovery_key.expect("new");
    std::fs::write(dir.join("test.recovery"), recovery.expose_secret()).expect("written");
    let key = WrapKey::load(&dir.join("test.key")).expect("key");
    let (_, instance) = every_record().swap_remove(3);
    let instance: InstanceRecord = records::from_bytes("instance", &instance).expect("reads");
    admin::create_instance(&access, &key, &instance, &cancel).await.expect("instance");
    let store = access.open_instance(INSTANCE).expect("store");
    let password = admin::password_of(&store, &key, INSTANCE, &cancel).await.expect("password");
    let repository = Arc::new(Repository::open(store.clone(), &password, &cancel).await.expect("open"));
    let meter = Arc::new(Meter::default());
    let mut backup = Backup::begin(repository, Options::default(), meter, &cancel).await.expect("begin");
    for name in ["database.dump", "database.json"] {
        backup.write_stream(name, content(name).as_slice(), &cancel).await.expect("write");
    }
    let meta = SnapshotMeta { time: time(), hostname: "host".to_owned(), tags: vec!["job=job-1".to_owned()] };
    let staged = backup.stage(meta, &cancel).await.expect("stage");
    let record = Record {
        snapshot_id: staged.snapshot_id,
        sealed: staged.sealed,
        prune_epoch: staged.prune_epoch,
        packs: staged.packs,
        time: staged.time,
        created: created(),
    };
    commit::verify(&*store, &record, &cancel).await.expect("verify");
    commit::prepare(&*store, &record, &cancel).await.expect("prepare");
    commit::publish(&*store, &record, &cancel).await.expect("publish");
}

#[tokio::test]
async fn a_vault_of_version_1_is_read() {
    let dir = golden().join("vault-v1");
    if std::env::var_os("UPDATE_GOLDEN").is_some() && !dir.exists() {
        generate(&dir).await;
    }
    let cancel = CancellationToken::new();
    let access = access(&dir);
    let root = access.open_root().expect("store");
    assert_eq!(admin::open(&root, &cancel).await.expect("vault").region, "koreacentral");
    // The machine is lost: only the recovery key is left.
    let recovery = std::fs::read_to_string(dir.join("test.recovery")).expect("recovery key");
    let recovery = WrapKey::from_text(&recovery.into()).expect("a key");
    let key = admin::recover_key(&root, &recovery, &cancel).await.expect("recovered");
    assert_eq!(key.id(), WrapKey::load(&dir.join("test.key")).expect("key").id());
    let store = access.open_instance(INSTANCE).expect("store");
    let password = admin::password_of(&store, &key, INSTANCE, &cancel).await.expect("password");
    let repository = Arc::new(Repository::open(store.clone(), &password, &cancel).await.expect("open"));
    let snapshots: Vec<_> = store::list(&*store, FileKind::Snapshot.prefix()).collect().await;
    let id: Id = snapshots[0].as_ref().expect("entry").key.name().parse().expect("an id");
    let point = PointReader::open(repository, id, &cancel).await.expect("point");
    assert_eq!(point.snapshot().tags, ["job=job-1"]);
    for stream in point.streams() {
        let mut bytes = Vec::new();
        point.copy_stream(&stream.name, &mut bytes, &Meter::default(), &cancel).await.expect("copied");
        assert!(bytes == content(&stream.name), "{}", stream.name);
    }
    let lists = commit::read_pack_lists(&*store).await.expect("lists");
    assert_eq!((lists.len(), lists[0].1.snapshot_id, lists[0].1.packs.len()), (1, id, 2));
    let event: PointEvent =
        records::get(&*store, &records::numbered(&records::point_events(&id), 1)).await.expect("event");
    assert_eq!(event.event, PointEventKind::Created(created()));
    assert_eq!(records::current_epoch(&*store).await.expect("epoch"), 0);
}
