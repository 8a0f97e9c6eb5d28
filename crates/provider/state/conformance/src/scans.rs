//! Reading ranges, page by page.

use std::cell::Cell;

use flames_error::ErrorKind;
use flames_state::{Commit, Key, KeyRange, MAX_PAGE, PageRequest};

use crate::Fixture;
use crate::support::{Store, delete, key, keys_in_pages, put, refused};

async fn fill(store: &Store, names: impl IntoIterator<Item = String>) -> Vec<Key> {
    let keys: Vec<Key> = names.into_iter().map(key).collect();
    for group in keys.chunks(60) {
        let mut commit = Commit::new();
        for name in group {
            commit.put(name.clone(), name.as_bytes().to_vec());
        }
        store.commit(&commit).await.unwrap();
    }
    keys
}

fn named(names: &[&'static str]) -> Vec<Key> {
    names.iter().map(|name| key(*name)).collect()
}

pub(crate) async fn a_scan_is_ordered_and_bounded_by_its_range(fixture: &dyn Fixture) {
    let store = fixture.store();
    let names = ["b/2", "a", "b/", "c", "b/10", "b", "b/1", "b0", "b/\u{ff}"];
    fill(&store, names.map(str::to_owned)).await;
    put(&store, &key("b/3"), "deleted").await;
    delete(&store, &key("b/3")).await;
    let scan = async |range: &KeyRange| keys_in_pages(&store, range, MAX_PAGE).await;
    let under_b = named(&["b/", "b/1", "b/10", "b/2", "b/\u{ff}"]);
    assert_eq!(scan(&KeyRange::prefix(&key("b/"))).await, under_b);
    assert_eq!(scan(&KeyRange::all()).await, [named(&["a", "b"]), under_b, named(&["b0", "c"])].concat());
    assert_eq!(scan(&KeyRange::between(&key("b"), &key("b/10"))).await, named(&["b", "b/", "b/1"]));
    assert_eq!(scan(&KeyRange::between(&key("b/10"), &key("b/10"))).await, [], "from a key to itself");
    assert_eq!(scan(&KeyRange::between(&key("c"), &key("a"))).await, [], "end before start");
    assert_eq!(scan(&KeyRange::prefix(&key("nothing"))).await, []);
    let page = store.scan(&KeyRange::prefix(&key("b/1")), PageRequest::first(10)).await.unwrap();
    assert_eq!(page.entries[1].value, "b/10", "a key comes with its own value");
    assert_eq!(page.entries[1].version, store.get(&key("b/10")).await.unwrap().unwrap().version);
    let outside = |after| PageRequest { after: Some(key(after)), limit: 10 };
    let range = KeyRange::prefix(&key("b/"));
    assert_eq!(store.scan(&range, outside("c")).await.unwrap().entries, [], "after a key behind the range");
    assert_eq!(
        store.scan(&range, outside("a")).await.unwrap().entries.len(),
        5,
        "after a key before the range"
    );
}

pub(crate) async fn pages_meet_without_skip_or_repeat(fixture: &dyn Fixture) {
    let store = fixture.store();
    let keys = fill(&store, (0..25).map(|n| format!("k/{n:02}"))).await;
    fill(&store, ["j".to_owned(), "k".to_owned(), "k0".to_owned()]).await;
    for limit in [1, 2, 7, 12, 24, 25, 26, MAX_PAGE] {
        assert_eq!(
            keys_in_pages(&store, &KeyRange::prefix(&key("k/")), limit).await,
            keys,
            "in pages of {limit}"
        );
    }
}

pub(crate) async fn a_page_that_ends_on_the_last_key_says_so(fixture: &dyn Fixture) {
    let store = fixture.store();
    let keys = fill(&store, (0..6).map(|n| format!("k/{n}"))).await;
    put(&store, &key("l"), "behind the range").await;
    let range = KeyRange::prefix(&key("k/"));
    let page = store.scan(&range, PageRequest::first(6)).await.unwrap();
    assert_eq!((page.entries.len(), page.next), (6, None), "one page of just as many as there are");
    let page = store.scan(&range, PageRequest::first(5)).await.unwrap();
    assert_eq!((page.entries.len(), page.next.as_ref()), (5, Some(&keys[4])), "one more follows");
    let page = store.scan(&range, PageRequest { after: page.next, limit: 5 }).await.unwrap();
    assert_eq!((page.entries.len(), page.next), (1, None), "the last one");
    let page = store.scan(&KeyRange::prefix(&key("m")), PageRequest::first(1)).await.unwrap();
    assert_eq!((page.entries.len(), page.next), (0, None), "nothing there");
}

pub(crate) async fn a_scan_while_writing_neither_skips_nor_repeats(fixture: &dyn Fixture) {
    let store = fixture.store();
    let steady = fill(&store, (0..40).map(|n| format!("k/{n:02}/steady"))).await;
    fill(&store, (0..40).step_by(3).map(|n| format!("k/{n:02}/a-leaves"))).await;
    let range = KeyRange::prefix(&key("k/"));
    let (mut seen, mut page, mut round) = (Vec::new(), PageRequest::first(4), 0);
    loop {
        let read = store.scan(&range, page).await.unwrap();
        seen.extend(read.entries.into_iter().map(|entry| entry.key));
        let Some(next) = read.next else { break };
        assert!(round < 200, "the scan does not end");
        // Keys come and go before, at and behind the place where the scan is; the steady ones are written, but never leave.
        let mut commit = Commit::new();
        for n in (0..40).filter(|n| n % 4 == round % 4) {
            if n % 3 == 0 {
                commit.delete(key(format!("k/{n:02}/a-leaves")));
            }
            match round % 8 {
                0..4 => commit.put(key(format!("k/{n:02}/comes")), "new"),
                _ => commit.delete(key(format!("k/{n:02}/comes"))),
            };
            commit.put(steady[usize::try_from(n).unwrap()].clone(), format!("round {round}"));
        }
        if !steady.contains(&next) {
            commit.writes.retain(|write| *write.key() != next);
            commit.delete(next.clone());
        }
        store.commit(&commit).await.unwrap();
        page = PageRequest { after: Some(next), limit: 4 };
        round += 1;
    }
    assert!(round > 5, "the keys fill several pages");
    assert!(seen.is_sorted_by(|one, other| one < other), "no key twice, and in order: {seen:?}");
    seen.retain(|name| steady.contains(name));
    assert_eq!(seen, steady, "a key that is there throughout appears once");
}

pub(crate) async fn one_page_is_one_consistent_cut(fixture: &dyn Fixture) {
    let store = fixture.store();
    let keys: Vec<Key> = (0..20).map(|n| key(format!("k/{n:02}"))).collect();
    let write_all = async |round: u8| {
        let mut commit = Commit::new();
        for name in &keys {
            commit.put(name.clone(), vec![round]);
        }
        fixture.store().commit(&commit).await.unwrap();
    };
    write_all(0).await;
    let written = Cell::new(0);
    let writer = async {
        for round in 1..=60 {
            write_all(round).await;
            written.set(round);
            tokio::task::yield_now().await;
        }
    };
    let readers = (0..2).map(|_| async {
        let mut at_least = 0;
        while at_least < 60 {
            at_least = written.get();
            let page = store.scan(&KeyRange::prefix(&key("k/")), PageRequest::first(20)).await.unwrap();
            let rounds: Vec<u8> = page.entries.iter().map(|entry| entry.value[0]).collect();
            assert!(
                rounds.len() == 20 && rounds.iter().all(|round| *round == rounds[0]),
                "a torn page: {rounds:?}"
            );
            assert!(rounds[0] >= at_least, "round {at_least} was committed, and {} is read", rounds[0]);
            tokio::task::yield_now().await;
        }
    });
    futures::join!(writer, futures::future::join_all(readers));
}

pub(crate) async fn a_page_limit_out_of_range_is_refused(fixture: &dyn Fixture) {
    let store = fixture.store();
    put(&store, &key("a"), "1").await;
    for limit in [0, MAX_PAGE + 1, usize::MAX] {
        refused(store.scan(&KeyRange::all(), PageRequest::first(limit)).await, ErrorKind::InvalidInput);
    }
    assert_eq!(store.scan(&KeyRange::all(), PageRequest::first(MAX_PAGE)).await.unwrap().entries.len(), 1);
}

pub(crate) async fn ten_thousand_keys_under_one_prefix_are_read_once_each(fixture: &dyn Fixture) {
    const KEYS: usize = 10_000;
    let store = fixture.store();
    fill(&store, ["many".to_owned(), "many0".to_owned()]).await;
    let names: Vec<String> = (0..KEYS).map(|n| format!("many/{n:05}")).collect();
    for some in names.chunks(600) {
        let filling = some.chunks(60).map(|group| {
            let store = fixture.store();
            async move { fill(&store, group.iter().cloned()).await }
        });
        futures::future::join_all(filling).await;
    }
    let range = KeyRange::prefix(&key("many/"));
    let expected: Vec<Key> = names.into_iter().map(key).collect();
    for limit in [MAX_PAGE, MAX_PAGE - 1] {
        let read = keys_in_pages(&store, &range, limit).await;
        assert_eq!(read.len(), KEYS, "in pages of {limit}");
        assert!(read == expected, "in pages of {limit}: not the keys that were written, in their order");
    }
    // Pages that end just on the last key, and one before.
    let from = |n: usize| KeyRange::between(&expected[n], &key("many0"));
    let last = store.scan(&from(KEYS - MAX_PAGE), PageRequest::first(MAX_PAGE)).await.unwrap();
    assert_eq!(last.entries.last().map(|entry| &entry.key), expected.last().filter(|_| last.next.is_none()));
    let before = keys_in_pages(&store, &from(KEYS - MAX_PAGE - 1), MAX_PAGE).await;
    assert_eq!(before.len(), MAX_PAGE + 1);
    let after = PageRequest { after: Some(expected[7_776].clone()), limit: 2 };
    let page = store.scan(&range, after).await.unwrap();
    let found: Vec<_> = page.entries.iter().map(|entry| entry.key.clone()).collect();
    assert_eq!(found, expected[7_777..7_779]);
}
