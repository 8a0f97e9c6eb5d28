//! Texts that are never shown.

use serde::{Deserialize, Serialize};

/// A text that is stored and handed to the guest, and shown nowhere: its `Debug` tells nothing.
///
/// It serialises as itself, since records and assignments must carry it. Types that clients read never contain it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretString(String);

impl SecretString {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Hand it on, and show it to nobody.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SecretString {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretString(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_show_itself() {
        assert!(!format!("{:?}", SecretString::new("hunter2")).contains("hunter2"));
    }
}
