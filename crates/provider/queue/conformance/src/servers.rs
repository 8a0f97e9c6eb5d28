//! A server that is killed, and a pool that is used up.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use flames_error::ErrorKind;
use flames_queue::EnqueueOptions;
use futures::future::join_all;

use crate::ledger::{Ledger, in_time, taken_once_reachable};
use crate::{Bench, Fixture, keyed, not_before, payloads, topic};

pub(crate) async fn a_server_killed_under_load_loses_no_job(fixture: &dyn Fixture) {
    let ledger = Ledger::new(fixture, "after a restart".to_owned());
    let stop = Mutex::new(false);
    let producing = join_all((0..3).map(|number| ledger.produce(number, &stop)));
    let working = join_all((0..3).map(|number| ledger.work(number, &stop)));
    let killing = async {
        for kill in 0..2 {
            fixture.clock().sleep(Duration::from_millis(400)).await;
            ledger.burst(kill).await;
            fixture.restart_server().await;
        }
        fixture.clock().sleep(Duration::from_millis(400)).await;
        *stop.lock().unwrap() = true;
    };
    futures::join!(producing, working, killing);
    ledger.close().await;
}

pub(crate) async fn leases_delays_and_signals_outlive_a_killed_server(fixture: &dyn Fixture) {
    let mut bench = Bench::new(fixture);
    bench.enqueue("leased", keyed("leased")).await;
    // A server takes its time to start: this long, and no shorter.
    let long = bench.long();
    let leased = bench.queue.dequeue(&bench.topic, &bench.worker, 1, long).await.unwrap().remove(0);
    bench.enqueue("signalled", keyed("leased")).await;
    bench.enqueue("parked", keyed("parked")).await;
    let parked = bench.take().await;
    bench.park(&parked).await;
    bench.enqueue("delayed", not_before(bench.in_units(60))).await;
    bench.add("ready").await;
    fixture.restart_server().await;
    bench.queue = fixture.queue();
    let jobs = taken_once_reachable(fixture, &bench.topic, 256, long).await;
    assert_eq!(payloads(&jobs), ["ready"]);
    assert_eq!(bench.queue.parked(&bench.topic, None, 256).await.unwrap().jobs.len(), 1);
    bench.ack(&leased).await;
    assert_eq!(bench.take().await.payload, "signalled");
    assert_eq!(bench.queue.stats(&bench.topic).await.unwrap().delayed, 1);
}

pub(crate) async fn a_pool_that_is_used_up_is_told_as_exhausted(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("leased").await;
    let job = bench.take().await;
    let held = fixture.exhaust().await;
    let queue = &bench.queue;
    let other = topic("other");
    let enqueues = join_all((0..8).map(|_| {
        in_time(fixture, "an enqueue", queue.enqueue(&other, Bytes::new(), EnqueueOptions::default()))
    }));
    let (enqueued, acked, dequeued, stats) = futures::join!(
        enqueues,
        in_time(fixture, "an ack", queue.ack(&job.lease.token)),
        in_time(fixture, "a dequeue", queue.dequeue(&other, &bench.worker, 1, bench.long())),
        in_time(fixture, "statistics", queue.stats(&bench.topic)),
    );
    let changes = enqueued.into_iter().map(|outcome| outcome.map(drop)).chain([acked, dequeued.map(drop)]);
    for outcome in changes {
        assert_eq!(outcome.expect_err("no connection is free").kind(), ErrorKind::Exhausted);
    }
    if let Err(error) = stats {
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{error:?}");
    }
    drop(held);
    assert_eq!(taken_once_reachable(fixture, &other, 256, bench.long()).await, [], "nothing was changed");
    bench.ack(&job).await;
    bench.nothing_is_ready().await;
}
