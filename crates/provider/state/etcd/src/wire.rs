//! The gateway's JSON (<https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/>): bytes are base64, numbers of 64 bits are strings, and what is
//! empty, zero or false is left out.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes, as base64.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Base64(pub(crate) Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map(Self).map_err(D::Error::custom)
    }
}

/// A number of 64 bits, as a string.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Number(pub(crate) u64);

impl Number {
    fn is_zero(&self) -> bool {
        self.0 == 0
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map(Self).map_err(D::Error::custom)
    }
}

/// `RangeRequest`.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Range {
    pub(crate) key: Base64,
    /// The first key behind the range; none: just `key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) range_end: Option<Base64>,
    #[serde(skip_serializing_if = "Number::is_zero")]
    pub(crate) limit: Number,
    /// Zero: the newest, read linearizably.
    #[serde(skip_serializing_if = "Number::is_zero")]
    pub(crate) revision: Number,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) keys_only: bool,
    #[serde(skip_serializing_if = "Number::is_zero")]
    pub(crate) min_create_revision: Number,
}

/// `RequestOp`.
#[derive(Debug, Clone, Serialize)]
pub(crate) enum Operation {
    #[serde(rename = "request_range")]
    Range(Range),
    #[serde(rename = "request_put")]
    Put { key: Base64, value: Base64 },
    #[serde(rename = "request_delete_range")]
    Delete { key: Base64 },
}

/// `Compare`: a key's revision, or that it is not there (create revision 0).
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Compare {
    pub(crate) key: Base64,
    result: &'static str,
    target: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    create_revision: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mod_revision: Option<Number>,
}

impl Compare {
    pub(crate) fn absent(key: Vec<u8>) -> Self {
        Self {
            key: Base64(key),
            result: "EQUAL",
            target: "CREATE",
            create_revision: Some(Number(0)),
            mod_revision: None,
        }
    }

    pub(crate) fn present(key: Vec<u8>) -> Self {
        Self { result: "GREATER", ..Self::absent(key) }
    }

    pub(crate) fn at(key: Vec<u8>, mod_revision: u64) -> Self {
        Self {
            key: Base64(key),
            result: "EQUAL",
            target: "MOD",
            create_revision: None,
            mod_revision: Some(Number(mod_revision)),
        }
    }
}

/// `TxnRequest`.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Transaction {
    pub(crate) compare: Vec<Compare>,
    pub(crate) success: Vec<Operation>,
    pub(crate) failure: Vec<Operation>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Header {
    pub(crate) revision: Number,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct KeyValue {
    pub(crate) key: Base64,
    pub(crate) create_revision: Number,
    pub(crate) mod_revision: Number,
    pub(crate) value: Base64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RangeAnswer {
    pub(crate) header: Header,
    pub(crate) kvs: Vec<KeyValue>,
    pub(crate) more: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Answer {
    /// For reads; other operations answer nothing that is needed.
    pub(crate) response_range: Option<RangeAnswer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TransactionAnswer {
    pub(crate) header: Header,
    pub(crate) succeeded: bool,
    pub(crate) responses: Vec<Answer>,
}

/// How the gateway answers what it refuses.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Refusal {
    pub(crate) message: String,
    pub(crate) code: Option<i64>,
}

/// `AuthenticateRequest`.
#[derive(Serialize)]
pub(crate) struct Authenticate<'a> {
    pub(crate) name: &'a str,
    pub(crate) password: &'a str,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Authenticated {
    pub(crate) token: String,
}

/// `WatchRequest`.
#[derive(Debug, Serialize)]
pub(crate) struct Watch {
    pub(crate) create_request: WatchCreate,
}

#[derive(Debug, Serialize)]
pub(crate) struct WatchCreate {
    pub(crate) key: Base64,
    pub(crate) range_end: Base64,
    /// Zero: from now on.
    #[serde(skip_serializing_if = "Number::is_zero")]
    pub(crate) start_revision: Number,
}

/// One line of a watch's answer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WatchLine {
    pub(crate) result: Option<Watched>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Watched {
    pub(crate) header: Header,
    pub(crate) created: bool,
    pub(crate) canceled: bool,
    pub(crate) events: Vec<WatchEvent>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WatchEvent {
    pub(crate) kv: WatchedKey,
}

/// As [`KeyValue`], without the value, which is not even decoded.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WatchedKey {
    pub(crate) key: Base64,
    pub(crate) mod_revision: Number,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_written_as_the_gateway_reads_it() {
        let transaction = Transaction {
            compare: vec![Compare::absent(b"a".to_vec()), Compare::at(b"b".to_vec(), 7)],
            success: vec![
                Operation::Put { key: Base64(b"a".to_vec()), value: Base64(vec![0, 255]) },
                Operation::Delete { key: Base64(b"b".to_vec()) },
            ],
            failure: vec![Operation::Range(Range {
                key: Base64(b"a".to_vec()),
                keys_only: true,
                limit: Number(3),
                ..Range::default()
            })],
        };
        let expected = r#"{"compare":[{"key":"YQ==","result":"EQUAL","target":"CREATE","create_revision":"0"},{"key":"Yg==","result":"EQUAL","target":"MOD","mod_revision":"7"}],"success":[{"request_put":{"key":"YQ==","value":"AP8="}},{"request_delete_range":{"key":"Yg=="}}],"failure":[{"request_range":{"key":"YQ==","limit":"3","keys_only":true}}]}"#;
        assert_eq!(serde_json::to_string(&transaction).unwrap(), expected);
    }

    #[test]
    fn what_is_left_out_is_zero() {
        let answer = r#"{"header":{"revision":"2","raft_term":"2"},"responses":[{"response_range":{"header":{"revision":"2"},"kvs":[{"key":"YQ==","create_revision":"2","mod_revision":"3","version":"1"}],"count":"1"}},{"response_put":{}}]}"#;
        let answer: TransactionAnswer = serde_json::from_str(answer).unwrap();
        assert!(!answer.succeeded);
        assert_eq!(answer.header.revision, Number(2));
        let range = answer.responses[0].response_range.as_ref().unwrap();
        assert_eq!(
            (range.kvs[0].mod_revision, &range.kvs[0].value, range.more),
            (Number(3), &Base64::default(), false)
        );
        assert!(answer.responses[1].response_range.is_none());
    }
}
