//! `providers`: each adapter beside its backend doing the same work by hand, in the same run.
//!
//! A backend that is not compiled in, or whose server is not here, is told as skipped. Servers are those that `FLAMES_TEST_…` names, or are
//! started for the run.

mod blob_files;
#[cfg(feature = "s3")]
mod blob_s3;
#[cfg(feature = "redis")]
mod cache;
mod compare;
#[cfg(feature = "proxy")]
pub(crate) mod proxy;
mod queue;
#[cfg(feature = "nats")]
mod queue_nats;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod queue_sql;
mod servers;
mod state;
#[cfg(feature = "postgres")]
mod state_postgres;
#[cfg(feature = "sqlite")]
mod state_sqlite;

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};

use self::compare::{Compared, Effort};
use self::servers::Servers;
use crate::report::{Bar, Figure, Report, Row, Section, Side};

/// A part of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// StateStore: memory, SQLite, Postgres.
    State,
    /// WorkQueue: SQLite, Postgres, NATS.
    Queue,
    /// BlobStore: local files, S3.
    Blob,
    /// CacheStore: Redis.
    Cache,
    /// IngressProvider: the proxy, beside nginx and Caddy.
    Proxy,
}

/// How much is measured.
#[derive(Debug, Args)]
pub(crate) struct ProvidersArguments {
    /// Which parts; none: all.
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Turns of each side; the middle one counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// How long a turn lasts, in milliseconds.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(50..=60_000))]
    window_ms: u64,
    /// Old jobs in the queue's table for the measurement of what they cost.
    #[arg(long, default_value_t = 1_000_000)]
    old_jobs: u32,
    /// Routes of the proxy for the measurement of what they cost.
    #[arg(long, default_value_t = 100_000)]
    routes: usize,
    /// The size of the download through the proxy, in MiB.
    #[arg(long, default_value_t = 1_024)]
    download_mib: u64,
    /// Idle WebSockets for the measurement of their memory.
    #[arg(long, default_value_t = 1_000)]
    websockets: usize,
}

impl ProvidersArguments {
    fn effort(&self) -> Effort {
        Effort { rounds: self.rounds, window: Duration::from_millis(self.window_ms) }
    }

    fn wants(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }
}

/// What was found so far.
#[derive(Default)]
pub(crate) struct Findings {
    sections: Vec<Section>,
    bars: Vec<Bar>,
    skipped: Vec<String>,
}

impl Findings {
    fn section(&mut self, title: impl Into<String>, key: &'static str, rows: Vec<Row>) {
        if !rows.is_empty() {
            self.sections.push(Section { title: title.into(), key, rows });
        }
    }

    fn at_least(&mut self, name: impl Into<String>, bar: f64, measured: f64) {
        self.judge(Bar::new(name.into(), Side::AtLeast, bar, measured));
    }

    fn at_most(&mut self, name: impl Into<String>, bar: f64, measured: f64) {
        self.judge(Bar::new(name.into(), Side::AtMost, bar, measured));
    }

    /// Tells each bar as soon as it is known, on standard error: the whole takes many minutes.
    fn judge(&mut self, bar: Bar) {
        eprintln!("{bar}");
        self.bars.push(bar);
    }

    /// The bars of a state or queue adapter: 85 % of the backend's throughput, 1.2 times its 99th percentile.
    fn adapter_bars(&mut self, what: &str, compared: &Compared) {
        self.at_least(format!("{what}: ours / bare"), 0.85, compared.ratio());
        self.at_most(format!("{what}: p99 of ours / bare"), 1.2, compared.p99_ratio());
    }

    /// Says what could not be measured although it is here: a bar that is missed, so that nobody takes the rest for all.
    fn attempted(&mut self, what: &str, measured: Result<()>) {
        if let Err(error) = measured {
            self.at_least(format!("{what} could be measured to its end"), 1.0, 0.0);
            self.skipped.push(format!("FAILED: {what}: {error:#}"));
        }
    }

    /// Says that something was not measured, and why.
    fn skip(&mut self, what: &str, why: impl std::fmt::Display) {
        self.skipped.push(format!("skipped: {what}: {why}"));
    }
}

fn figure(name: &'static str, value: f64) -> Figure {
    Figure { name, value }
}

/// Says what is not compiled in.
macro_rules! without {
    ($findings:expr, $feature:literal, $what:literal) => {
        #[cfg(not(feature = $feature))]
        $findings.skip($what, concat!("built without the feature `", $feature, "`"));
    };
}

/// Measures.
pub(crate) fn run(arguments: &ProvidersArguments) -> Result<Report> {
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut findings = Findings::default();
    runtime.block_on(measure(arguments, &mut findings))?;
    let Findings { sections, bars, skipped } = findings;
    Ok(Report::new("providers", began, sections, bars).with_skipped(skipped))
}

async fn measure(arguments: &ProvidersArguments, findings: &mut Findings) -> Result<()> {
    let servers = Servers::new()?;
    if arguments.wants(Part::State) {
        without!(findings, "sqlite", "state/sqlite");
        without!(findings, "postgres", "state/postgres");
        Box::pin(state::measure(arguments, &servers, findings)).await;
    }
    if arguments.wants(Part::Queue) {
        without!(findings, "sqlite", "queue/sqlite");
        without!(findings, "postgres", "queue/postgres");
        without!(findings, "nats", "queue/nats");
        Box::pin(queue::measure(arguments, &servers, findings)).await;
    }
    if arguments.wants(Part::Blob) {
        without!(findings, "s3", "blob/s3");
        let measured = Box::pin(blob_files::measure(arguments, findings)).await;
        findings.attempted("blob/fs", measured);
        #[cfg(feature = "s3")]
        {
            let measured = Box::pin(blob_s3::measure(arguments, &servers, findings)).await;
            findings.attempted("blob/s3", measured);
        }
    }
    if arguments.wants(Part::Cache) {
        without!(findings, "redis", "cache/redis");
        #[cfg(feature = "redis")]
        {
            let measured = Box::pin(cache::measure(arguments, &servers, findings)).await;
            findings.attempted("cache/redis", measured);
        }
    }
    if arguments.wants(Part::Proxy) {
        without!(findings, "proxy", "ingress/proxy");
        #[cfg(feature = "proxy")]
        {
            let measured = Box::pin(proxy::measure(arguments, findings)).await;
            findings.attempted("ingress/proxy", measured);
        }
    }
    Ok(())
}
