//! The command line: every command, flag and help text of this version.
//!
//! The names are promises that documents, scripts and tests rely on; `tests/golden/help.txt` shows a change as a diff.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::config::Endpoint;

mod grants;
mod instance;
mod maintenance;
mod network;
mod policy;
mod restore;
mod source;
mod values;

pub use grants::Grants;
pub use instance::{
    Instance, InstanceChangePolicy, InstanceCreate, InstanceMove, InstanceResume, InstanceStop, InstanceUndelete,
};
pub use maintenance::{
    PointArchive, PointDelete, PointHold, PointList, PointRelease, PointUndelete, PointVerify, VaultCheck, VaultPrune,
    VaultSettings,
};
pub use network::NetworkCheck;
pub use policy::{Policy, PolicyCreate, PolicyShow, PolicyUpdate, Product, Simulation};
pub use restore::{Restore, RestoreDatabase, RestoreDisk, RestoreFiles};
pub use source::{Azure, Discover, DiscoverContainers, DiscoverPostgres, DiscoverVm, Server, ServerAdd};

#[cfg(test)]
mod tests;

/// Ferries PostgreSQL databases and machines' disks straight into a vault, and back.
#[derive(Debug, Parser)]
#[command(
    name = "vaultferry",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration."
)]
pub struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(Debug, clap::Args)]
pub struct Global {
    /// The configuration file [default: /etc/vaultferry/agent.toml, if it exists]
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "FILE",
        env = "VAULTFERRY_CONFIG",
        hide_env_values = true
    )]
    pub config: Option<PathBuf>,
    /// Where the agent listens: unix:///path [default: the configuration's first listener]
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "URI",
        env = "VAULTFERRY_ENDPOINT",
        hide_env_values = true
    )]
    #[arg(value_parser = values::endpoint)]
    pub endpoint: Option<Endpoint>,
    /// How results are printed: for people, or as JSON for programs
    #[arg(long, global = true, help_heading = "Global options", value_enum, default_value_t = Format::Text)]
    pub output: Format,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    // Tables and "key: value" lines.
    Text,
    // The response message as proto3 JSON.
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent, or check its configuration
    #[command(subcommand)]
    Agent(Agent),
    /// Make the vault, attach it, check and prune it, and change its keys
    #[command(subcommand)]
    Vault(Vault),
    /// When backups run, and how long they are kept
    #[command(subcommand)]
    Policy(Policy),
    /// What there is to protect
    #[command(subcommand)]
    Discover(Discover),
    /// What is protected
    #[command(subcommand)]
    Instance(Instance),
    /// Servers whose databases are protected by themselves
    #[command(subcommand)]
    Server(Server),
    /// Back up an instance now
    Backup(Backup),
    /// Recovery points: complete backups
    #[command(subcommand)]
    Point(Point),
    /// Restore a point; nothing that exists is overwritten
    #[command(subcommand)]
    Restore(Restore),
    /// What runs now, and what ran before
    #[command(subcommand)]
    Job(Job),
    /// Instances, points and jobs in figures
    Summary(Summary),
    /// Serve one plugin to the agent that started this process
    #[command(subcommand, hide = true)]
    Plugin(Plugin),
}

#[derive(Debug, Subcommand)]
pub enum Agent {
    /// Run the agent until SIGTERM or Ctrl-C; running jobs are drained, a second signal ends at once
    Run,
    /// Check the configuration: print what is used, or every fault (exit code 78)
    CheckConfig,
    /// Go the way to the vault stage by stage, and say where it ends
    NetworkCheck(NetworkCheck),
}

#[derive(Debug, Subcommand)]
pub enum Vault {
    /// Make the configured vault; no agent needs to run, and a vault that exists is left as it is
    #[command(after_help = "Examples:
  vaultferry vault init --config agent.toml

A new vault's recovery key is printed once. Keep it away from this machine.")]
    Init {
        /// How the storage below copies what it holds; recorded in the vault
        #[arg(long, value_enum, default_value_t = Redundancy::GeoRedundant)]
        redundancy: Redundancy,
    },
    /// The vault's place, region and format, its owner and its keys
    Show,
    /// Show or change immutability and soft delete
    Settings(VaultSettings),
    /// Look for altered, missing and unexpected files
    Check(VaultCheck),
    /// Delete what no point needs any more
    Prune(VaultPrune),
    /// Give an existing vault to this machine: key, ownership, catalog; no agent may run here
    #[command(after_help = "Examples:
  vaultferry vault attach --config agent.toml --recovery-key-file /media/safe/recovery.txt
  vaultferry vault attach --config agent.toml --recovery-key-file - --take-over

The recovery key is the one that vault init printed. It is not needed where the vault key is already.")]
    Attach {
        /// The file that holds the recovery key; - reads standard input
        #[arg(long, value_name = "FILE")]
        recovery_key_file: Option<PathBuf>,
        /// Take the vault from the agent that owns it; that one starts no job from then on
        #[arg(long)]
        take_over: bool,
    },
    /// Make the agent's catalog anew from the vault alone; no agent may run here
    #[command(
        after_help = "The catalog that is there is kept beside the new one. The history of jobs begins anew, or with --with-history goes on \
from the vault's newest copy of a catalog."
    )]
    RebuildCatalog {
        /// Take the history of jobs from the copies of the catalog that agents put into the vault once a day
        #[arg(long)]
        with_history: bool,
    },
    /// Bring the vault's records up to this version; no agent may run here, and nothing is changed that is there
    Upgrade,
    /// The keys that open the vault
    #[command(subcommand)]
    Key(Key),
}

/// What the vault's storage is set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Redundancy {
    // Copies in another region too.
    GeoRedundant,
    // Copies in one place.
    LocallyRedundant,
}

impl Redundancy {
    /// As the vault's record has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GeoRedundant => "geo-redundant",
            Self::LocallyRedundant => "locally-redundant",
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Key {
    /// The vault key, the recovery keys, and which key wraps each instance's password
    List,
    /// Make another recovery key; it is printed once
    Add,
    /// Change the vault key and the recovery key; no agent may run here, no data is uploaded again
    #[command(
        after_help = "A new vault key wraps the passwords of all repositories anew, and a new recovery key is printed once;
the recovery keys before it are of no use any more. The passwords stay as they are: a rotation does
not shut out whoever has learnt one, or has the old key and a copy of the vault's old records."
    )]
    Rotate,
    /// Remove a recovery key
    Remove {
        /// Its id, or the beginning of it: vault key list
        #[arg(value_name = "ID")]
        id: String,
        /// Also the last one
        #[arg(long)]
        yes: bool,
    },
    /// Print RESTIC_REPOSITORY and RESTIC_PASSWORD of an instance
    #[command(after_help = "Examples:
  eval \"$(vaultferry vault key export shop | sed 's/^/export /')\"
  restic --no-lock snapshots
  restic --no-lock dump latest /database.dump | pg_restore -l

Only read with it: never run restic prune or forget on a vault in use.")]
    Export {
        /// Name or id
        instance: String,
    },
}

/// How the agent logs in at a server; the value itself is never given, sent or stored.
#[derive(Debug, clap::Args)]
pub struct Login {
    /// A libpq password file, read by the agent
    #[arg(long, value_name = "FILE", conflicts_with_all = ["password_env", "identity"])]
    pub passfile: Option<PathBuf>,
    /// The variable of the agent's environment that holds the password
    #[arg(long, value_name = "VARIABLE", conflicts_with = "identity")]
    pub password_env: Option<String>,
    /// Log in as the agent's identity in Microsoft Entra ID: managed, managed:CLIENT-ID or workload; or with the secret at key-vault:URL
    #[arg(long, value_name = "WHO")]
    pub identity: Option<String>,
    /// The client certificate that the agent shows, in PEM; the URI must insist on TLS (sslmode)
    #[arg(long, value_name = "FILE", requires = "client_key")]
    pub client_cert: Option<PathBuf>,
    /// The certificate's key, in PEM; only its owner may have a right on the file
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    pub client_key: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vaultferry backup shop --wait
  vaultferry backup shop --rule Monthly
  vaultferry backup shop --keep-until 2027-12-31
  vaultferry backup shop --read-limit 20MB/s

With --wait the exit code is the job's outcome. Ctrl-C stops the watching, not the job.")]
pub struct Backup {
    /// Name or id
    pub instance: String,
    /// The policy's rule that says how long to keep it [default: Default]
    #[arg(long)]
    pub rule: Option<String>,
    /// The last day on which it is kept, instead of a rule, or a time such as 2027-12-31T12:00; in the policy's time zone
    #[arg(long, value_name = "DATE", conflicts_with = "rule")]
    pub keep_until: Option<String>,
    /// Read so many bytes of the source in a second at most, such as 20MB/s
    #[arg(long, value_name = "RATE", value_parser = crate::config::read_limit)]
    pub read_limit: Option<u64>,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, clap::Args)]
pub struct Wait {
    /// Watch the job until it ends
    #[arg(long)]
    pub wait: bool,
}

#[derive(Debug, Subcommand)]
pub enum Point {
    /// All points of an instance, newest first
    List(PointList),
    /// One point with its streams
    Show {
        /// Name or id
        instance: String,
        /// An id, the beginning of one, or latest
        #[arg(default_value = "latest")]
        point: String,
    },
    /// Read every byte of a point, and note that it is right
    Verify(PointVerify),
    /// Keep a point from deletion until it is released
    Hold(PointHold),
    /// End a hold
    Release(PointRelease),
    /// Take a point off the list; it can be brought back for some days
    Delete(PointDelete),
    /// Bring a deleted point back
    Undelete(PointUndelete),
    /// Copy a point to the archive store
    Archive(PointArchive),
}

#[derive(Debug, Subcommand)]
pub enum Job {
    /// Jobs of the last 7 days, newest first
    #[command(after_help = "Examples:
  vaultferry job list --status Failed --from 2026-11-01
  vaultferry job list --operation Backup --from 2026-11-20T22:00")]
    List(JobList),
    /// One job
    Show {
        /// An id, or the beginning of one
        #[arg(value_name = "ID")]
        job: String,
    },
    /// Watch a job until it ends; the exit code is its outcome
    Watch {
        /// An id, or the beginning of one
        #[arg(value_name = "ID")]
        job: String,
    },
    /// Cancel a job
    Cancel {
        /// An id, or the beginning of one
        #[arg(value_name = "ID")]
        job: String,
    },
}

#[derive(Debug, clap::Args)]
pub struct Summary {
    /// Also each instance: its last good and last proven point, what it stores, its next backup; the oldest good point first
    #[arg(long)]
    pub instances: bool,
}

#[derive(Debug, clap::Args)]
pub struct JobList {
    /// InProgress, Completed, CompletedWithWarnings, Failed, Cancelling or Cancelled
    #[arg(long)]
    pub status: Option<String>,
    /// Backup, RestoreAsDatabase, RestoreAsFiles, RestoreAsDisk, ConfigureBackup, StopProtection, UndeleteInstance, ChangePolicy, Check,
    /// VerifyPoint, Prune, DeletePoint, UndeletePoint, ArchivePoint or Tier
    #[arg(long)]
    pub operation: Option<String>,
    /// Only jobs that started then or later: a date, or a time such as 2026-11-20T22:00 or ...Z [default: 7 days ago]
    #[arg(long, value_name = "TIME", value_parser = values::from_time)]
    pub from: Option<jiff::Timestamp>,
    /// Only jobs that started before; a date means its end
    #[arg(long, value_name = "TIME", value_parser = values::to_time)]
    pub to: Option<jiff::Timestamp>,
}

#[derive(Debug, Subcommand)]
pub enum Plugin {
    /// The PostgreSQL plugin
    Postgres,
    /// The plugin for machines' disks
    Vm,
    /// The maintenance plugin
    Maintenance,
}

impl Args {
    /// The arguments of this process. Ends the process with code 2 on wrong usage, and with 0 after printing help.
    pub fn from_process() -> Self {
        Self::try_from_words(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    /// Parses `words`, the first of which is the program's name, and checks what the declaration above cannot say.
    pub fn try_from_words<I>(words: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator,
        I::Item: Into<std::ffi::OsString> + Clone,
    {
        let args = Self::try_parse_from(words)?;
        if let Command::Instance(Instance::Create(create)) = &args.command
            && create.sources.len() > 1
            && create.name.is_some()
        {
            let message = "--name goes with one --source only; several sources are named by their last parts";
            return Err(Self::command().error(ErrorKind::ArgumentConflict, message));
        }
        Ok(args)
    }
}
