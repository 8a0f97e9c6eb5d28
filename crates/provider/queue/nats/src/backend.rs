//! The four things that are asked of the server: its newest sequence and time, a job's newest message, a compare-and-set, and (in
//! [`crate::feed`]) everything in order. Each has a deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::connection::State as Connection;
use async_nats::jetstream::context::{Context, RequestErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use flames_clock::{Clock, ClockExt, Timestamp};
use flames_error::{Error, ErrorKind, Result};
use serde::Deserialize;
use tokio::sync::watch;

use crate::error::{self, NotWritten};
use crate::record::Record;
use crate::view::DONE_KEPT;
use crate::wire;

/// The part of a stream's information that is of use here (ADR-1 of NATS: `io.nats.jetstream.api.v1.stream_info_response`).
#[derive(Debug, Deserialize)]
struct Information {
    ts: Timestamp,
    created: Timestamp,
    state: InformationState,
}

#[derive(Debug, Deserialize)]
struct InformationState {
    last_seq: u64,
}

/// What a stream's leader tells of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamNow {
    pub(crate) last_sequence: u64,
    pub(crate) created: Timestamp,
    /// The server's time.
    pub(crate) time: Timestamp,
}

pub(crate) struct Backend {
    pub(crate) context: Context,
    pub(crate) stream: Stream<()>,
    pub(crate) stream_name: String,
    pub(crate) subject_prefix: String,
    pub(crate) clock: Arc<dyn Clock>,
    /// Counts connections made, the first among them.
    pub(crate) connections: watch::Receiver<u64>,
    information_subject: String,
    publications: AtomicU64,
    is_closed: AtomicBool,
}

impl Backend {
    pub(crate) fn new(
        context: Context,
        stream: Stream<()>,
        stream_name: String,
        subject_prefix: String,
        clock: Arc<dyn Clock>,
        connections: watch::Receiver<u64>,
    ) -> Self {
        let information_subject = format!("STREAM.INFO.{stream_name}");
        Self {
            context,
            stream,
            stream_name,
            subject_prefix,
            clock,
            connections,
            information_subject,
            publications: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
        }
    }

    pub(crate) fn publications(&self) -> u64 {
        self.publications.load(Ordering::Relaxed)
    }

    pub(crate) fn is_connected(&self) -> bool {
        !self.is_closed.load(Ordering::Relaxed)
            && self.context.client().connection_state() == Connection::Connected
    }

    /// Ends the connection, after what was sent.
    pub(crate) async fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        // It fails when the connection is gone already.
        let _ = self.context.client().drain().await;
    }

    /// `Unavailable` without a connection: the client would keep a request until it has one again.
    pub(crate) fn check_connection(&self, operation: &'static str) -> Result<()> {
        if self.is_connected() {
            return Ok(());
        }
        Err(Error::unavailable(operation, "there is no connection to NATS")
            .with_retry_after(Duration::from_secs(1)))
    }

    /// What the stream's leader tells of the stream.
    pub(crate) async fn stream_now(&self, operation: &'static str, limit: Duration) -> Result<StreamNow> {
        self.check_connection(operation)?;
        let request =
            self.context.request::<_, _, Response<Information>>(self.information_subject.clone(), &());
        match self.clock.timeout(limit, request).await {
            Ok(Ok(Response::Ok(told))) => {
                Ok(StreamNow { last_sequence: told.state.last_seq, created: told.created, time: told.ts })
            }
            Ok(Ok(Response::Err { error })) => Err(error::api(operation, &error)),
            Ok(Err(error)) => {
                let message = if error.kind() == RequestErrorKind::NoResponders {
                    "JetStream does not answer"
                } else {
                    "NATS did not tell of the stream"
                };
                Err(Error::unavailable(operation, message).with_source(error))
            }
            Err(late) => Err(Error::unavailable(operation, "NATS did not answer in time").with_source(late)),
        }
    }

    /// The newest message of a job, from the stream's leader: its sequence and text. None where there is none.
    pub(crate) async fn newest(
        &self,
        operation: &'static str,
        topic: &str,
        id: &str,
        limit: Duration,
    ) -> Result<Option<(u64, bytes::Bytes)>> {
        self.check_connection(operation)?;
        let subject = wire::subject(&self.subject_prefix, topic, id);
        let get = self.stream.get_last_raw_message_by_subject(&subject);
        match self.clock.timeout(limit, get).await {
            Ok(Ok(message)) => Ok(Some((message.sequence, message.payload))),
            Ok(Err(error)) => match error.kind() {
                LastRawMessageErrorKind::NoMessageFound => Ok(None),
                LastRawMessageErrorKind::JetStream(answer) => Err(error::api(operation, &answer)),
                LastRawMessageErrorKind::InvalidSubject | LastRawMessageErrorKind::Other => {
                    Err(Error::unavailable(operation, "NATS did not give the job").with_source(error))
                }
            },
            Err(late) => Err(Error::unavailable(operation, "NATS did not answer in time").with_source(late)),
        }
    }

    /// Replaces a job's message if its newest has the sequence `expected` (0: there is none); answers the new sequence. Without a record
    /// it says that the job is done, and goes away by itself.
    pub(crate) async fn write(
        &self,
        operation: &'static str,
        subject: String,
        record: Option<&Record>,
        expected: u64,
        limit: Duration,
    ) -> Result<u64, NotWritten> {
        self.check_connection(operation).map_err(NotWritten::Failed)?;
        let mut message =
            PublishMessage::build().payload(wire::encode(record)).expected_last_subject_sequence(expected);
        if record.is_none() {
            message = message.ttl(DONE_KEPT);
        }
        self.publications.fetch_add(1, Ordering::Relaxed);
        let publish = async { self.context.send_publish(subject, message).await?.await };
        match self.clock.timeout(limit, publish).await {
            Ok(Ok(acknowledged)) => Ok(acknowledged.sequence),
            Ok(Err(error)) => Err(error::published(operation, error)),
            Err(late) => Err(NotWritten::Failed(
                Error::new(ErrorKind::OutcomeUnknown, operation, "NATS did not answer in time")
                    .with_source(late),
            )),
        }
    }
}
