//! Typed identifiers.

use std::fmt::{Debug, Display};
use std::marker::PhantomData;
use std::str::FromStr;

use flames_error::{Error, Result};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// Reads an id from text without a copy of the text.
struct FromText<T>(PhantomData<T>);

impl<T: FromStr<Err = Error>> Visitor<'_> for FromText<T> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// Defines an id: a UUID behind a prefix that names its type, written `<prefix>_<32 hex digits>`.
macro_rules! typed_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// What every id of this type begins with.
            pub const PREFIX: &'static str = $prefix;

            /// The id with this UUID.
            pub fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID behind the prefix.
            pub fn uuid(&self) -> Uuid {
                self.0
            }
        }

        impl Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!($prefix, "_{}"), self.0.as_simple())
            }
        }

        impl Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{self}")
            }
        }

        impl FromStr for $name {
            type Err = Error;

            /// `InvalidInput` unless the text is the prefix, `_` and 32 lower-case hex digits.
            fn from_str(text: &str) -> Result<Self> {
                text.strip_prefix(concat!($prefix, "_"))
                    .filter(|digits| digits.len() == 32 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
                    .and_then(|digits| Uuid::try_parse(digits).ok())
                    .map(Self)
                    .ok_or_else(|| {
                        Error::invalid("model.id", "id", concat!("An id of this type is `", $prefix, "_` and 32 lower-case hex digits."))
                    })
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                deserializer.deserialize_str(FromText(PhantomData))
            }
        }
    };
}

typed_id!(
    /// A VM.
    VmId,
    "vm"
);
typed_id!(
    /// One try at running a VM on one controller. Globally unique and never reused.
    IncarnationId,
    "inc"
);
typed_id!(
    /// A host's daemon.
    ControllerId,
    "ctl"
);
typed_id!(
    /// A disk.
    DiskId,
    "dsk"
);
typed_id!(
    /// A saved guest.
    SnapshotId,
    "snap"
);
typed_id!(
    /// One submission of a mutation: the key that is unique to its commit.
    OperationId,
    "op"
);
typed_id!(
    /// One registration of a controller: a newer one supersedes it.
    SessionToken,
    "ses"
);

/// Orders the incarnations of one VM: a larger token fences off the smaller ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub struct FencingToken(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_as_it_was_written_and_only_as_its_own_type() {
        let id = VmId::from_uuid(Uuid::from_u128(7));
        assert_eq!(id.to_string(), "vm_00000000000000000000000000000007");
        assert_eq!(id.to_string().parse::<VmId>().unwrap(), id);
        assert!(id.to_string().parse::<IncarnationId>().is_err());
        assert!("vm_0000000000000000000000000000000G".parse::<VmId>().is_err());
        assert!("vm_7".parse::<VmId>().is_err());
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{id}\""));
        assert_eq!(serde_json::from_str::<VmId>(&json).unwrap(), id);
        assert!(serde_json::from_str::<IncarnationId>(&json).is_err());
        assert!(serde_json::from_str::<VmId>("7").is_err());
    }
}
