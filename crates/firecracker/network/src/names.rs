//! Names: what a cluster and an incarnation are called, and what is named after them.

use std::fmt::{self, Display};

use flames_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Defines a text that is checked when it is made and when it is read.
macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident, $longest:literal, $allowed:pat, $field:literal, $sentence:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps a name. `InvalidInput` when it is none.
            pub fn new(name: impl Into<String>) -> Result<Self> {
                let name = name.into();
                if (1..=$longest).contains(&name.len()) && name.bytes().all(|byte| matches!(byte, $allowed)) {
                    Ok(Self(name))
                } else {
                    Err(Error::invalid("network.name", $field, $sentence))
                }
            }

            /// The name's text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(name: String) -> Result<Self> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

checked_name!(
    /// A cluster's name: 1 to 32 bytes of `a-z 0-9`. What stands on the host bears it, so that two clusters on one host never
    /// touch each other's.
    ClusterName, 32, b'a'..=b'z' | b'0'..=b'9',
    "cluster", "A cluster's name is 1 to 32 bytes of a-z and 0-9."
);
checked_name!(
    /// An incarnation's name: 1 to 48 bytes of `a-z 0-9 _`. Globally unique and never reused.
    Incarnation, 48, b'a'..=b'z' | b'0'..=b'9' | b'_',
    "incarnation", "An incarnation's name is 1 to 48 bytes of a-z, 0-9 and `_`."
);
checked_name!(
    /// A private network: machines of one host that name the same one reach each other. 1 to 48 bytes of `a-z 0-9 _`.
    PrivateNetwork, 48, b'a'..=b'z' | b'0'..=b'9' | b'_',
    "private_network", "A private network's name is 1 to 48 bytes of a-z, 0-9 and `_`."
);

/// A place in the host's address block, allocated to one incarnation at a time by the host's slot table. At most [`Slot::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Slot(u32);

impl Slot {
    /// The highest slot: its five hexadecimal digits still fit into an interface's name.
    pub const MAX: u32 = 0xf_ffff;

    /// `InvalidInput` above [`Slot::MAX`].
    pub fn new(number: u32) -> Result<Self> {
        if number <= Self::MAX {
            Ok(Self(number))
        } else {
            Err(Error::invalid("network.slot", "slot", "A slot is at most 1048575."))
        }
    }

    /// Its number.
    pub fn number(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Slot {
    type Error = Error;
    fn try_from(number: u32) -> Result<Self> {
        Self::new(number)
    }
}

impl From<Slot> for u32 {
    fn from(slot: Slot) -> Self {
        slot.0
    }
}

/// The tap's name inside of every machine's namespace.
pub const TAP: &str = "tap0";

/// The namespace's end of the veth pair, inside of every machine's namespace.
pub(crate) const UPLINK: &str = "uplink";

impl ClusterName {
    /// What every interface of this cluster on the host begins with. The digits tell clusters apart in the few bytes that a name
    /// has (IFNAMSIZ: 15 bytes and the end); whose an interface is, its alias says.
    pub(crate) fn interface_prefix(&self) -> String {
        format!("fl{:06x}-", fnv1a(self.as_str().as_bytes()) & 0xff_ffff)
    }

    /// The host's end of a slot's veth pair: at most 14 bytes.
    pub(crate) fn interface(&self, slot: Slot) -> String {
        format!("{}{:x}", self.interface_prefix(), slot.number())
    }

    /// The slot behind the name of an interface of this cluster.
    pub(crate) fn slot_of_interface(&self, name: &str) -> Option<Slot> {
        let digits = name.strip_prefix(&self.interface_prefix())?;
        let slot = Slot::new(u32::from_str_radix(digits, 16).ok()?).ok()?;
        (self.interface(slot) == name).then_some(slot)
    }

    /// The name of a machine's network namespace: from the cluster and the incarnation alone.
    pub(crate) fn namespace(&self, incarnation: &Incarnation) -> String {
        format!("flames-{self}-{incarnation}")
    }

    /// The incarnation behind the name of a namespace of this cluster.
    pub(crate) fn incarnation_of_namespace(&self, name: &str) -> Option<Incarnation> {
        Incarnation::new(name.strip_prefix(&format!("flames-{self}-"))?).ok()
    }

    /// The table of rules, on the host and in every namespace.
    pub(crate) fn table(&self) -> String {
        format!("flames-{self}")
    }
}

/// What an interface's alias says of whose it is, and whether its making came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Alias {
    pub(crate) cluster: ClusterName,
    pub(crate) incarnation: Incarnation,
    pub(crate) complete: bool,
}

impl Alias {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        if parts.next()? != "flames" {
            return None;
        }
        let cluster = ClusterName::new(parts.next()?).ok()?;
        let incarnation = Incarnation::new(parts.next()?).ok()?;
        let complete = match parts.next()? {
            "complete" => true,
            "half" => false,
            _ => return None,
        };
        parts.next().is_none().then_some(Self { cluster, incarnation, complete })
    }
}

impl Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, incarnation, complete } = self;
        write!(f, "flames/{cluster}/{incarnation}/{}", if *complete { "complete" } else { "half" })
    }
}

/// FNV-1a, 64 bits (draft-eastlake-fnv). Stable over versions of this program, which `Hash` is not.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_what_they_were_made_from() {
        let cluster = ClusterName::new("prod").unwrap();
        let incarnation = Incarnation::new("inc_00ff").unwrap();
        for number in [0, 1, 0xab, Slot::MAX] {
            let name = cluster.interface(Slot::new(number).unwrap());
            assert!(name.len() <= 15, "{name}");
            assert_eq!(cluster.slot_of_interface(&name), Some(Slot::new(number).unwrap()));
        }
        let name = cluster.namespace(&incarnation);
        assert_eq!(cluster.incarnation_of_namespace(&name), Some(incarnation.clone()));
        let alias = Alias { cluster, incarnation, complete: false };
        assert_eq!(Alias::parse(&alias.to_string()), Some(alias));
    }

    #[test]
    fn what_is_not_ours_is_nobodys() {
        let cluster = ClusterName::new("prod").unwrap();
        let prefix = cluster.interface_prefix();
        for name in ["eth0", &format!("{prefix}0x1"), &format!("{prefix}01"), &format!("{prefix}+1"), &prefix]
        {
            assert_eq!(cluster.slot_of_interface(name), None, "{name}");
        }
        assert_eq!(cluster.incarnation_of_namespace("flames-prod2-inc_1"), None);
        for text in
            ["", "flames/prod/inc_1", "flames/prod/inc_1/done", "flames/prod/inc_1/half/x", "docker/a/b/half"]
        {
            assert_eq!(Alias::parse(text), None, "{text}");
        }
    }

    #[test]
    fn names_that_would_be_read_as_something_else_are_refused() {
        for name in ["", "a/b", "..", "A", "a b", "a-b", &"a".repeat(49)] {
            assert!(Incarnation::new(name).is_err(), "{name}");
            assert!(ClusterName::new(name).is_err(), "{name}");
        }
        assert!(Slot::new(Slot::MAX + 1).is_err());
    }
}
