//! A store in memory: the smallest true implementation, for tests and for trying things out. Nothing survives the process.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Entry, Error, Key, Page, Put, Store, Tier};

/// Small, so that tests with few files see several pages.
const PAGE_ENTRIES: usize = 10;

/// A store in memory.
#[derive(Debug)]
pub struct Memory {
    location: String,
    files: Mutex<BTreeMap<Key, File>>,
}

#[derive(Debug, Clone)]
struct File {
    body: Bytes,
    tier: Tier,
}

impl Memory {
    /// An empty store; `name` is for messages.
    pub fn new(name: &str) -> Self {
        Self { location: format!("memory:{name}"), files: Mutex::default() }
    }

    /// The tier that a file lies in; `None` when it is not there.
    pub fn tier(&self, key: &Key) -> Option<Tier> {
        self.files().get(key).map(|file| file.tier)
    }

    /// Changes a file behind the store's back, as a failing disk would. False when it is not there.
    pub fn damage(&self, key: &Key, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut files = self.files();
        let Some(file) = files.get_mut(key) else { return false };
        let mut body = file.body.to_vec();
        change(&mut body);
        file.body = body.into();
        true
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<Key, File>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_found(&self, key: &Key) -> Error {
        Error::NotFound { store: self.location.clone(), key: key.to_string() }
    }
}

#[async_trait]
impl Store for Memory {
    fn location(&self) -> &str {
        &self.location
    }

    async fn head(&self, key: &Key) -> Result<Option<u64>, Error> {
        Ok(self.files().get(key).map(|file| file.body.len() as u64))
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        let file = self.files().get(key).cloned().ok_or_else(|| self.not_found(key))?;
        if file.tier == Tier::Archive {
            let detail = format!("{key} is archived");
            return Err(Error::Rejected { store: self.location.clone(), detail });
        }
        let size = file.body.len() as u64;
        let range = range.unwrap_or(0..size);
        super::check_range(&self.location, key, &range, size)?;
        Ok(file.body.slice(range.start as usize..range.end as usize))
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put, Error> {
        let mut files = self.files();
        if files.contains_key(key) {
            return Ok(Put::Existed);
        }
        files.insert(key.clone(), File { body, tier: Tier::Hot });
        Ok(Put::Created)
    }

    async fn list_page(&self, prefix: &str, next: Option<&str>) -> Result<Page, Error> {
        let files = self.files();
        let after = match next {
            Some(token) => match Key::new(token) {
                Ok(key) => Bound::Excluded(key),
                Err(error) => {
                    return Err(Error::Rejected { store: self.location.clone(), detail: error.to_string() });
                }
            },
            None => Bound::Unbounded,
        };
        let mut found = files.range((after, Bound::Unbounded)).filter(|(key, _)| key.as_str().starts_with(prefix));
        let entries: Vec<Entry> = found
            .by_ref()
            .take(PAGE_ENTRIES)
            .map(|(key, file)| Entry { key: key.clone(), size: file.body.len() as u64 })
            .collect();
        let next = found.next().and(entries.last()).map(|entry| entry.key.to_string());
        Ok(Page { entries, next })
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.files().remove(key);
        Ok(())
    }

    async fn set_tier(&self, key: &Key, tier: Tier) -> Result<(), Error> {
        self.files().get_mut(key).map(|file| file.tier = tier).ok_or_else(|| self.not_found(key))
    }
}
