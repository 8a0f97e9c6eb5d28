//! What passes a limit is refused, and changes nothing; what just keeps it is taken.

use std::time::Duration;

use bytes::Bytes;
use flames_cache::{MAX_KEY_BYTES, MAX_TTL, MAX_VALUE_BYTES};
use flames_error::ErrorKind;

use crate::{Bench, Fixture, bytes, key, refused};

pub(crate) async fn what_passes_a_limit_is_refused(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.set("a").await;
    let too_long = Bytes::from(vec![0; MAX_VALUE_BYTES + 1]);
    refused(bench.cache.set(&bench.key, too_long, bench.long()).await, ErrorKind::InvalidInput);
    let forever = MAX_TTL + Duration::from_secs(1);
    refused(bench.cache.set(&bench.key, bytes("b"), forever).await, ErrorKind::InvalidInput);
    bench.is("a").await;
}

pub(crate) async fn the_longest_key_and_value_are_taken(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let key = key(&"k".repeat(MAX_KEY_BYTES));
    let value: Bytes = (0..MAX_VALUE_BYTES).map(|at| u8::try_from(at % 251).unwrap()).collect();
    bench.cache.set(&key, value.clone(), MAX_TTL).await.unwrap();
    assert!(bench.cache.get(&key).await.unwrap() == value, "it is kept whole");
}

pub(crate) async fn each_limit_is_met_exactly_and_passed_by_one(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    // Every letter that a key may have.
    let letters: String = (0x21..0x7f_u8).map(char::from).collect();
    let key = key(&letters.repeat(6)[..MAX_KEY_BYTES]);
    for size in [0, 1, MAX_VALUE_BYTES - 1, MAX_VALUE_BYTES] {
        let value = Bytes::from(vec![0xff; size]);
        bench.cache.set(&key, value.clone(), MAX_TTL).await.unwrap();
        assert!(bench.cache.get(&key).await.unwrap() == value, "{size} bytes are kept whole");
    }
    assert!(flames_cache::CacheKey::new("k".repeat(MAX_KEY_BYTES + 1)).is_err());
    let just_too_long = MAX_TTL + Duration::from_nanos(1);
    refused(bench.cache.set(&key, bytes("a"), just_too_long).await, ErrorKind::InvalidInput);
    let kept = bench.cache.get(&key).await.unwrap();
    assert_eq!(kept.len(), MAX_VALUE_BYTES, "what was refused changed something");
}
