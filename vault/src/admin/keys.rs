//! Which keys open the vault; more recovery keys, fewer, and a new vault key.
//!
//! A rotation, with the vault key in a file (`docs/decisions/0014-key-vault-wraps-the-vault-key.md` has Key Vault's):
//! ```text
//! 1. vault.key.new                    a rotation that was killed goes on with it
//! 2. instances/*/keys/<n+1>.json      every password, wrapped by the new key       the old key opens the records before
//! 3. keys/recovery-<id>.json          a new recovery key wraps the new key
//! 4. vault.key.new -> vault.key       THE change, at one instant                   the new key opens everything
//!    (the new recovery key is shown)
//! 5. what the new key did not wrap is deleted: the old key opens nothing any more
//! ```
//! Killed anywhere, the key file that is in place opens every instance. No data is uploaded again: repositories keep their passwords,
//! and so whoever has learnt a password, or has the old key and a copy of the old records, is not shut out by a rotation.

use futures::StreamExt as _;

use super::init::put_recovery_record;
use super::*;
use crate::manifest::{self, Scope};
use crate::records::{RecoveryKeyRecord, VaultKeyRecord};

/// A recovery key that has a record in the vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryKey {
    /// [`WrapKey::id`].
    pub id: String,
    /// When it was made.
    pub create_time: jiff::Timestamp,
    /// The id of the vault key that it opens; `None`: the vault's first one.
    pub vault_key_id: Option<String>,
}

/// What wraps an instance's password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceKey {
    /// The instance.
    pub instance_id: String,
    /// Its name; empty when its making was interrupted.
    pub name: String,
    /// The id of the key that wrapped the newest record.
    pub key_id: String,
    /// When that was.
    pub create_time: jiff::Timestamp,
    /// Older records, which a rotation could not delete or has not deleted yet.
    pub superseded: u64,
}

/// Which keys wrap what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyList {
    /// Oldest first.
    pub recovery: Vec<RecoveryKey>,
    /// Keys of Key Vault that wrap the vault key: their ids with versions, and the vault key's id. Oldest first.
    pub key_vault: Vec<(String, String)>,
    /// By id.
    pub instances: Vec<InstanceKey>,
}

/// Reads the records of all keys. Opens none.
pub async fn list_keys(stores: &dyn Stores, cancel: &CancellationToken) -> Result<KeyList, Error> {
    let root = stores.root()?;
    let mut list = KeyList { recovery: recovery_keys(&root, cancel).await?, ..KeyList::default() };
    for (_, record) in vault_key_records(&root, cancel).await? {
        list.key_vault.push((record.vault_key.key_id, record.vault_key_id));
    }
    for instance_id in with_cancel(cancel, stores.instance_ids()).await? {
        let store = stores.instance(&instance_id)?;
        let numbers = with_cancel(cancel, records::numbers(&*store, records::PASSWORDS)).await?;
        let Some((newest, older)) = numbers.split_last() else { continue };
        let place = records::numbered(records::PASSWORDS, *newest);
        let record: PasswordRecord = with_cancel(cancel, records::get(&*store, &place)).await?;
        let named = recorded::newest_instance(&store, cancel).await?;
        list.instances.push(InstanceKey {
            instance_id,
            name: named.map(|(_, instance)| instance.name).unwrap_or_default(),
            key_id: record.password.key_id,
            create_time: record.create_time,
            superseded: older.len() as u64,
        });
    }
    Ok(list)
}

/// The recovery keys that have a record in the vault, oldest first.
pub async fn recovery_keys(root: &store::Shared, cancel: &CancellationToken) -> Result<Vec<RecoveryKey>, Error> {
    let read = async {
        let mut keys = Vec::new();
        // Stores list what is below a folder.
        let mut entries = store::list(&**root, records::KEYS);
        while let Some(entry) = entries.next().await {
            let key = entry?.key;
            if !key.as_str().starts_with(records::RECOVERY_KEYS) {
                continue;
            }
            let record: RecoveryKeyRecord = records::get(&**root, &key).await?;
            let (create_time, vault_key_id) = (record.create_time, record.vault_key_id);
            keys.push(RecoveryKey { id: record.vault_key.key_id, create_time, vault_key_id });
        }
        keys.sort_by_key(|key| key.create_time);
        Ok::<_, Error>(keys)
    };
    with_cancel(cancel, read).await
}

async fn vault_key_records(
    root: &store::Shared,
    cancel: &CancellationToken,
) -> Result<Vec<(Key, VaultKeyRecord)>, Error> {
    let read = async {
        let mut found = Vec::new();
        for n in records::numbers(&**root, records::VAULT_KEYS).await? {
            let key = records::numbered(records::VAULT_KEYS, n);
            let record = records::get(&**root, &key).await?;
            found.push((key, record));
        }
        Ok::<_, Error>(found)
    };
    with_cancel(cancel, read).await
}

/// Makes another recovery key for this vault key: its id, and itself, to be shown once.
pub async fn add_recovery_key(
    root: &store::Shared,
    key: &WrapKey,
    cancel: &CancellationToken,
) -> Result<(String, SecretString), Error> {
    let recovery = WrapKey::generate()?;
    put_recovery_record(root, &recovery, key, cancel).await?;
    Ok((recovery.id(), recovery.to_text()))
}

/// Deletes the record of a recovery key; whoever has that key cannot open the vault with it any more, unless they kept a copy of the
/// record. Success, too, when it is not there.
pub async fn remove_recovery_key(
    root: &store::Shared,
    recovery_id: &str,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let place = recovery_record(recovery_id)?;
    miss_no_more(root, Scope::Vault, std::slice::from_ref(&place), cancel).await?;
    with_cancel(cancel, root.delete(&place)).await
}

/// What came of [`rotate`].
#[derive(Debug)]
pub struct Rotated {
    /// The id of the vault key before.
    pub old_id: String,
    /// The vault key now.
    pub key: WrapKey,
    /// The id of the new recovery key.
    pub recovery_id: String,
    /// The new recovery key, to be shown once. Those before open the vault only until [`clean_up_rotation`].
    pub recovery_key: SecretString,
    /// Instances whose passwords were wrapped anew.
    pub instances: u64,
}

/// Steps 1 to 4 of a rotation: see the module. No agent may run with the vault: it would wrap new instances by the old key.
///
/// Fails before anything is written in the vault when the vault key does not open every instance. After an error or a kill at any point
/// the vault key in `place` opens every instance, and calling this again goes on.
pub async fn rotate(stores: &dyn Stores, place: &KeyPlace, cancel: &CancellationToken) -> Result<Rotated, Error> {
    let root = stores.root()?;
    let old = place.load(&root, cancel).await?;
    let mut passwords = Vec::new();
    for instance_id in with_cancel(cancel, stores.instance_ids()).await? {
        let store = stores.instance(&instance_id)?;
        if with_cancel(cancel, records::numbers(&*store, records::PASSWORDS)).await?.is_empty() {
            // Its making was interrupted before it had a password.
            continue;
        }
        let password = password_of(&store, &old, &instance_id, cancel).await?;
        passwords.push((instance_id, store, password));
    }
    let next = place.next()?;
    for (instance_id, store, password) in &passwords {
        passwords::add(store, &next, instance_id, password, cancel).await?;
    }
    let (recovery_id, recovery_key) = add_recovery_key(&root, &next, cancel).await?;
    place.replace(&root, &next, cancel).await?;
    let (old_id, instances) = (old.id(), passwords.len() as u64);
    Ok(Rotated { old_id, key: next, recovery_id, recovery_key, instances })
}

/// What came of [`clean_up_rotation`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Records that were deleted.
    pub deleted: u64,
    /// Records that the store did not let go, with its words: old keys still open these.
    pub kept: Vec<String>,
}

/// Step 5 of a rotation: deletes every record that `key` did not wrap, or does not lie in, and every recovery key but the new one. An
/// instance that has no record of `key` is left as it is. May be repeated.
pub async fn clean_up_rotation(
    stores: &dyn Stores,
    key: &WrapKey,
    recovery_id: &str,
    cancel: &CancellationToken,
) -> Result<Cleaned, Error> {
    let root = stores.root()?;
    let mut cleaned = Cleaned::default();
    for instance_id in with_cancel(cancel, stores.instance_ids()).await? {
        let store = stores.instance(&instance_id)?;
        let Some((newest, _)) = passwords::newest_of(&store, key, cancel).await? else { continue };
        let numbers = with_cancel(cancel, records::numbers(&*store, records::PASSWORDS)).await?;
        let old =
            numbers.into_iter().filter(|n| *n < newest).map(|n| records::numbered(records::PASSWORDS, n)).collect();
        delete(&store, Scope::Instance, old, &mut cleaned, cancel).await?;
    }
    let wrapped = vault_key_records(&root, cancel).await?.into_iter();
    let mut old: Vec<Key> =
        wrapped.filter(|(_, record)| record.vault_key_id != key.id()).map(|(place, _)| place).collect();
    for other in recovery_keys(&root, cancel).await?.into_iter().filter(|other| other.id != recovery_id) {
        old.push(recovery_record(&other.id)?);
    }
    delete(&root, Scope::Vault, old, &mut cleaned, cancel).await?;
    Ok(cleaned)
}

/// A refusal is told in the end; anything else is an error.
async fn delete(
    store: &store::Shared,
    scope: Scope,
    places: Vec<Key>,
    cleaned: &mut Cleaned,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    miss_no_more(store, scope, &places, cancel).await?;
    for place in places {
        match with_cancel(cancel, store.delete(&place)).await {
            Ok(()) => cleaned.deleted += 1,
            Err(Error::Store(error @ (store::Error::AccessDenied { .. } | store::Error::Protected { .. }))) => {
                cleaned.kept.push(format!("{place}: {error}"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Tells the manifests, if they name them, that these records go on purpose: before they go, so that a kill between raises no alarm.
async fn miss_no_more(
    store: &store::Shared,
    scope: Scope,
    places: &[Key],
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let listed = with_cancel(cancel, manifest::read(&**store)).await?.files;
    let gone: Vec<Key> = places.iter().filter(|place| listed.contains_key(place.as_str())).cloned().collect();
    if !gone.is_empty() {
        manifest::append(&**store, scope, &gone, cancel).await?;
    }
    Ok(())
}
