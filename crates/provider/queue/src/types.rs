//! What a queue takes and gives.

use std::fmt::{Debug, Display};

use bytes::Bytes;
use flames_clock::Timestamp;
use flames_error::{Error, Result};

use crate::{MAX_DEDUPE_KEY_BYTES, MAX_PAYLOAD_BYTES};

/// Defines a checked text of 1 to 128 bytes of `a-z A-Z 0-9 . _ -`, safe as a subject, a table value or a file name.
macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident, $field:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps the text. `InvalidInput` unless it is 1 to 128 bytes of `a-z A-Z 0-9 . _ -`.
            pub fn new(text: impl Into<String>) -> Result<Self> {
                let text = text.into();
                let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
                if (1..=128).contains(&text.len()) && text.bytes().all(allowed) {
                    Ok(Self(text))
                } else {
                    Err(Error::invalid("queue.name", $field, "Names in a queue are 1 to 128 bytes of a-z, A-Z, 0-9 and `._-`."))
                }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_name!(
    /// A stream of jobs of one kind.
    Topic,
    "topic"
);
checked_name!(
    /// Who takes jobs. For people and statistics; two workers may share a name, and leases still tell them apart.
    WorkerId,
    "worker"
);
checked_name!(
    /// A job's identity within its topic, given by the provider.
    JobId,
    "job"
);

/// Which of several ready jobs goes first: the higher one. The default is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Priority(pub i8);

/// How a job is to be queued.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnqueueOptions {
    /// The topic has at most one job of this key. 1 to [`MAX_DEDUPE_KEY_BYTES`] bytes.
    pub dedupe_key: Option<String>,
    /// Not to be delivered before this time; none, or a time in the past: at once.
    pub not_before: Option<Timestamp>,
    /// Which goes first.
    pub priority: Priority,
}

impl EnqueueOptions {
    /// `InvalidInput` when the payload or the dedupe key pass a limit. Every adapter calls it before anything else.
    pub fn validate(&self, payload: &Bytes) -> Result<()> {
        const OPERATION: &str = "queue.enqueue";
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(Error::invalid(OPERATION, "payload", "A job's payload is at most 16 KiB."));
        }
        match &self.dedupe_key {
            Some(key) if !(1..=MAX_DEDUPE_KEY_BYTES).contains(&key.len()) => {
                Err(Error::invalid(OPERATION, "dedupe_key", "A dedupe key is 1 to 256 bytes."))
            }
            _ => Ok(()),
        }
    }
}

/// What became of an enqueue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enqueued {
    /// The job that will be delivered.
    pub job: JobId,
    /// Whether it was there already (see [`crate::WorkQueue::enqueue`] on dedupe keys).
    pub coalesced: bool,
}

/// A fencing token: proves that its holder was handed this delivery of this job. Opaque; unguessable is not required.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LeaseToken(String);

impl LeaseToken {
    /// For adapters: a token that names the job and this delivery of it.
    pub fn from_raw(raw: impl Into<String>) -> Self {
        Self(raw.into())
    }

    /// For adapters: the text given to [`LeaseToken::from_raw`].
    pub fn as_raw(&self) -> &str {
        &self.0
    }
}

impl Debug for LeaseToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LeaseToken({})", self.0)
    }
}

/// The right to settle one delivery of one job, for a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The fencing token.
    pub token: LeaseToken,
    /// When it ends, by the provider's clock.
    pub expires_at: Timestamp,
}

/// A job, delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its identity.
    pub id: JobId,
    /// Its topic.
    pub topic: Topic,
    /// What was enqueued.
    pub payload: Bytes,
    /// Its dedupe key, when it has one.
    pub dedupe_key: Option<String>,
    /// Its priority.
    pub priority: Priority,
    /// Which delivery this is, from 1.
    pub attempt: u32,
    /// The lease of this delivery.
    pub lease: Lease,
}

/// A job set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedJob {
    /// Its identity.
    pub id: JobId,
    /// What was enqueued.
    pub payload: Bytes,
    /// Its dedupe key, when it has one.
    pub dedupe_key: Option<String>,
    /// How often it was delivered before it was parked.
    pub attempts: u32,
    /// Why it was parked.
    pub reason: String,
    /// When it was parked, by the provider's clock.
    pub parked_at: Timestamp,
}

/// One page of parked jobs, by id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParkedPage {
    /// The jobs.
    pub jobs: Vec<ParkedJob>,
    /// Where to continue behind; none when this was the last page.
    pub next: Option<JobId>,
}

/// How many jobs a topic has, by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TopicStats {
    /// Ready to be delivered, those with an expired lease among them.
    pub ready: u64,
    /// Waiting for their time.
    pub delayed: u64,
    /// Leased to a worker.
    pub leased: u64,
    /// Set aside.
    pub parked: u64,
}
