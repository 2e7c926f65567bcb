//! The streams of a point, out of its trees.
//!
//! A file of the root is a stream. A directory `<stream>.parts` is one stream too: the files below it, in the order of their names, joined.
//! Files in other directories are streams named by their path. Every tree is read once, its hash checked.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::Semaphore;

use super::decode::{self, Pool};
use super::ranges::Range;
use crate::error::Error;
use crate::id::Id;
use crate::repository::Repository;
use crate::repository::index::Index;
use crate::repository::tree::{Node, Tree};

/// Ends the name of a directory whose files are the parts of one stream.
const PARTS_SUFFIX: &str = ".parts";
/// Directories in directories: ours have two levels. More is damage, or a point of another program.
const MAX_DEPTH: usize = 8;

/// A stream of a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub size: u64,
}

/// A stream and its blobs.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) info: StreamInfo,
    /// Of each part, in order.
    pub(crate) content: Vec<Vec<Id>>,
}

impl Stream {
    /// Every blob, in order.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = Id> + Send + '_ {
        self.content.iter().flatten().copied()
    }
}

/// A tree's record.
pub(crate) async fn read_tree(repository: &Arc<Repository>, index: &Index, id: &Id) -> Result<Tree, Error> {
    let range = Range::new(index, *id, index.find(id)?);
    let (pool, workers) = (Arc::new(Pool::default()), Arc::new(Semaphore::new(1)));
    let pieces = decode::read(repository.clone(), range, pool, workers).await?;
    Tree::from_blob(id, &pieces.concat())
}

/// The streams below the root, by name.
pub(crate) async fn read(repository: &Arc<Repository>, index: &Index, root: &Id) -> Result<Vec<Stream>, Error> {
    let mut files = Vec::new();
    collect(repository, index, *root, String::new(), 0, &mut files).await?;
    let (mut streams, mut last_dir): (Vec<Stream>, Option<String>) = (Vec::new(), None);
    for (path, node) in files {
        let dir = path.split_once('/').map(|(dir, _)| dir.to_owned()).filter(|dir| dir.ends_with(PARTS_SUFFIX));
        let content = node.content.unwrap_or_default();
        match streams.last_mut() {
            Some(stream) if dir.is_some() && dir == last_dir => {
                let size = stream.info.size.checked_add(node.size);
                stream.info.size = size.ok_or_else(|| {
                    Error::damaged(format!("the stream {}", stream.info.name), "it is larger than any stream can be")
                })?;
                stream.content.push(content);
            }
            _ => {
                let name = dir.as_deref().and_then(|dir| dir.strip_suffix(PARTS_SUFFIX)).map_or(path, str::to_owned);
                streams.push(Stream { info: StreamInfo { name, size: node.size }, content: vec![content] });
            }
        }
        last_dir = dir;
    }
    Ok(streams)
}

/// Every file below the tree with its path, in order.
fn collect<'a>(
    repository: &'a Arc<Repository>,
    index: &'a Index,
    id: Id,
    path: String,
    depth: usize,
    files: &'a mut Vec<(String, Node)>,
) -> BoxFuture<'a, Result<(), Error>> {
    async move {
        if depth > MAX_DEPTH {
            return Err(Error::damaged(format!("tree {id}"), "it is one directory too deep"));
        }
        let tree = read_tree(repository, index, &id).await?;
        for node in tree.nodes {
            let name = if path.is_empty() { node.name.clone() } else { format!("{path}/{}", node.name) };
            match (node.kind.as_str(), node.subtree) {
                ("file", _) => files.push((name, node)),
                ("dir", Some(subtree)) => collect(repository, index, subtree, name, depth + 1, files).await?,
                _ => {}
            }
        }
        Ok(())
    }
    .boxed()
}
