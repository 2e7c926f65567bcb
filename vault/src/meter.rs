//! Counters that the data path moves and that progress is read from.

use std::sync::atomic::{AtomicU64, Ordering};

/// Byte counts of one job. Cheap to share; every count only grows.
#[derive(Debug, Default)]
pub struct Meter {
    read: AtomicU64,
    new: AtomicU64,
    stored: AtomicU64,
}

impl Meter {
    /// Counts bytes that came from the source (backup), or that went to the target (restore).
    pub fn add_read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes of those read that the vault does not have yet.
    pub fn add_new(&self, bytes: u64) {
        self.new.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that were added to the vault.
    pub fn add_stored(&self, bytes: u64) {
        self.stored.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes read so far.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes of those read that the vault does not have yet.
    pub fn new_bytes(&self) -> u64 {
        self.new.load(Ordering::Relaxed)
    }

    /// Bytes stored so far.
    pub fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }
}
