//! The writer: streams in parts, several at once, images with holes; memory and rate keep their limits; restic reads all of it.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use rand::{RngExt as _, SeedableRng as _};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::sync::CancellationToken;
use vaultferry_vault::location::{Access, Location};
use vaultferry_vault::meter::Meter;
use vaultferry_vault::reader::PointReader;
use vaultferry_vault::repository::{FileKind, PACKS, Repository};
use vaultferry_vault::store::memory::Memory;
use vaultferry_vault::store::{self, Entry, Key, Page, Put, Store, Tier};
use vaultferry_vault::writer::{
    Backup, Compression, Extent, IMAGE_CHUNK, Options, PACK_SIZE, SnapshotMeta, Staged, WriteError,
};

const INSTANCE: &str = "0123456789abcdef0123456789abcdef";

fn password() -> SecretString {
    SecretString::from("5e".repeat(32))
}

fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rand::rngs::StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

async fn repository(store: &store::Shared) -> Arc<Repository> {
    Arc::new(Repository::init(store.clone(), &password(), &CancellationToken::new()).await.expect("init"))
}

async fn begin(repository: &Arc<Repository>, options: Options) -> Backup {
    Backup::begin(repository.clone(), options, Arc::default(), &CancellationToken::new()).await.expect("begin")
}

/// Stages the backup, and makes the point visible without ceremony.
async fn publish(repository: &Arc<Repository>, backup: Backup) -> Staged {
    let meta = SnapshotMeta { time: jiff::Timestamp::now(), hostname: "host".to_owned(), tags: Vec::new() };
    let staged = backup.stage(meta, &CancellationToken::new()).await.expect("stage");
    let key = FileKind::Snapshot.key(&staged.snapshot_id);
    repository.store().put_if_absent(&key, staged.sealed.clone()).await.expect("published");
    staged
}

struct Restic(tempfile::TempDir, Access);

impl Restic {
    async fn new() -> (Self, Arc<Repository>) {
        let dir = tempfile::tempdir().expect("folder");
        let location = Location::Folder(dir.path().join("vault"));
        let access = Access { location, endpoint: None, credential: None, store_deadline: Duration::from_secs(5) };
        access.create_root().await.expect("create");
        access.create_instance(INSTANCE).await.expect("create");
        let store = access.open_instance(INSTANCE).expect("open");
        let repository = repository(&store).await;
        (Self(dir, access), repository)
    }

    fn run(&self, args: &[&str]) -> Vec<u8> {
        let output = std::process::Command::new("restic")
            .args(["--no-cache", "--no-lock", "-r"])
            .arg(self.1.restic_repository(INSTANCE))
            .args(args)
            .env("RESTIC_PASSWORD", password().expose_secret())
            .output()
            .expect("restic is installed (make setup)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// What `restic dump --archive tar | tar -x --to-stdout` gives: the way the documentation tells to join parts.
    fn joined(&self, path: &str) -> Vec<u8> {
        let tar = self.0.path().join("parts.tar");
        std::fs::write(&tar, self.run(&["dump", "--archive", "tar", "latest", path])).expect("written");
        let output = std::process::Command::new("tar").args(["-x", "--to-stdout", "-f"]).arg(&tar).output();
        output.expect("tar is installed").stdout
    }
}

fn in_parts(part_size: usize) -> Options {
    Options { part_size: part_size as u64, ..Options::default() }
}

#[tokio::test]
async fn a_long_stream_is_stored_in_parts_that_restic_reads() {
    let (restic, repository) = Restic::new().await;
    let part = 3 << 20;
    let mut long = random(1, 10 << 20);
    let mut backup = begin(&repository, in_parts(part)).await;
    let cancel = CancellationToken::new();
    let summary = backup.write_stream("disk.raw", long.as_slice(), &cancel).await.expect("written");
    assert_eq!(summary.size, 10 << 20);
    // Exactly one part long is not longer than a part.
    backup.write_stream("exact", &long[..part], &cancel).await.expect("written");
    let staged = publish(&repository, backup).await;
    let point = PointReader::open(repository.clone(), staged.snapshot_id, &cancel).await.expect("point");
    for (name, bytes) in [("disk.raw", long.as_slice()), ("exact", &long[..part])] {
        let mut read = Vec::new();
        point.copy_stream(name, &mut read, &Meter::default(), &cancel).await.expect("read");
        assert!(read == bytes, "{name}");
    }
    restic.run(&["check", "--read-data"]);
    for (number, bytes) in long.chunks(part).enumerate() {
        let path = format!("/disk.raw.parts/{number:05}/part");
        assert!(restic.run(&["dump", "latest", &path]) == bytes, "{path}");
    }
    assert!(restic.joined("/disk.raw.parts") == long);
    assert!(restic.run(&["dump", "latest", "/exact"]) == long[..part]);
    // A change in the last part leaves the trees of the others as they are: new are that part's, their parent and the root.
    let trees = || {
        let text = String::from_utf8(restic.run(&["list", "blobs"])).expect("text");
        text.lines().filter(|line| line.starts_with("tree")).count()
    };
    let before = trees();
    long[9 << 20] ^= 1;
    let mut backup = begin(&repository, in_parts(part)).await;
    backup.write_stream("disk.raw", long.as_slice(), &cancel).await.expect("written");
    backup.write_stream("exact", &long[..part], &cancel).await.expect("written");
    let staged = publish(&repository, backup).await;
    assert_eq!(trees(), before + 3);
    assert!(staged.stored_bytes < 9 << 20, "{}", staged.stored_bytes);
    assert!(restic.joined("/disk.raw.parts") == long);
}

#[tokio::test]
async fn several_streams_are_written_at_once() {
    let (restic, repository) = Restic::new().await;
    let backup = begin(&repository, Options { bytes_in_flight: 48 << 20, ..Options::default() }).await;
    let contents: Vec<Vec<u8>> = (0..5).map(|n| random(n % 4, 17 << 20)).collect();
    let tasks = contents.iter().enumerate().map(|(number, content)| {
        let (streams, content) = (backup.streams(), content.clone());
        let write =
            async move { streams.write(&format!("s{number}"), content.as_slice(), &CancellationToken::new()).await };
        tokio::spawn(write)
    });
    for task in futures::future::join_all(tasks).await {
        task.expect("no panic").expect("written");
    }
    let staged = publish(&repository, backup).await;
    assert_eq!(staged.streams.len(), 5);
    assert!(staged.packs.iter().all(|(_, size)| *size <= PACK_SIZE as u64));
    // The first and the last stream are the same bytes, and most of them met each other.
    assert!(staged.stored_bytes < 72 << 20, "{}", staged.stored_bytes);
    restic.run(&["check", "--read-data"]);
    for (number, content) in contents.iter().enumerate() {
        assert!(restic.run(&["dump", "latest", &format!("/s{number}")]) == *content, "s{number}");
    }
}

#[tokio::test]
async fn an_image_keeps_its_holes_and_stores_its_blocks_once() {
    let (restic, repository) = Restic::new().await;
    let mut random_numbers = rand::rngs::StdRng::seed_from_u64(5);
    let (mut extents, mut image) = (Vec::new(), Vec::new());
    while image.len() < 30 << 20 {
        let length = random_numbers.random_range(1..4 << 20);
        let extent = if random_numbers.random_bool(0.5) {
            let data = random(image.len() as u64, length);
            image.extend_from_slice(&data);
            Extent::Data(data.into())
        } else {
            image.resize(image.len() + length, 0);
            Extent::Hole(length as u64)
        };
        extents.push(extent);
    }
    // A very long hole costs no memory and little time.
    let hole = 3_u64 << 40;
    extents.push(Extent::Hole(hole));
    let length = image.len() as u64 + hole;
    let backup = begin(&repository, Options::default()).await;
    let cancel = CancellationToken::new();
    let source = |extents: &[Extent]| stream::iter(extents.iter().cloned().map(Ok).collect::<Vec<_>>());
    let summary = backup.streams().write_image("long.raw", length, source(&extents), &cancel).await.expect("written");
    assert_eq!(summary.size, length);
    extents.pop();
    let short = backup.streams().write_image("disk0.raw", image.len() as u64, source(&extents), &cancel).await;
    assert_eq!(short.expect("written").size, image.len() as u64);
    publish(&repository, backup).await;
    restic.run(&["check"]);
    assert!(restic.run(&["dump", "latest", "/disk0.raw"]) == image);
    // One changed byte is one changed chunk.
    image[(20 << 20) + 5] ^= 1;
    let backup = begin(&repository, Options::default()).await;
    let changed = vec![Extent::Data(image.clone().into())];
    backup.streams().write_image("disk0.raw", image.len() as u64, source(&changed), &cancel).await.expect("written");
    let staged = publish(&repository, backup).await;
    assert!(staged.stored_bytes < 2 * IMAGE_CHUNK as u64, "{}", staged.stored_bytes);
    assert!(restic.run(&["dump", "latest", "/disk0.raw"]) == image);
    for length in [image.len() as u64 - 1, image.len() as u64 + 1] {
        let backup = begin(&repository, Options::default()).await;
        let wrong = backup.streams().write_image("disk0.raw", length, source(&changed), &cancel).await;
        assert!(matches!(wrong, Err(WriteError::Input(_))), "{length}");
    }
}

#[tokio::test]
async fn compression_is_off_or_a_level() {
    let (restic, repository) = Restic::new().await;
    let text: Vec<u8> =
        (0..400_000_u32).flat_map(|n| format!("{n}\t{}\n", n.wrapping_mul(2654435761)).into_bytes()).collect();
    let mut sizes = Vec::new();
    for (name, compression) in [("off", Compression::Off), ("1", Compression::Level(1)), ("19", Compression::Level(19))]
    {
        // A salt keeps the chunks apart.
        let content = [name.as_bytes(), &text[sizes.len() * 1000..3_000_000]].concat();
        let mut backup = begin(&repository, Options { compression, ..Options::default() }).await;
        backup.write_stream("s", content.as_slice(), &CancellationToken::new()).await.expect("written");
        let staged = publish(&repository, backup).await;
        assert!(restic.run(&["dump", "latest", "/s"]) == content);
        sizes.push(staged.stored_bytes * 100 / content.len() as u64);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    restic.run(&["check", "--read-data"]);
    assert!(sizes[0] >= 100 && sizes[1] < 60 && sizes[2] < sizes[1], "{sizes:?} % of the source");
}

#[tokio::test]
async fn a_stream_that_was_not_written_to_its_end_poisons_the_backup() {
    let store: store::Shared = Arc::new(Memory::new("memory"));
    let repository = repository(&store).await;
    let backup = begin(&repository, Options::default()).await;
    let (streams, cancel) = (backup.streams(), CancellationToken::new());
    streams.write("good", &b"x"[..], &cancel).await.expect("written");
    assert!(streams.write("x.parts", &b"x"[..], &cancel).await.is_err(), "the name of parts");
    assert!(streams.write("good", &b"x"[..], &cancel).await.is_err(), "twice");
    let waiting = streams.write("never", NeverReady, &cancel);
    tokio::time::timeout(Duration::from_millis(20), waiting).await.expect_err("dropped");
    let meta = SnapshotMeta { time: jiff::Timestamp::now(), hostname: String::new(), tags: Vec::new() };
    let refused = backup.stage(meta, &cancel).await.expect_err("one stream is not complete");
    assert!(refused.to_string().contains("never"), "{refused}");
}

struct NeverReady;

impl AsyncRead for NeverReady {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Poll::Pending
    }
}

/// A store that takes its time with packs, counts their bytes when they are stored, and keeps none of them.
#[derive(Debug)]
struct Slow {
    memory: Memory,
    stored: Arc<AtomicU64>,
    delays_ms: Range<u64>,
}

#[async_trait]
impl Store for Slow {
    fn location(&self) -> &str {
        self.memory.location()
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>, store::Error> {
        self.memory.head(key).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, store::Error> {
        self.memory.get(key, range).await
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put, store::Error> {
        if !key.as_str().starts_with(PACKS) {
            return self.memory.put_if_absent(key, body).await;
        }
        if !self.delays_ms.is_empty() {
            let delay = rand::rng().random_range(self.delays_ms.clone());
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        self.stored.fetch_add(body.len() as u64, Ordering::SeqCst);
        Ok(Put::Created)
    }

    async fn list_page(&self, prefix: &str, next: Option<&str>) -> Result<Page, store::Error> {
        self.memory.list_page(prefix, next).await
    }

    async fn delete(&self, key: &Key) -> Result<(), store::Error> {
        self.memory.delete(key).await
    }

    async fn set_tier(&self, key: &Key, tier: Tier) -> Result<(), store::Error> {
        self.memory.set_tier(key, tier).await
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<Put, store::Error> {
        self.memory.copy(from, to).await
    }

    async fn protect(&self, key: &Key, until: jiff::Timestamp, locked: bool) -> Result<(), store::Error> {
        self.memory.protect(key, until, locked).await
    }

    async fn set_legal_hold(&self, key: &Key, hold: bool) -> Result<(), store::Error> {
        self.memory.set_legal_hold(key, hold).await
    }
}

/// Bytes that nobody has seen before and that do not compress, made as fast as they are read. Notes the most that was read and not yet
/// stored, over all that share the counters.
struct Generator {
    state: u64,
    left: u64,
    read: Arc<AtomicU64>,
    stored: Arc<AtomicU64>,
    most: Arc<AtomicU64>,
}

impl AsyncRead for Generator {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let room = out.initialize_unfilled();
        let size = room.len().min(128 << 10).min(usize::try_from(self.left).unwrap_or(usize::MAX));
        for word in room[..size].chunks_mut(8) {
            // SplitMix64.
            self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes()[..word.len()]);
        }
        out.advance(size);
        self.left -= size as u64;
        let read = self.read.fetch_add(size as u64, Ordering::SeqCst) + size as u64;
        self.most.fetch_max(read.saturating_sub(self.stored.load(Ordering::SeqCst)), Ordering::SeqCst);
        Poll::Ready(Ok(()))
    }
}

/// Writes so many streams of generated bytes at once; returns the most bytes that were read and not yet stored, and what was staged.
async fn generate(seed: u64, streams: u64, bytes: u64, delays_ms: Range<u64>, options: Options) -> (u64, Staged) {
    let (stored, read, most): (Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicU64>) = Default::default();
    let store: store::Shared = Arc::new(Slow { memory: Memory::new("memory"), stored: stored.clone(), delays_ms });
    let backup = begin(&repository(&store).await, options).await;
    let writes = (0..streams).map(|number| {
        let (read, stored, most) = (read.clone(), stored.clone(), most.clone());
        let input = Generator { state: seed * 1000 + number, left: bytes, read, stored, most };
        let streams = backup.streams();
        tokio::spawn(async move { streams.write(&format!("s{number}"), input, &CancellationToken::new()).await })
    });
    for write in futures::future::join_all(writes).await {
        write.expect("no panic").expect("written");
    }
    let meta = SnapshotMeta { time: jiff::Timestamp::now(), hostname: String::new(), tags: Vec::new() };
    let staged = backup.stage(meta, &CancellationToken::new()).await.expect("staged");
    (most.load(Ordering::SeqCst), staged)
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_in_flight_never_pass_the_limit_however_slow_the_store_is() {
    let seed = rand::random::<u16>().into();
    let mut numbers = rand::rngs::StdRng::seed_from_u64(seed);
    for round in 0..4 {
        let limit = numbers.random_range(48_u64..160) << 20;
        let streams = numbers.random_range(1..5);
        let slowest = numbers.random_range(400..800);
        let options = Options { bytes_in_flight: limit, ..Options::default() };
        let (most, _) = generate(seed + round, streams, (320 << 20) / streams, 200..slowest, options).await;
        let what = format!("seed {seed}, round {round}: {streams} streams, {} MiB of {} MiB", most >> 20, limit >> 20);
        assert!(most <= limit, "{what}");
        // And the memory is used.
        assert!(most > limit / 2, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_limit_is_kept() {
    let started = tokio::time::Instant::now();
    let options = Options { upload_bytes_per_s: Some(10 << 20), ..Options::default() };
    let (_, staged) = generate(7, 1, 100 << 20, 0..0, options).await;
    let took = started.elapsed().as_secs_f64();
    let expected = (staged.stored_bytes - PACK_SIZE as u64) as f64 / f64::from(10 << 20);
    // The last file passes when those before it have had their time.
    assert!((expected - 1.0..expected + 2.0).contains(&took), "{took} s, not about {expected} s");
}

/// The writer's memory does not depend on how much passes. 128 MiB is what the plugin may have, with all that is in it.
#[cfg(target_os = "linux")]
mod memory {
    use super::{Options, generate};

    fn peak_mib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") >> 10
    }

    async fn stays_bounded(gigabytes: f64) {
        vaultferry_vault::memory::give_large_blocks_back();
        let bytes = (gigabytes * 1e9) as u64;
        let (_, staged) = generate(9, 1, bytes, 0..0, Options::default()).await;
        assert!(staged.source_bytes == bytes && staged.stored_bytes > bytes);
        let (chunks, peak) = (bytes >> 20, peak_mib());
        vaultferry_tests::measured(&format!("{gigabytes} GB of new chunks: peak {peak} MiB"));
        assert!(peak <= 128 + ((chunks * 48) >> 20), "{peak} MiB");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn memory_stays_bounded_while_300_mb_pass() {
        stays_bounded(0.3).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn heavy_memory_stays_bounded_while_3_gb_pass() {
        if vaultferry_tests::heavy() {
            stays_bounded(3.0).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn heavy_memory_stays_bounded_while_30_gb_pass() {
        if vaultferry_tests::heavy() {
            stays_bounded(30.0).await;
        }
    }
}
