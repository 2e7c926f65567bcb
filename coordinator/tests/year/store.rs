//! A store in the world's weather, as some processes see it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use vaultferry_vault::records;
use vaultferry_vault::repository::FileKind;
use vaultferry_vault::store::memory::Memory;
use vaultferry_vault::store::{Entry, Error, Key, Page, Put, Store, Tier};

use super::process::Process;
use super::world::{Weather, World};

/// See the module.
#[derive(Debug)]
pub struct Weathered {
    world: Arc<World>,
    instance_id: String,
    memory: Arc<Memory>,
    processes: Vec<Arc<Process>>,
}

/// What the weather does to a call.
enum Fault {
    Unavailable,
    LostAnswer,
    Slow(Duration),
    Hang,
}

impl Weathered {
    pub fn new(world: Arc<World>, instance_id: &str, memory: Arc<Memory>, processes: Vec<Arc<Process>>) -> Self {
        Self { world, instance_id: instance_id.to_owned(), memory, processes }
    }

    fn fault(&self) -> Option<Fault> {
        let mut state = self.world.state();
        let weather = state.weather;
        match weather {
            Weather::Calm => None,
            Weather::Away => Some(Fault::Unavailable),
            Weather::Storm(often) if !state.dice.chance(often) => None,
            Weather::Storm(_) => Some(match state.dice.below(20) {
                0..9 => Fault::Unavailable,
                9..14 => Fault::LostAnswer,
                14..19 => Fault::Slow(Duration::from_millis(state.dice.below(20_000))),
                _ => Fault::Hang,
            }),
        }
    }

    async fn step(&self) {
        for process in &self.processes {
            process.step().await;
        }
    }

    async fn call<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.step().await;
        let unavailable = || Error::Unavailable { store: self.location().to_owned(), detail: "the weather".to_owned() };
        let answer = match self.fault() {
            None => work.await,
            Some(Fault::Unavailable) => Err(unavailable()),
            Some(Fault::LostAnswer) => work.await.and(Err(unavailable())),
            Some(Fault::Slow(time)) => {
                tokio::time::sleep(time).await;
                self.step().await;
                work.await
            }
            Some(Fault::Hang) => std::future::pending().await,
        };
        self.step().await;
        answer
    }

    /// Notes a change at the moment at which it happens.
    async fn changing<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.world.note_change(&self.instance_id);
        work.await
    }

    /// Of a protected instance the last listed point never goes.
    fn watch_deletion(&self, key: &Key) {
        let hot = FileKind::Snapshot.prefix();
        let archive = format!("{}{hot}", records::ARCHIVE);
        if !key.as_str().starts_with(hot) && !key.as_str().starts_with(&archive) {
            return;
        }
        let is_left = [hot, &archive].iter().any(|prefix| self.memory.holds_beside(prefix, key));
        let given_up = self.world.state().given_up.contains(&self.instance_id);
        if !is_left && !given_up {
            self.world.broken(format!("the last point of {} is taken off the list: {key}", self.instance_id));
        }
    }
}

#[async_trait]
impl Store for Weathered {
    fn location(&self) -> &str {
        self.memory.location()
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>, Error> {
        self.call(self.memory.head(key)).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        self.call(self.memory.get(key, range)).await
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put, Error> {
        self.call(self.changing(self.memory.put_if_absent(key, body))).await
    }

    async fn list_page(&self, prefix: &str, next: Option<&str>) -> Result<Page, Error> {
        self.call(self.memory.list_page(prefix, next)).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        let delete = async {
            self.watch_deletion(key);
            self.world.note_change(&self.instance_id);
            self.memory.delete(key).await
        };
        self.call(delete).await
    }

    async fn set_tier(&self, key: &Key, tier: Tier) -> Result<(), Error> {
        self.call(self.changing(self.memory.set_tier(key, tier))).await
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<Put, Error> {
        self.call(self.changing(self.memory.copy(from, to))).await
    }

    async fn protect(&self, key: &Key, until: jiff::Timestamp, locked: bool) -> Result<(), Error> {
        self.call(self.changing(self.memory.protect(key, until, locked))).await
    }

    async fn set_legal_hold(&self, key: &Key, hold: bool) -> Result<(), Error> {
        self.call(self.changing(self.memory.set_legal_hold(key, hold))).await
    }
}

/// The same files in whatever tier they lie, for whoever checks: it only reads.
#[derive(Debug)]
pub struct Peek(pub Arc<Memory>);

#[async_trait]
impl Store for Peek {
    fn location(&self) -> &str {
        self.0.location()
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>, Error> {
        Ok(self.0.head(key).await?.map(|entry| Entry { tier: Tier::Hot, ..entry }))
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        let Some(body) = self.0.peek(key) else { return self.0.get(key, range).await };
        let (from, to) = range.map_or((0, body.len()), |range| (range.start as usize, range.end as usize));
        match from <= to && to <= body.len() {
            true => Ok(body.slice(from..to)),
            false => Err(self.refused()),
        }
    }

    async fn put_if_absent(&self, _: &Key, _: Bytes) -> Result<Put, Error> {
        Err(self.refused())
    }

    async fn list_page(&self, prefix: &str, next: Option<&str>) -> Result<Page, Error> {
        let mut page = self.0.list_page(prefix, next).await?;
        page.entries.iter_mut().for_each(|entry| entry.tier = Tier::Hot);
        Ok(page)
    }

    async fn delete(&self, _: &Key) -> Result<(), Error> {
        Err(self.refused())
    }

    async fn set_tier(&self, _: &Key, _: Tier) -> Result<(), Error> {
        Err(self.refused())
    }

    async fn copy(&self, _: &Key, _: &Key) -> Result<Put, Error> {
        Err(self.refused())
    }

    async fn protect(&self, _: &Key, _: jiff::Timestamp, _: bool) -> Result<(), Error> {
        Err(self.refused())
    }

    async fn set_legal_hold(&self, _: &Key, _: bool) -> Result<(), Error> {
        Err(self.refused())
    }
}

impl Peek {
    fn refused(&self) -> Error {
        Error::Rejected { store: self.location().to_owned(), detail: "it is only looked at".to_owned() }
    }
}
