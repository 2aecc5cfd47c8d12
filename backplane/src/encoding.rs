//! Names of channels, users and sessions as parts of keys and subjects.

use std::fmt::Write;

/// Whether a byte stands for itself.
pub(crate) fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// Appends the percent-encoded form: injective, and made of `[A-Za-z0-9_%-]` only.
pub(crate) fn encode(text: &str, into: &mut String) {
    for byte in text.bytes() {
        if is_plain(byte) {
            into.push(char::from(byte));
        } else {
            write!(into, "%{byte:02X}").expect("writing to a string does not fail");
        }
    }
}

/// What was encoded; `None` for what is the encoding of nothing.
#[cfg(feature = "nats")]
pub(crate) fn decode(encoded: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let (digits, after) = after.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(all(test, feature = "nats"))]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn names_come_back(name in ".*") {
            let mut encoded = String::new();
            encode(&name, &mut encoded);
            proptest::prop_assert!(encoded.bytes().all(|byte| is_plain(byte) || byte == b'%'));
            proptest::prop_assert_eq!(decode(&encoded), Some(name));
        }
    }

    #[test]
    fn what_encodes_nothing_is_refused() {
        for encoded in ["%", "%2", "a%", "%zz", "%FF", "%-b"] {
            assert_eq!(decode(encoded), None, "{encoded}");
        }
    }
}
