//! The vault key, the recovery keys, and what they wrap.
//!
//! ```text
//! recovery key ──wraps──┐
//! (on paper)            ├─> vault key ──wraps──> each repository's password ──opens──> restic's key file ──holds──> master key
//! Key Vault's key ──────┘    (in a file, or       (instances/<id>/keys/<n>.json)
//! (if configured)             nowhere but there)
//! ```
//! Invariants:
//! - What is wrapped is bound to what it is (the context), so that one record cannot stand in for another.
//! - A key file is made with mode 0600 and is never overwritten, only replaced whole by a rotation.
//! - No key is ever logged or printed, but a recovery key, once. In memory keys are wiped when they are dropped.
//! - Every password is wrapped by the vault key, wherever that is kept: a recovery key opens everything also when Azure's Key Vault is
//!   gone, and Key Vault is asked once in the life of a process (`docs/decisions/0014-key-vault-wraps-the-vault-key.md`).

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::error::Error;

mod key_vault;
mod wrap_key;

pub use key_vault::{AzureKeyVault, FixedToken, InvalidKeyUrl, KeyUrl, TokenFile, TokenSource};
pub use wrap_key::WrapKey;
pub(crate) use wrap_key::sync_parent;

/// Something wrapped, as it stands in a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrapped {
    /// `AES-256-GCM`, or `RSA-OAEP-256+AES-256-GCM`.
    pub algorithm: String,
    /// [`KeyWrap::id`] of the key that wraps; for Key Vault with the version.
    pub key_id: String,
    /// 12 bytes, base64.
    pub nonce: String,
    /// Ciphertext and tag, base64.
    pub ciphertext: String,
    /// The random AES-256 key under which the ciphertext is sealed, itself wrapped by the key of `key_id` (base64). Not there when the key
    /// of `key_id` seals by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrapped_key: Option<String>,
}

/// A key that wraps secrets. It may be far away, so every call may wait.
#[async_trait]
pub trait KeyWrap: std::fmt::Debug + Send + Sync + 'static {
    /// Names the key without telling it.
    fn id(&self) -> String;

    /// True when this key, in any of its versions, wrapped it, as the record says. Asks nobody.
    fn wrapped(&self, wrapped: &Wrapped) -> bool;

    /// Wraps a secret of the vault. `context` says what it is, for example `instance:<id>`; unwrapping needs the same.
    async fn wrap(&self, secret: &[u8], context: &str, cancel: &CancellationToken) -> Result<Wrapped, Error>;

    /// The secret. [`Error::KeyWrong`] when another key or another context wrapped it, or when it was altered.
    async fn unwrap(
        &self,
        wrapped: &Wrapped,
        context: &str,
        cancel: &CancellationToken,
    ) -> Result<Zeroizing<Vec<u8>>, Error>;
}
