//! Immutability, and what each credential cannot do.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;
use vaultferry_vault::commit::{self, Record};
use vaultferry_vault::immutability;
use vaultferry_vault::location::{Access, RoleAccess};
use vaultferry_vault::meter::Meter;
use vaultferry_vault::repository::Repository;
use vaultferry_vault::store::azure::Credential;
use vaultferry_vault::store::azure::sas::Role;
use vaultferry_vault::store::folder::Folder;
use vaultferry_vault::store::memory::Memory;
use vaultferry_vault::store::{self, Entry, Error, Key, Put, Shared, Tier};
use vaultferry_vault::writer::{Backup, Options, SnapshotMeta};

#[path = "support/fake_blob.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod fake_blob;
#[path = "support/record.rs"]
mod record;

use fake_blob::FakeBlob;
use record::record;

const INSTANCE: &str = "0123456789abcdef0123456789abcdef";
const HOUR: Duration = Duration::from_secs(3600);

fn key(text: &str) -> Key {
    Key::new(text).expect("a key")
}

async fn repository(store: &Shared) -> Arc<Repository> {
    let password = SecretString::from("5e".repeat(32));
    Arc::new(Repository::init(store.clone(), &password, &CancellationToken::new()).await.expect("init"))
}

/// Backs up and gives what the coordinator would journal.
async fn staged(repository: &Arc<Repository>, job: &str, bytes: &[u8]) -> Record {
    let (meter, cancel) = (Arc::new(Meter::default()), CancellationToken::new());
    let mut backup = Backup::begin(repository.clone(), Options::default(), meter, &cancel).await.expect("begin");
    backup.write_stream("s", bytes, &cancel).await.expect("write");
    let meta = SnapshotMeta { time: jiff::Timestamp::now(), hostname: "host".to_owned(), tags: Vec::new() };
    let staged = backup.stage(meta, &cancel).await.expect("stage");
    record(job, &staged)
}

async fn entries(store: &Shared, prefix: &str) -> Vec<Entry> {
    store::list(&**store, prefix).try_collect().await.expect("list")
}

/// As the coordinator commits in a vault with immutability: verify, dates, prepare, publish, dates.
async fn commit(store: &Shared, record: &Record, until: jiff::Timestamp, locked: bool) {
    let cancel = CancellationToken::new();
    commit::verify(&**store, record, &cancel).await.expect("verify");
    immutability::before_publish(&**store, record, until, locked, &cancel).await.expect("dates");
    commit::prepare(&**store, record, &cancel).await.expect("prepare");
    commit::publish(&**store, record, &cancel).await.expect("publish");
    let more = immutability::before_publish(&**store, record, until, locked, &cancel);
    more.await.expect("a repetition does no harm");
    immutability::after_publish(&**store, &record.snapshot_id, until, locked, &cancel).await.expect("dates");
}

async fn dates_follow_the_commits(store: Shared) {
    let cancel = CancellationToken::new();
    let repository = repository(&store).await;
    let soon = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + 86_400).expect("time");
    let later = soon + 24 * HOUR;
    let first = staged(&repository, "1", b"the same bytes").await;
    commit(&store, &first, soon, false).await;
    let of = async |record: &Record| {
        immutability::of_point(&repository, &record.snapshot_id, &cancel).await.expect("a date or none")
    };
    assert_eq!(of(&first).await, Some(soon));

    // The second point stands on the first one's packs: their date goes on, the first one's own stays.
    let second = staged(&repository, "2", b"the same bytes").await;
    assert_eq!(of(&first).await, Some(soon), "what another backup stages changes nothing");
    commit(&store, &second, later, true).await;
    assert_eq!((of(&first).await, of(&second).await), (Some(soon), Some(later)));
    let packs = entries(&store, "repo/data/").await;
    assert!(packs.iter().filter(|pack| pack.protection.immutable_until == Some(later)).count() >= 1, "{packs:?}");
    assert!(packs.iter().all(|pack| pack.protection.immutable_until >= Some(soon)));
    // Back it does not go.
    let files = immutability::files_of_point(&repository, &second.snapshot_id, &cancel).await.expect("files");
    immutability::extend(&*store, &files, soon, false, &cancel).await.expect("nothing to do");
    assert_eq!(of(&second).await, Some(later));
    for file in &files {
        let error = store.delete(file).await.expect_err("immutable");
        assert!(matches!(error, Error::Protected { .. }), "{file}: {error:?}");
    }
    // One file without a date, and the point has none.
    let lists = entries(&store, "packs/").await;
    assert!(lists.iter().all(|list| list.protection.immutable_until == Some(later)), "{lists:?}");
    let all = immutability::of_files(&*store, &files, &cancel).await.expect("dates");
    let more = [files, vec![key("repo/data/00/missing")]].concat();
    assert_eq!((all, immutability::of_files(&*store, &more, &cancel).await.expect("dates")), (Some(later), None));
}

async fn fake_store(fake: &FakeBlob) -> Shared {
    let access = access(fake);
    access.create_instance(INSTANCE).await.expect("container");
    access.open_instance(INSTANCE).expect("store")
}

fn access(fake: &FakeBlob) -> Access {
    Access {
        location: format!("azure://{}/vault", fake_blob::ACCOUNT).parse().expect("location"),
        endpoint: Some(fake.endpoint()),
        credential: Some(FakeBlob::account_key()),
        store_deadline: Duration::from_secs(20),
    }
}

#[tokio::test]
async fn a_point_is_immutable_until_the_earliest_of_its_dates() {
    dates_follow_the_commits(Arc::new(Memory::new("dates"))).await;
    let fake = FakeBlob::start(fake_blob::Account::default()).await;
    dates_follow_the_commits(fake_store(&fake).await).await;
    assert_eq!(fake.previous_versions(), 0, "what is refused is not deleted to a previous version");
}

#[tokio::test]
async fn a_store_that_cannot_says_so() {
    let dir = tempfile::tempdir().expect("tempdir");
    let plain = FakeBlob::start(fake_blob::Account { immutability: false, sku: "Standard_LRS" }).await;
    let able = FakeBlob::start(fake_blob::Account::default()).await;
    let folder: Shared = Arc::new(Folder::new(dir.path().to_owned()));
    let stores = [(folder, false), (fake_store(&plain).await, false), (fake_store(&able).await, true)];
    let cancel = CancellationToken::new();
    for (store, expected) in stores {
        let file = key("instance/0000000001.json");
        store.put_if_absent(&file, "{}".into()).await.expect("put");
        assert_eq!(immutability::is_supported(&*store, &file, &cancel).await.expect("told"), expected);
    }
    let redundancy = access(&plain).redundancy().await.expect("told").expect("known");
    assert_eq!(redundancy.as_str(), "locally-redundant");
}

/// What a signature lets its holder do, beyond what our own store would ask for.
async fn overwrite(access: &Access, fake: &FakeBlob, name: &str) -> u16 {
    let Some(Credential::Sas(sas)) = &access.credential else { panic!("a signature") };
    let url = format!("{}/vault-{INSTANCE}/{name}?{}", fake.endpoint(), sas.expose_secret());
    let request = reqwest::Client::builder().no_proxy().build().expect("client").put(url);
    let request = request.header("x-ms-blob-type", "BlockBlob").header("x-ms-version", "2026-04-06").body("other");
    request.send().await.expect("an answer").status().as_u16()
}

#[tokio::test]
async fn each_credential_can_do_its_work_and_no_more() {
    let fake = FakeBlob::start(fake_blob::Account::default()).await;
    let vault = fake_store(&fake).await;
    let roles = RoleAccess::from(access(&fake));
    for (role, protects, maintains) in
        [(Role::Plugin, false, false), (Role::Commit, true, false), (Role::Maintenance, true, true)]
    {
        let access = roles.for_instance(role, INSTANCE, HOUR).expect("narrowed");
        let store = access.open_instance(INSTANCE).expect("store");
        let name = key(&format!("data/{role}"));
        assert_eq!(store.put_if_absent(&name, "x".into()).await.expect("put"), Put::Created, "{role}");
        assert_eq!(store.put_if_absent(&name, "y".into()).await.expect("put"), Put::Existed, "{role}");
        assert_eq!(store.get(&name, None).await.expect("get"), "x", "{role}");
        assert!(entries(&store, "data/").await.iter().any(|entry| entry.key == name), "{role}");
        let soon = jiff::Timestamp::now() + 24 * HOUR;
        let results = [
            (store.set_legal_hold(&name, true).await, protects),
            (store.set_legal_hold(&name, false).await, protects),
            (store.set_tier(&name, Tier::Archive).await, maintains),
            (store.delete(&name).await, maintains),
        ];
        for (n, (result, allowed)) in results.into_iter().enumerate() {
            match result {
                Ok(()) => assert!(allowed, "{role} may not ({n})"),
                Err(Error::AccessDenied { .. }) => assert!(!allowed, "{role} may ({n})"),
                Err(error) => panic!("{role} ({n}): {error}"),
            }
        }
        let name = format!("data/overwritten-by-{role}");
        vault.put_if_absent(&key(&name), "x".into()).await.expect("put");
        assert_eq!(overwrite(&access, &fake, &name).await, if maintains { 201 } else { 403 }, "{role}");
        assert_eq!(store.protect(&key(&name), soon, true).await.is_ok(), protects, "{role}");
        // Another instance, and the vault's own records, are closed.
        let other = roles.for_instance(role, &"f".repeat(32), HOUR).expect("narrowed").credential;
        for elsewhere in [
            Access { credential: other, ..access.clone() }.open_instance(INSTANCE).expect("store"),
            access.open_root().expect("store"),
        ] {
            let error = elsewhere.get(&key("data/x"), None).await.expect_err("closed");
            assert!(matches!(error, Error::AccessDenied { .. }), "{role}: {error:?}");
        }
        let past = roles.of(role).narrowed(INSTANCE, role, jiff::Timestamp::now() - HOUR).expect("narrowed");
        let error = past.open_instance(INSTANCE).expect("store").list_page("", None).await.expect_err("over");
        assert!(matches!(error, Error::AccessDenied { .. }), "{role}: {error:?}");
        assert!(!format!("{access:?} {roles:?} {error:?}").contains("sig="));
    }
    // A role's own credential goes before the vault's.
    let own = roles.with(Role::Plugin, Credential::Sas(SecretString::from("sv=1&sig=own"))).of(Role::Plugin);
    assert!(matches!(own.credential, Some(Credential::Sas(_))));
}
