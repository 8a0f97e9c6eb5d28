//! A job's record and its transitions. No I/O and no clock: whoever calls brings the time.
//!
//! Times are milliseconds since the Unix epoch by the server's clock (see [`crate::time`]).

use std::sync::Arc;

use bytes::Bytes;
use flames_queue::{EnqueueOptions, Priority};

/// All that is kept of a job. A stored one is never edited in part: each transition makes a whole new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// The stream sequence of the job's first record, where this is not that one. With [`Record::deliveries`] it makes a lease token that is
    /// never given twice: the server gives a sequence once.
    pub(crate) created: Option<u64>,
    /// How often the job was handed out in all; never starts anew, unlike `attempts`.
    pub(crate) deliveries: u64,
    pub(crate) attempts: u32,
    pub(crate) priority: Priority,
    pub(crate) dedupe_key: Option<Arc<str>>,
    /// Of a leased job that was signalled: the newer payload.
    pub(crate) payload: Bytes,
    pub(crate) phase: Phase,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Ready since `since`, by the clock of whoever wrote it: whoever reads it does not ask his own, which may be a little behind.
    Ready { since: i64 },
    /// Ready at `at`.
    Waiting { at: i64 },
    /// Handed out until `until`.
    Leased { until: i64, worker: Arc<str>, signal: Option<Signal> },
    /// Set aside at `at`.
    Parked { at: i64, reason: Arc<str> },
}

impl Phase {
    fn due(at: i64, now: i64) -> Self {
        if at <= now { Self::Ready { since: at } } else { Self::Waiting { at } }
    }
}

/// What was enqueued under a job's dedupe key while it was leased; its payload is the record's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signal {
    pub(crate) at: i64,
    pub(crate) priority: Priority,
}

impl Record {
    pub(crate) fn new(payload: Bytes, options: &EnqueueOptions, now: i64) -> Self {
        Self {
            created: None,
            deliveries: 0,
            attempts: 0,
            priority: options.priority,
            dedupe_key: options.dedupe_key.as_deref().map(Arc::from),
            payload,
            phase: Phase::due(wanted_at(options, now), now),
        }
    }

    /// The record as time alone makes it: a job whose lease has ended is ready since then.
    pub(crate) fn by(&self, now: i64) -> Self {
        let mut record = self.clone();
        if let Phase::Leased { until, signal, .. } = &self.phase
            && *until <= now
        {
            if let Some(signal) = signal {
                record.priority = record.priority.max(signal.priority);
            }
            record.phase = Phase::Ready { since: *until };
        }
        record
    }

    /// After another enqueue with its dedupe key.
    pub(crate) fn enqueued_again(&self, payload: Bytes, options: &EnqueueOptions, now: i64) -> Self {
        let mut record = self.by(now);
        let wanted = wanted_at(options, now);
        record.payload = payload;
        match &mut record.phase {
            Phase::Leased { signal, .. } => {
                let (at, priority) = match signal {
                    Some(earlier) => (wanted.min(earlier.at), options.priority.max(earlier.priority)),
                    None => (wanted, options.priority),
                };
                *signal = Some(Signal { at, priority });
                return record;
            }
            Phase::Ready { since } => *since = wanted.min(*since),
            Phase::Waiting { at } => record.phase = Phase::due(wanted.min(*at), now),
            Phase::Parked { .. } => {
                record.attempts = 0;
                record.phase = Phase::due(wanted, now);
            }
        }
        record.priority = record.priority.max(options.priority);
        record
    }

    /// Handed out once more, until `until`.
    pub(crate) fn leased(&self, worker: &Arc<str>, until: i64, now: i64) -> Self {
        let mut record = self.by(now);
        record.attempts = record.attempts.saturating_add(1);
        record.deliveries += 1;
        record.phase = Phase::Leased { until, worker: Arc::clone(worker), signal: None };
        record
    }

    /// With its lease ending at `until` instead.
    pub(crate) fn extended(&self, until: i64) -> Self {
        let mut record = self.clone();
        if let Phase::Leased { until: end, .. } = &mut record.phase {
            *end = until;
        }
        record
    }

    /// After its acknowledgement: none, when it is done; anew, when it was signalled meanwhile.
    pub(crate) fn acknowledged(&self, now: i64) -> Option<Self> {
        self.signal().is_some().then(|| self.renewed(now))
    }

    /// Given back, to be ready at `retry_at`.
    pub(crate) fn given_back(&self, retry_at: i64, now: i64) -> Self {
        let mut record = self.clone();
        let mut at = retry_at;
        if let Some(signal) = self.signal() {
            record.priority = record.priority.max(signal.priority);
            // A signal is not held up by the back-off of the try before it.
            at = at.min(signal.at);
        }
        record.phase = Phase::due(at.max(now), now);
        record
    }

    /// Set aside. A signal that came while the job was leased counts as one that came just after it was parked: it requeues it.
    pub(crate) fn parked(&self, reason: &str, now: i64) -> Self {
        if self.signal().is_some() {
            return self.renewed(now);
        }
        let mut record = self.clone();
        record.phase = Phase::Parked { at: now, reason: Arc::from(reason) };
        record
    }

    /// As if enqueued anew, with what was signalled while it was leased.
    pub(crate) fn renewed(&self, now: i64) -> Self {
        let mut record = self.clone();
        let mut at = now;
        if let Some(signal) = self.signal() {
            // What went before is settled, and its urgency with it.
            record.priority = signal.priority;
            at = signal.at.max(now);
        }
        record.attempts = 0;
        record.phase = Phase::due(at, now);
        record
    }

    fn signal(&self) -> Option<Signal> {
        match &self.phase {
            Phase::Leased { signal, .. } => *signal,
            Phase::Ready { .. } | Phase::Waiting { .. } | Phase::Parked { .. } => None,
        }
    }
}

fn wanted_at(options: &EnqueueOptions, now: i64) -> i64 {
    options.not_before.map_or(now, |time| time.as_millisecond().max(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Record {
        Record::new(Bytes::from_static(b"a"), &EnqueueOptions::default(), 100)
    }

    fn worker() -> Arc<str> {
        Arc::from("w")
    }

    #[test]
    fn a_signal_survives_the_end_of_a_lease_with_its_urgency() {
        let urgent = EnqueueOptions { priority: Priority(7), ..EnqueueOptions::default() };
        let leased = job().leased(&worker(), 200, 100);
        let signalled = leased.enqueued_again(Bytes::from_static(b"b"), &urgent, 150);
        assert!(matches!(signalled.phase, Phase::Leased { until: 200, signal: Some(_), .. }));
        let over = signalled.by(200);
        assert_eq!((over.priority, &*over.payload, over.attempts), (Priority(7), &b"b"[..], 1));
        assert_eq!(over.phase, Phase::Ready { since: 200 });
    }

    #[test]
    fn an_acknowledged_job_is_done_unless_it_was_signalled() {
        let leased = job().leased(&worker(), 200, 100);
        assert_eq!(leased.acknowledged(150), None);
        let signalled = leased.enqueued_again(Bytes::from_static(b"b"), &EnqueueOptions::default(), 150);
        let again = signalled.acknowledged(160).unwrap();
        assert_eq!((again.attempts, again.deliveries, again.phase), (0, 1, Phase::Ready { since: 160 }));
    }

    #[test]
    fn an_extension_ends_the_lease_later_and_keeps_its_signal() {
        let leased = job().leased(&worker(), 200, 100);
        let signalled = leased.enqueued_again(Bytes::from_static(b"b"), &EnqueueOptions::default(), 150);
        assert!(matches!(signalled.extended(900).phase, Phase::Leased { until: 900, signal: Some(_), .. }));
    }
}
