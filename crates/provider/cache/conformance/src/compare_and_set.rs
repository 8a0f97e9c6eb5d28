//! Compare and set, where the cache has it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flames_cache::{MAX_TTL, MAX_VALUE_BYTES};
use flames_error::ErrorKind;

use crate::{Bench, Fixture, bytes, refused};

pub(crate) async fn compare_and_set_replaces_only_what_was_expected(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.set("a").await;
    assert!(!bench.swap(Some("b"), "c").await, "it is another value");
    bench.is("a").await;
    assert!(!bench.swap(Some(""), "c").await, "it is not empty");
    bench.is("a").await;
    assert!(bench.swap(Some("a"), "b").await);
    bench.is("b").await;
}

pub(crate) async fn compare_and_set_of_none_needs_no_value(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    assert!(!bench.swap(Some("a"), "b").await, "there is no value");
    assert!(!bench.swap(Some(""), "b").await, "no value is not an empty one");
    bench.is_missed().await;
    assert!(bench.swap(None, "").await);
    bench.is("").await;
    assert!(!bench.swap(None, "b").await, "an empty value is a value");
    bench.is("").await;
}

pub(crate) async fn an_expired_value_counts_as_none_in_a_compare_and_set(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.set_for("a", 2).await;
    bench.pass(3).await;
    assert!(!bench.swap(Some("a"), "b").await);
    assert!(bench.swap(None, "b").await);
    bench.is("b").await;
}

pub(crate) async fn compare_and_set_brings_its_own_time_to_live(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.set("a").await;
    let (expected, short) = (bytes("a"), bench.units(2));
    assert!(bench.cache.compare_and_set(&bench.key, Some(&expected), bytes("b"), short).await.unwrap());
    bench.is("b").await;
    bench.pass(3).await;
    bench.is_missed().await;
}

pub(crate) async fn one_of_many_compare_and_sets_wins(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    for round in 0..20 {
        bench.set("start").await;
        let racers = (0..8).map(|number| {
            let (cache, key, long) = (Arc::clone(&bench.cache), bench.key.clone(), bench.long());
            tokio::spawn(async move {
                let value = bytes(&format!("racer {number}"));
                let won =
                    cache.compare_and_set(&key, Some(&bytes("start")), value.clone(), long).await.unwrap();
                won.then_some(value)
            })
        });
        let outcomes = futures::future::join_all(racers).await;
        let winners: Vec<Bytes> = outcomes.into_iter().filter_map(Result::unwrap).collect();
        assert_eq!(winners.len(), 1, "round {round}: just one wins, not {winners:?}");
        assert_eq!(bench.cache.get(&bench.key).await.unwrap(), winners[0], "round {round}");
    }
}

pub(crate) async fn compare_and_set_for_no_time_forgets(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.set("a").await;
    let swap = async |expected: Option<Bytes>| {
        bench.cache.compare_and_set(&bench.key, expected.as_ref(), bytes("b"), Duration::ZERO).await.unwrap()
    };
    assert!(!swap(Some(bytes("b"))).await, "it is another value");
    bench.is("a").await;
    assert!(swap(Some(bytes("a"))).await);
    bench.is_missed().await;
    assert!(swap(None).await);
    bench.is_missed().await;
}

pub(crate) async fn a_storm_of_compare_and_sets_loses_no_step(fixture: &dyn Fixture) {
    const WORKERS: u64 = 16;
    const STEPS: u64 = 12;
    let bench = Bench::new(fixture);
    bench.cache.set(&bench.key, bytes("0"), MAX_TTL).await.unwrap();
    let workers = (0..WORKERS).map(|_| {
        let (cache, key) = (Arc::clone(&bench.cache), bench.key.clone());
        tokio::spawn(async move {
            let mut steps = 0;
            while steps < STEPS {
                let found = cache.get(&key).await.unwrap();
                let number: u64 = String::from_utf8_lossy(&found).parse().unwrap();
                let next = bytes(&(number + 1).to_string());
                if cache.compare_and_set(&key, Some(&found), next, MAX_TTL).await.unwrap() {
                    steps += 1;
                }
                tokio::task::yield_now().await;
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    bench.is(&(WORKERS * STEPS).to_string()).await;
}

pub(crate) async fn what_passes_a_limit_is_refused_by_compare_and_set(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let too_long = Bytes::from(vec![0; MAX_VALUE_BYTES + 1]);
    let answer = bench.cache.compare_and_set(&bench.key, None, too_long, bench.long()).await;
    refused(answer, ErrorKind::InvalidInput);
    let forever = MAX_TTL + Duration::from_secs(1);
    let answer = bench.cache.compare_and_set(&bench.key, None, bytes("a"), forever).await;
    refused(answer, ErrorKind::InvalidInput);
    bench.is_missed().await;
}

pub(crate) async fn without_the_capability_compare_and_set_says_so(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.set("a").await;
    let expected = bytes("a");
    let answer = bench.cache.compare_and_set(&bench.key, Some(&expected), bytes("b"), bench.long()).await;
    refused(answer, ErrorKind::NotSupported);
    bench.is("a").await;
}
