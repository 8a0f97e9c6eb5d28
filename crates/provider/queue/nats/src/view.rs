//! What this process knows of the stream: fed by the stream itself ([`crate::feed`]) and by its own writes, both in the order of
//! stream sequences. It may be behind; every change is a compare-and-set against the server, so what is behind is found out, not
//! believed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flames_clock::{Clock, ClockExt, DeadlineExceeded, Monotonic};
use flames_queue::{Topic, WakingTopics};
use tokio::sync::{Notify, broadcast, watch};

use crate::record::Record;
use crate::time::ServerTime;
use crate::topic::{TopicJobs, Topics};
use crate::wire::Stored;

/// How long the server keeps the message that says that a job is done. Long enough that every process sees it that is connected and not
/// far behind; one that is further behind than half of it looks at the whole stream anew.
pub(crate) const DONE_KEPT: Duration = Duration::from_secs(30);
/// How much longer it is remembered here: the server deletes it some time after its end.
const DONE_REMEMBERED: Duration = Duration::from_secs(45);

#[derive(Debug)]
pub(crate) struct View {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) time: ServerTime,
    state: Mutex<State>,
    released: Notify,
    /// Every message up to this stream sequence is in the view.
    position: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    topics: Topics,
    jobs: usize,
    pass: u64,
    /// The remembered ends of jobs, by when they are forgotten.
    done: VecDeque<(Monotonic, String, Arc<str>, u64)>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("jobs", &self.jobs).field("pass", &self.pass).finish_non_exhaustive()
    }
}

/// The right of one call to write one job; given back when dropped.
pub(crate) struct Claim {
    view: Arc<View>,
    topic: String,
    id: Arc<str>,
}

/// A claimed job with the record that it had when it was claimed.
pub(crate) struct Claimed {
    pub(crate) claim: Claim,
    pub(crate) record: Record,
    pub(crate) sequence: u64,
}

impl Claim {
    pub(crate) fn id(&self) -> &Arc<str> {
        &self.id
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.view.with_topic(&self.topic, |jobs, _| {
            jobs.claimed.remove(&self.id);
        });
        self.view.released.notify_waiters();
    }
}

impl WakingTopics for View {
    fn subscribe(&self, topic: &Topic) -> broadcast::Receiver<()> {
        self.with_topic(topic.as_str(), |jobs, _| jobs.subscribe())
    }

    fn next_due(&self, topic: &Topic) -> Option<Duration> {
        self.with_topic(topic.as_str(), |jobs, now| jobs.next_due(now))
    }

    fn unsubscribed(&self, topic: &Topic) {
        self.with_topic(topic.as_str(), |_, _| ());
    }
}

impl View {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            time: ServerTime::new(Arc::clone(&clock)),
            clock,
            state: Mutex::default(),
            released: Notify::new(),
            position: watch::Sender::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn jobs(&self) -> usize {
        self.lock().jobs
    }

    /// Runs `work` on a topic, after what is due there became ready, with the server's time.
    pub(crate) fn with_topic<R>(&self, topic: &str, work: impl FnOnce(&mut TopicJobs, i64) -> R) -> R {
        let now = self.time.now();
        let mut state = self.lock();
        if !state.topics.contains_key(topic) {
            state.topics.insert(topic.to_owned(), TopicJobs::default());
        }
        let mut fresh = TopicJobs::default();
        let jobs = state.topics.get_mut(topic).unwrap_or(&mut fresh);
        let before = jobs.len();
        jobs.promote(now);
        let result = work(jobs, now);
        let (after, is_idle) = (jobs.len(), jobs.is_idle());
        state.jobs = state.jobs + after - before;
        if is_idle {
            state.topics.remove(topic);
        }
        result
    }

    /// Whether the message at `sequence` tells nothing new of the job; that it was seen is noted.
    pub(crate) fn knows(&self, topic: &str, id: &str, sequence: u64) -> bool {
        let mut state = self.lock();
        let pass = state.pass;
        state.topics.get_mut(topic).is_some_and(|jobs| jobs.knows(id, sequence, pass))
    }

    /// Takes what the server has at `sequence`.
    pub(crate) fn take(&self, topic: &str, id: &Arc<str>, stored: Stored, sequence: u64) {
        let pass = self.lock().pass;
        let is_done = stored == Stored::Done;
        self.with_topic(topic, |jobs, now| match stored {
            Stored::Job(record) => jobs.take(id, record, sequence, pass, now),
            Stored::Done => jobs.take_done(id, sequence),
        });
        if is_done {
            self.remember_done(topic, id, sequence);
        }
    }

    fn remember_done(&self, topic: &str, id: &Arc<str>, sequence: u64) {
        let now = self.clock.monotonic();
        let mut over = Vec::new();
        {
            let mut state = self.lock();
            let until = now.saturating_add(DONE_REMEMBERED);
            state.done.push_back((until, topic.to_owned(), Arc::clone(id), sequence));
            while state.done.front().is_some_and(|(until, ..)| *until <= now) {
                over.extend(state.done.pop_front());
            }
        }
        for (_, topic, id, sequence) in over {
            self.with_topic(&topic, |jobs, _| {
                if jobs.done.get(&id) == Some(&sequence) {
                    jobs.done.remove(&id);
                }
            });
        }
    }

    /// Claims a job for writing, waiting for the call of this process that writes it now.
    pub(crate) async fn claim(
        self: &Arc<Self>,
        topic: &str,
        id: &str,
        limit: Duration,
    ) -> Result<Claim, DeadlineExceeded> {
        let wait = async {
            loop {
                let released = self.released.notified();
                tokio::pin!(released);
                // From here on no release is missed.
                released.as_mut().enable();
                if let Some(claim) = self.try_claim(topic, id) {
                    return claim;
                }
                released.await;
            }
        };
        self.clock.timeout(limit, wait).await
    }

    /// Claims a job, unless a call of this process writes it now.
    fn try_claim(self: &Arc<Self>, topic: &str, id: &str) -> Option<Claim> {
        let id = Arc::<str>::from(id);
        let is_free = self.with_topic(topic, |jobs, _| jobs.claimed.insert(Arc::clone(&id)));
        is_free.then(|| Claim { view: Arc::clone(self), topic: topic.to_owned(), id })
    }

    /// Claims up to `max` jobs that are ready, in their order, behind the first `skip`. With each comes its record at this very moment:
    /// what is read of it later may be another's.
    pub(crate) fn claim_ready(self: &Arc<Self>, topic: &str, max: usize, skip: usize) -> Vec<Claimed> {
        let claimed: Vec<(Arc<str>, Record, u64)> = self.with_topic(topic, |jobs, _| {
            let mut claimed = Vec::new();
            for id in jobs.ready(max, skip) {
                let Some(entry) = jobs.get(&id) else { continue };
                let mut record = entry.record.clone();
                record.created = Some(entry.created());
                claimed.push((Arc::clone(&id), record, entry.sequence));
                jobs.claimed.insert(id);
            }
            claimed
        });
        let with_claim = |(id, record, sequence)| Claimed {
            claim: Claim { view: Arc::clone(self), topic: topic.to_owned(), id },
            record,
            sequence,
        };
        claimed.into_iter().map(with_claim).collect()
    }

    /// A new pass over the whole stream begins.
    pub(crate) fn begin_pass(&self) {
        self.lock().pass += 1;
    }

    /// The pass has shown all that the stream has, up to `position`: what it did not show is gone.
    pub(crate) fn end_pass(&self, position: u64) {
        let (pass, topics) = {
            let state = self.lock();
            (state.pass, state.topics.keys().cloned().collect::<Vec<_>>())
        };
        for topic in topics {
            self.with_topic(&topic, |jobs, _| {
                jobs.sweep(pass);
                jobs.hint();
            });
        }
        self.reached(position);
    }

    pub(crate) fn reached(&self, position: u64) {
        self.position.send_if_modified(|reached| {
            let is_further = *reached < position;
            *reached = position.max(*reached);
            is_further
        });
    }

    /// Waits until every message up to `position` is in the view.
    pub(crate) async fn wait_for(&self, position: u64, limit: Duration) -> Result<(), DeadlineExceeded> {
        let mut reached = self.position.subscribe();
        let wait = async {
            // The sender lives as long as the view.
            let _ = reached.wait_for(|reached| *reached >= position).await;
        };
        self.clock.timeout(limit, wait).await
    }
}
