//! Reading one key.

use bytes::Bytes;
use flames_state::{Commit, KeyRange, MAX_KEY_BYTES, MAX_VALUE_BYTES};

use crate::Fixture;
use crate::support::{append, delete, everything, key, keys_in_pages, put, value_of, whole_log};

pub(crate) async fn a_store_names_its_adapter(fixture: &dyn Fixture) {
    let name = fixture.store().name();
    assert!(!name.is_empty());
    assert!(
        name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'),
        "{name}"
    );
}

pub(crate) async fn what_was_committed_is_read(fixture: &dyn Fixture) {
    let store = fixture.store();
    for n in 0..3 {
        let mut commit = Commit::new();
        commit.put(key("a"), format!("a{n}")).put(key("b"), format!("b{n}"));
        let version = store.commit(&commit).await.unwrap().version;
        for (name, value) in [("a", format!("a{n}")), ("b", format!("b{n}"))] {
            let entry = store.get(&key(name)).await.unwrap().expect("it was committed");
            assert_eq!((entry.key, entry.value, entry.version), (key(name), Bytes::from(value), version));
        }
    }
}

pub(crate) async fn an_absent_key_reads_as_none(fixture: &dyn Fixture) {
    let store = fixture.store();
    assert_eq!(store.get(&key("a")).await.unwrap(), None);
    put(&store, &key("ab"), "neighbour").await;
    put(&store, &key("b"), "to be deleted").await;
    delete(&store, &key("b")).await;
    assert_eq!(store.get(&key("a")).await.unwrap(), None, "never written");
    assert_eq!(store.get(&key("b")).await.unwrap(), None, "deleted");
    assert_eq!(store.get(&key("ab\0")).await.unwrap(), None, "only near to a key");
}

pub(crate) async fn an_empty_value_is_a_value(fixture: &dyn Fixture) {
    let store = fixture.store();
    let (a, log) = (key("a"), key("log"));
    put(&store, &a, "").await;
    append(&store, &log, "").await;
    assert_eq!(value_of(&store, &a).await, Some(Bytes::new()));
    assert_eq!(everything(&store).await.len(), 1);
    assert_eq!(
        whole_log(&store, &log).await.iter().map(|entry| entry.payload.len()).collect::<Vec<_>>(),
        [0]
    );
}

pub(crate) async fn keys_of_every_byte_are_keys(fixture: &dyn Fixture) {
    let store = fixture.store();
    let mut bytes: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    bytes.extend([b"a\0".to_vec(), b"a\0\0".to_vec(), b"a\xff".to_vec(), b"A".repeat(2), "\u{e9}".into()]);
    bytes.extend([vec![0; MAX_KEY_BYTES], vec![0xff; MAX_KEY_BYTES], b"%_*?'\"\\".to_vec()]);
    for group in bytes.chunks(32) {
        let mut commit = Commit::new();
        for name in group {
            commit.put(key(name.clone()), name.clone());
        }
        store.commit(&commit).await.unwrap();
    }
    for name in &bytes {
        assert_eq!(
            value_of(&store, &key(name.clone())).await.as_deref(),
            Some(&name[..]),
            "{}",
            name.escape_ascii()
        );
    }
    bytes.sort();
    let read = keys_in_pages(&store, &KeyRange::all(), 50).await;
    assert_eq!(read, bytes.into_iter().map(key).collect::<Vec<_>>());
}

pub(crate) async fn the_largest_value_is_kept_whole(fixture: &dyn Fixture) {
    let store = fixture.store();
    let largest: Bytes = (0..MAX_VALUE_BYTES).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let mut commit = Commit::new();
    commit.put(key("large"), largest.clone()).put(key("small"), "s").append(key("log"), largest.clone());
    store.commit(&commit).await.unwrap();
    assert!(value_of(&store, &key("large")).await.unwrap() == largest, "read by key");
    let read = everything(&store).await;
    assert_eq!(read.len(), 2);
    assert!(read[0].value == largest, "read by a scan");
    assert!(whole_log(&store, &key("log")).await[0].payload == largest, "read from a log");
}

pub(crate) async fn a_reader_sees_what_was_committed_before_it_began(fixture: &dyn Fixture) {
    let store = fixture.store();
    let (a, log) = (key("a"), key("log"));
    for n in 0..40_u8 {
        store.commit(Commit::new().put(a.clone(), vec![n]).append(log.clone(), vec![n])).await.unwrap();
        // Several at once, so that an adapter with several connections reads on all of them.
        let readers = (0..6).map(|reader| {
            let (store, a, log) = (fixture.store(), a.clone(), log.clone());
            tokio::spawn(async move {
                match reader % 3 {
                    0 => value_of(&store, &a).await.unwrap()[0],
                    1 => everything(&store).await[0].value[0],
                    _ => whole_log(&store, &log).await.last().unwrap().payload[0],
                }
            })
        });
        for read in futures::future::join_all(readers).await {
            assert_eq!(read.unwrap(), n, "a reader saw an older state than the last one committed");
        }
    }
}
