//! Connections that become something else than HTTP.

use flames_error::{Error, ErrorKind, Result};
use http::header::HOST;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;

use crate::body::{self, RequestBody};
use crate::client::Client;

impl Client {
    /// Sends a request that asks for another protocol over a connection of its own; answers the server's consent and the connection. The
    /// caller sets a limit to it.
    ///
    /// Errors: what the server told when it did not consent; `NotSupported` without a socket; `Unavailable`.
    pub(crate) async fn upgrade(
        &self,
        operation: &'static str,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Upgraded)> {
        let broken = |error: hyper::Error| {
            Error::unavailable(operation, "the connection to the API broke").with_source(error)
        };
        let Some(address) = self.address() else {
            return Err(Error::new(ErrorKind::NotSupported, operation, "streams need a socket"));
        };
        let socket = address.dial().await.map_err(|error| {
            Error::unavailable(operation, "no connection to the API")
                .with_user_message(self.unreachable(&error))
                .with_source(error)
        })?;
        let (mut sending, connection) =
            hyper::client::conn::http1::handshake(socket).await.map_err(broken)?;
        let host = HeaderValue::from_str(self.authority()).map_err(|error| {
            Error::internal(operation, "an address is no header value").with_source(error)
        })?;
        request.headers_mut().insert(HOST, host);
        let mut connection = std::pin::pin!(connection.with_upgrades());
        // The connection is driven here, in the caller's own task, until it has become the other protocol's.
        let exchange = async {
            let mut response = sending.send_request(request).await.map_err(broken)?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                let (parts, content) = response.into_parts();
                let content = content.map_err(tower::BoxError::from).boxed_unsync();
                return Err(body::read_problem(operation, parts.status, content).await);
            }
            let upgraded = hyper::upgrade::on(&mut response).await.map_err(broken)?;
            Ok((response, upgraded))
        };
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            biased;
            outcome = &mut exchange => outcome,
            ended = &mut connection => {
                ended.map_err(broken)?;
                exchange.await
            }
        }
    }
}
