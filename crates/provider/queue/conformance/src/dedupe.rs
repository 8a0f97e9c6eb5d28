//! A topic has at most one job of a dedupe key, and a signal is never lost.

use bytes::Bytes;
use flames_clock::Timestamp;
use flames_queue::{EnqueueOptions, Priority};

use crate::{Bench, Fixture, keyed, payloads, topic};

pub(crate) async fn a_known_dedupe_key_coalesces(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let first = bench.enqueue("older", keyed("vm_1")).await;
    let again = bench.enqueue("newer", keyed("vm_1")).await;
    let other = bench.enqueue("other", keyed("vm_2")).await;
    assert!(again.coalesced && !first.coalesced && !other.coalesced);
    assert_eq!(again.job, first.job);
    assert_eq!(payloads(&bench.take_all().await), ["newer", "other"]);
}

pub(crate) async fn coalescing_keeps_the_earliest_time_and_the_highest_priority(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let at = |key: &str, units: Option<u32>, priority: i8| EnqueueOptions {
        dedupe_key: Some(key.to_owned()),
        not_before: units.map(|units| bench.in_units(units)),
        priority: Priority(priority),
    };
    bench.enqueue("delayed", at("earlier", Some(50), 0)).await;
    bench.enqueue("brought forward", at("earlier", Some(2), -5)).await;
    bench.enqueue("delayed", at("now", Some(50), 0)).await;
    bench.enqueue("brought to now", at("now", None, 0)).await;
    bench.enqueue("ready", at("later", None, 9)).await;
    bench.enqueue("not put off", at("later", Some(50), 3)).await;
    bench.enqueue("low", at("lifted", None, -9)).await;
    bench.enqueue("lifted", at("lifted", None, 5)).await;

    let jobs = bench.take_all().await;
    assert_eq!(payloads(&jobs), ["not put off", "lifted", "brought to now"]);
    let priorities: Vec<i8> = jobs.iter().map(|job| job.priority.0).collect();
    assert_eq!(priorities, [9, 5, 0]);
    bench.pass(3).await;
    let job = bench.take().await;
    assert_eq!((&*job.payload, job.priority), (&b"brought forward"[..], Priority(0)));
}

pub(crate) async fn a_signal_while_leased_is_delivered_after_the_ack(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.enqueue("first", keyed("vm_1")).await;
    let job = bench.take().await;
    assert!(bench.enqueue("second", keyed("vm_1")).await.coalesced);
    assert!(bench.enqueue("third", keyed("vm_1")).await.coalesced);
    bench.nothing_is_ready().await;
    bench.ack(&job).await;
    let again = bench.take().await;
    assert_eq!((&*again.payload, again.attempt), (&b"third"[..], 1), "a fresh job with the newest payload");
    assert_eq!(again.dedupe_key.as_deref(), Some("vm_1"));
    bench.ack(&again).await;
    bench.nothing_is_ready().await;
}

pub(crate) async fn a_signal_while_leased_outlives_a_nack(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.enqueue("first", keyed("vm_1")).await;
    let job = bench.take().await;
    bench.enqueue("second", keyed("vm_1")).await;
    bench.queue.nack(&job.lease.token, Timestamp::UNIX_EPOCH).await.unwrap();
    let again = bench.take().await;
    assert_eq!(again.payload, "second");
    bench.ack(&again).await;
    bench.nothing_is_ready().await;
}

pub(crate) async fn a_signal_while_leased_outlives_the_lease(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.enqueue("first", keyed("vm_1")).await;
    bench.take_for(2).await;
    bench.enqueue("second", keyed("vm_1")).await;
    bench.pass(3).await;
    let again = bench.take().await;
    assert_eq!(again.payload, "second");
    bench.ack(&again).await;
    bench.nothing_is_ready().await;
}

pub(crate) async fn a_signal_while_leased_outlives_a_park(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.enqueue("first", keyed("vm_1")).await;
    let job = bench.take().await;
    bench.enqueue("second", keyed("vm_1")).await;
    bench.park(&job).await;
    assert_eq!(bench.take().await.payload, "second", "as if it had come just after the job was parked");
}

pub(crate) async fn a_signal_does_not_wait_for_the_back_off_of_a_retry(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.enqueue("first", keyed("vm_1")).await;
    let job = bench.take().await;
    bench.queue.nack(&job.lease.token, bench.in_units(50)).await.unwrap();
    assert!(bench.enqueue("second", keyed("vm_1")).await.coalesced, "known while it waits for its retry");
    assert_eq!(bench.take().await.payload, "second", "it is ready at once");
}

pub(crate) async fn a_dedupe_key_is_free_again_after_the_ack(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.enqueue("first", keyed("vm_1")).await;
    let job = bench.take().await;
    bench.ack(&job).await;
    let enqueued = bench.enqueue("second", keyed("vm_1")).await;
    assert!(!enqueued.coalesced, "nothing is left to coalesce with");
    let job = bench.take().await;
    assert_eq!((&job.id, &*job.payload, job.attempt), (&enqueued.job, &b"second"[..], 1));
}

pub(crate) async fn a_dedupe_key_is_known_to_its_topic_only(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let other = topic("vms.other");
    bench.enqueue("here", keyed("vm_1")).await;
    let enqueued = bench.queue.enqueue(&other, Bytes::from_static(b"there"), keyed("vm_1")).await.unwrap();
    assert!(!enqueued.coalesced);
    assert_eq!(bench.take().await.payload, "here");
    let jobs = bench.queue.dequeue(&other, &bench.worker, 256, bench.long()).await.unwrap();
    assert_eq!(payloads(&jobs), ["there"]);
}

pub(crate) async fn a_parked_job_is_requeued_by_its_dedupe_key(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.enqueue("first", keyed("vm_1")).await;
    let job = bench.take().await;
    bench.park(&job).await;
    let enqueued = bench.enqueue("second", keyed("vm_1")).await;
    assert!(enqueued.coalesced);
    assert_eq!(enqueued.job, job.id);
    let again = bench.take().await;
    assert_eq!((&*again.payload, again.attempt), (&b"second"[..], 1), "its attempts are counted anew");
    assert_eq!(bench.queue.parked(&bench.topic, None, 256).await.unwrap().jobs, []);
    bench.ack(&again).await;
    bench.nothing_is_ready().await;
}
