//! A small store, right unless it is told to be wrong in one way.

// A lock that a failed case poisoned, or a key that cannot be, is a failure of the test.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use flames_error::{Error, ErrorKind, Result};
use flames_state::{
    Check, Commit, Committed, Entry, Hint, HintStream, Key, KeyRange, LogEntry, MAX_COMMIT_OPERATIONS,
    MAX_PAGE, MAX_VALUE_BYTES, Page, PageRequest, Position, StateStore, Version, Write,
};
use futures::StreamExt;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    NoName,
    ReadsAreOneCommitLate,
    ReadsAreLateAfterTheFirst,
    AbsentReadsAsEmpty,
    EmptyValuesVanish,
    KeysAreText,
    LongValuesAreCut,
    ScanPassesItsEnd,
    ScanIsDescending,
    PageRepeatsItsFirst,
    PageSkipsItsFirst,
    FullPageClaimsMore,
    PagesByOffset,
    CursorMustExist,
    PageInTwoReads,
    AnyPageLimit,
    WritesBeforeChecks,
    OnlyTheFirstCheckCounts,
    AtMeansPresent,
    PresentMeansAnything,
    VersionsCountPerKey,
    VersionIsTheValue,
    EachWriteHasItsVersion,
    PutKeepsWhatIsThere,
    NoLimits,
    LimitsAreOneTooTight,
    LastOfTwoWritesWins,
    EmptyCommitsAreTaken,
    DeleteWantsAKey,
    DeleteTakesTheNextKeyToo,
    WritesOneByOne,
    ChecksThenWrites,
    ChecksOnlyWhatItWrites,
    LogIsNewestFirst,
    AppendsInAnyOrder,
    AppendsDespiteFailedChecks,
    OneLogForAll,
    LogsByPrefix,
    PositionsAreTakenEarly,
    AnyLogLimit,
    TrimKeepsItsPosition,
    TrimTakesAll,
    PositionsFromTheLogsEnd,
    NoHints,
    AppendsAreNotHinted,
    HintsForEveryone,
    ForgetsAtReopen,
    DeletedKeysComeBackAtReopen,
    VersionsStartAnewAtReopen,
    PositionsStartAnewAtReopen,
}

type Entries = BTreeMap<Key, (Bytes, u64)>;
type Logs = BTreeMap<Key, BTreeMap<Position, Bytes>>;

#[derive(Debug, Default)]
struct State {
    versions: u64,
    positions: u64,
    entries: Entries,
    logs: Logs,
    /// The store before the last commit.
    before: (Entries, Logs),
    reads: u64,
    deleted: Entries,
    offsets: HashMap<Key, usize>,
}

/// The store.
#[derive(Debug)]
pub(crate) struct BrokenStore {
    fault: Option<Fault>,
    state: Mutex<State>,
    hints: broadcast::Sender<Key>,
}

/// Lets every other task take a turn.
async fn others_go_first() {
    for _ in 0..4 {
        tokio::task::yield_now().await;
    }
}

impl BrokenStore {
    pub(crate) fn new(fault: Option<Fault>) -> Self {
        Self { fault, state: Mutex::default(), hints: broadcast::Sender::new(1_000) }
    }

    pub(crate) fn reopen(&self) {
        let mut state = self.state();
        if self.is(Fault::ForgetsAtReopen) {
            state.entries.clear();
        }
        if self.is(Fault::DeletedKeysComeBackAtReopen) {
            let deleted = std::mem::take(&mut state.deleted);
            state.entries.extend(deleted);
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
        self.fault == Some(fault)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What a reader sees now.
    fn readable(&self) -> (Entries, Logs) {
        let mut state = self.state();
        state.reads += 1;
        let late = self.is(Fault::ReadsAreOneCommitLate)
            || (self.is(Fault::ReadsAreLateAfterTheFirst) && state.reads % 4 == 3);
        if late { state.before.clone() } else { (state.entries.clone(), state.logs.clone()) }
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

    fn validate(&self, commit: &Commit) -> Result<()> {
        let mut judged = commit.clone();
        match self.fault {
            Some(Fault::NoLimits) => {
                let cut = |value: &Bytes| value.slice(..value.len().min(1));
                judged.checks.clear();
                judged.writes.truncate(MAX_COMMIT_OPERATIONS / 2);
                for write in &mut judged.writes {
                    if let Write::Put(_, value) = write {
                        *value = cut(value);
                    }
                }
                judged.appends.iter_mut().for_each(|append| append.payload = cut(&append.payload));
            }
            Some(Fault::LimitsAreOneTooTight) if commit.operations() == MAX_COMMIT_OPERATIONS => {
                return Err(Error::invalid("state.commit", "commit", "A commit has at most 63 operations."));
            }
            Some(Fault::LastOfTwoWritesWins) => judged.writes.truncate(1),
            Some(Fault::EmptyCommitsAreTaken) if commit.writes.is_empty() && commit.appends.is_empty() => {
                return Ok(());
            }
            _ => {}
        }
        judged.validate()
    }

    fn check(&self, state: &State, commit: &Commit) -> Result<()> {
        let written = |key: &Key| commit.writes.iter().any(|write| write.key() == key);
        let count = if self.is(Fault::OnlyTheFirstCheckCounts) { 1 } else { usize::MAX };
        for check in commit.checks.iter().take(count) {
            let current =
                state.entries.get(&self.key(check.key())).map(|(_, version)| Version::from_raw(*version));
            let holds = match (self.fault, check) {
                (Some(Fault::AtMeansPresent), Check::At(..)) => current.is_some(),
                (Some(Fault::PresentMeansAnything), Check::Present(_)) => true,
                (Some(Fault::ChecksOnlyWhatItWrites), check) => check.holds(current) || !written(check.key()),
                _ => check.holds(current),
            };
            if !holds {
                return Err(Error::new(ErrorKind::Conflict, "state.commit", "a check does not hold"));
            }
        }
        Ok(())
    }

    fn write(&self, state: &mut State, write: &Write, version: u64) -> Result<u64> {
        let key = self.key(write.key());
        let before = state.entries.get(&key).cloned();
        let version = match self.fault {
            Some(Fault::VersionsCountPerKey) => before.as_ref().map_or(1, |(_, version)| version + 1),
            Some(Fault::VersionIsTheValue) => match write {
                Write::Put(_, value) => {
                    value.iter().fold(7, |sum, byte| sum * 31 % 1_000_003 + u64::from(*byte))
                }
                Write::Delete(_) => version,
            },
            Some(Fault::EachWriteHasItsVersion) => {
                state.versions += 1;
                state.versions
            }
            _ => version,
        };
        match write {
            Write::Put(_, value) if value.is_empty() && self.is(Fault::EmptyValuesVanish) => {
                state.entries.remove(&key);
            }
            Write::Put(..) if before.is_some() && self.is(Fault::PutKeepsWhatIsThere) => {}
            Write::Put(_, value) => {
                let cut = if self.is(Fault::LongValuesAreCut) { MAX_VALUE_BYTES - 1 } else { usize::MAX };
                state.entries.insert(key, (value.slice(..value.len().min(cut)), version));
            }
            Write::Delete(_) => {
                if before.is_none() && self.is(Fault::DeleteWantsAKey) {
                    return Err(Error::not_found("state.commit", "key", key.to_string()));
                }
                if self.is(Fault::DeleteTakesTheNextKeyToo) {
                    let next = state.entries.range(key.clone()..).nth(1).map(|(next, _)| next.clone());
                    next.map(|next| state.entries.remove(&next));
                }
                state.entries.remove(&key);
                state.deleted.extend(before.map(|before| (key, before)));
            }
        }
        Ok(version)
    }

    fn append(&self, state: &mut State, commit: &Commit, position: u64) {
        let appends: Box<dyn Iterator<Item = _>> = match self.fault {
            Some(Fault::AppendsInAnyOrder) => Box::new(commit.appends.iter().rev()),
            _ => Box::new(commit.appends.iter()),
        };
        for (ordinal, append) in (0..).zip(appends) {
            let entries = state.logs.entry(self.log(&append.log)).or_default();
            let position = match self.fault {
                Some(Fault::PositionsFromTheLogsEnd) => {
                    Position::from_raw(entries.keys().next_back().map_or(1, |last| last.as_raw().0 + 1), 0)
                }
                _ => Position::from_raw(position, ordinal),
            };
            entries.insert(position, append.payload.clone());
        }
    }

    async fn apply(&self, commit: &Commit) -> Result<Committed> {
        if self.is(Fault::ChecksThenWrites) {
            self.check(&self.state(), commit)?;
            others_go_first().await;
        }
        let mut early = 0;
        if self.is(Fault::PositionsAreTakenEarly) {
            early = {
                let mut state = self.state();
                state.positions += 1;
                state.positions
            };
            // The later the position, the shorter the way to the log.
            for _ in 0..(early % 3) * 4 {
                tokio::task::yield_now().await;
            }
        }
        if self.is(Fault::WritesOneByOne) {
            self.check(&self.state(), commit)?;
            for write in &commit.writes {
                self.apply_at_once(&Commit { writes: vec![write.clone()], ..Commit::new() }, 0)?;
                others_go_first().await;
            }
            let rest = Commit { appends: commit.appends.clone(), ..Commit::new() };
            return self.apply_at_once(&rest, 0);
        }
        self.apply_at_once(commit, early)
    }

    fn apply_at_once(&self, commit: &Commit, early: u64) -> Result<Committed> {
        let mut state = self.state();
        if self.is(Fault::AppendsDespiteFailedChecks) {
            state.positions += 1;
            let position = state.positions;
            self.append(&mut state, commit, position);
        }
        if !self.is(Fault::WritesBeforeChecks) && !self.is(Fault::ChecksThenWrites) {
            self.check(&state, commit)?;
        }
        state.before = (state.entries.clone(), state.logs.clone());
        state.versions += 1;
        let number = state.versions;
        let judged = if self.is(Fault::WritesBeforeChecks) { self.check(&state, commit) } else { Ok(()) };
        let mut version = number;
        for write in &commit.writes {
            version = self.write(&mut state, write, number)?;
        }
        judged?;
        if !self.is(Fault::AppendsDespiteFailedChecks) {
            let position = if early == 0 { state.positions + 1 } else { early };
            state.positions = state.positions.max(position);
            self.append(&mut state, commit, position);
        }
        Ok(Committed { version: Version::from_raw(version) })
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
        let mut all: Vec<Entry> = entries.iter().filter(|(key, _)| inside(key)).map(entry).collect();
        let mut offset = 0;
        if let Some(after) = &page.after {
            offset = all.iter().filter(|entry| entry.key <= *after).count();
            match self.fault {
                Some(Fault::PageRepeatsItsFirst) => offset = offset.saturating_sub(1),
                Some(Fault::PageSkipsItsFirst) => offset = (offset + 1).min(all.len()),
                Some(Fault::PagesByOffset) => {
                    offset = self.state().offsets.get(after).copied().unwrap_or(offset).min(all.len());
                }
                Some(Fault::CursorMustExist) if !all.iter().any(|entry| entry.key == *after) => {
                    offset = all.len()
                }
                _ => {}
            }
            all.drain(..offset);
        }
        let more = all.len() > page.limit || (self.is(Fault::FullPageClaimsMore) && all.len() == page.limit);
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
        let found = self.readable().0.get(&self.key(key)).cloned();
        let found = found.or(self.is(Fault::AbsentReadsAsEmpty).then(|| (Bytes::new(), 0)));
        Ok(found.map(|(value, version)| Entry {
            key: key.clone(),
            value,
            version: Version::from_raw(version),
        }))
    }

    async fn scan(&self, range: &KeyRange, page: PageRequest) -> Result<Page> {
        if !self.is(Fault::AnyPageLimit) {
            validate_limit(page.limit)?;
        }
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
        let read = logs.into_iter().filter(|(name, _)| mine(name)).flat_map(|(_, entries)| entries);
        let mut read: Vec<LogEntry> = read
            .filter(|(position, _)| *position > after)
            .map(|(position, payload)| LogEntry { position, payload })
            .collect();
        read.sort_by_key(|entry| entry.position);
        read.truncate(limit);
        if self.is(Fault::LogIsNewestFirst) {
            read.reverse();
        }
        Ok(read)
    }

    async fn trim_log(&self, log: &Key, through: Position) -> Result<()> {
        if let Some(entries) = self.state().logs.get_mut(&self.log(log)) {
            entries.retain(|position, _| match self.fault {
                Some(Fault::TrimKeepsItsPosition) => *position >= through,
                Some(Fault::TrimTakesAll) => false,
                _ => *position > through,
            });
        }
        Ok(())
    }

    async fn changes(&self, prefix: &Key) -> Result<HintStream> {
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
