//! What a queue is, in the fewest words: a list of jobs, searched from end to end.

use flames_queue::TopicStats;

/// Time, in half units: whole units are when something may happen, halves are when leases and delays end, so that no answer depends on which
/// of two comes first.
pub(super) type Half = u32;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// Ready or delayed.
    Waiting {
        from: Half,
    },
    Leased {
        until: Half,
    },
    Parked {
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Signal {
    payload: String,
    from: Half,
    priority: i8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Which job this is in the order of making.
    pub(super) number: usize,
    pub(super) key: Option<usize>,
    pub(super) payload: String,
    pub(super) priority: i8,
    pub(super) attempts: u32,
    pub(super) deliveries: u32,
    pub(super) phase: Phase,
    signal: Option<Signal>,
}

/// One delivery of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delivery {
    pub(super) number: usize,
    pub(super) delivery: u32,
}

#[derive(Debug, Default)]
pub(super) struct Reference {
    pub(super) now: Half,
    pub(super) entries: Vec<Entry>,
    made: usize,
}

impl Reference {
    /// Jobs whose lease has ended are ready since then, with what was signalled meanwhile.
    pub(super) fn settle_time(&mut self) {
        for entry in &mut self.entries {
            if let Phase::Leased { until } = entry.phase
                && until <= self.now
            {
                if let Some(signal) = entry.signal.take() {
                    entry.payload = signal.payload;
                    entry.priority = entry.priority.max(signal.priority);
                }
                entry.phase = Phase::Waiting { from: until };
            }
        }
    }

    /// The number of the job, and whether it was there.
    pub(super) fn enqueue(
        &mut self,
        key: Option<usize>,
        payload: String,
        priority: i8,
        not_before: Half,
    ) -> (usize, bool) {
        let (now, from) = (self.now, not_before.max(self.now));
        let known = self.entries.iter_mut().find(|entry| key.is_some() && entry.key == key);
        let Some(entry) = known else {
            self.made += 1;
            let phase = Phase::Waiting { from };
            let number = self.made;
            let new =
                Entry { number, key, payload, priority, attempts: 0, deliveries: 0, phase, signal: None };
            self.entries.push(new);
            return (number, false);
        };
        if let Phase::Leased { .. } = entry.phase {
            let (from, priority) = match &entry.signal {
                Some(earlier) => (from.min(earlier.from), priority.max(earlier.priority)),
                None => (from, priority),
            };
            entry.signal = Some(Signal { payload, from, priority });
            return (entry.number, true);
        }
        entry.payload = payload;
        entry.priority = entry.priority.max(priority);
        if matches!(entry.phase, Phase::Parked { .. }) {
            entry.attempts = 0;
        }
        entry.phase = match entry.phase {
            Phase::Waiting { from: before } => Phase::Waiting { from: before.min(from) },
            _ => Phase::Waiting { from: from.max(now) },
        };
        (entry.number, true)
    }

    /// The order in which ready jobs go out; none when a job is not ready.
    pub(super) fn rank(&self, entry: &Entry) -> Option<(i16, Half)> {
        match entry.phase {
            Phase::Waiting { from } if from <= self.now => Some((-i16::from(entry.priority), from)),
            _ => None,
        }
    }

    pub(super) fn lease(&mut self, number: usize, until: Half) -> Option<&Entry> {
        let entry = self.entries.iter_mut().find(|entry| entry.number == number)?;
        entry.attempts += 1;
        entry.deliveries += 1;
        entry.phase = Phase::Leased { until };
        Some(entry)
    }

    /// The place of the job that a delivery holds.
    fn held(&self, delivery: Delivery) -> Option<usize> {
        self.entries.iter().position(|entry| {
            entry.number == delivery.number
                && entry.deliveries == delivery.delivery
                && matches!(entry.phase, Phase::Leased { .. })
        })
    }

    /// Makes a job that was signalled a new one.
    fn renewed(entry: &mut Entry, now: Half) -> bool {
        let Some(signal) = entry.signal.take() else { return false };
        entry.payload = signal.payload;
        entry.priority = signal.priority;
        entry.attempts = 0;
        entry.phase = Phase::Waiting { from: signal.from.max(now) };
        true
    }

    pub(super) fn extend(&mut self, delivery: Delivery, until: Half) -> bool {
        let Some(place) = self.held(delivery) else { return false };
        self.entries[place].phase = Phase::Leased { until };
        true
    }

    pub(super) fn ack(&mut self, delivery: Delivery) -> bool {
        let Some(place) = self.held(delivery) else { return false };
        if !Self::renewed(&mut self.entries[place], self.now) {
            self.entries.remove(place);
        }
        true
    }

    pub(super) fn nack(&mut self, delivery: Delivery, retry_at: Half) -> bool {
        let Some(place) = self.held(delivery) else { return false };
        let now = self.now;
        let entry = &mut self.entries[place];
        let mut from = retry_at;
        if let Some(signal) = entry.signal.take() {
            entry.payload = signal.payload;
            entry.priority = entry.priority.max(signal.priority);
            from = from.min(signal.from);
        }
        entry.phase = Phase::Waiting { from: from.max(now) };
        true
    }

    pub(super) fn park(&mut self, delivery: Delivery, reason: String) -> bool {
        let Some(place) = self.held(delivery) else { return false };
        if !Self::renewed(&mut self.entries[place], self.now) {
            self.entries[place].phase = Phase::Parked { reason };
        }
        true
    }

    pub(super) fn requeue(&mut self, number: usize) -> bool {
        let now = self.now;
        let entry = self.entries.iter_mut().find(|entry| entry.number == number);
        let Some(entry) = entry.filter(|entry| matches!(entry.phase, Phase::Parked { .. })) else {
            return false;
        };
        entry.attempts = 0;
        entry.phase = Phase::Waiting { from: now };
        true
    }

    pub(super) fn stats(&self) -> TopicStats {
        let mut stats = TopicStats::default();
        for entry in &self.entries {
            match entry.phase {
                Phase::Waiting { from } if from <= self.now => stats.ready += 1,
                Phase::Waiting { .. } => stats.delayed += 1,
                Phase::Leased { .. } => stats.leased += 1,
                Phase::Parked { .. } => stats.parked += 1,
            }
        }
        stats
    }
}
