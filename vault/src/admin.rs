//! Making and opening a vault and its instances: the vault's records, keys and empty repositories. No payload passes here.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;

use crate::blocking::with_cancel;
use crate::error::Error;
use crate::keys::WrapKey;
use crate::location::Access;
use crate::manifest;
use crate::records::{self, InstanceRecord, PasswordRecord, VaultRecord};
use crate::repository::Repository;
use crate::repository::crypto::fill_random;
use crate::store::{self, Key, Put};

mod init;
mod key_place;
mod keys;
pub mod owner;
mod passwords;
mod recorded;
pub mod upgrade;

pub use init::{Initialized, init, init_with};
pub use key_place::KeyPlace;
pub use keys::{Cleaned, InstanceKey, KeyList, RecoveryKey, Rotated, add_recovery_key, clean_up_rotation, list_keys};
pub use keys::{recovery_keys, remove_recovery_key, rotate};
pub use passwords::password_of;
pub use recorded::{
    instances, newest_instance, policies, policies_beside, put_instance, put_policy, put_server, servers,
};

/// Where the stores of a vault come from: [`Access`], or what a test puts in its place.
#[async_trait]
pub trait Stores: std::fmt::Debug + Send + Sync {
    /// As [`Access::open_root`].
    fn root(&self) -> Result<store::Shared, store::Error>;
    /// As [`Access::open_instance`].
    fn instance(&self, instance_id: &str) -> Result<store::Shared, store::Error>;
    /// As [`Access::instance_ids`].
    async fn instance_ids(&self) -> Result<Vec<String>, store::Error>;
}

#[async_trait]
impl Stores for Access {
    fn root(&self) -> Result<store::Shared, store::Error> {
        self.open_root()
    }

    fn instance(&self, instance_id: &str) -> Result<store::Shared, store::Error> {
        self.open_instance(instance_id)
    }

    async fn instance_ids(&self) -> Result<Vec<String>, store::Error> {
        Access::instance_ids(self).await
    }
}

pub(crate) fn vault_key() -> Key {
    Key::new("vault.json").expect("a constant")
}

/// Named by the recovery key's id, so that an interrupted init's record never stands in the way of the next one's.
fn recovery_record(recovery_id: &str) -> Result<Key, Error> {
    Key::new(format!("{}{recovery_id}.json", records::RECOVERY_KEYS)).map_err(Error::internal)
}

/// The context of the wrapped vault key.
const VAULT_KEY_CONTEXT: &str = "vault-key";

/// A new random id: 32 hexadecimal digits.
pub fn new_id() -> Result<String, Error> {
    let mut bytes = [0; 16];
    fill_random(&mut bytes)?;
    Ok(hex::encode(bytes))
}

async fn find(root: &store::Shared, cancel: &CancellationToken) -> Result<Option<VaultRecord>, Error> {
    match with_cancel(cancel, records::get::<VaultRecord>(&**root, &vault_key())).await {
        Ok(vault) if vault.format_version > records::FORMAT_VERSION => Err(Error::Unreadable {
            what: format!("the vault in {}", root.location()),
            detail: format!("it has format {}, this program knows {}", vault.format_version, records::FORMAT_VERSION),
        }),
        Ok(vault) => Ok(Some(vault)),
        Err(Error::Store(store::Error::NotFound { .. } | store::Error::NoStore { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The vault's record. [`Error::NoVault`] when there is none.
pub async fn open(root: &store::Shared, cancel: &CancellationToken) -> Result<VaultRecord, Error> {
    find(root, cancel).await?.ok_or_else(|| Error::NoVault { location: root.location().to_owned() })
}

/// Makes an instance's store, password, repository and record, in this order; the record is what makes it an instance.
/// May be repeated with the same record after a kill.
pub async fn create_instance(
    access: &Access,
    key: &WrapKey,
    record: &InstanceRecord,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    with_cancel(cancel, access.create_instance(&record.id)).await?;
    let store = access.open_instance(&record.id)?;
    let mut bytes = [0; 32];
    fill_random(&mut bytes)?;
    let password = zeroize::Zeroizing::new(hex::encode(bytes));
    let wrapped = PasswordRecord {
        version: records::VERSION,
        create_time: record.create_time,
        password: key.wrap(password.as_bytes(), &context(&record.id))?,
    };
    let place = records::numbered(records::PASSWORDS, 1);
    with_cancel(cancel, records::put(&*store, &place, &wrapped)).await?;
    // What stands there counts: an earlier, interrupted call may have written it.
    let password = password_of(&store, key, &record.id, cancel).await?;
    Repository::init(store.clone(), &password, cancel).await?;
    with_cancel(cancel, records::put(&*store, &records::numbered(records::INSTANCE, 1), record)).await?;
    manifest::append(&*store, manifest::Scope::Instance, &[], cancel).await?;
    Ok(())
}

/// The context of an instance's wrapped password.
fn context(instance_id: &str) -> String {
    format!("instance:{instance_id}")
}

/// The key file's place below a state folder.
pub fn key_path(state_dir: &Path) -> PathBuf {
    state_dir.join("vault.key")
}

/// The vault key, from the recovery key that [`init`] printed. [`Error::KeyWrong`] when it is not this vault's.
pub async fn recover_key(
    root: &store::Shared,
    recovery: &WrapKey,
    cancel: &CancellationToken,
) -> Result<WrapKey, Error> {
    let wrong = || Error::KeyWrong { what: format!("the vault in {}", root.location()) };
    let record: records::RecoveryKeyRecord =
        match with_cancel(cancel, records::get(&**root, &recovery_record(&recovery.id())?)).await {
            Err(Error::Store(store::Error::NotFound { .. })) => return Err(wrong()),
            other => other?,
        };
    key_of(&recovery.unwrap(&record.vault_key, VAULT_KEY_CONTEXT)?).ok_or_else(wrong)
}

/// The key whose text was wrapped.
fn key_of(plain: &[u8]) -> Option<WrapKey> {
    WrapKey::from_text(&SecretString::from(std::str::from_utf8(plain).ok()?))
}
