//! Trees: the directories of a snapshot, as restic writes them.
//!
//! ```text
//! /database.dump                    a stream: one file
//! /disk0.raw.parts/                 a stream that is longer than a part
//!                  00000/part       each part is a file in a directory of its own, of one size but the last
//!                  00001/part
//! ```
//! Invariants:
//! - A tree stays small whatever the stream's length: a part has some ten thousand chunks at most, and stands in its parent as one line.
//!   A part that has not changed is the same tree, and costs that line.
//! - The directories of a stream in parts say the bytes below them as their `size`, so a range is found without reading every part.
//! - Stream names are limited to `A-Z a-z 0-9 . _ -` ([`check_name`]), so quoting them as Go does changes nothing, and never end in
//!   [`PARTS_SUFFIX`].

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::id::Id;

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// In ascending order of their names.
    pub nodes: Vec<Node>,
}

/// What the directory of a stream in parts has after the stream's name.
pub const PARTS_SUFFIX: &str = ".parts";
/// The file in the directory of each part.
pub const PART_FILE: &str = "part";
/// Digits of a part's number, which is the name of its directory.
const PART_DIGITS: usize = 5;

/// A stream, as the root tree tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream<'a> {
    /// Its name, without [`PARTS_SUFFIX`].
    pub name: &'a str,
    /// Its bytes.
    pub size: u64,
    /// Where its chunks stand.
    pub body: Body<'a>,
}

/// Where the chunks of a stream stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// Here, in order.
    Chunks(&'a [Id]),
    /// In parts: this tree's [`Tree::parts`] tells them.
    Parts(Id),
}

/// A part of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Where it begins in the stream.
    pub start: u64,
    /// Its bytes.
    pub size: u64,
    /// The tree whose [`Tree::part_chunks`] tells its chunks.
    pub tree: Id,
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
    /// Bytes of the stream, or of the part; of a directory, those below it.
    #[serde(default)]
    pub size: u64,
    /// 1, as for any file with one name.
    #[serde(default)]
    pub links: u64,
    /// The chunks of a file, in order. An empty file has an empty list, never null; a directory has none.
    #[serde(default)]
    pub content: Option<Vec<Id>>,
    /// The tree of a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subtree: Option<Id>,
}

impl Node {
    /// A stream, or a part of one.
    pub fn file(name: &str, time: jiff::Timestamp, size: u64, content: Vec<Id>) -> Self {
        Self { content: Some(content), links: 1, ..Self::plain(name, "file", 0o400, time, size) }
    }

    /// A directory with `size` bytes of a stream below it.
    pub fn directory(name: &str, time: jiff::Timestamp, size: u64, subtree: Id) -> Self {
        Self { subtree: Some(subtree), ..Self::plain(name, "dir", GO_DIRECTORY | 0o500, time, size) }
    }

    fn plain(name: &str, kind: &str, mode: u32, time: jiff::Timestamp, size: u64) -> Self {
        let time = time.to_string();
        Self {
            name: name.to_owned(),
            kind: kind.to_owned(),
            mode,
            mtime: time.clone(),
            atime: time.clone(),
            ctime: time,
            uid: 0,
            gid: 0,
            size,
            links: 0,
            content: None,
            subtree: None,
        }
    }

    fn stream(&self) -> Option<Stream<'_>> {
        match (self.kind.as_str(), self.subtree) {
            ("file", _) => {
                let body = Body::Chunks(self.content.as_deref().unwrap_or(&[]));
                Some(Stream { name: &self.name, size: self.size, body })
            }
            ("dir", Some(tree)) => {
                let name = self.name.strip_suffix(PARTS_SUFFIX)?;
                Some(Stream { name, size: self.size, body: Body::Parts(tree) })
            }
            _ => None,
        }
    }
}

/// The name of the directory of part `number`, counted from 0.
pub fn part_name(number: usize) -> String {
    format!("{number:0PART_DIGITS$}")
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

    /// The streams of a root tree, in the order of their nodes. What is neither a stream nor one in parts is passed over.
    pub fn streams(&self) -> impl Iterator<Item = Stream<'_>> {
        self.nodes.iter().filter_map(Node::stream)
    }

    /// The parts of a stream, in order, from the tree `id` that [`Body::Parts`] names. A part that is missing is damage.
    pub fn parts(&self, id: &Id) -> Result<Vec<Part>, Error> {
        let mut start = 0_u64;
        let parts = self.nodes.iter().enumerate().map(|(number, node)| {
            let tree = node.subtree.filter(|_| node.kind == "dir" && node.name == part_name(number));
            let tree =
                tree.ok_or_else(|| Error::damaged(format!("tree {id}"), format!("part {number} is not in it")))?;
            let part = Part { start, size: node.size, tree };
            start =
                start.checked_add(node.size).ok_or_else(|| Error::damaged(format!("tree {id}"), "it is too long"))?;
            Ok(part)
        });
        parts.collect()
    }

    /// The chunks of a part, in order, from the tree `id` of that part.
    pub fn part_chunks(&self, id: &Id) -> Result<&[Id], Error> {
        match self.nodes.as_slice() {
            [node] if node.kind == "file" && node.name == PART_FILE => Ok(node.content.as_deref().unwrap_or(&[])),
            _ => Err(Error::damaged(format!("tree {id}"), "it is not the tree of a part")),
        }
    }
}

/// `os.ModeDir` of Go, which restic keeps in the mode.
const GO_DIRECTORY: u32 = 1 << 31;

/// Refuses a stream name that is empty, longer than 200 bytes, begins with a dot, ends in [`PARTS_SUFFIX`], or has other characters than
/// `A-Z a-z 0-9 . _ -`.
pub fn check_name(name: &str) -> Result<(), Error> {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || name.ends_with(PARTS_SUFFIX) || !plain {
        return Err(Error::Internal(format!("{name:?} cannot be the name of a stream")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_whole_and_in_parts_are_told_apart_and_a_missing_part_is_damage() {
        let time = jiff::Timestamp::UNIX_EPOCH;
        let (a, b, c) = (Id::of(b"a"), Id::of(b"b"), Id::of(b"c"));
        let root = Tree {
            nodes: vec![
                Node::directory("disk.raw.parts", time, 25, c),
                Node::directory("other", time, 0, c),
                Node::file("whole", time, 3, vec![a]),
            ],
        };
        let root = Tree::from_blob(&c, &root.to_blob().expect("JSON")).expect("read back");
        let streams: Vec<Stream<'_>> = root.streams().collect();
        assert_eq!(streams[0], Stream { name: "disk.raw", size: 25, body: Body::Parts(c) });
        assert_eq!(streams[1], Stream { name: "whole", size: 3, body: Body::Chunks(&[a]) });
        assert_eq!(streams.len(), 2);
        let mut parts = Tree {
            nodes: (0..3).map(|n| Node::directory(&part_name(n), time, [10, 10, 5][n], [a, b, c][n])).collect(),
        };
        assert_eq!(parts.parts(&c).expect("parts")[2], Part { start: 20, size: 5, tree: c });
        parts.nodes.remove(1);
        assert!(matches!(parts.parts(&c), Err(Error::Damaged { .. })));
        let part = Tree { nodes: vec![Node::file(PART_FILE, time, 10, vec![b])] };
        assert_eq!(part.part_chunks(&a).expect("chunks"), [b]);
        assert!(root.part_chunks(&c).is_err());
    }

    #[test]
    fn names_that_would_be_taken_for_parts_are_refused() {
        for name in ["", ".x", "a/b", "x.parts", &"x".repeat(201)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        for name in ["x", "x.parts.raw", "parts", "database.dump"] {
            check_name(name).expect(name);
        }
    }
}
