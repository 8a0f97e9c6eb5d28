//! Jobs reach workers, once at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flames_clock::{ClockExt, Timestamp};
use flames_error::ErrorKind;
use flames_queue::{EnqueueOptions, MAX_PAYLOAD_BYTES, Priority, WorkQueueExt, WorkerId};
use futures::StreamExt;

use crate::{Bench, Fixture, payloads, refused, topic};

/// How long a hint may take in real time.
const HINT_LIMIT: Duration = Duration::from_secs(10);

pub(crate) async fn a_job_is_delivered_as_it_was_enqueued(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let options =
        EnqueueOptions { dedupe_key: Some("vm/1 ä".to_owned()), not_before: None, priority: Priority(-3) };
    let enqueued = bench.enqueue("payload", options).await;
    assert!(!enqueued.coalesced);

    let job = bench.take_for(4).await;
    assert_eq!(job.id, enqueued.job);
    assert_eq!(job.topic, bench.topic);
    assert_eq!(job.payload, "payload");
    assert_eq!(job.dedupe_key.as_deref(), Some("vm/1 ä"));
    assert_eq!(job.priority, Priority(-3));
    assert_eq!(job.attempt, 1);
    assert!(job.lease.expires_at > bench.in_units(3), "the lease is as long as asked");
    assert!(job.lease.expires_at < bench.in_units(5), "the lease is no longer than asked");
}

pub(crate) async fn an_empty_payload_and_the_largest_are_kept_whole(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let largest: Bytes = (0..MAX_PAYLOAD_BYTES).map(|index| u8::try_from(index % 256).unwrap()).collect();
    for payload in [Bytes::new(), largest] {
        bench.queue.enqueue(&bench.topic, payload.clone(), EnqueueOptions::default()).await.unwrap();
        let job = bench.take().await;
        assert_eq!(job.payload, payload);
        bench.ack(&job).await;
    }
}

pub(crate) async fn an_empty_topic_gives_an_empty_batch(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.nothing_is_ready().await;
}

pub(crate) async fn dequeue_one_answers_no_jobs(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    refused(bench.queue.dequeue_one(&bench.topic, &bench.worker, bench.long()).await, ErrorKind::NoJobs);
    bench.add("a").await;
    let job = bench.queue.dequeue_one(&bench.topic, &bench.worker, bench.long()).await.unwrap();
    assert_eq!(job.payload, "a");
    refused(bench.queue.dequeue_one(&bench.topic, &bench.worker, bench.long()).await, ErrorKind::NoJobs);
}

pub(crate) async fn a_leased_job_is_not_delivered_twice(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    bench.take().await;
    bench.nothing_is_ready().await;
    let other = WorkerId::new("worker-2").unwrap();
    assert_eq!(bench.queue.dequeue(&bench.topic, &other, 1, bench.long()).await.unwrap(), []);
}

pub(crate) async fn a_batch_takes_no_more_than_asked(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    for payload in ["a", "b", "c", "d", "e"] {
        bench.add(payload).await;
    }
    let mut delivered = Vec::new();
    for (asked, expected) in [(2, 2), (1, 1), (256, 2), (1, 0)] {
        let jobs = bench.queue.dequeue(&bench.topic, &bench.worker, asked, bench.long()).await.unwrap();
        assert_eq!(jobs.len(), expected, "asked for {asked}");
        delivered.extend(jobs);
    }
    let mut delivered = payloads(&delivered);
    delivered.sort_unstable();
    assert_eq!(delivered, ["a", "b", "c", "d", "e"]);
}

pub(crate) async fn many_workers_share_without_overlap(fixture: &dyn Fixture) {
    const JOBS: usize = 120;
    let bench = Bench::new(fixture);
    for number in 0..JOBS {
        bench.add(&format!("job {number}")).await;
    }
    let workers = (0..6).map(|number| {
        let (queue, topic, lease) = (Arc::clone(&bench.queue), bench.topic.clone(), bench.long());
        let worker = WorkerId::new(format!("worker-{number}")).unwrap();
        tokio::spawn(async move {
            let mut seen = Vec::new();
            loop {
                let jobs = queue.dequeue(&topic, &worker, 7, lease).await.unwrap();
                if jobs.is_empty() {
                    return seen;
                }
                for job in jobs {
                    tokio::task::yield_now().await;
                    queue.ack(&job.lease.token).await.unwrap();
                    seen.push(job.payload);
                }
            }
        })
    });
    let mut deliveries = BTreeMap::<Bytes, usize>::new();
    for worker in futures::future::join_all(workers).await {
        for payload in worker.unwrap() {
            *deliveries.entry(payload).or_default() += 1;
        }
    }
    assert_eq!(deliveries.len(), JOBS, "each job is delivered");
    assert!(deliveries.values().all(|count| *count == 1), "no job is delivered to two workers");
}

pub(crate) async fn topics_are_apart(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let other = topic("vms.other");
    bench.add("a").await;
    assert_eq!(bench.queue.dequeue(&other, &bench.worker, 256, bench.long()).await.unwrap(), []);
    bench.queue.enqueue(&other, Bytes::from_static(b"b"), EnqueueOptions::default()).await.unwrap();
    assert_eq!(bench.take().await.payload, "a");
    let jobs = bench.queue.dequeue(&other, &bench.worker, 256, bench.long()).await.unwrap();
    assert_eq!(payloads(&jobs), ["b"]);
    assert_eq!(jobs[0].topic, other);
}

pub(crate) async fn attempts_are_counted(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    let first = bench.take().await;
    assert_eq!(first.attempt, 1);
    bench.queue.nack(&first.lease.token, Timestamp::UNIX_EPOCH).await.unwrap();
    let second = bench.take_for(2).await;
    assert_eq!(second.attempt, 2, "after it was given back");
    bench.pass(3).await;
    let third = bench.take().await;
    assert_eq!(third.attempt, 3, "after its lease expired");
    assert_eq!((&first.id, &first.id), (&second.id, &third.id), "it is one job throughout");
}

pub(crate) async fn an_acknowledged_job_is_gone(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    let job = bench.take_for(2).await;
    bench.ack(&job).await;
    bench.nothing_is_ready().await;
    bench.pass(3).await;
    bench.nothing_is_ready().await;
    assert_eq!(bench.queue.stats(&bench.topic).await.unwrap(), Default::default());
}

pub(crate) async fn an_enqueue_wakes_a_waiting_worker(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let mut wakeups = bench.queue.wakeups(&bench.topic).await.unwrap();
    for payload in ["a", "b"] {
        bench.nothing_is_ready().await;
        let (hint, _) = futures::join!(
            async { fixture.clock().timeout(HINT_LIMIT, wakeups.next()).await },
            bench.add(payload)
        );
        assert_eq!(hint, Ok(Some(())), "the enqueue of {payload} is hinted");
        let job = bench.take().await;
        bench.ack(&job).await;
    }
}
