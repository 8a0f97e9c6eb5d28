//! What is applied whole or not at all.

use std::collections::HashSet;

use bytes::Bytes;
use flames_error::{Error, Result};

use crate::{Key, MAX_COMMIT_BYTES, MAX_COMMIT_OPERATIONS, MAX_VALUE_BYTES, Version};

/// What must hold at the instant of the commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// The key is not there.
    Absent(Key),
    /// The key is there.
    Present(Key),
    /// The key is there and was last written at this version.
    At(Key, Version),
}

impl Check {
    /// The key concerned.
    pub fn key(&self) -> &Key {
        match self {
            Self::Absent(key) | Self::Present(key) | Self::At(key, _) => key,
        }
    }

    /// Whether the check holds for a key last written at `current` (none: absent).
    pub fn holds(&self, current: Option<Version>) -> bool {
        match self {
            Self::Absent(_) => current.is_none(),
            Self::Present(_) => current.is_some(),
            Self::At(_, version) => current == Some(*version),
        }
    }
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets the key's value.
    Put(Key, Bytes),
    /// Removes the key.
    Delete(Key),
}

impl Write {
    /// The key concerned.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

/// An entry to add to a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// The log's name.
    pub log: Key,
    /// What to add.
    pub payload: Bytes,
}

/// Checks, writes and appends that are applied together or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Commit {
    /// What must hold.
    pub checks: Vec<Check>,
    /// What changes. No key twice.
    pub writes: Vec<Write>,
    /// What is logged, in this order.
    pub appends: Vec<Append>,
}

impl Commit {
    /// An empty commit, to be filled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check.
    pub fn check(&mut self, check: Check) -> &mut Self {
        self.checks.push(check);
        self
    }

    /// Adds a put.
    pub fn put(&mut self, key: Key, value: impl Into<Bytes>) -> &mut Self {
        self.writes.push(Write::Put(key, value.into()));
        self
    }

    /// Adds a delete.
    pub fn delete(&mut self, key: Key) -> &mut Self {
        self.writes.push(Write::Delete(key));
        self
    }

    /// Adds a log entry.
    pub fn append(&mut self, log: Key, payload: impl Into<Bytes>) -> &mut Self {
        self.appends.push(Append { log, payload: payload.into() });
        self
    }

    /// How many operations the commit has.
    pub fn operations(&self) -> usize {
        self.checks.len() + self.writes.len() + self.appends.len()
    }

    /// How many bytes the commit has, as the limit counts them.
    pub fn bytes(&self) -> usize {
        let checks: usize = self.checks.iter().map(|check| check.key().as_bytes().len()).sum();
        let writes = self.writes.iter().map(|write| match write {
            Write::Put(key, value) => key.as_bytes().len() + value.len(),
            Write::Delete(key) => key.as_bytes().len(),
        });
        let appends = self.appends.iter().map(|append| append.log.as_bytes().len() + append.payload.len());
        checks + writes.sum::<usize>() + appends.sum::<usize>()
    }

    /// `InvalidInput` when the commit passes a limit, writes a key twice, or neither writes nor appends. Every adapter calls it
    /// before anything else.
    pub fn validate(&self) -> Result<()> {
        let refuse = |sentence: &str| Err(Error::invalid("state.commit", "commit", sentence));
        if self.writes.is_empty() && self.appends.is_empty() {
            return refuse("A commit writes or appends at least once.");
        }
        if self.operations() > MAX_COMMIT_OPERATIONS {
            return refuse("A commit has at most 64 operations.");
        }
        if self.bytes() > MAX_COMMIT_BYTES {
            return refuse("A commit has at most 1 MiB.");
        }
        let puts = self.writes.iter().filter_map(|write| match write {
            Write::Put(_, value) => Some(value.len()),
            Write::Delete(_) => None,
        });
        if puts
            .chain(self.appends.iter().map(|append| append.payload.len()))
            .any(|length| length > MAX_VALUE_BYTES)
        {
            return refuse("A value is at most 256 KiB.");
        }
        if self.writes_a_key_twice() {
            return refuse("A commit writes each key at most once.");
        }
        Ok(())
    }

    fn writes_a_key_twice(&self) -> bool {
        // Nearly every commit has a few writes; for so few, comparing each with each is cheaper than hashing them.
        if self.writes.len() <= 8 {
            let mut before = self.writes.iter().enumerate();
            return before.any(|(place, write)| {
                self.writes[..place].iter().any(|earlier| earlier.key() == write.key())
            });
        }
        let mut seen = HashSet::with_capacity(self.writes.len());
        !self.writes.iter().all(|write| seen.insert(write.key()))
    }
}

/// What a commit that was applied tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The version that every key put by the commit now has.
    pub version: Version,
}
