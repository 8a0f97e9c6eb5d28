//! What the proxy answers itself: short plain pages that say which problem it is, and nothing of the inside.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

/// The header that names the problem, so that a program need not read the page.
pub(crate) const PROBLEM: HeaderName = HeaderName::from_static("flames-problem");

/// Why the proxy answers itself. The name of each is in the header `flames-problem` and in the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Problem {
    MalformedRequest,
    MethodNotServed,
    UnknownHost,
    RequestTimeout,
    BodyTooLarge,
    UriTooLong,
    ExpectationFailed,
    NotImplemented,
    TargetUnreachable,
    TargetBroke,
    TargetBusy,
    TooManyTunnels,
    TooManyWaiting,
    WakeFailed,
    WakeTimeout,
    TargetRemoved,
    ConnectTimeout,
    ResponseTimeout,
}

impl Problem {
    pub(crate) fn name(self) -> &'static str {
        self.parts().1
    }

    fn parts(self) -> (StatusCode, &'static str, &'static str) {
        use Problem as P;
        use StatusCode as S;
        match self {
            P::MalformedRequest => (
                S::BAD_REQUEST,
                "malformed_request",
                "The request is not valid HTTP, or can be read in two ways.",
            ),
            P::MethodNotServed => {
                (S::METHOD_NOT_ALLOWED, "method_not_served", "This method is not served here.")
            }
            P::UnknownHost => (S::NOT_FOUND, "unknown_host", "Nothing is served under this host name."),
            P::RequestTimeout => {
                (S::REQUEST_TIMEOUT, "request_timeout", "The request's body stopped arriving.")
            }
            P::BodyTooLarge => {
                (S::PAYLOAD_TOO_LARGE, "body_too_large", "The request's body is larger than allowed.")
            }
            P::UriTooLong => (S::URI_TOO_LONG, "uri_too_long", "The address is longer than allowed."),
            P::ExpectationFailed => {
                (S::EXPECTATION_FAILED, "expectation_failed", "Only `100-continue` can be expected.")
            }
            P::NotImplemented => {
                (S::NOT_IMPLEMENTED, "not_implemented", "This transfer coding is not understood.")
            }
            P::TargetUnreachable => (
                S::BAD_GATEWAY,
                "target_unreachable",
                "The machine behind this name does not accept connections on this port.",
            ),
            P::TargetBroke => (
                S::BAD_GATEWAY,
                "target_broke",
                "The machine behind this name did not answer with a valid response.",
            ),
            P::TargetBusy => (
                S::SERVICE_UNAVAILABLE,
                "target_busy",
                "The machine behind this name has as many requests as it may have.",
            ),
            P::TooManyTunnels => (
                S::SERVICE_UNAVAILABLE,
                "too_many_tunnels",
                "There are as many upgraded connections as there may be.",
            ),
            P::TooManyWaiting => (
                S::SERVICE_UNAVAILABLE,
                "too_many_waiting",
                "The machine behind this name is starting, and as many requests wait for it as may.",
            ),
            P::WakeFailed => (
                S::SERVICE_UNAVAILABLE,
                "wake_failed",
                "The machine behind this name could not be started now.",
            ),
            P::WakeTimeout => {
                (S::SERVICE_UNAVAILABLE, "wake_timeout", "The machine behind this name is still starting.")
            }
            P::TargetRemoved => {
                (S::SERVICE_UNAVAILABLE, "target_removed", "The machine behind this name was taken away.")
            }
            P::ConnectTimeout => (
                S::GATEWAY_TIMEOUT,
                "connect_timeout",
                "The machine behind this name did not accept the connection in time.",
            ),
            P::ResponseTimeout => (
                S::GATEWAY_TIMEOUT,
                "response_timeout",
                "The machine behind this name did not answer in time.",
            ),
        }
    }

    /// When a client should try again, for problems that pass.
    fn retry_after(self) -> Option<u64> {
        matches!(self.parts().0, StatusCode::SERVICE_UNAVAILABLE).then_some(1)
    }

    /// Whether what follows on an HTTP/1 connection may not be trusted, so that it is closed.
    fn closes(self) -> bool {
        use Problem as P;
        matches!(
            self,
            P::MalformedRequest
                | P::NotImplemented
                | P::UriTooLong
                | P::BodyTooLarge
                | P::RequestTimeout
                | P::ExpectationFailed
        )
    }

    /// The page. `may_close`: whether the connection is HTTP/1.
    pub(crate) fn page(self, after: Option<Duration>, may_close: bool) -> Response<Bytes> {
        let (status, name, sentence) = self.parts();
        let text = format!("{status}\n{sentence}\n");
        let mut response = Response::new(Bytes::from(text));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(PROBLEM, HeaderValue::from_static(name));
        // Whole seconds (RFC 9110, section 10.2.3), never 0 where there is something to wait for.
        let after = after.map(|span| span.as_secs().max(1)).or(self.retry_after());
        if let (Some(seconds), true) = (after, self.retry_after().is_some()) {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self == Problem::MethodNotServed {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        }
        if may_close && self.closes() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// What a connection above the limit gets before it is closed.
pub(crate) const TOO_MANY_CONNECTIONS: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n\
cache-control: no-store\r\nflames-problem: too_many_connections\r\nretry-after: 1\r\ncontent-length: 65\r\nconnection: close\r\n\r\n\
503 Service Unavailable\nThere are as many connections as may be.\n";
