//! When jobs are ready, and which goes first.

use flames_clock::Timestamp;

use crate::{Bench, Fixture, not_before, payloads, with_priority};

pub(crate) async fn a_delayed_job_waits_for_its_time(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.enqueue("a", not_before(bench.in_units(4))).await;
    bench.nothing_is_ready().await;
    bench.pass(2).await;
    bench.nothing_is_ready().await;
    bench.pass(3).await;
    assert_eq!(bench.take().await.payload, "a");
}

pub(crate) async fn a_job_for_a_time_in_the_past_is_ready_now(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.enqueue("a", not_before(Timestamp::UNIX_EPOCH)).await;
    assert_eq!(bench.take().await.payload, "a");
}

pub(crate) async fn higher_priority_goes_first(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    for (payload, priority) in [("low", -128), ("default", 0), ("high", 127), ("lower", -1), ("higher", 1)] {
        bench.enqueue(payload, with_priority(priority)).await;
    }
    let mut order = Vec::new();
    for _ in 0..5 {
        let jobs = bench.queue.dequeue(&bench.topic, &bench.worker, 1, bench.long()).await.unwrap();
        order.extend(jobs);
    }
    assert_eq!(payloads(&order), ["high", "higher", "default", "lower", "low"], "one by one");

    for job in &order {
        bench.queue.nack(&job.lease.token, Timestamp::UNIX_EPOCH).await.unwrap();
    }
    assert_eq!(
        payloads(&bench.take_all().await),
        ["high", "higher", "default", "lower", "low"],
        "in one batch"
    );
}

pub(crate) async fn equal_priority_goes_in_order_of_readiness(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.enqueue("third", not_before(bench.in_units(4))).await;
    bench.enqueue("second", not_before(bench.in_units(2))).await;
    bench.add("first").await;
    bench.pass(6).await;
    bench.add("fourth").await;
    bench.pass(1).await;
    bench.add("fifth").await;
    assert_eq!(payloads(&bench.take_all().await), ["first", "second", "third", "fourth", "fifth"]);
}
