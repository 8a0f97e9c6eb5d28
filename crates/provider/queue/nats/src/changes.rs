//! How the queue changes a job: read what is known, say what it becomes, and ask the server to replace the one by the other.

use std::sync::Arc;
use std::time::Duration;

use flames_clock::{Monotonic, Timestamp};
use flames_error::{Error, ErrorKind, Result};
use flames_queue::{Job, JobId, Lease, LeaseToken, Topic};

use crate::error::NotWritten;
use crate::queue::NatsQueue;
use crate::record::{Phase, Record};
use crate::topic::TopicJobs;
use crate::view::{Claim, Claimed, View};
use crate::wire::{self, Delivery, Stored};

/// When an operation must have ended.
#[derive(Clone, Copy)]
pub(crate) struct Deadline<'q> {
    view: &'q View,
    operation: &'static str,
    at: Monotonic,
}

impl Deadline<'_> {
    /// What is left of it. `Unavailable` when nothing is: to be asked only where nothing was changed.
    fn left(&self) -> Result<Duration> {
        let left = self.at.saturating_since(self.view.clock.monotonic());
        if left.is_zero() {
            return Err(Error::unavailable(
                self.operation,
                "not done in time; others changed the job each time",
            ));
        }
        Ok(left)
    }
}

impl NatsQueue {
    pub(crate) fn deadline(&self, operation: &'static str) -> Deadline<'_> {
        let at = self.view.clock.monotonic().saturating_add(self.operation_deadline);
        Deadline { view: &self.view, operation, at }
    }

    pub(crate) async fn claim(&self, deadline: Deadline<'_>, topic: &str, id: &str) -> Result<Claim> {
        self.view.claim(topic, id, deadline.left()?).await.map_err(|late| {
            Error::unavailable(deadline.operation, "another call is still writing the job").with_source(late)
        })
    }

    /// Writes a job's next record over the one at `expected`, and takes it into the view. None when the newest is another one, which
    /// is in the view then.
    pub(crate) async fn write(
        &self,
        deadline: Deadline<'_>,
        topic: &str,
        id: &Arc<str>,
        record: Option<Record>,
        expected: u64,
    ) -> Result<Option<u64>> {
        let subject = wire::subject(&self.backend.subject_prefix, topic, id);
        let written = self
            .backend
            .write(deadline.operation, subject, record.as_ref(), expected, deadline.left()?)
            .await;
        match written {
            Ok(sequence) => {
                self.view.take(topic, id, record.map_or(Stored::Done, Stored::Job), sequence);
                Ok(Some(sequence))
            }
            Err(NotWritten::Conflict(Some(0))) => {
                self.view.with_topic(topic, |jobs, _| jobs.forget(id, expected));
                Ok(None)
            }
            Err(NotWritten::Conflict(_)) => {
                self.refresh(deadline, topic, id).await?;
                Ok(None)
            }
            Err(NotWritten::Failed(error)) => Err(error.with_resource("topic", topic)),
        }
    }

    /// Asks the server for a job's newest record. The caller has claimed the job.
    pub(crate) async fn refresh(&self, deadline: Deadline<'_>, topic: &str, id: &Arc<str>) -> Result<()> {
        let known = self.view.with_topic(topic, |jobs, _| known_sequence(jobs, id));
        match self.backend.newest(deadline.operation, topic, id, deadline.left()?).await? {
            Some((sequence, text)) => {
                let stored = wire::decode(&text).ok_or_else(|| {
                    Error::new(ErrorKind::Corrupt, deadline.operation, "the job's record cannot be read")
                        .with_resource("job", id.as_ref())
                        .with_context("sequence", sequence)
                })?;
                self.view.take(topic, id, stored, sequence);
            }
            None => self.view.with_topic(topic, |jobs, _| jobs.forget(id, known)),
        }
        Ok(())
    }

    /// Waits until what the stream has now is in the view.
    pub(crate) async fn catch_up(&self, deadline: Deadline<'_>) -> Result<()> {
        let asked = self.view.clock.monotonic();
        let stream = self.backend.stream_now(deadline.operation, deadline.left()?).await?;
        self.view.time.learn(stream.time, asked);
        self.view.wait_for(stream.last_sequence, deadline.left()?).await.map_err(|late| {
            Error::unavailable(deadline.operation, "the stream could not be followed in time")
                .with_source(late)
        })
    }

    /// Replaces the record of the delivery that `token` names, if its lease holds. `change` answers the next record (none: done).
    pub(crate) async fn settle(
        &self,
        operation: &'static str,
        token: &LeaseToken,
        change: impl Fn(&Record, i64) -> Option<Record>,
    ) -> Result<()> {
        let lost = || {
            Error::new(ErrorKind::LeaseLost, operation, "the lease is expired, superseded or settled")
                .with_resource("lease", token.as_raw())
        };
        let delivery =
            Delivery::read(token).filter(|delivery| delivery.epoch == self.epoch).ok_or_else(lost)?;
        let deadline = self.deadline(operation);
        let topic = delivery.topic.as_str();
        let claim = self.claim(deadline, topic, &delivery.id).await?;
        let mut is_fresh = false;
        loop {
            let next = self.view.with_topic(topic, |jobs, now| {
                let entry = jobs.get(claim.id())?;
                let holds = matches!(entry.record.phase, Phase::Leased { until, .. } if until > now)
                    && entry.created() == delivery.created
                    && entry.record.deliveries == delivery.number;
                holds.then(|| (change(&entry.record, now), entry.sequence))
            });
            match next {
                Some((record, expected)) => {
                    if self.write(deadline, topic, claim.id(), record, expected).await?.is_some() {
                        return Ok(());
                    }
                    is_fresh = true;
                }
                // Not before the server said so: another process may have given or extended the lease.
                None if is_fresh => return Err(lost()),
                None => {
                    self.refresh(deadline, topic, claim.id()).await?;
                    is_fresh = true;
                }
            }
        }
    }

    /// Leases claimed jobs, all at once; answers those that were leased, in order.
    pub(crate) async fn lease_all(
        &self,
        deadline: Deadline<'_>,
        topic: &Topic,
        worker: &Arc<str>,
        lease: Duration,
        claimed: &[Claimed],
    ) -> (Vec<Job>, Option<Error>) {
        let leases = claimed.iter().map(|Claimed { claim, record, sequence: expected }| async move {
            let (now, expected) = (self.view.time.now(), *expected);
            let record = record.leased(worker, now.saturating_add(millis(lease)), now);
            let subject = wire::subject(&self.backend.subject_prefix, topic.as_str(), claim.id());
            let left = deadline.left()?;
            match self.backend.write(deadline.operation, subject, Some(&record), expected, left).await {
                Ok(sequence) => {
                    self.view.take(topic.as_str(), claim.id(), Stored::Job(record.clone()), sequence);
                    self.job(topic, claim.id(), record).map(Some)
                }
                Err(NotWritten::Conflict(Some(0))) => {
                    self.view.with_topic(topic.as_str(), |jobs, _| jobs.forget(claim.id(), expected));
                    Ok(None)
                }
                Err(NotWritten::Conflict(_)) => {
                    self.view.with_topic(topic.as_str(), |jobs, _| jobs.is_behind(claim.id(), expected));
                    Ok(None)
                }
                Err(NotWritten::Failed(error)) => Err(error),
            }
        });
        let (mut jobs, mut failure) = (Vec::with_capacity(claimed.len()), None);
        for answer in futures::future::join_all(leases).await {
            match answer {
                Ok(job) => jobs.extend(job),
                Err(error) => failure = Some(error),
            }
        }
        (jobs, failure)
    }

    fn job(&self, topic: &Topic, id: &str, record: Record) -> Result<Job> {
        let delivery = Delivery {
            epoch: self.epoch,
            created: record.created.unwrap_or(0),
            number: record.deliveries,
            id: id.to_owned(),
            topic: topic.as_str().to_owned(),
        };
        let until = match record.phase {
            Phase::Leased { until, .. } => until,
            Phase::Ready { since: at } | Phase::Waiting { at } | Phase::Parked { at, .. } => at,
        };
        Ok(Job {
            id: JobId::new(id)?,
            topic: topic.clone(),
            payload: record.payload,
            dedupe_key: record.dedupe_key.as_deref().map(str::to_owned),
            priority: record.priority,
            attempt: record.attempts,
            lease: Lease { token: delivery.write(), expires_at: timestamp(until) },
        })
    }
}

pub(crate) fn known_sequence(jobs: &TopicJobs, id: &str) -> u64 {
    jobs.get(id).map(|entry| entry.sequence).or_else(|| jobs.done.get(id).copied()).unwrap_or(0)
}

pub(crate) fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
}

pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
