//! Why a vault cannot be reached: the way to it, gone one stage after the other.
//!
//! ```text
//! straight:      DNS ─► TCP ─────────────► TLS ─► HTTP
//! with a proxy:  DNS ─► TCP ─► proxy ────► TLS ─► HTTP        (DNS and TCP are the proxy's; the proxy asks for the vault's name)
//! ```
//! Invariants:
//! - Nothing is sent but a question without a credential; a proxy's login goes to the proxy alone. No secret is in what is told.
//! - The way is the product's own ([`Network`]): the same proxy, the same exceptions, the same authorities.
//! - Every stage has a time limit, and all answers of a connection together have one, so the whole has one. It runs in a thread of its own, since
//!   name resolution cannot be cancelled; when nobody waits any more, that thread ends at its next limit.
//!
//! It lies here and not in a plugin because the vault is Azure's for all of them. What it does not do: log in. A refusal of the credential is an answer
//! of the vault, and has a reason of its own.

use std::fmt;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use url::Url;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::location::{Access, Location};
use vaultferry_vault::network::{Network, blob_endpoint};

mod probe;
pub mod rule;

#[cfg(test)]
mod tests;

pub use rule::{DiskKind, Place, Rule};

/// A part of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The name has an address.
    Dns,
    /// The port answers.
    Tcp,
    /// The proxy lets us through.
    Proxy,
    /// The certificate is trusted.
    Tls,
    /// It is the vault's storage that answers.
    Http,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dns => "DNS",
            Self::Tcp => "TCP",
            Self::Proxy => "proxy",
            Self::Tls => "TLS",
            Self::Http => "HTTP",
        })
    }
}

/// A stage that was passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which.
    pub stage: Stage,
    /// What was found.
    pub detail: String,
    /// How long it took.
    pub took: Duration,
}

/// Where the way ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// At which stage.
    pub stage: Stage,
    /// What happened.
    pub message: String,
    /// What mends it.
    pub fix: String,
    /// What a network security group may lack.
    pub missing: Missing,
}

/// The rule that may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// No rule would help.
    Nothing,
    /// The machine's way to the vault.
    ToVault,
    /// The proxy's way out.
    OfProxy,
}

/// What was found on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// `host:port` of the vault.
    pub target: String,
    /// `http://host:port/` of the proxy, and who named it.
    pub proxy: Option<(String, String)>,
    /// The stages that were passed, in their order.
    pub steps: Vec<Step>,
    /// `None`: the vault answers.
    pub failure: Option<Failure>,
}

/// How long each stage may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For a name.
    pub name: Duration,
    /// For a connection to each of the name's first addresses.
    pub connect: Duration,
    /// For each next piece of an answer.
    pub answer: Duration,
}

impl Default for Limits {
    /// Those of the product's own clients, or shorter: a person waits.
    fn default() -> Self {
        Self { name: Duration::from_secs(10), connect: Duration::from_secs(10), answer: Duration::from_secs(15) }
    }
}

/// Where the vault's blobs are; `None` for a folder, which needs no network of ours.
pub fn endpoint(access: &Access) -> Option<Url> {
    match &access.location {
        Location::Folder(_) => None,
        Location::Azure { account, .. } => access.endpoint.clone().or_else(|| blob_endpoint(account)),
    }
}

/// Goes the way to `endpoint` (http or https). Cancel safe.
///
/// Errors: [`Reason::Cancelled`]; [`Reason::Internal`] when the machine is out of threads. That the vault cannot be reached is no error here:
/// [`Diagnosis::problem`] makes one of it.
pub async fn diagnose(
    endpoint: &Url,
    network: &Network,
    limits: Limits,
    cancel: &CancellationToken,
) -> Result<Diagnosis, Problem> {
    let (answer, answered) = oneshot::channel();
    let (endpoint, network) = (endpoint.clone(), network.clone());
    let run = move || {
        // An error means that nobody waits any more.
        let _ = answer.send(probe::run(&endpoint, &network, limits));
    };
    let lost =
        |error: &dyn fmt::Display| Problem::new(Reason::Internal, format!("cannot look at the network: {error}"));
    std::thread::Builder::new().name("network-check".into()).spawn(run).map_err(|error| lost(&error))?;
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Problem::new(Reason::Cancelled, "the look at the network was cancelled")),
        diagnosis = answered => diagnosis.map_err(|error| lost(&error))?,
    }
}

impl Diagnosis {
    /// What stands in the way, with the rule that may be missing; `None` when nothing does.
    pub fn problem(&self, place: &Place) -> Option<Problem> {
        let failure = self.failure.as_ref()?;
        let way = match &self.proxy {
            Some((proxy, origin)) => format!(" by the proxy {proxy} ({origin})"),
            None => String::new(),
        };
        let Failure { stage, message, .. } = failure;
        let message = format!("the vault at {} cannot be reached{way}: {stage}: {message}", self.target);
        let fix = match self.rule(place) {
            Some(Ok(rule)) => {
                format!("{} Where a network security group denies what goes out, this allows it: {rule}", failure.fix)
            }
            // Nobody can make that rule: what is to be done first stands in its place.
            Some(Err(problem)) => format!("{} {}; {}", failure.fix, problem.message, problem.fix),
            None => failure.fix.clone(),
        };
        Some(Problem::new(Reason::ExtensionSnapshotFailedNoNetwork, message).with_fix(fix))
    }

    /// The rule that may be missing; `None` when none would help.
    pub fn rule(&self, place: &Place) -> Option<Result<Rule, Problem>> {
        match self.failure.as_ref()?.missing {
            Missing::Nothing => None,
            Missing::ToVault => Some(rule::to_vault(place)),
            Missing::OfProxy => {
                let source = self.proxy.as_ref().map(|(proxy, _)| source(proxy));
                Some(rule::of_proxy(place, source.as_deref()))
            }
        }
    }
}

/// The proxy's address with its length, as a rule has it; of a name, which a rule cannot have, a place to fill in.
fn source(proxy: &str) -> String {
    match Url::parse(proxy).ok().as_ref().and_then(Url::host) {
        Some(url::Host::Ipv4(address)) => format!("{address}/32"),
        Some(url::Host::Ipv6(address)) => format!("{address}/128"),
        Some(url::Host::Domain(_)) | None => "PROXY-ADDRESS".to_owned(),
    }
}

/// A job's problem, told as exactly as it can be: when the store did not answer, the way to it is gone, and what stands in the way takes the
/// problem's place. Every other problem, and one for which nothing is found, is given back as it was. Takes two minutes at most.
pub async fn explain(problem: Problem, access: &Access, place: &Place, cancel: &CancellationToken) -> Problem {
    if problem.reason != Reason::VaultUnavailable {
        return problem;
    }
    let Some(endpoint) = endpoint(access) else { return problem };
    let network = vaultferry_vault::network::of_process();
    match diagnose(&endpoint, network, Limits::default(), cancel).await {
        Ok(diagnosis) => match diagnosis.problem(place) {
            Some(found) => Problem { message: format!("{} ({})", found.message, problem.message), ..found },
            None => problem,
        },
        Err(_) => problem,
    }
}
