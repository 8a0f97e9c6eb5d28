//! What other processes are still to be told, and how it is written.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use flames_state::{Commit, Key};
use tokio::sync::Notify;

/// A notification carries less than 8,000 bytes (<https://www.postgresql.org/docs/current/sql-notify.html>).
const PAYLOAD_BYTES: usize = 7_900;
/// How many notifications one round sends. What needs more is told as "anything".
const MOST_PAYLOADS: usize = 16;
/// How many keys wait for the next round. More are told as "anything".
const MOST_KEYS: usize = 4_096;

/// The form's version, first in each notification. A reader that does not know it takes anything to be changed.
const FORM: &str = "1";
/// In place of keys: anything may have changed.
const ANYTHING: &str = "1 *";

/// The keys and logs that were changed since the last round.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    keys: BTreeSet<Key>,
    anything: bool,
}

/// What a notification says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// These changed.
    Keys(Vec<Key>),
    /// Anything may have changed.
    Anything,
}

impl Outbox {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what a commit changed.
    pub(crate) fn add(&self, commit: &Commit) {
        let mut waiting = self.waiting();
        if !waiting.anything {
            waiting.keys.extend(commit.writes.iter().map(|write| write.key().clone()));
            waiting.keys.extend(commit.appends.iter().map(|append| append.log.clone()));
            if waiting.keys.len() > MOST_KEYS {
                *waiting = Waiting { keys: BTreeSet::new(), anything: true };
            }
        }
        drop(waiting);
        self.filled.notify_one();
    }

    /// Adds that anything may have changed: after what was waiting was lost.
    pub(crate) fn add_anything(&self) {
        *self.waiting() = Waiting { keys: BTreeSet::new(), anything: true };
        self.filled.notify_one();
    }

    /// Waits until there is something to tell, and takes it as notifications.
    pub(crate) async fn take(&self) -> Vec<String> {
        loop {
            let taken = std::mem::take(&mut *self.waiting());
            if taken.anything {
                return vec![ANYTHING.to_owned()];
            }
            if !taken.keys.is_empty() {
                return written(&taken.keys);
            }
            self.filled.notified().await;
        }
    }
}

fn written(keys: &BTreeSet<Key>) -> Vec<String> {
    let mut payloads: Vec<String> = Vec::new();
    for key in keys {
        let is_full = payloads.len() == MOST_PAYLOADS;
        let word = escaped(key.as_bytes());
        match payloads.last_mut().filter(|payload| payload.len() + 1 + word.len() <= PAYLOAD_BYTES) {
            Some(payload) => {
                payload.push(' ');
                payload.push_str(&word);
            }
            None if is_full => return vec![ANYTHING.to_owned()],
            None => payloads.push(format!("{FORM} {word}")),
        }
    }
    payloads
}

/// Reads a notification. What is not understood may mean anything.
pub(crate) fn read(payload: &str) -> Told {
    let mut words = payload.split(' ');
    if words.next() != Some(FORM) {
        return Told::Anything;
    }
    words
        .map(|word| Key::new(unescaped(word)?).ok())
        .collect::<Option<_>>()
        .map_or(Told::Anything, Told::Keys)
}

/// Bytes as one word: letters, digits and common punctuation as they are, others as `%` and two hexadecimal digits.
fn escaped(bytes: &[u8]) -> String {
    let mut word = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_graphic() && *byte != b'%' && *byte != b'*' {
            word.push(char::from(*byte));
        } else {
            word.push('%');
            word.extend(
                [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0')),
            );
        }
    }
    word
}

fn unescaped(word: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'*' => return None,
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                bytes.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
            }
            byte => bytes.push(byte),
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(bytes: &[u8]) -> Key {
        Key::new(bytes).unwrap()
    }

    fn putting(keys: impl IntoIterator<Item = Key>) -> Commit {
        let mut commit = Commit::new();
        for key in keys {
            commit.put(key, "");
        }
        commit
    }

    #[tokio::test]
    async fn keys_of_every_byte_are_told_as_they_are() {
        let all: Vec<Key> = (0..=255).map(|byte| key(&[byte, b'x', byte])).collect();
        let outbox = Outbox::default();
        outbox.add(&putting(all.clone()));
        let payloads = outbox.take().await;
        assert_eq!(payloads.len(), 1);
        assert_eq!(read(&payloads[0]), Told::Keys(all));
    }

    #[tokio::test]
    async fn what_many_commits_changed_is_told_once() {
        let outbox = Outbox::default();
        for _ in 0..100 {
            outbox.add(&putting([key(b"a"), key(b"b")]));
        }
        assert_eq!(outbox.take().await, ["1 a b"]);
    }

    #[tokio::test]
    async fn no_notification_is_longer_than_the_server_takes_and_no_round_longer_than_a_few() {
        let outbox = Outbox::default();
        let long = |n: u16| key(&[&[0; 500][..], &n.to_be_bytes()].concat());
        outbox.add(&putting((0..20).map(long)));
        let payloads = outbox.take().await;
        assert!(payloads.len() > 1 && payloads.iter().all(|payload| payload.len() < 8_000));
        outbox.add(&putting((0..600).map(long)));
        assert_eq!(outbox.take().await, [ANYTHING]);
        for n in 0..u16::try_from(MOST_KEYS).unwrap() + 1 {
            outbox.add(&putting([long(n)]));
        }
        assert_eq!(outbox.take().await, [ANYTHING]);
        assert_eq!(read(ANYTHING), Told::Anything);
    }

    #[test]
    fn what_is_not_understood_may_mean_anything() {
        for payload in ["", "2 a", "1 ", "1 %", "1 %0", "1 %zz", "1 a *"] {
            assert_eq!(read(payload), Told::Anything, "{payload:?}");
        }
    }
}
