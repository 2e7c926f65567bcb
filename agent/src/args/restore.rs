//! `vaultferry restore …`

use clap::{Subcommand, ValueEnum};

use super::{Login, Wait};

#[derive(Debug, Subcommand)]
pub enum Restore {
    /// Restore into a new database of a PostgreSQL server
    #[command(after_help = "Examples:
  vaultferry restore database shop --target postgres://postgres@db.example/ --database shop_restored --plan
  vaultferry restore database shop --target postgres://postgres@db.example/ --database shop_restored --wait
  vaultferry restore database shop --target 'postgres://postgres@/?host=/run/postgresql' --database old_shop --point 3f9a01 --wait
  vaultferry restore database shop --target postgres://postgres@db.example/ --database two --table public.sales --schema audit --wait

A database that exists is never written to. Roles are not restored unless --globals asks for the missing ones; --no-owner leaves owners \
and privileges out.")]
    Database(Box<RestoreDatabase>),
    /// Restore as files into a folder or a blob container
    #[command(after_help = "Examples:
  vaultferry restore files shop --to /srv/restored --wait
  vaultferry restore files shop --to azure://account/container --credential-env TARGET_SAS --wait
  vaultferry restore files shop --container azure://other/container/prefix --credential-env OTHER_SAS --wait

A PostgreSQL point is database.dump, which pg_restore reads, and what belongs to it.")]
    Files(RestoreFiles),
    /// Restore a machine's disk as a new image file or onto a block device
    #[command(after_help = "Examples:
  vaultferry restore disk machine --to /srv/restored/machine.raw --wait
  vaultferry restore disk machine --to /srv/restored/ --point 3f9a01 --wait
  vaultferry restore disk machine --disk disk0 --to /dev/vdb --yes-overwrite /dev/vdb --wait

A file that exists is never overwritten. Holes of the image stay holes of the file. Of several disks, name one with --disk, or a folder for
all of them. A block device must be named twice, be as large as the image at least, and be used by nobody: neither it nor a part of it is
mounted, swap, or part of another device.")]
    Disk(RestoreDisk),
}

#[derive(Debug, clap::Args)]
pub struct RestoreDatabase {
    /// Name or id of the instance to restore
    pub instance: String,
    /// The server: postgres://user@host:port/
    #[arg(long, value_name = "URI")]
    pub target: String,
    /// The new database
    #[arg(long, value_name = "NAME")]
    pub database: String,
    /// An id, the beginning of one, or latest
    #[arg(long, value_name = "ID", default_value = "latest")]
    pub point: String,
    /// The server's region; another region than the vault's is refused
    #[arg(long, value_name = "REGION")]
    pub target_region: Option<String>,
    #[command(flatten)]
    pub login: Login,
    /// Only look: what is missing at the target, how large it is, how long it may take; exit code 1 when it cannot be restored
    #[arg(long, conflicts_with = "wait")]
    pub plan: bool,
    /// Only this schema with all that is in it; repeatable
    #[arg(long, value_name = "SCHEMA")]
    pub schema: Vec<String>,
    /// Only this table, with its rows, indexes, constraints and triggers; repeatable. A part with a dot in it is in double quotes
    #[arg(long, value_name = "SCHEMA.TABLE")]
    pub table: Vec<String>,
    /// Restore neither owners nor privileges
    #[arg(long)]
    pub no_owner: bool,
    /// Make the roles that own or may use what is restored and that the server lacks, without passwords
    #[arg(long, conflicts_with = "no_owner")]
    pub globals: bool,
    /// Leave a database that could not be completed, under its temporary name
    #[arg(long)]
    pub keep_failed: bool,
    /// What is compared with the point before the database gets its name [default: full up to 10 GiB, else sample]
    #[arg(long, value_enum, value_name = "HOW")]
    pub verify: Option<Verify>,
    #[command(flatten)]
    pub wait: Wait,
}

/// What is compared with the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Verify {
    /// Objects by their kinds, and the rows of every table
    Full,
    /// Objects by their kinds, the rows of small tables, and of the others whether they have rows
    Sample,
    /// Nothing
    None,
}

impl Verify {
    /// As a request has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Sample => "sample",
            Self::None => "none",
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct RestoreDisk {
    /// Name or id of the instance to restore
    pub instance: String,
    /// A new file, a block device, or a folder for all disks, on the agent's machine
    #[arg(long, value_name = "FILE|DEVICE|FOLDER")]
    pub to: String,
    /// Which disk: disk0, disk1, … [default: the only one, or all of them into a folder]
    #[arg(long, value_name = "NAME")]
    pub disk: Option<String>,
    /// An id, the beginning of one, or latest
    #[arg(long, value_name = "ID", default_value = "latest")]
    pub point: String,
    /// What is on this block device may be lost; the same path as --to
    #[arg(long, value_name = "DEVICE")]
    pub yes_overwrite: Option<String>,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, clap::Args)]
pub struct RestoreFiles {
    /// Name or id of the instance to restore
    pub instance: String,
    /// A folder of the agent's machine, or a container of any account: azure://account/container[/prefix]
    #[arg(long, visible_alias = "container", value_name = "FOLDER|URI")]
    pub to: String,
    /// An id, the beginning of one, or latest
    #[arg(long, value_name = "ID", default_value = "latest")]
    pub point: String,
    /// The variable of the agent's environment that holds a SAS or an account key, for azure://
    #[arg(long, value_name = "VARIABLE")]
    pub credential_env: Option<String>,
    /// The storage account's region; another region than the vault's is refused
    #[arg(long, value_name = "REGION")]
    pub target_region: Option<String>,
    #[command(flatten)]
    pub wait: Wait,
}
