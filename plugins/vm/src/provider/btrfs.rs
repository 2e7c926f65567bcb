//! Snapshots of a btrfs subvolume with all disks of a machine in it: one call, one instant for all of them.
//!
//! Invariants:
//! - The snapshot is read-only from its first moment.
//! - Nothing of ours is frozen while it is taken: btrfs holds writers up by itself, for as long as it writes out what waits in memory.
//! - Disks of different subvolumes are refused: their snapshots would be of different instants.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use jiff::Timestamp;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, fstatfs};
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};

use super::reflink::{check_room, flush, open_image, same_image};
use super::{
    Disk, Freezable, Held, Prepared, Provider, Snapshot, SnapshotDisk, TrackedDisk, Tracking, base, blocking, failed,
    hidden, kernel, unless_cancelled, unreadable,
};
use crate::extents;

pub(super) const NAME: &str = "btrfs";

/// See the module.
#[derive(Debug)]
pub(super) struct Btrfs;

#[async_trait]
impl Provider for Btrfs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn freezable(&self) -> Freezable {
        Freezable::Nothing
    }

    async fn prepare(
        &self,
        job_id: &str,
        disks: &[Disk],
        base: Option<&Tracking>,
        cancel: &CancellationToken,
    ) -> Result<Box<dyn Prepared>, Problem> {
        let id = hidden::check_id(job_id)?.to_owned();
        hidden::check_disks(disks)?;
        let (disks, base, cancel) = (disks.to_vec(), base.cloned(), cancel.clone());
        Ok(Box::new(blocking(move || prepared(id, &disks, base, &cancel)).await?))
    }

    async fn remove_leftovers(&self, disks: &[Disk], keep: &[Tracking]) -> Result<Vec<String>, Problem> {
        let (disks, keep) = (disks.to_vec(), keep.to_vec());
        blocking(move || hidden::sweep(&disks, &keep)).await
    }
}

/// A disk that is in the subvolume.
#[derive(Debug)]
struct Member {
    name: String,
    /// Without symbolic links.
    path: PathBuf,
    /// From the subvolume's root.
    inside: PathBuf,
    image: File,
}

fn prepared(id: String, disks: &[Disk], base: Option<Tracking>, cancel: &CancellationToken) -> Result<Ready, Problem> {
    let mut members = Vec::new();
    let mut root: Option<PathBuf> = None;
    for disk in disks {
        unless_cancelled(cancel)?;
        let path = disk.path.canonicalize().map_err(|error| unreadable(&disk.path, &error))?;
        let image = open_image(&path)?;
        let found = subvolume_of(&path, &image)?;
        if root.as_ref().is_some_and(|root| *root != found) {
            let message = format!(
                "{} is not in the same subvolume as the disks before it, so their snapshots would be of different instants",
                path.display()
            );
            let fix = "Move the images into one subvolume, or set provider = \"reflink\" and let the machine's file systems be frozen.";
            return Err(Problem::new(Reason::SnapshotUnsupported, message).with_fix(fix));
        }
        let inside = path.strip_prefix(&found).map_err(|error| failed(error.to_string()))?.to_path_buf();
        root = Some(found);
        members.push(Member { name: disk.name.clone(), path, inside, image });
    }
    let (Some(first), Some(root)) = (members.first(), root) else { return Err(failed("a machine without disks")) };
    let folder = hidden::folder(&first.path)?;
    hidden::make_folder(&folder)?;
    check_room(&members.iter().map(|member| (member.path.as_path(), &member.image)).collect::<Vec<_>>())?;
    for member in &members {
        unless_cancelled(cancel)?;
        flush(&member.path, &member.image)?;
    }
    let open = |path: &Path| File::open(path).map_err(|error| unreadable(path, &error));
    let (dir, subvolume) = (open(&folder)?, open(&root)?);
    let path = folder.join(&id);
    if std::fs::symlink_metadata(&path).is_ok() {
        return Err(failed(format!("{} is there already", path.display())));
    }
    let made = Made { dir, name: OsString::from(&id), path, _lock: None, remove: false };
    Ok(Ready { id, base, taken_at: None, members, subvolume, made })
}

/// The root of the subvolume that an image is in, as far as it can be reached.
fn subvolume_of(path: &Path, image: &File) -> Result<PathBuf, Problem> {
    let unsupported = |why: &str| {
        let fix = "Set provider = \"reflink\", or mount the subvolume's root where the agent can reach it.";
        Err(Problem::new(Reason::SnapshotUnsupported, format!("{}: {why}", path.display())).with_fix(fix))
    };
    let system = fstatfs(image).map_err(|error| unreadable(path, &error.into()))?;
    if system.filesystem_type() != BTRFS_SUPER_MAGIC {
        return unsupported("it is not on btrfs");
    }
    let device = image.metadata().map_err(|error| unreadable(path, &error))?.dev();
    for dir in path.ancestors().skip(1) {
        let found = std::fs::metadata(dir).map_err(|error| unreadable(dir, &error))?;
        // Each subvolume has a device number of its own, so this is the border of a mount.
        if found.dev() != device {
            break;
        }
        if found.ino() == hidden::SUBVOLUME_ROOT {
            return Ok(dir.to_path_buf());
        }
    }
    unsupported("the root of its subvolume cannot be reached from here")
}

/// A snapshot, once it was taken. Dropping it removes it, unless it is kept.
#[derive(Debug)]
struct Made {
    /// The folder that it is in.
    dir: File,
    name: OsString,
    path: PathBuf,
    /// Its root, locked, so that nobody takes it for a leftover.
    _lock: Option<File>,
    remove: bool,
}

impl Made {
    /// Removes it. Its space comes back a while later.
    fn destroy(&mut self) -> io::Result<()> {
        self.remove = false;
        match kernel::btrfs_destroy(&self.dir, &self.name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.remove
            && let Err(error) = self.destroy()
        {
            tracing::warn!(path = %self.path.display(), "a snapshot stays behind until the next backup: {error}");
        }
    }
}

#[derive(Debug)]
struct Ready {
    id: String,
    base: Option<Tracking>,
    taken_at: Option<Timestamp>,
    members: Vec<Member>,
    /// Its root.
    subvolume: File,
    made: Made,
}

#[async_trait]
impl Prepared for Ready {
    fn take(&mut self) -> Result<(), Problem> {
        self.taken_at = Some(Timestamp::now());
        let taken = kernel::btrfs_snapshot(&self.made.dir, &self.made.name, &self.subvolume);
        // After an error there is none of ours: an entry of that name would be somebody else's.
        self.made.remove = taken.is_ok();
        taken.map_err(|error| {
            failed(format!("cannot take the snapshot {}: {error}", self.made.path.display()))
                .with_fix("Run the agent as root, and see that the file system has space and is not mounted read-only.")
        })
    }

    async fn open(self: Box<Self>) -> Result<Snapshot, Problem> {
        blocking(move || self.opened()).await
    }
}

impl Ready {
    fn opened(self) -> Result<Snapshot, Problem> {
        let Self { id, base, taken_at, members, mut made, .. } = self;
        let taken_at = taken_at.ok_or_else(|| failed("the snapshot was not taken"))?;
        let cannot = |error: io::Error| failed(format!("cannot open the snapshot {id}: {error}"));
        let root = hidden::open(&made.path).map_err(cannot)?;
        root.lock_shared().map_err(cannot)?;
        let found = kernel::btrfs_subvolume(&root).map_err(cannot)?;
        if !found.read_only {
            return Err(cannot(io::Error::other("it can be written to")));
        }
        let facts = base::subvolume_facts(&found);
        made._lock = Some(root);
        let (mut disks, mut tracked) = (Vec::new(), Vec::new());
        for member in &members {
            same_image(&member.path, &member.image)?;
            let (disk, facts) = open_disk(&made.path, member, base.as_ref(), &facts).map_err(cannot)?;
            disks.push(disk);
            tracked.extend(facts);
        }
        let tracking = Tracking { provider: NAME.to_owned(), id: id.clone(), disks: tracked };
        let tracking = (tracking.disks.len() == disks.len()).then_some(tracking);
        Ok(Snapshot { id, taken_at, disks, tracking, held: Box::new(made) })
    }
}

fn open_disk(
    snapshot: &Path,
    member: &Member,
    base: Option<&Tracking>,
    subvolume: &str,
) -> io::Result<(SnapshotDisk, Option<TrackedDisk>)> {
    let path = snapshot.join(&member.inside);
    let file = hidden::open(&path)?;
    let found = file.metadata()?;
    // The number is the same in a snapshot.
    if !found.is_file() || found.ino() != member.image.metadata()?.ino() {
        return Err(io::Error::other(format!("{} is not the image", path.display())));
    }
    let size = found.size();
    let allocated = extents::allocated(&file, size)?;
    let changes = base::changes(base, NAME, &member.name, &file, size);
    let facts = base::tracked(&member.name, path, &found, Some(subvolume.to_owned()));
    Ok((SnapshotDisk { name: member.name.clone(), size, file, allocated, changes }, facts))
}

#[async_trait]
impl Held for Made {
    async fn release(mut self: Box<Self>, keep: bool) -> Result<(), Problem> {
        if keep {
            self.remove = false;
            return Ok(());
        }
        blocking(move || {
            self.destroy()
                .map_err(|error| failed(format!("cannot remove the snapshot {}: {error}", self.path.display())))
        })
        .await
    }
}
