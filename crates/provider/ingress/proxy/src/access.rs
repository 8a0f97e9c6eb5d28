//! The access log: one record for each request that ended, however it ended.

use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One request that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRecord {
    /// The client's address, as the connection shows it.
    pub peer: IpAddr,
    /// The method.
    pub method: String,
    /// The host name asked for, lower case, without a port; empty when the request had no valid one.
    pub host: String,
    /// The path, without the query (which may hold secrets).
    pub path: String,
    /// The status that was answered; 0 when the client left before there was one.
    pub status: u16,
    /// Bytes of the response's body handed to the client's connection; for an upgraded connection, bytes in both directions.
    pub bytes: u64,
    /// From the end of the request's head to the end of the response.
    pub duration: Duration,
    /// The VM that the request was for, when the host name has one.
    pub vm: Option<String>,
    /// Why the proxy itself answered, or cut the response (a name such as `unknown_host`); none when all went well.
    pub problem: Option<&'static str>,
}

/// Where records go. Called on the path of a request: it must not block or wait; a writer of its own takes a bounded channel
/// and drops, and counts, what does not fit.
pub trait AccessLog: Debug + Send + Sync + 'static {
    /// Whether records are wanted at all; asked at the start of each request.
    fn is_enabled(&self) -> bool {
        true
    }

    /// Takes one record.
    fn record(&self, record: AccessRecord);
}

/// One `tracing` event at level INFO for each record, target `flames::access`.
#[derive(Debug, Clone, Copy, Default)]
pub struct TracingAccessLog;

impl AccessLog for TracingAccessLog {
    fn is_enabled(&self) -> bool {
        tracing::enabled!(target: "flames::access", tracing::Level::INFO)
    }

    fn record(&self, record: AccessRecord) {
        tracing::info!(
            target: "flames::access",
            peer = %record.peer,
            method = record.method,
            host = record.host,
            path = record.path,
            status = record.status,
            bytes = record.bytes,
            duration_us = u64::try_from(record.duration.as_micros()).unwrap_or(u64::MAX),
            vm = record.vm,
            problem = record.problem,
            "request"
        );
    }
}

/// A record under way; given to the log when dropped.
pub(crate) struct Entry {
    log: Arc<dyn AccessLog>,
    started: Instant,
    record: Option<AccessRecord>,
}

impl Entry {
    pub(crate) fn open(
        log: &Arc<dyn AccessLog>,
        peer: IpAddr,
        method: &http::Method,
        path: &str,
    ) -> Option<Box<Self>> {
        log.is_enabled().then(|| {
            let record = AccessRecord {
                peer,
                method: method.as_str().to_owned(),
                host: String::new(),
                path: path.to_owned(),
                status: 0,
                bytes: 0,
                duration: Duration::ZERO,
                vm: None,
                problem: None,
            };
            Box::new(Self { log: Arc::clone(log), started: Instant::now(), record: Some(record) })
        })
    }

    pub(crate) fn with(&mut self, change: impl FnOnce(&mut AccessRecord)) {
        if let Some(record) = &mut self.record {
            change(record);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.duration = self.started.elapsed();
            self.log.record(record);
        }
    }
}
