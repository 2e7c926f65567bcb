//! What is outside of the agent and outlives it: the stores, their weather, the sources, the catalog's file, the time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use vaultferry_vault::store::Shared;
use vaultferry_vault::store::memory::Memory;
use vaultferry_vault::{Id, simulate};

use super::dice::Dice;
use super::process::Process;
use super::service;
use super::shape::Shape;
use super::store::Weathered;

/// The folder that the vault is configured as. It is on no disk.
pub const VAULT: &str = "/simulated/vault";

/// Entries on a page of a listing. Small pages are tested with the stores; here they are calls that nothing comes of.
const PAGE_ENTRIES: usize = 200;

/// How the stores behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// As they should.
    Calm,
    /// So many of a thousand calls fail, lose their answers, or are slow.
    Storm(u32),
    /// Nothing answers.
    Away,
}

/// A data source.
#[derive(Debug, Clone)]
pub struct Source {
    /// Nothing can be read until then.
    pub away_until: Timestamp,
    /// What its large stream is made of; changes now and then.
    pub base: u64,
}

/// What a plugin has staged: the truth that a point is compared with.
#[derive(Debug, Clone)]
pub struct Made {
    pub job_id: String,
    pub streams: Vec<(String, Vec<u8>)>,
}

/// See the module.
#[derive(Debug)]
pub struct World {
    /// The agent's state folder.
    pub dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
pub struct State {
    pub dice: Dice,
    pub shape: Shape,
    pub weather: Weather,
    /// Of plugins, so many of a thousand are killed or stopped at one of their steps.
    pub plugin_faults: u32,
    /// The agent that lives now.
    pub agent: Arc<Process>,
    pub sources: BTreeMap<String, Source>,
    pub made: HashMap<Id, Made>,
    /// Jobs whose restore has come to its end, and was compared.
    pub restored: HashSet<String>,
    /// The agent has a backup service.
    pub has_service: bool,
    pub service: service::State,
    /// What must never happen, seen when it happened.
    pub broken: Vec<String>,
    /// Instances whose last point may go: they were deleted by a person.
    pub given_up: Vec<String>,
    /// By the instance's id; the vault's own records under "".
    stores: BTreeMap<String, Arc<Memory>>,
    changes: HashMap<String, u64>,
    guests: u64,
    /// What happened, for whoever reads a failure.
    pub story: Vec<String>,
}

impl World {
    pub fn new(seed: u64, dir: &Path) -> Arc<Self> {
        let shape = Shape::of(seed);
        let state = State {
            dice: Dice::new(seed),
            shape,
            weather: Weather::Calm,
            plugin_faults: 0,
            agent: Arc::default(),
            sources: BTreeMap::new(),
            made: HashMap::new(),
            restored: HashSet::new(),
            has_service: shape.service,
            service: service::State::new(seed),
            broken: Vec::new(),
            given_up: Vec::new(),
            stores: BTreeMap::new(),
            changes: HashMap::new(),
            guests: 0,
            story: Vec::new(),
        };
        Arc::new(Self { dir: dir.to_owned(), state: Mutex::new(state) })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what happens.
    pub fn tell(&self, what: impl std::fmt::Display) {
        let line = format!("{} {what}", vaultferry_vault::clock::now());
        if std::env::var_os("VAULTFERRY_YEAR_STORY").is_some() {
            eprintln!("{line}");
        }
        self.state().story.push(line);
    }

    /// Notes what must not happen.
    pub fn broken(&self, what: String) {
        self.state().broken.push(format!("{} {what}", vaultferry_vault::clock::now()));
    }

    /// A restore has brought these streams back, which must be those that were read from the source.
    pub fn restored(&self, job_id: &str, point: &Id, streams: &[(String, Vec<u8>)]) {
        let mut state = self.state();
        let by_name = |streams: &[(String, Vec<u8>)]| streams.iter().cloned().collect::<BTreeMap<String, Vec<u8>>>();
        let is_same = state.made.get(point).is_some_and(|made| by_name(&made.streams) == by_name(streams));
        if !is_same {
            let now = vaultferry_vault::clock::now();
            state.broken.push(format!("{now} the job {job_id} has restored something else than the point {point}"));
        }
        state.restored.insert(job_id.to_owned());
    }

    /// Somebody writes to the instance's store, or deletes there.
    pub fn note_change(&self, instance_id: &str) {
        let mut state = self.state();
        match state.changes.get_mut(instance_id) {
            Some(changes) => *changes += 1,
            None => drop(state.changes.insert(instance_id.to_owned(), 1)),
        }
    }

    /// How often that was.
    pub fn changes(&self, instance_id: &str) -> u64 {
        self.state().changes.get(instance_id).copied().unwrap_or(0)
    }

    /// The archive has brought out what it was asked for.
    pub fn finish_rehydration(&self) {
        self.state().stores.values().for_each(|store| store.finish_rehydration());
    }

    /// A new agent begins to live; its stores are those of the vault's folder on this thread.
    pub fn new_life(self: &Arc<Self>) -> Arc<Process> {
        let agent = Arc::<Process>::default();
        self.state().agent = agent.clone();
        let door = Door { world: self.clone(), processes: vec![agent.clone()] };
        simulate::put_place(Path::new(VAULT), Some(Arc::new(door)));
        agent
    }

    /// The place of a plugin that runs as that process, for the life of the answer.
    pub fn guest(self: &Arc<Self>, process: Arc<Process>) -> GuestPlace {
        let mut state = self.state();
        state.guests += 1;
        let path = PathBuf::from(format!("/simulated/guest-{}", state.guests));
        let processes = vec![state.agent.clone(), process];
        simulate::put_place(&path, Some(Arc::new(Door { world: self.clone(), processes })));
        GuestPlace(path)
    }

    /// The bare store, without weather.
    pub fn memory(&self, instance_id: &str) -> Arc<Memory> {
        let mut state = self.state();
        let memory = state.stores.entry(instance_id.to_owned());
        memory
            .or_insert_with(|| {
                let name = if instance_id.is_empty() { "root" } else { instance_id };
                Arc::new(Memory::with_pages(name, PAGE_ENTRIES))
            })
            .clone()
    }

    /// Instances that have a store.
    pub fn instance_ids(&self) -> Vec<String> {
        self.state().stores.keys().filter(|id| !id.is_empty()).cloned().collect()
    }

    /// The clock of this thread jumps.
    pub fn jump(&self, by: SignedDuration) {
        simulate::set_now(vaultferry_vault::clock::now() + by);
    }
}

/// Removed from the thread's places when dropped.
#[derive(Debug)]
pub struct GuestPlace(pub PathBuf);

impl Drop for GuestPlace {
    fn drop(&mut self) {
        simulate::put_place(&self.0, None);
    }
}

/// The stores as some processes see them, all of which must live.
#[derive(Debug)]
struct Door {
    world: Arc<World>,
    processes: Vec<Arc<Process>>,
}

impl simulate::Place for Door {
    fn store(&self, instance_id: Option<&str>) -> Shared {
        let id = instance_id.unwrap_or_default();
        Arc::new(Weathered::new(self.world.clone(), id, self.world.memory(id), self.processes.clone()))
    }

    fn instance_ids(&self) -> Vec<String> {
        self.world.instance_ids()
    }
}
