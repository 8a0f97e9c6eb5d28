//! What passes a limit is refused, and changes nothing.

use std::time::Duration;

use bytes::Bytes;
use flames_clock::Timestamp;
use flames_error::ErrorKind;
use flames_queue::{
    EnqueueOptions, MAX_BATCH, MAX_DEDUPE_KEY_BYTES, MAX_LEASE, MAX_PAYLOAD_BYTES, MAX_REASON_BYTES,
    MIN_LEASE, TopicStats, WorkerId,
};

use crate::{Bench, Fixture, keyed, not_before, payloads, refused, topic};

pub(crate) async fn a_payload_that_passes_the_limit_is_refused(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let too_long = Bytes::from(vec![0; MAX_PAYLOAD_BYTES + 1]);
    let answer = bench.queue.enqueue(&bench.topic, too_long, EnqueueOptions::default()).await;
    refused(answer, ErrorKind::InvalidInput);
    assert_eq!(bench.queue.stats(&bench.topic).await.unwrap(), TopicStats::default());
}

pub(crate) async fn a_dedupe_key_that_passes_the_limit_is_refused(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    for length in [0, MAX_DEDUPE_KEY_BYTES + 1] {
        let options = keyed(&"k".repeat(length));
        let answer = bench.queue.enqueue(&bench.topic, Bytes::new(), options).await;
        refused(answer, ErrorKind::InvalidInput);
    }
    assert_eq!(bench.queue.stats(&bench.topic).await.unwrap(), TopicStats::default());
    let longest = "k".repeat(MAX_DEDUPE_KEY_BYTES);
    bench.enqueue("a", keyed(&longest)).await;
    assert_eq!(bench.take().await.dedupe_key, Some(longest));
}

pub(crate) async fn a_batch_size_out_of_range_is_refused(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    for max in [0, MAX_BATCH + 1, usize::MAX] {
        let answer = bench.queue.dequeue(&bench.topic, &bench.worker, max, bench.long()).await;
        refused(answer, ErrorKind::InvalidInput);
    }
    assert_eq!(bench.take().await.attempt, 1, "nothing was delivered");
}

pub(crate) async fn a_lease_out_of_range_is_refused(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    let out_of_range =
        [Duration::ZERO, MIN_LEASE - Duration::from_millis(1), MAX_LEASE + Duration::from_secs(1)];
    for lease in out_of_range {
        refused(bench.queue.dequeue(&bench.topic, &bench.worker, 1, lease).await, ErrorKind::InvalidInput);
    }
    let job = bench.take().await;
    assert_eq!(job.attempt, 1, "nothing was delivered");
    for lease in out_of_range {
        refused(bench.queue.extend(&job.lease.token, lease).await, ErrorKind::InvalidInput);
    }
    bench.queue.extend(&job.lease.token, MAX_LEASE).await.unwrap();
    bench.ack(&job).await;
}

pub(crate) async fn a_page_limit_out_of_range_is_refused(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    for limit in [0, MAX_BATCH + 1] {
        refused(bench.queue.parked(&bench.topic, None, limit).await, ErrorKind::InvalidInput);
    }
}

pub(crate) async fn the_largest_batch_is_taken_whole(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    for number in 0..=MAX_BATCH {
        bench.add(&format!("{number}")).await;
    }
    let jobs = bench.queue.dequeue(&bench.topic, &bench.worker, MAX_BATCH, bench.long()).await.unwrap();
    let expected: Vec<String> = (0..MAX_BATCH).map(|number| number.to_string()).collect();
    assert_eq!(payloads(&jobs), expected);
    for job in &jobs {
        bench.park(job).await;
    }
    let page = bench.queue.parked(&bench.topic, None, MAX_BATCH).await.unwrap();
    assert_eq!(
        (page.jobs.len(), page.next),
        (MAX_BATCH, None),
        "a page that ends on the limit says that it is the last"
    );
}

pub(crate) async fn the_shortest_and_the_longest_lease_are_given(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    for lease in [MIN_LEASE, MAX_LEASE] {
        bench.add("a").await;
        let told_from = fixture.clock().now();
        let job = bench.queue.dequeue(&bench.topic, &bench.worker, 1, lease).await.unwrap().remove(0);
        let length = job.lease.expires_at.duration_since(told_from).unsigned_abs();
        let off = length.abs_diff(lease);
        assert!(off < bench.units(1), "a lease of {lease:?} ends {length:?} from now");
        fixture.advance(MIN_LEASE * 2).await;
        if lease == MIN_LEASE {
            refused(bench.queue.ack(&job.lease.token).await, ErrorKind::LeaseLost);
            let again = bench.take().await;
            bench.queue.extend(&again.lease.token, MIN_LEASE).await.unwrap();
            fixture.advance(MIN_LEASE * 2).await;
            let job = bench.take().await;
            bench.ack(&job).await;
        } else {
            bench.ack(&job).await;
        }
    }
}

pub(crate) async fn the_longest_names_are_kept_apart(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let name = |last: char| format!("aZ09._-{}{last}", "x".repeat(120));
    let worker = WorkerId::new(name('w')).unwrap();
    for last in ['a', 'b'] {
        let topic = topic(&name(last));
        bench.queue.enqueue(&topic, Bytes::from(name(last)), EnqueueOptions::default()).await.unwrap();
    }
    for last in ['a', 'b'] {
        let topic = topic(&name(last));
        let jobs = bench.queue.dequeue(&topic, &worker, MAX_BATCH, bench.long()).await.unwrap();
        assert_eq!(payloads(&jobs), [name(last)]);
        assert_eq!(jobs[0].topic, topic);
        bench.ack(&jobs[0]).await;
    }
}

pub(crate) async fn keys_and_reasons_of_any_text_are_kept(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let longest_key = "\u{10FFFF}".repeat(MAX_DEDUPE_KEY_BYTES / 4);
    let longest_reason = "é".repeat(MAX_REASON_BYTES / 2);
    let texts = [
        ("\0", "\0"),
        ("a\0b", ""),
        ("a\0c", "a\0c"),
        ("'; DROP TABLE job; --", "$1 %s {job} \\x00"),
        (" \t\r\n\u{85}\u{2028} ", "\u{FEFF}\u{1F525}"),
        ("A", "upper"),
        ("a", "lower"),
        ("e\u{301}", "decomposed"),
        ("é", "composed"),
        (&longest_key, &longest_reason),
    ];
    for (key, reason) in texts {
        let enqueued = bench.enqueue(key, keyed(key)).await;
        assert!(!enqueued.coalesced, "{key:?} is a key of its own");
        assert!(bench.enqueue(key, keyed(key)).await.coalesced, "{key:?} is known");
        let job = bench.take().await;
        assert_eq!((job.dedupe_key.as_deref(), &*job.payload), (Some(key), key.as_bytes()));
        bench.queue.park(&job.lease.token, reason).await.unwrap();
        let after = bench.queue.parked(&bench.topic, None, MAX_BATCH).await.unwrap();
        let parked = after.jobs.iter().find(|parked| parked.id == job.id).expect("it is parked");
        assert_eq!((parked.dedupe_key.as_deref(), &*parked.reason), (Some(key), reason));
    }
}

pub(crate) async fn the_ends_of_time_are_times(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.enqueue("never", not_before(Timestamp::MAX)).await;
    bench.enqueue("at once", not_before(Timestamp::MIN)).await;
    let job = bench.take().await;
    assert_eq!(job.payload, "at once");
    bench.queue.nack(&job.lease.token, Timestamp::MIN).await.unwrap();
    let job = bench.take().await;
    bench.queue.nack(&job.lease.token, Timestamp::MAX).await.unwrap();
    bench.nothing_is_ready().await;
    let stats = bench.queue.stats(&bench.topic).await.unwrap();
    assert_eq!(stats, TopicStats { delayed: 2, ..TopicStats::default() });
}
