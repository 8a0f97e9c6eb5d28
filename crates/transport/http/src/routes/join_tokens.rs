//! Join tokens, with which hosts join.

use std::time::Duration;

use axum::Json as JsonAnswer;
use axum::extract::State;
use flames_wire::{CreateJoinToken, JoinToken, JoinTokenList, NewJoinToken};
use http::StatusCode;

use crate::access::By;
use crate::api::Api;
use crate::failure::{Answer, invalid};
use crate::input::{Json, NoBody, PathOf};

/// How long a token holds when nothing is said.
const TTL_SECONDS: u64 = 3_600;

/// Make a join token
///
/// Hosts join with it, any number of them, for as long as it holds. It is told once, so that a repetition makes another one.
#[utoipa::path(post, path = "/v1/join-tokens", tag = "controllers",
    request_body(content = CreateJoinToken, description = "The token to make."), responses(
    (status = 201, description = "The token.", body = NewJoinToken),
))]
pub(crate) async fn create_join_token(
    State(api): State<Api>,
    By(caller): By,
    body: Json<CreateJoinToken>,
) -> Answer<(StatusCode, JsonAnswer<NewJoinToken>)> {
    let holds = Duration::from_secs(body.value.ttl_seconds.unwrap_or(TTL_SECONDS));
    let made = api.service.create_join_token(&caller, holds).await?;
    let shown = NewJoinToken {
        id: made.record.id().to_owned(),
        token: made.token,
        expires_at: made.record.expires_at,
    };
    Ok((StatusCode::CREATED, JsonAnswer(shown)))
}

/// List join tokens
#[utoipa::path(get, path = "/v1/join-tokens", tag = "controllers", responses(
    (status = 200, description = "The tokens that hold, the newest first.", body = JoinTokenList),
))]
pub(crate) async fn list_join_tokens(
    State(api): State<Api>,
    By(_caller): By,
) -> Answer<JsonAnswer<JoinTokenList>> {
    let shown = |token: flames_service::JoinToken| JoinToken {
        id: token.id().to_owned(),
        created_at: token.created_at,
        expires_at: token.expires_at,
    };
    let items = api.service.list_join_tokens().await?.into_iter().map(shown).collect();
    Ok(JsonAnswer(JoinTokenList { items }))
}

/// Remove a join token
///
/// Nobody joins with it any more. Hosts that joined stay.
#[utoipa::path(delete, path = "/v1/join-tokens/{token}", tag = "controllers", responses(
    (status = 204, description = "The token is gone."),
))]
pub(crate) async fn remove_join_token(
    State(api): State<Api>,
    By(_caller): By,
    PathOf(id): PathOf<String>,
    NoBody: NoBody,
) -> Answer<StatusCode> {
    if id.len() != 12 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(invalid("token", "A join token is called by 12 hex digits."));
    }
    api.service.remove_join_token(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}
