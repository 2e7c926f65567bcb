//! The trait that a plugin implements, and the words it is spoken in.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use url::Url;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::location::Access;
use vaultferry_vault::repository::Repository;
use vaultferry_vault::store::azure::Credential;
use vaultferry_vault::writer::{Compression, Options, Staged};
use vaultferry_vault::{Id, archive};

use crate::azure::identity::{Identity, InvalidIdentity};
use crate::azure::secret::SecretUrl;
use crate::readiness::Finding;
use crate::report::{Reporter, Warning};

/// One type of data source: how it is checked, read into a vault, and restored.
///
/// Every call may take as long as it needs, and returns soon after `cancel` fires (with [`Reason::Cancelled`], or with what it had
/// already become). A call never leaves a child process behind.
#[async_trait]
pub trait Workload: Send + Sync + 'static {
    /// `postgres`, `vm`, `apim`, …
    fn source_type(&self) -> &'static str;

    /// Readiness of one source. Changes nothing there. Fails only when the source cannot be looked at at all (it does not answer, lets
    /// nobody in, is not there); everything else is a finding.
    async fn validate(
        &self,
        source: Source,
        settings_json: &str,
        cancel: &CancellationToken,
    ) -> Result<Validated, Problem>;

    /// The same of a source that was backed up before, for a workload that estimates what the next backup takes. Others look as they always
    /// do.
    async fn validate_again(
        &self,
        source: Source,
        settings_json: &str,
        _former: FormerBackup,
        cancel: &CancellationToken,
    ) -> Result<Validated, Problem> {
        self.validate(source, settings_json, cancel).await
    }

    /// Lists the sources of a server. Changes nothing there. A workload whose sources do not lie on servers refuses.
    async fn discover(
        &self,
        _server: Source,
        _settings_json: &str,
        _cancel: &CancellationToken,
    ) -> Result<Discovered, Problem> {
        let message = format!("sources of the type {} cannot be listed", self.source_type());
        Err(Problem::new(Reason::InvalidSource, message).with_fix("Name each source by itself."))
    }

    /// The extensions of one source, with their versions, by name: `postgis 3.3.2`. Changes nothing there. A workload without such
    /// things has none.
    async fn extensions(
        &self,
        _source: Source,
        _settings_json: &str,
        _cancel: &CancellationToken,
    ) -> Result<Vec<String>, Problem> {
        Ok(Vec::new())
    }

    /// Finds servers of this type in a part of Azure, by name. None of them is asked, and nothing is changed. A workload whose sources
    /// do not lie on servers of Azure refuses.
    async fn find_servers(
        &self,
        _scope: &crate::azure::Scope,
        _login: &ServerLogin,
        _cancel: &CancellationToken,
    ) -> Result<Vec<FoundServer>, Problem> {
        let message = format!("servers of the type {} cannot be found in Azure", self.source_type());
        Err(Problem::new(Reason::InvalidSource, message).with_fix("Name each server by itself."))
    }

    /// Reads the source into the vault. Nothing is visible afterwards; what a failure leaves behind are chunks that the next backup
    /// reuses.
    async fn backup(&self, job: BackupJob, reporter: &Reporter, cancel: &CancellationToken) -> Result<Staged, Problem>;

    /// Brings a point back; the result is the number of bytes restored. Never overwrites. What a failed or cancelled restore has made
    /// is removed again; when that fails too, the message says what is left.
    async fn restore(&self, job: RestoreJob, reporter: &Reporter, cancel: &CancellationToken) -> Result<u64, Problem>;

    /// Looks at a restore's target and its point, and changes nothing. Fails only when one of them cannot be looked at at all. A workload
    /// that cannot plan refuses.
    async fn plan_restore(&self, _job: RestoreJob, _cancel: &CancellationToken) -> Result<RestorePlan, Problem> {
        let message = format!("a restore of the type {} has no plan", self.source_type());
        Err(Problem::new(Reason::InvalidRequest, message).with_fix("Start the restore: it looks before it begins."))
    }

    /// Removes what a restore of this job left behind when its process was killed. Idempotent.
    async fn clean_up(&self, job: CleanUpJob, cancel: &CancellationToken) -> Result<(), Problem>;
}

/// A data source, and where the secret is that opens it.
#[derive(Debug, Clone)]
pub struct Source {
    /// As the user wrote it; never holds a password when it is valid.
    pub uri: String,
    /// Where the password is; `None` when none is needed.
    pub credential: Option<CredentialReference>,
}

/// Where a password is found. Its value is never stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialReference {
    /// A file in the format of libpq's `.pgpass`.
    Passfile(PathBuf),
    /// A variable of this process's environment.
    Environment(String),
    /// A token of this identity is the password, a fresh one for each login.
    Identity(Identity),
    /// A secret in Azure Key Vault is the password. It is read for each login, with the identity of this process.
    Secret(SecretUrl),
}

impl CredentialReference {
    /// Reads `managed`, `managed:CLIENT-ID`, `workload` or `key-vault:https://NAME.vault.azure.net/secrets/SECRET`.
    pub fn from_identity(text: &str) -> Result<Self, InvalidIdentity> {
        match text.strip_prefix("key-vault:") {
            Some(url) => Ok(Self::Secret(url.parse()?)),
            None => Ok(Self::Identity(text.parse()?)),
        }
    }
}

/// What a source tells of itself. It is ready when no finding is blocking.
#[derive(Debug, Clone)]
pub struct Validated {
    /// Two spellings of one source have one identity. Holds no user and no secret.
    pub source_identity: String,
    /// What names are made of.
    pub suggested_name: String,
    /// All that was found.
    pub findings: Vec<Finding>,
}

/// What the last backup of a source took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FormerBackup {
    /// Bytes that it read.
    pub source_bytes: u64,
    /// For how long it held its snapshot; zero: it held none, or nobody knows.
    pub snapshot_held: Duration,
}

/// What a server has.
#[derive(Debug, Clone)]
pub struct Discovered {
    /// Two spellings of one server have one identity; those of its sources begin with it. Holds no user and no secret.
    pub server_identity: String,
    /// For people.
    pub server_name: String,
    /// As the server writes it.
    pub server_version: String,
    /// It repeats another server.
    pub replica: bool,
    /// By name.
    pub sources: Vec<DiscoveredSource>,
}

/// One source of a server.
#[derive(Debug, Clone)]
pub struct DiscoveredSource {
    /// The server's URI with this source in it; what [`Workload::validate`] takes.
    pub uri: String,
    /// As in [`Validated`].
    pub source_identity: String,
    /// What names are made of.
    pub name: String,
    /// In bytes, as the server tells it; `None` when it does not.
    pub size: Option<u64>,
    /// The character set's name.
    pub encoding: String,
    /// Somebody may log in to it.
    pub allows_connections: bool,
    /// What is known to stand in the way of a backup already.
    pub obstacle: Option<Warning>,
}

/// How servers that are found are to be logged in to; goes into their URIs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerLogin {
    /// The role.
    pub user: String,
    /// `None`: the type's own.
    pub port: Option<u16>,
    /// As in a URI; `None`: the strictest.
    pub ssl_mode: Option<String>,
}

/// A server that Azure tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundServer {
    /// The resource's name.
    pub name: String,
    /// What [`Workload::discover`] takes; `None`: there is no name to reach it by, yet.
    pub uri: Option<String>,
    /// The major version, as Azure tells it.
    pub version: String,
    /// It repeats another server.
    pub replica: bool,
    /// In Azure's own words.
    pub state: String,
    /// It can be logged in to, as far as Azure knows.
    pub running: bool,
    /// As in [`crate::azure::containers::Container`].
    pub region: String,
    /// Reached from its own virtual network, or by private endpoints, only.
    pub private_network: bool,
    /// `/subscriptions/…`
    pub resource_id: String,
}

/// How the instance's repository is reached.
pub struct VaultAccess {
    /// Where, with which credential, and for how long an operation is tried.
    pub access: Access,
    /// Whose repository.
    pub instance_id: String,
    /// 64 hexadecimal digits.
    pub repository_password: SecretString,
    /// Bytes of user data in memory, at most.
    pub bytes_in_flight: u64,
    /// Bytes that are sent to the store in a second at most, on average; `None`: no limit.
    pub upload_bytes_per_s: Option<u64>,
}

impl VaultAccess {
    /// How the writer is to work.
    pub fn write_options(&self, compression: Compression) -> Options {
        let (bytes_in_flight, upload_bytes_per_s) = (self.bytes_in_flight, self.upload_bytes_per_s);
        Options { compression, bytes_in_flight, upload_bytes_per_s, ..Options::default() }
    }

    /// Opens the repository; changes nothing in it.
    pub async fn open(&self, cancel: &CancellationToken) -> Result<Arc<Repository>, Problem> {
        let store = self.access.open_instance(&self.instance_id).map_err(vaultferry_vault::Error::from)?;
        Ok(Arc::new(Repository::open(store, &self.repository_password, cancel).await?))
    }
}

/// One backup to make.
pub struct BackupJob {
    /// Unique for each job.
    pub job_id: String,
    /// The instance's name, for people.
    pub instance_name: String,
    /// What to read.
    pub source: Source,
    /// Where to write.
    pub vault: VaultAccess,
    /// The section of the configuration that is named like the plugin, as JSON; may be empty.
    pub settings_json: String,
    /// How chunks are compressed.
    pub compression: Compression,
    /// To be written into the snapshot as they are.
    pub tags: Vec<String>,
    /// Bytes of the source that are read in a second at most, on average; `None`: as the settings say.
    pub read_bytes_per_s: Option<u64>,
    /// The instance's newest point in the vault store. It may be gone by now, as everything in a vault.
    pub base: Option<Id>,
}

/// One restore to make.
pub struct RestoreJob {
    /// Unique for each job.
    pub job_id: String,
    /// The point to bring back.
    pub snapshot_id: Id,
    /// Where it is.
    pub vault: VaultAccess,
    /// As in [`BackupJob`].
    pub settings_json: String,
    /// Where to.
    pub target: RestoreTarget,
    /// The point is read from the archive store; what it needs was rehydrated before.
    pub from_archive: bool,
}

impl RestoreJob {
    /// Opens the repository that the point is read from: the vault store's, or the archive store's. Changes nothing in it.
    pub async fn open(&self, cancel: &CancellationToken) -> Result<Arc<Repository>, Problem> {
        let repository = self.vault.open(cancel).await?;
        match self.from_archive {
            false => Ok(repository),
            true => Ok(Arc::new(archive::open(&repository)?)),
        }
    }
}

/// Where a restore goes.
#[derive(Clone)]
pub enum RestoreTarget {
    /// A new database.
    Database(DatabaseTarget),
    /// A file for each stream of the point.
    Files(FilesDestination),
    /// A disk image as a file or onto a block device.
    Disk(DiskTarget),
}

/// A file, a block device or a folder for disk images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskTarget {
    /// An absolute path.
    pub to: PathBuf,
    /// Which disk; `None`: the only one, or all of them into a folder.
    pub disk: Option<String>,
    /// The block device whose content may be lost.
    pub overwrite: Option<PathBuf>,
}

/// A new database on a server.
#[derive(Debug, Clone)]
pub struct DatabaseTarget {
    /// The server; a database in the URI is the one to log in to.
    pub server: Source,
    /// The name of the new database.
    pub database: String,
    /// Leave owners and privileges out.
    pub no_owner: bool,
    /// Only these schemas; with no tables either: everything.
    pub schemas: Vec<String>,
    /// Only these tables, each as `schema.table`; a part with a dot in it is in double quotes.
    pub tables: Vec<String>,
    /// Make the roles that the point needs and the server lacks.
    pub globals: bool,
    /// Leave what failed, under its temporary name.
    pub keep_failed: bool,
    /// How much of the result is compared with the point.
    pub verify: Verify,
}

/// How much of a restored database is compared with its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// By its size: all of a small one, else a sample.
    #[default]
    BySize,
    /// Every table's rows are counted.
    Full,
    /// The rows of tables are counted as long as that is quick.
    Sample,
    /// Nothing is compared.
    Nothing,
}

/// What a restore would meet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RestorePlan {
    /// All that was found.
    pub findings: Vec<Finding>,
    /// Bytes of the point, as they are read.
    pub dump_bytes: u64,
    /// Bytes that the target needs, about.
    pub database_bytes: u64,
    /// Bytes that the target has; `None`: not known.
    pub free_bytes: Option<u64>,
    /// Tables that would be restored; 0: not known.
    pub tables: u64,
}

/// A folder or container for files.
#[derive(Clone)]
pub struct FilesDestination {
    /// An absolute folder, or `azure://account/container[/prefix]`.
    pub to: String,
    /// Another endpoint than Azure's own.
    pub endpoint: Option<Url>,
    /// `None` for a folder.
    pub credential: Option<Credential>,
}

/// What to clean up.
pub struct CleanUpJob {
    /// The job that was interrupted.
    pub job_id: String,
    /// As in [`BackupJob`].
    pub settings_json: String,
    /// The target of that job.
    pub target: RestoreTarget,
}

/// The problem that every cancelled call ends with.
pub fn cancelled() -> Problem {
    Problem::new(Reason::Cancelled, "the job was cancelled")
}

/// Waits for `work`, but no longer than until `cancel` fires; `work` is dropped then.
pub async fn unless_cancelled<T>(
    work: impl Future<Output = Result<T, Problem>>,
    cancel: &CancellationToken,
) -> Result<T, Problem> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(cancelled()),
        result = work => result,
    }
}
