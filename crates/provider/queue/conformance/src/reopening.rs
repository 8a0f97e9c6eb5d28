//! A queue that is durable, closed and opened again.

use flames_clock::Timestamp;
use flames_queue::TopicStats;

use crate::{Bench, Fixture, keyed, lease_is_lost, not_before, payloads, with_priority};

pub(crate) async fn every_job_outlives_a_reopen_as_it_was(fixture: &dyn Fixture) {
    let mut bench = Bench::new(fixture);
    bench.enqueue("parked", keyed("parked")).await;
    let parked = bench.take().await;
    bench.park(&parked).await;
    bench.add("tried").await;
    let tried = bench.take().await;
    bench.queue.nack(&tried.lease.token, Timestamp::UNIX_EPOCH).await.unwrap();
    bench.enqueue("urgent", with_priority(5)).await;
    bench.add("last").await;
    let before = bench.queue.parked(&bench.topic, None, 256).await.unwrap();

    bench.reopen().await;
    assert_eq!(
        bench.queue.stats(&bench.topic).await.unwrap(),
        TopicStats { ready: 3, parked: 1, ..Default::default() }
    );
    assert_eq!(bench.queue.parked(&bench.topic, None, 256).await.unwrap(), before);
    let jobs = bench.take_all().await;
    assert_eq!(payloads(&jobs), ["urgent", "tried", "last"]);
    assert_eq!((&jobs[1].id, jobs[1].attempt), (&tried.id, 2), "its attempts go on");
    lease_is_lost(&bench, &tried.lease.token).await;
    assert!(bench.enqueue("again", keyed("parked")).await.coalesced, "its dedupe key is still known");
    let added = bench.add("new").await;
    assert!(jobs.iter().all(|job| job.id != added.job), "an id is never given twice");
}

pub(crate) async fn a_delay_outlives_a_reopen(fixture: &dyn Fixture) {
    let mut bench = Bench::new(fixture);
    bench.enqueue("delayed", not_before(bench.in_units(6))).await;
    bench.add("put off").await;
    let job = bench.take().await;
    bench.queue.nack(&job.lease.token, bench.in_units(6)).await.unwrap();
    bench.reopen().await;
    bench.nothing_is_ready().await;
    bench.pass(7).await;
    let mut delivered = bench.take_all().await;
    delivered.sort_by(|one, other| one.payload.cmp(&other.payload));
    assert_eq!(payloads(&delivered), ["delayed", "put off"]);
}

pub(crate) async fn a_lease_outlives_a_reopen(fixture: &dyn Fixture) {
    let mut bench = Bench::new(fixture);
    bench.add("kept").await;
    let kept = bench.take_for(100).await;
    bench.add("ended").await;
    let ended = bench.take_for(6).await;
    bench.reopen().await;
    bench.nothing_is_ready().await;
    bench.ack(&kept).await;
    bench.pass(7).await;
    let again = bench.take().await;
    assert_eq!((&again.id, again.attempt), (&ended.id, 2));
    lease_is_lost(&bench, &ended.lease.token).await;
    bench.ack(&again).await;
    bench.nothing_is_ready().await;
}

pub(crate) async fn a_signal_while_leased_outlives_a_reopen(fixture: &dyn Fixture) {
    let mut bench = Bench::new(fixture);
    bench.enqueue("first", keyed("vm_1")).await;
    let job = bench.take().await;
    bench.enqueue("second", keyed("vm_1")).await;
    bench.reopen().await;
    bench.nothing_is_ready().await;
    bench.ack(&job).await;
    assert_eq!(bench.take().await.payload, "second");
}
