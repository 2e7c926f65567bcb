//! The whole life of a repository, in an order that a seed draws: backups, deletions, undeletions, prunes, the archive, manifests, kills.
//! After every step the checks find nothing, with and without the key, and every point that should be there reads byte for byte.
//!
//! `VAULTFERRY_TEST_SEED` repeats one seed; with `VAULTFERRY_TEST_ALL=1` there are more of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;
use vaultferry_vault::check::{self, Depth};
use vaultferry_vault::commit;
use vaultferry_vault::keys::WrapKey;
use vaultferry_vault::manifest::{self, Scope};
use vaultferry_vault::meter::Meter;
use vaultferry_vault::points::{self, PointState};
use vaultferry_vault::prune;
use vaultferry_vault::reader::PointReader;
use vaultferry_vault::records::{self, InstanceRecord, PasswordRecord, SourceLogin};
use vaultferry_vault::repository::Repository;
use vaultferry_vault::store::memory::Memory;
use vaultferry_vault::store::{self, Shared, Store as _};
use vaultferry_vault::writer::{self, Backup, SnapshotMeta};
use vaultferry_vault::{Error, Id, archive};

#[path = "support/dying.rs"]
mod dying;
#[path = "support/record.rs"]
mod record;

use dying::{Dying, Last};
use record::record;

const STEPS: usize = 60;

fn never() -> CancellationToken {
    CancellationToken::new()
}

fn password() -> SecretString {
    SecretString::from("5e".repeat(32))
}

fn content(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; 6000];
    StdRng::seed_from_u64(number).fill(&mut bytes[..]);
    bytes
}

/// True for what [`Dying`] says itself: a store that does nothing any more must not pass for damage or for anything else.
fn is_death(error: &Error) -> bool {
    matches!(error, Error::Store(store::Error::Rejected { detail, .. }) if detail == "dead")
}

/// Where a point that was published has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Listed,
    Deleted,
    Purged,
}

struct Life {
    memory: Arc<Memory>,
    random: StdRng,
    /// Streams of every published point.
    points: BTreeMap<Id, (Vec<u64>, Place)>,
    jobs: u64,
}

impl Life {
    fn shared(&self) -> Shared {
        self.memory.clone()
    }

    /// The store as it is, or one whose user dies at some call.
    fn store(&mut self) -> Shared {
        if self.random.random_bool(0.6) {
            return self.shared();
        }
        let last = if self.random.random_bool(0.5) { Last::Done } else { Last::NotDone };
        Arc::new(Dying::new(self.shared(), self.random.random_range(3..60), last))
    }

    async fn open(&self, store: &Shared) -> Result<Arc<Repository>, Error> {
        Repository::open(store.clone(), &password(), &never()).await.map(Arc::new)
    }

    async fn states(&self) -> Vec<PointState> {
        points::read_all(&*self.memory, &never()).await.expect("states")
    }

    async fn pick(&mut self, wanted: impl Fn(&PointState) -> bool) -> Option<Id> {
        let found: Vec<Id> =
            self.states().await.into_iter().filter(|state| wanted(state)).map(|state| state.id).collect();
        found.choose(&mut self.random).copied()
    }

    async fn back_up(&mut self) -> Result<(), Error> {
        self.jobs += 1;
        let mut streams: Vec<u64> =
            (0..self.random.random_range(1..4)).map(|_| self.random.random_range(0..10)).collect();
        streams.sort_unstable();
        streams.dedup();
        let store = self.store();
        let repository = self.open(&store).await?;
        let options = writer::Options::default();
        let mut backup = Backup::begin(repository, options, Arc::new(Meter::default()), &never()).await?;
        for number in &streams {
            match backup.write_stream(&format!("s{number}"), &content(*number)[..], &never()).await {
                Ok(_) => {}
                Err(writer::WriteError::Vault(error)) => return Err(error),
                Err(error) => panic!("{error}"),
            }
        }
        let job_id = format!("job{}", self.jobs);
        let tags = vec![format!("job={job_id}")];
        let meta = SnapshotMeta { time: jiff::Timestamp::now(), hostname: "host".to_owned(), tags };
        let staged = backup.stage(meta, &never()).await?;
        let record = record(&job_id, &staged);
        // Journaled: from here on a kill is gone on from, with prunes between, as a restart of the agent does it.
        let mut store = store;
        loop {
            let committed = async {
                commit::verify(&*store, &record, &never()).await?;
                commit::prepare(&*store, &record, &never()).await?;
                commit::publish(&*store, &record, &never()).await
            };
            match committed.await {
                Ok(()) => break,
                Err(Error::PrunedMeanwhile { .. } | Error::StagedIncomplete { .. }) => {
                    assert!(!commit::is_committed(&*self.memory, &record.snapshot_id, &never()).await.expect("asked"));
                    commit::abandon(&*self.memory, &record, &never()).await.expect("abandoned");
                    return Ok(());
                }
                Err(error) if Arc::ptr_eq(&store, &self.shared()) => return Err(error),
                Err(_) => store = self.shared(),
            }
            if commit::is_committed(&*self.memory, &record.snapshot_id, &never()).await.expect("asked") {
                break;
            }
            for _ in 0..self.random.random_range(0..3) {
                let _ = self.prune().await;
            }
        }
        self.points.insert(record.snapshot_id, (streams, Place::Listed));
        Ok(())
    }

    async fn prune(&mut self) -> Result<(), Error> {
        let store = self.store();
        let repository = self.open(&store).await?;
        let options =
            prune::Options { lease_term: std::time::Duration::ZERO, merge_from: 3, ..prune::Options::default() };
        prune::run(&repository, &options, &Meter::default(), &never()).await.map(|_| ())
    }

    /// One step. What dies is an error; what a restart does about it comes afterwards.
    async fn step(&mut self) -> (&'static str, Result<(), Error>) {
        let kind = self.random.random_range(0..13);
        match kind {
            0..4 => ("backup", self.back_up().await),
            4 => {
                let Some(id) = self.pick(|state| state.is_listed() && state.held.is_none()).await else {
                    return ("nothing", Ok(()));
                };
                let far = self.random.random_bool(0.5);
                let purge_time = if far { jiff::Timestamp::MAX } else { jiff::Timestamp::UNIX_EPOCH };
                let store = self.store();
                ("delete", points::soft_delete(&*store, &id, purge_time, &never()).await.map(|_| ()))
            }
            5 => {
                let Some(id) = self.pick(|state| state.soft_deleted.is_some() && !state.purged).await else {
                    return ("nothing", Ok(()));
                };
                let store = self.store();
                ("undelete", points::undelete(&*store, &id, &never()).await)
            }
            6 | 7 => ("prune", self.prune().await),
            8 => {
                let Some(id) = self.pick(|state| state.in_vault).await else { return ("nothing", Ok(())) };
                let store = self.store();
                let copy = async {
                    let repository = self.open(&store).await?;
                    self.jobs += 1;
                    let (job, meter) = (format!("job{}", self.jobs), Arc::new(Meter::default()));
                    archive::copy_point(&repository, &id, &job, &meter, &never()).await.map(|_| ())
                };
                ("archive", copy.await)
            }
            9 => {
                let Some(id) = self.pick(|state| state.in_vault && state.in_archive && state.archived).await else {
                    return ("nothing", Ok(()));
                };
                let store = self.store();
                ("remove from the vault", points::remove_from_vault(&*store, &id, &never()).await)
            }
            10 => {
                // Also one that is half moved, or moved.
                let Some(id) = self.pick(PointState::is_listed).await else { return ("nothing", Ok(())) };
                let store = self.store();
                let moved = async {
                    let repository = self.open(&store).await?;
                    self.jobs += 1;
                    let (job, meter) = (format!("job{}", self.jobs), Arc::new(Meter::default()));
                    archive::move_point(&repository, &id, &job, &meter, &never()).await.map(|_| ())
                };
                ("move", moved.await)
            }
            11 => {
                let store = self.store();
                let prune = async {
                    let repository = self.open(&store).await?;
                    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * 200);
                    archive::prune(&repository, later, false, &never()).await.map(|_| ())
                };
                ("prune the archive", prune.await)
            }
            _ => {
                let store = self.store();
                ("manifest", manifest::append(&*store, Scope::Instance, &[], &never()).await.map(|_| ()))
            }
        }
    }

    /// Compares what is there with what should be, reads all of it, and lets the checks look.
    async fn look(&mut self, what: &str) {
        points::finish_interrupted(&*self.memory, &never()).await.expect("finished");
        let states: BTreeMap<Id, PointState> = self.states().await.into_iter().map(|state| (state.id, state)).collect();
        for (id, (_, place)) in &mut self.points {
            let state = &states[id];
            // Which of its two ends a killed step has come to, the log says; the files must agree with it.
            *place = match (state.purged, state.soft_deleted) {
                (true, _) => Place::Purged,
                (false, Some(_)) => Place::Deleted,
                (false, None) => Place::Listed,
            };
            assert_eq!(state.is_listed(), *place == Place::Listed, "{what}: {state:?}");
        }
        assert_eq!(states.values().filter(|state| state.is_listed()).count(), self.listed().len(), "{what}");
        let store = self.shared();
        let repository = self.open(&store).await.expect("open");
        let meter = Meter::default();
        let keyless = check::keyless(&*store, Depth::ReadData, &meter, &never()).await.expect("checked");
        assert!(keyless.is_clean(), "{what}: without the key: {:#?}", keyless.findings);
        let full = check::full(&repository, Depth::ReadData, &meter, &never()).await.expect("checked");
        assert!(full.is_clean(), "{what}: with the key: {:#?}", full.findings);
        for id in self.listed() {
            let streams = self.points[&id].0.clone();
            if states[&id].in_vault {
                read(repository.clone(), id, &streams).await;
            }
            if states[&id].in_archive {
                archive::rehydrate(&repository, &id, "restore", &never()).await.expect("asked");
                self.memory.finish_rehydration();
                read(Arc::new(archive::open(&repository).expect("archive")), id, &streams).await;
                archive::clean_up_rehydrated(&repository, "restore", &never()).await.expect("cleaned up");
            }
        }
    }

    fn listed(&self) -> Vec<Id> {
        self.points.iter().filter(|(_, (_, place))| *place == Place::Listed).map(|(id, _)| *id).collect()
    }
}

async fn read(repository: Arc<Repository>, id: Id, streams: &[u64]) {
    let point = PointReader::open(repository, id, &never()).await.expect("a point");
    assert_eq!(point.streams().len(), streams.len());
    for number in streams {
        let mut bytes = Vec::new();
        let mut chunks = point.chunks(&format!("s{number}"), &never()).expect("a stream");
        while let Some(chunk) = chunks.next().await {
            bytes.extend_from_slice(&chunk.expect("a chunk"));
        }
        assert!(bytes == content(*number), "stream {number} of {id}");
    }
}

#[allow(clippy::print_stdout, reason = "whoever sees a failure needs the seed")]
async fn live(seed: u64) {
    println!("seed {seed}");
    let memory = Arc::new(Memory::new("life"));
    let shared: Shared = memory.clone();
    Repository::init(shared, &password(), &never()).await.expect("init");
    let now = jiff::Timestamp::now();
    let instance = InstanceRecord {
        version: records::VERSION,
        id: "0123456789abcdef0123456789abcdef".to_owned(),
        name: "shop".to_owned(),
        create_time: now,
        source_type: "postgres".to_owned(),
        source_uri: "postgres://backup@db.example/shop".to_owned(),
        region: String::new(),
        policy: "nightly".to_owned(),
        login: SourceLogin::Default,
        source_identity: String::new(),
        protection: vaultferry_vault::records::Protection::Active,
    };
    records::put(&*memory, &records::numbered("instance/", 1), &instance).await.expect("put");
    let key = WrapKey::generate().expect("a key");
    let wrapped = key.wrap(password().expose_secret().as_bytes(), "instance:0123456789abcdef0123456789abcdef");
    let record = PasswordRecord { version: records::VERSION, create_time: now, password: wrapped.expect("wrapped") };
    records::put(&*memory, &records::numbered("keys/", 1), &record).await.expect("put");
    manifest::append(&*memory, Scope::Instance, &[], &never()).await.expect("the first manifest");
    let mut life = Life { memory, random: StdRng::seed_from_u64(seed), points: BTreeMap::new(), jobs: 0 };
    for step in 0..STEPS {
        let (what, result) = life.step().await;
        let what = format!("seed {seed}, step {step}, {what}: {result:?}");
        if let Err(error) = &result {
            assert!(is_death(error) || matches!(error, Error::MaintenanceBusy { .. }), "{what}");
        }
        life.look(&what).await;
    }
    let is_there = |states: Vec<PointState>| states.iter().any(PointState::is_listed);
    assert!(is_there(life.states().await) || life.points.is_empty(), "seed {seed}: {}", life.memory.location());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_checks_find_nothing_and_points_read() {
    let all = std::env::var_os("VAULTFERRY_TEST_ALL").is_some();
    let seeds: Vec<u64> = match std::env::var("VAULTFERRY_TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("VAULTFERRY_TEST_SEED is a number")],
        Err(_) => (0..if all { 200 } else { 6 }).map(|_| rand::random_range(0..1_000_000)).collect(),
    };
    for seed in seeds {
        live(seed).await;
    }
}
