//! One topic's jobs as this process knows them, and the orders they stand in. No clock, no lock: whoever calls brings both.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use flames_queue::{Priority, TopicStats};
use tokio::sync::broadcast;

use crate::record::{Phase, Record};

/// A job's newest known record.
pub(crate) struct Entry {
    pub(crate) record: Record,
    /// The stream sequence of the record: what a compare-and-set expects.
    pub(crate) sequence: u64,
    /// The newest pass over the stream in which the record was seen.
    pub(crate) pass: u64,
    /// The job stands in the orders as ready, whatever its record says.
    is_due: bool,
    /// The server has a newer record that is not here yet: the job is not handed out before it comes.
    is_behind: bool,
}

impl Entry {
    /// The sequence of the job's first record.
    pub(crate) fn created(&self) -> u64 {
        self.record.created.unwrap_or(self.sequence)
    }
}

type Id = Arc<str>;

/// Where each job stands. Holds a job exactly once.
#[derive(Default)]
struct Orders {
    ready: BTreeSet<(Reverse<Priority>, i64, u64, Id)>,
    waiting: BTreeSet<(i64, Id)>,
    leased: BTreeSet<(i64, Id)>,
    parked: BTreeSet<Id>,
}

impl Orders {
    fn place(&mut self, id: &Id, entry: &Entry, is_in: bool) {
        let id = Arc::clone(id);
        fn put<T: Ord>(order: &mut BTreeSet<T>, place: T, is_in: bool) {
            if is_in {
                order.insert(place);
            } else {
                order.remove(&place);
            }
        }
        match &entry.record.phase {
            Phase::Ready { since } => {
                put(&mut self.ready, (Reverse(entry.record.priority), *since, entry.created(), id), is_in);
            }
            Phase::Waiting { at } if entry.is_due => {
                put(&mut self.ready, (Reverse(entry.record.priority), *at, entry.created(), id), is_in);
            }
            Phase::Waiting { at } => put(&mut self.waiting, (*at, id), is_in),
            Phase::Leased { until, signal, .. } if entry.is_due => {
                let priority =
                    signal.map_or(entry.record.priority, |signal| signal.priority.max(entry.record.priority));
                put(&mut self.ready, (Reverse(priority), *until, entry.created(), id), is_in);
            }
            Phase::Leased { until, .. } => put(&mut self.leased, (*until, id), is_in),
            Phase::Parked { .. } => put(&mut self.parked, id, is_in),
        }
    }
}

#[derive(Default)]
pub(crate) struct TopicJobs {
    jobs: HashMap<Id, Entry>,
    /// The sequences of the messages that say that a job is done, while the server keeps them.
    pub(crate) done: HashMap<Id, u64>,
    /// The jobs that a call of this process is writing: one at a time, so that they do not lose against each other.
    pub(crate) claimed: HashSet<Id>,
    orders: Orders,
    hints: Option<broadcast::Sender<()>>,
}

impl TopicJobs {
    pub(crate) fn get(&self, id: &str) -> Option<&Entry> {
        self.jobs.get(id)
    }

    pub(crate) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether nothing would be lost by forgetting the topic.
    pub(crate) fn is_idle(&self) -> bool {
        self.jobs.is_empty()
            && self.done.is_empty()
            && self.claimed.is_empty()
            && self.hints.as_ref().is_none_or(|hints| hints.receiver_count() == 0)
    }

    /// Whether what the server has at `sequence` is no news of the job; the job was seen in this pass then.
    pub(crate) fn knows(&mut self, id: &str, sequence: u64, pass: u64) -> bool {
        if let Some(known) = self.jobs.get_mut(id)
            && known.sequence >= sequence
        {
            known.pass = pass;
            return true;
        }
        self.done.get(id).is_some_and(|done| *done >= sequence)
    }

    /// Takes a record that the server has at `sequence`. One that is older than what is known changes nothing.
    pub(crate) fn take(&mut self, id: &Id, mut record: Record, sequence: u64, pass: u64, now: i64) {
        if self.knows(id, sequence, pass) {
            return;
        }
        self.done.remove(id);
        self.remove(id);
        record.created.get_or_insert(sequence);
        let is_due = matches!(record.phase, Phase::Waiting { at } if at <= now);
        let is_news = matches!(record.phase, Phase::Ready { .. } | Phase::Waiting { .. });
        let entry = Entry { record, sequence, pass, is_due, is_behind: false };
        self.orders.place(id, &entry, true);
        self.jobs.insert(Arc::clone(id), entry);
        if is_news {
            self.hint();
        }
    }

    /// Takes that the job was done at `sequence`.
    pub(crate) fn take_done(&mut self, id: &Id, sequence: u64) {
        if self.jobs.get(id).is_some_and(|known| known.sequence >= sequence) {
            return;
        }
        self.remove(id);
        let done = self.done.entry(Arc::clone(id)).or_insert(sequence);
        *done = sequence.max(*done);
    }

    /// Forgets a job of which the server has no record any more, unless a newer one than `sequence` came.
    pub(crate) fn forget(&mut self, id: &str, sequence: u64) {
        if self.jobs.get(id).is_some_and(|known| known.sequence <= sequence) {
            self.remove(id);
        }
        if self.done.get(id).is_some_and(|done| *done <= sequence) {
            self.done.remove(id);
        }
    }

    /// Keeps a job from being handed out until its newer record comes.
    pub(crate) fn is_behind(&mut self, id: &str, sequence: u64) {
        if let Some(entry) = self.jobs.get_mut(id)
            && entry.sequence <= sequence
        {
            entry.is_behind = true;
        }
    }

    /// Forgets the jobs that a whole pass over the stream did not show.
    pub(crate) fn sweep(&mut self, pass: u64) {
        let unseen: Vec<Id> =
            self.jobs.iter().filter(|(_, entry)| entry.pass < pass).map(|(id, _)| Arc::clone(id)).collect();
        for id in unseen {
            self.remove(&id);
        }
    }

    fn remove(&mut self, id: &str) {
        if let Some((id, entry)) = self.jobs.remove_entry(id) {
            self.orders.place(&id, &entry, false);
        }
    }

    /// Makes ready what is due: jobs whose time has come, and jobs whose lease has ended.
    pub(crate) fn promote(&mut self, now: i64) {
        let mut due = Vec::new();
        for order in [&self.orders.waiting, &self.orders.leased] {
            due.extend(order.iter().take_while(|(time, _)| *time <= now).map(|(_, id)| Arc::clone(id)));
        }
        for id in due {
            if let Some(entry) = self.jobs.get_mut(&id) {
                self.orders.place(&id, entry, false);
                entry.is_due = true;
                self.orders.place(&id, entry, true);
            }
        }
    }

    /// Up to `max` jobs that are ready, in their order, behind the first `skip`.
    pub(crate) fn ready(&self, max: usize, skip: usize) -> Vec<Id> {
        self.orders
            .ready
            .iter()
            .map(|(.., id)| id)
            .filter(|id| !self.claimed.contains(*id) && self.jobs.get(*id).is_some_and(|job| !job.is_behind))
            .skip(skip)
            .take(max)
            .cloned()
            .collect()
    }

    /// Up to `limit` parked jobs behind `after`, and whether there are more.
    pub(crate) fn parked(&self, after: Option<&str>, limit: usize) -> (Vec<(&Id, &Entry)>, bool) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut behind = self.orders.parked.range::<str, _>((from, Bound::Unbounded));
        let page = behind.by_ref().take(limit).filter_map(|id| self.jobs.get_key_value(id)).collect();
        (page, behind.next().is_some())
    }

    /// How long until the next delayed job or ended lease, after [`TopicJobs::promote`].
    pub(crate) fn next_due(&self, now: i64) -> Option<Duration> {
        let firsts = [self.orders.waiting.first(), self.orders.leased.first()];
        let next = firsts.into_iter().flatten().map(|(time, _)| *time).min()?;
        Some(Duration::from_millis(u64::try_from(next.saturating_sub(now)).unwrap_or(0)))
    }

    pub(crate) fn stats(&self) -> TopicStats {
        let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        TopicStats {
            ready: count(self.orders.ready.len()),
            delayed: count(self.orders.waiting.len()),
            leased: count(self.orders.leased.len()),
            parked: count(self.orders.parked.len()),
        }
    }

    /// Hints, from now on. One slot: a hint that is not read yet stands for those behind it.
    pub(crate) fn subscribe(&mut self) -> broadcast::Receiver<()> {
        self.hints.get_or_insert_with(|| broadcast::Sender::new(1)).subscribe()
    }

    pub(crate) fn hint(&self) {
        if let Some(hints) = &self.hints {
            // An error means that nobody waits.
            let _ = hints.send(());
        }
    }
}

/// The topics of a queue, by name. Ordered, so that what walks over them does so the same way each time.
pub(crate) type Topics = BTreeMap<String, TopicJobs>;
