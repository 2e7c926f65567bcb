//! File systems of a kind that the machine may not have otherwise: made in a file, mounted over a loop device.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use vaultferry_tests::process;
use vaultferry_tests::scratch::Scratch;

/// A mounted file system. Dropping it thaws and unmounts it, also when its test has failed; the loop device goes with the mount.
#[derive(Debug)]
pub struct LoopFs {
    scratch: Scratch,
}

impl LoopFs {
    /// A new one of `kind` ("ext4", "xfs" with reflinks, "btrfs") and `megabytes` (MiB; xfs and btrfs need 300). `None` where the machine
    /// cannot; one line says why.
    #[track_caller]
    pub fn new(kind: &str, megabytes: u64) -> Option<Self> {
        if !nix::unistd::Uid::effective().is_root() {
            return skipped(kind, "only root may mount");
        }
        let maker = format!("mkfs.{kind}");
        // An account's PATH may lack the folders of the system's programs.
        let Some(maker) = ["/usr/sbin", "/sbin", "/usr/bin"]
            .iter()
            .map(|dir| PathBuf::from(dir).join(&maker))
            .find(|path| path.is_file())
        else {
            return skipped(kind, &format!("{maker} is not installed (packages xfsprogs, btrfs-progs, e2fsprogs)"));
        };
        let scratch = Scratch::new(kind);
        let (image, dir) = (scratch.join("image"), scratch.join("fs"));
        let sparse = File::create(&image).expect("make the image");
        sparse.set_len(megabytes << 20).expect("give the image its size");
        drop(sparse);
        std::fs::create_dir(&dir).expect("make the mount point");
        let mut make = Command::new(maker);
        match kind {
            "ext4" => make.args(["-q", "-F"]),
            "xfs" => make.args(["-q", "-f", "-m", "reflink=1"]),
            _ => make.args(["-q", "-f"]),
        };
        process::run(make.arg(&image), b"", Duration::from_secs(60)).success();
        let mut mount = Command::new("mount");
        let mounted =
            process::run(mount.args(["-t", kind, "-o", "loop"]).args([&image, &dir]), b"", Duration::from_secs(60));
        // A container's root may not mount, or has no loop devices; a kernel may not know this kind.
        if mounted.code != 0 {
            return skipped(kind, mounted.stderr.trim());
        }
        Some(Self { scratch })
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.scratch.join("fs")
    }
}

#[allow(clippy::print_stdout)] // the runner shows it
fn skipped(kind: &str, why: &str) -> Option<LoopFs> {
    println!("skipped: no {kind} over a loop device here: {why}");
    None
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        // A second panic would end the whole test program, so whatever these say is left alone.
        let quiet = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments).arg(self.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        // A frozen file system would block its unmounting. One that is not frozen refuses this.
        quiet("fsfreeze", &["--unfreeze"]);
        if !quiet("umount", &[]) {
            // A file of it is still open: it goes when that is closed.
            quiet("umount", &["--lazy"]);
        }
    }
}
