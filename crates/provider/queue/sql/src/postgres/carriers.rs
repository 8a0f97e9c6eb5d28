//! What carries enqueues and acknowledgements to the server, one by one or many in a statement.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use flames_clock::Monotonic;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::batches::Carrier;
use super::connections::{Connections, Effect, on_a_connection};
use super::error::Failure;
use super::notify::Notifier;
use super::sql::{self, EnqueueRow, EnqueuedRow, Settled};
use crate::hints::Hints;
use crate::text::Statements;
use crate::values::Delivery;

/// What every operation needs.
pub(crate) struct Shared {
    pub(crate) connections: Arc<Connections>,
    pub(crate) statements: Statements,
    pub(crate) hints: Arc<Hints>,
    pub(crate) notifier: Notifier,
}

impl Shared {
    /// Hints that `topic` may have a job ready: here at once, elsewhere soon.
    pub(crate) fn woken(&self, topic: &str) {
        self.hints.publish(topic);
        self.notifier.notify(topic);
    }
}

/// Carries enqueues.
pub(crate) struct Enqueues(pub(crate) Arc<Shared>);

impl Carrier<EnqueueRow, EnqueuedRow> for Enqueues {
    fn one(&self, row: EnqueueRow, until: Monotonic) -> BoxFuture<'_, Result<EnqueuedRow, Failure>> {
        async move {
            let statements = &self.0.statements;
            let (row, connections) = (&row, &self.0.connections);
            on_a_connection!(connections, Effect::Changes, until, |connection| sql::enqueue(
                connection, statements, row
            ))
        }
        .boxed()
    }

    fn many(
        &self,
        mut rows: Vec<EnqueueRow>,
        until: Monotonic,
    ) -> BoxFuture<'_, Vec<Result<EnqueuedRow, Failure>>> {
        async move {
            // All processes lock rows in one order, so that no two can wait for each other.
            let mut order: Vec<usize> = (0..rows.len()).collect();
            order.sort_by(|one, other| {
                let key = |row: &EnqueueRow| (row.topic.clone(), row.dedupe_key.clone());
                key(&rows[*one]).cmp(&key(&rows[*other]))
            });
            let sorted: Vec<EnqueueRow> = order.iter().map(|place| take(&mut rows[*place])).collect();
            let statements = &self.0.statements;
            let sorted = &sorted;
            let carried = on_a_connection!(self.0.connections, Effect::Changes, until, |connection| {
                sql::enqueue_many(connection, statements, sorted)
            });
            match carried {
                // Every row has its answer, unless something unheard-of happens to the statement.
                Ok(answers) => {
                    let mut in_place = vec![Err(Failure::Unknown(None)); order.len()];
                    for (place, answer) in order.into_iter().zip(answers) {
                        in_place[place] = Ok(answer);
                    }
                    in_place
                }
                Err(failure) => vec![Err(failure); order.len()],
            }
        }
        .boxed()
    }

    fn clash(&self, row: &EnqueueRow) -> Option<u64> {
        // A statement may meet each job once.
        let key = row.dedupe_key.as_ref()?;
        let mut hasher = DefaultHasher::new();
        (&row.topic, key).hash(&mut hasher);
        Some(hasher.finish())
    }
}

/// Moves a row out of its place, which is not looked at again.
fn take(row: &mut EnqueueRow) -> EnqueueRow {
    let gone = EnqueueRow {
        topic: String::new(),
        dedupe_key: None,
        payload: Vec::new(),
        priority: 0,
        not_before: 0,
    };
    std::mem::replace(row, gone)
}

/// Carries acknowledgements.
pub(crate) struct Acks(pub(crate) Arc<Shared>);

impl Carrier<Delivery, Settled> for Acks {
    fn one(&self, delivery: Delivery, until: Monotonic) -> BoxFuture<'_, Result<Settled, Failure>> {
        async move {
            let statements = &self.0.statements;
            on_a_connection!(self.0.connections, Effect::Changes, until, |connection| sql::acknowledge(
                connection, statements, delivery
            ))
        }
        .boxed()
    }

    fn many(
        &self,
        deliveries: Vec<Delivery>,
        until: Monotonic,
    ) -> BoxFuture<'_, Vec<Result<Settled, Failure>>> {
        async move {
            let statements = &self.0.statements;
            let (connections, all) = (&self.0.connections, &deliveries);
            let finished =
                on_a_connection!(connections, Effect::Changes, until, |connection| sql::finish_many(
                    connection, statements, all
                ));
            let finished = match finished {
                Ok(finished) => finished,
                Err(failure) => return vec![Err(failure); deliveries.len()],
            };
            let mut answers = Vec::with_capacity(deliveries.len());
            for delivery in deliveries {
                answers.push(if finished.contains(&delivery.job) {
                    Ok(Settled::Done)
                } else {
                    // Lost, signalled, or locked by somebody for a moment.
                    self.one(delivery, until).await
                });
            }
            answers
        }
        .boxed()
    }

    fn clash(&self, delivery: &Delivery) -> Option<u64> {
        // Of two that settle the same lease, one is refused.
        Some(u64::from_ne_bytes(delivery.job.to_ne_bytes()))
    }
}
