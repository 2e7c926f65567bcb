//! Where clones of files and snapshots of subvolumes lie: `.vaultferry-snapshots/<image's name>/` beside the image.
//!
//! ```text
//! /var/lib/images/machine.img
//! /var/lib/images/.vaultferry-snapshots/machine.img/0198…c4-disk0.raw      a clone: job and disk
//! /var/lib/images/.vaultferry-snapshots/machine.img/0198…c4                a snapshot of a subvolume: job
//! ```
//!
//! Invariants:
//! - Both folders are ours alone (mode 0700, our user's), or nothing is made in them or removed from them.
//! - Entries of other names or kinds are never touched. The image's name keeps the machines of one folder apart.
//! - Whoever uses an entry holds a shared lock on it (flock): the kernel gives it back when the process dies. Only what can be locked for
//!   oneself alone is removed.
//! - A folder that belongs to an image that is gone is swept by whoever sweeps beside it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::libc;
use vaultferry_proto::{Problem, Reason};

use super::{Disk, Tracking, failed, kernel, unreadable};

#[cfg(test)]
mod tests;

/// Beside the image.
const FOLDER: &str = ".vaultferry-snapshots";
/// The root of every subvolume of btrfs has this inode.
pub(super) const SUBVOLUME_ROOT: u64 = 256;
/// Of a job's id, in bytes; ours have 32.
const ID_MAX: usize = 64;

/// The job's id, if it can be part of a name.
pub(super) fn check_id(id: &str) -> Result<&str, Problem> {
    if is_id(id) {
        return Ok(id);
    }
    Err(Problem::new(
        Reason::InvalidRequest,
        format!("{id:?} cannot be a job's id: letters and digits, {ID_MAX} at most"),
    ))
}

/// Without a hyphen: it parts job and disk.
fn is_id(id: &str) -> bool {
    (1..=ID_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// The disks' names, if they can be parts of names, and differ.
pub(super) fn check_disks(disks: &[Disk]) -> Result<(), Problem> {
    let plain = |name: &str| {
        (1..=32).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let unique = |index: usize, disk: &Disk| disks[..index].iter().all(|other| other.name != disk.name);
    match disks.iter().enumerate().find(|(index, disk)| !plain(&disk.name) || !unique(*index, disk)) {
        Some((_, disk)) => {
            Err(Problem::new(Reason::InvalidRequest, format!("{:?} cannot be a disk's name", disk.name)))
        }
        None if disks.is_empty() => {
            Err(Problem::new(Reason::InvalidRequest, "a machine without disks has nothing to back up"))
        }
        None => Ok(()),
    }
}

/// A clone's name.
pub(super) fn clone_name(id: &str, disk: &str) -> OsString {
    format!("{id}-{disk}.raw").into()
}

fn is_clone_name(name: &OsStr) -> bool {
    let parts = name.to_str().and_then(|name| name.strip_suffix(".raw")?.split_once('-'));
    parts.is_some_and(|(id, disk)| {
        is_id(id) && !disk.is_empty() && disk.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// The image without symbolic links; of one that is gone, what is left of that.
pub(super) fn real_path(image: &Path) -> io::Result<PathBuf> {
    match image.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (Some(parent), Some(name)) = (image.parent(), image.file_name()) else { return Err(error) };
            Ok(parent.canonicalize()?.join(name))
        }
        other => other,
    }
}

/// The folder of an image's clones; it may not exist. `image` without symbolic links.
pub(super) fn folder(image: &Path) -> Result<PathBuf, Problem> {
    match (image.parent(), image.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.join(FOLDER).join(name)),
        _ => Err(failed(format!("{} has no folder", image.display()))),
    }
}

/// Makes an image's folder, or sees that it is ours.
pub(super) fn make_folder(folder: &Path) -> Result<(), Problem> {
    let both = || folder.parent().into_iter().chain([folder]).try_for_each(make_private);
    let mut made = both();
    for _ in 0..3 {
        // Another machine's backup has swept the empty upper folder away between the two.
        match &made {
            Err(error) if error.kind() == io::ErrorKind::NotFound => made = both(),
            _ => break,
        }
    }
    made.map_err(|error| {
        failed(format!("cannot make the folder for snapshots, {}: {error}", folder.display())).with_fix(
            "Give the agent's user the right to write there, or, if the folder is another user's, remove it; then start the backup again.",
        )
    })
}

fn make_private(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other,
    }
    if is_private(dir)? { Ok(()) } else { Err(io::Error::other(format!("{} is not ours alone", dir.display()))) }
}

/// A folder, not a link to one, of this process's user, whom nobody else can disturb there.
fn is_private(dir: &Path) -> io::Result<bool> {
    let found = fs::symlink_metadata(dir)?;
    let own = found.uid() == nix::unistd::geteuid().as_raw();
    Ok(found.is_dir() && own && found.mode() & 0o077 == 0)
}

/// Brings a folder's entries to the disk.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()?;
    // Both levels may be new.
    folder.ancestors().skip(1).take(2).try_for_each(|dir| File::open(dir)?.sync_all())
}

/// Opens an entry for reading, whatever it is, without following a link or waiting for a pipe.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// A clone that is being made or used. Dropping it removes it, unless it is kept.
#[derive(Debug)]
pub(super) struct CloneFile {
    pub(super) file: File,
    path: PathBuf,
    keep: bool,
}

impl CloneFile {
    /// A new, empty file of mode 0600 that is in use.
    pub(super) fn new(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let clone = Self { file, path, keep: false };
        clone.file.lock_shared()?;
        Ok(clone)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it for the next backup.
    pub(super) fn keep(mut self) {
        self.keep = true;
    }

    /// Removes it.
    pub(super) fn remove(mut self) -> io::Result<()> {
        self.keep = true;
        self.unlink()
    }

    /// Only if it is still the file that was made.
    fn unlink(&self) -> io::Result<()> {
        let (own, there) = (self.file.metadata()?, fs::symlink_metadata(&self.path));
        match there {
            Ok(there) if (there.dev(), there.ino()) == (own.dev(), own.ino()) => fs::remove_file(&self.path),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Drop for CloneFile {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = self.unlink()
        {
            tracing::warn!(path = %self.path.display(), "a clone stays behind until the next backup: {error}");
        }
    }
}

/// Removes what earlier jobs left beside these images; see [`super::Provider::remove_leftovers`].
pub(super) fn sweep(disks: &[Disk], keep: &[Tracking]) -> Result<Vec<String>, Problem> {
    let kept: Vec<&Path> = keep.iter().flat_map(|tracking| &tracking.disks).map(|disk| disk.path.as_path()).collect();
    let mut removed = Vec::new();
    for disk in disks {
        let image = real_path(&disk.path).map_err(|error| unreadable(&disk.path, &error))?;
        let own = folder(&image)?;
        let top = own.parent().unwrap_or(&own);
        match is_private(top) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(cannot_remove(top, &error)),
        }
        for dir in entries(top)? {
            let image_is_gone = || {
                let beside = top.parent().zip(dir.file_name()).map(|(parent, name)| parent.join(name));
                beside.is_some_and(|path| {
                    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
                })
            };
            if (dir == own || image_is_gone()) && is_private(&dir).is_ok_and(|own| own) {
                for entry in entries(&dir)? {
                    if !kept.iter().any(|kept| kept.starts_with(&entry)) && remove(&dir, &entry)? {
                        removed.push(entry.display().to_string());
                    }
                }
                // Both fail when there is something left in them, and that is right.
                let _ = fs::remove_dir(&dir);
            }
        }
        let _ = fs::remove_dir(top);
    }
    Ok(removed)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, Problem> {
    let listed = || fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>();
    let mut listed = match listed() {
        // Another job has swept it at the same time.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(|error| cannot_remove(dir, &error))?,
    };
    listed.sort();
    Ok(listed)
}

/// Removes an entry if it is a leftover: of our making by its name and kind, and in nobody's use.
fn remove(dir: &Path, entry: &Path) -> Result<bool, Problem> {
    let Some(name) = entry.file_name() else { return Ok(false) };
    let attempt = || -> io::Result<bool> {
        let found = fs::symlink_metadata(entry)?;
        let is_clone = found.is_file() && is_clone_name(name);
        let is_snapshot = found.is_dir() && found.ino() == SUBVOLUME_ROOT && name.to_str().is_some_and(is_id);
        if !is_clone && !is_snapshot {
            return Ok(false);
        }
        let file = open(entry)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        if is_clone {
            fs::remove_file(entry)?;
            return Ok(true);
        }
        // A subvolume that can be written to is somebody's work.
        if !kernel::btrfs_subvolume(&file)?.read_only {
            return Ok(false);
        }
        kernel::btrfs_destroy(&File::open(dir)?, name)?;
        Ok(true)
    };
    match attempt() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map_err(|error| cannot_remove(entry, &error)),
    }
}

fn cannot_remove(path: &Path, error: &io::Error) -> Problem {
    failed(format!("cannot remove what an earlier job left, {}: {error}", path.display())).with_fix(
        "Mend what the message says, or remove it by hand: it is a snapshot of this product that holds space.",
    )
}
