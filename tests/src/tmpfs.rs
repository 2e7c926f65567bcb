//! Small file systems in memory.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::process;
use crate::scratch::Scratch;

/// A small file system in memory. Needs the right to mount. Dropping it unmounts it.
#[derive(Debug)]
pub struct Tmpfs {
    scratch: Scratch,
}

impl Tmpfs {
    /// With these options of `mount`; `None` where nothing can be mounted.
    #[track_caller]
    pub fn new(options: &str) -> Option<Self> {
        if !nix::unistd::Uid::effective().is_root() {
            return None;
        }
        let scratch = Scratch::new("mount");
        fs::create_dir(scratch.join("fs")).expect("make the mount point");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(scratch.join("fs"));
        // A container's root may not mount.
        (process::run(&mut mount, b"", Duration::from_secs(20)).code == 0).then_some(Self { scratch })
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.scratch.join("fs")
    }

    /// Changes its options.
    #[track_caller]
    pub fn remount(&self, options: &str) {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{options}")]).arg(self.path());
        process::run(&mut mount, b"", Duration::from_secs(20)).success();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let mut unmount = Command::new("umount");
        unmount.arg("--lazy").arg(self.path());
        let _ = process::run(&mut unmount, b"", Duration::from_secs(20));
    }
}
