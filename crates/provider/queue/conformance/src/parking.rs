//! Jobs that cannot be done are set aside, and counted.

use flames_clock::Timestamp;
use flames_error::ErrorKind;
use flames_queue::{JobId, MAX_REASON_BYTES, ParkedJob, TopicStats};

use crate::{Bench, Fixture, keyed, not_before, refused};

pub(crate) async fn a_parked_job_is_not_delivered(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    let job = bench.take_for(2).await;
    bench.park(&job).await;
    bench.nothing_is_ready().await;
    bench.pass(3).await;
    bench.nothing_is_ready().await;
}

pub(crate) async fn parked_jobs_are_listed_with_their_reason(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.enqueue("a", keyed("vm_1")).await;
    let first = bench.take().await;
    bench.queue.nack(&first.lease.token, Timestamp::UNIX_EPOCH).await.unwrap();
    let job = bench.take().await;
    let before = bench.fixture.clock().now();
    bench.queue.park(&job.lease.token, "no such image: ä").await.unwrap();

    let page = bench.queue.parked(&bench.topic, None, 256).await.unwrap();
    let [parked] = &page.jobs[..] else { panic!("one job is parked, not {:?}", page.jobs) };
    let expected = ParkedJob {
        id: job.id,
        payload: job.payload,
        dedupe_key: Some("vm_1".to_owned()),
        attempts: 2,
        reason: "no such image: ä".to_owned(),
        parked_at: parked.parked_at,
    };
    assert_eq!((parked, &page.next), (&expected, &None));
    let distance = parked.parked_at.duration_since(before).abs();
    assert!(distance.unsigned_abs() < bench.units(2), "it was parked now, not {distance} away");
}

pub(crate) async fn pages_of_parked_jobs_meet(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let mut ids = Vec::new();
    for number in 0..5 {
        bench.add(&format!("job {number}")).await;
        let job = bench.take().await;
        bench.park(&job).await;
        ids.push(job.id);
    }
    ids.sort();
    for limit in [1, 2, 4, 5, 256] {
        let (mut listed, mut after) = (Vec::new(), None);
        for _ in 0..=ids.len() {
            let page = bench.queue.parked(&bench.topic, after.as_ref(), limit).await.unwrap();
            assert!(page.jobs.len() <= limit);
            listed.extend(page.jobs.into_iter().map(|job| job.id));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(after, None, "the pages end");
        assert_eq!(listed, ids, "pages of {limit}: by id, each once");
    }
}

pub(crate) async fn a_long_reason_is_cut_between_letters(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    let job = bench.take().await;
    let reason = format!("x{}", "ä".repeat(MAX_REASON_BYTES));
    bench.queue.park(&job.lease.token, &reason).await.unwrap();
    let page = bench.queue.parked(&bench.topic, None, 1).await.unwrap();
    let kept = &page.jobs[0].reason;
    assert!(kept.len() <= MAX_REASON_BYTES, "{} bytes were kept", kept.len());
    assert!(
        kept.len() > MAX_REASON_BYTES - 4 && reason.starts_with(kept.as_str()),
        "no more is cut than must be"
    );
}

pub(crate) async fn a_requeued_job_is_delivered_again(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    let job = bench.take().await;
    bench.park(&job).await;
    bench.queue.requeue(&bench.topic, &job.id).await.unwrap();
    let again = bench.take().await;
    assert_eq!((&again.id, &again.payload, again.attempt), (&job.id, &job.payload, 1));
    assert_eq!(bench.queue.parked(&bench.topic, None, 256).await.unwrap().jobs, []);
    bench.ack(&again).await;
    bench.nothing_is_ready().await;
}

pub(crate) async fn only_a_parked_job_can_be_requeued(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let unknown = JobId::new("no-such-job").unwrap();
    refused(bench.queue.requeue(&bench.topic, &unknown).await, ErrorKind::NotFound);
    let ready = bench.add("a").await.job;
    refused(bench.queue.requeue(&bench.topic, &ready).await, ErrorKind::NotFound);
    let job = bench.take().await;
    refused(bench.queue.requeue(&bench.topic, &job.id).await, ErrorKind::NotFound);
    bench.park(&job).await;
    bench.queue.requeue(&bench.topic, &job.id).await.unwrap();
    refused(bench.queue.requeue(&bench.topic, &job.id).await, ErrorKind::NotFound);
}

pub(crate) async fn the_statistics_count_each_state(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    assert_eq!(bench.queue.stats(&bench.topic).await.unwrap(), TopicStats::default());
    for payload in ["parked", "leased", "expired"] {
        bench.add(payload).await;
        let job = bench.take_for(if payload == "expired" { 2 } else { 100 }).await;
        if payload == "parked" {
            bench.park(&job).await;
        }
    }
    for payload in ["ready", "ready too"] {
        bench.add(payload).await;
    }
    for _ in 0..3 {
        bench.enqueue("delayed", not_before(bench.in_units(50))).await;
    }
    let stats = bench.queue.stats(&bench.topic).await.unwrap();
    assert_eq!(stats, TopicStats { ready: 2, delayed: 3, leased: 2, parked: 1 });
    bench.pass(3).await;
    let stats = bench.queue.stats(&bench.topic).await.unwrap();
    assert_eq!(stats, TopicStats { ready: 3, delayed: 3, leased: 1, parked: 1 }, "an expired lease is ready");
}

pub(crate) async fn a_requeued_job_still_has_its_dedupe_key(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.enqueue("a", keyed("vm_1")).await;
    let job = bench.take().await;
    bench.park(&job).await;
    bench.queue.requeue(&bench.topic, &job.id).await.unwrap();
    let enqueued = bench.enqueue("b", keyed("vm_1")).await;
    assert_eq!((enqueued.coalesced, &enqueued.job), (true, &job.id));
    let again = bench.take().await;
    assert_eq!((&again.id, &*again.payload), (&job.id, &b"b"[..]));
    bench.ack(&again).await;
    bench.nothing_is_ready().await;
}
