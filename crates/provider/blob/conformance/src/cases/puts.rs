//! Putting, describing and deleting, one call at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use flames_blob::{BlobKey, BlobStore, MAX_CHUNK, MAX_METADATA_BYTES, MAX_METADATA_PAIRS, PutOptions};
use flames_error::ErrorKind;
use futures::StreamExt;

use crate::Fixture;
use crate::support::*;

pub(crate) async fn a_blob_reads_back_as_it_was_put(fixture: &dyn Fixture) {
    let store = fixture.store();
    for (name, length, chunk) in [("a", 1, 1), ("b", 1_000, 7), ("c", 300_000, 64 * 1024)] {
        let bytes = bytes_of(length as u64, length);
        let options = PutOptions {
            expected_size: Some(length as u64),
            expected_digest: Some(digest_of(&bytes)),
            ..PutOptions::default()
        };
        let put =
            within(store.put(&key(name), stream_of(&bytes, chunk), options)).await.expect("the put succeeds");
        let (info, found) = read(&*store, name).await;
        assert_same_bytes(&found, &bytes);
        assert_eq!(info, put, "get tells something else than put");
    }
}

pub(crate) async fn an_empty_blob_is_a_blob(fixture: &dyn Fixture) {
    let store = fixture.store();
    let no_chunk = futures::stream::empty().boxed();
    let empty_chunks = futures::stream::iter([Ok(Bytes::new()), Ok(Bytes::new())]).boxed();
    for (name, stream) in [("none", no_chunk), ("empty", empty_chunks)] {
        let options = PutOptions { expected_size: Some(0), ..PutOptions::default() };
        within(store.put(&key(name), stream, options)).await.expect("an empty blob can be put");
        let (info, bytes) = read(&*store, name).await;
        assert_eq!((info.size, bytes.len()), (0, 0));
        let start =
            within(store.get(&key(name), Some(0..10))).await.expect("a start at the end gives no bytes");
        assert_eq!(start.range, 0..0);
        assert_eq!(collect(start.stream).await.len(), 0);
    }
    assert_eq!(keys(&*store, "").await, ["empty", "none"]);
}

pub(crate) async fn a_long_blob_streams_in_short_chunks(fixture: &dyn Fixture) {
    let store = fixture.store();
    let bytes = bytes_of(5, 3 * MAX_CHUNK + 17);
    // One chunk longer than any that a reader may be handed, then many short ones.
    let (long, short) = (bytes.slice(..2 * MAX_CHUNK + 1), bytes.slice(2 * MAX_CHUNK + 1..));
    let stream = stream_of(&long, long.len()).chain(stream_of(&short, 5_000)).boxed();
    within(store.put(&key("long"), stream, PutOptions::default())).await.expect("the put succeeds");
    assert_holds(&*store, "long", &bytes).await;
}

pub(crate) async fn a_put_replaces_the_blob_whole(fixture: &dyn Fixture) {
    let store = fixture.store();
    let old = PutOptions {
        content_type: Some("text/plain".into()),
        metadata: BTreeMap::from([("old".into(), "yes".into())]),
        ..PutOptions::default()
    };
    put_with(&*store, "a", &bytes_of(1, 5_000), old).await;
    let new = bytes_of(2, 300);
    put(&*store, "a", &new).await;
    let (info, bytes) = read(&*store, "a").await;
    assert_same_bytes(&bytes, &new);
    assert_eq!(info.content_type, "application/octet-stream", "the old blob's type stayed");
    assert_eq!(info.metadata, BTreeMap::new(), "the old blob's metadata stayed");
    assert_eq!(keys(&*store, "").await, ["a"]);
}

pub(crate) async fn a_wrong_digest_is_refused(fixture: &dyn Fixture) {
    let store = fixture.store();
    let (old, new) = (bytes_of(1, 100), bytes_of(2, 100));
    put(&*store, "old", &old).await;
    for name in ["new", "old"] {
        let options =
            PutOptions { expected_digest: Some(digest_of(&bytes_of(3, 100))), ..PutOptions::default() };
        let refused = refusal(&*store, name, stream_of(&new, 30), options).await;
        assert_eq!(refused, Some(ErrorKind::InvalidInput));
    }
    assert_absent(&*store, "new").await;
    assert_holds(&*store, "old", &old).await;
}

pub(crate) async fn a_wrong_size_is_refused(fixture: &dyn Fixture) {
    let store = fixture.store();
    let (old, new) = (bytes_of(1, 100), bytes_of(2, 100));
    put(&*store, "old", &old).await;
    for (name, size) in [("new", 99), ("new", 101), ("new", 0), ("old", 99), ("old", 101)] {
        let options = PutOptions { expected_size: Some(size), ..PutOptions::default() };
        let refused = refusal(&*store, name, stream_of(&new, 30), options).await;
        assert_eq!(refused, Some(ErrorKind::InvalidInput), "{size} bytes were declared");
    }
    assert_absent(&*store, "new").await;
    assert_holds(&*store, "old", &old).await;
}

pub(crate) async fn a_stream_longer_than_declared_is_refused_before_it_ends(fixture: &dyn Fixture) {
    let store = fixture.store();
    // The stream's own error comes only to a store that reads megabytes more than were declared.
    let long = stream_that_fails(&bytes_of(1, 4 * MAX_CHUNK));
    let options = PutOptions { expected_size: Some(100_000), ..PutOptions::default() };
    assert_eq!(refusal(&*store, "a", long, options).await, Some(ErrorKind::InvalidInput));
    assert_absent(&*store, "a").await;
}

pub(crate) async fn options_past_a_limit_are_refused(fixture: &dyn Fixture) {
    let store = fixture.store();
    let pairs = |pairs: Vec<(String, String)>| PutOptions {
        metadata: pairs.into_iter().collect(),
        ..PutOptions::default()
    };
    let many = |count: usize| pairs((0..count).map(|n| (format!("key-{n}"), "value".to_owned())).collect());
    let long = |total: usize| pairs(vec![("key".into(), "v".repeat(total - 3))]);
    let wrong = [
        many(MAX_METADATA_PAIRS + 1),
        long(MAX_METADATA_BYTES + 1),
        pairs(vec![("Key".into(), "value".into())]),
        pairs(vec![(String::new(), "value".into())]),
        pairs(vec![("key".into(), "line\nbreak".into())]),
        PutOptions { content_type: Some(String::new()), ..PutOptions::default() },
        PutOptions { content_type: Some("t".repeat(256)), ..PutOptions::default() },
    ];
    for options in wrong {
        let was_read = Arc::new(AtomicBool::new(false));
        let reading = Arc::clone(&was_read);
        let stream =
            stream_of(&bytes_of(1, 10), 10).inspect(move |_| reading.store(true, Ordering::SeqCst)).boxed();
        let refused = refusal(&*store, "a", stream, options.clone()).await;
        assert_eq!(refused, Some(ErrorKind::InvalidInput), "{options:?}");
        assert!(!was_read.load(Ordering::SeqCst), "the stream was read though the put must fail");
    }
    assert_absent(&*store, "a").await;
    for (name, options) in [("many", many(MAX_METADATA_PAIRS)), ("long", long(MAX_METADATA_BYTES))] {
        let wanted = options.metadata.clone();
        put_with(&*store, name, &bytes_of(1, 10), options).await;
        assert_eq!(read(&*store, name).await.0.metadata, wanted);
    }
}

pub(crate) async fn head_tells_size_digest_type_and_metadata(fixture: &dyn Fixture) {
    let store = fixture.store();
    let bytes = bytes_of(1, 1_234);
    let metadata = BTreeMap::from([
        ("kind".to_owned(), "root file system".to_owned()),
        ("note-2".to_owned(), r#"quotes " and \ and {}="#.to_owned()),
        ("empty".to_owned(), String::new()),
    ]);
    let options = PutOptions {
        content_type: Some("application/vnd.oci.image.layer.v1.tar+gzip".into()),
        metadata: metadata.clone(),
        ..PutOptions::default()
    };
    let put = put_with(&*store, "a", &bytes, options.clone()).await;
    let head = within(store.head(&key("a"))).await.expect("the blob is there");
    assert_eq!(head.key, key("a"));
    assert_eq!(head.size, 1_234);
    assert_eq!(head.digest, digest_of(&bytes));
    assert_eq!(Some(&head.content_type), options.content_type.as_ref());
    assert_eq!(head.metadata, metadata);
    assert_eq!(head, put, "head tells something else than put");
}

pub(crate) async fn keys_that_look_alike_are_apart(fixture: &dyn Fixture) {
    let store = fixture.store();
    let long = "k".repeat(511);
    let names = [
        "a",
        "a/b",
        "a/b/c",
        "a-b",
        "a.b",
        "a:b",
        "a=b",
        "a_b",
        "A",
        "A/b",
        ".a",
        "a.",
        "a/.b",
        "...",
        "sha256:00ff",
        "0",
        &format!("{long}1"),
        &format!("{long}2"),
        &long,
        &format!("{}/{}", &long[..255], &long[..255]),
    ];
    for (seed, name) in (0..).zip(&names) {
        put(&*store, name, &bytes_of(seed, 50)).await;
    }
    for (seed, name) in (0..).zip(&names) {
        assert_holds(&*store, name, &bytes_of(seed, 50)).await;
    }
    let mut sorted = names;
    sorted.sort_unstable();
    assert_eq!(keys(&*store, "").await, sorted);
    within(store.delete(&key("a/b"))).await.expect("the delete succeeds");
    assert_absent(&*store, "a/b").await;
    assert_eq!(keys(&*store, "").await.len(), names.len() - 1, "a delete took more than its own");
}

pub(crate) async fn a_deleted_blob_is_gone(fixture: &dyn Fixture) {
    let store = fixture.store();
    let (kept, again) = (bytes_of(1, 100), bytes_of(2, 100));
    put(&*store, "gone", &bytes_of(3, 100)).await;
    put(&*store, "kept", &kept).await;
    within(store.delete(&key("gone"))).await.expect("the delete succeeds");
    assert_absent(&*store, "gone").await;
    assert_holds(&*store, "kept", &kept).await;
    put(&*store, "gone", &again).await;
    assert_holds(&*store, "gone", &again).await;
}

pub(crate) async fn deleting_what_is_not_there_is_no_error(fixture: &dyn Fixture) {
    let store = fixture.store();
    within(store.delete(&key("never"))).await.expect("no error for what was never there");
    put(&*store, "once", &bytes_of(1, 10)).await;
    for _ in 0..2 {
        within(store.delete(&key("once"))).await.expect("no error for what is gone");
    }
}

pub(crate) async fn exists_tells_the_truth(fixture: &dyn Fixture) {
    let store = fixture.store();
    let exists = async |store: &dyn BlobStore, name: &str| {
        within(store.exists(&key(name))).await.expect("exists answers")
    };
    assert!(!exists(&*store, "a").await);
    put(&*store, "a", &bytes_of(1, 10)).await;
    assert!(exists(&*store, "a").await);
    assert!(!exists(&*store, "a/b").await && !exists(&*store, "b").await);
    within(store.delete(&key("a"))).await.expect("the delete succeeds");
    assert!(!exists(&*store, "a").await);
}

pub(crate) async fn every_limit_is_met_exactly_and_passed_by_one(fixture: &dyn Fixture) {
    let store = fixture.store();
    // One that no other key begins like, and one of many segments.
    let long = "k".repeat(BlobKey::MAX_LENGTH);
    let deep = format!("{}z", "a/".repeat(BlobKey::MAX_LENGTH / 2 - 1)) + "z";
    assert!(BlobKey::new(format!("{long}k")).is_err());
    let pair = |bytes: usize| ("k".repeat(64), "v".repeat(bytes - 64));
    let options = |kind: usize, pairs: usize, bytes: usize| {
        let mut metadata: BTreeMap<_, _> = (1..pairs).map(|n| (format!("{n:02}"), String::new())).collect();
        let taken = 2 * metadata.len();
        metadata.extend([pair(bytes - taken)]);
        PutOptions { content_type: Some("t".repeat(kind)), metadata, ..PutOptions::default() }
    };
    let most = options(255, MAX_METADATA_PAIRS, MAX_METADATA_BYTES);
    for name in [&long, &deep] {
        put_with(&*store, name, &bytes_of(1, 1_000), most.clone()).await;
        let head = within(store.head(&key(name))).await.expect("the blob is there");
        assert_eq!(
            (Some(head.content_type), head.metadata),
            (most.content_type.clone(), most.metadata.clone())
        );
        assert_holds(&*store, name, &bytes_of(1, 1_000)).await;
    }
    let mut named = vec![deep.clone(), long.clone()];
    named.sort_unstable();
    assert_eq!(keys(&*store, "").await, named);
    assert_eq!(keys(&*store, &long).await, [long]);
    let long_name =
        PutOptions { metadata: [("k".repeat(65), String::new())].into(), ..PutOptions::default() };
    let too_much = [
        options(256, 1, 100),
        options(1, MAX_METADATA_PAIRS + 1, 200),
        options(1, MAX_METADATA_PAIRS, MAX_METADATA_BYTES + 1),
        long_name,
    ];
    for options in too_much {
        let refused = refusal(&*store, "more", stream_of(&bytes_of(1, 10), 10), options).await;
        assert_eq!(refused, Some(ErrorKind::InvalidInput));
    }
    assert_absent(&*store, "more").await;
}
