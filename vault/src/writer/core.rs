//! What streams, packer and uploads of one backup share.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::buffers::{Buffer, Buffers, PIECE};
use super::encode::{Encoded, Encoder};
use super::throttle::Throttle;
use super::{Options, PACK_SIZE, chunker};
use crate::error::Error;
use crate::id::Id;
use crate::meter::Meter;
use crate::reader::ranges::raw_length;
use crate::repository::Repository;
use crate::repository::index::{Index, IndexFile, IndexPack};
use crate::repository::pack::Finished;

/// Blobs of one index file at most, of which each is 200 bytes of JSON: writing and reading one takes little memory.
const INDEX_BLOBS: usize = 20_000;
/// Unit of the chunks' share of the memory, as semaphores count in u32.
const UNIT: usize = 1 << 10;
/// What a chunk in the making needs.
pub(super) const CHUNK_ROOM: usize = chunker::MAX + PIECE;

/// What is known of a blob that a stream has met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Met {
    /// It is stored, or on its way.
    Known,
    /// It is not, and whoever asked stores it.
    New,
}

#[derive(Debug)]
struct Known {
    index: Index,
    /// New blobs whose pack is not stored yet.
    claimed: HashSet<Id>,
    /// Packs that the backup needs, by number: those with a blob that it has met, and those that it has stored.
    needed: HashSet<u32>,
}

#[derive(Debug, Default)]
struct Unindexed {
    packs: Vec<IndexPack>,
    blobs: usize,
    /// Packs that an index file of this backup names.
    indexed: usize,
}

/// The first failure behind the streams' backs.
#[derive(Debug, Default)]
pub(super) struct Failure {
    seen: CancellationToken,
    error: Mutex<Option<Error>>,
}

impl Failure {
    pub(super) fn set(&self, error: Error) {
        if !self.seen.is_cancelled() {
            *lock(&self.error) = Some(error);
        }
        self.seen.cancel();
    }

    /// Waits for a failure.
    pub(super) async fn wait(&self) {
        self.seen.cancelled().await;
    }

    /// The failure; who asks second hears only that there was one.
    pub(super) fn check(&self) -> Result<(), Error> {
        if !self.seen.is_cancelled() {
            return Ok(());
        }
        let error = lock(&self.error).take();
        Err(error.unwrap_or_else(|| Error::Internal("another stream of the backup has failed".to_owned())))
    }
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) repository: Arc<Repository>,
    pub(super) meter: Arc<Meter>,
    pub(super) buffers: Buffers,
    pub(super) failure: Failure,
    /// A permit for each pack in memory.
    pub(super) slots: Arc<Semaphore>,
    encoder: Encoder,
    throttle: Option<Throttle>,
    /// [`UNIT`]s of chunks.
    chunks: Arc<Semaphore>,
    /// One for each processor.
    workers: Arc<Semaphore>,
    known: Mutex<Known>,
    unindexed: Mutex<Unindexed>,
}

impl Core {
    pub(super) fn new(repository: Arc<Repository>, options: &Options, meter: Arc<Meter>, index: Index) -> Self {
        let (packs, chunks) = options.shares();
        let workers = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            repository,
            meter,
            buffers: Buffers::default(),
            failure: Failure::default(),
            slots: Arc::new(Semaphore::new(packs)),
            encoder: Encoder::new(options.compression),
            throttle: options.upload_bytes_per_s.map(Throttle::new),
            chunks: Arc::new(Semaphore::new((chunks / UNIT).min(u32::MAX as usize))),
            workers: Arc::new(Semaphore::new(workers)),
            known: Mutex::new(Known { index, claimed: HashSet::new(), needed: HashSet::new() }),
            unindexed: Mutex::default(),
        }
    }

    /// Waits for room for `length` bytes of a chunk.
    pub(super) async fn room(&self, length: usize) -> Result<Room, Error> {
        let units = u32::try_from(length.div_ceil(UNIT)).map_err(Error::internal)?;
        self.chunks.clone().acquire_many_owned(units).await.map(Room).map_err(Error::internal)
    }

    /// Says whether the blob must be stored, and keeps others from storing it too.
    pub(super) fn meet(&self, id: &Id) -> Met {
        let known = &mut *lock(&self.known);
        if let Some(number) = known.index.number(id) {
            known.needed.insert(known.index.pack_of(number));
            return Met::Known;
        }
        if known.claimed.insert(*id) { Met::New } else { Met::Known }
    }

    /// Bytes of a chunk that is in a pack which may be used again; `None`: it would have to be stored.
    pub(super) fn known(&self, id: &Id) -> Option<u64> {
        lock(&self.known).index.get(id).map(|place| raw_length(&place) as u64)
    }

    /// The same of a chunk that the backup needs from now on.
    pub(super) fn reuse(&self, id: &Id) -> Option<u64> {
        let known = &mut *lock(&self.known);
        let place = known.index.get(id)?;
        known.needed.insert(place.pack);
        Some(raw_length(&place) as u64)
    }

    /// Compresses and seals a blob where it may take its time. `room` is given back when the blob is dropped.
    pub(super) async fn encode(self: Arc<Self>, id: Id, plain: Buffer, room: Room) -> Result<(Encoded, Room), Error> {
        let worker = self.workers.clone().acquire_owned().await.map_err(Error::internal)?;
        crate::blocking::run(move || {
            let encoded = self.encoder.encode(id, plain, self.repository.key(), &self.buffers)?;
            drop(worker);
            Ok((encoded, room))
        })
        .await
    }

    /// Hashes and stores a pack, and then an index file if enough packs wait for one.
    pub(super) async fn store(&self, pack: Finished) -> Result<Finished, Error> {
        let Finished { id, bytes, blobs } = pack;
        let bytes = bytes::Bytes::from(bytes);
        let length = bytes.len() as u64;
        if let Some(throttle) = &self.throttle {
            throttle.pass(length).await;
        }
        let key = crate::repository::pack_key(&id);
        self.repository.store().put_if_absent(&key, bytes.clone()).await?;
        self.meter.add_stored(length);
        // The buffer comes back if the store did not keep it.
        let bytes = if bytes.is_unique() { bytes.into() } else { Vec::new() };
        let pack = Finished { id, bytes, blobs };
        self.note_stored(&pack)?;
        Ok(pack)
    }

    fn note_stored(&self, pack: &Finished) -> Result<(), Error> {
        let known = &mut *lock(&self.known);
        let number = known.index.add_pack(pack.id, &pack.blobs)?;
        known.needed.insert(number);
        for blob in &pack.blobs {
            known.claimed.remove(&blob.id);
        }
        let mut unindexed = lock(&self.unindexed);
        unindexed.blobs += pack.blobs.len();
        unindexed.packs.push(IndexPack::new(pack.id, &pack.blobs));
        Ok(())
    }

    /// Writes an index file when enough packs wait for one, or for all that wait. The number that is enough grows with the backup, so
    /// that a long one leaves tens of index files, not thousands, and a kill still wastes an eighth of the work at most.
    pub(super) async fn index_stored(&self, all: bool) -> Result<(), Error> {
        let packs = {
            let mut unindexed = lock(&self.unindexed);
            let enough = if all { 1 } else { (unindexed.indexed / 8).clamp(2, 512) };
            let waiting = unindexed.packs.len();
            if waiting == 0 || (waiting < enough && unindexed.blobs < INDEX_BLOBS) {
                return Ok(());
            }
            unindexed.indexed += waiting;
            unindexed.blobs = 0;
            std::mem::take(&mut unindexed.packs)
        };
        self.repository.put_index(&IndexFile { supersedes: Vec::new(), packs }).await?;
        Ok(())
    }

    /// Every pack that the backup needs, with its size; ascending. Right when every blob that was met is stored.
    pub(super) fn needed_packs(&self) -> Vec<(Id, u64)> {
        let known = lock(&self.known);
        let packs = known.needed.iter().map(|number| known.index.pack(*number));
        let mut packs: Vec<(Id, u64)> = packs.map(|pack| (pack.id, pack.size)).collect();
        packs.sort_unstable();
        packs
    }
}

impl Options {
    /// Packs, and bytes of chunks, that may be in memory. Three quarters go to packs: one that is filled, one at least on its way.
    pub(super) fn shares(&self) -> (usize, usize) {
        let bytes = usize::try_from(self.bytes_in_flight.max(crate::MIN_BYTES_IN_FLIGHT)).unwrap_or(usize::MAX);
        // 16 on their way hide the latency of any store from any source.
        let packs = (bytes / 4 * 3 / PACK_SIZE).clamp(2, 17);
        (packs, bytes - packs * PACK_SIZE)
    }
}

/// A share of the memory for chunks, given back when dropped.
#[derive(Debug)]
pub(super) struct Room(OwnedSemaphorePermit);

impl Room {
    /// Gives back what is not needed for `length` bytes.
    pub(super) fn shrink(&mut self, length: usize) {
        let needed = length.div_ceil(UNIT);
        drop(self.0.split(self.0.num_permits().saturating_sub(needed)));
    }
}

/// A lock that a panic elsewhere does not take away.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
