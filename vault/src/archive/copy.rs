//! Copying a point into the archive: blob by blob, what is missing there.
//!
//! What was copied is read back before it is listed (`verify.rs`).
//!
//! Memory: two packs (one in the making, one on its way), [`READ_AHEAD`] pieces with their plaintexts, both indexes, and 64 bytes for each
//! blob of the point: about 200 MiB beside the indexes.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::blobs::{Needs, PIECE_MAX, Piece};
use super::verify::{Whole, verify};
use crate::blocking::{self, with_cancel};
use crate::commit;
use crate::error::Error;
use crate::id::Id;
use crate::meter::Meter;
use crate::points;
use crate::records::{self, ListedPack, PackList, PointEventKind};
use crate::repository::index::{Index, IndexFile, IndexPack};
use crate::repository::pack::{BlobKind, Builder, Finished, SealedBlob};
use crate::repository::{FileKind, Repository, pack_key};
use crate::store::{self, Put, Shared, Store, Tier};

/// Packs are closed before they pass this. Azure rehydrates few large blobs better than many small ones; restic reads up to 128 MiB.
const PACK_SIZE: usize = 64 << 20;
/// Pieces of the hot repository that are read before they are needed.
const READ_AHEAD: usize = 4;
/// Requests that set tiers at once.
const TIERING: usize = 16;

/// What a copy did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// The copy was complete before.
    pub existed: bool,
    /// Packs that were added to the archive.
    pub packs: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Blobs of the point that the archive had already.
    pub known_blobs: u64,
    /// Blobs that were copied.
    pub copied_blobs: u64,
}

/// Copies the point into the archive, and records that it is there. May be repeated after an error, a kill or a cancellation at any
/// instant: what was copied and indexed is not copied again. A copy that is complete is success and costs a few requests. The meter counts
/// sealed bytes read from the hot store, and bytes stored in the archive.
///
/// [`Error::PointNotFound`] when the vault has never known the point; [`Error::Damaged`] when a blob of the point cannot be read, here or,
/// after it was copied, there: the point does not appear in the archive then.
pub async fn copy_point(
    repository: &Arc<Repository>,
    snapshot_id: &Id,
    job_id: &str,
    meter: &Arc<Meter>,
    cancel: &CancellationToken,
) -> Result<Copied, Error> {
    let copy = async {
        let (hot, archive) = (repository.store(), super::store(repository.store())?);
        let place = FileKind::Snapshot.key(snapshot_id);
        let mut copied = Copied { existed: true, ..Copied::default() };
        if archive.head(&place).await?.is_none() {
            let sealed = hot.get(&place, None).await?;
            copied = copy_blobs(repository, &archive, snapshot_id, job_id, meter, cancel).await?;
            archive.put_if_absent(&place, sealed).await?;
        }
        if !points::read(&**hot, snapshot_id, cancel).await?.archived {
            let event = PointEventKind::Archived { job_id: job_id.to_owned() };
            points::append(&**hot, snapshot_id, event, cancel).await?;
        }
        Ok(copied)
    };
    with_cancel::<_, Error>(cancel, copy).await
}

/// Everything but the snapshot file and the event.
async fn copy_blobs(
    hot: &Arc<Repository>,
    store: &Shared,
    snapshot_id: &Id,
    job_id: &str,
    meter: &Arc<Meter>,
    cancel: &CancellationToken,
) -> Result<Copied, Error> {
    copy_config_and_keys(&**hot.store(), &**store).await?;
    let archive = Arc::new(hot.over(store.clone()));
    let snapshot = hot.snapshot(snapshot_id, cancel).await?;
    let (hot_index, index) =
        (hot.load_index(cancel).await?, archive.load_index_to_write(&HashSet::new(), cancel).await?);
    let mut needs = Needs::default();
    needs.add(hot, &hot_index, snapshot.tree).await?;

    let mut writer = Writer::new(archive.clone(), index, meter.clone());
    for (kind, ids) in [(BlobKind::Data, &needs.data), (BlobKind::Tree, &needs.trees)] {
        let missing: Vec<Id> = ids.iter().copied().filter(|id| writer.index.get(id).is_none()).collect();
        writer.copied.known_blobs += (ids.len() - missing.len()) as u64;
        writer.copied.copied_blobs += missing.len() as u64;
        let mut pieces = stream::iter(Piece::group(&hot_index, kind, &missing))
            .map(|piece| async move { piece?.read(hot, |sealed, _| sealed).await })
            .buffered(READ_AHEAD);
        while let Some(blobs) = pieces.next().await {
            for blob in blobs? {
                meter.add_read(blob.sealed.len() as u64);
                writer.add(blob).await?;
            }
        }
        writer.close_pack().await?;
    }
    writer.finish().await?;
    let copied = writer.copied;
    // Before the next index takes their place.
    drop((writer, hot_index, needs));

    let Whole { data, trees, there } = verify(&archive, snapshot.tree, cancel).await?;
    archive_packs(&**store, data.iter().filter(|id| there.get(id).is_some_and(|pack| pack.tier != Tier::Archive)))
        .await?;
    let packs = data.union(&trees).filter_map(|id| Some(ListedPack { id: *id, size: there.get(id)?.size })).collect();
    append_pack_list(&**store, snapshot_id, job_id, packs).await?;
    Ok(copied)
}

async fn copy_config_and_keys(hot: &dyn Store, archive: &dyn Store) -> Result<(), Error> {
    let mut keys = vec![crate::repository::config_key()];
    let mut entries = store::list(hot, FileKind::KeyFile.prefix());
    while let Some(entry) = entries.next().await {
        keys.push(entry?.key);
    }
    for key in keys {
        if archive.head(&key).await?.is_none() {
            archive.put_if_absent(&key, hot.get(&key, None).await?).await?;
        }
    }
    Ok(())
}

/// Packs of data blobs only: what an index or a tree tells must be readable at any time.
async fn archive_packs(store: &dyn Store, packs: impl Iterator<Item = &Id>) -> Result<(), Error> {
    let moves = packs.map(|id| async { store.set_tier(&pack_key(id), Tier::Archive).await.map_err(Error::from) });
    let moves: Vec<_> = moves.collect();
    stream::iter(moves).buffer_unordered(TIERING).try_collect().await
}

/// Names the packs that no earlier list names. A list for the snapshot that is there already is enough.
async fn append_pack_list(
    store: &dyn Store,
    snapshot_id: &Id,
    job_id: &str,
    mut packs: Vec<ListedPack>,
) -> Result<(), Error> {
    packs.sort_unstable_by_key(|pack| pack.id);
    loop {
        let lists = commit::read_pack_lists(store).await?;
        let listed: HashSet<Id> = lists.iter().flat_map(|(_, list)| list.packs.iter().map(|pack| pack.id)).collect();
        let new: Vec<ListedPack> = packs.iter().copied().filter(|pack| !listed.contains(&pack.id)).collect();
        if new.is_empty() && lists.iter().any(|(_, list)| list.snapshot_id == *snapshot_id) {
            return Ok(());
        }
        let list = PackList {
            version: records::VERSION,
            previous: lists.last().map(|(hash, _)| *hash),
            job_id: job_id.to_owned(),
            snapshot_id: *snapshot_id,
            packs: new,
            checkpoint: None,
        };
        let next = lists.len() as u64 + 1;
        if records::put(store, &records::numbered(records::PACK_LISTS, next), &list).await? == Put::Created {
            return Ok(());
        }
    }
}

/// Packs and indexes of the archive in the making.
struct Writer {
    archive: Arc<Repository>,
    index: Index,
    meter: Arc<Meter>,
    open_pack: Builder,
    /// One at most. Ends with the writer.
    upload: JoinSet<Result<Finished, Error>>,
    unindexed: Vec<IndexPack>,
    indexed: usize,
    copied: Copied,
}

impl Writer {
    fn new(archive: Arc<Repository>, index: Index, meter: Arc<Meter>) -> Self {
        Self {
            archive,
            index,
            meter,
            open_pack: Builder::new(BlobKind::Data),
            upload: JoinSet::new(),
            unindexed: Vec::new(),
            indexed: 0,
            copied: Copied::default(),
        }
    }

    async fn add(&mut self, blob: SealedBlob) -> Result<(), Error> {
        if self.open_pack.is_empty() {
            self.open_pack = Builder::new(blob.kind);
        } else if self.open_pack.len() + blob.sealed.len() > PACK_SIZE {
            self.close_pack().await?;
            self.open_pack = Builder::new(blob.kind);
        }
        // Trees are small: a pack of them does not need room for data.
        let capacity = if blob.kind == BlobKind::Data { PACK_SIZE } else { PIECE_MAX as usize };
        self.open_pack.add(&blob, capacity)
    }

    async fn close_pack(&mut self) -> Result<(), Error> {
        let pack = std::mem::replace(&mut self.open_pack, Builder::new(BlobKind::Data));
        if pack.is_empty() {
            return Ok(());
        }
        self.finish_upload().await?;
        let (archive, meter) = (self.archive.clone(), self.meter.clone());
        self.upload.spawn(async move {
            let key = archive.key().clone();
            let mut pack = blocking::run(move || pack.finish(&key)).await?;
            let bytes = Bytes::from(std::mem::take(&mut pack.bytes));
            let length = bytes.len() as u64;
            archive.store().put_if_absent(&pack_key(&pack.id), bytes).await?;
            meter.add_stored(length);
            Ok(pack)
        });
        Ok(())
    }

    async fn finish_upload(&mut self) -> Result<(), Error> {
        let Some(done) = self.upload.join_next().await else { return Ok(()) };
        let pack = done.map_err(Error::internal)??;
        let number = self.index.add_pack(pack.id, &pack.blobs)?;
        self.copied.packs += 1;
        self.copied.stored_bytes += self.index.pack(number).size;
        self.unindexed.push(IndexPack::new(pack.id, &pack.blobs));
        // As the writer of backups does it: a kill wastes an eighth of the work at most.
        if self.unindexed.len() >= (self.indexed / 8).clamp(1, 128) {
            self.put_index().await?;
        }
        Ok(())
    }

    async fn put_index(&mut self) -> Result<(), Error> {
        if self.unindexed.is_empty() {
            return Ok(());
        }
        let file = IndexFile { supersedes: Vec::new(), packs: std::mem::take(&mut self.unindexed) };
        self.archive.put_index(&file).await?;
        self.indexed += file.packs.len();
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Error> {
        self.close_pack().await?;
        self.finish_upload().await?;
        self.put_index().await
    }
}
