//! Opening a durable store anew, servers that are killed, and a clock that is turned back.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::time::Duration;

use flames_state::{Check, Commit, LogEntry, MAX_PAGE, Position};
use futures::future::join_all;

use crate::Fixture;
use crate::support::{Store, append, delete, everything, key, payloads, put, value_of, whole_log};
use crate::truth::{Attempt, Ledger, attempt, commit_of, once_reachable};

pub(crate) async fn what_was_committed_survives_a_reopen(fixture: &dyn Fixture) {
    let store = fixture.store();
    let version = put(&store, &key("kept"), "1").await;
    put(&store, &key("deleted"), "1").await;
    delete(&store, &key("deleted")).await;
    store
        .commit(Commit::new().put(key("large"), vec![7; 200_000]).append(key("log"), "entry"))
        .await
        .unwrap();
    let (entries, log) = (everything(&store).await, whole_log(&store, &key("log")).await);
    drop(store);
    for _ in 0..2 {
        fixture.reopen().await;
        let store = fixture.store();
        assert!(everything(&store).await == entries, "the entries, with their versions");
        assert_eq!(whole_log(&store, &key("log")).await, log);
        assert_eq!(value_of(&store, &key("deleted")).await, None);
    }
    let mut commit = Commit::new();
    commit.check(Check::At(key("kept"), version)).put(key("kept"), "2");
    fixture.store().commit(&commit).await.unwrap();
}

pub(crate) async fn a_version_is_not_given_again_after_a_reopen(fixture: &dyn Fixture) {
    let a = key("a");
    let mut given = Vec::new();
    for _ in 0..4 {
        let store = fixture.store();
        let version = put(&store, &a, "same").await;
        assert!(!given.contains(&version), "{version:?} was given before");
        given.push(version);
        delete(&store, &a).await;
        drop(store);
        fixture.reopen().await;
    }
}

pub(crate) async fn a_log_goes_on_behind_its_end_after_a_reopen(fixture: &dyn Fixture) {
    let log = key("log");
    append(&fixture.store(), &log, "0").await;
    fixture.reopen().await;
    append(&fixture.store(), &log, "1").await;
    let entries = whole_log(&fixture.store(), &log).await;
    assert_eq!(payloads(&entries), ["0", "1"]);
    fixture.store().trim_log(&log, entries[1].position).await.unwrap();
    fixture.reopen().await;
    append(&fixture.store(), &log, "2").await;
    let behind = fixture.store().read_log(&log, entries[1].position, 10).await.unwrap();
    assert_eq!(payloads(&behind), ["2"], "a position was given again after all entries were trimmed");
}

pub(crate) async fn what_was_answered_survives_a_kill_under_load(fixture: &dyn Fixture) {
    const CLIENTS: u64 = 6;
    let done = Cell::new(false);
    let attempts: RefCell<Vec<Attempt>> = RefCell::default();
    let clients = (0..CLIENTS).map(|client| {
        let (done, attempts) = (&done, &attempts);
        async move {
            let mut number = 0;
            while !done.get() {
                let name = format!("{client}.{number}");
                let tried = attempt(fixture, name.clone(), commit_of(&name, client % 3, 300)).await;
                let failed = tried.outcome.is_err();
                attempts.borrow_mut().push(tried);
                number += 1;
                // A server that is down refuses at once, over and over.
                tokio::time::sleep(Duration::from_millis(if failed { 20 } else { 3 })).await;
            }
        }
    });
    let killing = async {
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            fixture.restart_server().await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        done.set(true);
    };
    futures::join!(join_all(clients), killing);
    let attempts = attempts.into_inner();
    let mut ledger = Ledger::default();
    for (number, tried) in attempts.iter().enumerate() {
        ledger.settle(fixture, tried, &format!("attempt {number}, around two kills")).await;
    }
    ledger.close(fixture, "after two kills").await;
    assert!(ledger.succeeded > 10, "the clients are to get through before and after: {ledger:?}");
    let versions: Vec<_> = everything(&fixture.store()).await.iter().map(|entry| entry.version).collect();
    let apart: HashSet<_> = attempts
        .iter()
        .filter_map(|tried| tried.outcome.as_ref().ok().map(|committed| committed.version))
        .collect();
    assert_eq!(apart.len(), ledger.succeeded, "a version was given to two commits: {versions:?}");
}

pub(crate) async fn a_log_goes_on_in_order_across_a_kill(fixture: &dyn Fixture) {
    const WRITERS: usize = 3;
    let log = key("log");
    let done = Cell::new(false);
    let confirmed: RefCell<Vec<String>> = RefCell::default();
    let writers = (0..WRITERS).map(|writer| {
        let (done, confirmed, log) = (&done, &confirmed, &log);
        async move {
            let mut number = 0;
            while !done.get() {
                let payload = format!("{writer}.{number:05}");
                let commit = Commit::new().append(log.clone(), payload.clone()).clone();
                if fixture.store().commit(&commit).await.is_ok() {
                    confirmed.borrow_mut().push(payload);
                }
                number += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });
    let follower = async {
        let mut followed: Vec<LogEntry> = Vec::new();
        loop {
            let last_read = done.get();
            let after = followed.last().map_or(Position::START, |entry| entry.position);
            let read = async |store: Store| store.read_log(&log, after, MAX_PAGE).await;
            let behind = once_reachable(fixture, "the log", read).await;
            if last_read && behind.is_empty() {
                return followed;
            }
            followed.extend(behind);
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    };
    // Counted, not timed: on a busy machine a commit may take as long as it likes.
    let all_confirmed = async |times: usize| {
        let of = |writer: usize| {
            let prefix = format!("{writer}.");
            confirmed.borrow().iter().filter(|payload| payload.starts_with(&prefix)).count()
        };
        while (0..WRITERS).any(|writer| of(writer) < times) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let killing = async {
        for round in 1..=2 {
            all_confirmed(3 * round).await;
            fixture.restart_server().await;
        }
        all_confirmed(9).await;
        done.set(true);
        // What is under way ends.
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let (_, followed, ()) = futures::join!(join_all(writers), follower, killing);
    let whole = payloads(&whole_log(&fixture.store(), &log).await);
    let followed = payloads(&followed);
    assert!(whole.starts_with(&followed), "the follower, which went on behind what it knew, missed an entry");
    assert!(whole.len() - followed.len() <= WRITERS, "{} of {} entries", followed.len(), whole.len());
    for payload in confirmed.borrow().iter() {
        assert_eq!(whole.iter().filter(|entry| *entry == payload).count(), 1, "{payload} was confirmed");
    }
    for writer in 0..WRITERS {
        let mut own = whole.clone();
        own.retain(|payload| payload.starts_with(&format!("{writer}.")));
        assert!(own.is_sorted() && own.len() > 3, "not in the order of commit: {own:?}");
    }
}

pub(crate) async fn a_clock_turned_back_changes_nothing(fixture: &dyn Fixture) {
    let store = fixture.store();
    let (a, log) = (key("a"), key("log"));
    let mut versions = HashSet::new();
    let mut followed: Vec<LogEntry> = Vec::new();
    let mut last = None;
    for (round, back) in [0_i64, 1, 3_600, 40 * 86_400].into_iter().enumerate() {
        fixture.jump_clock(-1_000 * back);
        for n in 0..4 {
            let mut commit = Commit::new();
            commit.check(last.map_or(Check::Absent(a.clone()), |version| Check::At(a.clone(), version)));
            commit.put(a.clone(), format!("{round}.{n}")).append(log.clone(), format!("{round}.{n}"));
            let version = store.commit(&commit).await.unwrap().version;
            assert!(versions.insert(version), "{version:?} is given again, {back} seconds back");
            last = Some(version);
            assert_eq!(value_of(&store, &a).await.unwrap(), format!("{round}.{n}"));
            let after = followed.last().map_or(Position::START, |entry| entry.position);
            let behind = store.read_log(&log, after, 10).await.unwrap();
            assert_eq!(payloads(&behind), [format!("{round}.{n}")], "{back} seconds back");
            followed.extend(behind);
        }
    }
    assert_eq!(whole_log(&store, &log).await, followed);
}

pub(crate) async fn a_pool_that_is_used_up_is_told_within_the_deadline(fixture: &dyn Fixture) {
    let store = fixture.store();
    let (a, log) = (key("a"), key("log"));
    put(&store, &a, "before").await;
    for round in 0..2 {
        let held = fixture.exhaust().await;
        let name = format!("{round}");
        let tried = attempt(fixture, name.clone(), commit_of(&name, 0, 0)).await;
        let error = tried.outcome.as_ref().expect_err("there is nothing left to commit with");
        assert_eq!(error.kind(), flames_error::ErrorKind::Exhausted, "{error:?}");
        let range = flames_state::KeyRange::all();
        let (got, page, read) = futures::join!(
            crate::truth::in_time(fixture, "a get", store.get(&a)),
            crate::truth::in_time(fixture, "a scan", store.scan(&range, flames_state::PageRequest::first(1))),
            crate::truth::in_time(fixture, "a log", store.read_log(&log, Position::START, 1)),
        );
        for error in [got.map(drop).err(), page.map(drop).err(), read.map(drop).err()].into_iter().flatten() {
            assert_eq!(error.kind(), flames_error::ErrorKind::Exhausted, "{error:?}");
        }
        drop(held);
        once_reachable(fixture, "a commit", async |store: Store| {
            store.commit(Commit::new().put(a.clone(), "after")).await
        })
        .await;
        let mut ledger = Ledger::default();
        ledger.settle(fixture, &tried, "with the pool used up").await;
    }
}
