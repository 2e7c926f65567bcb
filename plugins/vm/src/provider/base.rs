//! What differs between the clone that an earlier backup kept (the base) and the one that was just taken.
//!
//! Why it is right, whatever happened in between:
//! - The base still is what was backed up: it is the same inode with the same size and the same time of its last change of any kind, which programs
//!   cannot set back; of btrfs, the same subvolume, which nobody could write to. Anything else is [`Changes::Unknown`].
//! - Both are on one mounted file system, by its device number or btrfs's own id.
//! - Neither of the two is written to while they are compared, and what both have at the same address of one file system is the same. It does not
//!   matter what became of the image meanwhile: replaced by another file, moved, defragmented, restored.
//! - Blocks that the base has are not used again as long as it is there: that is why it is kept until it was compared.
//! - A file system that moves data around meanwhile (btrfs balance, defragmentation) is noticed: the base's map is read before and after the new
//!   one's, and must not have changed.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use nix::sys::statfs::{BTRFS_SUPER_MAGIC, XFS_SUPER_MAGIC, fstatfs};

use super::{Changes, TrackedDisk, Tracking, hidden, kernel};
use crate::extents;

/// What is remembered of a clone; `None` when its path cannot be written down (it is no UTF-8), so that there is nothing to compare with later.
pub(super) fn tracked(name: &str, path: PathBuf, found: &Metadata, subvolume: Option<String>) -> Option<TrackedDisk> {
    path.to_str()?;
    Some(TrackedDisk {
        name: name.to_owned(),
        size: found.size(),
        path,
        inode: found.ino(),
        changed_at_ns: changed_at_ns(found),
        subvolume,
    })
}

/// Good until 2262.
fn changed_at_ns(found: &Metadata) -> i64 {
    found.ctime().saturating_mul(1_000_000_000).saturating_add(found.ctime_nsec())
}

/// What may differ in the disk `name`, whose new clone of `size` bytes is `new`. It reads no data.
pub(super) fn changes(base: Option<&Tracking>, provider: &str, name: &str, new: &File, size: u64) -> Changes {
    let Some(base) = base else {
        return Changes::Unknown("there is no earlier point to compare with".into());
    };
    if base.provider != provider {
        let why = format!("the last point was taken with the provider {}, this one with {provider}", base.provider);
        return Changes::Unknown(why);
    }
    let Some(disk) = base.disks.iter().find(|disk| disk.name == name) else {
        return Changes::Unknown(format!("the last point has no {name}"));
    };
    match compare(disk, new, size) {
        Ok(Ok(ranges)) => Changes::Since(ranges),
        Ok(Err(why)) => Changes::Unknown(why),
        Err(error) => {
            Changes::Unknown(format!("the last point's clone, {}, cannot be compared: {error}", disk.path.display()))
        }
    }
}

/// The inner error says why the base is of no use.
fn compare(disk: &TrackedDisk, new: &File, size: u64) -> io::Result<Result<Vec<std::ops::Range<u64>>, String>> {
    let path = disk.path.display();
    let base = match hidden::open(&disk.path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Err(format!("the last point's clone, {path}, is gone")));
        }
        base => base?,
    };
    let is_as_it_was = |base: &File| -> io::Result<bool> {
        let found = base.metadata()?;
        let facts = (found.ino(), found.size(), changed_at_ns(&found));
        Ok(found.is_file() && facts == (disk.inode, disk.size, disk.changed_at_ns))
    };
    if !is_as_it_was(&base)? {
        return Ok(Err(format!("the last point's clone, {path}, was touched since")));
    }
    let same_system = if let Some(subvolume) = &disk.subvolume {
        let found = kernel::btrfs_subvolume(&base)?;
        if !found.read_only || subvolume_facts(&found) != *subvolume {
            return Ok(Err(format!("the last point's snapshot, with {path} in it, was touched since")));
        }
        kernel::btrfs_id(&base)? == kernel::btrfs_id(new)?
    } else {
        base.metadata()?.dev() == new.metadata()?.dev()
    };
    if !same_system {
        // Addresses of two file systems have nothing to do with each other.
        return Ok(Err(format!("the last point's clone, {path}, is on another file system")));
    }
    let system = fstatfs(new)?.filesystem_type();
    if ![XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC].contains(&system) {
        return Ok(Err("addresses of data are only known to be told apart on xfs and btrfs".into()));
    }
    if kernel::is_realtime(&base)? || kernel::is_realtime(new)? {
        return Ok(Err(
            "the image is on the realtime device of its file system, whose addresses are not told apart".into()
        ));
    }
    let before = extents::fiemap(&base)?;
    let now = extents::fiemap(new)?;
    if extents::places(&extents::fiemap(&base)?) != extents::places(&before) || !is_as_it_was(&base)? {
        return Ok(Err(format!("the last point's clone, {path}, was moved while it was compared")));
    }
    let mut ranges = extents::changed(&before, &now, size);
    if disk.size < size {
        // Nobody has read these of the base: there were none.
        let grown = disk.size..size;
        ranges = extents::union(&ranges, std::slice::from_ref(&grown));
    }
    Ok(Ok(extents::coarsen(ranges, extents::MOST_RANGES)))
}

/// As [`TrackedDisk::subvolume`] has it.
pub(super) fn subvolume_facts(found: &kernel::Subvolume) -> String {
    let uuid: String = found.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{uuid}:{}", found.changed)
}
