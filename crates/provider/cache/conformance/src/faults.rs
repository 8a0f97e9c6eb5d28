//! A broken network and a killed server. A cache may forget, and may say that it does not know; it may not lie.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flames_cache::{CacheKey, CacheStore, CacheStoreExt, MAX_TTL};
use flames_clock::{RandomExt, SeededRandom};
use flames_conformance_runner::seeds;
use flames_error::{Error, ErrorKind, Result};

use crate::{Fixture, bytes, key};

/// Beyond a call's own deadline: what a busy machine may add.
const SLACK: Duration = Duration::from_secs(2);

/// The call's answer, which must come.
async fn in_time<T>(fixture: &dyn Fixture, call: impl Future<Output = T>) -> T {
    let limit = fixture.operation_deadline() + SLACK;
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| panic!("no answer came within {limit:?}"))
}

/// What is there once the network works again, which the cache must find by itself.
async fn found(fixture: &dyn Fixture, key: &CacheKey) -> Option<Bytes> {
    let cache = fixture.cache();
    let started = tokio::time::Instant::now();
    loop {
        match in_time(fixture, cache.find(key)).await {
            Ok(found) => return found,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "the network was to blame: {error:?}");
                assert!(
                    started.elapsed() < fixture.operation_deadline() * 2 + SLACK,
                    "the cache does not come back: {error:?}"
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Sets through a network that works, having brought the connection up.
async fn set(fixture: &dyn Fixture, key: &CacheKey, value: &Bytes) {
    let cache = fixture.cache();
    found(fixture, key).await;
    in_time(fixture, cache.set(key, value.clone(), MAX_TTL)).await.unwrap();
}

/// What may be there after a call that met a fault. A miss always may.
fn may_be<'v>(
    answer: Result<(), Error>,
    old: &'v Bytes,
    new: Option<&'v Bytes>,
    when: &str,
) -> Vec<&'v Bytes> {
    match answer.as_ref().map_err(Error::kind) {
        Ok(()) => new.into_iter().collect(),
        Err(ErrorKind::Unavailable) => vec![old],
        Err(ErrorKind::OutcomeUnknown) => [Some(old), new].into_iter().flatten().collect(),
        Err(_) => panic!("{when}: the network is to blame, not this: {answer:?}"),
    }
}

async fn check(fixture: &dyn Fixture, key: &CacheKey, may_be: &[&Bytes], when: &str) {
    if let Some(found) = found(fixture, key).await {
        assert!(may_be.contains(&&found), "{when}: {found:?} is there, and the call told of {may_be:?}");
    }
}

pub(crate) async fn a_call_cut_at_any_byte_is_told_truthfully(fixture: &dyn Fixture) {
    let (mut lost, cache) = (0, fixture.cache());
    for (number, cut) in (0..900).step_by(18).enumerate() {
        let (name, when) = (key(&format!("k{number}")), format!("cut after {cut} bytes"));
        let (old, new) = (bytes("old"), Bytes::from(vec![b'n'; 150]));
        set(fixture, &name, &old).await;
        fixture.faults().cut_after(cut).await;
        let answer = match number % 3 {
            0 => in_time(fixture, cache.set(&name, new.clone(), MAX_TTL)).await.map(|()| Some(&new)),
            1 => in_time(fixture, cache.delete(&name)).await.map(|()| None),
            _ if cache.capabilities().compare_and_set => {
                let swap = cache.compare_and_set(&name, Some(&old), new.clone(), MAX_TTL);
                // Without doing it: there must not be the old value to be compared with.
                in_time(fixture, swap).await.map(|did| did.then_some(&new))
            }
            _ => in_time(fixture, cache.delete(&name)).await.map(|()| None),
        };
        fixture.faults().heal().await;
        lost += usize::from(answer.is_err());
        let told = answer.as_ref().map_or(Some(&new), |done| *done);
        let may_be = may_be(answer.map(|_| ()), &old, told, &when);
        check(fixture, &name, &may_be, &when).await;
    }
    assert!(lost > 0, "no call was hit: is the fixture's proxy in between?");
}

pub(crate) async fn no_call_reports_success_for_what_is_not_so(fixture: &dyn Fixture) {
    for seed in seeds("no_call_reports_success_for_what_is_not_so", [31]) {
        let random = SeededRandom::new(seed);
        let cache = fixture.cache();
        for round in 0..40_u32 {
            let (name, when) = (key(&format!("k{round}")), format!("seed {seed}, round {round}"));
            let (old, new) = (bytes("old"), Bytes::from(random.bytes::<64>().to_vec()));
            set(fixture, &name, &old).await;
            let cuts = random.below(3) > 0;
            if cuts {
                fixture.faults().cut_after(random.below(1 << random.below(11))).await;
            }
            let breaking = async {
                if !cuts {
                    tokio::time::sleep(Duration::from_micros(random.below(1_500))).await;
                    fixture.faults().cut_connections().await;
                }
            };
            let setting = in_time(fixture, cache.set(&name, new.clone(), MAX_TTL));
            let (answer, ()) = futures::join!(setting, breaking);
            fixture.faults().heal().await;
            let may_be = may_be(answer, &old, Some(&new), &when);
            check(fixture, &name, &may_be, &when).await;
        }
    }
}

pub(crate) async fn an_answer_that_never_comes_is_an_unknown_outcome(fixture: &dyn Fixture) {
    let cache = fixture.cache();
    for round in 0..3 {
        let (name, old, new) = (key(&format!("k{round}")), bytes("old"), bytes("new"));
        set(fixture, &name, &old).await;
        fixture.faults().stall_answers().await;
        let answer = in_time(fixture, cache.set(&name, new.clone(), MAX_TTL)).await;
        let read = in_time(fixture, cache.find(&name)).await;
        fixture.faults().heal().await;
        assert!(
            answer.is_err() && read.is_err(),
            "no answer came, and yet it is known: {answer:?}, {read:?}"
        );
        let when = format!("round {round}");
        let may_be = may_be(answer, &old, Some(&new), &when);
        check(fixture, &name, &may_be, &when).await;
    }
}

pub(crate) async fn a_stalled_network_ends_every_call_within_its_deadline(fixture: &dyn Fixture) {
    let (cache, name, value) = (fixture.cache(), key("k"), bytes("value"));
    set(fixture, &name, &value).await;
    fixture.faults().stall().await;
    let kind = |error: Option<Error>| error.map(|error| error.kind());
    let (get, set, delete) = futures::join!(
        async { kind(in_time(fixture, cache.get(&name)).await.err()) },
        async { kind(in_time(fixture, cache.set(&name, value.clone(), MAX_TTL)).await.err()) },
        async { kind(in_time(fixture, cache.delete(&name)).await.err()) },
    );
    assert_eq!(get, Some(ErrorKind::Unavailable), "nothing passes");
    for change in [set, delete] {
        assert!(
            matches!(change, Some(ErrorKind::Unavailable | ErrorKind::OutcomeUnknown)),
            "nothing passes: {change:?}"
        );
    }
    fixture.faults().heal().await;
    let name = key("other");
    self::set(fixture, &name, &value).await;
    assert_eq!(found(fixture, &name).await, Some(value), "the cache works again by itself");
}

pub(crate) async fn a_server_killed_under_load_makes_forget_and_never_lie(fixture: &dyn Fixture) {
    let cache = fixture.cache();
    // Deleted and replaced long before: a server that comes back with an old file brings these back.
    let (deleted, replaced) = (key("deleted"), key("replaced"));
    for name in [&deleted, &replaced] {
        cache.set(name, bytes("older"), MAX_TTL).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let workers = (0..3).map(|worker| {
        let (cache, is_over) = (Arc::clone(&cache), Arc::clone(&is_over));
        tokio::spawn(async move {
            let name = key(&format!("worker/{worker}"));
            // What was certainly set last, and what may have been since.
            let (mut certain, mut last) = (0_u64, 0_u64);
            while !is_over.load(Ordering::SeqCst) {
                last += 1;
                match cache.set(&name, bytes(&last.to_string()), MAX_TTL).await {
                    Ok(()) => certain = last,
                    Err(error) => assert!(
                        matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::OutcomeUnknown),
                        "the server is to blame: {error:?}"
                    ),
                }
                if let Ok(value) = cache.get(&name).await {
                    let found: u64 = String::from_utf8_lossy(&value).parse().unwrap();
                    assert!((certain..=last).contains(&found), "{found} is there after {certain} was set");
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
    });
    let workers: Vec<_> = workers.collect();
    cache.delete(&deleted).await.unwrap();
    cache.set(&replaced, bytes("newer"), MAX_TTL).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    fixture.restart_server().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    is_over.store(true, Ordering::SeqCst);
    for worker in workers {
        worker.await.unwrap();
    }
    assert_eq!(found(fixture, &deleted).await, None, "what was deleted came back");
    assert_ne!(found(fixture, &replaced).await, Some(bytes("older")), "what was replaced came back");
    set(fixture, &deleted, &bytes("again")).await;
    assert_eq!(found(fixture, &deleted).await, Some(bytes("again")));
}
