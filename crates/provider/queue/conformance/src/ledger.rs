//! What a queue said, held against what it does later.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use flames_clock::{ClockExt, Monotonic};
use flames_error::{Error, ErrorKind};
use flames_queue::{EnqueueOptions, Job, JobId, Topic, WorkQueue, WorkerId};
use futures::future::join_all;

use crate::{Fixture, topic};

/// How much longer than its deadline a call may take on a busy machine.
const SLACK: Duration = Duration::from_millis(1_500);
/// How long a queue may take to be of use again.
const RECOVERY: Duration = Duration::from_secs(20);

/// Whether an error says that the queue was out of reach and nothing was changed.
pub(crate) fn is_out_of_reach(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::Exhausted)
}

/// Panics unless a call that may change something ended as one may whose way is broken.
pub(crate) fn assert_is_told(what: &str, error: &Error) {
    let kind = error.kind();
    assert!(is_out_of_reach(kind) || kind == ErrorKind::OutcomeUnknown, "{what}: {error:?}");
}

/// Ends with the call, or panics when it does not end within the queue's deadline.
pub(crate) async fn in_time<T>(fixture: &dyn Fixture, what: &str, call: impl Future<Output = T> + Send) -> T {
    let limit = fixture.operation_deadline() + SLACK;
    match fixture.clock().timeout(limit, call).await {
        Ok(answer) => answer,
        Err(_) => panic!("{what} did not end within its deadline"),
    }
}

/// The topic's jobs, once the queue answers.
pub(crate) async fn taken_once_reachable(
    fixture: &dyn Fixture,
    topic: &Topic,
    max: usize,
    lease: Duration,
) -> Vec<Job> {
    let worker = WorkerId::new("ledger").unwrap();
    let over = fixture.clock().monotonic().saturating_add(RECOVERY);
    loop {
        let queue = fixture.queue();
        match in_time(fixture, "a dequeue", queue.dequeue(topic, &worker, max, lease)).await {
            Ok(jobs) => return jobs,
            Err(error) => {
                assert_is_told("a dequeue", &error);
                assert!(fixture.clock().monotonic() < over, "the queue is not of use again: {error:?}");
                fixture.clock().sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// What is known of one job's deliveries.
#[derive(Debug, Default)]
struct Known {
    /// Until when it is leased, by our clock, if it was not settled since.
    leased_until: Option<Monotonic>,
    is_acknowledged: bool,
}

#[derive(Debug, Default)]
struct Entries {
    /// What was enqueued for sure, by dedupe key or payload, and when the call for it began.
    enqueued: BTreeMap<String, Monotonic>,
    /// What was delivered, by dedupe key or payload, and when last.
    delivered: BTreeMap<String, Monotonic>,
    attempted: BTreeSet<String>,
    jobs: HashMap<JobId, Known>,
    acknowledged: usize,
    failed: usize,
}

/// Producers, workers, and what they were told.
pub(crate) struct Ledger<'f> {
    fixture: &'f dyn Fixture,
    topic: Topic,
    lease: Duration,
    entries: Mutex<Entries>,
    when: String,
}

impl<'f> Ledger<'f> {
    /// A ledger for a topic of its own, with leases that outlast any call that is held up.
    pub(crate) fn new(fixture: &'f dyn Fixture, when: String) -> Self {
        let lease = (fixture.operation_deadline() + SLACK).max(fixture.unit() * 10);
        Self { fixture, topic: topic("ledger"), lease, entries: Mutex::default(), when }
    }

    fn now(&self) -> Monotonic {
        self.fixture.clock().monotonic()
    }

    /// Enqueues, and writes down what was told. A name is a dedupe key when it is not used once.
    async fn enqueue(&self, name: &str, is_key: bool, payload: String) {
        let queue = self.fixture.queue();
        let options =
            EnqueueOptions { dedupe_key: is_key.then(|| name.to_owned()), ..EnqueueOptions::default() };
        self.entries.lock().unwrap().attempted.insert(name.to_owned());
        let began = self.now();
        let answer =
            in_time(self.fixture, "an enqueue", queue.enqueue(&self.topic, Bytes::from(payload), options))
                .await;
        let mut entries = self.entries.lock().unwrap();
        match answer {
            Ok(_) => {
                entries.enqueued.insert(name.to_owned(), began);
            }
            Err(error) => {
                assert_is_told("an enqueue", &error);
                entries.failed += 1;
            }
        }
    }

    /// Enqueues jobs until told to stop: each second one under one of a few dedupe keys that this producer alone uses.
    pub(crate) async fn produce(&self, number: usize, stop: &Mutex<bool>) {
        for job in 0.. {
            if *stop.lock().unwrap() {
                return;
            }
            if job % 2 == 0 {
                self.enqueue(&format!("key {number}.{}", job % 6), true, format!("{job}")).await;
            } else {
                let name = format!("job {number}.{job}");
                self.enqueue(&name, false, name.clone()).await;
            }
            self.fixture.clock().sleep(Duration::from_millis(3)).await;
        }
    }

    /// Enqueues many jobs at once, so that some wait to be taken.
    pub(crate) async fn burst(&self, number: usize) {
        let names: Vec<String> = (0..60).map(|job| format!("burst {number}.{job}")).collect();
        join_all(names.iter().map(|name| self.enqueue(name, false, name.clone()))).await;
    }

    /// Takes and settles jobs until told to stop.
    pub(crate) async fn work(&self, number: usize, stop: &Mutex<bool>) {
        let worker = WorkerId::new(format!("worker-{number}")).unwrap();
        while !*stop.lock().unwrap() {
            if self.work_once(&worker).await == 0 {
                self.fixture.clock().sleep(Duration::from_millis(10)).await;
            }
        }
    }

    async fn work_once(&self, worker: &WorkerId) -> usize {
        let queue = self.fixture.queue();
        let asked = self.now();
        let dequeue = queue.dequeue(&self.topic, worker, 4, self.lease);
        let jobs = match in_time(self.fixture, "a dequeue", dequeue).await {
            Ok(jobs) => jobs,
            Err(error) => {
                assert_is_told("a dequeue", &error);
                self.entries.lock().unwrap().failed += 1;
                return 0;
            }
        };
        for job in &jobs {
            self.delivered(job, asked);
        }
        for job in &jobs {
            self.ack(&*queue, job).await;
        }
        jobs.len()
    }

    fn delivered(&self, job: &Job, asked: Monotonic) {
        let now = self.now();
        let name = match &job.dedupe_key {
            Some(key) => key.clone(),
            None => String::from_utf8(job.payload.to_vec()).unwrap(),
        };
        let mut entries = self.entries.lock().unwrap();
        assert!(entries.attempted.contains(&name), "{}: nobody enqueued {job:?}", self.when);
        let known = entries.jobs.entry(job.id.clone()).or_default();
        // A job with a dedupe key may have been signalled while it was acknowledged, and is then delivered anew.
        assert!(
            !known.is_acknowledged || job.dedupe_key.is_some(),
            "{}: {job:?} was acknowledged, and is delivered again",
            self.when
        );
        if let Some(until) = known.leased_until {
            assert!(now >= until, "{}: {job:?} is leased to another worker", self.when);
        }
        known.leased_until = Some(asked.saturating_add(self.lease));
        known.is_acknowledged = false;
        entries.delivered.insert(name, now);
    }

    async fn ack(&self, queue: &dyn WorkQueue, job: &Job) {
        // Whether it takes or not, from here on the job may be delivered again if it was signalled.
        self.entries.lock().unwrap().jobs.entry(job.id.clone()).or_default().leased_until = None;
        let answer = in_time(self.fixture, "an ack", queue.ack(&job.lease.token)).await;
        // A lease may end while it is asked for: what counts is whether it had ended when the answer came.
        let held = is_held(job, self.fixture);
        let mut entries = self.entries.lock().unwrap();
        match answer {
            Ok(()) => {
                entries.acknowledged += 1;
                entries.jobs.entry(job.id.clone()).or_default().is_acknowledged = true;
            }
            Err(error) if error.kind() == ErrorKind::LeaseLost => {
                assert!(!held, "{}: the lease of {job:?} was lost before its end: {error:?}", self.when);
            }
            Err(error) => {
                assert_is_told("an ack", &error);
                entries.failed += 1;
            }
        }
    }

    /// After the trouble: takes whatever there is, waits for leases whose holders never heard of them, and compares.
    pub(crate) async fn close(&self) {
        let worker = WorkerId::new("closing").unwrap();
        let over = self.now().saturating_add(self.lease + self.fixture.operation_deadline() + RECOVERY);
        let mut quiet_since = self.now();
        while self.now().saturating_since(quiet_since) < self.lease + self.fixture.unit() {
            assert!(self.now() < over, "{}: the queue is not of use again", self.when);
            let failed = self.entries.lock().unwrap().failed;
            let taken = self.work_once(&worker).await;
            if taken > 0 || self.entries.lock().unwrap().failed > failed {
                quiet_since = self.now();
            } else {
                self.fixture.clock().sleep(self.fixture.unit() / 4).await;
            }
        }
        let entries = self.entries.lock().unwrap();
        let lost: Vec<_> = entries
            .enqueued
            .iter()
            .filter(|(name, began)| entries.delivered.get(*name).is_none_or(|delivered| delivered < *began))
            .collect();
        assert!(lost.is_empty(), "{}: told to be enqueued, and never delivered: {lost:?}", self.when);
        assert!(entries.acknowledged > 0, "{}: nothing was done at all", self.when);
    }

    pub(crate) fn failed(&self) -> usize {
        self.entries.lock().unwrap().failed
    }
}

/// Whether a job's lease has surely not ended yet. The clocks agree to within a tenth of a unit.
fn is_held(job: &Job, fixture: &dyn Fixture) -> bool {
    let left = job.lease.expires_at.duration_since(fixture.clock().now());
    // Nothing is left of one that has ended.
    Duration::try_from(left).is_ok_and(|left| left > fixture.unit() / 5)
}
