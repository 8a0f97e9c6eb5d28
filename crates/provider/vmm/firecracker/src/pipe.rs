//! Pipes of a monitor, which never end by themselves since both sides are held open.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use flames_firecracker_jail::Vmm;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::Notify;

/// How much of what a monitor says is kept: its last words.
const KEPT: usize = 4096;

/// What a monitor writes into a pipe; it ends once the monitor has and the pipe is empty.
pub(crate) struct UntilEnd {
    pipe: Receiver,
    /// None once it has ended.
    ended: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl UntilEnd {
    pub(crate) fn new(pipe: Receiver, vmm: Arc<Vmm>) -> Self {
        let ended = async move {
            // What cannot be followed has no end that could be seen; nothing more is read from it.
            let _ = vmm.process.ended().await;
        };
        Self { pipe, ended: Some(Box::pin(ended)) }
    }
}

impl AsyncRead for UntilEnd {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.pipe).poll_read(context, buffer) {
            return Poll::Ready(read);
        }
        let has_ended = self.ended.as_mut().is_none_or(|ended| ended.as_mut().poll(context).is_ready());
        if !has_ended {
            return Poll::Pending;
        }
        self.ended = None;
        // The readiness that was seen may be older than the last bytes.
        match self.pipe.try_read(buffer.initialize_unfilled()) {
            Ok(count) => {
                buffer.advance(count);
                Poll::Ready(Ok(()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

/// The end of what a monitor has said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Words {
    kept: Arc<Mutex<Vec<u8>>>,
    stops: Arc<Notify>,
}

impl Words {
    /// Reads to the end, and keeps the last of it.
    pub(crate) async fn hear(self, mut from: impl AsyncRead + Unpin) {
        let mut part = vec![0; KEPT];
        while let Ok(count @ 1..) = from.read(&mut part).await {
            self.add(&part[..count]);
        }
    }

    pub(crate) fn add(&self, said: &[u8]) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(said);
        if says_that_it_stops(&String::from_utf8_lossy(&kept)) {
            self.stops.notify_one();
        }
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
    }

    /// Returns once it has said that it stops. For one at a time.
    pub(crate) async fn stops(&self) {
        self.stops.notified().await;
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

/// Whether it has said that its machine has ended (`Vmm::stop` in `src/vmm/src/lib.rs` of Firecracker), after which it exits.
pub(crate) fn says_that_it_stops(words: &str) -> bool {
    words.contains("Vmm is stopping.")
}

/// The exit code that Firecracker's log told last, when it told one: `… exit_code=0` is its last line (`main_exec` in
/// `src/firecracker/src/main.rs`).
pub(crate) fn exit_code_in(words: &str) -> Option<i32> {
    let told = words.rsplit_once("exit_code=")?.1;
    let digits = told.split(|character: char| !character.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_the_one_that_was_told_last() {
        assert_eq!(exit_code_in("… Firecracker exiting successfully. exit_code=0\n"), Some(0));
        assert_eq!(exit_code_in("exit_code=0\nFirecracker exiting with error. exit_code=148"), Some(148));
        assert_eq!(exit_code_in("nothing"), None);
        assert_eq!(exit_code_in("exit_code="), None);
    }

    #[tokio::test]
    async fn only_the_last_words_are_kept() {
        let words = Words::default();
        let said = format!("{}the end", "x".repeat(100_000));
        words.clone().hear(io::Cursor::new(said.into_bytes())).await;
        assert!(words.text().len() == KEPT && words.text().ends_with("the end"));
        words.add(b"Vmm is stop");
        assert!(!says_that_it_stops(&words.text()));
        words.add(b"ping.");
        words.stops().await;
        assert!(says_that_it_stops(&words.text()));
    }
}
