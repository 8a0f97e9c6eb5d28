//! Hints between processes: one task that tells, one that listens. Both own their connection and make it anew when it is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use flames_clock::{Clock, ClockExt};
use flames_error::Result;
use flames_state::{Commit, HintFanout};
use sqlx::Executor;
use sqlx::postgres::{PgConnection, PgListener, PgNotification, PgPoolOptions};
use tokio::sync::watch;

use crate::outbox::{Outbox, Told, read};
use crate::session::{Connector, give_up_durability};

const OPERATION: &str = "state.changes";
/// The least time between two rounds: a bound on what hints cost the server and every process that listens.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(5);
/// After so long without a notification the listener asks whether its connection is still there.
const ASK_AFTER: Duration = Duration::from_secs(10);
/// How long a statement for hints may take.
const PATIENCE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What both tasks share.
#[derive(Debug)]
pub(crate) struct Hints {
    pub(crate) connector: Arc<Connector>,
    pub(crate) channel: String,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) outbox: Outbox,
    pub(crate) fanout: HintFanout,
    /// The server's process behind the connection that tells; 0: none. What it tells was published here already.
    pub(crate) teller: AtomicU32,
}

impl Hints {
    /// Tells this process' subscribers of a commit at once, and others soon.
    pub(crate) fn publish(&self, commit: &Commit) {
        self.fanout.publish(commit);
        self.outbox.add(commit);
    }

    /// Tells other processes what was committed here, until aborted.
    pub(crate) async fn tell(self: Arc<Self>) {
        let mut connection: Option<PgConnection> = None;
        let mut pause = FIRST_PAUSE;
        loop {
            let payloads = self.outbox.take().await;
            match self.tell_once(&mut connection, payloads).await {
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    self.clock.sleep(BETWEEN_ROUNDS).await;
                }
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "hints were lost");
                    connection = None;
                    self.teller.store(0, Ordering::Release);
                    self.outbox.add_anything();
                    self.clock.sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn tell_once(&self, kept: &mut Option<PgConnection>, payloads: Vec<String>) -> Result<()> {
        let failed = |error| crate::error::not_applied(OPERATION, error);
        let work = async {
            let connection = match kept {
                Some(connection) => connection,
                None => {
                    let (mut made, _) = self.connector.connect(OPERATION).await?;
                    give_up_durability(&mut made).await.map_err(failed)?;
                    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
                        .persistent(false)
                        .fetch_one(&mut made)
                        .await
                        .map_err(failed)?;
                    self.teller.store(pid.unsigned_abs(), Ordering::Release);
                    kept.insert(made)
                }
            };
            // One transaction for all: it takes the notifiers' lock once.
            sqlx::query("SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload")
                .bind(&self.channel)
                .bind(payloads)
                .execute(connection)
                .await
                .map_err(failed)?;
            Ok(())
        };
        match self.clock.timeout(PATIENCE, work).await {
            Ok(done) => done,
            Err(late) => Err(self.connector.target.too_late(OPERATION).with_source(late)),
        }
    }

    /// Hears what other processes committed, until aborted. `tried` becomes true after the first try to listen, however it ended.
    pub(crate) async fn listen(self: Arc<Self>, tried: watch::Sender<bool>) {
        let mut pause = FIRST_PAUSE;
        let mut is_first = true;
        loop {
            match self.clock.timeout(PATIENCE, self.listener()).await {
                Ok(Ok(listener)) => {
                    if !is_first {
                        // What was told meanwhile was not heard.
                        self.fanout.publish_lost();
                    }
                    tried.send_replace(true);
                    is_first = false;
                    pause = FIRST_PAUSE;
                    self.hear(listener).await;
                }
                Ok(Err(error)) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "hints cannot be heard");
                }
                Err(_) => tracing::debug!("hints cannot be heard: the server does not answer"),
            }
            tried.send_replace(true);
            self.clock.sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn listener(&self) -> sqlx::Result<PgListener> {
        // The listener takes its connection from a pool; this one has no other, and dies with the listener.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(PATIENCE)
            .connect_lazy_with(self.connector.options.clone());
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.listen(&self.channel).await?;
        Ok(listener)
    }

    /// Hears until the connection is lost.
    async fn hear(&self, mut listener: PgListener) {
        loop {
            match self.clock.timeout(ASK_AFTER, listener.try_recv()).await {
                Ok(Ok(Some(notification))) => self.pass_on(&notification),
                Ok(Ok(None) | Err(_)) => return,
                Err(_) => match self.clock.timeout(PATIENCE, (&mut listener).execute("SELECT 1")).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(_)) | Err(_) => return,
                },
            }
        }
    }

    fn pass_on(&self, notification: &PgNotification) {
        if notification.process_id() == self.teller.load(Ordering::Acquire) {
            return;
        }
        match read(notification.payload()) {
            Told::Keys(keys) => {
                // Only the keys count; a commit is what the fan-out takes.
                let mut changed = Commit::new();
                for key in keys {
                    changed.delete(key);
                }
                self.fanout.publish(&changed);
            }
            Told::Anything => self.fanout.publish_lost(),
        }
    }
}
