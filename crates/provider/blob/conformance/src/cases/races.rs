//! Many at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flames_blob::{BlobStore, PutOptions};
use flames_error::ErrorKind;
use futures::future::join_all;

use crate::Fixture;
use crate::support::*;

/// A blob whose metadata and type tell which it is.
fn told(seed: u64) -> (Bytes, PutOptions) {
    let options = PutOptions {
        content_type: Some(format!("seed/{seed}")),
        metadata: [("seed".to_owned(), seed.to_string())].into(),
        ..PutOptions::default()
    };
    (bytes_of(seed, 20_000 + usize::try_from(seed * 131).expect("a small number")), options)
}

/// The blob as it is, having checked that its bytes, type and metadata are of one put; none when there is none.
async fn read_told(store: &dyn BlobStore, name: &str) -> Option<u64> {
    let read = match within(store.get(&key(name), None)).await {
        Ok(read) => read,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => panic!("the blob cannot be read: {error:?}"),
    };
    let info = read.info;
    let bytes = collect(read.stream).await;
    let seed: u64 = info.metadata["seed"].parse().expect("metadata as it was put");
    let (wanted, options) = told(seed);
    assert_same_bytes(&bytes, &wanted);
    assert_eq!(Some(&info.content_type), options.content_type.as_ref(), "one blob with the other's type");
    assert_eq!((info.size, info.digest), (wanted.len() as u64, digest_of(&wanted)));
    Some(seed)
}

async fn put_told(store: &dyn BlobStore, name: &str, seed: u64) {
    let (bytes, options) = told(seed);
    within(store.put(&key(name), stream_of(&bytes, 7_000), options)).await.expect("the put succeeds");
}

pub(crate) async fn readers_see_whole_blobs_while_they_are_replaced(fixture: &dyn Fixture) {
    let store = fixture.store();
    put_told(&*store, "a", 0).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let writers = (0..2_u64).map(|writer| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for round in 0..12 {
                put_told(&*store, "a", 1 + writer + 2 * round).await;
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let readers = (0..2).map(|_| {
        let (store, is_over) = (Arc::clone(&store), Arc::clone(&is_over));
        tokio::spawn(async move {
            let mut reads = 0;
            while reads == 0 || !is_over.load(Ordering::SeqCst) {
                read_told(&*store, "a").await.expect("it is there all the time");
                reads += 1;
                tokio::task::yield_now().await;
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    for writer in writers {
        within(writer).await.expect("the writer runs to its end");
    }
    is_over.store(true, Ordering::SeqCst);
    for reader in readers {
        within(reader).await.expect("each read is whole");
    }
}

pub(crate) async fn thirty_two_puts_and_deletes_of_one_key_leave_it_whole_or_absent(fixture: &dyn Fixture) {
    let store = fixture.store();
    for round in 0..3 {
        let tasks = (0..32_u64).map(|number| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                if number % 4 == 3 {
                    within(store.delete(&key("a"))).await.expect("the delete succeeds");
                } else {
                    put_told(&*store, "a", round * 100 + number).await;
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            within(task).await.expect("the task runs to its end");
        }
        let left = read_told(&*store, "a").await;
        let listed = keys(&*store, "").await;
        assert_eq!(listed.len(), usize::from(left.is_some()), "the listing tells something else");
        if let Some(seed) = left {
            assert!(seed / 100 == round, "a blob of an earlier round came back");
        }
        put_told(&*store, "a", 99).await;
        settle().await;
        assert_eq!(read_told(&*store, "a").await, Some(99), "a put of before came after this one");
    }
}

pub(crate) async fn a_listing_while_others_put_and_delete_tells_no_blob_twice(fixture: &dyn Fixture) {
    let store = fixture.store();
    let stay: BTreeSet<_> = (0..8).map(|n| format!("k{n}5")).collect();
    join_all(stay.iter().map(|name| async { put(&*store, name, &bytes_of(1, 10)).await })).await;
    let churn = (0..3_u64).map(|worker| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for round in 0..20_u64 {
                let name = format!("k{}{}", (worker + 3 * round) % 8, worker);
                put(&*store, &name, &bytes_of(round, 10)).await;
                tokio::time::sleep(Duration::from_micros(500)).await;
                within(store.delete(&key(&name))).await.expect("the delete succeeds");
            }
        })
    });
    let churn: Vec<_> = churn.collect();
    for pass in 0.. {
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let page = within(store.list("k", after.as_ref(), 3)).await.expect("the listing answers");
            listed.extend(page.blobs.into_iter().map(|info| info.key.to_string()));
            // So that the others come to it between two pages.
            tokio::time::sleep(Duration::from_micros(300)).await;
            match page.next {
                None => break,
                next => after = next,
            }
        }
        assert!(listed.is_sorted_by(|one, other| one < other), "pass {pass}: {listed:?}");
        let stayed: BTreeSet<_> = listed.into_iter().filter(|name| stay.contains(name)).collect();
        assert_eq!(stayed, stay, "pass {pass}");
        tokio::task::yield_now().await;
        if churn.iter().all(tokio::task::JoinHandle::is_finished) {
            break;
        }
    }
    for task in churn {
        task.await.expect("the task runs to its end");
    }
    assert_eq!(keys(&*store, "").await.into_iter().collect::<BTreeSet<_>>(), stay);
}
