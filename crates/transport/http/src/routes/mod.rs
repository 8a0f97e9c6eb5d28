//! The handlers: decode, call the service, encode.

pub(crate) mod controllers;
pub(crate) mod events;
pub(crate) mod files;
pub(crate) mod guest;
pub(crate) mod images;
pub(crate) mod join_tokens;
pub(crate) mod output;
pub(crate) mod processes;
pub(crate) mod snapshots;
pub(crate) mod streams;
pub(crate) mod system;
pub(crate) mod transfers;
pub(crate) mod vms;
pub(crate) mod wait;

use axum::response::{IntoResponse, Response};
use flames_service::{Service, VmView};
use flames_wire::{Route, Vm};
use http::{HeaderMap, HeaderValue, StatusCode, header};

/// The media type of newline-delimited JSON.
pub(crate) const NDJSON: &str = "application/x-ndjson";

/// A VM as it is shown.
pub(crate) fn shown(service: &Service, view: &VmView) -> Vm {
    let route = |(guest_port, url)| Route { guest_port, url };
    Vm {
        routes: service.routes(view).into_iter().map(route).collect(),
        ..Vm::new(&view.vm, view.incarnation.as_deref(), view.state)
    }
}

/// The headers of a VM's answer: its generation as `ETag`.
fn tagged(view: &VmView) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", view.vm.generation)) {
        headers.insert(header::ETAG, tag);
    }
    headers
}

/// A VM with its `ETag`.
pub(crate) fn vm_answer(service: &Service, status: StatusCode, view: &VmView) -> Response {
    (status, tagged(view), axum::Json(shown(service, view))).into_response()
}
