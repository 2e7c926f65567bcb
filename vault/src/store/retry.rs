//! The one retry layer: it wraps a store, and asks again when an error says that this may help.
//!
//! - Only [`Error::is_retryable`] errors are tried again, after a random wait ("full jitter") below a bound that doubles.
//! - Every operation has one deadline, over all its tries and waits. A try that hangs is cut off by it. A large file must get through
//!   within it too: 16 MiB in 120 s need 1.2 Mbit/s for each upload in flight.
//! - A dropped future stops, in a wait at once. What the store below promises for a dropped future holds.
//!
//! **A put that was tried again**: when the first try had happened and its answer was lost, the second is told
//! [`Put::Existed`]. For a key that is the hash of its content that is as good as `Created`. Whoever must know whether *they* created
//! a file (create-only records) compares the content.

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::{Entry, Error, Key, Page, Put, Shared, Store, Tier};

/// Bound of the first wait. A busy partition of Azure Storage moves within seconds; a lost connection is back at once.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Bound of every later wait.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How long to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// For one operation, with all its tries and waits.
    pub deadline: Duration,
}

impl Default for Config {
    /// 120 s: longer than a failover inside Azure Storage, shorter than anybody waits for an error.
    fn default() -> Self {
        Self { deadline: Duration::from_secs(120) }
    }
}

/// A store that tries again. See the module.
#[derive(Debug)]
pub struct Retrying {
    inner: Shared,
    config: Config,
}

impl Retrying {
    /// Wraps the store.
    pub fn new(inner: Shared, config: Config) -> Self {
        Self { inner, config }
    }

    async fn run<T, F>(&self, operation: &'static str, work: impl FnMut() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        retrying(&self.config, self.inner.location(), operation, work).await
    }
}

/// Does `work` until it succeeds, fails for good, or the deadline is over.
pub(crate) async fn retrying<T, F>(
    config: &Config,
    store: &str,
    operation: &'static str,
    mut work: impl FnMut() -> F,
) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let begin = Instant::now();
    let end = begin + config.deadline;
    let mut longest_wait = FIRST_WAIT;
    let mut tries = 0_u32;
    let mut last = "no answer".to_owned();
    loop {
        tries += 1;
        match tokio::time::timeout_at(end, work()).await {
            Ok(Err(Error::Unavailable { detail, .. })) => last = detail,
            Ok(result) => return result,
            Err(_) => return Err(given_up(store, operation, tries, begin, &last)),
        }
        let wait = longest_wait.mul_f64(rand::random::<f64>());
        longest_wait = (longest_wait * 2).min(LONGEST_WAIT);
        if Instant::now() + wait >= end {
            return Err(given_up(store, operation, tries, begin, &last));
        }
        tracing::debug!(store, operation, tries, wait_ms = wait.as_millis() as u64, error = last, "trying again");
        tokio::time::sleep(wait).await;
    }
}

fn given_up(store: &str, operation: &'static str, tries: u32, begin: Instant, last: &str) -> Error {
    let times = if tries == 1 { "once".to_owned() } else { format!("{tries} times") };
    let detail = format!("{last} (tried to {operation} {times} in {:.1} s)", begin.elapsed().as_secs_f64());
    Error::Unavailable { store: store.to_owned(), detail }
}

#[async_trait]
impl Store for Retrying {
    fn location(&self) -> &str {
        self.inner.location()
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>, Error> {
        self.run("look up a file", || self.inner.head(key)).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        self.run("read a file", || self.inner.get(key, range.clone())).await
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put, Error> {
        self.run("write a file", || self.inner.put_if_absent(key, body.clone())).await
    }

    async fn list_page(&self, prefix: &str, next: Option<&str>) -> Result<Page, Error> {
        self.run("list files", || self.inner.list_page(prefix, next)).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.run("delete a file", || self.inner.delete(key)).await
    }

    async fn set_tier(&self, key: &Key, tier: Tier) -> Result<(), Error> {
        self.run("move a file to a tier", || self.inner.set_tier(key, tier)).await
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<Put, Error> {
        self.run("copy a file", || self.inner.copy(from, to)).await
    }

    async fn protect(&self, key: &Key, until: jiff::Timestamp, locked: bool) -> Result<(), Error> {
        self.run("make a file immutable", || self.inner.protect(key, until, locked)).await
    }

    async fn set_legal_hold(&self, key: &Key, hold: bool) -> Result<(), Error> {
        self.run("set a legal hold", || self.inner.set_legal_hold(key, hold)).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::faulty::{Fault, Faulty, Operation, Plan};
    use super::super::memory::Memory;
    use super::*;

    const BODY: Bytes = Bytes::from_static(b"body");

    fn key() -> Key {
        Key::new("data/a").expect("key")
    }

    fn store(plan: Plan, deadline_s: u64) -> (Arc<Faulty>, Retrying) {
        let faulty = Arc::new(Faulty::new(Arc::new(Memory::new("retry")), plan));
        let shared: Shared = faulty.clone();
        (faulty, Retrying::new(shared, Config { deadline: Duration::from_secs(deadline_s) }))
    }

    #[tokio::test(start_paused = true)]
    async fn passing_faults_are_not_seen() {
        let plan = (1..=5).fold(Plan::new(), |plan, n| plan.on(Operation::Put, n, Fault::Unavailable));
        let (faulty, store) = store(plan, 120);
        assert_eq!(store.put_if_absent(&key(), BODY).await.expect("put"), Put::Created);
        assert_eq!(faulty.calls(Operation::Put), 6);
        assert_eq!(store.get(&key(), None).await.expect("get"), BODY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_answer_is_told_as_existed_and_the_file_is_there_once() {
        let (_, store) = store(Plan::new().on(Operation::Put, 1, Fault::LostAnswer), 120);
        assert_eq!(store.put_if_absent(&key(), BODY).await.expect("put"), Put::Existed);
        assert_eq!(store.get(&key(), None).await.expect("get"), BODY);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_it_and_the_error_tells_how_often() {
        let (faulty, store) = store(Plan::new().from(Operation::Put, 1, Fault::Unavailable), 120);
        let begin = Instant::now();
        let error = store.put_if_absent(&key(), BODY).await.expect_err("never succeeds");
        assert!(begin.elapsed() <= Duration::from_secs(120), "{:?}", begin.elapsed());
        assert!(begin.elapsed() >= Duration::from_secs(110), "{:?}", begin.elapsed());
        let calls = faulty.calls(Operation::Put);
        assert!(calls > 20, "{calls}");
        let text = error.to_string();
        assert!(
            text.starts_with("memory:retry is not available: 503 (scripted fault) (tried to write a file "),
            "{text}"
        );
        assert!(
            text.contains(&format!("{calls} times in 11")) || text.contains(&format!("{calls} times in 12")),
            "{text}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_hangs_is_cut_off() {
        let (_, store) = store(Plan::new().on(Operation::Head, 1, Fault::Hang), 7);
        let begin = Instant::now();
        let error = store.head(&key()).await.expect_err("no answer");
        assert_eq!(begin.elapsed().as_secs(), 7);
        assert_eq!(
            error.to_string(),
            "memory:retry is not available: no answer (tried to look up a file once in 7.0 s)"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_will_not_change_is_told_at_once() {
        for fault in [Fault::AccessDenied, Fault::Full, Fault::Rejected] {
            let (faulty, store) = store(Plan::new().on(Operation::Put, 1, fault), 120);
            let begin = Instant::now();
            store.put_if_absent(&key(), BODY).await.expect_err("refused");
            assert_eq!(begin.elapsed(), Duration::ZERO);
            assert_eq!(faulty.calls(Operation::Put), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_can_be_dropped() {
        let (faulty, store) = store(Plan::new().from(Operation::List, 1, Fault::Unavailable), 120);
        let listing = tokio::time::timeout(Duration::from_secs(1), store.list_page("", None));
        listing.await.expect_err("dropped while it waits");
        let calls = faulty.calls(Operation::List);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(faulty.calls(Operation::List), calls, "nothing goes on behind the caller's back");
    }

    #[tokio::test(start_paused = true)]
    async fn random_weather_loses_nothing() {
        let seed: u64 = rand::random();
        eprintln!("seed {seed}"); // shown when the test fails
        let plan = Plan::new()
            .randomly(Operation::Put, 0.3, seed, Fault::Unavailable)
            .randomly(Operation::Put, 0.3, seed ^ 1, Fault::LostAnswer)
            .randomly(Operation::Get, 0.5, seed ^ 2, Fault::Unavailable)
            .randomly(Operation::List, 0.5, seed ^ 3, Fault::LostAnswer);
        let (_, store) = store(plan, 120);
        for index in 0..50 {
            let key = Key::new(format!("data/{index:02}")).expect("key");
            store.put_if_absent(&key, Bytes::from(index.to_string())).await.expect("put");
        }
        let entries: Vec<_> =
            futures::TryStreamExt::try_collect(super::super::list(&store, "data/")).await.expect("list");
        assert_eq!(entries.len(), 50);
        for (index, entry) in entries.iter().enumerate() {
            assert_eq!(store.get(&entry.key, None).await.expect("get"), index.to_string());
        }
    }
}
