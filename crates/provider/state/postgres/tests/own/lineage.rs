//! Transaction ids that go back: failover, restore, another server.

use flames_state::{Check, Commit, Position, StateStore};

use crate::{Database, append, key, log, payloads, put};

/// Makes the store believe that it was last used on another server or timeline, whose transaction ids were far ahead of this one's.
async fn as_if_used_elsewhere(database: &Database, change: &str) {
    let mut connection = database.connection().await;
    let sql = format!(
        "UPDATE {{s}}.lineage SET {change}; UPDATE {{s}}.entry SET version = version + 1000000; \
         UPDATE {{s}}.log SET major = major + 1000000"
    );
    database.execute(&mut connection, &sql).await;
}

pub(crate) async fn after_a_failover_or_restore_versions_and_positions_go_on_behind_all_others(
    database: &Database,
) {
    let mut generation = 0;
    for change in ["timeline = timeline + 7", "system_identifier = 1", "timeline = 0"] {
        let store = database.open().await;
        put(&store, "a", "before").await;
        append(&store, "log", "before").await;
        store.close().await;
        as_if_used_elsewhere(
            database,
            &format!("{change} WHERE generation = (SELECT max(generation) FROM {{s}}.lineage)"),
        )
        .await;

        let store = database.open().await;
        let before = store.get(&key("a")).await.unwrap().unwrap().version;
        let last = log(&store, "log", Position::START).await.unwrap().last().unwrap().position;
        let mut commit = Commit::new();
        commit.check(Check::At(key("a"), before)).put(key("a"), "after").append(key("log"), "after");
        let after = store.commit(&commit).await.unwrap().version;
        assert!(after.as_raw() > before.as_raw(), "{change}: {before:?}, then {after:?}");
        let entries = log(&store, "log", last).await.unwrap();
        assert_eq!(payloads(&entries), ["after"], "{change}: nothing hides behind {last}");
        generation += 1;
        assert_eq!(after.as_raw() >> 48, generation, "{change}");
        store.close().await;
    }
    // Opened again on the same server, it stays in its generation.
    let store = database.open().await;
    assert_eq!(put(&store, "a", "again").await.as_raw() >> 48, generation);
}

pub(crate) async fn a_connection_made_after_a_failover_begins_the_generation(database: &Database) {
    let mut config = database.config();
    config.max_connections = 1;
    let store = crate::open(config).await.unwrap();
    let before = put(&store, "a", "before").await;
    as_if_used_elsewhere(database, "timeline = timeline + 7").await;
    // The connections to the old server are gone, and the store was never opened anew.
    drop(store.connection().await.unwrap());
    let after = put(&store, "a", "after").await;
    assert!(after.as_raw() > before.as_raw() + 1_000_000, "{before:?}, then {after:?}");
}
