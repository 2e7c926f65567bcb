//! `vaultferry agent network-check`

use clap::ValueEnum;
use vaultferry_plugin_sdk::network;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vaultferry agent network-check
  vaultferry agent network-check --disks managed --deny-priority 1000

Nothing is sent but a question without a credential. No agent needs to run.")]
pub struct NetworkCheck {
    /// Another vault than the configured one: azure://account/name
    #[arg(long, value_name = "LOCATION")]
    pub vault: Option<String>,
    /// The region of vault and machine [default: the configuration's]
    #[arg(long)]
    pub region: Option<String>,
    /// The machine's disks, for the rule's port
    #[arg(long, value_enum, value_name = "KIND", default_value_t = Disks::UnmanagedEncrypted)]
    pub disks: Disks,
    /// The priority of the deny rule that the rule has to go before
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=65500))]
    pub deny_priority: Option<u16>,
}

/// What the machine's disks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Disks {
    // Port 8443.
    Managed,
    // Port 443.
    UnmanagedEncrypted,
    // Port 80.
    UnmanagedUnencrypted,
}

impl Disks {
    /// As the rules know it.
    pub fn kind(self) -> network::DiskKind {
        match self {
            Self::Managed => network::DiskKind::Managed,
            Self::UnmanagedEncrypted => network::DiskKind::UnmanagedEncrypted,
            Self::UnmanagedUnencrypted => network::DiskKind::UnmanagedUnencrypted,
        }
    }
}
