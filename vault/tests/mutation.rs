//! Every kind of file in a vault is altered, cut, lengthened and removed. Each case is found, and named, without the key and with it.
//! What cannot be found stands in one list with its reason, and the list is exact: what it says is not found is not found.

use std::collections::BTreeSet;
use std::sync::Arc;

use rand::{RngExt as _, SeedableRng as _};
use tokio_util::sync::CancellationToken;
use vaultferry_vault::check::{self, Depth, Report, Severity};
use vaultferry_vault::keys::WrapKey;
use vaultferry_vault::manifest::{self, MANIFESTS, Scope};
use vaultferry_vault::meter::Meter;
use vaultferry_vault::records::{
    self, DamageRecord, InstanceRecord, OwnerRecord, PasswordRecord, PointEvent, PointEventKind, PolicyRecord,
    PruneMark, RecoveryKeyRecord, ServerRecord, SourceLogin, VaultRecord,
};
use vaultferry_vault::store::{Key, Store as _, memory::Memory};
use vaultferry_vault::{Error, Id};

#[path = "support/filled.rs"]
mod filled;

use filled::{back_up, copy, init, keys, open, random, stage, time};

/// Printed with every failure; change it to try other bytes.
const SEED: u64 = 20_261_121;

async fn put<T: serde::Serialize>(store: &Memory, key: &str, record: &T) {
    let key = Key::new(key).expect("key");
    assert_eq!(records::put(store, &key, record).await.expect("put"), vaultferry_vault::store::Put::Created, "{key}");
}

fn instance_record(name: &str) -> InstanceRecord {
    InstanceRecord {
        version: 1,
        id: "0123456789abcdef0123456789abcdef".to_owned(),
        name: name.to_owned(),
        create_time: time(),
        source_type: "postgres".to_owned(),
        source_uri: "postgres://backup@db/shop".to_owned(),
        region: String::new(),
        policy: "nightly".to_owned(),
        login: SourceLogin::Default,
        source_identity: String::new(),
        protection: vaultferry_vault::records::Protection::Active,
    }
}

/// An instance with two of everything: records, points, key records, an archive. And the packs and indexes of a backup that was not
/// committed, which come back beside it.
async fn instance() -> (Arc<Memory>, BTreeSet<Key>) {
    let (store, key) = (Arc::new(Memory::new("instance")), WrapKey::generate().expect("random"));
    let repository = init(&store).await;
    for n in 1..=2 {
        let password =
            PasswordRecord { version: 1, create_time: time(), password: key.wrap(b"secret", "test").expect("wrapped") };
        put(&store, records::numbered("keys/", n).as_str(), &password).await;
        put(&store, records::numbered("instance/", n).as_str(), &instance_record("shop")).await;
    }
    let first = back_up(&repository, "1", &[("s", &random(1, 400_000)), ("t", b"text")]).await;
    back_up(&repository, "2", &[("s", &random(2, 300_000))]).await;
    let event = |event| PointEvent { version: 1, time: time(), event };
    let events = [
        PointEventKind::Held { note: "court".to_owned() },
        PointEventKind::Archived { job_id: "3".to_owned() },
        PointEventKind::Proven { job_id: "4".to_owned() },
    ];
    for (n, kind) in (2..).zip(events) {
        put(&store, records::numbered(&records::point_events(&first), n).as_str(), &event(kind)).await;
    }
    for epoch in 1..=2 {
        let mark = PruneMark {
            version: 1,
            epoch,
            create_time: time(),
            marked: vec![Id::of(&[epoch as u8])],
            candidates: Vec::new(),
        };
        put(&store, records::numbered(records::PRUNE, epoch).as_str(), &mark).await;
        let damage = DamageRecord { version: 1, create_time: time(), packs: vec![Id::of(&[epoch as u8])] };
        put(&store, records::numbered(records::DAMAGED, epoch).as_str(), &damage).await;
    }
    // The archive has the first point. It is the same format, so that a copy of the whole hot store is an archive too.
    for key in keys(&store, "repo/").await.into_iter().chain(keys(&store, "packs/").await) {
        if key.as_str().starts_with("repo/snapshots/") && key.name() != first.to_string() {
            continue;
        }
        let body = store.get(&key, None).await.expect("get");
        let copied = Key::new(format!("{}{key}", records::ARCHIVE)).expect("key");
        store.put_if_absent(&copied, body).await.expect("put");
    }
    let before: BTreeSet<Key> = keys(&store, "repo/").await.into_iter().collect();
    stage(&repository, "5", &[("s", &random(3, 100_000))]).await;
    let leftovers = keys(&store, "repo/").await.into_iter().filter(|key| !before.contains(key)).collect();
    (store, leftovers)
}

fn server_record() -> ServerRecord {
    let server_identity = "postgres://db:5432/".to_owned();
    ServerRecord {
        version: 1,
        id: records::server_id(&server_identity),
        name: "db:5432".to_owned(),
        create_time: time(),
        source_type: "postgres".to_owned(),
        server_uri: "postgres://backup@db/".to_owned(),
        server_identity,
        region: String::new(),
        policy: "nightly".to_owned(),
        login: SourceLogin::Default,
        include: Vec::new(),
        exclude: Vec::new(),
        removed: false,
    }
}

/// The vault's own records, two of each kind that is numbered.
async fn vault() -> Arc<Memory> {
    let store = Arc::new(Memory::new("vault"));
    let record = VaultRecord {
        version: 1,
        id: "0123456789abcdef0123456789abcdef".to_owned(),
        create_time: time(),
        region: "koreacentral".to_owned(),
        redundancy: "geo-redundant".to_owned(),
        format_version: 1,
        immutability_days: 0,
        soft_delete_days: 14,
    };
    put(&store, "vault.json", &record).await;
    for n in 1..=2 {
        let recovery = WrapKey::generate().expect("random");
        let vault_key = recovery.wrap(b"secret", "vault-key").expect("wrapped");
        let key = format!("keys/recovery-{}.json", recovery.id());
        put(&store, &key, &RecoveryKeyRecord { version: 1, create_time: time(), vault_key, vault_key_id: None }).await;
        let policy = PolicyRecord {
            version: 1,
            name: "nightly".to_owned(),
            policy_version: n,
            create_time: time(),
            document: "name = \"nightly\"\n".to_owned(),
            id: String::new(),
            deleted: false,
        };
        put(&store, &format!("policies/nightly/{n:010}.json"), &policy).await;
        let server = server_record();
        put(&store, records::numbered(&records::server(&server.id), n.into()).as_str(), &server).await;
        let owner = OwnerRecord { version: 1, create_time: time(), agent_id: "a".repeat(32), hostname: "h".to_owned() };
        put(&store, records::numbered(records::OWNERS, n.into()).as_str(), &owner).await;
    }
    store
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// A bit of a byte at a place that the seed chooses.
    Flip(u64),
    Truncate,
    Extend,
    Remove,
}

const CHANGES: [Change; 6] =
    [Change::Flip(1), Change::Flip(2), Change::Flip(3), Change::Truncate, Change::Extend, Change::Remove];

async fn change(store: &Memory, key: &Key, change: Change) {
    match change {
        Change::Remove => store.delete(key).await.expect("delete"),
        Change::Truncate => assert!(store.damage(key, |bytes| bytes.truncate(bytes.len() / 2))),
        Change::Extend => assert!(store.damage(key, |bytes| bytes.push(b' '))),
        Change::Flip(n) => {
            let mut random = rand::rngs::StdRng::seed_from_u64(SEED ^ n);
            assert!(store.damage(key, |bytes| {
                let at = random.random_range(0..bytes.len());
                bytes[at] ^= 1 << random.random_range(0..7);
            }));
        }
    }
}

/// The damage in the report names this file.
fn names(report: &Report, file: &str) -> bool {
    let mut damage = report.findings.iter().filter(|finding| finding.severity == Severity::Damage);
    damage.any(|finding| finding.file == file)
}

async fn keyless(store: &Memory) -> Report {
    check::keyless(store, Depth::ReadData, &Meter::default(), &CancellationToken::new()).await.expect("checked")
}

/// What the check with the key says; a repository that does not open is told by the error, and by the check without the key.
async fn full(store: &Arc<Memory>) -> Result<Report, Error> {
    let repository = open(store).await?;
    check::full(&repository, Depth::ReadData, &Meter::default(), &CancellationToken::new()).await
}

/// What is found otherwise than by its name, or not at all, in a vault with manifests.
#[derive(Debug, PartialEq, Eq)]
enum Expected {
    Named,
    /// With the key, by findings about the packs that the index named, and not at all without it. Without a key nobody can tell a removed
    /// index from one that a prune has merged into another; nothing is lost with it: headers of packs say the same.
    IndexOfOthers,
    /// Packs and indexes of a backup that was never committed: no point needs them, nothing names them, and a prune may take them at any
    /// time.
    Leftover,
    /// Its cover of newer records is gone, and nothing else; those have their form still. Any file can be the last.
    LastManifest,
}

fn expected(key: &Key, change: Change, leftovers: &BTreeSet<Key>, manifests: &[Key]) -> Expected {
    let below = key.as_str().strip_prefix(records::ARCHIVE).unwrap_or(key.as_str());
    match change {
        Change::Remove if leftovers.contains(key) => Expected::Leftover,
        Change::Remove if below.starts_with("repo/index/") => Expected::IndexOfOthers,
        Change::Remove if manifests.last() == Some(key) => Expected::LastManifest,
        _ => Expected::Named,
    }
}

#[tokio::test]
async fn every_change_to_every_file_of_an_instance_is_found_and_named() {
    let (good, leftovers) = instance().await;
    let cancel = CancellationToken::new();
    // Two, because a removed one is seen by the one that follows it.
    manifest::append(&*good, Scope::Instance, &[], &cancel).await.expect("append");
    put(
        &good,
        records::numbered(records::DAMAGED, 3).as_str(),
        &DamageRecord { version: 1, create_time: time(), packs: Vec::new() },
    )
    .await;
    manifest::append(&*good, Scope::Instance, &[], &cancel).await.expect("append");
    assert!(keyless(&good).await.is_clean(), "{:?}", keyless(&good).await.findings);
    assert!(full(&good).await.expect("checked").is_clean(), "{:?}", full(&good).await);
    let manifests = keys(&good, MANIFESTS).await;
    let mut kinds = BTreeSet::new();
    for key in keys(&good, "").await {
        kinds.insert(key.as_str().split(|c: char| c == '/' || c.is_ascii_digit()).next().map(str::to_owned));
        for kind in CHANGES {
            let store = copy(&good).await;
            change(&store, &key, kind).await;
            let (without, with) = (keyless(&store).await, full(&store).await);
            let context = format!("{key} {kind:?}, seed {SEED}: {:?} and {with:?}", without.findings);
            let found_with = match &with {
                Ok(report) => names(report, key.as_str()),
                // What cannot be opened is refused by name, or because no key file opens.
                Err(error) => matches!(error, Error::Damaged { .. } | Error::KeyWrong { .. }),
            };
            match expected(&key, kind, &leftovers, &manifests) {
                Expected::Named => {
                    assert!(names(&without, key.as_str()), "without the key: {context}");
                    assert!(found_with, "with the key: {context}");
                }
                Expected::IndexOfOthers => {
                    assert!(without.is_clean(), "the list of exceptions is exact: {context}");
                    let told =
                        with.expect("opens").findings.into_iter().any(|finding| finding.detail.contains("index"));
                    assert!(told, "{key} {kind:?}");
                }
                Expected::Leftover | Expected::LastManifest => {
                    assert!(without.is_clean(), "the list of exceptions is exact: {context}");
                }
            }
        }
    }
    let all = ["archive", "damaged", "instance", "keys", "manifest", "packs", "points", "prune", "repo"];
    assert_eq!(kinds.into_iter().flatten().collect::<Vec<_>>(), all);
}

#[tokio::test]
async fn every_change_to_every_record_of_the_vault_is_found_and_named() {
    let good = vault().await;
    let cancel = CancellationToken::new();
    manifest::append(&*good, Scope::Vault, &[], &cancel).await.expect("append");
    assert!(check::vault(&*good, &cancel).await.expect("checked").is_clean());
    for key in keys(&good, "").await {
        for kind in CHANGES {
            let store = copy(&good).await;
            change(&store, &key, kind).await;
            let report = check::vault(&*store, &cancel).await.expect("checked");
            let only_manifest = key.as_str().starts_with(MANIFESTS) && kind == Change::Remove;
            assert_eq!(
                names(&report, key.as_str()),
                !only_manifest,
                "{key} {kind:?}, seed {SEED}: {:?}",
                report.findings
            );
        }
    }
}

/// In a vault of version 1 as it was: without manifests, nothing holds the hash of a record. Removals that are not found there are these,
/// each the last of its kind, because nothing follows it.
#[tokio::test]
async fn without_manifests_the_removals_that_are_not_found_are_known() {
    let (good, leftovers) = instance().await;
    let mut unseen = Vec::new();
    for key in keys(&good, "").await {
        let store = copy(&good).await;
        change(&store, &key, Change::Remove).await;
        let report = keyless(&store).await;
        let known = expected(&key, Change::Remove, &leftovers, &[]) != Expected::Named;
        if report.is_clean() && !known {
            unseen.push(key.to_string());
        }
    }
    let kinds: Vec<&str> = unseen.iter().map(|key| key.split('/').next().unwrap_or_default()).collect();
    // The archive's is its last pack list, whose point is not archived; the point's is its newest event.
    // A rotation takes away old records of keys, so that a gap at their front is none.
    assert_eq!(kinds, ["archive", "damaged", "instance", "keys", "keys", "points", "prune"], "{unseen:?}");
}
