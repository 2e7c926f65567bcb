//! The maintenance lease: who works on an instance's repository, so that two do not do the same work.
//!
//! `lease/<n>.json` names the holder and until when it may be believed. The highest n counts. A lease is taken and renewed by creating the
//! next number, so of two who try one succeeds; it is given back by deleting the file.
//!
//! Invariants:
//! - Nothing that must be right rests on a lease: prunes are fenced by their epochs. It saves work, and deletions from being asked twice.
//! - A holder that was killed blocks for [`TERM`] at most. Clocks that disagree make that longer or shorter, no more. It does not block at
//!   all where its death can be proven: on the same machine, since the same boot ([`Process::is_surely_dead`]).
//! - A holder that could not renew in time, or was overtaken, hears of it ([`Lease::lost`]) and stops.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::blocking::with_cancel;
use crate::error::Error;
use crate::process::Process;
use crate::records::{self, LEASES};
use crate::repository::crypto;
use crate::store::{self, Put, Store};

/// How long a lease lasts that is not renewed. Longer than a store's retries (minutes), shorter than anybody waits for.
pub const TERM: Duration = Duration::from_secs(600);
/// A lease is renewed when this part of its term has passed, so that two renewals may fail.
const RENEWALS_PER_TERM: u32 = 3;
/// Between two renewals at least, however short the term.
const LEAST_RENEWAL: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseRecord {
    version: u32,
    /// Random, 32 hexadecimal digits: made anew for each lease.
    holder: String,
    /// For people: what is going on.
    purpose: String,
    create_time: jiff::Timestamp,
    expire_time: jiff::Timestamp,
    /// Who works, where that can be told. Records of before have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    process: Option<Process>,
}

impl LeaseRecord {
    /// True when somebody may be at work, who is not this holder.
    fn is_in_the_way(&self, holder: &str, now: jiff::Timestamp) -> bool {
        let is_dead = || self.process.as_ref().is_some_and(Process::is_surely_dead);
        self.holder != holder && self.expire_time > now && !is_dead()
    }
}

/// A lease that is held and renewed until it is released. Dropped, it is no longer renewed, and expires.
#[derive(Debug)]
pub struct Lease {
    store: store::Shared,
    holder: String,
    lost: CancellationToken,
    _renewal: AbortOnDropHandle<()>,
}

impl Lease {
    /// Takes the lease of the instance's store. [`Error::MaintenanceBusy`] when somebody else holds it.
    pub async fn acquire(
        store: &store::Shared,
        purpose: &str,
        term: Duration,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        let mut random = [0; 16];
        crypto::fill_random(&mut random)?;
        let holder = hex::encode(random);
        with_cancel(cancel, take(&**store, &holder, purpose, term)).await?;
        let lost = CancellationToken::new();
        let renewal = renew(store.clone(), holder.clone(), purpose.to_owned(), term, lost.clone());
        let renewal = AbortOnDropHandle::new(tokio::spawn(renewal));
        Ok(Self { store: store.clone(), holder, lost, _renewal: renewal })
    }

    /// Cancelled when the lease is no longer this holder's.
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Gives the lease back. Best effort: what fails here costs others a wait.
    pub async fn release(self) {
        let Self { store, holder, _renewal, .. } = self;
        drop(_renewal);
        let release = async {
            for n in records::numbers(&*store, LEASES).await? {
                let key = records::numbered(LEASES, n);
                if records::get::<LeaseRecord>(&*store, &key).await?.holder == holder {
                    store.delete(&key).await?;
                }
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = release.await {
            tracing::info!(store = store.location(), "the maintenance lease is left to expire: {error}");
        }
    }
}

/// Creates the next lease record, when the newest one is the holder's own, has expired, or is a dead process's.
async fn take(store: &dyn Store, holder: &str, purpose: &str, term: Duration) -> Result<(), Error> {
    let busy = |detail: String| Error::MaintenanceBusy { store: store.location().to_owned(), detail };
    let numbers = records::numbers(store, LEASES).await?;
    let now = crate::clock::now();
    if let Some(newest) = numbers.last() {
        match records::get::<LeaseRecord>(store, &records::numbered(LEASES, *newest)).await {
            Ok(other) if other.is_in_the_way(holder, now) => {
                return Err(busy(format!("{} since {}", other.purpose, other.create_time)));
            }
            // Given back just now.
            Ok(_) | Err(Error::Store(store::Error::NotFound { .. })) => {}
            Err(error) => return Err(error),
        }
    }
    let record = LeaseRecord {
        version: records::VERSION,
        holder: holder.to_owned(),
        purpose: purpose.to_owned(),
        create_time: now,
        expire_time: now + term,
        process: Process::this(),
    };
    let next = numbers.last().map_or(0, |newest| *newest) + 1;
    if records::put(store, &records::numbered(LEASES, next), &record).await? == Put::Existed {
        return Err(busy("it began at this moment".to_owned()));
    }
    for old in numbers {
        store.delete(&records::numbered(LEASES, old)).await?;
    }
    Ok(())
}

async fn renew(store: store::Shared, holder: String, purpose: String, term: Duration, lost: CancellationToken) {
    let mut held_until = tokio::time::Instant::now() + term;
    loop {
        tokio::time::sleep((term / RENEWALS_PER_TERM).max(LEAST_RENEWAL)).await;
        let begun = tokio::time::Instant::now();
        match take(&*store, &holder, &purpose, term).await {
            Ok(()) => held_until = begun + term,
            Err(error @ Error::MaintenanceBusy { .. }) => {
                tracing::warn!(store = store.location(), "the maintenance lease was taken over: {error}");
                return lost.cancel();
            }
            Err(error) if tokio::time::Instant::now() >= held_until => {
                tracing::warn!(store = store.location(), "the maintenance lease could not be renewed: {error}");
                return lost.cancel();
            }
            Err(error) => tracing::info!(store = store.location(), "the maintenance lease is renewed later: {error}"),
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::memory::Memory;

    /// A lease of an hour, of that process.
    async fn of(process: Option<Process>) -> store::Shared {
        let store: store::Shared = Arc::new(Memory::new("lease"));
        let now = crate::clock::now();
        let record = LeaseRecord {
            version: records::VERSION,
            holder: "0".repeat(32),
            purpose: "prune".to_owned(),
            create_time: now,
            expire_time: now + Duration::from_secs(3600),
            process,
        };
        records::put(&*store, &records::numbered(LEASES, 1), &record).await.expect("put");
        store
    }

    async fn acquire(store: &store::Shared) -> Result<Lease, Error> {
        Lease::acquire(store, "prune", TERM, &CancellationToken::new()).await
    }

    #[tokio::test]
    async fn only_who_is_surely_dead_is_not_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let process = Process::of(child.id()).expect("it runs");
        let (living, unknown) = (of(Some(process.clone())).await, of(None).await);
        for store in [&living, &unknown] {
            let refused = acquire(store).await;
            assert!(matches!(refused, Err(Error::MaintenanceBusy { .. })), "{refused:?}");
        }
        child.kill().expect("killed");
        child.wait().expect("gone");
        let lease = acquire(&living).await.expect("its holder is dead");
        assert!(matches!(acquire(&living).await, Err(Error::MaintenanceBusy { .. })), "this one lives");
        lease.release().await;
        assert!(records::numbers(&*living, LEASES).await.expect("listed").is_empty(), "nothing of the dead is left");
        assert!(matches!(acquire(&unknown).await, Err(Error::MaintenanceBusy { .. })));
        // As a version of before wrote it.
        let old = r#"{"version":1,"holder":"1","purpose":"prune","create_time":"2026-01-02T03:04:05Z","expire_time":"2026-01-02T03:14:05Z"}"#;
        assert_eq!(serde_json::from_str::<LeaseRecord>(old).expect("it is read").process, None);
    }
}
