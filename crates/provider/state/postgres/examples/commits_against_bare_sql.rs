//! Commits, gets and log appends a second through the store, and bare SQL that does the same work over the same connections, in turns.
//!
//! `FLAMES_TEST_POSTGRES=postgres://… cargo run --release -p flames-state-postgres --example commits_against_bare_sql [tasks] [seconds]`

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use flames_clock::SystemClock;
use flames_state::{Check, Commit, Key, StateStore};
use flames_state_postgres::{PostgresConfig, PostgresStore};
use sqlx::AssertSqlSafe;

const SCHEMA: &str = "measured";
/// Each round makes keys of its own.
static ROUND: AtomicUsize = AtomicUsize::new(0);

/// Operations a second and the 99th percentile, of so many tasks at once.
async fn measure<F: Future<Output = ()> + Send + 'static>(
    tasks: usize,
    time: Duration,
    operation: impl Fn(usize, usize) -> F + Send + Sync + Copy + 'static,
) -> (f64, Duration) {
    let started = Instant::now();
    let running: Vec<_> = (0..tasks)
        .map(|task| {
            tokio::spawn(async move {
                let mut took = Vec::new();
                while started.elapsed() < time {
                    let begin = Instant::now();
                    operation(task, took.len()).await;
                    took.push(begin.elapsed());
                }
                took
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in running {
        all.extend(task.await.unwrap());
    }
    all.sort();
    (all.len() as f64 / started.elapsed().as_secs_f64(), all[all.len() * 99 / 100])
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>().unwrap());
    let (tasks, seconds) = (arguments.next().unwrap_or(16), arguments.next().unwrap_or(3));
    let time = Duration::from_secs(seconds as u64);
    let mut config = PostgresConfig::at(std::env::var("FLAMES_TEST_POSTGRES").unwrap());
    config.schema = SCHEMA.to_owned();
    let store = Arc::new(PostgresStore::open(config, Arc::new(SystemClock::new())).await.unwrap());
    let mut connection = store.connection().await.unwrap();
    sqlx::raw_sql(
        "DROP TABLE IF EXISTS measured.bare, measured.bare_log; \
         CREATE TABLE measured.bare (key bytea PRIMARY KEY, version bigint NOT NULL, value bytea NOT NULL) WITH (fillfactor = 80); \
         CREATE TABLE measured.bare_log (id bigserial PRIMARY KEY, name bytea, payload bytea)",
    )
    .execute(&mut *connection)
    .await
    .unwrap();
    for task in 0..tasks {
        let key = format!("k/{task}");
        store.commit(Commit::new().put(Key::new(key.clone()).unwrap(), vec![b'x'; 700])).await.unwrap();
        sqlx::query("INSERT INTO measured.bare VALUES ($1, 0, $2)")
            .bind(key.into_bytes())
            .bind(vec![b'x'; 700])
            .execute(&mut *connection)
            .await
            .unwrap();
    }
    connection.release();
    let store: &'static PostgresStore = Box::leak(Box::new(Arc::try_unwrap(store).unwrap()));

    let put = move |task: usize, _| async move {
        let key = Key::new(format!("k/{task}")).unwrap();
        store
            .commit(Commit::new().check(Check::Present(key.clone())).put(key, vec![b'x'; 700]))
            .await
            .unwrap();
    };
    let bare_put = move |task: usize, _| async move {
        let mut connection = store.connection().await.unwrap();
        let sql = "UPDATE measured.bare SET value = $2, version = version + 1 WHERE key = $1";
        let key = format!("k/{task}").into_bytes();
        sqlx::query(sql).bind(key).bind(vec![b'x'; 700]).execute(&mut *connection).await.unwrap();
        connection.release();
    };
    // What a mutation of the service is: a record, two index keys, a due entry, an event, each with its check.
    let mutation = move |task: usize, number: usize| async move {
        let mut commit = Commit::new();
        for part in 0..4 {
            let key =
                Key::new(format!("m/{}/{task}/{number}/{part}", ROUND.load(Ordering::Relaxed))).unwrap();
            commit.check(Check::Absent(key.clone())).put(key, vec![b'x'; 300]);
        }
        commit.append(Key::new(format!("log/{task}")).unwrap(), vec![b'x'; 300]);
        store.commit(&commit).await.unwrap();
    };
    let bare_mutation = move |task: usize, number: usize| async move {
        use sqlx::Connection;
        let mut connection = store.connection().await.unwrap();
        let mut transaction = connection.begin().await.unwrap();
        let keys: Vec<Vec<u8>> = (0..4)
            .map(|part| format!("m/{}/{task}/{number}/{part}", ROUND.load(Ordering::Relaxed)).into_bytes())
            .collect();
        let values = vec![vec![b'x'; 300]; 4];
        sqlx::query(
            "INSERT INTO measured.bare SELECT k, 1, v FROM unnest($1::bytea[], $2::bytea[]) AS n(k, v)",
        )
        .bind(keys)
        .bind(values)
        .execute(&mut *transaction)
        .await
        .unwrap();
        sqlx::query("INSERT INTO measured.bare_log (name, payload) VALUES ($1, $2)")
            .bind(format!("log/{task}").into_bytes())
            .bind(vec![b'x'; 300])
            .execute(&mut *transaction)
            .await
            .unwrap();
        transaction.commit().await.unwrap();
        connection.release();
    };
    let get = move |task: usize, _| async move {
        store.get(&Key::new(format!("k/{task}")).unwrap()).await.unwrap().unwrap();
    };
    let bare_get = move |task: usize, _| async move {
        let mut connection = store.connection().await.unwrap();
        let row: (i64, Vec<u8>) = sqlx::query_as("SELECT version, value FROM measured.bare WHERE key = $1")
            .bind(format!("k/{task}").into_bytes())
            .fetch_one(&mut *connection)
            .await
            .unwrap();
        assert_eq!(row.1.len(), 700);
        connection.release();
    };

    println!("{tasks} tasks, {seconds} s each");
    for round in 0..3 {
        ROUND.store(round, Ordering::Relaxed);
        let rows = [
            ("put one key", measure(tasks, time, put).await, measure(tasks, time, bare_put).await),
            ("a mutation ", measure(tasks, time, mutation).await, measure(tasks, time, bare_mutation).await),
            ("get        ", measure(tasks, time, get).await, measure(tasks, time, bare_get).await),
        ];
        for (what, (rate, p99), (bare_rate, bare_p99)) in rows {
            println!(
                "{round} {what} {rate:8.0}/s of {bare_rate:8.0}/s = {:.2}   p99 {p99:?} of {bare_p99:?} = {:.2}",
                rate / bare_rate,
                p99.as_secs_f64() / bare_p99.as_secs_f64()
            );
        }
    }
    let mut connection = store.connection().await.unwrap();
    let gone = AssertSqlSafe(format!("DROP SCHEMA {SCHEMA} CASCADE"));
    sqlx::raw_sql(gone).execute(&mut *connection).await.unwrap();
}
