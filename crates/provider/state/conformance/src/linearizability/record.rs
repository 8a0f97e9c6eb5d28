//! Random clients, and a record of what they saw.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flames_clock::{RandomExt, SeededRandom};
use flames_error::{Error, ErrorKind};
use flames_state::{
    Check, Commit, Entry, Key, KeyRange, MAX_PAGE, PageRequest, Position, StateStore, Version,
};
use futures::future::join_all;

use super::store::{StoreCheck, StoreInput, StoreOperation, StoreOutput, WriteId};

/// How large a history is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// How many clients run at the same time.
    pub clients: usize,
    /// How many operations each of them makes.
    pub operations: usize,
    /// How many sets of keys there are. No operation touches two sets, so that each can be judged alone.
    pub sets: usize,
    /// How many keys each set has, beside one log.
    pub keys: usize,
    /// How long a client waits at most between two operations.
    pub pause: Duration,
}

impl Default for Plan {
    /// 8 clients of 24 operations on 2 sets of 3 keys, without a pause.
    fn default() -> Self {
        Self { clients: 8, operations: 24, sets: 2, keys: 3, pause: Duration::ZERO }
    }
}

/// Runs random clients against `store`, under keys that begin with `prefix` and that nobody else writes, and answers what they saw.
///
/// An operation that ended with `Unavailable` or `Exhausted` is left out: it promises to have had no effect, and if it had one, the
/// history that others saw has no place. A commit of unknown outcome is in the history without an answer.
///
/// # Panics
///
/// When a store answers what it never may: another error, a value that nobody wrote, one version for two writes of a key.
pub async fn record(store: &Arc<dyn StateStore>, prefix: &str, seed: u64, plan: Plan) -> Vec<StoreOperation> {
    let time = Arc::new(AtomicU64::new(1));
    let clients = (0..plan.clients).map(|number| {
        let random = SeededRandom::new(seed.wrapping_mul(1_000).wrapping_add(number as u64));
        let client = Client {
            number,
            store: Arc::clone(store),
            prefix: prefix.to_owned(),
            plan,
            random,
            time: Arc::clone(&time),
            writes: 0,
            seen: HashMap::new(),
            versions: HashMap::new(),
            history: Vec::new(),
        };
        tokio::spawn(client.run())
    });
    let mut history = Vec::new();
    let mut versions: HashMap<(Key, Version), WriteId> = HashMap::new();
    for client in join_all(clients).await {
        let client = client.expect("a client of the history failed");
        for ((key, write), version) in client.versions {
            let known = *versions.entry((key.clone(), version)).or_insert(write);
            assert_eq!(known, write, "{key} has {version:?} from two writes");
        }
        history.extend(client.history);
    }
    history
}

struct Client {
    number: usize,
    store: Arc<dyn StateStore>,
    prefix: String,
    plan: Plan,
    random: SeededRandom,
    time: Arc<AtomicU64>,
    writes: u64,
    /// What this client knows each key to have held last.
    seen: HashMap<Key, Option<(WriteId, Version)>>,
    /// The version of each write, as this client was told.
    versions: HashMap<(Key, WriteId), Version>,
    history: Vec<StoreOperation>,
}

impl Client {
    async fn run(mut self) -> Self {
        for _ in 0..self.plan.operations {
            let set = self.below(self.plan.sets);
            match self.random.below(10) {
                0..4 => self.get(set).await,
                4 => self.scan(set).await,
                5 => self.read_log(set).await,
                _ => self.commit(set).await,
            }
            for _ in 0..self.random.below(3) {
                tokio::task::yield_now().await;
            }
            if !self.plan.pause.is_zero() {
                let micros = u64::try_from(self.plan.pause.as_micros()).unwrap_or(u64::MAX);
                tokio::time::sleep(Duration::from_micros(self.random.below(micros))).await;
            }
        }
        self
    }

    fn below(&self, bound: usize) -> usize {
        usize::try_from(self.random.below(bound as u64)).unwrap_or(0)
    }

    fn key(&self, set: usize, number: usize) -> Key {
        name(format!("{}/{set}/k/{number}", self.prefix))
    }

    fn log(&self, set: usize) -> Key {
        name(format!("{}/{set}/log", self.prefix))
    }

    fn tick(&self) -> u64 {
        self.time.fetch_add(1, Ordering::SeqCst)
    }

    fn note(&mut self, invoked: u64, input: StoreInput, output: Option<StoreOutput>) {
        let returned = self.tick();
        self.history.push(StoreOperation { client: self.number, input, output, invoked, returned });
    }

    fn saw(&mut self, key: &Key, entry: Option<&Entry>) -> Option<WriteId> {
        let held = entry.map(|entry| (write_of(&entry.value), entry.version));
        self.seen.insert(key.clone(), held);
        if let Some((write, version)) = held {
            let known = *self.versions.entry((key.clone(), write)).or_insert(version);
            assert_eq!(known, version, "{key} is read with two versions of one write");
        }
        held.map(|(write, _)| write)
    }

    async fn get(&mut self, set: usize) {
        let key = self.key(set, self.below(self.plan.keys));
        let invoked = self.tick();
        match self.store.get(&key).await {
            Ok(entry) => {
                let read = self.saw(&key, entry.as_ref());
                self.note(invoked, StoreInput::Read(vec![key]), Some(StoreOutput::Read(vec![read])));
            }
            Err(error) => had_no_effect(&error),
        }
    }

    async fn scan(&mut self, set: usize) {
        let range = KeyRange::prefix(&name(format!("{}/{set}/k/", self.prefix)));
        let invoked = self.tick();
        match self.store.scan(&range, PageRequest::first(MAX_PAGE)).await {
            Ok(page) => {
                let mut keys: Vec<Key> = (0..self.plan.keys).map(|number| self.key(set, number)).collect();
                keys.sort();
                keys.retain(|key| page.next.as_ref().is_none_or(|next| key <= next));
                let mut read = Vec::new();
                for key in &keys {
                    read.push(self.saw(key, page.entries.iter().find(|entry| entry.key == *key)));
                }
                self.note(invoked, StoreInput::Read(keys), Some(StoreOutput::Read(read)));
            }
            Err(error) => had_no_effect(&error),
        }
    }

    async fn read_log(&mut self, set: usize) {
        let log = self.log(set);
        let invoked = self.tick();
        match self.store.read_log(&log, Position::START, MAX_PAGE).await {
            Ok(entries) => {
                let read = entries.iter().map(|entry| write_of(&entry.payload)).collect();
                self.note(invoked, StoreInput::ReadLog(log), Some(StoreOutput::ReadLog(read)));
            }
            Err(error) => had_no_effect(&error),
        }
    }

    async fn commit(&mut self, set: usize) {
        let mut commit = Commit::new();
        let (mut checks, mut writes, mut appends) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.random.below(3) {
            let key = self.key(set, self.below(self.plan.keys));
            let seen = self.seen.get(&key).copied().flatten();
            match (self.random.below(6), seen) {
                (0, _) => {
                    checks.push(StoreCheck::Present(key.clone()));
                    commit.check(Check::Present(key));
                }
                (_, Some((write, version))) => {
                    checks.push(StoreCheck::At(key.clone(), write));
                    commit.check(Check::At(key, version));
                }
                (_, None) => {
                    checks.push(StoreCheck::Absent(key.clone()));
                    commit.check(Check::Absent(key));
                }
            }
        }
        self.writes += 1;
        let write = self.number as u64 * 1_000_000 + self.writes;
        let first = self.below(self.plan.keys);
        for offset in 0..=self.below(2) {
            let key = self.key(set, (first + offset) % self.plan.keys);
            if writes.iter().any(|(written, _)| *written == key) {
                continue;
            }
            if self.random.below(5) == 0 {
                writes.push((key.clone(), None));
                commit.delete(key);
            } else {
                writes.push((key.clone(), Some(write)));
                commit.put(key, write.to_string());
            }
        }
        if self.random.below(3) == 0 {
            appends.push((self.log(set), write));
            commit.append(self.log(set), write.to_string());
        }
        let written = writes.clone();
        let input = StoreInput::Commit { checks, writes, appends };
        let invoked = self.tick();
        let answer = self.store.commit(&commit).await;
        match answer {
            Ok(committed) => {
                self.note(invoked, input, Some(StoreOutput::Applied));
                for (key, write) in written {
                    if let Some(write) = write {
                        self.versions.insert((key.clone(), write), committed.version);
                    }
                    self.seen.insert(key, write.map(|write| (write, committed.version)));
                }
            }
            Err(error) => match error.kind() {
                ErrorKind::Conflict => self.note(invoked, input, Some(StoreOutput::Refused)),
                ErrorKind::OutcomeUnknown => self.note(invoked, input, None),
                _ => had_no_effect(&error),
            },
        }
    }
}

fn name(text: String) -> Key {
    Key::new(text).expect("a key of a history is short")
}

fn write_of(value: &Bytes) -> WriteId {
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.unwrap_or_else(|| panic!("nobody wrote {}", value.escape_ascii()))
}

fn had_no_effect(error: &Error) {
    assert!(
        matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Exhausted),
        "an answer that no operation of a history may get: {error:?}"
    );
}
