//! Clones of image files on xfs and btrfs: a clone shares all blocks with the image until one of them is written to, and takes milliseconds.
//!
//! Invariants:
//! - The clones are made empty before the freeze; the take is one call for each disk, and nothing else.
//! - The file system with the images must not be frozen: cloning writes to it, and would wait for the thaw.
//! - Several disks are cloned one after the other. They are of one instant only when what writes to them is frozen.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use jiff::Timestamp;
use nix::libc;
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::free_bytes;
use vaultferry_proto::{Problem, Reason};

use super::hidden::CloneFile;
use super::{
    Disk, Freezable, Held, Prepared, Provider, Snapshot, SnapshotDisk, TrackedDisk, Tracking, base, blocking, failed,
    hidden, kernel, unless_cancelled, unreadable,
};
use crate::extents;

pub(super) const NAME: &str = "reflink";

/// What a clone is tried with, in bytes: whole blocks of every file system.
const TRIAL: u64 = 64 << 10;

/// While a clone is there, each block that the machine writes to needs a new one. So much of what the images have must be free, …
const ROOM_PER_CENT: u64 = 5;
/// … and so much beside that, in bytes: a full file system stops the machine.
const ROOM: u64 = 16 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Reflink;

#[async_trait]
impl Provider for Reflink {
    fn name(&self) -> &'static str {
        NAME
    }

    fn freezable(&self) -> Freezable {
        Freezable::NotTheImages
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
        let prepared = move || -> Result<Cloning, Problem> {
            let one = |disk: &Disk| unless_cancelled(&cancel).and_then(|()| member(&id, disk));
            let members: Vec<Member> = disks.iter().map(one).collect::<Result<_, _>>()?;
            check_room(&members.iter().map(|member| (member.path.as_path(), &member.image)).collect::<Vec<_>>())?;
            for member in &members {
                unless_cancelled(&cancel)?;
                flush(&member.path, &member.image)?;
            }
            Ok(Cloning { id, base, taken_at: None, members })
        };
        Ok(Box::new(blocking(prepared).await?))
    }

    async fn remove_leftovers(&self, disks: &[Disk], keep: &[Tracking]) -> Result<Vec<String>, Problem> {
        let (disks, keep) = (disks.to_vec(), keep.to_vec());
        blocking(move || hidden::sweep(&disks, &keep)).await
    }
}

/// A disk that can be cloned at once.
#[derive(Debug)]
struct Member {
    name: String,
    /// Without symbolic links.
    path: PathBuf,
    image: File,
    clone: CloneFile,
}

fn member(id: &str, disk: &Disk) -> Result<Member, Problem> {
    let path = disk.path.canonicalize().map_err(|error| unreadable(&disk.path, &error))?;
    let image = open_image(&path)?;
    let folder = hidden::folder(&path)?;
    let clone = make_clone(&folder, &folder.join(hidden::clone_name(id, &disk.name)))?;
    let size = image.metadata().map_err(|error| unreadable(&path, &error))?.size();
    // libvirt makes images without checksums on btrfs.
    kernel::match_checksums(&image, &clone.file).map_err(|error| cannot_clone(&path, &error))?;
    // It costs a block, and tells what the take would fail with.
    let whole = if size <= TRIAL { 0 } else { TRIAL };
    let tried = kernel::clone_beginning(&image, &clone.file, whole).and_then(|()| clone.file.set_len(0));
    tried.map_err(|error| cannot_clone(&path, &error))?;
    Ok(Member { name: disk.name.clone(), path, image, clone })
}

/// An image file, for reading; what is no regular file is [`Reason::SnapshotUnsupported`].
pub(super) fn open_image(path: &Path) -> Result<File, Problem> {
    let image = hidden::open(path).map_err(|error| unreadable(path, &error))?;
    let found = image.metadata().map_err(|error| unreadable(path, &error))?;
    if found.is_file() {
        return Ok(image);
    }
    let message = format!("{} is not a regular file, so it cannot be cloned", path.display());
    let fix =
        "Set provider = \"lvm\" for a logical volume, or provider = \"offline\" for a disk of a machine that is off.";
    Err(Problem::new(Reason::SnapshotUnsupported, message).with_fix(fix))
}

fn make_clone(folder: &Path, path: &Path) -> Result<CloneFile, Problem> {
    let mut attempts = 0;
    loop {
        hidden::make_folder(folder)?;
        match CloneFile::new(path.to_path_buf()) {
            // Another machine's backup has swept the empty folder away meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempts < 3 => attempts += 1,
            made => {
                return made.map_err(|error| failed(format!("cannot make the clone {}: {error}", path.display())));
            }
        }
    }
}

fn cannot_clone(path: &Path, error: &io::Error) -> Problem {
    let message = format!("cannot clone {}: {error}", path.display());
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::EXDEV | libc::EINVAL | libc::ENOTTY | libc::ETXTBSY) => {
            let fix = "Keep the image on btrfs, or on xfs that was made with reflink=1 (xfs_info tells), as an ordinary file; or turn the machine \
                       off and set provider = \"offline\".";
            Problem::new(Reason::SnapshotUnsupported, message).with_fix(fix)
        }
        Some(libc::ENOSPC | libc::EDQUOT) => failed(message)
            .with_fix("Make space on the file system that holds the images, then start the backup again."),
        _ => failed(message),
    }
}

/// Refuses when a file system with images has too little room for what the machine writes while the snapshot is there.
pub(super) fn check_room(images: &[(&Path, &File)]) -> Result<(), Problem> {
    // Device and allocated bytes.
    let facts =
        |image: &File| image.metadata().map_or((0, 0), |found| (found.dev(), found.blocks().saturating_mul(512)));
    let all: Vec<(u64, u64)> = images.iter().map(|(_, image)| facts(image)).collect();
    for ((path, _), (device, _)) in images.iter().zip(&all) {
        let beside = all.iter().filter(|(other, _)| other == device);
        let allocated = beside.fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let needed = ROOM.saturating_add(allocated / 100 * ROOM_PER_CENT);
        if let Some(free) = free_bytes(path).filter(|free| *free < needed) {
            let message = format!(
                "the file system of {} has {} MiB free; while a snapshot is there, what the machine writes needs new space, and {} MiB are asked for",
                path.display(),
                free >> 20,
                needed >> 20
            );
            let fix = "Make space there, or enlarge it: a file system that runs full stops the machine.";
            return Err(failed(message).with_fix(fix));
        }
    }
    Ok(())
}

/// Brings to the disk what the take would have to wait for.
pub(super) fn flush(path: &Path, image: &File) -> Result<(), Problem> {
    image.sync_data().map_err(|error| unreadable(path, &error))
}

/// The image's path still leads to the file that the snapshot is of.
pub(super) fn same_image(path: &Path, image: &File) -> Result<(), Problem> {
    let there = std::fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let own = image.metadata().map(|found| (found.dev(), found.ino())).map_err(|error| unreadable(path, &error))?;
    if there.is_ok_and(|there| there == own) {
        return Ok(());
    }
    let message = format!("{}: another file was put into its place while the snapshot was taken", path.display());
    Err(Problem::new(Reason::SourceChanged, message))
}

#[derive(Debug)]
struct Cloning {
    id: String,
    base: Option<Tracking>,
    taken_at: Option<Timestamp>,
    members: Vec<Member>,
}

#[async_trait]
impl Prepared for Cloning {
    fn take(&mut self) -> Result<(), Problem> {
        self.taken_at = Some(Timestamp::now());
        for member in &self.members {
            kernel::clone_file(&member.image, &member.clone.file)
                .map_err(|error| cannot_clone(&member.path, &error))?;
        }
        Ok(())
    }

    async fn open(self: Box<Self>) -> Result<Snapshot, Problem> {
        blocking(move || self.opened()).await
    }
}

impl Cloning {
    fn opened(self) -> Result<Snapshot, Problem> {
        let Self { id, base, taken_at, members } = self;
        let taken_at = taken_at.ok_or_else(|| failed("the snapshot was not taken"))?;
        let (mut disks, mut tracked) = (Vec::new(), Vec::new());
        for member in &members {
            same_image(&member.path, &member.image)?;
            let path = member.clone.path();
            let opened = open_clone(member, base.as_ref());
            let (disk, facts) =
                opened.map_err(|error| failed(format!("cannot open the clone {}: {error}", path.display())))?;
            disks.push(disk);
            tracked.extend(facts);
        }
        // Without one of them the others are of no use to a comparison of all; it is read whole then.
        let tracking = Tracking { provider: NAME.to_owned(), id: id.clone(), disks: tracked };
        let tracking = (tracking.disks.len() == disks.len()).then_some(tracking);
        let held = Box::new(Clones(members.into_iter().map(|member| member.clone).collect()));
        Ok(Snapshot { id, taken_at, disks, tracking, held })
    }
}

fn open_clone(member: &Member, base: Option<&Tracking>) -> io::Result<(SnapshotDisk, Option<TrackedDisk>)> {
    let path = member.clone.path();
    // What a later backup compares with has to outlive a crash, and all that would change its facts has to be done by now.
    member.clone.file.sync_all()?;
    path.parent().map_or(Ok(()), hidden::sync_folder)?;
    let file = hidden::open(path)?;
    let found = file.metadata()?;
    if found.ino() != member.clone.file.metadata()?.ino() {
        return Err(io::Error::other("another file was put into its place"));
    }
    let size = found.size();
    let allocated = extents::allocated(&file, size)?;
    let changes = base::changes(base, NAME, &member.name, &file, size);
    let facts = base::tracked(&member.name, path.to_path_buf(), &found, None);
    Ok((SnapshotDisk { name: member.name.clone(), size, file, allocated, changes }, facts))
}

#[derive(Debug)]
struct Clones(Vec<CloneFile>);

#[async_trait]
impl Held for Clones {
    async fn release(self: Box<Self>, keep: bool) -> Result<(), Problem> {
        blocking(move || {
            let mut result = Ok(());
            for clone in self.0 {
                let path = clone.path().to_path_buf();
                if keep {
                    clone.keep();
                } else if let Err(error) = clone.remove() {
                    result = Err(failed(format!("cannot remove the clone {}: {error}", path.display())));
                }
            }
            result
        })
        .await
    }
}
