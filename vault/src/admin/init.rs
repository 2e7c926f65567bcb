//! Making a vault.

use super::*;
use crate::records::RecoveryKeyRecord;

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

/// [`init_with`] a vault key in a file.
pub async fn init(
    access: &Access,
    region: &str,
    redundancy: &str,
    key_path: &Path,
    cancel: &CancellationToken,
) -> Result<Initialized, Error> {
    init_with(access, region, redundancy, &KeyPlace::File(key_path.to_owned()), None, cancel).await
}

/// Makes the vault, its vault key and its recovery key, unless a vault is there.
///
/// Order: the vault key, the recovery key's file if one is asked for, the recovery record, `vault.json`. A kill in between leaves no vault;
/// the next call goes on with the same vault key, and with the same recovery key if it is in a file. Existing key files are used, never
/// overwritten.
pub async fn init_with(
    access: &Access,
    region: &str,
    redundancy: &str,
    place: &KeyPlace,
    recovery_path: Option<&Path>,
    cancel: &CancellationToken,
) -> Result<Initialized, Error> {
    with_cancel(cancel, access.create_root()).await?;
    let root = access.open_root()?;
    if let Some(vault) = find(&root, cancel).await? {
        return Ok(Initialized { vault, existed: true, recovery_key: None });
    }
    let key = place.load_or_create(&root, cancel).await?;
    let recovery = match recovery_path {
        Some(path) => load_or_create_recovery(path)?,
        None => WrapKey::generate()?,
    };
    let vault = VaultRecord {
        version: records::VERSION,
        id: new_id()?,
        create_time: crate::clock::now(),
        region: region.to_owned(),
        redundancy: redundancy.to_owned(),
        format_version: records::FORMAT_VERSION,
        immutability_days: 0,
        soft_delete_days: 14,
    };
    put_recovery_record(&root, &recovery, &key, cancel).await?;
    if with_cancel(cancel, records::put(&*root, &vault_key(), &vault)).await? == Put::Existed {
        let vault = open(&root, cancel).await?;
        return Ok(Initialized { vault, existed: true, recovery_key: None });
    }
    Ok(Initialized { vault, existed: false, recovery_key: Some(recovery.to_text()) })
}

/// Wraps the vault key by a recovery key. A record of that recovery key that is there must open the same vault key.
pub(super) async fn put_recovery_record(
    root: &store::Shared,
    recovery: &WrapKey,
    key: &WrapKey,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let record = RecoveryKeyRecord {
        version: records::VERSION,
        create_time: crate::clock::now(),
        vault_key: recovery.wrap(key.to_text().expose_secret().as_bytes(), VAULT_KEY_CONTEXT)?,
        vault_key_id: Some(key.id()),
    };
    let put = with_cancel(cancel, records::put(&**root, &recovery_record(&recovery.id())?, &record)).await?;
    if put == Put::Existed && recover_key(root, recovery, cancel).await?.id() != key.id() {
        return Err(Error::KeyWrong { what: format!("the record of the recovery key {}", recovery.id()) });
    }
    Ok(())
}

fn load_or_create_recovery(path: &Path) -> Result<WrapKey, Error> {
    let fault = |detail: String| Error::KeyMissing { path: path.display().to_string(), detail };
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let text = SecretString::from(text);
            WrapKey::from_text(&text).ok_or_else(|| fault("is not a recovery key, or was altered".to_owned()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let recovery = WrapKey::generate()?;
            recovery.save_text(path).map_err(|error| fault(format!("cannot be written: {error}")))?;
            Ok(recovery)
        }
        Err(error) => Err(fault(format!("cannot be read: {error}"))),
    }
}
