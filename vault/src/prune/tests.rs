//! Memory: a repository of 5 million chunks, whose packs exist in listings only, is pruned in a process of its own.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use super::Options;
use crate::id::Id;
use crate::meter::Meter;
use crate::repository::index::{IndexFile, IndexPack};
use crate::repository::pack::{self, BlobKind, Builder, PackedBlob, SealedBlob};
use crate::repository::snapshot::Snapshot;
use crate::repository::tree::{Node, Tree};
use crate::repository::{FileKind, PACKS, Repository, pack_key};
use crate::store::folder::Folder;
use crate::store::{Entry, Error, Key, Page, Put, Shared, Store, Tier};

/// Tells the process of this test that it is the one that is measured: the folder of the repository.
const CHILD: &str = "VAULTFERRY_PRUNE_MEMORY_DIR";
const CHUNKS: u64 = 5_000_000;
const LIMIT_KIB: u64 = 512 << 10;
/// As for chunks of 1 MiB in packs of 16.
const CHUNKS_PER_PACK: u64 = 16;
const PACKS_PER_INDEX: u64 = 512;
const CHUNKS_PER_PART: u64 = 16_000;
/// One pack of so many is needed by nothing.
const UNNEEDED: u64 = 10;

fn chunks() -> u64 {
    std::env::var("VAULTFERRY_PRUNE_CHUNKS").ok().and_then(|count| count.parse().ok()).unwrap_or(CHUNKS)
}

fn id(what: &str, number: u64) -> Id {
    Id::of(format!("{what}{number}").as_bytes())
}

fn pack_blobs(number: u64) -> Vec<PackedBlob> {
    let first = number * CHUNKS_PER_PACK;
    let blob = |i: u64| {
        let (offset, length) = ((i * 900_000) as u32, 900_000);
        PackedBlob { id: id("chunk", first + i), kind: BlobKind::Data, offset, length, raw_length: Some(1 << 20) }
    };
    (0..CHUNKS_PER_PACK).map(blob).collect()
}

fn is_needed(chunk: u64) -> bool {
    !(chunk / CHUNKS_PER_PACK).is_multiple_of(UNNEEDED)
}

/// A folder whose listing of packs has many more than are there.
#[derive(Debug)]
struct Imagined {
    inner: Folder,
    packs: u64,
    pack_size: u64,
}

#[async_trait]
impl Store for Imagined {
    fn location(&self) -> &str {
        self.inner.location()
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>, Error> {
        self.inner.head(key).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        self.inner.get(key, range).await
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put, Error> {
        self.inner.put_if_absent(key, body).await
    }

    async fn list_page(&self, prefix: &str, next: Option<&str>) -> Result<Page, Error> {
        let imagined = next.and_then(|next| next.strip_prefix("imagined-"));
        let Some(first) = imagined.and_then(|first| first.parse::<u64>().ok()) else {
            let mut page = self.inner.list_page(prefix, next).await?;
            if prefix == PACKS && page.next.is_none() {
                page.next = Some("imagined-0".to_owned());
            }
            return Ok(page);
        };
        let end = (first + 5000).min(self.packs);
        let entries = (first..end).map(|number| Entry::new(pack_key(&id("pack", number)), self.pack_size));
        let next = (end < self.packs).then(|| format!("imagined-{end}"));
        Ok(Page { entries: entries.collect(), next })
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.inner.delete(key).await
    }

    async fn set_tier(&self, key: &Key, tier: Tier) -> Result<(), Error> {
        self.inner.set_tier(key, tier).await
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<Put, Error> {
        self.inner.copy(from, to).await
    }

    async fn protect(&self, key: &Key, until: jiff::Timestamp, locked: bool) -> Result<(), Error> {
        self.inner.protect(key, until, locked).await
    }

    async fn set_legal_hold(&self, key: &Key, hold: bool) -> Result<(), Error> {
        self.inner.set_legal_hold(key, hold).await
    }
}

fn password() -> SecretString {
    SecretString::from("5e".repeat(32))
}

async fn store(dir: &Path) -> Shared {
    let inner = Folder::new(dir.to_owned());
    inner.create().await.expect("folder");
    let pack_size = pack::file_size(pack_blobs(0).iter());
    Arc::new(Imagined { inner, packs: chunks() / CHUNKS_PER_PACK, pack_size })
}

async fn put_tree(repository: &Repository, trees: &mut Builder, tree: &Tree) -> Id {
    let plain = tree.to_blob().expect("serializes");
    let compressed = zstd::bulk::compress(&plain, 1).expect("compresses");
    let sealed = repository.key().seal(&compressed).expect("seals");
    let (tree, raw_length) = (Id::of(&plain), Some(plain.len() as u32));
    let blob = SealedBlob { id: tree, kind: BlobKind::Tree, sealed, raw_length };
    trees.add(&blob, 16 << 20).expect("fits");
    if trees.len() > 16 << 20 {
        close(repository, trees).await;
    }
    tree
}

async fn close(repository: &Repository, trees: &mut Builder) {
    let pack = std::mem::replace(trees, Builder::new(BlobKind::Tree)).finish(repository.key()).expect("seals");
    repository.store().put_if_absent(&pack_key(&pack.id), pack.bytes.into()).await.expect("stored");
    let packs = vec![IndexPack::new(pack.id, &pack.blobs)];
    repository.put_index(&IndexFile { supersedes: Vec::new(), packs }).await.expect("stored");
}

async fn imagine(repository: &Repository) {
    let packs: Vec<u64> = (0..chunks() / CHUNKS_PER_PACK).collect();
    for some in packs.chunks(PACKS_PER_INDEX as usize) {
        let packs = some.iter().map(|number| IndexPack::new(id("pack", *number), &pack_blobs(*number))).collect();
        repository.put_index(&IndexFile { supersedes: Vec::new(), packs }).await.expect("stored");
    }
    let (mut trees, time) = (Builder::new(BlobKind::Tree), jiff::Timestamp::UNIX_EPOCH);
    let mut parts = Vec::new();
    for first in (0..chunks()).step_by(CHUNKS_PER_PART as usize) {
        let part = (first..(first + CHUNKS_PER_PART).min(chunks())).filter(|chunk| is_needed(*chunk));
        let content: Vec<Id> = part.map(|chunk| id("chunk", chunk)).collect();
        let nodes = vec![Node::file("part", time, content.len() as u64, content)];
        let tree = put_tree(repository, &mut trees, &Tree { nodes }).await;
        parts.push(Node::directory(&format!("p{first:010}"), time, 0, tree));
    }
    let root = put_tree(repository, &mut trees, &Tree { nodes: parts }).await;
    close(repository, &mut trees).await;
    let snapshot = Snapshot {
        time: time.to_string(),
        tree: root,
        paths: vec!["/s".to_owned()],
        hostname: "host".to_owned(),
        username: String::new(),
        tags: Vec::new(),
        program_version: String::new(),
    };
    let (snapshot_id, sealed) = repository.seal_json(&snapshot).expect("seals");
    let key = FileKind::Snapshot.key(&snapshot_id);
    repository.store().put_if_absent(&key, sealed.into()).await.expect("stored");
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

#[tokio::test]
async fn a_prune_of_five_million_chunks_stays_small() {
    if let Some(dir) = std::env::var_os(CHILD) {
        let store = store(Path::new(&dir)).await;
        let cancel = CancellationToken::new();
        let repository = Repository::open(store, &password(), &cancel).await.expect("open");
        let report = super::run(&repository, &Options::default(), &Meter::default(), &cancel).await.expect("prune");
        let packs = chunks() / CHUNKS_PER_PACK;
        let unneeded = packs.div_ceil(UNNEEDED);
        assert_eq!((report.plan.note.packs, report.plan.damage.len()), (unneeded, 0), "{report:?}");
        assert!(report.plan.kept_listed.packs > packs - unneeded);
        assert!(report.index.written < report.index.removed / 4 + 2, "{:?}", report.index);
        assert!(peak_kib() < LIMIT_KIB, "{} KiB", peak_kib());
        vaultferry_tests::measured(&format!("peak {} KiB for {} chunks", peak_kib(), chunks()));
        return;
    }
    if !vaultferry_tests::heavy() {
        return;
    }
    let dir = tempfile::tempdir().expect("folder");
    let store = store(dir.path()).await;
    let repository = Repository::init(store, &password(), &CancellationToken::new()).await.expect("init");
    imagine(&repository).await;
    let test = std::env::current_exe().expect("a process knows its own file");
    let name = "prune::tests::a_prune_of_five_million_chunks_stays_small";
    let output = std::process::Command::new(test)
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, dir.path())
        .output()
        .expect("the test runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let measured = said.lines().find(|line| line.contains("measured:")).expect("a measurement");
    vaultferry_tests::measured(measured.trim_start_matches("measured: "));
}
