//! restic's key files: the master key, sealed with a key derived from the password by scrypt. `keys/<SHA-256 of the file>`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::repository::crypto::{SealKey, fill_random};

/// scrypt's cost. Our passwords are 32 random bytes, so guessing is hopeless at any cost; this one takes about 3 ms and 1 MiB.
const LOG_N: u8 = 10;
const R: u32 = 8;
const P: u32 = 1;
const SALT_LEN: usize = 64;
/// The most memory (128 · N · r) that a key file may ask for. restic itself tunes for 60 MB; other writers may take more.
const MAX_MEMORY: u64 = 512 << 20;
/// The most work (128 · N · r · p bytes), some seconds. restic itself tunes for half a second.
const MAX_WORK: u64 = 4 << 30;

#[derive(Serialize, Deserialize)]
struct KeyFile {
    created: String,
    username: String,
    hostname: String,
    kdf: String,
    #[serde(rename = "N")]
    n: u64,
    r: u32,
    p: u32,
    salt: String,
    data: String,
}

/// The cost of a new key file.
fn log_n() -> u8 {
    #[cfg(feature = "simulate")]
    if crate::simulate::are_keys_cheap() {
        return 1;
    }
    LOG_N
}

/// The bytes of a new key file that opens `master` with `password`.
pub fn create(master: &SealKey, password: &SecretString, created: jiff::Timestamp) -> Result<Vec<u8>, Error> {
    let mut salt = [0; SALT_LEN];
    fill_random(&mut salt)?;
    let log_n = log_n();
    let user_key = derive(password, &salt, log_n, R, P).map_err(Error::Internal)?;
    let file = KeyFile {
        created: created.to_string(),
        username: "vaultferry".to_owned(),
        hostname: "vaultferry".to_owned(),
        kdf: "scrypt".to_owned(),
        n: 1 << log_n,
        r: R,
        p: P,
        salt: STANDARD.encode(salt),
        data: STANDARD.encode(user_key.seal(&master.to_json())?),
    };
    serde_json::to_vec(&file).map_err(Error::internal)
}

/// The master key, or `None` when the password is not this file's.
pub fn open(name: &str, bytes: &[u8], password: &SecretString) -> Result<Option<SealKey>, Error> {
    let damaged = |detail: &str| Error::damaged(format!("key file {name}"), detail);
    let file: KeyFile = serde_json::from_slice(bytes).map_err(|error| damaged(&error.to_string()))?;
    let memory = file.n.saturating_mul(u64::from(file.r) * 128);
    let work = memory.saturating_mul(file.p.into());
    if file.kdf != "scrypt" || !file.n.is_power_of_two() || memory > MAX_MEMORY || work > MAX_WORK {
        return Err(damaged("its key derivation is unknown or asks for too much memory or time"));
    }
    let log_n = u8::try_from(file.n.trailing_zeros()).map_err(|_| damaged("bad N"))?;
    let salt = STANDARD.decode(&file.salt).map_err(|_| damaged("its salt is not base64"))?;
    let data = STANDARD.decode(&file.data).map_err(|_| damaged("its data is not base64"))?;
    let user_key = derive(password, &salt, log_n, file.r, file.p).map_err(|error| damaged(&error))?;
    let Ok(json) = user_key.open(&data).map(Zeroizing::new) else { return Ok(None) };
    SealKey::from_json(&json).map(Some).ok_or_else(|| damaged("its master key has another form"))
}

fn derive(password: &SecretString, salt: &[u8], log_n: u8, r: u32, p: u32) -> Result<SealKey, String> {
    let params = scrypt::Params::new(log_n, r, p).map_err(|error| error.to_string())?;
    let mut bytes = [0; 64];
    scrypt::scrypt(password.expose_secret().as_bytes(), salt, &params, &mut bytes)
        .map_err(|error| error.to_string())?;
    Ok(SealKey::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_with_its_password_only() {
        let master = SealKey::generate().expect("random");
        let file = create(&master, &SecretString::from("right"), jiff::Timestamp::UNIX_EPOCH).expect("create");
        let opened = open("k", &file, &SecretString::from("right")).expect("readable").expect("opens");
        assert_eq!(*opened.to_json(), *master.to_json());
        assert!(open("k", &file, &SecretString::from("wrong")).expect("readable").is_none());
        assert!(matches!(open("k", b"{", &SecretString::from("right")), Err(Error::Damaged { .. })));
    }
}
