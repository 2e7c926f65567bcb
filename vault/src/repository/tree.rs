//! Trees: the directories of a snapshot, as restic writes them. Ours have one level, whose files are the point's streams.
//!
//! Stream names are limited to `A-Z a-z 0-9 . _ -` ([`check_name`]), so quoting them as Go does changes nothing.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::id::Id;

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// In ascending order of their names.
    pub nodes: Vec<Node>,
}

/// A file of a directory. The fields and their order are restic's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// `file`, or `dir`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Permission bits.
    #[serde(default)]
    pub mode: u32,
    /// When the source was read, RFC 3339.
    pub mtime: String,
    /// The same.
    pub atime: String,
    /// The same.
    pub ctime: String,
    /// 0.
    pub uid: u32,
    /// 0.
    pub gid: u32,
    /// Bytes of the stream.
    #[serde(default)]
    pub size: u64,
    /// 1, as for any file with one name.
    #[serde(default)]
    pub links: u64,
    /// The chunks of a file, in order. An empty file has an empty list, never null.
    #[serde(default)]
    pub content: Option<Vec<Id>>,
    /// The tree of a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subtree: Option<Id>,
}

impl Node {
    /// A stream.
    pub fn stream(name: &str, time: jiff::Timestamp, size: u64, content: Vec<Id>) -> Self {
        let time = time.to_string();
        Self {
            name: name.to_owned(),
            kind: "file".to_owned(),
            mode: 0o400,
            mtime: time.clone(),
            atime: time.clone(),
            ctime: time,
            uid: 0,
            gid: 0,
            size,
            links: 1,
            content: Some(content),
            subtree: None,
        }
    }
}

impl Tree {
    /// The tree's blob: JSON and a line feed, as Go's encoder writes it.
    pub fn to_blob(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = serde_json::to_vec(self).map_err(Error::internal)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads a tree's blob.
    pub fn from_blob(id: &Id, bytes: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(bytes).map_err(|error| Error::damaged(format!("tree {id}"), error.to_string()))
    }
}

/// Refuses a stream name that is empty, longer than 200 bytes, begins with a dot, or has other characters than `A-Z a-z 0-9 . _ -`.
pub fn check_name(name: &str) -> Result<(), Error> {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || !plain {
        return Err(Error::Internal(format!("{name:?} cannot be the name of a stream")));
    }
    Ok(())
}
