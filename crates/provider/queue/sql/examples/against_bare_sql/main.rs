//! The queues against bare SQL that does the same work on the same server, or in a file beside, in the same run. What counts are the ratios.
//!
//! `FLAMES_TEST_POSTGRES=postgres://… cargo run --release -p flames-queue-sql --all-features --example against_bare_sql [FOLDER]`
//!
//! FOLDER (default: the system's temporary folder) holds the SQLite files. Bars: a job's way (enqueue, dequeue, ack) at ≥ 0.85 of the bare
//! throughput and ≤ 1.2 of its p99; batches of 32 on Postgres ≥ 5 times as many jobs as one at a time; ≤ 1.2 times as slow with 1,000,000
//! old jobs in the table. The program ends with 1 when one is missed.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod bare;
mod rounds;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bare::{BareSqlite, Dedicated, Pooled};
use flames_clock::{RandomExt, SystemClock, SystemRandom};
use flames_queue::{EnqueueOptions, Topic, WorkQueue, WorkerId};
use flames_queue_sql::{PostgresQueue, PostgresQueueConfig, SqliteQueue, SqliteQueueConfig};
use rounds::{Figure, Subject, compare};
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};

/// A job of the house carries a key.
pub(crate) const PAYLOAD: &[u8] = b"default/vm/vm_0197f3a2b4c5d6e7f80112233445566";
/// So many old jobs stand in the table for the last part.
const OLD: u32 = 1_000_000;

/// One client takes a job all its way; with a batch, so many at once.
struct Queue {
    queue: Arc<dyn WorkQueue>,
    topic: Topic,
    worker: WorkerId,
    batch: usize,
}

impl Queue {
    fn shared(queue: &Arc<dyn WorkQueue>, batch: usize) -> Arc<dyn Subject> {
        let (topic, worker) = (Topic::new("vms").unwrap(), WorkerId::new("bench").unwrap());
        Arc::new(Self { queue: Arc::clone(queue), topic, worker, batch })
    }
}

#[async_trait::async_trait]
impl Subject for Queue {
    async fn way_of_jobs(&self, _client: usize) -> usize {
        let payload = || bytes::Bytes::from_static(PAYLOAD);
        let lease = Duration::from_secs(60);
        if self.batch == 1 {
            self.queue.enqueue(&self.topic, payload(), EnqueueOptions::default()).await.unwrap();
            let jobs = self.queue.dequeue(&self.topic, &self.worker, 1, lease).await.unwrap();
            for job in &jobs {
                self.queue.ack(&job.lease.token).await.unwrap();
            }
            return jobs.len();
        }
        let enqueues =
            (0..self.batch).map(|_| self.queue.enqueue(&self.topic, payload(), EnqueueOptions::default()));
        for enqueued in futures::future::join_all(enqueues).await {
            enqueued.unwrap();
        }
        let jobs = self.queue.dequeue(&self.topic, &self.worker, self.batch, lease).await.unwrap();
        let acks = jobs.iter().map(|job| self.queue.ack(&job.lease.token));
        for acknowledged in futures::future::join_all(acks).await {
            acknowledged.unwrap();
        }
        jobs.len()
    }
}

struct Verdict(bool);

impl Verdict {
    fn throughput(&mut self, what: &str, ours: &Figure, bare: &Figure, bar: f64) {
        let ratio = ours.per_second / bare.per_second;
        self.say(what, "throughput", ratio, ratio >= bar, &format!("bar ≥ {bar}"));
    }
    fn p99(&mut self, what: &str, ours: &Figure, bare: &Figure, bar: f64) {
        let ratio = ours.p99.as_secs_f64() / bare.p99.as_secs_f64();
        self.say(what, "p99", ratio, ratio <= bar, &format!("bar ≤ {bar}"));
    }
    fn say(&mut self, what: &str, of: &str, ratio: f64, holds: bool, bar: &str) {
        println!("  {what}: {of} ratio {ratio:.2} ({bar}){}", if holds { "" } else { "  MISSED" });
        self.0 &= holds;
    }
}

async fn open_postgres(url: &str, schema: &str) -> Arc<dyn WorkQueue> {
    let config = PostgresQueueConfig { schema: schema.to_owned(), ..PostgresQueueConfig::at(url) };
    Arc::new(PostgresQueue::open(config, Arc::new(SystemClock::new())).await.unwrap())
}

async fn open_sqlite(path: PathBuf) -> Arc<dyn WorkQueue> {
    Arc::new(SqliteQueue::open(SqliteQueueConfig::at(path), Arc::new(SystemClock::new())).await.unwrap())
}

/// Old jobs of the topic that is measured: parked ones, delayed ones, and ready ones of another topic, a third each. All with dedupe keys.
fn old_jobs(table: &str, numbers: &str, hex: &str) -> String {
    format!(
        "INSERT INTO {table} (topic, dedupe_key, payload, priority, state, ready_at, attempts, deliveries, parked_at, reason) \
         SELECT CASE WHEN n % 3 = 2 THEN 'other' ELSE 'vms' END, {hex}, {hex}, 0, \
         CASE n % 3 WHEN 0 THEN 3 WHEN 1 THEN 1 ELSE 0 END, CASE WHEN n % 3 = 1 THEN 32503680000000 ELSE n END, 1, 1, \
         CASE WHEN n % 3 = 0 THEN 32503680000000 END, CASE WHEN n % 3 = 0 THEN {hex} END FROM {numbers}"
    )
}

async fn postgres(url: &str, verdict: &mut Verdict) {
    let schema = format!("bench_{:016x}", SystemRandom.next_u64());
    let mut admin = PgConnection::connect(url).await.unwrap();
    let queue = open_postgres(url, &schema).await;
    bare::make_table(&mut admin, &schema).await;
    for clients in [1, 8] {
        let ours = Queue::shared(&queue, 1);
        let pooled: Arc<dyn Subject> = Arc::new(Pooled::new(url, &schema).await);
        let dedicated: Arc<dyn Subject> = Arc::new(Dedicated::new(url, &schema, clients).await);
        let subjects = [("queue", ours), ("bare, sqlx pool", pooled), ("bare, a connection each", dedicated)];
        println!("Postgres, {clients} clients, one job at a time");
        let [queue, pooled, dedicated] = compare(clients, subjects).await;
        verdict.throughput("against the pool", &queue, &pooled, 0.85);
        verdict.p99("against the pool", &queue, &pooled, 1.2);
        verdict.throughput("against a connection each", &queue, &dedicated, 0.85);
        verdict.p99("against a connection each", &queue, &dedicated, 1.2);
    }
    for clients in [1, 4] {
        println!("Postgres, {clients} clients, batches of 32");
        let (one, batch) = (Queue::shared(&queue, 1), Queue::shared(&queue, 32));
        let [one, batch] = compare(clients, [("one at a time", one), ("batches", batch)]).await;
        verdict.throughput("batches against one at a time", &batch, &one, 5.0);
    }
    let full = format!("{schema}_full");
    let crowded = open_postgres(url, &full).await;
    let numbers = format!("generate_series(1, {OLD}) AS n");
    let insert = old_jobs(&format!("{full}.job"), &numbers, "decode(md5(n::text), 'hex')");
    for statement in [insert, format!("VACUUM ANALYZE {full}.job"), "CHECKPOINT".to_owned()] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut admin).await.unwrap();
    }
    for batch in [1, 32] {
        println!("Postgres, 4 clients, batches of {batch}, {OLD} old jobs");
        let (empty, crowded) = (Queue::shared(&queue, batch), Queue::shared(&crowded, batch));
        let [empty, crowded] = compare(4, [("empty table", empty), ("with old jobs", crowded)]).await;
        verdict.throughput("with old jobs", &crowded, &empty, 1.0 / 1.2);
    }
    for schema in [&schema, &full] {
        let drop = format!("DROP SCHEMA {schema} CASCADE");
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut admin).await.unwrap();
    }
}

async fn sqlite(folder: &std::path::Path, verdict: &mut Verdict) {
    let queue = open_sqlite(folder.join("queue.db")).await;
    for clients in [1, 8] {
        let ours = Queue::shared(&queue, 1);
        let bare: Arc<dyn Subject> =
            Arc::new(BareSqlite::new(&folder.join(format!("bare-{clients}.db"))).await);
        println!("SQLite, {clients} clients, one job at a time");
        let [queue, bare] = compare(clients, [("queue", ours), ("bare, one connection", bare)]).await;
        verdict.throughput("against bare SQL", &queue, &bare, 0.85);
        verdict.p99("against bare SQL", &queue, &bare, 1.2);
    }
    let path = folder.join("full.db");
    let crowded = open_sqlite(path.clone()).await;
    let mut admin = SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.unwrap();
    let numbers = format!(
        "(WITH RECURSIVE numbers(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM numbers WHERE n < {OLD}) SELECT n FROM numbers)"
    );
    let insert = old_jobs("job", &numbers, "CAST(n * 1000003 AS BLOB)");
    // What so large an insert leaves to be done is done before anything is measured.
    for statement in [insert, "PRAGMA wal_checkpoint(TRUNCATE)".to_owned()] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut admin).await.unwrap();
    }
    admin.close().await.unwrap();
    for clients in [1, 8] {
        println!("SQLite, {clients} clients, {OLD} old jobs");
        let (empty, crowded) = (Queue::shared(&queue, 1), Queue::shared(&crowded, 1));
        let [empty, crowded] = compare(clients, [("empty file", empty), ("with old jobs", crowded)]).await;
        verdict.throughput("with old jobs", &crowded, &empty, 1.0 / 1.2);
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut verdict = Verdict(true);
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let folder = tempfile::tempdir_in(parent).unwrap();
    match std::env::var("FLAMES_TEST_POSTGRES") {
        Ok(url) => postgres(&url, &mut verdict).await,
        Err(_) => println!("FLAMES_TEST_POSTGRES is not set: nothing about Postgres."),
    }
    sqlite(folder.path(), &mut verdict).await;
    drop(folder);
    std::process::exit(i32::from(!verdict.0));
}
