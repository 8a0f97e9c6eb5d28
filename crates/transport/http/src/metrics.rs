//! Metrics in the OpenMetrics text format.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flames_error::{Error, Result};
use http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The registry that `/metrics` shows. Other parts register theirs in it too.
pub type SharedRegistry = Arc<Mutex<Registry>>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    method: &'static str,
    route: String,
}

/// The metrics of the API.
#[derive(Debug, Clone)]
pub struct HttpMetrics {
    registry: SharedRegistry,
    requests: Family<RequestLabels, Counter>,
    seconds: Family<RouteLabels, Histogram>,
}

/// 0.5 ms to 16 s, doubling.
fn latency() -> Histogram {
    Histogram::new(exponential_buckets(0.000_5, 2.0, 16))
}

impl HttpMetrics {
    /// Registers the API's metrics in `registry`.
    pub fn new(registry: SharedRegistry) -> Self {
        let requests = Family::default();
        let seconds = Family::new_with_constructor(latency as fn() -> Histogram);
        {
            let mut registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
            registry.register("flames_http_requests", "Requests answered", requests.clone());
            registry.register(
                "flames_http_request_seconds",
                "Time until a request's answer began",
                seconds.clone(),
            );
        }
        Self { registry, requests, seconds }
    }

    pub(crate) fn record(&self, method: &Method, route: &str, status: StatusCode, took: Duration) {
        // A client may invent methods; a label must not grow without bound.
        let method = match *method {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::DELETE => "DELETE",
            Method::PATCH => "PATCH",
            Method::OPTIONS => "OPTIONS",
            _ => "other",
        };
        let route = route.to_owned();
        let labels = RouteLabels { method, route: route.clone() };
        self.seconds.get_or_create(&labels).observe(took.as_secs_f64());
        self.requests.get_or_create(&RequestLabels { method, route, status: status.as_u16() }).inc();
    }

    pub(crate) fn encode(&self) -> Result<String> {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).map_err(|error| {
            Error::internal("http.metrics", "metrics cannot be encoded").with_source(error)
        })?;
        Ok(text)
    }
}
