//! Random operations, compared with a plain map.

use std::collections::BTreeMap;

use bytes::Bytes;
use flames_clock::{RandomExt, SeededRandom};
use flames_error::ErrorKind;
use flames_state::{Check, Commit, Key, KeyRange, Version, Write};

use crate::Fixture;
use crate::support::{Store, everything, key, keys_in_pages, payloads, whole_log};

const SEEDS: [u64; 2] = [11, 12];
const COMMITS: usize = 120;
const KEYS: u64 = 9;

#[derive(Default)]
struct Expected {
    entries: BTreeMap<Key, (Bytes, Version)>,
    log: Vec<String>,
    past: Vec<(Key, Version)>,
}

fn some_key(random: &SeededRandom, seed: u64) -> Key {
    // Short keys that are prefixes of each other, and others.
    let names = ["a", "a/", "a/b", "a/b/", "a0", "b", "b\0", "b\u{ff}", "c"];
    key(format!("{seed}/{}", names[usize::try_from(random.below(KEYS)).unwrap()]))
}

fn some_commit(random: &SeededRandom, seed: u64, number: usize, expected: &Expected) -> Commit {
    let mut commit = Commit::new();
    for _ in 0..random.below(3) {
        let name = some_key(random, seed);
        let current = expected.entries.get(&name).map(|(_, version)| *version);
        let past = expected.past.iter().rev().find(|(past, _)| *past == name).map(|(_, version)| *version);
        // Mostly such as hold, so that commits go through; now and then any other.
        commit.check(match (random.below(6), current, past) {
            (0, _, Some(past)) => Check::At(name, past),
            (1, ..) => Check::Absent(name),
            (2, ..) => Check::Present(name),
            (_, Some(version), _) => Check::At(name, version),
            (_, None, _) => Check::Absent(name),
        });
    }
    for _ in 0..=random.below(4) {
        let name = some_key(random, seed);
        if commit.writes.iter().any(|write| *write.key() == name) {
            continue;
        }
        match random.below(3) {
            0 => commit.delete(name),
            _ => commit.put(name, format!("{number}").repeat(usize::try_from(random.below(50)).unwrap())),
        };
    }
    for ordinal in 0..random.below(3) {
        commit.append(key(format!("{seed}/log")), format!("{number}.{ordinal}"));
    }
    commit
}

fn holds(commit: &Commit, expected: &Expected) -> bool {
    let current = |name: &Key| expected.entries.get(name).map(|(_, version)| *version);
    commit.checks.iter().all(|check| check.holds(current(check.key())))
}

fn apply(commit: &Commit, version: Version, expected: &mut Expected) {
    for write in &commit.writes {
        let before = match write {
            Write::Put(name, value) => expected.entries.insert(name.clone(), (value.clone(), version)),
            Write::Delete(name) => expected.entries.remove(name),
        };
        expected.past.extend(before.map(|(_, version)| (write.key().clone(), version)));
    }
    let appended = commit.appends.iter().map(|append| String::from_utf8(append.payload.to_vec()).unwrap());
    expected.log.extend(appended);
}

async fn compare(store: &Store, random: &SeededRandom, seed: u64, expected: &Expected, when: &str) {
    let own = KeyRange::prefix(&key(format!("{seed}/")));
    let read: Vec<_> = everything(store).await.into_iter().filter(|entry| own.contains(&entry.key)).collect();
    let read: Vec<_> = read.into_iter().map(|entry| (entry.key, (entry.value, entry.version))).collect();
    assert!(read.iter().map(|(name, found)| (name, found)).eq(&expected.entries), "{when}: read {read:?}");
    let (start, end) = (some_key(random, seed), some_key(random, seed));
    for range in [KeyRange::between(&start, &end), KeyRange::prefix(&start)] {
        let wanted: Vec<Key> = expected.entries.keys().filter(|name| range.contains(name)).cloned().collect();
        let limit = usize::try_from(random.below(4)).unwrap() + 1;
        assert_eq!(keys_in_pages(store, &range, limit).await, wanted, "{when}: {range:?} by {limit}");
    }
    assert_eq!(
        payloads(&whole_log(store, &key(format!("{seed}/log"))).await),
        expected.log,
        "{when}: the log"
    );
}

pub(crate) async fn a_long_random_history_agrees_with_a_plain_map(fixture: &dyn Fixture) {
    let store = fixture.store();
    for seed in SEEDS {
        let random = SeededRandom::new(seed);
        let mut expected = Expected::default();
        let mut refused = 0;
        for number in 0..COMMITS {
            let when = format!("seed {seed}, commit {number}");
            let commit = some_commit(&random, seed, number, &expected);
            match store.commit(&commit).await {
                Ok(committed) => {
                    assert!(
                        holds(&commit, &expected),
                        "{when}: {commit:?} was applied though a check does not hold"
                    );
                    apply(&commit, committed.version, &mut expected);
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Conflict, "{when}: {error:?}");
                    assert!(
                        !holds(&commit, &expected),
                        "{when}: {commit:?} was refused though all checks hold"
                    );
                    refused += 1;
                }
            }
            let name = some_key(&random, seed);
            let read = store.get(&name).await.unwrap().map(|entry| (entry.value, entry.version));
            assert_eq!(read.as_ref(), expected.entries.get(&name), "{when}: {name}");
            if number % 8 == 0 {
                compare(&store, &random, seed, &expected, &when).await;
            }
        }
        compare(&store, &random, seed, &expected, "at the end").await;
        assert!(
            refused > 5 && refused < COMMITS / 2,
            "the history is to have both: {refused} of {COMMITS} refused"
        );
    }
}
