//! What a StateStore does, for the checker.

use std::collections::{BTreeMap, HashMap};

use flames_state::Key;

use super::checker::{Operation, Specification, Verdict, check};

/// The number that a write is known by: every put of a history writes another value, and every append another payload.
pub type WriteId = u64;

/// A check of a commit, with versions replaced by the writes that they belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreCheck {
    /// [`flames_state::Check::Absent`].
    Absent(Key),
    /// [`flames_state::Check::Present`].
    Present(Key),
    /// [`flames_state::Check::At`] the version of that write.
    At(Key, WriteId),
}

impl StoreCheck {
    fn key(&self) -> &Key {
        match self {
            Self::Absent(key) | Self::Present(key) | Self::At(key, _) => key,
        }
    }
}

/// What a store is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreInput {
    /// The value of each of these keys at one instant: a get has one key, a page of a scan all those that it covers.
    Read(Vec<Key>),
    /// A log, whole.
    ReadLog(Key),
    /// A commit.
    Commit {
        /// What must hold.
        checks: Vec<StoreCheck>,
        /// What each key is set to (none: deleted).
        writes: Vec<(Key, Option<WriteId>)>,
        /// What is appended to which log.
        appends: Vec<(Key, WriteId)>,
    },
}

/// What a store answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreOutput {
    /// To a read: the write that each key holds (none: the key is absent).
    Read(Vec<Option<WriteId>>),
    /// To the read of a log: its entries in order.
    ReadLog(Vec<WriteId>),
    /// To a commit: it was applied.
    Applied,
    /// To a commit: a check does not hold.
    Refused,
}

/// An operation on a store.
pub type StoreOperation = Operation<StoreInput, StoreOutput>;

/// A store as a sequential object.
#[derive(Debug, Clone, Copy)]
pub struct StoreSpecification;

/// What a store holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct StoreContents {
    entries: BTreeMap<Key, WriteId>,
    logs: BTreeMap<Key, Vec<WriteId>>,
}

impl StoreContents {
    fn holds(&self, check: &StoreCheck) -> bool {
        let current = self.entries.get(check.key());
        match check {
            StoreCheck::Absent(_) => current.is_none(),
            StoreCheck::Present(_) => current.is_some(),
            StoreCheck::At(_, write) => current == Some(write),
        }
    }

    fn applied(&self, writes: &[(Key, Option<WriteId>)], appends: &[(Key, WriteId)]) -> Self {
        let mut after = self.clone();
        for (key, write) in writes {
            match write {
                Some(write) => after.entries.insert(key.clone(), *write),
                None => after.entries.remove(key),
            };
        }
        for (log, write) in appends {
            after.logs.entry(log.clone()).or_default().push(*write);
        }
        after
    }
}

impl Specification for StoreSpecification {
    type State = StoreContents;
    type Input = StoreInput;
    type Output = StoreOutput;

    fn step(
        state: &StoreContents,
        input: &StoreInput,
        output: Option<&StoreOutput>,
    ) -> Option<StoreContents> {
        match (input, output) {
            (StoreInput::Read(keys), Some(StoreOutput::Read(read))) => {
                let held = keys.iter().map(|key| state.entries.get(key).copied());
                held.eq(read.iter().copied()).then(|| state.clone())
            }
            (StoreInput::ReadLog(log), Some(StoreOutput::ReadLog(read))) => {
                let held = state.logs.get(log).map_or(&[][..], Vec::as_slice);
                (held == read.as_slice()).then(|| state.clone())
            }
            (StoreInput::Commit { checks, .. }, Some(StoreOutput::Refused)) => {
                (!checks.iter().all(|check| state.holds(check))).then(|| state.clone())
            }
            (StoreInput::Commit { checks, writes, appends }, Some(StoreOutput::Applied) | None) => {
                checks.iter().all(|check| state.holds(check)).then(|| state.applied(writes, appends))
            }
            // A read whose answer was lost has no effect, and an answer to another question is never right.
            _ => None,
        }
    }

    fn only_reads(_: &StoreInput, output: &StoreOutput) -> bool {
        !matches!(output, StoreOutput::Applied)
    }
}

/// Checks a history that begins with an empty store, part by part: operations that share no key, not even through others, cannot
/// contradict each other, so each connected set of keys and logs is searched alone, in at most `max_steps` steps.
///
/// The error is for people: which operations have no place in any sequence, and what could be placed before.
pub fn check_store_history(history: &[StoreOperation], max_steps: u64) -> Result<(), String> {
    for part in parts(history) {
        match check::<StoreSpecification>(StoreContents::default(), &part, max_steps) {
            Verdict::Linearizable(_) => {}
            Verdict::Undecided => {
                return Err(format!("{} operations could not be judged in {max_steps} steps", part.len()));
            }
            Verdict::Violation { placed, stuck } => {
                let show = |of: &[usize]| {
                    of.iter().map(|index| format!("\n  {:?}", part[*index])).collect::<String>()
                };
                let last = &placed[placed.len().saturating_sub(12)..];
                return Err(format!(
                    "not linearizable: after {} of {} operations, of which the last are{}\nnone of these can come next:{}",
                    placed.len(),
                    part.len(),
                    show(last),
                    show(&stuck)
                ));
            }
        }
    }
    Ok(())
}

/// What an operation touches. Logs have names of their own.
fn touched(input: &StoreInput) -> Vec<(bool, &Key)> {
    match input {
        StoreInput::Read(keys) => keys.iter().map(|key| (false, key)).collect(),
        StoreInput::ReadLog(log) => vec![(true, log)],
        StoreInput::Commit { checks, writes, appends } => checks
            .iter()
            .map(|check| (false, check.key()))
            .chain(writes.iter().map(|(key, _)| (false, key)))
            .chain(appends.iter().map(|(log, _)| (true, log)))
            .collect(),
    }
}

/// The history by connected sets of keys and logs.
fn parts(history: &[StoreOperation]) -> Vec<Vec<StoreOperation>> {
    /// The set that a key belongs to, by its first member.
    fn root(of: usize, parents: &mut [usize]) -> usize {
        let mut at = of;
        while parents[at] != at {
            parents[at] = parents[parents[at]];
            at = parents[at];
        }
        at
    }

    let mut numbers: HashMap<(bool, &Key), usize> = HashMap::new();
    let mut parents: Vec<usize> = Vec::new();
    for operation in history {
        let mut first = None;
        for name in touched(&operation.input) {
            let number = *numbers.entry(name).or_insert_with(|| {
                parents.push(parents.len());
                parents.len() - 1
            });
            let number = root(number, &mut parents);
            let first = *first.get_or_insert(number);
            let first = root(first, &mut parents);
            parents[number] = first;
        }
    }
    let mut parts: BTreeMap<usize, Vec<StoreOperation>> = BTreeMap::new();
    for operation in history {
        let first = touched(&operation.input).first().and_then(|name| numbers.get(name)).copied();
        let part = first.map_or(usize::MAX, |first| root(first, &mut parents));
        parts.entry(part).or_default().push(operation.clone());
    }
    parts.into_values().collect()
}
