//! Names of things in a repository: the SHA-256 of their bytes.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{self, Context, SHA256};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A SHA-256: of a file's bytes (packs, indexes, snapshots, keys) or of a blob's plaintext (chunks, trees).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id([u8; 32]);

impl Id {
    /// The id of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_digest(&digest::digest(&SHA256, bytes))
    }

    fn from_digest(digest: &digest::Digest) -> Self {
        Self(digest.as_ref().try_into().expect("SHA-256 is 32 bytes"))
    }

    /// An id from its 32 bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A SHA-256 of bytes that come in pieces.
#[derive(Clone)]
pub(crate) struct Hasher(Context);

impl Hasher {
    pub(crate) fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Id {
        Id::from_digest(&self.0.finish())
    }
}

/// The text is not 64 hexadecimal digits, or the bytes are not 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id is 64 hexadecimal digits")]
pub struct InvalidId;

/// What is no digit has bits here that no digit's value has.
const NO_DIGIT: u8 = 0xf0;

/// The value of each hexadecimal digit, and [`NO_DIGIT`] for every other byte. Lists of thousands of ids are read all the time.
static VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16 {
        values[DIGITS[value as usize] as usize] = value;
        values[DIGITS[value as usize].to_ascii_uppercase() as usize] = value;
        value += 1;
    }
    values
};

const DIGITS: &[u8; 16] = b"0123456789abcdef";

impl FromStr for Id {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let text: &[u8; 64] = text.as_bytes().try_into().map_err(|_| InvalidId)?;
        let (mut bytes, mut seen) = ([0; 32], 0);
        for (byte, [high, low]) in bytes.iter_mut().zip(text.as_chunks::<2>().0) {
            let (high, low) = (VALUES[usize::from(*high)], VALUES[usize::from(*low)]);
            seen |= high | low;
            *byte = (high << 4) | low;
        }
        if seen & NO_DIGIT == 0 { Ok(Self(bytes)) } else { Err(InvalidId) }
    }
}

impl Id {
    /// Gives its 64 hexadecimal digits, lower case, to whoever wants to read them.
    fn with_text<T>(&self, read: impl FnOnce(&str) -> T) -> T {
        let mut text = [0_u8; 64];
        for ([high, low], byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(self.0) {
            *high = DIGITS[usize::from(byte >> 4)];
            *low = DIGITS[usize::from(byte & 0xf)];
        }
        read(std::str::from_utf8(&text).expect("digits are ASCII"))
    }
}

impl TryFrom<&[u8]> for Id {
    type Error = InvalidId;

    fn try_from(bytes: &[u8]) -> Result<Self, InvalidId> {
        bytes.try_into().map(Self).map_err(|_| InvalidId)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| f.write_str(text))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.with_text(|text| serializer.serialize_str(text))
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text)
    }
}

/// Reads an id where its digits stand.
struct Text;

impl Visitor<'_> for Text {
    type Value = Id;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("64 hexadecimal digits")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Id, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_and_written_as_the_hex_crate_does() {
        for n in 0..=u8::MAX {
            let id = Id::of(&[n]);
            let text = hex::encode(id.0);
            assert_eq!((id.to_string(), format!("{id:?}")), (text.clone(), text.clone()));
            assert_eq!(text.parse(), Ok(id));
            assert_eq!(text.to_ascii_uppercase().parse(), Ok(id));
            assert_eq!(serde_json::to_string(&id).expect("text"), format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<Id>(&format!("\"{text}\"")).expect("an id"), id);
            let escaped = text.replacen(&text[..1], &format!("\\u00{:02x}", text.as_bytes()[0]), 1);
            assert_eq!(serde_json::from_str::<Id>(&format!("\"{escaped}\"")).expect("an id"), id);
        }
        let text = "a".repeat(64);
        // Every byte that may stand in a text, at every place.
        for n in 0..128_u8 {
            for place in 0..64 {
                let mut bytes = text.clone().into_bytes();
                bytes[place] = n;
                let text = String::from_utf8(bytes).expect("ASCII");
                let expected = hex::decode(&text).ok().map(|bytes| Id::try_from(&bytes[..]).expect("32 bytes"));
                assert_eq!(text.parse::<Id>().ok(), expected, "{n} at {place}");
            }
        }
        let umlaut = format!("{}\u{e4}", &text[2..]);
        for wrong in [String::new(), "a".to_owned(), text[1..].to_owned(), format!("{text}a"), umlaut] {
            assert_eq!(wrong.parse::<Id>(), Err(InvalidId), "{wrong:?}");
            serde_json::from_value::<Id>(wrong.into()).expect_err("no id");
        }
        serde_json::from_str::<Id>("7").expect_err("no text");
    }
}
