//! What is remembered is remembered right, and no longer than asked.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use flames_cache::{CacheKey, CacheStoreExt, MAX_TTL};

use crate::{Bench, Fixture, key};

pub(crate) async fn what_was_set_is_read_or_missed_never_wrong(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let mut expected = BTreeMap::<CacheKey, Option<Bytes>>::new();
    // A fixed walk that sets, replaces and deletes, with values of many lengths and every byte.
    for step in 0_usize..300 {
        let key = key(&format!("k{}", step * 7 % 19));
        if step % 5 == 4 {
            bench.cache.delete(&key).await.unwrap();
            expected.insert(key, None);
        } else {
            let value: Bytes =
                (0..step * 11 % 900).map(|at| u8::try_from((at + step) % 256).unwrap()).collect();
            bench.cache.set(&key, value.clone(), bench.long()).await.unwrap();
            expected.insert(key, Some(value));
        }
        for (key, value) in &expected {
            let found = bench.cache.find(key).await.unwrap();
            assert!(found.is_none() || found == *value, "step {step}: {key} has a wrong value");
        }
    }
}

pub(crate) async fn a_value_is_remembered_while_nothing_pushes_it_out(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.set("a").await;
    bench.is("a").await;
    bench.pass(3).await;
    bench.is("a").await;
}

pub(crate) async fn a_missing_key_is_a_miss(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.is_missed().await;
    assert_eq!(bench.cache.find(&bench.key).await.unwrap(), None);
}

pub(crate) async fn an_empty_value_is_a_value(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.set("").await;
    assert_eq!(bench.cache.find(&bench.key).await.unwrap(), Some(Bytes::new()));
}

pub(crate) async fn keys_are_apart(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let keys = ["a", "A", "a/", "a:b", "a*", "!~", "aa"];
    for text in keys {
        bench.cache.set(&key(text), crate::bytes(text), bench.long()).await.unwrap();
    }
    bench.cache.delete(&key("a")).await.unwrap();
    for text in &keys[1..] {
        assert_eq!(bench.cache.get(&key(text)).await.unwrap(), *text);
    }
    assert_eq!(bench.cache.find(&key("a")).await.unwrap(), None);
}

pub(crate) async fn a_newer_value_replaces_the_older(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.set("older, and longer").await;
    bench.set("newer").await;
    bench.is("newer").await;
}

pub(crate) async fn a_newer_value_brings_its_own_time_to_live(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.set_for("short", 2).await;
    bench.set_for("long", 50).await;
    bench.pass(4).await;
    bench.is("long").await;
    bench.set_for("short again", 2).await;
    bench.pass(4).await;
    bench.is_missed().await;
}

pub(crate) async fn an_expired_value_is_a_miss(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.set_for("a", 4).await;
    bench.pass(2).await;
    bench.is("a").await;
    bench.pass(3).await;
    bench.is_missed().await;
    bench.set("b").await;
    bench.is("b").await;
}

pub(crate) async fn a_time_to_live_of_zero_forgets(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.set("a").await;
    bench.set_for("b", 0).await;
    bench.is_missed().await;
}

pub(crate) async fn a_deleted_key_is_a_miss(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.set("a").await;
    bench.cache.delete(&bench.key).await.unwrap();
    bench.is_missed().await;
    bench.set("b").await;
    bench.is("b").await;
}

pub(crate) async fn deleting_what_is_not_there_is_no_error(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.cache.delete(&bench.key).await.unwrap();
    bench.set("a").await;
    bench.cache.delete(&bench.key).await.unwrap();
    bench.cache.delete(&bench.key).await.unwrap();
    bench.is_missed().await;
}

pub(crate) async fn a_time_to_live_of_a_year_is_taken_and_one_of_a_nanosecond_is_soon_over(
    fixture: &dyn Fixture,
) {
    let bench = Bench::new(fixture);
    let day = Duration::from_secs(24 * 3_600);
    for ttl in [day * 31, day * 365, MAX_TTL] {
        bench.cache.set(&bench.key, crate::bytes("long"), ttl).await.unwrap();
        bench.pass(1).await;
        bench.is("long").await;
    }
    // Shorter than any step of the cache's clock: not refused, not taken for zero or for ever.
    bench.cache.set(&bench.key, crate::bytes("short"), Duration::from_nanos(1)).await.unwrap();
    bench.pass(1).await;
    bench.is_missed().await;
}
