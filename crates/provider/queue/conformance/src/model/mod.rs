//! Random operations against a reference, shrunk when the two differ.

mod reference;

use std::collections::HashMap;
use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use flames_clock::{Clock, Monotonic, Timestamp};
use flames_conformance_runner::{End, Sequences, seeds};
use flames_error::ErrorKind;
use flames_queue::{EnqueueOptions, JobId, LeaseToken, Priority};
use proptest::prelude::*;

use crate::{Bench, Fixture};
use reference::{Delivery, Half, Phase, Reference};

const SEQUENCES: Sequences = Sequences { least: 6, most: 400, time: Duration::from_secs(12) };
const KEYS: usize = 3;
const LENGTH: usize = 40;

/// One operation. Numbers choose among what there is: of `n` deliveries or jobs, the one at the number modulo `n`, counted from the newest.
#[derive(Debug, Clone)]
enum Step {
    /// After so many units.
    Enqueue {
        key: Option<usize>,
        priority: i8,
        delay: Option<u32>,
    },
    Dequeue {
        max: usize,
        lease: u32,
    },
    Extend {
        delivery: usize,
        lease: u32,
    },
    Ack {
        delivery: usize,
    },
    Nack {
        delivery: usize,
        delay: Option<u32>,
    },
    Park {
        delivery: usize,
    },
    Requeue {
        job: usize,
    },
    Parked {
        limit: usize,
    },
    Stats,
    Pass {
        units: u32,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let delay = || prop_oneof![2 => Just(None), 1 => (0_u32..4).prop_map(Some)];
    // Mostly one of the newest.
    let place = || prop_oneof![3 => Just(0_usize), 2 => 0_usize..3, 1 => 0_usize..12];
    prop_oneof![
        6 => (proptest::option::weighted(0.75, 0..KEYS), -1_i8..=1, delay())
            .prop_map(|(key, priority, delay)| Step::Enqueue { key, priority, delay }),
        5 => (1_usize..4, 1_u32..6).prop_map(|(max, lease)| Step::Dequeue { max, lease }),
        1 => (place(), 1_u32..6).prop_map(|(delivery, lease)| Step::Extend { delivery, lease }),
        3 => place().prop_map(|delivery| Step::Ack { delivery }),
        2 => (place(), delay()).prop_map(|(delivery, delay)| Step::Nack { delivery, delay }),
        2 => place().prop_map(|delivery| Step::Park { delivery }),
        1 => place().prop_map(|job| Step::Requeue { job }),
        1 => (1_usize..4).prop_map(|limit| Step::Parked { limit }),
        1 => Just(Step::Stats),
        2 => (1_u32..4).prop_map(|units| Step::Pass { units }),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 1..LENGTH)
}

fn agree<T: PartialEq + Debug>(what: &str, of_queue: &T, of_reference: &T) -> Result<(), End> {
    Ok(flames_conformance_runner::agree(what, of_queue, of_reference)?)
}

/// Whether a settlement took, for what is either done or told to be lost.
fn took(what: &str, answer: flames_error::Result<()>) -> Result<bool, End> {
    match answer {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::LeaseLost | ErrorKind::NotFound) => Ok(false),
        Err(error) => Err(End::Differs(format!("{what}: {error:?}"))),
    }
}

struct Run<'b> {
    bench: &'b Bench<'b>,
    reference: Reference,
    began: Monotonic,
    wall: Timestamp,
    /// The ids that the queue gave to the reference's jobs.
    ids: Vec<JobId>,
    numbers: HashMap<JobId, usize>,
    deliveries: Vec<(Delivery, LeaseToken)>,
    enqueues: usize,
}

impl Run<'_> {
    /// Half units as time.
    fn halves(&self, halves: Half) -> Duration {
        self.bench.fixture.unit() * halves / 2
    }

    /// A time so many units from now; half a unit later, so that nothing is due when something happens.
    fn at(&self, delay: Option<u32>) -> (Half, Option<Timestamp>) {
        let Some(delay) = delay else { return (0, None) };
        let half = self.reference.now + 2 * delay + 1;
        (half, Some(self.wall.saturating_add(self.halves(half)).unwrap_or(Timestamp::MAX)))
    }

    /// A lease that ends half a unit after so many units.
    fn lease(&self, units: u32) -> (Half, Duration) {
        let until = self.reference.now + 2 * units + 1;
        let passed = self.clock().monotonic().saturating_since(self.began);
        (until, self.halves(until).saturating_sub(passed))
    }

    fn clock(&self) -> &dyn Clock {
        self.bench.fixture.clock()
    }

    /// `TooSlow` when so much time went by that what ends at the next half unit may have ended.
    fn check_pace(&self) -> Result<(), End> {
        let passed = self.clock().monotonic().saturating_since(self.began);
        let in_time = passed < self.halves(self.reference.now) + self.bench.fixture.unit() * 2 / 5;
        if in_time { Ok(()) } else { Err(End::TooSlow) }
    }

    fn delivery(&self, number: usize) -> Option<(Delivery, LeaseToken)> {
        let place = self.deliveries.len().checked_sub(1)?;
        Some(self.deliveries[place - number % self.deliveries.len()].clone())
    }

    async fn step(&mut self, step: &Step) -> Result<(), End> {
        let queue = &self.bench.queue;
        match step {
            Step::Enqueue { key, priority, delay } => {
                self.enqueues += 1;
                let payload = format!("{}", self.enqueues);
                let (half, not_before) = self.at(*delay);
                let options = EnqueueOptions {
                    dedupe_key: key.map(|key| format!("vm_{key}")),
                    not_before,
                    priority: Priority(*priority),
                };
                let answer = queue.enqueue(&self.bench.topic, Bytes::from(payload.clone()), options).await;
                let enqueued = answer.map_err(|error| format!("enqueue: {error:?}"))?;
                let (number, coalesced) = self.reference.enqueue(*key, payload, *priority, half);
                agree("whether an enqueue was coalesced", &enqueued.coalesced, &coalesced)?;
                if !coalesced {
                    self.ids.push(enqueued.job.clone());
                    if self.numbers.insert(enqueued.job.clone(), number).is_some() {
                        return Err(End::Differs(format!("the id {} was given twice", enqueued.job)));
                    }
                }
                agree("the job of an enqueue", &self.numbers.get(&enqueued.job), &Some(&number))
            }
            Step::Dequeue { max, lease } => self.dequeue(*max, *lease).await,
            Step::Extend { delivery, lease } => {
                let Some((delivery, token)) = self.delivery(*delivery) else { return Ok(()) };
                let (until, length) = self.lease(*lease);
                let extended = took("extend", queue.extend(&token, length).await.map(drop))?;
                agree("extend", &extended, &self.reference.extend(delivery, until))
            }
            Step::Ack { delivery } => {
                let Some((delivery, token)) = self.delivery(*delivery) else { return Ok(()) };
                let acknowledged = took("ack", queue.ack(&token).await)?;
                agree("ack", &acknowledged, &self.reference.ack(delivery))
            }
            Step::Nack { delivery, delay } => {
                let Some((delivery, token)) = self.delivery(*delivery) else { return Ok(()) };
                let (half, retry_at) = self.at(*delay);
                let retry_at = retry_at.unwrap_or(Timestamp::UNIX_EPOCH);
                let given_back = took("nack", queue.nack(&token, retry_at).await)?;
                agree("nack", &given_back, &self.reference.nack(delivery, half))
            }
            Step::Park { delivery } => {
                let Some((delivery, token)) = self.delivery(*delivery) else { return Ok(()) };
                let reason = format!("reason {}.{}", delivery.number, delivery.delivery);
                let parked = took("park", queue.park(&token, &reason).await)?;
                agree("park", &parked, &self.reference.park(delivery, reason))
            }
            Step::Requeue { job } => {
                if self.ids.is_empty() {
                    return Ok(());
                }
                let place = self.ids.len() - 1 - job % self.ids.len();
                let requeued = took("requeue", queue.requeue(&self.bench.topic, &self.ids[place]).await)?;
                agree("requeue", &requeued, &self.reference.requeue(place + 1))
            }
            Step::Parked { limit } => self.parked(*limit).await,
            Step::Stats => {
                let stats =
                    queue.stats(&self.bench.topic).await.map_err(|error| format!("stats: {error:?}"))?;
                agree("stats", &stats, &self.reference.stats())
            }
            Step::Pass { units } => {
                self.reference.now += 2 * units;
                let passed = self.clock().monotonic().saturating_since(self.began);
                let wait = self.halves(self.reference.now).saturating_sub(passed);
                self.bench.fixture.advance(wait).await;
                Ok(())
            }
        }
    }

    async fn dequeue(&mut self, max: usize, lease: u32) -> Result<(), End> {
        let (until, length) = self.lease(lease);
        let (topic, worker) = (&self.bench.topic, &self.bench.worker);
        let jobs = self.bench.queue.dequeue(topic, worker, max, length).await;
        let jobs = jobs.map_err(|error| format!("dequeue: {error:?}"))?;
        let ready =
            self.reference.entries.iter().filter(|entry| self.reference.rank(entry).is_some()).count();
        agree("how many jobs a dequeue gives", &jobs.len(), &ready.min(max))?;
        let mut last = None;
        for job in &jobs {
            let number = self.numbers.get(&job.id).copied();
            let entry = self.reference.entries.iter().find(|entry| Some(entry.number) == number);
            let rank = entry.and_then(|entry| self.reference.rank(entry));
            let (Some(number), Some(rank)) = (number, rank) else {
                return Err(End::Differs(format!("{job:?} is not ready")));
            };
            if last.is_some_and(|last| last > rank) {
                return Err(End::Differs(format!("the batch is out of order: {jobs:?}")));
            }
            last = Some(rank);
            let Some(entry) = self.reference.lease(number, until) else { continue };
            let of_queue = (
                String::from_utf8_lossy(&job.payload).into_owned(),
                job.dedupe_key.clone(),
                job.priority.0,
                job.attempt,
            );
            let key = entry.key.map(|key| format!("vm_{key}"));
            let expected = (entry.payload.clone(), key, entry.priority, entry.attempts);
            let delivery = Delivery { number, delivery: entry.deliveries };
            agree("a job", &of_queue, &expected)?;
            self.deliveries.push((delivery, job.lease.token.clone()));
        }
        // What was left behind would not have gone first.
        let left = self.reference.entries.iter().filter_map(|entry| self.reference.rank(entry)).min();
        match (left, last) {
            (Some(left), Some(last)) if left < last => {
                Err(End::Differs(format!("a job that goes first was left behind: {jobs:?}")))
            }
            _ => Ok(()),
        }
    }

    async fn parked(&mut self, limit: usize) -> Result<(), End> {
        let (mut listed, mut after) = (Vec::new(), None);
        for _ in 0..=self.ids.len() {
            let page = self.bench.queue.parked(&self.bench.topic, after.as_ref(), limit).await;
            let page = page.map_err(|error| format!("parked: {error:?}"))?;
            listed.extend(page.jobs);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let sorted = listed.is_sorted_by(|one, other| one.id < other.id);
        agree("whether parked jobs are listed by id, each once", &sorted, &true)?;
        let mut listed: Vec<_> = listed
            .into_iter()
            .map(|job| {
                let payload = String::from_utf8_lossy(&job.payload).into_owned();
                (self.numbers.get(&job.id).copied().unwrap_or(0), payload, job.attempts, job.reason)
            })
            .collect();
        listed.sort();
        let parked = self.reference.entries.iter().filter_map(|entry| match &entry.phase {
            Phase::Parked { reason } => {
                Some((entry.number, entry.payload.clone(), entry.attempts, reason.clone()))
            }
            _ => None,
        });
        let mut expected: Vec<_> = parked.collect();
        expected.sort();
        agree("the parked jobs", &listed, &expected)
    }
}

/// Runs a sequence on an empty topic.
async fn run(fixture: &dyn Fixture, number: usize, steps: &[Step]) -> Result<(), End> {
    let mut bench = Bench::new(fixture);
    bench.topic = crate::topic(&format!("run-{number}"));
    let mut run = Run {
        bench: &bench,
        reference: Reference::default(),
        began: fixture.clock().monotonic(),
        wall: fixture.clock().now(),
        ids: Vec::new(),
        numbers: HashMap::new(),
        deliveries: Vec::new(),
        enqueues: 0,
    };
    // At the end everything is compared, whether the sequence asked for it or not.
    let last = [
        Step::Stats,
        Step::Parked { limit: 2 },
        Step::Pass { units: 8 },
        Step::Dequeue { max: 256, lease: 5 },
    ];
    for step in steps.iter().chain(&last) {
        run.reference.settle_time();
        let answer = run.step(step).await;
        run.check_pace()?;
        answer?;
    }
    Ok(())
}

pub(crate) async fn random_operations_agree_with_a_reference_model(fixture: &dyn Fixture) {
    let seeds = seeds("random_operations_agree_with_a_reference_model", [7]);
    SEQUENCES.agree(seeds, steps(), async |number, steps| run(fixture, number, steps).await).await;
}
