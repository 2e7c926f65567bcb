use super::*;
use crate::catalog::Catalog as _;
use crate::catalog::sqlite::Sqlite;
use crate::lifecycle::tests::world;

fn hours(number: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + number * 3600).expect("a time")
}

async fn names(shared: &Shared) -> Vec<String> {
    let root = shared.vault.open_root().expect("root");
    let all = store::list(&*root, CATALOGS).map(|entry| entry.expect("an entry").key.to_string());
    all.collect().await
}

#[tokio::test]
async fn a_copy_is_the_catalog_of_one_instant() {
    let dir = tempfile::tempdir().expect("folder");
    let jobs = world(dir.path()).await;
    let shared = jobs.shared();
    let cancel = CancellationToken::new();
    let slot = hours(1);
    shared.catalog.set_last_slot("busy", slot).await.expect("noted");
    let key = make_if_due(shared, hours(0), DAILY, &cancel).await.expect("made").expect("due");
    assert_eq!(key.as_str(), "catalog/20270115T080000Z.sqlite.zst");
    // What comes later is not in it.
    shared.catalog.set_last_slot("busy", hours(2)).await.expect("noted");
    assert!(!dir.path().join(UNFINISHED).exists());
    let body = shared.vault.open_root().expect("root").get(&key, None).await.expect("read");
    let copy = dir.path().join("copy.sqlite");
    std::fs::write(&copy, zstd::bulk::decompress(&body, 64 << 20).expect("zstd")).expect("written");
    let copy = Sqlite::open(&copy).expect("a catalog");
    assert_eq!(copy.instances().await.expect("read"), shared.catalog.instances().await.expect("read"));
    assert_eq!(copy.last_slot("busy").await.expect("read"), Some(slot));
}

#[tokio::test]
async fn a_copy_a_day_is_made_and_a_week_of_them_kept() {
    let dir = tempfile::tempdir().expect("folder");
    let jobs = world(dir.path()).await;
    let shared = jobs.shared();
    let cancel = CancellationToken::new();
    let root = shared.vault.open_root().expect("root");
    let other = Key::new("catalog/README").expect("a key");
    root.put_if_absent(&other, Bytes::from_static(b"mine")).await.expect("put");
    let mut made = Vec::new();
    for hour in 0..24 * 9 {
        made.extend(make_if_due(shared, hours(hour), DAILY, &cancel).await.expect("no error"));
    }
    assert_eq!(made.len(), 9);
    let kept: Vec<String> = made[2..].iter().map(Key::to_string).chain([other.to_string()]).collect();
    assert_eq!(names(shared).await, kept);
    // A clock that was a year ahead and is right again: the copies that it made do not keep others from being made.
    assert!(make_if_due(shared, hours(24 * 365), DAILY, &cancel).await.expect("no error").is_some());
    assert!(make_if_due(shared, hours(24 * 8 + 1), DAILY, &cancel).await.expect("no error").is_none());
    assert!(make_if_due(shared, hours(24 * 8 + 2), AT_STOP, &cancel).await.expect("no error").is_some());
}

#[tokio::test]
async fn only_the_owner_adds_copies_and_a_short_life_adds_none() {
    let dir = tempfile::tempdir().expect("folder");
    let jobs = world(dir.path()).await;
    let shared = jobs.shared().clone();
    Copies::new(shared.clone()).at_stop().await;
    assert!(names(&shared).await.is_empty());
    let cancel = CancellationToken::new();
    let root = shared.vault.open_root().expect("root");
    let taker = "f".repeat(32);
    vaultferry_vault::admin::owner::claim(&root, &taker, "elsewhere", true, &cancel).await.expect("taken");
    let problem = make_if_due(&shared, hours(0), DAILY, &cancel).await.expect_err("refused");
    assert_eq!(problem.reason, Reason::VaultOwnedByOther);
    assert!(names(&shared).await.is_empty());
    cancel.cancel();
    let problem = make_if_due(&shared, hours(0), DAILY, &cancel).await.expect_err("stopped");
    assert_eq!(problem.reason, Reason::Cancelled);
}

#[tokio::test]
async fn a_copy_unpacks_to_what_it_may_and_no_more() {
    let dir = tempfile::tempdir().expect("folder");
    let to = dir.path().join("unpacked");
    // So much of one byte is packed into some KiB; the limit moves with their number.
    let zeros = |count: u64| Bytes::from(zstd::stream::encode_all(std::io::repeat(0).take(count), 1).expect("zstd"));
    let packed = zeros(UNPACKED_ANYWAY);
    unpack(packed.clone(), &to).await.expect("as much as any copy may");
    assert_eq!(std::fs::metadata(&to).expect("a file").len(), UNPACKED_ANYWAY);
    std::fs::remove_file(&to).expect("removed");
    let hostile = zeros(UNPACKED_ANYWAY + 10 * UNPACKED_PER_BYTE * packed.len() as u64);
    let problem = unpack(hostile.clone(), &to).await.expect_err("refused");
    assert!(problem.message.contains("this is no copy of a catalog, or it was altered"), "{problem}");
    assert_eq!(std::fs::metadata(&to).expect("a file").len(), unpacked_limit(hostile.len() as u64));
    std::fs::remove_file(&to).expect("removed");
    // One that was cut off.
    let problem = unpack(packed.slice(..packed.len() - 3), &to).await.expect_err("refused");
    assert!(problem.message.contains("cannot be unpacked"), "{problem}");
    assert_eq!(unpacked_limit(u64::MAX), u64::MAX);
}
