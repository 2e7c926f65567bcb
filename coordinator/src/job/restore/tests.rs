use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use vaultferry_vault::repository::FileKind;

use super::*;
use crate::catalog::{Credential, RestoreOptions};
use crate::job::new_job;
use crate::lifecycle::tests::world_with;
use crate::plugin::in_process::{Guest, Host, Io};
use crate::plugin::{Command, MAINTENANCE, hanging};

/// A restore of the point `p` of the world's instance.
async fn restore_job(jobs: &Jobs) -> Job {
    let shop = jobs.shared.catalog.instance("shop").await.expect("find").expect("there");
    let work = Work::RestoreDatabase {
        point_id: Id::of(b"p"),
        target_uri: "postgres://u@h/".to_owned(),
        database: "shop2".to_owned(),
        no_owner: false,
        credential: Credential::None,
        options: RestoreOptions::default(),
    };
    new_job(&shop, work, None, false)
}

/// A plugin that is gone before it says anything; how often it was started is counted.
#[derive(Debug, Default)]
struct Gone(AtomicUsize);

#[derive(Debug)]
struct Nobody;

#[async_trait]
impl Guest for Nobody {
    async fn stop(&mut self) {}
}

impl Host for Gone {
    fn serve(&self) -> (Box<dyn Guest>, Box<dyn Io>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        let (ours, _) = tokio::io::duplex(64);
        (Box::new(Nobody), Box::new(ours))
    }
}

/// The copies that were asked out of the archive are removed by the maintenance plugin, which is started once for it.
#[tokio::test]
async fn a_cancelled_restore_from_the_archive_cleans_up_once() {
    let dir = tempfile::tempdir().expect("folder");
    let gone = Arc::new(Gone::default());
    let host: Arc<dyn Host> = gone.clone();
    let maintenance =
        Command { program: PathBuf::new(), args: Vec::new(), settings_json: String::new(), in_process: Some(host) };
    let plugins = BTreeMap::from([("postgres".to_owned(), hanging::command()), (MAINTENANCE.to_owned(), maintenance)]);
    let jobs = world_with(dir.path(), plugins).await;
    let job = restore_job(&jobs).await;
    // The point is in the archive store only.
    let store = jobs.shared.vault.open_instance(&job.instance_id).expect("store");
    let archive = archive::store(&store).expect("archive");
    let key = FileKind::Snapshot.key(&Id::of(b"p"));
    archive.put_if_absent(&key, b"a snapshot".as_slice().into()).await.expect("written");
    let cancel = CancellationToken::new();
    let cancels = async {
        // Until its plugin runs.
        while jobs.shared.catalog.plugin_processes().await.expect("asked").is_empty() {
            tokio::task::yield_now().await;
        }
        // The plugin hangs in the clean-up as well, for as long as it may.
        tokio::time::pause();
        cancel.cancel();
    };
    let (ended, ()) = tokio::join!(run(&jobs, &job, &cancel), cancels);
    assert_eq!(ended.expect_err("it was cancelled").reason, Reason::Cancelled);
    assert_eq!(gone.0.load(Ordering::Relaxed), 1);
    // After a kill nothing of it was done yet.
    let left = clean_up(&jobs, &job, &CancellationToken::new()).await.expect_err("the target's plugin hangs");
    assert_eq!((left.reason, gone.0.load(Ordering::Relaxed)), (Reason::PluginTimeout, 2));
}

#[tokio::test]
async fn a_clean_up_that_hangs_is_given_up_and_says_so() {
    let dir = tempfile::tempdir().expect("folder");
    let jobs = world_with(dir.path(), BTreeMap::from([("postgres".to_owned(), hanging::command())])).await;
    let job = restore_job(&jobs).await;
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
