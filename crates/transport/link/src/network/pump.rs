//! Frames between a channel and a stream.

use std::io;

use bytes::Bytes;
use flames_service::LinkChannel;
use flames_wire::host::{MAX_LINK_FRAME, MAX_LINK_OPEN};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

const _: () = assert!(LinkChannel::MAX_FRAME == MAX_LINK_FRAME);

/// A stream as messages in both directions.
pub(super) struct Messages<S> {
    reader: FramedRead<ReadHalf<S>, LengthDelimitedCodec>,
    writer: FramedWrite<WriteHalf<S>, LengthDelimitedCodec>,
}

/// How what came from the other side ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inward {
    /// The other side said that nothing more comes.
    Ended,
    /// Nobody here wants it any more.
    Unwanted,
    /// It broke off.
    Cut,
}

fn codec(longest: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().length_field_length(4).max_frame_length(longest).new_codec()
}

impl<S: AsyncRead + AsyncWrite> Messages<S> {
    /// For the messages that open a stream.
    pub(super) fn new(stream: S) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader: FramedRead::new(reader, codec(MAX_LINK_OPEN)),
            writer: FramedWrite::new(writer, codec(MAX_LINK_OPEN)),
        }
    }

    /// The next message. Cancel-safe.
    pub(super) async fn next(&mut self) -> io::Result<Bytes> {
        match self.reader.next().await {
            Some(message) => message.map(Into::into),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Sends a message. Not cancel-safe.
    pub(super) async fn send(&mut self, message: Bytes) -> io::Result<()> {
        self.writer.send(message).await
    }

    /// Carries frames both ways until both directions have ended; answers how what came from the other side did. `to` and `from` are
    /// given up as soon as their direction has ended, so that whoever holds the other end of the channel sees each half end for itself.
    pub(super) async fn carry(
        self,
        to: &mut Option<mpsc::Sender<Bytes>>,
        mut from: mpsc::Receiver<Bytes>,
    ) -> Inward {
        let Self { mut reader, mut writer } = self;
        reader.decoder_mut().set_max_frame_length(MAX_LINK_FRAME);
        writer.encoder_mut().set_max_frame_length(MAX_LINK_FRAME);
        let outward = async move {
            while let Some(frame) = from.recv().await {
                if frame.is_empty() {
                    // It would end the direction. No frame is empty.
                    continue;
                }
                writer.feed(frame).await?;
                while let Ok(frame) = from.try_recv() {
                    writer.feed(frame).await?;
                }
                SinkExt::<Bytes>::flush(&mut writer).await?;
            }
            writer.send(Bytes::new()).await?;
            SinkExt::<Bytes>::close(&mut writer).await
        };
        let inward = async {
            let ended = match to {
                Some(to) => receive(&mut reader, to).await,
                None => Inward::Unwanted,
            };
            if ended == Inward::Ended {
                *to = None;
            }
            ended
        };
        let (mut outward, mut inward) = (std::pin::pin!(outward), std::pin::pin!(inward));
        tokio::select! {
            // What broke on the way out shows on the way in too.
            sent = &mut outward => {
                if let Err(error) = sent {
                    tracing::debug!(%error, "a stream broke on its way out");
                }
                inward.await
            }
            ended = &mut inward => {
                if ended != Inward::Cut
                    && let Err(error) = outward.await
                {
                    tracing::debug!(%error, "a stream broke on its way out");
                }
                ended
            }
        }
    }
}

async fn receive<R: AsyncRead + Unpin>(
    reader: &mut FramedRead<R, LengthDelimitedCodec>,
    to: &mpsc::Sender<Bytes>,
) -> Inward {
    loop {
        let frame = tokio::select! {
            biased;
            () = to.closed() => return Inward::Unwanted,
            frame = reader.next() => frame,
        };
        match frame {
            Some(Ok(frame)) if frame.is_empty() => return Inward::Ended,
            Some(Ok(frame)) => {
                if to.send(frame.freeze()).await.is_err() {
                    return Inward::Unwanted;
                }
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "a stream broke on its way in");
                return Inward::Cut;
            }
            None => return Inward::Cut,
        }
    }
}
