//! One suite for every store: what the trait promises is true of memory, a folder and a container, with a key and with signatures.
//! Below it: what is particular to each.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, future, stream};
use secrecy::SecretString;
use url::Url;
use vaultferry_tests::process;
use vaultferry_vault::store::azure::{self, Azure, Credential, sas};
use vaultferry_vault::store::folder::Folder;
use vaultferry_vault::store::memory::Memory;
use vaultferry_vault::store::prefixed::Prefixed;
use vaultferry_vault::store::{self, Entry, Error, Key, Put, Store, Tier};

#[path = "store_conformance/containers.rs"]
mod containers;
#[path = "support/fake_blob.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod fake_blob;

use fake_blob::FakeBlob;

/// More than one page of every store.
const MANY: usize = 1003;
const DAY: Duration = Duration::from_secs(86_400);

fn key(text: &str) -> Key {
    Key::new(text).expect("a key")
}

async fn size_of(store: &dyn Store, name: &str) -> Option<u64> {
    store.head(&key(name)).await.expect("head").map(|entry| entry.size)
}

async fn put(store: &dyn Store, name: &str, body: impl Into<Bytes>) -> Put {
    store.put_if_absent(&key(name), body.into()).await.expect(name)
}

async fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    let entries: Vec<Entry> = store::list(store, prefix).try_collect().await.expect("list");
    entries.into_iter().map(|entry| entry.key.to_string()).collect()
}

/// The suite. The store is empty at first, and empty again afterwards.
async fn conforms(store: &dyn Store) {
    assert!(keys(store, "").await.is_empty());
    files_are_created_once(store).await;
    ranges_are_exact(store).await;
    what_is_missing_is_told(store).await;
    listings_are_in_order(store).await;
    listings_go_on_after_a_page(store).await;
    one_of_many_creates(store).await;
    tiers_change_nothing_else(store).await;
    copies_are_files_of_their_own(store).await;
    for name in keys(store, "").await {
        store.delete(&key(&name)).await.expect("delete");
    }
    assert!(keys(store, "").await.is_empty());
}

async fn files_are_created_once(store: &dyn Store) {
    for (name, body) in [("config", "first"), ("data/4f/4f91", "second"), ("empty", "")] {
        assert_eq!(put(store, name, body).await, Put::Created);
        assert_eq!(put(store, name, "another body").await, Put::Existed);
        assert_eq!(size_of(store, name).await, Some(body.len() as u64));
        assert_eq!(store.get(&key(name), None).await.expect("get"), body);
    }
    store.delete(&key("config")).await.expect("delete");
    assert_eq!(store.head(&key("config")).await.expect("head"), None);
    assert_eq!(put(store, "config", "anew").await, Put::Created);
    assert_eq!(store.get(&key("config"), None).await.expect("get"), "anew");
}

async fn ranges_are_exact(store: &dyn Store) {
    let body: Bytes = (0..20_000_000_u32).map(|index| (index % 251) as u8).collect::<Vec<u8>>().into();
    assert_eq!(put(store, "data/large", body.clone()).await, Put::Created);
    assert!(store.get(&key("data/large"), None).await.expect("get") == body, "the large file is whole");
    let size = body.len() as u64;
    for range in [0..1, 0..size, 5..5, 0..0, size..size, size - 1..size, 7..4_194_311, 1_000_000..9_000_001] {
        let part = store.get(&key("data/large"), Some(range.clone())).await.expect("range");
        assert!(part == body.slice(range.start as usize..range.end as usize), "{range:?}");
    }
    #[expect(clippy::reversed_empty_ranges, reason = "a store must refuse it, not panic")]
    let outside: [(&str, Range<u64>); 6] = [
        ("data/large", size - 1..size + 1),
        ("data/large", size..size + 1),
        ("data/large", size + 5..size + 6),
        ("data/large", size + 5..size + 5),
        ("data/large", 9..8),
        ("empty", 0..1),
    ];
    for (name, range) in outside {
        let error = store.get(&key(name), Some(range.clone())).await.expect_err("outside");
        assert!(matches!(error, Error::Rejected { .. }), "{name} {range:?}: {error:?}");
    }
}

async fn what_is_missing_is_told(store: &dyn Store) {
    // A folder's name is no file, and nothing is below a file.
    for name in ["missing", "data", "data/4f", "data/4f/4f91/below", "missing/below"] {
        assert_eq!(store.head(&key(name)).await.expect(name), None, "{name}");
        for range in [None, Some(0..1), Some(0..0)] {
            let error = store.get(&key(name), range).await.expect_err(name);
            assert!(matches!(error, Error::NotFound { .. }), "{name}: {error:?}");
            assert!(!error.is_retryable());
        }
        store.delete(&key(name)).await.expect("deleting nothing is no error");
    }
    assert_eq!(size_of(store, "data/4f/4f91").await, Some(6), "nothing else was deleted");
    assert!(store.list_page("missing/", None).await.expect("list").entries.is_empty());
}

async fn listings_are_in_order(store: &dyn Store) {
    let mut names = ["o/a-b", "o/a.b", "o/a/x", "o/a/y/z", "o/a0", "o/b", "o/B", "o/_", "o/a/x-"].map(str::to_owned);
    for name in &names {
        put(store, name, name.clone()).await;
    }
    names.sort_unstable();
    assert_eq!(keys(store, "o/").await, names);
    assert_eq!(keys(store, "o/a/").await, ["o/a/x", "o/a/x-", "o/a/y/z"]);
    let page = store.list_page("o/a/", None).await.expect("list");
    assert_eq!(page.entries.first().map(|entry| entry.size), Some(5));
    let all = keys(store, "").await;
    assert!(all.is_sorted() && all.len() == 4 + names.len(), "{all:?}");
}

async fn listings_go_on_after_a_page(store: &dyn Store) {
    let expected: Vec<String> = (0..MANY).map(|index| format!("many/{:x}/{index:04}", index % 16)).collect();
    stream::iter(&expected)
        .for_each_concurrent(16, |name| async { assert_eq!(put(store, name, "").await, Put::Created) })
        .await;
    let mut expected = expected;
    expected.sort_unstable();
    assert_eq!(keys(store, "many/").await, expected);
    let first = store.list_page("many/", None).await.expect("list");
    assert!(first.next.is_some() && first.entries.len() <= 1000, "{}", first.entries.len());
    // What is gone when its page's turn comes does no harm.
    for name in &expected {
        store.delete(&key(name)).await.expect("delete");
    }
    let rest = store.list_page("many/", first.next.as_deref()).await.expect("list");
    assert!(rest.entries.is_empty());
}

async fn one_of_many_creates(store: &dyn Store) {
    for round in 0..10 {
        let name = format!("race/{round}");
        let puts = (0..8).map(|index| put(store, &name, format!("body {index}")));
        let results = future::join_all(puts).await;
        let created: Vec<usize> = (0..8).filter(|index| results[*index] == Put::Created).collect();
        assert_eq!(created.len(), 1, "{results:?}");
        assert_eq!(store.get(&key(&name), None).await.expect("get"), format!("body {}", created[0]));
    }
}

async fn tiers_change_nothing_else(store: &dyn Store) {
    for tier in [Tier::Cool, Tier::Hot] {
        store.set_tier(&key("config"), tier).await.expect("tier");
        assert_eq!(store.get(&key("config"), None).await.expect("get"), "anew");
    }
}

async fn copies_are_files_of_their_own(store: &dyn Store) {
    let copy = |from: &str, to: &str| {
        let (from, to) = (key(from), key(to));
        async move { store.copy(&from, &to).await }
    };
    assert_eq!(copy("data/large", "copies/a").await.expect("copy"), Put::Created);
    assert_eq!(copy("config", "copies/a").await.expect("copy"), Put::Existed);
    let entry = store.head(&key("copies/a")).await.expect("head").expect("there");
    assert_eq!((entry.tier, entry.rehydrating), (Tier::Hot, false));
    store.delete(&key("data/large")).await.expect("delete");
    assert_eq!(store.get(&key("copies/a"), None).await.expect("get").len(), 20_000_000);
    let error = copy("data/large", "copies/b").await.expect_err("its source is gone");
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    assert_eq!(store.head(&key("copies/b")).await.expect("head"), None);
}

/// What only some stores can do: memory, the fake, and Azure itself. The store is empty at first.
async fn protects(store: &dyn Store) {
    put(store, "held", "x").await;
    put(store, "kept", "x").await;
    store.set_legal_hold(&key("held"), true).await.expect("hold");
    let day = Duration::from_secs(86_400);
    let soon = jiff::Timestamp::now() + day;
    store.protect(&key("kept"), soon, false).await.expect("protect");
    store.protect(&key("kept"), soon + day, true).await.expect("further and locked");
    store.protect(&key("kept"), soon, false).await.expect("nearer is nothing");
    let entries: Vec<Entry> = store::list(store, "").try_collect().await.expect("list");
    for entry in entries {
        assert_eq!(store.head(&entry.key).await.expect("head").as_ref(), Some(&entry), "a listing tells the same");
        let protection = entry.protection;
        if entry.key.as_str() == "held" {
            assert!(protection.legal_hold && protection.immutable_until.is_none());
        } else {
            let until = protection.immutable_until.expect("a date");
            assert!(until >= soon + day && until <= soon + day + Duration::from_secs(1), "{until}");
            assert!(protection.locked && !protection.legal_hold);
        }
        let error = store.delete(&entry.key).await.expect_err("protected");
        assert!(matches!(error, Error::Protected { .. }), "{error:?}");
        assert_eq!(store.get(&entry.key, None).await.expect("get"), "x");
    }
    store.set_legal_hold(&key("held"), false).await.expect("release");
    store.delete(&key("held")).await.expect("released");
    assert_eq!(keys(store, "").await, ["kept"]);
}

/// A file in the archive is there and cannot be read; its copy waits. `finish` ends the wait.
async fn archives(store: &dyn Store, finish: impl Fn()) {
    put(store, "a/pack", "bytes").await;
    for _ in 0..2 {
        store.set_tier(&key("a/pack"), Tier::Archive).await.expect("tier");
    }
    assert_eq!(put(store, "a/pack", "bytes").await, Put::Existed);
    assert_eq!(store.copy(&key("a/pack"), &key("a/copy")).await.expect("copy"), Put::Created);
    assert_eq!(store.copy(&key("a/pack"), &key("a/copy")).await.expect("copy"), Put::Existed);
    for (name, rehydrating) in [("a/pack", false), ("a/copy", true)] {
        let entry = store.head(&key(name)).await.expect("head").expect("there");
        assert_eq!((entry.tier, entry.rehydrating, entry.size), (Tier::Archive, rehydrating, 5), "{name}");
        for range in [None, Some(0..2)] {
            let error = store.get(&key(name), range).await.expect_err("archived");
            assert!(matches!(error, Error::Archived { .. }), "{error:?}");
        }
    }
    finish();
    let listed = store.list_page("a/", None).await.expect("list").entries;
    let tiers: Vec<_> = listed.iter().map(|entry| (entry.key.as_str(), entry.tier, entry.rehydrating)).collect();
    assert_eq!(tiers, [("a/copy", Tier::Hot, false), ("a/pack", Tier::Archive, false)]);
    assert_eq!(store.get(&key("a/copy"), None).await.expect("get"), "bytes");
    for name in ["a/copy", "a/pack"] {
        store.delete(&key(name)).await.expect("delete");
    }
}

/// Every call on a store whose folder or container is missing.
async fn tells_that_it_is_missing(store: &dyn Store) {
    let key = key("data/x");
    let results = [
        ("head", store.head(&key).await.map(|_| ())),
        ("get", store.get(&key, None).await.map(|_| ())),
        ("put", store.put_if_absent(&key, "x".into()).await.map(|_| ())),
        ("list", store.list_page("", None).await.map(|_| ())),
        ("delete", store.delete(&key).await),
    ];
    for (call, result) in results {
        let error = result.expect_err(call);
        assert!(matches!(error, Error::NoStore { .. }), "{call}: {error:?}");
    }
}

#[tokio::test]
async fn memory_conforms() {
    let memory = Memory::new("conformance");
    conforms(&memory).await;
    archives(&memory, || memory.finish_rehydration()).await;
    protects(&memory).await;
}

#[tokio::test]
async fn a_part_of_a_store_conforms_and_sees_nothing_beside_it() {
    let memory: store::Shared = Arc::new(Memory::new("whole"));
    for beside in ["archiv", "archive-2/x", "archive.json", "repo/x"] {
        put(&*memory, beside, "x").await;
    }
    let part = Prefixed::new(memory.clone(), "archive/").expect("a prefix");
    conforms(&part).await;
    put(&part, "packs/1", "x").await;
    assert_eq!(part.location(), "memory:whole/archive");
    assert_eq!(keys(&*memory, "").await, ["archiv", "archive-2/x", "archive.json", "archive/packs/1", "repo/x"]);
    for wrong in ["", "/", "archive", "../", "a//"] {
        assert!(Prefixed::new(memory.clone(), wrong).is_err(), "{wrong:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_of_the_fake_service_conforms() {
    let fake = FakeBlob::start(fake_blob::Account::default()).await;
    let store = fake_store(&fake, "with-key", FakeBlob::account_key());
    tells_that_it_is_missing(&store).await;
    for _ in 0..2 {
        store.create_container().await.expect("create");
    }
    assert_eq!(store.redundancy().await.expect("redundancy"), store::Redundancy::Geo);
    conforms(&store).await;
    assert_eq!(fake.previous_versions(), 0, "a deletion takes the version with it");
    archives(&store, || fake.finish_rehydration()).await;
    protects(&store).await;

    fake_store(&fake, "with-sas", FakeBlob::account_key()).create_container().await.expect("create");
    let store = fake_store(&fake, "with-sas", fake_signature("with-sas", sas::Role::Maintenance.letters()));
    conforms(&store).await;
    archives(&store, || fake.finish_rehydration()).await;
    protects(&store).await;
}

#[tokio::test]
async fn an_account_without_immutability_says_that_it_cannot() {
    let fake = FakeBlob::start(fake_blob::Account { immutability: false, sku: "Standard_LRS" }).await;
    let store = fake_store(&fake, "plain", FakeBlob::account_key());
    store.create_container().await.expect("create");
    put(&store, "x", "x").await;
    let until = jiff::Timestamp::now() + DAY;
    for result in [store.protect(&key("x"), until, false).await, store.set_legal_hold(&key("x"), true).await] {
        let error = result.expect_err("it cannot");
        assert!(matches!(error, Error::Unsupported { .. }) && !error.is_retryable(), "{error:?}");
    }
    assert_eq!(store.redundancy().await.expect("redundancy"), store::Redundancy::Local);
}

fn fake_store(fake: &FakeBlob, container: &str, credential: Credential) -> Azure {
    let (account, endpoint) = (fake_blob::ACCOUNT.to_owned(), Some(fake.endpoint()));
    Azure::new(&azure::Config { account, container: container.to_owned(), endpoint, credential })
        .expect("configuration")
}

fn fake_signature(container: &str, rights: &str) -> Credential {
    let expiry = jiff::Timestamp::now() + DAY;
    sas::container(fake_blob::ACCOUNT, &FakeBlob::key(), container, rights, expiry).expect("signed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_conforms() {
    let dir = tempfile::tempdir().expect("tempdir");
    let folder = Folder::new(dir.path().join("a/store"));
    tells_that_it_is_missing(&folder).await;
    assert!(!dir.path().join("a").exists(), "nothing but create() makes the root");
    for _ in 0..2 {
        folder.create().await.expect("create");
    }
    conforms(&folder).await;
    assert!(temporary_files(folder.root()).is_empty());
    for name in ["tmp/x", "tmp"] {
        let error = folder.put_if_absent(&key(name), "x".into()).await.expect_err("not a store's file");
        assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
    }
}

fn temporary_files(root: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(root.join("tmp")) else { return Vec::new() };
    entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect()
}

#[cfg(unix)]
#[tokio::test]
async fn a_folder_is_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("tempdir");
    let folder = Folder::new(dir.path().join("store"));
    folder.create().await.expect("create");
    put(&folder, "data/4f/x", "x").await;
    for (path, expected) in [("", 0o700), ("data", 0o700), ("data/4f", 0o700), ("data/4f/x", 0o600)] {
        let mode = std::fs::metadata(folder.root().join(path)).expect("metadata").permissions().mode() & 0o777;
        assert_eq!(mode, expected, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stores_in_one_folder_agree() {
    let dir = tempfile::tempdir().expect("tempdir");
    let stores = [(); 2].map(|()| Folder::new(dir.path().to_owned()));
    for index in 0..50 {
        let name = format!("d{}/{index}", index % 5);
        let puts = stores.each_ref().map(|store| put(store, &name, format!("{index}")));
        let results = future::join_all(puts).await;
        assert_eq!(results.iter().filter(|put| **put == Put::Created).count(), 1, "{results:?}");
    }
    assert_eq!(keys(&stores[0], "").await.len(), 50);
    assert!(temporary_files(dir.path()).is_empty());
}

/// This test's own program, killed in the middle of its puts.
#[cfg(unix)]
#[test]
fn a_killed_put_leaves_nothing_that_is_listed() {
    const CHILD: &str = "VAULTFERRY_TEST_PUT_INTO";
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    let body = Bytes::from(vec![9; 8 << 20]);
    if let Some(root) = std::env::var_os(CHILD) {
        let folder = Folder::new(root.into());
        runtime.block_on(async {
            for index in 0..100 {
                put(&folder, &format!("data/{index}"), body.clone()).await;
            }
        });
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let folder = Folder::new(dir.path().to_owned());
    let mut leftovers = 0;
    for round in 0..40 {
        let mut child = process::bound("KILL", std::env::current_exe().expect("own program"))
            .args(["--exact", "a_killed_put_leaves_nothing_that_is_listed", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("start");
        let begin = std::time::Instant::now();
        while temporary_files(dir.path()).len() == leftovers && begin.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_micros(200));
        }
        child.kill().expect("kill");
        child.wait().expect("wait");
        runtime.block_on(async {
            for name in keys(&folder, "").await {
                assert!(folder.get(&key(&name), None).await.expect("get") == body, "{name} is whole");
                folder.delete(&key(&name)).await.expect("delete");
            }
        });
        leftovers = temporary_files(dir.path()).len();
        if leftovers >= 3 || (leftovers > 0 && round > 10) {
            break;
        }
    }
    assert!(leftovers > 0, "no put was killed half-way in 40 tries");
    runtime.block_on(async {
        std::fs::write(dir.path().join("tmp/foreign"), "not ours").expect("write");
        assert_eq!(folder.sweep_temporary(Duration::from_secs(3600)).await.expect("sweep"), 0, "they are young");
        assert_eq!(folder.sweep_temporary(Duration::ZERO).await.expect("sweep"), leftovers as u64);
    });
    assert_eq!(temporary_files(dir.path()), ["foreign"]);
}

/// Runs a command that only root may run; false, and it says so, when that fails.
#[cfg(target_os = "linux")]
#[expect(clippy::print_stdout, reason = "a skipped test says so")]
fn as_root(program: &str, args: &[&str]) -> bool {
    let output = std::process::Command::new(program).args(args).output();
    let done = output.is_ok_and(|output| output.status.success());
    if !done {
        println!("skipped: {program} {} needs root", args.join(" "));
    }
    done
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_folder_says_so_and_keeps_nothing_half_done() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mount = dir.path().to_str().expect("a plain path");
    if !as_root("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs", mount]) {
        return;
    }
    let folder = Folder::new(dir.path().join("store"));
    folder.create().await.expect("create");
    put(&folder, "small", vec![1; 200_000]).await;
    let error = folder.put_if_absent(&key("large"), vec![1; 2_000_000].into()).await;
    let (listed, temporary) = (keys(&folder, "").await, temporary_files(folder.root()));
    let read_only = std::process::Command::new("mount").args(["-o", "remount,ro", mount]).status();
    let refused = folder.put_if_absent(&key("small2"), "x".into()).await;
    std::process::Command::new("umount").arg(mount).status().expect("umount");

    let error = error.expect_err("1 MiB is not enough");
    assert!(matches!(error, Error::Full { .. }), "{error:?}");
    assert!(!error.is_retryable());
    assert_eq!(listed, ["small"]);
    assert!(temporary.is_empty(), "{temporary:?}");
    assert!(read_only.expect("remount").success());
    assert!(matches!(refused, Err(Error::NotWritable { .. })), "{refused:?}");
}

#[test]
fn keys_cannot_leave_their_store() {
    for text in [
        "", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/../b", ".a", "a/.b", "a\\b", "a b", "a\0", "C:",
        "ä", "a?b", "a%2fb",
    ] {
        assert!(Key::new(text).is_err(), "{text:?}");
    }
    assert!(Key::new("a".repeat(Key::MAX_LEN)).is_ok());
    assert!(Key::new("a".repeat(Key::MAX_LEN + 1)).is_err());
}

proptest::proptest! {
    #[test]
    fn any_key_stays_below_the_root_and_any_other_text_is_refused(text in "([a-zA-Z0-9._/\\\\ -]|[^a]){0,40}") {
        if let Ok(key) = Key::new(text) {
            let path = Path::new("/root/of/store").join(key.as_str());
            let plain = path.components().skip(1).all(|part| matches!(part, std::path::Component::Normal(_)));
            proptest::prop_assert!(plain && path.starts_with("/root/of/store/"), "{}", path.display());
            proptest::prop_assert_eq!(path.strip_prefix("/root/of/store").expect("below").to_str(), Some(key.as_str()));
            proptest::prop_assert!(key.as_str().ends_with(key.name()));
        }
    }
}

/// The retry layer above a real store: every size is right although answers are lost.
#[tokio::test]
async fn a_folder_behind_bad_weather_loses_nothing() {
    use store::faulty::{Fault, Faulty, Operation, Plan};
    use store::retry::{Config, Retrying};
    let seed: u64 = 20_261_121;
    let dir = tempfile::tempdir().expect("tempdir");
    let plan = Plan::new()
        .randomly(Operation::Put, 0.2, seed, Fault::LostAnswer)
        .randomly(Operation::Put, 0.2, seed + 1, Fault::Unavailable)
        .randomly(Operation::Get, 0.2, seed + 2, Fault::Unavailable);
    let faulty = Faulty::new(Arc::new(Folder::new(dir.path().to_owned())), plan);
    let store = Retrying::new(Arc::new(faulty), Config::default());
    let mut expected = BTreeMap::new();
    for index in 0..40 {
        let body = Bytes::from(vec![index as u8; index * 100]);
        store.put_if_absent(&key(&format!("data/{index:02}")), body.clone()).await.expect("put");
        expected.insert(format!("data/{index:02}"), body);
    }
    assert_eq!(keys(&store, "data/").await, expected.keys().cloned().collect::<Vec<_>>());
    for (name, body) in expected {
        assert_eq!(store.get(&key(&name), None).await.expect("get"), body);
    }
    assert!(temporary_files(dir.path()).is_empty());
}
