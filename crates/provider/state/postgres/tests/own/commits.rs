//! Commits.

use std::sync::Arc;
use std::time::Duration;

use flames_error::ErrorKind;
use flames_state::{Check, Commit, StateStore};
use futures::future::join_all;

use sqlx::PgConnection;

use crate::{Database, key, lock_number, put};

/// Makes the first `times` writes of an entry fail as a lost race does. A sequence goes on though the transaction is rolled back.
async fn fail_writes(database: &Database, times: u32) {
    let mut connection = database.connection().await;
    let sql = format!(
        "CREATE SEQUENCE {{s}}.tries; \
         CREATE FUNCTION {{s}}.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF nextval('{{s}}.tries') <= {times} THEN RAISE EXCEPTION 'lost' USING ERRCODE = '40001'; END IF; \
             RETURN NEW; END $$; \
         CREATE TRIGGER fail BEFORE INSERT ON {{s}}.entry FOR EACH ROW EXECUTE FUNCTION {{s}}.fail()"
    );
    database.execute(&mut connection, &sql).await;
}

pub(crate) async fn a_serialization_failure_is_retried_inside(database: &Database) {
    let store = database.open().await;
    fail_writes(database, 3).await;
    let mut commit = Commit::new();
    commit.put(key("a"), "1").append(key("log"), "once");
    store.commit(&commit).await.unwrap();
    let entries = crate::log(&store, "log", flames_state::Position::START).await.unwrap();
    assert_eq!(crate::payloads(&entries), ["once"]);
}

pub(crate) async fn a_conflict_that_does_not_end_is_told_after_a_few_tries(database: &Database) {
    let store = database.open().await;
    fail_writes(database, 1_000).await;
    let error = store.commit(Commit::new().put(key("a"), "1")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let mut connection = database.connection().await;
    assert_eq!(database.number(&mut connection, "SELECT last_value FROM {s}.tries").await, 5);
    assert_eq!(store.get(&key("a")).await.unwrap(), None);
}

pub(crate) async fn commits_in_opposite_order_never_deadlock(database: &Database) {
    let store = Arc::new(database.open().await);
    let mut connection = database.connection().await;
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    let before = database.number(&mut connection, deadlocks).await;
    let writers = (0..16).map(|writer| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for _ in 0..20 {
                let mut commit = Commit::new();
                let order: Vec<u32> = if writer % 2 == 0 { (0..8).collect() } else { (0..8).rev().collect() };
                for place in order {
                    let name = key(&format!("k/{place}"));
                    // Some only check what others write.
                    match (writer + place) % 3 {
                        0 => commit.check(Check::Absent(key(&format!("absent/{place}")))),
                        1 => commit.check(Check::Absent(key("never"))).put(name, "x"),
                        _ => commit.put(name, "y"),
                    };
                }
                store.commit(&commit).await.unwrap();
            }
        })
    });
    for writer in join_all(writers).await {
        writer.unwrap();
    }
    assert_eq!(database.number(&mut connection, deadlocks).await, before);
}

/// The transaction id that the server gives next. It is another's too: the server is shared.
const NEXT_ID: &str = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint";

pub(crate) async fn a_refused_commit_takes_no_transaction_id(database: &Database) {
    let store = database.open().await;
    put(&store, "a", "1").await;
    let mut connection = database.connection().await;
    let before = database.number(&mut connection, NEXT_ID).await;
    for _ in 0..300 {
        let mut commit = Commit::new();
        commit.check(Check::Absent(key("a"))).put(key("b"), "1").append(key("log"), "x");
        assert_eq!(store.commit(&commit).await.unwrap_err().kind(), ErrorKind::Conflict);
    }
    let after = database.number(&mut connection, NEXT_ID).await;
    assert!(after - before < 250, "{} transaction ids for 300 refused commits", after - before);
}

/// Begins a transaction that holds the lock of the key `a`, as a commit that takes long does.
async fn hold_a(database: &Database) -> PgConnection {
    let mut connection = database.connection().await;
    let number = lock_number(&database.schema.name, b"a");
    database.execute(&mut connection, &format!("BEGIN; SELECT pg_advisory_xact_lock({number})")).await;
    connection
}

/// Waits until a commit waits for a lock; answers how many of those have a transaction id.
async fn once_one_waits(database: &Database) -> i64 {
    let mut watcher = database.connection().await;
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND query LIKE '%\"{s}\".%'";
    while database.number(&mut watcher, waiting).await == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    database.number(&mut watcher, &(waiting.to_owned() + " AND backend_xid IS NOT NULL")).await
}

pub(crate) async fn a_commit_that_waits_for_another_takes_no_transaction_id(database: &Database) {
    let store = database.open().await;
    let version = put(&store, "a", "1").await;
    let [mut put_alone, mut checked, mut several] = [Commit::new(), Commit::new(), Commit::new()];
    checked.check(Check::At(key("a"), version)).put(key("a"), "2");
    put_alone.put(key("a"), "3");
    several.put(key("a"), "4").put(key("b"), "4").append(key("log"), "4");
    for commit in [checked, put_alone, several] {
        let mut holder = hold_a(database).await;
        let watching = async {
            assert_eq!(once_one_waits(database).await, 0, "{commit:?}");
            database.execute(&mut holder, "COMMIT").await;
        };
        let (committed, ()) = futures::join!(store.commit(&commit), watching);
        assert_eq!(store.get(&key("a")).await.unwrap().unwrap().version, committed.unwrap().version);
    }
}

pub(crate) async fn a_commit_that_waited_sees_what_the_other_left(database: &Database) {
    let store = database.open().await;
    let overwrite = "UPDATE {s}.entry SET version = version + 1, value = 'other'; COMMIT";
    let remove = "DELETE FROM {s}.entry; COMMIT";
    for (other, checks_version, holds) in
        [(overwrite, true, false), (overwrite, false, true), (remove, true, false), (remove, false, false)]
    {
        // Both ways of a commit.
        for appends in [false, true] {
            let version = put(&store, "a", "before").await;
            let check = match checks_version {
                true => Check::At(key("a"), version),
                false => Check::Present(key("a")),
            };
            let mut commit = Commit::new();
            commit.check(check.clone()).put(key("a"), "own");
            if appends {
                commit.append(key("log"), "own");
            }
            let mut holder = hold_a(database).await;
            let changing = async {
                once_one_waits(database).await;
                database.execute(&mut holder, other).await;
            };
            let (outcome, ()) = futures::join!(store.commit(&commit), changing);
            assert_eq!(outcome.is_ok(), holds, "{check:?}, {other}, appends: {appends}: {outcome:?}");
            if let Err(error) = outcome {
                assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
            }
        }
    }
}

pub(crate) async fn a_commit_is_one_round_trip(database: &Database) {
    let server = flames_server_address(&database.schema.url);
    let proxy = flames_test_servers::FaultProxy::start(server).await.unwrap();
    let mut config = database.config();
    config.url = config.url.replace(&server.to_string(), &proxy.address().to_string());
    config.max_connections = 1;
    let store = crate::open(config).await.unwrap();
    let mut commit = Commit::new();
    for place in 0..20 {
        commit.check(Check::Absent(key(&format!("no/{place}"))));
        commit.put(key(&format!("k/{place}")), "v").append(key("log"), "x");
    }
    commit.delete(key("gone"));
    // The statement is prepared.
    store.commit(&commit).await.unwrap();
    // Each piece waits in each direction: a round trip takes at least twice that.
    let delay = Duration::from_millis(60);
    proxy.delay(delay);
    let started = std::time::Instant::now();
    store.commit(&commit).await.unwrap();
    let took = started.elapsed();
    assert!(took >= delay * 2 && took < delay * 4, "{took:?} with a round trip of {:?}", delay * 2);
}

fn flames_server_address(url: &str) -> std::net::SocketAddr {
    url.rsplit_once('@').unwrap().1.split('/').next().unwrap().parse().unwrap()
}

pub(crate) async fn a_commit_cancelled_by_an_operator_is_not_applied(database: &Database) {
    let store = database.open().await;
    put(&store, "a", "1").await;
    let mut holder = database.connection().await;
    database.execute(&mut holder, "BEGIN; LOCK TABLE {s}.entry IN ACCESS EXCLUSIVE MODE").await;
    let mut commit = Commit::new();
    commit.put(key("a"), "2");
    let cancelling = async {
        let mut operator = database.connection().await;
        let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity \
                      WHERE wait_event_type = 'Lock' AND query LIKE '%\"{s}\".%'";
        while database.number(&mut operator, cancel).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        database.execute(&mut holder, "COMMIT").await;
    };
    let (outcome, ()) = futures::join!(store.commit(&commit), cancelling);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(store.get(&key("a")).await.unwrap().unwrap().value, "1");
}

pub(crate) async fn a_session_that_loses_what_it_wrote_is_not_accepted(database: &Database) {
    let mut config = database.config();
    config
        .url
        .push_str("?options[synchronous_commit]=off&options[default_transaction_isolation]=serializable");
    let store = crate::open(config).await.unwrap();
    let mut connection = store.connection().await.unwrap();
    let (durable, isolation): (String, String) = sqlx::query_as(
        "SELECT current_setting('synchronous_commit'), current_setting('transaction_isolation')",
    )
    .fetch_one(&mut *connection)
    .await
    .unwrap();
    assert_eq!((durable.as_str(), isolation.as_str()), ("on", "read committed"));
}
