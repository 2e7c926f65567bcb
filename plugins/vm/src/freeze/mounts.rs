//! Which file systems are frozen, and in which order: read from `/proc/self/mountinfo`, or refused with a reason.
//!
//! Invariants:
//! - A file system is frozen once, however often it is mounted; what lies deeper in the tree goes first, and that of `/` last, by whichever
//!   of its mounts it was named.
//! - Refused: what is no mount point, what lies on the network, what cannot be frozen, what stands on a file that lies on a file system of
//!   the same freeze (it would wait for its own thaw), and a file system that holds an image whose snapshot is taken meanwhile, also below
//!   a loop device.
//! - A file system that is mounted read-only needs no freeze, and is left out.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::libc;

use super::board::MOUNTS_MAX;
use super::stack;

/// Where the kernel tells what is mounted in this process's view.
const TABLE: &str = "/proc/self/mountinfo";

/// Those whose Linux drivers can freeze, and write on a disk of this machine.
const FREEZABLE: &[&str] = &["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "nilfs2", "reiserfs", "bcachefs"];

/// Those that others write too, or that a server keeps.
const SHARED: &[&str] = &[
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "ceph",
    "9p",
    "virtiofs",
    "afs",
    "glusterfs",
    "lustre",
    "orangefs",
    "beegfs",
    "gfs2",
    "ocfs2",
    "fuse",
];

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// The kernel's number of this mount.
    pub id: u64,
    /// The file system's device number, one for all its mounts. Of btrfs and others it is made up.
    pub device: (u32, u32),
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// "ext4", …
    pub kind: String,
    /// What was mounted, as whoever mounted it called it.
    pub source: PathBuf,
    /// The file system, not only this mount of it.
    pub is_read_only: bool,
}

/// What is asked of the machine; the tests have their own.
pub(super) trait Machine {
    /// The path without links, and the number of the mount that it is in. Must not start to use what it names.
    fn mount_of(&self, path: &Path) -> io::Result<(PathBuf, u64)>;

    /// The folder that is `/sys`.
    fn sys(&self) -> &Path;
}

/// This one.
#[derive(Debug, Clone, Copy)]
pub(super) struct ThisMachine;

impl Machine for ThisMachine {
    fn mount_of(&self, path: &Path) -> io::Result<(PathBuf, u64)> {
        let path = path.canonicalize()?;
        let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&path)?;
        let id = mount_id(&file)?;
        Ok((path, id))
    }

    fn sys(&self) -> &Path {
        Path::new("/sys")
    }
}

/// The number of the mount through which a file was opened.
fn mount_id(file: &File) -> io::Result<u64> {
    let facts = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = facts.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::Error::other("the kernel does not tell a file's mount"))
}

/// Opens a mount for freezing and thawing it. Fails when the path leads to another mount by now.
pub(super) fn open(mount: &Mount) -> io::Result<File> {
    let flags = libc::O_DIRECTORY | libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(&mount.mount_point)?;
    if mount_id(&file)? != mount.id {
        return Err(io::Error::other("something else is mounted there"));
    }
    Ok(file)
}

/// What is mounted now.
pub(super) fn read_table() -> io::Result<Vec<Mount>> {
    parse(&std::fs::read(TABLE)?)
}

/// The format is that of proc(5).
pub(super) fn parse(table: &[u8]) -> io::Result<Vec<Mount>> {
    let lines = table.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let read = |line: &[u8]| {
        parse_line(line)
            .ok_or_else(|| io::Error::other(format!("{TABLE} has the line {:?}", String::from_utf8_lossy(line))))
    };
    lines.map(read).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    // 36 35 98:0 /root /mount/point rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue
    let mut fields = line.split(|byte| *byte == b' ');
    let id = text(fields.next()?)?.parse().ok()?;
    let (major, minor) = text(fields.nth(1)?)?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let mount_point = path(fields.nth(1)?);
    fields.find(|field| *field == b"-")?;
    let kind = text(fields.next()?)?.to_owned();
    let source = path(fields.next()?);
    let is_read_only = text(fields.next()?)?.split(',').any(|option| option == "ro");
    Some(Mount { id, device, mount_point, kind, source, is_read_only })
}

fn text(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field).ok()
}

/// Blanks, tabs, line ends and backslashes are written as three octal digits.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal =
            tail.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match octal {
            Some(digits) => {
                let value = digits.iter().fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                bytes.push(u8::try_from(value).unwrap_or(b'?'));
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// What is to be frozen, in the order of freezing; nothing when all are read-only. Otherwise every fault that there is, each as a sentence.
pub(super) fn plan(
    table: &[Mount],
    wanted: &[PathBuf],
    images: &[PathBuf],
    machine: &dyn Machine,
) -> Result<Vec<Mount>, Vec<String>> {
    let mut faults = Vec::new();
    let mut by_device: BTreeMap<(u32, u32), Mount> = BTreeMap::new();
    for path in wanted {
        match wanted_mount(table, path, machine) {
            Ok(Some(mount)) => {
                let kept = by_device.entry(mount.device).or_insert_with(|| mount.clone());
                if order(&mount) < order(kept) {
                    *kept = mount;
                }
            }
            Ok(None) => {}
            Err(fault) => faults.push(fault),
        }
    }
    let mut planned: Vec<Mount> = by_device.into_values().collect();
    let root = Path::new("/");
    let is_root = |mount: &Mount| table.iter().any(|one| one.device == mount.device && one.mount_point == root);
    planned.sort_by(|a, b| (is_root(a), order(a)).cmp(&(is_root(b), order(b))));
    if planned.len() > MOUNTS_MAX {
        faults
            .push(format!("{} file systems are more than the {MOUNTS_MAX} that can be frozen together", planned.len()));
    }
    for mount in &planned {
        faults.extend(standing_on(table, mount, &planned, machine));
    }
    for image in images {
        faults.extend(holding(table, image, &planned, machine));
    }
    if faults.is_empty() { Ok(planned) } else { Err(faults) }
}

/// The least is frozen first: what is mounted below something has a longer path than that.
fn order(mount: &Mount) -> (std::cmp::Reverse<usize>, &Path) {
    (std::cmp::Reverse(mount.mount_point.components().count()), mount.mount_point.as_path())
}

/// `None`: it needs no freeze.
fn wanted_mount(table: &[Mount], wanted: &Path, machine: &dyn Machine) -> Result<Option<Mount>, String> {
    let name = wanted.display();
    let (path, id) = machine.mount_of(wanted).map_err(|error| format!("{name} cannot be looked at: {error}"))?;
    let Some(mount) = table.iter().find(|mount| mount.id == id) else {
        return Err(format!("{name} is on no file system that is mounted here"));
    };
    if mount.mount_point != path {
        return Err(format!("{name} is no mount point; it lies on {}", mount.mount_point.display()));
    }
    let kind = mount.kind.as_str();
    if SHARED.contains(&kind) || kind.starts_with("fuse.") {
        return Err(format!("{name} is a {kind} mount: others write there too, and no freeze here would hold them"));
    }
    if !FREEZABLE.contains(&kind) {
        return Err(format!("{name} is of the type {kind}, which Linux cannot freeze"));
    }
    Ok((!mount.is_read_only).then(|| mount.clone()))
}

/// A fault when the file system stands on a file that would be frozen with it.
fn standing_on(table: &[Mount], mount: &Mount, planned: &[Mount], machine: &dyn Machine) -> Option<String> {
    let name = mount.mount_point.display();
    let files = match stack::files_below(mount, table, machine) {
        Ok(files) => files,
        Err(fault) => return Some(format!("what {name} stands on cannot be found out: {fault}")),
    };
    let frozen = |device: (u32, u32)| planned.iter().find(|other| other.device == device);
    files.into_iter().find_map(|(file, device)| {
        let below = frozen(device)?.mount_point.display();
        Some(format!("{name} stands on the file {}, and {below}, where that lies, would be frozen too: each would wait for the other", file.display()))
    })
}

/// A fault when the image lies on something that would be frozen.
fn holding(table: &[Mount], image: &Path, planned: &[Mount], machine: &dyn Machine) -> Option<String> {
    let name = image.display();
    let id = match machine.mount_of(image) {
        Ok((_, id)) => id,
        Err(error) => return Some(format!("{name} cannot be looked at: {error}")),
    };
    let Some(own) = table.iter().find(|mount| mount.id == id) else {
        return Some(format!("{name} is on no file system that is mounted here"));
    };
    // What cannot be found out is left to the deadline: a snapshot that waits for it is no snapshot.
    let below = stack::files_below(own, table, machine).unwrap_or_default();
    let mut devices = std::iter::once(own.device).chain(below.into_iter().map(|(_, device)| device));
    let frozen = |device: (u32, u32)| planned.iter().find(|mount| mount.device == device);
    let holder = devices.find_map(frozen)?.mount_point.display();
    Some(format!("{name} lies on {holder}: its snapshot cannot be taken while that is frozen"))
}

#[cfg(test)]
mod tests;
