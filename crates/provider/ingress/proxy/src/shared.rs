//! What all parts of a running proxy share.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::AccessLog;
use crate::config::{Limits, Timeouts};
use crate::table::Table;
use crate::wake::Wakes;

/// Owns every task of the proxy: each ends when the proxy is dropped or its shutdown's deadline passes.
#[derive(Debug, Clone)]
pub(crate) struct Spawner {
    /// No new requests: what is under way ends.
    pub(crate) draining: CancellationToken,
    tasks: Arc<Tasks>,
}

#[derive(Debug, Default)]
struct Tasks {
    tracker: TaskTracker,
    next: AtomicU64,
    /// None while the task is being started.
    handles: Mutex<HashMap<u64, Option<AbortHandle>>>,
    /// What tasks look at each time they run; a token's own lock would be taken by all of them.
    is_draining: AtomicBool,
    is_killed: AtomicBool,
}

impl Tasks {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Option<AbortHandle>>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a task that ended, however it ended, off the list.
struct Ended(Arc<Tasks>, u64);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

impl Spawner {
    pub(crate) fn new() -> Self {
        Self { draining: CancellationToken::new(), tasks: Arc::default() }
    }

    /// On the runtime that this is called on.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_on(&Handle::current(), task);
    }

    pub(crate) fn spawn_on(&self, runtime: &Handle, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.tasks.next.fetch_add(1, Ordering::Relaxed);
        self.tasks.lock().insert(id, None);
        let ended = Ended(Arc::clone(&self.tasks), id);
        let owned = async move {
            let _ended = ended;
            task.await;
        };
        let started = self.tasks.tracker.spawn_on(owned, runtime);
        if let Some(handle) = self.tasks.lock().get_mut(&id) {
            *handle = Some(started.abort_handle());
        }
        if self.tasks.is_killed.load(Ordering::SeqCst) {
            started.abort();
        }
    }

    pub(crate) fn drain(&self) {
        self.tasks.is_draining.store(true, Ordering::SeqCst);
        self.draining.cancel();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.tasks.is_draining.load(Ordering::Relaxed)
    }

    /// Ends every task where it stands.
    pub(crate) fn kill(&self) {
        self.drain();
        self.tasks.is_killed.store(true, Ordering::SeqCst);
        let handles: Vec<AbortHandle> = self.tasks.lock().values().flatten().cloned().collect();
        for handle in handles {
            handle.abort();
        }
    }

    /// Until every task has ended. None is to be spawned any more.
    pub(crate) async fn ended(&self) {
        self.tasks.tracker.close();
        self.tasks.tracker.wait().await;
    }

    pub(crate) fn running(&self) -> usize {
        self.tasks.tracker.len()
    }
}

/// hyper's own tasks (HTTP/2 streams), under the same owner.
#[derive(Debug, Clone)]
pub(crate) struct TaskExecutor(pub(crate) Spawner);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for TaskExecutor {
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// One of a limited number of places.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

impl Place {
    pub(crate) fn take(taken: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let place = Self(Arc::clone(taken));
        (taken.fetch_add(1, Ordering::AcqRel) < most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a request needs of the proxy.
pub(crate) struct Shared {
    pub(crate) table: Table,
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
    pub(crate) access_log: Arc<dyn AccessLog>,
    pub(crate) wakes: Option<Wakes>,
    pub(crate) spawner: Spawner,
    pub(crate) tunnels: Arc<AtomicUsize>,
    pub(crate) connections: Arc<AtomicUsize>,
    /// Connections above the limit that are being told so.
    pub(crate) refusals: Arc<AtomicUsize>,
}
