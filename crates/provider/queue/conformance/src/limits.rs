//! What passes a limit is refused, and changes nothing.

use std::time::Duration;

use bytes::Bytes;
use flames_error::ErrorKind;
use flames_queue::{
    EnqueueOptions, MAX_BATCH, MAX_DEDUPE_KEY_BYTES, MAX_LEASE, MAX_PAYLOAD_BYTES, MIN_LEASE, TopicStats,
};

use crate::{Bench, Fixture, keyed, refused};

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
