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

/// Events that are taken at once, at most.
const AT_ONCE: usize = 256;
/// Events that come together on a busy server.
const MANY: usize = 16;
/// How long the follower then waits for more: to be woken for each commit would be a cost of the bench, and the server's too.
const PAUSE: Duration = Duration::from_millis(5);
/// After how many VMs seen running the follower notes what it used of processors: asking the kernel for each would be a cost of the bench.
const NOTED_EACH: usize = 64;

#[derive(Debug, Default)]
struct Seen {
    running: Mutex<Running>,
    enough: Condvar,
    cpu_ns: AtomicU64,
}

#[derive(Debug, Default)]
struct Running {
    first: HashMap<VmId, Instant>,
    /// How many there are to be until the waiting thread is woken; none while nobody waits.
    awaited: Option<usize>,
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, vm: VmId) {
        let mut running = self.lock();
        running.first.entry(vm).or_insert_with(Instant::now);
        let (seen, awaited) = (running.first.len(), running.awaited);
        drop(running);
        if awaited == Some(seen) || seen.is_multiple_of(NOTED_EACH) {
            self.cpu_ns.store(u64::try_from(thread_cpu().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        if awaited == Some(seen) {
            self.enough.notify_all();
        }
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
            let mut events = service.follow_events(&caller, newest).ready_chunks(AT_ONCE);
            while let Some(chunk) = events.next().await {
                // Behind as many as are taken at once there are more.
                let many = (MANY..AT_ONCE).contains(&chunk.len());
                for entry in chunk.into_iter().flatten() {
                    let runs = matches!(
                        entry.event.kind,
                        EventKind::VmState { state: IncarnationState::Running, .. }
                    );
                    if let Some(vm) = entry.event.vm.filter(|_| runs) {
                        noted.note(vm);
                    }
                }
                if many {
                    tokio::time::sleep(PAUSE).await;
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
        loop {
            let missing = posts.iter().filter(|post| !seen.first.contains_key(&post.vm)).count();
            if missing == 0 {
                seen.awaited = None;
                let at = |post: &Post| seen.first.get(&post.vm).copied();
                return Ok(posts.iter().filter_map(at).collect());
            }
            // Not looked at before so many more are there: this thread's looking would be a cost that the server is charged with.
            let awaited = seen.first.len() + missing;
            seen.awaited = Some(awaited);
            while seen.first.len() < awaited {
                let known = seen.first.len();
                let (guard, _) =
                    self.seen.enough.wait_timeout(seen, PATIENCE).unwrap_or_else(PoisonError::into_inner);
                seen = guard;
                ensure!(
                    seen.first.len() > known,
                    "{missing} VMs of {} did not come to run in time",
                    posts.len()
                );
            }
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
