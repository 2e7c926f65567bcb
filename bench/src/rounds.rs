//! The rounds: everything that is compared runs in the same round, in an order that rotates from round to round.

use std::cell::Cell;
use std::fs;
use std::net::SocketAddrV4;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use vaultferry_tests::postgres::{Server, uri_for};

use crate::Result;
use crate::azurite::{Authority, Azurite};
use crate::data;
use crate::line::{Line, Slowness};
use crate::measure::{self, Action, Measured, Servers};
use crate::results::{Phase, Record, Results};
use crate::settings::Settings;
use crate::tools::{BASELINE, DATABASE, KINDS, Kind, OURS, OURS_READER, Place, Site, Tool, Vaultferry};

/// The source's rate in the comparison with and without latency.
const LIMITED_RATE: f64 = 50e6;
/// Added to each request.
const LATENCY: Duration = Duration::from_millis(100);
/// A tenth of the full size.
const SMALL_SCALE: f64 = 0.1;
const SMALL_DATABASE: &str = "small";

/// What all rounds share.
#[derive(Debug)]
pub struct World {
    settings: Settings,
    server: Rc<Server>,
    authority: Rc<Authority>,
    /// Everything on disk but the server and the agents' state.
    dir: tempfile::TempDir,
    /// Makes the folders' names.
    sites: Cell<u32>,
}

/// A tool that has been made and backed up once.
struct Running {
    kind: &'static Kind,
    tool: Box<dyn Tool>,
    dir: PathBuf,
}

impl World {
    /// Starts the server and fills the database.
    pub fn new(settings: &Settings) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("vf-bench-").tempdir_in(&settings.dir)?;
        let authority = Rc::new(Authority::new(dir.path())?);
        let mut server = Server::start();
        // No autovacuum and no checkpoint in the middle of a measurement.
        for setting in [
            "shared_buffers = '1GB'",
            "maintenance_work_mem = '512MB'",
            "max_wal_size = '8GB'",
            "checkpoint_timeout = '30min'",
            "autovacuum = off",
        ] {
            server.psql("postgres", &format!("alter system set {setting}"));
        }
        server.restart();
        data::generate(&server, DATABASE, settings.scale())?;
        Ok(Self { settings: settings.clone(), server: Rc::new(server), authority, dir, sites: Cell::new(0) })
    }

    /// The folder whose file system holds the repositories.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Tables and indexes of the database, in bytes.
    pub fn database_bytes(&self) -> Result<u64> {
        Ok(self.server.psql("postgres", &format!("select pg_database_size('{DATABASE}')")).parse()?)
    }

    /// The server's version.
    pub fn server_version(&self) -> String {
        self.server.psql("postgres", "show server_version")
    }

    fn site(&self) -> Result<Site> {
        self.sites.set(self.sites.get() + 1);
        let dir = self.dir.path().join(format!("site-{}", self.sites.get()));
        fs::create_dir(&dir)?;
        let (server, authority) = (Rc::clone(&self.server), Rc::clone(&self.authority));
        Ok(Site { server, dir, authority })
    }

    fn servers(&self, azurite: Option<&Azurite>) -> Servers {
        let pid_file = fs::read_to_string(self.server.data_dir().join("postmaster.pid")).unwrap_or_default();
        let postgres = pid_file.lines().next().and_then(|line| line.trim().parse().ok());
        Servers { postgres, azurite: azurite.map(Azurite::pid) }
    }

    fn measure(&self, action: Action, azurite: Option<&Azurite>) -> Result<Measured> {
        measure::run(action, self.servers(azurite), self.dir.path())
    }

    /// The stream's length. It also brings the tables into memory, so that no tool is the first to read them.
    fn source_bytes(&self) -> Result<u64> {
        measure::stopped()?;
        let mut dump = self.site()?.dump();
        let mut child = dump.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut stdout = child.stdout.take().ok_or("pg_dump has no standard output")?;
        let bytes = std::io::copy(&mut stdout, &mut std::io::sink())?;
        if child.wait()?.success() { Ok(bytes) } else { Err("pg_dump fails".into()) }
    }

    /// One round: first backups, the change, second backups, reading.
    ///
    /// Errors: only what no later round could do better; a tool's failure is a result.
    #[allow(clippy::print_stdout)] // told to who waits
    pub fn round(&self, round: u32, results: &mut Results) -> Result<()> {
        let places = [(Place::Folder, "folder"), (Place::Azure, "azure")];
        let places = places.into_iter().filter(|(_, part)| self.settings.wants(part)).map(|(place, _)| place);
        let places: Vec<Place> = places.collect();
        let mut source_bytes = self.source_bytes()?;
        let mut running: Vec<(Place, Vec<Running>)> = Vec::new();
        for place in places {
            let tools = self.first_backups(round, place, source_bytes, results)?;
            running.push((place, tools));
        }
        data::change(&self.server, DATABASE, round, self.settings.scale())?;
        source_bytes = self.source_bytes()?;
        for (place, tools) in &mut running {
            for Running { kind, tool, .. } in tools.iter_mut() {
                let (measured, stored) = split(self.backup(tool.as_mut(), 2));
                self.keep(results, round, Phase::Second, *place, kind.name, source_bytes, stored, measured)?;
            }
        }
        for (place, tools) in &mut running {
            for Running { kind, tool, dir } in tools.iter_mut() {
                self.read(round, *place, kind, tool.as_mut(), dir, source_bytes, results)?;
            }
        }
        for Running { kind, tool, dir } in running.into_iter().flat_map(|(_, tools)| tools) {
            // An agent that does not end in order panics; what was measured stays.
            if let Err(error) = caught(|| {
                drop(tool);
                Ok(())
            }) {
                println!("  {kind:?}: {error}");
            }
            fs::remove_dir_all(dir)?;
        }
        Ok(())
    }

    fn first_backups(
        &self,
        round: u32,
        place: Place,
        source_bytes: u64,
        results: &mut Results,
    ) -> Result<Vec<Running>> {
        let mut running = Vec::new();
        for kind in self.order(round) {
            if let Some(why) = kind.unavailable(place) {
                self.keep(results, round, Phase::First, place, kind.name, source_bytes, None, Err(why.into()))?;
                continue;
            }
            let site = self.site()?;
            let dir = site.dir.clone();
            let mut made = None;
            let outcome = caught(|| {
                let mut tool = kind.make(site, place)?;
                tool.prepare()?;
                let outcome = self.backup(tool.as_mut(), 1)?;
                made = Some(tool);
                Ok(outcome)
            });
            let (measured, stored) = split(outcome);
            self.keep(results, round, Phase::First, place, kind.name, source_bytes, stored, measured)?;
            match made {
                Some(tool) => running.push(Running { kind, tool, dir }),
                None => fs::remove_dir_all(dir)?,
            }
        }
        Ok(running)
    }

    /// The tools in the round's order. The baseline runs right before and right after ourselves: two cores of a shared machine are not the
    /// same cores a minute later, and the two runs show it.
    fn order(&self, round: u32) -> Vec<&'static Kind> {
        let is = |name: &'static str| move |kind: &&Kind| kind.name == name;
        let baseline = || KINDS.iter().filter(is(BASELINE));
        let wanted = |kind: &&Kind| kind.name != BASELINE && self.settings.wants_tool(kind.name);
        let mut kinds: Vec<&'static Kind> = KINDS.iter().filter(wanted).collect();
        let by = (round as usize - 1) % kinds.len().max(1);
        kinds.rotate_left(by);
        let ours = kinds.iter().position(is(OURS)).map_or(0..0, |at| at..at + 1);
        let around: Vec<_> = baseline().chain(kinds[ours.clone()].iter().copied()).chain(baseline()).collect();
        kinds.splice(ours, around);
        kinds
    }

    fn backup(&self, tool: &mut dyn Tool, number: u32) -> Result<(Measured, u64)> {
        caught(|| {
            let before = tool.stored_bytes()?;
            let action = tool.backup(number);
            let measured = self.measure(action, tool.azurite())?;
            Ok((measured, tool.stored_bytes()?.saturating_sub(before)))
        })
    }

    #[allow(clippy::too_many_arguments)] // what a record needs, and the folder
    fn read(
        &self,
        round: u32,
        place: Place,
        kind: &Kind,
        tool: &mut dyn Tool,
        dir: &Path,
        source_bytes: u64,
        results: &mut Results,
    ) -> Result<()> {
        let actions = caught(|| Ok(tool.read()));
        let actions = match actions {
            Ok(actions) => actions,
            Err(error) => {
                return self.keep(results, round, Phase::Read, place, kind.name, source_bytes, None, Err(error));
            }
        };
        let mut outcomes = Vec::new();
        for (phase, action) in actions {
            // From the disk for everybody: what writes past the page cache would read from it else, and the others from memory.
            forget(dir)?;
            outcomes.push((phase, caught(|| self.measure(action, tool.azurite()))));
        }
        if let Some((_, into_file)) = outcomes.iter_mut().find(|(phase, _)| *phase == Phase::ReadFile)
            && let Err(error) = caught(|| tool.after_read())
            && into_file.is_ok()
        {
            *into_file = Err(error);
        }
        if kind.name == OURS && outcomes.len() < 2 {
            outcomes.push((Phase::Read, Err("the example read_throughput is not built".into())));
        }
        for (phase, outcome) in outcomes {
            let name = if kind.name == OURS && phase == Phase::Read { OURS_READER } else { kind.name };
            self.keep(results, round, phase, place, name, source_bytes, None, outcome)?;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // a record's fields, in one place
    fn keep(
        &self,
        results: &mut Results,
        round: u32,
        phase: Phase,
        place: Place,
        tool: &str,
        source_bytes: u64,
        stored_bytes: Option<u64>,
        outcome: Result<Measured>,
    ) -> Result<()> {
        measure::stopped()?;
        let (measured, error) = match outcome {
            Ok(measured) => (Some(measured), None),
            Err(error) => (None, Some(error.to_string())),
        };
        results.add(Record { round, phase, place, tool: tool.to_owned(), source_bytes, stored_bytes, measured, error })
    }

    /// The same backup from a limited source, through a proxy before the store, without and with 100 ms more for each request.
    pub fn latency(&self, round: u32, results: &mut Results) -> Result<()> {
        let phases = [(Phase::Near, Duration::ZERO), (Phase::Far, LATENCY)];
        let by = (round as usize - 1) % phases.len();
        for (phase, delay) in phases.into_iter().cycle().skip(by).take(phases.len()) {
            let site = self.site()?;
            let dir = site.dir.clone();
            let (measured, source, stored) = unzip(caught(|| self.slow_backup(&site, delay)));
            self.keep(results, round, phase, Place::Azure, OURS, source, stored, measured)?;
            fs::remove_dir_all(dir)?;
        }
        Ok(())
    }

    fn slow_backup(&self, site: &Site, delay: Duration) -> Result<(Measured, u64, u64)> {
        let azurite = Azurite::start(&self.authority, false)?;
        let store = Line::start(azurite.address(), Slowness { rate: None, delay })?;
        let server = SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, self.server.port());
        let source = Line::start(server, Slowness { rate: Some(LIMITED_RATE), delay: Duration::ZERO })?;
        let port = source.address().port();
        let uri = uri_for(port, DATABASE);
        let mut tool =
            Vaultferry::through(site, Some((azurite, store.address())), &uri, &self.server.passfile_for_port(port));
        let (measured, stored) = self.backup(&mut tool, 1)?;
        Ok((measured, tool.source_bytes(), stored))
    }

    /// A first backup of a tenth, to compare the memory.
    pub fn small(&self, results: &mut Results) -> Result<()> {
        data::generate(&self.server, SMALL_DATABASE, self.settings.scale() * SMALL_SCALE)?;
        let site = self.site()?;
        let (measured, source, stored) = unzip(caught(|| {
            let uri = self.server.socket_uri(SMALL_DATABASE);
            let mut tool = Vaultferry::through(&site, None, &uri, &self.server.passfile_for_socket());
            let (measured, stored) = self.backup(&mut tool, 1)?;
            Ok((measured, tool.source_bytes(), stored))
        }));
        self.keep(results, 1, Phase::Small, Place::Folder, OURS, source, stored, measured)?;
        self.server.psql("postgres", &format!("drop database {SMALL_DATABASE}"));
        fs::remove_dir_all(&site.dir)?;
        Ok(())
    }
}

/// Takes the files below a folder out of the page cache.
fn forget(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() {
            forget(&path)?;
        } else if kind.is_file() {
            let file = fs::File::open(&path)?;
            file.sync_all()?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
    }
    Ok(())
}

fn split(outcome: Result<(Measured, u64)>) -> (Result<Measured>, Option<u64>) {
    match outcome {
        Ok((measured, stored)) => (Ok(measured), Some(stored)),
        Err(error) => (Err(error), None),
    }
}

fn unzip(outcome: Result<(Measured, u64, u64)>) -> (Result<Measured>, u64, Option<u64>) {
    match outcome {
        Ok((measured, source, stored)) => (Ok(measured), source, Some(stored)),
        Err(error) => (Err(error), 0, None),
    }
}

/// The tests' helpers panic when the world is not as it should be. Here that is a run that could not be measured, not the end of all.
fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(text.unwrap_or("a panic").lines().next().unwrap_or_default().into())
    })
}
