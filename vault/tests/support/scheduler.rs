//! Stores that wait for their turn: a scheduler decides whose call goes next, so that real code is interleaved call by call.
//!
//! An actor is whoever has its own [`Actor`] store; it may have several calls at once. The scheduler lets one call go when every actor
//! that lives has a call waiting (or its work has ended), so the order depends on the seed and hardly on the machine.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{Notify, oneshot};
use vaultferry_vault::store::{Entry, Error, Key, Page, Put, Shared, Store, Tier};

#[derive(Debug, Default)]
struct State {
    /// Waiting calls of each actor that lives.
    waiting: BTreeMap<usize, Vec<oneshot::Sender<()>>>,
    /// Calls that were let go and have not ended.
    running: usize,
}

#[derive(Debug, Default)]
pub struct Scheduler {
    state: Mutex<State>,
    changed: Notify,
}

impl Scheduler {
    /// A store for one more actor.
    pub fn actor(self: &Arc<Self>, inner: Shared) -> Arc<Actor> {
        let mut state = self.lock();
        let number = state.waiting.keys().last().map_or(0, |last| last + 1);
        state.waiting.insert(number, Vec::new());
        Arc::new(Actor { inner, number, scheduler: self.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets calls go until no actor lives. `kill`: the actor that never gets another turn after so many.
    pub async fn run(&self, seed: u64, kill: Option<(usize, u32)>) -> u32 {
        let mut random = StdRng::seed_from_u64(seed);
        let (mut turns, mut turns_of, mut last) = (0, BTreeMap::<usize, u32>::new(), None);
        loop {
            let changed = self.changed.notified();
            let go = {
                let mut state = self.lock();
                if state.waiting.is_empty() {
                    return turns;
                }
                let dead = |actor: &usize| {
                    kill.is_some_and(|(victim, after)| {
                        victim == *actor && turns_of.get(actor).is_some_and(|t| *t >= after)
                    })
                };
                let ready: Vec<usize> = state.waiting.keys().copied().filter(|actor| !dead(actor)).collect();
                if ready.is_empty() {
                    return turns;
                }
                let all_wait = ready.iter().all(|actor| !state.waiting[actor].is_empty());
                if all_wait && state.running == 0 {
                    // Long runs of one actor are as telling as quick changes.
                    let again = last.filter(|actor| ready.contains(actor) && random.random_bool(0.7));
                    let actor = again.unwrap_or_else(|| ready[random.random_range(0..ready.len())]);
                    let calls = state.waiting.get_mut(&actor).expect("it is ready");
                    let call = random.random_range(0..calls.len());
                    let call = calls.remove(call);
                    state.running += 1;
                    last = Some(actor);
                    *turns_of.entry(actor).or_default() += 1;
                    turns += 1;
                    Some(call)
                } else {
                    None
                }
            };
            match go {
                Some(call) => {
                    if call.send(()).is_err() {
                        self.lock().running -= 1;
                    }
                }
                None => changed.await,
            }
        }
    }
}

/// A store whose calls wait for their turn.
#[derive(Debug)]
pub struct Actor {
    inner: Shared,
    number: usize,
    scheduler: Arc<Scheduler>,
}

impl Actor {
    /// Tells that the actor's work has ended. Its calls go at once from now on.
    pub fn end(&self) {
        self.scheduler.lock().waiting.remove(&self.number);
        self.scheduler.changed.notify_one();
    }

    async fn call<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let turn = {
            let mut state = self.scheduler.lock();
            state.waiting.get_mut(&self.number).map(|calls| {
                let (sender, turn) = oneshot::channel();
                calls.push(sender);
                turn
            })
        };
        self.scheduler.changed.notify_one();
        let Some(turn) = turn else { return work.await };
        if turn.await.is_err() {
            return work.await;
        }
        let result = work.await;
        self.scheduler.lock().running -= 1;
        self.scheduler.changed.notify_one();
        result
    }
}

#[async_trait]
impl Store for Actor {
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
