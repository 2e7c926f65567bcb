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
//! - A deletion asks first what protects the file, and takes the blob's version with it: on an account that keeps versions (which
//!   immutability needs) deleting a blob only makes its bytes a previous version, also when they are protected. A kill in between leaves
//!   that version; a lifecycle rule of the account that deletes previous versions catches it.
//! - A copy is Copy Blob with `if-none-match: *`. Inside one account a shared key needs nothing more; a SAS is part of the source's URL.
//!
//! Emulators: Azurite has to be started with `--skipApiVersionCheck`, because the SDK is ahead of it. Of what is done here Azurite knows
//! neither immutability nor legal holds nor versions, and rehydrates at once: `tests/support/fake_blob.rs` stands in for the service in
//! those tests, and real Azure has not been asked.

use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use azure_core::http::StatusCode;
use azure_storage_blob::models::{
    AccessTier, BlobClientDownloadOptions, BlobClientGetPropertiesResultHeaders as _,
    BlobClientSetImmutabilityPolicyOptions, BlobClientStartCopyFromUrlOptions,
    BlobContainerClientGetAccountInfoResultHeaders as _, BlobContainerClientListBlobsOptions,
    BlobServiceClientListContainersOptions, BlockBlobClientUploadOptions, ImmutabilityPolicyMode, ListBlobsIncludeItem,
    RehydratePriority,
};
use bytes::Bytes;
use futures::StreamExt as _;
use secrecy::SecretString;
use url::Url;

use super::{Entry, Error, Key, Page, Put, Redundancy, Store, Tier};

pub(crate) mod container;
mod failure;
mod properties;
pub mod sas;
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
    /// The service has refused to tell of protection in listings: an emulator, or an account that has none.
    lists_plainly: AtomicBool,
}

impl Azure {
    /// A store in this container. Sends nothing; the container may be missing until [`Azure::create_container`].
    /// Fails when the configuration cannot be right: a key that is not base64, a SAS without signature, an impossible name.
    pub fn new(config: &Config) -> Result<Self, Error> {
        Ok(Self { container: Container::new(config)?, lists_plainly: AtomicBool::new(false) })
    }

    /// How the account keeps its copies, as the service tells it ([`Redundancy`]). [`Error::AccessDenied`] when the credential may not ask.
    pub async fn redundancy(&self) -> Result<Redundancy, Error> {
        let client = self.container.client()?;
        let info = self.container.call(0, client.get_account_info(None)).await?;
        let sku = info.sku_name().ok().flatten();
        let sku =
            sku.ok_or_else(|| self.container.unavailable("the answer has no kind of redundancy that is known"))?;
        Ok(properties::redundancy(&sku))
    }

    /// Makes the container, without public access; one that exists is left as it is. Asking twice does no harm.
    pub async fn create_container(&self) -> Result<(), Error> {
        let client = self.container.client()?;
        match self.container.call(0, client.create(None)).await {
            Err(failure) if failure.code == "ContainerAlreadyExists" => Ok(()),
            result => result.map(|_| ()).map_err(Error::from),
        }
    }

    /// The names of the account's containers that begin with `prefix`. The credential must be allowed to list them.
    pub(crate) async fn list_containers(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let client = self.container.account()?;
        let mut names = Vec::new();
        let mut marker = None;
        loop {
            let options = BlobServiceClientListContainersOptions {
                // An empty one would be sent without its `=`, which services that check a signature read differently.
                prefix: (!prefix.is_empty()).then(|| prefix.to_owned()),
                marker: marker.take(),
                maxresults: Some(PAGE_ENTRIES),
                ..Default::default()
            };
            let request = async {
                let mut pages = client.list_containers(Some(options))?.into_pages();
                pages.next().await.transpose()?.map(|page| page.into_model()).transpose()
            };
            let Some(page) = self.container.call(0, request).await? else { return Ok(names) };
            names.extend(page.container_items.into_iter().filter_map(|item| item.name));
            marker = page.next_marker.filter(|marker| !marker.is_empty());
            if marker.is_none() {
                return Ok(names);
            }
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
        let (store, key) = (self.container.location().to_owned(), key.to_string());
        match failure.code.as_str() {
            _ if failure.is_missing_blob() => Error::NotFound { store, key },
            "BlobArchived" | "BlobBeingRehydrated" => Error::Archived { store, key },
            "BlobImmutableDueToPolicy" | "BlobImmutableDueToLegalHold" | "ImmutabilityPolicyDeleteOnLockedPolicy" => {
                Error::Protected { store, key, detail: failure.code }
            }
            _ => failure.into(),
        }
    }

    /// As [`Azure::error`], where the service's refusal means that the account has no version-level immutability.
    fn protection_error(&self, key: &Key, failure: Failure, what: &str) -> Error {
        let refused =
            matches!(failure.status, Some(StatusCode::BadRequest | StatusCode::Conflict | StatusCode::NotImplemented));
        // A header's value is our fault, not the account's.
        let ours = matches!(failure.code.as_str(), "InvalidHeaderValue" | "MissingRequiredHeader");
        match self.error(key, failure) {
            Error::Rejected { store, detail } | Error::Unsupported { store, what: detail } if refused && !ours => {
                Error::Unsupported { store, what: format!("{what} ({detail})") }
            }
            other => other,
        }
    }

    /// One page; `protection` asks for immutability and legal holds too.
    async fn page(&self, prefix: &str, next: Option<&str>, protection: bool) -> Result<Page, Failure> {
        let include = vec![ListBlobsIncludeItem::ImmutabilityPolicy, ListBlobsIncludeItem::LegalHold];
        let options = BlobContainerClientListBlobsOptions {
            include: protection.then_some(include),
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
            properties::of_item(key, &item.properties?)
        });
        Ok(Page { entries: entries.collect(), next: page.next_marker.filter(|marker| !marker.is_empty()) })
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
            Ok(blob) => match properties::of_answer(key.clone(), &blob) {
                Some(entry) => Ok(Some(entry)),
                None => Err(self.container.unavailable("the answer has no content-length")),
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
            Err(failure) if failure.is_existing_blob() || failure.is_offline_blob() => Ok(Put::Existed),
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
        if !self.lists_plainly.load(Ordering::Relaxed) {
            match self.page(prefix, next, true).await {
                Err(failure)
                    if failure.unreadable
                        || matches!(failure.status, Some(StatusCode::BadRequest | StatusCode::NotImplemented)) => {}
                result => return result.map_err(Error::from),
            }
        }
        // Only when the plain listing works was it the question about protection that was refused.
        let page = self.page(prefix, next, false).await?;
        self.lists_plainly.store(true, Ordering::Relaxed);
        Ok(page)
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        let client = self.container.blob(key.as_str())?;
        let blob = match self.container.call(0, client.get_properties(None)).await {
            Err(failure) if failure.is_missing_blob() => return Ok(()),
            result => result?,
        };
        let protection = properties::protection_of(&blob);
        if protection.forbids_deletion(crate::clock::now()) {
            let (store, detail) = (self.location().to_owned(), protection.to_string());
            return Err(Error::Protected { store, key: key.to_string(), detail });
        }
        let deleted = |result: Result<(), Failure>| match result {
            Err(failure) if failure.is_missing_blob() => Ok(()),
            result => result.map_err(|failure| self.error(key, failure)),
        };
        deleted(self.container.call(0, client.delete(None)).await.map(|_| ()))?;
        match blob.version_id() {
            Ok(Some(version)) => {
                let version = client.with_version(&version).map_err(|error| self.container.failure(&error))?;
                deleted(self.container.call(0, version.delete(None)).await.map(|_| ()))
            }
            _ => Ok(()),
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

    async fn copy(&self, from: &Key, to: &Key) -> Result<Put, Error> {
        let options = BlobClientStartCopyFromUrlOptions {
            if_none_match: Some("*".into()),
            // Both are needed when the source is archived, and do no harm when it is not.
            tier: Some(AccessTier::Hot),
            rehydrate_priority: Some(RehydratePriority::Standard),
            ..Default::default()
        };
        let client = self.container.blob(to.as_str())?;
        let source = self.container.blob_url(from.as_str());
        let request = client.start_copy_from_url(source.to_string(), Some(options));
        match self.container.call(0, request).await {
            Ok(_) => Ok(Put::Created),
            Err(failure) if failure.is_existing_blob() || failure.is_offline_blob() => Ok(Put::Existed),
            // As for a put: rights are looked at before conditions.
            Err(failure) if failure.status == Some(StatusCode::Forbidden) => match self.head(to).await {
                Ok(Some(_)) => Ok(Put::Existed),
                _ => Err(failure.into()),
            },
            Err(failure) => Err(self.error(from, failure)),
        }
    }

    async fn protect(&self, key: &Key, until: jiff::Timestamp, locked: bool) -> Result<(), Error> {
        let now = self.head(key).await?.ok_or_else(|| self.not_found(key))?.protection;
        if now.immutable_until.is_some_and(|date| date >= until) && now.locked >= locked {
            return Ok(());
        }
        let until = properties::whole_second_after(until.max(now.immutable_until.unwrap_or(until)))
            .map_err(|detail| Error::Rejected { store: self.location().to_owned(), detail })?;
        let mode = if locked || now.locked { ImmutabilityPolicyMode::Locked } else { ImmutabilityPolicyMode::Unlocked };
        let options =
            BlobClientSetImmutabilityPolicyOptions { immutability_policy_mode: Some(mode), ..Default::default() };
        let client = self.container.blob(key.as_str())?;
        let result = self.container.call(0, client.set_immutability_policy(&until, Some(options))).await;
        result.map(|_| ()).map_err(|failure| self.protection_error(key, failure, "make files immutable"))
    }

    async fn set_legal_hold(&self, key: &Key, hold: bool) -> Result<(), Error> {
        let client = self.container.blob(key.as_str())?;
        let result = self.container.call(0, client.set_legal_hold(hold, None)).await;
        result.map(|_| ()).map_err(|failure| self.protection_error(key, failure, "put files on legal hold"))
    }
}
