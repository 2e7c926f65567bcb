//! Commands that look after what lies in the vault.

use std::path::PathBuf;

use clap::{ArgGroup, ValueEnum};

use super::{Wait, values};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vaultferry vault check
  vaultferry vault check shop --read-data-subset 5% --wait
  vaultferry vault check shop --read-data --wait
  vaultferry vault check --keyless --offline --location /mnt/vault

Without --read-data only names, sizes and structure are checked. A check that finds damage fails, and names the
points that it concerns; the next backup stores again what the source still has.
--keyless needs no key: whoever can read the storage can run it. --offline runs it in this process, without an agent.")]
pub struct VaultCheck {
    /// Names or ids (with --offline: ids) [default: all]
    #[arg(value_name = "INSTANCE")]
    pub instances: Vec<String>,
    /// Read every file and check its bytes
    #[arg(long, conflicts_with = "read_data_subset")]
    pub read_data: bool,
    /// Read so many percent of the packs, chosen at random; the probability to find damage is printed
    #[arg(long, value_name = "PERCENT", value_parser = values::percent)]
    pub read_data_subset: Option<f64>,
    /// Compare names, sizes and plain records only; no key is used
    #[arg(long)]
    pub keyless: bool,
    /// Without an agent; the vault is the configured one, or --location
    #[arg(long, requires = "keyless", conflicts_with = "wait")]
    pub offline: bool,
    /// The folder of the vault, when there is no configuration
    #[arg(long, value_name = "FOLDER", requires = "offline")]
    pub location: Option<PathBuf>,
    #[command(flatten)]
    pub wait: Wait,
}

impl VaultCheck {
    /// How much of the data is read: 0 to 100.
    pub fn read_data_percent(&self) -> f64 {
        if self.read_data { 100.0 } else { self.read_data_subset.unwrap_or(0.0) }
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vaultferry vault prune --dry-run --wait
  vaultferry vault prune shop --wait

Runs beside backups, and may be killed at any time. What nothing needs is marked by one run and deleted by a later one,
so space comes back with the second run (the third, for what an interrupted backup left).")]
pub struct VaultPrune {
    /// Names or ids [default: all]
    #[arg(value_name = "INSTANCE")]
    pub instances: Vec<String>,
    /// Tell what would be marked and deleted, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, clap::Args)]
pub struct PointList {
    /// Name or id
    pub instance: String,
    /// The deleted ones, which can be brought back, instead of the listed ones
    #[arg(long)]
    pub deleted: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vaultferry point verify shop --wait
  vaultferry point verify shop 3f9a01 --wait

When every byte is right the point is proven: point list tells when it was.")]
pub struct PointVerify {
    /// Name or id
    pub instance: String,
    /// An id, the beginning of one, or latest
    #[arg(default_value = "latest")]
    pub point: String,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vaultferry point hold shop 3f9a01 --note 'audit 2026'")]
pub struct PointHold {
    /// Name or id
    pub instance: String,
    /// An id, the beginning of one, or latest
    pub point: String,
    /// Why it must stay
    #[arg(long, value_name = "TEXT")]
    pub note: String,
}

#[derive(Debug, clap::Args)]
pub struct PointRelease {
    /// Name or id
    pub instance: String,
    /// An id, the beginning of one, or latest
    pub point: String,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vaultferry point delete shop 3f9a01 --yes --wait

The point is no longer listed. vault show tells for how many days it can be brought back (point undelete);
its data goes with the prunes after that.")]
pub struct PointDelete {
    /// Name or id
    pub instance: String,
    /// An id, or the beginning of one
    pub point: String,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vaultferry point list shop --deleted
  vaultferry point undelete shop 3f9a01 --wait")]
pub struct PointUndelete {
    /// Name or id
    pub instance: String,
    /// An id, or the beginning of one
    pub point: String,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vaultferry point archive shop 3f9a01 --wait

The point stays in the vault store, too. A restore of a point that is in the archive store only waits for hours until
its data can be read; it does so by itself.")]
pub struct PointArchive {
    /// Name or id
    pub instance: String,
    /// An id, the beginning of one, or latest
    pub point: String,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, clap::Args)]
#[command(
    group(ArgGroup::new("change").multiple(true).args(["immutability", "immutability_days", "soft_delete_days"])),
    after_help = "Examples:
  vaultferry vault settings
  vaultferry vault settings --soft-delete-days 30
  vaultferry vault settings --immutability enabled --immutability-days 30
  vaultferry vault settings --immutability locked --yes

Without options the settings are shown. They count for points that are made, or deleted, later.
disabled and enabled can be changed back; locked is for ever, and its days can only grow.
Immutability needs Azure, and an account with version-level immutability. In a folder it is refused."
)]
pub struct VaultSettings {
    /// Whether the storage itself refuses to delete the files of points
    #[arg(long, value_enum, value_name = "STATE")]
    pub immutability: Option<Immutability>,
    /// For so many days after each backup: 1 to 36500
    #[arg(long, value_name = "N")]
    pub immutability_days: Option<u32>,
    /// For so many days a deleted point can be brought back: 0 to 180
    #[arg(long, value_name = "N")]
    pub soft_delete_days: Option<u32>,
    /// Confirm what cannot be undone: locking, or more days when it is locked
    #[arg(long, requires = "change")]
    pub yes: bool,
}

impl VaultSettings {
    /// True when something is to be changed.
    pub fn changes(&self) -> bool {
        self.immutability.is_some() || self.immutability_days.is_some() || self.soft_delete_days.is_some()
    }
}

/// Whether the storage keeps points from being deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Immutability {
    // It does not.
    Disabled,
    // New points get a date; an administrator can take it away.
    Enabled,
    // New points get a date that nobody can take away.
    Locked,
}

impl Immutability {
    /// As the vault tells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "Disabled",
            Self::Enabled => "Enabled",
            Self::Locked => "Locked",
        }
    }
}
