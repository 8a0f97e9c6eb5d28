//! StateStore.
//!
//! A commit replaces a value of 512 bytes at the version that it had, and a second key with it, as every change of a record with an index
//! does. By hand that is a transaction with two statements, or two insertions under one lock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use flames_state::{Check, Commit, Key, StateStore, Version};
use flames_state_memory::MemoryStore;

use super::compare::{Operation, compare, operation};
use super::servers::Servers;
use super::{Findings, ProvidersArguments};
use crate::report::Row;

/// How many keys are read.
pub(crate) const KEYS: usize = 1_000;
/// The most clients of one turn.
pub(crate) const MOST_CLIENTS: usize = 64;
/// Operations that are timed as one where one takes less than a microsecond or so.
const AT_ONCE: usize = 100;

pub(crate) fn value() -> Bytes {
    Bytes::from_static(&[b'v'; 512])
}

pub(crate) fn record_key(number: usize) -> String {
    format!("bench/vm/{number:08}")
}

pub(crate) fn index_key(number: usize) -> String {
    format!("bench/index/{number:08}")
}

fn key(text: String) -> Result<Key> {
    Ok(Key::new(text.into_bytes())?)
}

/// A store, and the version at which each client last wrote its key.
pub(crate) struct Ours {
    store: Arc<dyn StateStore>,
    versions: Vec<AtomicU64>,
    reads: AtomicU64,
    keys: Vec<(Key, Key)>,
}

impl Ours {
    /// Fills a store with what is read and written.
    pub(crate) async fn new(store: Arc<dyn StateStore>) -> Result<Arc<Self>> {
        let mut keys = Vec::new();
        let mut versions = Vec::new();
        for number in 0..KEYS {
            let pair = (key(record_key(number))?, key(index_key(number))?);
            let mut commit = Commit::new();
            commit.put(pair.0.clone(), value()).put(pair.1.clone(), value());
            let committed = store.commit(&commit).await?;
            versions.push(AtomicU64::new(committed.version.as_raw()));
            keys.push(pair);
        }
        Ok(Arc::new(Self { store, versions, reads: AtomicU64::new(0), keys }))
    }

    async fn commit_once(&self, client: usize) -> Result<()> {
        let (Some((record, index)), Some(version)) = (self.keys.get(client), self.versions.get(client))
        else {
            anyhow::bail!("more clients than keys");
        };
        let mut commit = Commit::new();
        commit
            .check(Check::At(record.clone(), Version::from_raw(version.load(Ordering::Relaxed))))
            .put(record.clone(), value())
            .put(index.clone(), value());
        version.store(self.store.commit(&commit).await?.version.as_raw(), Ordering::Relaxed);
        Ok(())
    }

    async fn get_once(&self) -> Result<()> {
        let number = next(&self.reads);
        let (record, _) = self.keys.get(number).context("a key")?;
        self.store.get(record).await?.context("a value")?;
        Ok(())
    }

    pub(crate) fn commits(self: &Arc<Self>) -> Operation {
        operation(self, async |ours, client| {
            ours.commit_once(client).await?;
            Ok(1)
        })
    }

    pub(crate) fn gets(self: &Arc<Self>) -> Operation {
        operation(self, async |ours, _| {
            ours.get_once().await?;
            Ok(1)
        })
    }
}

/// The next key to read: all, one after the other.
pub(crate) fn next(reads: &AtomicU64) -> usize {
    usize::try_from(reads.fetch_add(1, Ordering::Relaxed)).unwrap_or(0) % KEYS
}

struct BareMap {
    map: Mutex<BTreeMap<Bytes, (Bytes, u64)>>,
    keys: Vec<(Bytes, Bytes)>,
    reads: AtomicU64,
}

impl BareMap {
    fn commit(&self, client: usize) -> Result<()> {
        let (record, index) = self.keys.get(client).context("more clients than keys")?;
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let version = map.get(record).context("a value")?.1;
        map.insert(record.clone(), (value(), version + 1));
        map.insert(index.clone(), (value(), version + 1));
        Ok(())
    }

    fn get(&self) -> Result<Bytes> {
        let (record, _) = self.keys.get(next(&self.reads)).context("a key")?;
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(map.get(record).context("a value")?.0.clone())
    }
}

pub(crate) async fn measure(arguments: &ProvidersArguments, servers: &Servers, findings: &mut Findings) {
    let measured = memory(arguments, findings).await;
    findings.attempted("state/memory", measured);
    #[cfg(feature = "sqlite")]
    {
        let measured = super::state_sqlite::measure(arguments, findings).await;
        findings.attempted("state/sqlite", measured);
    }
    #[cfg(feature = "postgres")]
    match servers.postgres() {
        Ok(url) => {
            let measured = super::state_postgres::measure(arguments, &url, findings).await;
            findings.attempted("state/postgres", measured);
        }
        Err(missing) => findings.skip("state/postgres", missing),
    }
    #[cfg(not(feature = "postgres"))]
    let _ = servers;
}

async fn memory(arguments: &ProvidersArguments, findings: &mut Findings) -> Result<()> {
    let ours = Ours::new(Arc::new(MemoryStore::new())).await?;
    let keys: Vec<_> = (0..KEYS).map(|n| (Bytes::from(record_key(n)), Bytes::from(index_key(n)))).collect();
    let map = keys.iter().flat_map(|(a, b)| [(a.clone(), (value(), 1)), (b.clone(), (value(), 1))]).collect();
    let bare = Arc::new(BareMap { map: Mutex::new(map), keys, reads: AtomicU64::new(0) });
    let our_commits = operation(&ours, async |ours, client| {
        for _ in 0..AT_ONCE {
            ours.commit_once(client).await?;
        }
        Ok(AT_ONCE)
    });
    let bare_commits = operation(&bare, async |bare, client| {
        for _ in 0..AT_ONCE {
            bare.commit(client)?;
        }
        Ok(AT_ONCE)
    });
    let our_gets = operation(&ours, async |ours, _| {
        for _ in 0..AT_ONCE {
            ours.get_once().await?;
        }
        Ok(AT_ONCE)
    });
    let bare_gets = operation(&bare, async |bare, _| {
        for _ in 0..AT_ONCE {
            std::hint::black_box(bare.get()?);
        }
        Ok(AT_ONCE)
    });
    let mut rows = Vec::<Row>::new();
    for clients in [1, 16] {
        let commits = compare(arguments.effort(), clients, &our_commits, &bare_commits).await?;
        rows.push(commits.row(format!("commit, {clients} clients")));
        findings.at_least(
            format!("state/memory commit, {clients} clients: ours / bare"),
            0.3,
            commits.ratio(),
        );
        let gets = compare(arguments.effort(), clients, &our_gets, &bare_gets).await?;
        rows.push(gets.row(format!("get, {clients} clients")));
        findings.at_least(format!("state/memory get, {clients} clients: ours / bare"), 0.3, gets.ratio());
    }
    findings.section(
        format!("state/memory beside a BTreeMap under a lock ({AT_ONCE} operations are timed as one)"),
        "work",
        rows,
    );
    Ok(())
}
