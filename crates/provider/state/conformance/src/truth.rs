//! Commits whose outcome is told through a broken network, and what became of them in truth.

use std::time::Duration;

use flames_clock::{RandomExt, SeededRandom};
use flames_error::{ErrorKind, Result};
use flames_state::{Check, Commit, Committed, Key, StateStore};

use crate::Fixture;
use crate::support::{Store, key, whole_log};

/// What an operation may take beyond its store's own deadline: the machine is busy.
const SLACK: Duration = Duration::from_secs(3);

/// Within how long an operation of the fixture's store must have ended.
pub(crate) fn limit(fixture: &dyn Fixture) -> Duration {
    fixture.operation_deadline() + SLACK
}

/// Runs an operation, which is to end within its store's deadline whatever is broken.
pub(crate) async fn in_time<T>(fixture: &dyn Fixture, what: &str, work: impl Future<Output = T>) -> T {
    let limit = limit(fixture);
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        panic!("{what} has not ended within {limit:?}, its store's deadline and some more")
    })
}

/// Whether an error promises that nothing was changed and that a later try may succeed.
pub(crate) fn is_out_of_reach(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::Exhausted)
}

/// Runs an operation until it is no longer refused for want of a server: a store that was cut off connects again by itself.
pub(crate) async fn once_reachable<T>(
    fixture: &dyn Fixture,
    what: &str,
    operation: impl AsyncFn(Store) -> Result<T>,
) -> T {
    let started = std::time::Instant::now();
    let patience = 2 * limit(fixture);
    let mut tries = 0;
    loop {
        tries += 1;
        match in_time(fixture, what, operation(fixture.store())).await {
            Ok(answer) => return answer,
            Err(error) if is_out_of_reach(error.kind()) || error.kind() == ErrorKind::OutcomeUnknown => {
                assert!(
                    started.elapsed() < patience && tries < 1_000,
                    "{what}: still out of reach {patience:?} after nothing is broken any more: {error:?}"
                );
            }
            Err(error) => panic!("{what}: {error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A commit that no other one is equal to, and what was answered to it.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) name: String,
    pub(crate) commit: Commit,
    pub(crate) outcome: Result<Committed>,
}

/// The key that only the commit of this name ever writes.
pub(crate) fn operation_key(name: &str) -> Key {
    key(format!("operation/{name}"))
}

/// The log that all attempts append to.
pub(crate) fn attempts_log() -> Key {
    key("attempts")
}

/// A commit of several keys and a log entry, with nothing to conflict with but itself.
pub(crate) fn commit_of(name: &str, shared: u64, padding: usize) -> Commit {
    let own = operation_key(name);
    let mut commit = Commit::new();
    commit.check(Check::Absent(own.clone())).put(own, name.to_owned());
    commit.put(key(format!("shared/{shared}")), format!("{name}{}", " ".repeat(padding)));
    commit.append(attempts_log(), name.to_owned());
    commit
}

/// Attempts, each settled once: whether it is in the store.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    there: Vec<String>,
    not_there: Vec<String>,
    /// How many answers were of each sort.
    pub(crate) succeeded: usize,
    pub(crate) unknown: usize,
    pub(crate) refused: usize,
}

impl Ledger {
    /// Compares what was answered with what is there, once nothing is broken any more. An unknown outcome becomes known: the same
    /// commit is submitted again, and its operation key read. `when` says in a failure which seed and round it was.
    pub(crate) async fn settle(&mut self, fixture: &dyn Fixture, attempt: &Attempt, when: &str) {
        let Attempt { name, commit, outcome } = attempt;
        let own = operation_key(name);
        let found =
            once_reachable(fixture, "a read", async |store| store.get(&own).await).await.map(|entry| {
                assert_eq!(entry.value, name.as_bytes(), "{when}: {own} has a value that nobody wrote");
                entry.version
            });
        match outcome {
            Ok(committed) => {
                self.succeeded += 1;
                assert_eq!(
                    found,
                    Some(committed.version),
                    "{when}: the commit of {name} was reported a success and is not there as such"
                );
                self.there.push(name.clone());
            }
            Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                self.unknown += 1;
                resolve(fixture, &own, commit, when).await;
                self.there.push(name.clone());
            }
            Err(error) => {
                self.refused += 1;
                assert_eq!(
                    found, None,
                    "{when}: the commit of {name} was answered with an error that says that nothing was changed, and \
                     it is there: {error:?}"
                );
                assert!(
                    is_out_of_reach(error.kind()) || error.kind() == ErrorKind::Conflict,
                    "{when}: not an answer to a commit through a broken network: {error:?}"
                );
                self.not_there.push(name.clone());
            }
        }
    }

    /// At the end: everything that was settled is still as it was, and the log has each commit that is there, once.
    pub(crate) async fn close(&self, fixture: &dyn Fixture, when: &str) {
        for name in &self.not_there {
            let own = operation_key(name);
            let found = once_reachable(fixture, "a read", async |store| store.get(&own).await).await;
            assert_eq!(found, None, "{when}: {name} was refused, and appeared later");
        }
        let mut logged: Vec<String> = whole_log(&fixture.store(), &attempts_log())
            .await
            .iter()
            .map(|entry| String::from_utf8(entry.payload.to_vec()).unwrap())
            .collect();
        logged.sort();
        let mut there = self.there.clone();
        there.sort();
        assert_eq!(logged, there, "{when}: the log has each commit that is there, once, and no other");
    }
}

/// Submits the same commit again until its outcome is known: afterwards it is there.
async fn resolve(fixture: &dyn Fixture, own: &Key, commit: &Commit, when: &str) {
    for _ in 0..20 {
        let again = in_time(fixture, "the same commit again", fixture.store().commit(commit)).await;
        match again {
            Ok(committed) => {
                let found = once_reachable(fixture, "a read", async |store| store.get(own).await).await;
                let version = found.map(|entry| entry.version);
                assert_eq!(
                    version,
                    Some(committed.version),
                    "{when}: submitted again: a success that is not there"
                );
                return;
            }
            Err(error) if error.kind() == ErrorKind::Conflict => {
                let found = once_reachable(fixture, "a read", async |store| store.get(own).await).await;
                assert!(
                    found.is_some(),
                    "{when}: submitted again, it is a conflict, so the first one was applied: but {own} is not there"
                );
                return;
            }
            Err(error) if is_out_of_reach(error.kind()) || error.kind() == ErrorKind::OutcomeUnknown => {}
            Err(error) => panic!("{when}: submitted again: {error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{when}: 20 tries, and the outcome is still unknown though nothing is broken any more");
}

/// Submits `commit` and keeps what is answered.
pub(crate) async fn attempt(fixture: &dyn Fixture, name: String, commit: Commit) -> Attempt {
    let store = fixture.store();
    let outcome = in_time(fixture, "a commit", StateStore::commit(&*store, &commit)).await;
    Attempt { name, commit, outcome }
}

/// At how many bytes a connection is to be cut: from none to some thousand, the small numbers as often as the large ones.
pub(crate) fn some_bytes(random: &SeededRandom) -> u64 {
    random.below(64 << random.below(8))
}
