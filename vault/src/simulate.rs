//! A made-up world for tests: its time of day, and folders that are not on any disk. It is there with the feature `simulate` only, which
//! nothing but dev-dependencies asks for, and even then it changes nothing for threads that did not ask for it.
//!
//! Invariants:
//! - Everything here belongs to one thread: a simulation runs on a runtime of one thread, and several of them run beside each other.
//! - Time goes on as Tokio's does ([`tokio::time::Instant`]), so a runtime whose clock is paused moves both clocks at once.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::store::Shared;

/// What a folder vault's stores are in a simulation.
pub trait Place: std::fmt::Debug + Send + Sync {
    /// The store of the vault's own records, or of that instance; made when it is not there.
    fn store(&self, instance_id: Option<&str>) -> Shared;
    /// Instances that have a store, ascending.
    fn instance_ids(&self) -> Vec<String>;
}

thread_local! {
    static CLOCK: Cell<Option<(Timestamp, Instant)>> = const { Cell::new(None) };
    static PLACES: RefCell<BTreeMap<PathBuf, Arc<dyn Place>>> = const { RefCell::new(BTreeMap::new()) };
}

static CHEAP_KEYS: AtomicBool = AtomicBool::new(false);

/// From here on it is that time of day for this thread, and goes on from there. Called again it is a clock that jumps.
pub fn set_now(now: Timestamp) {
    CLOCK.set(Some((now, Instant::now())));
}

/// The time of day, when it was set on this thread.
pub fn now() -> Option<Timestamp> {
    let (set, at) = CLOCK.get()?;
    Some(set + SignedDuration::try_from(at.elapsed()).unwrap_or(SignedDuration::MAX))
}

/// True for a thread whose time of day was set.
pub(crate) fn is_on() -> bool {
    CLOCK.get().is_some()
}

/// For this thread the folder is that place; `None`: it is a folder of the disk again.
pub fn put_place(path: &Path, place: Option<Arc<dyn Place>>) {
    PLACES.with_borrow_mut(|places| match place {
        Some(place) => places.insert(path.to_owned(), place),
        None => places.remove(path),
    });
}

/// What stands for that folder on this thread.
pub(crate) fn place(path: &Path) -> Option<Arc<dyn Place>> {
    PLACES.with_borrow(|places| places.get(path).cloned())
}

/// Repositories that are made from here on, by any thread, derive their keys at next to no cost: thousands of openings are no test of scrypt.
pub fn make_keys_cheap() {
    CHEAP_KEYS.store(true, Ordering::Relaxed);
}

/// See [`make_keys_cheap`].
pub(crate) fn are_keys_cheap() -> bool {
    CHEAP_KEYS.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_time_of_day_follows_the_paused_clock_and_jumps() {
        let day = SignedDuration::from_hours(24);
        set_now(Timestamp::UNIX_EPOCH);
        tokio::time::sleep(std::time::Duration::from_secs(86_400)).await;
        assert_eq!(crate::clock::now(), Timestamp::UNIX_EPOCH + day);
        set_now(Timestamp::UNIX_EPOCH - day);
        assert_eq!(crate::clock::now(), Timestamp::UNIX_EPOCH - day);
        let elsewhere = std::thread::spawn(crate::clock::now).join().expect("no panic");
        assert!(elsewhere > Timestamp::UNIX_EPOCH + day * 365, "another thread has its own time");
    }
}
