//! Whole or not at all, whatever happens meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flames_blob::{BlobStore, PutOptions};
use flames_error::ErrorKind;
use futures::StreamExt;

use crate::Fixture;
use crate::support::*;

/// More than any store may gather before it writes: what is fed so often has left the stream for good.
const FED_CHUNKS: usize = 12;
const FED_CHUNK: usize = 64 * 1024;

pub(crate) async fn a_put_is_invisible_until_it_is_whole(fixture: &dyn Fixture) {
    let store = fixture.store();
    let old = bytes_of(1, 5_000);
    put(&*store, "old", &old).await;
    let chunk = bytes_of(2, FED_CHUNK);
    let whole = Bytes::from(chunk.repeat(FED_CHUNKS));
    for name in ["new", "old"] {
        let (mut sender, stream) = fed_stream();
        let putting = Arc::clone(&store);
        let task = tokio::spawn(async move { putting.put(&key(name), stream, PutOptions::default()).await });
        feed(&mut sender, &chunk, FED_CHUNKS).await;
        settle().await;
        if name == "new" {
            assert_absent(&*store, name).await;
        } else {
            assert_holds(&*store, name, &old).await;
        }
        drop(sender);
        within(task).await.expect("the put runs to its end").expect("the put succeeds");
        assert_holds(&*store, name, &whole).await;
    }
}

pub(crate) async fn a_put_whose_stream_fails_leaves_nothing(fixture: &dyn Fixture) {
    let store = fixture.store();
    for length in [0, 10, 700_000] {
        let failed =
            refusal(&*store, "a", stream_that_fails(&bytes_of(1, length)), PutOptions::default()).await;
        assert_eq!(failed, Some(ErrorKind::PermissionDenied), "the stream's own error is the put's");
        assert_absent(&*store, "a").await;
    }
}

pub(crate) async fn a_put_whose_stream_fails_keeps_the_old_blob(fixture: &dyn Fixture) {
    let store = fixture.store();
    let old = bytes_of(1, 5_000);
    let before = put(&*store, "a", &old).await;
    for length in [0, 10, 700_000] {
        let failed =
            refusal(&*store, "a", stream_that_fails(&bytes_of(2, length)), PutOptions::default()).await;
        assert_eq!(failed, Some(ErrorKind::PermissionDenied), "the stream's own error is the put's");
        let (info, bytes) = read(&*store, "a").await;
        assert_same_bytes(&bytes, &old);
        assert_eq!(info, before);
    }
}

pub(crate) async fn an_abandoned_put_leaves_nothing(fixture: &dyn Fixture) {
    let store = fixture.store();
    let old = bytes_of(1, 5_000);
    put(&*store, "old", &old).await;
    for name in ["new", "old"] {
        let (mut sender, stream) = fed_stream();
        let putting = Arc::clone(&store);
        let task = tokio::spawn(async move { putting.put(&key(name), stream, PutOptions::default()).await });
        feed(&mut sender, &bytes_of(2, FED_CHUNK), FED_CHUNKS).await;
        task.abort();
        assert!(within(task).await.expect_err("the put is dropped").is_cancelled());
        settle().await;
    }
    assert_absent(&*store, "new").await;
    assert_holds(&*store, "old", &old).await;
    assert_eq!(keys(&*store, "").await, ["old"]);
}

/// Polls a put so many times, then drops it. Whether it ended before.
async fn put_polled(store: &dyn BlobStore, name: &str, bytes: &Bytes, polls: usize) -> bool {
    let key = key(name);
    let mut put = store.put(&key, stream_of(bytes, 1_000), PutOptions::default());
    for poll in 0..polls {
        if poll > 0 {
            // Work that goes on elsewhere gets the time to; but not after the last poll, so that the drop meets it under way.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if futures::poll!(&mut put).is_ready() {
            return true;
        }
    }
    false
}

pub(crate) async fn a_put_dropped_at_any_point_has_its_whole_effect_or_none(fixture: &dyn Fixture) {
    let store = fixture.store();
    for polls in 0..200 {
        let (old, new) = (bytes_of(1, 2_500), bytes_of(polls as u64 + 2, 3_500));
        put(&*store, "a", &old).await;
        let has_ended = put_polled(&*store, "a", &new, polls).await;
        let bytes = read(&*store, "a").await.1;
        assert!(
            bytes == new || (bytes == old && !has_ended),
            "dropped after {polls} polls: neither the old nor the new blob"
        );
        assert_eq!(keys(&*store, "").await, ["a"]);
        if has_ended {
            return;
        }
    }
    panic!("the put never ends");
}

pub(crate) async fn an_abandoned_put_does_not_undo_a_later_one(fixture: &dyn Fixture) {
    let store = fixture.store();
    for polls in 0..200 {
        let (earlier, later) = (bytes_of(1, 3_500), bytes_of(polls as u64 + 2, 500));
        let has_ended = put_polled(&*store, "a", &earlier, polls).await;
        put(&*store, "a", &later).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_holds(&*store, "a", &later).await;
        if has_ended {
            return;
        }
    }
    panic!("the put never ends");
}

pub(crate) async fn two_puts_racing_leave_one_of_them_whole(fixture: &dyn Fixture) {
    let store = fixture.store();
    for round in 0..8 {
        let racers = [1, 2].map(|racer: u64| {
            let bytes =
                bytes_of(round * 10 + racer, 40_000 + 777 * usize::try_from(racer).expect("a small number"));
            let options = PutOptions {
                content_type: Some(format!("racer/{racer}")),
                metadata: BTreeMap::from([("racer".into(), racer.to_string())]),
                ..PutOptions::default()
            };
            (bytes, options)
        });
        let tasks = racers.clone().map(|(bytes, options)| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.put(&key("a"), stream_of(&bytes, 1_000), options).await })
        });
        for task in tasks {
            within(task).await.expect("the put runs to its end").expect("both puts succeed");
        }
        let (info, bytes) = read(&*store, "a").await;
        let winner = racers.iter().find(|(raced, _)| *raced == bytes).expect("one of the two, whole");
        assert_eq!(info.metadata, winner.1.metadata, "one blob with the other's metadata");
        assert_eq!(
            Some(&info.content_type),
            winner.1.content_type.as_ref(),
            "one blob with the other's type"
        );
        assert_eq!(keys(&*store, "").await, ["a"]);
    }
}

pub(crate) async fn a_read_that_began_sees_one_blob_though_it_is_replaced(fixture: &dyn Fixture) {
    let store = fixture.store();
    let (old, new) = (bytes_of(1, 2_000_000), bytes_of(2, 1_500_000));
    put(&*store, "a", &old).await;
    let untouched = within(store.get(&key("a"), None)).await.expect("the blob is there");
    let mut begun = within(store.get(&key("a"), None)).await.expect("the blob is there");
    let first = within(begun.stream.next()).await.expect("there are bytes").expect("they can be read");
    put(&*store, "a", &new).await;
    let rest = collect(begun.stream).await;
    assert_same_bytes(&Bytes::from([first, rest].concat()), &old);
    assert_eq!(begun.info.digest, digest_of(&old));
    assert_same_bytes(&collect(untouched.stream).await, &old);
    assert_holds(&*store, "a", &new).await;
}
