//! A small store, right unless it is told to be wrong in one way.

// A lock that a failed case poisoned, or a key that cannot be, is a failure of the test.
#![allow(clippy::unwrap_used)]

mod apply;
mod fault;
mod network;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use flames_error::{Error, Result};
use flames_state::{
    Commit, Committed, Entry, Hint, HintStream, Key, KeyRange, LogEntry, MAX_PAGE, Page, PageRequest,
    Position, StateStore, Version, Write,
};
use flames_state_conformance::async_trait;
use futures::StreamExt;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream};

pub(crate) use fault::Fault;
pub(crate) use network::Networked;

// Shared with whoever reads, so that a read need not copy the store.
type Entries = Arc<BTreeMap<Key, (Bytes, u64)>>;
type Logs = Arc<BTreeMap<Key, BTreeMap<Position, Bytes>>>;

#[derive(Debug, Default)]
struct State {
    versions: u64,
    positions: u64,
    entries: Entries,
    logs: Logs,
    /// The store before the last commit.
    before: (Entries, Logs),
    reads: u64,
    deleted: BTreeMap<Key, (Bytes, u64)>,
    offsets: HashMap<Key, usize>,
    /// The store some commits ago: what a server has on disk that writes later.
    on_disk: VecDeque<(Entries, Logs)>,
}

impl State {
    fn entries_mut(&mut self) -> &mut BTreeMap<Key, (Bytes, u64)> {
        Arc::make_mut(&mut self.entries)
    }
}

/// The store.
#[derive(Debug)]
pub(crate) struct BrokenStore {
    fault: Fault,
    state: Mutex<State>,
    hints: broadcast::Sender<Key>,
    /// Subscribers that are waited for: those of `HintsWaitForTheirReader`.
    patient: Mutex<Vec<(Key, mpsc::Sender<Key>)>>,
    /// Held while a commit is applied in several steps that nobody else is to see.
    whole: tokio::sync::Mutex<()>,
    /// Answers on their way to whoever reads next, of `DroppedReadsAreAnsweredNext`.
    answers: Mutex<VecDeque<Option<Entry>>>,
    commits_under_way: AtomicUsize,
    clock_ms: AtomicI64,
}

/// Counts one commit for as long as it is under way.
struct UnderWay<'a>(&'a AtomicUsize);

impl<'a> UnderWay<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Lets every other task take a turn.
async fn others_go_first() {
    for _ in 0..4 {
        tokio::task::yield_now().await;
    }
}

impl BrokenStore {
    pub(crate) fn new(fault: Fault) -> Self {
        Self {
            fault,
            state: Mutex::default(),
            hints: broadcast::Sender::new(1_000),
            patient: Mutex::default(),
            whole: tokio::sync::Mutex::default(),
            answers: Mutex::default(),
            commits_under_way: AtomicUsize::new(0),
            clock_ms: AtomicI64::new(1_000_000_000_000),
        }
    }

    pub(crate) fn jump_clock(&self, by_ms: i64) {
        self.clock_ms.fetch_add(by_ms, Ordering::SeqCst);
    }

    /// What a server does that is killed and started again.
    pub(crate) fn killed(&self) {
        let mut state = self.state();
        if self.is(Fault::KilledWithItsBuffer)
            && let Some((entries, logs)) = state.on_disk.front().cloned()
        {
            state.entries = entries;
            state.logs = logs;
        }
        if self.is(Fault::PositionsGoBackWhenKilled) {
            state.positions = state.positions.saturating_sub(5);
        }
    }

    pub(crate) fn reopen(&self) {
        let mut state = self.state();
        if self.is(Fault::ForgetsAtReopen) {
            state.entries = Arc::default();
        }
        if self.is(Fault::DeletedKeysComeBackAtReopen) {
            let deleted = std::mem::take(&mut state.deleted);
            state.entries_mut().extend(deleted);
        }
        if self.is(Fault::VersionsStartAnewAtReopen) {
            state.versions = 0;
        }
        if self.is(Fault::PositionsStartAnewAtReopen) {
            let last = state.logs.values().filter_map(|log| log.keys().next_back()).max().copied();
            state.positions = last.map_or(0, |position| position.as_raw().0);
        }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What a reader sees now.
    fn readable(&self) -> (Entries, Logs) {
        let mut state = self.state();
        state.reads += 1;
        let late = self.is(Fault::ReadsAreOneCommitLate)
            || (self.is(Fault::ReadsAreLateAfterTheFirst) && state.reads % 4 == 3)
            || (self.is(Fault::ReadsAreLateUnderLoad) && self.commits_under_way.load(Ordering::SeqCst) > 1);
        if late { state.before.clone() } else { (state.entries.clone(), state.logs.clone()) }
    }

    /// Where a commit is applied in several steps, readers wait for the last one.
    async fn wholly(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        if self.is(Fault::HalfDoneWhenDropped) { Some(self.whole.lock().await) } else { None }
    }

    fn key(&self, key: &Key) -> Key {
        if self.is(Fault::KeysAreText) {
            let text = String::from_utf8_lossy(key.as_bytes());
            return Key::new(text.bytes().take(512).collect::<Vec<_>>()).unwrap();
        }
        key.clone()
    }

    fn log(&self, log: &Key) -> Key {
        if self.is(Fault::OneLogForAll) { Key::new("log").unwrap() } else { log.clone() }
    }

    fn page(&self, entries: &Entries, range: &KeyRange, page: &PageRequest) -> Page {
        let inside = |key: &Key| {
            range.contains(key) || (self.is(Fault::ScanPassesItsEnd) && key.as_bytes() >= range.start())
        };
        let entry = |(key, (value, version)): (&Key, &(Bytes, u64))| Entry {
            key: key.clone(),
            value: value.clone(),
            version: Version::from_raw(*version),
        };
        let from = Key::new(range.start()).unwrap_or_else(|_| Key::new(vec![0]).unwrap());
        let mut all: Vec<Entry> = entries.range(from..).filter(|(key, _)| inside(key)).map(entry).collect();
        let mut offset = 0;
        if let Some(after) = &page.after {
            offset = all.iter().filter(|entry| entry.key <= *after).count();
            match self.fault {
                Fault::PageRepeatsItsFirst => offset = offset.saturating_sub(1),
                Fault::PageSkipsItsFirst => offset = (offset + 1).min(all.len()),
                Fault::PagesByOffset => {
                    offset = self.state().offsets.get(after).copied().unwrap_or(offset).min(all.len());
                }
                Fault::CursorMustExist if !all.iter().any(|entry| entry.key == *after) => offset = all.len(),
                _ => {}
            }
            all.drain(..offset);
        }
        let mut limit = page.limit;
        if self.is(Fault::OnePageIsAllThereIs) && all.len() > 500 && limit > 500 {
            all.truncate(500);
            limit = 500;
        }
        let more = all.len() > limit || (self.is(Fault::FullPageClaimsMore) && all.len() == page.limit);
        all.truncate(page.limit);
        let next = all.last().filter(|_| more).map(|last| last.key.clone());
        if let Some(next) = &next {
            self.state().offsets.insert(next.clone(), offset + all.len());
        }
        if self.is(Fault::ScanIsDescending) {
            all.reverse();
        }
        Page { entries: all, next }
    }
}

fn validate_limit(limit: usize) -> Result<()> {
    if (1..=MAX_PAGE).contains(&limit) { Ok(()) } else { Err(Error::invalid("state", "limit", "1 to 1,000")) }
}

#[async_trait]
impl StateStore for BrokenStore {
    fn name(&self) -> &'static str {
        if self.is(Fault::NoName) { "" } else { "broken" }
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        let _whole = self.wholly().await;
        let found = self.readable().0.get(&self.key(key)).cloned();
        let found = found.or(self.is(Fault::AbsentReadsAsEmpty).then(|| (Bytes::new(), 0)));
        let answer = found.map(|(value, version)| Entry {
            key: key.clone(),
            value,
            version: Version::from_raw(version),
        });
        if self.is(Fault::DroppedReadsAreAnsweredNext) {
            self.answers.lock().unwrap().push_back(answer);
            tokio::task::yield_now().await;
            return Ok(self.answers.lock().unwrap().pop_front().unwrap());
        }
        Ok(answer)
    }

    async fn scan(&self, range: &KeyRange, page: PageRequest) -> Result<Page> {
        if !self.is(Fault::AnyPageLimit) {
            validate_limit(page.limit)?;
        }
        let _whole = self.wholly().await;
        let mut read = self.page(&self.readable().0, range, &page);
        if self.is(Fault::PageInTwoReads) {
            others_go_first().await;
            let again = self.page(&self.readable().0, range, &page);
            let half = read.entries.len() / 2;
            read.entries.truncate(half);
            read.entries.extend(again.entries.into_iter().skip(half));
        }
        Ok(read)
    }

    async fn commit(&self, commit: &Commit) -> Result<Committed> {
        self.validate(commit)?;
        let committed = self.apply(commit).await?;
        let appended = commit.appends.iter().map(|append| &append.log);
        let appended = appended.take(if self.is(Fault::AppendsAreNotHinted) { 0 } else { usize::MAX });
        for key in commit.writes.iter().map(Write::key).chain(appended) {
            if !self.is(Fault::NoHints) {
                let _ = self.hints.send(key.clone());
            }
            let waited_for = self.patient.lock().unwrap().clone();
            for (_, subscriber) in waited_for.iter().filter(|(prefix, _)| key.starts_with(prefix)) {
                let _ = subscriber.send(key.clone()).await;
            }
        }
        Ok(committed)
    }

    async fn read_log(&self, log: &Key, after: Position, limit: usize) -> Result<Vec<LogEntry>> {
        if !self.is(Fault::AnyLogLimit) {
            validate_limit(limit)?;
        }
        let log = self.log(log);
        let mine = |name: &Key| *name == log || (self.is(Fault::LogsByPrefix) && name.starts_with(&log));
        let logs = self.readable().1;
        let read = logs.iter().filter(|(name, _)| mine(name));
        let mut read: Vec<LogEntry> = read
            .flat_map(|(_, entries)| entries.range((Bound::Excluded(after), Bound::Unbounded)))
            .filter(|(position, _)| {
                !self.is(Fault::LogIsReadInWindows) || position.as_raw().0 <= after.as_raw().0 + 256
            })
            .map(|(position, payload)| LogEntry { position: *position, payload: payload.clone() })
            .collect();
        read.sort_by_key(|entry| entry.position);
        read.truncate(limit);
        if self.is(Fault::LogIsNewestFirst) {
            read.reverse();
        }
        Ok(read)
    }

    async fn trim_log(&self, log: &Key, through: Position) -> Result<()> {
        if let Some(entries) = Arc::make_mut(&mut self.state().logs).get_mut(&self.log(log)) {
            entries.retain(|position, _| match self.fault {
                Fault::TrimKeepsItsPosition => *position >= through,
                Fault::TrimTakesAll => false,
                _ => *position > through,
            });
        }
        Ok(())
    }

    async fn changes(&self, prefix: &Key) -> Result<HintStream> {
        if self.is(Fault::HintsWaitForTheirReader) {
            let (sender, receiver) = mpsc::channel(16);
            self.patient.lock().unwrap().push((prefix.clone(), sender));
            return Ok(ReceiverStream::new(receiver).map(Hint::Changed).boxed());
        }
        let (prefix, everyone) = (prefix.clone(), self.is(Fault::HintsForEveryone));
        let hints = BroadcastStream::new(self.hints.subscribe()).filter_map(move |received| {
            let hint = match received {
                Ok(key) => (everyone || key.starts_with(&prefix)).then_some(Hint::Changed(key)),
                Err(_) => Some(Hint::Lost),
            };
            futures::future::ready(hint)
        });
        Ok(hints.boxed())
    }
}
