//! The threads that serve.
//!
//! Each has a runtime of its own and accepts from the same sockets. A client's connection, and the connections to targets that it
//! uses, stay on one thread: nothing of a request is handed from thread to thread, so none has to be woken for it.

use std::cell::Cell;
use std::thread::JoinHandle;

use flames_error::{Error, Result};
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

/// The number of the worker that this runs on; 0 on every thread that is none.
pub(crate) fn current() -> usize {
    NUMBER.get()
}

/// The threads. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Workers {
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
    stop: CancellationToken,
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Workers {
    /// Starts `count` threads. With 0 the runtime that this is called on serves.
    pub(crate) fn start(count: usize) -> Result<Self> {
        let broken = |error: std::io::Error| {
            Error::internal("ingress.start", "a thread cannot be started").with_source(error)
        };
        let mut workers = Self { handles: Vec::new(), threads: Vec::new(), stop: CancellationToken::new() };
        if count == 0 {
            workers.handles.push(Handle::current());
        }
        for number in 1..=count {
            let runtime = Builder::new_current_thread().enable_all().build().map_err(broken)?;
            workers.handles.push(runtime.handle().clone());
            let stop = workers.stop.clone();
            let thread = std::thread::Builder::new().name(format!("flames-proxy-{number}"));
            let serve = move || {
                NUMBER.set(number);
                runtime.block_on(stop.cancelled());
                // Tasks were ended before; what a hook left running on another thread is not waited for.
                runtime.shutdown_background();
            };
            workers.threads.push(thread.spawn(serve).map_err(broken)?);
        }
        Ok(workers)
    }

    /// Their runtimes.
    pub(crate) fn handles(&self) -> &[Handle] {
        &self.handles
    }

    /// Ends them.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Whether all threads have ended.
    pub(crate) fn have_ended(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }
}
