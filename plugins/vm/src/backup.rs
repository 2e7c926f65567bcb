//! A backup: the disks of one instant into the vault, read as far as they have changed.
//!
//! What fails behind the snapshot lets it go; what cannot be let go, or was left by a kill, is removed by the next backup. The snapshot of
//! the newest point stays, so that the next one can be compared with it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::workload::cancelled;
use vaultferry_plugin_sdk::{BackupJob, Reporter, Warning};
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::Id;
use vaultferry_vault::records::Capture;
use vaultferry_vault::repository::Repository;
use vaultferry_vault::writer::{Backup, IMAGE_CHUNK, SnapshotMeta, Staged, Streams, Throttle, WriteError};

use crate::base::{Base, BaseDisk};
use crate::instant::{self, Caught, Wanted};
use crate::machine::{Machine, MachineDisk};
use crate::plan::{self, Earlier, Piece};
use crate::provider::{self, Changes, Disk, Snapshot, SnapshotDisk};
use crate::reading;
use crate::settings::Settings;
use crate::uri::Uri;
use crate::{MACHINE_STREAM, stream_of};

mod sample;

/// See [`vaultferry_plugin_sdk::Workload::backup`].
pub(crate) async fn backup(job: BackupJob, reporter: &Reporter, cancel: &CancellationToken) -> Result<Staged, Problem> {
    // Whatever stopped first when the job was cancelled, the job was cancelled.
    let result = run(job, reporter, cancel).await;
    result.map_err(|problem| if cancel.is_cancelled() { cancelled() } else { problem })
}

/// The disks of a source, by their names in a point.
pub(crate) fn disks_of(uri: &Uri) -> Vec<Disk> {
    let named = uri.disks.iter().enumerate();
    named.map(|(number, path)| Disk { name: Uri::disk_name(number), path: path.clone() }).collect()
}

async fn run(job: BackupJob, reporter: &Reporter, cancel: &CancellationToken) -> Result<Staged, Problem> {
    let settings = Settings::parse(&job.settings_json)?.limited(job.read_bytes_per_s);
    let uri: Uri = job.source.uri.parse()?;
    let disks = disks_of(&uri);
    reporter.phase("looking at the disks");
    let provider = provider::choose(&disks, settings.provider.as_deref())?;
    reporter.phase("opening the vault");
    let repository = job.vault.open(cancel).await?;
    let before = look_back(&job, &repository, provider.name(), cancel).await?;
    let tracking = before.base.as_ref().and_then(|base| base.tracking.as_ref());
    let keep = tracking.map(std::slice::from_ref).unwrap_or_default();
    for removed in provider.remove_leftovers(&disks, keep).await? {
        tracing::info!("what an earlier backup left is removed: {removed}");
    }
    let wanted =
        Wanted { job_id: &job.job_id, disks: &disks, provider: &*provider, base: tracking, settings: &settings };
    let Caught { snapshot, capture } = instant::catch(wanted, reporter, cancel).await?;
    let store = Store { job: &job, settings: &settings, disks: &disks, repository, reporter };
    match store.disks(&snapshot, capture, &before, cancel).await {
        Ok((backup, machine)) => store.finish(backup, machine, snapshot, cancel).await,
        Err(problem) => {
            let_go(snapshot).await;
            Err(problem)
        }
    }
}

/// The newest point, if the next one can build on it.
struct Before {
    base: Option<Base>,
    /// Why it cannot, for people; empty when there is none.
    why_not: String,
}

async fn look_back(
    job: &BackupJob,
    repository: &Arc<Repository>,
    provider: &str,
    cancel: &CancellationToken,
) -> Result<Before, Problem> {
    let Some(id) = job.base else { return Ok(Before { base: None, why_not: String::new() }) };
    match Base::read(repository, id, provider, cancel).await {
        Ok(base) => Ok(Before { base: Some(base), why_not: String::new() }),
        Err(_) if cancel.is_cancelled() => Err(cancelled()),
        Err(problem) if problem.reason == Reason::VaultUnavailable => Err(problem),
        Err(problem) => {
            Ok(Before { base: None, why_not: format!("the point before cannot be read: {}", problem.message) })
        }
    }
}

/// Best effort: what stays is removed by the next backup.
async fn let_go(snapshot: Snapshot) {
    if let Err(problem) = provider::release(snapshot, false).await {
        tracing::warn!("the snapshot stays until the next backup: {}", problem.message);
    }
}

/// A disk of the point before, and what may differ from it.
type Reused<'a> = (&'a BaseDisk, &'a [Range<u64>]);

/// How a disk is read.
struct Reading {
    pieces: Vec<Piece>,
    chunks: Arc<[Id]>,
    /// Bytes that are no holes.
    allocated: u64,
}

/// What writes into the vault.
struct Store<'a> {
    job: &'a BackupJob,
    settings: &'a Settings,
    disks: &'a [Disk],
    repository: Arc<Repository>,
    reporter: &'a Reporter,
}

impl Store<'_> {
    /// Writes every disk.
    async fn disks(
        &self,
        snapshot: &Snapshot,
        mut capture: Capture,
        before: &Before,
        cancel: &CancellationToken,
    ) -> Result<(Backup, Machine), Problem> {
        let options = self.job.vault.write_options(self.job.compression);
        let meter = self.reporter.meter().clone();
        let backup = Backup::begin(self.repository.clone(), options, meter, cancel).await?;
        let streams = backup.streams();
        let written = async {
            let readings = self.readings(snapshot, &mut capture, before, &streams, cancel).await?;
            self.write(snapshot, &mut capture, readings, &streams, cancel).await
        };
        let written: Result<Vec<MachineDisk>, Problem> = written.await;
        match written {
            Ok(disks) => {
                let name = self.job.instance_name.clone();
                Ok((backup, Machine::new(name, snapshot.taken_at, capture, disks)))
            }
            Err(problem) => {
                backup.abandon(cancel).await;
                Err(problem)
            }
        }
    }

    /// What is read of each disk: what has changed since the point before, or everything.
    async fn readings(
        &self,
        snapshot: &Snapshot,
        capture: &mut Capture,
        before: &Before,
        streams: &Streams,
        cancel: &CancellationToken,
    ) -> Result<Vec<Reading>, Problem> {
        let mut full = before.why_not.clone();
        let mut is_loss = !full.is_empty();
        if let Some(base) = &before.base {
            match self.reuse(base, snapshot) {
                Ok(reused) => {
                    let disks = snapshot.disks.iter().zip(reused);
                    let readings: Vec<Reading> =
                        disks.map(|(disk, (earlier, changes))| partly(disk, earlier, changes, streams)).collect();
                    match self.compare(snapshot, &readings, cancel).await? {
                        Ok(read) => {
                            capture.read_bytes += read;
                            capture.base = base.id.to_string();
                            return Ok(readings);
                        }
                        Err(differs) => (full, is_loss) = (differs, true),
                    }
                }
                Err(why) => (full, is_loss) = (why, base.was_tracked),
            }
        }
        if !full.is_empty() {
            tracing::info!("everything is read: {full}");
            if is_loss {
                self.reporter.warn(lost(&full)).await;
            }
            capture.full_read_reason = full;
        }
        Ok(snapshot.disks.iter().map(fully).collect())
    }

    /// Reads a sample of what is to be taken over, when the settings want one. The bytes that were read, or what differs.
    async fn compare(
        &self,
        snapshot: &Snapshot,
        readings: &[Reading],
        cancel: &CancellationToken,
    ) -> Result<Result<u64, String>, Problem> {
        match self.settings.sample_percent {
            0 => Ok(Ok(0)),
            percent => {
                self.reporter.phase("comparing a sample");
                let throttle = self.throttle();
                sample::compare(snapshot, readings, percent, &self.job.job_id, throttle.as_ref(), cancel).await
            }
        }
    }

    /// What the point before has of each disk, and what may differ from it. The error is why everything is read, for people.
    fn reuse<'b>(&self, base: &'b Base, snapshot: &'b Snapshot) -> Result<Vec<Reused<'b>>, String> {
        if !base.untracked.is_empty() {
            return Err(base.untracked.clone());
        }
        let one = |disk: &'b SnapshotDisk| {
            let path = self.path_of(&disk.name);
            let before = base.disk(&disk.name, &path);
            let before =
                before.ok_or_else(|| format!("the point before has no {} at {}", disk.name, path.display()))?;
            match &disk.changes {
                Changes::Since(changes) => Ok((before, changes.as_slice())),
                Changes::Unknown(why) => Err(format!("what has changed of {} is not known: {why}", disk.name)),
            }
        };
        snapshot.disks.iter().map(one).collect()
    }

    fn throttle(&self) -> Option<Arc<Throttle>> {
        self.settings.read_limit_bytes_per_s.map(|limit| Arc::new(Throttle::new(limit)))
    }

    fn path_of(&self, name: &str) -> PathBuf {
        self.disks.iter().find(|disk| disk.name == name).map(|disk| disk.path.clone()).unwrap_or_default()
    }

    async fn write(
        &self,
        snapshot: &Snapshot,
        capture: &mut Capture,
        readings: Vec<Reading>,
        streams: &Streams,
        cancel: &CancellationToken,
    ) -> Result<Vec<MachineDisk>, Problem> {
        let figures = snapshot.disks.iter().zip(&readings);
        let figures: Vec<(u64, u64)> =
            figures.map(|(disk, reading)| plan::figures(&reading.pieces, disk.size)).collect();
        // Holes pass as if they were read, and at no cost.
        self.reporter.expect_bytes(snapshot.disks.iter().zip(&figures).map(|(disk, (_, same))| disk.size - same).sum());
        self.reporter.phase("reading");
        let throttle = self.throttle();
        let mut machine_disks = Vec::new();
        for ((disk, reading), (read_bytes, same_bytes)) in snapshot.disks.iter().zip(readings).zip(figures) {
            let path = self.path_of(&disk.name);
            let file = disk.file.try_clone().map_err(|error| unreadable(&path, &error))?;
            let extents = reading::extents(file, reading.pieces, reading.chunks, throttle.clone());
            let stream = stream_of(&disk.name);
            streams.write_image(&stream, disk.size, extents, cancel).await.map_err(|error| match error {
                WriteError::Vault(error) => Problem::from(error),
                WriteError::Input(error) => unreadable(&path, &error),
            })?;
            capture.read_bytes += read_bytes;
            machine_disks.push(MachineDisk {
                name: disk.name.clone(),
                stream,
                size: disk.size,
                path,
                allocated_bytes: reading.allocated,
                read_bytes,
                same_bytes,
            });
        }
        Ok(machine_disks)
    }

    /// Lets the snapshot go, or keeps it for the next comparison; describes the machine, and stages. That the snapshot held to the end shows
    /// here, so nothing is staged before.
    async fn finish(
        &self,
        mut backup: Backup,
        mut machine: Machine,
        snapshot: Snapshot,
        cancel: &CancellationToken,
    ) -> Result<Staged, Problem> {
        self.reporter.phase("finishing");
        let finished = async {
            let tracking = provider::release(snapshot, true).await?;
            let json = tracking.map(|tracking| serde_json::to_value(&tracking)).transpose();
            machine.tracking = json.map_err(|error| Problem::new(Reason::Internal, error.to_string()))?;
            let described = machine.to_json()?;
            backup.write_stream(MACHINE_STREAM, described.as_slice(), cancel).await.map_err(|error| match error {
                WriteError::Vault(error) => Problem::from(error),
                WriteError::Input(error) => Problem::new(Reason::Internal, error.to_string()),
            })?;
            Ok::<(), Problem>(())
        };
        let finished = finished.await;
        if let Err(problem) = finished {
            backup.abandon(cancel).await;
            return Err(problem);
        }
        let mut tags = self.job.tags.clone();
        tags.push(format!("consistency={}", machine.capture.consistency.as_str()));
        let hostname = vaultferry_plugin_sdk::hostname();
        let staged = backup.stage(SnapshotMeta { time: machine.taken_at, hostname, tags }, cancel).await?;
        self.reporter.set_capture(machine.capture);
        Ok(staged)
    }
}

/// What has changed, and what the vault does not have for sure.
fn partly(disk: &SnapshotDisk, before: &BaseDisk, changes: &[Range<u64>], streams: &Streams) -> Reading {
    let earlier = Earlier { size: before.size, changes };
    let is_known = |number: u64| {
        let start = number * IMAGE_CHUNK as u64;
        let length = disk.size.min(start + IMAGE_CHUNK as u64) - start;
        let id = before.chunks.get(number as usize);
        id.and_then(|id| streams.known_chunk(id)) == Some(length)
    };
    let pieces = plan::pieces(disk.size, &disk.allocated, Some(earlier), is_known);
    Reading { pieces, chunks: before.chunks.clone(), allocated: allocated(disk) }
}

/// All that is no hole.
fn fully(disk: &SnapshotDisk) -> Reading {
    let pieces = plan::pieces(disk.size, &disk.allocated, None, |_| false);
    Reading { pieces, chunks: Arc::new([]), allocated: allocated(disk) }
}

fn allocated(disk: &SnapshotDisk) -> u64 {
    plan::normal(&disk.allocated, disk.size).iter().map(|range| range.end - range.start).sum()
}

fn unreadable(path: &Path, error: &std::io::Error) -> Problem {
    Problem::new(Reason::DiskUnreadable, format!("{} cannot be read: {error}", path.display()))
}

fn lost(why: &str) -> Warning {
    Warning {
        reason: Reason::ChangeTrackingLost.as_str().to_owned(),
        message: format!("the disks were read in full: {why}"),
        fix: Reason::ChangeTrackingLost.default_fix().to_owned(),
    }
}
