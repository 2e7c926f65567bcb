//! Copies of the catalog in the vault: for the history of jobs, which no record of the vault has.
//!
//! ```text
//! catalog.sqlite ─ one consistent read beside everything else ─► catalog-copy.sqlite in state_dir ─ zstd ─► catalog/<time>.sqlite.zst
//! ```
//! Invariants:
//! - A copy is the catalog at one instant, whole, and is created in the vault by one put. What a kill leaves is the file in `state_dir`,
//!   which the next copy replaces.
//! - Nobody waits for a copy: the catalog is read by a connection of its own, which in WAL mode stops no writer.
//! - A vault is rebuilt without copies (`vault rebuild-catalog`); they are for people, and for the history of jobs (`--with-history`).
//!
//! - What a copy unpacks to is bounded ([`unpacked_limit`]), as is what is read of it: the vault's bytes are not trusted with this disk.
//!
//! Limits: the compressed copy is in memory while it is sent or read; a catalog of a million points has some 60 MiB then.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OpenFlags};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::records::CATALOGS;
use vaultferry_vault::store::azure::sas::Role;
use vaultferry_vault::store::{self, Key};

use crate::job::Shared;
use crate::{offline, owner};

/// Between two looks whether a copy is due. The first comes after it, too: an agent that is started to be stopped again copies nothing.
const EVERY: Duration = Duration::from_secs(3600);
/// From a copy to the next one.
const DAILY: SignedDuration = SignedDuration::from_hours(24);
/// The same when the agent stops: what it did since is worth a copy.
const AT_STOP: SignedDuration = SignedDuration::from_hours(1);
/// A stop waits no longer for its copy.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Copies that are kept.
const KEPT: usize = 7;
/// Level 3 of zstd is the library's own choice between time and size.
const LEVEL: i32 = 3;
/// A larger copy is not read: ten times that of a million points.
const MAX_COPY: u64 = 600 << 20;
/// What any copy may unpack to: empty pages and equal rows of a small catalog compress to almost nothing.
const UNPACKED_ANYWAY: u64 = 64 << 20;
/// And for each byte of a copy. Catalogs are five to fifteen times their copies; zstd itself goes to tens of thousands.
const UNPACKED_PER_BYTE: u64 = 64;
const ENDING: &str = ".sqlite.zst";
/// A name that sorts by its time.
const TIME: &str = "%Y%m%dT%H%M%SZ";
/// Below `state_dir`.
const UNFINISHED: &str = "catalog-copy.sqlite";

/// Makes the copies. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Copies {
    shared: Arc<Shared>,
    started: Instant,
}

impl Copies {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, started: Instant::now() }
    }

    /// Makes a copy a day, until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            let now = vaultferry_vault::clock::now();
            match make_if_due(&self.shared, now, DAILY, &stop).await {
                Ok(_) => {}
                Err(problem) if problem.reason == Reason::Cancelled => return,
                Err(problem) => tracing::warn!("the catalog is copied into the vault in an hour: {problem}"),
            }
        }
    }

    /// One more at a clean stop, after the last job has ended, if the agent has run long enough to have something to tell.
    pub(crate) async fn at_stop(&self) {
        if self.started.elapsed() < EVERY {
            return;
        }
        let (now, cancel) = (vaultferry_vault::clock::now(), CancellationToken::new());
        match tokio::time::timeout(STOP_LIMIT, make_if_due(&self.shared, now, AT_STOP, &cancel)).await {
            Ok(Ok(_)) => {}
            Ok(Err(problem)) => tracing::info!("the catalog is copied into the vault some other time: {problem}"),
            Err(_) => tracing::info!("the catalog is copied into the vault some other time"),
        }
    }
}

/// Makes a copy unless the last one is younger than `interval`, and deletes those that are too many. The new copy's key. After an error the
/// copy may be there.
async fn make_if_due(
    shared: &Shared,
    now: Timestamp,
    interval: SignedDuration,
    cancel: &CancellationToken,
) -> Result<Option<Key>, Problem> {
    let stopped = || Problem::new(Reason::Cancelled, "the agent stops");
    let made = cancel.run_until_cancelled(async {
        let root = shared.vault.open_root()?;
        let copies = list(&root).await?;
        // One of a time to come is of a clock that was wrong.
        let last = copies.iter().filter_map(time_of).filter(|time| *time <= now).max();
        if last.is_some_and(|last| now.duration_since(last) < interval) {
            return Ok(None);
        }
        owner::check(&shared.vault, &shared.agent_id, cancel).await?;
        let body = read(&shared.state_dir).await?;
        let size = body.len();
        let key = Key::new(format!("{CATALOGS}{}{ENDING}", now.strftime(TIME)))
            .map_err(|error| Problem::new(Reason::Internal, error.to_string()))?;
        root.put_if_absent(&key, body).await?;
        tracing::info!(copy = %key, size, "the catalog was copied into the vault");
        delete_old(shared, copies).await;
        Ok(Some(key))
    });
    made.await.unwrap_or_else(|| Err(stopped()))
}

/// The copies that are there, the oldest first. What has another name is none.
pub(crate) async fn list(root: &store::Shared) -> Result<Vec<Key>, Problem> {
    let mut copies = Vec::new();
    let mut entries = store::list(&**root, CATALOGS);
    while let Some(entry) = entries.next().await {
        let key = entry?.key;
        if time_of(&key).is_some() {
            copies.push(key);
        }
    }
    copies.sort();
    Ok(copies)
}

fn time_of(key: &Key) -> Option<Timestamp> {
    let time = key.as_str().strip_prefix(CATALOGS)?.strip_suffix(ENDING)?;
    jiff::civil::DateTime::strptime(TIME, time)
        .ok()?
        .to_zoned(jiff::tz::TimeZone::UTC)
        .ok()
        .map(|time| time.timestamp())
}

/// Of those that were there before the last one. What cannot be deleted now is deleted after the next copy, or stays where nothing may be
/// deleted at all.
async fn delete_old(shared: &Shared, before: Vec<Key>) {
    let Some(too_many) = (before.len() + 1).checked_sub(KEPT).filter(|count| *count > 0) else { return };
    let deleted = async {
        let root = shared.roles.of(Role::Maintenance).open_root()?;
        for key in &before[..too_many] {
            root.delete(key).await?;
        }
        Ok::<(), vaultferry_vault::Error>(())
    };
    if let Err(error) = deleted.await {
        tracing::info!("old copies of the catalog stay in the vault: {error}");
    }
}

/// Reads a copy. The inner error: it is larger than any copy, gone, or in the Archive tier.
pub(crate) async fn fetch(root: &store::Shared, key: &Key) -> Result<Result<Bytes, String>, store::Error> {
    match root.head(key).await? {
        None => Ok(Err("it is not there any more".to_owned())),
        Some(entry) if entry.size > MAX_COPY => {
            let detail =
                format!("it has {} bytes, a copy has at most {MAX_COPY}: this is no copy of a catalog", entry.size);
            Ok(Err(detail))
        }
        Some(_) => match root.get(key, None).await {
            // Deleted since, as the eighth copy is, or moved by somebody: the other copies may be of use.
            Err(error @ (store::Error::NotFound { .. } | store::Error::Archived { .. })) => Ok(Err(error.to_string())),
            other => other.map(Ok),
        },
    }
}

/// Bytes that a copy of so many bytes may unpack to.
fn unpacked_limit(size: u64) -> u64 {
    UNPACKED_ANYWAY.saturating_add(size.saturating_mul(UNPACKED_PER_BYTE))
}

/// Unpacks a copy into a file, which must not be there. After an error a part of it may be; it has no more bytes than the limit.
pub(crate) async fn unpack(body: Bytes, to: &Path) -> Result<(), Problem> {
    let to = to.to_owned();
    let unpack = move || -> std::io::Result<()> {
        let limit = unpacked_limit(body.len() as u64);
        let mut file = std::fs::File::create_new(&to)?;
        let mut decoder = zstd::stream::read::Decoder::new(&body[..])?;
        std::io::copy(&mut decoder.by_ref().take(limit), &mut file)?;
        // One byte more, or the end of the last frame, whose checksum counts.
        if decoder.read(&mut [0])? > 0 {
            let (packed, text) = (body.len(), "this is no copy of a catalog, or it was altered");
            return Err(std::io::Error::other(format!("its {packed} bytes are more than {limit} unpacked: {text}")));
        }
        file.sync_all()
    };
    let failed = |detail: String| Problem::new(Reason::Internal, format!("the copy cannot be unpacked: {detail}"));
    let unpacked = tokio::task::spawn_blocking(unpack).await.map_err(|error| failed(error.to_string()))?;
    unpacked.map_err(|error| failed(error.to_string()))
}

/// The catalog as it is now, compressed. Dropping the future lets it be read to its end, for nobody.
pub(crate) async fn read(state_dir: &Path) -> Result<Bytes, Problem> {
    let (from, to) = (offline::catalog_path(state_dir), state_dir.join(UNFINISHED));
    let read = move || {
        let result = copy(&from, &to).and_then(|()| {
            let file = std::fs::File::open(&to).map_err(|error| error.to_string())?;
            let mut body = Vec::new();
            zstd::stream::copy_encode(file, &mut body, LEVEL).map_err(|error| error.to_string())?;
            Ok(Bytes::from(body))
        });
        // What stays is replaced by the next copy.
        let _ = std::fs::remove_file(&to);
        result
    };
    let failed = |detail: String| Problem::new(Reason::Internal, format!("the catalog cannot be copied: {detail}"));
    tokio::task::spawn_blocking(read).await.map_err(|error| failed(error.to_string()))?.map_err(failed)
}

/// `vacuum into` and not SQLite's backup interface: that begins again whenever somebody else writes.
fn copy(from: &Path, to: &Path) -> Result<(), String> {
    if let Err(error) = std::fs::remove_file(to)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error.to_string());
    }
    let copied = || {
        let connection = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.execute("vacuum into ?1", [to.display().to_string()])
    };
    copied().map(|_| ()).map_err(|error: rusqlite::Error| error.to_string())
}

#[cfg(test)]
mod tests;
