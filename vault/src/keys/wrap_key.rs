//! A key of 32 random bytes: the vault key and the recovery keys. AES-256-GCM with a random 96-bit nonce.

use std::path::Path;

use async_trait::async_trait;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::{KeyWrap, Wrapped};
use crate::error::Error;
use crate::repository::crypto::fill_random;

/// The algorithm's name in records.
pub(super) const ALGORITHM: &str = "AES-256-GCM";
/// First word of a key file.
const FILE_TAG: &str = "vaultferry-vault-key-1";

/// 32 random bytes that wrap other keys.
pub struct WrapKey {
    bytes: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for WrapKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WrapKey({}, [redacted])", self.id())
    }
}

impl WrapKey {
    /// Its bytes, to be wrapped by another key.
    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// A key of these bytes.
    pub(super) fn from_bytes(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self { bytes }
    }

    /// A new random key.
    pub fn generate() -> Result<Self, Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        fill_random(&mut *bytes)?;
        Ok(Self { bytes })
    }

    /// The first 8 bytes of the SHA-256 of a tag and the key, in hexadecimal: names the key without telling it.
    pub fn id(&self) -> String {
        let digest = Sha256::new().chain_update(b"vaultferry-key-id-1").chain_update(*self.bytes).finalize();
        hex::encode(&digest[..8])
    }

    /// Wraps a secret of the vault. `context` says what it is, for example `instance:<id>`; unwrapping needs the same.
    pub fn wrap(&self, secret: &[u8], context: &str) -> Result<Wrapped, Error> {
        let mut nonce = [0; NONCE_LEN];
        fill_random(&mut nonce)?;
        let mut buffer = secret.to_vec();
        self.aead()?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context.as_bytes()), &mut buffer)
            .map_err(|_| Error::Internal("wrapping a key failed".to_owned()))?;
        Ok(Wrapped {
            algorithm: ALGORITHM.to_owned(),
            key_id: self.id(),
            nonce: STANDARD.encode(nonce),
            ciphertext: STANDARD.encode(buffer),
            wrapped_key: None,
        })
    }

    /// The secret. [`Error::KeyWrong`] when another key or another context wrapped it, or when it was altered.
    pub fn unwrap(&self, wrapped: &Wrapped, context: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
        if wrapped.algorithm != ALGORITHM {
            let detail = format!("it is wrapped by {:?}", wrapped.algorithm);
            return Err(Error::Unreadable { what: format!("the key of {context}"), detail });
        }
        let wrong = || Error::KeyWrong { what: format!("the key of {context} (wrapped by key {})", wrapped.key_id) };
        let nonce = STANDARD.decode(&wrapped.nonce).map_err(|_| wrong())?;
        let nonce = Nonce::try_assume_unique_for_key(&nonce).map_err(|_| wrong())?;
        let mut buffer = Zeroizing::new(STANDARD.decode(&wrapped.ciphertext).map_err(|_| wrong())?);
        let plain_len =
            self.aead()?.open_in_place(nonce, Aad::from(context.as_bytes()), &mut buffer).map_err(|_| wrong())?.len();
        buffer.truncate(plain_len);
        Ok(buffer)
    }

    /// True when this key wrapped it.
    pub fn wrapped(&self, wrapped: &Wrapped) -> bool {
        wrapped.key_id == self.id()
    }

    fn aead(&self) -> Result<LessSafeKey, Error> {
        UnboundKey::new(&AES_256_GCM, &*self.bytes)
            .map(LessSafeKey::new)
            .map_err(|_| Error::Internal("AES-256-GCM is not available".to_owned()))
    }

    /// The key as people keep it: 9 groups of 8 hexadecimal digits, the last one a check of the others.
    pub fn to_text(&self) -> SecretString {
        let mut digits = Zeroizing::new(hex::encode(*self.bytes));
        digits.push_str(&hex::encode(&Sha256::digest(*self.bytes)[..4]));
        let groups: Vec<&str> = (0..9).map(|i| &digits[i * 8..(i + 1) * 8]).collect();
        SecretString::from(groups.join("-"))
    }

    /// Reads what [`Self::to_text`] wrote; case, spaces and hyphens do not matter. `None` when a digit is missing or wrong.
    pub fn from_text(text: &SecretString) -> Option<Self> {
        let digits: Zeroizing<String> =
            Zeroizing::new(text.expose_secret().chars().filter(|c| !c.is_whitespace() && *c != '-').collect());
        let decoded = Zeroizing::new(hex::decode(digits.as_bytes()).ok()?);
        let (key, check) = decoded.split_first_chunk::<32>()?;
        (Sha256::digest(key)[..4] == *check).then(|| Self { bytes: Zeroizing::new(*key) })
    }

    /// Reads a key file. [`Error::KeyMissing`] when it is not there or is not one.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let missing = |detail: String| Error::KeyMissing { path: path.display().to_string(), detail };
        let text = std::fs::read_to_string(path).map_err(|error| missing(format!("cannot be read: {error}")))?;
        let text = Zeroizing::new(text);
        let key = text.trim().strip_prefix(FILE_TAG).and_then(|rest| Self::from_text(&SecretString::from(rest.trim())));
        key.ok_or_else(|| missing("is not a key file, or was altered".to_owned()))
    }

    /// Writes a key file, mode 0600, durable when this returns. Never overwrites: fails when the file is there.
    pub fn save_new(&self, path: &Path) -> std::io::Result<()> {
        let text = self.to_text();
        write_secret(path, &Zeroizing::new(format!("{FILE_TAG} {}\n", text.expose_secret())))
    }

    /// Writes the key as its text alone, for people; otherwise as [`Self::save_new`].
    pub fn save_text(&self, path: &Path) -> std::io::Result<()> {
        write_secret(path, &Zeroizing::new(format!("{}\n", self.to_text().expose_secret())))
    }
}

fn write_secret(path: &Path, line: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // Half a key file would block the next try, and opens nothing.
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    sync_parent(path)
}

/// Makes a name in a folder durable.
pub(crate) fn sync_parent(path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    if let Some(dir) = path.parent() {
        std::fs::File::open(dir)?.sync_all()?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

#[async_trait]
impl KeyWrap for WrapKey {
    fn id(&self) -> String {
        Self::id(self)
    }

    fn wrapped(&self, wrapped: &Wrapped) -> bool {
        Self::wrapped(self, wrapped)
    }

    async fn wrap(&self, secret: &[u8], context: &str, _: &CancellationToken) -> Result<Wrapped, Error> {
        Self::wrap(self, secret, context)
    }

    async fn unwrap(
        &self,
        wrapped: &Wrapped,
        context: &str,
        _: &CancellationToken,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        Self::unwrap(self, wrapped, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wraps_for_one_context_and_one_key() {
        let key = WrapKey::generate().expect("random");
        let wrapped = key.wrap(b"secret", "instance:a").expect("wrap");
        assert_eq!(**key.unwrap(&wrapped, "instance:a").expect("unwrap"), *b"secret");
        assert!(matches!(key.unwrap(&wrapped, "instance:b"), Err(Error::KeyWrong { .. })));
        let other = WrapKey::generate().expect("random");
        assert!(matches!(other.unwrap(&wrapped, "instance:a"), Err(Error::KeyWrong { .. })));
    }

    #[test]
    fn text_and_file_come_back_and_a_wrong_digit_is_noticed() {
        let key = WrapKey::generate().expect("random");
        let text = key.to_text();
        let sloppy = SecretString::from(text.expose_secret().to_uppercase().replace('-', " "));
        assert_eq!(WrapKey::from_text(&sloppy).expect("reads").bytes, key.bytes);
        let first = text.expose_secret().chars().next().expect("a digit");
        let wrong = text.expose_secret().replacen(first, if first == '0' { "1" } else { "0" }, 1);
        assert!(WrapKey::from_text(&SecretString::from(wrong)).is_none());

        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("vault.key");
        key.save_new(&path).expect("saved");
        assert_eq!(WrapKey::load(&path).expect("loads").bytes, key.bytes);
        assert!(key.save_new(&path).is_err(), "never overwritten");
        assert!(!format!("{key:?}").contains(&text.expose_secret()[..8]));
    }
}
