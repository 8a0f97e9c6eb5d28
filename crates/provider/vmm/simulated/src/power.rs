//! A guest's power, and everything that stands still or ends with it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::lock;

/// What a guest's processors do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PowerState {
    Starting,
    Running,
    Paused,
    Gone,
}

/// One guest's power. `Gone` is final.
#[derive(Debug)]
pub(crate) struct Power(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    state: PowerState,
    button_pressed: bool,
    next_watcher: u64,
    watchers: BTreeMap<u64, Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    cut: bool,
    wakers: [Option<Waker>; 2],
}

/// The halves of a stream may be polled by two tasks; each has a waker of its own.
#[derive(Debug, Clone, Copy)]
enum Lane {
    Read = 0,
    Write = 1,
}

enum Flow {
    Go,
    Wait,
    Ended,
}

impl Power {
    pub(crate) fn new(state: PowerState) -> Arc<Self> {
        let watchers = BTreeMap::new();
        Arc::new(Self(Mutex::new(Inner { state, button_pressed: false, next_watcher: 0, watchers })))
    }

    pub(crate) fn state(&self) -> PowerState {
        lock(&self.0).state
    }

    /// Changes the state, unless it is `Gone`.
    pub(crate) fn set(&self, state: PowerState) {
        self.change(|inner| {
            if inner.state != PowerState::Gone {
                inner.state = state;
            }
        });
    }

    pub(crate) fn press_button(&self) {
        self.change(|inner| inner.button_pressed = true);
    }

    /// Ends the streams of these watchers.
    pub(crate) fn cut(&self, watchers: [u64; 2]) {
        self.change(|inner| {
            for watcher in watchers {
                if let Some(watched) = inner.watchers.get_mut(&watcher) {
                    watched.cut = true;
                }
            }
        });
    }

    // Wakers run after the lock is released: they may drop what watches this power.
    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let wakers: Vec<Waker> = {
            let mut inner = lock(&self.0);
            change(&mut inner);
            inner
                .watchers
                .values_mut()
                .flat_map(|watched| watched.wakers.iter_mut())
                .filter_map(Option::take)
                .collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn watch(self: &Arc<Self>) -> Watcher {
        let mut inner = lock(&self.0);
        let id = inner.next_watcher;
        inner.next_watcher += 1;
        inner.watchers.insert(id, Watched::default());
        Watcher { power: Arc::clone(self), id }
    }

    /// Returns once `reached` holds of the state.
    pub(crate) async fn until(self: &Arc<Self>, reached: impl Fn(PowerState) -> bool + Send + Sync) {
        let watcher = self.watch();
        poll_fn(|context| watcher.poll(context, |inner| reached(inner.state))).await;
    }

    /// Returns once the button was pressed.
    pub(crate) async fn button(self: &Arc<Self>) {
        let watcher = self.watch();
        poll_fn(|context| watcher.poll(context, |inner| inner.button_pressed)).await;
    }

    /// Runs `work` while the guest runs: not polled while paused, dropped when the guest is gone.
    pub(crate) async fn drive(self: Arc<Self>, work: impl Future<Output = ()> + Send) {
        let watcher = self.watch();
        let mut work = std::pin::pin!(work);
        poll_fn(|context| match watcher.flow(Lane::Read, context, true) {
            Flow::Ended => Poll::Ready(()),
            Flow::Wait => Poll::Pending,
            Flow::Go => work.as_mut().poll(context),
        })
        .await;
    }
}

/// A place among those that are woken when the power changes.
#[derive(Debug)]
pub(crate) struct Watcher {
    power: Arc<Power>,
    id: u64,
}

impl Watcher {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    fn register(&self, inner: &mut Inner, lane: Lane, context: &Context<'_>) -> bool {
        let Some(watched) = inner.watchers.get_mut(&self.id) else { return true };
        let waker = &mut watched.wakers[lane as usize];
        if !waker.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
        watched.cut
    }

    fn poll(&self, context: &Context<'_>, reached: impl Fn(&Inner) -> bool) -> Poll<()> {
        let mut inner = lock(&self.power.0);
        if reached(&inner) {
            return Poll::Ready(());
        }
        self.register(&mut inner, Lane::Read, context);
        Poll::Pending
    }

    fn flow(&self, lane: Lane, context: &Context<'_>, stalls: bool) -> Flow {
        let mut inner = lock(&self.power.0);
        let cut = self.register(&mut inner, lane, context);
        match inner.state {
            PowerState::Gone => Flow::Ended,
            _ if cut => Flow::Ended,
            PowerState::Running => Flow::Go,
            PowerState::Starting | PowerState::Paused if stalls => Flow::Wait,
            PowerState::Starting | PowerState::Paused => Flow::Go,
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        lock(&self.power.0).watchers.remove(&self.id);
    }
}

/// Which directions of a stream stand still while the guest is paused.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stalls {
    pub(crate) reads: bool,
    pub(crate) writes: bool,
}

/// A stream that ends with its guest: reads give what is still there and then the end, writes fail with `BrokenPipe`.
#[derive(Debug)]
pub(crate) struct PoweredStream<S> {
    pub(crate) stream: S,
    pub(crate) watcher: Watcher,
    pub(crate) stalls: Stalls,
}

impl<S: AsyncRead + Unpin> AsyncRead for PoweredStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.watcher.flow(Lane::Read, context, this.stalls.reads) {
            Flow::Wait => Poll::Pending,
            Flow::Go => Pin::new(&mut this.stream).poll_read(context, buffer),
            Flow::Ended => match Pin::new(&mut this.stream).poll_read(context, buffer) {
                Poll::Pending => Poll::Ready(Ok(())),
                ready => ready,
            },
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PoweredStream<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this.watcher.flow(Lane::Write, context, this.stalls.writes) {
            Flow::Wait => Poll::Pending,
            Flow::Go => Pin::new(&mut this.stream).poll_write(context, data),
            Flow::Ended => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.watcher.flow(Lane::Write, context, this.stalls.writes) {
            Flow::Wait => Poll::Pending,
            Flow::Go => Pin::new(&mut this.stream).poll_flush(context),
            Flow::Ended => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_stands_still_while_paused_and_is_dropped_when_the_guest_is_gone() {
        let power = Power::new(PowerState::Running);
        let ticks = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&ticks);
        let task = tokio::spawn(Arc::clone(&power).drive(async move {
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }));
        let wait = || tokio::time::sleep(Duration::from_secs(10));
        wait().await;
        power.set(PowerState::Paused);
        let at_pause = ticks.load(Ordering::Relaxed);
        assert!(at_pause >= 10);
        wait().await;
        assert_eq!(ticks.load(Ordering::Relaxed), at_pause);
        power.set(PowerState::Running);
        wait().await;
        assert!(ticks.load(Ordering::Relaxed) > at_pause);
        power.set(PowerState::Gone);
        task.await.unwrap();
        assert_eq!(Arc::strong_count(&ticks), 1, "the work was dropped");
        power.set(PowerState::Running);
        assert_eq!(power.state(), PowerState::Gone);
    }
}
