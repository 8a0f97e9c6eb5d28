//! `flames config check`: connects to everything that is configured, and changes nothing.
//!
//! Where opening a provider would make something (a file, tables, a stream), it is not opened: it is looked at, and what would be made is
//! said. Two are the exception: in a bucket one small object is put and removed again, since only that tells whether it can be written; and a
//! store in etcd that is there already counts one more process that opened it.

#[cfg(feature = "etcd")]
mod etcd;
mod files;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "postgres")]
mod postgres;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use flames_clock::{Clock, ClockExt};
use serde::Serialize;

use super::blob::BlobPlan;
use super::cache::CachePlan;
use super::queue::QueuePlan;
use super::state::StatePlan;
use super::{IngressPlan, Plans};
use crate::config::{Problem, Section, Settings, Source};
use crate::connect;
use crate::data::DataFolder;

/// How long one provider may take; each has deadlines of its own below that.
const DEADLINE: Duration = Duration::from_secs(60);

/// How a provider is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// Fine.
    Ok,
    /// Fine, and something is to be known.
    Note,
    /// It cannot be used.
    Wrong,
}

/// What was found of one provider.
#[derive(Debug, Serialize)]
pub(crate) struct Checked {
    /// `state`; `data` for the data folder.
    pub(crate) provider: &'static str,
    /// `sqlite`.
    pub(crate) backend: String,
    /// Where it is, without secrets.
    #[serde(rename = "where")]
    pub(crate) place: String,
    pub(crate) verdict: Verdict,
    /// What was found, for people.
    pub(crate) found: String,
    /// The server's version, where it tells one.
    pub(crate) version: Option<String>,
    /// How long it took.
    pub(crate) milliseconds: u64,
    #[serde(skip)]
    pub(crate) problem: Option<Problem>,
}

/// What a check finds where nothing is wrong.
struct Found {
    verdict: Verdict,
    text: String,
    version: Option<String>,
}

impl Found {
    fn ok(text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, text: text.into(), version: None }
    }

    fn note(text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Note, text: text.into(), version: None }
    }

    #[allow(dead_code, reason = "files have no version")]
    fn of_version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }
}

/// Checks everything, all at once.
pub(crate) async fn check(settings: &Settings, plans: &Plans, clock: &Arc<dyn Clock>) -> Vec<Checked> {
    let folder = settings.path("data").map(DataFolder::at);
    // What a `flames up` of this folder has open is in use by right.
    let is_up = folder.as_ref().is_some_and(connect::is_up);
    let (data, state, blob, cache, queue, ingress) = tokio::join!(
        timed(settings, Section::Host, clock, async { files::data(folder.as_ref(), is_up) }),
        timed(settings, Section::State, clock, Box::pin(state(settings, plans.state.clone(), clock))),
        timed(settings, Section::Blob, clock, Box::pin(blob(settings, plans.blob.clone(), clock, is_up))),
        timed(settings, Section::Cache, clock, Box::pin(cache(plans.cache.clone(), clock))),
        timed(settings, Section::Queue, clock, Box::pin(queue(settings, plans.queue.clone(), clock))),
        timed(settings, Section::Ingress, clock, Box::pin(ingress(plans.ingress.clone(), is_up))),
    );
    let mut checked = vec![data, state, blob, cache, queue, ingress];
    if checked.first().is_some_and(|data| data.problem.is_some()) {
        // One problem, and not one more for everything that would be in that folder.
        for row in checked.iter_mut().skip(1).filter(|row| matches!(row.backend.as_str(), "sqlite" | "fs")) {
            if settings.source(&format!("{}.path", row.provider)) == Source::Default {
                row.problem = None;
                row.verdict = Verdict::Note;
                row.found = "in the data folder, which cannot be used".to_owned();
            }
        }
    }
    checked
}

async fn timed(
    settings: &Settings,
    section: Section,
    clock: &Arc<dyn Clock>,
    work: impl Future<Output = Result<Found, Problem>> + Send,
) -> Checked {
    let (provider, backend) = match section {
        Section::Host => ("data", "folder"),
        section => (section.name(), settings.backend(section)),
    };
    let began = clock.monotonic();
    let outcome = clock.timeout(DEADLINE, work).await.unwrap_or_else(|_| {
        let sentence =
            format!("it did not answer within {DEADLINE:?}: see that it is there and can be reached.");
        Err(Problem::new(section, format!("{provider}.backend"), sentence).of_backend(backend))
    });
    let took = clock.monotonic().saturating_since(began);
    let (verdict, found, version, problem) = match outcome {
        Ok(found) => (found.verdict, found.text, found.version, None),
        Err(problem) => (Verdict::Wrong, problem.problem.clone(), None, Some(problem)),
    };
    Checked {
        provider,
        backend: backend.to_owned(),
        place: place(settings, section, backend),
        verdict,
        found,
        version,
        milliseconds: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        problem,
    }
}

/// Where a provider is, as its settings say it.
fn place(settings: &Settings, section: Section, backend: &str) -> String {
    let shown = |path: &str| settings.shown_value(path);
    match (section, backend) {
        (Section::Host, _) => shown("data"),
        (Section::State | Section::Queue, "sqlite") | (Section::Blob, "fs") => {
            shown(&format!("{}.path", section.name()))
        }
        (Section::State | Section::Queue, "postgres") => shown(&format!("{}.url", section.name())),
        (Section::State, "etcd") => shown("state.endpoints"),
        (Section::Blob, "s3" | "gcs" | "azure") => {
            let bucket = if backend == "azure" { shown("blob.container") } else { shown("blob.bucket") };
            match shown("blob.endpoint") {
                endpoint if endpoint.is_empty() => bucket,
                endpoint => format!("{bucket} at {endpoint}"),
            }
        }
        (Section::Cache, "redis") => shown("cache.urls"),
        (Section::Queue, "nats") => shown("queue.servers"),
        (Section::Ingress, "proxy") => {
            let listens = [shown("ingress.listen"), shown("ingress.listen_tls")];
            listens.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", ")
        }
        (Section::Ingress, "caddy") => shown("ingress.admin"),
        _ => "in this process".to_owned(),
    }
}

async fn state(settings: &Settings, plan: StatePlan, clock: &Arc<dyn Clock>) -> Result<Found, Problem> {
    let _ = clock;
    if let Some(folder) = settings.path("data") {
        plan.check_not_emptied(&DataFolder::at(folder))?;
    }
    match &plan {
        StatePlan::Memory => Ok(Found::note("everything is forgotten at the end")),
        #[cfg(feature = "sqlite")]
        StatePlan::Sqlite(config) => match files::database(settings, Section::State, &config.path)? {
            Some(found) => Ok(found),
            None => {
                plan.open(clock).await?.close().await;
                Ok(Found::ok("opens, with the schema of this version"))
            }
        },
        #[cfg(feature = "postgres")]
        StatePlan::Postgres(config) => {
            let wanted = postgres::Wanted {
                url: &config.url,
                schema: &config.schema,
                table: "migration",
                number: "number::bigint",
                current: postgres::STATE_SCHEMA,
                refuses_foreign_tables: true,
            };
            match postgres::look(&wanted, config.connect_deadline, clock).await {
                Ok(looked) if looked.found.verdict == Verdict::Note => Ok(looked.found),
                Ok(looked) => {
                    plan.open(clock).await?.close().await;
                    Ok(looked.found)
                }
                Err(error) => {
                    // The adapter knows to say what is wrong. Over a session that may not write, it changes nothing whatever happens.
                    let read_only = flames_state_postgres::PostgresConfig {
                        url: postgres::read_only(&config.url),
                        ..config.clone()
                    };
                    StatePlan::Postgres(read_only).open(clock).await?.close().await;
                    Err(postgres::lost(Section::State, &error))
                }
            }
        }
        #[cfg(feature = "etcd")]
        StatePlan::Etcd(config) => match etcd::look(config, clock).await {
            Some(looked) if !looked.has_store => {
                Ok(Found::note("answers; the first start makes what it needs below the prefix")
                    .of_version(looked.version))
            }
            looked => {
                // When it could not be looked at, this says why.
                plan.open(clock).await?.close().await;
                let found = Found::ok("answers");
                Ok(match looked {
                    Some(looked) => found.of_version(looked.version),
                    None => found,
                })
            }
        },
    }
}

async fn queue(settings: &Settings, plan: QueuePlan, clock: &Arc<dyn Clock>) -> Result<Found, Problem> {
    let _ = (settings, clock);
    match &plan {
        QueuePlan::Memory => Ok(Found::ok("what is due stands in the state store")),
        #[cfg(feature = "sqlite")]
        QueuePlan::Sqlite(config) => match files::database(settings, Section::Queue, &config.path)? {
            Some(found) => Ok(found),
            None => {
                plan.open(clock).await?.close().await;
                Ok(Found::ok("opens, with the schema of this version"))
            }
        },
        #[cfg(feature = "postgres")]
        QueuePlan::Postgres(config) => {
            let wanted = postgres::Wanted {
                url: &config.url,
                schema: &config.schema,
                table: "meta",
                number: "schema_version",
                current: postgres::QUEUE_SCHEMA,
                refuses_foreign_tables: false,
            };
            match postgres::look(&wanted, config.operation_deadline, clock).await {
                Ok(looked) if looked.found.verdict == Verdict::Note => Ok(looked.found),
                Ok(looked) => {
                    plan.open(clock).await?.close().await;
                    Ok(looked.found)
                }
                Err(error) => {
                    let read_only = flames_queue_sql::PostgresQueueConfig {
                        url: postgres::read_only(&config.url),
                        ..config.clone()
                    };
                    QueuePlan::Postgres(read_only).open(clock).await?.close().await;
                    Err(postgres::lost(Section::Queue, &error))
                }
            }
        }
        #[cfg(feature = "nats")]
        QueuePlan::Nats(config) => {
            let config = config.clone();
            let looked = match nats::look(&config, clock).await {
                Ok(looked) => looked,
                // It says what is wrong, and as long as that is so it makes nothing.
                Err(nats::NotConnected) => {
                    plan.open(clock).await?.close().await;
                    return Ok(Found::ok("answers"));
                }
            };
            if looked.has_stream {
                plan.open(clock).await?.close().await;
                let found = Found::ok(format!("answers, and has the stream {}", config.stream()));
                return Ok(found.of_version(looked.version));
            }
            let found = format!("answers; the first start makes the stream {}", config.stream());
            Ok(Found::note(found).of_version(looked.version))
        }
    }
}

async fn blob(
    settings: &Settings,
    plan: BlobPlan,
    clock: &Arc<dyn Clock>,
    is_up: bool,
) -> Result<Found, Problem> {
    let _ = clock;
    match plan {
        BlobPlan::Memory(_) => Ok(Found::note("everything is forgotten at the end")),
        BlobPlan::Fs(path) => files::blobs(settings, &path, is_up),
        #[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
        cloud => {
            let store = cloud.open_cloud(clock).await?;
            Ok(match store.capabilities().conditional_put {
                true => Found::ok("lists, puts and removes an object"),
                false => Found::note(
                    "lists, puts and removes an object, and ignores conditions of puts: a put whose answer was lost may undo a later one",
                ),
            })
        }
    }
}

async fn cache(plan: CachePlan, clock: &Arc<dyn Clock>) -> Result<Found, Problem> {
    let is_memory = matches!(plan, CachePlan::Memory(_));
    plan.open(clock).await?;
    Ok(Found::ok(if is_memory { "what it holds is this process's alone" } else { "answers" }))
}

async fn ingress(plan: IngressPlan, is_up: bool) -> Result<Found, Problem> {
    let _ = is_up;
    match plan {
        IngressPlan::Noop => Ok(Found::note("nothing is forwarded")),
        #[cfg(feature = "proxy")]
        IngressPlan::Proxy(mut config) => {
            if is_up {
                // The addresses are that one's: others do for looking at everything else.
                for listener in &mut config.listeners {
                    listener.address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
                }
            }
            let ingress = IngressPlan::Proxy(config).start(None, None).await?;
            ingress.close().await;
            Ok(match is_up {
                true => Found::ok("its addresses are in use by the `flames up` of this data folder"),
                false => Found::ok("its addresses are free"),
            })
        }
        #[cfg(feature = "caddy")]
        caddy => {
            caddy.start(None, None).await?.close().await;
            Ok(Found::ok("its admin API answers"))
        }
    }
}
