//! Many at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flames_clock::ClockExt;
use flames_error::ErrorKind;
use flames_queue::{EnqueueOptions, WorkerId};
use futures::StreamExt;
use futures::future::join_all;

use crate::{Bench, Fixture, keyed, lease_is_lost, with_priority};

/// How long something may take that nothing holds up.
const PROMPT: Duration = Duration::from_secs(20);

pub(crate) async fn many_enqueues_of_one_key_make_one_job(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    for round in 0..5 {
        let key = format!("vm_{round}");
        let enqueues = (0..32).map(|number| {
            let (queue, topic, options) = (Arc::clone(&bench.queue), bench.topic.clone(), keyed(&key));
            tokio::spawn(async move {
                queue.enqueue(&topic, Bytes::from(format!("{number}")), options).await.unwrap()
            })
        });
        let enqueued: Vec<_> = join_all(enqueues).await.into_iter().map(Result::unwrap).collect();
        let new = enqueued.iter().filter(|enqueued| !enqueued.coalesced).count();
        let jobs: BTreeSet<_> = enqueued.iter().map(|enqueued| enqueued.job.clone()).collect();
        assert_eq!((new, jobs.len()), (1, 1), "one is made, and the others are folded into it");
        let job = bench.take().await;
        assert!(jobs.contains(&job.id));
        bench.ack(&job).await;
        bench.nothing_is_ready().await;
    }
}

pub(crate) async fn each_of_many_enqueues_is_told_its_own_job(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let enqueues = (0..100).map(|number: usize| {
        let (queue, topic) = (Arc::clone(&bench.queue), bench.topic.clone());
        tokio::spawn(async move {
            let options = if number.is_multiple_of(2) {
                EnqueueOptions::default()
            } else {
                keyed(&format!("vm_{}", 99 - number))
            };
            let payload = Bytes::from(format!("job {number}"));
            (queue.enqueue(&topic, payload.clone(), options).await.unwrap().job, payload)
        })
    });
    let told: BTreeMap<_, _> = join_all(enqueues).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(told.len(), 100, "each has an id of its own");
    let delivered: BTreeMap<_, _> =
        bench.take_all().await.into_iter().map(|job| (job.id, job.payload)).collect();
    assert_eq!(delivered, told);
}

pub(crate) async fn a_signal_that_races_with_the_ack_is_never_lost(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    for round in 0..40 {
        let key = format!("vm_{round}");
        bench.enqueue("first", keyed(&key)).await;
        let job = bench.take().await;
        let (queue, topic) = (Arc::clone(&bench.queue), bench.topic.clone());
        let signal = tokio::spawn(async move {
            for _ in 0..round % 7 {
                tokio::task::yield_now().await;
            }
            queue.enqueue(&topic, Bytes::from_static(b"second"), keyed(&key)).await.unwrap()
        });
        bench.ack(&job).await;
        let enqueued = signal.await.unwrap();
        let again = bench.take().await;
        assert_eq!(again.payload, "second", "round {round}, coalesced: {}", enqueued.coalesced);
        assert_eq!(again.id, enqueued.job);
        bench.ack(&again).await;
        bench.nothing_is_ready().await;
    }
}

pub(crate) async fn of_many_acks_of_one_lease_one_succeeds(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    for _ in 0..10 {
        bench.add("a").await;
        let job = bench.take().await;
        let acks = (0..8).map(|_| {
            let (queue, token) = (Arc::clone(&bench.queue), job.lease.token.clone());
            tokio::spawn(async move { queue.ack(&token).await })
        });
        let (mut done, mut lost) = (0, 0);
        for ack in join_all(acks).await {
            match ack.unwrap() {
                Ok(()) => done += 1,
                Err(error) if error.kind() == ErrorKind::LeaseLost => lost += 1,
                Err(error) => panic!("{error:?}"),
            }
        }
        assert_eq!((done, lost), (1, 7));
    }
}

pub(crate) async fn two_workers_of_one_name_are_told_apart(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let twin = Bench::new(fixture);
    assert_eq!(bench.worker, twin.worker);
    bench.add("a").await;
    bench.add("b").await;
    let of = async |bench: &Bench<'_>, units| {
        bench.queue.dequeue(&bench.topic, &bench.worker, 1, bench.units(units)).await.unwrap().remove(0)
    };
    let (mine, its) = (of(&bench, 2).await, of(&twin, 100).await);
    assert_ne!((&mine.id, &mine.lease.token), (&its.id, &its.lease.token));
    bench.pass(3).await;
    let taken_over = of(&twin, 100).await;
    assert_eq!(taken_over.id, mine.id, "the lease of the one ended, and the other takes the job");
    lease_is_lost(&bench, &mine.lease.token).await;
    twin.ack(&taken_over).await;
    twin.ack(&its).await;
}

/// Acks come around the very end of their leases, while another worker waits for what comes back.
pub(crate) async fn an_ack_at_the_end_of_its_lease_is_all_or_nothing(fixture: &dyn Fixture) {
    const JOBS: u32 = 24;
    let bench = Bench::new(fixture);
    for number in 0..JOBS {
        bench.add(&format!("{number}")).await;
    }
    let lease = bench.units(3);
    let jobs = bench.queue.dequeue(&bench.topic, &bench.worker, 256, lease).await.unwrap();
    let acked = Mutex::new(BTreeSet::new());
    let lost = Mutex::new(BTreeSet::new());
    let acks = (0..).zip(&jobs).map(|(number, job)| {
        let (bench, acked, lost) = (&bench, &acked, &lost);
        async move {
            // From a sixth of a unit before the end to as long after it.
            bench.fixture.advance(lease - bench.units(1) / 6 + bench.units(number) / (3 * JOBS)).await;
            match bench.queue.ack(&job.lease.token).await {
                Ok(()) => acked.lock().unwrap().insert(job.id.clone()),
                Err(error) if error.kind() == ErrorKind::LeaseLost => {
                    lost.lock().unwrap().insert(job.id.clone())
                }
                Err(error) => panic!("{error:?}"),
            };
        }
    });
    let over = bench.fixture.clock().monotonic().saturating_add(bench.units(5));
    let taken_again = async {
        let (mut ids, worker) = (BTreeSet::new(), WorkerId::new("worker-2").unwrap());
        while bench.fixture.clock().monotonic() < over {
            let jobs = bench.queue.dequeue(&bench.topic, &worker, 5, bench.long()).await.unwrap();
            ids.extend(jobs.into_iter().map(|job| job.id));
            bench.fixture.advance(bench.fixture.unit() / 50).await;
        }
        ids
    };
    let (taken_again, _) = futures::join!(taken_again, join_all(acks));
    let (acked, lost) = (acked.into_inner().unwrap(), lost.into_inner().unwrap());
    assert_eq!(acked.intersection(&taken_again).next(), None, "what was acknowledged is not delivered again");
    assert_eq!(lost, taken_again, "what was not comes back");
    assert_eq!(acked.len() + lost.len(), usize::try_from(JOBS).unwrap());
}

/// A worker that asks after an urgent job was enqueued gets it, or finds it taken: no worker holds back what it took before, or hands out
/// what was urgent once.
pub(crate) async fn higher_priority_goes_first_under_load(fixture: &dyn Fixture) {
    const WORKERS: usize = 4;
    const URGENT: usize = 30;
    let bench = Bench::new(fixture);
    for number in 0..400 {
        bench.enqueue(&format!("low {number}"), with_priority(-1)).await;
    }
    // A counter that orders begins and ends: an end that is lower than a begin was before it.
    let order = AtomicU64::new(0);
    let tick = || order.fetch_add(1, Ordering::SeqCst);
    // Of each dequeue: its begin and its end, and its urgent jobs; whether it also took others.
    let takes = Mutex::new(Vec::new());
    let work = |number: usize| {
        let (bench, tick, takes) = (&bench, &tick, &takes);
        let worker = WorkerId::new(format!("worker-{number}")).unwrap();
        async move {
            loop {
                let began = tick();
                let jobs = bench.queue.dequeue(&bench.topic, &worker, 3, bench.long()).await.unwrap();
                let ended = tick();
                if jobs.is_empty() {
                    return;
                }
                for job in &jobs {
                    bench.ack(job).await;
                }
                let urgent: Vec<Bytes> =
                    jobs.iter().filter(|job| job.priority.0 > 0).map(|job| job.payload.clone()).collect();
                takes.lock().unwrap().push((began, ended, urgent.len() < jobs.len(), urgent));
                tokio::task::yield_now().await;
            }
        }
    };
    let produce = async {
        let mut enqueued = Vec::new();
        for number in 0..URGENT {
            let payload = format!("urgent {number}");
            bench.enqueue(&payload, with_priority(1)).await;
            enqueued.push((Bytes::from(payload), tick()));
            tokio::task::yield_now().await;
        }
        enqueued
    };
    let (enqueued, _) = futures::join!(produce, join_all((0..WORKERS).map(work)));
    let takes = takes.into_inner().unwrap();
    for (payload, there) in enqueued {
        let (handed_out, ..) =
            takes.iter().find(|take| take.3.contains(&payload)).expect("each is delivered");
        for (began, ended, others, _) in &takes {
            let passed_over = *others && *began > there && ended < handed_out;
            assert!(!passed_over, "{payload:?} was there, and a worker was given less urgent jobs");
        }
    }
}

pub(crate) async fn a_subscriber_that_never_reads_holds_up_nobody(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let unread = bench.queue.wakeups(&bench.topic).await.unwrap();
    let adding = async {
        for number in 0..200 {
            bench.add(&format!("{number}")).await;
        }
    };
    fixture.clock().timeout(PROMPT, adding).await.expect("an enqueue waits for no reader of hints");
    drop(unread);
    // Nothing depends on hints: who never heard one finds everything.
    assert_eq!(bench.take_all().await.len(), 200);
}

pub(crate) async fn every_subscriber_is_woken(fixture: &dyn Fixture) {
    let bench = Bench::new(fixture);
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(bench.queue.wakeups(&bench.topic).await.unwrap());
    }
    let woken = join_all(all.iter_mut().map(|stream| fixture.clock().timeout(PROMPT, stream.next())));
    let (woken, _) = futures::join!(woken, bench.add("a"));
    assert_eq!(woken, [Ok(Some(())), Ok(Some(())), Ok(Some(()))]);
}
