//! What stands between the byte stream and yamux: on the controller's side it refuses what an honest agent never
//! sends; on the agent's side it sees the hello of a new session in the midst of an old one.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use futures::io::{AsyncRead, AsyncWrite};
use tokio::io::ReadBuf;

use crate::handshake::{Identity, MAGIC};
use crate::limits::{MAX_FRAME_LENGTH, MAX_UNREAD_FRAMES};
use crate::scanner::Scanner;

// yamux's header: version, type, flags (2), stream (4), length (4), big-endian.
const YAMUX_HEADER: usize = 12;
const YAMUX_DATA: u8 = 0;
const YAMUX_SYN: u16 = 1;

/// How many data frames of each stream arrived since its reader last found it empty.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unread(Arc<Mutex<UnreadCounts>>);

#[derive(Debug, Default)]
struct UnreadCounts {
    total: u32,
    streams: HashMap<u32, u32>,
}

impl Unread {
    fn counts(&self) -> MutexGuard<'_, UnreadCounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn opened(&self, stream: u32) {
        self.counts().streams.insert(stream, 0);
    }

    pub(crate) fn drained(&self, stream: u32) {
        let mut counts = self.counts();
        if let Some(count) = counts.streams.get_mut(&stream) {
            let freed = std::mem::take(count);
            counts.total = counts.total.saturating_sub(freed);
        }
    }

    pub(crate) fn closed(&self, stream: u32) {
        let mut counts = self.counts();
        let freed = counts.streams.remove(&stream).unwrap_or(0);
        counts.total = counts.total.saturating_sub(freed);
    }

    /// Counts a frame; false when it is one too many.
    fn arrived(&self, stream: u32) -> bool {
        let mut counts = self.counts();
        let Some(count) = counts.streams.get_mut(&stream) else { return true };
        *count += 1;
        counts.total += 1;
        counts.total <= MAX_UNREAD_FRAMES
    }
}

/// The controller's end of a session's byte stream.
#[derive(Debug)]
pub(crate) struct HostTransport<S> {
    io: S,
    rest: BytesMut,
    unread: Unread,
    header: [u8; YAMUX_HEADER],
    held: usize,
    body: usize,
}

impl<S> HostTransport<S> {
    pub(crate) fn new(io: S, rest: BytesMut, unread: Unread) -> Self {
        Self { io, rest, unread, header: [0; YAMUX_HEADER], held: 0, body: 0 }
    }

    fn check(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let skip = self.body.min(bytes.len());
            self.body -= skip;
            bytes = &bytes[skip..];
            let take = (YAMUX_HEADER - self.held).min(bytes.len());
            self.header[self.held..self.held + take].copy_from_slice(&bytes[..take]);
            self.held += take;
            bytes = &bytes[take..];
            if self.held == YAMUX_HEADER {
                self.held = 0;
                self.body = self.check_header()?;
            }
        }
        Ok(())
    }

    fn check_header(&self) -> io::Result<usize> {
        let refused = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why.to_owned()));
        let header = &self.header;
        let number =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (kind, flags) = (header[1], u16::from_be_bytes([header[2], header[3]]));
        if flags & YAMUX_SYN != 0 && kind < 2 {
            return refused("the guest opened a stream");
        }
        if kind != YAMUX_DATA {
            return Ok(0);
        }
        let length = number(8) as usize;
        if length > MAX_FRAME_LENGTH {
            return refused("the guest sent too large a piece");
        }
        if length > 0 && !self.unread.arrived(number(4)) {
            return refused("the guest sent too many small pieces");
        }
        Ok(length)
    }
}

impl<S: tokio::io::AsyncRead + Unpin> AsyncRead for HostTransport<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = if this.rest.is_empty() {
            let mut read = ReadBuf::new(buffer);
            ready!(Pin::new(&mut this.io).poll_read(context, &mut read))?;
            read.filled().len()
        } else {
            let count = this.rest.len().min(buffer.len());
            this.rest.copy_to_slice(&mut buffer[..count]);
            count
        };
        this.check(&buffer[..count])?;
        Poll::Ready(Ok(count))
    }
}

impl<S: tokio::io::AsyncWrite + Unpin> AsyncWrite for HostTransport<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }
}

/// The agent's end of a session's byte stream. It borrows the stream, which outlives the session.
#[derive(Debug)]
pub(crate) struct GuestTransport<'a, S> {
    io: &'a mut S,
    pending: &'a mut BytesMut,
    identity: &'a Identity,
    scanner: Scanner,
    superseded: &'a mut bool,
}

impl<'a, S> GuestTransport<'a, S> {
    pub(crate) fn new(
        io: &'a mut S,
        pending: &'a mut BytesMut,
        identity: &'a Identity,
        superseded: &'a mut bool,
    ) -> Self {
        *superseded = false;
        Self { io, pending, identity, scanner: Scanner::default(), superseded }
    }

    fn put_back(&mut self, bytes: &[u8]) {
        let mut whole = BytesMut::with_capacity(bytes.len() + self.pending.len());
        whole.extend_from_slice(bytes);
        whole.extend_from_slice(self.pending);
        *self.pending = whole;
    }
}

impl<S> Drop for GuestTransport<'_, S> {
    fn drop(&mut self) {
        // yamux stumbles over a hello before the whole of it was seen here: the next handshake wants it.
        if !*self.superseded {
            let begun = self.scanner.take();
            *self.superseded = begun.len() >= YAMUX_HEADER && begun[..YAMUX_HEADER] == MAGIC[..YAMUX_HEADER];
            self.put_back(&begun);
        }
    }
}

impl<S: tokio::io::AsyncRead + Unpin> AsyncRead for GuestTransport<'_, S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if *this.superseded {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if this.pending.is_empty() {
            let mut chunk = [0; 8192];
            let mut read = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut *this.io).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(0));
            }
            this.pending.extend_from_slice(read.filled());
        }
        let length = this.pending.len().min(buffer.len());
        let (taken, found) = this.scanner.scan(&this.pending[..length]);
        buffer[..taken].copy_from_slice(&this.pending[..taken]);
        this.pending.advance(taken);
        if let Some(found) = found {
            if this.identity.is_own_hello(&found) {
                *this.superseded = true;
                this.put_back(&found);
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            this.scanner.reject(&found);
        }
        Poll::Ready(Ok(taken))
    }
}

impl<S: tokio::io::AsyncWrite + Unpin> AsyncWrite for GuestTransport<'_, S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.get_mut().io).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().io).poll_flush(context)
    }

    // The byte stream outlives the session: a virtio-serial port is opened once.
    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().io).poll_flush(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(stream: u32, flags: u16, length: u32) -> Vec<u8> {
        let mut frame = vec![0, YAMUX_DATA];
        frame.extend_from_slice(&flags.to_be_bytes());
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(&length.to_be_bytes());
        frame
    }

    #[test]
    fn a_guest_may_not_open_a_stream_nor_send_a_large_piece() {
        let transport = || HostTransport::new((), BytesMut::new(), Unread::default());
        assert!(transport().check(&data(2, YAMUX_SYN, 0)).is_err());
        assert!(transport().check(&data(1, 0, 1 << 20)).is_err());
        let mut split = transport();
        for byte in data(1, 0, 3).into_iter().chain(*b"abc").chain(data(1, 0, 0)) {
            split.check(&[byte]).unwrap();
        }
    }

    #[test]
    fn tiny_pieces_count_until_they_are_read() {
        let unread = Unread::default();
        unread.opened(1);
        let mut transport = HostTransport::new((), BytesMut::new(), unread.clone());
        let piece = [data(1, 0, 1), vec![b'x']].concat();
        for _ in 0..MAX_UNREAD_FRAMES {
            transport.check(&piece).unwrap();
        }
        unread.drained(1);
        transport.check(&piece).unwrap();
        for _ in 1..MAX_UNREAD_FRAMES {
            transport.check(&piece).unwrap();
        }
        assert!(transport.check(&piece).is_err());
    }
}
