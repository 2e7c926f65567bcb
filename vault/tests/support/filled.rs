//! An instance's store with something of everything in it, in memory, so that tests can damage it.
#![allow(dead_code)] // each test uses a part of it

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use rand::{RngExt as _, SeedableRng as _};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use vaultferry_vault::commit;
use vaultferry_vault::meter::Meter;
use vaultferry_vault::repository::Repository;
use vaultferry_vault::store::memory::Memory;
use vaultferry_vault::store::{self, Key, Store as _};
use vaultferry_vault::writer::{Backup, Options, SnapshotMeta, Staged};
use vaultferry_vault::{Error, Id};

#[path = "record.rs"]
mod record;

use record::record;

pub fn password() -> SecretString {
    SecretString::from("5e".repeat(32))
}

pub fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rand::rngs::StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

pub fn time() -> jiff::Timestamp {
    jiff::Timestamp::from_second(1_700_000_000).expect("a time")
}

pub async fn init(store: &Arc<Memory>) -> Arc<Repository> {
    let shared: store::Shared = store.clone();
    Arc::new(Repository::init(shared, &password(), &CancellationToken::new()).await.expect("init"))
}

pub async fn open(store: &Arc<Memory>) -> Result<Arc<Repository>, Error> {
    let shared: store::Shared = store.clone();
    Repository::open(shared, &password(), &CancellationToken::new()).await.map(Arc::new)
}

/// Uploads everything of a point but its snapshot.
pub async fn stage(repository: &Arc<Repository>, job: &str, streams: &[(&str, &[u8])]) -> Staged {
    let cancel = CancellationToken::new();
    let meter = Arc::new(Meter::default());
    let mut backup = Backup::begin(repository.clone(), Options::default(), meter, &cancel).await.expect("begin");
    for (name, bytes) in streams {
        backup.write_stream(name, *bytes, &cancel).await.expect("write");
    }
    let meta = SnapshotMeta { time: time(), hostname: "host".to_owned(), tags: vec![format!("job={job}")] };
    backup.stage(meta, &cancel).await.expect("stage")
}

/// Makes a point.
pub async fn back_up(repository: &Arc<Repository>, job: &str, streams: &[(&str, &[u8])]) -> Id {
    let staged = stage(repository, job, streams).await;
    let (store, record, cancel) = (&**repository.store(), record(job, &staged), CancellationToken::new());
    commit::verify(store, &record, &cancel).await.expect("verify");
    commit::prepare(store, &record, &cancel).await.expect("prepare");
    commit::publish(store, &record, &cancel).await.expect("publish");
    staged.snapshot_id
}

pub async fn keys(store: &Memory, prefix: &str) -> Vec<Key> {
    store::list(store, prefix).map(|entry| entry.map(|entry| entry.key)).try_collect().await.expect("list")
}

/// Another store with the same files.
pub async fn copy(store: &Memory) -> Arc<Memory> {
    let copied = Arc::new(Memory::new("copy"));
    for key in keys(store, "").await {
        let body = store.get(&key, None).await.expect("get");
        copied.put_if_absent(&key, body).await.expect("put");
    }
    copied
}
