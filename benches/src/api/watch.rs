//! Follows the events of a world and notes when each VM was first seen running.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use flames_model::{EventKind, IncarnationState, VmId};
use flames_service::Service;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::load::Post;
use super::world::caller;
use crate::measure::thread_cpu;

/// How long without a further VM reaching `running` until the bench gives up.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
struct Seen {
    running: Mutex<HashMap<VmId, Instant>>,
    more: Condvar,
    cpu_ns: AtomicU64,
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Instant>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The follower, on a thread of its own. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Watch {
    seen: Arc<Seen>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watch {
    /// Follows what comes from now on.
    pub(crate) async fn start(service: &Service) -> anyhow::Result<Self> {
        let caller = caller()?;
        let newest = service.newest_event(&caller).await?;
        let seen = Arc::new(Seen::default());
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (service, noted, stopped) = (service.clone(), Arc::clone(&seen), stop.clone());
        let follow = async move {
            let mut events = service.follow_events(&caller, newest);
            while let Some(Ok(entry)) = events.next().await {
                let runs =
                    matches!(entry.event.kind, EventKind::VmState { state: IncarnationState::Running, .. });
                if let Some(vm) = entry.event.vm.filter(|_| runs) {
                    noted.lock().entry(vm).or_insert_with(Instant::now);
                    let cpu = u64::try_from(thread_cpu().as_nanos()).unwrap_or(u64::MAX);
                    noted.cpu_ns.store(cpu, Ordering::Relaxed);
                    noted.more.notify_all();
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || runtime.block_on(stopped.run_until_cancelled(follow)).unwrap_or_default())?;
        Ok(Self { seen, stop, thread: Some(thread) })
    }

    /// What following used of processors.
    pub(crate) fn cpu(&self) -> Duration {
        Duration::from_nanos(self.seen.cpu_ns.load(Ordering::Relaxed))
    }

    /// Waits until all of these run, and answers when each was first seen so. Blocks.
    pub(crate) fn all_running(&self, posts: &[Post]) -> anyhow::Result<Vec<Instant>> {
        let mut seen = self.seen.lock();
        let mut missing: Vec<VmId> = posts.iter().map(|post| post.vm).collect();
        loop {
            missing.retain(|vm| !seen.contains_key(vm));
            if missing.is_empty() {
                let at = |post: &Post| seen.get(&post.vm).copied();
                return Ok(posts.iter().filter_map(at).collect());
            }
            let (guard, timed_out) =
                self.seen.more.wait_timeout(seen, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            ensure!(!timed_out.timed_out(), "{} VMs of {} do not run", missing.len(), posts.len());
            // Looked at now and then: each further VM wakes this thread.
            drop(guard);
            std::thread::sleep(Duration::from_millis(2));
            seen = self.seen.lock();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
