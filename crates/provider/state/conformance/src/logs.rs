//! Logs.

use std::cell::Cell;

use flames_error::ErrorKind;
use flames_state::{Check, Commit, LogEntry, MAX_PAGE, Position};
use futures::future::join_all;

use crate::Fixture;
use crate::support::{append, everything, key, payloads, put, refused, value_of, whole_log};

pub(crate) async fn a_log_reads_back_in_order(fixture: &dyn Fixture) {
    let store = fixture.store();
    let log = key("log");
    assert_eq!(
        store.read_log(&log, Position::START, 10).await.unwrap(),
        [],
        "a log that nobody wrote to is empty"
    );
    let mut expected = Vec::new();
    for commit_number in 0..12 {
        let mut commit = Commit::new();
        for ordinal in 0..3 {
            let payload = format!("{commit_number}.{ordinal}");
            commit.append(log.clone(), payload.clone()).append(key("between"), "x");
            expected.push(payload);
        }
        store.commit(&commit).await.unwrap();
        put(&store, &key("between"), "x").await;
    }
    let entries = whole_log(&store, &log).await;
    assert_eq!(payloads(&entries), expected);
    assert!(entries[0].position > Position::START);
    assert!(entries.is_sorted_by(|one, other| one.position < other.position), "{entries:?}");
    for (index, entry) in entries.iter().enumerate() {
        let behind = store.read_log(&log, entry.position, 4).await.unwrap();
        let end = entries.len().min(index + 5);
        assert_eq!(behind, entries[index + 1..end], "4 behind {}", entry.position);
    }
}

pub(crate) async fn appends_commit_with_their_writes_or_not_at_all(fixture: &dyn Fixture) {
    let store = fixture.store();
    let log = key("log");
    let mut commit = Commit::new();
    commit
        .check(Check::Absent(key("a")))
        .put(key("a"), "1")
        .append(log.clone(), "made")
        .append(log.clone(), "told");
    store.commit(&commit).await.unwrap();
    assert_eq!(payloads(&whole_log(&store, &log).await), ["made", "told"]);
    assert_eq!(value_of(&store, &key("a")).await.unwrap(), "1");
    refused(store.commit(&commit).await, ErrorKind::Conflict);
    refused(
        store.commit(Commit::new().append(log.clone(), "x").put(key("a"), "2").put(key("a"), "3")).await,
        ErrorKind::InvalidInput,
    );
    let mut only_logs = Commit::new();
    only_logs.check(Check::Absent(key("a"))).append(log.clone(), "not this");
    refused(store.commit(&only_logs).await, ErrorKind::Conflict);
    assert_eq!(payloads(&whole_log(&store, &log).await), ["made", "told"]);
}

pub(crate) async fn logs_are_apart(fixture: &dyn Fixture) {
    let store = fixture.store();
    let names = ["l", "l/", "l/1", "l0", "m"];
    for name in names {
        append(&store, &key(name), name).await;
    }
    let mut commit = Commit::new();
    for name in names {
        commit.append(key(name), format!("{name} again"));
    }
    store.commit(&commit).await.unwrap();
    for name in names {
        assert_eq!(
            payloads(&whole_log(&store, &key(name)).await),
            [name.to_owned(), format!("{name} again")]
        );
    }
    assert_eq!(everything(&store).await, [], "a log is no key");
    put(&store, &key("l"), "a key").await;
    assert_eq!(whole_log(&store, &key("l")).await.len(), 2, "and a key is no log");
    store.trim_log(&key("l/"), whole_log(&store, &key("l/")).await[1].position).await.unwrap();
    for name in ["l", "l/1", "l0", "m"] {
        assert_eq!(whole_log(&store, &key(name)).await.len(), 2, "`l/` was trimmed, {name} was not");
    }
    assert_eq!(value_of(&store, &key("l")).await.unwrap(), "a key");
}

pub(crate) async fn nothing_appears_behind_a_position_already_seen(fixture: &dyn Fixture) {
    const WRITERS: usize = 4;
    const EACH: usize = 15;
    let store = fixture.store();
    let log = key("log");
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (store, log) = (fixture.store(), log.clone());
            tokio::spawn(async move {
                for n in 0..EACH {
                    let mut commit = Commit::new();
                    commit
                        .append(log.clone(), format!("{writer}.{n:02}"))
                        .put(key(format!("w/{writer}")), "x");
                    store.commit(&commit).await.unwrap();
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let done = Cell::new(false);
    let follower = async {
        let mut followed: Vec<LogEntry> = Vec::new();
        loop {
            let last_read = done.get();
            let after = followed.last().map_or(Position::START, |entry| entry.position);
            let behind = store.read_log(&log, after, 7).await.unwrap();
            if last_read && behind.is_empty() {
                return followed;
            }
            followed.extend(behind);
            assert!(followed.len() <= WRITERS * EACH, "an entry appears twice: {followed:?}");
            tokio::task::yield_now().await;
        }
    };
    let finish = async {
        for writer in join_all(writers).await {
            writer.unwrap();
        }
        done.set(true);
    };
    let ((), followed) = futures::join!(finish, follower);
    assert_eq!(payloads(&followed), payloads(&whole_log(&store, &log).await), "the follower missed an entry");
    assert_eq!(followed.len(), WRITERS * EACH);
    for writer in 0..WRITERS {
        let mut own = payloads(&followed);
        own.retain(|payload| payload.starts_with(&format!("{writer}.")));
        assert!(own.len() == EACH && own.is_sorted(), "not in the order of commit: {own:?}");
    }
}

pub(crate) async fn a_log_page_limit_out_of_range_is_refused(fixture: &dyn Fixture) {
    let store = fixture.store();
    let log = key("log");
    append(&store, &log, "entry").await;
    for limit in [0, MAX_PAGE + 1, usize::MAX] {
        refused(store.read_log(&log, Position::START, limit).await, ErrorKind::InvalidInput);
    }
    assert_eq!(store.read_log(&log, Position::START, MAX_PAGE).await.unwrap().len(), 1);
}

pub(crate) async fn a_trimmed_log_keeps_what_lies_behind(fixture: &dyn Fixture) {
    let store = fixture.store();
    let log = key("log");
    store.trim_log(&log, Position::from_raw(u64::MAX, u64::MAX)).await.unwrap();
    for n in 0..6 {
        store
            .commit(Commit::new().append(log.clone(), format!("{n}a")).append(log.clone(), format!("{n}b")))
            .await
            .unwrap();
    }
    let all = whole_log(&store, &log).await;
    store.trim_log(&log, Position::START).await.unwrap();
    assert_eq!(whole_log(&store, &log).await, all, "nothing lies at the start");
    // In the midst of a commit's entries.
    store.trim_log(&log, all[4].position).await.unwrap();
    assert_eq!(whole_log(&store, &log).await, all[5..]);
    store.trim_log(&log, all[2].position).await.unwrap();
    assert_eq!(whole_log(&store, &log).await, all[5..], "trimmed already");
    assert_eq!(
        store.read_log(&log, all[1].position, 1).await.unwrap(),
        all[5..6],
        "from a position that is gone"
    );
    store.trim_log(&log, all[11].position).await.unwrap();
    assert_eq!(whole_log(&store, &log).await, []);
}

pub(crate) async fn a_trimmed_log_never_gives_a_position_again(fixture: &dyn Fixture) {
    let store = fixture.store();
    let log = key("log");
    let mut last = Position::START;
    for round in 0..4 {
        append(&store, &log, "entry").await;
        append(&store, &log, "entry").await;
        let entries = whole_log(&store, &log).await;
        assert_eq!(entries.len(), 2);
        assert!(entries[0].position > last, "round {round}: {} is not behind {last}", entries[0].position);
        last = entries[1].position;
        store.trim_log(&log, last).await.unwrap();
        assert_eq!(store.read_log(&log, last, 10).await.unwrap(), []);
    }
}

pub(crate) async fn a_slow_commit_never_appends_behind_what_was_read(fixture: &dyn Fixture) {
    const SLOW: usize = 6;
    let store = fixture.store();
    let log = key("log");
    // Commits as large as they may be, which take their time, beside small ones that overtake them.
    let slow: Vec<_> = (0..3)
        .map(|writer| {
            let (store, log) = (fixture.store(), log.clone());
            tokio::spawn(async move {
                for n in 0..SLOW / 3 {
                    let mut commit = Commit::new();
                    commit.append(log.clone(), format!("slow {writer}.{n}"));
                    for part in 0..50 {
                        commit.put(key(format!("slow/{writer}/{part:02}")), vec![7; 16_000]);
                    }
                    commit.append(log.clone(), format!("slow {writer}.{n} too"));
                    store.commit(&commit).await.unwrap();
                }
            })
        })
        .collect();
    let done = Cell::new(false);
    let quick = async {
        let mut number = 0;
        while !done.get() || number < 20 {
            append(&fixture.store(), &log, format!("quick {number}")).await;
            number += 1;
            tokio::task::yield_now().await;
        }
        number
    };
    let follower = async {
        let mut followed: Vec<LogEntry> = Vec::new();
        while !done.get() {
            let after = followed.last().map_or(Position::START, |entry| entry.position);
            followed.extend(store.read_log(&log, after, MAX_PAGE).await.unwrap());
            tokio::task::yield_now().await;
        }
        followed
    };
    let finish = async {
        for writer in join_all(slow).await {
            writer.unwrap();
        }
        done.set(true);
    };
    let ((), quick, mut followed) = futures::join!(finish, quick, follower);
    loop {
        let after = followed.last().map_or(Position::START, |entry| entry.position);
        let rest = store.read_log(&log, after, MAX_PAGE).await.unwrap();
        if rest.is_empty() {
            break;
        }
        followed.extend(rest);
    }
    assert_eq!(
        payloads(&followed),
        payloads(&whole_log(&store, &log).await),
        "an entry appeared at or before a position that was read already"
    );
    assert_eq!(followed.len(), 2 * SLOW + quick);
}

pub(crate) async fn a_log_is_read_across_a_long_gap(fixture: &dyn Fixture) {
    let store = fixture.store();
    let (log, other) = (key("log"), key("other"));
    append(&store, &log, "before").await;
    let first = whole_log(&store, &log).await[0].position;
    for group in 0..20 {
        let between = (0..16).map(|n| {
            let (store, other) = (fixture.store(), other.clone());
            async move {
                let mut commit = Commit::new();
                commit.put(key(format!("k/{group}/{n}")), "x").append(other, "x");
                store.commit(&commit).await.unwrap();
            }
        });
        join_all(between).await;
    }
    append(&store, &log, "behind").await;
    for limit in [1, 2, MAX_PAGE] {
        let behind = store.read_log(&log, first, limit).await.unwrap();
        assert_eq!(payloads(&behind), ["behind"], "320 commits to others lie between, read by {limit}");
    }
    assert_eq!(payloads(&whole_log(&store, &log).await), ["before", "behind"]);
    assert_eq!(whole_log(&store, &other).await.len(), 320);
}
