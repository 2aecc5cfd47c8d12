//! A text that is used but never shown.

use std::fmt;

/// A secret out of the configuration. Its `Debug` form says only that there is one.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// 32 random bytes as 64 hexadecimal digits: what `--dev` makes where nothing is configured.
    pub fn random() -> Self {
        Self(rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The text itself, for use and never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

/// What stands for a secret wherever settings are shown.
pub(super) const MASK: &str = "[secret]";
