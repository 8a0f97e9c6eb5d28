//! Names that are safe as a folder's, a group's and the jailer's `--id`.

use std::fmt;

use flames_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// An incarnation's name: 1 to 48 bytes of a-z, 0-9 and `_`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JailName(String);

impl JailName {
    /// Checks and wraps a name. Errors: `InvalidInput`.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if (1..=48).contains(&name.len()) && name.bytes().all(allowed) {
            return Ok(Self(name));
        }
        let sentence = "An incarnation's name is 1 to 48 bytes of a-z, 0-9 and `_`.";
        Err(Error::invalid("jail.name", "incarnation", sentence))
    }

    /// A name that is made of what is allowed.
    pub(crate) fn known(name: String) -> Self {
        Self(name)
    }

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as the jailer takes it: at most 64 letters, digits and hyphens (`validate_instance_id` in Firecracker's
    /// `utils/validators.rs`), so `_` becomes `-`. No two names give one id, since a name has no hyphen.
    pub fn id(&self) -> String {
        self.0.replace('_', "-")
    }

    /// The name whose [`JailName::id`] this is.
    pub(crate) fn of_id(id: &str) -> Option<Self> {
        if id.contains('_') { None } else { Self::new(id.replace('-', "_")).ok() }
    }
}

impl fmt::Display for JailName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for JailName {
    type Error = Error;
    fn try_from(name: String) -> Result<Self> {
        Self::new(name)
    }
}

impl From<JailName> for String {
    fn from(name: JailName) -> Self {
        name.0
    }
}

/// Whether the text may name a cluster: 1 to 64 bytes of letters, digits, `_` and `-`.
pub(crate) fn is_cluster(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_its_id_lead_to_each_other_and_nothing_else_is_a_name() {
        let name = JailName::new("inc_01hzx9").unwrap();
        assert_eq!(name.id(), "inc-01hzx9");
        assert_eq!(JailName::of_id("inc-01hzx9"), Some(name));
        assert_eq!(JailName::of_id("inc_01hzx9"), None);
        for wrong in ["", ".", "..", "a/b", "A", "a-b", "ä", &"x".repeat(49)] {
            assert!(JailName::new(wrong).is_err(), "{wrong}");
        }
        assert!(is_cluster("clu_1-A") && !is_cluster("") && !is_cluster("../x") && !is_cluster(".slots"));
    }
}
