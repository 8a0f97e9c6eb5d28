//! What comes in: sessions, JSON, what a registration proves itself with.

use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use bytes::Bytes;
use flames_error::{Error, ErrorKind};
use flames_service::{HostProof, HostSession, codes};
use flames_wire::host::{CONTROLLER_HEADER, SECRET_HEADER, SESSION_HEADER};
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::request::Parts;
use serde::de::DeserializeOwned;

use crate::answer::Failure;
use crate::routes::in_time;
use crate::{Admission, Host};

/// The session that a call names. Whether it is the present one is the service's to say.
#[derive(Debug)]
pub(crate) struct Session(pub(crate) HostSession);

/// The session that headers name.
pub(crate) fn session_of(headers: &HeaderMap) -> Result<HostSession, Error> {
    Ok(HostSession { controller: id(headers, CONTROLLER_HEADER)?, session: id(headers, SESSION_HEADER)? })
}

fn id<T: std::str::FromStr>(headers: &HeaderMap, name: &'static str) -> Result<T, Error> {
    let text = headers.get(name).and_then(|value| value.to_str().ok());
    text.and_then(|text| text.parse().ok()).ok_or_else(|| {
        let error = Error::new(ErrorKind::PermissionDenied, "host.session", "no session is named");
        error
            .with_code(codes::UNAUTHENTICATED)
            .with_field(name)
            .with_user_message("Register first, and name the controller and the session in each call.")
    })
}

impl<S: Send + Sync> FromRequestParts<S> for Session {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Failure> {
        session_of(&parts.headers).map(Self).map_err(Failure)
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

/// What a controller that registers proves itself with; none: it is in this process.
pub(crate) async fn proof(host: &Host, headers: &HeaderMap) -> Result<Option<HostProof>, Failure> {
    let Admission::Network { join_token } = &host.config.admission else { return Ok(None) };
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let Some(secret) = text(HeaderName::from_static(SECRET_HEADER)) else {
        let error = Error::new(ErrorKind::PermissionDenied, "host.register", "no secret came");
        return Err(Failure(
            error
                .with_code(codes::UNAUTHENTICATED)
                .with_user_message("A controller proves itself by its secret."),
        ));
    };
    let given = text(AUTHORIZATION).and_then(|text| text.strip_prefix("Bearer ")).unwrap_or_default();
    // Digests are compared, in constant time (`blake3::Hash`), so that timing tells nothing of the token.
    let is_own =
        join_token.as_ref().is_some_and(|own| blake3::hash(given.as_bytes()) == blake3::hash(own.as_bytes()));
    let may_join = is_own || in_time(host, host.service.join_token_holds(given)).await?;
    Ok(Some(HostProof { secret: secret.to_owned(), may_join }))
}
