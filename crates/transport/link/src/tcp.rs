//! A TCP connection into a guest, as a byte stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flames_error::{Error, ErrorKind, Result};
use flames_service::LinkChannel;
use flames_wire::stream::StreamFrame;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

/// The bytes of one frame, at most: as many as the other side carries at once.
const PIECE: usize = 64 * 1024;

/// A stream opened with [`LinkStream::Tcp`](flames_service::LinkStream::Tcp), as bytes. What is written waits for the other side (as many
/// frames as the channel holds are on their way at most). Dropping it cuts the connection off.
#[derive(Debug)]
pub struct TcpOverLink {
    sender: PollSender<Bytes>,
    receiver: mpsc::Receiver<Bytes>,
    /// What was received and not read yet.
    received: Bytes,
    read_ended: bool,
}

impl TcpOverLink {
    /// Waits until the connection stands that a channel was opened for. The caller sets the deadline; giving up cuts the connection off.
    ///
    /// Errors: as the host tells, `Unavailable` when nothing listens there; `Unavailable` when the channel ends.
    pub async fn connect(mut channel: LinkChannel) -> Result<Self> {
        const OPERATION: &str = "link.tcp";
        let ended = || Error::unavailable(OPERATION, "the stream ended before the connection stood");
        match StreamFrame::decode(channel.receiver.recv().await.ok_or_else(ended)?)? {
            StreamFrame::Connected => Ok(Self {
                sender: PollSender::new(channel.sender),
                receiver: channel.receiver,
                received: Bytes::new(),
                read_ended: false,
            }),
            StreamFrame::Error(error) => Err(error.into_error(OPERATION)),
            _ => Err(Error::new(ErrorKind::Corrupt, OPERATION, "a frame before the connection stood")),
        }
    }

    fn send(&mut self, frame: &StreamFrame) -> io::Result<()> {
        let encoded = frame.encode().map_err(io::Error::other)?;
        self.sender.send_item(encoded).map_err(|_| gone())
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the connection into the guest is gone")
}

impl AsyncRead for TcpOverLink {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.received.is_empty() {
            if this.read_ended {
                return Poll::Ready(Ok(()));
            }
            let Some(frame) = ready!(this.receiver.poll_recv(context)) else {
                return Poll::Ready(Err(gone()));
            };
            match StreamFrame::decode(frame) {
                Ok(StreamFrame::Data(data)) => this.received = data,
                Ok(StreamFrame::End) => this.read_ended = true,
                Ok(StreamFrame::Error(error)) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, error.message)));
                }
                Ok(_) => return Poll::Ready(Err(io::Error::other("a frame that belongs to no connection"))),
                Err(error) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let piece = this.received.split_to(this.received.len().min(buffer.remaining()));
        buffer.put_slice(&piece);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TcpOverLink {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.sender.poll_reserve(context)).map_err(|_| gone())?;
        let count = bytes.len().min(PIECE);
        this.send(&StreamFrame::Data(Bytes::copy_from_slice(&bytes[..count])))?;
        Poll::Ready(Ok(count))
    }

    /// Nothing is kept back, so there is nothing to do.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.sender.is_closed() {
            return Poll::Ready(Ok(()));
        }
        ready!(this.sender.poll_reserve(context)).map_err(|_| gone())?;
        this.send(&StreamFrame::End)?;
        // The other half of the connection goes on: only this sender is given up.
        this.sender.close();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn connected() -> (TcpOverLink, LinkChannel) {
        let (ours, other) = LinkChannel::pair();
        other.sender.send(StreamFrame::Connected.encode().unwrap()).await.unwrap();
        (TcpOverLink::connect(ours).await.unwrap(), other)
    }

    #[tokio::test]
    async fn a_port_that_nothing_listens_on_is_unavailable_and_no_connection_that_ends() {
        for said in [Some(StreamFrame::error(&Error::unavailable("test", "refused"))), None] {
            let (ours, other) = LinkChannel::pair();
            if let Some(said) = said {
                other.sender.send(said.encode().unwrap()).await.unwrap();
            }
            drop(other);
            assert_eq!(TcpOverLink::connect(ours).await.unwrap_err().kind(), ErrorKind::Unavailable);
        }
    }

    async fn frame(channel: &mut LinkChannel) -> Option<StreamFrame> {
        channel.receiver.recv().await.map(|frame| StreamFrame::decode(frame).unwrap())
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_each_half_ends_for_itself() {
        let (mut stream, mut other) = connected().await;
        stream.write_all(b"ping").await.unwrap();
        assert_eq!(frame(&mut other).await, Some(StreamFrame::Data("ping".into())));
        stream.shutdown().await.unwrap();
        assert_eq!(frame(&mut other).await, Some(StreamFrame::End));
        for said in [StreamFrame::Data("po".into()), StreamFrame::Data("ng".into()), StreamFrame::End] {
            other.sender.send(said.encode().unwrap()).await.unwrap();
        }
        let mut heard = String::new();
        stream.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "pong");
    }

    #[tokio::test]
    async fn a_connection_that_is_cut_off_is_an_error_and_no_end() {
        let (mut stream, other) = connected().await;
        drop(other);
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(stream.write_all(&[0; 10]).await.is_err());
    }

    #[tokio::test]
    async fn what_is_written_waits_for_the_other_side() {
        let (mut stream, other) = connected().await;
        let much = vec![7; PIECE * (LinkChannel::DEPTH + 4)];
        let writing = tokio::time::timeout(std::time::Duration::from_millis(50), stream.write_all(&much));
        assert!(writing.await.is_err(), "more was taken than the channel holds");
        drop(other);
    }
}
