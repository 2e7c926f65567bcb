//! A store that fails as it is told: bad weather for tests, in this crate and above it.
//!
//! Which call fails is scripted ([`Plan::on`], [`Plan::from`]) or drawn from a seed ([`Plan::randomly`]); the same plan and the same
//! order of calls give the same faults. The store below is a real one, so what survives a fault is what a real store would hold.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::{Entry, Error, Key, Page, Put, Shared, Store, Tier};

/// The calls of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Store::head`]
    Head,
    /// [`Store::get`]
    Get,
    /// [`Store::put_if_absent`]
    Put,
    /// [`Store::list_page`]
    List,
    /// [`Store::delete`]
    Delete,
    /// [`Store::set_tier`]
    SetTier,
    /// [`Store::copy`]
    Copy,
    /// [`Store::protect`] and [`Store::set_legal_hold`]
    Protect,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing happens, and the answer is [`Error::Unavailable`].
    Unavailable,
    /// The work is done, but its answer is lost: [`Error::Unavailable`].
    LostAnswer,
    /// Half of the bytes come. Only for [`Operation::Get`]; others are answered as they should be.
    ShortAnswer,
    /// Nothing happens, and the answer is [`Error::AccessDenied`].
    AccessDenied,
    /// Nothing happens, and the answer is [`Error::Full`].
    Full,
    /// Nothing happens, and the answer is [`Error::Rejected`].
    Rejected,
    /// The work begins after this time.
    Delay(Duration),
    /// Nothing happens, and no answer ever comes.
    Hang,
}

/// When which fault happens. Counts begin with 1, per operation.
#[derive(Debug, Default)]
pub struct Plan {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    operation: Operation,
    when: When,
    fault: Fault,
}

#[derive(Debug)]
enum When {
    Exactly(u64),
    From(u64),
    Randomly(f64, Box<StdRng>),
}

impl Plan {
    /// Nothing fails.
    pub fn new() -> Self {
        Self::default()
    }

    /// The `n`-th call of the operation fails.
    #[must_use]
    pub fn on(self, operation: Operation, n: u64, fault: Fault) -> Self {
        self.with(operation, When::Exactly(n), fault)
    }

    /// The `n`-th call of the operation and all later ones fail.
    #[must_use]
    pub fn from(self, operation: Operation, n: u64, fault: Fault) -> Self {
        self.with(operation, When::From(n), fault)
    }

    /// Each call of the operation fails with this probability (0 to 1), drawn from the seed. Tests print their seed.
    #[must_use]
    pub fn randomly(self, operation: Operation, probability: f64, seed: u64, fault: Fault) -> Self {
        self.with(operation, When::Randomly(probability, Box::new(StdRng::seed_from_u64(seed))), fault)
    }

    fn with(mut self, operation: Operation, when: When, fault: Fault) -> Self {
        self.rules.push(Rule { operation, when, fault });
        self
    }

    /// The first rule that fits decides.
    fn fault(&mut self, operation: Operation, count: u64) -> Option<Fault> {
        let rules = self.rules.iter_mut().filter(|rule| rule.operation == operation);
        let mut fitting = rules.filter_map(|rule| {
            let fits = match &mut rule.when {
                When::Exactly(n) => *n == count,
                When::From(n) => *n <= count,
                When::Randomly(probability, random) => random.random_bool(probability.clamp(0.0, 1.0)),
            };
            fits.then_some(rule.fault)
        });
        fitting.next()
    }
}

/// A store with bad weather. See the module.
#[derive(Debug)]
pub struct Faulty {
    inner: Shared,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    plan: Plan,
    counts: HashMap<Operation, u64>,
}

impl Faulty {
    /// A store that fails as the plan says, and does as `inner` does otherwise.
    pub fn new(inner: Shared, plan: Plan) -> Self {
        Self { inner, state: Mutex::new(State { plan, counts: HashMap::new() }) }
    }

    /// How many calls of the operation were made, failed or not.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.state().counts.get(&operation).copied().unwrap_or(0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_fault(&self, operation: Operation) -> Option<Fault> {
        let mut state = self.state();
        let count = state.counts.entry(operation).or_default();
        *count += 1;
        let count = *count;
        state.plan.fault(operation, count)
    }

    async fn call<T>(&self, operation: Operation, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.suffer(self.next_fault(operation), work).await
    }

    async fn suffer<T>(&self, fault: Option<Fault>, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let store = self.inner.location().to_owned();
        let unavailable = |detail: &str| Error::Unavailable { store: store.clone(), detail: detail.to_owned() };
        let detail = "scripted fault".to_owned();
        match fault {
            None | Some(Fault::ShortAnswer) => work.await,
            Some(Fault::Unavailable) => Err(unavailable("503 (scripted fault)")),
            Some(Fault::LostAnswer) => {
                work.await?;
                Err(unavailable("connection reset (scripted fault)"))
            }
            Some(Fault::AccessDenied) => Err(Error::AccessDenied { store, detail }),
            Some(Fault::Full) => Err(Error::Full { store }),
            Some(Fault::Rejected) => Err(Error::Rejected { store, detail }),
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                work.await
            }
            Some(Fault::Hang) => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Store for Faulty {
    fn location(&self) -> &str {
        self.inner.location()
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>, Error> {
        self.call(Operation::Head, self.inner.head(key)).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        let fault = self.next_fault(Operation::Get);
        let mut bytes = self.suffer(fault, self.inner.get(key, range)).await?;
        if fault == Some(Fault::ShortAnswer) {
            bytes.truncate(bytes.len() / 2);
        }
        Ok(bytes)
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put, Error> {
        self.call(Operation::Put, self.inner.put_if_absent(key, body)).await
    }

    async fn list_page(&self, prefix: &str, next: Option<&str>) -> Result<Page, Error> {
        self.call(Operation::List, self.inner.list_page(prefix, next)).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.call(Operation::Delete, self.inner.delete(key)).await
    }

    async fn set_tier(&self, key: &Key, tier: Tier) -> Result<(), Error> {
        self.call(Operation::SetTier, self.inner.set_tier(key, tier)).await
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<Put, Error> {
        self.call(Operation::Copy, self.inner.copy(from, to)).await
    }

    async fn protect(&self, key: &Key, until: jiff::Timestamp, locked: bool) -> Result<(), Error> {
        self.call(Operation::Protect, self.inner.protect(key, until, locked)).await
    }

    async fn set_legal_hold(&self, key: &Key, hold: bool) -> Result<(), Error> {
        self.call(Operation::Protect, self.inner.set_legal_hold(key, hold)).await
    }
}
