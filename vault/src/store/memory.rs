//! A store in memory: the smallest true implementation, for tests and for trying things out. Nothing survives the process.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Entry, Error, Key, Page, Protection, Put, Store, Tier};

/// Small, so that tests with few files see several pages.
const PAGE_ENTRIES: usize = 10;

/// A store in memory.
#[derive(Debug)]
pub struct Memory {
    location: String,
    page_entries: usize,
    files: Mutex<BTreeMap<Key, File>>,
}

#[derive(Debug, Clone)]
struct File {
    body: Bytes,
    tier: Tier,
    rehydrating: bool,
    protection: Protection,
}

impl File {
    fn new(body: Bytes) -> Self {
        Self { body, tier: Tier::Hot, rehydrating: false, protection: Protection::default() }
    }

    fn entry(&self, key: &Key) -> Entry {
        let (size, tier) = (self.body.len() as u64, self.tier);
        Entry { key: key.clone(), size, tier, rehydrating: self.rehydrating, protection: self.protection }
    }
}

impl Memory {
    /// An empty store; `name` is for messages.
    pub fn new(name: &str) -> Self {
        Self::with_pages(name, PAGE_ENTRIES)
    }

    /// The same with so many entries on a page of a listing, at least one.
    pub fn with_pages(name: &str, page_entries: usize) -> Self {
        Self { location: format!("memory:{name}"), page_entries: page_entries.max(1), files: Mutex::default() }
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

    /// The bytes of a file, in whatever tier it lies.
    pub fn peek(&self, key: &Key) -> Option<Bytes> {
        self.files().get(key).map(|file| file.body.clone())
    }

    /// True when a file lies below the prefix that is not this one.
    pub fn holds_beside(&self, prefix: &str, key: &Key) -> bool {
        let files = self.files();
        let mut below = files.range(Key(prefix.to_owned())..).take_while(|(key, _)| key.as_str().starts_with(prefix));
        below.any(|(other, _)| other != key)
    }

    /// Ends the rehydration of every file that waits for it. Time does not do it here, so that tests decide when.
    pub fn finish_rehydration(&self) {
        for file in self.files().values_mut().filter(|file| file.rehydrating) {
            (file.tier, file.rehydrating) = (Tier::Hot, false);
        }
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

    async fn head(&self, key: &Key) -> Result<Option<Entry>, Error> {
        Ok(self.files().get(key).map(|file| file.entry(key)))
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        let file = self.files().get(key).cloned().ok_or_else(|| self.not_found(key))?;
        if file.tier == Tier::Archive {
            return Err(Error::Archived { store: self.location.clone(), key: key.to_string() });
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
        files.insert(key.clone(), File::new(body));
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
            // No key, but the place where those below it begin.
            None => Bound::Included(Key(prefix.to_owned())),
        };
        let below = files.range((after, Bound::Unbounded));
        let mut found = below.take_while(|(key, _)| key.as_str().starts_with(prefix));
        let entries: Vec<Entry> = found.by_ref().take(self.page_entries).map(|(key, file)| file.entry(key)).collect();
        let next = found.next().and(entries.last()).map(|entry| entry.key.to_string());
        Ok(Page { entries, next })
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        let mut files = self.files();
        if let Some(file) = files.get(key)
            && file.protection.forbids_deletion(crate::clock::now())
        {
            let detail = file.protection.to_string();
            return Err(Error::Protected { store: self.location.clone(), key: key.to_string(), detail });
        }
        files.remove(key);
        Ok(())
    }

    async fn set_tier(&self, key: &Key, tier: Tier) -> Result<(), Error> {
        let mut files = self.files();
        let file = files.get_mut(key).ok_or_else(|| self.not_found(key))?;
        // As Azure does it: out of the archive is a wait.
        if file.tier == Tier::Archive && tier != Tier::Archive {
            file.rehydrating = true;
        } else {
            file.tier = tier;
        }
        Ok(())
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<Put, Error> {
        let mut files = self.files();
        let mut file = files.get(from).cloned().ok_or_else(|| self.not_found(from))?;
        if files.contains_key(to) {
            return Ok(Put::Existed);
        }
        file.rehydrating = file.tier == Tier::Archive;
        file.protection = Protection::default();
        files.insert(to.clone(), file);
        Ok(Put::Created)
    }

    async fn protect(&self, key: &Key, until: jiff::Timestamp, locked: bool) -> Result<(), Error> {
        let mut files = self.files();
        let file = files.get_mut(key).ok_or_else(|| self.not_found(key))?;
        let protection = &mut file.protection;
        protection.immutable_until = protection.immutable_until.max(Some(until));
        protection.locked |= locked;
        Ok(())
    }

    async fn set_legal_hold(&self, key: &Key, hold: bool) -> Result<(), Error> {
        let mut files = self.files();
        let file = files.get_mut(key).ok_or_else(|| self.not_found(key))?;
        file.protection.legal_hold = hold;
        Ok(())
    }
}
