//! A container behind a bad line, and restored files in a container: the emulator, and a proxy that breaks the connection.

use std::time::{Duration, Instant};

use bytes::Bytes;
use secrecy::SecretString;
use url::Url;
use vaultferry_tests::azurite;
use vaultferry_tests::fault_proxy::{Fault, FaultProxy};
use vaultferry_vault::location::Access;
use vaultferry_vault::store::azure::{Credential, sas};
use vaultferry_vault::store::{Error, Key, Put, retry};
use vaultferry_vault::target::{self, FilesTarget, Target};

const INSTANCE: &str = "0123456789abcdef0123456789abcdef";
const DAY: Duration = Duration::from_secs(86_400);

fn account_key(account: &azurite::Account) -> Option<Credential> {
    Some(Credential::AccountKey(SecretString::from(account.key())))
}

fn endpoint(account: &azurite::Account, port: u16) -> Option<Url> {
    Some(Url::parse(&account.endpoint_at(port)).expect("endpoint"))
}

fn bytes(length: usize) -> Bytes {
    (0..length).map(|index| (index % 251) as u8).collect::<Vec<u8>>().into()
}

/// Emulator and proxy have lives of their own, outside of the runtime that the tests' futures run in.
fn with_emulator(test: impl AsyncFnOnce(&azurite::Server, &FaultProxy)) {
    let server = azurite::Server::start();
    let proxy = FaultProxy::start(server.port());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(test(&server, &proxy));
}

#[test]
fn a_vault_in_containers_survives_bad_weather() {
    with_emulator(async |server, proxy| weather(server, proxy).await);
}

async fn weather(server: &azurite::Server, proxy: &FaultProxy) {
    let access = Access {
        location: format!("azure://{}/weather", server.vault.name()).parse().expect("location"),
        endpoint: endpoint(&server.vault, proxy.port()),
        credential: account_key(&server.vault),
        store_deadline: Duration::from_secs(60),
    };
    let store = access.open_instance(INSTANCE).expect("open");
    let missing = store.list_page("", None).await.expect_err("no container");
    assert!(matches!(missing, Error::NoStore { .. }), "{missing:?}");
    for _ in 0..2 {
        access.create_root().await.expect("root");
        access.create_instance(INSTANCE).await.expect("instance");
    }
    let containers = server.vault.containers();
    assert_eq!(containers, ["weather".to_owned(), format!("weather-{INSTANCE}")]);

    // The line breaks in the middle of an upload, and is back a moment later.
    let key = Key::new("repo/data/4f/4f91").expect("key");
    let body = bytes(4_000_000);
    proxy.set(Fault::ResetAfter(1_000_000));
    let upload = tokio::spawn({
        let (store, key, body) = (store.clone(), key.clone(), body.clone());
        async move { store.put_if_absent(&key, body).await }
    });
    tokio::time::sleep(Duration::from_millis(700)).await;
    proxy.set(Fault::None);
    assert_eq!(upload.await.expect("join").expect("put"), Put::Created);
    assert!(store.get(&key, None).await.expect("get") == body);

    // It stays bad: an error in time, which says what was seen and how often.
    let impatient = Access { store_deadline: Duration::from_secs(2), ..access }.open_instance(INSTANCE).expect("open");
    for (fault, words) in [
        (Fault::Refuse, "tried to read a file "),
        (Fault::BlackHole, "tried to read a file "),
        (Fault::Http(503), "503 "),
        (Fault::Http(500), "500 "),
        (Fault::Http(429), "429 "),
    ] {
        proxy.set(fault);
        let begin = Instant::now();
        let error = impatient.get(&key, None).await.expect_err("bad weather");
        assert!(matches!(error, Error::Unavailable { .. }), "{fault:?}: {error:?}");
        assert!(error.to_string().contains(words), "{fault:?}: {error}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{fault:?}: {:?}", begin.elapsed());
    }
    proxy.set(Fault::Http(400));
    let begin = Instant::now();
    let error = impatient.get(&key, None).await.expect_err("refused");
    assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(1), "not tried again");
}

async fn open(
    text: &str,
    port: u16,
    account: &azurite::Account,
    credential: Option<Credential>,
) -> Result<Target, target::Error> {
    let retry = retry::Config { deadline: Duration::from_secs(20) };
    let config = target::Config { endpoint: endpoint(account, port), credential, retry };
    text.parse::<FilesTarget>().expect("target").open(&config).await
}

#[test]
fn files_are_restored_into_a_container() {
    with_emulator(async |server, proxy| files(server, proxy).await);
}

async fn files(server: &azurite::Server, proxy: &FaultProxy) {
    let account = &server.other;
    let text = format!("azure://{}/restored", account.name());
    inaccessible_containers_are_told(&text, server.port(), account).await;

    let target = open(&text, server.port(), account, account_key(account)).await.expect("open");
    // More than four blocks, and not a whole number of them; written in pieces of any size.
    let body = bytes(45_000_000);
    let mut sink = target.create("database.dump").await.expect("create");
    let mut rest = body.clone();
    for size in (1..).map(|n: usize| n * 77_777) {
        sink.write(rest.split_to(size.min(rest.len()))).await.expect("write");
        if rest.is_empty() {
            break;
        }
    }
    assert!(account.blobs("restored").is_empty(), "nothing is visible before the end");
    assert_eq!(sink.finish().await.expect("finish"), body.len() as u64);
    assert!(account.get("restored", "database.dump") == body, "the same bytes");

    let error = target.create("database.dump").await.expect_err("exists");
    assert!(matches!(error, target::Error::Exists { .. }), "{error:?}");
    given_up_files_are_invisible(&target, account).await;
    the_first_of_two_wins(&target, account).await;
    lost_answers_are_understood(&text, server, proxy).await;
}

async fn inaccessible_containers_are_told(text: &str, port: u16, account: &azurite::Account) {
    let sas = |container: &str, rights: &str| {
        let expiry = jiff::Timestamp::now() + DAY;
        let key = SecretString::from(account.key());
        Some(sas::container(account.name(), &key, container, rights, expiry).expect("signed"))
    };
    let missing = open(text, port, account, account_key(account)).await.expect_err("missing");
    assert!(missing.to_string().ends_with("is not accessible: the container does not exist"), "{missing}");
    account.create_container("restored");
    let wrong_key = Some(Credential::AccountKey(SecretString::from("bm90IHRoZSBrZXk=")));
    for credential in [None, wrong_key, sas("other", "rcw")] {
        let error = open(text, port, account, credential).await.expect_err("no right");
        assert!(matches!(error, target::Error::NotAccessible { .. }), "{error:?}");
    }
    // May look, may not write: told with the first block, before much was read for nothing.
    let target = open(text, port, account, sas("restored", "r")).await.expect("may look");
    let mut sink = target.create("x").await.expect("may look");
    sink.write("x".into()).await.expect("buffered");
    let error = sink.finish().await.expect_err("may not write");
    assert!(matches!(error, target::Error::NotAccessible { .. }), "{error:?}");
    assert!(!format!("{error:?}").contains("sig="));
}

async fn given_up_files_are_invisible(target: &Target, account: &azurite::Account) {
    let before = account.blobs("restored");
    let mut sink = target.create("half").await.expect("create");
    sink.write(bytes(20_000_000)).await.expect("write");
    sink.abort().await;
    let mut sink = target.create("half").await.expect("nothing is in its way");
    sink.write(bytes(9_000_000)).await.expect("write");
    drop(sink);
    assert_eq!(account.blobs("restored"), before);
    assert_eq!(target.create("empty").await.expect("create").finish().await.expect("finish"), 0);
    assert!(account.get("restored", "empty").is_empty());
}

async fn the_first_of_two_wins(target: &Target, account: &azurite::Account) {
    let mut first = target.create("race").await.expect("create");
    let mut second = target.create("race").await.expect("create");
    first.write("first".into()).await.expect("write");
    second.write("second".into()).await.expect("write");
    first.finish().await.expect("finish");
    let error = second.finish().await.expect_err("the name is taken");
    assert!(matches!(error, target::Error::Exists { .. }), "{error:?}");
    assert_eq!(account.get("restored", "race"), b"first");
}

/// The commit happens and its answer is lost: the second try finds our own file, and that is success.
async fn lost_answers_are_understood(text: &str, server: &azurite::Server, proxy: &FaultProxy) {
    let account = &server.other;
    let target = open(&format!("{text}/folder"), proxy.port(), account, account_key(account)).await.expect("open");
    let mut sink = target.create("lost").await.expect("create");
    let before = proxy.bytes_from_server();
    sink.write(bytes(9_000_000)).await.expect("write");
    let answers = tokio::task::block_in_place(|| {
        let answered = || (proxy.bytes_from_server() > before + 100).then(|| proxy.bytes_from_server());
        vaultferry_tests::wait_for("the first block's answer", Duration::from_secs(30), answered)
    });
    // The last block's answer is let through, the commit's is not.
    let visible = || account.blobs("restored").iter().any(|blob| blob.name == "folder/lost");
    proxy.set(Fault::HoldAfter(answers + (answers - before) + 20));
    let finish = tokio::spawn(sink.finish());
    let held = tokio::task::block_in_place(|| {
        let begin = Instant::now();
        while !visible() && begin.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(20));
        }
        visible()
    });
    proxy.set(Fault::Refuse);
    tokio::time::sleep(Duration::from_millis(300)).await;
    proxy.set(Fault::None);
    assert_eq!(finish.await.expect("join").expect("our own file is no obstacle"), 9_000_000);
    assert!(held, "the commit happened while its answer was held back");
    assert!(account.get("restored", "folder/lost") == bytes(9_000_000));
}
