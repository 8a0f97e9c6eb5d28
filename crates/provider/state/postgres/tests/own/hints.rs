//! Hints between processes. Two stores here are two processes: they share nothing but the server.

use std::time::{Duration, Instant};

use flames_state::{Commit, Hint, HintStream, StateStore};
use futures::StreamExt;

use crate::{Database, append, key, put};

async fn next(hints: &mut HintStream) -> Option<Hint> {
    tokio::time::timeout(Duration::from_secs(3), hints.next()).await.ok().flatten()
}

pub(crate) async fn a_hint_reaches_another_process(database: &Database) {
    let (one, other) = (database.open().await, database.open().await);
    let mut hints = other.changes(&key("p/")).await.unwrap();
    put(&one, "p/a", "1").await;
    assert_eq!(next(&mut hints).await, Some(Hint::Changed(key("p/a"))));
    append(&one, "p/log", "x").await;
    assert_eq!(next(&mut hints).await, Some(Hint::Changed(key("p/log"))));
    one.commit(Commit::new().delete(key("q/b")).delete(key("p/a"))).await.unwrap();
    assert_eq!(next(&mut hints).await, Some(Hint::Changed(key("p/a"))));
    let odd = flames_state::Key::new(vec![b'p', b'/', 0, b' ', b'%', b'*', 0xff]).unwrap();
    one.commit(Commit::new().put(odd.clone(), "x")).await.unwrap();
    assert_eq!(next(&mut hints).await, Some(Hint::Changed(odd)));
}

pub(crate) async fn hints_of_many_commits_are_coalesced(database: &Database) {
    let store = database.open().await;
    let channel = format!("flames_{}", database.schema.name);
    let mut listener = sqlx::postgres::PgListener::connect(&database.schema.url).await.unwrap();
    listener.listen(&channel).await.unwrap();
    let started = Instant::now();
    for number in 0..400 {
        put(&store, &format!("k/{}", number % 10), "x").await;
    }
    let took = started.elapsed();
    let (mut notifications, mut told) = (0, std::collections::BTreeSet::new());
    while let Ok(notification) = tokio::time::timeout(Duration::from_millis(500), listener.recv()).await {
        notifications += 1;
        told.extend(notification.unwrap().payload().split(' ').skip(1).map(str::to_owned));
    }
    assert_eq!(told.len(), 10, "every key is told: {told:?}");
    // At most one in five milliseconds, and one each at begin and end.
    let most = took.as_millis() / 5 + 2;
    assert!(u128::from(notifications as u32) <= most && notifications < 400, "{notifications} in {took:?}");
}

/// Ends the sessions of this store that were last busy with such a statement.
async fn end_sessions(database: &Database, statement: &str) -> i64 {
    let mut connection = database.connection().await;
    let sql = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'flames' AND {statement}"
    );
    database.number(&mut connection, &sql).await
}

pub(crate) async fn a_listener_whose_connection_was_ended_tells_that_hints_were_lost_and_goes_on(
    database: &Database,
) {
    let (one, other) = (database.open().await, database.open().await);
    let mut hints = other.changes(&key("p/")).await.unwrap();
    drop(one.changes(&key("p/")).await.unwrap());
    let ended = end_sessions(database, "query = 'LISTEN \"flames_{s}\"'").await;
    assert_eq!(ended, 2, "one listener for each process");
    assert_eq!(next(&mut hints).await, Some(Hint::Lost));
    put(&one, "p/a", "1").await;
    assert_eq!(next(&mut hints).await, Some(Hint::Changed(key("p/a"))));
}

pub(crate) async fn a_teller_whose_connection_was_ended_goes_on(database: &Database) {
    let (one, other) = (database.open().await, database.open().await);
    let mut hints = other.changes(&key("p/")).await.unwrap();
    put(&one, "p/a", "1").await;
    assert_eq!(next(&mut hints).await, Some(Hint::Changed(key("p/a"))));
    // The store's sessions cannot be told apart by their statement, which names the channel as an argument only.
    let mut connection = database.connection().await;
    let channel = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'flames' AND query LIKE '%pg_notify%'";
    assert!(database.number(&mut connection, channel).await >= 1);
    end_sessions(database, "query LIKE '%pg_notify%'").await;
    put(&one, "p/b", "2").await;
    let told = next(&mut hints).await;
    assert!(matches!(&told, Some(Hint::Lost)) || told == Some(Hint::Changed(key("p/b"))), "{told:?}");
    put(&one, "p/c", "3").await;
    while next(&mut hints).await.unwrap() != Hint::Changed(key("p/c")) {}
}

pub(crate) async fn a_notification_in_an_unknown_form_means_that_anything_changed(database: &Database) {
    let store = database.open().await;
    let mut hints = store.changes(&key("p/")).await.unwrap();
    let mut connection = database.connection().await;
    database.execute(&mut connection, "NOTIFY \"flames_{s}\", '2 something new'").await;
    assert_eq!(next(&mut hints).await, Some(Hint::Lost));
}

pub(crate) async fn a_store_that_was_dropped_leaves_no_connection(database: &Database) {
    let mut config = database.config();
    config.url.push_str(&format!("?application_name={}", database.schema.name));
    let mut connection = database.connection().await;
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%{s}%' AND pid <> pg_backend_pid()";
    for closed in [true, false] {
        let store = crate::open(config.clone()).await.unwrap();
        let hints = store.changes(&key("p/")).await.unwrap();
        put(&store, "p/a", "1").await;
        assert!(database.number(&mut connection, sessions).await >= 2);
        if closed {
            store.close().await;
            let error = store.get(&key("p/a")).await.unwrap_err();
            assert_eq!(error.kind(), flames_error::ErrorKind::Unavailable, "{error:?}");
        }
        drop(store);
        let started = Instant::now();
        while database.number(&mut connection, sessions).await > 0 {
            assert!(started.elapsed() < Duration::from_secs(5), "sessions stay, closed: {closed}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(hints);
    }
}
