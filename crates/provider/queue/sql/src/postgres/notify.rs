//! Hints between processes, by LISTEN and NOTIFY.
//!
//! A NOTIFY takes a lock of the whole server when its transaction commits
//! (<https://www.postgresql.org/docs/15/sql-notify.html>). So it is never part of an operation: one task with a connection of its own sends
//! what came together in a while, and each process listens on one connection, whatever number of workers wait in it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flames_clock::{Clock, ClockExt};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{ConnectOptions, Executor, PgConnection};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::hints::Hints;

/// The least time between two NOTIFYs of one process.
const TOGETHER: Duration = Duration::from_millis(20);
/// How many topics wait to be notified at most; a hint may be lost.
const TOPICS: usize = 1_024;
/// How long a statement or a new connection may take here.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait after a failure.
const PAUSE: Duration = Duration::from_millis(200);
/// How often a quiet connection is asked for a sign of life.
const QUIET: Duration = Duration::from_secs(30);
/// How long a new subscriber waits for the connection that listens.
const SUBSCRIBE: Duration = Duration::from_secs(1);

/// Sends hints to the other processes. Its own it leaves out, by an id in front of the topic.
pub(crate) struct Notifier {
    topics: Arc<Mutex<HashSet<String>>>,
    wake: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Notifier {
    /// Must be called within a tokio runtime.
    pub(crate) fn new(options: PgConnectOptions, clock: Arc<dyn Clock>, channel: Channel) -> Self {
        let (topics, wake) = (Arc::new(Mutex::new(HashSet::new())), Arc::new(Notify::new()));
        let task = tokio::spawn(send(options, clock, channel, Arc::clone(&topics), Arc::clone(&wake)));
        Self { topics, wake, task }
    }

    /// Hints that `topic` may have a job ready.
    pub(crate) fn notify(&self, topic: &str) {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if topics.contains(topic) || topics.len() >= TOPICS {
            return;
        }
        topics.insert(topic.to_owned());
        drop(topics);
        self.wake.notify_one();
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where hints go: the channel's name, and this process' id on it.
#[derive(Debug, Clone)]
pub(crate) struct Channel {
    pub(crate) name: String,
    pub(crate) sender: u64,
}

async fn send(
    options: PgConnectOptions,
    clock: Arc<dyn Clock>,
    channel: Channel,
    topics: Arc<Mutex<HashSet<String>>>,
    wake: Arc<Notify>,
) {
    let mut connection: Option<PgConnection> = None;
    loop {
        wake.notified().await;
        let together = std::mem::take(&mut *topics.lock().unwrap_or_else(PoisonError::into_inner));
        let payloads: Vec<String> =
            together.into_iter().map(|topic| format!("{:x}:{topic}", channel.sender)).collect();
        let sending = async {
            let mut open = match connection.take() {
                Some(open) => open,
                None => options.connect().await?,
            };
            sqlx::query("SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload")
                .bind(&channel.name)
                .bind(payloads)
                .execute(&mut open)
                .await?;
            Ok::<_, sqlx::Error>(open)
        };
        match clock.timeout(PATIENCE, sending).await {
            Ok(Ok(open)) => {
                connection = Some(open);
                clock.sleep(TOGETHER).await;
            }
            outcome => {
                let error = outcome.err().map(|late| late.to_string());
                tracing::debug!(error, "hints for other processes were lost");
                clock.sleep(PAUSE).await;
            }
        }
    }
}

/// Hands the hints of other processes to those who wait in this one. Begins to listen with the first subscriber.
pub(crate) struct Listener {
    options: PgConnectOptions,
    clock: Arc<dyn Clock>,
    channel: Channel,
    hints: Arc<Hints>,
    listens: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Listener {
    pub(crate) fn new(
        options: PgConnectOptions,
        clock: Arc<dyn Clock>,
        channel: Channel,
        hints: Arc<Hints>,
    ) -> Self {
        let (listens, _) = watch::channel(false);
        Self { options, clock, channel, hints, listens, task: Mutex::default() }
    }

    /// Begins to listen, and waits a little for it: who listens too late loses hints, and nothing else.
    pub(crate) async fn begin(&self) {
        {
            let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
            task.get_or_insert_with(|| {
                tokio::spawn(listen(
                    self.options.clone(),
                    Arc::clone(&self.clock),
                    self.channel.clone(),
                    Arc::clone(&self.hints),
                    self.listens.clone(),
                ))
            });
        }
        let mut listens = self.listens.subscribe();
        // Too late, or ended: see above.
        let _ = self.clock.timeout(SUBSCRIBE, listens.wait_for(|listens| *listens)).await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

async fn listen(
    options: PgConnectOptions,
    clock: Arc<dyn Clock>,
    channel: Channel,
    hints: Arc<Hints>,
    listens: watch::Sender<bool>,
) {
    loop {
        match clock.timeout(PATIENCE, connect(&options, &channel)).await {
            Ok(Ok(mut listener)) => {
                // What was hinted while nobody listened is not known.
                hints.publish_all();
                listens.send_replace(true);
                let error = serve(&mut listener, &clock, &channel, &hints).await;
                listens.send_replace(false);
                tracing::debug!(
                    error = error.as_ref().map(|error| error as &dyn std::error::Error),
                    "the connection for hints is lost"
                );
            }
            Ok(Err(error)) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "no connection for hints");
            }
            Err(_) => {}
        }
        clock.sleep(PAUSE).await;
    }
}

async fn connect(options: &PgConnectOptions, channel: &Channel) -> sqlx::Result<PgListener> {
    // The listener takes its connection from a pool: one of its own.
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(PATIENCE)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_lazy_with(options.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    listener.listen(&channel.name).await?;
    Ok(listener)
}

/// Passes hints on until the connection is lost.
async fn serve(
    listener: &mut PgListener,
    clock: &Arc<dyn Clock>,
    channel: &Channel,
    hints: &Hints,
) -> Option<sqlx::Error> {
    loop {
        let received = clock.timeout(QUIET, listener.try_recv()).await;
        match received {
            Ok(Ok(Some(notification))) => {
                let (sender, topic) = notification.payload().split_once(':').unwrap_or_default();
                // What this process has hinted itself, its own have heard at once.
                if u64::from_str_radix(sender, 16).is_ok_and(|sender| sender != channel.sender) {
                    hints.publish(topic);
                }
            }
            Ok(Ok(None)) => return None,
            Ok(Err(error)) => return Some(error),
            Err(_quiet) => match clock.timeout(PATIENCE, listener.execute("SELECT 1")).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Some(error),
                Err(_) => return None,
            },
        }
    }
}
