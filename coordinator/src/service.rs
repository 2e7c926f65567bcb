//! The coordinator as a service: opened, run until it is told to stop, drained.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::admin::{self, KeyPlace};
use vaultferry_vault::location::{Access, RoleAccess};
use vaultferry_vault::records::VaultRecord;
use vaultferry_vault::store::azure::{Credential, sas::Role};

use crate::api;
use crate::catalog::Catalog;
use crate::catalog::copy::Copies;
use crate::catalog::sqlite::Sqlite;
use crate::expiry::{self, Expiry};
use crate::job::{Jobs, LONGEST_RETRY_SLEEP, Limits, Shared};
use crate::link::{self, Link};
use crate::offline::{create_private_dir, lock};
use crate::scheduler::{self, Scheduler};
use crate::{adopt, lifecycle, offline, owner, plugin, space};

/// Running jobs may finish for this long after the agent was told to stop; systemd's own patience is 90 s.
const DRAIN: Duration = Duration::from_secs(30);

/// What the coordinator needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Catalog, lock, the agent's id. Made when it is not there, mode 0700.
    pub state_dir: PathBuf,
    /// Sockets on which the API is served.
    pub listen: Vec<PathBuf>,
    /// The vault.
    pub vault: Access,
    /// Where its key is kept.
    pub vault_key: KeyPlace,
    /// The credential that may delete; left out: the vault's own is used for everything.
    pub maintenance: Option<Credential>,
    /// Its region, when a new one is made.
    pub region: Option<String>,
    /// Plugins by source type.
    pub plugins: BTreeMap<String, plugin::Command>,
    /// User data in memory of one plugin at most, in bytes.
    pub bytes_in_flight: u64,
    /// Bytes that one plugin sends to the vault in a second at most, on average; `None`: no limit.
    pub upload_bytes_per_s: Option<u64>,
    /// Jobs that run at once.
    pub limits: Limits,
    /// Between two questions whether an archived point can be read.
    pub rehydration_poll: Duration,
    /// The vault is this program's default, and is made when it is not there.
    pub create_default_vault: bool,
    /// The backup service; none: the agent's own catalog plays its part.
    pub service: Option<link::Config>,
}

/// How often the agent looks at the clock by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// The scheduler notices a jump of the clock after this at the latest.
    pub(crate) longest_sleep: Duration,
    /// The same of attempts that are planned.
    pub(crate) longest_retry_sleep: Duration,
    /// Between two runs of retention.
    pub(crate) expiry: Duration,
    /// What looks at the machine and at servers every hour: space, copies of the catalog's file, scans. A simulation has none of these.
    pub(crate) hourly: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            longest_sleep: scheduler::LONGEST_SLEEP,
            longest_retry_sleep: LONGEST_RETRY_SLEEP,
            expiry: expiry::EVERY,
            hourly: true,
        }
    }
}

/// Geo-redundant storage is the field's default (V49).
const DEFAULT_REDUNDANCY: &str = "geo-redundant";

/// A coordinator that is ready to serve.
#[derive(Debug)]
pub struct Service {
    listen: Vec<PathBuf>,
    catalog: Arc<dyn Catalog>,
    shared: Arc<Shared>,
    jobs: Jobs,
    vault: VaultRecord,
    service: Option<link::Config>,
    /// Held as long as the service lives: one agent for one state folder.
    _lock: File,
}

impl Service {
    /// Takes the state folder, opens vault and catalog. Nothing is served yet, and no job is touched.
    pub async fn open(config: Config) -> Result<Self, Problem> {
        Self::open_with(config, |path| Ok(Arc::new(Sqlite::open(path)?))).await
    }

    /// The same with another catalog for that path.
    pub(crate) async fn open_with(
        config: Config,
        open_catalog: impl FnOnce(&Path) -> Result<Arc<dyn Catalog>, crate::catalog::Error>,
    ) -> Result<Self, Problem> {
        create_private_dir(&config.state_dir)?;
        let lock = lock(&config.state_dir)?;
        if config.create_default_vault {
            let made = offline::init_default_vault(&config, DEFAULT_REDUNDANCY).await?;
            if !made.existed {
                tracing::info!(vault = made.location, key = made.key, "made the default vault");
            }
            let recovery_key = offline::recovery_path(&config.state_dir);
            if recovery_key.exists() {
                // At every start, because it is of use only when it is elsewhere.
                tracing::warn!(
                    file = %recovery_key.display(),
                    "the vault's recovery key is still in a file of this machine: keep it elsewhere, then remove the file"
                );
            }
        }
        let cancel = CancellationToken::new();
        let root = config.vault.open_root()?;
        let vault = admin::open(&root, &cancel).await?;
        if let Some(region) = config.region.as_ref().filter(|region| !api::is_same_region(region, &vault.region)) {
            // Whoever reads the configuration would think that sources of that region are taken.
            tracing::warn!(
                region,
                "the vault was made in the region {:?}, which counts: correct [vault] region",
                vault.region
            );
        }
        let vault_key = config.vault_key.load(&root, &cancel).await?;
        let agent_id = owner::agent_id(&config.state_dir)?;
        owner::claim_at_start(&root, &agent_id, &cancel).await?;
        let catalog = open_catalog(&offline::catalog_path(&config.state_dir))?;
        catalog.set_reporting(config.service.is_some()).await?;
        let runtime_dir = config.state_dir.join("run");
        fresh_dir(&runtime_dir)?;
        let shared = Arc::new(Shared {
            catalog: catalog.clone(),
            roles: roles(&config),
            vault: config.vault,
            vault_key,
            vault_key_place: config.vault_key,
            agent_id,
            plugins: config.plugins,
            runtime_dir,
            state_dir: config.state_dir,
            bytes_in_flight: config.bytes_in_flight,
            upload_bytes_per_s: config.upload_bytes_per_s,
            rehydration_poll: config.rehydration_poll,
            link: config.service.as_ref().map_or_else(Link::default, |_| Link::of_service()),
            making: tokio::sync::Mutex::default(),
        });
        let jobs = Jobs::new(shared.clone(), config.limits);
        Ok(Self { listen: config.listen, catalog, shared, jobs, vault, service: config.service, _lock: lock })
    }

    /// Recovers the jobs of an earlier life, serves until `shutdown`, then drains: no new calls, running jobs may finish for 30 s, the
    /// rest is interrupted.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Problem> {
        let listen = self.listen.clone();
        self.run_with(Pace::default(), shutdown, async move |api, shutdown| api.serve(&listen, shutdown).await).await
    }

    /// The same, looking at the clock as often as `pace` says, and asked through whatever `serve` makes of the API.
    pub(crate) async fn run_with(
        self,
        pace: Pace,
        shutdown: CancellationToken,
        serve: impl AsyncFnOnce(api::Api, CancellationToken) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        self.adopt_records(&shutdown).await;
        lifecycle::settle_all(&self.jobs, &shutdown).await;
        lifecycle::give_up_at_start(&self.shared, &shutdown).await;
        self.jobs.recover().await?;
        let changed = Arc::new(Notify::new());
        let tasks = TaskTracker::new();
        let scheduler = Scheduler::new(self.catalog.clone(), self.jobs.clone(), changed.clone());
        tasks.spawn(scheduler.run(pace.longest_sleep, shutdown.clone()));
        tasks.spawn(Expiry::new(self.shared.clone(), self.jobs.clone()).run(pace.expiry, shutdown.clone()));
        tasks.spawn(self.jobs.clone().run_retries(pace.longest_retry_sleep, shutdown.clone()));
        let copies = Copies::new(self.shared.clone());
        if pace.hourly {
            tasks.spawn(space::watch(self.shared.clone(), shutdown.clone()));
            tasks.spawn(copies.clone().run(shutdown.clone()));
        }
        let vault_id = self.vault.id.clone();
        let api = api::Api::new(self.catalog, self.shared.clone(), self.jobs.clone(), self.vault, changed);
        let own_calls = api.clone().until(shutdown.clone());
        let link = self.service.and_then(|service| link::Task::new(service, own_calls, &self.shared, vault_id));
        if let Some(link) = link {
            tasks.spawn(link.run(shutdown.clone()));
        }
        if pace.hourly {
            tasks.spawn(api.clone().scan_servers(shutdown.clone()));
        }
        let served = serve(api, shutdown.clone()).await;
        shutdown.cancel();
        tasks.close();
        tasks.wait().await;
        self.jobs.drain(DRAIN).await;
        if pace.hourly {
            copies.at_stop().await;
        }
        served
    }
}

impl Service {
    /// What a kill left between the vault and the catalog. A store that does not answer is no reason not to serve.
    async fn adopt_records(&self, cancel: &CancellationToken) {
        let adopted = match self.shared.vault.open_root() {
            Ok(root) => match adopt::policies(&*self.catalog, &root, None, cancel).await {
                Ok(()) => adopt::servers(&*self.catalog, &root, cancel).await,
                failed => failed,
            },
            Err(error) => Err(error.into()),
        };
        if let Err(problem) = adopted
            && !cancel.is_cancelled()
        {
            tracing::warn!(
                "the vault's policies and servers are not compared with the catalog's until the next start: {problem}"
            );
        }
    }
}

fn roles(config: &Config) -> RoleAccess {
    let roles = RoleAccess::from(config.vault.clone());
    match &config.maintenance {
        Some(credential) => roles.with(Role::Maintenance, credential.clone()),
        None => roles,
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
