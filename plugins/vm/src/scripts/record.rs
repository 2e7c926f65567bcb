//! What a killed backup leaves to do: a record in memory, and a lock that ends with its process.
//!
//! ```text
//! NAME.lock   held (flock) from before pre until after post; never removed
//! NAME.json   there: post is due. Written before pre is started, removed after post has ended
//! ```
//! A record whose lock is free is a dead backup's. NAME is a hash of the folder's path, so that a folder is one thing for all jobs, and two
//! folders are never one, however long their paths are.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};

/// Between two looks at a lock that somebody else holds: for as long as his snapshot takes.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Serialize, Deserialize)]
struct Record {
    folder: PathBuf,
    /// Of the process that began, for whoever looks.
    pid: u32,
}

/// The lock of a folder's scripts. Dropping it gives the lock back and leaves the record.
#[derive(Debug)]
pub(super) struct Held {
    _lock: File,
    record: PathBuf,
    folder: PathBuf,
}

impl Held {
    /// A post-script is owed.
    pub(super) fn is_due(&self) -> bool {
        self.record.exists()
    }

    /// From here on it is. There whole or not at all.
    pub(super) fn begin(&self) -> Result<(), Problem> {
        let record = Record { folder: self.folder.clone(), pid: std::process::id() };
        let text = serde_json::to_vec(&record).map_err(|error| cannot(&self.record, &error))?;
        let new = self.record.with_extension("new");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &self.record))
            .map_err(|error| cannot(&self.record, &error))
    }

    /// It is owed no more.
    pub(super) fn end(self) -> Result<(), Problem> {
        match fs::remove_file(&self.record) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(cannot(&self.record, &error)),
            _ => Ok(()),
        }
    }
}

fn cannot(path: &Path, error: &dyn std::fmt::Display) -> Problem {
    Problem::new(Reason::Internal, format!("{} cannot be written: {error}", path.display()))
}

/// Waits until nobody else runs the folder's scripts.
pub(super) async fn lock(dir: &Path, folder: &Path, owner: u32, cancel: &CancellationToken) -> Result<Held, Problem> {
    loop {
        if let Some(held) = try_lock(dir, folder, owner)? {
            return Ok(held);
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => {
                let message = "cancelled while another backup ran the scripts of the folder";
                return Err(Problem::new(Reason::Cancelled, message));
            }
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// `None` when somebody else runs the folder's scripts.
pub(super) fn try_lock(dir: &Path, folder: &Path, owner: u32) -> Result<Option<Held>, Problem> {
    prepare(dir, owner)?;
    let name = name(folder);
    let path = dir.join(format!("{name}.lock"));
    // Not handed on to children: what a script leaves running would hold it.
    let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let lock = lock.map_err(|error| cannot(&path, &error))?;
    match lock.try_lock() {
        Ok(()) => {
            Ok(Some(Held { _lock: lock, record: dir.join(format!("{name}.json")), folder: folder.to_path_buf() }))
        }
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(cannot(&path, &error)),
    }
}

/// The folders that owe a post-script, whether their backup still runs or not. What cannot be read is left out.
pub(super) fn due(dir: &Path, owner: u32) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    if prepare(dir, owner).is_err() {
        return Vec::new();
    }
    let records = entries.flatten().map(|entry| entry.path());
    let records = records.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let read = |path: PathBuf| serde_json::from_slice::<Record>(&fs::read(path).ok()?).ok();
    let mut folders: Vec<PathBuf> = records.filter_map(read).map(|record| record.folder).collect();
    folders.sort();
    folders
}

/// The folder of the records: ours, and nobody else writes in it.
fn prepare(dir: &Path, owner: u32) -> Result<(), Problem> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| cannot(dir, &error))?;
    let metadata = fs::symlink_metadata(dir).map_err(|error| cannot(dir, &error))?;
    if metadata.is_dir() && metadata.uid() == owner && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(cannot(dir, &"it is not ours alone"))
}

/// One name for one path.
fn name(folder: &Path) -> String {
    hex::encode(Sha256::digest(folder.as_os_str().as_bytes()))
}
