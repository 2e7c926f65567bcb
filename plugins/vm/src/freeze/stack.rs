//! What a file system stands on: the files behind its loop devices, however many layers (partitions, device mapper, md, another loop) lie
//! between. Read from `/sys`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::mounts::{Machine, Mount};

/// A file, and the device number of the file system where it lies.
pub(super) type Placed = (PathBuf, (u32, u32));

/// The files that the file system's bytes come from, each with the device number of the file system where it lies; theirs too, when those
/// stand on files themselves. An error when one of them cannot be found out: a file that was deleted, or lies out of this process's sight.
pub(super) fn files_below(mount: &Mount, table: &[Mount], machine: &dyn Machine) -> Result<Vec<Placed>, String> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::from([mount.device]);
    let mut open = vec![mount.clone()];
    while let Some(mount) = open.pop() {
        for file in backing_files(&mount, machine.sys()) {
            let unknown = |reason: String| format!("the file {} of its loop device: {reason}", file.display());
            let (path, id) = machine.mount_of(&file).map_err(|error| unknown(error.to_string()))?;
            let below = table.iter().find(|mount| mount.id == id);
            let below = below.ok_or_else(|| unknown("it lies on nothing that is mounted here".into()))?;
            found.push((path, below.device));
            if seen.insert(below.device) {
                open.push(below.clone());
            }
        }
    }
    Ok(found)
}

/// The files behind all devices of one file system.
fn backing_files(mount: &Mount, sys: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut seen = BTreeSet::new();
    let mut open = devices(mount, sys);
    while let Some(dir) = open.pop() {
        let Ok(dir) = dir.canonicalize() else { continue };
        if !seen.insert(dir.clone()) {
            continue;
        }
        if dir.join("partition").exists() {
            open.extend(dir.parent().map(Path::to_path_buf));
        }
        open.extend(entries(&dir.join("slaves")));
        if let Ok(mut name) = fs::read(dir.join("loop/backing_file")) {
            name.truncate(name.trim_ascii_end().len());
            files.push(PathBuf::from(OsString::from_vec(name)));
        }
    }
    files
}

/// The folders in `/sys` of the devices that the file system is on. One whose device number is made up (btrfs) is found by its source's name,
/// and all others of the same btrfs with it.
fn devices(mount: &Mount, sys: &Path) -> Vec<PathBuf> {
    let (major, minor) = mount.device;
    if major != 0 {
        return vec![sys.join(format!("dev/block/{major}:{minor}"))];
    }
    // Links of /dev/mapper and /dev/disk lead to the kernel's own names.
    let source = mount.source.canonicalize().unwrap_or_else(|_| mount.source.clone());
    let Some(name) = source.file_name() else { return Vec::new() };
    let mut found = vec![sys.join("class/block").join(name)];
    for one in entries(&sys.join("fs/btrfs")) {
        let devices = one.join("devices");
        if devices.join(name).exists() {
            found.extend(entries(&devices));
        }
    }
    found
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}
