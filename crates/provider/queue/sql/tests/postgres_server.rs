//! What the Postgres adapter promises beyond the suite: its schema, several processes, and what a user is told when the server cannot be used.
//! Needs the server that `FLAMES_TEST_POSTGRES` names; without it each test is listed as ignored.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

#[path = "server/schema.rs"]
mod schema;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flames_clock::{ClockExt, SystemClock};
use flames_conformance_runner::{Row, Suite, run, table};
use flames_error::{Error, ErrorKind};
use flames_queue::{EnqueueOptions, Job, Topic, WorkQueue, WorkerId};
use flames_queue_sql::{PostgresQueue, PostgresQueueConfig};
use flames_test_servers::shared;
use futures::StreamExt;
use futures::future::join_all;
use schema::{Schema, run_raw};

async fn try_open(config: PostgresQueueConfig) -> Result<PostgresQueue, Error> {
    PostgresQueue::open(config, Arc::new(SystemClock::new())).await
}

async fn open(schema: &Schema) -> PostgresQueue {
    try_open(schema.config()).await.unwrap()
}

fn topic() -> Topic {
    Topic::new("vms").unwrap()
}

async fn add(queue: &PostgresQueue, payload: impl Into<Bytes>) {
    queue.enqueue(&topic(), payload.into(), EnqueueOptions::default()).await.unwrap();
}

async fn take(queue: &PostgresQueue, max: usize) -> Vec<Job> {
    let worker = WorkerId::new("worker").unwrap();
    queue.dequeue(&topic(), &worker, max, Duration::from_secs(60)).await.unwrap()
}

/// What a user reads of an error, when it says what it must: which provider, which setting.
fn told(error: &Error, kind: ErrorKind, setting: &str, advice: &str) {
    let sentence = error.user_message().unwrap();
    assert_eq!(error.kind(), kind, "{error:?}");
    assert!(sentence.starts_with(&format!("Queue `postgres`, setting `{setting}`: ")), "{sentence}");
    assert!(sentence.contains(advice) && !sentence.contains('\n'), "{sentence}");
}

mod tests {
    use super::*;

    pub(crate) async fn many_that_open_at_once_make_one_schema(schema: &Schema) {
        let queues = join_all((0..8).map(|_| open(schema))).await;
        add(&queues[0], "a").await;
        let job = take(&queues[1], 1).await.remove(0);
        queues[2].ack(&job.lease.token).await.unwrap();
        assert_eq!(queues[3].stats(&topic()).await.unwrap(), Default::default());
    }

    pub(crate) async fn a_newer_schema_is_refused_and_left_as_it_is(schema: &Schema) {
        open(schema).await.close().await.unwrap();
        run_raw(&schema.url, &[&format!("UPDATE {}.meta SET schema_version = 2", schema.name)]).await;
        let error = try_open(schema.config()).await.unwrap_err();
        told(&error, ErrorKind::NotSupported, "schema", "newer version");
    }

    pub(crate) async fn a_wrong_password_is_told_with_what_to_do(schema: &Schema) {
        let user = format!("{}_user", schema.name);
        let create = format!("CREATE ROLE {user} LOGIN PASSWORD 'right'");
        run_raw(&schema.url, &[&create]).await;
        let server = schema.url.rsplit_once('@').unwrap().1;
        let config = |password: &str| PostgresQueueConfig {
            url: format!("postgres://{user}:{password}@{server}"),
            ..schema.config()
        };
        let wrong = try_open(config("wrong")).await.unwrap_err();
        let right = try_open(config("right")).await.unwrap_err();
        run_raw(&schema.url, &[&format!("DROP ROLE {user}")]).await;
        told(&wrong, ErrorKind::PermissionDenied, "url", "Correct the user or the password");
        assert!(!format!("{wrong:?}").contains("wrong@"), "no password is shown");
        told(&right, ErrorKind::PermissionDenied, "url", "Grant it CREATE");
    }

    pub(crate) async fn a_missing_database_is_told_with_what_to_do(schema: &Schema) {
        let (server, _) = schema.url.rsplit_once('/').unwrap();
        let config = PostgresQueueConfig { url: format!("{server}/nowhere"), ..schema.config() };
        let error = try_open(config).await.unwrap_err();
        told(&error, ErrorKind::Unavailable, "url", "has no database `nowhere`");
    }

    pub(crate) async fn a_server_that_is_not_there_is_told_with_what_to_do(schema: &Schema) {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("postgres://a:b@127.0.0.1:{port}/c");
        let error = try_open(PostgresQueueConfig { url, ..schema.config() }).await.unwrap_err();
        told(&error, ErrorKind::Unavailable, "url", "cannot be reached");
    }

    pub(crate) async fn a_server_that_says_nothing_is_told_within_the_deadline(schema: &Schema) {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("postgres://a:b@{}/c", silent.local_addr().unwrap());
        let operation_deadline = Duration::from_millis(500);
        let began = Instant::now();
        let config = PostgresQueueConfig { url, operation_deadline, ..schema.config() };
        let error = try_open(config).await.unwrap_err();
        told(&error, ErrorKind::Unavailable, "url", "cannot be reached");
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    pub(crate) async fn what_is_no_address_or_no_name_is_refused(schema: &Schema) {
        let config = PostgresQueueConfig { url: "mysql:/x".to_owned(), ..schema.config() };
        told(&try_open(config).await.unwrap_err(), ErrorKind::InvalidInput, "url", "postgres://user");
        for name in ["", "Upper", "1st", "pg_own", "a\"; DROP", &"x".repeat(49)] {
            let config = PostgresQueueConfig { schema: name.to_owned(), ..schema.config() };
            told(&try_open(config).await.unwrap_err(), ErrorKind::InvalidInput, "schema", "1 to 48");
        }
    }

    pub(crate) async fn a_hint_reaches_another_process(schema: &Schema) {
        let (here, there) = (open(schema).await, open(schema).await);
        let mut hints = there.wakeups(&topic()).await.unwrap();
        let limit = Duration::from_secs(10);
        // The connection that listens may have hinted when it came up; what is enqueued is hinted after that.
        tokio::time::sleep(Duration::from_millis(200)).await;
        while SystemClock::new().timeout(Duration::from_millis(50), hints.next()).await.is_ok() {}
        add(&here, "a").await;
        assert_eq!(SystemClock::new().timeout(limit, hints.next()).await, Ok(Some(())));
        assert_eq!(take(&there, 1).await.len(), 1);
        there.close().await.unwrap();
        let end = async { while hints.next().await.is_some() {} };
        SystemClock::new().timeout(limit, end).await.unwrap();
        let closed = there.stats(&topic()).await.unwrap_err();
        assert_eq!(closed.kind(), ErrorKind::Unavailable);
    }

    pub(crate) async fn a_lease_of_tables_that_stood_here_before_settles_nothing(schema: &Schema) {
        let queue = open(schema).await;
        add(&queue, "a").await;
        let old = take(&queue, 1).await.remove(0);
        run_raw(&schema.url, &[&format!("DROP SCHEMA {} CASCADE", schema.name)]).await;
        let queue = open(schema).await;
        add(&queue, "b").await;
        let new = take(&queue, 1).await.remove(0);
        assert_eq!(old.id, new.id, "the new table counts from the start");
        assert_eq!(queue.ack(&old.lease.token).await.unwrap_err().kind(), ErrorKind::LeaseLost);
        queue.ack(&new.lease.token).await.unwrap();
    }

    pub(crate) async fn parked_jobs_are_forgotten_after_their_retention_and_not_before(schema: &Schema) {
        let queue = open(schema).await;
        let insert = format!(
            "INSERT INTO {}.job (topic, payload, priority, state, ready_at, parked_at, reason) SELECT 'vms', '', 0, 3, 0, \
             extract(epoch FROM now()) * 1000 - CASE WHEN n > 100 THEN 3600000 ELSE 0 END, '' FROM generate_series(1, 1200) AS n",
            schema.name
        );
        run_raw(&schema.url, &[&insert]).await;
        assert_eq!(queue.stats(&topic()).await.unwrap().parked, 1_200);
        let retention = Some(Duration::from_secs(1_800));
        let config = PostgresQueueConfig { parked_retention: retention, ..schema.config() };
        let forgetful = try_open(config).await.unwrap();
        let mut left = 1_200;
        for _ in 0..100 {
            left = forgetful.stats(&topic()).await.unwrap().parked;
            if left <= 100 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(left, 100, "the old ones are gone, the others stay");
    }

    pub(crate) async fn every_statement_goes_down_its_index(schema: &Schema) {
        // With many rows in every state, a plan that reads the table would show at once.
        let queue = open(schema).await;
        let insert = format!(
            "INSERT INTO {}.job (topic, dedupe_key, payload, priority, state, ready_at, leased_until, parked_at, reason) \
             SELECT 'other', decode(md5(n::text), 'hex'), '', 0, n % 4, 32503680000000, 32503680000000, 32503680000000, '' \
             FROM generate_series(1, 40000) AS n",
            schema.name
        );
        let table = format!("'{}.job'::regclass", schema.name);
        run_raw(&schema.url, &[&insert]).await;
        add(&queue, "a").await;
        for job in take(&queue, 1).await {
            queue.extend(&job.lease.token, Duration::from_secs(9)).await.unwrap();
            queue.park(&job.lease.token, "").await.unwrap();
            queue.requeue(&topic(), &job.id).await.unwrap();
        }
        for job in take(&queue, 1).await {
            queue.ack(&job.lease.token).await.unwrap();
        }
        join_all((0..40).map(|n| add(&queue, format!("{n}")))).await;
        let jobs = take(&queue, 64).await;
        for acknowledged in join_all(jobs.iter().map(|job| queue.ack(&job.lease.token))).await {
            acknowledged.unwrap();
        }
        let _ = queue.parked(&topic(), None, 10).await.unwrap();
        let _ = queue.stats(&topic()).await.unwrap();
        queue.close().await.unwrap();
        // Statistics are written when a session ends.
        let mut read = u64::MAX;
        for _ in 0..50 {
            let query = format!("SELECT seq_tup_read FROM pg_stat_all_tables WHERE relid = {table}");
            let mut connection =
                <sqlx::PgConnection as sqlx::Connection>::connect(&schema.url).await.unwrap();
            let found: i64 =
                sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(&mut connection).await.unwrap();
            read = u64::try_from(found).unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(read < 40_000, "{read} rows were read by walking through the table");
    }
}

fn rows() -> Vec<Row<Box<Schema>>> {
    table![
        tests:
            many_that_open_at_once_make_one_schema,
            a_newer_schema_is_refused_and_left_as_it_is,
            a_wrong_password_is_told_with_what_to_do,
            a_missing_database_is_told_with_what_to_do,
            a_server_that_is_not_there_is_told_with_what_to_do,
            a_server_that_says_nothing_is_told_within_the_deadline,
            what_is_no_address_or_no_name_is_refused,
            a_hint_reaches_another_process,
            a_lease_of_tables_that_stood_here_before_settles_nothing,
            parked_jobs_are_forgotten_after_their_retention_and_not_before,
            every_statement_goes_down_its_index,
    ]
}

fn main() -> ExitCode {
    let fresh = || async { Box::new(Schema::new()) };
    run(Suite::own_tests("queue-postgres-server", "postgres", shared::postgres().err(), rows(), fresh))
}
