//! A wall clock that jumps, as time daemons and operators make it.

use crate::{Bench, Fixture, lease_is_lost, not_before};

/// More units than any case lets pass.
const FAR: i64 = 5_000;

fn jump(bench: &Bench<'_>, units: i64) {
    bench.fixture.jump_clock(units * i64::try_from(bench.fixture.unit().as_millis()).unwrap());
}

pub(crate) async fn a_clock_set_forward_ends_no_lease(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    let job = bench.take_for(4).await;
    jump(&bench, FAR);
    bench.nothing_is_ready().await;
    let extended = bench.queue.extend(&job.lease.token, bench.units(4)).await.unwrap();
    assert!(
        extended.expires_at > bench.in_units(3),
        "the end of the lease is told by the clock as it is now"
    );
    bench.ack(&job).await;
    bench.nothing_is_ready().await;
}

pub(crate) async fn a_clock_set_back_puts_off_no_end_of_a_lease(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    let first = bench.take_for(4).await;
    jump(&bench, -FAR);
    bench.pass(2).await;
    bench.nothing_is_ready().await;
    bench.pass(3).await;
    let again = bench.take().await;
    assert_eq!((again.id, again.attempt), (first.id, 2), "the lease ended when it was to end");
    lease_is_lost(&bench, &first.lease.token).await;
}

pub(crate) async fn a_clock_set_back_hides_no_job_that_was_ready(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("before").await;
    let leased = bench.take_for(2).await;
    bench.add("also before").await;
    jump(&bench, -FAR);
    assert_eq!(bench.take().await.payload, "also before");
    bench.add("after").await;
    assert_eq!(bench.take().await.payload, "after", "a job for now is ready now, whatever now is");
    bench.pass(3).await;
    assert_eq!(bench.take().await.id, leased.id);
    bench.enqueue("delayed", not_before(bench.in_units(2))).await;
    bench.nothing_is_ready().await;
    bench.pass(3).await;
    assert_eq!(bench.take().await.payload, "delayed", "a delay is counted from the clock as it is");
}
