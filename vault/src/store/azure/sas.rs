//! Shared access signatures: what each part of the program may do, and how a signature for one container is made with the account key.
//!
//! ```text
//! role          letters    so it cannot
//! plugin        rcl        overwrite, delete, set tiers, protect
//! commit        rcli       overwrite, delete, set tiers        (i: extends immutability dates, sets legal holds)
//! maintenance   rcwdxli    read other containers               (w: tiers; d, x: delete blobs and their versions)
//! ```
//! A signature is for one container, which is one backup instance. `w` overwrites too: only maintenance has it, because the service lets
//! nobody else set a tier.

use std::fmt;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret as _, SecretString};

use super::Credential;
use crate::store::Error;

/// The version whose text to sign is written below.
const VERSION: &str = "2020-12-06";

/// Which part of the program asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Reads and writes payload: backups and restores.
    Plugin,
    /// Publishes points and extends their immutability.
    Commit,
    /// Checks, prunes, archives, rehydrates, deletes.
    Maintenance,
}

impl Role {
    /// The rights that the role needs, as letters in the order that a signature prescribes.
    pub fn letters(self) -> &'static str {
        match self {
            Self::Plugin => "rcl",
            Self::Commit => "rcli",
            Self::Maintenance => "rcwdxli",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plugin => "plugin",
            Self::Commit => "commit",
            Self::Maintenance => "maintenance",
        })
    }
}

/// A signature that gives `rights` (letters, in Azure's order) on one container until `expiry`, made with the account's key in base64.
/// Nothing is sent: the key signs here. [`Error::AccessDenied`] when the key is not base64.
pub fn container(
    account: &str,
    key: &SecretString,
    container: &str,
    rights: &str,
    expiry: jiff::Timestamp,
) -> Result<Credential, Error> {
    let mut bytes = BASE64_STANDARD.decode(key.expose_secret().trim()).map_err(|_| Error::AccessDenied {
        store: format!("azure://{account}/{container}"),
        detail: "the account key is not base64".to_owned(),
    })?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
    zeroize::Zeroize::zeroize(&mut bytes);
    let expiry = expiry.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let resource = format!("/blob/{account}/{container}");
    // rights, start, expiry, resource, identifier, ip, protocol, version, kind, snapshot, encryption scope, five response headers
    let fields = [rights, "", &expiry, &resource, "", "", "", VERSION, "c", "", "", "", "", "", "", ""];
    let signature = BASE64_STANDARD.encode(hmac::sign(&key, fields.join("\n").as_bytes()));
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs([("sv", VERSION), ("sr", "c"), ("sp", rights), ("se", &expiry), ("sig", &signature)]);
    Ok(Credential::Sas(SecretString::from(query.finish())))
}
