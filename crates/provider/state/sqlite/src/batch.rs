//! What several commits leave, when evaluated one after the other.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use flames_error::{Error, ErrorKind, Result};
use flames_state::{Commit, Committed, Key, Position, Version, Write};

/// Commits applied one after the other to the state that the store has, in memory, until they are written at once.
///
/// A later commit sees what an earlier one of the same batch wrote, exactly as if each had been written on its own.
#[derive(Debug, Default)]
pub(crate) struct Batch<'a> {
    /// The version of each key that the store has, of those that a commit of the batch checks.
    stored: HashMap<&'a [u8], Version>,
    /// What the batch leaves: the last put of each key (none: deleted).
    written: BTreeMap<&'a Key, Option<(u64, &'a Bytes)>>,
    appended: Vec<(&'a Key, Position, &'a Bytes)>,
}

impl<'a> Batch<'a> {
    /// A batch over a store that has these keys at these versions.
    pub(crate) fn over(stored: impl IntoIterator<Item = (&'a [u8], Version)>) -> Self {
        Self { stored: stored.into_iter().collect(), ..Self::default() }
    }

    fn current(&self, key: &Key) -> Option<Version> {
        match self.written.get(key) {
            Some(written) => written.map(|(number, _)| Version::from_raw(number)),
            None => self.stored.get(key.as_bytes()).copied(),
        }
    }

    /// Applies a commit as the one of this number, or refuses it with `Conflict`.
    pub(crate) fn apply(&mut self, commit: &'a Commit, number: u64) -> Result<Committed> {
        if let Some(failed) = commit.checks.iter().find(|check| !check.holds(self.current(check.key()))) {
            return Err(Error::new(ErrorKind::Conflict, "state.commit", "a check does not hold")
                .with_context("key", failed.key()));
        }
        for write in &commit.writes {
            match write {
                Write::Put(key, value) => self.written.insert(key, Some((number, value))),
                Write::Delete(key) => self.written.insert(key, None),
            };
        }
        let appends = (0..).zip(&commit.appends);
        self.appended.extend(
            appends.map(|(place, append)| (&append.log, Position::from_raw(number, place), &append.payload)),
        );
        Ok(Committed { version: Version::from_raw(number) })
    }

    /// Whether there is nothing to write.
    pub(crate) fn is_unchanged(&self) -> bool {
        self.written.is_empty() && self.appended.is_empty()
    }

    /// The puts to write.
    pub(crate) fn puts(&self) -> Vec<(&'a Key, u64, &'a Bytes)> {
        let puts = self.written.iter().filter_map(|(key, written)| written.map(|put| (*key, put)));
        puts.map(|(key, (number, value))| (key, number, value)).collect()
    }

    /// The keys to remove.
    pub(crate) fn deletes(&self) -> Vec<&'a Key> {
        self.written.iter().filter(|(_, written)| written.is_none()).map(|(key, _)| *key).collect()
    }

    /// The log entries to add, in order.
    pub(crate) fn appends(&self) -> &[(&'a Key, Position, &'a Bytes)] {
        &self.appended
    }
}

#[cfg(test)]
mod tests {
    use flames_state::Check;

    use super::*;

    fn key(name: &str) -> Key {
        Key::new(name).unwrap()
    }

    #[test]
    fn a_commit_sees_what_earlier_ones_of_its_batch_wrote() {
        let (a, b) = (key("a"), key("b"));
        let at = |number| Check::At(a.clone(), Version::from_raw(number));
        let mut first = Commit::new();
        first.check(at(3)).put(a.clone(), "1").append(key("log"), "first");
        let mut stale = Commit::new();
        stale.check(at(3)).put(a.clone(), "2").put(b.clone(), "2").append(key("log"), "stale");
        let mut third = Commit::new();
        third.check(at(10)).check(Check::Absent(b.clone())).delete(a.clone()).put(b.clone(), "3");
        let mut fourth = Commit::new();
        fourth.check(Check::Absent(a.clone())).put(a.clone(), "4").append(key("log"), "fourth");

        let mut batch = Batch::over([(&b"a"[..], Version::from_raw(3))]);
        assert_eq!(batch.apply(&first, 10).unwrap().version, Version::from_raw(10));
        assert_eq!(batch.apply(&stale, 11).unwrap_err().kind(), ErrorKind::Conflict);
        batch.apply(&third, 12).unwrap();
        assert_eq!(batch.deletes(), [&a]);
        batch.apply(&fourth, 13).unwrap();
        assert_eq!(batch.deletes(), Vec::<&Key>::new());
        assert_eq!(batch.puts(), [(&a, 13, &Bytes::from("4")), (&b, 12, &Bytes::from("3"))]);
        let logged: Vec<_> = batch.appends().iter().map(|(_, position, _)| position.as_raw()).collect();
        assert_eq!(logged, [(10, 0), (13, 0)]);
    }
}
