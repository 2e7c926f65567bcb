//! Is a copy in the archive whole? Asked before the copy is listed there, and again before the vault store lets its own go.
//!
//! Invariants:
//! - Nothing that a copier remembers counts: index, trees and sizes are read anew from the archive.
//! - A pack that no list of the archive names yet is read back, every blob of the point in it: opened, unpacked, hashed. One that is listed
//!   was read back when it came; that it is there in its size is enough. Bytes that change later are what checks look for.
//! - Packs go to the Archive tier after this, because nothing in it can be read for hours. One that is there and in no list was verified by
//!   a copy that was killed behind this step.

use std::collections::{HashMap, HashSet};

use futures::{StreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use super::blobs::{self, Needs, Piece};
use crate::blocking::with_cancel;
use crate::commit;
use crate::error::Error;
use crate::id::Id;
use crate::repository::Repository;
use crate::repository::pack::BlobKind;
use crate::store::{Entry, Tier};

/// Pieces of a few MiB that are read before they are needed.
const READ_AHEAD: usize = 4;

/// What a point that is whole in the archive stands on.
#[derive(Debug)]
pub(super) struct Whole {
    /// Packs of its data blobs.
    pub(super) data: HashSet<Id>,
    /// Packs of its trees.
    pub(super) trees: HashSet<Id>,
    /// Every pack of the archive.
    pub(super) there: HashMap<Id, Entry>,
}

/// Looks for everything below the tree. [`Error::Damaged`] names what is missing or is not what was written. Changes nothing.
pub(super) async fn verify(archive: &Repository, tree: Id, cancel: &CancellationToken) -> Result<Whole, Error> {
    match with_cancel(cancel, verify_now(archive, tree, cancel)).await {
        // The hot store may have a pack of the same trouble: people must know which one it is.
        Err(Error::Damaged { what, detail }) => Err(Error::damaged(format!("{what} in the archive store"), detail)),
        other => other,
    }
}

async fn verify_now(archive: &Repository, tree: Id, cancel: &CancellationToken) -> Result<Whole, Error> {
    let store = &**archive.store();
    // It names only packs that are there in their size: a blob that it has is in one of them.
    let index = archive.load_index(cancel).await?;
    let mut needs = Needs::default();
    needs.add(archive, &index, tree).await?;
    let (data, trees) = (blobs::packs_of(&index, &needs.data)?, blobs::packs_of(&index, &needs.trees)?);
    let there = blobs::list_packs(store).await?;
    let lists = commit::read_pack_lists(store).await?;
    let listed: HashSet<Id> = lists.iter().flat_map(|(_, list)| list.packs.iter().map(|pack| pack.id)).collect();
    let is_new = |id: &Id| !listed.contains(id) && there.get(id).is_some_and(|pack| pack.tier != Tier::Archive);
    let new: HashSet<Id> = data.iter().copied().filter(is_new).collect();
    let in_new = |id: &Id| index.get(id).is_some_and(|place| new.contains(&index.pack_id(place.pack)));
    let unread: Vec<Id> = needs.data.iter().copied().filter(in_new).collect();
    let mut pieces = stream::iter(Piece::group(&index, BlobKind::Data, &unread))
        .map(|piece| async move { piece?.read(archive, |_, _| ()).await })
        .buffered(READ_AHEAD);
    while let Some(read) = pieces.next().await {
        read?;
    }
    drop(pieces);
    Ok(Whole { data, trees, there })
}
