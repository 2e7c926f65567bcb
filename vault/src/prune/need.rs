//! What must be kept: the snapshots that a prune must see, and every blob below them.
//!
//! Snapshot files are listed before the points' logs are read: a point that is deleted between has its bytes in its log by then, and one
//! that is published between had its record there before. See the table in `prune.rs`.

use std::collections::HashSet;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use super::census::{Census, Need};
use crate::blocking;
use crate::error::Error;
use crate::id::Id;
use crate::meter::Meter;
use crate::points::{self, PointState};
use crate::repository::snapshot::Snapshot;
use crate::repository::tree::Tree;
use crate::repository::{FileKind, Repository};
use crate::store;

/// Trees and snapshots that are read at once.
const READS: usize = 8;
/// The largest tree that is opened; ours have some MiB at most.
const MAX_TREE: usize = 1 << 30;

/// The roots of what is needed, strongest need first.
#[derive(Debug)]
pub(super) struct Roots {
    trees: Vec<(Id, Need)>,
}

/// Reads the snapshots that count at `now`. Points that a purge at `now` would purge do not. `before`: see [`points::read_again`].
pub(super) async fn roots(
    repository: &Repository,
    now: jiff::Timestamp,
    before: Vec<PointState>,
    cancel: &CancellationToken,
) -> Result<(Roots, Vec<PointState>), Error> {
    let store = &**repository.store();
    let mut listed = HashSet::new();
    let mut entries = store::list(store, FileKind::Snapshot.prefix());
    while let Some(entry) = entries.next().await {
        if let Ok(id) = entry?.key.name().parse::<Id>() {
            listed.insert(id);
        }
    }
    drop(entries);
    let states = points::read_again(store, before, cancel).await?;
    let mut wanted: Vec<(Id, Need, Option<Bytes>)> = Vec::new();
    let mut seen = HashSet::new();
    for state in &states {
        let need = match listed.contains(&state.id) {
            true => Need::Listed,
            false if state.purged || state.abandoned || points::is_due(state, now) => continue,
            // The copy in the archive needs nothing of the hot store.
            false if state.removed_from_vault => continue,
            false if state.soft_deleted.is_some() => Need::SoftDeleted,
            false => Need::Unpublished,
        };
        let sealed = state.sealed_snapshot()?;
        if sealed.is_none() && need != Need::Listed {
            tracing::info!(point = %state.id, "a commit of an early version left a record and no point");
            continue;
        }
        seen.insert(state.id);
        wanted.push((state.id, need, sealed));
    }
    // A snapshot without a log is nobody's doing of ours, and counts all the same.
    wanted.extend(listed.difference(&seen).map(|id| (*id, Need::Listed, None)));
    let mut trees: Vec<(Id, Need)> = stream::iter(wanted)
        .map(|(id, need, sealed)| async move {
            let snapshot: Snapshot = match sealed {
                Some(sealed) => repository.open_snapshot(&id, sealed).await?,
                None => repository.snapshot(&id, cancel).await?,
            };
            Ok::<_, Error>((snapshot.tree, need))
        })
        .buffered(READS)
        .try_collect()
        .await?;
    trees.sort_by_key(|(_, need)| *need);
    Ok((Roots { trees }, states))
}

/// Walks every tree once and notes its blobs. A tree that cannot be read ends the prune: what lies below it cannot be known.
pub(super) async fn walk(
    repository: &Repository,
    census: &mut Census,
    roots: Roots,
    meter: &Meter,
) -> Result<(), Error> {
    let mut visited: HashSet<Id> = HashSet::new();
    for need in [Need::Listed, Need::SoftDeleted, Need::Unpublished] {
        let mut level: Vec<Id> = roots.trees.iter().filter(|(_, root)| *root == need).map(|(tree, _)| *tree).collect();
        while !level.is_empty() {
            level.retain(|id| visited.insert(*id));
            for id in &level {
                census.need(id, need);
            }
            let mut below = Vec::new();
            // A few at a time: the census is changed between, and trees are large.
            for some in level.chunks(READS) {
                let found = {
                    let census = &*census;
                    stream::iter(some.to_vec())
                        .map(|id| read_tree(repository, census, id, meter))
                        .buffered(READS)
                        .try_collect::<Vec<Tree>>()
                        .await?
                };
                for node in found.into_iter().flat_map(|tree| tree.nodes) {
                    for id in node.content.iter().flatten() {
                        census.need(id, need);
                    }
                    below.extend(node.subtree);
                }
            }
            level = below;
        }
    }
    Ok(())
}

async fn read_tree(repository: &Repository, census: &Census, id: Id, meter: &Meter) -> Result<Tree, Error> {
    let mut failure = Error::damaged(format!("tree {id}"), "no index names it");
    for place in census.tree_places(&id) {
        let pack = census.packs[place.pack as usize].id;
        let range = u64::from(place.offset)..u64::from(place.offset) + u64::from(place.length);
        let damaged = move |detail: String| Error::damaged(format!("tree {id} in pack {pack}"), detail);
        let sealed = match repository.pack_range(&pack, range).await {
            // Another pack may have it.
            Err(Error::Damaged { detail, .. }) => {
                failure = damaged(detail);
                continue;
            }
            other => other?,
        };
        meter.add_read(sealed.len() as u64);
        let key = repository.key().clone();
        let opened = blocking::run(move || {
            let opened = key.open(&sealed).map_err(|error| damaged(error.to_string()))?;
            let plain = match place.raw_length {
                None => opened,
                Some(raw_length) if raw_length as usize > MAX_TREE => {
                    return Err(damaged("it is too large".to_owned()));
                }
                Some(raw_length) => {
                    blocking::decompress(&opened, raw_length as usize).map_err(|error| damaged(error.to_string()))?
                }
            };
            if Id::of(&plain) != id {
                return Err(damaged("its bytes are not those that its id stands for".to_owned()));
            }
            Tree::from_blob(&id, &plain)
        });
        match opened.await {
            Err(error @ Error::Damaged { .. }) => failure = error,
            other => return other,
        }
    }
    Err(failure)
}
