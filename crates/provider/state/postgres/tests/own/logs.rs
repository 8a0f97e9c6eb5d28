//! Logs while transactions are open that began before.

use std::time::Duration;

use flames_error::ErrorKind;
use flames_state::Position;

use crate::{Database, append, log, open, payloads};

/// Begins a transaction that appends and does not commit: what a slow commit is.
async fn slow_append(database: &Database, connection: &mut sqlx::PgConnection, payload: &str) {
    let sql = format!(
        "BEGIN; INSERT INTO {{s}}.log VALUES ('log', ((SELECT max(generation) FROM {{s}}.lineage)::bigint << 48) \
         | pg_current_xact_id()::text::bigint, 0, '{payload}')"
    );
    database.execute(connection, &sql).await;
}

pub(crate) async fn nothing_appears_behind_a_position_while_an_older_transaction_is_open(
    database: &Database,
) {
    let mut config = database.config();
    config.operation_deadline = Duration::from_millis(400);
    let store = open(config).await.unwrap();
    append(&store, "log", "1").await;
    let first = log(&store, "log", Position::START).await.unwrap();
    assert_eq!(payloads(&first), ["1"]);

    let mut slow = database.connection().await;
    slow_append(database, &mut slow, "2: slow").await;
    // Committed before the slow one, and behind it in the log.
    append(&store, "log", "3").await;
    append(&store, "log", "4").await;
    let error = log(&store, "log", first[0].position).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    // What lies before it is read as ever.
    assert_eq!(log(&store, "log", Position::START).await.unwrap(), first);

    database.execute(&mut slow, "COMMIT").await;
    let rest = log(&store, "log", first[0].position).await.unwrap();
    assert_eq!(payloads(&rest), ["2: slow", "3", "4"]);
    assert!(rest.is_sorted_by(|one, other| one.position < other.position), "{rest:?}");
}

pub(crate) async fn a_log_held_back_for_long_says_by_whom(database: &Database) {
    let mut config = database.config();
    config.operation_deadline = Duration::from_millis(500);
    let store = open(config).await.unwrap();
    let mut other = database.connection().await;
    database.execute(&mut other, "BEGIN; CREATE TABLE {s}.somebody_elses (id integer)").await;
    let pid = database.number(&mut other, "SELECT pg_backend_pid()::bigint").await;
    append(&store, "log", "1").await;
    let error = log(&store, "log", Position::START).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.context().contains(&("pid", pid.to_string())), "{error:?}");
    database.execute(&mut other, "ROLLBACK").await;
    assert_eq!(payloads(&log(&store, "log", Position::START).await.unwrap()), ["1"]);
}

pub(crate) async fn a_reader_that_waits_goes_on_when_the_older_transaction_ends(database: &Database) {
    let store = database.open().await;
    let mut slow = database.connection().await;
    slow_append(database, &mut slow, "slow").await;
    append(&store, "log", "quick").await;
    let ending = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        database.execute(&mut slow, "COMMIT").await;
        std::time::Instant::now()
    };
    let reading = async { (log(&store, "log", Position::START).await.unwrap(), std::time::Instant::now()) };
    let (ended, (read, read_at)) = futures::join!(ending, reading);
    assert_eq!(payloads(&read), ["slow", "quick"]);
    assert!(read_at + Duration::from_millis(20) >= ended, "read before the older one had ended");
    assert!(read_at.saturating_duration_since(ended) < Duration::from_secs(2), "read long after");
}
