//! Commands about what there is to protect: what servers have, and servers that are sources themselves.

use std::path::PathBuf;

use clap::Subcommand;

use super::{Grants, Login};

#[derive(Debug, Subcommand)]
pub enum Discover {
    /// The databases of PostgreSQL servers, and which of them are protected
    Postgres(Box<DiscoverPostgres>),
    /// The disk images and block devices of the agent's machine, and which of them are protected
    Vm(DiscoverVm),
    /// The containers of storage accounts that files can be restored to
    Containers(DiscoverContainers),
}

/// A part of Azure, and who asks there.
#[derive(Debug, clap::Args)]
pub struct Azure {
    /// A subscription of Azure, by its id: Azure Resource Manager is asked, with the role Reader
    #[arg(long, value_name = "ID")]
    pub subscription: Option<String>,
    /// Only this resource group of it
    #[arg(long, value_name = "NAME", requires = "subscription")]
    pub resource_group: Option<String>,
    /// Who the agent is there: managed, managed:CLIENT-ID, workload, or env:VARIABLE with a token [default: as the machine is]
    #[arg(long, value_name = "IDENTITY", requires = "subscription")]
    pub azure_identity: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vaultferry discover postgres postgres://backup@db.example/ --passfile /etc/vaultferry/pgpass
  vaultferry discover postgres 'postgres://postgres@/?host=/run/postgresql'
  vaultferry discover postgres --file servers.txt --password-env BACKUP_PASSWORD --output json
  vaultferry discover postgres --subscription ID --user backup --passfile /etc/vaultferry/pgpass
  vaultferry discover postgres --print-grants --role backup | psql -X -d shop

Nothing is changed. Template databases are left out. The column SOURCE is what instance create takes.")]
pub struct DiscoverPostgres {
    /// The servers: postgres://user@host:port/, or with the database to log in to [default: postgres]
    #[arg(value_name = "URI", required_unless_present_any = ["file", "print_grants", "subscription"])]
    pub servers: Vec<String>,
    /// A list of servers, a URI in each line; # begins a comment, - reads standard input
    #[arg(long, visible_alias = "servers-file", value_name = "LIST")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub azure: Azure,
    /// With --subscription: the role to log in as, at all of its servers
    #[arg(long, value_name = "ROLE", requires = "subscription")]
    pub user: Option<String>,
    /// With --subscription: the servers' port [default: 5432]
    #[arg(long, value_name = "PORT", requires = "subscription")]
    pub port: Option<u16>,
    /// With --subscription: libpq's sslmode for all of its servers [default: verify-full]
    #[arg(long, value_name = "MODE", requires = "subscription")]
    pub sslmode: Option<String>,
    /// Also each database's extensions and their versions; logs in to each of them
    #[arg(long)]
    pub extensions: bool,
    #[command(flatten)]
    pub login: Login,
    #[command(flatten)]
    pub grants: Grants,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vaultferry discover vm
  vaultferry discover vm /var/lib/libvirt/images --output json

Nothing is changed. Images are files whose name ends with .raw or .img. The column SOURCE is what instance create takes.")]
pub struct DiscoverVm {
    /// Folders with images; /dev stands for the block devices
    #[arg(value_name = "FOLDER", default_value = "/dev")]
    pub folders: Vec<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vaultferry discover containers --account restored --credential-env TARGET_SAS
  vaultferry discover containers --subscription ID --resource-group restores --prefix db-

The column CONTAINER is what restore files --to takes. The vault's own containers are left out.")]
pub struct DiscoverContainers {
    /// A storage account; without --subscription it is asked itself
    #[arg(long, value_name = "NAME", required_unless_present = "subscription")]
    pub account: Option<String>,
    /// The variable of the agent's environment that holds a SAS or an account key [default: the vault's own, for its account]
    #[arg(long, value_name = "VARIABLE", conflicts_with = "subscription")]
    pub credential_env: Option<String>,
    #[command(flatten)]
    pub azure: Azure,
    /// Only containers whose name begins so
    #[arg(long, value_name = "TEXT")]
    pub prefix: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Server {
    /// Protect the databases of a server by themselves, those of today and those that are made later
    Add(Box<ServerAdd>),
    /// The servers, and how each of their databases stands
    List,
    /// Look for new databases now; it is done at the agent's start and every hour, too
    Scan {
        /// Name, id or URI [default: all servers]
        #[arg(value_name = "SERVER")]
        server: Option<String>,
    },
    /// Leave new databases alone from now on; those that are protected stay so
    Remove {
        /// Name, id or URI
        #[arg(value_name = "SERVER")]
        server: String,
    },
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vaultferry server add postgres://backup@db.example/ --policy nightly --exclude postgres --passfile /etc/vaultferry/pgpass
  vaultferry server add postgres://backup@db.example/ --include 'shop_*' --exclude '*_test' --exclude 'tmp?'

In a pattern * stands for any letters and ? for one. What is not ready is shown by server list, and tried again by each
scan. Adding a server again changes its policy, patterns and login to what is said now.")]
pub struct ServerAdd {
    /// postgres://user@host:port/, or with the database to log in to [default: postgres]
    #[arg(value_name = "URI")]
    pub server: String,
    /// The policy that its databases follow [default: the default policy, daily and 30 days]
    #[arg(long, value_name = "NAME")]
    pub policy: Option<String>,
    /// Only databases whose name matches; may be given several times [default: all]
    #[arg(long, value_name = "PATTERN")]
    pub include: Vec<String>,
    /// Not the databases whose name matches; may be given several times
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// The server's region; another region than the vault's is refused
    #[arg(long)]
    pub region: Option<String>,
    #[command(flatten)]
    pub login: Login,
}
