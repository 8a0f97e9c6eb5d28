//! Random sequences of operations, compared step by step with a plain map, and cut down to the shortest that shows a difference.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use flames_conformance_runner::{Sequences, agree, seeds};
use flames_error::ErrorKind;
use flames_state::{Check, Commit, Key, KeyRange, MAX_PAGE, PageRequest, Position, Version, Write};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::Fixture;
use crate::support::{Store, key};

const SEQUENCES: Sequences = Sequences { least: 12, most: 64, time: Duration::from_secs(6) };
const STEPS: usize = 30;

/// Keys that are prefixes of each other, that sort next to each other, and that are no text.
const KEYS: [&[u8]; 9] = [b"a", b"a\0", b"a/", b"a/b", b"a/\xff", b"a0", b"b", b"\xff", b"\xff\xff"];
const LOGS: usize = 2;

#[derive(Debug, Clone)]
enum CheckStep {
    Absent(usize),
    Present(usize),
    /// At a version that some key, this one or another, was given: so many puts of it ago.
    At {
        key: usize,
        version_of: usize,
        ago: usize,
    },
    /// Whatever holds now.
    AsItIs(usize),
}

#[derive(Debug, Clone)]
enum Step {
    Commit { checks: Vec<CheckStep>, writes: Vec<(usize, Option<usize>)>, appends: Vec<(usize, usize)> },
    Get(usize),
    Scan { from: usize, to: Option<usize>, limit: usize },
    ReadLog { log: usize, after: usize, limit: usize },
    TrimLog { log: usize, through: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let any_key = 0..KEYS.len();
    let size = prop_oneof![Just(0_usize), Just(1), 2..200_usize, Just(20_000)];
    let check = prop_oneof![
        1 => any_key.clone().prop_map(CheckStep::Absent),
        1 => any_key.clone().prop_map(CheckStep::Present),
        2 => (any_key.clone(), any_key.clone(), 0..3_usize)
            .prop_map(|(key, version_of, ago)| CheckStep::At { key, version_of, ago }),
        4 => any_key.clone().prop_map(CheckStep::AsItIs),
    ];
    let write = (any_key.clone(), prop_oneof![1 => Just(None), 2 => size.clone().prop_map(Some)]);
    let limit = prop_oneof![1..5_usize, Just(MAX_PAGE)];
    let step = prop_oneof![
        6 => (vec(check, 0..3), vec(write, 0..4), vec((0..LOGS, size), 0..3))
            .prop_map(|(checks, writes, appends)| Step::Commit { checks, writes, appends }),
        2 => any_key.clone().prop_map(Step::Get),
        2 => (any_key.clone(), proptest::option::of(any_key), limit.clone())
            .prop_map(|(from, to, limit)| Step::Scan { from, to, limit }),
        2 => (0..LOGS, 0..8_usize, limit).prop_map(|(log, after, limit)| Step::ReadLog { log, after, limit }),
        1 => (0..LOGS, 0..8_usize).prop_map(|(log, through)| Step::TrimLog { log, through }),
    ];
    vec(step, 1..=STEPS)
}

/// The reference: what the store must hold.
#[derive(Default)]
struct Reference {
    entries: BTreeMap<Key, (Bytes, Version)>,
    /// All versions that a key ever had, the last one first.
    versions: BTreeMap<Key, Vec<Version>>,
    logs: BTreeMap<Key, Vec<(Position, Bytes)>>,
    /// What was appended and not read yet: its position is known to nobody.
    unread: BTreeMap<Key, Vec<Bytes>>,
    /// Every position that was read, of any log.
    positions: Vec<Position>,
}

struct Run {
    store: Store,
    prefix: String,
    reference: Reference,
    commits: usize,
}

/// What does not agree.
type Difference = String;

impl Run {
    fn key(&self, number: usize) -> Key {
        key([self.prefix.as_bytes(), KEYS[number]].concat())
    }

    fn log(&self, number: usize) -> Key {
        // Named as keys are, and a log of one is no key of that name.
        self.key(number)
    }

    /// The position of this number among those that were read; the last ones are the likely ones.
    fn position(&self, number: usize) -> Position {
        let from_end = self.reference.positions.len().checked_sub(number);
        from_end.and_then(|place| self.reference.positions.get(place)).copied().unwrap_or(Position::START)
    }

    async fn step(&mut self, step: &Step) -> Result<(), Difference> {
        match step {
            Step::Commit { checks, writes, appends } => self.commit(checks, writes, appends).await,
            Step::Get(number) => {
                let name = self.key(*number);
                let read = self.store.get(&name).await.map_err(|error| format!("get: {error:?}"))?;
                let read = read.map(|entry| (entry.value, entry.version));
                agree(&format!("get {name}"), &read, &self.reference.entries.get(&name).cloned())
            }
            Step::Scan { from, to, limit } => self.scan(*from, *to, *limit).await,
            Step::ReadLog { log, after, limit } => {
                self.learn(*log).await?;
                let (name, after) = (self.log(*log), self.position(*after));
                let read = self.store.read_log(&name, after, *limit).await;
                let read = read.map_err(|error| format!("read_log: {error:?}"))?;
                let read: Vec<_> = read.into_iter().map(|entry| (entry.position, entry.payload)).collect();
                let expected: Vec<_> = self.entries_of(&name, after).take(*limit).collect();
                agree(&format!("log {name} behind {after}, {limit}"), &read, &expected)
            }
            Step::TrimLog { log, through } => {
                self.learn(*log).await?;
                let (name, through) = (self.log(*log), self.position(*through));
                self.store.trim_log(&name, through).await.map_err(|error| format!("trim_log: {error:?}"))?;
                self.reference.logs.entry(name).or_default().retain(|(position, _)| *position > through);
                Ok(())
            }
        }
    }

    fn entries_of(&self, log: &Key, after: Position) -> impl Iterator<Item = (Position, Bytes)> {
        let entries = self.reference.logs.get(log).cloned().unwrap_or_default();
        entries.into_iter().filter(move |(position, _)| *position > after)
    }

    /// Reads what was appended since the last time, so that its positions are known.
    async fn learn(&mut self, log: usize) -> Result<(), Difference> {
        let name = self.log(log);
        let unread = self.reference.unread.remove(&name).unwrap_or_default();
        let known = self.reference.logs.entry(name.clone()).or_default();
        // Behind all that was ever read of this log, also when it is trimmed by now: positions are never given again.
        let after = known.last().map_or(Position::START, |(position, _)| *position);
        let read = self.store.read_log(&name, after, MAX_PAGE).await;
        let read = read.map_err(|error| format!("read_log: {error:?}"))?;
        let payloads: Vec<_> = read.iter().map(|entry| entry.payload.clone()).collect();
        agree(&format!("log {name} behind {after}"), &payloads, &unread)?;
        let positions: Vec<_> = read.iter().map(|entry| entry.position).collect();
        let all = [&[after], &positions[..]].concat();
        if !all.is_sorted_by(|one, other| one < other) {
            return Err(format!("log {name}: the positions do not grow: {all:?}"));
        }
        known.extend(read.into_iter().map(|entry| (entry.position, entry.payload)));
        self.reference.positions.extend(positions);
        Ok(())
    }

    fn check(&self, step: &CheckStep) -> Check {
        let current = |name: &Key| self.reference.entries.get(name).map(|(_, version)| *version);
        match step {
            CheckStep::Absent(number) => Check::Absent(self.key(*number)),
            CheckStep::Present(number) => Check::Present(self.key(*number)),
            CheckStep::AsItIs(number) => {
                let name = self.key(*number);
                current(&name).map_or(Check::Absent(name.clone()), |version| Check::At(name, version))
            }
            CheckStep::At { key, version_of, ago } => {
                let name = self.key(*key);
                let past = self.reference.versions.get(&self.key(*version_of));
                match past.and_then(|versions| versions.get(*ago)) {
                    Some(version) => Check::At(name, *version),
                    None => Check::Present(name),
                }
            }
        }
    }

    async fn commit(
        &mut self,
        checks: &[CheckStep],
        writes: &[(usize, Option<usize>)],
        appends: &[(usize, usize)],
    ) -> Result<(), Difference> {
        self.commits += 1;
        let text = |size: usize| Bytes::from(format!("{}.", self.commits).repeat(size.div_ceil(3)));
        let mut commit = Commit::new();
        for step in checks {
            commit.check(self.check(step));
        }
        for (number, size) in writes {
            let name = self.key(*number);
            if commit.writes.iter().any(|write| *write.key() == name) {
                continue;
            }
            match size {
                Some(size) => commit.put(name, text(*size)),
                None => commit.delete(name),
            };
        }
        for (log, size) in appends {
            commit.append(self.log(*log), text(*size));
        }
        let current = |name: &Key| self.reference.entries.get(name).map(|(_, version)| *version);
        let holds = commit.checks.iter().all(|check| check.holds(current(check.key())));
        let answer = self.store.commit(&commit).await;
        let kind = answer.as_ref().err().map(|error| error.kind());
        let expected = match (commit.validate(), holds) {
            (Err(_), _) => Some(ErrorKind::InvalidInput),
            (Ok(()), false) => Some(ErrorKind::Conflict),
            (Ok(()), true) => None,
        };
        agree(&format!("the error of {commit:?}"), &kind, &expected)?;
        let Ok(committed) = answer else { return Ok(()) };
        for write in &commit.writes {
            match write {
                Write::Put(name, value) => {
                    let past = self.reference.versions.entry(name.clone()).or_default();
                    if past.contains(&committed.version) {
                        return Err(format!("{:?} was given to {name} before", committed.version));
                    }
                    past.insert(0, committed.version);
                    self.reference.entries.insert(name.clone(), (value.clone(), committed.version));
                }
                Write::Delete(name) => {
                    self.reference.entries.remove(name);
                }
            }
        }
        for append in commit.appends {
            self.reference.unread.entry(append.log).or_default().push(append.payload);
        }
        Ok(())
    }

    async fn scan(&self, from: usize, to: Option<usize>, limit: usize) -> Result<(), Difference> {
        let range = match to {
            Some(to) => KeyRange::between(&self.key(from), &self.key(to)),
            None => KeyRange::prefix(&self.key(from)),
        };
        let expected: Vec<_> = self
            .reference
            .entries
            .iter()
            .filter(|(name, _)| range.contains(name))
            .map(|(name, (value, version))| (name.clone(), value.clone(), *version))
            .collect();
        let (mut read, mut page) = (Vec::new(), PageRequest::first(limit));
        loop {
            let got = self.store.scan(&range, page).await.map_err(|error| format!("scan: {error:?}"))?;
            if got.entries.len() > limit || read.len() > expected.len() {
                return Err(format!("a page of {limit} of {range:?} is too long: {got:?}"));
            }
            read.extend(got.entries.into_iter().map(|entry| (entry.key, entry.value, entry.version)));
            match got.next {
                Some(next) => page = PageRequest { after: Some(next), limit },
                None => return agree(&format!("{range:?} in pages of {limit}"), &read, &expected),
            }
        }
    }
}

/// Runs a sequence from an empty store (under a prefix of its own).
async fn run(fixture: &dyn Fixture, number: usize, steps: &[Step]) -> Result<(), Difference> {
    let mut run = Run {
        store: fixture.store(),
        prefix: format!("run/{number}/"),
        reference: Reference::default(),
        commits: 0,
    };
    for step in steps {
        run.step(step).await?;
    }
    // At the end everything is compared, whether the sequence asked for it or not.
    for number in 0..KEYS.len() {
        run.scan(number, None, MAX_PAGE).await?;
        run.step(&Step::Get(number)).await?;
    }
    for log in 0..LOGS {
        run.step(&Step::ReadLog { log, after: usize::MAX, limit: MAX_PAGE }).await?;
    }
    Ok(())
}

pub(crate) async fn random_operations_agree_with_a_reference_model(fixture: &dyn Fixture) {
    let seeds = seeds("random_operations_agree_with_a_reference_model", [101]);
    SEQUENCES.agree(seeds, steps(), async |number, steps| run(fixture, number, steps).await).await;
}
