//! The checker, on histories whose verdict is known.

use flames_state::Key;

use super::*;

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn put(name: &str, write: WriteId) -> StoreInput {
    commit(vec![], &[(name, Some(write))])
}

fn commit(checks: Vec<StoreCheck>, writes: &[(&str, Option<WriteId>)]) -> StoreInput {
    let writes = writes.iter().map(|(name, write)| (key(name), *write)).collect();
    StoreInput::Commit { checks, writes, appends: vec![] }
}

fn append(log: &str, write: WriteId) -> StoreInput {
    StoreInput::Commit { checks: vec![], writes: vec![], appends: vec![(key(log), write)] }
}

fn get(name: &str) -> StoreInput {
    StoreInput::Read(vec![key(name)])
}

fn read(write: impl Into<Option<WriteId>>) -> Option<StoreOutput> {
    Some(StoreOutput::Read(vec![write.into()]))
}

const APPLIED: Option<StoreOutput> = Some(StoreOutput::Applied);
const REFUSED: Option<StoreOutput> = Some(StoreOutput::Refused);
const LOST: Option<StoreOutput> = None;

/// A history: from when to when each operation took.
fn history(operations: Vec<(u64, u64, StoreInput, Option<StoreOutput>)>) -> Vec<StoreOperation> {
    let operation = |(client, (invoked, returned, input, output))| StoreOperation {
        client,
        input,
        output,
        invoked,
        returned,
    };
    operations.into_iter().enumerate().map(operation).collect()
}

fn is_linearizable(operations: Vec<(u64, u64, StoreInput, Option<StoreOutput>)>) -> bool {
    match check_store_history(&history(operations), 100_000) {
        Ok(()) => true,
        Err(why) => {
            assert!(why.starts_with("not linearizable"), "{why}");
            false
        }
    }
}

#[test]
fn one_after_the_other_each_read_sees_the_last_write() {
    assert!(is_linearizable(vec![]));
    let sees = |write: Option<WriteId>| {
        is_linearizable(vec![
            (1, 2, put("a", 1), APPLIED),
            (3, 4, put("a", 2), APPLIED),
            (5, 6, get("a"), read(write)),
        ])
    };
    assert!(sees(Some(2)));
    assert!(!sees(Some(1)), "a stale read");
    assert!(!sees(None), "a lost write");
    assert!(!sees(Some(3)), "a value that nobody wrote");
}

#[test]
fn a_read_beside_a_write_sees_the_old_or_the_new() {
    for write in [1, 2] {
        assert!(is_linearizable(vec![
            (1, 2, put("a", 1), APPLIED),
            (3, 6, put("a", 2), APPLIED),
            (4, 5, get("a"), read(write)),
        ]));
    }
}

#[test]
fn once_a_reader_saw_the_new_value_no_later_one_sees_the_old() {
    let two_reads = |first, second| {
        is_linearizable(vec![
            (1, 2, put("a", 1), APPLIED),
            (3, 8, put("a", 2), APPLIED),
            (4, 5, get("a"), read(first)),
            (6, 7, get("a"), read(second)),
        ])
    };
    assert!(two_reads(1, 2) && two_reads(1, 1) && two_reads(2, 2));
    assert!(!two_reads(2, 1));
}

#[test]
fn two_readers_agree_on_the_order_of_two_keys() {
    let forked = |second_of_b: Option<WriteId>| {
        is_linearizable(vec![
            (1, 20, commit(vec![], &[("a", Some(1))]), APPLIED),
            (2, 21, commit(vec![], &[("b", Some(2))]), APPLIED),
            (3, 4, StoreInput::Read(vec![key("a"), key("b")]), Some(StoreOutput::Read(vec![Some(1), None]))),
            (
                5,
                6,
                StoreInput::Read(vec![key("a"), key("b")]),
                Some(StoreOutput::Read(vec![None, second_of_b])),
            ),
        ])
    };
    assert!(!forked(Some(2)), "the first saw `a` before `b`, the second `b` before `a`");
}

#[test]
fn a_torn_read_of_two_keys_is_found() {
    let both = |a, b| {
        is_linearizable(vec![
            (1, 2, commit(vec![], &[("a", Some(1)), ("b", Some(1))]), APPLIED),
            (3, 8, commit(vec![], &[("a", Some(2)), ("b", Some(2))]), APPLIED),
            (
                4,
                7,
                StoreInput::Read(vec![key("a"), key("b")]),
                Some(StoreOutput::Read(vec![Some(a), Some(b)])),
            ),
        ])
    };
    assert!(both(1, 1) && both(2, 2));
    assert!(!both(1, 2) && !both(2, 1));
}

#[test]
fn write_skew_and_a_lost_update_are_found() {
    let leave =
        |who: &str, other: &str, write| commit(vec![StoreCheck::At(key(other), 1)], &[(who, Some(write))]);
    let skew = |second| {
        is_linearizable(vec![
            (1, 2, commit(vec![], &[("a", Some(1)), ("b", Some(1))]), APPLIED),
            (3, 6, leave("a", "b", 2), APPLIED),
            (4, 5, leave("b", "a", 3), second),
        ])
    };
    assert!(skew(REFUSED));
    assert!(!skew(APPLIED));
    let update = |write| commit(vec![StoreCheck::At(key("a"), 1)], &[("a", Some(write))]);
    let lost = |second| {
        is_linearizable(vec![
            (1, 2, put("a", 1), APPLIED),
            (3, 6, update(2), APPLIED),
            (4, 5, update(3), second),
        ])
    };
    assert!(lost(REFUSED));
    assert!(!lost(APPLIED));
}

#[test]
fn a_refusal_needs_a_reason() {
    let create = || commit(vec![StoreCheck::Absent(key("a"))], &[("a", Some(9))]);
    assert!(!is_linearizable(vec![(1, 2, create(), REFUSED)]));
    assert!(is_linearizable(vec![(1, 4, create(), REFUSED), (2, 3, put("a", 1), APPLIED)]));
    let deleted = commit(vec![StoreCheck::Present(key("a"))], &[("a", None)]);
    assert!(is_linearizable(vec![
        (1, 2, put("a", 1), APPLIED),
        (3, 4, deleted, APPLIED),
        (5, 6, create(), APPLIED),
    ]));
}

#[test]
fn a_deletion_of_what_is_absent_may_come_after_the_put_beside_it() {
    // Put first in the sequence, the deletion would change nothing, and the read could not be explained any more.
    let deleted = |write: Option<WriteId>| {
        is_linearizable(vec![
            (1, 10, commit(vec![], &[("a", None)]), APPLIED),
            (2, 9, put("a", 1), APPLIED),
            (11, 12, get("a"), read(write)),
        ])
    };
    assert!(deleted(None) && deleted(Some(1)));
    assert!(!deleted(Some(2)));
}

#[test]
fn what_was_lost_may_have_happened_at_any_later_time_or_never() {
    let then_reads = |reads: &[Option<WriteId>]| {
        let mut operations = vec![(1, 2, put("a", 1), APPLIED), (3, 4, put("a", 2), LOST)];
        for (place, write) in (5..).step_by(2).zip(reads) {
            operations.push((place, place + 1, get("a"), read(*write)));
        }
        is_linearizable(operations)
    };
    assert!(then_reads(&[Some(1), Some(1)]), "it never happened");
    assert!(then_reads(&[Some(2), Some(2)]), "it happened at once");
    assert!(then_reads(&[Some(1), Some(2)]), "it happened late");
    assert!(!then_reads(&[Some(2), Some(1)]), "it cannot be undone");
    assert!(!then_reads(&[None]), "nor undo what was there");
    let early = vec![(1, 2, get("a"), read(7)), (3, 4, put("a", 7), LOST)];
    assert!(!is_linearizable(early), "nor happen before it was asked");
}

#[test]
fn what_was_lost_happens_at_most_once_and_only_when_its_checks_hold() {
    let create = || commit(vec![StoreCheck::Absent(key("a"))], &[("a", Some(9))]);
    assert!(!is_linearizable(vec![
        (1, 2, put("a", 1), APPLIED),
        (3, 4, create(), LOST),
        (5, 6, get("a"), read(9)),
    ]));
    let log = |entries: &[WriteId]| {
        is_linearizable(vec![
            (1, 2, append("l", 1), LOST),
            (3, 4, StoreInput::ReadLog(key("l")), Some(StoreOutput::ReadLog(entries.to_vec()))),
        ])
    };
    assert!(log(&[]) && log(&[1]));
    assert!(!log(&[1, 1]), "appended twice");
}

#[test]
fn a_log_is_read_in_the_order_of_its_commits() {
    let log = |entries: &[WriteId]| {
        is_linearizable(vec![
            (1, 2, append("l", 1), APPLIED),
            (3, 6, append("l", 2), APPLIED),
            (4, 5, append("l", 3), APPLIED),
            (7, 8, StoreInput::ReadLog(key("l")), Some(StoreOutput::ReadLog(entries.to_vec()))),
        ])
    };
    assert!(log(&[1, 2, 3]) && log(&[1, 3, 2]));
    assert!(!log(&[2, 1, 3]) && !log(&[1, 2]) && !log(&[1, 2, 3, 3]));
}

#[test]
fn keys_that_nothing_joins_are_judged_apart() {
    // 40 keys, each with a write beside a read: searched together, the orders of 80 overlapping operations would have no end.
    let mut operations = Vec::new();
    for number in 0..40 {
        let name = format!("key-{number}");
        operations.push((1 + number, 1_000 + number, put(&name, 1), APPLIED));
        operations.push((100 + number, 2_000 + number, get(&name), read(1)));
    }
    let mut history = history(operations);
    assert_eq!(check_store_history(&history, 100), Ok(()), "100 steps are enough for each key alone");
    history.push(StoreOperation {
        client: 99,
        input: get("key-7"),
        output: read(None),
        invoked: 5_000,
        returned: 5_001,
    });
    let why = check_store_history(&history, 100).unwrap_err();
    assert!(why.contains("key-7") && !why.contains("key-8"), "{why}");
}

#[test]
fn a_search_that_is_too_long_is_undecided_and_not_called_right() {
    let mut operations: Vec<_> = (0..14).map(|n| (1 + n, 100 + n, put("a", n), APPLIED)).collect();
    operations.push((200, 201, get("a"), read(99)));
    let history = history(operations);
    assert!(check_store_history(&history, 50).unwrap_err().contains("could not be judged"));
}
