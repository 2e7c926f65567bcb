//! A disk of a point as a file, as several in a folder, or onto a block device.
//!
//! | target | before anything is written | undone by |
//! |---|---|---|
//! | a new file | nothing of that name is there; its folder is | removing the unfinished file, which has the job's id in its hidden name |
//! | a folder | no file of those names is in it | the same for each; files get their names when all are complete |
//! | a block device | it was named twice, nothing uses it, the image fits | nothing: what it held is lost. Its first MiB is zeros until all else is written, so that nobody takes half an image for a disk |
//!
//! Holes of the image are holes of a file, and zeros on a device. A device that is larger than the image keeps what lies behind it.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::workload::cancelled;
use vaultferry_plugin_sdk::{DiskTarget, Reporter, RestoreJob};
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::reader::PointReader;
use vaultferry_vault::target::{ImageFile, remove_unfinished};

use crate::base::read_machine;
use crate::machine::MachineDisk;
use crate::usage;

/// What of a device is written last.
const HEAD: u64 = 1 << 20;

/// See [`vaultferry_plugin_sdk::Workload::restore`].
pub(crate) async fn restore(
    job: &RestoreJob,
    target: &DiskTarget,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<u64, Problem> {
    // Whatever stopped first when the job was cancelled, the job was cancelled.
    let result = run(job, target, reporter, cancel).await;
    result.map_err(
        |problem| if cancel.is_cancelled() { Problem { message: told(&problem), ..cancelled() } } else { problem },
    )
}

/// A cancelled restore says what it has left, if it has.
fn told(problem: &Problem) -> String {
    match problem.message.contains(INCOMPLETE) {
        true => problem.message.clone(),
        false => cancelled().message,
    }
}

/// What is said of a device that was begun.
const INCOMPLETE: &str = "holds a part of the image only";

/// Removes the unfinished files of that job. On a device nothing can be taken back.
pub(crate) async fn clean_up(job_id: &str, target: &DiskTarget, cancel: &CancellationToken) -> Result<(), Problem> {
    if cancel.is_cancelled() {
        return Err(cancelled());
    }
    let (to, job_id) = (target.to.clone(), job_id.to_owned());
    let count = blocking(move || {
        let mut count = 0;
        // A file's folder, or the folder itself.
        for folder in to.parent().into_iter().chain([to.as_path()]).filter(|folder| folder.is_dir()) {
            count += remove_unfinished(folder, &job_id)?;
        }
        Ok(count)
    })
    .await?;
    tracing::info!(count, "unfinished images are removed");
    Ok(())
}

/// Where the images go.
enum Place {
    /// Each disk into its file. The folder is made when it is not there.
    Files { folder: Option<PathBuf>, files: Vec<(MachineDisk, PathBuf)> },
    /// A disk onto a device.
    Device(MachineDisk),
}

async fn run(
    job: &RestoreJob,
    target: &DiskTarget,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<u64, Problem> {
    reporter.phase("opening the vault");
    let repository = job.open(cancel).await?;
    let point = PointReader::open(repository, job.snapshot_id, cancel).await?;
    let machine = read_machine(&point, cancel).await?;
    let disks = chosen(machine.disks, target.disk.as_deref())?;
    reporter.phase("looking at the target");
    let looked_at = target.clone();
    match blocking(move || place(&looked_at, disks)).await? {
        Place::Files { folder, files } => {
            reporter.expect_bytes(files.iter().map(|(disk, _)| disk.size).sum());
            let images = create(&job.job_id, folder, &files).await?;
            to_files(&point, files, images, reporter, cancel).await
        }
        Place::Device(disk) => {
            reporter.expect_bytes(disk.size);
            to_device(&target.to, &point, &disk, reporter, cancel).await
        }
    }
}

fn chosen(disks: Vec<MachineDisk>, wanted: Option<&str>) -> Result<Vec<MachineDisk>, Problem> {
    let Some(wanted) = wanted else { return Ok(disks) };
    let names: Vec<String> = disks.iter().map(|disk| disk.name.clone()).collect();
    match disks.into_iter().find(|disk| disk.name == wanted) {
        Some(disk) => Ok(vec![disk]),
        None => {
            let message = format!("the point has no disk {wanted}; it has {}", names.join(", "));
            Err(Problem::new(Reason::InvalidRequest, message).with_fix("Name one of them with --disk."))
        }
    }
}

/// Looks at the target; nothing is changed there.
fn place(target: &DiskTarget, mut disks: Vec<MachineDisk>) -> Result<Place, Problem> {
    let to = &target.to;
    if let Some(device) = &target.overwrite
        && device != to
    {
        let message = format!("{} may be overwritten, but the target is {}", device.display(), to.display());
        return Err(Problem::new(Reason::TargetInUse, message).with_fix("Name the same device twice."));
    }
    let invalid = |message: String, fix: &str| Err(Problem::new(Reason::InvalidRequest, message).with_fix(fix));
    let one_only = "Name one with --disk, or a folder for all of them.";
    match std::fs::metadata(to) {
        Ok(metadata) if metadata.is_dir() => in_folder(to, disks),
        Ok(_) if matches!(usage::device(to), Ok(Some(_))) => match (disks.pop(), disks.is_empty()) {
            (Some(disk), true) => {
                check_device(target, &disk)?;
                Ok(Place::Device(disk))
            }
            _ => invalid("the point has several disks, and a device takes one".to_owned(), one_only),
        },
        Ok(_) => {
            let message = format!("{} exists", to.display());
            Err(Problem::new(Reason::TargetExists, message).with_fix("Name a file that is not there yet."))
        }
        // A mistyped device must not become a file as large as the image: files there lie in memory.
        Err(_) if target.overwrite.is_some() || (to.starts_with("/dev") && !to.starts_with("/dev/shm")) => {
            invalid(format!("{} is no device that is there", to.display()), "Name the device, or a file elsewhere.")
        }
        Err(_) if disks.len() > 1 || is_called_a_folder(to) => in_folder(to, disks),
        Err(_) => match disks.pop() {
            Some(disk) => Ok(Place::Files { folder: None, files: vec![(disk, to.clone())] }),
            None => invalid("the point has no disks".to_owned(), "Restore it as files."),
        },
    }
}

/// True with a slash at its end.
fn is_called_a_folder(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

fn in_folder(folder: &Path, disks: Vec<MachineDisk>) -> Result<Place, Problem> {
    let files: Vec<(MachineDisk, PathBuf)> =
        disks.into_iter().map(|disk| (disk.clone(), folder.join(&disk.stream))).collect();
    match files.iter().find(|(_, path)| path.symlink_metadata().is_ok()) {
        Some((_, path)) => Err(Problem::new(Reason::TargetExists, format!("{} exists", path.display()))),
        None => Ok(Place::Files { folder: Some(folder.to_owned()), files }),
    }
}

/// A device is written when its owner has said so, and nobody uses it.
fn check_device(target: &DiskTarget, disk: &MachineDisk) -> Result<(), Problem> {
    let to = &target.to;
    let refused = |message: String| Problem::new(Reason::TargetInUse, message);
    if target.overwrite.is_none() {
        let fix = format!("If what is on it may be lost, say so: --yes-overwrite {}", to.display());
        return Err(
            refused(format!("{} is a block device, and what is on it would be lost", to.display())).with_fix(fix)
        );
    }
    match usage::use_of_device(to) {
        Ok(None) => {}
        Ok(Some(used)) => return Err(refused(format!("{} is not free: {used}", to.display()))),
        Err(error) => return Err(refused(format!("cannot see who uses {}: {error}", to.display()))),
    }
    let size = File::open(to).and_then(|mut device| device.seek(SeekFrom::End(0)));
    let size = size.map_err(|error| not_writable(to, &error))?;
    if size < disk.size {
        let message = format!("{} has {size} bytes, the image {}", to.display(), disk.size);
        return Err(
            Problem::new(Reason::TargetFull, message).with_fix("Choose a device that is as large as the image.")
        );
    }
    Ok(())
}

/// Begins every file, so that one that exists is refused before a byte is written.
async fn create(
    job_id: &str,
    folder: Option<PathBuf>,
    files: &[(MachineDisk, PathBuf)],
) -> Result<Vec<ImageFile>, Problem> {
    let wanted = files.iter().map(|(disk, path)| (disk.name.clone(), disk.size, path.clone()));
    let (job_id, wanted) = (job_id.to_owned(), wanted.collect::<Vec<_>>());
    blocking(move || {
        if let Some(folder) = &folder {
            let parent = folder.parent().unwrap_or(Path::new("/"));
            // A power cut must not take the folder of a complete image.
            let made = std::fs::create_dir(folder).and_then(|()| File::open(parent)?.sync_all());
            match made {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(not_writable(folder, &error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        let images = wanted.iter().map(|(name, size, path)| ImageFile::create(path, &job_id, name, *size));
        Ok(images.collect::<Result<Vec<ImageFile>, _>>()?)
    })
    .await
}

/// Writes the images under their hidden names, and gives them their names when all are complete.
async fn to_files(
    point: &PointReader,
    files: Vec<(MachineDisk, PathBuf)>,
    images: Vec<ImageFile>,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<u64, Problem> {
    reporter.phase("restoring");
    let (mut bytes, mut complete) = (0, Vec::new());
    for ((disk, path), image) in files.into_iter().zip(images) {
        let mut sink = Sink::File(Some(image));
        bytes += copy(point, &disk, &mut sink, reporter, cancel).await?;
        if let Sink::File(Some(image)) = sink {
            // It may take minutes: not between the names of the first and the last.
            let image = blocking(move || image.sync().map(|()| image).map_err(Problem::from)).await?;
            complete.push((path, image));
        }
    }
    reporter.phase("finishing");
    if cancel.is_cancelled() {
        return Err(cancelled());
    }
    // Not cancelled in the middle: it takes moments, and half of the files would be worse than all.
    blocking(move || {
        let mut named: Vec<PathBuf> = Vec::new();
        for (path, image) in complete {
            if let Err(error) = image.finish() {
                for path in &named {
                    // They are ours, made a moment ago.
                    let _ = std::fs::remove_file(path);
                }
                return Err(error.into());
            }
            named.push(path);
        }
        Ok(())
    })
    .await?;
    Ok(bytes)
}

/// Where a disk's bytes go.
enum Sink {
    /// `None` behind a failed write.
    File(Option<ImageFile>),
    Device(Device),
}

impl Sink {
    async fn write(&mut self, offset: u64, piece: Bytes) -> Result<(), Problem> {
        match self {
            Self::Device(device) => device.write(offset, piece).await,
            Self::File(image) => {
                let held = image.take();
                let mut held = held.ok_or_else(|| Problem::new(Reason::Internal, "an earlier write had failed"))?;
                let written = blocking(move || {
                    held.write_at(offset, &piece)?;
                    Ok(held)
                });
                *image = Some(written.await?);
                Ok(())
            }
        }
    }
}

/// A block device, open for us alone.
struct Device {
    path: PathBuf,
    file: Arc<File>,
    /// What is written last.
    head: Vec<u8>,
}

impl Device {
    /// Opens it, and writes zeros over the first `head` bytes.
    async fn begin(path: &Path, head: usize) -> Result<Self, Problem> {
        let to = path.to_owned();
        let file = blocking(move || {
            let mut options = OpenOptions::new();
            // The kernel refuses a second user, whoever came between the look and this.
            options.read(true).write(true).custom_flags(nix::libc::O_EXCL);
            options.open(&to).map_err(|error| match error.raw_os_error() {
                Some(nix::libc::EBUSY) => Problem::new(Reason::TargetInUse, format!("{} is in use", to.display())),
                _ => not_writable(&to, &error),
            })
        });
        let device = Self { path: path.to_owned(), file: Arc::new(file.await?), head: vec![0; head] };
        device.write_now(0, device.head.clone().into()).await.map_err(|problem| incomplete(path, problem))?;
        Ok(device)
    }

    async fn write(&mut self, offset: u64, mut piece: Bytes) -> Result<(), Problem> {
        let mut offset = offset;
        if offset < self.head.len() as u64 {
            let from = offset as usize;
            let first = piece.split_to(piece.len().min(self.head.len() - from));
            self.head[from..from + first.len()].copy_from_slice(&first);
            offset += first.len() as u64;
        }
        if piece.is_empty() { Ok(()) } else { self.write_now(offset, piece).await }
    }

    async fn write_now(&self, offset: u64, piece: Bytes) -> Result<(), Problem> {
        self.with_file(move |file| file.write_all_at(&piece, offset)).await
    }

    async fn with_file<T: Send + 'static>(
        &self,
        work: impl FnOnce(&File) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, Problem> {
        let (file, path) = (self.file.clone(), self.path.clone());
        blocking(move || work(&file).map_err(|error| not_writable(&path, &error))).await
    }

    /// Writes the beginning, when all else is on the device, and reads it back.
    async fn finish(self) -> Result<(), Problem> {
        self.with_file(File::sync_all).await?;
        self.write_now(0, self.head.clone().into()).await?;
        self.with_file(File::sync_all).await?;
        let length = self.head.len();
        let read = self.with_file(move |file| {
            let mut read = vec![0; length];
            // From the device, and not out of memory, where it was put a moment ago.
            nix::fcntl::posix_fadvise(file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
            file.read_exact_at(&mut read, 0).map(|()| read)
        });
        match read.await? == self.head {
            true => Ok(()),
            false => {
                let message = format!("{} does not give back what was written to it", self.path.display());
                Err(Problem::new(Reason::TargetNotWritable, message))
            }
        }
    }
}

/// Writes the image onto the device, its beginning last.
async fn to_device(
    path: &Path,
    point: &PointReader,
    disk: &MachineDisk,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<u64, Problem> {
    let device = Device::begin(path, disk.size.min(HEAD) as usize).await?;
    reporter.phase("restoring");
    let written = async {
        let mut sink = Sink::Device(device);
        let bytes = copy(point, disk, &mut sink, reporter, cancel).await?;
        reporter.phase("finishing");
        if let Sink::Device(device) = sink {
            device.finish().await?;
        }
        Ok::<u64, Problem>(bytes)
    };
    written.await.map_err(|problem| incomplete(path, problem))
}

/// Says what has become of the device.
fn incomplete(path: &Path, problem: Problem) -> Problem {
    let message = format!("{}. {} {INCOMPLETE}, and what it held is lost", problem.message, path.display());
    Problem { message, ..problem }
}

/// Hands over the image in order, and checks its length.
async fn copy(
    point: &PointReader,
    disk: &MachineDisk,
    sink: &mut Sink,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<u64, Problem> {
    let mut chunks = point.chunks(&disk.stream, cancel)?;
    let mut offset = 0;
    while let Some(piece) = chunks.next().await {
        let piece = piece?;
        let length = piece.len() as u64;
        if offset + length > disk.size {
            let message = format!("the stream {} is longer than its disk", disk.stream);
            return Err(Problem::new(Reason::RepositoryDamaged, message));
        }
        sink.write(offset, piece).await?;
        offset += length;
        reporter.meter().add_read(length);
        if cancel.is_cancelled() {
            return Err(cancelled());
        }
    }
    point.check_size(&disk.stream, offset)?;
    if offset != disk.size {
        let message = format!("the stream {} is shorter than its disk", disk.stream);
        return Err(Problem::new(Reason::RepositoryDamaged, message));
    }
    Ok(offset)
}

fn not_writable(path: &Path, error: &std::io::Error) -> Problem {
    Problem::new(Reason::TargetNotWritable, format!("{} cannot be written: {error}", path.display()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Problem> + Send + 'static) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Problem::new(Reason::Internal, error.to_string()))?
}

#[cfg(test)]
mod tests;
