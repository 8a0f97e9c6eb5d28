//! What controllers call (`/host/v1`): registering, renewing, learning what to run, reporting. See `flames_wire::host` for the table.
//!
//! The router is served on a listener of its own, or handed to a client in the same process. It is never part of the public API: an
//! assignment carries the secrets of its VM. A controller proves itself by its session, which only its registration was told. Over a network it
//! registers with a secret of its own, which it drew itself and which the control plane keeps a digest of; one that is not known yet
//! must show a join token too.

mod answer;
mod blobs;
mod grants;
mod input;
mod link;
mod routes;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use flames_service::Service;
use tokio_util::sync::CancellationToken;

pub use routes::clean_report;

pub use blobs::blob_router;
pub use grants::{BlobAccess, BlobGate};
pub use link::{LinkAcceptor, LinkIo};

/// Who may register.
#[derive(Clone, Default)]
pub enum Admission {
    /// The router is handed to a controller in the same process: nothing is checked.
    #[default]
    InProcess,
    /// Others reach the router: each controller proves itself by its secret, and one that is not known yet by a join token too.
    Network {
        /// A token that always holds, beside those that the API makes.
        join_token: Option<String>,
    },
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InProcess => f.write_str("InProcess"),
            Self::Network { join_token } => f
                .debug_struct("Network")
                .field("join_token", &join_token.as_ref().map(|_| "redacted"))
                .finish(),
        }
    }
}

/// How the host API is served.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Who may register.
    pub admission: Admission,
    /// How long a call may take, waits for changes apart.
    pub timeout: Duration,
    /// Takes the links that controllers open; none: there are no links over this router.
    pub links: Option<Arc<dyn LinkAcceptor>>,
    /// Once it is cancelled, waits for changes are answered at once.
    pub stop: CancellationToken,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            admission: Admission::InProcess,
            timeout: Duration::from_secs(30),
            links: None,
            stop: CancellationToken::new(),
        }
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
    let gate = Arc::new(grants::ByAssignment::new(service.clone()));
    let (store, clock) = (Arc::clone(service.blobs()), Arc::clone(service.clock()));
    let blobs = blob_router(store, gate, clock, config.timeout);
    Router::new()
        .route("/host/v1/register", post(routes::register))
        .route("/host/v1/renew", post(routes::renew))
        .route("/host/v1/assignments", get(routes::assignments))
        .route("/host/v1/changes", get(routes::changes))
        .route("/host/v1/reports", post(routes::reports))
        .route("/host/v1/snapshots", post(routes::report_snapshot))
        .route("/host/v1/link", get(link::link))
        .fallback(answer::no_such_path)
        .method_not_allowed_fallback(answer::no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(Host { service, config })
        .merge(blobs)
}
