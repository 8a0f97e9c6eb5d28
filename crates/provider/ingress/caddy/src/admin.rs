//! Requests to Caddy's admin API (<https://caddyserver.com/docs/api>), each over a connection of its own: Caddy closes it after a change.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flames_error::{Error, ErrorKind, Result};
use http::header::{CONTENT_TYPE, ETAG, HOST, IF_MATCH};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

/// The most bytes of an answer: a configuration of about 100,000 routes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// How long Caddy is left alone before it is asked again; longer each time.
pub(crate) const AGAIN_AFTER: Duration = Duration::from_millis(10);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Where the admin API is: `http://HOST:PORT` or `unix:///PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// A host and port.
    Tcp(String),
    /// A unix socket.
    Unix(PathBuf),
}

impl FromStr for AdminAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = match text.split_once("://") {
            Some(("http", address)) => {
                let address = address.trim_end_matches('/');
                let has_port = address.rsplit_once(':').is_some_and(|(host, port)| {
                    !host.is_empty() && !address.contains('/') && port.parse::<u16>().is_ok()
                });
                has_port.then(|| Self::Tcp(address.to_owned()))
            }
            Some(("unix", path)) => path.starts_with('/').then(|| Self::Unix(path.into())),
            _ => None,
        };
        parsed.ok_or_else(|| {
            Error::invalid(
                "ingress.start",
                "admin",
                "Caddy's admin API is at `http://HOST:PORT` or `unix:///PATH`.",
            )
        })
    }
}

impl Display for AdminAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// Names the path and what stands there; for `If-Match`.
    pub(crate) tag: Option<String>,
    pub(crate) body: Bytes,
}

/// The admin API.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) address: AdminAddress,
    pub(crate) deadline: Duration,
}

impl Admin {
    pub(crate) async fn read(&self, operation: &'static str, path: &str) -> Result<Answer> {
        self.call(operation, Method::GET, path, None, Bytes::new()).await
    }

    /// Makes a change. `OutcomeUnknown` when it was sent and no answer came.
    pub(crate) async fn change(
        &self,
        operation: &'static str,
        method: Method,
        path: &str,
        tag: Option<&str>,
        body: Vec<u8>,
    ) -> Result<Answer> {
        self.call(operation, method, path, tag, body.into()).await
    }

    /// One request. Caddy opens its admin API anew after each change, and whoever is connecting at that moment is cut off: what cannot
    /// have changed anything is asked again.
    async fn call(
        &self,
        operation: &'static str,
        method: Method,
        path: &str,
        tag: Option<&str>,
        body: Bytes,
    ) -> Result<Answer> {
        const ATTEMPTS: u32 = 6;
        let may_have_changed = AtomicBool::new(false);
        let attempts = async {
            let mut attempt = 1;
            loop {
                let request = self.request(operation, &method, path, tag, body.clone())?;
                let sent = || may_have_changed.store(method != Method::GET, Ordering::Relaxed);
                match self.attempt(request, sent).await {
                    Ok(answer) => return Ok(answer),
                    Err(failure) if attempt == ATTEMPTS || may_have_changed.load(Ordering::Relaxed) => {
                        return Err(self.silent(operation, &may_have_changed, failure));
                    }
                    Err(_) => {}
                }
                sleep(AGAIN_AFTER * attempt).await;
                attempt += 1;
            }
        };
        timeout(self.deadline, attempts)
            .await
            .unwrap_or_else(|_| Err(self.silent(operation, &may_have_changed, "it took too long".into())))
    }

    fn request(
        &self,
        operation: &'static str,
        method: &Method,
        path: &str,
        tag: Option<&str>,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>> {
        let host = match &self.address {
            AdminAddress::Tcp(address) => address.as_str(),
            AdminAddress::Unix(_) => "localhost",
        };
        let mut request = Request::builder().method(method).uri(path).header(HOST, host);
        if method != Method::GET {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(tag) = tag {
            request = request.header(IF_MATCH, tag);
        }
        request
            .body(Full::new(body))
            .map_err(|error| Error::internal(operation, "a request cannot be made").with_source(error))
    }

    async fn attempt(
        &self,
        request: Request<Full<Bytes>>,
        sent: impl Fn(),
    ) -> std::result::Result<Answer, Failure> {
        match &self.address {
            AdminAddress::Tcp(address) => exchange(TcpStream::connect(address).await?, request, sent).await,
            AdminAddress::Unix(path) => exchange(UnixStream::connect(path).await?, request, sent).await,
        }
    }

    fn silent(&self, operation: &'static str, may_have_changed: &AtomicBool, failure: Failure) -> Error {
        let kind = if may_have_changed.load(Ordering::Relaxed) {
            ErrorKind::OutcomeUnknown
        } else {
            ErrorKind::Unavailable
        };
        Error::new(kind, operation, "Caddy's admin API does not answer")
            .with_context("admin", &self.address)
            .with_source(failure)
    }
}

async fn exchange<S>(
    stream: S,
    request: Request<Full<Bytes>>,
    sent: impl Fn(),
) -> std::result::Result<Answer, Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answer = async move {
        sent();
        let response = sender.send_request(request).await?;
        let status = response.status();
        let tag = response.headers().get(ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await?.to_bytes();
        Ok(Answer { status, tag, body })
    };
    // The connection ends when the sender is gone, with the answer.
    let (answer, _) = futures::future::join(answer, connection).await;
    answer
}
