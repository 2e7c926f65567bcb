//! What lies in a folder.

use std::fs;
use std::path::{Path, PathBuf};

/// The files below a folder with their sizes, largest first.
#[track_caller]
pub fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a folder") {
        let entry = entry.expect("an entry");
        let data = entry.metadata().expect("its metadata");
        if data.is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push((entry.path(), data.len()));
        }
    }
    found.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    found
}

/// The bytes of all files below a folder.
#[track_caller]
pub fn bytes_below(dir: &Path) -> u64 {
    files(dir).iter().map(|(_, size)| size).sum()
}
