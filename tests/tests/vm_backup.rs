//! Machines' disks end to end: images that nobody writes, images with mounted file systems under load, several disks of one instant; restored
//! as files and onto devices, and read by restic without us.
//!
//! Loop devices need root. Where they cannot be had, a line says so, and the test ends.
#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use vaultferry_tests::agent::{Agent, Job, Setup, number};
use vaultferry_tests::scratch::Scratch;
use vaultferry_tests::{policy, process};

#[path = "support/loopfs.rs"]
mod loopfs;

use loopfs::LoopFs;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(120);

/// An agent with a section `[vm]` that protects these disks as `machine`.
fn machine(section: &str, disks: &[PathBuf]) -> Agent {
    let agent = Setup::new().config(&format!("[vm]\n{section}\n")).start();
    // Of jobs that are to fail.
    for reason in ["TargetExists", "TargetInUse", "TargetFull", "InvalidRequest", "ConsistencyNotReached"] {
        agent.expect_log(reason);
    }
    let policy = policy::quiet("machines").replace("\"postgres\"", "\"vm\"");
    let policy = agent.write("machines.toml", &policy);
    agent.cli(&["policy", "create", "-f", &policy.display().to_string()]).success();
    let mut source = format!("disk://{}", disks[0].display());
    for (number, disk) in disks.iter().enumerate().skip(1) {
        source.push_str(&format!("{}disk={}", if number == 1 { '?' } else { '&' }, disk.display()));
    }
    let arguments = ["instance", "create", "--source", &source, "--policy", "machines", "--name", "machine"];
    agent.cli_json(&arguments).success();
    agent
}

/// The point of that id, as it is shown.
fn point(agent: &Agent, id: &str) -> Value {
    agent.cli_json(&["point", "show", "machine", id]).success().json()["point"].clone()
}

/// A backup that completes, with warnings or without.
fn back_up(agent: &Agent) -> Job {
    agent.cli_json(&["backup", "machine", "--wait"]).success().job()
}

fn restore(agent: &Agent, point: &str, to: &Path, more: &[&str]) -> vaultferry_tests::agent::Reply {
    let to = to.display().to_string();
    agent.cli_json(&[&["restore", "disk", "machine", "--point", point, "--to", &to, "--wait"][..], more].concat())
}

/// Both files have the same bytes; the first place where they have not is told.
fn assert_same(one: &Path, other: &Path) {
    let (mut a, mut b) = (File::open(one).expect("opened"), File::open(other).expect("opened"));
    let length = b.seek(SeekFrom::End(0)).expect("its length");
    assert_eq!(
        a.seek(SeekFrom::End(0)).expect("its length"),
        length,
        "the lengths of {} and {}",
        one.display(),
        other.display()
    );
    let (mut left, mut right) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    a.rewind().expect("rewound");
    b.rewind().expect("rewound");
    for at in (0..length).step_by(MIB as usize) {
        let size = (length - at).min(MIB) as usize;
        a.read_exact(&mut left[..size]).expect("read");
        b.read_exact(&mut right[..size]).expect("read");
        assert!(left[..size] == right[..size], "{} and {} differ in the MiB at {at}", one.display(), other.display());
    }
}

/// Bytes that a file takes on its disk.
fn allocated(path: &Path) -> u64 {
    fs::metadata(path).expect("metadata").blocks() * 512
}

/// An image with data here and there, and holes between.
fn sparse_image(path: &Path, size: u64, seed: u64) {
    let file = File::create(path).expect("made");
    file.set_len(size).expect("its length");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut data = vec![0; 300_000];
    for _ in 0..20 {
        random.fill(&mut data[..]);
        let at = random.random_range(0..size - data.len() as u64);
        file.write_all_at(&data, at).expect("written");
    }
    file.sync_all().expect("synced");
}

/// A loop device over a file; detached when dropped.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn over(file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() && !name.is_empty() {
            return Some(Self(PathBuf::from(name)));
        }
        let why = String::from_utf8_lossy(&output.stderr);
        vaultferry_tests::measured(&format!("skipped: no loop device: {}", why.trim()));
        None
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// An image with a mounted file system in it; unmounted when dropped.
struct Mounted {
    image: PathBuf,
    point: PathBuf,
}

impl Mounted {
    fn new(image: PathBuf, point: PathBuf, megabytes: u64) -> Self {
        File::create(&image).and_then(|file| file.set_len(megabytes * MIB)).expect("an image");
        process::run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image), b"", LIMIT).success();
        fs::create_dir_all(&point).expect("a mount point");
        process::run(Command::new("mount").args(["-o", "loop"]).args([&image, &point]), b"", LIMIT).success();
        Self { image, point }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.point).status();
    }
}

/// A thread that writes until it is dropped.
struct Load {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    fn start(mut write: impl FnMut(u64) + Send + 'static) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), rounds.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                write(counted.fetch_add(1, Ordering::Relaxed));
            }
        });
        Self { stop, rounds, thread: Some(thread) }
    }

    /// Waits until it has written so often more.
    fn wait_for(&self, rounds: u64) {
        let from = self.rounds.load(Ordering::Relaxed);
        vaultferry_tests::wait_for("the write load to go on", LIMIT, || {
            (self.rounds.load(Ordering::Relaxed) >= from + rounds).then_some(())
        });
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Overwrites pieces of eight files at random.
fn file_load(folder: PathBuf, seed: u64) -> Load {
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    Load::start(move |_| {
        let path = folder.join(format!("file{}", random.random_range(0..8)));
        let file = File::options().create(true).truncate(false).write(true).open(path).expect("opened");
        let mut piece = vec![0; random.random_range(1..200_000)];
        random.fill(&mut piece[..]);
        file.write_all_at(&piece, random.random_range(0..6 * MIB)).expect("written");
        if random.random_bool(0.1) {
            file.sync_all().expect("synced");
        }
    })
}

/// Where the provider keeps the clones of an image.
fn clones_of(image: &Path) -> PathBuf {
    image.with_file_name(".vaultferry-snapshots").join(image.file_name().expect("a name"))
}

/// The clone that the provider has kept of the backup by that job.
fn clone_of(image: &Path, job: &Job) -> PathBuf {
    let folder = clones_of(image);
    let entries = fs::read_dir(&folder).expect("the folder of clones");
    let names: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    let name = image_disk(image);
    let found = names.iter().find(|path| {
        let text = path.file_name().expect("a name").to_string_lossy().into_owned();
        text.contains(job.id()) && text.contains(name)
    });
    found.unwrap_or_else(|| panic!("no clone of job {} in {names:?}", job.id())).clone()
}

/// Images are called as their disks here.
fn image_disk(image: &Path) -> &str {
    image.file_stem().and_then(|stem| stem.to_str()).expect("a plain name")
}

#[test]
fn an_image_that_nobody_writes_comes_back_with_its_holes() {
    let scratch = Scratch::new("images");
    let image = scratch.join("disk0.raw");
    sparse_image(&image, 300 * MIB + 4096, 1);
    let agent = machine("provider = \"offline\"", std::slice::from_ref(&image));
    let first = agent.backup("machine");
    let shown = point(&agent, first.point_id());
    assert_eq!(shown["capture"]["consistency"], "crash", "{shown:#}");
    assert_eq!(shown["capture"]["provider"], "offline");
    assert!(number(&shown["capture"]["read_bytes"]) <= allocated(&image), "holes are not read: {shown:#}");
    let instance = agent.cli_json(&["instance", "show", "machine"]).success().json();
    assert_eq!(instance["instance"]["consistency"], "crash");
    let table = agent.cli(&["point", "list", "machine"]).success().stdout;
    assert!(table.contains("CONSISTENCY") && table.contains("crash"), "{table}");

    let restored = scratch.join("restored.raw");
    restore(&agent, "latest", &restored, &[]).success().job().completed();
    assert_same(&image, &restored);
    assert!(allocated(&restored) <= allocated(&image) + MIB, "{} bytes", allocated(&restored));
    restore(&agent, "latest", &restored, &[]).assert_failed("TargetExists");
    restore(&agent, "latest", &scratch.join("other.raw"), &["--disk", "disk7"]).assert_failed("InvalidRequest");

    // Read without us.
    let dumped = scratch.join("dumped.raw");
    let repository = agent.export("machine");
    repository.check();
    repository.dump_to("latest", "/disk0.raw", &dumped);
    assert_same(&image, &dumped);
    let machine: Value = serde_json::from_slice(&repository.dump("latest", "/machine.json")).expect("a description");
    assert_eq!(machine["disks"][0]["path"], image.display().to_string());

    // As files, which every instance has.
    let folder = scratch.join("files").display().to_string();
    agent.cli_json(&["restore", "files", "machine", "--to", &folder, "--wait"]).success().job().completed();
    assert_same(&image, &Path::new(&folder).join("disk0.raw"));

    // What has not changed is stored once, though it is read again.
    File::options().write(true).open(&image).expect("opened").write_all_at(b"changed", 5 * MIB).expect("written");
    let second = agent.backup("machine");
    let shown = point(&agent, second.point_id());
    assert!(number(&shown["stored_bytes"]) < 3 * MIB, "{shown:#}");
    let again = scratch.join("again.raw");
    restore(&agent, second.point_id(), &again, &[]).success().job().completed();
    assert_same(&image, &again);
    assert_eq!(clean(scratch.path()), Vec::<String>::new(), "nothing unfinished is left");
}

/// Names that begin with a dot.
fn clean(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let names = entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with('.')).collect()
}

#[test]
fn a_device_is_written_when_it_is_named_twice_and_nobody_uses_it() {
    let scratch = Scratch::new("devices");
    let (image, file) = (scratch.join("disk0.raw"), scratch.join("device"));
    sparse_image(&image, 40 * MIB, 2);
    File::create(&file).and_then(|mut file| file.write_all(&vec![9; 48 << 20])).expect("what is on the device");
    let Some(device) = LoopDevice::over(&file) else { return };
    let agent = machine("provider = \"offline\"", std::slice::from_ref(&image));
    agent.backup("machine");
    let name = device.0.display().to_string();
    restore(&agent, "latest", &device.0, &[]).assert_failed("TargetInUse");
    restore(&agent, "latest", &device.0, &["--yes-overwrite", "/dev/null"]).assert_failed("TargetInUse");
    let mut read = vec![0; MIB as usize];
    File::open(&file).expect("opened").read_exact(&mut read).expect("read");
    assert!(read.iter().all(|byte| *byte == 9), "nothing was written");

    restore(&agent, "latest", &device.0, &["--yes-overwrite", &name]).success().job().completed();
    process::run(&mut Command::new("sync"), b"", LIMIT).success();
    let written = scratch.join("written.raw");
    let mut bytes = fs::read(&device.0).expect("the device");
    assert!(bytes[40 << 20..].iter().all(|byte| *byte == 9), "what lies behind the image stays");
    bytes.truncate(40 << 20);
    fs::write(&written, bytes).expect("written");
    assert_same(&image, &written);

    // Mounted: never. Too small: not begun.
    process::run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&device.0), b"", LIMIT).success();
    let mount = scratch.join("mount");
    fs::create_dir(&mount).expect("a folder");
    process::run(Command::new("mount").args([&device.0, &mount]), b"", LIMIT).success();
    let refused = restore(&agent, "latest", &device.0, &["--yes-overwrite", &name]);
    process::run(Command::new("umount").arg(&mount), b"", LIMIT).success();
    refused.assert_failed("TargetInUse");
    let small = scratch.join("small");
    File::create(&small).and_then(|file| file.set_len(8 * MIB)).expect("a file");
    let Some(small) = LoopDevice::over(&small) else { return };
    let name = small.0.display().to_string();
    restore(&agent, "latest", &small.0, &["--yes-overwrite", &name]).assert_failed("TargetFull");
}

/// A full backup and three incrementals of an image whose file system is written to all the time. Everything that is said to be unchanged is
/// read all the same and compared (`sample_percent`).
fn increments_under_load(kind: &str) {
    let Some(outer) = LoopFs::new(kind, 900) else { return };
    let inner = Mounted::new(outer.path().join("disk0.raw"), outer.path().join("inner"), 200);
    let agent = machine("provider = \"reflink\"\nsample_percent = 100", std::slice::from_ref(&inner.image));
    let load = file_load(inner.point.clone(), 3);
    let scratch = Scratch::new("increments");
    let mut before = String::new();
    for round in 0..4 {
        load.wait_for(50);
        let job = back_up(&agent);
        assert_eq!(job.status(), "Completed", "{:#}", job.0);
        let shown = point(&agent, job.point_id());
        assert_eq!(shown["capture"]["consistency"], "file-system", "{shown:#}");
        assert_eq!(shown["capture"]["base_point_id"].as_str().unwrap_or_default(), before, "{shown:#}");
        vaultferry_tests::measured(&format!("{kind}, backup {round}: {}", shown["capture"]));
        let restored = scratch.join(&format!("{round}.raw"));
        restore(&agent, job.point_id(), &restored, &[]).success().job().completed();
        assert_same(&clone_of(&inner.image, &job), &restored);
        // Frozen, so it needs no recovery.
        process::run(Command::new("e2fsck").args(["-f", "-n"]).arg(&restored), b"", LIMIT).success();
        before = job.point_id().to_owned();
    }
    drop(load);
    let clones = fs::read_dir(clones_of(&inner.image)).expect("a folder").count();
    assert!(clones <= 2, "{clones} clones: only those of the two newest points are kept");
    agent.export("machine").check();
}

#[test]
fn increments_on_xfs_are_whole_images_of_their_instants() {
    increments_under_load("xfs");
}

#[test]
fn increments_on_btrfs_are_whole_images_of_their_instants() {
    increments_under_load("btrfs");
}

#[test]
fn little_is_read_of_what_little_has_changed_and_all_of_it_when_the_clone_is_lost() {
    let Some(outer) = LoopFs::new("xfs", 900) else { return };
    let image = outer.path().join("disk0.raw");
    sparse_image(&image, 200 * MIB, 4);
    let agent = machine("provider = \"reflink\"", std::slice::from_ref(&image));
    let first = agent.backup("machine");
    let write = |bytes: &[u8], at: u64| {
        let file = File::options().write(true).open(&image).expect("opened");
        file.write_all_at(bytes, at).expect("written");
        file.sync_all().expect("synced");
    };
    write(&[7; 4096], 100 * MIB + 8192);
    let second = agent.backup("machine");
    let shown = point(&agent, second.point_id());
    assert_eq!(shown["capture"]["base_point_id"], first.point_id());
    let read = number(&shown["capture"]["read_bytes"]);
    assert!((4096..=2 * MIB).contains(&read), "{read} bytes for 4096");

    // Nobody but the file system knows what has changed: without the clone everything is read, and that is said.
    agent.expect_log("the disks were read in full");
    let clones = clones_of(&image);
    for entry in fs::read_dir(&clones).expect("a folder") {
        fs::remove_file(entry.expect("entry").path()).expect("removed");
    }
    write(&[8; 4096], 50 * MIB);
    let third = back_up(&agent);
    assert_eq!(third.status(), "CompletedWithWarnings", "{:#}", third.0);
    assert_eq!(third.0["warnings"][0]["reason"], "ChangeTrackingLost", "{:#}", third.0);
    let shown = point(&agent, third.point_id());
    assert!(shown["capture"]["full_read_reason"].as_str().is_some_and(|why| !why.is_empty()), "{shown:#}");
    assert_eq!(shown["capture"]["base_point_id"].as_str().unwrap_or_default(), "");
    write(&[9; 4096], 20 * MIB);
    let fourth = agent.backup("machine");
    assert_eq!(point(&agent, fourth.point_id())["capture"]["base_point_id"], third.point_id(), "compared again");
    let restored = Scratch::new("restored");
    let restored = (restored.join("disk.raw"), restored);
    restore(&agent, fourth.point_id(), &restored.0, &[]).success().job().completed();
    assert_same(&image, &restored.0);
}

#[test]
fn what_cannot_be_frozen_fails_unless_it_is_allowed_and_then_it_is_said() {
    let Some(outer) = LoopFs::new("xfs", 600) else { return };
    let image = outer.path().join("disk0.raw");
    sparse_image(&image, 64 * MIB, 5);
    // As a guest's image is: open for writing, and mounted nowhere here.
    let guest = File::options().write(true).open(&image).expect("opened");
    let agent = machine("provider = \"reflink\"", std::slice::from_ref(&image));
    let refused = agent.cli_json(&["backup", "machine", "--wait"]);
    refused.assert_failed("ConsistencyNotReached");
    assert!(agent.points("machine").is_empty());
    drop(agent);
    let allowed = "provider = \"reflink\"\non_freeze_failure = \"crash-consistent\"";
    let agent = machine(allowed, std::slice::from_ref(&image));
    agent.expect_log("as after a power cut only");
    let job = back_up(&agent);
    assert_eq!(job.status(), "CompletedWithWarnings", "{:#}", job.0);
    assert_eq!(job.0["warnings"][0]["reason"], "ConsistencyNotReached");
    assert_eq!(point(&agent, job.point_id())["capture"]["consistency"], "crash");
    drop(guest);
}

#[test]
fn two_disks_that_are_written_and_not_frozen_are_no_point() {
    let Some(outer) = LoopFs::new("xfs", 600) else { return };
    let images = [outer.path().join("disk0.raw"), outer.path().join("disk1.raw")];
    for (seed, image) in images.iter().enumerate() {
        sparse_image(image, 32 * MIB, seed as u64);
    }
    // Points as after a power cut are allowed, and two clones are less than that.
    let agent = machine("provider = \"reflink\"\non_freeze_failure = \"crash-consistent\"", &images);
    let guest = File::options().write(true).open(&images[1]).expect("opened");
    let refused = agent.cli_json(&["backup", "machine", "--wait"]);
    refused.assert_failed("ConsistencyNotReached");
    assert!(agent.points("machine").is_empty());
    drop(guest);
    // Nobody writes: one after the other is one instant.
    let job = agent.backup("machine");
    assert_eq!(point(&agent, job.point_id())["capture"]["consistency"], "crash");
}

#[test]
fn two_disks_are_of_one_instant() {
    let Some(outer) = LoopFs::new("xfs", 900) else { return };
    let mount = |number: u64| {
        let image = outer.path().join(format!("disk{number}.raw"));
        Mounted::new(image, outer.path().join(format!("inner{number}")), 64)
    };
    let disks = [mount(0), mount(1)];
    let agent = machine("provider = \"reflink\"", &[disks[0].image.clone(), disks[1].image.clone()]);
    let markers = [disks[0].point.join("marker"), disks[1].point.join("marker")];
    let files = markers.map(|path| File::create(path).expect("made"));
    // First the one, then the other: the second is never ahead.
    let load = Load::start(move |round| {
        for file in &files {
            file.write_all_at(format!("{round:016}").as_bytes(), 0).expect("written");
        }
    });
    for round in 0..3 {
        load.wait_for(1000);
        let job = back_up(&agent);
        assert_eq!(job.status(), "Completed", "{:#}", job.0);
        let scratch = Scratch::new("two");
        let folder = scratch.join("restored");
        restore(&agent, job.point_id(), &folder, &[]).success().job().completed();
        let marker = |disk: &str| {
            let mut command = Command::new("debugfs");
            command.args(["-R", "cat /marker"]).arg(folder.join(disk));
            process::run(&mut command, b"", LIMIT).success().text().trim().parse::<u64>().expect("a number")
        };
        let (first, second) = (marker("disk0.raw"), marker("disk1.raw"));
        assert!(first == second || first == second + 1, "round {round}: {first} on one disk, {second} on the other");
        assert!(first > 0);
    }
    drop(load);
}

#[test]
fn images_are_found_and_what_is_protected_is_told() {
    let scratch = Scratch::new("found");
    let image = scratch.join("disk0.raw");
    sparse_image(&image, 8 * MIB, 6);
    fs::write(scratch.join("notes.txt"), "x").expect("written");
    let agent = machine("provider = \"offline\"", std::slice::from_ref(&image));
    let found = agent.cli_json(&["discover", "vm", &scratch.path().display().to_string()]).success().json();
    let sources = found["servers"][0]["sources"].as_array().expect("sources").clone();
    assert_eq!(sources.len(), 1, "{found:#}");
    assert_eq!(sources[0]["uri"], format!("disk://{}", image.display()), "{found:#}");
    assert_eq!(sources[0]["state"], "Protected", "{found:#}");
    let again = ["instance", "create", "--source", &format!("disk://{}", image.display()), "--policy", "machines"];
    agent.cli_json(&again).assert_failed("SourceAlreadyProtected");
    let none = ["instance", "create", "--source", "disk:///nowhere/at/all.raw", "--policy", "machines"];
    agent.cli_json(&none).assert_failed("DiskUnreadable");
    let database = ["restore", "database", "machine", "--target", "postgres://u@h/", "--database", "d"];
    agent.cli_json(&database).assert_failed("InvalidRequest");
}
