//! The controller's end of a link.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use flames_clock::{Clock, ClockExt};
use flames_error::{Error, ErrorKind, Result};
use flames_service::LinkChannel;
use flames_wire::Problem;
use flames_wire::host::{LinkAnswer, LinkOpen};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use yamux::Mode;

use super::mux::{self, MuxStream};
use super::pump::Messages;
use super::{OPEN_WITHIN, PING_EVERY};
use crate::in_process::LinkHandler;

const OPERATION: &str = "links.serve";

/// Serves the streams that a server opens over `io`, until the link ends. Dropping it ends the link and all of its streams.
///
/// Errors: `Unavailable`, always: a link has no end of its own.
pub async fn serve_link<S>(io: S, handler: Arc<dyn LinkHandler>, clock: Arc<dyn Clock>) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut connection, heard) = mux::over(io, Mode::Server, Arc::clone(&clock));
    let mut streams = JoinSet::new();
    loop {
        let inbound = poll_fn(|context| connection.poll_next_inbound(context));
        tokio::select! {
            inbound = inbound => match inbound {
                Some(Ok(stream)) => {
                    streams.spawn(serve(mux::stream(stream), Arc::clone(&handler), Arc::clone(&clock)));
                }
                Some(Err(error)) => return Err(Error::unavailable(OPERATION, "the link broke").with_source(error)),
                None => return Err(Error::unavailable(OPERATION, "the server ended the link")),
            },
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
            // The connection is polled anew, which sends a ping when one is due.
            () = clock.sleep(PING_EVERY) => {
                if heard.is_silent() {
                    return Err(Error::unavailable(OPERATION, "the server fell silent"));
                }
            }
        }
    }
}

/// One stream, from its first message to its end.
async fn serve(stream: MuxStream, handler: Arc<dyn LinkHandler>, clock: Arc<dyn Clock>) {
    let mut messages = Messages::new(stream);
    let Ok(Ok(first)) = clock.timeout(OPEN_WITHIN, messages.next()).await else { return };
    let (ours, theirs) = LinkChannel::pair();
    let opened = match serde_json::from_slice::<LinkOpen>(&first) {
        Ok(open) => handler.open(open.incarnation, open.request, theirs).await,
        Err(error) => {
            Err(Error::new(ErrorKind::InvalidInput, OPERATION, "no such stream is known").with_source(error))
        }
    };
    let answer = match &opened {
        Ok(()) => LinkAnswer::Accepted,
        Err(error) => LinkAnswer::Refused(Box::new(Problem::of(error))),
    };
    let Ok(answer) = serde_json::to_vec(&answer) else { return };
    if let Ok(Ok(())) = clock.timeout(OPEN_WITHIN, messages.send(Bytes::from(answer))).await
        && opened.is_ok()
    {
        messages.carry(&mut Some(ours.sender), ours.receiver).await;
    }
}
