//! The archive as its repository sees it: archived packs are looked for among the rehydrated copies.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::REHYDRATED;
use crate::records;
use crate::repository::PACKS;
use crate::store::prefixed::Prefixed;
use crate::store::{Entry, Error, Key, Page, Put, Shared, Store, Tier};

/// See the module.
#[derive(Debug)]
pub(super) struct View {
    inner: Prefixed,
    /// Packs that were found archived: their copies are asked first. 40 bytes or so each.
    archived: Mutex<HashSet<Key>>,
}

impl View {
    pub(super) fn over(instance: &Shared) -> Result<Shared, Error> {
        let inner = Prefixed::new(instance.clone(), records::ARCHIVE)?;
        Ok(Arc::new(Self { inner, archived: Mutex::default() }))
    }

    fn is_known_archived(&self, key: &Key) -> bool {
        self.archived.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }
}

/// Where the rehydrated copy of a pack lies; `None` for other files.
pub(super) fn rehydrated_key(key: &Key) -> Option<Key> {
    let name = key.as_str().strip_prefix(PACKS)?;
    Key::new(format!("{REHYDRATED}{name}")).ok()
}

#[async_trait]
impl Store for View {
    fn location(&self) -> &str {
        self.inner.location()
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>, Error> {
        self.inner.head(key).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        if !self.is_known_archived(key) {
            match self.inner.get(key, range.clone()).await {
                Err(Error::Archived { .. }) => {
                    self.archived.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
                }
                other => return other,
            }
        }
        let archived = || Error::Archived { store: self.location().to_owned(), key: key.to_string() };
        let copy = rehydrated_key(key).ok_or_else(archived)?;
        match self.inner.get(&copy, range).await {
            // The copy is not asked for, on its way, or cleaned up meanwhile.
            Err(Error::NotFound { .. } | Error::Archived { .. }) => Err(archived()),
            other => other,
        }
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put, Error> {
        self.inner.put_if_absent(key, body).await
    }

    async fn list_page(&self, prefix: &str, next: Option<&str>) -> Result<Page, Error> {
        self.inner.list_page(prefix, next).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.inner.delete(key).await
    }

    async fn set_tier(&self, key: &Key, tier: Tier) -> Result<(), Error> {
        self.inner.set_tier(key, tier).await
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<Put, Error> {
        self.inner.copy(from, to).await
    }

    async fn protect(&self, key: &Key, until: jiff::Timestamp, locked: bool) -> Result<(), Error> {
        self.inner.protect(key, until, locked).await
    }

    async fn set_legal_hold(&self, key: &Key, hold: bool) -> Result<(), Error> {
        self.inner.set_legal_hold(key, hold).await
    }
}
