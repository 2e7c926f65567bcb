//! Azure, for every plugin: who this process is there, and what that opens.
//!
//! What is not here: the vault's own store and key, which have their credentials from the configuration (the vault crate). Only the
//! public cloud is known; its scopes and host names are in [`token`] and [`secret`]. Resource Manager's address may be another one ([`arm`]).

pub mod arm;
mod ask;
pub mod containers;
pub mod identity;
mod retry_after;
pub mod scope;
pub mod secret;
pub mod token;

use url::{Host, Url};

pub use scope::Scope;

/// A region's short name, as Azure compares it: `West Europe` is `westeurope`.
pub fn region(name: &str) -> String {
    name.chars().filter(|character| !character.is_whitespace()).collect::<String>().to_lowercase()
}

/// What holds a secret goes over TLS, or does not leave this machine.
pub(crate) fn is_safe(url: &Url) -> bool {
    url.scheme() == "https" || (url.scheme() == "http" && is_local(url))
}

/// This machine itself: an emulator, or a proxy beside us.
pub(crate) fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}
