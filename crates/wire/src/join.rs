//! Join tokens as they are asked for and shown.

use flames_model::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A join token to make.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"ttl_seconds": 3600}))]
pub struct CreateJoinToken {
    /// How long it holds, in seconds. Absent: an hour.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 31_622_400, example = 3600)]
    pub ttl_seconds: Option<u64>,
}

/// A join token that was just made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewJoinToken {
    /// What it is called by.
    #[schema(example = "0f4c2f3a9d1e")]
    pub id: String,
    /// The token itself. It is told this once.
    pub token: String,
    /// Until when it holds.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

/// A join token that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinToken {
    /// What it is called by.
    #[schema(example = "0f4c2f3a9d1e")]
    pub id: String,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Until when it holds.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

/// The join tokens that hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenList {
    /// The tokens, the newest first; at most 100 hold at once.
    pub items: Vec<JoinToken>,
}
