//! The list for `pg_restore --use-list`: a file with the numbers of what is restored, and no names.
//!
//! It lies in the folder that the host has made for this process alone, and is removed with the value; what a kill leaves goes with the
//! folder.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use tokio::io::AsyncWriteExt as _;
use vaultferry_plugin_sdk::serve::DIR_VARIABLE;
use vaultferry_proto::{Problem, Reason};

/// A list on disk.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
}

impl File {
    /// Writes it, readable by this user only. `name` is unique on this machine.
    pub(super) async fn write(name: &str, ids: &[i32]) -> Result<Self, Problem> {
        let dir = std::env::var_os(DIR_VARIABLE).map_or_else(std::env::temp_dir, PathBuf::from);
        Self::write_in(&dir, name, ids).await
    }

    async fn write_in(dir: &Path, name: &str, ids: &[i32]) -> Result<Self, Problem> {
        let path = dir.join(format!("{name}.list"));
        let mut options = tokio::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        options.mode(0o600);
        let mut text = String::new();
        for id in ids {
            // Writing to a text does not fail.
            let _ = writeln!(text, "{id};");
        }
        let cannot = |error: std::io::Error| {
            let message = format!("cannot write the list of what is restored, {}: {error}", path.display());
            Problem::new(Reason::Internal, message)
        };
        let mut file = options.open(&path).await.map_err(cannot)?;
        // From here on it is removed, whatever comes.
        let written = Self { path: path.clone() };
        file.write_all(text.as_bytes()).await.map_err(cannot)?;
        file.flush().await.map_err(cannot)?;
        Ok(written)
    }

    /// What pg_restore is given.
    pub(super) fn argument(&self) -> std::ffi::OsString {
        let mut argument = std::ffi::OsString::from("--use-list=");
        argument.push(&self.path);
        argument
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!("a list is left at {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_list_is_there_as_long_as_it_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let list = File::write_in(dir.path(), "x", &[3, 1]).await.unwrap();
        let path = dir.path().join("x.list");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "3;\n1;\n");
        assert!(list.argument().to_string_lossy().ends_with("x.list"));
        assert!(File::write_in(dir.path(), "x", &[]).await.is_err(), "nothing is overwritten");
        drop(list);
        assert!(!path.exists());
    }
}
