//! An image or a device that nobody writes to: a machine that is off. Nothing is made; it is read where it lies, and looked at again at the end.
//!
//! Invariants:
//! - Somebody who has it open for writing at the beginning refuses the backup; somebody who wrote to it in between, or writes at the end,
//!   fails it. A machine that is started meanwhile is not held up.
//! - What changed since the last point is not known: that nothing did at all cannot be proven either.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};

use super::writers::Watched;
use super::{
    Changes, Disk, Freezable, Held, Prepared, Provider, Snapshot, SnapshotDisk, Tracking, blocking, failed, hidden,
    unless_cancelled, unreadable,
};
use crate::extents;

pub(super) const NAME: &str = "offline";

/// The coarsest clock of a file system that anybody keeps images on (ext3, FAT). A write within the tick of the last one leaves no trace.
const TICK: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(super) struct Offline;

/// Nobody writes to it.
pub(super) fn check_one(path: &std::path::Path) -> Result<(), Problem> {
    Watched::open(path).map(drop)
}

#[async_trait]
impl Provider for Offline {
    fn name(&self) -> &'static str {
        NAME
    }

    fn freezable(&self) -> Freezable {
        Freezable::NoNeed
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
        let mut watched = open_all(disks).await?;
        let wait = tick(&watched);
        if !wait.is_zero() {
            drop(watched);
            tokio::select! {
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
            unless_cancelled(cancel)?;
            watched = open_all(disks).await?;
            if !tick(&watched).is_zero() {
                let message =
                    "an image was written to only a moment ago, and again while the backup waited for that to end";
                return Err(Problem::new(Reason::SourceInUse, message));
            }
        }
        unless_cancelled(cancel)?;
        Ok(Box::new(Opened { id, taken_at: None, disks: watched }))
    }

    async fn remove_leftovers(&self, disks: &[Disk], keep: &[Tracking]) -> Result<Vec<String>, Problem> {
        // Of another provider, from when the machine was running.
        let (disks, keep) = (disks.to_vec(), keep.to_vec());
        blocking(move || hidden::sweep(&disks, &keep)).await
    }
}

async fn open_all(disks: &[Disk]) -> Result<Vec<(String, Watched)>, Problem> {
    let disks = disks.to_vec();
    let open = |disk: &Disk| -> Result<_, Problem> { Ok((disk.name.clone(), Watched::open(&disk.path)?)) };
    blocking(move || disks.iter().map(open).collect()).await
}

/// How long to wait until a write can be seen of all of them.
fn tick(watched: &[(String, Watched)]) -> Duration {
    let now = SystemTime::now();
    watched.iter().map(|(_, watched)| until_next_tick(watched.changed_at(), now)).max().unwrap_or_default()
}

/// How long a write at `now` could have the same time as the last change. Nothing when the clock was set back since.
fn until_next_tick(changed_at: i64, now: SystemTime) -> Duration {
    let Ok(changed_at) = u64::try_from(changed_at) else { return Duration::ZERO };
    let age = now.duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs(changed_at));
    age.map_or(Duration::ZERO, |age| TICK.saturating_sub(age))
}

#[derive(Debug)]
struct Opened {
    id: String,
    taken_at: Option<Timestamp>,
    disks: Vec<(String, Watched)>,
}

#[async_trait]
impl Prepared for Opened {
    fn take(&mut self) -> Result<(), Problem> {
        self.taken_at = Some(Timestamp::now());
        Ok(())
    }

    async fn open(self: Box<Self>) -> Result<Snapshot, Problem> {
        let Self { id, taken_at, disks: watched } = *self;
        let taken_at = taken_at.ok_or_else(|| failed("the snapshot was not taken"))?;
        let (disks, watched) = blocking(move || {
            let disks = watched.iter().map(|(name, watched)| readable(name, watched)).collect::<Result<Vec<_>, _>>()?;
            Ok((disks, watched))
        })
        .await?;
        let held = Box::new(Watching(watched.into_iter().map(|(_, watched)| watched).collect()));
        Ok(Snapshot { id, taken_at, disks, tracking: None, held })
    }
}

fn readable(name: &str, watched: &Watched) -> Result<SnapshotDisk, Problem> {
    let cannot = |error: std::io::Error| unreadable(&watched.path, &error);
    let file = watched.file.try_clone().map_err(cannot)?;
    // A device has no holes that it tells: all of it is data to it.
    let allocated = extents::allocated(&file, watched.size).map_err(cannot)?;
    let why = "nobody keeps track of what changes in an image or a device while its machine runs without snapshots";
    Ok(SnapshotDisk {
        name: name.to_owned(),
        size: watched.size,
        file,
        allocated,
        changes: Changes::Unknown(why.into()),
    })
}

#[derive(Debug)]
struct Watching(Vec<Watched>);

#[async_trait]
impl Held for Watching {
    async fn release(self: Box<Self>, _keep: bool) -> Result<(), Problem> {
        blocking(move || self.0.iter().try_for_each(Watched::unchanged)).await
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write as _;

    use super::super::release;
    use super::*;

    async fn taken(disks: &[Disk]) -> Result<Snapshot, Problem> {
        let mut prepared = Offline.prepare("0a1b2c3d", disks, None, &CancellationToken::new()).await?;
        prepared.take()?;
        prepared.open().await
    }

    #[tokio::test]
    async fn an_image_is_read_where_it_lies_and_a_write_fails_the_backup() {
        let dir = tempfile::tempdir().expect("a folder");
        let disks = ["disk0", "disk1"].map(|name| Disk { name: name.into(), path: dir.path().join(name) });
        for disk in &disks {
            fs::write(&disk.path, [3; 10_000]).expect("an image");
        }
        let snapshot = taken(&disks).await.expect("nobody writes");
        assert_eq!((snapshot.disks.len(), snapshot.disks[1].size), (2, 10_000));
        assert!(matches!(snapshot.disks[0].changes, Changes::Unknown(_)));
        assert!(snapshot.disks[0].allocated.iter().any(|range| range.contains(&9_999)));
        assert_eq!(release(snapshot, true).await.expect("nobody wrote"), None);

        let snapshot = taken(&disks).await.expect("nobody writes");
        let mut writer = OpenOptions::new().append(true).open(&disks[1].path).expect("a writer");
        writer.write_all(&[4]).expect("a byte");
        drop(writer);
        let problem = release(snapshot, false).await.expect_err("a byte more");
        assert_eq!(problem.reason, Reason::SourceChanged);
        assert!(problem.message.contains("disk1"), "{problem:?}");
    }

    #[tokio::test]
    async fn an_image_in_use_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let disk = Disk { name: "disk0".into(), path: dir.path().join("image") };
        let writer = fs::File::create(&disk.path).expect("an image");
        let problem = taken(std::slice::from_ref(&disk)).await.map(drop).expect_err("somebody may write");
        assert_eq!(problem.reason, Reason::SourceInUse);
        drop(writer);
        taken(&[disk]).await.expect("nobody may write now");
    }

    #[test]
    fn a_tick_is_waited_for_once() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(until_next_tick(100, at(100)), TICK);
        assert_eq!(until_next_tick(100, at(101)), Duration::from_secs(1));
        assert_eq!(until_next_tick(100, at(150)), Duration::ZERO);
        assert_eq!(until_next_tick(100, at(90)), Duration::ZERO);
    }
}
