//! What the SQLite adapter promises beyond the suite: its file, crashes, failures, and who may open what.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::future::poll_fn;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use flames_clock::SystemClock;
use flames_error::{Error, ErrorKind};
use flames_state::{Check, Commit, Key, KeyRange, PageRequest, Position, StateStore};
use flames_state_sqlite::{SqliteConfig, SqliteStore};
use futures::future::join_all;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqliteConnection};
use tempfile::TempDir;

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    (folder, path)
}

async fn open_with(config: SqliteConfig) -> Result<SqliteStore, Error> {
    SqliteStore::open(config, Arc::new(SystemClock::new())).await
}

async fn open(path: &Path) -> SqliteStore {
    open_with(SqliteConfig::at(path)).await.unwrap()
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

/// One line for the user that names the provider, the file, what is wrong and what to do.
fn is_clear(error: &Error, path: &Path, parts: &[&str]) {
    let line = error.user_message().unwrap_or_else(|| panic!("no line for the user: {error:?}"));
    for part in [&["sqlite", path.to_str().unwrap()], parts].concat() {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
    assert!(!line.contains('\n'), "{line:?}");
}

async fn put(store: &SqliteStore, name: &str, value: impl Into<bytes::Bytes>) -> Result<(), Error> {
    store.commit(Commit::new().put(key(name), value)).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_a_crash_at_any_later_moment() {
    let (folder, path) = folder();
    let store = open(&path).await;
    for n in 0..10 {
        store
            .commit(Commit::new().put(key(&format!("k/{n}")), "v").append(key("log"), format!("{n}")))
            .await
            .unwrap();
        // What the disk would hold if everything stopped here: nothing is closed, nothing is moved out of the -wal file.
        let crashed = folder.path().join(format!("crash-{n}.db"));
        for suffix in ["", "-wal"] {
            let of = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
            std::fs::copy(of(&path), of(&crashed)).unwrap();
        }
        let found = open(&crashed).await;
        let page = found.scan(&KeyRange::all(), PageRequest::first(100)).await.unwrap();
        assert_eq!(page.entries.len(), n + 1);
        assert_eq!(found.read_log(&key("log"), Position::START, 100).await.unwrap().len(), n + 1);
        found.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_wait_together_share_a_transaction() {
    let (_folder, path) = folder();
    let store = Arc::new(open(&path).await);
    let commits = (0..200).map(|n| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { put(&store, &format!("k/{n}"), "v").await })
    });
    for outcome in join_all(commits).await {
        outcome.unwrap().unwrap();
    }
    let shown = format!("{store:?}");
    let transactions: u64 =
        shown.split("transactions: ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
    assert!(transactions < 100, "200 commits took {transactions} transactions");
}

#[tokio::test]
async fn the_files_are_for_their_owner_alone() {
    let (folder, path) = folder();
    let store = open(&path).await;
    put(&store, "a", "secret").await.unwrap();
    let mut names = Vec::new();
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let file = file.unwrap();
        names.push(file.file_name());
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.file_name());
    }
    assert_eq!(names.len(), 3, "the file, its -wal and its -shm: {names:?}");
    store.close().await.unwrap();
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "closed in order, only the file is left"
    );
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_as_it_is() {
    let (_folder, path) = folder();
    open(&path).await.close().await.unwrap();
    run_raw(&path, &["PRAGMA user_version = 2"]).await;
    let before = std::fs::read(&path).unwrap();
    let error = open_with(SqliteConfig::at(&path)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    is_clear(&error, &path, &["newer version", "schema 2", "Use the newer version"]);
    assert!(std::fs::read(&path).unwrap() == before);
}

#[tokio::test]
async fn a_database_of_another_program_is_refused_and_left_as_it_is() {
    for statements in [
        &["CREATE TABLE notes (text)"][..],
        &["PRAGMA application_id = 7", "PRAGMA user_version = 1"][..],
        &["PRAGMA user_version = 1"][..],
    ] {
        let (_folder, path) = folder();
        run_raw(&path, statements).await;
        let before = std::fs::read(&path).unwrap();
        let error = open_with(SqliteConfig::at(&path)).await.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("path")), "{error:?}");
        is_clear(&error, &path, &["not one of Flames", "Move the file away"]);
        assert!(std::fs::read(&path).unwrap() == before);
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_and_a_folder_that_is_not_there_are_told_apart() {
    let (folder, path) = folder();
    let text = "no database".repeat(1_000);
    std::fs::write(&path, &text).unwrap();
    let error = open_with(SqliteConfig::at(&path)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    is_clear(&error, &path, &["no SQLite database", "Move the file away"]);
    assert!(std::fs::read(&path).unwrap() == text.as_bytes(), "it is left as it is");
    let nowhere = folder.path().join("nowhere/state.db");
    let error = open_with(SqliteConfig::at(&nowhere)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    is_clear(&error, &nowhere, &["folder is not there", "Make the folder"]);
}

#[tokio::test]
async fn a_store_that_is_full_says_so_and_goes_on_once_there_is_room() {
    let (_folder, path) = folder();
    let store =
        open_with(SqliteConfig { max_bytes: Some(1024 * 1024), ..SqliteConfig::at(&path) }).await.unwrap();
    let mut kept = 0;
    let refused = loop {
        match put(&store, &format!("k/{kept}"), vec![7; 100_000]).await {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept < 11, "1 MiB does not hold more than 10 of these");
    };
    assert_eq!(refused.kind(), ErrorKind::Exhausted, "{refused:?}");
    is_clear(&refused, &path, &["configured size", "Make room"]);
    assert_eq!(store.get(&key(&format!("k/{kept}"))).await.unwrap(), None, "what was refused is not there");
    assert_eq!(
        store.get(&key("k/0")).await.unwrap().unwrap().value.len(),
        100_000,
        "what was there still is"
    );
    store.commit(Commit::new().delete(key("k/0")).delete(key("k/1"))).await.unwrap();
    put(&store, "after", vec![7; 100_000]).await.unwrap();
}

#[tokio::test]
async fn a_commit_that_fails_at_its_very_end_is_of_unknown_outcome_and_the_next_one_works() {
    let (_folder, path) = folder();
    open(&path).await.close().await.unwrap();
    // A deferred constraint is judged by COMMIT itself.
    let trap = [
        "CREATE TABLE parent (id INTEGER PRIMARY KEY)",
        "CREATE TABLE child (parent INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)",
        "CREATE TRIGGER trap AFTER INSERT ON entry WHEN NEW.key = CAST('trap' AS BLOB) \
         BEGIN INSERT INTO child VALUES (99); END",
    ];
    run_raw(&path, &trap).await;
    let store = open(&path).await;
    put(&store, "a", "1").await.unwrap();
    let (trapped, beside) = tokio::join!(put(&store, "trap", "1"), put(&store, "b", "1"));
    assert_eq!(trapped.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    assert!(
        beside.is_ok() || beside.unwrap_err().kind() == ErrorKind::OutcomeUnknown,
        "it may share the transaction"
    );
    put(&store, "c", "1").await.unwrap();
    assert_eq!(store.get(&key("trap")).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_another_process_writes_commits_are_unavailable_and_reads_go_on() {
    let (_folder, path) = folder();
    // SQLite gives up at the half of it; a host that stands still meanwhile must not make the other half pass.
    let operation_deadline = Duration::from_secs(4);
    let config = SqliteConfig { operation_deadline, ..SqliteConfig::at(&path) };
    let store = open_with(config).await.unwrap();
    put(&store, "a", "1").await.unwrap();
    let mut other = raw(&path).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let refused = put(&store, "a", "2").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused:?}");
    assert_eq!(store.get(&key("a")).await.unwrap().unwrap().value, "1");
    sqlx::query("COMMIT").execute(&mut other).await.unwrap();
    put(&store, "a", "3").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_commits_than_can_wait_are_exhausted_within_the_deadline_and_not_applied() {
    let (_folder, path) = folder();
    let deadline = Duration::from_millis(800);
    let config = SqliteConfig { operation_deadline: deadline, ..SqliteConfig::at(&path) };
    let store = Arc::new(open_with(config).await.unwrap());
    let mut other = raw(&path).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let started = std::time::Instant::now();
    let commits = (0..1_500).map(|n| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { put(&store, &format!("k/{n:04}"), "v").await.unwrap_err().kind() })
    });
    let kinds: Vec<ErrorKind> = join_all(commits).await.into_iter().map(Result::unwrap).collect();
    assert!(started.elapsed() < deadline + Duration::from_secs(2), "they took {:?}", started.elapsed());
    let expected = [ErrorKind::Exhausted, ErrorKind::Unavailable, ErrorKind::OutcomeUnknown];
    assert!(kinds.iter().all(|kind| expected.contains(kind)), "{kinds:?}");
    let exhausted: Vec<usize> = (0..kinds.len()).filter(|n| kinds[*n] == ErrorKind::Exhausted).collect();
    assert!(exhausted.len() > 500, "only {} of 1,500 had no room", exhausted.len());
    sqlx::query("COMMIT").execute(&mut other).await.unwrap();
    put(&store, "after", "1").await.unwrap();
    for n in exhausted {
        assert_eq!(store.get(&key(&format!("k/{n:04}"))).await.unwrap(), None);
    }
}

#[tokio::test]
async fn two_stores_on_one_file_see_each_other_and_never_give_a_version_twice() {
    let (_folder, path) = folder();
    let (one, other) = (open(&path).await, open(&path).await);
    let mut versions = Vec::new();
    for round in 0..6 {
        let store = if round % 2 == 0 { &one } else { &other };
        let mut commit = Commit::new();
        commit
            .check(versions.last().map_or(Check::Absent(key("a")), |version| Check::At(key("a"), *version)));
        commit.put(key("a"), "v");
        let version = store.commit(&commit).await.unwrap().version;
        assert!(!versions.contains(&version));
        versions.push(version);
    }
}

#[tokio::test]
async fn a_closed_store_is_unavailable_and_closing_twice_does_nothing() {
    let (_folder, path) = folder();
    let store = open(&path).await;
    put(&store, "a", "1").await.unwrap();
    store.close().await.unwrap();
    store.close().await.unwrap();
    assert_eq!(put(&store, "a", "2").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(store.get(&key("a")).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(
        store.scan(&KeyRange::all(), PageRequest::first(1)).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(open(&path).await.get(&key("a")).await.unwrap().unwrap().value, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_lets_what_was_handed_in_finish() {
    let (_folder, path) = folder();
    let store = Arc::new(open(&path).await);
    let commits: Vec<_> = (0..50)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { put(&store, &format!("k/{n:02}"), "v").await })
        })
        .collect();
    tokio::task::yield_now().await;
    store.close().await.unwrap();
    let mut kept = Vec::new();
    for (n, outcome) in join_all(commits).await.into_iter().enumerate() {
        match outcome.unwrap() {
            Ok(()) => kept.push(key(&format!("k/{n:02}"))),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}"),
        }
    }
    let page = open(&path).await.scan(&KeyRange::all(), PageRequest::first(100)).await.unwrap();
    assert_eq!(
        page.entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>(),
        kept,
        "just what was answered"
    );
}

/// All contents are in the file itself: it can be copied as it is, and opening it changes nothing.
#[track_caller]
fn stands_alone(path: &Path, when: impl std::fmt::Display) {
    for left in ["state.db-wal", "state.db-shm"] {
        assert!(!path.with_file_name(left).exists(), "{when}, and the closed file has a {left} beside it");
    }
}

/// An operation whose caller goes away when it has waited for SQLite so many times; whether it was answered before.
async fn cut_short<T>(work: impl Future<Output = Result<T, Error>>, waits: usize) -> bool {
    let (mut work, mut left) = (pin!(work), waits);
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(outcome) => {
            outcome.unwrap();
            Poll::Ready(true)
        }
        Poll::Pending if left == 0 => Poll::Ready(false),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_file_stands_alone_whoever_has_read_it() {
    for _ in 0..200 {
        let (_folder, path) = folder();
        let store = open(&path).await;
        put(&store, "k", "v").await.unwrap();
        join_all((0..4).map(|_| async { store.get(&key("k")).await.unwrap() })).await;
        store.close().await.unwrap();
        stands_alone(&path, "four have read it");
    }
}

/// The file is closed in order, wherever the caller of an operation has gone away.
async fn is_closed_wherever_cut_short<T>(work: impl AsyncFn(&SqliteStore) -> Result<T, Error>) {
    for waits in 0..100 {
        let (_folder, path) = folder();
        let store = open(&path).await;
        put(&store, "k", "v").await.unwrap();
        let answered = cut_short(work(&store), waits).await;
        store.close().await.unwrap();
        stands_alone(&path, format_args!("cut short at {waits}"));
        put(&open(&path).await, "k", "next").await.unwrap();
        if answered {
            assert!(waits > 0, "it waits for SQLite");
            return;
        }
    }
    panic!("it waits for SQLite without end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_waits_for_a_commit_whose_caller_has_gone_away() {
    let mut all = Commit::new();
    for name in ["k", "l", "m"] {
        all.put(key(name), vec![7; 1 << 18]);
    }
    is_closed_wherever_cut_short(async |store| store.commit(&all).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_waits_for_a_read_whose_caller_has_gone_away() {
    is_closed_wherever_cut_short(async |store| store.get(&key("k")).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_a_commit_is_all_or_nothing_of_one_whose_caller_has_gone_away() {
    let (_folder, path) = folder();
    let store = open(&path).await;
    for waits in 0..20 {
        let number = format!("{waits}");
        let mut all = Commit::new();
        all.put(key("a"), number.clone()).put(key("b"), vec![7; 1 << 18]).put(key("c"), number.clone());
        cut_short(store.commit(&all), waits).await;
        put(&store, "next", number.clone()).await.unwrap();
        let read = async |name: &str| store.get(&key(name)).await.unwrap().map(|entry| entry.value);
        assert_eq!(read("a").await, read("c").await, "cut short at {waits}");
        assert_eq!(read("next").await.unwrap(), number);
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_dropped_store_leaves_its_file_fit_to_be_opened() {
    let (_folder, path) = folder();
    for n in 0..5 {
        let store = open(&path).await;
        put(&store, &format!("k/{n}"), "v").await.unwrap();
        // Handed in and given up: whether it is applied is open, that the file stays whole is not.
        let mut left = Commit::new();
        left.put(key("left"), "v");
        let given_up = tokio::time::timeout(Duration::from_micros(200), store.commit(&left)).await;
        drop((given_up, store));
    }
    let store = open(&path).await;
    let page = store.scan(&KeyRange::prefix(&key("k/")), PageRequest::first(10)).await.unwrap();
    assert_eq!(page.entries.len(), 5);
}

#[tokio::test]
async fn a_page_of_large_values_ends_early_and_goes_on() {
    let (_folder, path) = folder();
    let store = open(&path).await;
    for n in 0..48 {
        let mut commit = Commit::new();
        commit.put(key(&format!("k/{n:02}")), vec![7; 250_000]).append(key("log"), vec![7; 250_000]);
        store.commit(&commit).await.unwrap();
    }
    let first = store.scan(&KeyRange::all(), PageRequest::first(100)).await.unwrap();
    assert!((30..40).contains(&first.entries.len()), "8 MiB, not {} entries", first.entries.len());
    let second = store.scan(&KeyRange::all(), PageRequest { after: first.next, limit: 100 }).await.unwrap();
    assert_eq!((first.entries.len() + second.entries.len(), second.next), (48, None));
    let log = store.read_log(&key("log"), Position::START, 100).await.unwrap();
    assert!((30..40).contains(&log.len()));
    let rest = store.read_log(&key("log"), log.last().unwrap().position, 100).await.unwrap();
    assert_eq!(log.len() + rest.len(), 48);
}

#[tokio::test]
async fn a_long_log_is_trimmed_step_by_step() {
    let (_folder, path) = folder();
    let store = open(&path).await;
    for _ in 0..40 {
        let mut commit = Commit::new();
        for n in 0..60 {
            commit.append(key("log"), format!("{n}"));
        }
        store.commit(&commit).await.unwrap();
    }
    let last = Position::from_raw(u64::MAX, u64::MAX);
    store.trim_log(&key("log"), last).await.unwrap();
    assert_eq!(store.read_log(&key("log"), Position::START, 10).await.unwrap(), []);
    let mut connection = raw(&path).await;
    let left: i64 = sqlx::query_scalar(AssertSqlSafe("SELECT count(*) FROM log"))
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(left, 0);
}
