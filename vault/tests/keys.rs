//! Keys, ownership and upgrades: what opens a vault after a kill anywhere, and what does not open it any more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;
use vaultferry_tests::key_vault::{Fault, KeyVault, TOKEN};
use vaultferry_vault::admin::upgrade::Known;
use vaultferry_vault::admin::{self, KeyPlace, Rotated, Stores};
use vaultferry_vault::keys::{AzureKeyVault, FixedToken, KeyWrap, TokenFile, WrapKey};
use vaultferry_vault::location::{Access, Location};
use vaultferry_vault::manifest::{self, Scope};
use vaultferry_vault::meter::Meter;
use vaultferry_vault::reader::PointReader;
use vaultferry_vault::records::{self, InstanceRecord, PasswordRecord, PolicyRecord, SourceLogin};
use vaultferry_vault::repository::Repository;
use vaultferry_vault::store::memory::Memory;
use vaultferry_vault::store::{self, Entry, Key, Page, Put, Shared, Store, Tier};
use vaultferry_vault::{Error, commit};

const IDS: [&str; 3] =
    ["00000000000000000000000000000001", "00000000000000000000000000000002", "00000000000000000000000000000003"];

fn go_on() -> CancellationToken {
    CancellationToken::new()
}

/// A store of a process that is killed after so many calls: nothing happens any more.
#[derive(Debug)]
struct Mortal {
    inner: Shared,
    left: Arc<AtomicI64>,
}

impl Mortal {
    fn live(&self) -> Result<(), store::Error> {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        Err(store::Error::Unavailable { store: "killed".to_owned(), detail: "killed".to_owned() })
    }
}

#[async_trait]
impl Store for Mortal {
    fn location(&self) -> &str {
        self.inner.location()
    }
    async fn head(&self, key: &Key) -> Result<Option<Entry>, store::Error> {
        self.live()?;
        self.inner.head(key).await
    }
    async fn get(&self, key: &Key, range: Option<std::ops::Range<u64>>) -> Result<bytes::Bytes, store::Error> {
        self.live()?;
        self.inner.get(key, range).await
    }
    async fn put_if_absent(&self, key: &Key, body: bytes::Bytes) -> Result<Put, store::Error> {
        self.live()?;
        self.inner.put_if_absent(key, body).await
    }
    async fn list_page(&self, prefix: &str, next: Option<&str>) -> Result<Page, store::Error> {
        self.live()?;
        self.inner.list_page(prefix, next).await
    }
    async fn delete(&self, key: &Key) -> Result<(), store::Error> {
        self.live()?;
        self.inner.delete(key).await
    }
    async fn set_tier(&self, key: &Key, tier: Tier) -> Result<(), store::Error> {
        self.inner.set_tier(key, tier).await
    }
    async fn copy(&self, from: &Key, to: &Key) -> Result<Put, store::Error> {
        self.inner.copy(from, to).await
    }
    async fn protect(&self, key: &Key, until: jiff::Timestamp, locked: bool) -> Result<(), store::Error> {
        self.inner.protect(key, until, locked).await
    }
    async fn set_legal_hold(&self, key: &Key, hold: bool) -> Result<(), store::Error> {
        self.inner.set_legal_hold(key, hold).await
    }
}

#[derive(Debug, Clone)]
struct Vault {
    root: Shared,
    instances: BTreeMap<String, Shared>,
    left: Arc<AtomicI64>,
}

impl Vault {
    fn of(root: Shared, instances: BTreeMap<String, Shared>) -> Self {
        Self { root, instances, left: Arc::new(AtomicI64::new(i64::MAX)) }
    }

    fn killed_after(&self, calls: i64) -> Self {
        Self { left: Arc::new(AtomicI64::new(calls)), ..self.clone() }
    }

    fn mortal(&self, inner: &Shared) -> Shared {
        Arc::new(Mortal { inner: inner.clone(), left: self.left.clone() })
    }
}

#[async_trait]
impl Stores for Vault {
    fn root(&self) -> Result<Shared, store::Error> {
        Ok(self.mortal(&self.root))
    }
    fn instance(&self, id: &str) -> Result<Shared, store::Error> {
        Ok(self.mortal(&self.instances[id]))
    }
    async fn instance_ids(&self) -> Result<Vec<String>, store::Error> {
        Ok(self.instances.keys().cloned().collect())
    }
}

fn password(id: &str) -> String {
    format!("password of {id}")
}

/// A vault of three instances in memory, its key in `place`, and its recovery key.
async fn vault(place: &KeyPlace) -> (Vault, WrapKey) {
    let memory = |name: &str| -> Shared { Arc::new(Memory::new(name)) };
    let vault = Vault::of(memory("root"), IDS.iter().map(|id| ((*id).to_owned(), memory(id))).collect());
    let key = WrapKey::generate().expect("random");
    place.keep(&vault.root, &key, &go_on()).await.expect("kept");
    for id in &IDS {
        let wrapped = key.wrap(password(id).as_bytes(), &format!("instance:{id}")).expect("wrapped");
        let record = PasswordRecord { version: 1, create_time: jiff::Timestamp::now(), password: wrapped };
        records::put(&*vault.instances[*id], &records::numbered(records::PASSWORDS, 1), &record).await.expect("put");
    }
    let (_, recovery) = admin::add_recovery_key(&vault.root, &key, &go_on()).await.expect("recovery key");
    (vault, WrapKey::from_text(&recovery).expect("a key"))
}

async fn opens(vault: &Vault, key: &WrapKey, id: &str) -> bool {
    match admin::password_of(&vault.instances[id], key, id, &go_on()).await {
        Ok(found) => found.expose_secret() == password(id),
        Err(Error::KeyWrong { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

async fn opens_all(vault: &Vault, key: &WrapKey) -> bool {
    let mut all = true;
    for id in IDS {
        all &= opens(vault, key, id).await;
    }
    all
}

async fn rotate(vault: &Vault, place: &KeyPlace) -> Result<Rotated, Error> {
    let rotated = admin::rotate(vault, place, &go_on()).await?;
    admin::clean_up_rotation(vault, &rotated.key, &rotated.recovery_id, &go_on()).await?;
    Ok(rotated)
}

/// Kills a rotation at every call of a store, and then lets another one pass.
async fn rotations_that_are_killed(place: impl Fn(&Path) -> KeyPlace) {
    let (mut killed, mut whole) = (0, false);
    for calls in 0..300 {
        let dir = tempfile::tempdir().expect("folder");
        let place = place(dir.path());
        let (vault, recovery) = vault(&place).await;
        let old = place.load(&vault.root, &go_on()).await.expect("the old key");
        whole = rotate(&vault.killed_after(calls), &place).await.is_ok();
        killed += u32::from(!whole);
        let now = place.load(&vault.root, &go_on()).await.expect("a key is in place");
        assert!(opens_all(&vault, &now).await, "after {calls} calls the key in place does not open every instance");
        if now.id() == old.id() {
            let recovered = admin::recover_key(&vault.root, &recovery, &go_on()).await.expect("recovered");
            assert_eq!(recovered.id(), old.id(), "after {calls} calls");
        }

        let rotated = rotate(&vault, &place).await.expect("the next one passes");
        let now = place.load(&vault.root, &go_on()).await.expect("the new key");
        assert_eq!(now.id(), rotated.key.id());
        assert!(opens_all(&vault, &now).await);
        for id in IDS {
            assert!(!opens(&vault, &old, id).await, "the old key opens {id} after {calls} calls");
            let numbers = records::numbers(&*vault.instances[id], records::PASSWORDS).await.expect("listed");
            assert_eq!(numbers.len(), 1, "after {calls} calls: {numbers:?}");
        }
        assert!(admin::recover_key(&vault.root, &recovery, &go_on()).await.is_err(), "the old recovery key");
        let recovery = WrapKey::from_text(&rotated.recovery_key).expect("a key");
        let recovered = admin::recover_key(&vault.root, &recovery, &go_on()).await.expect("the new recovery key");
        assert_eq!(recovered.id(), now.id());
        let list = admin::list_keys(&vault, &go_on()).await.expect("listed");
        assert_eq!((list.recovery.len(), list.key_vault.len() <= 1), (1, true), "{list:?}");
        if whole {
            break;
        }
    }
    assert!(whole && killed > 20, "{killed} kills");
}

#[tokio::test]
async fn a_rotation_of_a_key_file_survives_a_kill_at_every_call() {
    rotations_that_are_killed(|dir| KeyPlace::File(dir.join("vault.key"))).await;
}

#[tokio::test]
async fn a_rotation_of_a_wrapped_key_survives_a_kill_at_every_call() {
    let wrap = Arc::new(WrapKey::generate().expect("random"));
    rotations_that_are_killed(|_| KeyPlace::Wrapped(wrap.clone())).await;
}

#[tokio::test]
async fn a_rotation_writes_nothing_when_the_key_does_not_open_everything() {
    let dir = tempfile::tempdir().expect("folder");
    let place = KeyPlace::File(dir.path().join("vault.key"));
    let (vault, _) = vault(&place).await;
    let stranger = WrapKey::generate().expect("random").wrap(b"x", &format!("instance:{}", IDS[2])).expect("wrapped");
    let record = PasswordRecord { version: 1, create_time: jiff::Timestamp::now(), password: stranger };
    let store: Shared = Arc::new(Memory::new("stranger"));
    records::put(&*store, &records::numbered(records::PASSWORDS, 1), &record).await.expect("put");
    let mut vault = vault;
    vault.instances.insert(IDS[2].to_owned(), store);
    let error = admin::rotate(&vault, &place, &go_on()).await.expect_err("refused");
    assert!(matches!(error, Error::KeyWrong { .. }), "{error:?}");
    let numbers = records::numbers(&*vault.instances[IDS[0]], records::PASSWORDS).await.expect("listed");
    assert_eq!(numbers, [1]);
    assert!(!dir.path().join("vault.key.new").exists());
}

/// The check without a key takes what a rotation deletes for deleted on purpose, and nothing else.
#[tokio::test]
async fn manifests_do_not_miss_what_a_rotation_deletes() {
    let dir = tempfile::tempdir().expect("folder");
    let place = KeyPlace::File(dir.path().join("vault.key"));
    let (vault, _) = vault(&place).await;
    let store = &vault.instances[IDS[0]];
    manifest::append(&**store, Scope::Instance, &[], &go_on()).await.expect("manifest");
    manifest::append(&*vault.root, Scope::Vault, &[], &go_on()).await.expect("manifest");
    rotate(&vault, &place).await.expect("rotated");
    for store in [store, &vault.root] {
        let listed = manifest::read(&**store).await.expect("read").files;
        for key in listed.keys() {
            let key = Key::new(key.clone()).expect("a key");
            assert!(store.head(&key).await.expect("asked").is_some(), "{key} is missed");
        }
        assert!(listed.keys().any(|key| key.starts_with("keys/")), "the new records are covered");
    }
}

#[tokio::test]
async fn recovery_keys_are_added_and_removed() {
    let dir = tempfile::tempdir().expect("folder");
    let place = KeyPlace::File(dir.path().join("vault.key"));
    let (vault, first) = vault(&place).await;
    let key = place.load(&vault.root, &go_on()).await.expect("key");
    let (id, text) = admin::add_recovery_key(&vault.root, &key, &go_on()).await.expect("added");
    let second = WrapKey::from_text(&text).expect("a key");
    assert_eq!(second.id(), id);
    for recovery in [&first, &second] {
        assert_eq!(admin::recover_key(&vault.root, recovery, &go_on()).await.expect("opens").id(), key.id());
    }
    admin::remove_recovery_key(&vault.root, &first.id(), &go_on()).await.expect("removed");
    assert!(matches!(admin::recover_key(&vault.root, &first, &go_on()).await, Err(Error::KeyWrong { .. })));
    let left = admin::recovery_keys(&vault.root, &go_on()).await.expect("listed");
    assert_eq!(left.iter().map(|key| key.id.as_str()).collect::<Vec<_>>(), [id.as_str()]);
    // Another vault's key in the same place is neither used nor overwritten.
    let other = WrapKey::generate().expect("random");
    assert!(matches!(place.keep(&vault.root, &other, &go_on()).await, Err(Error::KeyWrong { .. })));
    assert_eq!(place.load(&vault.root, &go_on()).await.expect("key").id(), key.id());
}

#[tokio::test]
async fn the_vault_has_one_owner_until_another_takes_it_over() {
    let root: Shared = Arc::new(Memory::new("root"));
    let claims = (0..8).map(|n| {
        let root = root.clone();
        async move { admin::owner::claim(&root, &format!("{n:032x}"), "host", false, &go_on()).await.is_ok() }
    });
    let won: Vec<bool> = futures::future::join_all(claims).await;
    assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
    let owner = won.iter().position(|won| *won).expect("one");
    let (owner, other) = (format!("{owner:032x}"), "f".repeat(32));
    admin::owner::check(&root, &owner, &go_on()).await.expect("the owner");
    let refused = admin::owner::check(&root, &other, &go_on()).await.expect_err("another");
    assert!(matches!(refused, Error::OwnedByOther { .. }), "{refused:?}");
    for _ in 0..2 {
        admin::owner::claim(&root, &other, "host", true, &go_on()).await.expect("taken over");
    }
    admin::owner::check(&root, &other, &go_on()).await.expect("the new owner");
    admin::owner::check(&root, &owner, &go_on()).await.expect_err("the former owner");
    assert_eq!(admin::owner::current(&root, &go_on()).await.expect("read").expect("owned").0, 2);
}

fn key_vault(server: &KeyVault, token: &str, deadline: Duration) -> AzureKeyVault {
    let token = Box::new(FixedToken(SecretString::from(token)));
    AzureKeyVault::new(server.key().parse().expect("an address"), token, deadline).expect("made")
}

#[tokio::test]
async fn key_vault_wraps_for_one_context_and_through_bad_weather() {
    let server = KeyVault::start();
    let key = key_vault(&server, TOKEN, Duration::from_secs(20));
    server.fail(&[Fault::Broken, Fault::Lost, Fault::Busy(1)]);
    let begin = std::time::Instant::now();
    let wrapped = key.wrap(b"secret", "vault-key", &go_on()).await.expect("wrapped");
    assert!(begin.elapsed() >= Duration::from_secs(1), "Retry-After is waited for");
    assert_eq!(server.calls(), ["wrapkey"; 4]);
    assert!(key.wrapped(&wrapped) && wrapped.key_id.starts_with(&server.key()));
    // A later version wraps from then on, and the record still opens.
    server.add_version();
    assert_eq!(**key.unwrap(&wrapped, "vault-key", &go_on()).await.expect("unwrapped"), *b"secret");
    let newer = key.wrap(b"secret", "vault-key", &go_on()).await.expect("wrapped");
    assert_ne!(newer.key_id, wrapped.key_id);
    for (altered, context) in [
        (wrapped.clone(), "instance:x"),
        (records_with(&wrapped, |w| w.ciphertext.clone_from(&newer.ciphertext)), "vault-key"),
        (records_with(&wrapped, |w| w.wrapped_key.clone_from(&newer.wrapped_key)), "vault-key"),
        (records_with(&wrapped, |w| w.wrapped_key = None), "vault-key"),
    ] {
        let error = key.unwrap(&altered, context, &go_on()).await.expect_err("refused");
        assert!(matches!(error, Error::KeyWrong { .. }), "{error:?}");
    }
}

fn records_with(
    wrapped: &vaultferry_vault::keys::Wrapped,
    change: impl FnOnce(&mut vaultferry_vault::keys::Wrapped),
) -> vaultferry_vault::keys::Wrapped {
    let mut wrapped = wrapped.clone();
    change(&mut wrapped);
    wrapped
}

#[tokio::test]
async fn key_vaults_refusals_are_told_by_name_and_without_the_token() {
    let server = KeyVault::start();
    let key = key_vault(&server, TOKEN, Duration::from_millis(300));
    let wrapped = key.wrap(b"secret", "vault-key", &go_on()).await.expect("wrapped");
    let mut errors = Vec::new();
    server.fail(&[Fault::Forbidden]);
    errors.push(("KeyVaultAccessDenied", key.unwrap(&wrapped, "vault-key", &go_on()).await.expect_err("403")));
    let stranger = key_vault(&server, "another-token", Duration::from_secs(5));
    errors.push(("KeyVaultAccessDenied", stranger.unwrap(&wrapped, "vault-key", &go_on()).await.expect_err("401")));
    server.fail(&[Fault::Broken; 100]);
    errors.push(("KeyVaultUnavailable", key.unwrap(&wrapped, "vault-key", &go_on()).await.expect_err("503")));
    let fresh = KeyVault::start();
    let gone = records_with(&wrapped, |w| w.key_id = format!("{}/00ff", fresh.key()));
    let on_fresh = key_vault(&fresh, TOKEN, Duration::from_secs(5));
    errors.push(("VaultKeyMissing", on_fresh.unwrap(&gone, "vault-key", &go_on()).await.expect_err("404")));
    let missing = AzureKeyVault::new(
        fresh.key().parse().expect("an address"),
        Box::new(TokenFile(PathBuf::from("/nonexistent/token"))),
        Duration::from_secs(5),
    );
    let missing = missing.expect("made");
    errors.push(("KeyVaultAccessDenied", missing.wrap(b"x", "vault-key", &go_on()).await.expect_err("no token")));
    for (reason, error) in errors {
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(TOKEN) && !shown.contains("another-token"), "{shown}");
        assert_eq!(vaultferry_proto::Problem::from(error).reason.to_string(), reason, "{shown}");
    }
    assert!(!format!("{key:?}").contains(TOKEN));
}

#[tokio::test]
async fn a_token_goes_to_the_configured_key_only() {
    let (server, other) = (KeyVault::start(), KeyVault::start());
    let key = key_vault(&server, TOKEN, Duration::from_secs(5));
    let wrapped = key.wrap(b"secret", "vault-key", &go_on()).await.expect("wrapped");
    let version = wrapped.key_id.rsplit('/').next().expect("a version");
    for foreign in [
        format!("{}/{version}", other.key()),
        format!("{}-other/{version}", server.key()),
        format!("http://attacker.example/keys/backup/{version}"),
        "0011223344556677".to_owned(),
    ] {
        let altered = records_with(&wrapped, |w| w.key_id = foreign);
        assert!(!key.wrapped(&altered));
        assert!(matches!(key.unwrap(&altered, "vault-key", &go_on()).await, Err(Error::KeyWrong { .. })));
    }
    assert!(other.calls().is_empty());
    server.fail(&[Fault::Moved]);
    key.unwrap(&wrapped, "vault-key", &go_on()).await.expect_err("a redirect is not followed");
}

#[tokio::test]
async fn a_vault_whose_key_is_in_key_vault_opens_with_one_question() {
    let server = KeyVault::start();
    let place = KeyPlace::Wrapped(Arc::new(key_vault(&server, TOKEN, Duration::from_secs(20))));
    let dir = tempfile::tempdir().expect("folder");
    let access = folder(dir.path());
    let made = admin::init_with(&access, "", "geo-redundant", &place, None, &go_on()).await.expect("init");
    let root = access.open_root().expect("root");
    let before = server.calls().len();
    let key = place.load(&root, &go_on()).await.expect("key");
    for id in IDS {
        admin::create_instance(&access, &key, &instance(id), &go_on()).await.expect("instance");
        let store = access.open_instance(id).expect("store");
        let password = admin::password_of(&store, &key, id, &go_on()).await.expect("password");
        Repository::open(store, &password, &go_on()).await.expect("opens");
    }
    assert_eq!(server.calls().len(), before + 1);
    // Key Vault is gone for good: the recovery key opens the vault all the same.
    let recovery = WrapKey::from_text(&made.recovery_key.expect("new")).expect("a key");
    assert_eq!(admin::recover_key(&root, &recovery, &go_on()).await.expect("recovered").id(), key.id());
    let rotated = rotate(&Vault::of(root.clone(), stores(&access)), &place).await.expect("rotated");
    assert_eq!(place.load(&root, &go_on()).await.expect("key").id(), rotated.key.id());
    let records = std::fs::read_dir(dir.path().join("keys/vault")).expect("records").count();
    assert_eq!(records, 1, "the old record is deleted");
    let recovery: Vec<String> =
        admin::recovery_keys(&root, &go_on()).await.expect("listed").into_iter().map(|key| key.id).collect();
    assert_eq!(recovery, [rotated.recovery_id], "the old recovery key's record is deleted");
}

fn folder(dir: &Path) -> Access {
    let location = Location::Folder(dir.to_owned());
    Access { location, endpoint: None, credential: None, store_deadline: Duration::from_secs(5) }
}

fn stores(access: &Access) -> BTreeMap<String, Shared> {
    IDS.iter().map(|id| ((*id).to_owned(), access.open_instance(id).expect("store"))).collect()
}

fn instance(id: &str) -> InstanceRecord {
    InstanceRecord {
        version: 1,
        id: id.to_owned(),
        name: format!("shop-{id}"),
        create_time: jiff::Timestamp::UNIX_EPOCH,
        source_type: "postgres".to_owned(),
        source_uri: format!("postgres://u@h/{id}"),
        region: String::new(),
        policy: "nightly".to_owned(),
        login: SourceLogin::Passfile("/etc/pgpass".to_owned()),
        source_identity: format!("postgres://h:5432/{id}"),
        protection: vaultferry_vault::records::Protection::Active,
    }
}

const GOLDEN: &str = "0123456789abcdef0123456789abcdef";

/// A copy of the vault that version 1 wrote.
fn old_vault() -> (tempfile::TempDir, Access) {
    let dir = tempfile::tempdir().expect("folder");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vault-v1");
    let copied = std::process::Command::new("cp").arg("-r").arg(golden).arg(dir.path().join("vault")).status();
    assert!(copied.expect("cp runs").success());
    let access = folder(&dir.path().join("vault"));
    (dir, access)
}

/// What an agent of version 1 has in its catalog.
async fn known(access: &Access) -> Known {
    let (mut instances, _) = admin::instances(access, &go_on()).await.expect("instances");
    instances[0].login = SourceLogin::PasswordEnv("SHOP_PASSWORD".to_owned());
    instances[0].source_identity = "postgres://db:5432/shop".to_owned();
    let policy = |policy_version| PolicyRecord {
        version: 1,
        name: "nightly".to_owned(),
        policy_version,
        create_time: jiff::Timestamp::UNIX_EPOCH,
        document: format!("name = \"nightly\" # {policy_version}\n"),
        id: IDS[0].to_owned(),
        deleted: false,
    };
    Known { policies: vec![policy(1), policy(2)], instances }
}

#[tokio::test]
async fn an_upgrade_of_an_old_vault_goes_on_after_a_kill_and_is_done_once() {
    let (mut whole, mut killed) = (false, 0);
    for calls in 0..200 {
        let (dir, access) = old_vault();
        let known = known(&access).await;
        let root = access.open_root().expect("root");
        let store = access.open_instance(GOLDEN).expect("store");
        let vault = Vault::of(root.clone(), BTreeMap::from([(GOLDEN.to_owned(), store.clone())]));
        whole = admin::upgrade::run(&vault.killed_after(calls), &known, &go_on()).await.is_ok();
        killed += u32::from(!whole);
        let steps = admin::upgrade::run(&vault, &known, &go_on()).await.expect("goes on");
        let again = admin::upgrade::run(&vault, &known, &go_on()).await.expect("once more");
        assert!(again.iter().all(|step| step.written == 0 && step.remarks.is_empty()), "{again:?}");
        assert!(whole || steps.iter().map(|step| step.written).sum::<u64>() > 0, "{steps:?}");
        assert_eq!(admin::instances(&access, &go_on()).await.expect("read").0, known.instances);
        assert_eq!(admin::policies(&root, &go_on()).await.expect("read").0, known.policies);
        if whole {
            still_reads(dir.path(), &store).await;
            break;
        }
    }
    assert!(whole && killed >= 8, "{killed} kills");
}

/// The upgraded vault is restored from, and restic finds nothing wrong with it.
async fn still_reads(dir: &Path, store: &Shared) {
    let key = WrapKey::load(&dir.join("vault/test.key")).expect("key");
    let password = admin::password_of(store, &key, GOLDEN, &go_on()).await.expect("password");
    let repository = Arc::new(Repository::open(store.clone(), &password, &go_on()).await.expect("open"));
    let lists = commit::read_pack_lists(&**store).await.expect("lists");
    let point = PointReader::open(repository, lists[0].1.snapshot_id, &go_on()).await.expect("point");
    let mut bytes = Vec::new();
    point.copy_stream("database.dump", &mut bytes, &Meter::default(), &go_on()).await.expect("copied");
    assert_eq!(bytes.len(), 3_000_000);
    let repo = dir.join("vault/instances").join(GOLDEN).join("repo");
    let export = format!("RESTIC_REPOSITORY={}\nRESTIC_PASSWORD={}", repo.display(), password.expose_secret());
    vaultferry_tests::restic::Repository::from_export(&export).check();
}

#[tokio::test]
async fn an_upgrade_leaves_what_it_does_not_understand() {
    let (_dir, access) = old_vault();
    let mut known = known(&access).await;
    let root = access.open_root().expect("root");
    let mut other = known.policies[0].clone();
    other.document = "something else".to_owned();
    assert!(admin::put_policy(&root, &other, &go_on()).await.expect("put"));
    known.instances.clear();
    let steps = admin::upgrade::run(&access, &known, &go_on()).await.expect("runs");
    assert_eq!(steps.iter().map(|step| (step.written, step.remarks.len())).collect::<Vec<_>>(), [(1, 1), (0, 1)]);
    assert_eq!(admin::policies(&root, &go_on()).await.expect("read").0[0].document, "something else");
}
