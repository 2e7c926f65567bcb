//! A container of Azure Blob Storage as a store.
//!
//! - A file is one block blob, made by one Put Blob with `if-none-match: *`: it is there whole or not at all, a credential that may
//!   only create and read is enough, and no block is ever left behind.
//! - The SDK's own retries are off: [`super::retry`] is the one retry layer. Each request has a time limit of its own, so a connection
//!   that goes nowhere ends as [`Error::Unavailable`].
//! - Listings are in the order of keys on accounts with a flat namespace. On accounts with a hierarchical namespace Azure sorts by
//!   folders; do not use those.
//! - No error, log line or `Debug` output holds an account key or a SAS.
//!
//! Emulators: Azurite has to be started with `--skipApiVersionCheck`, because the SDK is ahead of it.

use std::num::NonZero;
use std::ops::Range;

use async_trait::async_trait;
use azure_core::http::StatusCode;
use azure_storage_blob::models::{
    AccessTier, BlobClientDownloadOptions, BlobClientGetPropertiesResultHeaders as _,
    BlobContainerClientListBlobsOptions, BlockBlobClientUploadOptions,
};
use bytes::Bytes;
use futures::StreamExt as _;
use secrecy::SecretString;
use url::Url;

use super::{Entry, Error, Key, Page, Put, Store, Tier};

pub(crate) mod container;
mod failure;
mod shared_key;

pub(crate) use container::Container;
pub(crate) use failure::Failure;

/// Entries of one listing page. Azure gives at most 5000.
const PAGE_ENTRIES: i32 = 1000;
/// A whole file up to this size is read by one request. Packs are smaller.
const READ_AT_ONCE: NonZero<usize> = NonZero::new(64 << 20).expect("not zero");

/// What proves that we may.
#[derive(Clone)]
pub enum Credential {
    /// One of the account's two keys, in base64. It may do everything; see the docs for what that costs.
    AccountKey(SecretString),
    /// A shared access signature, with or without its leading `?`.
    Sas(SecretString),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::AccountKey(_) => "AccountKey([REDACTED])",
            Self::Sas(_) => "Sas([REDACTED])",
        })
    }
}

/// Which container, and how to get in.
#[derive(Debug, Clone)]
pub struct Config {
    /// The storage account.
    pub account: String,
    /// The container.
    pub container: String,
    /// Where the account's blobs are; `None` is `https://ACCOUNT.blob.core.windows.net`. For emulators and private clouds.
    pub endpoint: Option<Url>,
    /// What proves that we may.
    pub credential: Credential,
}

/// A store in a container of Azure Blob Storage.
#[derive(Debug)]
pub struct Azure {
    container: Container,
}

impl Azure {
    /// A store in this container. Sends nothing; the container may be missing until [`Azure::create_container`].
    /// Fails when the configuration cannot be right: a key that is not base64, a SAS without signature, an impossible name.
    pub fn new(config: &Config) -> Result<Self, Error> {
        Ok(Self { container: Container::new(config)? })
    }

    /// Makes the container, without public access; one that exists is left as it is. Asking twice does no harm.
    pub async fn create_container(&self) -> Result<(), Error> {
        let client = self.container.client()?;
        match self.container.call(0, client.create(None)).await {
            Err(failure) if failure.code == "ContainerAlreadyExists" => Ok(()),
            result => result.map(|_| ()).map_err(Error::from),
        }
    }

    async fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, Failure> {
        let mut options = BlobClientDownloadOptions {
            parallel: NonZero::new(1),
            partition_size: Some(READ_AT_ONCE),
            ..Default::default()
        };
        if let Some(range) = range {
            let length = usize::try_from(range.end - range.start).ok().and_then(NonZero::new);
            options.partition_size = length.or(options.partition_size);
            options.range = Some(range.into());
        }
        let client = self.container.blob(key.as_str())?;
        let mut body = self.container.call(0, client.download(Some(options))).await?.body;
        let mut bytes = Vec::new();
        // Each piece has its own time limit: a large file on a slow line is read, a connection that stalls is not waited for.
        while let Some(piece) = self.container.call(0, async { body.next().await.transpose() }).await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.into())
    }

    fn not_found(&self, key: &Key) -> Error {
        Error::NotFound { store: self.container.location().to_owned(), key: key.to_string() }
    }

    fn error(&self, key: &Key, failure: Failure) -> Error {
        if failure.is_missing_blob() { self.not_found(key) } else { failure.into() }
    }
}

#[async_trait]
impl Store for Azure {
    fn location(&self) -> &str {
        self.container.location()
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>, Error> {
        let client = self.container.blob(key.as_str())?;
        match self.container.call(0, client.get_properties(None)).await {
            Ok(properties) => match properties.content_length() {
                Ok(Some(size)) => Ok(Some(Entry::new(key.clone(), size))),
                _ => Err(self.container.unavailable("the answer has no content-length")),
            },
            Err(failure) if failure.is_missing_blob() => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        let Some(range) = range else {
            return self.read(key, None).await.map_err(|failure| self.error(key, failure));
        };
        // Azure has no word for an empty range, and cuts a range that reaches past the end.
        let read = if range.is_empty() {
            Bytes::new()
        } else {
            match self.read(key, Some(range.clone())).await {
                Err(failure) if failure.status == Some(StatusCode::RequestedRangeNotSatisfiable) => Bytes::new(),
                // What Azurite says to a range of an empty blob is no content-range.
                Err(failure) if failure.unreadable => Bytes::new(),
                read => read.map_err(|failure| self.error(key, failure))?,
            }
        };
        let asked = range.end.saturating_sub(range.start);
        if read.len() as u64 != asked || range.is_empty() {
            let size = self.head(key).await?.ok_or_else(|| self.not_found(key))?.size;
            super::check_range(self.location(), key, &range, size)?;
        }
        if read.len() as u64 != asked {
            let detail = format!("{key}: {} bytes came instead of {asked}", read.len());
            return Err(self.container.unavailable(&detail));
        }
        Ok(read)
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put, Error> {
        let client = self.container.block_blob(key.as_str())?;
        let size = body.len() as u64;
        // A partition as large as the body makes it one Put Blob.
        let options = BlockBlobClientUploadOptions { partition_size: NonZero::new(size.max(1)), ..Default::default() };
        match self.container.call(size, client.upload(body.into(), Some(options.if_not_exists()))).await {
            Ok(_) => Ok(Put::Created),
            Err(failure) if failure.is_existing_blob() => Ok(Put::Existed),
            // A credential that may only create is told that it lacks a right, when the blob is there: rights are looked at before
            // conditions. Whether that is it, another look tells.
            Err(failure) if failure.status == Some(StatusCode::Forbidden) => match self.head(key).await {
                Ok(Some(_)) => Ok(Put::Existed),
                _ => Err(failure.into()),
            },
            Err(failure) => Err(failure.into()),
        }
    }

    async fn list_page(&self, prefix: &str, next: Option<&str>) -> Result<Page, Error> {
        let options = BlobContainerClientListBlobsOptions {
            marker: next.map(str::to_owned),
            maxresults: Some(PAGE_ENTRIES),
            prefix: (!prefix.is_empty()).then(|| prefix.to_owned()),
            ..Default::default()
        };
        let client = self.container.client()?;
        let request = async {
            let mut pages = client.list_blobs(Some(options))?.into_pages();
            pages.next().await.transpose()?.map(|page| page.into_model()).transpose()
        };
        let Some(page) = self.container.call(0, request).await? else { return Ok(Page::default()) };
        let entries = page.blob_items.into_iter().filter_map(|item| {
            // Blobs that others laid here under names that are no keys are not of the store.
            let key = Key::new(item.name?).ok()?;
            Some(Entry::new(key, item.properties?.content_length?))
        });
        Ok(Page { entries: entries.collect(), next: page.next_marker.filter(|marker| !marker.is_empty()) })
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        let client = self.container.blob(key.as_str())?;
        match self.container.call(0, client.delete(None)).await {
            Err(failure) if failure.is_missing_blob() => Ok(()),
            result => result.map(|_| ()).map_err(Error::from),
        }
    }

    async fn set_tier(&self, key: &Key, tier: Tier) -> Result<(), Error> {
        let tier = match tier {
            Tier::Hot => AccessTier::Hot,
            Tier::Cool => AccessTier::Cool,
            Tier::Archive => AccessTier::Archive,
        };
        let client = self.container.blob(key.as_str())?;
        let result = self.container.call(0, client.set_tier(tier, None)).await;
        result.map(|_| ()).map_err(|failure| self.error(key, failure))
    }

    async fn copy(&self, _from: &Key, _to: &Key) -> Result<Put, Error> {
        Err(Error::Unsupported { store: self.location().to_owned(), what: "copy files".to_owned() })
    }

    async fn protect(&self, _key: &Key, _until: jiff::Timestamp, _locked: bool) -> Result<(), Error> {
        Err(Error::Unsupported { store: self.location().to_owned(), what: "make files immutable".to_owned() })
    }

    async fn set_legal_hold(&self, _key: &Key, _hold: bool) -> Result<(), Error> {
        Err(Error::Unsupported { store: self.location().to_owned(), what: "put files on legal hold".to_owned() })
    }
}
