//! What comes in: sessions, JSON, the join token.

use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use bytes::Bytes;
use flames_error::{Error, ErrorKind};
use flames_service::{HostSession, codes};
use flames_wire::host::{CONTROLLER_HEADER, SESSION_HEADER};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::request::Parts;
use serde::de::DeserializeOwned;

use crate::Host;
use crate::answer::Failure;

/// The session that a call names. Whether it is the present one is the service's to say.
#[derive(Debug)]
pub(crate) struct Session(pub(crate) HostSession);

fn id<T: std::str::FromStr>(headers: &HeaderMap, name: &'static str) -> Result<T, Failure> {
    let text = headers.get(name).and_then(|value| value.to_str().ok());
    text.and_then(|text| text.parse().ok()).ok_or_else(|| {
        let error = Error::new(ErrorKind::PermissionDenied, "host.session", "no session is named");
        Failure(
            error
                .with_code(codes::UNAUTHENTICATED)
                .with_field(name)
                .with_user_message("Register first, and name the controller and the session in each call."),
        )
    })
}

impl<S: Send + Sync> FromRequestParts<S> for Session {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Failure> {
        Ok(Self(HostSession {
            controller: id(&parts.headers, CONTROLLER_HEADER)?,
            session: id(&parts.headers, SESSION_HEADER)?,
        }))
    }
}

/// A body of JSON.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            let too_large = rejection.status() == http::StatusCode::PAYLOAD_TOO_LARGE;
            let error = Error::new(ErrorKind::InvalidInput, "host.body", rejection.body_text());
            Failure(if too_large {
                error.with_code(codes::BODY_TOO_LARGE).with_user_message("A request is at most 1 MiB.")
            } else {
                error.with_code(codes::INVALID_REQUEST)
            })
        })?;
        if let Ok(value) = serde_json::from_slice(&bytes) {
            return Ok(Self(value));
        }
        // Read again to name the field that is wrong: to know the way to each field costs as much as reading it.
        let mut deserializer = serde_json::Deserializer::from_slice(&bytes);
        serde_path_to_error::deserialize(&mut deserializer).map(Self).map_err(|error| {
            let (path, cause) = (error.path().to_string(), error.into_inner());
            Failure(Error::invalid("host.body", path, cause.to_string()).with_code(codes::INVALID_FIELD))
        })
    }
}

/// What stands behind the `?`.
#[derive(Debug)]
pub(crate) struct Parameters<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Failure> {
        Query::try_from_uri(&parts.uri).map(|Query(query)| Self(query)).map_err(|rejection| {
            Failure(
                Error::invalid("host.query", "query", rejection.body_text()).with_code(codes::INVALID_FIELD),
            )
        })
    }
}

/// Whether a registration may be made.
pub(crate) fn may_join(host: &Host, headers: &HeaderMap) -> Result<(), Failure> {
    let Some(expected) = &host.config.join_token else { return Ok(()) };
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|text| text.strip_prefix("Bearer ")).unwrap_or_default();
    // Digests are compared, in constant time (`blake3::Hash`), so that timing tells nothing of the token.
    if blake3::hash(given.as_bytes()) == blake3::hash(expected.as_bytes()) {
        return Ok(());
    }
    let error = Error::new(ErrorKind::PermissionDenied, "host.register", "no join token, or a wrong one");
    Err(Failure(
        error
            .with_code(codes::UNAUTHENTICATED)
            .with_user_message("A controller joins with the token of this installation."),
    ))
}
