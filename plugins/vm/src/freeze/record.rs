//! `/run/vaultferry/frozen`: what is about to be frozen, written down before it is, so that whoever comes after a death of all processes can thaw it.
//!
//! A folder with a file for each freeze, because two plugins may freeze at a time:
//! ```text
//! 4711-83012345.json  {"version":1,"boot_id":"…","mounts":[{"mount_point":"/data","major":0,"minor":40}]}
//! ```
//! Invariants:
//! - The file is complete and synced before it has its name, and has its name before anything is frozen.
//! - All processes of the freeze hold the one lock on it (they share the open file), so it can be had exactly when all have ended.
//! - It is removed when everything in it is thawed, by whoever sees that.
//! - It counts for one run of the machine (`boot_id`): a freeze does not outlive the kernel.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::mounts::{self, Mount};
use super::sys;

/// Where the records of this machine lie. `/run` is empty after a boot, and not on a disk.
pub(super) const DIR: &str = "/run/vaultferry/frozen";

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

const VERSION: u32 = 1;

/// A lock is asked for again after this.
const ASK_INTERVAL: Duration = Duration::from_millis(20);

/// An unfinished file of this age is a dead process's: making one takes no time.
const UNFINISHED_AGE: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    boot_id: String,
    /// In the order of freezing.
    mounts: Vec<Recorded>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Recorded {
    mount_point: PathBuf,
    major: u32,
    minor: u32,
}

/// A freeze's own record. Dropping it leaves the file.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    file: File,
}

impl Record {
    /// Writes it, locked. What fails leaves an unfinished file at most, which [`thaw_all`] removes.
    pub(super) fn create(dir: &Path, mounts: &[Mount]) -> io::Result<Self> {
        // The agent's socket may come to lie beside it, so only the folder itself is closed to others.
        if let Some(parent) = dir.parent() {
            fs::create_dir_all(parent)?;
        }
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let name = format!("{}-{}", std::process::id(), sys::now_ns());
        let unfinished = dir.join(format!(".{name}.new"));
        let path = dir.join(format!("{name}.json"));
        let recorded = |mount: &Mount| {
            let (major, minor) = mount.device;
            Recorded { mount_point: mount.mount_point.clone(), major, minor }
        };
        let boot_id = boot_id()?;
        let content = Content { version: VERSION, boot_id, mounts: mounts.iter().map(recorded).collect() };
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&unfinished)?;
        file.lock()?;
        file.write_all(&serde_json::to_vec(&content)?)?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        File::open(dir)?.sync_all()?;
        Ok(Self { path, file })
    }

    /// Its name in the file system.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The open file with the lock, to be shared with those who freeze and watch.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Removes a record whose file systems are thawed; no error when somebody else did.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What [`thaw_all`] has done and seen.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// These were frozen, and are not any more.
    pub thawed: Vec<PathBuf>,
    /// Freezes whose processes live; they thaw by themselves.
    pub running: usize,
    /// The folder is closed to this user, so nothing was looked at.
    pub is_denied: bool,
    /// What could not be done, each as a sentence. Its record stays.
    pub faults: Vec<String>,
}

/// Thaws what dead processes left frozen, at once. A freeze whose processes still live is left alone, after it was waited for so long: a
/// process that is killed while it freezes ends only when that is done.
pub(super) fn thaw_all(dir: &Path, patience: Duration) -> Leftovers {
    let mut leftovers = Leftovers::default();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return leftovers,
        // Whoever may not read it has frozen nothing; what others froze may be there.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            leftovers.is_denied = true;
            return leftovers;
        }
        Err(error) => {
            leftovers.faults.push(format!("{} cannot be read: {error}", dir.display()));
            return leftovers;
        }
    };
    let (until, mut living) = (Instant::now() + patience, Vec::new());
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.extension().is_some_and(|extension| extension == "json") {
            // What nobody looks after any more must not wait for a freeze that goes on.
            if !thaw_one(&path, &mut leftovers) {
                living.push(path);
            }
        } else if is_abandoned(&path) {
            let _ = remove(&path);
        }
    }
    while !living.is_empty() && Instant::now() < until {
        std::thread::sleep(ASK_INTERVAL);
        living.retain(|path| !thaw_one(path, &mut leftovers));
    }
    leftovers.running = living.len();
    leftovers
}

/// False when its processes live. What could not be done is among the faults.
fn thaw_one(path: &Path, leftovers: &mut Leftovers) -> bool {
    thaw_record(path, leftovers).unwrap_or_else(|error| {
        leftovers.faults.push(format!("{}: {error}", path.display()));
        true
    })
}

fn is_abandoned(unfinished: &Path) -> bool {
    let modified = unfinished.symlink_metadata().and_then(|facts| facts.modified());
    modified.is_ok_and(|modified| SystemTime::now().duration_since(modified).is_ok_and(|age| age > UNFINISHED_AGE))
}

/// With the faults of single file systems in `leftovers`. False when the lock is another's.
fn thaw_record(path: &Path, leftovers: &mut Leftovers) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    if file.metadata()?.nlink() == 0 {
        // Whoever had the lock has thawed everything, and removed it.
        return Ok(true);
    }
    let content: Content = serde_json::from_reader(&file)?;
    if content.version != VERSION {
        return Err(io::Error::other(format!(
            "a record of version {}, which this program does not know",
            content.version
        )));
    }
    let faults = leftovers.faults.len();
    if content.boot_id == boot_id()? {
        for recorded in content.mounts.iter().rev() {
            match thaw(recorded) {
                Ok(true) => leftovers.thawed.push(recorded.mount_point.clone()),
                Ok(false) => {}
                Err(error) => {
                    let (mount, record) = (recorded.mount_point.display(), path.display());
                    leftovers.faults.push(format!("{mount}: {error} (named in {record})"));
                }
            }
        }
    }
    if leftovers.faults.len() == faults {
        remove(path)?;
    }
    Ok(true)
}

/// Through whichever mount of the file system there is now. False when it was not frozen.
fn thaw(recorded: &Recorded) -> io::Result<bool> {
    let table = mounts::read_table()?;
    let device = (recorded.major, recorded.minor);
    let mut found: Vec<&Mount> = table.iter().filter(|mount| mount.device == device).collect();
    found.sort_by_key(|mount| mount.mount_point != recorded.mount_point);
    let mut last = io::Error::other("it is not mounted now; it is looked at again at the next start");
    for mount in found {
        match mounts::open(mount).map(|file| sys::thaw(file.as_fd())) {
            Ok(Ok(())) => return Ok(true),
            Ok(Err(Errno::EINVAL)) => return Ok(false),
            Ok(Err(error)) => last = error.into(),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string(BOOT_ID)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(name: &str) -> Mount {
        Mount {
            id: 1,
            // No device has these numbers: nothing that the machine has is thawed by a test.
            device: (4095, 1_048_575),
            mount_point: name.into(),
            kind: "ext4".into(),
            source: "/dev/none".into(),
            is_read_only: false,
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("a folder");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_freeze_whose_processes_live_is_left_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        let record = Record::create(dir.path(), &[mount("/a"), mount("/b")]).expect("a record");
        // As a child holds it.
        let held = record.file().try_clone_to_owned().expect("a second descriptor");
        drop(record);
        let left = thaw_all(dir.path(), Duration::from_millis(30));
        assert_eq!((left.running, left.thawed.len(), left.faults.len()), (1, 0, 0));
        assert_eq!(names(dir.path()).len(), 1);
        drop(held);
        let left = thaw_all(dir.path(), Duration::ZERO);
        assert_eq!((left.running, left.thawed.len(), left.faults.len()), (0, 0, 2), "both are looked for: {left:?}");
        assert_eq!(names(dir.path()).len(), 1, "what is not mounted may be frozen all the same: the record stays");
    }

    #[test]
    fn what_is_dead_does_not_wait_for_what_lives() {
        let dir = tempfile::tempdir().expect("a folder");
        let living = Record::create(dir.path(), &[mount("/a")]).expect("a record");
        // Of another run of the machine, so that they can be removed; on either side of the living one in any order that the folder has.
        let dead = r#"{"version":1,"boot_id":"another","mounts":[]}"#;
        for name in ["0-0.json", "5-5.json", "99999999-9.json", "x.json"] {
            fs::write(dir.path().join(name), dead).expect("a record");
        }
        let path = dir.path().to_path_buf();
        let waiting = std::thread::spawn(move || thaw_all(&path, Duration::from_secs(30)));
        let until = Instant::now() + Duration::from_secs(10);
        while names(dir.path()).len() > 1 {
            assert!(Instant::now() < until, "they wait: {:?}", names(dir.path()));
            std::thread::sleep(ASK_INTERVAL);
        }
        drop(living);
        let left = waiting.join().expect("no panic");
        assert_eq!((left.running, left.faults.len()), (0, 1), "its processes are gone by now: {left:?}");
        assert!(left.faults[0].contains(".json"), "the record is named: {left:?}");
    }

    #[test]
    fn a_record_of_another_run_of_the_machine_is_removed() {
        let dir = tempfile::tempdir().expect("a folder");
        let content =
            r#"{"version":1,"boot_id":"another","mounts":[{"mount_point":"/a","major":4095,"minor":1048575}]}"#;
        fs::write(dir.path().join("1-1.json"), content).expect("a record");
        let left = thaw_all(dir.path(), Duration::ZERO);
        assert!(left.faults.is_empty(), "{left:?}");
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_record_that_cannot_be_read_stays_and_is_told() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("1-1.json"), "{").expect("a record");
        fs::write(dir.path().join("2-2.json"), r#"{"version":2,"boot_id":"","mounts":[]}"#).expect("a record");
        assert_eq!(thaw_all(dir.path(), Duration::ZERO).faults.len(), 2);
        assert_eq!(names(dir.path()).len(), 2);
    }

    #[test]
    fn no_folder_means_nothing_to_do() {
        let dir = tempfile::tempdir().expect("a folder");
        let left = thaw_all(&dir.path().join("none"), Duration::ZERO);
        assert_eq!((left.running, left.thawed.len(), left.faults.len()), (0, 0, 0));
    }
}
