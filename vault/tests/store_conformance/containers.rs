//! Containers of a real Azurite: with a key and with signatures, and what each of them is refused.

use vaultferry_tests::azurite;

use super::*;

fn azure(account: &azurite::Account, container: &str, credential: Credential) -> Azure {
    let endpoint = Some(Url::parse(&account.endpoint()).expect("endpoint"));
    let (account, container) = (account.name().to_owned(), container.to_owned());
    Azure::new(&azure::Config { account, container, endpoint, credential }).expect("configuration")
}

fn account_key(account: &azurite::Account) -> Credential {
    Credential::AccountKey(SecretString::from(account.key()))
}

fn signature(account: &azurite::Account, container: &str, rights: &str, valid: Duration) -> Credential {
    let expiry = jiff::Timestamp::now() + valid - Duration::from_secs(3600);
    let key = SecretString::from(account.key());
    sas::container(account.name(), &key, container, rights, expiry).expect("signed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_conform() {
    let server = azurite::Server::start();
    let account = &server.vault;
    let store = azure(account, "with-key", account_key(account));
    tells_that_it_is_missing(&store).await;
    for _ in 0..2 {
        store.create_container().await.expect("create");
    }
    conforms(&store).await;
    assert_eq!(store.redundancy().await.expect("redundancy"), store::Redundancy::Geo);
    put(&store, "x", "x").await;
    let error = store.protect(&key("x"), jiff::Timestamp::now() + DAY, false).await.expect_err("Azurite cannot");
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");

    account.create_container("with-sas");
    conforms(&azure(account, "with-sas", signature(account, "with-sas", sas::Role::Maintenance.letters(), DAY))).await;
    create_only_creates(account).await;
    wrong_credentials_are_told(account).await;
    foreign_blobs_are_passed_over(account).await;
}

/// What a plugin gets: create, read, list.
async fn create_only_creates(account: &azurite::Account) {
    account.create_container("create-only");
    let credential = signature(account, "create-only", "rcl", DAY);
    let store = azure(account, "create-only", credential);
    assert_eq!(put(&store, "data/x", "first").await, Put::Created);
    assert_eq!(put(&store, "data/x", "second").await, Put::Existed);
    assert_eq!(store.get(&key("data/x"), None).await.expect("get"), "first");
    assert_eq!(size_of(&store, "data/x").await, Some(5));
    assert_eq!(keys(&store, "").await, ["data/x"]);
    for refused in [store.delete(&key("data/x")).await, store.set_tier(&key("data/x"), Tier::Cool).await] {
        let error = refused.expect_err("no such right");
        assert!(matches!(error, Error::AccessDenied { .. }), "{error:?}");
    }
    assert_eq!(account.get("create-only", "data/x"), b"first");
}

async fn wrong_credentials_are_told(account: &azurite::Account) {
    account.create_container("locked");
    let no_key = "bm90IHRoZSBrZXk=";
    let expired = Duration::from_secs(60);
    for credential in [
        Credential::AccountKey(SecretString::from(no_key)),
        sas::container(account.name(), &SecretString::from(no_key), "locked", "rcwdl", jiff::Timestamp::now() + DAY)
            .expect("signed"),
        signature(account, "with-sas", "rcwdl", DAY),
        signature(account, "locked", "rcwdl", expired),
        signature(account, "locked", "l", DAY),
    ] {
        let store = azure(account, "locked", credential);
        for result in [
            store.get(&key("data/x"), None).await.map(|_| ()),
            store.put_if_absent(&key("data/x"), "x".into()).await.map(|_| ()),
            store.delete(&key("data/x")).await,
        ] {
            let error = result.expect_err("refused");
            assert!(matches!(error, Error::AccessDenied { .. }), "{error:?}");
            let text = format!("{error} {error:?} {store:?}");
            assert!(text.contains("403 ") && !text.contains("sig=") && !text.contains(no_key), "{text}");
        }
    }
}

async fn foreign_blobs_are_passed_over(account: &azurite::Account) {
    account.create_container("foreign");
    for name in ["data/ours", ".hidden", "with%20blank", "tmp/.put-1"] {
        account.put("foreign", name, b"x");
    }
    let store = azure(account, "foreign", account_key(account));
    assert_eq!(keys(&store, "").await, ["data/ours"]);
}
