//! A lease is a fencing token with an end.

use flames_clock::Timestamp;
use flames_error::ErrorKind;
use flames_queue::LeaseToken;

use crate::{Bench, Fixture, lease_is_lost, refused};

pub(crate) async fn a_job_comes_back_when_its_lease_expires(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let enqueued = bench.add("a").await;
    let first = bench.take_for(4).await;
    bench.pass(2).await;
    bench.nothing_is_ready().await;
    bench.pass(3).await;
    let second = bench.take().await;
    assert_eq!((&second.id, &second.payload), (&enqueued.job, &first.payload));
    assert_ne!(second.lease.token, first.lease.token, "each delivery has its own token");
}

pub(crate) async fn an_extended_lease_lives_longer(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    let job = bench.take_for(4).await;
    bench.pass(2).await;
    let extended = bench.queue.extend(&job.lease.token, bench.units(8)).await.unwrap();
    assert_eq!(extended.token, job.lease.token, "the token stays the same");
    assert!(extended.expires_at > job.lease.expires_at);
    bench.pass(4).await;
    bench.nothing_is_ready().await;
    bench.ack(&job).await;
    bench.nothing_is_ready().await;
}

pub(crate) async fn an_expired_lease_cannot_extend(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    let job = bench.take_for(2).await;
    bench.pass(3).await;
    refused(bench.queue.extend(&job.lease.token, bench.long()).await, ErrorKind::LeaseLost);
    assert_eq!(bench.take().await.payload, "a", "it is ready for others");
}

pub(crate) async fn an_expired_lease_cannot_ack(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    let job = bench.take_for(2).await;
    bench.pass(3).await;
    refused(bench.queue.ack(&job.lease.token).await, ErrorKind::LeaseLost);
    assert_eq!(bench.take().await.payload, "a", "it is not gone");
}

pub(crate) async fn an_expired_lease_cannot_nack(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    let job = bench.take_for(2).await;
    bench.pass(3).await;
    refused(bench.queue.nack(&job.lease.token, bench.in_units(50)).await, ErrorKind::LeaseLost);
    assert_eq!(bench.take().await.payload, "a", "it is not put off");
}

pub(crate) async fn an_expired_lease_cannot_park(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    let job = bench.take_for(2).await;
    bench.pass(3).await;
    refused(bench.queue.park(&job.lease.token, "stale").await, ErrorKind::LeaseLost);
    assert_eq!(bench.take().await.payload, "a", "it is not set aside");
}

pub(crate) async fn a_stale_worker_cannot_ack_anothers_job(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    let stale = bench.take_for(2).await;
    bench.pass(3).await;
    let current = bench.take().await;
    lease_is_lost(&bench, &stale.lease.token).await;
    bench.nothing_is_ready().await;
    let stats = bench.queue.stats(&bench.topic).await.unwrap();
    assert_eq!(stats.leased, 1, "the other worker still holds it");
    bench.ack(&current).await;
}

pub(crate) async fn a_lease_settles_once(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    let acknowledged = bench.take().await;
    bench.ack(&acknowledged).await;
    lease_is_lost(&bench, &acknowledged.lease.token).await;

    bench.add("b").await;
    let given_back = bench.take().await;
    bench.queue.nack(&given_back.lease.token, Timestamp::UNIX_EPOCH).await.unwrap();
    lease_is_lost(&bench, &given_back.lease.token).await;

    let parked = bench.take().await;
    bench.park(&parked).await;
    lease_is_lost(&bench, &parked.lease.token).await;
    assert_eq!(bench.queue.stats(&bench.topic).await.unwrap().parked, 1);
}

pub(crate) async fn a_lease_that_was_never_given_settles_nothing(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    let job = bench.take().await;
    for raw in ["", "1", "no such lease", "ä", job.id.as_str()] {
        lease_is_lost(&bench, &LeaseToken::from_raw(raw)).await;
    }
    lease_is_lost(&bench, &LeaseToken::from_raw(format!("{}0", job.lease.token.as_raw()))).await;
    bench.ack(&job).await;
}

pub(crate) async fn a_job_given_back_waits_for_its_retry_time(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    let job = bench.take().await;
    bench.queue.nack(&job.lease.token, bench.in_units(4)).await.unwrap();
    bench.nothing_is_ready().await;
    bench.pass(2).await;
    bench.nothing_is_ready().await;
    bench.pass(3).await;
    assert_eq!(bench.take().await.payload, "a");
}

pub(crate) async fn a_job_given_back_into_the_past_is_ready_now(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    let job = bench.take().await;
    bench.queue.nack(&job.lease.token, Timestamp::UNIX_EPOCH).await.unwrap();
    assert_eq!(bench.take().await.payload, "a");
}

pub(crate) async fn an_extension_may_shorten_a_lease(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    let job = bench.take_for(100).await;
    let shortened = bench.queue.extend(&job.lease.token, bench.units(2)).await.unwrap();
    assert!(shortened.expires_at < job.lease.expires_at);
    bench.pass(3).await;
    let again = bench.take().await;
    assert_eq!((again.id, again.attempt), (job.id, 2));
    lease_is_lost(&bench, &job.lease.token).await;
}
