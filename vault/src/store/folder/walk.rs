//! Listing a folder in the order of keys, page by page. A page is made from the folder as it is at that moment; no state is kept.

use std::fs::FileType;
use std::io;
use std::path::Path;

use super::super::{Entry, Key};
use super::is_absence;

/// Appends up to `limit` files below `root` whose keys begin with `prefix` and come after `after`. True when there are no more.
/// Memory: the names of one folder at a time, per level.
pub(super) fn page(
    root: &Path,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
    entries: &mut Vec<Entry>,
) -> io::Result<bool> {
    let inside = prefix.trim_end_matches('/');
    // A prefix that is no key names nothing that a store could hold, and must not lead out of the root.
    if !prefix.is_empty() && Key::new(inside).is_err() {
        return Ok(true);
    }
    let dir = inside.split('/').filter(|segment| !segment.is_empty()).fold(root.to_owned(), |dir, name| dir.join(name));
    let prefix = if inside.is_empty() { String::new() } else { format!("{inside}/") };
    Walk { after: after.unwrap_or(""), limit, entries }.dir(&dir, &prefix)
}

struct Walk<'a> {
    after: &'a str,
    limit: usize,
    entries: &'a mut Vec<Entry>,
}

impl Walk<'_> {
    /// The files of `dir`, whose keys begin with `prefix`. True when the folder was walked to its end.
    fn dir(&mut self, dir: &Path, prefix: &str) -> io::Result<bool> {
        for name in self.sorted_names(dir, prefix)? {
            let key = format!("{prefix}{name}");
            if let Some(below) = name.strip_suffix('/') {
                if !self.dir(&dir.join(below), &key)? {
                    return Ok(false);
                }
                continue;
            }
            let size = match std::fs::symlink_metadata(dir.join(&name)) {
                // Deleted since the folder was read.
                Err(error) if is_absence(&error) => continue,
                metadata => metadata?.len(),
            };
            if let Ok(key) = Key::new(key) {
                if self.entries.len() == self.limit {
                    return Ok(false);
                }
                self.entries.push(Entry::new(key, size));
            }
        }
        Ok(true)
    }

    /// Names that can lead to keys after `after`, folders with a `/` at their end: so they sort as the keys below them do.
    fn sorted_names(&self, dir: &Path, prefix: &str) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(dir) {
            Err(error) if is_absence(&error) => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Ok(mut name) = entry.file_name().into_string() else { continue };
            let file_type: FileType = match entry.file_type() {
                Err(error) if is_absence(&error) => continue,
                file_type => file_type?,
            };
            if Key::new(name.as_str()).is_err() || !(file_type.is_dir() || file_type.is_file()) {
                continue;
            }
            if file_type.is_dir() {
                name.push('/');
            }
            let key = format!("{prefix}{name}");
            let wanted = key.as_str() > self.after || (file_type.is_dir() && self.after.starts_with(&key));
            if wanted {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_in_the_order_of_keys_and_hold_every_file_once() {
        let root = tempfile::tempdir().expect("tempdir");
        // '-' and '.' sort before '/', digits and letters after it: a folder sorts by the keys below it.
        let mut expected: Vec<String> =
            ["a-b", "a.b", "a/x", "a/y/z", "a0", "b", "c/d-e", "c/d/f", "c/d0", "tmp-not/x"].map(str::to_owned).into();
        for key in &expected {
            let path = root.path().join(key);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            std::fs::write(path, key).expect("write");
        }
        std::fs::create_dir(root.path().join("tmp")).expect("mkdir");
        for foreign in [".hidden", "a/.put-00", "name with blank", "tmp/.put-11"] {
            std::fs::write(root.path().join(foreign), "").expect("write");
        }
        expected.sort_unstable();
        for limit in 1..expected.len() + 2 {
            let (mut found, mut after) = (Vec::new(), None::<String>);
            loop {
                let mut entries = Vec::new();
                let complete = page(root.path(), "", after.as_deref(), limit, &mut entries).expect("page");
                assert!(entries.len() <= limit);
                found.extend(entries.iter().map(|entry| entry.key.to_string()));
                assert!(entries.iter().all(|entry| entry.size == entry.key.as_str().len() as u64));
                if complete {
                    break;
                }
                after = found.last().cloned();
            }
            assert_eq!(found, expected, "pages of {limit}");
        }
    }

    #[test]
    fn a_prefix_cannot_leave_the_root() {
        let outer = tempfile::tempdir().expect("tempdir");
        let root = outer.path().join("root");
        std::fs::create_dir(&root).expect("mkdir");
        std::fs::write(outer.path().join("secret"), "x").expect("write");
        for prefix in ["../", "/", "..", "a/../../", "./"] {
            let mut entries = Vec::new();
            assert!(page(&root, prefix, None, 10, &mut entries).expect("page"));
            assert!(entries.is_empty(), "{prefix}");
        }
    }
}
