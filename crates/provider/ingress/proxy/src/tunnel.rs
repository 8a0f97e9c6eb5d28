//! Bytes in both directions after an upgrade. While nothing moves, a tunnel holds no buffer.

use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::timer::LazyTimer;
use crate::upstream::Cut;

const CHUNK: usize = 16 * 1024;

/// One direction.
#[derive(Default)]
struct Direction {
    /// What was read and not yet written.
    rest: Bytes,
    has_ended: bool,
    needs_flush: bool,
    is_shut: bool,
    moved: u64,
}

impl Direction {
    /// Ready when the source ended and the other side was told.
    fn poll<F, T>(&mut self, cx: &mut Context<'_>, from: &mut F, to: &mut T) -> Poll<io::Result<()>>
    where
        F: AsyncRead + Unpin,
        T: AsyncWrite + Unpin,
    {
        if self.is_shut {
            return Poll::Ready(Ok(()));
        }
        loop {
            while !self.rest.is_empty() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.rest))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.rest = self.rest.slice(written..);
                self.needs_flush = true;
            }
            if self.has_ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.is_shut = true;
                return Poll::Ready(Ok(()));
            }
            let mut space = [MaybeUninit::uninit(); CHUNK];
            let mut buffer = ReadBuf::uninit(&mut space);
            match Pin::new(&mut *from).poll_read(cx, &mut buffer) {
                Poll::Ready(outcome) => outcome?,
                Poll::Pending => {
                    if self.needs_flush {
                        ready!(Pin::new(&mut *to).poll_flush(cx))?;
                        self.needs_flush = false;
                    }
                    return Poll::Pending;
                }
            }
            let read = buffer.filled();
            if read.is_empty() {
                self.has_ended = true;
                continue;
            }
            self.moved += read.len() as u64;
            let written = match Pin::new(&mut *to).poll_write(cx, read) {
                Poll::Ready(outcome) => outcome?,
                Poll::Pending => 0,
            };
            self.needs_flush |= written > 0;
            if written < read.len() {
                self.rest = Bytes::copy_from_slice(&read[written..]);
            }
        }
    }
}

/// Copies both ways until both sides ended, one broke, nothing moved for `idle`, or it is cut. Answers how many bytes moved.
pub(crate) async fn copy<C, T>(client: C, target: T, first: Bytes, cut: Arc<Cut>, idle: Duration) -> u64
where
    C: AsyncRead + AsyncWrite,
    T: AsyncRead + AsyncWrite,
{
    let (mut client, mut target) = (pin!(client), pin!(target));
    let mut up = Direction::default();
    let mut down = Direction { moved: first.len() as u64, rest: first, ..Direction::default() };
    let mut timer = LazyTimer::default();
    let mut moved_before = u64::MAX;
    std::future::poll_fn(|cx| {
        if cut.poll(cx) {
            return Poll::Ready(());
        }
        let upward = up.poll(cx, &mut client, &mut target);
        let downward = down.poll(cx, &mut target, &mut client);
        match (upward, downward) {
            (Poll::Ready(Ok(())), Poll::Ready(Ok(())))
            | (Poll::Ready(Err(_)), _)
            | (_, Poll::Ready(Err(_))) => Poll::Ready(()),
            _ => {
                let moved = up.moved + down.moved;
                if moved != moved_before {
                    moved_before = moved;
                    timer.set(Some(Instant::now() + idle));
                }
                timer.poll(cx)
            }
        }
    })
    .await;
    up.moved + down.moved
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn everything_comes_through_both_ways_over_narrow_streams() {
        let (client, client_side) = duplex(7);
        let (target, target_side) = duplex(3);
        let cut = Arc::new(Cut::default());
        let tunnel = tokio::spawn(copy(
            client_side,
            target_side,
            Bytes::from_static(b"early"),
            cut,
            Duration::from_secs(60),
        ));
        let pattern: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let run = |stream: tokio::io::DuplexStream, pattern: Vec<u8>| async move {
            let (mut reader, mut writer) = tokio::io::split(stream);
            let write = async move {
                writer.write_all(&pattern).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (read, ()) = tokio::join!(reader.read_to_end(&mut got), write);
            read.unwrap();
            got
        };
        let (at_client, at_target) = tokio::join!(run(client, pattern.clone()), run(target, pattern.clone()));
        assert_eq!(at_target, pattern);
        assert_eq!(at_client, [b"early".as_slice(), &pattern].concat());
        assert_eq!(tunnel.await.unwrap(), 200_005);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_where_nothing_moves_ends() {
        let (_client, client_side) = duplex(64);
        let (_target, target_side) = duplex(64);
        let started = Instant::now();
        let cut = Arc::new(Cut::default());
        copy(client_side, target_side, Bytes::new(), cut, Duration::from_secs(60)).await;
        assert_eq!(started.elapsed().as_secs(), 60);
    }
}
