//! What the cases share.

use std::sync::Arc;

use bytes::Bytes;
use flames_error::{ErrorKind, Result};
use flames_state::{
    Commit, Entry, Key, KeyRange, LogEntry, MAX_PAGE, PageRequest, Position, StateStore, StateStoreExt,
    Version,
};

pub(crate) type Store = Arc<dyn StateStore>;

pub(crate) fn key(bytes: impl AsRef<[u8]>) -> Key {
    Key::new(bytes).unwrap()
}

pub(crate) async fn put(store: &Store, key: &Key, value: impl Into<Bytes>) -> Version {
    store.commit(Commit::new().put(key.clone(), value)).await.unwrap().version
}

pub(crate) async fn delete(store: &Store, key: &Key) {
    store.commit(Commit::new().delete(key.clone())).await.unwrap();
}

pub(crate) async fn append(store: &Store, log: &Key, payload: impl Into<Bytes>) {
    store.commit(Commit::new().append(log.clone(), payload)).await.unwrap();
}

pub(crate) async fn value_of(store: &Store, key: &Key) -> Option<Bytes> {
    store.get(key).await.unwrap().map(|entry| entry.value)
}

/// Everything in the store.
pub(crate) async fn everything(store: &Store) -> Vec<Entry> {
    store.scan_all(&KeyRange::all(), 100_000).await.unwrap().expect("a test store is small")
}

/// Every key of a range, read in pages of `limit`.
pub(crate) async fn keys_in_pages(store: &Store, range: &KeyRange, limit: usize) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut page = PageRequest::first(limit);
    loop {
        let read = store.scan(range, page).await.unwrap();
        assert!(read.entries.len() <= limit, "a page of {limit} has {} entries", read.entries.len());
        keys.extend(read.entries.into_iter().map(|entry| entry.key));
        assert!(keys.len() <= 20_000, "the pages do not end");
        match read.next {
            Some(next) => page = PageRequest { after: Some(next), limit },
            None => return keys,
        }
    }
}

/// A log from its start to its end.
pub(crate) async fn whole_log(store: &Store, log: &Key) -> Vec<LogEntry> {
    let mut entries: Vec<LogEntry> = Vec::new();
    loop {
        let after = entries.last().map_or(Position::START, |entry| entry.position);
        let read = store.read_log(log, after, MAX_PAGE).await.unwrap();
        if read.is_empty() {
            return entries;
        }
        entries.extend(read);
        assert!(entries.len() <= 20_000, "the log does not end");
    }
}

pub(crate) fn payloads(entries: &[LogEntry]) -> Vec<String> {
    entries.iter().map(|entry| String::from_utf8(entry.payload.to_vec()).unwrap()).collect()
}

#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(outcome: Result<T>, kind: ErrorKind) {
    match outcome {
        Ok(answer) => panic!("{kind} was expected, not {answer:?}"),
        Err(error) => assert_eq!(error.kind(), kind, "{error:?}"),
    }
}
