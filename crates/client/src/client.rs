//! Sending a request and understanding the answer.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flames_clock::{Clock, ClockExt, SystemClock};
use flames_error::{Error, ErrorKind, Result};
use futures::future::BoxFuture;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceExt};

use crate::body::{self, RequestBody, ResponseBody};
use crate::connect::{Address, Connector};
use crate::tls::{Trust, untrusted};

/// How a client calls.
#[derive(Clone)]
pub struct ClientConfig {
    /// The bearer token.
    pub token: Option<String>,
    /// How long one request may take until its answer has begun, waits of the server's apart.
    pub timeout: Duration,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self { token: None, timeout: Duration::from_secs(30), clock: Arc::new(SystemClock::new()) }
    }
}

impl ClientConfig {
    /// With this bearer token.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// With this clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig")
            .field("token", &self.token.as_ref().map(|_| "redacted"))
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

type Http = BoxCloneSyncService<Request<RequestBody>, Response<ResponseBody>, BoxError>;

/// A client. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Client {
    http: Http,
    address: Option<Address>,
    authority: Arc<str>,
    pub(crate) config: Arc<ClientConfig>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("address", &self.address).field("config", &self.config).finish()
    }
}

impl Client {
    /// A client over any HTTP service: a router in the same process, or a connection of one's own. Streams to guests (exec, attach,
    /// port-forward) need a socket and are `NotSupported`.
    pub fn over<S, B>(service: S, config: ClientConfig) -> Self
    where
        S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let http = service
            .map_response(|response: Response<B>| {
                response.map(|body| body.map_err(Into::into).boxed_unsync())
            })
            .map_err(Into::into);
        Self {
            http: BoxCloneSyncService::new(http),
            address: None,
            authority: "localhost".into(),
            config: Arc::new(config),
        }
    }

    /// A client of the API at `host:port`.
    ///
    /// Errors: `InvalidInput` when that is no address.
    pub fn tcp(address: &str, config: ClientConfig) -> Result<Self> {
        let valid = address.parse::<http::uri::Authority>().is_ok_and(|authority| authority.port().is_some());
        if !valid {
            return Err(Error::invalid("client.tcp", "address", "An address is `host:port`."));
        }
        Ok(Self::dialling(Address::Tcp(address.into()), config))
    }

    /// A client of the API at `host:port`, over TLS. The server's certificate must be for that host, and of an authority that is trusted.
    ///
    /// Errors: `InvalidInput` when that is no address.
    pub fn tls(address: &str, trust: &Trust, config: ClientConfig) -> Result<Self> {
        let wrong = || Error::invalid("client.tls", "address", "An address is `host:port`.");
        let authority = address.parse::<http::uri::Authority>().map_err(|_| wrong())?;
        if authority.port().is_none() {
            return Err(wrong());
        }
        Ok(Self::dialling(Address::tls(address, authority.host(), trust).ok_or_else(wrong)?, config))
    }

    /// A client of the API on a unix socket.
    pub fn unix(path: impl Into<PathBuf>, config: ClientConfig) -> Self {
        Self::dialling(Address::Unix(Arc::new(path.into())), config)
    }

    fn dialling(address: Address, config: ClientConfig) -> Self {
        let pool = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .build::<_, RequestBody>(Connector(address.clone()));
        let authority = address.authority().into();
        Self { address: Some(address), authority, ..Self::over(pool, config) }
    }

    /// The sentence for users when no connection could be made.
    pub(crate) fn unreachable(&self, error: &(dyn std::error::Error + 'static)) -> String {
        match &self.address {
            Some(Address::Tls(tls)) => match untrusted(error) {
                Some(why) => format!("{} does not prove itself by its certificate: {why}.", tls.address),
                None => format!("{} cannot be reached.", tls.address),
            },
            _ => "The API cannot be reached. Is `flames up` running?".to_owned(),
        }
    }

    /// Sends a request as it is.
    pub(crate) fn exchange(
        &self,
        request: Request<RequestBody>,
    ) -> BoxFuture<'static, std::result::Result<Response<ResponseBody>, BoxError>> {
        Box::pin(self.http.clone().oneshot(request))
    }

    pub(crate) fn address(&self) -> Option<&Address> {
        self.address.as_ref()
    }

    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// A call of `operation`.
    pub(crate) fn call(&self, operation: &'static str, method: Method, path: String) -> Call<'_> {
        Call {
            client: self,
            operation,
            method,
            path,
            headers: Vec::new(),
            body: body::empty(),
            wait: Duration::ZERO,
            unbounded: false,
        }
    }
}

/// One request that is being put together.
pub(crate) struct Call<'a> {
    client: &'a Client,
    operation: &'static str,
    method: Method,
    path: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: RequestBody,
    wait: Duration,
    unbounded: bool,
}

impl Call<'_> {
    pub(crate) fn query<T: Serialize>(mut self, query: &T) -> Result<Self> {
        let text = serde_urlencoded::to_string(query).map_err(|error| {
            Error::new(ErrorKind::InvalidInput, self.operation, "the query cannot be encoded")
                .with_source(error)
        })?;
        if !text.is_empty() {
            self.path = format!("{}?{text}", self.path);
        }
        Ok(self)
    }

    pub(crate) fn json<T: Serialize>(mut self, value: &T) -> Result<Self> {
        let bytes = flames_wire::to_json(value).map_err(|error| {
            Error::new(ErrorKind::InvalidInput, self.operation, "the request cannot be encoded")
                .with_source(error)
        })?;
        self.body = body::full(bytes);
        Ok(self.header(CONTENT_TYPE, HeaderValue::from_static("application/json")))
    }

    pub(crate) fn body(mut self, body: RequestBody, media_type: &'static str) -> Self {
        self.body = body;
        self.unbounded = true;
        self.header(CONTENT_TYPE, HeaderValue::from_static(media_type))
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn headers(mut self, headers: Vec<(HeaderName, HeaderValue)>) -> Self {
        self.headers.extend(headers);
        self
    }

    pub(crate) fn accept(self, media_type: &'static str) -> Self {
        self.header(ACCEPT, HeaderValue::from_static(media_type))
    }

    /// The server may wait this long before it answers.
    pub(crate) fn waits(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Sends it; answers the response when its status is a success.
    pub(crate) async fn send(self) -> Result<Response<ResponseBody>> {
        let operation = self.operation;
        let reads_only = matches!(self.method, Method::GET | Method::HEAD);
        let mut request = Request::builder()
            .method(self.method)
            .uri(format!("http://{}{}", self.client.authority, self.path))
            .body(self.body)
            .map_err(|error| {
                Error::invalid(operation, "path", "The request's path cannot be used.").with_source(error)
            })?;
        request.headers_mut().extend(self.headers);
        if let Some(token) = &self.client.config.token {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
                Error::invalid(operation, "token", "The token holds bytes that a header cannot.")
            })?;
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let lost = |message: &'static str| {
            let kind = if reads_only { ErrorKind::Unavailable } else { ErrorKind::OutcomeUnknown };
            Error::new(kind, operation, message)
        };
        let sending: BoxFuture<'static, _> = Box::pin(self.client.http.clone().oneshot(request));
        let limit = self.client.config.timeout.saturating_add(self.wait);
        let sent = if self.unbounded {
            Ok(sending.await)
        } else {
            self.client.config.clock.timeout(limit, sending).await
        };
        let response = match sent {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                let unsent = error
                    .downcast_ref::<hyper_util::client::legacy::Error>()
                    .is_some_and(hyper_util::client::legacy::Error::is_connect);
                let failed = if unsent {
                    Error::unavailable(operation, "no connection to the API")
                        .with_user_message(self.client.unreachable(&*error))
                } else {
                    lost("no answer from the API").with_user_message("The API's answer was lost.")
                };
                return Err(failed.with_source(error));
            }
            Err(_) => {
                return Err(lost("no answer in time").with_user_message("The API did not answer in time."));
            }
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        Err(body::read_problem(operation, parts.status, body).await)
    }

    /// Sends it and reads the answer as JSON.
    pub(crate) async fn read<T: DeserializeOwned>(self) -> Result<T> {
        let (operation, client, wait, unbounded) = (self.operation, self.client, self.wait, self.unbounded);
        let response = self.send().await?;
        let reading = body::read_json(operation, response.into_body());
        if unbounded {
            return reading.await;
        }
        let limit = client.config.timeout.saturating_add(wait);
        client
            .config
            .clock
            .timeout(limit, reading)
            .await
            .unwrap_or_else(|_| Err(Error::unavailable(operation, "the answer did not come whole in time")))
    }

    /// Sends it and wants no content back.
    pub(crate) async fn finish(self) -> Result<()> {
        self.send().await.map(|_| ())
    }
}

/// A path segment, percent-encoded.
pub(crate) fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
