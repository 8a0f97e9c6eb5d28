//! The statements, as SQLite's connection runs them.

use flames_error::Result;
use flames_queue::{EnqueueOptions, Topic, WorkerId};
use sqlx::sqlite::{SqliteArguments, SqlitePool};
use sqlx::{AssertSqlSafe, Sqlite, SqliteConnection};

use super::time::Now;
use crate::text::{FORGET_STEP, PROMOTE_STEP, Statements};
use crate::values::{Delivery, ParkedRow, TakenRow, not_before};
use flames_sqlite::error::not_applied;

type Query<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

fn query(text: &str) -> Query<'static> {
    // The texts are made of constants; all data is bound.
    sqlx::query(AssertSqlSafe(text.to_owned()))
}

/// One connection within a transaction, with the time of the transaction.
pub(crate) struct Operations<'c> {
    pub(crate) connection: &'c mut SqliteConnection,
    pub(crate) statements: &'c Statements,
    pub(crate) now: Now,
}

impl Operations<'_> {
    fn timed<'q>(&self, query: Query<'q>) -> Query<'q> {
        query.bind(self.now.wall).bind(self.now.lease)
    }

    /// Runs a statement whose one answer, where there is one, is a text or nothing of interest; tells whether it found its row.
    async fn found(&mut self, query: Query<'_>) -> sqlx::Result<bool> {
        let query = self.timed(query);
        Ok(!query.fetch_all(&mut *self.connection).await?.is_empty())
    }

    /// The job's number, and of how many enqueues it is made.
    pub(crate) async fn enqueue(
        &mut self,
        topic: &Topic,
        payload: &[u8],
        options: &EnqueueOptions,
    ) -> sqlx::Result<(i64, i64)> {
        sqlx::query_as(AssertSqlSafe(self.statements.enqueue.clone()))
            .bind(topic.as_str().to_owned())
            .bind(options.dedupe_key.as_ref().map(|key| key.clone().into_bytes()))
            .bind(payload.to_vec())
            .bind(i16::from(options.priority.0))
            .bind(options.not_before.map_or(i64::MIN, not_before))
            .bind(self.now.wall)
            .bind(self.now.lease)
            .fetch_one(&mut *self.connection)
            .await
    }

    pub(crate) async fn take(
        &mut self,
        topic: &Topic,
        worker: &WorkerId,
        max: i64,
        lease: i64,
    ) -> sqlx::Result<Vec<TakenRow>> {
        // Most often there is a job, and nothing to be made ready first.
        let taken = self.take_by(&self.statements.take_if_quiet, topic, worker, max, lease).await?;
        if !taken.is_empty() {
            return Ok(taken);
        }
        let is_due: bool = sqlx::query_scalar(AssertSqlSafe(self.statements.is_due.clone()))
            .bind(topic.as_str().to_owned())
            .bind(self.now.wall)
            .bind(self.now.lease)
            .fetch_one(&mut *self.connection)
            .await?;
        if !is_due {
            return Ok(taken);
        }
        for promote in [&self.statements.promote_delayed, &self.statements.promote_leased] {
            loop {
                let query = query(promote).bind(topic.as_str().to_owned()).bind(PROMOTE_STEP);
                let promoted = self.timed(query).execute(&mut *self.connection).await?.rows_affected();
                if i64::try_from(promoted).unwrap_or(i64::MAX) < PROMOTE_STEP {
                    break;
                }
            }
        }
        self.take_by(&self.statements.take, topic, worker, max, lease).await
    }

    async fn take_by(
        &mut self,
        statement: &str,
        topic: &Topic,
        worker: &WorkerId,
        max: i64,
        lease: i64,
    ) -> sqlx::Result<Vec<TakenRow>> {
        sqlx::query_as(AssertSqlSafe(statement.to_owned()))
            .bind(topic.as_str().to_owned())
            .bind(max)
            .bind(worker.as_str().to_owned())
            .bind(lease)
            .bind(self.now.wall)
            .bind(self.now.lease)
            .fetch_all(&mut *self.connection)
            .await
    }

    pub(crate) async fn extend(&mut self, delivery: Delivery, lease: i64) -> sqlx::Result<bool> {
        let query = query(&self.statements.extend).bind(delivery.job).bind(delivery.number).bind(lease);
        self.found(query).await
    }

    /// The topic of a job that goes on because it was signalled, when the delivery holds its lease.
    pub(crate) async fn acknowledge(&mut self, delivery: Delivery) -> sqlx::Result<Option<Option<String>>> {
        let finish = query(&self.statements.finish).bind(delivery.job).bind(delivery.number);
        if self.found(finish).await? {
            return Ok(Some(None));
        }
        Ok(self.renew(delivery).await?.map(Some))
    }

    async fn renew(&mut self, delivery: Delivery) -> sqlx::Result<Option<String>> {
        self.topic_of(query(&self.statements.renew).bind(delivery.job).bind(delivery.number)).await
    }

    async fn topic_of(&mut self, query: Query<'_>) -> sqlx::Result<Option<String>> {
        use sqlx::Row as _;
        let query = self.timed(query);
        let rows = query.fetch_all(&mut *self.connection).await?;
        rows.first().map(|row| row.try_get(0)).transpose()
    }

    pub(crate) async fn give_back(&mut self, delivery: Delivery, at: i64) -> sqlx::Result<Option<String>> {
        self.topic_of(query(&self.statements.give_back).bind(delivery.job).bind(delivery.number).bind(at))
            .await
    }

    /// The topic of the job, and whether it goes on because it was signalled.
    pub(crate) async fn park(
        &mut self,
        delivery: Delivery,
        reason: &str,
    ) -> sqlx::Result<Option<(String, bool)>> {
        let park = query(&self.statements.park)
            .bind(delivery.job)
            .bind(delivery.number)
            .bind(reason.as_bytes().to_vec());
        if let Some(topic) = self.topic_of(park).await? {
            return Ok(Some((topic, false)));
        }
        Ok(self.renew(delivery).await?.map(|topic| (topic, true)))
    }

    pub(crate) async fn requeue(&mut self, topic: &Topic, job: i64) -> sqlx::Result<bool> {
        self.found(query(&self.statements.requeue).bind(topic.as_str().to_owned()).bind(job)).await
    }

    /// How many were forgotten, at most [`FORGET_STEP`].
    pub(crate) async fn forget_parked(&mut self, older_than: i64) -> sqlx::Result<u64> {
        let query = query(&self.statements.forget_parked).bind(older_than).bind(FORGET_STEP);
        Ok(self.timed(query).execute(&mut *self.connection).await?.rows_affected())
    }
}

/// How many pages of the file hold something.
pub(crate) async fn used_pages(connection: &mut SqliteConnection) -> sqlx::Result<u64> {
    let all: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&mut *connection).await?;
    let free: i64 = sqlx::query_scalar("PRAGMA freelist_count").fetch_one(connection).await?;
    Ok(u64::try_from(all.saturating_sub(free)).unwrap_or(0))
}

pub(crate) async fn parked(
    readers: &SqlitePool,
    statements: &Statements,
    topic: &Topic,
    after: i64,
    limit: i64,
) -> Result<Vec<ParkedRow>> {
    sqlx::query_as(AssertSqlSafe(statements.parked.clone()))
        .bind(topic.as_str().to_owned())
        .bind(after)
        .bind(limit)
        .fetch_all(readers)
        .await
        .map_err(|error| not_applied("queue.parked", error))
}

pub(crate) async fn stats(
    readers: &SqlitePool,
    statements: &Statements,
    topic: &Topic,
    now: Now,
) -> Result<(i64, i64, i64, i64)> {
    sqlx::query_as(AssertSqlSafe(statements.stats.clone()))
        .bind(topic.as_str().to_owned())
        .bind(now.wall)
        .bind(now.lease)
        .fetch_one(readers)
        .await
        .map_err(|error| not_applied("queue.stats", error))
}
