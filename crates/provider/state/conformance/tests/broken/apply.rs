//! How the store takes a commit, rightly or not.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use flames_error::{Error, ErrorKind, Result};
use flames_state::{
    Check, Commit, Committed, Key, MAX_COMMIT_BYTES, MAX_COMMIT_OPERATIONS, MAX_VALUE_BYTES, Position,
    Version, Write,
};

use super::{BrokenStore, Fault, State, UnderWay, others_go_first};

impl BrokenStore {
    pub(super) fn validate(&self, commit: &Commit) -> Result<()> {
        let mut judged = commit.clone();
        match self.fault {
            Fault::NoLimits => {
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
            Fault::LimitsAreOneTooTight if commit.operations() == MAX_COMMIT_OPERATIONS => {
                return Err(Error::invalid("state.commit", "commit", "A commit has at most 63 operations."));
            }
            Fault::LongKeysTakeTooMuchRoom => {
                let keys = commit.checks.iter().map(Check::key).chain(commit.writes.iter().map(Write::key));
                if keys.map(|key| key.as_bytes().len()).sum::<usize>() > 16 * 1024 {
                    return Err(Error::invalid("state.commit", "commit", "Too many bytes of keys."));
                }
            }
            Fault::LastOfTwoWritesWins => judged.writes.truncate(1),
            Fault::EmptyCommitsAreTaken if commit.writes.is_empty() && commit.appends.is_empty() => {
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
                (Fault::AtMeansPresent, Check::At(..)) => current.is_some(),
                (Fault::LosesAnUpdateInACrowd, Check::At(..))
                    if self.commits_under_way.load(Ordering::SeqCst) >= 16 =>
                {
                    current.is_some()
                }
                (Fault::PresentMeansAnything, Check::Present(_)) => true,
                (Fault::AtLooksAtAnyKey, Check::At(_, version)) => {
                    state.entries.values().any(|(_, found)| *found == version.as_raw())
                }
                (Fault::ChecksOnlyWhatItWrites, check) => check.holds(current) || !written(check.key()),
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
            Fault::VersionsCountPerKey => before.as_ref().map_or(1, |(_, version)| version + 1),
            Fault::VersionIsTheValue => match write {
                Write::Put(_, value) => {
                    value.iter().fold(7, |sum, byte| sum * 31 % 1_000_003 + u64::from(*byte))
                }
                Write::Delete(_) => version,
            },
            Fault::EachWriteHasItsVersion => {
                state.versions += 1;
                state.versions
            }
            _ => version,
        };
        match write {
            Write::Put(_, value) if value.is_empty() && self.is(Fault::EmptyValuesVanish) => {
                state.entries_mut().remove(&key);
            }
            Write::Put(..) if before.is_some() && self.is(Fault::PutKeepsWhatIsThere) => {}
            Write::Put(_, value) => {
                let cut = if self.is(Fault::LongValuesAreCut) { MAX_VALUE_BYTES - 1 } else { usize::MAX };
                state.entries_mut().insert(key, (value.slice(..value.len().min(cut)), version));
            }
            Write::Delete(_) => {
                if before.is_none() && self.is(Fault::DeleteWantsAKey) {
                    return Err(Error::not_found("state.commit", "key", key.to_string()));
                }
                if self.is(Fault::DeleteTakesTheNextKeyToo) {
                    let next = state.entries.range(key.clone()..).nth(1).map(|(next, _)| next.clone());
                    next.map(|next| state.entries_mut().remove(&next));
                }
                state.entries_mut().remove(&key);
                state.deleted.extend(before.map(|before| (key, before)));
            }
        }
        Ok(version)
    }

    fn append(&self, state: &mut State, commit: &Commit, position: u64) {
        let appends: Box<dyn Iterator<Item = _>> = match self.fault {
            Fault::AppendsInAnyOrder => Box::new(commit.appends.iter().rev()),
            _ => Box::new(commit.appends.iter()),
        };
        for (ordinal, append) in (0..).zip(appends) {
            let entries = Arc::make_mut(&mut state.logs).entry(self.log(&append.log)).or_default();
            let position = match self.fault {
                Fault::PositionsFromTheLogsEnd => {
                    Position::from_raw(entries.keys().next_back().map_or(1, |last| last.as_raw().0 + 1), 0)
                }
                Fault::PositionsFromTheClock => {
                    let now = self.clock_ms.fetch_add(1, Ordering::SeqCst);
                    Position::from_raw(u64::try_from(now).unwrap(), ordinal)
                }
                _ => Position::from_raw(position, ordinal),
            };
            entries.insert(position, append.payload.clone());
        }
    }

    pub(super) async fn apply(&self, commit: &Commit) -> Result<Committed> {
        if self.is(Fault::ChecksThenWrites) {
            self.check(&self.state(), commit)?;
            others_go_first().await;
        }
        let _under_way = UnderWay::new(&self.commits_under_way);
        if self.is(Fault::LosesAnUpdateInACrowd) {
            others_go_first().await;
        }
        let mut early = 0;
        if self.is(Fault::LargeCommitsAppendLate) && commit.bytes() > MAX_COMMIT_BYTES / 2 {
            early = {
                let mut state = self.state();
                state.positions += 1;
                state.positions
            };
            others_go_first().await;
        }
        if self.is(Fault::HalfDoneWhenDropped) {
            let _whole = self.whole.lock().await;
            self.check(&self.state(), commit)?;
            let (first, second) = commit.writes.split_at(commit.writes.len() / 2);
            self.apply_at_once(&Commit { writes: first.to_vec(), ..Commit::new() }, 0)?;
            others_go_first().await;
            self.state().versions -= 1;
            let rest = Commit { writes: second.to_vec(), appends: commit.appends.clone(), ..Commit::new() };
            return self.apply_at_once(&rest, 0);
        }
        if self.is(Fault::ReadsAreLateUnderLoad) {
            let committed = self.apply_at_once(commit, 0);
            others_go_first().await;
            return committed;
        }
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
        if matches!(
            self.fault,
            Fault::ReadsAreOneCommitLate | Fault::ReadsAreLateAfterTheFirst | Fault::ReadsAreLateUnderLoad
        ) {
            state.before = (state.entries.clone(), state.logs.clone());
        }
        if self.is(Fault::KilledWithItsBuffer) {
            let now = (state.entries.clone(), state.logs.clone());
            state.on_disk.push_back(now);
            if state.on_disk.len() > 4 {
                state.on_disk.pop_front();
            }
        }
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
}
