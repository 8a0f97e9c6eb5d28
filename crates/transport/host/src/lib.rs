//! What controllers call (`/host/v1`): registering, renewing, learning what to run, reporting. See `flames_wire::host` for the table.
//!
//! The router is served on a listener of its own, or handed to a client in the same process. It is never part of the public API: an
//! assignment carries the secrets of its VM. A controller proves itself by its session, which only its registration was told; who may
//! register is decided by the join token, where the listener is reachable by others.

mod answer;
mod input;
mod routes;

use std::fmt;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use flames_service::Service;

pub use routes::clean_report;

/// How the host API is served.
#[derive(Clone)]
pub struct HostConfig {
    /// What a registration must bear; none: whoever reaches the router may register.
    pub join_token: Option<String>,
    /// How long a call may take, waits for changes apart.
    pub timeout: Duration,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self { join_token: None, timeout: Duration::from_secs(30) }
    }
}

impl fmt::Debug for HostConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostConfig")
            .field("join_token", &self.join_token.as_ref().map(|_| "redacted"))
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// The longest request, in bytes: 256 reports of at most 4 KiB each.
const MAX_BODY: usize = 1024 * 1024;

#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) service: Service,
    pub(crate) config: HostConfig,
}

/// The router of the host API.
pub fn router(service: Service, config: HostConfig) -> Router {
    Router::new()
        .route("/host/v1/register", post(routes::register))
        .route("/host/v1/renew", post(routes::renew))
        .route("/host/v1/assignments", get(routes::assignments))
        .route("/host/v1/changes", get(routes::changes))
        .route("/host/v1/reports", post(routes::reports))
        .route("/host/v1/snapshots", post(routes::report_snapshot))
        .fallback(answer::no_such_path)
        .method_not_allowed_fallback(answer::no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(Host { service, config })
}
