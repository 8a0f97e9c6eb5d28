//! The public API over HTTP: REST under `/v1`, OpenAPI 3.1, server-sent events, WebSocket.
//!
//! Handlers only translate: decode, call [`Service`](flames_service::Service), encode. So a second adapter (gRPC, say) is another crate beside this one, and
//! `service` does not know.
//!
//! [`HttpApi`] makes routers, one for each way in ([`Access`]); [`serve_tcp`] and [`serve_unix`] put them on a socket.
//!
//! | What | How |
//! |---|---|
//! | errors | problem details (RFC 9457) with a stable code; nothing internal is told |
//! | mutations | `Idempotency-Key` (kept 24 h), answered 202 with the record; `ETag` and `If-Match` carry the generation |
//! | lists | `?cursor=&limit=`; `next_cursor` is null at the end |
//! | events | `GET /v1/events?follow=true`, of controllers `GET /v1/controllers/events`: server-sent events whose id is the position to resume from |
//! | streams | WebSocket; each binary message is a frame of `flames_wire::stream` |
//! | limits | bodies, headers, time, requests and streams at once, connections: see [`HttpConfig`] and [`ServeConfig`] |

mod access;
mod api;
mod docs;
mod edge;
mod failure;
mod input;
mod metrics;
mod openapi;
mod routes;
mod serve;

pub use access::{Access, Peer};
pub use api::{HttpApi, HttpConfig};
pub use docs::error_page;
pub use metrics::{HttpMetrics, SharedRegistry};
pub use openapi::openapi;
pub use serve::{ServeConfig, bind_unix, serve_tcp, serve_tls, serve_unix};
