//! The configuration: one TOML file < environment (`VAULTFERRY__SECTION__KEY`) < flags.
//!
//! Invariants:
//! - Unknown keys are refused, and every fault is told in one go.
//! - Secrets are named by variables of the environment; their values are in [`Azure::secret`] only, which redacts itself.
//! - A fault never repeats a value that could be a secret put in the wrong place.

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use vaultferry_coordinator::vault::{KeyUrl, Location, network};
use vaultferry_proto::{Problem, Reason};

mod coordinator;
mod endpoint;
mod network_section;
mod reader;
mod service;
mod surroundings;
mod values;
mod vm;

#[cfg(test)]
mod tests;

pub use endpoint::Endpoint;
pub use service::Service;
pub use surroundings::Surroundings;
pub use values::{is_variable_name, read_limit};
pub use vm::Vm;

use reader::{Faults, Section};

/// The file that is read when none is named and it exists.
const DEFAULT_FILE: &str = "/etc/vaultferry/agent.toml";
const LEAST_BYTES_IN_FLIGHT: u64 = vaultferry_coordinator::vault::MIN_BYTES_IN_FLIGHT;
const DEFAULT_BYTES_IN_FLIGHT: u64 = 64 << 20;
const DEFAULT_JOBS: usize = 4;
/// Two dumps leave a server room for its own work.
const DEFAULT_JOBS_PER_SERVER: usize = 2;
/// A copy or a check reads as fast as it can: one at a time leaves the disks and the line to backups.
const DEFAULT_MAINTENANCE_JOBS: usize = 1;
/// Each job is a process with its own memory; more than this on one machine is taken for a slip of the finger.
const MOST_JOBS: usize = 64;
/// With the longest pause between them more than a working day; whoever wants more wants another time of the day.
const MOST_LOCK_RETRIES: u32 = 100;
/// Longer than a store's usual restart or failover, shorter than anybody's patience.
pub const DEFAULT_STORE_DEADLINE: Duration = Duration::from_secs(120);
/// A rehydration takes hours: asking more often costs requests and tells nothing.
const DEFAULT_REHYDRATION_POLL: Duration = Duration::from_secs(600);
/// The names that Azure's own command line uses.
const DEFAULT_ACCESS_KEY_ENV: &str = "AZURE_STORAGE_KEY";
const DEFAULT_SAS_ENV: &str = "AZURE_STORAGE_SAS_TOKEN";

/// What the agent uses, after file, environment and defaults.
#[derive(Debug)]
pub struct Settings {
    /// The file that was read; none when defaults and environment are all there is.
    pub file: Option<PathBuf>,
    /// Catalog, journal and key files.
    pub state_dir: PathBuf,
    /// At least one.
    pub listen: Vec<Endpoint>,
    /// The vault's place.
    pub vault: Vault,
    /// The PostgreSQL plugin's section.
    pub postgres: Postgres,
    /// The section of the plugin for machines' disks.
    pub vm: Vm,
    /// Bounds of memory, processes and patience.
    pub limits: Limits,
    /// The backup service; none: the agent works for itself.
    pub service: Option<Service>,
    /// The way out: proxy and authorities. Without secrets.
    pub network: network::Settings,
}

/// `[vault]`
#[derive(Debug)]
pub struct Vault {
    /// None: a folder under `state_dir`, which `agent run` makes by itself.
    pub location: Option<Location>,
    /// A source or target in another region is refused by name.
    pub region: Option<String>,
    /// Only for `azure://` locations.
    pub azure: Option<Azure>,
    /// Where the vault key is kept.
    pub key: Key,
}

/// `[vault.key]`
#[derive(Debug)]
pub enum Key {
    /// In a file; none: `vault.key` under `state_dir`.
    File(Option<PathBuf>),
    /// In Azure Key Vault.
    KeyVault {
        /// The key's address.
        key: KeyUrl,
        /// Where the bearer token comes from.
        token: Token,
    },
}

/// Where a bearer token comes from.
#[derive(Debug)]
pub enum Token {
    /// A file that is read before every request, so that somebody else can keep a valid token in it.
    File(PathBuf),
    /// A variable of the environment.
    Variable {
        /// Its name.
        variable: String,
        /// Its value; none when the variable is not set, which is a fault for [`Purpose::Agent`].
        secret: Option<SecretString>,
    },
}

/// `[vault.azure]`
#[derive(Debug)]
pub struct Azure {
    /// Only for emulators and private clouds.
    pub endpoint: Option<url::Url>,
    /// What the secret is.
    pub credential: CredentialKind,
    /// The variable that holds the secret.
    pub variable: String,
    /// Its value; none when the variable is not set, which is a fault for [`Purpose::Agent`].
    pub secret: Option<SecretString>,
    /// A shared access signature for the maintenance plugin alone, which may delete; none: `secret` is used for everything.
    pub maintenance_secret: Option<SecretString>,
}

/// `credential` of `[vault.azure]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialKind {
    /// The storage account's key: every right on the account.
    AccessKey,
    /// A shared access signature.
    Sas,
}

impl CredentialKind {
    /// As it is written in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AccessKey => "access-key",
            Self::Sas => "sas",
        }
    }
}

/// `[postgres]`; handed to the plugin as JSON. What is left out is for the plugin to know.
#[derive(Debug, Default, serde::Serialize)]
pub struct Postgres {
    /// Folders with pg_dump and pg_restore; empty means Debian's places.
    pub client_dirs: Vec<PathBuf>,
    /// How long one try waits for a table's lock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock_timeout_s: Option<u64>,
    /// How often it is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock_retries: Option<u32>,
    /// A snapshot that is held for longer is a warning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_budget_s: Option<u64>,
    /// A backup whose snapshot is held for so long is ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_limit_s: Option<u64>,
    /// Somebody who waits for longer for a table of the backup is a warning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ddl_budget_s: Option<u64>,
    /// A backup for which somebody waits for so long gives way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub yield_to_ddl_s: Option<u64>,
    /// Bytes of the source that are read in a second at most, on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_limit_bytes_per_s: Option<u64>,
    /// A standby that is further behind is a finding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replica_lag_s: Option<u64>,
}

/// `[limits]`
#[derive(Debug)]
pub struct Limits {
    /// Bytes of user data in each plugin's memory.
    pub bytes_in_flight: u64,
    /// Bytes that one job sends to the vault in a second at most, on average; `None`: no limit.
    pub upload: Option<u64>,
    /// Jobs that run at the same time.
    pub jobs: vaultferry_coordinator::Limits,
    /// An operation on the store is given up after so long a time of retries.
    pub store_deadline: Duration,
    /// Between two questions whether an archived point can be read.
    pub rehydration_poll: Duration,
}

/// What the configuration is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To open the vault: the credential's variable has to be set.
    Agent,
    /// To find the agent.
    Client,
}

/// Reads the file (`flag`, else the default one if it exists) and the environment.
///
/// Errors: [`Reason::InvalidConfiguration`] with every fault, one a line.
pub fn load(flag: Option<&Path>, surroundings: &Surroundings, purpose: Purpose) -> Result<Settings, Problem> {
    let file = flag.map(Path::to_path_buf).or_else(|| {
        let default = Path::new(DEFAULT_FILE);
        default.exists().then(|| default.to_path_buf())
    });
    let text = match &file {
        None => String::new(),
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            let message = format!("cannot read the configuration file {}: {error}", path.display());
            Problem::new(Reason::InvalidConfiguration, message).with_fix("Name a readable file with --config.")
        })?,
    };
    let mut faults = Faults::default();
    let settings = parse(file.clone(), &text, surroundings, purpose, &mut faults);
    match settings {
        Some(settings) if faults.is_empty() => Ok(settings),
        _ => Err(faults.into_problem(file.as_deref())),
    }
}

/// None when nothing could be read at all; otherwise settings that are only good if there are no faults.
fn parse(
    file: Option<PathBuf>,
    text: &str,
    surroundings: &Surroundings,
    purpose: Purpose,
    faults: &mut Faults,
) -> Option<Settings> {
    let mut root = Section::root(text, surroundings, faults)?;
    let state_dir = root
        .parsed("state_dir", faults, values::absolute_path)
        .or_else(|| surroundings.default_state_dir())
        .unwrap_or_else(|| {
            faults.add("state_dir", "no default is known without $HOME; name a folder");
            PathBuf::new()
        });
    let listen = listen(&mut root, surroundings, &state_dir, faults);
    let vault = vault(root.section("vault", faults), surroundings, purpose, faults);
    let postgres = postgres(root.section("postgres", faults), faults);
    let vm = vm::read(root.section("vm", faults), faults);
    let limits = limits(root.section("limits", faults), faults);
    let service = service::read(&mut root, surroundings, purpose, faults);
    let network = network_section::read(root.section("network", faults), surroundings, purpose, faults);
    root.refuse("tls", "this version listens on unix sockets only; leave [tls] out", faults);
    root.refuse("http", "this version serves no HTTP; leave [http] out", faults);
    root.finish(faults);
    Some(Settings { file, state_dir, listen, vault, postgres, vm, limits, service, network })
}

fn listen(root: &mut Section, surroundings: &Surroundings, state_dir: &Path, faults: &mut Faults) -> Vec<Endpoint> {
    let Some(texts) = root.list("listen", faults) else {
        return vec![surroundings.default_endpoint(state_dir)];
    };
    if texts.is_empty() {
        faults.add("listen", "name at least one listener, or leave the key out");
    }
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match text.parse() {
            Ok(endpoint) if endpoints.contains(&endpoint) => faults.add(&format!("listen[{index}]"), "is there twice"),
            Ok(endpoint) => endpoints.push(endpoint),
            Err(fault) => faults.add(&format!("listen[{index}]"), fault),
        }
    }
    endpoints
}

fn vault(mut section: Section, surroundings: &Surroundings, purpose: Purpose, faults: &mut Faults) -> Vault {
    let location = section.parsed("location", faults, values::location);
    let region = section.parsed("region", faults, values::region);
    let has_azure_section = section.has("azure");
    let azure_section = section.section("azure", faults);
    let on_azure = matches!(location, Some(Location::Azure { .. }));
    if has_azure_section && !on_azure && !section.is_faulty("location", faults) {
        faults.add("vault.azure", "is only for a location azure://account/name");
    }
    let azure = azure(azure_section, surroundings, purpose, on_azure, faults);
    let key = key(section.section("key", faults), surroundings, purpose, faults);
    section.finish(faults);
    Vault { location, region, azure: azure.filter(|_| on_azure), key }
}

fn key(mut section: Section, surroundings: &Surroundings, purpose: Purpose, faults: &mut Faults) -> Key {
    let places = ["file", "key_vault"].map(|key| section.has(key));
    let tokens = ["token_env", "token_file"].map(|key| section.has(key));
    let file = section.parsed("file", faults, values::absolute_path);
    let key_vault = section.parsed("key_vault", faults, values::key_url);
    let token_env = section.parsed("token_env", faults, values::variable_name);
    let token_file = section.parsed("token_file", faults, values::absolute_path);
    section.finish(faults);
    match places {
        [true, true] => faults.add("vault.key", "is in a file or in Key Vault, not in both"),
        [_, false] if tokens.contains(&true) => faults.add("vault.key", "a token is for key_vault only"),
        [_, true] if tokens[0] == tokens[1] => {
            faults.add("vault.key", "key_vault needs a token: token_env or token_file, and one of them");
        }
        _ => {}
    }
    let Some(key) = key_vault else { return Key::File(file) };
    let token = match (token_file, token_env) {
        (Some(path), _) => Token::File(path),
        (None, variable) => {
            let variable = variable.unwrap_or_default();
            let secret = surroundings.variable(&variable).map(|value| SecretString::from(value.to_owned()));
            if purpose == Purpose::Agent && !variable.is_empty() && secret.is_none() {
                let fault = format!("the environment has no variable {variable}, or it is empty");
                faults.add("vault.key.token_env", fault);
            }
            Token::Variable { variable, secret }
        }
    };
    Key::KeyVault { key, token }
}

fn azure(
    mut section: Section,
    surroundings: &Surroundings,
    purpose: Purpose,
    needed: bool,
    faults: &mut Faults,
) -> Option<Azure> {
    let endpoint = section.parsed("endpoint", faults, values::http_url);
    let credential = section.parsed("credential", faults, values::credential_kind);
    let access_key_env = section.parsed("access_key_env", faults, values::variable_name);
    let sas_env = section.parsed("sas_env", faults, values::variable_name);
    let maintenance_sas_env = section.parsed("maintenance_sas_env", faults, values::variable_name);
    if needed && credential.is_none() && !section.is_faulty("credential", faults) {
        faults.add("vault.azure.credential", "is missing: access-key or sas");
    }
    let credential_is_good = !section.is_faulty("access_key_env", faults) && !section.is_faulty("sas_env", faults);
    section.finish(faults);
    let credential = credential?;
    let (key, variable) = match credential {
        CredentialKind::AccessKey => {
            ("access_key_env", access_key_env.unwrap_or_else(|| DEFAULT_ACCESS_KEY_ENV.into()))
        }
        CredentialKind::Sas => ("sas_env", sas_env.unwrap_or_else(|| DEFAULT_SAS_ENV.into())),
    };
    let secret = surroundings.variable(&variable).map(|value| SecretString::from(value.to_owned()));
    if needed && credential_is_good && purpose == Purpose::Agent && secret.is_none() {
        faults
            .add(&format!("vault.azure.{key}"), format!("the environment has no variable {variable}, or it is empty"));
    }
    let maintenance_secret = maintenance_sas_env.and_then(|variable| {
        let value = surroundings.variable(&variable);
        if needed && purpose == Purpose::Agent && value.is_none() {
            let fault = format!("the environment has no variable {variable}, or it is empty");
            faults.add("vault.azure.maintenance_sas_env", fault);
        }
        value.map(|value| SecretString::from(value.to_owned()))
    });
    Some(Azure { endpoint, credential, variable, secret, maintenance_secret })
}

fn postgres(mut section: Section, faults: &mut Faults) -> Postgres {
    let mut client_dirs = Vec::new();
    for (index, text) in section.list("client_dirs", faults).unwrap_or_default().iter().enumerate() {
        match values::absolute_path(text) {
            Ok(path) => client_dirs.push(path),
            Err(fault) => faults.add(&format!("postgres.client_dirs[{index}]"), fault),
        }
    }
    let lock_timeout = section.parsed("lock_timeout", faults, values::seconds);
    let lock_retries = section.parsed("lock_retries", faults, |text| match text.parse() {
        Ok(retries) if retries <= MOST_LOCK_RETRIES => Ok(retries),
        _ => Err(format!("must be a number from 0 to {MOST_LOCK_RETRIES}")),
    });
    let mut seconds = |key: &'static str, parse: fn(&str) -> Result<Duration, String>| {
        section.parsed(key, faults, parse).map(|time| time.as_secs())
    };
    // The longest dumps take days.
    let snapshot_budget_s = seconds("snapshot_budget", values::long_time);
    let snapshot_limit_s = seconds("snapshot_limit", values::long_time);
    let ddl_budget_s = seconds("ddl_budget", values::seconds);
    let yield_to_ddl_s = seconds("yield_to_ddl", values::seconds);
    let replica_lag_s = seconds("replica_lag", values::long_time);
    let read_limit_bytes_per_s = section.parsed("read_limit", faults, values::read_limit);
    section.finish(faults);
    Postgres {
        client_dirs,
        lock_timeout_s: lock_timeout.map(|time| time.as_secs()),
        lock_retries,
        snapshot_budget_s,
        snapshot_limit_s,
        ddl_budget_s,
        yield_to_ddl_s,
        read_limit_bytes_per_s,
        replica_lag_s,
    }
}

fn limits(mut section: Section, faults: &mut Faults) -> Limits {
    let bytes_in_flight = section.parsed("bytes_in_flight", faults, |text| {
        let bytes = values::size(text)?;
        if bytes < LEAST_BYTES_IN_FLIGHT { Err("must be at least 48MiB".to_owned()) } else { Ok(bytes) }
    });
    let upload = section.parsed("upload", faults, values::rate);
    let mut jobs = |key: &'static str, usual: usize| {
        let jobs = section.parsed(key, faults, |text| match text.parse() {
            Ok(jobs) if (1..=MOST_JOBS).contains(&jobs) => Ok(jobs),
            _ => Err(format!("must be a number from 1 to {MOST_JOBS}")),
        });
        jobs.unwrap_or(usual)
    };
    let jobs = vaultferry_coordinator::Limits {
        jobs: jobs("jobs", DEFAULT_JOBS),
        jobs_per_server: jobs("jobs_per_server", DEFAULT_JOBS_PER_SERVER),
        maintenance_jobs: jobs("maintenance_jobs", DEFAULT_MAINTENANCE_JOBS),
    };
    let store_deadline = section.parsed("store_deadline", faults, values::seconds);
    let rehydration_poll = section.parsed("rehydration_poll", faults, values::seconds);
    section.finish(faults);
    Limits {
        bytes_in_flight: bytes_in_flight.unwrap_or(DEFAULT_BYTES_IN_FLIGHT),
        upload,
        jobs,
        store_deadline: store_deadline.unwrap_or(DEFAULT_STORE_DEADLINE),
        rehydration_poll: rehydration_poll.unwrap_or(DEFAULT_REHYDRATION_POLL),
    }
}
