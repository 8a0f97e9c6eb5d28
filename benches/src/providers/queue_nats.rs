//! A queue on JetStream, by hand, in two ways.
//!
//! * A stream with work-queue retention, publications that are answered, one pull consumer, double acks: the fewest steps that JetStream
//!   knows, without dedupe, leases of a chosen length, or a fence.
//! * The adapter's own way: each job a subject, and three compare-and-set publications (made, leased, done). Nothing is read, and no other
//!   process could take part.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, anyhow};
use async_nats::jetstream::consumer::{AckPolicy, Consumer, pull};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config, RetentionPolicy, StorageType};
use async_nats::jetstream::{Context, Message};
use async_trait::async_trait;
use bytes::Bytes;
use flames_clock::{SystemClock, SystemRandom};
use flames_queue_nats::{NatsConfig, NatsQueue};
use futures::StreamExt;

use super::queue::{BareQueue, Goals, LEASE, Ours, beside, beside_another, topic};
use super::{Findings, ProvidersArguments};

/// The most old jobs: the server writes each to disk by itself.
const MOST_OLD_JOBS: u32 = 100_000;
/// How long JetStream may take for one answer while thousands are asked for.
const PATIENCE: Duration = Duration::from_secs(60);

const BARE: &str = "flames_bench_bare";
const PREFIX: &str = "flames_bench";

struct Bare {
    context: Context,
    consumer: Consumer<pull::Config>,
}

impl Bare {
    async fn new(context: Context) -> Result<Arc<Self>> {
        // It may be left from a run that was interrupted.
        let _ = context.delete_stream(BARE).await;
        let stream = context
            .create_stream(Config {
                name: BARE.to_owned(),
                subjects: vec![format!("{BARE}.>")],
                retention: RetentionPolicy::WorkQueue,
                storage: StorageType::File,
                ..Config::default()
            })
            .await?;
        let consumer = pull::Config {
            durable_name: Some("workers".to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: LEASE,
            max_ack_pending: 100_000,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(consumer).await?;
        Ok(Arc::new(Self { context, consumer }))
    }
}

#[async_trait]
impl BareQueue for Bare {
    type Taken = Message;
    async fn add(&self, payload: Bytes) -> Result<()> {
        self.context.publish(format!("{BARE}.bench"), payload).await?.await?;
        Ok(())
    }
    async fn take(&self, max: usize) -> Result<Vec<Message>> {
        // Answers at once, with nothing when there is nothing.
        let mut messages = self.consumer.fetch().max_messages(max).messages().await?;
        let mut taken = Vec::with_capacity(max);
        while let Some(message) = messages.next().await {
            taken.push(message.map_err(|error| anyhow!(error))?);
        }
        Ok(taken)
    }
    async fn finish(&self, taken: Message) -> Result<()> {
        taken.double_ack().await.map_err(|error| anyhow!(error))
    }
}

/// A job as three publications.
struct ByWrites {
    context: Context,
    waiting: Mutex<VecDeque<(String, u64)>>,
    made: AtomicU64,
}

const BY_WRITES: &str = "flames_bench_writes";

impl ByWrites {
    async fn new(context: Context) -> Result<Arc<Self>> {
        let _ = context.delete_stream(BY_WRITES).await;
        context
            .create_stream(Config {
                name: BY_WRITES.to_owned(),
                subjects: vec![format!("{BY_WRITES}.>")],
                max_messages_per_subject: 1,
                allow_message_ttl: true,
                storage: StorageType::File,
                ..Config::default()
            })
            .await?;
        Ok(Arc::new(Self { context, waiting: Mutex::default(), made: AtomicU64::new(0) }))
    }

    async fn write(&self, subject: &str, expected: u64, payload: Bytes, is_last: bool) -> Result<u64> {
        let mut message = PublishMessage::build().payload(payload).expected_last_subject_sequence(expected);
        if is_last {
            message = message.ttl(Duration::from_secs(30));
        }
        Ok(self.context.send_publish(subject.to_owned(), message).await?.await?.sequence)
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<(String, u64)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl BareQueue for ByWrites {
    type Taken = (String, u64);
    async fn add(&self, payload: Bytes) -> Result<()> {
        let subject = format!("{BY_WRITES}.{:032x}", self.made.fetch_add(1, Ordering::Relaxed));
        let sequence = self.write(&subject, 0, payload, false).await?;
        self.waiting().push_back((subject, sequence));
        Ok(())
    }
    async fn take(&self, max: usize) -> Result<Vec<(String, u64)>> {
        let taken: Vec<_> = {
            let mut waiting = self.waiting();
            let count = max.min(waiting.len());
            waiting.drain(..count).collect()
        };
        let leases = taken.into_iter().map(async |(subject, sequence)| {
            let leased = self.write(&subject, sequence, Bytes::from_static(b"leased"), false).await?;
            Ok((subject, leased))
        });
        futures::future::join_all(leases).await.into_iter().collect()
    }
    async fn finish(&self, (subject, sequence): (String, u64)) -> Result<()> {
        self.write(&subject, sequence, Bytes::new(), true).await?;
        Ok(())
    }
}

pub(crate) async fn measure(
    arguments: &ProvidersArguments,
    url: &str,
    findings: &mut Findings,
) -> Result<()> {
    let mut context = async_nats::jetstream::new(async_nats::connect(url).await?);
    context.set_timeout(PATIENCE);
    let old_jobs = arguments.old_jobs.min(MOST_OLD_JOBS);
    let config = NatsConfig { prefix: PREFIX.to_owned(), ..NatsConfig::at(url) };
    let _ = context.delete_stream(config.stream()).await;
    let stream = config.stream();
    let queue =
        Arc::new(NatsQueue::open(config, Arc::new(SystemClock::new()), Arc::new(SystemRandom)).await?);
    let ours = Ours::new(Arc::<NatsQueue>::clone(&queue))?;
    let by_writes = ByWrites::new(context.clone()).await?;
    beside_another("nats", "the same three writes", arguments, findings, (&ours, &by_writes)).await?;
    let bare = Bare::new(context.clone()).await?;
    let goals = Goals { batches: None, flat: 1.2, old_jobs };
    beside("nats", arguments, findings, (&ours, &bare), goals, async || {
        age(&context, old_jobs).await?;
        // Until the process has seen them all.
        let parked = ours.queue.stats(&topic()?).await?.parked;
        anyhow::ensure!(parked == u64::from(old_jobs), "{parked} old jobs");
        Ok(())
    })
    .await?;
    queue.close().await;
    context.delete_stream(BY_WRITES).await?;
    context.delete_stream(stream).await?;
    context.delete_stream(BARE).await?;
    Ok(())
}

/// Parked jobs, as the adapter writes them, without the three steps that each would take through it.
async fn age(context: &Context, jobs: u32) -> Result<()> {
    let record =
        Bytes::from_static(b"flames-job 1\ndeliveries 1\nattempts 1\npriority 0\nparked 1\nreason old\n\n\0");
    let mut number = 0;
    while number < jobs {
        let until = jobs.min(number + 500);
        let mut answers = Vec::new();
        for job in number..until {
            answers.push(context.publish(format!("{PREFIX}.jobs.bench.u{job:032x}"), record.clone()).await?);
        }
        for answer in answers {
            answer.await?;
        }
        number = until;
    }
    Ok(())
}
