//! What the server says of itself.

use std::time::Duration;

use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use flames_clock::ClockExt;
use flames_error::{Error, ErrorKind};
use flames_service::codes;
use flames_wire::{API_VERSION, Health, Version};
use http::{HeaderValue, header};

use crate::api::Api;
use crate::docs::error_page;
use crate::failure::{Answer, Failure};
use crate::input::PathOf;
use crate::openapi;

/// How long the store may take to show that it is there.
const READY_WITHIN: Duration = Duration::from_secs(2);

/// What the server is
#[utoipa::path(get, path = "/v1/version", tag = "system", responses(
    (status = 200, description = "The versions.", body = Version),
))]
pub(crate) async fn get_version() -> JsonAnswer<Version> {
    JsonAnswer(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api: API_VERSION.to_owned(),
        stream_protocol: flames_wire::stream::VERSION,
    })
}

fn ok() -> JsonAnswer<Health> {
    JsonAnswer(Health { status: "ok".to_owned() })
}

/// Whether the server lives
///
/// Needs no credential.
#[utoipa::path(get, path = "/healthz", tag = "system", security(()), responses(
    (status = 200, description = "It lives.", body = Health),
))]
pub(crate) async fn get_health() -> JsonAnswer<Health> {
    ok()
}

/// Whether the server can do its work
///
/// Reads from the store.
#[utoipa::path(get, path = "/readyz", tag = "system", responses(
    (status = 200, description = "It can.", body = Health),
))]
pub(crate) async fn get_readiness(State(api): State<Api>) -> Answer<JsonAnswer<Health>> {
    let read = api.service.clock().timeout(READY_WITHIN, api.service.list_controllers(None, 1)).await;
    read.map_err(|_| {
        Error::unavailable("http.ready", "the store did not answer in time")
            .with_user_message("The store does not answer.")
    })??;
    Ok(ok())
}

/// Metrics
///
/// In the OpenMetrics text format, which Prometheus reads.
#[utoipa::path(get, path = "/metrics", tag = "system", responses(
    (status = 200, description = "The metrics.", body = String, content_type = "application/openmetrics-text"),
))]
pub(crate) async fn get_metrics(State(api): State<Api>) -> Answer<Response> {
    let text = api.metrics.encode()?;
    let media_type = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, media_type)], text).into_response())
}

/// This description
///
/// Needs no credential.
#[utoipa::path(get, path = "/openapi.json", tag = "system", security(()), responses(
    (status = 200, description = "The description of this API, OpenAPI 3.1.", body = Object),
))]
pub(crate) async fn get_openapi() -> Answer<Response> {
    let text = openapi::text()?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response())
}

/// What an error code means
///
/// A page for a person. Needs no credential.
#[utoipa::path(get, path = "/docs/errors/{code}", tag = "system", security(()), responses(
    (status = 200, description = "What it means and what to do.", body = String, content_type = "text/markdown"),
))]
pub(crate) async fn get_error_page(PathOf(code): PathOf<String>) -> Answer<Response> {
    let page = error_page(&code).ok_or_else(|| {
        Failure(
            Error::new(ErrorKind::NotFound, "http.docs", "no such code")
                .with_code(codes::ROUTE_NOT_FOUND)
                .with_user_message("There is no such error code."),
        )
    })?;
    let media_type = HeaderValue::from_static("text/markdown; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, media_type)], page).into_response())
}
