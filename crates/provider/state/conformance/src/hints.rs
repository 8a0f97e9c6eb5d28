//! Hints. They may be lost, so a case gives a store several tries before it calls them missing.

use std::time::Duration;

use flames_state::{Commit, Hint, HintStream, Key};
use futures::StreamExt;

use crate::Fixture;
use crate::support::{Store, append, delete, key, put};

const PATIENCE: Duration = Duration::from_secs(1);
const TRIES: usize = 10;

/// The next hint, if one comes in time.
async fn next(hints: &mut HintStream) -> Option<Hint> {
    tokio::time::timeout(PATIENCE, hints.next())
        .await
        .ok()
        .map(|hint| hint.expect("the stream of hints goes on"))
}

/// Changes something, until a hint about `name` comes, or one that some were lost.
async fn is_hinted(hints: &mut HintStream, name: &Key, change: impl AsyncFn()) -> bool {
    for _ in 0..TRIES {
        change().await;
        while let Some(hint) = next(hints).await {
            if hint == Hint::Lost || hint == Hint::Changed(name.clone()) {
                return true;
            }
        }
    }
    false
}

async fn change_many(store: &Store, names: &[Key]) {
    let mut commit = Commit::new();
    for name in names {
        commit.put(name.clone(), "x");
    }
    store.commit(&commit).await.unwrap();
}

pub(crate) async fn a_change_is_hinted(fixture: &dyn Fixture) {
    let store = fixture.store();
    let (a, b) = (key("p/a"), key("p/b"));
    let mut hints = store.changes(&key("p/")).await.unwrap();
    assert!(
        is_hinted(&mut hints, &a, async || {
            put(&store, &a, "1").await;
        })
        .await,
        "a put"
    );
    assert!(is_hinted(&mut hints, &a, async || delete(&store, &a).await).await, "a delete");
    assert!(
        is_hinted(&mut hints, &key("p/log"), async || append(&store, &key("p/log"), "x").await).await,
        "an append"
    );
    let both = [a, b.clone()];
    assert!(
        is_hinted(&mut hints, &b, async || change_many(&store, &both).await).await,
        "the second of a commit"
    );
    let mut of_one_key = store.changes(&b).await.unwrap();
    assert!(
        is_hinted(&mut of_one_key, &b, async || {
            put(&store, &b, "1").await;
        })
        .await,
        "the prefix itself"
    );
}

pub(crate) async fn hints_are_only_for_the_prefix(fixture: &dyn Fixture) {
    let store = fixture.store();
    let prefix = key("p/");
    let mut hints = store.changes(&prefix).await.unwrap();
    let others = ["o", "p", "p0", "q/p/"].map(key);
    let within = key("p/a");
    for _ in 0..TRIES {
        change_many(&store, &others).await;
        append(&store, &key("q/log"), "x").await;
        change_many(&store, &[others.to_vec(), vec![within.clone()]].concat()).await;
        while let Some(hint) = next(&mut hints).await {
            if let Hint::Changed(name) = hint {
                assert!(name.starts_with(&prefix), "{name} does not begin with {prefix}");
                if name == within {
                    return;
                }
            }
        }
    }
    panic!("no hint about {within} in {TRIES} tries");
}

pub(crate) async fn a_subscriber_that_never_reads_holds_up_nobody(fixture: &dyn Fixture) {
    let store = fixture.store();
    let sleepers = [
        store.changes(&key("p/")).await.unwrap(),
        store.changes(&key("p/log")).await.unwrap(),
        store.changes(&key("p/0")).await.unwrap(),
    ];
    let work = async {
        // More than any buffer holds.
        for group in 0..40 {
            let names: Vec<Key> = (0..60).map(|n| key(format!("p/{group}/{n}"))).collect();
            change_many(&store, &names).await;
            append(&store, &key("p/log"), "x").await;
        }
        // And somebody else, who reads, is still told.
        let mut hints = store.changes(&key("p/a")).await.unwrap();
        assert!(
            is_hinted(&mut hints, &key("p/a"), async || {
                put(&store, &key("p/a"), "1").await;
            })
            .await,
            "a subscriber that reads is hinted no more"
        );
    };
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, work).await.expect("commits wait for a subscriber that never reads");
    // The sleeper wakes: it is told something, and is not cut off from what comes.
    for mut hints in sleepers.into_iter().take(2) {
        assert!(next(&mut hints).await.is_some(), "of 40 commits that it slept through");
    }
}
