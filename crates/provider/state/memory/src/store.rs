//! The store.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;

use async_trait::async_trait;
use bytes::Bytes;
use flames_error::{Error, ErrorKind, Result};
use flames_state::{
    Commit, Committed, Entry, HintFanout, HintStream, Key, KeyRange, LogEntry, Page, PageRequest, Position,
    StateStore, Version, Write, validate_limit,
};
use parking_lot::{RwLock, RwLockReadGuard, RwLockUpgradableReadGuard};

use crate::entries::Entries;

/// A StateStore in memory.
pub struct MemoryStore {
    /// A panic under this lock, which is not poisoned by one, cannot leave a commit half applied: nothing in [`Contents::apply`] panics, short of
    /// a failed allocation, which aborts.
    contents: RwLock<Contents>,
    hints: HintFanout,
}

#[derive(Default)]
struct Contents {
    /// The number of commits applied. Never goes back, so that neither a version nor a position is given twice.
    counter: u64,
    entries: Entries<Stored>,
    logs: BTreeMap<Key, BTreeMap<Position, Bytes>>,
}

struct Stored {
    value: Bytes,
    version: Version,
}

impl Stored {
    fn entry(&self, key: &Key) -> Entry {
        Entry { key: key.clone(), value: self.value.clone(), version: self.version }
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self { contents: RwLock::default(), hints: HintFanout::new() }
    }

    /// For calls that only read. Never asked for by one who has it: a writer may wait in between.
    fn contents(&self) -> RwLockReadGuard<'_, Contents> {
        self.contents.read()
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let contents = self.contents();
        f.debug_struct("MemoryStore")
            .field("entries", &contents.entries.len())
            .field("logs", &contents.logs.len())
            .field("commits", &contents.counter)
            .finish()
    }
}

impl Contents {
    fn check(&self, commit: &Commit) -> Result<()> {
        for check in &commit.checks {
            let current = self.entries.get(check.key()).map(|stored| stored.version);
            if !check.holds(current) {
                return Err(Error::new(ErrorKind::Conflict, "state.commit", "a check does not hold")
                    .with_context("key", check.key()));
            }
        }
        Ok(())
    }

    /// Carries out a commit whose checks hold. What it replaces goes to `old`, since to free it takes longer than all else.
    fn apply(&mut self, commit: &Commit, old: &mut Vec<Stored>) -> Committed {
        self.counter += 1;
        let version = Version::from_raw(self.counter);
        for write in &commit.writes {
            old.extend(match write {
                Write::Put(key, value) => self.entries.insert(key, Stored { value: value.clone(), version }),
                Write::Delete(key) => self.entries.remove(key),
            });
        }
        for (ordinal, append) in (0..).zip(&commit.appends) {
            let position = Position::from_raw(self.counter, ordinal);
            self.logs.entry(append.log.clone()).or_default().insert(position, append.payload.clone());
        }
        Committed { version }
    }

    fn page(&self, range: &KeyRange, page: &PageRequest) -> Page {
        let after = page.after.as_ref().map(Key::as_bytes).filter(|after| *after >= range.start());
        let lower = after.map_or(Bound::Included(range.start()), Bound::Excluded);
        let mut found = self.entries.range(lower, range.end());
        let entries: Vec<Entry> =
            found.by_ref().take(page.limit).map(|(key, stored)| stored.entry(key)).collect();
        let next = found.next().and_then(|_| entries.last().map(|entry| entry.key.clone()));
        Page { entries, next }
    }
}

#[async_trait]
impl StateStore for MemoryStore {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        Ok(self.contents().entries.get(key).map(|stored| stored.entry(key)))
    }

    async fn scan(&self, range: &KeyRange, page: PageRequest) -> Result<Page> {
        validate_limit("state.scan", page.limit)?;
        Ok(self.contents().page(range, &page))
    }

    async fn commit(&self, commit: &Commit) -> Result<Committed> {
        commit.validate()?;
        let mut old = Vec::with_capacity(commit.writes.len());
        let committed = {
            let contents = self.contents.upgradable_read();
            contents.check(commit)?;
            RwLockUpgradableReadGuard::upgrade(contents).apply(commit, &mut old)
        };
        self.hints.publish(commit);
        Ok(committed)
    }

    async fn read_log(&self, log: &Key, after: Position, limit: usize) -> Result<Vec<LogEntry>> {
        validate_limit("state.read_log", limit)?;
        let contents = self.contents();
        let Some(entries) = contents.logs.get(log) else { return Ok(Vec::new()) };
        let behind = entries.range((Bound::Excluded(after), Bound::Unbounded)).take(limit);
        Ok(behind
            .map(|(position, payload)| LogEntry { position: *position, payload: payload.clone() })
            .collect())
    }

    async fn trim_log(&self, log: &Key, through: Position) -> Result<()> {
        let mut contents = self.contents.write();
        if let Some(entries) = contents.logs.get_mut(log) {
            let mut kept = entries.split_off(&through);
            kept.remove(&through);
            *entries = kept;
            if entries.is_empty() {
                contents.logs.remove(log);
            }
        }
        Ok(())
    }

    async fn changes(&self, prefix: &Key) -> Result<HintStream> {
        Ok(self.hints.subscribe(prefix))
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_value_is_handed_out_without_a_copy() {
        let store = MemoryStore::new();
        let (key, value) = (Key::new("k").unwrap(), Bytes::from(vec![7; 100_000]));
        store.commit(Commit::new().put(key.clone(), value.clone())).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().unwrap().value.as_ptr(), value.as_ptr());
    }

    #[tokio::test]
    async fn a_subscriber_that_lags_is_told_that_hints_were_lost_and_then_goes_on() {
        let store = MemoryStore::new();
        let key = Key::new("k").unwrap();
        let mut hints = store.changes(&key).await.unwrap();
        for _ in 0..2_000 {
            store.commit(Commit::new().put(key.clone(), "v")).await.unwrap();
        }
        assert_eq!(hints.next().await, Some(flames_state::Hint::Lost));
        assert_eq!(hints.next().await, Some(flames_state::Hint::Changed(key)));
    }

    #[tokio::test]
    async fn hints_end_with_the_store() {
        let store = MemoryStore::new();
        let mut hints = store.changes(&Key::new("k").unwrap()).await.unwrap();
        drop(store);
        assert_eq!(hints.next().await, None);
    }
}
