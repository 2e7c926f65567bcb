//! restic's authenticated encryption: AES-256-CTR with Poly1305-AES, drawn as `nonce (16) || ciphertext || tag (16)`.
//!
//! Source: "Keys, Encryption and MAC" in restic's doc/design.rst. Nonces are random, so a key may seal 2^32 messages and more
//! with a negligible chance of a repeated one (2^-64). The counter is the whole nonce, 128 bits big-endian, as in Go.

use aws_lc_rs::cipher::{AES_128, AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{constant_time, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use poly1305::Poly1305;
use poly1305::universal_hash::KeyInit as _;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::error::Error;

/// Bytes that sealing adds.
pub const OVERHEAD: usize = NONCE_LEN + TAG_LEN;
/// Bytes of the nonce, which a sealed message begins with.
pub const NONCE_LEN: usize = 16;
const TAG_LEN: usize = 16;

/// A key that seals and opens: 32 bytes for AES-256, 16 for AES-128 (k) and 16 for r of Poly1305-AES, in this order.
pub struct SealKey {
    bytes: [u8; 64],
    data: EncryptingKey,
    mac: EncryptingKey,
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
        let data = UnboundCipherKey::new(&AES_256, &bytes[..32]).and_then(EncryptingKey::ctr);
        let mac = UnboundCipherKey::new(&AES_128, &bytes[32..48]).and_then(EncryptingKey::ctr);
        Self { data: data.expect("32 bytes make a key"), mac: mac.expect("16 bytes make a key"), bytes }
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
        let start = out.len();
        out.resize(start + NONCE_LEN, 0);
        out.extend_from_slice(plaintext);
        self.seal_from(start, out)
    }

    /// Seals in place: `buffer` is [`NONCE_LEN`] bytes of room and then the plaintext. Memory moves only if there is no room for the tag.
    pub fn seal_in_place(&self, buffer: &mut Vec<u8>) -> Result<(), Error> {
        self.seal_from(0, buffer)
    }

    fn seal_from(&self, start: usize, buffer: &mut Vec<u8>) -> Result<(), Error> {
        let message = buffer.get_mut(start..).and_then(<[u8]>::split_first_chunk_mut::<NONCE_LEN>);
        let (nonce, text) = message.ok_or_else(|| Error::Internal("there is no room for a nonce".to_owned()))?;
        fill_random(nonce)?;
        apply_keystream(&self.data, *nonce, text).map_err(Error::internal)?;
        let tag = self.tag(*nonce, text).map_err(Error::internal)?;
        buffer.extend_from_slice(&tag);
        Ok(())
    }

    /// The plaintext of `sealed`; the tag is checked first.
    pub fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let mut bytes = sealed.to_vec();
        let length = self.open_in_place(&mut bytes)?.len();
        bytes.copy_within(NONCE_LEN..NONCE_LEN + length, 0);
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Opens the bytes where they are, and returns where the plaintext lies in them. After an error the bytes are worth nothing.
    pub fn open_in_place<'a>(&self, sealed: &'a mut [u8]) -> Result<&'a mut [u8], OpenError> {
        let (nonce, rest) = sealed.split_first_chunk_mut::<NONCE_LEN>().ok_or(OpenError)?;
        let (ciphertext, tag) = rest.split_last_chunk_mut::<TAG_LEN>().ok_or(OpenError)?;
        let expected = self.tag(*nonce, ciphertext).map_err(|_| OpenError)?;
        constant_time::verify_slices_are_equal(&expected, tag).map_err(|_| OpenError)?;
        apply_keystream(&self.data, *nonce, ciphertext).map_err(|_| OpenError)?;
        Ok(ciphertext)
    }

    /// Poly1305 with r, and AES-128 of the nonce under k.
    fn tag(&self, nonce: [u8; NONCE_LEN], ciphertext: &[u8]) -> Result<[u8; TAG_LEN], aws_lc_rs::error::Unspecified> {
        let mut key = poly1305::Key::default();
        key[..16].copy_from_slice(&self.bytes[48..]);
        // The first block of a keystream is the encrypted counter.
        apply_keystream(&self.mac, nonce, &mut key[16..])?;
        let tag = Poly1305::new(&key).compute_unpadded(ciphertext);
        key.as_mut_slice().zeroize();
        Ok(tag.into())
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

fn apply_keystream(
    key: &EncryptingKey,
    counter: [u8; NONCE_LEN],
    text: &mut [u8],
) -> Result<(), aws_lc_rs::error::Unspecified> {
    key.less_safe_encrypt(text, EncryptionContext::Iv128(FixedLength::from(counter))).map(|_| ())
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
    fn what_others_seal_opens_and_what_is_sealed_opens_for_others() {
        use aes256ctr_poly1305aes::aead::AeadInPlace as _;
        use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Key, Nonce, Tag};

        let key = SealKey::generate().expect("random");
        let other = Aes256CtrPoly1305Aes::new(Key::from_slice(&key.bytes));
        for len in [0_usize, 1, 15, 16, 17, 64, 1000, 100_000] {
            let plaintext: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            let mut sealed = vec![0; NONCE_LEN];
            sealed.extend_from_slice(&plaintext);
            key.seal_in_place(&mut sealed).expect("seal");
            let (nonce, rest) = sealed.split_at(NONCE_LEN);
            let (text, tag) = rest.split_at(len);
            let mut text = text.to_vec();
            let nonce = Nonce::from_slice(nonce);
            other.decrypt_in_place_detached(nonce, b"", &mut text, Tag::from_slice(tag)).expect("opens");
            assert_eq!(text, plaintext);
            let tag = other.encrypt_in_place_detached(nonce, b"", &mut text).expect("seals");
            assert_eq!(key.open(&[nonce.as_slice(), &text, &tag].concat()).expect("opens"), plaintext);
        }
    }

    #[test]
    fn the_json_form_comes_back() {
        let key = SealKey::generate().expect("random");
        let again = SealKey::from_json(&key.to_json()).expect("parses");
        assert_eq!(again.bytes, key.bytes);
        assert!(SealKey::from_json(b"{}").is_none());
    }
}
