//! The queue that is chosen.

use std::sync::Arc;

use flames_clock::Clock;
use flames_queue::WorkQueue;
use flames_queue_memory::MemoryQueue;

#[cfg(feature = "nats")]
use flames_queue_nats::{Credentials, NatsConfig, NatsQueue};
#[cfg(feature = "postgres")]
use flames_queue_sql::{PostgresQueue, PostgresQueueConfig};
#[cfg(feature = "sqlite")]
use flames_queue_sql::{SqliteQueue, SqliteQueueConfig};

use crate::config::{Problem, Section, Settings};

const SECTION: Section = Section::Queue;

/// What is to be opened.
#[derive(Debug, Clone)]
pub(crate) enum QueuePlan {
    Memory,
    #[cfg(feature = "sqlite")]
    Sqlite(SqliteQueueConfig),
    #[cfg(feature = "postgres")]
    Postgres(PostgresQueueConfig),
    #[cfg(feature = "nats")]
    Nats(Box<NatsConfig>),
}

/// The queue, open.
#[derive(Debug, Clone)]
pub(crate) enum Queue {
    Memory(Arc<MemoryQueue>),
    #[cfg(feature = "sqlite")]
    Sqlite(Arc<SqliteQueue>),
    #[cfg(feature = "postgres")]
    Postgres(Arc<PostgresQueue>),
    #[cfg(feature = "nats")]
    Nats(Arc<NatsQueue>),
}

impl QueuePlan {
    pub(super) fn of(settings: &Settings) -> Result<Self, Problem> {
        match settings.backend(SECTION) {
            "sqlite" => sqlite(settings),
            "postgres" => postgres(settings),
            "nats" => nats(settings),
            _ => Ok(Self::Memory),
        }
    }

    pub(super) async fn open(self, clock: &Arc<dyn Clock>) -> Result<Queue, Problem> {
        match self {
            Self::Memory => Ok(Queue::Memory(Arc::new(MemoryQueue::new(Arc::clone(clock))))),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(config) => {
                let queue = SqliteQueue::open(config, Arc::clone(clock)).await;
                queue
                    .map(Arc::new)
                    .map(Queue::Sqlite)
                    .map_err(|error| Problem::of_error(SECTION, "sqlite", "path", &error))
            }
            #[cfg(feature = "postgres")]
            Self::Postgres(config) => {
                let queue = PostgresQueue::open(config, Arc::clone(clock)).await;
                queue
                    .map(Arc::new)
                    .map(Queue::Postgres)
                    .map_err(|error| Problem::of_error(SECTION, "postgres", "url", &error))
            }
            #[cfg(feature = "nats")]
            Self::Nats(config) => {
                let queue =
                    NatsQueue::open(*config, Arc::clone(clock), Arc::new(flames_clock::SystemRandom)).await;
                queue
                    .map(Arc::new)
                    .map(Queue::Nats)
                    .map_err(|error| Problem::of_error(SECTION, "nats", "servers", &error))
            }
        }
    }
}

#[cfg(feature = "sqlite")]
fn sqlite(settings: &Settings) -> Result<QueuePlan, Problem> {
    let path = settings.required(SECTION, "queue.path")?;
    Ok(QueuePlan::Sqlite(SqliteQueueConfig {
        operation_deadline: settings.duration("queue.operation_deadline"),
        max_bytes: settings.bytes("queue.max_size"),
        parked_retention: Some(settings.duration("queue.parked_retention")),
        survives_power_loss: settings.switch("queue.survives_power_loss").unwrap_or(false),
        ..SqliteQueueConfig::at(path)
    }))
}

#[cfg(not(feature = "sqlite"))]
fn sqlite(settings: &Settings) -> Result<QueuePlan, Problem> {
    Err(super::lacks(SECTION, settings, "sqlite"))
}

#[cfg(feature = "postgres")]
fn postgres(settings: &Settings) -> Result<QueuePlan, Problem> {
    Ok(QueuePlan::Postgres(PostgresQueueConfig {
        schema: settings.required(SECTION, "queue.schema")?.to_owned(),
        max_connections: super::small(SECTION, settings, "queue.max_connections", 1)?,
        operation_deadline: settings.duration("queue.operation_deadline"),
        parked_retention: Some(settings.duration("queue.parked_retention")),
        ..PostgresQueueConfig::at(super::signed_in(SECTION, settings, "url", "password")?)
    }))
}

#[cfg(not(feature = "postgres"))]
fn postgres(settings: &Settings) -> Result<QueuePlan, Problem> {
    Err(super::lacks(SECTION, settings, "postgres"))
}

#[cfg(feature = "nats")]
fn nats(settings: &Settings) -> Result<QueuePlan, Problem> {
    let text = |path: &str| settings.text(path).map(str::to_owned);
    let refuse = |setting: &str, sentence: &str| Problem::new(SECTION, setting, sentence).of_backend("nats");
    let credentials = match (
        settings.path("queue.credentials"),
        text("queue.user"),
        text("queue.password"),
        text("queue.token"),
    ) {
        (None, None, None, None) => Credentials::None,
        (Some(file), None, None, None) => Credentials::File(file),
        (None, Some(user), Some(password), None) => Credentials::Password { user, password },
        (None, None, None, Some(token)) => Credentials::Token(token),
        (None, Some(_), None, None) => {
            return Err(refuse("queue.password", "there is a `queue.user` and no password: give both."));
        }
        (None, None, Some(_), None) => {
            return Err(refuse("queue.user", "there is a `queue.password` and no user: give both."));
        }
        _ => {
            let sentence = "there are several ways to sign in: give `credentials`, or `user` and `password`, or `token`, and leave the others out.";
            return Err(refuse("queue.credentials", sentence));
        }
    };
    let servers = settings.required_list(SECTION, "queue.servers")?;
    let number = |path: &str, default: usize| {
        settings.number(path).map_or(default, |number| usize::try_from(number).unwrap_or(usize::MAX))
    };
    let config = NatsConfig {
        servers,
        credentials,
        certificate_authorities: settings.path("queue.certificate_authorities"),
        prefix: settings.required(SECTION, "queue.prefix")?.to_owned(),
        replicas: number("queue.replicas", 1),
        max_jobs: number("queue.max_jobs", 1_000_000),
        max_bytes: settings.bytes("queue.max_size"),
        operation_deadline: settings.duration("queue.operation_deadline"),
    };
    Ok(QueuePlan::Nats(Box::new(config)))
}

#[cfg(not(feature = "nats"))]
fn nats(settings: &Settings) -> Result<QueuePlan, Problem> {
    Err(super::lacks(SECTION, settings, "nats"))
}

impl Queue {
    /// The queue, as everything above knows it.
    pub(crate) fn queue(&self) -> Arc<dyn WorkQueue> {
        match self {
            Self::Memory(queue) => queue.clone(),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(queue) => queue.clone(),
            #[cfg(feature = "postgres")]
            Self::Postgres(queue) => queue.clone(),
            #[cfg(feature = "nats")]
            Self::Nats(queue) => queue.clone(),
        }
    }

    /// Closes it in order.
    pub(crate) async fn close(&self) {
        let closed = match self {
            Self::Memory(_) => Ok(()),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(queue) => queue.close().await,
            #[cfg(feature = "postgres")]
            Self::Postgres(queue) => queue.close().await,
            #[cfg(feature = "nats")]
            Self::Nats(queue) => {
                queue.close().await;
                Ok(())
            }
        };
        if let Err(error) = closed {
            let error: flames_error::Error = error;
            tracing::warn!(?error, "the queue was left as by a crash");
        }
    }
}
