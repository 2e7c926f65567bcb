//! A folder as a store: one file per key, below a root folder.
//!
//! ```text
//! <root>/data/4f/4f91…      a file of the store: complete, durable, never changed
//! <root>/tmp/.put-8c02…     a file that is being written; its name is no key, so it is never listed
//! ```
//!
//! Invariants:
//! - A file gets its name only when all its bytes are on the disk (fsync), and the name never replaces another file. Then the
//!   folder is synced, and every folder above it that this process has not synced yet.
//! - Several processes may use one folder at once. Who dies half-way (`kill -9`, power cut) leaves at most a file in `tmp/`;
//!   [`Folder::sweep_temporary`] removes those.
//! - Listings name ordinary files only. Links, and files whose names are no keys, are not of the store and are passed over.
//!
//! It does not do: NFS without `hard_link` and exclusive rename, and folders on different file systems below one root (the rename
//! would fail).

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Entry, Error, Key, Page, Put, Store, Tier};

pub(crate) mod direct;
pub(crate) mod publish;
mod walk;

/// Files of one listing page: few enough that a page is small, many enough that a listing is not slow.
const PAGE_ENTRIES: usize = 1000;
/// Where unfinished files lie, below the root. No key begins with it.
const TEMPORARY_DIR: &str = "tmp";
/// Unfinished files begin with this. The dot keeps them from being keys wherever they lie.
const TEMPORARY_PREFIX: &str = ".put-";
/// Hexadecimal digits after the prefix.
const TEMPORARY_DIGITS: usize = 32;
/// Folders remembered as durable; when more are known the memory starts anew, which costs a few fsyncs.
const DURABLE_DIRS_KEPT: usize = 4096;

/// A store in a folder. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Folder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    location: String,
    /// Folders that this process has synced, with all their parents up to the root.
    durable: Mutex<HashSet<PathBuf>>,
}

/// What an operation wanted, because the same system error means different things.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

impl Folder {
    /// A store in this folder. Touches nothing; the folder may be missing until [`Folder::create`].
    pub fn new(root: PathBuf) -> Self {
        let location = root.display().to_string();
        Self { inner: Arc::new(Inner { root, location, durable: Mutex::default() }) }
    }

    /// The root folder.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Makes the root folder (mode 0700 on Unix) and the missing folders above it; one that exists is left as it is.
    /// A failure may leave some of the folders.
    pub async fn create(&self) -> Result<(), Error> {
        self.blocking(|inner| {
            let made = publish::make_dirs(&inner.root, None);
            made.map_err(|error| inner.error(Access::Write, error))
        })
        .await
    }

    /// Removes unfinished files that are older than `older_than`: what processes left that were killed in the middle of a put.
    /// Choose an age that no running put reaches. Other files in `tmp/` are not touched. Returns how many files were removed;
    /// stops at the first that cannot be.
    pub async fn sweep_temporary(&self, older_than: Duration) -> Result<u64, Error> {
        self.blocking(move |inner| inner.sweep(older_than).map_err(|error| inner.error(Access::Write, error))).await
    }

    /// The names of the folders right below the root, in no order; none when the root is missing.
    pub(crate) async fn subfolders(&self) -> Result<Vec<String>, Error> {
        self.blocking(|inner| {
            let failed = |error| inner.error(Access::Read, error);
            let entries = match std::fs::read_dir(&inner.root) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                entries => entries.map_err(failed)?,
            };
            let mut names = Vec::new();
            for entry in entries {
                let entry = entry.map_err(failed)?;
                if entry.file_type().map_err(failed)?.is_dir() {
                    names.extend(entry.file_name().into_string());
                }
            }
            Ok(names)
        })
        .await
    }

    fn unsupported(&self, what: &str) -> Error {
        Error::Unsupported { store: self.inner.location.clone(), what: what.to_owned() }
    }

    /// Runs `work` where it may block. The work goes on to its end when the future is dropped.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = Arc::clone(&self.inner);
        let location = self.inner.location.clone();
        tokio::task::spawn_blocking(move || work(&inner)).await.unwrap_or_else(|error| {
            Err(Error::Unavailable { store: location, detail: format!("the work on the folder ended early: {error}") })
        })
    }
}

#[async_trait]
impl Store for Folder {
    fn location(&self) -> &str {
        &self.inner.location
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>, Error> {
        let key = key.clone();
        self.blocking(move |inner| inner.head(&key)).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        let key = key.clone();
        self.blocking(move |inner| inner.get(&key, range)).await
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put, Error> {
        let key = key.clone();
        self.blocking(move |inner| inner.put(&key, &body)).await
    }

    async fn list_page(&self, prefix: &str, next: Option<&str>) -> Result<Page, Error> {
        let (prefix, next) = (prefix.to_owned(), next.map(str::to_owned));
        self.blocking(move |inner| inner.list_page(&prefix, next.as_deref())).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        let key = key.clone();
        self.blocking(move |inner| inner.delete(&key)).await
    }

    async fn set_tier(&self, _key: &Key, _tier: Tier) -> Result<(), Error> {
        Ok(())
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<Put, Error> {
        let body = self.get(from, None).await?;
        self.put_if_absent(to, body).await
    }

    async fn protect(&self, _key: &Key, _until: jiff::Timestamp, _locked: bool) -> Result<(), Error> {
        Err(self.unsupported("make files immutable"))
    }

    async fn set_legal_hold(&self, _key: &Key, _hold: bool) -> Result<(), Error> {
        Err(self.unsupported("put files on legal hold"))
    }
}

impl Inner {
    fn path(&self, key: &Key) -> Result<PathBuf, Error> {
        if key.as_str().split('/').next() == Some(TEMPORARY_DIR) {
            let detail = format!("{key} is where unfinished files lie");
            return Err(Error::Rejected { store: self.location.clone(), detail });
        }
        // A key's segments are plain names, so the path stays below the root.
        Ok(key.as_str().split('/').fold(self.root.clone(), |path, segment| path.join(segment)))
    }

    fn head(&self, key: &Key) -> Result<Option<Entry>, Error> {
        match std::fs::metadata(self.path(key)?) {
            Ok(metadata) if metadata.is_file() => Ok(Some(Entry::new(key.clone(), metadata.len()))),
            Ok(_) => Ok(None),
            Err(error) if is_absence(&error) => self.check_root(Access::Read).map(|()| None),
            Err(error) => Err(self.error(Access::Read, error)),
        }
    }

    fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        let path = self.path(key)?;
        let not_found = || Error::NotFound { store: self.location.clone(), key: key.to_string() };
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if is_absence(&error) => {
                self.check_root(Access::Read)?;
                return Err(not_found());
            }
            Err(error) => return Err(self.error(Access::Read, error)),
        };
        let metadata = file.metadata().map_err(|error| self.error(Access::Read, error))?;
        if !metadata.is_file() {
            return Err(not_found());
        }
        let range = range.unwrap_or(0..metadata.len());
        super::check_range(&self.location, key, &range, metadata.len())?;
        self.read(&mut file, range).map_err(|error| self.error(Access::Read, error))
    }

    fn read(&self, file: &mut File, range: Range<u64>) -> io::Result<Bytes> {
        let length = usize::try_from(range.end - range.start).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut bytes = vec![0; length];
        if range.start > 0 {
            file.seek(SeekFrom::Start(range.start))?;
        }
        file.read_exact(&mut bytes)?;
        Ok(bytes.into())
    }

    fn put(&self, key: &Key, body: &[u8]) -> Result<Put, Error> {
        let path = self.path(key)?;
        self.check_root(Access::Write)?;
        self.try_put(&path, body).map_err(|error| self.error(Access::Write, error))
    }

    fn try_put(&self, path: &Path, body: &[u8]) -> io::Result<Put> {
        let dir = path.parent().unwrap_or(&self.root);
        if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file()) {
            // Whoever made it may not have synced the folder yet, and the caller relies on the file from now on.
            self.make_durable(dir)?;
            publish::sync_dir(dir)?;
            return Ok(Put::Existed);
        }
        let temporary = self.write_temporary(body)?;
        let created = self.publish(temporary.path(), path, dir)?;
        if created {
            temporary.keep();
        }
        publish::sync_dir(dir)?;
        Ok(if created { Put::Created } else { Put::Existed })
    }

    /// Writes a synced file into `tmp/`. It is removed when the returned guard is dropped.
    fn write_temporary(&self, body: &[u8]) -> io::Result<publish::Temporary> {
        let name = format!("{TEMPORARY_PREFIX}{:032x}", rand::random::<u128>());
        let path = self.root.join(TEMPORARY_DIR).join(name);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        publish::private(&mut options);
        let file = match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                publish::make_dirs(&self.root.join(TEMPORARY_DIR), Some(&self.root))?;
                options.open(&path)?
            }
            opened => opened?,
        };
        let temporary = publish::Temporary::new(path);
        direct::write(file, body)?.sync_all()?;
        Ok(temporary)
    }

    /// Gives the finished file its name. False when the name is taken.
    fn publish(&self, temporary: &Path, path: &Path, dir: &Path) -> io::Result<bool> {
        self.make_durable(dir)?;
        match publish::rename_without_replacing(temporary, path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.exists() => {
                // Somebody removed the empty folder behind our back.
                self.durable().remove(dir);
                self.make_durable(dir)?;
                publish::rename_without_replacing(temporary, path)
            }
            renamed => renamed,
        }
    }

    /// Makes the folder and those above it, up to the root, and syncs them once per process: another process may have made one of
    /// them a moment ago, and not synced it.
    fn make_durable(&self, dir: &Path) -> io::Result<()> {
        if self.durable().contains(dir) {
            return Ok(());
        }
        publish::make_dirs(dir, Some(&self.root))?;
        let mut durable = self.durable();
        if durable.len() >= DURABLE_DIRS_KEPT {
            durable.clear();
        }
        durable.insert(dir.to_owned());
        Ok(())
    }

    fn durable(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn list_page(&self, prefix: &str, after: Option<&str>) -> Result<Page, Error> {
        self.check_root(Access::Read)?;
        let mut entries = Vec::new();
        let complete = walk::page(&self.root, prefix, after, PAGE_ENTRIES, &mut entries)
            .map_err(|error| self.error(Access::Read, error))?;
        let next = match entries.last() {
            Some(Entry { key, .. }) if !complete => Some(key.to_string()),
            _ => None,
        };
        Ok(Page { entries, next })
    }

    fn delete(&self, key: &Key) -> Result<(), Error> {
        let path = self.path(key)?;
        match std::fs::remove_file(&path) {
            Ok(()) => {
                let dir = path.parent().unwrap_or(&self.root);
                publish::sync_dir(dir).map_err(|error| self.error(Access::Write, error))
            }
            Err(error) if is_absence(&error) => self.check_root(Access::Write),
            Err(_) if path.is_dir() => Ok(()),
            Err(error) => Err(self.error(Access::Write, error)),
        }
    }

    fn sweep(&self, older_than: Duration) -> io::Result<u64> {
        let entries = match std::fs::read_dir(self.root.join(TEMPORARY_DIR)) {
            Err(error) if is_absence(&error) => return Ok(0),
            entries => entries?,
        };
        let mut removed = 0;
        for entry in entries {
            let entry = entry?;
            if !entry.file_name().to_str().is_some_and(is_temporary_name) {
                continue;
            }
            // The clock may have been set back: such a file is young.
            let modified = match entry.metadata() {
                Err(error) if is_absence(&error) => continue,
                metadata => metadata?.modified()?,
            };
            let age = SystemTime::now().duration_since(modified).unwrap_or_default();
            if age < older_than {
                continue;
            }
            match std::fs::remove_file(entry.path()) {
                Err(error) if !is_absence(&error) => return Err(error),
                _ => removed += 1,
            }
        }
        Ok(removed)
    }

    fn check_root(&self, access: Access) -> Result<(), Error> {
        match std::fs::metadata(&self.root) {
            Ok(metadata) if metadata.is_dir() => Ok(()),
            Ok(_) => Err(Error::NoStore { store: self.location.clone() }),
            Err(error) if is_absence(&error) => Err(Error::NoStore { store: self.location.clone() }),
            Err(error) => Err(self.error(access, error)),
        }
    }

    fn error(&self, access: Access, error: io::Error) -> Error {
        use io::ErrorKind as Kind;
        let (store, detail) = (self.location.clone(), error.to_string());
        match error.kind() {
            Kind::StorageFull | Kind::QuotaExceeded => Error::Full { store },
            Kind::PermissionDenied if access == Access::Read => Error::AccessDenied { store, detail },
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => Error::NotWritable { store, detail },
            // What stands in the way will stand there at the next try too.
            Kind::NotADirectory
            | Kind::IsADirectory
            | Kind::AlreadyExists
            | Kind::InvalidFilename
            | Kind::FileTooLarge
            | Kind::CrossesDevices
            | Kind::InvalidInput
            | Kind::Unsupported => Error::Rejected { store, detail },
            _ => Error::Unavailable { store, detail },
        }
    }
}

/// The path, or a folder on the way to it, is not there (or is a file).
fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn is_temporary_name(name: &str) -> bool {
    name.strip_prefix(TEMPORARY_PREFIX).is_some_and(|digits| {
        digits.len() == TEMPORARY_DIGITS && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}
