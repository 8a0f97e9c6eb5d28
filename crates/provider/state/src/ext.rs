//! Conveniences over any StateStore.

use std::future::Future;
use std::time::Duration;

use flames_clock::{Clock, Monotonic};
use flames_error::{ErrorKind, Result};
use futures::StreamExt;

use crate::{Commit, Committed, Entry, Hint, Key, KeyRange, PageRequest, StateStore, Write};

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited<T> {
    /// What was waited for is there.
    Ready(T),
    /// The deadline passed first.
    TimedOut,
}

/// Conveniences over any [`StateStore`].
pub trait StateStoreExt: StateStore {
    /// Commits, and does not leave the outcome unknown unless the store stays out of reach.
    ///
    /// After `OutcomeUnknown` it submits the SAME commit again, at most `attempts` times in all. When that is refused with `Conflict`,
    /// the first one may have been applied: the commit's put of `operation_key`, a key that no other commit ever writes, tells.
    /// `Ok(None)` means that it was applied, but the answer with its version was lost.
    ///
    /// Errors: as [`StateStore::commit`] when the first attempt tells it; `OutcomeUnknown` when an attempt ended so and none after it
    /// told more, also when a later one was `Unavailable` (that says nothing of the one before); `Conflict` when one was refused and
    /// none was applied.
    ///
    /// Cases: `the_same_commit_again_tells_what_became_of_it`.
    fn commit_knowing(
        &self,
        commit: &Commit,
        operation_key: &Key,
        attempts: u32,
    ) -> impl Future<Output = Result<Option<Committed>>> + Send {
        async move {
            let unknown = match self.commit(commit).await {
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => error,
                answer => return answer.map(Some),
            };
            for _ in 1..attempts {
                match self.commit(commit).await {
                    Ok(committed) => return Ok(Some(committed)),
                    Err(error) if error.kind() == ErrorKind::Conflict => {
                        return match self.get(operation_key).await {
                            Ok(Some(entry)) if commit_puts(commit, &entry) => Ok(None),
                            Ok(_) => Err(error),
                            Err(_) => Err(unknown),
                        };
                    }
                    Err(_) => {}
                }
            }
            Err(unknown)
        }
    }

    /// Waits until `read` answers something: subscribes to `prefix`, reads, waits for a hint or `poll`, and reads again, so that a
    /// lost hint costs time and never the answer.
    fn wait_until<T, F, R>(
        &self,
        clock: &dyn Clock,
        prefix: &Key,
        poll: Duration,
        deadline: Monotonic,
        mut read: R,
    ) -> impl Future<Output = Result<Waited<T>>> + Send
    where
        T: Send,
        F: Future<Output = Result<Option<T>>> + Send,
        R: FnMut() -> F + Send,
    {
        async move {
            let mut hints = self.changes(prefix).await?;
            loop {
                if let Some(value) = read().await? {
                    return Ok(Waited::Ready(value));
                }
                let left = deadline.saturating_since(clock.monotonic());
                if left.is_zero() {
                    return Ok(Waited::TimedOut);
                }
                tokio::select! {
                    biased;
                    hint = hints.next() => {
                        if hint.is_none() {
                            // The backend dropped the subscription. Pause, so that a backend that is down is not hammered.
                            clock.sleep(poll.min(left)).await;
                            hints = self.changes(prefix).await?;
                        } else {
                            // Whatever is ready to run goes first: on a busy process one read finds what many commits left, on an idle
                            // one nothing waits.
                            tokio::task::yield_now().await;
                        }
                    }
                    () = clock.sleep(poll.min(left)) => {}
                }
                while let Some(Some(Hint::Changed(_) | Hint::Lost)) =
                    futures::FutureExt::now_or_never(hints.next())
                {}
            }
        }
    }

    /// Every entry of a range, page after page, at most `limit`. `None` when there are more.
    fn scan_all(
        &self,
        range: &KeyRange,
        limit: usize,
    ) -> impl Future<Output = Result<Option<Vec<Entry>>>> + Send {
        async move {
            let mut entries = Vec::new();
            let mut page = PageRequest::first(crate::MAX_PAGE);
            loop {
                let read = self.scan(range, page).await?;
                entries.extend(read.entries);
                if entries.len() > limit {
                    return Ok(None);
                }
                match read.next {
                    Some(next) => page = PageRequest { after: Some(next), limit: crate::MAX_PAGE },
                    None => return Ok(Some(entries)),
                }
            }
        }
    }
}

impl<S: StateStore + ?Sized> StateStoreExt for S {}

fn commit_puts(commit: &Commit, entry: &Entry) -> bool {
    commit.writes.iter().any(|write| match write {
        Write::Put(key, value) => *key == entry.key && *value == entry.value,
        Write::Delete(_) => false,
    })
}
