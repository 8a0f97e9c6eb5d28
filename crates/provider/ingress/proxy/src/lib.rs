//! IngressProvider: the embedded reverse proxy. It listens for HTTP/1.1 and HTTP/2, and passes each request to the port of the VM that
//! its host name stands for.
//!
//! # Names
//!
//! A port of a VM is reached as `{port}-{vm}.{domain}` (also with a dash for the id's underscore, which is what URLs show, since
//! an underscore is not allowed in a host name), and under the route's own host names. When several ports of a VM share a host name, the
//! lowest port answers there. Names of the first form under the proxy's domain cannot be given to another VM.
//!
//! # Changes while requests run
//!
//! A change is seen by the next request; no client's connection is dropped for it.
//!
//! * **Replaced** (registered again with another target): new requests go to the new target. Requests and upgraded connections
//!   that run to the old one end when they end, or when that target closes them.
//! * **Removed**: new requests get 404. What runs to the removed target may run on for [`Timeouts::removed_target`], then is cut: a
//!   request that has no answer yet gets 503, a response that has begun breaks off, an upgraded connection is closed.
//! * **Registered again with the same target**: nothing changes, and connections are kept.
//!
//! Connections to targets are pooled for each registration of a target. They are never used for another target, so never for another
//! incarnation.
//!
//! # What passes
//!
//! * At the front HTTP/1.1, HTTP/2 over TLS (by ALPN) and HTTP/2 without TLS (by prior knowledge; not by `Upgrade: h2c`). To the target
//!   HTTP/1.1, or HTTP/2 by prior knowledge where [`Hooks::protocol`] says so.
//! * Bodies stream both ways at the pace of the slower side, with trailers; `Expect: 100-continue` is answered when the target begins
//!   to take the body.
//! * Upgrades (WebSockets) from HTTP/1.1: a GET without a body, to any protocol but HTTP/2. Extended CONNECT (RFC 8441) is not
//!   offered, so browsers open WebSockets over HTTP/1.1.
//! * Hop-by-hop headers end here. `Forwarded`, `X-Forwarded-*` and `X-Real-IP` are what this proxy saw, unless the peer is a
//!   trusted proxy. The target sees the host name that the client asked for.
//! * A request that failed on a kept connection before a byte of the answer is sent once more, over a fresh one, when it was never
//!   sent, or has no body and is idempotent. Nothing else is repeated.
//!
//! # What does not
//!
//! Whatever two readers could read in two ways: a request with more than one `Host`, or one that differs from the target's or
//! `:authority`; a transfer coding other than `chunked`; lengths that differ. A length beside `chunked` is dropped, and that
//! connection closed, as is each one that carried a chunked request (RFC 9112, section 6.1). CONNECT and TRACE get 405.
//!
//! All sizes, numbers and spans have limits ([`Limits`], [`Timeouts`]). What the proxy answers itself is a short page whose header
//! `flames-problem` names the problem and that tells nothing of the inside.
//!
//! # Who drives what
//!
//! The proxy has threads of its own ([`ProxyConfig::workers`]), each with its own runtime. A connection to a target is driven by the
//! task of the client that uses it, on its thread: a request crosses no thread. Every task belongs to the [`Proxy`] and ends with it.

mod access;
mod activity;
mod body;
mod client;
mod codec;
mod config;
mod connection;
mod exchange;
mod forward;
mod headers;
mod network;
mod problem;
mod proxy;
mod request;
mod shared;
mod stream;
mod table;
mod timer;
mod tls;
mod tunnel;
mod upstream;
mod wake;
mod workers;

pub use access::{AccessLog, AccessRecord, TracingAccessLog};
pub use config::{CertificateFiles, Hooks, Limits, Listener, Protocol, ProtocolOf, ProxyConfig, Timeouts};
pub use network::Network;
pub use proxy::Proxy;
pub use tls::Certificates;
pub use wake::WakeTarget;
