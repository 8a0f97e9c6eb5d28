//! The one task that follows the stream: everything in it, in order, then everything new, into the view.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::StatusCode;
use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::push::Config as PushConfig;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, ReplayPolicy};
use bytes::Bytes;
use flames_clock::ClockExt;
use flames_error::{Error, Result};
use futures::StreamExt;
use tracing::{debug, warn};

use crate::backend::Backend;
use crate::view::{DONE_KEPT, View};
use crate::wire;

const FOLLOW: &str = "queue.follow";
/// How often the server tells that nothing is new.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// When the server's silence means that it no longer tells.
const SILENCE: Duration = Duration::from_secs(5);
/// How far behind the stream this process may be: far less than the end of a job is told.
const MAX_BEHIND: i64 = 15_000;
/// How long the server keeps the consumer of a process that went away.
const INACTIVE: Duration = Duration::from_secs(30);
/// How often the server's time is asked for.
const SAMPLE_TIME: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

pub(crate) struct Feed {
    pub(crate) backend: Arc<Backend>,
    pub(crate) view: Arc<View>,
    pub(crate) operation_deadline: Duration,
}

impl Feed {
    /// Follows the stream until aborted. What goes wrong is tried again: the view is only behind meanwhile.
    pub(crate) async fn run(self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let started = self.view.clock.monotonic();
            let Err(error) = self.follow().await;
            warn!(%error, "the queue's stream is looked at anew");
            if self.view.clock.monotonic().saturating_since(started) > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            self.view.clock.sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One pass over the stream and on, until something is missed.
    async fn follow(&self) -> Result<std::convert::Infallible> {
        let (backend, view) = (&*self.backend, &*self.view);
        let mut connections = backend.connections.clone();
        connections.mark_unchanged();
        while !backend.is_connected() {
            // Ends with the client alone.
            let lost = |_| Error::unavailable(FOLLOW, "the client is closed");
            match view.clock.timeout(SILENCE, connections.changed()).await {
                Ok(changed) => changed.map_err(lost)?,
                Err(_) => continue,
            }
        }
        let client = backend.context.client();
        let connects = || client.statistics().connects.load(Ordering::Relaxed);
        let connection = connects();
        let asked = view.clock.monotonic();
        let at_start = backend.stream_now(FOLLOW, self.operation_deadline).await?;
        view.time.learn(at_start.time, asked);
        view.begin_pass();

        let inbox = client.new_inbox();
        let mut deliveries = client
            .subscribe(inbox.clone())
            .await
            .map_err(|error| Error::unavailable(FOLLOW, "no subscription").with_source(error))?;
        let consumer = PushConfig {
            deliver_subject: inbox,
            description: Some("a process of Flames that follows its jobs".to_owned()),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::None,
            replay_policy: ReplayPolicy::Instant,
            flow_control: true,
            idle_heartbeat: HEARTBEAT,
            inactive_threshold: INACTIVE,
            num_replicas: 1,
            memory_storage: true,
            ..PushConfig::default()
        };
        let created = view.clock.timeout(self.operation_deadline, backend.stream.create_consumer(consumer));
        let consumer = created
            .await
            .map_err(|late| Error::unavailable(FOLLOW, "NATS did not answer in time").with_source(late))?
            .map_err(|error| Error::unavailable(FOLLOW, "no consumer").with_source(error))?;

        let mut pass = Pass {
            view,
            prefix: &backend.subject_prefix,
            is_whole: false,
            floor: at_start.last_sequence,
            position: 0,
            delivered: 0,
        };
        if consumer.cached_info().num_pending == 0 {
            pass.end();
        }
        let mut sampled = view.clock.monotonic();
        loop {
            let message = tokio::select! {
                biased;
                message = view.clock.timeout(SILENCE, deliveries.next()) => match message {
                    Ok(Some(message)) => message,
                    Ok(None) => return Err(Error::unavailable(FOLLOW, "the subscription ended")),
                    Err(late) => return Err(Error::unavailable(FOLLOW, "the server is silent").with_source(late)),
                },
                // It is told late of the first connection too.
                _ = connections.changed() => {
                    if connects() == connection {
                        continue;
                    }
                    return Err(Error::unavailable(FOLLOW, "the connection is a new one"));
                }
            };
            if message.status == Some(StatusCode::IDLE_HEARTBEAT) {
                if let Some(answer_to) = pass.heard(&message)? {
                    client
                        .publish(answer_to, Bytes::new())
                        .await
                        .map_err(|error| Error::unavailable(FOLLOW, "no flow control").with_source(error))?;
                }
            } else if message.status.is_none() {
                pass.take(Message { message, context: backend.context.clone() })?;
            }
            if view.clock.monotonic().saturating_since(sampled) > SAMPLE_TIME {
                sampled = view.clock.monotonic();
                match backend.stream_now(FOLLOW, HEARTBEAT).await {
                    Ok(told) => view.time.learn(told.time, sampled),
                    Err(error) => debug!(%error, "the server's time was not told"),
                }
            }
        }
    }
}

struct Pass<'p> {
    view: &'p View,
    prefix: &'p str,
    /// Everything that was in the stream when the pass began is in the view.
    is_whole: bool,
    /// The stream's newest sequence when the pass began. Its message may be gone, and is then never delivered.
    floor: u64,
    position: u64,
    /// The consumer's count of deliveries: one more each time, or something was missed.
    delivered: u64,
}

impl Pass<'_> {
    fn end(&mut self) {
        self.is_whole = true;
        self.view.end_pass(self.position.max(self.floor));
    }

    /// Takes one message of the stream.
    fn take(&mut self, message: Message) -> Result<()> {
        let told = message.info().map_err(|error| Error::internal(FOLLOW, error.to_string()))?;
        if told.consumer_sequence != self.delivered + 1 {
            return Err(Error::unavailable(FOLLOW, "messages were missed"));
        }
        let published = i64::try_from(told.published.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
        if self.is_whole && self.view.time.now().saturating_sub(published) > MAX_BEHIND {
            return Err(Error::unavailable(FOLLOW, "too far behind"));
        }
        let (sequence, is_last) = (told.stream_sequence, told.pending == 0);
        self.delivered = told.consumer_sequence;
        self.position = sequence;
        let place = wire::read_subject(self.prefix, &message.subject);
        match place {
            // Most often what this process wrote itself.
            Some((topic, id)) if self.view.knows(&topic, id, sequence) => {}
            Some((topic, id)) => match wire::decode(&message.payload) {
                Some(stored) => self.view.take(&topic, &id.into(), stored, sequence),
                None => self.pass_over(&message, sequence),
            },
            None => self.pass_over(&message, sequence),
        }
        if self.is_whole {
            self.view.reached(sequence);
        } else if is_last {
            self.end();
        }
        Ok(())
    }

    fn pass_over(&self, message: &Message, sequence: u64) {
        warn!(subject = %message.subject, sequence, "a message in the stream is no job; it is passed over");
    }

    /// Takes a message without content: that nothing is new, or that the server wants to know how far this process is.
    fn heard(&mut self, message: &async_nats::Message) -> Result<Option<async_nats::Subject>> {
        if let Some(reply) = &message.reply {
            return Ok(Some(reply.clone()));
        }
        let header = |name: &str| message.headers.as_ref()?.get(name).map(async_nats::HeaderValue::as_str);
        if let Some(stalled) = header("Nats-Consumer-Stalled") {
            return Ok(Some(stalled.into()));
        }
        let delivered = header("Nats-Last-Consumer").and_then(|text| text.parse::<u64>().ok());
        match delivered {
            Some(delivered) if delivered > self.delivered => {
                Err(Error::unavailable(FOLLOW, "messages were missed"))
            }
            Some(_) if !self.is_whole => {
                self.end();
                Ok(None)
            }
            _ => Ok(None),
        }
    }
}

/// The time after which a process that was cut off has missed the end of a job.
const _: () = assert!(MAX_BEHIND as u128 * 2 <= DONE_KEPT.as_millis());
