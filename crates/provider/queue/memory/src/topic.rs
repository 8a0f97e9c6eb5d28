//! One topic's jobs and the orders they stand in. No clock, no lock: whoever calls brings both.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flames_clock::{Monotonic, Timestamp};
use flames_queue::{EnqueueOptions, JobId, ParkedJob, ParkedPage, Priority, TopicStats};
use tokio::sync::broadcast;

/// The two readings that an operation is judged by.
#[derive(Clone, Copy)]
pub(crate) struct Now {
    pub(crate) wall: Timestamp,
    pub(crate) monotonic: Monotonic,
}

/// One handing-out of one job: what a lease token names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) sequence: u64,
    /// Counts all handings-out of the job and never starts anew, unlike its attempts.
    pub(crate) number: u64,
}

pub(crate) struct Entry {
    pub(crate) id: JobId,
    pub(crate) payload: Bytes,
    pub(crate) dedupe_key: Option<Arc<str>>,
    pub(crate) priority: Priority,
    pub(crate) attempts: u32,
    deliveries: u64,
    phase: Phase,
    /// What was enqueued under this job's dedupe key while it was leased.
    signal: Option<Box<Signal>>,
}

enum Phase {
    Ready { since: Timestamp },
    Delayed { until: Timestamp },
    Leased { until: Monotonic, expires_at: Timestamp },
    Parked { reason: Box<str>, at: Timestamp },
}

impl Phase {
    fn due(at: Timestamp, now: Now) -> Self {
        if at <= now.wall { Self::Ready { since: at } } else { Self::Delayed { until: at } }
    }
}

struct Signal {
    payload: Bytes,
    at: Timestamp,
    priority: Priority,
}

impl Entry {
    /// Takes what was signalled while leased into the job, and tells for when it was meant.
    fn absorb_signal(&mut self) -> Option<Timestamp> {
        let signal = self.signal.take()?;
        self.payload = signal.payload;
        self.priority = self.priority.max(signal.priority);
        Some(signal.at)
    }
}

/// Where each job stands, by phase. Holds a job exactly once.
#[derive(Default)]
struct Orders {
    ready: BTreeSet<(Reverse<Priority>, Timestamp, u64)>,
    delayed: BTreeSet<(Timestamp, u64)>,
    leased: BTreeSet<(Monotonic, u64)>,
    parked: BTreeMap<JobId, u64>,
}

impl Orders {
    fn insert(&mut self, sequence: u64, entry: &Entry) {
        match &entry.phase {
            Phase::Ready { since } => {
                self.ready.insert((Reverse(entry.priority), *since, sequence));
            }
            Phase::Delayed { until } => {
                self.delayed.insert((*until, sequence));
            }
            Phase::Leased { until, .. } => {
                self.leased.insert((*until, sequence));
            }
            Phase::Parked { .. } => {
                self.parked.insert(entry.id.clone(), sequence);
            }
        }
    }

    fn remove(&mut self, sequence: u64, entry: &Entry) {
        match &entry.phase {
            Phase::Ready { since } => {
                self.ready.remove(&(Reverse(entry.priority), *since, sequence));
            }
            Phase::Delayed { until } => {
                self.delayed.remove(&(*until, sequence));
            }
            Phase::Leased { until, .. } => {
                self.leased.remove(&(*until, sequence));
            }
            Phase::Parked { .. } => {
                self.parked.remove(&entry.id);
            }
        }
    }
}

/// Hashes sequences by themselves: they are counted here, never chosen by anyone, and hashbrown wants its seven control bits
/// spread, which the multiplication (by 2^64 / golden ratio, Knuth's) does.
#[derive(Default)]
struct SequenceHasher(u64);

impl Hasher for SequenceHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Default)]
pub(crate) struct TopicQueue {
    jobs: HashMap<u64, Entry, BuildHasherDefault<SequenceHasher>>,
    by_key: HashMap<Arc<str>, u64>,
    orders: Orders,
    hints: Option<broadcast::Sender<()>>,
}

impl TopicQueue {
    pub(crate) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether nothing would be lost by forgetting the topic.
    pub(crate) fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.hints.as_ref().is_none_or(|hints| hints.receiver_count() == 0)
    }

    /// Hints, from now on. One slot: a hint that is not read yet stands for those behind it. (Not a `watch` channel: that one wakes
    /// its receivers in random order, and one seed must give one trace.)
    pub(crate) fn subscribe(&mut self) -> broadcast::Receiver<()> {
        self.hints.get_or_insert_with(|| broadcast::Sender::new(1)).subscribe()
    }

    pub(crate) fn hint(&self) {
        if let Some(hints) = &self.hints {
            // An error means that nobody waits.
            let _ = hints.send(());
        }
    }

    /// How long until the next delayed job or ended lease, after [`TopicQueue::promote`].
    pub(crate) fn next_due(&self, now: Now) -> Option<Duration> {
        let delayed =
            self.orders.delayed.first().map(|(until, _)| {
                Duration::try_from(until.duration_since(now.wall)).unwrap_or(Duration::ZERO)
            });
        let leased = self.orders.leased.first().map(|(until, _)| until.saturating_since(now.monotonic));
        delayed.into_iter().chain(leased).min()
    }

    /// Makes ready what is due: delayed jobs whose time has come, and jobs whose lease has ended.
    pub(crate) fn promote(&mut self, now: Now) {
        while let Some(&(until, sequence)) = self.orders.delayed.first()
            && until <= now.wall
        {
            self.change(sequence, |entry| entry.phase = Phase::Ready { since: until });
        }
        while let Some(&(until, sequence)) = self.orders.leased.first()
            && until <= now.monotonic
        {
            self.change(sequence, |entry| {
                if let Phase::Leased { expires_at, .. } = entry.phase {
                    entry.absorb_signal();
                    entry.phase = Phase::Ready { since: expires_at };
                }
            });
        }
    }

    /// Folds an enqueue into the job that has its dedupe key, if there is one.
    pub(crate) fn coalesce(&mut self, payload: &Bytes, options: &EnqueueOptions, now: Now) -> Option<JobId> {
        let sequence = *self.by_key.get(options.dedupe_key.as_deref()?)?;
        let at = options.not_before.map_or(now.wall, |time| time.max(now.wall));
        let payload = payload.clone();
        self.change(sequence, |entry| {
            if let Phase::Leased { .. } = entry.phase {
                let (at, priority) = match &entry.signal {
                    Some(earlier) => (at.min(earlier.at), options.priority.max(earlier.priority)),
                    None => (at, options.priority),
                };
                entry.signal = Some(Box::new(Signal { payload, at, priority }));
                return entry.id.clone();
            }
            entry.payload = payload;
            entry.priority = entry.priority.max(options.priority);
            match entry.phase {
                Phase::Ready { since } => entry.phase = Phase::Ready { since: since.min(at) },
                Phase::Delayed { until } => entry.phase = Phase::due(until.min(at), now),
                Phase::Parked { .. } | Phase::Leased { .. } => {
                    entry.attempts = 0;
                    entry.phase = Phase::due(at, now);
                }
            }
            entry.id.clone()
        })
    }

    /// Adds a job whose dedupe key, if any, is not known. The sequence was never used before.
    pub(crate) fn add(
        &mut self,
        sequence: u64,
        id: JobId,
        payload: Bytes,
        options: EnqueueOptions,
        now: Now,
    ) {
        let dedupe_key = options.dedupe_key.map(Arc::<str>::from);
        if let Some(key) = &dedupe_key {
            self.by_key.insert(Arc::clone(key), sequence);
        }
        let at = options.not_before.map_or(now.wall, |time| time.max(now.wall));
        let entry = Entry {
            id,
            payload,
            dedupe_key,
            priority: options.priority,
            attempts: 0,
            deliveries: 0,
            phase: Phase::due(at, now),
            signal: None,
        };
        self.orders.insert(sequence, &entry);
        self.jobs.insert(sequence, entry);
    }

    /// Leases up to `max` ready jobs, in their order.
    pub(crate) fn lease_ready(
        &mut self,
        max: usize,
        until: Monotonic,
        expires_at: Timestamp,
    ) -> impl Iterator<Item = (Delivery, &Entry)> {
        let mut taken = Vec::with_capacity(max.min(self.orders.ready.len()));
        while taken.len() < max
            && let Some((_, _, sequence)) = self.orders.ready.first().copied()
        {
            let delivery = self.change(sequence, |entry| {
                entry.attempts = entry.attempts.saturating_add(1);
                entry.deliveries += 1;
                entry.phase = Phase::Leased { until, expires_at };
                Delivery { sequence, number: entry.deliveries }
            });
            taken.extend(delivery);
        }
        taken.into_iter().filter_map(|delivery| Some((delivery, self.jobs.get(&delivery.sequence)?)))
    }

    pub(crate) fn extend(
        &mut self,
        delivery: Delivery,
        until: Monotonic,
        expires_at: Timestamp,
    ) -> Option<()> {
        self.leased(delivery)?;
        self.change(delivery.sequence, |entry| entry.phase = Phase::Leased { until, expires_at })
    }

    pub(crate) fn acknowledge(&mut self, delivery: Delivery, now: Now) -> Option<()> {
        if self.leased(delivery)?.signal.is_some() {
            return self.renew(delivery.sequence, now);
        }
        let entry = self.jobs.remove(&delivery.sequence)?;
        self.orders.remove(delivery.sequence, &entry);
        if let Some(key) = &entry.dedupe_key {
            self.by_key.remove(key);
        }
        Some(())
    }

    pub(crate) fn give_back(&mut self, delivery: Delivery, retry_at: Timestamp, now: Now) -> Option<()> {
        self.leased(delivery)?;
        self.change(delivery.sequence, |entry| {
            // A signal is not held up by the back-off of the try before it.
            let at = entry.absorb_signal().map_or(retry_at, |signalled| signalled.min(retry_at));
            entry.phase = Phase::due(at.max(now.wall), now);
        })?;
        self.hint();
        Some(())
    }

    pub(crate) fn park(&mut self, delivery: Delivery, reason: &str, now: Now) -> Option<()> {
        // A signal that came while the job was leased counts as one that came just after it was parked: it requeues it.
        if self.leased(delivery)?.signal.is_some() {
            return self.renew(delivery.sequence, now);
        }
        self.change(delivery.sequence, |entry| {
            entry.phase = Phase::Parked { reason: reason.into(), at: now.wall };
        })
    }

    pub(crate) fn parked(&self, after: Option<&JobId>, limit: usize) -> ParkedPage {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut behind = self.orders.parked.range((from, Bound::Unbounded));
        let jobs: Vec<ParkedJob> =
            behind.by_ref().take(limit).filter_map(|(_, s)| self.parked_job(*s)).collect();
        let next = behind.next().and(jobs.last()).map(|job| job.id.clone());
        ParkedPage { jobs, next }
    }

    fn parked_job(&self, sequence: u64) -> Option<ParkedJob> {
        let entry = self.jobs.get(&sequence)?;
        let Phase::Parked { reason, at } = &entry.phase else { return None };
        Some(ParkedJob {
            id: entry.id.clone(),
            payload: entry.payload.clone(),
            dedupe_key: entry.dedupe_key.as_deref().map(str::to_owned),
            attempts: entry.attempts,
            reason: reason.to_string(),
            parked_at: *at,
        })
    }

    pub(crate) fn requeue(&mut self, job: &JobId, now: Now) -> Option<()> {
        let sequence = *self.orders.parked.get(job)?;
        self.renew(sequence, now)
    }

    pub(crate) fn stats(&self) -> TopicStats {
        let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        TopicStats {
            ready: count(self.orders.ready.len()),
            delayed: count(self.orders.delayed.len()),
            leased: count(self.orders.leased.len()),
            parked: count(self.orders.parked.len()),
        }
    }

    /// Makes a job as if it were enqueued anew, with what was signalled while it was leased.
    fn renew(&mut self, sequence: u64, now: Now) -> Option<()> {
        self.change(sequence, |entry| {
            if let Some(signal) = &entry.signal {
                // What went before is settled, and its urgency with it.
                entry.priority = signal.priority;
            }
            let at = entry.absorb_signal().unwrap_or(now.wall);
            entry.attempts = 0;
            entry.phase = Phase::due(at.max(now.wall), now);
        })?;
        self.hint();
        Some(())
    }

    /// The job that `delivery` holds, if it still does. Expired leases were made ready before.
    fn leased(&self, delivery: Delivery) -> Option<&Entry> {
        let entry = self.jobs.get(&delivery.sequence)?;
        let holds = matches!(entry.phase, Phase::Leased { .. }) && entry.deliveries == delivery.number;
        holds.then_some(entry)
    }

    /// The one way to change a job: it leaves its order and enters the one that it then belongs in.
    fn change<R>(&mut self, sequence: u64, change: impl FnOnce(&mut Entry) -> R) -> Option<R> {
        let entry = self.jobs.get_mut(&sequence)?;
        self.orders.remove(sequence, entry);
        let result = change(entry);
        self.orders.insert(sequence, entry);
        Some(result)
    }
}
