//! The statements, as a connection runs them.

use std::collections::HashSet;

use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::text::{FORGET_STEP, PROMOTE_STEP, Statements};
use crate::values::{Delivery, ParkedRow, TakenRow};

/// What an enqueue binds.
#[derive(Debug, Clone)]
pub(crate) struct EnqueueRow {
    pub(crate) topic: String,
    pub(crate) dedupe_key: Option<Vec<u8>>,
    pub(crate) payload: Vec<u8>,
    pub(crate) priority: i16,
    pub(crate) not_before: i64,
}

/// The job's number, and of how many enqueues it is made.
pub(crate) type EnqueuedRow = (i64, i64);

fn text(statement: &str) -> AssertSqlSafe<String> {
    // Made of constants and of a schema's name that was checked; all data is bound.
    AssertSqlSafe(statement.to_owned())
}

pub(crate) async fn enqueue(
    connection: &mut PgConnection,
    statements: &Statements,
    row: &EnqueueRow,
) -> sqlx::Result<EnqueuedRow> {
    sqlx::query_as(text(&statements.enqueue))
        .bind(&row.topic)
        .bind(&row.dedupe_key)
        .bind(&row.payload)
        .bind(row.priority)
        .bind(row.not_before)
        .fetch_one(connection)
        .await
}

/// Enqueues rows of different dedupe keys; answers in their order.
pub(crate) async fn enqueue_many(
    connection: &mut PgConnection,
    statements: &Statements,
    rows: &[EnqueueRow],
) -> sqlx::Result<Vec<EnqueuedRow>> {
    let topics: Vec<&str> = rows.iter().map(|row| &*row.topic).collect();
    let keys: Vec<Option<&[u8]>> = rows.iter().map(|row| row.dedupe_key.as_deref()).collect();
    let payloads: Vec<&[u8]> = rows.iter().map(|row| &*row.payload).collect();
    let priorities: Vec<i16> = rows.iter().map(|row| row.priority).collect();
    let times: Vec<i64> = rows.iter().map(|row| row.not_before).collect();
    sqlx::query_as(text(&statements.enqueue_many))
        .bind(topics)
        .bind(keys)
        .bind(payloads)
        .bind(priorities)
        .bind(times)
        .fetch_all(connection)
        .await
}

pub(crate) async fn take(
    connection: &mut PgConnection,
    statements: &Statements,
    topic: &str,
    worker: &str,
    max: i64,
    lease: i64,
) -> sqlx::Result<Vec<TakenRow>> {
    let rows = sqlx::query(text(&statements.take_unless_due))
        .bind(topic)
        .bind(max)
        .bind(worker)
        .bind(lease)
        .fetch_all(&mut *connection)
        .await?;
    let is_due = rows.first().is_some_and(|row| row.try_get("found").unwrap_or(true));
    if !is_due {
        // A row without a job tells only that nothing is due.
        let with_job = rows.iter().filter(|row| !matches!(row.try_get::<Option<i64>, _>("id"), Ok(None)));
        return with_job.map(sqlx::FromRow::from_row).collect();
    }
    for promote in [&statements.promote_delayed, &statements.promote_leased] {
        loop {
            let promoted =
                sqlx::query(text(promote)).bind(topic).bind(PROMOTE_STEP).execute(&mut *connection);
            if i64::try_from(promoted.await?.rows_affected()).unwrap_or(i64::MAX) < PROMOTE_STEP {
                break;
            }
        }
    }
    sqlx::query_as(text(&statements.take))
        .bind(topic)
        .bind(max)
        .bind(worker)
        .bind(lease)
        .fetch_all(connection)
        .await
}

/// When the extended lease ends; none when the delivery does not hold one.
pub(crate) async fn extend(
    connection: &mut PgConnection,
    statements: &Statements,
    delivery: Delivery,
    lease: i64,
) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar(text(&statements.extend))
        .bind(delivery.job)
        .bind(delivery.number)
        .bind(lease)
        .fetch_optional(connection)
        .await
}

/// What became of a delivery that was to be settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Settled {
    /// As asked.
    Done,
    /// The job may be ready again; its topic.
    GoesOn(String),
    /// The delivery holds no lease.
    Lost,
}

pub(crate) async fn acknowledge(
    connection: &mut PgConnection,
    statements: &Statements,
    delivery: Delivery,
) -> sqlx::Result<Settled> {
    let finished: Option<i64> = sqlx::query_scalar(text(&statements.finish))
        .bind(delivery.job)
        .bind(delivery.number)
        .fetch_optional(&mut *connection)
        .await?;
    match finished {
        Some(_) => Ok(Settled::Done),
        None => renew(connection, statements, delivery).await,
    }
}

/// Acknowledges many at once: those that it answers. The others are to be acknowledged one by one.
pub(crate) async fn finish_many(
    connection: &mut PgConnection,
    statements: &Statements,
    deliveries: &[Delivery],
) -> sqlx::Result<HashSet<i64>> {
    let jobs: Vec<i64> = deliveries.iter().map(|delivery| delivery.job).collect();
    let numbers: Vec<i64> = deliveries.iter().map(|delivery| delivery.number).collect();
    let finished: Vec<i64> = sqlx::query_scalar(text(&statements.finish_many))
        .bind(jobs)
        .bind(numbers)
        .fetch_all(connection)
        .await?;
    Ok(finished.into_iter().collect())
}

/// A signal never goes away while its job is leased: so a delivery that did not settle, and is not signalled either, holds no lease.
async fn renew(
    connection: &mut PgConnection,
    statements: &Statements,
    delivery: Delivery,
) -> sqlx::Result<Settled> {
    let topic: Option<String> = sqlx::query_scalar(text(&statements.renew))
        .bind(delivery.job)
        .bind(delivery.number)
        .fetch_optional(connection)
        .await?;
    Ok(topic.map_or(Settled::Lost, Settled::GoesOn))
}

pub(crate) async fn give_back(
    connection: &mut PgConnection,
    statements: &Statements,
    delivery: Delivery,
    retry_at: i64,
) -> sqlx::Result<Settled> {
    let topic: Option<String> = sqlx::query_scalar(text(&statements.give_back))
        .bind(delivery.job)
        .bind(delivery.number)
        .bind(retry_at)
        .fetch_optional(connection)
        .await?;
    Ok(topic.map_or(Settled::Lost, Settled::GoesOn))
}

pub(crate) async fn park(
    connection: &mut PgConnection,
    statements: &Statements,
    delivery: Delivery,
    reason: &[u8],
) -> sqlx::Result<Settled> {
    let parked: Option<String> = sqlx::query_scalar(text(&statements.park))
        .bind(delivery.job)
        .bind(delivery.number)
        .bind(reason)
        .fetch_optional(&mut *connection)
        .await?;
    match parked {
        Some(_) => Ok(Settled::Done),
        None => renew(connection, statements, delivery).await,
    }
}

pub(crate) async fn requeue(
    connection: &mut PgConnection,
    statements: &Statements,
    topic: &str,
    job: i64,
) -> sqlx::Result<bool> {
    let requeued: Option<String> = sqlx::query_scalar(text(&statements.requeue))
        .bind(topic)
        .bind(job)
        .fetch_optional(connection)
        .await?;
    Ok(requeued.is_some())
}

pub(crate) async fn parked(
    connection: &mut PgConnection,
    statements: &Statements,
    topic: &str,
    after: i64,
    limit: i64,
) -> sqlx::Result<Vec<ParkedRow>> {
    sqlx::query_as(text(&statements.parked)).bind(topic).bind(after).bind(limit).fetch_all(connection).await
}

pub(crate) async fn stats(
    connection: &mut PgConnection,
    statements: &Statements,
    topic: &str,
) -> sqlx::Result<(i64, i64, i64, i64)> {
    sqlx::query_as(text(&statements.stats)).bind(topic).fetch_one(connection).await
}

/// How many were forgotten, at most [`FORGET_STEP`].
pub(crate) async fn forget_parked(
    connection: &mut PgConnection,
    statements: &Statements,
    older_than: i64,
) -> sqlx::Result<i64> {
    let query = sqlx::query(text(&statements.forget_parked)).bind(older_than).bind(FORGET_STEP);
    Ok(i64::try_from(query.execute(connection).await?.rows_affected()).unwrap_or(i64::MAX))
}
