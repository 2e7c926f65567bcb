//! Restored files in a container: blocks staged as they come, a few at a time, and one commit that refuses to overwrite.
//!
//! Memory: the block that is being filled and the blocks on their way, 40 MiB at most (128 MiB for a file above 312 GiB, whose blocks
//! are larger because a blob has at most 50 000).

use std::collections::HashMap;
use std::sync::Arc;

use azure_core::http::RequestContent;
use azure_storage_blob::models::{
    BlobClientGetPropertiesResultHeaders as _, BlockBlobClientCommitBlockListOptions, BlockLookupList,
};
use bytes::{Bytes, BytesMut};
use tokio::task::JoinSet;

use super::Error;
use crate::store::azure::{Config, Container};
use crate::store::{self, retry};

/// Large enough that the round trip of a block is small beside its transfer.
const BLOCK_BYTES: usize = 8 << 20;
/// From this block on blocks are larger, so that 50 000 of them (Azure's limit) hold 937 GiB.
const LARGE_FROM: u32 = 40_000;
const LARGE_BLOCK_BYTES: usize = 64 << 20;
const MAX_BLOCKS: u32 = 50_000;
/// Bytes on their way; one large block, or four others.
const BYTES_IN_FLIGHT: usize = 32 << 20;
/// Names the restore that committed a blob, so that a commit whose answer was lost is known as our own.
const RESTORE_ID: &str = "vaultferry_restore";

#[derive(Debug)]
pub(super) struct Target {
    text: String,
    container: Container,
    prefix: String,
    retry: retry::Config,
}

#[derive(Debug)]
pub(super) struct Sink {
    target: Arc<Target>,
    name: String,
    blob: String,
    buffer: BytesMut,
    /// Blocks that were begun.
    blocks: u32,
    /// Uploads on their way. They end when this is dropped.
    uploads: JoinSet<Result<(), store::Error>>,
    size: u64,
}

impl Target {
    pub(super) async fn open(text: String, config: &Config, prefix: &str, retry: retry::Config) -> Result<Self, Error> {
        let container = Container::new(config).map_err(|error| Error::from_store(error, &text, ""))?;
        let target = Self { text, container, prefix: prefix.to_owned(), retry };
        // A blob that nobody has: "not there" proves that the container is, and that we may look.
        let probe = format!(".vaultferry-{:032x}", rand::random::<u128>());
        target.restore_id(&probe).await.map_err(|error| Error::from_store(error, &target.text, &probe))?;
        Ok(target)
    }

    /// Which restore made the blob (empty: another program did); `None` when the blob is not there.
    async fn restore_id(&self, blob: &str) -> Result<Option<String>, store::Error> {
        let look = || async {
            let client = self.container.blob(blob)?;
            match self.container.call(0, client.get_properties(None)).await {
                Ok(properties) => {
                    let metadata = properties.metadata().unwrap_or_default();
                    Ok(Some(metadata.get(RESTORE_ID).cloned().unwrap_or_default()))
                }
                Err(failure) if failure.is_missing_blob() => Ok(None),
                Err(failure) => Err(failure.into()),
            }
        };
        retry::retrying(&self.retry, &self.text, "look for a file", look).await
    }

    async fn stage(&self, blob: &str, id: &[u8], block: Bytes) -> Result<(), store::Error> {
        let stage = || async {
            let client = self.container.block_blob(blob)?;
            let size = block.len() as u64;
            self.container.call(size, client.stage_block(id, size, block.clone().into(), None)).await?;
            Ok(())
        };
        retry::retrying(&self.retry, &self.text, "upload a block", stage).await
    }

    /// Commits the blocks. False when a blob of that name is there that is not ours.
    async fn commit(&self, blob: &str, blocks: u32) -> Result<bool, store::Error> {
        let id = format!("{:032x}", rand::random::<u128>());
        let list = BlockLookupList {
            latest: Some((0..blocks).map(|index| block_id(index).to_vec()).collect()),
            ..Default::default()
        };
        let rejected =
            |error: azure_core::Error| store::Error::Rejected { store: self.text.clone(), detail: error.to_string() };
        let list: RequestContent<BlockLookupList, _> = list.try_into().map_err(rejected)?;
        let options = BlockBlobClientCommitBlockListOptions {
            if_none_match: Some("*".into()),
            metadata: Some(HashMap::from([(RESTORE_ID.to_owned(), id.clone())])),
            ..Default::default()
        };
        let commit = || async {
            let client = self.container.block_blob(blob)?;
            match self.container.call(0, client.commit_block_list(list.clone(), Some(options.clone()))).await {
                Ok(_) => Ok(true),
                Err(failure) if failure.is_existing_blob() => Ok(false),
                Err(failure) => Err(failure.into()),
            }
        };
        // An earlier try may have happened although its answer was lost.
        Ok(retry::retrying(&self.retry, &self.text, "commit a file", commit).await?
            || self.restore_id(blob).await? == Some(id))
    }

    fn exists(&self, name: &str) -> Error {
        Error::Exists { target: self.text.clone(), name: name.to_owned() }
    }
}

/// Begins a blob, when none of that name is there.
pub(super) async fn create(target: &Arc<Target>, name: &str) -> Result<Sink, Error> {
    let blob = if target.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", target.prefix) };
    let existing = target.restore_id(&blob).await.map_err(|error| Error::from_store(error, &target.text, name))?;
    if existing.is_some() {
        return Err(target.exists(name));
    }
    let (target, name) = (Arc::clone(target), name.to_owned());
    Ok(Sink { target, name, blob, buffer: BytesMut::new(), blocks: 0, uploads: JoinSet::new(), size: 0 })
}

impl Sink {
    pub(super) async fn write(&mut self, mut bytes: Bytes) -> Result<(), Error> {
        while !bytes.is_empty() {
            let room = self.block_bytes() - self.buffer.len();
            let part = bytes.split_to(room.min(bytes.len()));
            self.buffer.extend_from_slice(&part);
            self.size += part.len() as u64;
            if part.len() == room {
                self.stage().await?;
            }
        }
        Ok(())
    }

    pub(super) async fn finish(mut self) -> Result<u64, Error> {
        if !self.buffer.is_empty() {
            self.stage().await?;
        }
        while !self.uploads.is_empty() {
            self.uploaded().await?;
        }
        match self.target.commit(&self.blob, self.blocks).await {
            Ok(true) => Ok(self.size),
            Ok(false) => Err(self.target.exists(&self.name)),
            Err(error) => Err(self.error(error)),
        }
    }

    pub(super) async fn abort(mut self) {
        self.uploads.shutdown().await;
    }

    /// Sends the filled block on its way, when there is room.
    async fn stage(&mut self) -> Result<(), Error> {
        if self.blocks == MAX_BLOCKS {
            let detail = format!("{} is larger than {MAX_BLOCKS} blocks", self.name);
            return Err(Error::Rejected { target: self.target.text.clone(), detail });
        }
        let most = BYTES_IN_FLIGHT.div_ceil(self.block_bytes());
        while self.uploads.len() >= most {
            self.uploaded().await?;
        }
        let (target, blob, id) = (Arc::clone(&self.target), self.blob.clone(), block_id(self.blocks));
        let block = std::mem::take(&mut self.buffer).freeze();
        self.blocks += 1;
        self.uploads.spawn(async move { target.stage(&blob, &id, block).await });
        Ok(())
    }

    async fn uploaded(&mut self) -> Result<(), Error> {
        match self.uploads.join_next().await {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(self.error(error)),
            Some(Err(error)) => {
                let detail = format!("an upload ended early: {error}");
                Err(Error::Unavailable { target: self.target.text.clone(), detail })
            }
        }
    }

    fn block_bytes(&self) -> usize {
        if self.blocks < LARGE_FROM { BLOCK_BYTES } else { LARGE_BLOCK_BYTES }
    }

    fn error(&self, error: store::Error) -> Error {
        Error::from_store(error, &self.target.text, &self.name)
    }
}

/// Ids of one blob have one length, and say in which order the blocks come.
fn block_id(index: u32) -> [u8; 4] {
    index.to_be_bytes()
}
