//! Connections that become links.

use std::fmt::Debug;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use flames_error::{Error, ErrorKind, Result};
use flames_model::ControllerId;
use flames_service::codes;
use flames_wire::host::LINK_PROTOCOL;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use crate::Host;
use crate::answer::Failure;
use crate::input::Session;
use crate::routes::in_time;

const OPERATION: &str = "host.link";

/// A connection that was upgraded.
pub type LinkIo = TokioIo<Upgraded>;

/// Takes links.
pub trait LinkAcceptor: Debug + Send + Sync + 'static {
    /// Takes the link of a controller that has proved itself. `connection` is there once the answer to the controller is sent, or never
    /// comes; whoever takes it sets a limit to that wait. Must not block.
    fn accept(&self, controller: ControllerId, connection: BoxFuture<'static, Result<LinkIo>>);
}

fn refuse(sentence: &'static str) -> Failure {
    let error = Error::new(ErrorKind::InvalidInput, OPERATION, sentence);
    Failure(error.with_code(codes::INVALID_REQUEST).with_user_message(sentence))
}

fn names(headers: &HeaderMap, name: http::HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(word))
}

pub(crate) async fn link(
    State(host): State<Host>,
    Session(session): Session,
    mut request: Request,
) -> std::result::Result<Response, Failure> {
    in_time(&host, host.service.confirm_session(&session)).await?;
    let links = host.config.links.as_ref().ok_or_else(|| refuse("This server takes no links."))?;
    if !names(request.headers(), UPGRADE, LINK_PROTOCOL) || !names(request.headers(), CONNECTION, "upgrade") {
        return Err(refuse("A link is asked for with `Connection: upgrade` and `Upgrade: flames-link`."));
    }
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let upgrade = upgrade.ok_or_else(|| refuse("This connection cannot become a link."))?;
    let connection = async move {
        let upgraded = upgrade.await.map_err(|error| {
            Error::unavailable(OPERATION, "the connection did not become a link").with_source(error)
        })?;
        Ok(TokioIo::new(upgraded))
    };
    links.accept(session.controller, connection.boxed());
    let headers = [
        (CONNECTION, HeaderValue::from_static("upgrade")),
        (UPGRADE, HeaderValue::from_static(LINK_PROTOCOL)),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}
