//! Where the vault key is kept: in a file, or wrapped by Azure Key Vault in the vault itself.

use std::sync::Arc;

use super::*;
use crate::keys::{KeyWrap, sync_parent};
use crate::records::VaultKeyRecord;

/// Where the vault key is kept. Cheap to clone.
#[derive(Debug, Clone)]
pub enum KeyPlace {
    /// A file, mode 0600.
    File(PathBuf),
    /// Records `keys/vault/<n>.json` in the vault, which only this key opens.
    Wrapped(Arc<dyn KeyWrap>),
}

impl std::fmt::Display for KeyPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Wrapped(wrap) => f.write_str(&wrap.id()),
        }
    }
}

impl KeyPlace {
    /// The vault key. [`Error::KeyMissing`] when it is not there. `root` is the vault's own store, not used for a file.
    pub async fn load(&self, root: &store::Shared, cancel: &CancellationToken) -> Result<WrapKey, Error> {
        match self {
            Self::File(path) => WrapKey::load(path),
            Self::Wrapped(wrap) => newest_wrapped(root, &**wrap, cancel).await?.ok_or_else(|| Error::KeyMissing {
                path: wrap.id(),
                detail: format!("has not wrapped the key of the vault in {}", root.location()),
            }),
        }
    }

    /// The vault key, or a new one when none is there.
    pub(super) async fn load_or_create(
        &self,
        root: &store::Shared,
        cancel: &CancellationToken,
    ) -> Result<WrapKey, Error> {
        match self {
            Self::File(path) => load_or_create_file(path),
            Self::Wrapped(wrap) => {
                if let Some(key) = newest_wrapped(root, &**wrap, cancel).await? {
                    return Ok(key);
                }
                put_wrapped(root, &**wrap, &WrapKey::generate()?, cancel).await?;
                // What stands there counts: another init may have been first.
                self.load(root, cancel).await
            }
        }
    }

    /// Keeps this vault key here, as a new machine does. One that is here already must be the same ([`Error::KeyWrong`]): no key is
    /// ever overwritten.
    pub async fn keep(&self, root: &store::Shared, key: &WrapKey, cancel: &CancellationToken) -> Result<(), Error> {
        match self {
            Self::File(path) => {
                if path.try_exists().map_err(|error| unwritten(path, &error))? {
                    let known = WrapKey::load(path)?;
                    let what = format!(
                        "the vault in {}: {} is the key file of another vault, and",
                        root.location(),
                        path.display()
                    );
                    return if known.id() == key.id() { Ok(()) } else { Err(Error::KeyWrong { what }) };
                }
                key.save_new(path).map_err(|error| unwritten(path, &error))
            }
            Self::Wrapped(wrap) => match newest_wrapped(root, &**wrap, cancel).await? {
                Some(known) if known.id() == key.id() => Ok(()),
                _ => put_wrapped(root, &**wrap, key, cancel).await,
            },
        }
    }

    /// The key that a rotation changes to. For a file it lies beside it until [`Self::replace`], so that an interrupted rotation goes on
    /// with the same key; a key for Key Vault is kept nowhere before, and an interrupted rotation begins with another one.
    pub(super) fn next(&self) -> Result<WrapKey, Error> {
        match self {
            Self::File(path) => load_or_create_file(&next_path(path)),
            Self::Wrapped(_) => WrapKey::generate(),
        }
    }

    /// Makes `next` the vault key, at one instant.
    pub(super) async fn replace(
        &self,
        root: &store::Shared,
        next: &WrapKey,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        match self {
            Self::File(path) => std::fs::rename(next_path(path), path)
                .and_then(|()| sync_parent(path))
                .map_err(|error| unwritten(path, &error)),
            Self::Wrapped(wrap) => put_wrapped(root, &**wrap, next, cancel).await,
        }
    }
}

fn next_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

fn unwritten(path: &Path, error: &std::io::Error) -> Error {
    Error::KeyMissing { path: path.display().to_string(), detail: format!("cannot be written: {error}") }
}

fn load_or_create_file(path: &Path) -> Result<WrapKey, Error> {
    if path.try_exists().map_err(|error| unwritten(path, &error))? {
        return WrapKey::load(path);
    }
    let key = WrapKey::generate()?;
    key.save_new(path).map_err(|error| unwritten(path, &error))?;
    Ok(key)
}

async fn newest_wrapped(
    root: &store::Shared,
    wrap: &dyn KeyWrap,
    cancel: &CancellationToken,
) -> Result<Option<WrapKey>, Error> {
    for n in with_cancel(cancel, records::numbers(&**root, records::VAULT_KEYS)).await?.into_iter().rev() {
        let place = records::numbered(records::VAULT_KEYS, n);
        let record: VaultKeyRecord = with_cancel(cancel, records::get(&**root, &place)).await?;
        if wrap.wrapped(&record.vault_key) {
            let plain = wrap.unwrap(&record.vault_key, VAULT_KEY_CONTEXT, cancel).await?;
            let wrong = || Error::KeyWrong { what: format!("{place} in {}", root.location()) };
            return key_of(&plain).map(Some).ok_or_else(wrong);
        }
    }
    Ok(None)
}

async fn put_wrapped(
    root: &store::Shared,
    wrap: &dyn KeyWrap,
    key: &WrapKey,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let text = key.to_text();
    let record = VaultKeyRecord {
        version: records::VERSION,
        create_time: crate::clock::now(),
        vault_key: wrap.wrap(text.expose_secret().as_bytes(), VAULT_KEY_CONTEXT, cancel).await?,
        vault_key_id: key.id(),
    };
    loop {
        let last = with_cancel(cancel, records::numbers(&**root, records::VAULT_KEYS)).await?.last().copied();
        let place = records::numbered(records::VAULT_KEYS, last.unwrap_or(0) + 1);
        if with_cancel(cancel, records::put(&**root, &place, &record)).await? == Put::Created {
            return Ok(());
        }
    }
}
