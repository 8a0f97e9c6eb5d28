//! Hints within one process, for adapters.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::{Commit, Hint, HintStream, Key};

/// How many hints wait for one subscriber before it is told that some were lost: what comes in one turn of a busy process. One that was told
/// so reads all that it follows, which costs far more.
const DEPTH: usize = 1_024;

/// Hands hints to the subscribers of this process: the part of [`StateStore::changes`](crate::StateStore::changes) that every
/// adapter needs. A commit wakes only those whose prefix it touches, however many others there are.
#[derive(Debug, Default)]
pub struct HintFanout {
    subscribers: Mutex<Subscribers>,
}

#[derive(Debug, Default)]
struct Subscribers {
    by_prefix: HashMap<Key, Vec<Subscriber>>,
    /// How many of the prefixes have each length, so that a key is looked up once for each length that occurs.
    lengths: BTreeMap<usize, usize>,
}

#[derive(Debug)]
struct Subscriber {
    hints: mpsc::Sender<Key>,
    lost: Arc<AtomicBool>,
}

impl HintFanout {
    /// A fan-out without subscribers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells of a commit that was applied.
    pub fn publish(&self, commit: &Commit) {
        let mut subscribers = self.lock();
        if subscribers.by_prefix.is_empty() {
            return;
        }
        for write in &commit.writes {
            subscribers.publish(write.key());
        }
        for (place, append) in commit.appends.iter().enumerate() {
            // One hint tells of all that one commit appends to a log.
            if !commit.appends[..place].iter().any(|earlier| earlier.log == append.log) {
                subscribers.publish(&append.log);
            }
        }
    }

    /// Tells every subscriber that hints may have been lost, for instance while a connection was down.
    pub fn publish_lost(&self) {
        for subscriber in self.lock().by_prefix.values().flatten() {
            subscriber.lost.store(true, Ordering::Release);
            // Any key wakes it; a full channel has woken it already.
            let _ = Key::new("lost").map(|key| subscriber.hints.try_send(key));
        }
    }

    /// What is published from now on about keys and logs that begin with `prefix`. Ends when the fan-out is gone.
    pub fn subscribe(&self, prefix: &Key) -> HintStream {
        let (sender, receiver) = mpsc::channel(DEPTH);
        let lost = Arc::new(AtomicBool::new(false));
        let mut subscribers = self.lock();
        subscribers.forget_gone(prefix);
        if !subscribers.by_prefix.contains_key(prefix) {
            *subscribers.lengths.entry(prefix.as_bytes().len()).or_default() += 1;
        }
        let subscriber = Subscriber { hints: sender, lost: lost.clone() };
        subscribers.by_prefix.entry(prefix.clone()).or_default().push(subscriber);
        drop(subscribers);
        Box::pin(stream::unfold((receiver, lost), |(mut receiver, lost)| async move {
            let key = receiver.recv().await?;
            let hint = if lost.swap(false, Ordering::AcqRel) { Hint::Lost } else { Hint::Changed(key) };
            Some((hint, (receiver, lost)))
        }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Subscribers> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscribers {
    fn publish(&mut self, key: &Key) {
        let mut emptied = Vec::new();
        for length in self.lengths.keys().take_while(|length| **length <= key.as_bytes().len()) {
            let prefix = &key.as_bytes()[..*length];
            let Some(subscribers) = self.by_prefix.get_mut(prefix) else { continue };
            subscribers.retain(|subscriber| match subscriber.hints.try_send(key.clone()) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    subscriber.lost.store(true, Ordering::Release);
                    true
                }
                Err(TrySendError::Closed(_)) => false,
            });
            if subscribers.is_empty() {
                emptied.extend(Key::new(prefix));
            }
        }
        for prefix in emptied {
            self.remove(&prefix);
        }
    }

    /// Drops subscribers of a prefix that went away, and now and then those of all: nothing may be published that would find them.
    fn forget_gone(&mut self, prefix: &Key) {
        let sweep_all = self.by_prefix.len() >= 64 && self.by_prefix.len().is_power_of_two();
        let prefixes: Vec<Key> =
            if sweep_all { self.by_prefix.keys().cloned().collect() } else { vec![prefix.clone()] };
        for prefix in prefixes {
            let Some(subscribers) = self.by_prefix.get_mut(&prefix) else { continue };
            subscribers.retain(|subscriber| !subscriber.hints.is_closed());
            if subscribers.is_empty() {
                self.remove(&prefix);
            }
        }
    }

    fn remove(&mut self, prefix: &Key) {
        self.by_prefix.remove(prefix);
        let length = prefix.as_bytes().len();
        if let Some(count) = self.lengths.get_mut(&length) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    fn touching(keys: &[&str]) -> Commit {
        let mut commit = Commit::new();
        for name in keys {
            commit.put(key(name), "");
        }
        commit
    }

    #[test]
    fn a_hint_reaches_those_whose_prefix_it_touches_and_nobody_else() {
        let fanout = HintFanout::new();
        let (mut a, mut ab, mut b) =
            (fanout.subscribe(&key("a")), fanout.subscribe(&key("ab")), fanout.subscribe(&key("b")));
        fanout.publish(&touching(&["abc"]));
        assert_eq!(a.next().now_or_never(), Some(Some(Hint::Changed(key("abc")))));
        assert_eq!(ab.next().now_or_never(), Some(Some(Hint::Changed(key("abc")))));
        assert_eq!(b.next().now_or_never(), None);
    }

    #[test]
    fn one_hint_tells_of_all_that_a_commit_appends_to_a_log() {
        let fanout = HintFanout::new();
        let mut hints = fanout.subscribe(&key("log"));
        let mut commit = Commit::new();
        commit.append(key("log"), "1").append(key("log/other"), "2").append(key("log"), "3");
        fanout.publish(&commit);
        assert_eq!(hints.next().now_or_never(), Some(Some(Hint::Changed(key("log")))));
        assert_eq!(hints.next().now_or_never(), Some(Some(Hint::Changed(key("log/other")))));
        assert_eq!(hints.next().now_or_never(), None);
    }

    #[test]
    fn a_subscriber_that_lags_is_told_that_hints_were_lost() {
        let fanout = HintFanout::new();
        let mut hints = fanout.subscribe(&key("a"));
        for _ in 0..=DEPTH {
            fanout.publish(&touching(&["a"]));
        }
        assert_eq!(hints.next().now_or_never(), Some(Some(Hint::Lost)));
    }

    #[test]
    fn subscribers_that_went_away_are_forgotten() {
        let fanout = HintFanout::new();
        for number in 0..1_000 {
            drop(fanout.subscribe(&key(&format!("prefix-{number}"))));
        }
        assert!(fanout.lock().by_prefix.len() <= 128);
        drop(fanout.subscribe(&key("a")));
        fanout.publish(&touching(&["a"]));
        assert!(!fanout.lock().by_prefix.contains_key(&key("a")));
    }
}
