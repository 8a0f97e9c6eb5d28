//! Streams to a guest over WebSocket (RFC 6455): exec, attach, port-forward.

use bytes::BytesMut;
use flames_clock::ClockExt;
use flames_error::{Error, ErrorKind, Result};
use flames_wire::stream::{MAX_CONTENT, MAX_FRAME, StreamFrame};
use flames_wire::{AttachQuery, ExecRequest};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::Request;
use http::header::{AUTHORIZATION, CONNECTION, HeaderValue, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use crate::body;
use crate::client::{Client, segment};

const OPERATION: &str = "client.stream";

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A stream of frames to and from a guest. Dropping it closes the connection.
#[derive(Debug)]
pub struct FrameStream {
    /// The half towards the guest.
    pub sender: FrameSender,
    /// The half from the guest.
    pub receiver: FrameReceiver,
}

/// Sends frames towards the guest.
#[derive(Debug)]
pub struct FrameSender {
    sink: SplitSink<Socket, Message>,
}

/// Receives frames from the guest.
#[derive(Debug)]
pub struct FrameReceiver {
    stream: SplitStream<Socket>,
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::unavailable(OPERATION, "the connection to the API broke").with_source(error)
}

impl FrameSender {
    /// Sends a frame; waits while the other side is busy. Not cancel-safe.
    ///
    /// Errors: `InvalidInput` when it is too long; `Unavailable` when the connection is gone.
    pub async fn send(&mut self, frame: &StreamFrame) -> Result<()> {
        self.sink.send(Message::binary(frame.encode()?)).await.map_err(broken)
    }

    /// Says that nothing more comes and closes the connection.
    pub async fn close(&mut self) -> Result<()> {
        self.sink.close().await.map_err(broken)
    }
}

impl FrameReceiver {
    /// The next frame; none when the stream was closed. An [`StreamFrame::Error`] comes as the error that it tells. Cancel-safe.
    ///
    /// Errors: what the other side tells; `Unavailable` when the connection broke; `Corrupt`.
    pub async fn next(&mut self) -> Result<Option<StreamFrame>> {
        loop {
            match self.stream.next().await {
                None | Some(Ok(Message::Close(_))) => return Ok(None),
                Some(Err(error)) => return Err(broken(error)),
                Some(Ok(Message::Binary(bytes))) => {
                    return match StreamFrame::decode(bytes)? {
                        StreamFrame::Error(error) => Err(error.into_error(OPERATION)),
                        frame => Ok(Some(frame)),
                    };
                }
                Some(Ok(_)) => {}
            }
        }
    }
}

impl FrameStream {
    /// Joins the stream's data to a byte stream in both directions until both have ended: what a port-forward does with a connection.
    ///
    /// Errors: what the other side tells; `Unavailable` when either connection broke.
    pub async fn pipe<T: AsyncRead + AsyncWrite + Send>(self, io: T) -> Result<()> {
        let (mut reader, mut writer) = tokio::io::split(io);
        let Self { mut sender, mut receiver } = self;
        let outward = async {
            let mut buffer = BytesMut::with_capacity(MAX_CONTENT.min(32 * 1024));
            loop {
                let read = reader.read_buf(&mut buffer).await.map_err(broken)?;
                if read == 0 {
                    return sender.send(&StreamFrame::End).await;
                }
                sender.send(&StreamFrame::Data(buffer.split().freeze())).await?;
                buffer.reserve(MAX_CONTENT.min(32 * 1024));
            }
        };
        let inward = async {
            while let Some(frame) = receiver.next().await? {
                match frame {
                    StreamFrame::Connected => {}
                    StreamFrame::Data(data) => writer.write_all(&data).await.map_err(broken)?,
                    StreamFrame::End => break,
                    _ => {
                        return Err(Error::new(
                            ErrorKind::Corrupt,
                            OPERATION,
                            "a frame that does not belong here",
                        ));
                    }
                }
            }
            writer.shutdown().await.map_err(broken)
        };
        tokio::try_join!(outward, inward).map(|_| ())
    }
}

impl Client {
    /// Starts a process in a guest and attaches to it. Send [`StreamFrame::Stdin`] in pieces of at most [`MAX_CONTENT`].
    ///
    /// Errors: `NotFound`; `Conflict` when the VM does not run; `NotSupported` without a socket; `Unavailable`. What the guest says
    /// against the process itself comes as the first frame's error.
    pub async fn exec(&self, vm: &str, request: &ExecRequest) -> Result<FrameStream> {
        let mut stream = self.open(format!("/v1/vms/{}/exec", segment(vm))).await?;
        let text = serde_json::to_string(request).map_err(|error| {
            Error::new(ErrorKind::InvalidInput, OPERATION, "the request cannot be encoded").with_source(error)
        })?;
        stream.sender.sink.send(Message::text(text)).await.map_err(broken)?;
        Ok(stream)
    }

    /// Attaches to a process of a guest, replaying its output from an offset. Errors: as [`Client::exec`].
    pub async fn attach(&self, vm: &str, query: &AttachQuery) -> Result<FrameStream> {
        let query = serde_urlencoded::to_string(query).map_err(broken)?;
        self.open(format!("/v1/vms/{}/attach?{query}", segment(vm))).await
    }

    /// Connects to a TCP port inside a guest. Errors: as [`Client::exec`].
    pub async fn connect_port(&self, vm: &str, port: u16) -> Result<FrameStream> {
        self.open(format!("/v1/vms/{}/ports/{port}", segment(vm))).await
    }

    async fn open(&self, path: String) -> Result<FrameStream> {
        let clock = self.config.clock.clone();
        clock.timeout(self.config.timeout, self.websocket(path)).await.unwrap_or_else(|_| {
            Err(Error::unavailable(OPERATION, "no answer in time")
                .with_user_message("The API did not answer in time."))
        })
    }

    async fn websocket(&self, path: String) -> Result<FrameStream> {
        let key = generate_key();
        let mut request = Request::get(path)
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", &key)
            .body(body::empty())
            .map_err(broken)?;
        if let Some(token) = &self.config.token {
            let value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(broken)?;
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let (response, upgraded) = self.upgrade(OPERATION, request).await?;
        let accepted = response.headers().get("sec-websocket-accept").map(HeaderValue::as_bytes);
        if accepted != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
            return Err(Error::new(ErrorKind::Corrupt, OPERATION, "the server did not accept as it must"));
        }
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_FRAME))
            .max_frame_size(Some(MAX_FRAME))
            .write_buffer_size(0);
        let socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config)).await;
        let (sink, stream) = socket.split();
        Ok(FrameStream { sender: FrameSender { sink }, receiver: FrameReceiver { stream } })
    }
}
