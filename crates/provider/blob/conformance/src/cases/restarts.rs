//! What a store leaves to the next process.

use std::collections::BTreeMap;

use flames_blob::PutOptions;

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
    let store = fixture.reopen().await;
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
    let store = fixture.reopen().await;
    for name in ["deleted", "failed", "refused"] {
        assert_absent(&*store, name).await;
    }
    assert_eq!(keys(&*store, "").await, [""; 0]);
}
