//! The packer: sealed blobs of all streams into packs, packs into the store.
//!
//! Invariants:
//! - A pack is at most [`PACK_SIZE`] bytes; one slot is held from its first blob until it is stored, so as many packs are in memory as
//!   there are slots. Who has a blob for a new pack waits for a slot.
//! - Trees are few and not the source's data: they gather beside, without a slot until they are sent.
//! - Dropping the packer ends the uploads.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedSemaphorePermit};
use tokio::task::JoinSet;

use super::PACK_SIZE;
use super::core::{Core, Failure};
use super::encode::Encoded;
use crate::blocking;
use crate::error::Error;
use crate::repository::pack::{BlobKind, Builder, SealedBlob};

/// Trees are sent when there are so many bytes of them.
const TREES: usize = 4 << 20;

#[derive(Debug)]
pub(super) struct Packer {
    core: Arc<Core>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    data: Option<(Builder, OwnedSemaphorePermit)>,
    trees: Builder,
    uploads: JoinSet<()>,
    /// Memory of packs that were stored, for the next ones.
    spare: Arc<std::sync::Mutex<Vec<Vec<u8>>>>,
}

impl Packer {
    pub(super) fn new(core: Arc<Core>) -> Self {
        let trees = Builder::new(BlobKind::Tree);
        let state = State { data: None, trees, uploads: JoinSet::new(), spare: Arc::default() };
        Self { core, state: Mutex::new(state) }
    }

    /// Adds a chunk. Waits while too many packs are on their way.
    pub(super) async fn add(&self, blob: Encoded) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        if state.data.as_ref().is_some_and(|(pack, _)| pack.size_with(blob.sealed.sealed().len()) > PACK_SIZE as u64) {
            state.send_data(&self.core);
        }
        if state.data.is_none() {
            let slot = self.core.slots.clone().acquire_owned().await.map_err(Error::internal)?;
            let spare = super::core::lock(&state.spare).pop().unwrap_or_else(|| Vec::with_capacity(PACK_SIZE));
            state.data = Some((Builder::with_buffer(BlobKind::Data, spare), slot));
        }
        if let Some((pack, _)) = &mut state.data {
            pack.add_sealed(blob.id, blob.sealed.sealed(), blob.raw_length)?;
        }
        drop(state);
        self.core.buffers.put(blob.sealed);
        Ok(())
    }

    /// Adds a tree.
    pub(super) async fn add_tree(&self, blob: SealedBlob) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        state.trees.add(&blob, 0)?;
        if state.trees.len() >= TREES {
            state.send_trees(&self.core).await?;
        }
        Ok(())
    }

    /// Sends what is left, and waits until all is stored and indexed, or something failed.
    pub(super) async fn finish(&self) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        state.send_data(&self.core);
        state.send_trees(&self.core).await?;
        while let Some(done) = state.uploads.join_next().await {
            done.map_err(Error::internal)?;
        }
        self.core.failure.check()?;
        self.core.index_stored(true).await
    }
}

impl State {
    fn send_data(&mut self, core: &Arc<Core>) {
        if let Some((pack, slot)) = self.data.take() {
            self.upload(core, pack, slot);
        }
    }

    async fn send_trees(&mut self, core: &Arc<Core>) -> Result<(), Error> {
        if !self.trees.is_empty() {
            let slot = core.slots.clone().acquire_owned().await.map_err(Error::internal)?;
            let trees = std::mem::replace(&mut self.trees, Builder::new(BlobKind::Tree));
            self.upload(core, trees, slot);
        }
        Ok(())
    }

    fn upload(&mut self, core: &Arc<Core>, pack: Builder, slot: OwnedSemaphorePermit) {
        while let Some(done) = self.uploads.try_join_next() {
            note_panic(&core.failure, done);
        }
        let (core, spare) = (core.clone(), self.spare.clone());
        self.uploads.spawn(async move {
            let upload = async {
                let key = core.repository.key().clone();
                let pack = blocking::run(move || pack.finish(&key)).await?;
                let mut bytes = core.store(pack).await?.bytes;
                if bytes.capacity() == PACK_SIZE {
                    bytes.clear();
                    super::core::lock(&spare).push(bytes);
                }
                drop(slot);
                // A stored pack gets into an index file soon, not when the next one is full: a slow source may be killed before.
                core.index_stored(false).await
            };
            if let Err(error) = upload.await {
                core.failure.set(error);
            }
        });
    }
}

fn note_panic(failure: &Failure, done: Result<(), tokio::task::JoinError>) {
    if let Err(error) = done {
        failure.set(Error::internal(error));
    }
}
