//! Commits at the same time.

use flames_error::{ErrorKind, Result};
use flames_state::{Check, Commit, Committed, Key, KeyRange, PageRequest};
use futures::future::join_all;

use crate::Fixture;
use crate::support::{Store, key, put, value_of};

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
