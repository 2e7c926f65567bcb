//! Making and opening a vault and its instances: the vault's records, keys and empty repositories. No payload passes here.

use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;

use crate::blocking::with_cancel;
use crate::error::Error;
use crate::keys::WrapKey;
use crate::location::Access;
use crate::records::{self, InstanceRecord, PasswordRecord, PolicyRecord, RecoveryKeyRecord, VaultRecord};
use crate::repository::Repository;
use crate::repository::crypto::fill_random;
use crate::store::{self, Key, Put};

fn vault_key() -> Key {
    Key::new("vault.json").expect("a constant")
}

/// Named by the recovery key's id, so that an interrupted init's record never stands in the way of the next one's.
fn recovery_record(recovery: &WrapKey) -> Key {
    Key::new(format!("keys/recovery-{}.json", recovery.id())).expect("hexadecimal digits make a valid key")
}

const RECOVERY_CONTEXT: &str = "vault-key";

/// A new random id: 32 hexadecimal digits.
pub fn new_id() -> Result<String, Error> {
    let mut bytes = [0; 16];
    fill_random(&mut bytes)?;
    Ok(hex::encode(bytes))
}

/// What came of [`init`].
#[derive(Debug)]
pub struct Initialized {
    /// The vault.
    pub vault: VaultRecord,
    /// The vault was there already; nothing was changed.
    pub existed: bool,
    /// The recovery key of a new vault: to be shown once and kept elsewhere.
    pub recovery_key: Option<SecretString>,
}

/// Makes the vault, its key file and its recovery key, unless a vault is there.
///
/// Order: the key file, the recovery record, `vault.json`. A kill in between leaves no vault; the next call goes on with the same key
/// file and prints a new recovery key. An existing key file is used, never overwritten.
pub async fn init(
    access: &Access,
    region: &str,
    redundancy: &str,
    key_path: &Path,
    cancel: &CancellationToken,
) -> Result<Initialized, Error> {
    with_cancel(cancel, access.create_root()).await?;
    let root = access.open_root()?;
    if let Some(vault) = find(&root, cancel).await? {
        return Ok(Initialized { vault, existed: true, recovery_key: None });
    }
    let key = load_or_create_key(key_path)?;
    let recovery = WrapKey::generate()?;
    let now = jiff::Timestamp::now();
    let vault = VaultRecord {
        version: records::VERSION,
        id: new_id()?,
        create_time: now,
        region: region.to_owned(),
        redundancy: redundancy.to_owned(),
        format_version: records::FORMAT_VERSION,
        immutability_days: 0,
        soft_delete_days: 14,
    };
    let record = RecoveryKeyRecord {
        version: records::VERSION,
        create_time: now,
        vault_key: recovery.wrap(key.to_text().expose_secret().as_bytes(), RECOVERY_CONTEXT)?,
    };
    with_cancel(cancel, records::put(&*root, &recovery_record(&recovery), &record)).await?;
    if with_cancel(cancel, records::put(&*root, &vault_key(), &vault)).await? == Put::Existed {
        let vault = open(&root, cancel).await?;
        return Ok(Initialized { vault, existed: true, recovery_key: None });
    }
    Ok(Initialized { vault, existed: false, recovery_key: Some(recovery.to_text()) })
}

fn load_or_create_key(path: &Path) -> Result<WrapKey, Error> {
    let io = |error: std::io::Error| Error::KeyMissing {
        path: path.display().to_string(),
        detail: format!("cannot be written: {error}"),
    };
    if path.try_exists().map_err(io)? {
        return WrapKey::load(path);
    }
    let key = WrapKey::generate()?;
    key.save_new(path).map_err(io)?;
    Ok(key)
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

/// Keeps a version of a policy in the vault. False when the vault holds another document under that name and version, which an older
/// catalog wrote; nothing is changed then.
pub async fn put_policy(
    root: &store::Shared,
    record: &PolicyRecord,
    cancel: &CancellationToken,
) -> Result<bool, Error> {
    let key =
        Key::new(format!("policies/{}/{:010}.json", record.name, record.policy_version)).map_err(Error::internal)?;
    let put = async {
        match records::put(&**root, &key, record).await? {
            Put::Created => Ok(true),
            Put::Existed => Ok(records::get::<PolicyRecord>(&**root, &key).await?.document == record.document),
        }
    };
    with_cancel::<_, Error>(cancel, put).await
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
    let place = records::numbered(PASSWORDS, 1);
    with_cancel(cancel, records::put(&*store, &place, &wrapped)).await?;
    // What stands there counts: an earlier, interrupted call may have written it.
    let password = password_of(&store, key, &record.id, cancel).await?;
    Repository::init(store.clone(), &password, cancel).await?;
    with_cancel(cancel, records::put(&*store, &records::numbered(INSTANCE, 1), record)).await?;
    Ok(())
}

const PASSWORDS: &str = "keys/";
const INSTANCE: &str = "instance/";

fn context(instance_id: &str) -> String {
    format!("instance:{instance_id}")
}

/// The password of an instance's repository: 64 hexadecimal digits.
pub async fn password_of(
    store: &store::Shared,
    key: &WrapKey,
    instance_id: &str,
    cancel: &CancellationToken,
) -> Result<SecretString, Error> {
    let newest = with_cancel(cancel, records::numbers(&**store, PASSWORDS)).await?.last().copied().unwrap_or(1);
    let record: PasswordRecord =
        match with_cancel(cancel, records::get(&**store, &records::numbered(PASSWORDS, newest))).await {
            Err(Error::Store(store::Error::NotFound { key, store })) => {
                return Err(Error::damaged(format!("{key} in {store}"), "the repository's password is missing"));
            }
            other => other?,
        };
    let plain = key.unwrap(&record.password, &context(instance_id))?;
    let text = std::str::from_utf8(&plain).map_err(|_| Error::KeyWrong { what: context(instance_id) })?;
    Ok(SecretString::from(text))
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
    let record: RecoveryKeyRecord = match with_cancel(cancel, records::get(&**root, &recovery_record(recovery))).await {
        Err(Error::Store(store::Error::NotFound { .. })) => return Err(wrong()),
        other => other?,
    };
    let plain = recovery.unwrap(&record.vault_key, RECOVERY_CONTEXT)?;
    let text = std::str::from_utf8(&plain).map_err(|_| wrong())?;
    WrapKey::from_text(&SecretString::from(text)).ok_or_else(wrong)
}
