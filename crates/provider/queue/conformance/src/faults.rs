//! A broken network: cut, stalled, half-open.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flames_clock::{ClockExt, RandomExt, SeededRandom, Timestamp};
use flames_conformance_runner::seeds;
use flames_error::ErrorKind;
use flames_queue::{EnqueueOptions, Topic};
use futures::future::join_all;

use crate::ledger::{Ledger, assert_is_told, in_time, is_out_of_reach, taken_once_reachable};
use crate::{Bench, Fixture, topic};

/// After how long a case that tries one byte after the other stops.
const LONG_ENOUGH: Duration = Duration::from_secs(20);

/// Where connections are cut: closely where the operation's own words are, then further apart.
fn bytes_to_cut_at() -> impl Iterator<Item = u64> {
    (0..400).step_by(16).chain((400..2_600).step_by(67))
}

/// Brings a connection up again, so that the next fault hits one that is in use.
async fn warm(fixture: &dyn Fixture) {
    taken_once_reachable(fixture, &topic("warm"), 1, fixture.unit()).await;
}

/// The payloads of a topic that are ready now, acknowledged.
async fn emptied(fixture: &dyn Fixture, topic: &Topic) -> Vec<Bytes> {
    let jobs = taken_once_reachable(fixture, topic, 256, fixture.operation_deadline() * 10).await;
    for job in &jobs {
        fixture.queue().ack(&job.lease.token).await.unwrap();
    }
    jobs.into_iter().map(|job| job.payload).collect()
}

pub(crate) async fn an_enqueue_cut_at_any_byte_is_told_truthfully(fixture: &dyn Fixture) {
    let (topic, began) = (topic("cut"), Instant::now());
    let (mut hit, mut refused) = (0, Vec::new());
    for bytes in bytes_to_cut_at().take_while(|_| began.elapsed() < LONG_ENOUGH) {
        warm(fixture).await;
        fixture.faults().cut_after(bytes).await;
        let payload = Bytes::from(format!("{bytes}"));
        let queue = fixture.queue();
        let enqueue = queue.enqueue(&topic, payload.clone(), EnqueueOptions::default());
        let answer = in_time(fixture, "an enqueue", enqueue).await;
        fixture.faults().heal().await;
        let found = emptied(fixture, &topic).await;
        for found in &found {
            assert!(!refused.contains(found), "{found:?} was refused, and is there");
        }
        match answer {
            Ok(_) => assert!(
                found.contains(&payload),
                "cut after {bytes} bytes: it is said to be there, and is not"
            ),
            Err(error) => {
                assert_is_told("an enqueue", &error);
                hit += 1;
                if is_out_of_reach(error.kind()) {
                    assert!(!found.contains(&payload), "cut after {bytes} bytes: {error:?}, and it is there");
                    refused.push(payload);
                }
            }
        }
    }
    assert!(hit > 0, "no enqueue was hit: is the fixture's proxy in between?");
}

pub(crate) async fn an_ack_cut_at_any_byte_is_told_truthfully(fixture: &dyn Fixture) {
    let (topic, began) = (topic("cut"), Instant::now());
    let mut hit = 0;
    for bytes in bytes_to_cut_at().take_while(|_| began.elapsed() < LONG_ENOUGH) {
        let when = format!("cut after {bytes} bytes");
        let queue = fixture.queue();
        warm(fixture).await;
        queue.enqueue(&topic, Bytes::from(when.clone()), EnqueueOptions::default()).await.unwrap();
        let mut jobs = taken_once_reachable(fixture, &topic, 1, fixture.operation_deadline() * 10).await;
        let job = jobs.remove(0);
        fixture.faults().cut_after(bytes).await;
        let answer = in_time(fixture, "an ack", queue.ack(&job.lease.token)).await;
        fixture.faults().heal().await;
        warm(fixture).await;
        let again =
            in_time(fixture, "an ack", queue.ack(&job.lease.token)).await.map_err(|error| error.kind());
        match answer {
            Ok(()) => assert_eq!(again, Err(ErrorKind::LeaseLost), "{when}: it is said to be done"),
            Err(error) => {
                assert_is_told("an ack", &error);
                hit += 1;
                if is_out_of_reach(error.kind()) {
                    assert_eq!(again, Ok(()), "{when}: {error:?}, so the lease still holds");
                } else {
                    assert!(matches!(again, Ok(()) | Err(ErrorKind::LeaseLost)), "{when}: {again:?}");
                }
            }
        }
        let stats = fixture.queue().stats(&topic).await.unwrap();
        assert_eq!(stats, Default::default(), "{when}: nothing is left");
    }
    assert!(hit > 0, "no ack was hit: is the fixture's proxy in between?");
}

pub(crate) async fn an_answer_that_never_comes_is_no_refusal(fixture: &dyn Fixture) {
    let topic = topic("stalled");
    let lease = fixture.operation_deadline() * 10;
    for round in 0..3 {
        let queue = fixture.queue();
        warm(fixture).await;
        fixture.faults().stall_answers().await;
        let enqueue = queue.enqueue(&topic, Bytes::from_static(b"a"), EnqueueOptions::default());
        let error =
            in_time(fixture, "an enqueue", enqueue).await.expect_err("no answer came, and yet it is known");
        assert_is_told("an enqueue", &error);
        fixture.faults().heal().await;
        warm(fixture).await;
        let mut jobs = taken_once_reachable(fixture, &topic, 256, lease).await;
        let arrived = !jobs.is_empty();
        assert!(
            !arrived || !is_out_of_reach(error.kind()),
            "round {round}: it arrived, and is said not to: {error:?}"
        );
        if !arrived {
            queue.enqueue(&topic, Bytes::from_static(b"b"), EnqueueOptions::default()).await.unwrap();
            jobs = taken_once_reachable(fixture, &topic, 1, lease).await;
        }
        let token = &jobs[0].lease.token;
        fixture.faults().stall_answers().await;
        let error = in_time(fixture, "an ack", queue.ack(token)).await;
        let error = error.expect_err("no answer came, and yet it is known");
        assert_is_told("an ack", &error);
        fixture.faults().heal().await;
        warm(fixture).await;
        match in_time(fixture, "an ack", queue.ack(token)).await.map_err(|error| error.kind()) {
            Ok(()) => {}
            Err(ErrorKind::LeaseLost) => {
                assert!(
                    !is_out_of_reach(error.kind()),
                    "round {round}: it arrived, and is said not to: {error:?}"
                );
            }
            Err(kind) => panic!("round {round}: {kind}"),
        }
    }
}

pub(crate) async fn a_dequeue_whose_answer_is_lost_loses_no_job(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    for number in 0..6 {
        bench.add(&format!("{number}")).await;
    }
    let lease = fixture.unit() * 5;
    for bytes in [40, 200, 700] {
        warm(fixture).await;
        fixture.faults().cut_after(bytes).await;
        let dequeue = bench.queue.dequeue(&bench.topic, &bench.worker, 2, lease);
        if let Err(error) = in_time(fixture, "a dequeue", dequeue).await {
            assert_is_told("a dequeue", &error);
        }
        fixture.faults().heal().await;
    }
    warm(fixture).await;
    bench.pass(6).await;
    let jobs = taken_once_reachable(fixture, &bench.topic, 256, bench.long()).await;
    assert_eq!(jobs.len(), 6, "all come back when the leases end that nobody heard of: {jobs:?}");
}

/// Breaks the network in one of several ways, at random moments and bytes, for some time.
async fn trouble(fixture: &dyn Fixture, random: &SeededRandom) {
    let faults = fixture.faults();
    let pause = async |most: u64| fixture.clock().sleep(Duration::from_millis(random.below(most))).await;
    for _ in 0..24 {
        pause(90).await;
        match random.below(8) {
            0..3 => faults.cut_connections().await,
            3..5 => faults.cut_after(random.below(400)).await,
            5 => faults.cut_after(random.below(4_000)).await,
            6 => faults.stall_answers().await,
            _ => faults.stall().await,
        }
        pause(200).await;
        faults.heal().await;
    }
}

pub(crate) async fn through_random_faults_no_job_is_lost_or_stolen(fixture: &dyn Fixture) {
    for seed in seeds("through_random_faults_no_job_is_lost_or_stolen", [31]) {
        let random = SeededRandom::new(seed);
        let ledger = Ledger::new(fixture, format!("seed {seed}"));
        let stop = Mutex::new(false);
        let producing = join_all((0..3).map(|number| ledger.produce(number, &stop)));
        let working = join_all((0..3).map(|number| ledger.work(number, &stop)));
        let trouble = async {
            trouble(fixture, &random).await;
            *stop.lock().unwrap() = true;
        };
        futures::join!(producing, working, trouble);
        ledger.close().await;
        assert!(ledger.failed() > 0, "seed {seed}: the faults hit nothing");
    }
}

pub(crate) async fn a_server_that_does_not_answer_is_told_within_the_deadline(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    bench.add("a").await;
    bench.add("b").await;
    let jobs = bench.take_all().await;
    let (one, other) = (&jobs[0].lease.token, &jobs[1].lease.token);
    fixture.faults().stall().await;
    let queue = &bench.queue;
    let (topic, job) = (&bench.topic, &jobs[0].id);
    let changes = futures::join!(
        in_time(fixture, "an enqueue", queue.enqueue(topic, Bytes::new(), EnqueueOptions::default())),
        in_time(fixture, "a dequeue", queue.dequeue(topic, &bench.worker, 1, bench.long())),
        in_time(fixture, "an extend", queue.extend(one, bench.long())),
        in_time(fixture, "an ack", queue.ack(one)),
        in_time(fixture, "a nack", queue.nack(other, Timestamp::UNIX_EPOCH)),
        in_time(fixture, "a park", queue.park(other, "")),
        in_time(fixture, "a requeue", queue.requeue(topic, job)),
    );
    let (enqueued, dequeued, extended, acked, nacked, parked, requeued) = changes;
    let outcomes =
        [enqueued.map(drop), dequeued.map(drop), extended.map(drop), acked, nacked, parked, requeued];
    for outcome in outcomes {
        assert_is_told("a change", &outcome.expect_err("nothing passes"));
    }
    let reads = futures::join!(
        in_time(fixture, "a page", queue.parked(topic, None, 1)),
        in_time(fixture, "statistics", queue.stats(topic)),
    );
    for outcome in [reads.0.map(drop), reads.1.map(drop)] {
        let error = outcome.expect_err("nothing passes");
        assert!(is_out_of_reach(error.kind()), "a read changes nothing: {error:?}");
    }
    fixture.faults().heal().await;
    warm(fixture).await;
}

pub(crate) async fn a_queue_works_again_once_its_network_does(fixture: &dyn Fixture) {
    for round in 0..3 {
        let topic = topic(&format!("round-{round}"));
        match round {
            0 => fixture.faults().cut_connections().await,
            1 => {
                fixture.faults().cut_after(0).await;
                let queue = fixture.queue();
                let stats = in_time(fixture, "statistics", queue.stats(&topic)).await;
                assert!(stats.is_err_and(|error| is_out_of_reach(error.kind())), "nothing passes");
                fixture.faults().heal().await;
            }
            _ => {
                fixture.faults().stall().await;
                fixture.clock().sleep(fixture.operation_deadline() / 4).await;
                fixture.faults().heal().await;
            }
        }
        warm(fixture).await;
        let queue = fixture.queue();
        let mut wakeups = queue.wakeups(&topic).await.unwrap();
        queue.enqueue(&topic, Bytes::from_static(b"a"), EnqueueOptions::default()).await.unwrap();
        let hint =
            fixture.clock().timeout(Duration::from_secs(10), futures::StreamExt::next(&mut wakeups)).await;
        assert_eq!(hint, Ok(Some(())), "hints come again, too");
        assert_eq!(emptied(fixture, &topic).await, ["a"]);
    }
}
