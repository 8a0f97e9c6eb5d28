//! Names and labels.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use flames_error::{Error, Result};
use serde::{Deserialize, Serialize};

// Every record of a VM holds its names and labels, and is made of the one before it: they are shared, not copied.

macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $field:literal, $allowed:expr, $sentence:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// What is allowed, as a sentence for users.
            pub const RULE: &'static str = $sentence;

            /// Checks and wraps the text. `InvalidInput` when it breaks [`Self::RULE`].
            pub fn new(text: impl Into<String>) -> Result<Self> {
                let text = text.into();
                let allowed: fn(&str) -> bool = $allowed;
                if allowed(&text) { Ok(Self(text.into())) } else { Err(Error::invalid("model.name", $field, $sentence)) }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.as_str().to_owned()
            }
        }
    };
}

/// A DNS label (RFC 1123, section 2.1) in lower case.
fn is_dns_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// An image's name, with an optional tag: `debian`, `team/worker:2026-11`.
fn is_image_name(text: &str) -> bool {
    let allowed =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-' | b'/' | b':');
    (1..=200).contains(&text.len())
        && text.bytes().all(allowed)
        && text.split(['/', ':']).all(|part| !part.is_empty() && !part.starts_with(['.', '-']))
        && text.bytes().filter(|b| *b == b':').count() <= 1
}

checked_text!(
    /// A VM's name, unique within its project, and the guest's host name.
    VmName,
    "name",
    is_dns_label,
    "A name is 1 to 63 of a-z, 0-9 and `-`, and neither begins nor ends with `-`."
);
checked_text!(
    /// A private network's name, within its project.
    PrivateNetworkName,
    "spec.network.private_network",
    is_dns_label,
    "A private network's name is 1 to 63 of a-z, 0-9 and `-`, and neither begins nor ends with `-`."
);
checked_text!(
    /// A snapshot's name, unique within its project.
    SnapshotName,
    "name",
    is_dns_label,
    "A name is 1 to 63 of a-z, 0-9 and `-`, and neither begins nor ends with `-`."
);
checked_text!(
    /// A project: whose VMs these are. Never `system`, which is where the store keeps what belongs to no project.
    ProjectName,
    "project",
    |text| is_dns_label(text) && text != "system",
    "A project is 1 to 63 of a-z, 0-9 and `-`, neither begins nor ends with `-`, and is not `system`."
);
checked_text!(
    /// An image's name.
    ImageName,
    "image",
    is_image_name,
    "An image name is 1 to 200 of a-z, 0-9 and `._-/`, with at most one `:tag`; no part is empty or begins with `.` or `-`."
);

/// Pairs by which things are chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels(Arc<BTreeMap<String, String>>);

impl Labels {
    /// The most labels of one thing.
    pub const MAX: usize = 16;
    /// What is allowed, as a sentence for users.
    pub const RULE: &'static str = "There are at most 16 labels; a key is 1 to 63 of a-z, A-Z, 0-9 and `._-/`, a value is 0 to 63 of a-z, A-Z, 0-9 and `._-`.";

    /// Checks and wraps the pairs. `InvalidInput` naming `field` when they break [`Labels::RULE`].
    pub fn new(pairs: BTreeMap<String, String>, field: &str) -> Result<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let fits = |(key, value): (&String, &String)| {
            (1..=63).contains(&key.len())
                && key.bytes().all(|b| allowed(b) || b == b'/')
                && value.len() <= 63
                && value.bytes().all(allowed)
        };
        if pairs.len() <= Self::MAX && pairs.iter().all(fits) {
            Ok(Self(pairs.into()))
        } else {
            Err(Error::invalid("model.labels", field, Self::RULE))
        }
    }

    /// The pairs, by key.
    pub fn pairs(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// Whether every pair of `wanted` is among these.
    pub fn contain(&self, wanted: &Labels) -> bool {
        wanted.0.iter().all(|(key, value)| self.0.get(key) == Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_a_host_name_a_key_or_a_terminal_are_refused() {
        for name in ["", "-a", "a-", "A", "a_b", "a b", "a\u{7}", "ä", &"a".repeat(64)] {
            assert!(VmName::new(name).is_err(), "{name:?}");
        }
        assert!(VmName::new("web-1").is_ok());
        assert!(ProjectName::new("system").is_err());
        for name in ["", "/a", "a//b", "a:b:c", "a:", "../a", ".a", "A", &"a".repeat(201)] {
            assert!(ImageName::new(name).is_err(), "{name:?}");
        }
        assert!(ImageName::new("team/worker:2026-11").is_ok());
    }

    #[test]
    fn labels_with_control_characters_are_refused_and_name_their_field() {
        let pairs = BTreeMap::from([("a".to_owned(), "b\n".to_owned())]);
        assert_eq!(Labels::new(pairs, "labels").unwrap_err().field(), Some("labels"));
    }
}
