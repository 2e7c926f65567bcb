//! Snapshots of disks on real file systems: what they hold, what they say has changed, and what they leave.
//!
//! LVM is not here: the machines that run this have no device mapper. Its own tests have stand-ins for its programs.
#![cfg(target_os = "linux")]

use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_vm::extents;
use vaultferry_plugin_vm::provider::{self, Changes, Disk, Provider, Snapshot, Tracking};
use vaultferry_proto::{Problem, Reason};
use vaultferry_tests::{measured, process};

#[path = "support/loopfs.rs"]
mod loopfs;
use loopfs::LoopFs;

const MIB: u64 = 1 << 20;
/// Of both file systems, with mkfs's defaults.
const BLOCK: u64 = 4096;
const LIMIT: Duration = Duration::from_secs(60);

/// Kind of file system, provider, and an attribute of the image: compressed, or without checksums as libvirt makes them.
const ALL: [(&str, &str, &str); 6] = [
    ("xfs", "reflink", ""),
    ("btrfs", "reflink", ""),
    ("btrfs", "btrfs", ""),
    ("btrfs", "reflink", "+c"),
    ("btrfs", "reflink", "+C"),
    ("btrfs", "btrfs", "+C"),
];

fn disk(name: &str, path: &Path) -> Disk {
    Disk { name: name.into(), path: path.into() }
}

#[track_caller]
fn chosen(disks: &[Disk], name: &str) -> Box<dyn Provider> {
    provider::choose(disks, Some(name)).map_err(|problem| problem.message).expect("a provider")
}

async fn try_take(
    provider: &dyn Provider,
    job: &str,
    disks: &[Disk],
    base: Option<&Tracking>,
) -> Result<Snapshot, Problem> {
    let mut prepared = provider.prepare(job, disks, base, &CancellationToken::new()).await?;
    prepared.take()?;
    prepared.open().await
}

async fn take(provider: &dyn Provider, job: &str, disks: &[Disk], base: Option<&Tracking>) -> Snapshot {
    try_take(provider, job, disks, base).await.expect("a snapshot")
}

fn bytes_of(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

fn read(file: &File, size: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(size).expect("small")];
    file.read_exact_at(&mut bytes, 0).expect("readable");
    bytes
}

/// Where two contents differ; what only one of them has differs.
fn differences(one: &[u8], other: &[u8]) -> Vec<Range<u64>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    let common = one.len().min(other.len());
    let blocks = one[..common].chunks(4096).zip(other[..common].chunks(4096));
    for (number, (a, b)) in blocks.enumerate().filter(|(_, (a, b))| a != b) {
        let start = number as u64 * 4096;
        let differs = a.iter().zip(b).enumerate().filter(|(_, (a, b))| a != b);
        found.extend(differs.map(|(at, _)| start + at as u64..start + at as u64 + 1));
    }
    found.push(common as u64..one.len().max(other.len()) as u64);
    extents::union(&found, &[])
}

/// Does to an image what machines do: writes of all sizes, the same bytes again, holes, reserved space, growth. Tells where.
fn disturb(image: &Path, random: &mut StdRng) -> Vec<Range<u64>> {
    let file = OpenOptions::new().write(true).open(image).expect("the image");
    let mut touched = Vec::new();
    for _ in 0..40 {
        let size = file.metadata().expect("its size").len();
        let length = random.random_range(1..=64 * 1024_u64);
        let offset = random.random_range(0..size - length);
        let place = offset..offset + length;
        let (from, bytes) = (i64::try_from(offset).expect("small"), i64::try_from(length).expect("small"));
        match random.random_range(0..10) {
            0 => {
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(&file, flags, from, bytes).expect("a hole");
            }
            1 => fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, from, bytes).expect("reserved space"),
            2 => {
                file.set_len(size + length).expect("growth");
                // A disk grows where nothing was yet.
                touched.push(size..size + length);
            }
            kind => {
                let byte: u8 = random.random();
                let written: Vec<u8> =
                    (0..length).map(|at| if kind < 5 { 7 } else { byte.wrapping_add(at as u8) }).collect();
                file.write_all_at(&written, offset).expect("a write");
            }
        }
        touched.push(place);
    }
    if random.random_range(0..2) == 0 {
        file.sync_all().expect("on the disk");
    }
    touched.sort_by_key(|range| range.start);
    extents::union(&touched, &[])
}

fn seed() -> u64 {
    let seed =
        std::env::var("VAULTFERRY_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    measured(&format!("VAULTFERRY_TEST_SEED={seed}"));
    seed
}

/// A new image of 48 MiB with data in its first half; `None`: this machine has no such attributes.
fn new_image(fs: &LoopFs, attribute: &str, random: &mut StdRng) -> Option<PathBuf> {
    let dir = fs.path().join("images");
    fs::create_dir_all(&dir).expect("a folder");
    let image = dir.join("machine.img");
    let file = File::create(&image).expect("an image");
    // Only of an empty file.
    if !attribute.is_empty() && process::run(Command::new("chattr").arg(attribute).arg(&image), b"", LIMIT).code != 0 {
        return None;
    }
    file.set_len(48 * MIB).expect("its size");
    for at in 0..24 {
        let byte: u8 = random.random();
        file.write_all_at(&vec![byte; MIB as usize], at * MIB).expect("data");
    }
    Some(image)
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_hold_their_instant_and_say_what_has_changed() {
    let seed = seed();
    for (kind, name, attribute) in ALL {
        let Some(fs) = LoopFs::new(kind, 600) else { continue };
        let mut random = StdRng::seed_from_u64(seed);
        let Some(image) = new_image(&fs, attribute, &mut random) else { continue };
        let disks = [disk("disk0", &image)];
        let provider = chosen(&disks, name);
        let (mut base, mut before): (Option<Tracking>, Vec<u8>) = (None, Vec::new());
        let mut touched = Vec::new();
        for round in 0..8 {
            let about = format!("{kind}, {name}, attribute {attribute:?}, round {round}");
            let now = fs::read(&image).expect("the image");
            let snapshot = take(provider.as_ref(), &format!("{round:032x}"), &disks, base.as_ref()).await;
            // What is written from here on is none of the snapshot's business.
            let next = disturb(&image, &mut random);
            let seen = &snapshot.disks[0];
            assert_eq!((seen.size, seen.name.as_str()), (now.len() as u64, "disk0"), "{about}");
            assert!(read(&seen.file, seen.size) == now, "{about}: the snapshot is not the image of that instant");
            let allocated = &seen.allocated;
            for hole in extents::subtract(std::slice::from_ref(&(0..seen.size)), allocated) {
                let (start, end) = (hole.start as usize, hole.end as usize);
                assert!(now[start..end] == vec![0; end - start], "{about}: {hole:?} is not allocated, and not zeros");
            }
            match (&seen.changes, &base) {
                (Changes::Unknown(_), None) => {}
                (Changes::Since(ranges), Some(_)) => {
                    let really: Vec<_> = differences(&before, &now);
                    let missed = extents::subtract(&really, ranges);
                    assert!(missed.is_empty(), "{about}: changed, and not told: {missed:?}");
                    let aligned = extents::align(&touched, BLOCK, seen.size);
                    if attribute != "+c" {
                        let most = bytes_of(&aligned) * 3 / 2 + MIB;
                        assert!(bytes_of(ranges) <= most, "{about}: {} bytes told, {most} at most", bytes_of(ranges));
                    }
                    measured(&format!(
                        "{about}: {} KiB told of {} KiB touched",
                        bytes_of(ranges) >> 10,
                        bytes_of(&aligned) >> 10
                    ));
                }
                (changes, base) => panic!("{about}: {changes:?} against {base:?}"),
            }
            let tracking = provider::release(snapshot, true).await.expect("released").expect("a tracking");
            let kept = fs::read(&tracking.disks[0].path).expect("the clone that was kept");
            assert!(kept == now, "{about}: the clone has changed with the image");
            // As it lies in a point.
            let text = serde_json::to_string(&tracking).expect("writable");
            let tracking: Tracking = serde_json::from_str(&text).expect("readable");
            let removed = provider.remove_leftovers(&disks, std::slice::from_ref(&tracking)).await.expect("swept");
            assert_eq!(removed.len(), usize::from(round > 0), "{about}: {removed:?}");
            if round == 5 && attribute.is_empty() {
                // Another file in the image's place, with the same blocks.
                let copy = image.with_extension("copy");
                let mut clone = Command::new("cp");
                process::run(clone.arg("--reflink=auto").args([&image, &copy]), b"", LIMIT).success();
                fs::rename(&copy, &image).expect("in its place");
            }
            (base, before, touched) = (Some(tracking), now, next);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doubt_is_told_with_its_reason() {
    for (kind, name, _) in &ALL[..3] {
        let Some(fs) = LoopFs::new(kind, 600) else { continue };
        let image = new_image(&fs, "", &mut StdRng::seed_from_u64(1)).expect("an image");
        let disks = [disk("disk0", &image)];
        let provider = chosen(&disks, name);
        let base = provider::release(take(provider.as_ref(), "01", &disks, None).await, true).await.expect("released");
        let base = base.expect("a tracking");
        let mut job = 2;
        let mut reason = async |base: &Tracking| {
            job += 1;
            let snapshot = take(provider.as_ref(), &format!("{job:02}"), &disks, Some(base)).await;
            let changes = snapshot.disks[0].changes.clone();
            assert_eq!(provider::release(snapshot, false).await.expect("released"), None);
            match changes {
                Changes::Since(ranges) => format!("since {}", ranges.len()),
                Changes::Unknown(why) => why,
            }
        };
        assert_eq!(reason(&base).await, "since 0", "{kind} {name}: nothing has changed");
        // The image has moved to another disk, and the old one is still there: equal addresses would mean nothing.
        if let Some(elsewhere) = LoopFs::new(kind, 600) {
            let moved = new_image(&elsewhere, "", &mut StdRng::seed_from_u64(2)).expect("an image");
            let snapshot = take(provider.as_ref(), "0moved", &[disk("disk0", &moved)], Some(&base)).await;
            let Changes::Unknown(why) = &snapshot.disks[0].changes else { panic!("{:?}", snapshot.disks[0].changes) };
            assert!(why.contains("another file system"), "{kind} {name}: {why}");
        }
        let other = Tracking { provider: "other".into(), ..base.clone() };
        assert!(reason(&other).await.contains("provider other"));
        let mut other = base.clone();
        other.disks[0].name = "disk7".into();
        assert!(reason(&other).await.contains("no disk0"));
        let mut other = base.clone();
        other.disks[0].changed_at_ns -= 1;
        assert!(reason(&other).await.contains("touched"));
        let mut other = base.clone();
        other.disks[0].path = image.with_extension("missing");
        assert!(reason(&other).await.contains("gone"));
        let mut other = base.clone();
        if let Some(facts) = &mut other.disks[0].subvolume {
            facts.push('0');
            assert!(reason(&other).await.contains("touched"));
        } else {
            // A real one: a byte of the clone, with the same size and the same mtime afterwards.
            let clone = OpenOptions::new().write(true).open(&base.disks[0].path).expect("the clone");
            let modified = clone.metadata().expect("its facts").modified().expect("a time");
            clone.write_all_at(&[1], 5).expect("a byte");
            clone.set_modified(modified).expect("set back");
            drop(clone);
            assert!(reason(&base).await.contains("touched"));
        }
        let left = provider.remove_leftovers(&disks, &[]).await.expect("swept");
        assert_eq!(left.len(), 1, "{left:?}");
    }
}

/// What a child of the next test does: provider and image.
const CRASH: &str = "VAULTFERRY_TEST_CRASH";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_job_leaves_is_removed_and_nothing_else() {
    if let Ok(told) = std::env::var(CRASH) {
        let (name, image) = told.split_once(' ').expect("provider and image");
        let disks = [disk("disk0", Path::new(image))];
        let mut prepared = chosen(&disks, name)
            .prepare("0dead", &disks, None, &CancellationToken::new())
            .await
            .map_err(|problem| problem.message)
            .expect("prepared");
        prepared.take().expect("taken");
        std::process::abort();
    }
    for (kind, name, _) in &ALL[..3] {
        let Some(fs) = LoopFs::new(kind, 600) else { continue };
        let image = new_image(&fs, "", &mut StdRng::seed_from_u64(1)).expect("an image");
        let mut child = Command::new(std::env::current_exe().expect("a test"));
        child.args(["--exact", "what_a_dead_job_leaves_is_removed_and_nothing_else"]);
        child.env(CRASH, format!("{name} {}", image.display()));
        let ended = process::run(&mut child, b"", LIMIT);
        assert_eq!(ended.code, 128 + 6, "it aborts: {}\n{}", ended.text(), ended.stderr);

        let folder = image.with_file_name(".vaultferry-snapshots").join("machine.img");
        let foreign = [folder.join("notes.txt"), folder.join("0dead-disk0.raw.bak")];
        for path in &foreign {
            fs::write(path, "not ours").expect("a file");
        }
        let work = folder.join("77");
        if *kind == "btrfs" {
            let mut btrfs = Command::new("btrfs");
            process::run(btrfs.args(["subvolume", "create"]).arg(&work), b"", LIMIT).success();
        }
        let disks = [disk("disk0", &image)];
        let provider = chosen(&disks, name);
        // Meanwhile another job runs.
        let running = take(provider.as_ref(), "0alive", &disks, None).await;
        let removed = provider.remove_leftovers(&disks, &[]).await.expect("swept");
        assert_eq!(removed.len(), 1, "{kind} {name}: {removed:?}");
        assert!(removed[0].contains("/0dead"), "{removed:?}");
        assert!(foreign.iter().all(|path| path.exists()), "what is not ours stays");
        assert!(work.exists() || *kind != "btrfs", "a subvolume that can be written to is somebody's work");
        let seen = &running.disks[0];
        assert!(read(&seen.file, seen.size) == fs::read(&image).expect("the image"), "the running job's is whole");

        // A job that breaks off leaves nothing.
        drop(running);
        let left: Vec<_> =
            fs::read_dir(&folder).expect("the folder").map(|entry| entry.expect("an entry").path()).collect();
        assert!(left.iter().all(|path| foreign.contains(path) || *path == work), "{left:?}");
        let prepared = provider.prepare("0idle", &disks, None, &CancellationToken::new()).await;
        drop(prepared.map_err(|problem| problem.message).expect("prepared"));
        assert!(provider.remove_leftovers(&disks, &[]).await.expect("swept").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_fits_the_file_system_or_says_what_would() {
    for kind in ["xfs", "btrfs"] {
        let Some(fs) = LoopFs::new(kind, 600) else { continue };
        let image = new_image(&fs, "", &mut StdRng::seed_from_u64(1)).expect("an image");
        let _writer = OpenOptions::new().write(true).open(&image).expect("a writer");
        let provider = provider::choose(&[disk("disk0", &image)], None).map_err(|problem| problem.message);
        assert_eq!(provider.expect("a provider").name(), "reflink");
    }
    let Some(fs) = LoopFs::new("ext4", 100) else { return };
    let image = new_image(&fs, "", &mut StdRng::seed_from_u64(1)).expect("an image");
    let disks = [disk("disk0", &image)];
    let writer = OpenOptions::new().write(true).open(&image).expect("a writer");
    let problem = provider::choose(&disks, None).map(drop).expect_err("it is in use");
    assert_eq!(problem.reason, Reason::SnapshotUnsupported, "{problem:?}");
    drop(writer);
    assert_eq!(provider::choose(&disks, None).map_err(|problem| problem.message).expect("off").name(), "offline");
    for name in ["reflink", "btrfs"] {
        let problem = try_take(chosen(&disks, name).as_ref(), "01", &disks, None).await.expect_err("not on ext4");
        assert_eq!(problem.reason, Reason::SnapshotUnsupported, "{name}: {problem:?}");
        assert!(problem.fix.contains("offline") || problem.fix.contains("reflink"), "{problem:?}");
    }
    let folder = image.with_file_name(".vaultferry-snapshots").join("machine.img");
    assert_eq!(fs::read_dir(folder).map_or(0, Iterator::count), 0, "a refused job leaves no clone");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_disks_are_one_snapshot_or_refused() {
    for (kind, name, _) in &ALL[..3] {
        let Some(fs) = LoopFs::new(kind, 600) else { continue };
        let first = new_image(&fs, "", &mut StdRng::seed_from_u64(1)).expect("an image");
        let second = first.with_file_name("data.img");
        fs::write(&second, vec![9; 300_000]).expect("another image");
        let disks = [disk("disk0", &first), disk("disk1", &second)];
        let provider = chosen(&disks, name);
        let snapshot = take(provider.as_ref(), "01", &disks, None).await;
        let sizes: Vec<u64> = snapshot.disks.iter().map(|disk| disk.size).collect();
        assert_eq!(sizes, [48 * MIB, 300_000]);
        let base = provider::release(snapshot, true).await.expect("released").expect("a tracking");
        let writer = OpenOptions::new().write(true).open(&second).expect("the image");
        writer.write_all_at(&[1; 10], 150_000).expect("a write");
        let snapshot = take(provider.as_ref(), "02", &disks, Some(&base)).await;
        assert_eq!(snapshot.disks[0].changes, Changes::Since(Vec::new()), "{kind} {name}");
        let Changes::Since(ranges) = &snapshot.disks[1].changes else { panic!("{:?}", snapshot.disks[1].changes) };
        assert!(ranges.len() == 1 && ranges[0].contains(&150_005) && bytes_of(ranges) <= 8 * BLOCK, "{ranges:?}");
        provider::release(snapshot, false).await.expect("released");
        if *name == "btrfs" {
            let other = fs.path().join("other");
            process::run(Command::new("btrfs").args(["subvolume", "create"]).arg(&other), b"", LIMIT).success();
            let apart = other.join("data.img");
            fs::write(&apart, "an image").expect("a third image");
            let disks = [disk("disk0", &first), disk("disk1", &apart)];
            let problem = try_take(provider.as_ref(), "03", &disks, None).await.expect_err("two subvolumes");
            assert_eq!(problem.reason, Reason::SnapshotUnsupported);
        }
    }
}

/// A loop device over a file, without a mount. Dropping it gives it back.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn new(image: &Path) -> Self {
        let mut losetup = Command::new("/usr/sbin/losetup");
        let made = process::run(losetup.args(["--find", "--show"]).arg(image), b"", LIMIT).success();
        Self(made.text().trim().into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("/usr/sbin/losetup").arg("--detach").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_read_when_nobody_uses_it_and_a_write_fails_the_backup() {
    let Some(fs) = LoopFs::new("ext4", 100) else { return };
    let image = new_image(&fs, "", &mut StdRng::seed_from_u64(1)).expect("an image");
    let content = fs::read(&image).expect("the image");
    let device = LoopDevice::new(&image);
    let disks = [disk("disk0", &device.0)];
    let provider = provider::choose(&disks, None).map_err(|problem| problem.message).expect("a provider");
    assert_eq!(provider.name(), "offline");
    let snapshot = take(provider.as_ref(), "01", &disks, None).await;
    let seen = &snapshot.disks[0];
    assert_eq!((seen.size, bytes_of(&seen.allocated)), (48 * MIB, 48 * MIB));
    assert!(read(&seen.file, seen.size) == content);
    assert_eq!(provider::release(snapshot, true).await.expect("nobody wrote"), None);

    let snapshot = take(provider.as_ref(), "02", &disks, None).await;
    // It waits in the device's buffers when nobody looks.
    let writer = OpenOptions::new().write(true).open(&device.0).expect("the device");
    writer.write_all_at(&[1; 512], 30 * MIB).expect("a write");
    drop(writer);
    let problem = provider::release(snapshot, false).await.expect_err("a sector differs");
    assert_eq!(problem.reason, Reason::SourceChanged, "{problem:?}");

    let snapshot = take(provider.as_ref(), "03", &disks, None).await;
    let writer = OpenOptions::new().write(true).open(&device.0).expect("the device");
    let problem = provider::release(snapshot, false).await.expect_err("somebody may write");
    assert_eq!(problem.reason, Reason::SourceChanged, "{problem:?}");
    let problem = try_take(provider.as_ref(), "04", &disks, None).await.expect_err("somebody may write");
    assert_eq!(problem.reason, Reason::SourceInUse, "{problem:?}");
    drop(writer);

    // The image under the device is in use by the kernel.
    let under = [disk("disk0", &image)];
    let problem = try_take(chosen(&under, "offline").as_ref(), "05", &under, None).await.expect_err("it has a device");
    assert_eq!(problem.reason, Reason::SourceInUse, "{problem:?}");

    // What is mounted is in use, too.
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
    let path = fs.path().display().to_string();
    let mounted = mounts.lines().find(|line| line.contains(&path)).and_then(|line| line.split(' ').next());
    let mounted = [disk("disk0", Path::new(mounted.expect("its device")))];
    let problem = try_take(chosen(&mounted, "offline").as_ref(), "06", &mounted, None).await.expect_err("mounted");
    assert_eq!(problem.reason, Reason::SourceInUse);
    assert!(problem.message.contains(&format!("mounted at {path}")), "{problem:?}");
}
