//! Requests to the cluster.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flames_clock::{Clock, ClockExt, Monotonic};
use flames_error::{Error, ErrorKind, Result};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use crate::EtcdConfig;
use crate::error::{Failure, refusal};
use crate::wire::{Authenticate, Authenticated, Range, RangeAnswer, Refusal, Transaction, TransactionAnswer};

/// The longest answer that is read. What is asked for is far below; see [`Failure::TooLong`].
const MAX_ANSWER_BYTES: usize = 48 * 1024 * 1024;
/// An idle connection is closed after so long: before what stands between may forget it.
const IDLE: Duration = Duration::from_secs(60);

/// A cluster, by its members' gateways.
pub(crate) struct Cluster {
    client: Client<HttpConnector, Full<Bytes>>,
    endpoints: Vec<String>,
    /// The member that answered last.
    member: AtomicUsize,
    /// Name and password.
    user: Option<(String, String)>,
    /// What the cluster gave for them last.
    token: Mutex<Option<HeaderValue>>,
    turns: Semaphore,
    max_requests: u32,
    acquire_deadline: Duration,
    pub(crate) clock: Arc<dyn Clock>,
}

/// Whose turn a request is, and until when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) operation: &'static str,
    pub(crate) until: Monotonic,
}

impl Cluster {
    pub(crate) fn new(config: &EtcdConfig, endpoints: Vec<String>, clock: Arc<dyn Clock>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(config.connect_deadline));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector);
        let turns =
            usize::try_from(config.max_requests).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS);
        Self {
            client,
            endpoints,
            member: AtomicUsize::new(0),
            user: config.username.clone().zip(config.password.clone()),
            token: Mutex::new(None),
            turns: Semaphore::new(turns),
            max_requests: config.max_requests,
            acquire_deadline: config.acquire_deadline,
            clock,
        }
    }

    pub(crate) fn left(&self, until: Monotonic) -> Duration {
        until.saturating_since(self.clock.monotonic())
    }

    /// Requests that come later are refused.
    pub(crate) fn close(&self) {
        self.turns.close();
    }

    pub(crate) async fn range(&self, call: Call, range: &Range) -> Result<RangeAnswer, Failure> {
        self.ask(call, "/v3/kv/range", range).await
    }

    pub(crate) async fn transact(
        &self,
        call: Call,
        transaction: &Transaction,
    ) -> Result<TransactionAnswer, Failure> {
        self.ask(call, "/v3/kv/txn", transaction).await
    }

    async fn ask<A: DeserializeOwned + Send>(
        &self,
        call: Call,
        path: &str,
        question: &impl Serialize,
    ) -> Result<A, Failure> {
        let Call { operation, until } = call;
        let body = written(operation, question)?;
        let patience = self.acquire_deadline.min(self.left(until));
        let _turn = match self.clock.timeout(patience, self.turns.acquire()).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) => {
                return Err(Failure::NotApplied(Error::unavailable(operation, "the store is closed")));
            }
            Err(late) => return Err(Failure::NotApplied(self.used_up(operation).with_source(late))),
        };
        let exchange = async {
            match self.exchange(operation, path, &body).await {
                // It ends after some minutes, and with the member that gave it.
                Err(Failure::TokenRefused(_)) if self.user.is_some() => {
                    self.forget_token();
                    self.exchange(operation, path, &body).await
                }
                answer => answer,
            }
        };
        match self.clock.timeout(self.left(until), exchange).await {
            Ok(answer) => answer,
            Err(late) => {
                self.leave_member();
                Err(unanswered(operation).map_source(late))
            }
        }
    }

    async fn exchange<A: DeserializeOwned + Send>(
        &self,
        operation: &'static str,
        path: &str,
        body: &Bytes,
    ) -> Result<A, Failure> {
        let token = self.token(operation).await?;
        let response = self.send(operation, path, body, token).await?;
        collect(operation, response).await
    }

    fn token_kept(&self) -> MutexGuard<'_, Option<HeaderValue>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_token(&self) {
        *self.token_kept() = None;
    }

    /// The user's token; none where there is no user.
    async fn token(&self, operation: &'static str) -> Result<Option<HeaderValue>, Failure> {
        let Some((name, password)) = &self.user else { return Ok(None) };
        let kept = self.token_kept().clone();
        if kept.is_some() {
            return Ok(kept);
        }
        let question = written(operation, &Authenticate { name, password })?;
        let response = self.send(operation, "/v3/auth/authenticate", &question, None).await;
        // Nothing is changed by it, so an answer that was lost is no more than that.
        let answered = async { collect::<Authenticated>(operation, response?).await }.await;
        let answered = answered.map_err(|failure| Failure::NotApplied(failure.of_read()))?;
        let mut token = HeaderValue::try_from(answered.token).map_err(|error| {
            Failure::NotApplied(
                Error::internal(operation, "etcd: the user's token cannot be used").with_source(error),
            )
        })?;
        token.set_sensitive(true);
        *self.token_kept() = Some(token.clone());
        Ok(Some(token))
    }

    fn used_up(&self, operation: &'static str) -> Error {
        Error::new(
            ErrorKind::Exhausted,
            operation,
            "etcd: as many requests as allowed are under way: raise the setting `max_requests`, or ask for less at a time",
        )
        .with_field("max_requests")
        .with_context("max_requests", self.max_requests)
        .with_context("acquire_deadline", format!("{:?}", self.acquire_deadline))
    }

    /// Sends to the member that answered last; to the next where no connection comes up.
    async fn send(
        &self,
        operation: &'static str,
        path: &str,
        body: &Bytes,
        token: Option<HeaderValue>,
    ) -> Result<Response<Incoming>, Failure> {
        let mut last = None;
        for _ in 0..self.endpoints.len() {
            let endpoint = self.endpoint();
            let mut request = Request::builder()
                .method(Method::POST)
                .uri(format!("{endpoint}{path}"))
                .header(http::header::CONTENT_TYPE, "application/json");
            if let Some(token) = &token {
                request = request.header(http::header::AUTHORIZATION, token);
            }
            let request = request.body(Full::new(body.clone())).map_err(|error| {
                Failure::NotApplied(
                    Error::internal(operation, "etcd: no request can be made").with_source(error),
                )
            })?;
            match self.client.request(request).await {
                Ok(response) => return Ok(response),
                Err(error) => {
                    self.leave_member();
                    // Once connected, it may have been sent.
                    if !error.is_connect() {
                        return Err(unanswered(operation).map_source(error));
                    }
                    let line = format!(
                        "etcd: no member answers at {endpoint}: start it, or correct the setting `endpoints`"
                    );
                    last =
                        Some(Error::unavailable(operation, line).with_field("endpoints").with_source(error));
                }
            }
        }
        Err(Failure::NotApplied(
            last.unwrap_or_else(|| Error::internal(operation, "etcd: there are no endpoints")),
        ))
    }

    fn endpoint(&self) -> &str {
        let member = self.member.load(Ordering::Relaxed) % self.endpoints.len().max(1);
        self.endpoints.get(member).map_or("", String::as_str)
    }

    fn leave_member(&self) {
        self.member.fetch_add(1, Ordering::Relaxed);
    }

    /// Begins a request whose answer goes on and on, outside the turns of the others.
    pub(crate) async fn stream(
        &self,
        call: Call,
        path: &str,
        question: &impl Serialize,
    ) -> Result<Lines, Failure> {
        let body = written(call.operation, question)?;
        let begin = async {
            let token = self.token(call.operation).await?;
            self.send(call.operation, path, &body, token).await
        };
        match self.clock.timeout(self.left(call.until), begin).await {
            Ok(Ok(response)) if response.status() == StatusCode::OK => {
                Ok(Lines { body: response.into_body(), buffer: BytesMut::new() })
            }
            Ok(Ok(response)) => {
                // Whatever it is, the next try begins with a new token.
                self.forget_token();
                Err(refusal(call.operation, None, response.status().as_str()))
            }
            Ok(Err(failure)) => Err(failure),
            Err(late) => {
                self.leave_member();
                Err(unanswered(call.operation).map_source(late))
            }
        }
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("endpoints", &self.endpoints)
            .field("free", &self.turns.available_permits())
            .finish_non_exhaustive()
    }
}

fn written(operation: &'static str, question: &impl Serialize) -> Result<Bytes, Failure> {
    serde_json::to_vec(question).map(Bytes::from).map_err(|error| {
        Failure::NotApplied(
            Error::internal(operation, "etcd: the request cannot be written").with_source(error),
        )
    })
}

fn unanswered(operation: &'static str) -> Failure {
    Failure::Unanswered(Error::unavailable(operation, "etcd: the answer was lost or did not come in time"))
}

impl Failure {
    fn map_source(self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        match self {
            Self::NotApplied(error) => Self::NotApplied(error.with_source(source)),
            Self::Unanswered(error) => Self::Unanswered(error.with_source(source)),
            Self::TokenRefused(error) => Self::TokenRefused(error.with_source(source)),
            Self::Compacted(error) => Self::Compacted(error.with_source(source)),
            Self::TooLong(error) => Self::TooLong(error.with_source(source)),
        }
    }
}

async fn collect<A: DeserializeOwned>(
    operation: &'static str,
    response: Response<Incoming>,
) -> Result<A, Failure> {
    let (head, answer) = response.into_parts();
    let answer = match Limited::new(answer, MAX_ANSWER_BYTES).collect().await {
        Ok(answer) => answer.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            let error =
                Error::internal(operation, "etcd: the answer is longer than is read").with_source(error);
            return Err(Failure::TooLong(error));
        }
        Err(error) => return Err(unanswered(operation).map_source(error)),
    };
    judge(operation, head.status, &answer)
}

fn judge<A: DeserializeOwned>(
    operation: &'static str,
    status: StatusCode,
    answer: &[u8],
) -> Result<A, Failure> {
    if status == StatusCode::OK {
        return serde_json::from_slice(answer).map_err(|error| unanswered(operation).map_source(error));
    }
    if status == StatusCode::NOT_FOUND {
        let line = "etcd: there is no /v3 here: the setting `endpoints` names no etcd 3.4 or newer, or its gateway is off \
                    (--enable-grpc-gateway)";
        let error = Error::new(ErrorKind::NotSupported, operation, line).with_field("endpoints");
        return Err(Failure::NotApplied(error));
    }
    let told: Refusal = serde_json::from_slice(answer).unwrap_or_default();
    Err(refusal(operation, told.code, &told.message))
}

/// An answer that comes line by line.
pub(crate) struct Lines {
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    /// The next line; none at the end, when the connection is lost, and when a line is longer than `limit`. Cancel-safe.
    pub(crate) async fn next(&mut self, limit: usize) -> Option<Bytes> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(searched + end + 1);
                return Some(line.freeze());
            }
            searched = self.buffer.len();
            if searched > limit {
                return None;
            }
            let frame = self.body.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}
