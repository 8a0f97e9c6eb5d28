//! The connection to the agent over virtio-serial: one at a time, the newest wins.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// Knows the connection that was handed out last.
#[derive(Debug, Default)]
pub(crate) struct Newest(Mutex<Weak<UnixStream>>);

impl Newest {
    /// Hands out a new connection and ends the one before. QEMU takes up the new one when it has seen the old one's end.
    pub(crate) fn replace(&self, stream: UnixStream) -> AgentStream {
        let stream = Arc::new(stream);
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(older) = newest.upgrade() {
            let _ = rustix::net::shutdown(&*older, rustix::net::Shutdown::Both);
        }
        *newest = Arc::downgrade(&stream);
        AgentStream(stream)
    }
}

/// A connection that can be ended by whoever knows [`Newest`].
#[derive(Debug)]
pub(crate) struct AgentStream(Arc<UnixStream>);

impl AsyncRead for AgentStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for AgentStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write_vectored(parts) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Write) {
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_newer_connection_ends_the_older_one() {
        let newest = Newest::default();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut older = newest.replace(ours);
        older.write_all(b"one").await.unwrap();
        let (ours, mut theirs_too) = UnixStream::pair().unwrap();
        let mut newer = newest.replace(ours);
        assert_eq!(older.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(older.write_all(b"x").await.is_err());
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"one");
        newer.write_all(b"two").await.unwrap();
        newer.shutdown().await.unwrap();
        got.clear();
        theirs_too.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"two");
    }
}
