//! What one commit means.

use std::collections::HashSet;

use bytes::Bytes;
use flames_error::ErrorKind;
use flames_state::{
    Check, Commit, MAX_COMMIT_BYTES, MAX_COMMIT_OPERATIONS, MAX_KEY_BYTES, MAX_VALUE_BYTES, Version,
};

use crate::Fixture;
use crate::support::{Store, delete, everything, key, put, refused, value_of, whole_log};

pub(crate) async fn a_failed_check_changes_nothing(fixture: &dyn Fixture) {
    let store = fixture.store();
    put(&store, &key("kept"), "old").await;
    put(&store, &key("also-kept"), "old").await;
    let before = everything(&store).await;
    for failing_first in [true, false] {
        let mut commit = Commit::new();
        commit.put(key("kept"), "new").put(key("fresh"), "new").delete(key("also-kept"));
        commit.append(key("log"), "entry");
        let (holds, fails) = (Check::Present(key("kept")), Check::Absent(key("also-kept")));
        let (one, other) = if failing_first { (fails, holds) } else { (holds, fails) };
        commit.check(one).check(other);
        refused(store.commit(&commit).await, ErrorKind::Conflict);
        assert_eq!(everything(&store).await, before);
        assert_eq!(whole_log(&store, &key("log")).await, []);
    }
}

pub(crate) async fn absent_present_and_at_mean_what_they_say(fixture: &dyn Fixture) {
    let store = fixture.store();
    let a = key("a");
    let holds =
        async |check: Check| match store.commit(Commit::new().check(check).put(key("other"), "x")).await {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
                false
            }
        };
    assert!(holds(Check::Absent(a.clone())).await);
    assert!(!holds(Check::Present(a.clone())).await);
    let first = put(&store, &a, "1").await;
    assert!(!holds(Check::Absent(a.clone())).await);
    assert!(holds(Check::Present(a.clone())).await);
    assert!(holds(Check::At(a.clone(), first)).await);
    let second = put(&store, &a, "2").await;
    assert!(!holds(Check::At(a.clone(), first)).await, "overwritten");
    assert!(holds(Check::At(a.clone(), second)).await);
    delete(&store, &a).await;
    assert!(!holds(Check::At(a.clone(), second)).await, "deleted");
    assert!(!holds(Check::Present(a.clone())).await);
    assert!(holds(Check::Absent(a.clone())).await);
    put(&store, &a, "2").await;
    assert!(!holds(Check::At(a.clone(), second)).await, "made again, with the same value");
    // A check looks at the state before the commit's own writes.
    store.commit(Commit::new().check(Check::Absent(key("b"))).put(key("b"), "1")).await.unwrap();
    store.commit(Commit::new().check(Check::Present(key("b"))).delete(key("b"))).await.unwrap();
    assert_eq!(value_of(&store, &key("b")).await, None);
}

pub(crate) async fn a_version_is_never_given_twice_for_a_key(fixture: &dyn Fixture) {
    let store = fixture.store();
    let a = key("a");
    let mut given: HashSet<Version> = HashSet::new();
    for round in 0..6 {
        for value in ["same", "same", "other"] {
            let version = put(&store, &a, value).await;
            assert!(given.insert(version), "{version:?} was given twice, in round {round}");
            assert_eq!(store.get(&a).await.unwrap().unwrap().version, version);
        }
        delete(&store, &a).await;
    }
}

pub(crate) async fn every_key_of_a_commit_gets_its_version(fixture: &dyn Fixture) {
    let store = fixture.store();
    let elsewhere = put(&store, &key("elsewhere"), "1").await;
    put(&store, &key("b"), "old").await;
    let mut commit = Commit::new();
    commit.put(key("a"), "1").put(key("b"), "2").put(key("c"), "3").append(key("log"), "entry");
    let version = store.commit(&commit).await.unwrap().version;
    for entry in everything(&store).await {
        let expected = if entry.key == key("elsewhere") { elsewhere } else { version };
        assert_eq!(entry.version, expected, "{}", entry.key);
    }
}

pub(crate) async fn an_unconditional_write_overwrites(fixture: &dyn Fixture) {
    let store = fixture.store();
    let a = key("a");
    for value in ["1", "22", "", "333", "333"] {
        put(&store, &a, value).await;
        assert_eq!(value_of(&store, &a).await, Some(Bytes::from(value)));
        assert_eq!(everything(&store).await.len(), 1);
    }
    delete(&store, &a).await;
    assert_eq!(value_of(&store, &a).await, None);
    put(&store, &a, "again").await;
    assert_eq!(value_of(&store, &a).await, Some(Bytes::from("again")));
}

async fn is_refused_and_changes_nothing(store: &Store, commit: &Commit) {
    let before = everything(store).await;
    refused(store.commit(commit).await, ErrorKind::InvalidInput);
    assert_eq!(everything(store).await, before);
    assert_eq!(whole_log(store, &key("log")).await, []);
}

pub(crate) async fn a_commit_that_passes_a_limit_is_refused(fixture: &dyn Fixture) {
    let store = fixture.store();
    put(&store, &key("a"), "old").await;
    let value_too_long = Bytes::from(vec![0; MAX_VALUE_BYTES + 1]);
    is_refused_and_changes_nothing(&store, Commit::new().put(key("a"), value_too_long.clone())).await;
    is_refused_and_changes_nothing(&store, Commit::new().append(key("log"), value_too_long)).await;

    let mut too_many = Commit::new();
    for n in 0..MAX_COMMIT_OPERATIONS - 1 {
        too_many.put(key(format!("k/{n}")), "v");
    }
    too_many.append(key("log"), "entry").check(Check::Present(key("a")));
    is_refused_and_changes_nothing(&store, &too_many).await;

    let mut too_large = Commit::new();
    for n in 0..3 {
        too_large.put(key(format!("k/{n}")), vec![0; MAX_VALUE_BYTES]);
    }
    too_large.append(key("log"), vec![0; MAX_COMMIT_BYTES - too_large.bytes() - 2]);
    assert_eq!(too_large.bytes(), MAX_COMMIT_BYTES + 1);
    is_refused_and_changes_nothing(&store, &too_large).await;
}

pub(crate) async fn a_commit_that_meets_every_limit_at_once_is_taken(fixture: &dyn Fixture) {
    let store = fixture.store();
    // The longest keys, of bytes that every encoding as text makes longer, and alike up to their last byte.
    let longest = |first: u8, last: u8| key([&[first][..], &[0xff; MAX_KEY_BYTES - 2], &[last]].concat());
    let mut commit = Commit::new();
    for n in 0..20 {
        commit.check(Check::Absent(longest(1, n)));
    }
    for n in 0..22 {
        commit.put(longest(1, n), vec![n; 1_000]);
    }
    for n in 0..18 {
        commit.append(longest(2, n % 3), vec![n; 1_000]);
    }
    commit.put(longest(3, 0), vec![0; MAX_VALUE_BYTES]).put(longest(3, 1), vec![0xff; MAX_VALUE_BYTES]);
    commit.append(longest(2, 0), vec![0; MAX_VALUE_BYTES]);
    let rest = MAX_COMMIT_BYTES - commit.bytes() - MAX_KEY_BYTES;
    commit.append(longest(2, 1), vec![7; rest]);
    assert_eq!((commit.operations(), commit.bytes()), (MAX_COMMIT_OPERATIONS, MAX_COMMIT_BYTES));
    commit.validate().unwrap();
    let version = store.commit(&commit).await.unwrap().version;
    let read = everything(&store).await;
    assert_eq!(read.len(), 24);
    assert!(read.iter().all(|entry| entry.version == version));
    assert!(read[23].value == vec![0xff; MAX_VALUE_BYTES]);
    assert_eq!(whole_log(&store, &longest(2, 0)).await.last().unwrap().payload.len(), MAX_VALUE_BYTES);
    assert_eq!(whole_log(&store, &longest(2, 1)).await.last().unwrap().payload.len(), rest);
    // The same again: now its checks do not hold, and there are as many of them as a commit can have.
    refused(store.commit(&commit).await, ErrorKind::Conflict);
    let mut checks = Commit::new();
    for n in 0..MAX_COMMIT_OPERATIONS - 1 {
        let n = u8::try_from(n).unwrap();
        checks.check(if n < 22 { Check::Present(longest(1, n)) } else { Check::Absent(longest(1, n)) });
    }
    checks.put(longest(1, 0), "");
    store.commit(&checks).await.unwrap();
    assert_eq!(value_of(&store, &longest(1, 0)).await, Some(Bytes::new()));
}

pub(crate) async fn a_commit_at_its_limits_is_taken(fixture: &dyn Fixture) {
    let store = fixture.store();
    let mut many = Commit::new();
    for n in 0..MAX_COMMIT_OPERATIONS - 2 {
        many.put(key(format!("many/{n}")), "v");
    }
    many.append(key("log"), "entry").check(Check::Absent(key("a")));
    store.commit(&many).await.unwrap();
    assert_eq!(everything(&store).await.len(), MAX_COMMIT_OPERATIONS - 2);

    let mut large = Commit::new();
    large.put(key("large/0"), vec![1; MAX_VALUE_BYTES]).put(key("large/1"), vec![2; MAX_VALUE_BYTES]);
    large.append(key("log"), vec![3; MAX_VALUE_BYTES]);
    let rest = MAX_COMMIT_BYTES - large.bytes() - key("large/2").as_bytes().len();
    large.put(key("large/2"), vec![4; rest]);
    assert_eq!(large.bytes(), MAX_COMMIT_BYTES);
    store.commit(&large).await.unwrap();
    assert_eq!(value_of(&store, &key("large/2")).await.unwrap().len(), rest);
    assert_eq!(whole_log(&store, &key("log")).await.len(), 2);
}

pub(crate) async fn a_key_written_twice_is_refused(fixture: &dyn Fixture) {
    let store = fixture.store();
    put(&store, &key("a"), "old").await;
    is_refused_and_changes_nothing(&store, Commit::new().put(key("a"), "1").put(key("a"), "2")).await;
    is_refused_and_changes_nothing(&store, Commit::new().put(key("a"), "1").delete(key("a"))).await;
    is_refused_and_changes_nothing(&store, Commit::new().delete(key("a")).put(key("a"), "1")).await;
    is_refused_and_changes_nothing(&store, Commit::new().delete(key("a")).delete(key("a"))).await;
    // Two checks of one key, and two entries for one log, are in order.
    let mut commit = Commit::new();
    commit.check(Check::Present(key("a"))).check(Check::Present(key("a"))).put(key("a"), "new");
    commit.append(key("a"), "1").append(key("a"), "1");
    store.commit(&commit).await.unwrap();
    assert_eq!(whole_log(&store, &key("a")).await.len(), 2);
}

pub(crate) async fn an_empty_commit_is_refused(fixture: &dyn Fixture) {
    let store = fixture.store();
    refused(store.commit(&Commit::new()).await, ErrorKind::InvalidInput);
    refused(store.commit(Commit::new().check(Check::Absent(key("a")))).await, ErrorKind::InvalidInput);
    refused(store.commit(Commit::new().check(Check::Present(key("a")))).await, ErrorKind::InvalidInput);
}

pub(crate) async fn deleting_what_is_absent_is_no_error(fixture: &dyn Fixture) {
    let store = fixture.store();
    delete(&store, &key("a")).await;
    store.commit(Commit::new().delete(key("a")).put(key("b"), "1").delete(key("c"))).await.unwrap();
    assert_eq!(everything(&store).await.len(), 1);
    let mut guarded = Commit::new();
    guarded.check(Check::Absent(key("a"))).delete(key("a")).append(key("log"), "entry");
    store.commit(&guarded).await.unwrap();
    assert_eq!(whole_log(&store, &key("log")).await.len(), 1);
}
