//! Commits at the same time.

use std::task::Poll;

use flames_clock::{RandomExt, SeededRandom};
use flames_conformance_runner::seeds;
use flames_error::{ErrorKind, Result};
use flames_state::{Check, Commit, Committed, Key, KeyRange, MAX_PAGE, PageRequest, StateStoreExt};
use futures::future::join_all;

use crate::Fixture;
use crate::support::{Store, key, payloads, put, value_of, whole_log};

pub(crate) async fn a_commit_is_all_or_nothing(fixture: &dyn Fixture) {
    let store = fixture.store();
    put(&store, &key("seat/0"), "taken").await;
    let mover = async {
        for round in 0..120 {
            let (from, to) = (key(format!("seat/{}", round % 7)), key(format!("seat/{}", (round + 1) % 7)));
            let mut commit = Commit::new();
            commit.check(Check::Present(from.clone())).delete(from).put(to, "taken");
            store.commit(&commit).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let watcher = async {
        for _ in 0..120 {
            let page = store.scan(&KeyRange::prefix(&key("seat/")), PageRequest::first(10)).await.unwrap();
            assert_eq!(page.entries.len(), 1, "half a commit is visible: {:?}", page.entries);
            tokio::task::yield_now().await;
        }
    };
    futures::join!(mover, watcher);
}

async fn increment(store: &Store, counter: &Key) {
    for _ in 0..1_000 {
        let read = store.get(counter).await.unwrap();
        let (check, next) = match &read {
            None => (Check::Absent(counter.clone()), 1),
            Some(entry) => {
                let current: u64 = String::from_utf8(entry.value.to_vec()).unwrap().parse().unwrap();
                (Check::At(counter.clone(), entry.version), current + 1)
            }
        };
        // Others read the same meanwhile.
        tokio::task::yield_now().await;
        match store.commit(Commit::new().check(check).put(counter.clone(), next.to_string())).await {
            Ok(_) => return,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}"),
        }
        tokio::task::yield_now().await;
    }
    panic!("1,000 attempts and never a turn");
}

pub(crate) async fn concurrent_increments_are_all_counted(fixture: &dyn Fixture) {
    let counter = key("counter");
    let tasks = (0..8).map(|_| {
        let (store, counter) = (fixture.store(), counter.clone());
        tokio::spawn(async move {
            for _ in 0..8 {
                increment(&store, &counter).await;
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    assert_eq!(value_of(&fixture.store(), &counter).await.unwrap(), "64");
}

pub(crate) async fn of_two_who_create_a_key_one_succeeds(fixture: &dyn Fixture) {
    let store = fixture.store();
    for round in 0..20 {
        let name = key(format!("name/{round}"));
        let create = |who: usize| {
            let mut commit = Commit::new();
            commit.check(Check::Absent(name.clone())).put(name.clone(), who.to_string());
            let store = fixture.store();
            tokio::spawn(async move { store.commit(&commit).await })
        };
        let outcomes = join_all((0..4).map(create)).await;
        let mut winners = Vec::new();
        for (who, outcome) in outcomes.into_iter().enumerate() {
            match outcome.unwrap() {
                Ok(committed) => winners.push((who, committed.version)),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}"),
            }
        }
        let [(who, version)] = winners[..] else { panic!("one is to win, not {winners:?}") };
        let entry = store.get(&name).await.unwrap().unwrap();
        assert_eq!((entry.value, entry.version), (who.to_string().into(), version));
    }
}

/// Two commits that each read what the other writes: at most one of them may hold.
async fn one_at_most(one: Result<Committed>, other: Result<Committed>) {
    assert!(one.is_err() || other.is_err(), "both hold, though each undoes what the other relied on");
    for error in [one, other].into_iter().filter_map(Result::err) {
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
    }
}

pub(crate) async fn write_skew_is_refused(fixture: &dyn Fixture) {
    let store = fixture.store();
    for round in 0..20 {
        let (a, b) = (key(format!("on-call/{round}/a")), key(format!("on-call/{round}/b")));
        let version =
            store.commit(Commit::new().put(a.clone(), "on").put(b.clone(), "on")).await.unwrap().version;
        let leave = |who: &Key, other: &Key| {
            let mut commit = Commit::new();
            match round % 3 {
                0 => commit.check(Check::At(other.clone(), version)).put(who.clone(), "off"),
                1 => commit.check(Check::Present(other.clone())).delete(who.clone()),
                _ => {
                    let claim = |name: &Key| key([name.as_bytes(), b"/gone"].concat());
                    commit.check(Check::Absent(claim(other))).put(claim(who), "gone")
                }
            };
            commit
        };
        let (one, other) = (leave(&a, &b), leave(&b, &a));
        if round < 3 {
            one_at_most(store.commit(&one).await, store.commit(&other).await).await;
        } else {
            let at_once = [one, other].map(|commit| {
                let store = fixture.store();
                tokio::spawn(async move { store.commit(&commit).await })
            });
            let [one, other] = at_once;
            one_at_most(one.await.unwrap(), other.await.unwrap()).await;
        }
    }
}

/// Moves one from an account to another, with the checks that this needs, until it has a turn.
async fn transfer(store: &Store, from: &Key, to: &Key, name: String) {
    for _ in 0..2_000 {
        let mut commit = Commit::new();
        for (account, change) in [(from, -1), (to, 1)] {
            let entry = store.get(account).await.unwrap().unwrap();
            let balance: i64 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
            commit.check(Check::At(account.clone(), entry.version));
            commit.put(account.clone(), (balance + change).to_string());
        }
        commit.append(key("transfers"), name.clone());
        match store.commit(&commit).await {
            Ok(_) => return,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}"),
        }
        tokio::task::yield_now().await;
    }
    panic!("2,000 attempts and never a turn");
}

pub(crate) async fn no_update_of_32_writers_is_lost(fixture: &dyn Fixture) {
    const WRITERS: usize = 32;
    const EACH: usize = 4;
    const ACCOUNTS: usize = 8;
    let store = fixture.store();
    let account = |n: usize| key(format!("account/{}", n % ACCOUNTS));
    for n in 0..ACCOUNTS {
        put(&store, &account(n), "100").await;
    }
    let writers = (0..WRITERS).map(|writer| {
        let store = fixture.store();
        // Each account is paid from as often as paid to, by other pairs of accounts.
        let (from, to) = (account(writer), account(writer * 3 + 1 + writer / ACCOUNTS));
        tokio::spawn(async move {
            for n in 0..if from == to { 0 } else { EACH } {
                transfer(&store, &from, &to, format!("{from}>{to}#{writer}.{n}")).await;
            }
        })
    });
    for writer in join_all(writers).await {
        writer.unwrap();
    }
    // What the log tells and what the accounts hold are one story.
    let mut expected = [100_i64; ACCOUNTS];
    for transfer in payloads(&whole_log(&store, &key("transfers")).await) {
        let (from, rest) = transfer.split_once('>').unwrap();
        for (name, change) in [(from, -1), (rest.split_once('#').unwrap().0, 1)] {
            let number: usize = name.strip_prefix("account/").unwrap().parse().unwrap();
            expected[number] += change;
        }
    }
    let mut transfers = 0;
    for (n, expected) in expected.iter().enumerate() {
        let balance = value_of(&store, &account(n)).await.unwrap();
        assert_eq!(balance, expected.to_string(), "account {n}: an update was lost, or counted twice");
        transfers += (expected - 100).abs();
    }
    let logged = whole_log(&store, &key("transfers")).await.len();
    let paying = (0..WRITERS).filter(|n| account(*n) != account(n * 3 + 1 + n / ACCOUNTS)).count();
    assert_eq!(logged, paying * EACH, "{transfers} units moved");
}

/// Polls `work` so many times at most, each time after whatever it waits for woke it; then drops it where it stands.
async fn drop_after<T>(polls: u64, work: impl Future<Output = T>) -> Option<T> {
    let mut work = Box::pin(work);
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match work.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

pub(crate) async fn a_dropped_commit_is_applied_whole_or_not_at_all(fixture: &dyn Fixture) {
    let store = fixture.store();
    for seed in seeds("a_dropped_commit_is_applied_whole_or_not_at_all", [81]) {
        let random = SeededRandom::new(seed);
        for round in 0..40 {
            let prefix = format!("{seed}/{round}/");
            let mut commit = Commit::new();
            for n in 0..6 {
                commit.put(key(format!("{prefix}{n}")), format!("{n}"));
            }
            commit.append(key(format!("{prefix}log")), "entry");
            let answered = match round % 4 {
                // Given up after some time, and after some steps of its own.
                0 => {
                    let patience = std::time::Duration::from_micros(random.below(2_000));
                    tokio::time::timeout(patience, store.commit(&commit)).await.ok()
                }
                _ => drop_after(1 + random.below(6), store.commit(&commit)).await,
            };
            // The store goes on, and commits in order: what was given up is decided before this one is, or a little later.
            put(&store, &key(format!("{seed}/next/{round}")), "next").await;
            let range = KeyRange::prefix(&key(prefix.clone()));
            let found = store.scan(&range, PageRequest::first(10)).await.unwrap().entries.len();
            assert!(found == 0 || found == 6, "seed {seed}, round {round}: {found} of 6 keys of one commit");
            if let Some(answer) = answered {
                answer.unwrap();
                assert_eq!(found, 6, "seed {seed}, round {round}");
            }
        }
        // Nothing is half done later either.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        for round in 0..40 {
            let prefix = format!("{seed}/{round}/");
            let range = KeyRange::prefix(&key(prefix.clone()));
            let keys = store.scan_all(&range, MAX_PAGE).await.unwrap().unwrap().len();
            let log = whole_log(&store, &key(format!("{prefix}log"))).await.len();
            assert!(
                matches!((keys, log), (0, 0) | (6, 1)),
                "seed {seed}, round {round}: {keys} keys, {log} entries"
            );
        }
    }
}

pub(crate) async fn a_dropped_read_does_not_mix_up_the_next_answer(fixture: &dyn Fixture) {
    let store = fixture.store();
    let names: Vec<Key> = (0..16).map(|n| key(format!("k/{n:02}"))).collect();
    for name in &names {
        put(&store, name, name.as_bytes().to_vec()).await;
    }
    for seed in seeds("a_dropped_read_does_not_mix_up_the_next_answer", [91]) {
        let random = SeededRandom::new(seed);
        let some = || &names[usize::try_from(random.below(16)).unwrap()];
        for round in 0..60 {
            let dropped = some();
            let after = 1 + random.below(4);
            match round % 3 {
                0 => drop(drop_after(after, store.get(dropped)).await),
                1 => {
                    let range = KeyRange::prefix(&key("k/"));
                    drop(drop_after(after, store.scan(&range, PageRequest::first(5))).await);
                }
                _ => {
                    let patience = std::time::Duration::from_micros(random.below(1_000));
                    drop(tokio::time::timeout(patience, store.get(dropped)).await);
                }
            }
            // Several, so that each connection of a pool is asked.
            let wanted = [some(), some(), some(), some(), some()];
            for (name, read) in wanted.iter().zip(join_all(wanted.map(|name| store.get(name))).await) {
                let entry = read.unwrap().expect("it is there");
                assert_eq!(
                    (&entry.key, &entry.value[..]),
                    (*name, name.as_bytes()),
                    "seed {seed}, round {round}"
                );
            }
        }
    }
}
