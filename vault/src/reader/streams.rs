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

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::reader::PointReader;
    use crate::repository::index::{IndexFile, IndexPack};
    use crate::repository::pack::{BlobKind, Builder, SealedBlob};
    use crate::repository::snapshot::Snapshot;
    use crate::repository::tree::{PART_FILE, part_name};
    use crate::repository::{FileKind, pack_key};
    use crate::store::{self, memory::Memory};

    /// Stores a blob in a pack of its own.
    async fn store_blob(repository: &Repository, kind: BlobKind, plain: &[u8]) -> Id {
        let id = Id::of(plain);
        let mut builder = Builder::new(kind);
        let sealed = repository.key().seal(plain).expect("seal");
        builder.add(&SealedBlob { id, kind, sealed, raw_length: None }, 0).expect("fits");
        let pack = builder.finish(repository.key()).expect("finish");
        repository.store().put_if_absent(&pack_key(&pack.id), pack.bytes.into()).await.expect("put");
        let packs = vec![IndexPack::new(pack.id, &pack.blobs)];
        repository.put_index(&IndexFile { supersedes: Vec::new(), packs }).await.expect("put");
        id
    }

    #[tokio::test]
    async fn a_stream_in_parts_is_one_stream_and_its_ranges_are_those_of_its_bytes() {
        let (cancel, time) = (CancellationToken::new(), jiff::Timestamp::UNIX_EPOCH);
        let store: store::Shared = Arc::new(Memory::new("m"));
        let repository = Repository::init(store, &"x".to_owned().into(), &cancel).await.expect("init");
        let chunks: [&[u8]; 4] = [b"0123456789", b"abcdefghij", b"ABCDEF", b"whole"];
        let mut ids = Vec::new();
        for chunk in chunks {
            ids.push(store_blob(&repository, BlobKind::Data, chunk).await);
        }
        let mut parts = Tree { nodes: Vec::new() };
        // A hole: the same chunk several times.
        for (number, content) in [vec![ids[0], ids[0], ids[0]], vec![ids[1], ids[2]]].into_iter().enumerate() {
            let size = [30, 16][number];
            let part = Tree { nodes: vec![Node::file(PART_FILE, time, size, content)] };
            let tree = store_blob(&repository, BlobKind::Tree, &part.to_blob().expect("JSON")).await;
            parts.nodes.push(Node::directory(&part_name(number), time, size, tree));
        }
        let parts = store_blob(&repository, BlobKind::Tree, &parts.to_blob().expect("JSON")).await;
        let nodes = vec![
            Node::file("disk", time, 5, vec![ids[3]]),
            Node::directory("disk.parts", time, 46, parts),
            Node::directory("other.parts", time, 46, parts),
        ];
        let root = store_blob(&repository, BlobKind::Tree, &Tree { nodes }.to_blob().expect("JSON")).await;
        let snapshot = Snapshot {
            time: time.to_string(),
            tree: root,
            paths: Vec::new(),
            hostname: String::new(),
            username: String::new(),
            tags: Vec::new(),
            program_version: String::new(),
        };
        let (id, sealed) = repository.seal_json(&snapshot).expect("seal");
        repository.store().put_if_absent(&FileKind::Snapshot.key(&id), sealed.into()).await.expect("put");
        let point = PointReader::open(Arc::new(repository), id, &cancel).await.expect("open");
        let names: Vec<(&str, u64)> = point.streams().iter().map(|info| (info.name.as_str(), info.size)).collect();
        assert_eq!(names, [("disk", 5), ("disk", 46), ("other", 46)]);
        let whole = b"012345678901234567890123456789abcdefghijABCDEF";
        let mut copied = Vec::new();
        point.copy_stream("other", &mut copied, &crate::meter::Meter::default(), &cancel).await.expect("copied");
        assert_eq!(copied, whole);
        use futures::TryStreamExt as _;
        for start in 0..=whole.len() {
            for end in start..=whole.len() {
                let pieces = point.range("other", start as u64..end as u64, &cancel).expect("within");
                let pieces: Vec<bytes::Bytes> = pieces.try_collect().await.expect("read");
                assert_eq!(pieces.concat(), whole[start..end], "{start}..{end}");
            }
        }
        assert!(point.range("other", 5..47, &cancel).is_err());
        assert!(point.range("none", 0..0, &cancel).is_err());
    }
}
