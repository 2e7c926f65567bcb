//! The coordinator as a service: opened, run until it is told to stop, drained.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::admin;
use vaultferry_vault::keys::WrapKey;
use vaultferry_vault::location::Access;
use vaultferry_vault::records::VaultRecord;

use crate::api;
use crate::catalog::Catalog;
use crate::catalog::sqlite::Sqlite;
use crate::job::{Jobs, Shared};
use crate::link::Link;
use crate::plugin;
use crate::scheduler::Scheduler;

/// Running jobs may finish for this long after the agent was told to stop; systemd's own patience is 90 s.
const DRAIN: Duration = Duration::from_secs(30);

/// What the coordinator needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Catalog, vault key, lock. Made when it is not there, mode 0700.
    pub state_dir: PathBuf,
    /// Sockets on which the API is served.
    pub listen: Vec<PathBuf>,
    /// The vault.
    pub vault: Access,
    /// Its region, when a new one is made.
    pub region: Option<String>,
    /// Plugins by source type.
    pub plugins: BTreeMap<String, plugin::Command>,
    /// User data in memory of one plugin at most, in bytes.
    pub bytes_in_flight: u64,
    /// Bytes that one plugin sends to the vault in a second at most, on average; `None`: no limit.
    pub upload_bytes_per_s: Option<u64>,
    /// Jobs that run at once.
    pub jobs: usize,
    /// The vault is this program's default, and is made when it is not there.
    pub create_default_vault: bool,
}

/// What came of [`init_vault`].
#[derive(Debug)]
pub struct InitOutcome {
    /// 32 hexadecimal digits.
    pub vault_id: String,
    /// A folder, or azure://account/name.
    pub location: String,
    /// Where the vault key is.
    pub key_path: PathBuf,
    /// Of a new vault: to be shown once.
    pub recovery_key: Option<SecretString>,
    /// It was there already; nothing was changed.
    pub existed: bool,
}

/// Makes the configured vault, unless it is there. Needs no running agent. May be repeated after a kill.
pub async fn init_vault(config: &Config, redundancy: &str) -> Result<InitOutcome, Problem> {
    create_private_dir(&config.state_dir)?;
    let key_path = admin::key_path(&config.state_dir);
    let region = config.region.as_deref().unwrap_or("");
    let cancel = CancellationToken::new();
    let made = admin::init(&config.vault, region, redundancy, &key_path, &cancel).await?;
    Ok(InitOutcome {
        vault_id: made.vault.id,
        location: config.vault.location.to_string(),
        key_path,
        recovery_key: made.recovery_key,
        existed: made.existed,
    })
}

/// Geo-redundant storage is the field's default (V49).
const DEFAULT_REDUNDANCY: &str = "geo-redundant";

fn create_private_dir(path: &Path) -> Result<(), Problem> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|error| {
        let message = format!("the folder {} cannot be made: {error}", path.display());
        Problem::new(Reason::InvalidConfiguration, message)
    })
}

/// A coordinator that is ready to serve.
#[derive(Debug)]
pub struct Service {
    listen: Vec<PathBuf>,
    catalog: Arc<dyn Catalog>,
    shared: Arc<Shared>,
    jobs: Jobs,
    vault: VaultRecord,
    /// Held as long as the service lives: one agent for one state folder.
    _lock: File,
}

impl Service {
    /// Takes the state folder, opens vault and catalog. Nothing is served yet, and no job is touched.
    pub async fn open(config: Config) -> Result<Self, Problem> {
        create_private_dir(&config.state_dir)?;
        let lock = lock(&config.state_dir)?;
        if config.create_default_vault {
            let made = init_vault(&config, DEFAULT_REDUNDANCY).await?;
            if !made.existed {
                // A recovery key is for people, and a log is no place for it: `vault init` prints one for the vault that it makes.
                tracing::info!(
                    vault = made.location,
                    key = %made.key_path.display(),
                    "made the default vault; keep a copy of its key elsewhere: without it nobody can read the vault"
                );
            }
        }
        let cancel = CancellationToken::new();
        let root = config.vault.open_root()?;
        let vault = admin::open(&root, &cancel).await?;
        let vault_key = WrapKey::load(&admin::key_path(&config.state_dir))?;
        let catalog: Arc<dyn Catalog> = Arc::new(Sqlite::open(&config.state_dir.join("catalog.sqlite"))?);
        let runtime_dir = config.state_dir.join("run");
        fresh_dir(&runtime_dir)?;
        let shared = Arc::new(Shared {
            catalog: catalog.clone(),
            vault: config.vault,
            vault_key,
            plugins: config.plugins,
            runtime_dir,
            state_dir: config.state_dir,
            bytes_in_flight: config.bytes_in_flight,
            upload_bytes_per_s: config.upload_bytes_per_s,
            link: Link,
        });
        let jobs = Jobs::new(shared.clone(), config.jobs);
        Ok(Self { listen: config.listen, catalog, shared, jobs, vault, _lock: lock })
    }

    /// Recovers the jobs of an earlier life, serves until `shutdown`, then drains: no new calls, running jobs may finish for 30 s, the
    /// rest is interrupted.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Problem> {
        self.jobs.recover().await?;
        let changed = Arc::new(Notify::new());
        let tasks = TaskTracker::new();
        let scheduler = Scheduler::new(self.catalog.clone(), self.jobs.clone(), changed.clone());
        tasks.spawn(scheduler.run(shutdown.clone()));
        let api = api::Api::new(self.catalog, self.shared, self.jobs.clone(), self.vault, changed);
        let served = api.serve(&self.listen, shutdown.clone()).await;
        shutdown.cancel();
        tasks.close();
        tasks.wait().await;
        self.jobs.drain(DRAIN).await;
        served
    }
}

fn lock(state_dir: &Path) -> Result<File, Problem> {
    let path = state_dir.join("agent.lock");
    let cannot = |detail: String| Problem::new(Reason::InvalidConfiguration, format!("{}: {detail}", path.display()));
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| cannot(error.to_string()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(cannot("another agent uses this state folder".to_owned())
            .with_fix("Stop the other agent, or give this one a state_dir of its own.")),
        Err(std::fs::TryLockError::Error(error)) => Err(cannot(error.to_string())),
    }
}

/// Plugins' sockets of an earlier life are of no use.
fn fresh_dir(path: &Path) -> Result<(), Problem> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let message = format!("the folder {} cannot be emptied: {error}", path.display());
            Err(Problem::new(Reason::InvalidConfiguration, message))
        }
        _ => create_private_dir(path),
    }
}
