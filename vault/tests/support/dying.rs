//! A store whose user dies at its n-th call: from then on nothing is done and nothing is answered well.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use vaultferry_vault::store::{Entry, Error, Key, Page, Put, Shared, Store, Tier};

/// What the last call still did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    NotDone,
    Done,
}

#[derive(Debug)]
pub struct Dying {
    inner: Shared,
    calls: AtomicU64,
    dies_at: u64,
    last: Last,
}

impl Dying {
    /// Calls count from 1.
    pub fn new(inner: Shared, dies_at: u64, last: Last) -> Self {
        Self { inner, calls: AtomicU64::new(0), dies_at, last }
    }

    /// Calls so far.
    #[allow(dead_code, reason = "not every test counts")]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// True when it came to that.
    #[allow(dead_code, reason = "not every test asks")]
    pub fn died(&self) -> bool {
        self.calls.load(Ordering::SeqCst) >= self.dies_at
    }

    async fn call<T: Send>(&self, work: impl Future<Output = Result<T, Error>> + Send) -> Result<T, Error> {
        let n = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if n < self.dies_at {
            return work.await;
        }
        if n == self.dies_at && self.last == Last::Done {
            let _ = work.await;
        }
        Err(Error::Rejected { store: self.inner.location().to_owned(), detail: "dead".to_owned() })
    }
}

#[async_trait]
impl Store for Dying {
    fn location(&self) -> &str {
        self.inner.location()
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>, Error> {
        self.call(self.inner.head(key)).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        self.call(self.inner.get(key, range)).await
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put, Error> {
        self.call(self.inner.put_if_absent(key, body)).await
    }

    async fn list_page(&self, prefix: &str, next: Option<&str>) -> Result<Page, Error> {
        self.call(self.inner.list_page(prefix, next)).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.call(self.inner.delete(key)).await
    }

    async fn set_tier(&self, key: &Key, tier: Tier) -> Result<(), Error> {
        self.call(self.inner.set_tier(key, tier)).await
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<Put, Error> {
        self.call(self.inner.copy(from, to)).await
    }

    async fn protect(&self, key: &Key, until: jiff::Timestamp, locked: bool) -> Result<(), Error> {
        self.call(self.inner.protect(key, until, locked)).await
    }

    async fn set_legal_hold(&self, key: &Key, hold: bool) -> Result<(), Error> {
        self.call(self.inner.set_legal_hold(key, hold)).await
    }
}
