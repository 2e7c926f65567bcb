//! Bearer tokens of Microsoft Entra ID.
//!
//! Invariants:
//! - No error, log line or `Debug` output holds a token.
//! - Nothing is kept: whoever needs a token asks for one, just before it is used. The service that issues them keeps them itself.

use std::fmt;

use async_trait::async_trait;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use vaultferry_proto::Problem;

/// The scope of logins to Azure Database for PostgreSQL.
pub const POSTGRES: &str = "https://ossrdbms-aad.database.windows.net/.default";
/// The scope of Key Vault's secrets and keys.
pub const KEY_VAULT: &str = "https://vault.azure.net/.default";
/// The scope of Azure Resource Manager.
pub const RESOURCE_MANAGER: &str = "https://management.azure.com/.default";
/// The scope of storage accounts.
pub const STORAGE: &str = "https://storage.azure.com/.default";

/// Where a bearer token comes from.
#[async_trait]
pub trait TokenSource: fmt::Debug + Send + Sync + 'static {
    /// A token for `scope` (`https://…/.default`) that is valid now, and for some minutes at least. The error says what is missing and
    /// how to mend it, and never holds a token. A cancelled call ends with [`vaultferry_proto::Reason::Cancelled`] and leaves nothing
    /// behind.
    async fn token(&self, scope: &str, cancel: &CancellationToken) -> Result<SecretString, Problem>;
}

/// A token that somebody else got, for whatever scope it is; as long as it is valid.
#[derive(Debug)]
pub struct FixedToken(pub SecretString);

#[async_trait]
impl TokenSource for FixedToken {
    async fn token(&self, _: &str, _: &CancellationToken) -> Result<SecretString, Problem> {
        Ok(self.0.clone())
    }
}
