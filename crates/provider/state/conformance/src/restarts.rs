//! Opening a durable store anew.

use flames_state::{Check, Commit};

use crate::Fixture;
use crate::support::{append, delete, everything, key, payloads, put, value_of, whole_log};

pub(crate) async fn what_was_committed_survives_a_reopen(fixture: &dyn Fixture) {
    let store = fixture.store();
    let version = put(&store, &key("kept"), "1").await;
    put(&store, &key("deleted"), "1").await;
    delete(&store, &key("deleted")).await;
    store
        .commit(Commit::new().put(key("large"), vec![7; 200_000]).append(key("log"), "entry"))
        .await
        .unwrap();
    let (entries, log) = (everything(&store).await, whole_log(&store, &key("log")).await);
    drop(store);
    for _ in 0..2 {
        fixture.reopen().await;
        let store = fixture.store();
        assert!(everything(&store).await == entries, "the entries, with their versions");
        assert_eq!(whole_log(&store, &key("log")).await, log);
        assert_eq!(value_of(&store, &key("deleted")).await, None);
    }
    let mut commit = Commit::new();
    commit.check(Check::At(key("kept"), version)).put(key("kept"), "2");
    fixture.store().commit(&commit).await.unwrap();
}

pub(crate) async fn a_version_is_not_given_again_after_a_reopen(fixture: &dyn Fixture) {
    let a = key("a");
    let mut given = Vec::new();
    for _ in 0..4 {
        let store = fixture.store();
        let version = put(&store, &a, "same").await;
        assert!(!given.contains(&version), "{version:?} was given before");
        given.push(version);
        delete(&store, &a).await;
        drop(store);
        fixture.reopen().await;
    }
}

pub(crate) async fn a_log_goes_on_behind_its_end_after_a_reopen(fixture: &dyn Fixture) {
    let log = key("log");
    append(&fixture.store(), &log, "0").await;
    fixture.reopen().await;
    append(&fixture.store(), &log, "1").await;
    let entries = whole_log(&fixture.store(), &log).await;
    assert_eq!(payloads(&entries), ["0", "1"]);
    fixture.store().trim_log(&log, entries[1].position).await.unwrap();
    fixture.reopen().await;
    append(&fixture.store(), &log, "2").await;
    let behind = fixture.store().read_log(&log, entries[1].position, 10).await.unwrap();
    assert_eq!(payloads(&behind), ["2"], "a position was given again after all entries were trimmed");
}
