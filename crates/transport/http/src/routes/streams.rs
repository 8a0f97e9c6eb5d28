//! Streams over WebSocket: exec, attach, ports.

use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, State};
use axum::response::Response;
use flames_clock::ClockExt;
use flames_error::{Error, Result};
use flames_service::{Caller, LinkChannel, LinkStream, ProcessSpec, VmRef, codes};
use flames_wire::stream::StreamFrame;
use flames_wire::{AttachQuery, ExecRequest};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::request::Parts;
use serde::Deserialize;

use super::processes::is_process_id;
use crate::access::By;
use crate::api::Api;
use crate::failure::{Answer, Failure, invalid, unreadable};
use crate::input::{PathOf, QueryOf, VmPath};

/// How long a client may take to say what it wants to run.
const FIRST_MESSAGE_WITHIN: Duration = Duration::from_secs(10);
/// How often a silent connection is tried.
const PING_EVERY: Duration = Duration::from_secs(20);
/// How long a client may be silent, pongs included.
const SILENCE: Duration = Duration::from_secs(70);
/// How long a last message may take.
const FAREWELL_WITHIN: Duration = Duration::from_secs(5);

/// Close codes of RFC 6455, section 7.4.1.
const CLOSE_NORMAL: u16 = 1000;
const CLOSE_AWAY: u16 = 1001;

/// A request that asks to become a WebSocket. Checked after what else can be wrong, so that an unknown VM is 404 first.
pub(crate) struct Upgrade(std::result::Result<WebSocketUpgrade, WebSocketUpgradeRejection>);

impl FromRequestParts<Api> for Upgrade {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Answer<Self> {
        Ok(Self(WebSocketUpgrade::from_request_parts(parts, api).await))
    }
}

impl Upgrade {
    fn ready(self) -> Answer<WebSocketUpgrade> {
        let upgrade = self.0.map_err(|_| {
            unreadable("This path speaks WebSocket (RFC 6455): send the headers that ask for the upgrade.")
        })?;
        Ok(upgrade
            .max_message_size(LinkChannel::MAX_FRAME)
            .max_frame_size(LinkChannel::MAX_FRAME)
            .write_buffer_size(0))
    }
}

/// Start a process in the guest (WebSocket)
///
/// The first message is text: an `ExecRequest` as JSON. From then on each binary message, in both directions, is one frame of the stream
/// protocol (the table stands in `crates/wire/src/stream/mod.rs`): a byte that says what it is, then its payload.
#[utoipa::path(get, path = "/v1/vms/{vm}/exec", tag = "streams", responses(
    (status = 101, description = "The connection is a WebSocket."),
))]
pub(crate) async fn exec(
    State(api): State<Api>,
    By(caller): By,
    VmPath(vm): VmPath,
    upgrade: Upgrade,
) -> Answer<Response> {
    api.service.get_vm(&caller, &vm).await?;
    let upgrade = upgrade.ready()?;
    let place = api.stream_permit()?;
    let state = api.clone();
    Ok(upgrade.on_upgrade(move |socket| {
        let tasks = state.tasks.clone();
        tasks.track_future(async move {
            let _place = place;
            let (sink, mut stream) = socket.split();
            match begin_exec(&state, &caller, &vm, &mut stream).await {
                Ok(channel) => relay(&state, sink, stream, channel).await,
                Err(error) => refuse(&state, sink, &error).await,
            }
        })
    }))
}

async fn begin_exec(
    api: &Api,
    caller: &Caller,
    vm: &VmRef,
    stream: &mut SplitStream<WebSocket>,
) -> Result<LinkChannel> {
    let wrong =
        |sentence: String| Error::invalid("http.exec", "request", sentence).with_code(codes::INVALID_REQUEST);
    let first = api.service.clock().timeout(FIRST_MESSAGE_WITHIN, async {
        loop {
            match stream.next().await {
                Some(Ok(Message::Text(text))) => return Some(text),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => return None,
            }
        }
    });
    let text = first.await.ok().flatten().ok_or_else(|| {
        wrong("The first message must be text, an ExecRequest as JSON, within 10 seconds.".to_owned())
    })?;
    let request: ExecRequest = serde_json::from_str(text.as_str())
        .map_err(|error| wrong(format!("The ExecRequest cannot be read: {error}.")))?;
    api.service.open_stream(caller, vm, LinkStream::Exec(process(request)?)).await
}

fn process(request: ExecRequest) -> Result<ProcessSpec> {
    let refuse = |field: &str, sentence: &str| {
        Err(Error::invalid("http.exec", field, sentence).with_code(codes::INVALID_FIELD))
    };
    if request.command.first().is_none_or(String::is_empty) {
        return refuse("command", "A command names a program.");
    }
    let variables = request.env.iter().flat_map(|(name, value)| [name, value]);
    let places = request.working_directory.iter().chain(&request.user);
    if request.command.iter().chain(variables).chain(places).any(|text| text.contains('\0')) {
        return refuse("request", "The texts must not contain a NUL character.");
    }
    if request.env.keys().any(|name| name.is_empty() || name.contains('=')) {
        return refuse("env", "A variable's name is not empty and has no `=`.");
    }
    Ok(ProcessSpec {
        command: request.command,
        env: request.env.into_iter().collect(),
        working_directory: request.working_directory,
        user: request.user,
        terminal: request.terminal.map(|size| (size.rows, size.columns)),
        stdin: request.stdin,
    })
}

/// Attach to a process of the guest (WebSocket)
///
/// Its output from the given offset on, as far as it is kept, and then as it comes; its input as sent. Each binary message is one frame.
#[utoipa::path(get, path = "/v1/vms/{vm}/attach", tag = "streams", params(AttachQuery), responses(
    (status = 101, description = "The connection is a WebSocket."),
))]
pub(crate) async fn attach(
    State(api): State<Api>,
    By(caller): By,
    VmPath(vm): VmPath,
    QueryOf(query): QueryOf<AttachQuery>,
    upgrade: Upgrade,
) -> Answer<Response> {
    let process = query.process.unwrap_or_else(|| "main".to_owned());
    if !is_process_id(&process) {
        return Err(invalid("process", "A process id is 1 to 64 of letters, digits, `-` and `_`."));
    }
    open_and_relay(&api, &caller, &vm, upgrade, LinkStream::Attach { process, from: query.from }).await
}

/// The port of a path.
#[derive(Debug, Deserialize)]
pub(crate) struct PortPath {
    port: u16,
}

/// Connect to a TCP port of the guest (WebSocket)
///
/// `Connected` comes once the connection stands. `Data` frames are its bytes; `End` closes one direction.
#[utoipa::path(get, path = "/v1/vms/{vm}/ports/{port}", tag = "streams", responses(
    (status = 101, description = "The connection is a WebSocket."),
))]
pub(crate) async fn connect_port(
    State(api): State<Api>,
    By(caller): By,
    VmPath(vm): VmPath,
    PathOf(path): PathOf<PortPath>,
    upgrade: Upgrade,
) -> Answer<Response> {
    if path.port == 0 {
        return Err(invalid("port", "A port is 1 to 65535."));
    }
    open_and_relay(&api, &caller, &vm, upgrade, LinkStream::Tcp(path.port)).await
}

/// Opens the stream first, so that what is wrong with it is told by the status, and then relays.
async fn open_and_relay(
    api: &Api,
    caller: &Caller,
    vm: &VmRef,
    upgrade: Upgrade,
    stream: LinkStream,
) -> Answer<Response> {
    api.service.get_vm(caller, vm).await?;
    let upgrade = upgrade.ready()?;
    let place = api.stream_permit()?;
    let channel = api.service.open_stream(caller, vm, stream).await?;
    let state = api.clone();
    Ok(upgrade.on_upgrade(move |socket| {
        let tasks = state.tasks.clone();
        tasks.track_future(async move {
            let _place = place;
            let (sink, stream) = socket.split();
            relay(&state, sink, stream, channel).await;
        })
    }))
}

/// Tells of an error and closes.
async fn refuse(api: &Api, mut sink: SplitSink<WebSocket, Message>, error: &Error) {
    tracing::debug!(?error, "a stream was refused");
    let farewell = async {
        if let Ok(frame) = StreamFrame::error(error).encode() {
            sink.send(Message::Binary(frame)).await?;
        }
        close(&mut sink, CLOSE_NORMAL).await
    };
    // A client that is gone needs no farewell.
    if let Ok(Err(error)) = api.service.clock().timeout(FAREWELL_WITHIN, farewell).await {
        tracing::debug!(%error, "a refused client was gone already");
    }
}

async fn close(sink: &mut SplitSink<WebSocket, Message>, code: u16) -> std::result::Result<(), axum::Error> {
    sink.send(Message::Close(Some(CloseFrame { code, reason: "".into() }))).await?;
    sink.close().await
}

/// Passes frames on, unread, until either side closes. Each direction waits for its own receiver only.
async fn relay(
    api: &Api,
    mut sink: SplitSink<WebSocket, Message>,
    mut stream: SplitStream<WebSocket>,
    channel: LinkChannel,
) {
    let clock = api.service.clock().clone();
    let LinkChannel { sender, mut receiver } = channel;
    let inward = async {
        loop {
            match clock.timeout(SILENCE, stream.next()).await {
                Ok(Some(Ok(Message::Binary(frame)))) => {
                    if sender.send(frame).await.is_err() {
                        // The guest's side wants nothing more; it may still have something to say.
                        std::future::pending::<()>().await;
                    }
                }
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
                Ok(Some(Ok(Message::Text(_) | Message::Close(_)) | Err(_)) | None) | Err(_) => return,
            }
        }
    };
    let outward = async {
        loop {
            let sent = match clock.timeout(PING_EVERY, receiver.recv()).await {
                Ok(Some(frame)) => sink.send(Message::Binary(frame)).await,
                Ok(None) => return close(&mut sink, CLOSE_NORMAL).await,
                Err(_) => sink.send(Message::Ping(bytes::Bytes::new())).await,
            };
            sent?;
        }
    };
    let stopped = tokio::select! {
        biased;
        () = api.stop.cancelled() => true,
        _ = outward => false,
        () = inward => false,
    };
    if stopped {
        // Whether the client hears it or is gone makes no difference any more.
        let _ = clock.timeout(FAREWELL_WITHIN, close(&mut sink, CLOSE_AWAY)).await;
    }
}
