//! A part of a store as a store of its own: everything below a prefix, whose keys are told without it.
//!
//! What the store below promises holds here too. Messages and errors name the keys of the store below, which is where a person looks.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Entry, Error, Key, Page, Put, Shared, Store, Tier};

/// The part of a store below a prefix.
#[derive(Debug)]
pub struct Prefixed {
    inner: Shared,
    prefix: String,
    location: String,
}

impl Prefixed {
    /// The part below `prefix`, which is one or more segments and ends with a slash (`archive/`).
    /// [`Error::Rejected`] when no key can begin with it.
    pub fn new(inner: Shared, prefix: &str) -> Result<Self, Error> {
        let valid = prefix.strip_suffix('/').is_some_and(|segments| Key::new(segments).is_ok());
        if !valid {
            let detail = format!("{prefix:?} is no prefix of keys");
            return Err(Error::Rejected { store: inner.location().to_owned(), detail });
        }
        let location = format!("{}/{}", inner.location().trim_end_matches('/'), prefix.trim_end_matches('/'));
        Ok(Self { inner, prefix: prefix.to_owned(), location })
    }

    fn below(&self, key: &Key) -> Result<Key, Error> {
        let rejected =
            |error: super::InvalidKey| Error::Rejected { store: self.location.clone(), detail: error.to_string() };
        Key::new(format!("{}{key}", self.prefix)).map_err(rejected)
    }

    fn above(&self, entry: Entry) -> Option<Entry> {
        let key = Key::new(entry.key.as_str().strip_prefix(&self.prefix)?).ok()?;
        Some(Entry { key, ..entry })
    }
}

#[async_trait]
impl Store for Prefixed {
    fn location(&self) -> &str {
        &self.location
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>, Error> {
        Ok(self.inner.head(&self.below(key)?).await?.and_then(|entry| self.above(entry)))
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        self.inner.get(&self.below(key)?, range).await
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put, Error> {
        self.inner.put_if_absent(&self.below(key)?, body).await
    }

    async fn list_page(&self, prefix: &str, next: Option<&str>) -> Result<Page, Error> {
        // The page's token is the store's below, and goes through as it is.
        let page = self.inner.list_page(&format!("{}{prefix}", self.prefix), next).await?;
        Ok(Page { entries: page.entries.into_iter().filter_map(|entry| self.above(entry)).collect(), next: page.next })
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.inner.delete(&self.below(key)?).await
    }

    async fn set_tier(&self, key: &Key, tier: Tier) -> Result<(), Error> {
        self.inner.set_tier(&self.below(key)?, tier).await
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<Put, Error> {
        self.inner.copy(&self.below(from)?, &self.below(to)?).await
    }

    async fn protect(&self, key: &Key, until: jiff::Timestamp, locked: bool) -> Result<(), Error> {
        self.inner.protect(&self.below(key)?, until, locked).await
    }

    async fn set_legal_hold(&self, key: &Key, hold: bool) -> Result<(), Error> {
        self.inner.set_legal_hold(&self.below(key)?, hold).await
    }
}
