//! Errors on their way to the client.

use std::any::Any;
use std::sync::Arc;

use axum::extract::OriginalUri;
use axum::response::{IntoResponse, Response};
use flames_error::{Error, ErrorKind};
use flames_service::codes;
use flames_wire::Problem;
use http::{HeaderValue, Method, StatusCode, header};

/// An error that is answered. The body is written at the edge, which knows the request's id.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) Error);

/// What a handler answers.
pub(crate) type Answer<T> = Result<T, Failure>;

/// The error that a response stands for.
#[derive(Debug, Clone)]
pub(crate) struct Failed(pub(crate) Arc<Error>);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(Failed(Arc::new(self.0)));
        response
    }
}

/// The response that tells of an error.
pub(crate) fn render(error: &Error, request_id: &str, path: &str) -> Response {
    let mut problem = Problem::of(error);
    problem.request_id = Some(request_id.to_owned());
    problem.instance = Some(path.to_owned());
    if problem.status >= 500 {
        tracing::warn!(request = request_id, path, ?error, "a request failed");
    } else {
        tracing::debug!(request = request_id, path, ?error, "a request was refused");
    }
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(Problem::MEDIA_TYPE));
    if let Some(after) = problem.retry_after_ms {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(after.div_ceil(1_000)));
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"flames\""));
    }
    response
}

/// An input error that names a field.
pub(crate) fn invalid(field: &str, sentence: impl Into<String>) -> Failure {
    Failure(Error::invalid("http.input", field, sentence).with_code(codes::INVALID_FIELD))
}

/// A request that cannot be read.
pub(crate) fn unreadable(sentence: impl Into<String>) -> Failure {
    let sentence = sentence.into();
    let error = Error::new(ErrorKind::InvalidInput, "http.input", sentence.clone());
    Failure(error.with_code(codes::INVALID_REQUEST).with_user_message(sentence))
}

/// A body that is too long.
pub(crate) fn too_large(limit: u64) -> Error {
    Error::new(ErrorKind::InvalidInput, "http.input", "the body is too large")
        .with_code(codes::BODY_TOO_LARGE)
        .with_user_message(format!("The body is larger than this path takes: at most {limit} bytes."))
}

pub(crate) async fn no_such_path(OriginalUri(uri): OriginalUri) -> Failure {
    let error =
        Error::new(ErrorKind::NotFound, "http.route", "no such path").with_context("path", uri.path());
    Failure(
        error
            .with_code(codes::ROUTE_NOT_FOUND)
            .with_user_message("There is no such path. `/openapi.json` lists all."),
    )
}

pub(crate) async fn no_such_method(method: Method) -> Failure {
    let error = Error::new(ErrorKind::InvalidInput, "http.route", "no such method");
    Failure(
        error.with_code(codes::METHOD_NOT_ALLOWED).with_user_message(format!(
            "The path does not take {method}. `/openapi.json` lists what it takes."
        )),
    )
}

/// A handler panicked: a defect. The panic's text is for the log alone.
pub(crate) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no text");
    Failure(Error::internal("http.handler", format!("a handler panicked: {text}"))).into_response()
}
