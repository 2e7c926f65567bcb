use std::collections::BTreeMap;

use super::*;
use crate::catalog::{Credential, RestoreOptions};
use crate::job::new_job;
use crate::lifecycle::tests::world_with;
use crate::plugin::hanging;

#[tokio::test]
async fn a_clean_up_that_hangs_is_given_up_and_says_so() {
    let dir = tempfile::tempdir().expect("folder");
    let jobs = world_with(dir.path(), BTreeMap::from([("postgres".to_owned(), hanging::command())])).await;
    let shop = jobs.shared.catalog.instance("shop").await.expect("find").expect("there");
    let work = Work::RestoreDatabase {
        point_id: Id::of(b"p"),
        target_uri: "postgres://u@h/".to_owned(),
        database: "shop2".to_owned(),
        no_owner: false,
        credential: Credential::None,
        options: RestoreOptions::default(),
    };
    let job = new_job(&shop, work, None, false);
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let problem = clean_up(&jobs, &job, &CancellationToken::new()).await.expect_err("nobody answers");
    assert_eq!((problem.reason, begun.elapsed().as_secs()), (Reason::PluginTimeout, CLEAN_UP_LIMIT.as_secs()));
    assert!(problem.message.contains("600s"), "{}", problem.message);
}

/// Another account's credential is not sent to the vault's host.
#[test]
fn a_target_is_asked_at_its_own_account() {
    for (endpoint, expected) in [
        ("https://acct.blob.core.chinacloudapi.cn", "https://other.blob.core.chinacloudapi.cn"),
        ("https://acct.blob.core.chinacloudapi.cn/", "https://other.blob.core.chinacloudapi.cn"),
        ("http://127.0.0.1:10000/acct", "http://127.0.0.1:10000/other"),
        // It names no account.
        ("https://blobs.example/", "https://blobs.example"),
        ("https://acct/", "https://acct"),
    ] {
        let vault = Access {
            location: Location::Azure { account: "acct".to_owned(), name: "vault".to_owned() },
            endpoint: Some(endpoint.parse().expect("a URL")),
            credential: None,
            store_deadline: Duration::from_secs(5),
        };
        assert_eq!(endpoint_for(&vault, "azure://other/files/at"), expected, "{endpoint}");
    }
}
