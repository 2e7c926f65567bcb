//! Who may write to an image or a device, and whether somebody has.
//!
//! Invariants:
//! - "Nobody writes" is only said of what was looked at: a regular file by a lease (kernel users, such as loop devices, count too), a device by
//!   claiming it for oneself, by the open files of all processes that this one can see, and by its counters of writes.
//! - Counters and the time of the last change (ctime) cannot be set back by a program, so what was written in between is seen afterwards even if
//!   nobody looked at that moment.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::stat::{major, makedev, minor};
use vaultferry_proto::{Problem, Reason};

use super::{kernel, unreadable};

/// What the kernel tells of a block device.
pub(super) fn sysfs(rdev: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", major(rdev), minor(rdev)))
}

/// An image or device that nobody writes to, as it was when it was opened.
#[derive(Debug)]
pub(super) struct Watched {
    /// For reading only; of a device, claimed for us: nobody can mount it meanwhile.
    pub(super) file: File,
    /// Without symbolic links.
    pub(super) path: PathBuf,
    /// Bytes.
    pub(super) size: u64,
    facts: Facts,
}

/// What differs after a write.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Facts {
    File { device: u64, inode: u64, size: u64, modified: (i64, i64), changed: (i64, i64) },
    Device { number: u64, size: u64, written: Vec<u64> },
}

impl Watched {
    /// Opens it, or says who is in the way ([`Reason::SourceInUse`]).
    pub(super) fn open(path: &Path) -> Result<Self, Problem> {
        let path = path.canonicalize().map_err(|error| unreadable(path, &error))?;
        let kind = fs::metadata(&path).map_err(|error| unreadable(&path, &error))?.file_type();
        let mut options = OpenOptions::new();
        options.read(true);
        if kind.is_block_device() {
            // Without O_CREAT this claims the device: nobody else's mount, swap, LVM or RAID has it.
            options.custom_flags(libc::O_EXCL);
        } else if !kind.is_file() {
            let message = format!("{} is neither a file nor a block device", path.display());
            return Err(Problem::new(Reason::InvalidSource, message)
                .with_fix("Name the image file, or the device of the disk."));
        }
        let file = options.open(&path).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => in_use(&path, &users_of(&path)),
            _ => unreadable(&path, &error),
        })?;
        if kind.is_block_device() {
            kernel::forget_buffers(&file).map_err(|error| unreadable(&path, &error))?;
        }
        let facts = facts(&file).map_err(|error| unreadable(&path, &error))?;
        let size = match &facts {
            Facts::File { size, .. } | Facts::Device { size, .. } => *size,
        };
        let watched = Self { file, path, size, facts };
        watched.nobody()?;
        Ok(watched)
    }

    /// Nobody has it open for writing at this moment.
    fn nobody(&self) -> Result<(), Problem> {
        if let Facts::File { .. } = self.facts {
            match kernel::nobody_writes(&self.file) {
                Ok(true) => return Ok(()),
                Ok(false) => return Err(in_use(&self.path, &openers(&self.path, &[]))),
                // Not every file system has leases.
                Err(error) => tracing::debug!(path = %self.path.display(), "no lease: {error}"),
            }
        }
        let numbers = match self.facts {
            Facts::Device { number, .. } => with_partitions(number),
            Facts::File { .. } => Vec::new(),
        };
        match openers(&self.path, &numbers) {
            openers if openers.is_empty() => Ok(()),
            openers => Err(in_use(&self.path, &openers)),
        }
    }

    /// Nobody has written to it since it was opened, nor put another file into its place, and nobody has it open for writing now.
    pub(super) fn unchanged(&self) -> Result<(), Problem> {
        let changed = |how: &str| {
            let message = format!("{} was not left alone during its backup: {how}", self.path.display());
            Err(Problem::new(Reason::SourceChanged, message))
        };
        if let Facts::Device { .. } = self.facts {
            // What waits in the device's buffers counts when it is written.
            self.file.sync_all().map_err(|error| unreadable(&self.path, &error))?;
        }
        if facts(&self.file).map_err(|error| unreadable(&self.path, &error))? != self.facts {
            return changed("it was written to");
        }
        if let Facts::File { device, inode, .. } = self.facts {
            let there = fs::metadata(&self.path).map(|found| (found.dev(), found.ino()));
            if there.ok() != Some((device, inode)) {
                return changed("another file was put into its place");
            }
        }
        match self.nobody() {
            Err(problem) if problem.reason == Reason::SourceInUse => changed(&problem.message),
            other => other,
        }
    }

    /// The time of its last change, in seconds since 1970; of a device 0.
    pub(super) fn changed_at(&self) -> i64 {
        match self.facts {
            Facts::File { changed, .. } => changed.0,
            Facts::Device { .. } => 0,
        }
    }
}

fn facts(file: &File) -> io::Result<Facts> {
    let found = file.metadata()?;
    if !found.file_type().is_block_device() {
        return Ok(Facts::File {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        });
    }
    let number = found.rdev();
    let dir = sysfs(number);
    // A partition's queue is its disk's.
    let counted = ["queue/iostats", "../queue/iostats"].iter().find_map(|path| fs::read_to_string(dir.join(path)).ok());
    if counted.is_some_and(|counted| counted.trim() == "0") {
        return Err(io::Error::other(
            "its counters are off, so a write would not be seen (write 1 to queue/iostats below its folder in /sys/block)",
        ));
    }
    let size = nix::unistd::lseek(file, 0, nix::unistd::Whence::SeekEnd)?;
    let written = written(&fs::read_to_string(dir.join("stat"))?)
        .ok_or_else(|| io::Error::other("its counters are unreadable"))?;
    Ok(Facts::Device { number, size: u64::try_from(size).map_err(io::Error::other)?, written })
}

/// Of the kernel's `stat` (Documentation/block/stat.rst): sectors written and discarded. Not the numbers of requests: our own flush may count as a
/// write of nothing. Kernels before 4.18 have no discards.
fn written(stat: &str) -> Option<Vec<u64>> {
    let fields: Vec<u64> = stat.split_whitespace().map(|field| field.parse().ok()).collect::<Option<_>>()?;
    if fields.len() < 7 {
        return None;
    }
    Some([6, 13].iter().filter_map(|index| fields.get(*index).copied()).collect())
}

/// The device's number, those of its partitions, and, of a partition, that of its disk: through each of them the same bytes can be written.
fn with_partitions(number: u64) -> Vec<u64> {
    let device = |text: &str| -> Option<u64> {
        let (first, second) = text.trim().split_once(':')?;
        Some(makedev(first.parse().ok()?, second.parse().ok()?))
    };
    let own = sysfs(number);
    let below = fs::read_dir(&own).into_iter().flatten().flatten().map(|entry| entry.path());
    let parts = below.filter(|dir| dir.join("partition").exists()).map(|dir| dir.join("dev"));
    // What sysfs calls a partition lies in its disk's folder.
    let disk = own.join("partition").exists().then(|| own.join("../dev"));
    let others = parts.chain(disk).filter_map(|path| device(&fs::read_to_string(path).ok()?));
    std::iter::once(number).chain(others).collect()
}

/// Processes, this one included, that have the file, or a device of these numbers, open for writing.
fn openers(path: &Path, numbers: &[u64]) -> Vec<String> {
    let identity = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let own = if numbers.is_empty() { identity(path) } else { None };
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let dir = process.path();
        let Some(id) = dir.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()) else { continue };
        for descriptor in fs::read_dir(dir.join("fd")).into_iter().flatten().flatten() {
            let link = descriptor.path();
            // The text first: asking a file of a server that is away would hang.
            let Ok(target) = fs::read_link(&link) else { continue };
            let same = if numbers.is_empty() {
                // In a container the file has another path, but mostly the same name.
                let is_named_so = target.file_name() == path.file_name();
                target == path || (is_named_so && own.is_some() && identity(&link) == own)
            } else {
                let found = || fs::metadata(&link).ok().filter(|found| found.file_type().is_block_device());
                target.starts_with("/dev") && found().is_some_and(|found| numbers.contains(&found.rdev()))
            };
            if same && for_writing(&dir.join("fdinfo").join(descriptor.file_name())) {
                let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
                found.push(format!("{} (process {id})", name.trim()));
                break;
            }
        }
    }
    found
}

/// By the descriptor's flags, which are octal.
fn for_writing(info: &Path) -> bool {
    let Ok(text) = fs::read_to_string(info) else { return false };
    let flags = text.lines().find_map(|line| i32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

/// What has claimed a device, as far as the kernel tells: mounts, and devices that are made of it.
fn users_of(path: &Path) -> Vec<String> {
    let Ok(number) = fs::metadata(path).map(|found| found.rdev()) else { return Vec::new() };
    let mut found = Vec::new();
    for number in with_partitions(number) {
        let name = format!("{}:{}", major(number), minor(number));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines() {
            let mut fields = line.split(' ').skip(2);
            if fields.next() == Some(name.as_str()) {
                found.push(format!("mounted at {}", fields.nth(1).unwrap_or("?")));
            }
        }
        for holder in fs::read_dir(sysfs(number).join("holders")).into_iter().flatten().flatten() {
            found.push(format!("part of {}", holder.file_name().to_string_lossy()));
        }
    }
    found
}

/// Somebody may write to it; `by` may be empty.
fn in_use(path: &Path, by: &[String]) -> Problem {
    let by = if by.is_empty() { String::new() } else { format!(" by {}", by.join(", ")) };
    Problem::new(Reason::SourceInUse, format!("{} is in use{by}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn counters_are_those_of_writes() {
        let stat = "  4130 11 264650 1563  2410  1301 53442 1988 0 2024 3552 17 3 4096 1 12 99\n";
        assert_eq!(written(stat), Some(vec![53_442, 4096]));
        assert_eq!(written("1 2 3 4 5 6 7 8 9 10 11"), Some(vec![7]));
        assert_eq!(written("1 2 3"), None);
        assert_eq!(written("1 2 3 4 5 six 7"), None);
    }

    #[test]
    fn flags_tell_writers() {
        let dir = tempfile::tempdir().expect("a folder");
        let info = dir.path().join("info");
        for (flags, writes) in [("0100000", false), ("0100001", true), ("02100002", true), ("02500000", false)] {
            fs::write(&info, format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t9\n")).expect("written");
            assert_eq!(for_writing(&info), writes, "{flags}");
        }
        assert!(!for_writing(&dir.path().join("missing")));
    }

    #[test]
    fn a_write_is_seen_however_short_it_was() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("image");
        fs::write(&path, [1; 4096]).expect("an image");
        let watched = Watched::open(&path).expect("nobody writes");
        assert_eq!(watched.size, 4096);
        watched.unchanged().expect("nobody has written");
        // The clock of a file system ticks every few milliseconds: a write of the same tick would not be seen; `offline` waits for the next one.
        std::thread::sleep(std::time::Duration::from_millis(50));
        let mut writer = OpenOptions::new().write(true).open(&path).expect("a writer");
        writer.write_all(&[2]).expect("a byte");
        drop(writer);
        let problem = watched.unchanged().expect_err("a byte differs");
        assert_eq!(problem.reason, Reason::SourceChanged, "{problem:?}");
    }

    #[test]
    fn a_writer_is_seen_by_whatever_path_it_came() {
        let dir = tempfile::tempdir().expect("a folder");
        let [path, other] = ["one", "other"].map(|name| dir.path().join(name).join("image"));
        for path in [&path, &other] {
            fs::create_dir(path.parent().expect("a folder")).expect("a folder");
        }
        fs::write(&path, [1; 4096]).expect("an image");
        fs::hard_link(&path, &other).expect("another path");
        assert!(openers(&path, &[]).is_empty());
        let reader = File::open(&other).expect("a reader");
        assert!(openers(&path, &[]).is_empty());
        let writer = OpenOptions::new().write(true).open(&other).expect("a writer");
        let seen = openers(&path, &[]);
        let us = format!("process {}", std::process::id());
        assert!(seen.iter().any(|who| who.contains(&us)), "{seen:?}");
        drop((reader, writer));
    }

    #[test]
    fn a_writer_and_another_file_are_seen() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("image");
        fs::write(&path, [1; 4096]).expect("an image");
        let watched = Watched::open(&path).expect("nobody writes");
        let writer = OpenOptions::new().write(true).open(&path).expect("a writer");
        let problem = watched.unchanged().expect_err("it is open for writing");
        assert_eq!(problem.reason, Reason::SourceChanged, "{problem:?}");
        let problem = Watched::open(&path).expect_err("it is open for writing");
        assert_eq!(problem.reason, Reason::SourceInUse);
        assert!(problem.message.contains(&format!("process {}", std::process::id())), "{problem:?}");
        drop(writer);
        let other = dir.path().join("other");
        fs::write(&other, [1; 4096]).expect("another image");
        fs::rename(&other, &path).expect("in its place");
        assert_eq!(watched.unchanged().expect_err("another file").reason, Reason::SourceChanged);
    }
}
