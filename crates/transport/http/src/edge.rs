//! What every request passes first and last: its id, its metrics, its error, its time.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use flames_clock::ClockExt;
use flames_error::{Error, ErrorKind};
use flames_service::codes;
use http::{HeaderName, HeaderValue, Method};

use crate::access::{Admitted, Gate};
use crate::api::Api;
use crate::failure::{Failed, Failure, render};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// One way in.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    pub(crate) api: Api,
    pub(crate) gate: Arc<Gate>,
}

/// The client's id for a request, when it is fit to stand in logs and records.
fn given_id(request: &Request) -> Option<String> {
    let text = request.headers().get(REQUEST_ID)?.to_str().ok()?;
    let fits = (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| text.to_owned())
}

/// Gives the request an id, admits it or refuses it, measures it, and writes the body of its error.
pub(crate) async fn answer(
    State(Way { api, gate }): State<Way>,
    mut request: Request,
    next: Next,
) -> Response {
    let began = api.service.clock().monotonic();
    let id = given_id(&request).unwrap_or_else(|| api.ids.next_id().to_string());
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = match gate.admit(&request) {
        Ok(actor) => {
            request.extensions_mut().insert(Admitted { actor, request_id: id.clone() });
            next.run(request).await
        }
        Err(error) => Failure(error).into_response(),
    };
    if let Some(Failed(error)) = response.extensions_mut().remove::<Failed>() {
        let allow = response.headers_mut().remove(http::header::ALLOW);
        response = render(&error, &id, &path);
        if let Some(allow) = allow {
            response.headers_mut().insert(http::header::ALLOW, allow);
        }
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let took = api.service.clock().monotonic().saturating_since(began);
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    api.metrics.record(&method, route, response.status(), took);
    tracing::debug!(request = id, %method, route, status = response.status().as_u16(), ?took, "answered");
    response
}

/// Lets a request take a place and the configured time, no more.
pub(crate) async fn in_time(State(api): State<Api>, request: Request, next: Next) -> Response {
    let _place = match api.request_permit() {
        Ok(permit) => permit,
        Err(error) => return Failure(error).into_response(),
    };
    let reads_only = matches!(*request.method(), Method::GET | Method::HEAD);
    let limit = api.config.request_timeout;
    match api.service.clock().timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let kind = if reads_only { ErrorKind::Unavailable } else { ErrorKind::OutcomeUnknown };
            let error = Error::new(kind, "http.request", "the request took too long");
            let sentence = if reads_only {
                "The request took too long. Try again."
            } else {
                "The request took too long; it may have been carried out. Send it again with the same Idempotency-Key."
            };
            Failure(error.with_code(codes::REQUEST_TIMEOUT).with_user_message(sentence)).into_response()
        }
    }
}
