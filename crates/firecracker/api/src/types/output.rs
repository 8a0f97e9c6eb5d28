//! What Firecracker writes: its log, its metrics, the guest's serial console. None of it survives in a snapshot: after a load,
//! only what was configured before the load is there.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{TokenBucket, is_false};

/// What is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Errors.
    Error,
    /// And warnings.
    Warning,
    /// And each request with its body (metadata apart).
    Info,
    /// And more.
    Debug,
    /// And most.
    Trace,
}

/// Firecracker's log: `Logger` of the description. What is left out stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Logger {
    /// A file or pipe that is there. It is opened for appending, without blocking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_path: Option<PathBuf>,
    /// What is logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
    /// Whether each line has its level.
    #[serde(default, skip_serializing_if = "is_false")]
    pub show_level: bool,
    /// Whether each line has the place in Firecracker's source.
    #[serde(default, skip_serializing_if = "is_false")]
    pub show_log_origin: bool,
    /// The only module that logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// Firecracker's metrics: `Metrics` of the description. They are never answered by the API: each minute, and at
/// [`crate::Client::flush_metrics`], a line of JSON is written. Can be set once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// A file or pipe that is there.
    pub metrics_path: PathBuf,
}

/// The guest's serial console: `SerialDevice` of the description.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Serial {
    /// A file or pipe that is there, instead of standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_out_path: Option<PathBuf>,
    /// How many bytes the guest may write; the rest is dropped and counted ([`crate::Feature::SerialRateLimiter`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<TokenBucket>,
}
