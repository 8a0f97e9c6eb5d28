//! Requests for VMs that rest: they wait while the VM is woken.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flames_error::{Error, ErrorKind, Result};
use flames_ingress::{RouteKey, RouteOwner};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::time::{Instant, timeout_at};

use crate::problem::Problem;

/// Whoever knows which VMs rest (are stopped or paused), and can wake them.
pub trait WakeTarget: Debug + Send + Sync + 'static {
    /// The VM that a request for `host` must wait for, when it rests and may be woken by a request; `route` is the route that the
    /// host name has now, if any (a stopped VM has none, a paused one may). None: the request goes on as it is.
    ///
    /// Asked for each request, so it must answer from memory, at once.
    fn resting(&self, host: &str, route: Option<&RouteKey>) -> Option<RouteOwner>;

    /// Wakes `vm` and answers when it runs. One call at a time for each VM, whatever the number of requests that wait; given up
    /// when none waits any more. The requests then go on as soon as the route is there, `resting` says no more, and the target
    /// takes a connection.
    fn wake<'a>(&'a self, vm: &'a RouteOwner) -> BoxFuture<'a, Result<()>>;
}

type Wake = Shared<BoxFuture<'static, std::result::Result<(), Failure>>>;

/// Why a VM did not wake, as many waiters can share it.
#[derive(Debug, Clone)]
struct Failure {
    kind: ErrorKind,
    retry_after: Option<Duration>,
}

#[derive(Debug, Default)]
struct Waiting {
    total: usize,
    vms: HashMap<RouteOwner, (usize, Option<Wake>)>,
}

/// The requests that wait.
#[derive(Debug)]
pub(crate) struct Wakes {
    waiting: Arc<Mutex<Waiting>>,
    hook: Arc<dyn WakeTarget>,
    per_vm: usize,
    in_all: usize,
}

/// A place among those that wait for one VM.
struct Place {
    waiting: Arc<Mutex<Waiting>>,
    vm: RouteOwner,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.total -= 1;
        let mut abandoned = None;
        if let Some((count, _)) = waiting.vms.get_mut(&self.vm) {
            *count -= 1;
            if *count == 0 {
                abandoned = waiting.vms.remove(&self.vm);
            }
        }
        // What is given up is the hook's, and is not dropped under the lock.
        drop(waiting);
        drop(abandoned);
    }
}

impl Wakes {
    pub(crate) fn new(hook: Arc<dyn WakeTarget>, per_vm: usize, in_all: usize) -> Self {
        Self { waiting: Arc::default(), hook, per_vm, in_all }
    }

    pub(crate) fn resting(&self, host: &str, route: Option<&RouteKey>) -> Option<RouteOwner> {
        self.hook.resting(host, route)
    }

    /// Waits until the VM was woken, or says what the client gets instead, and when to try again.
    pub(crate) async fn wake(
        &self,
        vm: &RouteOwner,
        deadline: Instant,
    ) -> std::result::Result<(), (Problem, Option<Duration>)> {
        let (wake, _place) = self.join(vm).ok_or((Problem::TooManyWaiting, None))?;
        match timeout_at(deadline, wake).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(failure)) if failure.kind == ErrorKind::NotFound => Err((Problem::UnknownHost, None)),
            Ok(Err(failure)) => Err((Problem::WakeFailed, failure.retry_after)),
            Err(_) => Err((Problem::WakeTimeout, None)),
        }
    }

    fn join(&self, vm: &RouteOwner) -> Option<(Wake, Place)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.total >= self.in_all || self.per_vm == 0 {
            return None;
        }
        let (count, wake) = waiting.vms.entry(vm.clone()).or_default();
        if *count >= self.per_vm {
            return None;
        }
        *count += 1;
        // A wake that has ended is over: whoever asks now finds the VM resting again.
        let under_way = wake.take().filter(|wake| wake.peek().is_none());
        let joined = under_way.unwrap_or_else(|| {
            let (hook, vm) = (Arc::clone(&self.hook), vm.clone());
            let wake = async move {
                hook.wake(&vm).await.map_err(|error: Error| {
                    tracing::warn!(vm = vm.as_str(), error = ?error, "a VM could not be woken for a request");
                    Failure { kind: error.kind(), retry_after: error.retry_after() }
                })
            };
            wake.boxed().shared()
        });
        *wake = Some(joined.clone());
        waiting.total += 1;
        Some((joined, Place { waiting: Arc::clone(&self.waiting), vm: vm.clone() }))
    }
}
