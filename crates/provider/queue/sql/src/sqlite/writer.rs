//! What the queue's writer writes.

use std::sync::Arc;

use bytes::Bytes;
use flames_error::{Error, ErrorKind, Result};
use flames_queue::{EnqueueOptions, Enqueued, Job, JobId, Lease, LeaseToken, Topic, WorkerId};
use flames_sqlite::error::{Trouble, not_applied, outcome_unknown};
use flames_sqlite::{Failed, Work};
use sqlx::SqliteConnection;
use tokio::sync::oneshot;

use super::sql;
use super::time::{LeaseClock, Now};
use crate::hints::Hints;
use crate::text::Statements;
use crate::values::{Delivery, job_id, job_number, jobs, lease_lost, timestamp};

/// What the writer is asked for. Everything is checked before.
#[derive(Debug)]
pub(crate) enum Operation {
    Enqueue {
        topic: Topic,
        payload: Bytes,
        options: EnqueueOptions,
    },
    Dequeue {
        topic: Topic,
        worker: WorkerId,
        max: i64,
        lease: i64,
    },
    Extend {
        token: LeaseToken,
        delivery: Delivery,
        lease: i64,
    },
    Ack {
        token: LeaseToken,
        delivery: Delivery,
    },
    Nack {
        token: LeaseToken,
        delivery: Delivery,
        retry_at: i64,
    },
    Park {
        token: LeaseToken,
        delivery: Delivery,
        reason: String,
    },
    Requeue {
        topic: Topic,
        job: JobId,
    },
    /// Forgets some of the jobs that were parked longer ago than this, in milliseconds.
    Forget {
        older_than: i64,
    },
}

impl Operation {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Enqueue { .. } => "queue.enqueue",
            Self::Dequeue { .. } => "queue.dequeue",
            Self::Extend { .. } => "queue.extend",
            Self::Ack { .. } => "queue.ack",
            Self::Nack { .. } => "queue.nack",
            Self::Park { .. } => "queue.park",
            Self::Requeue { .. } => "queue.requeue",
            Self::Forget { .. } => "queue.forget_parked",
        }
    }
}

/// What came of an operation.
#[derive(Debug)]
pub(crate) enum Done {
    Enqueued(Enqueued),
    Taken(Vec<Job>),
    Extended(Lease),
    Settled,
    Forgot(u64),
}

/// An operation and where its outcome goes, once it is on disk.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) operation: Operation,
    pub(crate) answer: oneshot::Sender<Result<Done>>,
}

/// What one operation did within its transaction.
pub(crate) struct Outcome {
    answer: Result<Done>,
    /// The topic that may have a job ready since.
    woken: Option<String>,
    changed: bool,
}

impl Outcome {
    fn changed(done: Done, woken: Option<String>) -> Self {
        Self { answer: Ok(done), woken, changed: true }
    }
    fn refused(error: Error) -> Self {
        Self { answer: Err(error), woken: None, changed: false }
    }
}

/// The jobs of one file, and who hears of them.
pub(crate) struct Operations {
    pub(crate) hints: Arc<Hints>,
    pub(crate) statements: Arc<Statements>,
    pub(crate) time: Arc<LeaseClock>,
    pub(crate) epoch: i64,
    /// At how many pages in use no more jobs are taken in.
    pub(crate) max_pages: Option<u64>,
}

impl Work for Operations {
    type Request = Request;
    type Done = Outcome;

    fn bytes(request: &Request) -> usize {
        match &request.operation {
            Operation::Enqueue { payload, .. } => payload.len(),
            _ => 0,
        }
    }

    fn is_abandoned(request: &Request) -> bool {
        request.answer.is_closed()
    }

    async fn transact(
        &mut self,
        connection: &mut SqliteConnection,
        requests: &[Request],
    ) -> Result<Vec<Outcome>, Failed> {
        let limits = (self.epoch, self.max_pages);
        transact(connection, &self.statements, &self.time, limits, requests).await
    }

    fn answer(&mut self, request: Request, outcome: Outcome) {
        // Nobody may be waiting for an answer any more; what was done stays done.
        let _ = request.answer.send(outcome.answer);
        if let Some(topic) = outcome.woken {
            self.hints.publish(&topic);
        }
    }

    fn refuse(&mut self, request: Request, failed: &Failed) {
        let operation = request.operation.name();
        // Nobody may be waiting any more.
        let _ = request.answer.send(Err(match failed {
            Failed::Before(cause) | Failed::Alone(cause) => not_applied(operation, Arc::clone(cause)),
            Failed::AtCommit(cause) => outcome_unknown(operation, Arc::clone(cause)),
        }));
    }

    fn close(&mut self) {
        self.hints.end();
    }
}

/// Carries out a batch, one operation after the other, in one transaction.
///
/// An operation that is alone needs none: each of its statements is one by itself, and whatever stands between two of them (a job made ready and
/// not yet taken, a job not finished and not yet renewed) is a state that any other operation may find as well.
async fn transact(
    connection: &mut SqliteConnection,
    statements: &Statements,
    time: &LeaseClock,
    (epoch, max_pages): (i64, Option<u64>),
    requests: &[Request],
) -> Result<Vec<Outcome>, Failed> {
    let is_alone = requests.len() == 1;
    if !is_alone {
        sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
    }
    // Read when the lock is held: what another process did before is not judged by an earlier time. (Alone, it may be: then the delivery's number
    // still tells whether the lease was given on.)
    let now = time.now();
    let is_full = match max_pages {
        Some(max) => sql::used_pages(connection).await? >= max,
        None => false,
    };
    let mut operations = sql::Operations { connection, statements, now };
    let mut outcomes = Vec::with_capacity(requests.len());
    for request in requests {
        let enqueues = matches!(request.operation, Operation::Enqueue { .. });
        outcomes.push(if is_full && enqueues {
            Outcome::refused(Error::new(
                ErrorKind::Exhausted,
                request.operation.name(),
                "the queue has its configured size",
            ))
        } else {
            carry_out(&mut operations, epoch, now, &request.operation).await.map_err(|error| {
                // Alone, a statement that cannot write may have failed when it was committed.
                match (is_alone, Trouble::of(&error)) {
                    (true, Trouble::Disk) => Failed::AtCommit(Arc::new(error)),
                    (true, _) => Failed::Alone(Arc::new(error)),
                    (false, _) => Failed::from(error),
                }
            })?
        });
    }
    if is_alone {
        return Ok(outcomes);
    }
    if !outcomes.iter().any(|outcome| outcome.changed) {
        // Nothing is worth an fsync.
        sqlx::query("ROLLBACK").execute(connection).await?;
        return Ok(outcomes);
    }
    sqlx::query("COMMIT").execute(connection).await.map_err(|error| Failed::AtCommit(Arc::new(error)))?;
    Ok(outcomes)
}

async fn carry_out(
    operations: &mut sql::Operations<'_>,
    epoch: i64,
    now: Now,
    operation: &Operation,
) -> sqlx::Result<Outcome> {
    let name = operation.name();
    let settled = |token: &LeaseToken, woken: Option<Option<String>>| match woken {
        Some(topic) => Outcome::changed(Done::Settled, topic),
        None => Outcome::refused(lease_lost(name, token)),
    };
    Ok(match operation {
        Operation::Enqueue { topic, payload, options } => {
            let (number, enqueues) = operations.enqueue(topic, payload, options).await?;
            let done =
                job_id(name, number).map(|job| Done::Enqueued(Enqueued { job, coalesced: enqueues > 1 }));
            Outcome { answer: done, woken: Some(topic.as_str().to_owned()), changed: true }
        }
        Operation::Dequeue { topic, worker, max, lease } => {
            let rows = operations.take(topic, worker, *max, *lease).await?;
            let changed = !rows.is_empty();
            let taken = jobs(name, topic, epoch, rows, |until| now.ends_at(until));
            Outcome { answer: taken.map(Done::Taken), woken: None, changed }
        }
        Operation::Extend { token, delivery, lease } => {
            if operations.extend(*delivery, *lease).await? {
                let expires_at = timestamp(name, now.wall.saturating_add(*lease));
                let extended =
                    expires_at.map(|at| Done::Extended(Lease { token: token.clone(), expires_at: at }));
                Outcome { answer: extended, woken: None, changed: true }
            } else {
                Outcome::refused(lease_lost(name, token))
            }
        }
        Operation::Ack { token, delivery } => settled(token, operations.acknowledge(*delivery).await?),
        Operation::Nack { token, delivery, retry_at } => {
            settled(token, operations.give_back(*delivery, *retry_at).await?.map(Some))
        }
        Operation::Park { token, delivery, reason } => {
            let parked = operations.park(*delivery, reason).await?;
            settled(token, parked.map(|(topic, goes_on)| goes_on.then_some(topic)))
        }
        Operation::Requeue { topic, job } => {
            let requeued = match job_number(job) {
                Some(number) => operations.requeue(topic, number).await?,
                None => false,
            };
            if requeued {
                Outcome::changed(Done::Settled, Some(topic.as_str().to_owned()))
            } else {
                Outcome::refused(Error::not_found(name, "parked_job", job.as_str()))
            }
        }
        Operation::Forget { older_than } => {
            let forgotten = operations.forget_parked(*older_than).await?;
            Outcome { answer: Ok(Done::Forgot(forgotten)), woken: None, changed: forgotten > 0 }
        }
    })
}
