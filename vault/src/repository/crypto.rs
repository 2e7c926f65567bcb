//! restic's authenticated encryption: AES-256-CTR with Poly1305-AES, drawn as `nonce (16) || ciphertext || tag (16)`.
//!
//! Source: "Keys, Encryption and MAC" in restic's doc/design.rst. Nonces are random, so a key may seal 2^32 messages and more
//! with a negligible chance of a repeated one (2^-64).

use aes256ctr_poly1305aes::aead::AeadInPlace as _;
use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Key, Nonce, Tag};
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::error::Error;

/// Bytes that sealing adds.
pub const OVERHEAD: usize = NONCE_LEN + TAG_LEN;
const NONCE_LEN: usize = 16;
const TAG_LEN: usize = 16;

/// A key that seals and opens: 32 bytes for AES-256, 16 for AES-128 (k) and 16 for r of Poly1305-AES, in this order.
pub struct SealKey {
    bytes: [u8; 64],
    cipher: Aes256CtrPoly1305Aes,
}

impl Drop for SealKey {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

/// The bytes do not open with the key: another key's, or altered.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the bytes do not open with the repository's key")]
pub struct OpenError;

impl SealKey {
    /// A key from its 64 bytes.
    pub fn new(bytes: [u8; 64]) -> Self {
        Self { cipher: Aes256CtrPoly1305Aes::new(Key::from_slice(&bytes)), bytes }
    }

    /// A new random key.
    pub fn generate() -> Result<Self, Error> {
        let mut bytes = [0; 64];
        fill_random(&mut bytes)?;
        Ok(Self::new(bytes))
    }

    /// `nonce || ciphertext || tag` of the plaintext.
    pub fn seal(&self, plaintext: &[u8]) -> Result<Vec<u8>, Error> {
        let mut out = Vec::with_capacity(plaintext.len() + OVERHEAD);
        self.seal_into(plaintext, &mut out)?;
        Ok(out)
    }

    /// Appends the sealed plaintext to `out`.
    pub fn seal_into(&self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let mut nonce = [0; NONCE_LEN];
        fill_random(&mut nonce)?;
        out.extend_from_slice(&nonce);
        let start = out.len();
        out.extend_from_slice(plaintext);
        let tag = self
            .cipher
            .encrypt_in_place_detached(Nonce::from_slice(&nonce), b"", &mut out[start..])
            .map_err(|_| Error::Internal("a message is too long to seal".to_owned()))?;
        out.extend_from_slice(&tag);
        Ok(())
    }

    /// The plaintext of `sealed`; the tag is checked first.
    pub fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let (nonce, rest) = sealed.split_at_checked(NONCE_LEN).ok_or(OpenError)?;
        let (ciphertext, tag) =
            rest.split_at_checked(rest.len().checked_sub(TAG_LEN).ok_or(OpenError)?).ok_or(OpenError)?;
        let mut plaintext = ciphertext.to_vec();
        self.cipher
            .decrypt_in_place_detached(Nonce::from_slice(nonce), b"", &mut plaintext, Tag::from_slice(tag))
            .map_err(|_| OpenError)?;
        Ok(plaintext)
    }

    /// restic's JSON form of a master key, for the key file.
    pub fn to_json(&self) -> Zeroizing<Vec<u8>> {
        let mut json = KeyJson {
            mac: MacJson { k: STANDARD.encode(&self.bytes[32..48]), r: STANDARD.encode(&self.bytes[48..64]) },
            encrypt: STANDARD.encode(&self.bytes[..32]),
        };
        let text = Zeroizing::new(serde_json::to_vec(&json).expect("strings serialize"));
        json.zeroize();
        text
    }

    /// The key of restic's JSON form.
    pub fn from_json(text: &[u8]) -> Option<Self> {
        let mut json: KeyJson = serde_json::from_slice(text).ok()?;
        let mut bytes = [0; 64];
        let parts = [(&json.encrypt, 0..32), (&json.mac.k, 32..48), (&json.mac.r, 48..64)];
        for (encoded, range) in parts {
            let decoded = Zeroizing::new(STANDARD.decode(encoded).ok()?);
            if decoded.len() != range.len() {
                return None;
            }
            bytes[range].copy_from_slice(&decoded);
        }
        json.zeroize();
        Some(Self::new(bytes))
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey([redacted])")
    }
}

#[derive(Serialize, Deserialize)]
struct KeyJson {
    mac: MacJson,
    encrypt: String,
}

#[derive(Serialize, Deserialize)]
struct MacJson {
    k: String,
    r: String,
}

impl KeyJson {
    fn zeroize(&mut self) {
        self.encrypt.zeroize();
        self.mac.k.zeroize();
        self.mac.r.zeroize();
    }
}

/// Fills with bytes from the system's generator.
pub fn fill_random(bytes: &mut [u8]) -> Result<(), Error> {
    rand::fill(bytes).map_err(|_| Error::Internal("the system has no random bytes".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seals_and_opens_and_notices_every_changed_byte() {
        let key = SealKey::generate().expect("random");
        for len in [0_usize, 1, 15, 16, 17, 1000] {
            let plaintext: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            let sealed = key.seal(&plaintext).expect("seal");
            assert_eq!(sealed.len(), len + OVERHEAD);
            assert_eq!(key.open(&sealed).expect("open"), plaintext);
            for position in 0..sealed.len() {
                let mut changed = sealed.clone();
                changed[position] ^= 1;
                assert!(key.open(&changed).is_err(), "byte {position} of {len}");
            }
        }
        assert!(key.open(&[0; 31]).is_err());
    }

    #[test]
    fn the_json_form_comes_back() {
        let key = SealKey::generate().expect("random");
        let again = SealKey::from_json(&key.to_json()).expect("parses");
        assert_eq!(again.bytes, key.bytes);
        assert!(SealKey::from_json(b"{}").is_none());
    }
}
