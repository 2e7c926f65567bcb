//! Lives of the agent. Each has a runtime of its own with a paused clock, and dropping the runtime is the kill: whatever the agent was at
//! ends at the await where it stands.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vaultferry_vault::admin::{self, KeyPlace};
use vaultferry_vault::location::{Access, Location};
use vaultferry_vault::simulate;

use super::check::Book;
use super::plugins::{Kind, Plugins};
use super::service::Service;
use super::world::{VAULT, Weather, World};
use crate::api::Api;
use crate::catalog::Catalog;
use crate::catalog::sqlite::Sqlite;
use crate::service::{Config, Pace};
use crate::{link, plugin};

/// Looking more often costs time and finds nothing: nothing is due in between but after a jump of the clock.
const PACE: Pace = Pace {
    longest_sleep: Duration::from_secs(4 * 3600),
    longest_retry_sleep: Duration::from_secs(600),
    expiry: Duration::from_secs(12 * 3600),
    hourly: false,
};

/// How a life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Killed,
    Stopped,
    /// The vault did not answer.
    NotStarted,
    /// The year is over.
    Over,
}

/// What happened in some years.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    pub lives: u64,
    pub kills: u64,
    pub checks: u64,
    pub full_checks: u64,
    pub completed: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub restored: u64,
    pub points_read: u64,
}

impl Totals {
    pub fn add(&mut self, other: &Self) {
        self.lives += other.lives;
        self.kills += other.kills;
        self.checks += other.checks;
        self.full_checks += other.full_checks;
        self.completed += other.completed;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.restored += other.restored;
        self.points_read += other.points_read;
    }
}

/// A year in the making.
#[derive(Debug)]
pub struct Year {
    pub world: Arc<World>,
    pub catalog: Arc<Sqlite>,
    pub book: Book,
    pub totals: Totals,
    /// What the clock of the machine says.
    now: Timestamp,
    /// How long the year has been, whatever the clock says.
    before: Duration,
    begun: Instant,
}

/// Simulates a year. An error tells what went wrong, and when.
pub fn year(seed: u64) -> Result<Totals, String> {
    simulate::make_keys_cheap();
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let world = World::new(seed, dir.path());
    let of = world.clone();
    let step = Arc::new(move || -> futures::future::BoxFuture<'static, ()> {
        let agent = of.state().agent.clone();
        Box::pin(async move { agent.step().await })
    });
    let catalog = Arc::new(Sqlite::in_memory(step).map_err(|error| error.to_string())?);
    let day = world.state().dice.between(0, 364);
    let start: Timestamp = "2026-01-01T00:00:00Z".parse().map_err(|error: jiff::Error| error.to_string())?;
    let mut year = Year {
        book: Book::new(),
        totals: Totals::default(),
        now: start + SignedDuration::from_hours(24 * day),
        before: Duration::ZERO,
        begun: Instant::now(),
        catalog,
        world,
    };
    let failed = |year: &Year, what: String| {
        let state = year.world.state();
        let story = &state.story[state.story.len().saturating_sub(40)..];
        format!("seed {seed}, VAULTFERRY_YEAR_SEED={seed} repeats it: {what}\n  {}", story.join("\n  "))
    };
    year.first_day().map_err(|what| failed(&year, what))?;
    loop {
        match year.live() {
            Ok(Ended::Over) => return Ok(year.totals),
            Ok(ended) => year.between_lives(ended),
            Err(what) => return Err(failed(&year, what)),
        }
    }
}

impl Year {
    /// How long the year has been.
    pub fn elapsed(&self) -> Duration {
        self.before + self.begun.elapsed()
    }

    /// Does something on a runtime of its own, at whose end everything that it has begun is gone.
    fn on_a_runtime<T>(&mut self, work: impl AsyncFnOnce(&mut Self) -> T) -> Result<T, String> {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().map_err(|error| error.to_string())?;
        Ok(runtime.block_on(async {
            self.begun = Instant::now();
            simulate::set_now(self.now);
            let answer = work(&mut *self).await;
            self.now = vaultferry_vault::clock::now();
            self.before += self.begun.elapsed();
            answer
        }))
    }

    fn first_day(&mut self) -> Result<(), String> {
        self.on_a_runtime(async |year| {
            year.world.new_life();
            let Config { vault, vault_key, .. } = year.config();
            let made = admin::init_with(&vault, "", "geo-redundant", &vault_key, None, &CancellationToken::new()).await;
            made.map(|_| ()).map_err(|error| error.to_string())
        })?
    }

    fn live(&mut self) -> Result<Ended, String> {
        self.totals.lives += 1;
        self.on_a_runtime(async |year| {
            let process = year.world.new_life();
            tokio::select! {
                biased;
                () = process.dead().cancelled() => Ok(Ended::Killed),
                ended = year.agent() => ended,
            }
        })?
    }

    /// What the agent is told at its start.
    pub fn config(&self) -> Config {
        let dir = &self.world.dir;
        let host: Arc<dyn link::in_process::Host> = Arc::new(Service::new(self.world.clone()));
        let has_service = self.world.state().has_service;
        let service = has_service.then(|| link::Config {
            endpoint: "http://service.invalid".to_owned(),
            ca: None,
            identity: None,
            token: None,
            in_process: Some(link::in_process::Way { host, look_again: Duration::from_secs(3600) }),
        });
        let served = |kind: Kind| plugin::Command {
            program: PathBuf::new(),
            args: Vec::new(),
            settings_json: String::new(),
            in_process: Some(Arc::new(Plugins { world: self.world.clone(), kind })),
        };
        Config {
            state_dir: dir.join("state"),
            listen: Vec::new(),
            vault: Access {
                location: Location::Folder(PathBuf::from(VAULT)),
                endpoint: None,
                credential: None,
                store_deadline: Duration::from_secs(60),
            },
            vault_key: KeyPlace::File(dir.join("vault.key")),
            maintenance: None,
            region: None,
            plugins: BTreeMap::from([
                ("postgres".to_owned(), served(Kind::Workload)),
                (plugin::MAINTENANCE.to_owned(), served(Kind::Maintenance)),
            ]),
            bytes_in_flight: 0,
            upload_bytes_per_s: None,
            limits: crate::job::Limits::from(2),
            service,
            rehydration_poll: Duration::from_secs(600),
            create_default_vault: false,
        }
    }

    async fn agent(&mut self) -> Result<Ended, String> {
        let catalog: Arc<dyn Catalog> = self.catalog.clone();
        let service = match crate::service::Service::open_with(self.config(), |_| Ok(catalog)).await {
            Ok(service) => service,
            Err(problem) if self.world.state().weather == Weather::Calm => {
                return Err(format!("the agent does not start: {problem}"));
            }
            Err(problem) => {
                self.world.tell(format!("the agent does not start: {problem}"));
                return Ok(Ended::NotStarted);
            }
        };
        let stop = CancellationToken::new();
        let (give, given) = oneshot::channel();
        let serve = async move |api: Api, stop: CancellationToken| {
            let _ = give.send(api);
            stop.cancelled().await;
            Ok(())
        };
        let agent = service.run_with(PACE, stop.clone(), serve);
        tokio::pin!(agent);
        let story = async {
            match given.await {
                Ok(api) => self.story(&api).await,
                // The agent has ended, which is told beside.
                Err(_) => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            served = &mut agent => return Err(format!("the agent ended by itself: {served:?}")),
            ended = story => ended?,
        };
        stop.cancel();
        agent.await.map_err(|problem| format!("the agent did not stop well: {problem}"))?;
        Ok(ended)
    }

    /// The machine is off for a while.
    fn between_lives(&mut self, ended: Ended) {
        if ended == Ended::Killed {
            self.totals.kills += 1;
        }
        let mut state = self.world.state();
        let seconds = match state.dice.below(20) {
            _ if ended == Ended::NotStarted => 300,
            0..13 => state.dice.between(1, 1800),
            13..19 => state.dice.between(1800, 24 * 3600),
            _ => state.dice.between(24 * 3600, 9 * 24 * 3600),
        };
        if ended == Ended::NotStarted && state.dice.chance(300) {
            state.weather = Weather::Calm;
        }
        self.now += SignedDuration::from_secs(seconds);
        self.before += Duration::from_secs(seconds.unsigned_abs());
        state.story.push(format!("{} the agent was {ended:?} and is back after {seconds} s", self.now));
    }
}
