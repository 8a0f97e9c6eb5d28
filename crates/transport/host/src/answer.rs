//! Answers as JSON, and errors as problem details.

use axum::response::{IntoResponse, Response};
use flames_error::{Error, ErrorKind};
use flames_service::codes;
use flames_wire::{Problem, to_json};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

/// An error that becomes problem details.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

/// An answer of JSON.
#[derive(Debug)]
pub(crate) struct JsonAnswer<T>(pub(crate) T);

impl<T: Serialize> IntoResponse for JsonAnswer<T> {
    fn into_response(self) -> Response {
        let media_type = HeaderValue::from_static("application/json");
        match to_json(&self.0) {
            Ok(body) => ([(header::CONTENT_TYPE, media_type)], body).into_response(),
            Err(error) => {
                let message = "an answer cannot be written as JSON";
                Failure(Error::internal("host.answer", message).with_source(error)).into_response()
            }
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let problem = Problem::of(&self.0);
        if problem.status >= 500 {
            tracing::warn!(error = ?self.0, "a call of a controller failed");
        } else {
            tracing::debug!(error = ?self.0, "a call of a controller was refused");
        }
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let media_type = HeaderValue::from_static(Problem::MEDIA_TYPE);
        (status, [(header::CONTENT_TYPE, media_type)], body).into_response()
    }
}

pub(crate) async fn no_such_path() -> Failure {
    let error = Error::new(ErrorKind::NotFound, "host.route", "no such path");
    Failure(error.with_code(codes::ROUTE_NOT_FOUND).with_user_message("The host API has no such path."))
}

pub(crate) async fn no_such_method() -> Failure {
    let error = Error::new(ErrorKind::InvalidInput, "host.route", "no such method");
    Failure(
        error.with_code(codes::METHOD_NOT_ALLOWED).with_user_message("The path does not take this method."),
    )
}
