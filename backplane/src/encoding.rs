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
