//! Commands about instances: what is protected, and how it goes on with it.

use std::path::PathBuf;

use clap::{ArgGroup, Subcommand};

use super::{Login, Wait};

#[derive(Debug, Subcommand)]
pub enum Instance {
    /// Check sources, and protect all of them or none
    #[command(after_help = "Examples:
  vaultferry instance create --source postgres://backup@db.example/shop --policy nightly --passfile /etc/vaultferry/pgpass
  vaultferry instance create --source 'postgres://postgres@/shop?host=/run/postgresql' --policy nightly --name shop
  vaultferry instance create --file databases.txt --check
  vaultferry instance create --file databases.txt --only-ready

vaultferry discover shows what there is. Of several sources each is told with what it lacks and how to mend it; mend it
and repeat the command, or leave those out with --only-ready. The exit code is 1 as long as one of them is neither ready
nor protected. A password inside a URI is refused.")]
    Create(InstanceCreate),
    /// All instances
    List {
        /// The deleted ones, which can be brought back, instead of the others
        #[arg(long)]
        deleted: bool,
    },
    /// One instance
    Show {
        /// Name or id
        instance: String,
    },
    /// Ask again whether everything is there that a backup needs
    Validate {
        /// Name or id
        instance: String,
    },
    /// Suspend the schedule; backups on demand and expiry go on
    Pause {
        /// Name or id
        instance: String,
    },
    /// Protect a paused or stopped instance again
    Resume(InstanceResume),
    /// End protection: keep the points for ever, or delete them
    Stop(InstanceStop),
    /// Bring a deleted instance back with its points
    Undelete(InstanceUndelete),
    /// Give an instance another name
    Rename {
        /// Name or id
        instance: String,
        /// The new name
        #[arg(value_name = "NEW")]
        name: String,
    },
    /// The source is elsewhere now; the chain of points goes on
    Move(InstanceMove),
    /// Link another policy
    ChangePolicy(InstanceChangePolicy),
}

#[derive(Debug, clap::Args)]
pub struct InstanceCreate {
    /// What to protect: postgres://user@host:port/database, or disk:///path/to/image-or-device; may be given several times
    #[arg(long = "source", required_unless_present = "file", num_args = 1.., value_name = "URI")]
    pub sources: Vec<String>,
    /// A list of sources, a URI in each line; # begins a comment, - reads standard input
    #[arg(long, value_name = "LIST")]
    pub file: Option<PathBuf>,
    /// The policy that it follows [default: Default, daily and 30 days, made when it is not there]
    #[arg(long, value_name = "NAME")]
    pub policy: Option<String>,
    /// The instance's name, only with one source [default: the source's last part]
    #[arg(long)]
    pub name: Option<String>,
    /// The source's region; another region than the vault's is refused
    #[arg(long)]
    pub region: Option<String>,
    /// Only tell which sources are ready, and what the others lack; nothing is protected
    #[arg(long, conflicts_with = "only_ready")]
    pub check: bool,
    /// Protect the sources that are ready, and leave the others out
    #[arg(long)]
    pub only_ready: bool,
    #[command(flatten)]
    pub login: Login,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vaultferry instance resume shop
  vaultferry instance resume shop --policy weekly

The next backup is at the next time of the policy; times that have passed meanwhile are not made up for. The points of
a stopped instance stay for ever; if some have outlived the policy when it is resumed, that has to be confirmed.")]
pub struct InstanceResume {
    /// Name or id
    pub instance: String,
    /// Another policy to follow [default: the one that is linked]
    #[arg(long, value_name = "NAME")]
    pub policy: Option<String>,
    /// Points may be kept shorter than now
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, clap::Args)]
#[command(
    group(ArgGroup::new("data").required(true).args(["retain_data", "delete_data"])),
    after_help = "Examples:
  vaultferry instance stop shop --retain-data
  vaultferry instance stop shop --delete-data --yes --wait

With --retain-data nothing expires any more, and every point can be restored. With --delete-data the instance and its
points can be brought back for some days (instance undelete; vault show tells for how many), and are gone after them."
)]
pub struct InstanceStop {
    /// Name or id
    pub instance: String,
    /// Keep all points for ever
    #[arg(long)]
    pub retain_data: bool,
    /// Delete all points, and the instance
    #[arg(long)]
    pub delete_data: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vaultferry instance list --deleted
  vaultferry instance undelete shop --wait

It is what it was before it was stopped. Points that were deleted one by one stay deleted.")]
pub struct InstanceUndelete {
    /// Name or id
    pub instance: String,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vaultferry instance move shop --source postgres://backup@db2.example/shop
  vaultferry instance move shop --source postgres://backup@db2.example/shop --passfile /etc/vaultferry/pgpass-db2

What is not given stays as it is. The new source is checked as by instance create.")]
pub struct InstanceMove {
    /// Name or id
    pub instance: String,
    /// Where it is now: postgres://user@host:port/database
    #[arg(long, value_name = "URI")]
    pub source: String,
    /// The source's region; another region than the vault's is refused
    #[arg(long)]
    pub region: Option<String>,
    #[command(flatten)]
    pub login: Login,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vaultferry instance change-policy shop --policy weekly --preview
  vaultferry instance change-policy shop --policy weekly

The policy says from now on when backups run, and how long every point is kept. A change that keeps points shorter has
to be confirmed.")]
pub struct InstanceChangePolicy {
    /// Name or id
    pub instance: String,
    /// The policy to follow
    #[arg(long, value_name = "NAME")]
    pub policy: String,
    /// Tell what would become of the points, and change nothing
    #[arg(long, conflicts_with = "yes")]
    pub preview: bool,
    /// Points may be kept shorter than now
    #[arg(long)]
    pub yes: bool,
}
