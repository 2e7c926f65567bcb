//! Disks as they were at one instant: made, opened as ranges of bytes, and removed again, whatever it is that can make them.
//!
//! | provider | a disk is | what may be frozen by us while it is taken | several disks are of one instant | changes since the last point |
//! |---|---|---|---|---|
//! | offline | a file or device that nobody writes to | no need | yes, nobody writes | unknown: all that is allocated is read |
//! | reflink | a file on xfs or btrfs | any file system but the one with the image, which would hold the clone up until the thaw | when what writes to them is frozen | by comparing extents |
//! | btrfs | a file in a subvolume | nothing | yes, in one subvolume | by comparing extents |
//! | lvm | a logical volume, thick or thin | nothing: LVM freezes what is mounted on it | refused | unknown |
//!
//! Invariants:
//! - What is removed is our own: by folder and name (`provider/hidden.rs`), or by LVM's tag, and of these disks; never what a running job holds.
//! - A job that ends, however it ends but by the death of its process, removes what it has made. What a killed one leaves is found by
//!   [`Provider::remove_leftovers`].
//! - Doubt is [`Changes::Unknown`] with its reason, or a [`Problem`]; never a guess.
//!
//! What is not here: freezing, and what becomes of the bytes.

use std::fmt::Debug;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use jiff::Timestamp;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, XFS_SUPER_MAGIC, statfs};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};

mod base;
mod btrfs;
mod hidden;
pub(crate) mod kernel;
mod lvm;
mod offline;
mod reflink;
mod writers;

pub use lvm::Lvm;

/// The names that [`choose`] takes, beside `auto`.
pub const NAMES: &[&str] = &[offline::NAME, reflink::NAME, btrfs::NAME, lvm::NAME];

/// One disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// `disk0`: lower-case letters and digits, 32 at most. Unique among a machine's disks, and the same in each of its backups.
    pub name: String,
    /// The image or the device; symbolic links are followed.
    pub path: PathBuf,
}

/// What may be frozen by us while a snapshot is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freezable {
    /// The provider freezes by itself what it has to: btrfs, LVM.
    Nothing,
    /// Any file system but those that hold the images: reflink.
    NotTheImages,
    /// Nobody writes: there is no need.
    NoNeed,
}

/// What a later backup needs to know of a snapshot that was kept: it is written into the point, and only good for comparing. A stored format:
/// new fields have defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracking {
    /// One of [`NAMES`].
    pub provider: String,
    /// The job that took it.
    pub id: String,
    /// What was kept of each disk.
    pub disks: Vec<TrackedDisk>,
}

/// A disk's clone that was kept, and how to see that it is still the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackedDisk {
    /// As [`Disk::name`].
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// The clone.
    pub path: PathBuf,
    /// The clone's inode.
    pub inode: u64,
    /// The clone's last change of any kind (ctime), in nanoseconds since 1970: it cannot be set back by programs.
    pub changed_at_ns: i64,
    /// Of a btrfs snapshot: its UUID and the transaction of its last change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subvolume: Option<String>,
}

/// What has to be read of a disk whose last point is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// Sorted, disjoint ranges of bytes that may differ from the base; all else is as it was. What the base, if it was shorter, did not have
    /// is among them.
    Since(Vec<Range<u64>>),
    /// Why all that is allocated must be read.
    Unknown(String),
}

/// A disk of a [`Snapshot`].
#[derive(Debug)]
pub struct SnapshotDisk {
    /// As [`Disk::name`].
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Open for reading only. Its position means nothing: read at offsets.
    pub file: File,
    /// Sorted, disjoint ranges of bytes; everything else reads as zeros.
    pub allocated: Vec<Range<u64>>,
    /// Against the base that was given to [`Provider::prepare`].
    pub changes: Changes,
}

/// Disks as they were at [`taken_at`](Self::taken_at). Give it to [`release`] when all is read, and before the point is committed; one that is
/// dropped is removed without a word.
#[derive(Debug)]
pub struct Snapshot {
    /// The job's id.
    pub id: String,
    /// Just before the snapshot was taken.
    pub taken_at: Timestamp,
    /// In the order of the disks that were asked for.
    pub disks: Vec<SnapshotDisk>,
    /// For the next backup's comparison, if the snapshot is kept for it; `None` where there is nothing to compare with.
    pub tracking: Option<Tracking>,
    held: Box<dyn Held>,
}

/// What there is behind a [`Snapshot`]. Dropping it removes the snapshot as far as that can be done without waiting.
#[async_trait]
trait Held: Send + Sync + Debug {
    /// See [`release`].
    async fn release(self: Box<Self>, keep: bool) -> Result<(), Problem>;
}

/// One way to take snapshots.
#[async_trait]
pub trait Provider: Send + Sync {
    /// One of [`NAMES`].
    fn name(&self) -> &'static str;

    /// What may be frozen by us during [`Prepared::take`].
    fn freezable(&self) -> Freezable;

    /// Everything that can be done before the freeze: checks, opening, room, and bringing to the disk what the take would have to wait for. `job_id`
    /// is unique; it is part of names. `base` is the tracking of the newest committed point, whose bytes the changes are told against.
    /// Cancellation is looked at between steps. A failure leaves nothing.
    async fn prepare(
        &self,
        job_id: &str,
        disks: &[Disk],
        base: Option<&Tracking>,
        cancel: &CancellationToken,
    ) -> Result<Box<dyn Prepared>, Problem>;

    /// Removes what earlier jobs left of these disks and nobody needs, and says what that was; never another tool's, and never what a
    /// running job uses. `keep` are the trackings whose clones stay: that of the newest committed point is enough, and each one
    /// holds the space of all that was overwritten since.
    async fn remove_leftovers(&self, disks: &[Disk], keep: &[Tracking]) -> Result<Vec<String>, Problem>;
}

/// A snapshot that can be taken at once. Dropping it leaves nothing.
#[async_trait]
pub trait Prepared: Send {
    /// The instant. Runs between freeze and thaw: it logs nothing and makes no file but the snapshot itself. It blocks the thread. To be called
    /// once; after an error drop it.
    fn take(&mut self) -> Result<(), Problem>;

    /// After the thaw: opens what was taken, sees to it that it outlives a crash, and finds the extents.
    async fn open(self: Box<Self>) -> Result<Snapshot, Problem>;
}

/// Ends a snapshot after its last byte was read: looks whether it was one to the end (an offline image that was written to, or an LVM
/// snapshot that overflowed, is [`Reason::SourceChanged`], and what was read must not become a point), and removes it, or leaves what the
/// next comparison needs. Gives the tracking of what was left. After an error, what could not be removed is a leftover.
pub async fn release(snapshot: Snapshot, keep_for_next: bool) -> Result<Option<Tracking>, Problem> {
    let Snapshot { disks, tracking, held, .. } = snapshot;
    // A volume that is open cannot be removed.
    drop(disks);
    let keep = keep_for_next && tracking.is_some();
    held.release(keep).await?;
    Ok(tracking.filter(|_| keep))
}

/// The provider that the settings want, or (`None`, `auto`) the best that fits all disks: reflink for files on xfs and btrfs, LVM for logical
/// volumes, offline for whatever nobody writes to. It does not block but for looking at the files; what can only be known by trying is
/// told by [`Provider::prepare`].
pub fn choose(disks: &[Disk], wanted: Option<&str>) -> Result<Box<dyn Provider>, Problem> {
    let name = match wanted {
        None | Some("auto") => fitting(disks)?,
        Some(wanted) => wanted,
    };
    match name {
        offline::NAME => Ok(Box::new(offline::Offline)),
        reflink::NAME => Ok(Box::new(reflink::Reflink)),
        btrfs::NAME => Ok(Box::new(btrfs::Btrfs)),
        lvm::NAME => Ok(Box::new(Lvm::default())),
        other => {
            let message = format!("there is no snapshot provider {other:?}");
            let fix = format!("Choose auto, or one of these: {}.", NAMES.join(", "));
            Err(Problem::new(Reason::InvalidConfiguration, message).with_fix(fix))
        }
    }
}

/// The one name that fits them all.
fn fitting(disks: &[Disk]) -> Result<&'static str, Problem> {
    let names: Vec<&'static str> = disks.iter().map(|disk| fitting_one(&disk.path)).collect::<Result<_, _>>()?;
    let Some(first) = names.first() else {
        return Err(Problem::new(Reason::InvalidRequest, "a machine without disks has nothing to back up"));
    };
    if names.iter().all(|name| name == first) {
        return Ok(*first);
    }
    let each: Vec<String> =
        disks.iter().zip(&names).map(|(disk, name)| format!("{}: {name}", disk.path.display())).collect();
    let message = format!("no snapshot takes all of these disks at one instant ({})", each.join(", "));
    let fix = "Put the images on one file system (xfs or btrfs), protect the disks as machines of their own, or turn the machine off \
               and set provider = \"offline\".";
    Err(Problem::new(Reason::SnapshotUnsupported, message).with_fix(fix))
}

/// The best name for one disk.
fn fitting_one(path: &Path) -> Result<&'static str, Problem> {
    let found = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    let kind = found.file_type();
    if kind.is_file() {
        let system = statfs(path).map_err(|error| unreadable(path, &error.into()))?;
        if [XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC].contains(&system.filesystem_type()) {
            return Ok(reflink::NAME);
        }
    } else if !kind.is_block_device() {
        let message = format!("{} is neither a file nor a block device", path.display());
        return Err(
            Problem::new(Reason::InvalidSource, message).with_fix("Name the image file, or the device of the disk.")
        );
    } else if is_logical_volume(found.rdev()) {
        return Ok(lvm::NAME);
    }
    match offline::check_one(path) {
        Ok(_) => Ok(offline::NAME),
        Err(problem) if problem.reason == Reason::SourceInUse => {
            let fix = "Turn the machine off for its backup, or put its images on xfs (made with reflink=1) or btrfs, or its disks on LVM: \
                       these have snapshots.";
            let message = format!("{}; nothing there takes snapshots of it while it is in use", problem.message);
            Err(Problem::new(Reason::SnapshotUnsupported, message).with_fix(fix))
        }
        Err(problem) => Err(problem),
    }
}

/// LVM's devices are called so by the device mapper.
fn is_logical_volume(rdev: u64) -> bool {
    let uuid = std::fs::read_to_string(writers::sysfs(rdev).join("dm/uuid"));
    uuid.is_ok_and(|uuid| uuid.starts_with("LVM-"))
}

/// The disk cannot be opened, or looked at.
fn unreadable(path: &Path, error: &std::io::Error) -> Problem {
    let message = format!("cannot read {}: {error}", path.display());
    Problem::new(Reason::InvalidSource, message)
        .with_fix("Correct the disk's path, or run the agent as a user who may read it (root, for devices and other users' images).")
}

/// Something of a snapshot went wrong; `fix` as everywhere.
fn failed(message: impl Into<String>) -> Problem {
    Problem::new(Reason::SnapshotFailed, message)
}

/// Runs what may wait for a disk on a thread for that. It runs to its end when its caller is gone.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Problem> + Send + 'static) -> Result<T, Problem> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|error| Err(Problem::new(Reason::Internal, format!("work on a snapshot broke off: {error}"))))
}

/// The job was cancelled.
fn unless_cancelled(cancel: &CancellationToken) -> Result<(), Problem> {
    if cancel.is_cancelled() { Err(Problem::new(Reason::Cancelled, "the job was cancelled")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(path: &Path) -> Disk {
        Disk { name: "disk0".into(), path: path.into() }
    }

    fn chosen(disks: &[Disk], wanted: Option<&str>) -> Result<&'static str, Problem> {
        choose(disks, wanted).map(|provider| provider.name())
    }

    #[test]
    fn a_provider_is_chosen_by_its_name() {
        for name in NAMES {
            assert_eq!(chosen(&[], Some(name)).expect("a provider"), *name);
        }
        let problem = chosen(&[], Some("vss")).expect_err("there is none");
        assert_eq!(problem.reason, Reason::InvalidConfiguration);
        assert!(problem.fix.contains("offline, reflink, btrfs, lvm"), "{problem:?}");
        assert_eq!(chosen(&[], None).expect_err("no disks").reason, Reason::InvalidRequest);
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(chosen(&[disk(dir.path())], None).expect_err("a folder").reason, Reason::InvalidSource);
        let missing = dir.path().join("missing");
        assert_eq!(chosen(&[disk(&missing)], Some("auto")).expect_err("nothing").reason, Reason::InvalidSource);
    }

    #[test]
    fn a_file_in_use_needs_a_file_system_with_snapshots() {
        let dir = tempfile::tempdir().expect("a folder");
        let system = statfs(dir.path()).expect("its file system").filesystem_type();
        if [XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC].contains(&system) {
            return; // It has snapshots here; tests/tests/vm_snapshots.rs is about these.
        }
        let image = dir.path().join("image");
        let writer = File::create(&image).expect("an image");
        let problem = chosen(&[disk(&image)], None).expect_err("somebody may write to it");
        assert_eq!(problem.reason, Reason::SnapshotUnsupported);
        assert!(problem.message.contains(&image.display().to_string()), "{problem:?}");
        drop(writer);
        assert_eq!(chosen(&[disk(&image)], None).expect("nobody writes"), "offline");
    }

    #[test]
    fn a_tracking_of_the_first_version_stays_readable() {
        let text = r#"{"provider":"reflink","id":"0a1b","disks":[{"name":"disk0","size":4096,"path":"/x/y","inode":7,"changed_at_ns":5}]}"#;
        let read: Tracking = serde_json::from_str(text).expect("readable");
        assert_eq!(read.disks[0].subvolume, None);
        assert_eq!(serde_json::to_string(&read).expect("writable"), text);
    }
}
