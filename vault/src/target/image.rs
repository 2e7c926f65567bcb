//! Restored disk images as files: written anywhere under a hidden name, holes kept, synced, renamed without replacing.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::Error;
use crate::store::folder::publish::{self, Temporary};

/// What is zeros from end to end in pieces of this size is not written: the block of common file systems.
const BLOCK: usize = 4096;

/// Begins the name of an unfinished image, which has the job's id and the disk's name behind it.
const PREFIX: &str = ".vaultferry-disk-";

/// A disk image in the making. Its calls block. Dropping it removes the unfinished file.
#[derive(Debug)]
pub struct ImageFile {
    path: PathBuf,
    file: File,
    temporary: Temporary,
}

impl ImageFile {
    /// Begins an image of `size` bytes, all holes, that is to be called `path`, whose folder must exist. `job_id` and `disk` name the
    /// unfinished file, so that [`remove_unfinished`] finds it after a kill. A file that exists is refused ([`Error::Exists`]).
    pub fn create(path: &Path, job_id: &str, disk: &str, size: u64) -> Result<Self, Error> {
        if std::fs::symlink_metadata(path).is_ok() {
            return Err(exists(path));
        }
        let part = folder_of(path).join(format!("{}{disk}.part", prefix_of(job_id)));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        publish::private(&mut options);
        let file = options.open(&part).map_err(|error| not_writable(path, &error))?;
        let image = Self { path: path.to_owned(), file, temporary: Temporary::new(part) };
        image.file.set_len(size).map_err(|error| not_writable(path, &error))?;
        Ok(image)
    }

    /// Writes what is not zeros of `bytes`, which lie at `offset`. Each place may be written once.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let written = data_runs(bytes).try_for_each(|run| {
            self.file.seek(SeekFrom::Start(offset + run.start as u64))?;
            self.file.write_all(&bytes[run])
        });
        written.map_err(|error| not_writable(&self.path, &error))
    }

    /// Brings to the disk what was written, which may take as long as writing it did. [`ImageFile::finish`] has little left to do then.
    pub fn sync(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(|error| not_writable(&self.path, &error))
    }

    /// Makes the image durable under its name. After an error nothing of it is there; of a file that somebody else has made meanwhile
    /// ([`Error::Exists`]) nothing is touched.
    pub fn finish(self) -> Result<(), Error> {
        let Self { path, file, temporary } = self;
        let finished = file.sync_all().and_then(|()| publish::rename_without_replacing(temporary.path(), &path));
        if !finished.map_err(|error| not_writable(&path, &error))? {
            return Err(exists(&path));
        }
        temporary.keep();
        publish::sync_dir(folder_of(&path)).map_err(|error| {
            // Ours, named a moment ago.
            let _ = std::fs::remove_file(&path);
            not_writable(&path, &error)
        })
    }
}

/// The pieces of `bytes` that are not zeros, in order, as blocks of 4 KiB that are joined.
pub fn data_runs(bytes: &[u8]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let is_zeros = |from: usize| bytes[from..bytes.len().min(from + BLOCK)].iter().all(|byte| *byte == 0);
        while at < bytes.len() && is_zeros(at) {
            at += BLOCK;
        }
        let from = at;
        while at < bytes.len() && !is_zeros(at) {
            at += BLOCK;
        }
        let to = at.min(bytes.len());
        (from < to).then_some(from..to)
    })
}

/// Removes what a restore of this job has left unfinished in `folder`; the number of files. A folder that is not there has none.
pub fn remove_unfinished(folder: &Path, job_id: &str) -> Result<usize, Error> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(0),
        Err(error) => return Err(not_writable(folder, &error)),
    };
    let (prefix, mut count) = (prefix_of(job_id), 0);
    for entry in entries {
        let entry = entry.map_err(|error| not_writable(folder, &error))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&prefix) && name.ends_with(".part") {
            match std::fs::remove_file(entry.path()) {
                Ok(()) => count += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(not_writable(folder, &error)),
            }
        }
    }
    Ok(count)
}

/// Letters and digits of the id only, so that it is a part of a name whatever it is.
fn prefix_of(job_id: &str) -> String {
    let id: String = job_id.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{PREFIX}{id}-")
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn exists(path: &Path) -> Error {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Error::Exists { target: folder_of(path).display().to_string(), name }
}

fn not_writable(path: &Path, error: &io::Error) -> Error {
    Error::NotWritable { target: path.display().to_string(), detail: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).expect("a folder");
        entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn runs_are_what_is_not_zeros() {
        let mut bytes = vec![0; 5 * BLOCK + 100];
        assert_eq!(data_runs(&bytes).count(), 0);
        assert_eq!(data_runs(&[]).count(), 0);
        bytes[BLOCK - 1] = 1;
        bytes[BLOCK] = 1;
        bytes[5 * BLOCK + 99] = 1;
        let runs: Vec<Range<usize>> = data_runs(&bytes).collect();
        assert_eq!(runs, [0..2 * BLOCK, 5 * BLOCK..5 * BLOCK + 100]);
    }

    #[test]
    fn an_image_has_its_name_when_it_is_whole_and_its_holes_are_holes() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("disk.raw");
        let size = 64 << 20;
        let mut image = ImageFile::create(&path, "0195-ab", "disk0", size).expect("created");
        image.write_at(0, b"first").expect("written");
        image.write_at(32 << 20, &vec![0; 1 << 20]).expect("zeros");
        image.write_at(size - 4, b"last").expect("written");
        image.sync().expect("synced");
        assert_eq!(names(dir.path()), [".vaultferry-disk-0195ab-disk0.part"]);
        image.finish().expect("finished");
        assert_eq!(names(dir.path()), ["disk.raw"]);
        let bytes = std::fs::read(&path).expect("read");
        assert!(bytes.len() as u64 == size && bytes.starts_with(b"first") && bytes.ends_with(b"last"));
        #[cfg(target_os = "linux")]
        {
            use std::os::unix::fs::MetadataExt as _;
            let blocks = std::fs::metadata(&path).expect("metadata").blocks();
            assert!(blocks * 512 < 1 << 20, "{blocks} blocks for two of them");
        }
        let again = ImageFile::create(&path, "0195-ab", "disk0", size);
        assert!(matches!(again, Err(Error::Exists { .. })));
    }

    #[test]
    fn what_is_not_finished_goes_and_nothing_else() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("disk.raw");
        drop(ImageFile::create(&path, "one", "disk0", 9).expect("created"));
        assert!(names(dir.path()).is_empty(), "dropped");
        // As a kill leaves them.
        for name in [".vaultferry-disk-one-disk0.part", ".vaultferry-disk-one-disk1.part"] {
            std::fs::write(dir.path().join(name), "x").expect("written");
        }
        for name in [".vaultferry-disk-two-disk0.part", "disk1.raw", ".vaultferry-disk-one-notes"] {
            std::fs::write(dir.path().join(name), "x").expect("written");
        }
        assert_eq!(remove_unfinished(dir.path(), "one").expect("removed"), 2);
        assert_eq!(remove_unfinished(dir.path(), "one").expect("again"), 0);
        assert_eq!(names(dir.path()).len(), 3);
        assert_eq!(remove_unfinished(&dir.path().join("none"), "one").expect("no folder"), 0);
        // Somebody else was quicker.
        let image = ImageFile::create(&path, "one", "disk0", 9).expect("created");
        std::fs::write(&path, "theirs").expect("written");
        assert!(matches!(image.finish(), Err(Error::Exists { .. })));
        assert_eq!(std::fs::read(&path).expect("read"), b"theirs");
    }
}
