//! What the SQLite adapter promises beyond the suite: its file, crashes, failures, and who may open what.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flames_clock::{ClockExt, SystemClock};
use flames_error::{Error, ErrorKind};
use flames_queue::{EnqueueOptions, Job, Topic, WorkQueue, WorkerId};
use flames_queue_sql::{SqliteQueue, SqliteQueueConfig};
use futures::StreamExt;
use futures::future::join_all;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tempfile::TempDir;

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue.db");
    (folder, path)
}

async fn open_with(config: SqliteQueueConfig) -> Result<SqliteQueue, Error> {
    SqliteQueue::open(config, Arc::new(SystemClock::new())).await
}

async fn open(path: &Path) -> SqliteQueue {
    open_with(SqliteQueueConfig::at(path)).await.unwrap()
}

async fn raw(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).create_if_missing(true).connect().await.unwrap()
}

async fn run_raw(path: &Path, statements: &[&'static str]) {
    let mut connection = raw(path).await;
    for statement in statements {
        sqlx::query(*statement).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
}

fn topic() -> Topic {
    Topic::new("vms").unwrap()
}

async fn add(queue: &SqliteQueue, payload: impl Into<Bytes>) -> Result<(), Error> {
    queue.enqueue(&topic(), payload.into(), EnqueueOptions::default()).await.map(drop)
}

async fn take(queue: &SqliteQueue, max: usize) -> Vec<Job> {
    let worker = WorkerId::new("worker").unwrap();
    queue.dequeue(&topic(), &worker, max, Duration::from_secs(60)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_a_crash_at_any_later_moment() {
    let (folder, path) = folder();
    let queue = open(&path).await;
    for n in 0..10_u64 {
        add(&queue, "kept").await.unwrap();
        add(&queue, "done").await.unwrap();
        let jobs = take(&queue, 2).await;
        let done = jobs.iter().find(|job| job.payload == "done").unwrap();
        queue.ack(&done.lease.token).await.unwrap();
        // What the disk would hold if everything stopped here: nothing is closed, nothing is moved out of the -wal file.
        let crashed = folder.path().join(format!("crash-{n}.db"));
        for suffix in ["", "-wal"] {
            let of = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
            std::fs::copy(of(&path), of(&crashed)).unwrap();
        }
        let found = open(&crashed).await;
        let stats = found.stats(&topic()).await.unwrap();
        assert_eq!((stats.ready, stats.leased), (0, n + 1));
        found.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_that_wait_together_share_a_transaction() {
    let (_folder, path) = folder();
    let queue = Arc::new(open(&path).await);
    let enqueues = (0..200).map(|n| {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move { add(&queue, format!("{n}")).await })
    });
    for outcome in join_all(enqueues).await {
        outcome.unwrap().unwrap();
    }
    let shown = format!("{queue:?}");
    let transactions = shown.split("transactions: ").nth(1).unwrap();
    let transactions: u64 = transactions.split([',', ' ']).next().unwrap().parse().unwrap();
    assert!(transactions < 100, "200 enqueues took {transactions} transactions");
}

#[tokio::test]
async fn the_files_are_for_their_owner_alone() {
    let (folder, path) = folder();
    let queue = open(&path).await;
    add(&queue, "secret").await.unwrap();
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.file_name());
    }
    queue.close().await.unwrap();
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "closed in order, only the file is left"
    );
}

/// What a user reads of an error, when it says what it must: which provider, which setting.
fn sentence(error: &Error) -> &str {
    let sentence = error.user_message().unwrap();
    assert!(sentence.starts_with("Queue `sqlite`, setting `path`: "), "{sentence}");
    assert!(!sentence.contains('\n'), "{sentence}");
    sentence
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_as_it_is() {
    let (_folder, path) = folder();
    open(&path).await.close().await.unwrap();
    run_raw(&path, &["PRAGMA user_version = 2"]).await;
    let before = std::fs::read(&path).unwrap();
    let error = open_with(SqliteQueueConfig::at(&path)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    assert!(sentence(&error).contains("newer version"), "{error:?}");
    assert!(std::fs::read(&path).unwrap() == before);
}

#[tokio::test]
async fn a_database_of_another_program_is_refused_and_left_as_it_is() {
    for statements in [
        &["CREATE TABLE notes (text)"][..],
        // The state store's own mark: the queue has a file of its own.
        &["PRAGMA application_id = 1179405651", "PRAGMA user_version = 1"][..],
        &["PRAGMA user_version = 1"][..],
    ] {
        let (_folder, path) = folder();
        run_raw(&path, statements).await;
        let before = std::fs::read(&path).unwrap();
        let error = open_with(SqliteQueueConfig::at(&path)).await.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("path")), "{error:?}");
        assert!(sentence(&error).contains("not a queue of Flames"), "{error:?}");
        assert!(std::fs::read(&path).unwrap() == before);
    }
}

#[tokio::test]
async fn what_cannot_be_opened_is_told_with_what_to_do() {
    let (folder, path) = folder();
    std::fs::write(&path, "no database".repeat(1_000)).unwrap();
    let error = open_with(SqliteQueueConfig::at(&path)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(sentence(&error).contains("Move it away"), "{error:?}");
    let nowhere = [
        folder.path().join("nowhere/queue.db"),
        // Nobody may make a file here, whoever runs this.
        PathBuf::from("/proc/queue.db"),
        // A folder is no file.
        folder.path().to_owned(),
    ];
    for path in nowhere {
        let error = open_with(SqliteQueueConfig::at(&path)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert!(sentence(&error).contains("cannot be opened"), "{error:?}");
    }
}

#[tokio::test]
async fn a_queue_that_is_full_says_so_and_goes_on_once_there_is_room() {
    let (_folder, path) = folder();
    let config = SqliteQueueConfig { max_bytes: Some(512 * 1024), ..SqliteQueueConfig::at(&path) };
    let queue = open_with(config).await.unwrap();
    let mut kept = 0;
    let refused = loop {
        match add(&queue, vec![7; 16_000]).await {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept < 40, "512 KiB do not hold more than 32 of these");
    };
    assert_eq!(refused.kind(), ErrorKind::Exhausted, "{refused:?}");
    assert_eq!(queue.stats(&topic()).await.unwrap().ready, kept, "what was refused is not there");
    for job in take(&queue, 4).await {
        queue.ack(&job.lease.token).await.unwrap();
    }
    add(&queue, vec![7; 16_000]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_another_process_writes_changes_are_unavailable_and_reads_go_on() {
    let (_folder, path) = folder();
    // SQLite gives up at the half of it; a host that stands still meanwhile must not make the other half pass.
    let operation_deadline = Duration::from_secs(4);
    let config = SqliteQueueConfig { operation_deadline, ..SqliteQueueConfig::at(&path) };
    let queue = open_with(config).await.unwrap();
    add(&queue, "a").await.unwrap();
    let mut other = raw(&path).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let refused = add(&queue, "b").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused:?}");
    assert_eq!(queue.stats(&topic()).await.unwrap().ready, 1);
    sqlx::query("COMMIT").execute(&mut other).await.unwrap();
    add(&queue, "c").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_queues_on_one_file_share_its_jobs_without_overlap() {
    let (_folder, path) = folder();
    let queues = [Arc::new(open(&path).await), Arc::new(open(&path).await)];
    for n in 0..60 {
        add(&queues[n % 2], format!("{n}")).await.unwrap();
    }
    let workers = queues.iter().map(|queue| {
        let queue = Arc::clone(queue);
        tokio::spawn(async move {
            let mut seen = Vec::new();
            loop {
                let jobs = take(&queue, 3).await;
                if jobs.is_empty() {
                    return seen;
                }
                for job in jobs {
                    queue.ack(&job.lease.token).await.unwrap();
                    seen.push(job.id);
                }
            }
        })
    });
    let mut all: Vec<_> = join_all(workers).await.into_iter().flat_map(Result::unwrap).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 60);
}

#[tokio::test]
async fn a_lease_of_a_file_that_stood_here_before_settles_nothing() {
    let (folder, path) = folder();
    let queue = open(&path).await;
    add(&queue, "a").await.unwrap();
    let old = take(&queue, 1).await.remove(0);
    queue.close().await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let queue = open(&path).await;
    add(&queue, "b").await.unwrap();
    let new = take(&queue, 1).await.remove(0);
    assert_eq!(old.id, new.id, "the new file counts from the start");
    assert_eq!(queue.ack(&old.lease.token).await.unwrap_err().kind(), ErrorKind::LeaseLost);
    queue.ack(&new.lease.token).await.unwrap();
    drop(folder);
}

#[tokio::test]
async fn parked_jobs_are_forgotten_after_their_retention_and_not_before() {
    let (_folder, path) = folder();
    let queue = open(&path).await;
    for n in 0..1_200 {
        add(&queue, format!("{n}")).await.unwrap();
    }
    for _ in 0..5 {
        for job in take(&queue, 240).await {
            queue.park(&job.lease.token, "no").await.unwrap();
        }
    }
    queue.close().await.unwrap();
    run_raw(&path, &["UPDATE job SET parked_at = parked_at - 3600000 WHERE id <= 1100"]).await;
    let retention = Some(Duration::from_secs(1_800));
    let config = SqliteQueueConfig { parked_retention: retention, ..SqliteQueueConfig::at(&path) };
    let queue = open_with(config).await.unwrap();
    let mut left = 1_200;
    for _ in 0..100 {
        left = queue.stats(&topic()).await.unwrap().parked;
        if left <= 100 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(left, 100, "the old ones are gone, the others stay");
}

#[tokio::test]
async fn a_closed_queue_is_unavailable_its_hints_end_and_closing_twice_does_nothing() {
    let (_folder, path) = folder();
    let queue = open(&path).await;
    let mut hints = queue.wakeups(&topic()).await.unwrap();
    add(&queue, "a").await.unwrap();
    queue.close().await.unwrap();
    queue.close().await.unwrap();
    assert_eq!(add(&queue, "b").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(queue.stats(&topic()).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(queue.wakeups(&topic()).await.err().unwrap().kind(), ErrorKind::Unavailable);
    let end = async { while hints.next().await.is_some() {} };
    SystemClock::new().timeout(Duration::from_secs(10), end).await.unwrap();
    assert_eq!(open(&path).await.stats(&topic()).await.unwrap().ready, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_lets_what_was_handed_in_finish() {
    let (_folder, path) = folder();
    let queue = Arc::new(open(&path).await);
    let enqueues: Vec<_> = (0..50)
        .map(|n| {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move { add(&queue, format!("{n}")).await })
        })
        .collect();
    tokio::task::yield_now().await;
    queue.close().await.unwrap();
    let mut kept = 0;
    for outcome in join_all(enqueues).await {
        match outcome.unwrap() {
            Ok(()) => kept += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}"),
        }
    }
    assert_eq!(open(&path).await.stats(&topic()).await.unwrap().ready, kept, "just what was answered");
}
