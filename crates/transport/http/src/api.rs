//! The API's configuration, its state, and the routers made of it.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use flames_clock::IdSource;
use flames_error::{Error, ErrorKind, Result};
use flames_model::ProjectName;
use flames_service::{Service, codes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;

use crate::access::{Access, Gate};
use crate::metrics::HttpMetrics;
use crate::{edge, failure, openapi};

/// How the API is served.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Whose things callers mean: one project for now.
    pub project: ProjectName,
    /// How long a request may take until it is answered, waits, transfers and streams apart.
    pub request_timeout: Duration,
    /// How long the other side of a transfer (a client's body, a guest's file) may be silent.
    pub idle_timeout: Duration,
    /// The longest JSON body, in bytes.
    pub max_json_bytes: usize,
    /// The longest archive, in bytes.
    pub max_image_bytes: u64,
    /// The most requests that are worked on at once.
    pub max_requests: usize,
    /// The most waits, transfers and streams at once.
    pub max_streams: usize,
    /// How often a follower of events that hears nothing else gets a comment.
    pub heartbeat: Duration,
}

impl HttpConfig {
    /// Defaults for a project.
    pub fn new(project: ProjectName) -> Self {
        Self {
            project,
            request_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            max_json_bytes: 1024 * 1024,
            max_image_bytes: 16 * 1024 * 1024 * 1024,
            max_requests: 1_024,
            max_streams: 1_024,
            heartbeat: Duration::from_secs(15),
        }
    }
}

/// The API: makes routers, and ends what they began.
#[derive(Debug, Clone)]
pub struct HttpApi {
    state: Api,
}

/// What handlers work with. Each request is handed several of them, so that one is one pointer.
#[derive(Debug, Clone)]
pub(crate) struct Api(Arc<Parts>);

impl Deref for Api {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) service: Service,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) config: HttpConfig,
    pub(crate) metrics: HttpMetrics,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    requests: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl HttpApi {
    /// An API over `service`. `metrics` has its registry, to which other parts add theirs.
    pub fn new(service: Service, ids: Arc<dyn IdSource>, config: HttpConfig, metrics: HttpMetrics) -> Self {
        let parts = Parts {
            service,
            ids,
            requests: Arc::new(Semaphore::new(config.max_requests)),
            streams: Arc::new(Semaphore::new(config.max_streams)),
            config,
            metrics,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        Self { state: Api(Arc::new(parts)) }
    }

    /// The router for one way in.
    pub fn router(&self, access: Access) -> Router {
        let state = self.state.clone();
        let way = edge::Way { api: state.clone(), gate: Arc::new(Gate::from(access)) };
        let (quick, _) = openapi::quick_routes().split_for_parts();
        let (long, _) = openapi::long_routes().split_for_parts();
        let quick = quick.layer(from_fn_with_state(state.clone(), edge::in_time));
        quick
            .merge(long)
            .fallback(failure::no_such_path)
            .method_not_allowed_fallback(failure::no_such_method)
            .layer(CatchPanicLayer::custom(failure::panicked))
            .layer(from_fn_with_state(way, edge::answer))
            .with_state(state)
    }

    /// Ends streams and waits; new ones end at once. For [`serve_tcp`](crate::serve_tcp) and [`serve_unix`](crate::serve_unix) it also
    /// means: accept no more.
    pub fn stop_token(&self) -> CancellationToken {
        self.state.stop.clone()
    }

    /// Ends all streams and returns once their tasks are gone.
    pub async fn shutdown(&self) {
        self.state.stop.cancel();
        self.state.tasks.close();
        self.state.tasks.wait().await;
    }
}

fn busy(operation: &'static str, what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, operation, "too many at once")
        .with_code(codes::UNAVAILABLE)
        .with_retry_after(Duration::from_secs(1))
        .with_user_message(format!("The server works on as many {what} as it takes at once. Try again."))
}

impl Api {
    /// A place among the requests.
    pub(crate) fn request_permit(&self) -> Result<OwnedSemaphorePermit> {
        self.requests.clone().try_acquire_owned().map_err(|_| busy("http.request", "requests"))
    }

    /// A place among the streams, kept as long as the stream.
    pub(crate) fn stream_permit(&self) -> Result<OwnedSemaphorePermit> {
        if self.stop.is_cancelled() {
            return Err(stopping());
        }
        self.streams.clone().try_acquire_owned().map_err(|_| busy("http.stream", "streams"))
    }
}

/// The error of what a shutdown cut short.
pub(crate) fn stopping() -> Error {
    Error::unavailable("http.stop", "the server is shutting down")
        .with_user_message("The server is shutting down. Try again.")
}
