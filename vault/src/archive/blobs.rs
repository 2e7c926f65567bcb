//! What a snapshot needs, and reading blobs with their seals still on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::StreamExt as _;

use crate::blocking;
use crate::error::Error;
use crate::hash;
use crate::id::Id;
use crate::repository::crypto::SealKey;
use crate::repository::index::{Index, Place};
use crate::repository::pack::{BlobKind, SealedBlob};
use crate::repository::tree::Tree;
use crate::repository::{PACKS, Repository};
use crate::store::{self, Entry, Store};

/// Sealed bytes that are read in one piece at most.
pub(crate) const PIECE_MAX: u32 = 4 << 20;
/// The largest blob that is taken for one; a claim of more is damage, and would cost memory.
const MAX_BLOB: u32 = 64 << 20;

/// Every blob of some snapshots, each once, in the order in which a restore reads them. Memory: 32 bytes each and as much again for the set.
#[derive(Debug, Default)]
pub(crate) struct Needs {
    pub(crate) trees: Vec<Id>,
    pub(crate) data: Vec<Id>,
    seen: HashSet<Id>,
}

impl Needs {
    /// Adds what the tree and everything below it need. The trees are read and checked.
    pub(crate) async fn add(&mut self, repository: &Repository, index: &Index, root: Id) -> Result<(), Error> {
        let mut waiting = vec![root];
        while let Some(id) = waiting.pop() {
            if !self.seen.insert(id) {
                continue;
            }
            self.trees.push(id);
            let piece = Piece::of(index, BlobKind::Tree, id)?;
            let plain = piece.read(repository, |_, plain| plain).await?;
            let tree = Tree::from_blob(&id, &plain.concat())?;
            for node in tree.nodes {
                for id in node.content.into_iter().flatten() {
                    if self.seen.insert(id) {
                        self.data.push(id);
                    }
                }
                waiting.extend(node.subtree);
            }
        }
        Ok(())
    }
}

/// Blobs that lie side by side in one pack.
#[derive(Debug)]
pub(crate) struct Piece {
    pack: Id,
    start: u32,
    end: u32,
    kind: BlobKind,
    blobs: Vec<(Id, Place)>,
}

impl Piece {
    fn of(index: &Index, kind: BlobKind, id: Id) -> Result<Self, Error> {
        let place = index.find(&id)?;
        let (pack, start, end) = (index.pack(place.pack).id, place.offset, place.offset.saturating_add(place.length));
        Ok(Self { pack, start, end, kind, blobs: vec![(id, place)] })
    }

    /// Groups blobs, in their order, into pieces of [`PIECE_MAX`] bytes (or one larger blob).
    pub(crate) fn group(index: &Index, kind: BlobKind, ids: &[Id]) -> impl Iterator<Item = Result<Self, Error>> {
        let mut ids = ids.iter().copied().peekable();
        std::iter::from_fn(move || {
            let mut piece = match Self::of(index, kind, ids.next()?) {
                Ok(piece) => piece,
                Err(error) => return Some(Err(error)),
            };
            while let Some(next) = ids.peek().and_then(|id| Self::of(index, kind, *id).ok()) {
                if next.pack != piece.pack || next.start != piece.end || next.end - piece.start > PIECE_MAX {
                    break;
                }
                piece.end = next.end;
                piece.blobs.extend(next.blobs);
                ids.next();
            }
            Some(Ok(piece))
        })
    }

    /// Reads the piece, opens each blob and compares its hash; `keep` gets its sealed form and its plaintext.
    pub(crate) async fn read<T: Send + 'static>(
        self,
        repository: &Repository,
        keep: impl Fn(SealedBlob, Vec<u8>) -> T + Send + 'static,
    ) -> Result<Vec<T>, Error> {
        let what = format!("pack {}", self.pack);
        let range = u64::from(self.start)..u64::from(self.end);
        let bytes = repository.pack_range(&self.pack, range).await?;
        let key = Arc::clone(repository.key());
        blocking::run(move || {
            let damaged = |id: &Id, detail: String| Error::damaged(&what, format!("blob {id}: {detail}"));
            let mut kept = Vec::with_capacity(self.blobs.len());
            // Two plaintexts in memory at a time: they are hashed side by side.
            for blobs in self.blobs.chunks(2) {
                let mut opened = Vec::with_capacity(2);
                for (id, place) in blobs {
                    let at = (place.offset - self.start) as usize;
                    let sealed = bytes.get(at..at + place.length as usize);
                    let sealed = sealed.ok_or_else(|| damaged(id, "it is cut off".to_owned()))?.to_vec();
                    let plain = open(&key, &sealed, place).map_err(|detail| damaged(id, detail))?;
                    let blob = SealedBlob { id: *id, kind: self.kind, sealed, raw_length: place.raw_length() };
                    opened.push((blob, plain));
                }
                let plain: Vec<&[u8]> = opened.iter().map(|(_, plain)| &plain[..]).collect();
                for ((id, _), hash) in blobs.iter().zip(hash::each(&plain)) {
                    if hash != *id {
                        return Err(damaged(id, "its bytes are not those that its id stands for".to_owned()));
                    }
                }
                kept.extend(opened.into_iter().map(|(blob, plain)| keep(blob, plain)));
            }
            Ok(kept)
        })
        .await
    }
}

/// The blob's plaintext, not hashed. The error is what is wrong with it.
fn open(key: &SealKey, sealed: &[u8], place: &Place) -> Result<Vec<u8>, String> {
    let opened = key.open(sealed).map_err(|error| error.to_string())?;
    match place.raw_length() {
        None => Ok(opened),
        Some(length) if length > MAX_BLOB => Err("it is too large".to_owned()),
        Some(length) => blocking::decompress(&opened, length as usize).map_err(|error| error.to_string()),
    }
}

/// Every pack below `prefix` with what the store tells of it. Memory: 200 bytes or so each.
pub(crate) async fn list(store: &dyn Store, prefix: &str) -> Result<HashMap<Id, Entry>, Error> {
    let mut packs = HashMap::new();
    let mut entries = store::list(store, prefix);
    while let Some(entry) = entries.next().await {
        let entry = entry?;
        if let Ok(id) = entry.key.name().parse() {
            packs.insert(id, entry);
        }
    }
    Ok(packs)
}

/// The packs of the archive.
pub(crate) async fn list_packs(store: &dyn Store) -> Result<HashMap<Id, Entry>, Error> {
    list(store, PACKS).await
}

/// The packs that hold these blobs.
pub(crate) fn packs_of(index: &Index, ids: &[Id]) -> Result<HashSet<Id>, Error> {
    ids.iter().map(|id| Ok(index.pack(index.find(id)?.pack).id)).collect()
}
