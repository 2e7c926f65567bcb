//! Snapshots of a logical volume, thick or thin, by LVM's own programs.
//!
//! Invariants:
//! - Ours are called `vaultferry_<job>_<volume>` and have the tag `vaultferry`. What is removed has both, is of the volume that is asked for, and is
//!   not open.
//! - Nothing of ours is frozen while one is taken: LVM freezes what is mounted on the volume by itself.
//! - A thick snapshot has room for a part of the volume's writes. One that has overflowed is worthless, so it is looked at after the last byte
//!   was read.
//! - One volume only: LVM's snapshots of two are of different instants.
//! - LVM's programs are started without a shell and run to their end: one that is killed may leave a volume suspended.
//!
//! What changed since the last point is not told (thin pools know it, in metadata that only `thin_delta` reads), so nothing is kept.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use async_trait::async_trait;
use jiff::Timestamp;
use nix::sys::stat::{major, minor};
use nix::unistd::{Whence, lseek};
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};

use super::{
    Changes, Disk, Freezable, Held, Prepared, Provider, Snapshot, SnapshotDisk, Tracking, blocking, failed, hidden,
    unless_cancelled, unreadable,
};
use crate::extents;

mod report;
#[cfg(test)]
mod tests;

use report::Volume;

pub(super) const NAME: &str = "lvm";

/// On each of our snapshots.
const TAG: &str = "vaultferry";
/// Of a volume's name, in bytes: LVM's own limit, with its group's name.
const NAME_MAX: usize = 127;
/// A thick snapshot's room, of the volume's size: as much as may be written to the volume while it is read.
const ROOM_PER_CENT: u64 = 20;
/// With less than this, of the volume's size, it would soon overflow.
const LEAST_ROOM_PER_CENT: u64 = 2;
/// A thick snapshot is no smaller, in bytes.
const ROOM: u64 = 64 << 20;
/// A thin pool that is fuller stops the machine soon.
const POOL_PER_CENT: f64 = 95.0;
/// Of what a program says, in bytes.
const WORDS: usize = 2 << 10;

/// See the module.
#[derive(Debug, Clone)]
pub struct Lvm {
    programs: Vec<PathBuf>,
    devices: PathBuf,
}

impl Default for Lvm {
    /// With the system's programs and devices.
    fn default() -> Self {
        Self { programs: ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from).to_vec(), devices: "/dev".into() }
    }
}

#[async_trait]
impl Provider for Lvm {
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
        _base: Option<&Tracking>,
        cancel: &CancellationToken,
    ) -> Result<Box<dyn Prepared>, Problem> {
        let id = hidden::check_id(job_id)?.to_owned();
        hidden::check_disks(disks)?;
        let (lvm, disks, cancel) = (self.clone(), disks.to_vec(), cancel.clone());
        Ok(Box::new(blocking(move || lvm.ready(id, &disks, &cancel)).await?))
    }

    async fn remove_leftovers(&self, disks: &[Disk], _keep: &[Tracking]) -> Result<Vec<String>, Problem> {
        let (lvm, disks) = (self.clone(), disks.to_vec());
        blocking(move || lvm.sweep(&disks)).await
    }
}

impl Lvm {
    /// With programs and devices of other folders; for tests, and for systems that have them elsewhere.
    pub fn with_folders(programs: impl Into<PathBuf>, devices: impl Into<PathBuf>) -> Self {
        Self { programs: vec![programs.into()], devices: devices.into() }
    }

    fn ready(self, id: String, disks: &[Disk], cancel: &CancellationToken) -> Result<Ready, Problem> {
        let [disk] = disks else {
            let message = "LVM's snapshots of several volumes are of different instants";
            let fix =
                "Protect each volume as a machine of its own; or turn the machine off and set provider = \"offline\".";
            return Err(Problem::new(Reason::SnapshotUnsupported, message).with_fix(fix));
        };
        unless_cancelled(cancel)?;
        let volumes = self.volumes()?;
        let origin = volume_of(&disk.path, &volumes)?;
        if !origin.can_be_origin() {
            let message =
                format!("{} is no volume that LVM takes snapshots of ({})", origin.full_name(), origin.lv_attr);
            return Err(Problem::new(Reason::SnapshotUnsupported, message)
                .with_fix("Name an active volume that is no snapshot, pool or part of another one."));
        }
        let name = format!("{TAG}_{id}_{}", origin.lv_name);
        if name.len() + origin.vg_name.len() > NAME_MAX {
            let message = format!("the volume's name, {}, is too long for that of its snapshot", origin.full_name());
            return Err(Problem::new(Reason::SnapshotUnsupported, message).with_fix("Rename it: lvrename."));
        }
        let size = if origin.is_thin() { None } else { Some(room(origin)?) };
        if let Some(pool) = volumes
            .iter()
            .find(|pool| origin.is_thin() && pool.vg_name == origin.vg_name && pool.lv_name == origin.pool_lv)
            && pool.used_per_cent().is_some_and(|used| used > POOL_PER_CENT)
        {
            let message = format!(
                "the thin pool {} is full but for a few per cent, and a snapshot needs new space for all that is written",
                pool.full_name()
            );
            return Err(failed(message).with_fix("Enlarge the pool: lvextend."));
        }
        let mut arguments: Vec<String> =
            ["--snapshot", "--yes", "--name", &name, "--addtag", TAG, "--permission", "r"].map(str::to_owned).to_vec();
        match size {
            Some(size) => arguments.extend(["--size".to_owned(), format!("{size}b")]),
            // Without it LVM leaves a thin snapshot inactive.
            None => arguments.extend(["--setactivationskip", "n"].map(str::to_owned)),
        }
        arguments.push(origin.full_name());
        let program = self.program("lvcreate")?;
        let made =
            Made { group: origin.vg_name.clone(), name, origin: origin.lv_name.clone(), lvm: self, remove: false };
        Ok(Ready { id, disk: disk.name.clone(), program, arguments, taken_at: None, made })
    }

    /// All volumes that LVM shows.
    fn volumes(&self) -> Result<Vec<Volume>, Problem> {
        let program = self.program("lvs")?;
        let arguments = ["--reportformat", "json", "--units", "b", "--nosuffix", "--options", report::FIELDS];
        let output = run(&program, arguments)?;
        report::read(&output)
            .map_err(|error| failed(format!("cannot understand what {} says: {error}", program.display())))
    }

    fn program(&self, name: &str) -> Result<PathBuf, Problem> {
        let found = self.programs.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
        found.ok_or_else(|| {
            let message = format!("LVM's program {name} is not installed");
            Problem::new(Reason::SnapshotUnsupported, message).with_fix("Install it (Debian: apt install lvm2).")
        })
    }

    /// `/dev/GROUP/NAME`, or, where udev makes no such links, its name in the device mapper.
    fn device(&self, group: &str, name: &str) -> PathBuf {
        let usual = self.devices.join(group).join(name);
        if usual.exists() {
            return usual;
        }
        let escaped = format!("{}-{}", group.replace('-', "--"), name.replace('-', "--"));
        self.devices.join("mapper").join(escaped)
    }

    fn remove(&self, group: &str, name: &str) -> Result<(), Problem> {
        run(&self.program("lvremove")?, ["--yes", &format!("{group}/{name}")]).map(drop)
    }

    /// What earlier jobs left of these volumes.
    fn sweep(&self, disks: &[Disk]) -> Result<Vec<String>, Problem> {
        let volumes = self.volumes()?;
        let mut removed = Vec::new();
        for disk in disks {
            let origin = volume_of(&disk.path, &volumes)?;
            let left = volumes.iter().filter(|volume| is_ours(volume, &origin.vg_name, &origin.lv_name));
            for volume in left.filter(|volume| !volume.is_open()) {
                self.remove(&volume.vg_name, &volume.lv_name)?;
                removed.push(volume.full_name());
            }
        }
        Ok(removed)
    }
}

/// A snapshot that a job of this product has made of the volume.
fn is_ours(volume: &Volume, group: &str, origin: &str) -> bool {
    let named = volume.lv_name.strip_prefix(TAG).is_some_and(|rest| rest.starts_with('_'));
    named && volume.has_tag(TAG) && volume.vg_name == group && volume.origin == origin
}

/// The volume that the path leads to, by its device's number.
fn volume_of<'a>(path: &Path, volumes: &'a [Volume]) -> Result<&'a Volume, Problem> {
    let number = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?.rdev();
    let numbers = (major(number).to_string(), minor(number).to_string());
    let found =
        volumes.iter().find(|volume| (&volume.lv_kernel_major, &volume.lv_kernel_minor) == (&numbers.0, &numbers.1));
    found.ok_or_else(|| {
        let message = format!("{} is not a logical volume", path.display());
        Problem::new(Reason::SnapshotUnsupported, message)
            .with_fix("Name the volume, /dev/GROUP/NAME; or set another provider.")
    })
}

/// How large a thick snapshot becomes, in bytes.
fn room(origin: &Volume) -> Result<u64, Problem> {
    let part =
        |per_cent: u64| u64::try_from(u128::from(origin.lv_size) * u128::from(per_cent) / 100).unwrap_or(u64::MAX);
    // Whole MiB: LVM rounds up to its extents, and refuses what is no multiple of a sector.
    let wanted = part(ROOM_PER_CENT).max(ROOM).min(origin.vg_free) >> 20 << 20;
    if wanted > 0 && wanted >= part(LEAST_ROOM_PER_CENT) {
        return Ok(wanted);
    }
    let message = format!(
        "the group {} has {} MiB free, too little for a snapshot of {}: it keeps what is overwritten while it is read",
        origin.vg_name,
        origin.vg_free >> 20,
        origin.full_name()
    );
    Err(failed(message).with_fix("Enlarge the group (vgextend), or use thin volumes."))
}

/// Runs one of LVM's programs to its end, and gives what it says.
fn run(program: &Path, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Vec<u8>, Problem> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).env_clear();
    // Messages in English, and no warnings about this process's open files.
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C").env("LVM_SUPPRESS_FD_WARNINGS", "1");
    let cannot = |error: std::io::Error| failed(format!("cannot run {}: {error}", program.display()));
    let output = command.output().map_err(cannot)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = String::from_utf8_lossy(&output.stderr[..output.stderr.len().min(WORDS)]).trim().to_owned();
    Err(failed(format!("{} failed ({}): {words}", program.display(), output.status))
        .with_fix("Mend what LVM says; the agent has to run as root for it."))
}

/// A snapshot, once it was taken. Dropping it removes it in the background.
#[derive(Debug)]
struct Made {
    lvm: Lvm,
    group: String,
    name: String,
    /// The volume that it is of.
    origin: String,
    remove: bool,
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.remove {
            return;
        }
        let (lvm, group, name) = (self.lvm.clone(), std::mem::take(&mut self.group), std::mem::take(&mut self.name));
        let remove = move || {
            if let Err(problem) = lvm.remove(&group, &name) {
                tracing::warn!("the snapshot {group}/{name} stays behind until the next backup: {problem}");
            }
        };
        // It waits for the devices to settle, which must hold nobody up. A process that ends meanwhile leaves a leftover.
        if let Err(error) = std::thread::Builder::new().name("lvremove".into()).spawn(remove) {
            tracing::warn!("a snapshot stays behind until the next backup: {error}");
        }
    }
}

#[derive(Debug)]
struct Ready {
    id: String,
    disk: String,
    program: PathBuf,
    arguments: Vec<String>,
    taken_at: Option<Timestamp>,
    made: Made,
}

#[async_trait]
impl Prepared for Ready {
    fn take(&mut self) -> Result<(), Problem> {
        self.taken_at = Some(Timestamp::now());
        run(&self.program, &self.arguments)?;
        self.made.remove = true;
        Ok(())
    }

    async fn open(self: Box<Self>) -> Result<Snapshot, Problem> {
        blocking(move || self.opened()).await
    }
}

impl Ready {
    fn opened(self) -> Result<Snapshot, Problem> {
        let Self { id, disk, taken_at, made, .. } = self;
        let taken_at = taken_at.ok_or_else(|| failed("the snapshot was not taken"))?;
        let path = made.lvm.device(&made.group, &made.name);
        let opened = || -> std::io::Result<SnapshotDisk> {
            let file = File::open(&path)?;
            let size = u64::try_from(lseek(&file, 0, Whence::SeekEnd)?).map_err(std::io::Error::other)?;
            let allocated = extents::allocated(&file, size)?;
            let why = "LVM does not tell what has changed in a volume since an earlier snapshot";
            Ok(SnapshotDisk { name: disk.clone(), size, file, allocated, changes: Changes::Unknown(why.into()) })
        };
        let opened =
            opened().map_err(|error| failed(format!("cannot open the snapshot {}: {error}", path.display())))?;
        Ok(Snapshot { id, taken_at, disks: vec![opened], tracking: None, held: Box::new(made) })
    }
}

impl Made {
    /// That it holds still what it held when it was taken.
    fn check(&self) -> Result<(), Problem> {
        let full_name = format!("{}/{}", self.group, self.name);
        let volumes = self.lvm.volumes()?;
        let fix = "Start the backup again at a quieter time, or enlarge the volume group: a snapshot has room for a fifth of its volume.";
        let worthless = |why: &str| {
            Err(Problem::new(Reason::SourceChanged, format!("the snapshot {full_name} {why}")).with_fix(fix))
        };
        let own =
            volumes.iter().find(|volume| volume.lv_name == self.name && is_ours(volume, &self.group, &self.origin));
        match own {
            None => worthless("is gone, or was made something else"),
            Some(own) if own.is_invalid() => worthless("has overflowed while it was read"),
            Some(own) if !own.is_thin() && own.used_per_cent().is_none_or(|used| used >= 100.0) => {
                worthless("is full, or does not tell how full it is")
            }
            Some(_) => Ok(()),
        }
    }
}

#[async_trait]
impl Held for Made {
    async fn release(mut self: Box<Self>, _keep: bool) -> Result<(), Problem> {
        blocking(move || {
            self.remove = false;
            let checked = self.check();
            let removed = self.lvm.remove(&self.group, &self.name);
            checked.and(removed)
        })
        .await
    }
}
