//! Making a finished file visible under its name: durable, and never in another file's place. Also used by restores to a folder.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// An unfinished file, removed when dropped. A process that is killed leaves it.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: Option<PathBuf>,
}

impl Temporary {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path: Some(path) }
    }

    pub(crate) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// The file has its final name; there is nothing to remove.
    pub(crate) fn keep(mut self) {
        self.path = None;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::debug!(path = %path.display(), %error, "an unfinished file stays behind");
        }
    }
}

/// Renames `from` to `to`, atomically. False, and nothing is changed, when something of that name is there.
pub(crate) fn rename_without_replacing(from: &Path, to: &Path) -> io::Result<bool> {
    #[cfg(target_os = "linux")]
    {
        use nix::errno::Errno;
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => return Ok(true),
            Err(Errno::EEXIST) => return Ok(false),
            // Old kernels, and file systems without the flag.
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    link_without_replacing(from, to)
}

/// The same by a second name. A kill between both steps leaves the finished file and the unfinished file's name.
fn link_without_replacing(from: &Path, to: &Path) -> io::Result<bool> {
    match std::fs::hard_link(from, to) {
        Ok(()) => {
            if let Err(error) = std::fs::remove_file(from) {
                tracing::debug!(path = %from.display(), %error, "an unfinished file's name stays behind");
            }
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes the names in a folder survive a power cut. Does nothing on Windows, where a folder cannot be synced; NTFS journals its names.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

/// Makes `dir` and the missing folders above it (mode 0700 on Unix), and syncs each folder that holds one of them. With `root`, that
/// folder must exist, nothing above it is made, and every folder between it and `dir` is synced, new or not.
pub(crate) fn make_dirs(dir: &Path, root: Option<&Path>) -> io::Result<()> {
    if Some(dir) == root {
        return Ok(());
    }
    let Some(parent) = dir.parent() else { return Ok(()) };
    let mut new = false;
    if !dir.is_dir() {
        make_dirs(parent, root)?;
        match private_dir().create(dir) {
            Ok(()) => new = true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => new = true,
            Err(error) => return Err(error),
        }
    } else if root.is_some() {
        make_dirs(parent, root)?;
    }
    if new || root.is_some() { sync_dir(parent) } else { Ok(()) }
}

fn private_dir() -> std::fs::DirBuilder {
    #[cfg_attr(not(unix), expect(unused_mut, reason = "only Unix has modes"))]
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt as _;
        builder.mode(0o700);
    }
    builder
}

/// New files are for their owner alone (on Unix).
pub(crate) fn private(options: &mut OpenOptions) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    #[cfg(not(unix))]
    let _ = options;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_renaming_never_replace() {
        let dir = tempfile::tempdir().expect("tempdir");
        for (index, rename) in [rename_without_replacing, link_without_replacing].into_iter().enumerate() {
            let target = dir.path().join(format!("target-{index}"));
            for (content, expected) in [("first", true), ("second", false)] {
                let from = dir.path().join("from");
                std::fs::write(&from, content).expect("write");
                assert_eq!(rename(&from, &target).expect("rename"), expected);
                assert_eq!(from.exists(), !expected);
                assert_eq!(std::fs::read_to_string(&target).expect("read"), "first");
            }
        }
    }

    #[test]
    fn a_root_is_not_made_by_what_lies_below_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let root = dir.path().join("missing");
        let error = make_dirs(&root.join("a/b"), Some(&root)).expect_err("the root is missing");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!root.exists());
        make_dirs(&root.join("a/b"), None).expect("all are made");
        assert!(root.join("a/b").is_dir());
    }
}
