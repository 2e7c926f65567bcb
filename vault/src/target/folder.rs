//! Restored files in a folder: written under a hidden name, synced, renamed without replacing.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::Error;
use crate::store::folder::direct::Writer;
use crate::store::folder::publish::{self, Temporary};

#[derive(Debug, Clone)]
pub(super) struct Target {
    dir: PathBuf,
}

/// Holds the piece that is being written and what the writer gathers.
#[derive(Debug)]
pub(super) struct Sink {
    target: Target,
    name: String,
    /// The last write, which goes on while the caller makes the next piece. Nothing after an error.
    written: Option<JoinHandle<io::Result<Writer>>>,
    temporary: Temporary,
    size: u64,
}

impl Target {
    /// Makes the folder when it is missing (mode 0700 on Unix).
    pub(super) async fn open(dir: PathBuf) -> Result<Self, Error> {
        let target = Self { dir };
        let dir = target.dir.clone();
        target.blocking(move || publish::make_dirs(&dir, None)).await?;
        if tokio::fs::metadata(&target.dir).await.is_ok_and(|metadata| metadata.is_dir()) {
            return Ok(target);
        }
        Err(target.error(io::ErrorKind::NotADirectory.into()))
    }

    pub(super) async fn create(&self, name: &str) -> Result<Sink, Error> {
        if tokio::fs::symlink_metadata(self.dir.join(name)).await.is_ok() {
            return Err(self.exists(name));
        }
        let path = self.dir.join(format!(".vaultferry-{:032x}.part", rand::random::<u128>()));
        let (file, temporary) = self
            .blocking(move || {
                let mut options = std::fs::OpenOptions::new();
                options.write(true).create_new(true);
                publish::private(&mut options);
                Ok((options.open(&path)?, Temporary::new(path)))
            })
            .await?;
        let written = Some(tokio::task::spawn_blocking(move || Ok(Writer::new(file))));
        Ok(Sink { target: self.clone(), name: name.to_owned(), written, temporary, size: 0 })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        self.ended(&mut tokio::task::spawn_blocking(work)).await
    }

    async fn ended<T>(&self, work: &mut JoinHandle<io::Result<T>>) -> Result<T, Error> {
        match work.await {
            Ok(result) => result.map_err(|error| self.error(error)),
            Err(error) => Err(self.error(io::Error::other(error))),
        }
    }

    fn exists(&self, name: &str) -> Error {
        Error::Exists { target: self.dir.display().to_string(), name: name.to_owned() }
    }

    fn error(&self, error: io::Error) -> Error {
        Error::NotWritable { target: self.dir.display().to_string(), detail: error.to_string() }
    }
}

impl Sink {
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), Error> {
        let mut writer = self.writer().await?;
        self.size += bytes.len() as u64;
        self.written = Some(tokio::task::spawn_blocking(move || {
            writer.write(&bytes)?;
            Ok(writer)
        }));
        Ok(())
    }

    /// Waits for the last write, and takes the writer.
    async fn writer(&mut self) -> Result<Writer, Error> {
        let Some(written) = &mut self.written else {
            return Err(self.target.error(io::Error::other("an earlier write had failed")));
        };
        let writer = self.target.ended(written).await;
        self.written = None;
        writer
    }

    pub(super) async fn finish(mut self) -> Result<u64, Error> {
        let writer = self.writer().await?;
        self.target.blocking(move || writer.finish()?.sync_all()).await?;
        let (dir, path, temporary) = (self.target.dir.clone(), self.target.dir.join(&self.name), self.temporary);
        let renamed = self.target.blocking(move || {
            let renamed = publish::rename_without_replacing(temporary.path(), &path)?;
            if renamed {
                temporary.keep();
                publish::sync_dir(&dir)?;
            }
            Ok(renamed)
        });
        if renamed.await? { Ok(self.size) } else { Err(self.target.exists(&self.name)) }
    }

    pub(super) async fn abort(self) {
        drop(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &std::path::Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).expect("read_dir");
        entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[tokio::test]
    async fn a_file_is_visible_when_it_is_finished_and_only_then() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("made/by/open");
        let target = Target::open(path.clone()).await.expect("open");
        let mut sink = target.create("a.dump").await.expect("create");
        for _ in 0..5 {
            sink.write(Bytes::from(vec![7; 700_000])).await.expect("write");
        }
        assert!(names(&path).iter().all(|name| name.starts_with(".vaultferry-") && name.ends_with(".part")));
        assert_eq!(sink.finish().await.expect("finish"), 3_500_000);
        assert_eq!(names(&path), ["a.dump"]);
        assert_eq!(std::fs::read(path.join("a.dump")).expect("read"), vec![7; 3_500_000]);
        let error = target.create("a.dump").await.expect_err("exists");
        assert!(matches!(error, Error::Exists { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn what_is_given_up_leaves_nothing_and_a_race_is_lost_politely() {
        let dir = tempfile::tempdir().expect("tempdir");
        let target = Target::open(dir.path().to_owned()).await.expect("open");
        let mut sink = target.create("a").await.expect("create");
        sink.write("half".into()).await.expect("write");
        sink.abort().await;
        drop(target.create("a").await.expect("create"));
        assert!(names(dir.path()).is_empty());

        let mut sink = target.create("a").await.expect("create");
        sink.write("ours".into()).await.expect("write");
        std::fs::write(dir.path().join("a"), "theirs").expect("write");
        let error = sink.finish().await.expect_err("somebody was quicker");
        assert!(matches!(error, Error::Exists { .. }), "{error:?}");
        assert_eq!(names(dir.path()), ["a"]);
        assert_eq!(std::fs::read_to_string(dir.path().join("a")).expect("read"), "theirs");
    }

    #[tokio::test]
    async fn a_file_in_the_folders_place_is_told() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("file");
        std::fs::write(&path, "").expect("write");
        for path in [path.clone(), path.join("below")] {
            let error = Target::open(path).await.expect_err("a file is there");
            assert!(matches!(error, Error::NotWritable { .. }), "{error:?}");
        }
    }
}
