//! What there is to protect: the block devices of this machine (`disk:///dev`), or the images in a folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::workload::unless_cancelled;
use vaultferry_plugin_sdk::{Discovered, DiscoveredSource, Source};
use vaultferry_proto::{Problem, Reason};

use crate::uri::{self, Uri};

/// What the names of images end with.
const IMAGES: [&str; 2] = ["raw", "img"];
/// The folder that stands for the block devices.
const DEVICES: &str = "/dev";
/// Bytes of the kernel's sectors, whatever the device's are.
const SECTOR: u64 = 512;
/// Sources of one answer at most: the protocol's number.
const SOURCES_MAX: usize = 10_000;

/// See [`vaultferry_plugin_sdk::Workload::discover`].
pub(crate) async fn discover(server: &Source, cancel: &CancellationToken) -> Result<Discovered, Problem> {
    let uri: Uri = server.uri.parse()?;
    let folder = uri.disks.into_iter().next().unwrap_or_default();
    let looked = tokio::task::spawn_blocking(move || look(&folder));
    unless_cancelled(async { looked.await.map_err(|error| Problem::new(Reason::Internal, error.to_string()))? }, cancel)
        .await
}

fn look(folder: &Path) -> Result<Discovered, Problem> {
    let found = if folder == Path::new(DEVICES) { devices() } else { images(folder) };
    let mut found = found.map_err(|error| {
        Problem::new(Reason::DiskUnreadable, format!("{} cannot be listed: {error}", folder.display()))
            .with_fix("Name a folder with images, or /dev.")
    })?;
    found.sort();
    if found.len() > SOURCES_MAX {
        let message = format!("{} has {} images; {SOURCES_MAX} are possible", folder.display(), found.len());
        return Err(Problem::new(Reason::InvalidSource, message));
    }
    let source = |(path, size): (PathBuf, u64)| {
        let text = path.to_string_lossy();
        let own = path.canonicalize().unwrap_or_else(|_| path.clone());
        DiscoveredSource {
            uri: uri::of_path(&text),
            source_identity: uri::identity(&[own]),
            name: path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            size: Some(size),
            encoding: String::new(),
            allows_connections: true,
            obstacle: None,
        }
    };
    Ok(Discovered {
        server_identity: uri::of_path(&folder.to_string_lossy()),
        server_name: folder.display().to_string(),
        server_version: String::new(),
        replica: false,
        sources: found.into_iter().map(source).collect(),
    })
}

fn images(folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_image = path.extension().is_some_and(|ending| IMAGES.iter().any(|image| ending == *image));
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if let (true, false, Ok(metadata)) = (is_image, is_hidden, path.metadata())
            && metadata.is_file()
        {
            found.push((path, metadata.len()));
        }
    }
    Ok(found)
}

/// Disks, and what stands on them (LVM, RAID); no parts of disks, no loop devices without a file, nothing that is empty.
fn devices() -> io::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let folder = entry?.path();
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let size = read("size").trim().parse::<u64>().unwrap_or_default() * SECTOR;
        // The name has ! where the device's has /.
        let name = folder.file_name().map(|name| name.to_string_lossy().replace('!', "/")).unwrap_or_default();
        let is_made_up = ["ram", "zram", "sr", "fd", "nbd"].iter().any(|kind| name.starts_with(kind));
        if size > 0 && !is_made_up {
            // The device mapper's numbers (dm-0) are others after the next start; its names stay.
            let path = match read("dm/name").trim() {
                "" => Path::new(DEVICES).join(name),
                mapped => Path::new(DEVICES).join("mapper").join(mapped),
            };
            found.push((path, size));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_listed_by_their_names() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.img", "a.raw", ".hidden.raw", "notes.txt"] {
            fs::write(dir.path().join(name), "12345").unwrap();
        }
        fs::create_dir(dir.path().join("folder.raw")).unwrap();
        let found = look(dir.path()).unwrap();
        let names: Vec<&str> = found.sources.iter().map(|source| source.name.as_str()).collect();
        assert_eq!(names, ["a.raw", "b.img"]);
        assert_eq!(found.sources[0].size, Some(5));
        let uri: Uri = found.sources[1].uri.parse().unwrap();
        assert_eq!(uri.disks, [dir.path().join("b.img")]);
        assert_eq!(look(Path::new("/nowhere/at/all")).unwrap_err().reason, Reason::DiskUnreadable);
        devices().unwrap();
    }
}
