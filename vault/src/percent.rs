//! Percent-encoding of RFC 3986, for names in URIs and in sources' identities.

/// Encodes every byte but what the RFC calls unreserved.
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The text that was encoded; `None` when a percent sign is not followed by two hexadecimal digits, or the bytes are no UTF-8. What need not
/// be encoded may be.
pub fn decode(encoded: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let [high, low, tail @ ..] = tail else { return None };
            let digit = |byte: u8| char::from(byte).to_digit(16);
            bytes.push(u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?);
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_and_nothing_else_passes() {
        for (text, encoded) in [
            ("shop", "shop"),
            ("백업 \"a/b", "%EB%B0%B1%EC%97%85%20%22a%2Fb"),
            ("100%", "100%25"),
            ("-._~", "-._~"),
            ("", ""),
        ] {
            assert_eq!(encode(text), encoded);
            assert_eq!(decode(encoded).as_deref(), Some(text));
        }
        assert_eq!(decode("%2f%61+").as_deref(), Some("/a+"));
        for bad in ["100%", "%", "%2", "%zz", "%+1", "%EB%B0", "a%ff"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
