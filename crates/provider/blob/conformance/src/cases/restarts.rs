//! What a store leaves to the next process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flames_blob::PutOptions;
use flames_error::ErrorKind;

use crate::Fixture;
use crate::support::*;

pub(crate) async fn a_blob_outlives_its_store(fixture: &dyn Fixture) {
    let store = fixture.store();
    let bytes = bytes_of(1, 300_000);
    let options = PutOptions {
        content_type: Some("text/plain".into()),
        metadata: BTreeMap::from([("key".into(), "value".into())]),
        ..PutOptions::default()
    };
    let before = put_with(&*store, "a/b:c", &bytes, options).await;
    put(&*store, "replaced", &bytes_of(2, 100)).await;
    put(&*store, "replaced", &bytes).await;
    drop(store);
    fixture.reopen().await;
    let store = fixture.store();
    let (info, found) = read(&*store, "a/b:c").await;
    assert_same_bytes(&found, &bytes);
    assert_eq!(info, before);
    assert_holds(&*store, "replaced", &bytes).await;
    assert_eq!(keys(&*store, "").await, ["a/b:c", "replaced"]);
}

pub(crate) async fn what_was_deleted_or_refused_stays_away_after_a_restart(fixture: &dyn Fixture) {
    let store = fixture.store();
    put(&*store, "deleted", &bytes_of(1, 100)).await;
    within(store.delete(&key("deleted"))).await.expect("the delete succeeds");
    let failed =
        refusal(&*store, "failed", stream_that_fails(&bytes_of(2, 700_000)), PutOptions::default()).await;
    assert!(failed.is_some());
    let options = PutOptions { expected_size: Some(1), ..PutOptions::default() };
    assert!(refusal(&*store, "refused", stream_of(&bytes_of(3, 100), 10), options).await.is_some());
    drop(store);
    fixture.reopen().await;
    let store = fixture.store();
    for name in ["deleted", "failed", "refused"] {
        assert_absent(&*store, name).await;
    }
    assert_eq!(keys(&*store, "").await, [""; 0]);
}

pub(crate) async fn what_was_put_is_there_after_the_server_was_killed_under_load(fixture: &dyn Fixture) {
    let store = fixture.store();
    let is_over = Arc::new(AtomicBool::new(false));
    let stored = Arc::new(Mutex::new(Vec::new()));
    let workers = (0..4_u64).map(|worker| {
        let (store, is_over, stored) = (Arc::clone(&store), Arc::clone(&is_over), Arc::clone(&stored));
        tokio::spawn(async move {
            let mut seed = worker;
            while !is_over.load(Ordering::SeqCst) {
                seed += 4;
                let name = format!("blob-{seed}");
                match store
                    .put(&key(&name), stream_of(&bytes_of(seed, 30_000), 8_000), PutOptions::default())
                    .await
                {
                    Ok(_) => stored.lock().expect("no task panics with it").push(seed),
                    Err(error) => assert!(
                        matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::OutcomeUnknown),
                        "the server is to blame: {error:?}"
                    ),
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    });
    let workers: Vec<_> = workers.collect();
    tokio::time::sleep(Duration::from_millis(700)).await;
    fixture.restart_server().await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    is_over.store(true, Ordering::SeqCst);
    for worker in workers {
        within(worker).await.expect("the worker runs to its end");
    }
    let stored = std::mem::take(&mut *stored.lock().expect("no task panics with it"));
    assert!(!stored.is_empty(), "nothing was put before the server was killed");
    // It may still be on its way up.
    let started = tokio::time::Instant::now();
    while let Err(error) = within(store.exists(&key("blob-4"))).await {
        assert!(started.elapsed() < Duration::from_secs(20), "the server stays away: {error:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for seed in stored {
        assert_holds(&*store, &format!("blob-{seed}"), &bytes_of(seed, 30_000)).await;
    }
    put(&*store, "after", &bytes_of(1, 10)).await;
}
