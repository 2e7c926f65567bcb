//! Commands about policies.

use std::path::PathBuf;

use clap::{ArgGroup, Subcommand, ValueEnum};

use super::values;

#[derive(Debug, Subcommand)]
pub enum Policy {
    /// Create a policy from a TOML document, or from a policy of Azure
    Create(PolicyCreate),
    /// All policies
    List,
    /// One policy with its rules and its document
    Show(PolicyShow),
    /// Change a policy: the document's name says which
    Update(PolicyUpdate),
    /// Delete a policy that no instance is linked to
    Delete {
        /// Name or id
        #[arg(value_name = "NAME")]
        policy: String,
    },
}

#[derive(Debug, clap::Args)]
#[command(
    group(ArgGroup::new("source").required(true).args(["file", "from_azure"])),
    after_help = "Examples:
  vaultferry policy create -f nightly.toml
  vaultferry policy create -f nightly.toml --simulate 3y
  az dataprotection backup-policy show ... | vaultferry policy create --from-azure - --name nightly

--from-azure takes the JSON of a Data Protection policy, or of a Recovery Services policy for virtual machines.
What cannot be expressed is told."
)]
pub struct PolicyCreate {
    /// The document; - reads standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// A policy of Azure, as JSON; - reads standard input
    #[arg(long, value_name = "FILE", conflicts_with = "simulate")]
    pub from_azure: Option<PathBuf>,
    /// The new policy's name [default: the name in the JSON]
    #[arg(long, conflicts_with = "file")]
    pub name: Option<String>,
    #[command(flatten)]
    pub simulation: Simulation,
}

/// What is to be simulated.
#[derive(Debug, clap::Args)]
pub struct Simulation {
    /// Only show which points would exist over this time, such as 3y or P3Y; nothing is created or changed
    #[arg(long, value_name = "SPAN", value_parser = values::span)]
    pub simulate: Option<String>,
    /// Simulate from then on: a date or a time of the policy's zone [default: now]
    #[arg(long, value_name = "DATE", requires = "simulate", value_parser = values::beginning)]
    pub from: Option<String>,
    /// Simulate with the points that this instance has now
    #[arg(long, requires = "simulate")]
    pub instance: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vaultferry policy show nightly
  vaultferry policy show nightly --simulate 3y --from 2027-01-01
  vaultferry policy show nightly --simulate 18mo --instance shop
  vaultferry policy show nightly --as azure > nightly.json")]
pub struct PolicyShow {
    /// Name or id
    #[arg(value_name = "NAME")]
    pub policy: String,
    #[command(flatten)]
    pub simulation: Simulation,
    /// Print the policy as another product's; what that cannot express is told on standard error
    #[arg(long = "as", value_enum, value_name = "PRODUCT", conflicts_with = "simulate")]
    pub product: Option<Product>,
}

/// Whose policies can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Product {
    // A Data Protection policy for postgres, a Recovery Services policy for vm.
    Azure,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vaultferry policy update -f nightly.toml --preview
  vaultferry policy update -f nightly.toml --yes

How long a point is kept follows its rule in the policy as it is now. A change that keeps points shorter is asked about;
without a terminal it needs --yes. Jobs that run are not disturbed, and the new schedule counts from now on.")]
pub struct PolicyUpdate {
    /// The document; - reads standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Only tell which points would be kept longer, shorter, or not any more
    #[arg(long, conflicts_with = "yes")]
    pub preview: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}
