//! The bytes of a blob on their way out. A connection that is lost is made again, from where the last one ended.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use flames_blob::{BlobInfo, BlobKey, ByteStream, MAX_CHUNK, ReadVerifier};
use flames_clock::ClockExt;
use flames_error::{Error, ErrorKind, Result};
use futures::StreamExt;
use object_store::path::Path;

use super::calls::{Body, Calls};
use super::failures::Failure;

const OPERATION: &str = "blob.get";

/// A read under way.
pub(super) struct Reading {
    calls: Arc<Calls>,
    key: BlobKey,
    path: Path,
    /// All of the blob.
    whole: Range<u64>,
    /// What is still to come from the server.
    rest: Range<u64>,
    body: Option<Body>,
    /// The version that the read began with: never another one's bytes behind it.
    tag: Option<String>,
    /// What came and was not handed out.
    ready: Bytes,
    verifier: ReadVerifier,
    /// Lost connections since a MiB came.
    losses: u32,
    /// Bytes since the last lost connection.
    since_loss: u64,
}

impl Reading {
    /// Begins to read `range`, which lies within the blob. None when the data is not there.
    pub(super) async fn begin(
        calls: &Arc<Calls>,
        info: &BlobInfo,
        path: Path,
        range: Range<u64>,
    ) -> Result<Option<Self>> {
        let verifier = ReadVerifier::new(info, &range);
        let mut reading = Self {
            calls: Arc::clone(calls),
            key: info.key.clone(),
            path,
            whole: 0..info.size,
            rest: range,
            body: None,
            tag: None,
            ready: Bytes::new(),
            verifier,
            losses: 0,
            since_loss: 0,
        };
        while reading.body.is_none() && !reading.rest.is_empty() {
            match reading.open().await {
                Ok(()) => {}
                Err(Failure::Missing) => return Ok(None),
                Err(failure) => reading.lost(failure).await?,
            }
        }
        Ok(Some(reading))
    }

    pub(super) fn into_stream(self) -> ByteStream {
        futures::stream::try_unfold(self, |mut reading| async move {
            Ok(reading.next().await?.map(|chunk| (chunk, reading)))
        })
        .boxed()
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if !self.ready.is_empty() {
                let chunk = self.ready.split_to(self.ready.len().min(MAX_CHUNK));
                self.verifier.update(&chunk)?;
                return Ok(Some(chunk));
            }
            if self.rest.is_empty() {
                return Ok(None);
            }
            let Some(body) = &mut self.body else {
                match self.open().await {
                    Ok(()) => {}
                    Err(Failure::Missing | Failure::Refused) => return Err(self.gone()),
                    Err(failure) => self.lost(failure).await?,
                }
                continue;
            };
            let place = &self.calls.place;
            let failure = match self.calls.clock.timeout(self.calls.limits.stall, body.next()).await {
                Ok(Some(Ok(bytes))) => {
                    self.take(bytes)?;
                    continue;
                }
                Ok(Some(Err(error))) => place.failure(OPERATION, error),
                Ok(None) => Failure::Passing {
                    may_be_done: false,
                    error: Error::unavailable(OPERATION, "the server ended its answer too early"),
                },
                Err(deadline) => place.too_slow(OPERATION, deadline),
            };
            self.lost(failure).await?;
        }
    }

    async fn open(&mut self) -> Result<(), Failure> {
        // All of it is asked for without a range: some servers take a detour for one.
        let part = (self.rest != self.whole).then(|| self.rest.clone());
        let (body, tag) = self.calls.open(OPERATION, &self.path, part, self.tag.clone()).await?;
        self.tag = self.tag.take().or(tag);
        self.body = Some(body);
        Ok(())
    }

    fn take(&mut self, bytes: Bytes) -> Result<()> {
        let length = bytes.len() as u64;
        if length > self.rest.end - self.rest.start {
            return Err(Error::new(ErrorKind::Corrupt, OPERATION, "more bytes came than were asked for")
                .with_resource("blob", self.key.as_str()));
        }
        self.rest.start += length;
        self.ready = bytes;
        self.since_loss += length;
        if self.since_loss >= MAX_CHUNK as u64 {
            self.losses = 0;
        }
        Ok(())
    }

    /// Waits for the next try, if there is one.
    async fn lost(&mut self, failure: Failure) -> Result<()> {
        self.body = None;
        self.losses += 1;
        self.since_loss = 0;
        match failure {
            Failure::Passing { .. } if self.losses < self.calls.limits.attempts => {
                tracing::debug!(blob = %self.key, from = self.rest.start, losses = self.losses, "resuming a read");
                self.calls.pause(self.losses).await;
                Ok(())
            }
            failure => Err(failure.into_error(OPERATION).with_resource("blob", self.key.as_str())),
        }
    }

    fn gone(&self) -> Error {
        Error::new(ErrorKind::Conflict, OPERATION, "the blob was swept away while it was read: read it again")
            .with_resource("blob", self.key.as_str())
    }
}
