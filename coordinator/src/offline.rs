//! What is done to a vault while no agent runs: made, attached to a new machine, its keys changed, its records upgraded.
//!
//! Every command that changes what a running agent holds in memory (keys, catalog, ownership) takes the agent's lock on the state folder
//! and is refused while an agent runs. Making and removing recovery keys needs no stop: a lock of its own keeps them apart from a rotation.

use std::fs::File;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::admin::{self, Cleaned, KeyList, Rotated, Stores as _};
use vaultferry_vault::keys::WrapKey;
use vaultferry_vault::records::VaultRecord;
use vaultferry_vault::{Error, store};

use crate::catalog::Catalog as _;
use crate::catalog::sqlite::Sqlite;
use crate::rebuild::{self, Rebuilt};
use crate::{Config, owner, recorded};

/// Where a vault's recovery key is put that nobody was there to read.
const RECOVERY_FILE: &str = "recovery-key.txt";
const CATALOG_FILE: &str = "catalog.sqlite";

/// What came of [`init_vault`].
#[derive(Debug)]
pub struct InitOutcome {
    /// 32 hexadecimal digits.
    pub vault_id: String,
    /// A folder, or azure://account/name.
    pub location: String,
    /// Where the vault key is: a file's path, or the address of a key in Key Vault.
    pub key: String,
    /// Of a new vault: to be shown once.
    pub recovery_key: Option<SecretString>,
    /// It was there already; nothing was changed.
    pub existed: bool,
}

/// Makes the configured vault, unless it is there. Needs no running agent. May be repeated after a kill.
pub async fn init_vault(config: &Config, redundancy: &str) -> Result<InitOutcome, Problem> {
    init(config, redundancy, None).await
}

/// The same with the recovery key in a file of the state folder, for a vault that nobody asked for by a command.
pub(crate) async fn init_default_vault(config: &Config, redundancy: &str) -> Result<InitOutcome, Problem> {
    init(config, redundancy, Some(&recovery_path(&config.state_dir))).await
}

/// Where the recovery key of a default vault is put.
pub(crate) fn recovery_path(state_dir: &Path) -> PathBuf {
    state_dir.join(RECOVERY_FILE)
}

/// The catalog's place in the state folder.
pub(crate) fn catalog_path(state_dir: &Path) -> PathBuf {
    state_dir.join(CATALOG_FILE)
}

async fn init(config: &Config, redundancy: &str, recovery_path: Option<&Path>) -> Result<InitOutcome, Problem> {
    create_private_dir(&config.state_dir)?;
    let region = config.region.as_deref().unwrap_or("");
    let cancel = CancellationToken::new();
    let made = admin::init_with(&config.vault, region, redundancy, &config.vault_key, recovery_path, &cancel).await?;
    Ok(InitOutcome {
        vault_id: made.vault.id,
        location: config.vault.location.to_string(),
        key: config.vault_key.to_string(),
        recovery_key: made.recovery_key,
        existed: made.existed,
    })
}

/// The record of a vault that must be there: of these commands none is helped by making one.
async fn open_existing(root: &store::Shared, cancel: &CancellationToken) -> Result<VaultRecord, Problem> {
    admin::open(root, cancel).await.map_err(Error::into_problem_of_existing_vault)
}

/// Which keys wrap what in the vault; the id of the vault key itself, when it is at hand.
pub async fn list_keys(config: &Config) -> Result<(Option<String>, KeyList), Problem> {
    let cancel = CancellationToken::new();
    let root = config.vault.open_root()?;
    open_existing(&root, &cancel).await?;
    let list = admin::list_keys(&config.vault, &cancel).await?;
    let key = config.vault_key.load(&root, &cancel).await.ok();
    Ok((key.map(|key| key.id()), list))
}

/// Another recovery key: its id, and itself, to be shown once.
pub async fn add_recovery_key(config: &Config) -> Result<(String, SecretString), Problem> {
    let _keys = lock_keys(&config.state_dir)?;
    let cancel = CancellationToken::new();
    let root = config.vault.open_root()?;
    open_existing(&root, &cancel).await?;
    let key = config.vault_key.load(&root, &cancel).await?;
    check_opens_every_instance(config, &key, &cancel).await?;
    Ok(admin::add_recovery_key(&root, &key, &cancel).await?)
}

/// Removes a recovery key's record, named by its id or a beginning of it. The last one that opens the vault is removed only with
/// `last_too`. The id that was meant.
pub async fn remove_recovery_key(config: &Config, id: &str, last_too: bool) -> Result<String, Problem> {
    let _keys = lock_keys(&config.state_dir)?;
    let cancel = CancellationToken::new();
    let root = config.vault.open_root()?;
    open_existing(&root, &cancel).await?;
    let recovery = admin::list_keys(&config.vault, &cancel).await?.recovery;
    let meant: Vec<_> = recovery.iter().filter(|key| id.len() >= 4 && key.id.starts_with(id)).collect();
    let [meant] = meant[..] else {
        let message = match meant.len() {
            0 => format!("the vault has no recovery key {id:?}"),
            _ => format!("{id:?} is the beginning of several recovery keys' ids"),
        };
        return Err(Problem::new(Reason::InvalidRequest, message)
            .with_fix("Name one by its id, or 4 digits of it at least: vaultferry vault key list."));
    };
    let others = recovery.iter().filter(|key| key.id != meant.id && key.vault_key_id == meant.vault_key_id).count();
    if others == 0 && !last_too {
        let message = format!("{} is the last recovery key of the vault", meant.id);
        return Err(Problem::new(Reason::InvalidRequest, message).with_fix(
            "Make another one first (vaultferry vault key add), or say --yes: then the vault key alone opens the backups.",
        ));
    }
    admin::remove_recovery_key(&root, &meant.id, &cancel).await?;
    Ok(meant.id.clone())
}

/// A rotation whose new recovery key has not been shown yet. Dropping it leaves the old keys' records for the next rotation to delete.
#[derive(Debug)]
pub struct Rotation {
    /// What came of it.
    pub rotated: Rotated,
    config: Config,
    _locks: (File, File),
}

/// Changes the vault key: every password is wrapped anew, no data is uploaded. Refused while an agent runs (it would go on with the old
/// key). Killed anywhere, the vault key that is in place opens every instance, and the next call goes on.
pub async fn rotate_key(config: &Config) -> Result<Rotation, Problem> {
    let locks = (lock(&config.state_dir)?, lock_keys(&config.state_dir)?);
    let cancel = CancellationToken::new();
    let root = config.vault.open_root()?;
    open_existing(&root, &cancel).await?;
    admin::owner::check(&root, &owner::agent_id(&config.state_dir)?, &cancel).await?;
    let rotated = admin::rotate(&config.vault, &config.vault_key, &cancel).await?;
    Ok(Rotation { rotated, config: config.clone(), _locks: locks })
}

impl Rotation {
    /// Deletes what the old keys open. Call it when the new recovery key has been shown: those before are of no use afterwards.
    pub async fn clean_up(self) -> Result<Cleaned, Problem> {
        let cancel = CancellationToken::new();
        let Rotated { key, recovery_id, .. } = &self.rotated;
        let cleaned = admin::clean_up_rotation(&self.config.vault, key, recovery_id, &cancel).await?;
        // The default vault's recovery key, which opens nothing any more.
        let _ = std::fs::remove_file(recovery_path(&self.config.state_dir));
        Ok(cleaned)
    }
}

/// What came of [`attach`].
#[derive(Debug)]
pub struct Attached {
    /// 32 hexadecimal digits.
    pub vault_id: String,
    /// Where the vault is.
    pub location: String,
    /// Where the vault key is now.
    pub key: String,
    /// This agent.
    pub agent_id: String,
    /// The catalog that was made from the vault.
    pub rebuilt: Rebuilt,
}

/// Gives an existing vault to this machine: keeps the vault key where the configuration says, takes ownership, rebuilds the catalog.
///
/// The recovery key is not needed when the vault key is there already. Nothing is written before it is certain that the key opens every
/// instance and that the vault may change hands. May be repeated after an error or a kill.
pub async fn attach(config: &Config, recovery_key: Option<SecretString>, take_over: bool) -> Result<Attached, Problem> {
    create_private_dir(&config.state_dir)?;
    let _locks = (lock(&config.state_dir)?, lock_keys(&config.state_dir)?);
    let cancel = CancellationToken::new();
    let root = config.vault.open_root()?;
    let vault = open_existing(&root, &cancel).await?;
    let key = match recovery_key {
        Some(text) => recovered(&root, &text, &cancel).await?,
        None => config.vault_key.load(&root, &cancel).await.map_err(|error| match error {
            Error::KeyMissing { .. } => Problem::from(error).with_fix(
                "Give the recovery key that vault init printed: --recovery-key-file FILE, or - for standard input.",
            ),
            other => other.into(),
        })?,
    };
    check_opens_every_instance(config, &key, &cancel).await?;
    let agent_id = owner::agent_id(&config.state_dir)?;
    if !take_over {
        admin::owner::check(&root, &agent_id, &cancel).await?;
    }
    config.vault_key.keep(&root, &key, &cancel).await?;
    admin::owner::claim(&root, &agent_id, &owner::hostname(), take_over, &cancel).await?;
    let rebuilt = rebuild::rebuild(config, false, &cancel).await?;
    let (location, key) = (config.vault.location.to_string(), config.vault_key.to_string());
    Ok(Attached { vault_id: vault.id, location, key, agent_id, rebuilt })
}

async fn recovered(root: &store::Shared, text: &SecretString, cancel: &CancellationToken) -> Result<WrapKey, Problem> {
    let recovery = WrapKey::from_text(text).ok_or_else(|| {
        Problem::new(Reason::VaultKeyWrong, "what was given is not a recovery key, or a digit of it is wrong")
            .with_fix("A recovery key has 9 groups of 8 digits (0-9, a-f); compare it with the paper.")
    })?;
    admin::recover_key(root, &recovery, cancel).await.map_err(|error| match error {
        Error::KeyWrong { .. } => Problem::from(error).with_fix(
            "Use this vault's newest recovery key: a rotation of the vault key makes those before it useless.",
        ),
        other => other.into(),
    })
}

async fn check_opens_every_instance(config: &Config, key: &WrapKey, cancel: &CancellationToken) -> Result<(), Problem> {
    for instance in admin::list_keys(&config.vault, cancel).await?.instances {
        let store = config.vault.instance(&instance.instance_id)?;
        admin::password_of(&store, key, &instance.instance_id, cancel).await?;
    }
    Ok(())
}

/// Makes the catalog anew from the vault alone, with the history of jobs that the newest copy of a catalog in the vault has, if that is
/// asked for. The one that was there is kept beside it. Refused while an agent runs.
pub async fn rebuild_catalog(config: &Config, with_history: bool) -> Result<Rebuilt, Problem> {
    create_private_dir(&config.state_dir)?;
    let _lock = lock(&config.state_dir)?;
    let cancel = CancellationToken::new();
    open_existing(&config.vault.open_root()?, &cancel).await?;
    rebuild::rebuild(config, with_history, &cancel).await
}

/// Brings the vault's records up to this version, with what the catalog knows. Refused while an agent runs, and by agents that do not own
/// the vault. May be repeated after an error or a kill; a second time there is nothing to do.
pub async fn upgrade(config: &Config) -> Result<Vec<admin::upgrade::Step>, Problem> {
    create_private_dir(&config.state_dir)?;
    let _lock = lock(&config.state_dir)?;
    let cancel = CancellationToken::new();
    let root = config.vault.open_root()?;
    open_existing(&root, &cancel).await?;
    admin::owner::check(&root, &owner::agent_id(&config.state_dir)?, &cancel).await?;
    let mut known = admin::upgrade::Known::default();
    let path = catalog_path(&config.state_dir);
    if path.exists() {
        let catalog = Sqlite::open(&path)?;
        known.policies = catalog.all_policies().await?.iter().map(recorded::policy_record).collect();
        known.instances = catalog.instances().await?.iter().map(recorded::instance_record).collect();
    }
    Ok(admin::upgrade::run(&config.vault, &known, &cancel).await?)
}

/// The vault key's file, when the configuration names none.
pub fn default_key_path(state_dir: &Path) -> PathBuf {
    admin::key_path(state_dir)
}

/// A folder for this user only.
pub(crate) fn create_private_dir(path: &Path) -> Result<(), Problem> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|error| {
        let message = format!("the folder {} cannot be made: {error}", path.display());
        Problem::new(Reason::InvalidConfiguration, message)
    })
}

/// One agent, or one command in its place, for one state folder.
pub(crate) fn lock(state_dir: &Path) -> Result<File, Problem> {
    let busy = "another agent uses this state folder";
    let fix = "Stop the other agent, or give this one a state_dir of its own.";
    lock_file(&state_dir.join("agent.lock"), busy, fix)
}

fn lock_keys(state_dir: &Path) -> Result<File, Problem> {
    create_private_dir(state_dir)?;
    let busy = "another command is changing the vault's keys";
    lock_file(&state_dir.join("vault-keys.lock"), busy, "Wait until it has ended.")
}

fn lock_file(path: &Path, busy: &str, fix: &str) -> Result<File, Problem> {
    let cannot = |detail: String| Problem::new(Reason::InvalidConfiguration, format!("{}: {detail}", path.display()));
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|error| cannot(error.to_string()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(cannot(busy.to_owned()).with_fix(fix)),
        Err(std::fs::TryLockError::Error(error)) => Err(cannot(error.to_string())),
    }
}
