//! Temporary folders.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// A folder below `/tmp` that every user may pass through, removed when dropped (kept when `VAULTFERRY_TEST_KEEP` is set).
/// `/tmp` and not `TMPDIR`, because socket paths must stay short.
#[derive(Debug)]
pub struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    /// Makes the folder; `name` is for people who look at it.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        let mut dir =
            tempfile::Builder::new().prefix(&format!("vf-{name}-")).tempdir_in("/tmp").expect("make a folder in /tmp");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711))
            .expect("open the folder for passing through");
        dir.disable_cleanup(std::env::var_os("VAULTFERRY_TEST_KEEP").is_some());
        Self { dir }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file that only its owner can read, and returns its path.
    #[track_caller]
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, content).expect("write a file in the test's folder");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("close the file");
        path
    }
}
