//! Checks find what is wrong and nothing else, name the points that it touches, and the next backup heals what it can read again.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;
use vaultferry_vault::check::{self, Depth, Finding, FindingKind, Report, Severity};
use vaultferry_vault::meter::Meter;
use vaultferry_vault::reader::PointReader;
use vaultferry_vault::records::{self, InstanceRecord, PasswordRecord, PruneMark, SourceLogin};
use vaultferry_vault::repository::{FileKind, PACKS, Repository};
use vaultferry_vault::store::{Key, Store as _, Tier, memory::Memory};
use vaultferry_vault::{Error, Id, points, prune};

#[path = "support/filled.rs"]
mod filled;

use filled::{back_up, copy, init, keys, open, random, stage, time};

/// An instance's own records, and an empty repository.
async fn instance() -> (Arc<Memory>, Arc<Repository>) {
    let store = Arc::new(Memory::new("m"));
    let repository = init(&store).await;
    let instance = InstanceRecord {
        version: 1,
        id: "0123456789abcdef0123456789abcdef".to_owned(),
        name: "shop".to_owned(),
        create_time: time(),
        source_type: "postgres".to_owned(),
        source_uri: "postgres://backup@db/shop".to_owned(),
        region: String::new(),
        policy: "nightly".to_owned(),
        login: SourceLogin::Default,
        source_identity: String::new(),
        protection: vaultferry_vault::records::Protection::Active,
    };
    let key = vaultferry_vault::keys::WrapKey::generate().expect("random");
    let password =
        PasswordRecord { version: 1, create_time: time(), password: key.wrap(b"secret", "test").expect("wrapped") };
    records::put(&*store, &records::numbered("instance/", 1), &instance).await.expect("put");
    records::put(&*store, &records::numbered("keys/", 1), &password).await.expect("put");
    (store, repository)
}

async fn keyless(store: &Memory, depth: Depth) -> Report {
    check::keyless(store, depth, &Meter::default(), &CancellationToken::new()).await.expect("checked")
}

async fn full(store: &Arc<Memory>, depth: Depth) -> Report {
    let repository = open(store).await.expect("open");
    check::full(&repository, depth, &Meter::default(), &CancellationToken::new()).await.expect("checked")
}

fn damage(report: &Report) -> Vec<&Finding> {
    report.findings.iter().filter(|finding| finding.severity == Severity::Damage).collect()
}

async fn read(repository: &Arc<Repository>, id: Id, name: &str) -> Result<Vec<u8>, Error> {
    let cancel = CancellationToken::new();
    let point = PointReader::open(repository.clone(), id, &cancel).await?;
    let mut bytes = Vec::new();
    let mut chunks = point.chunks(name, &cancel)?;
    while let Some(chunk) = chunks.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes)
}

async fn is_proven(repository: &Arc<Repository>, id: Id) -> bool {
    let report = check::point(repository, id, &Meter::default(), &CancellationToken::new()).await.expect("checked");
    report.is_proven()
}

#[tokio::test]
async fn a_good_vault_has_no_findings_at_any_depth() {
    let (store, repository) = instance().await;
    assert_eq!(full(&store, Depth::ReadData).await.findings, [], "empty");
    for job in ["1", "2"] {
        back_up(&repository, job, &[("s", &random(1, 20 << 20)), ("t", job.as_bytes())]).await;
    }
    let subset = Depth::ReadSubset { percent: 50.0, seed: 1 };
    for depth in [Depth::Structure, subset, Depth::ReadData] {
        let (keyless, full) = (keyless(&store, depth).await, full(&store, depth).await);
        assert_eq!((&keyless.findings[..], &full.findings[..]), (&[][..], &[][..]), "{depth:?}");
        assert_eq!((keyless.points, keyless.packs), (2, keys(&store, PACKS).await.len() as u64));
        assert_eq!(keyless.files_read, full.files_read);
        assert_eq!(keyless.blobs_read, 0);
    }
    let report = full(&store, Depth::ReadData).await;
    let read = keys(&store, PACKS).await.len() + keys(&store, FileKind::Index.prefix()).await.len() + 2;
    assert_eq!(report.files_read, read as u64);
    assert!(report.bytes_read > 20 << 20 && report.blobs_read > 10, "{report:?}");
}

/// A prune takes what was marked twice out of the indexes, and then deletes it; it may be killed between.
#[tokio::test]
async fn packs_that_wait_for_their_deletion_need_no_index() {
    let (store, repository) = instance().await;
    let point = back_up(&repository, "1", &[("s", &random(4, 6 << 20))]).await;
    let cancel = CancellationToken::new();
    let purge_time = jiff::Timestamp::from_second(1).expect("a time");
    points::soft_delete(&*store, &point, purge_time, &cancel).await.expect("deleted");
    prune::run(&repository, &prune::Options::default(), &Meter::default(), &cancel).await.expect("marked");
    for index in keys(&store, FileKind::Index.prefix()).await {
        store.delete(&index).await.expect("removed");
    }
    assert!(!keys(&store, PACKS).await.is_empty());
    assert_eq!(keyless(&store, Depth::Structure).await.findings, []);
    // What no prune has marked is in use.
    for mark in keys(&store, "prune/").await {
        store.delete(&mark).await.expect("removed");
    }
    let found = keyless(&store, Depth::Structure).await;
    assert!(damage(&found).iter().any(|finding| finding.file == "repo/index/"), "{:?}", found.findings);
}

#[tokio::test]
async fn damage_names_the_points_that_it_touches_and_heals_with_the_next_backup() {
    let (store, repository) = instance().await;
    let (shared, own) = (random(2, 6 << 20), random(3, 6 << 20));
    let first = back_up(&repository, "1", &[("shared", &shared), ("own", &own)]).await;
    let second = back_up(&repository, "2", &[("shared", &shared)]).await;
    let other = back_up(&repository, "3", &[("other", &random(4, 6 << 20))]).await;
    let packs = keys(&store, PACKS).await;
    let list: check::Report = keyless(&store, Depth::ReadData).await;
    assert!(list.is_clean());
    // The largest pack of the first commit holds chunks of both streams.
    let lists = vaultferry_vault::commit::read_pack_lists(&*store).await.expect("lists");
    let pack = lists[0].1.packs.iter().max_by_key(|pack| pack.size).expect("a pack").id;
    let key = packs.iter().find(|key| key.name() == pack.to_string()).expect("there");
    // In the first chunk, which both points have.
    assert!(store.damage(key, |bytes| bytes[100] ^= 1));

    let without = keyless(&store, Depth::ReadData).await;
    let [finding] = damage(&without)[..] else { panic!("{without:?}") };
    assert_eq!((finding.kind, finding.file.as_str()), (FindingKind::Altered, key.as_str()));
    let at_most: BTreeSet<Id> = finding.points.iter().map(|point| point.id).collect();
    assert!(!finding.points_certain && at_most == BTreeSet::from([first, second, other]), "{finding:?}");
    assert!(keyless(&store, Depth::Structure).await.is_clean(), "nothing was read");

    let with = full(&store, Depth::ReadData).await;
    let [finding] = damage(&with)[..] else { panic!("{with:?}") };
    assert_eq!((finding.kind, finding.file.as_str()), (FindingKind::Altered, key.as_str()));
    let touched: BTreeSet<Id> = finding.points.iter().map(|point| point.id).collect();
    assert!(finding.points_certain && touched == BTreeSet::from([first, second]), "{finding:?}");
    assert!(finding.points.iter().all(|point| point.time == Some(time())));
    assert!(!is_proven(&repository, first).await && is_proven(&repository, other).await);

    let cancel = CancellationToken::new();
    assert_eq!(with.altered_packs(), BTreeSet::from([pack]));
    for expected in [1, 0] {
        let noted = check::record_damage(&*store, &with.altered_packs(), time(), &cancel).await.expect("noted");
        assert_eq!(noted, expected);
    }
    // What one point needs is stored again; the whole of it is not: the other packs are good.
    let staged = stage(&repository, "4", &[("shared", &shared), ("own", &own)]).await;
    assert!(staged.stored_bytes > 6 << 20 && staged.packs.iter().all(|(id, _)| *id != pack), "{staged:?}");
    let healed = back_up(&repository, "5", &[("shared", &shared), ("own", &own)]).await;
    for id in [first, second, other, healed] {
        assert!(is_proven(&repository, id).await, "{id}");
    }
    assert!(read(&repository, first, "own").await.expect("healed") == own);
    let after = full(&store, Depth::ReadData).await;
    assert!(damage(&after).iter().all(|finding| finding.points.is_empty()), "{after:?}");
}

#[tokio::test]
async fn missing_packs_heal_too_and_lost_indexes_are_told_with_their_points() {
    let (store, repository) = instance().await;
    let bytes = random(5, 3 << 20);
    let point = back_up(&repository, "1", &[("s", &bytes)]).await;
    let lost = copy(&store).await;
    for key in keys(&lost, PACKS).await {
        lost.delete(&key).await.expect("delete");
    }
    let report = full(&lost, Depth::Structure).await;
    assert!(damage(&report).iter().all(|finding| finding.kind == FindingKind::Missing), "{report:?}");
    assert!(damage(&report).iter().any(|finding| finding.points.iter().any(|affected| affected.id == point)));
    let reopened = open(&lost).await.expect("open");
    back_up(&reopened, "2", &[("s", &bytes)]).await;
    assert!(is_proven(&reopened, point).await);

    for key in keys(&store, FileKind::Index.prefix()).await {
        store.delete(&key).await.expect("delete");
    }
    let report = full(&store, Depth::Structure).await;
    let own = FileKind::Snapshot.key(&point);
    let lost = report.findings.iter().find(|finding| finding.file == own.as_str()).expect("blobs are lost");
    assert_eq!((lost.kind, lost.points[0].id), (FindingKind::Missing, point));
    assert!(report.findings.iter().any(|finding| finding.file == "repo/index/"));
}

#[tokio::test]
async fn leftovers_are_notes_and_pruned_packs_are_not_missed() {
    let (store, repository) = instance().await;
    back_up(&repository, "1", &[("s", &random(6, 1 << 20))]).await;
    let kept: BTreeSet<Key> = keys(&store, PACKS).await.into_iter().collect();
    // Never committed.
    stage(&repository, "2", &[("s", &random(7, 1 << 20))]).await;
    for report in [keyless(&store, Depth::ReadData).await, full(&store, Depth::ReadData).await] {
        assert!(report.is_clean() && !report.findings.is_empty(), "{report:?}");
        assert!(report.findings.iter().all(|finding| finding.kind == FindingKind::Unexpected));
    }
    // A committed pack goes: missing at first, pruned once a mark says so, and missing again for whom the mark does not name it.
    let pack = kept.iter().next().expect("a pack");
    let body = store.get(pack, None).await.expect("get");
    store.delete(pack).await.expect("delete");
    let report = keyless(&store, Depth::Structure).await;
    assert_eq!(damage(&report).iter().map(|finding| finding.file.as_str()).collect::<Vec<_>>(), [pack.as_str()]);
    let marked = vec![pack.name().parse().expect("an id")];
    let mark = PruneMark { version: 1, epoch: 1, create_time: time(), marked, candidates: Vec::new() };
    records::put(&*store, &records::numbered(records::PRUNE, 1), &mark).await.expect("put");
    assert!(keyless(&store, Depth::Structure).await.is_clean());
    // With the key it is clear that the prune was wrong: a point needs the pack.
    let report = full(&store, Depth::Structure).await;
    assert!(damage(&report).iter().any(|finding| finding.file == pack.as_str()), "{report:?}");
    store.put_if_absent(pack, body).await.expect("put");
    assert!(full(&store, Depth::Structure).await.is_clean());
}

#[tokio::test]
async fn a_subset_finds_damage_exactly_when_it_draws_it() {
    let (store, repository) = instance().await;
    for job in 0..10 {
        back_up(&repository, &job.to_string(), &[("s", &random(10 + job, 5000))]).await;
    }
    let packs = keys(&store, PACKS).await;
    store.damage(&packs[3], |bytes| bytes[7] ^= 1);
    let mut found = 0;
    for seed in 0..40 {
        let report = keyless(&store, Depth::ReadSubset { percent: 25.0, seed }).await;
        let subset = report.subset.expect("told");
        assert_eq!((subset.drawn, subset.packs, subset.seed), (5, packs.len() as u64, seed));
        assert!((subset.detection_probability(1) - 0.25).abs() < 1e-9);
        found += usize::from(!report.is_clean());
    }
    assert!((3..20).contains(&found), "{found} of 40 with a probability of 1/4");
}

#[tokio::test]
async fn archived_files_are_counted_and_not_read() {
    let (store, repository) = instance().await;
    back_up(&repository, "1", &[("s", &random(20, 1 << 20))]).await;
    let packs = keys(&store, PACKS).await;
    for pack in &packs {
        store.set_tier(pack, Tier::Archive).await.expect("moved");
    }
    let report = keyless(&store, Depth::ReadData).await;
    assert_eq!((report.findings.len(), report.not_readable), (0, packs.len() as u64));
    store.damage(&packs[0], |bytes| bytes.truncate(10));
    assert!(!keyless(&store, Depth::Structure).await.is_clean(), "sizes are known without reading");
}

#[tokio::test]
async fn a_cancelled_check_ends() {
    let (store, _) = instance().await;
    let cancel = CancellationToken::new();
    cancel.cancel();
    let ended = check::keyless(&*store, Depth::ReadData, &Meter::default(), &cancel).await;
    assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
}
