//! A monitor that this driver is connected to, until its end.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flames_clock::Clock;
use flames_error::{ErrorKind, Result};
use flames_firecracker_api::{
    Client, Deadlines, InstanceState, Options, SnapshotCreate, SnapshotType, Version,
};
use flames_firecracker_jail::{Jail, Verdict, Vmm};
use flames_host::blocking;
use flames_host::process::{Ended, Process};
use flames_vmm::{Exit, ExitCause, Phase};
use flames_vmm_local::{Folder, Monitor, Ties, end_of};
use tokio::sync::OnceCell;

use crate::context::Context;
use crate::folder::Records;
use crate::machine::{API, SERIAL, inside};
use crate::pipe::{UntilEnd, Words, exit_code_in, says_that_it_stops};
use crate::vm::Before;

/// How long is waited for the end of a monitor that hung up.
pub(crate) const HUNG_UP: Duration = Duration::from_millis(500);
/// How long a monitor may take to exit after it has said that it does.
const SEEN_OFF: Duration = Duration::from_secs(1);

/// A monitor's process with its connections.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) jail: Jail,
    pub(crate) client: Arc<Client>,
    folder: Folder,
    vmm: Arc<Vmm>,
    clock: Arc<dyn Clock>,
    /// The guest may have run: what is paused was paused, and not only loaded.
    let_go: AtomicBool,
    /// What takes the API for so long that no answer of it means nothing.
    busy: Arc<AtomicUsize>,
    /// In which phase the guest is for others while it is saved.
    saving: Mutex<Option<Phase>>,
    words: Words,
    verdict: Arc<Mutex<Option<Verdict>>>,
    ties: Ties,
    /// From its kill to its end.
    kill: Duration,
    exit: OnceCell<Exit>,
}

/// Marks the guest as being saved for as long as it lives.
pub(crate) struct Saving<'a>(&'a Attached);

impl Drop for Saving<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
        *self.0.saving.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Attached {
    /// Follows the process; nothing is connected yet. Within a runtime.
    pub(crate) fn new(context: &Context, folder: Folder, jail: Jail, vmm: Vmm) -> Self {
        let limits = &context.config.deadlines;
        let options = Options {
            deadlines: Deadlines {
                quick: limits.command,
                machine: limits.machine,
                snapshot: limits.snapshot,
            },
            expected_uid: Some(jail.slot().user),
            ..Options::default()
        };
        let client = Client::new(jail.root().join(API), Arc::clone(&context.clock), options);
        Self {
            let_go: AtomicBool::new(folder.is_let_go()),
            client: Arc::new(client),
            jail,
            folder,
            vmm: Arc::new(vmm),
            clock: Arc::clone(&context.clock),
            busy: Arc::default(),
            saving: Mutex::default(),
            words: Words::default(),
            verdict: Arc::default(),
            ties: Ties::default(),
            kill: limits.kill,
            exit: OnceCell::new(),
        }
    }

    /// Starts to copy what the monitor and its guest write. `mark_gap`: output may have been lost before.
    pub(crate) fn listen(&self, context: &Context, mark_gap: bool) -> Result<()> {
        let serial = UntilEnd::new(self.jail.pipe(&inside(SERIAL)?)?, Arc::clone(&self.vmm));
        let output = UntilEnd::new(self.jail.output()?, Arc::clone(&self.vmm));
        let clock = Arc::clone(&self.clock);
        let console = context.config.console().record(&self.folder, serial, clock, mark_gap)?;
        let words = tokio::spawn(self.words.clone().hear(output));
        self.ties.read_by(console);
        self.ties.read_by(words);
        Ok(())
    }

    /// Ends a monitor that has said that it exits and does not. One whose guest ends while a call of the API is on its way waits for the
    /// thread that serves the API, and that one for an answer that nobody gives any more (Firecracker 1.16.1, seen once in a dozen exits
    /// that were asked about every 20 ms).
    fn see_off(&self) {
        let (clock, vmm, words) = (Arc::clone(&self.clock), Arc::clone(&self.vmm), self.words.clone());
        let task = tokio::spawn(async move {
            words.stops().await;
            clock.sleep(SEEN_OFF).await;
            // One that has ended is as good.
            let _ = vmm.process.kill();
        });
        self.ties.followed_by(task.abort_handle());
    }

    /// Kills a monitor that does not answer, when the settings say so, and one that does not exit though it has said that it does.
    pub(crate) fn watch(&self, context: &Context) {
        self.see_off();
        let Some(watchdog) = context.config.watchdog else { return };
        let (clock, vmm) = (Arc::clone(&self.clock), Arc::clone(&self.vmm));
        let (client, busy) = (Arc::clone(&self.client), Arc::clone(&self.busy));
        let verdict = Arc::clone(&self.verdict);
        let task = tokio::spawn(async move {
            let answers = || async {
                // One that saves its guest answers nothing else, and that has a deadline of its own.
                busy.load(Ordering::Acquire) > 0 || client.instance_info().await.is_ok()
            };
            if let Ok(killed @ Verdict::Killed { .. }) = watchdog.watch(&*clock, &vmm.process, answers).await
            {
                *verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(killed);
            }
        });
        self.ties.followed_by(task.abort_handle());
    }

    /// Notes, durably, that the guest may run from now on. [`Attached::let_go`] follows when it is let.
    pub(crate) async fn note_let_go(&self) -> Result<()> {
        let folder = self.folder.clone();
        blocking(move || folder.note_let_go()).await
    }

    /// The guest may run from now on, which is on disk.
    pub(crate) fn let_go(&self) {
        self.let_go.store(true, Ordering::Release);
    }

    pub(crate) fn is_let_go(&self) -> bool {
        self.let_go.load(Ordering::Acquire)
    }

    pub(crate) fn saving(&self, phase: Phase) -> Saving<'_> {
        self.busy.fetch_add(1, Ordering::AcqRel);
        *self.saving.lock().unwrap_or_else(PoisonError::into_inner) = Some(phase);
        Saving(self)
    }

    /// Where the guest is, by what Firecracker says. [`Phase::Starting`]: it has run nothing.
    pub(crate) async fn phase(&self) -> Result<Phase> {
        if let Some(phase) = *self.saving.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(phase);
        }
        if !self.is_let_go() {
            return Ok(Phase::Starting);
        }
        Ok(match self.client.instance_info().await?.state {
            InstanceState::Running => Phase::Running,
            InstanceState::Paused => Phase::Paused,
            InstanceState::NotStarted => Phase::Starting,
            InstanceState::Other(_) => Phase::Unknown,
        })
    }

    /// Lets a paused guest run on.
    ///
    /// Firecracker 1.16 holds back all that the host says over vsock from a resume on until the guest has acknowledged that its connections
    /// were reset, and says so to the guest only where a snapshot is taken: after a pause alone, nobody ever reaches the guest again
    /// (<https://github.com/firecracker-microvm/firecracker/pull/6100>). So one is asked for that cannot be written: the guest is told,
    /// and nothing else happens. Its connections end; its processes and files do not. Takes some 4 ms.
    pub(crate) async fn resume(&self) -> Result<()> {
        const FIRST: Version = Version::new(1, 16, 0);
        const FIXED: Version = Version::new(1, 17, 0);
        let version = self.client.version().await?;
        if (FIRST..FIXED).contains(&version) {
            let nowhere = || PathBuf::from("/nowhere/file");
            let create = SnapshotCreate {
                snapshot_type: SnapshotType::Full,
                snapshot_path: nowhere(),
                mem_file_path: nowhere(),
            };
            match self.client.create_snapshot(&create).await {
                Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::OutcomeUnknown) => {
                    return Err(error);
                }
                // It must fail; how does not matter.
                _ => {}
            }
        }
        self.client.resume().await
    }

    /// Kills the monitor; returns once it is gone. False when it does not go.
    pub(crate) async fn kill(&self) -> bool {
        self.vmm.process.kill_within(&*self.clock, self.kill).await
    }

    /// Returns true once the monitor has ended, false after the deadline.
    pub(crate) async fn ends_within(&self, deadline: Duration) -> bool {
        self.vmm.process.ends_within(&*self.clock, deadline).await
    }

    /// The end of what the monitor has said, once it has ended.
    pub(crate) async fn last_words(&self) -> Option<String> {
        self.ties.read_out(&*self.clock).await;
        end_of(&self.words.text())
    }

    async fn settle_exit(&self) -> Result<Exit> {
        // A process with several threads has no status before the last of them is gone.
        self.ends_within(self.kill).await;
        let words = self.last_words().await;
        let verdict = *self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = Seen {
            is_stopped: self.folder.is_stop_requested(),
            is_killed: verdict.is_some(),
            ended: self.process().reap(),
            told: words.as_deref().and_then(exit_code_in),
            has_stopped: words.as_deref().is_some_and(says_that_it_stops),
            was_followed: true,
        };
        let message = verdict.map(|verdict| verdict.to_string()).or(words);
        note_exit(&self.folder, &self.clock, &seen, message).await
    }
}

impl Monitor for Attached {
    type Before = Before;

    fn process(&self) -> &Process {
        &self.vmm.process
    }

    fn ties(&self) -> &Ties {
        &self.ties
    }

    fn left_before(&self) -> Option<Before> {
        (!self.is_let_go()).then(|| Before::Stale(self.jail.clone()))
    }

    async fn look(&self) -> Option<Phase> {
        match self.phase().await {
            Ok(phase) => Some(phase),
            // It may have ended while it was asked, or be about to.
            Err(_) if self.is_let_go() && self.ends_within(HUNG_UP).await => None,
            Err(_) => Some(Phase::Unknown),
        }
    }

    async fn exit(&self) -> Result<Exit> {
        self.exit.get_or_try_init(|| self.settle_exit()).await.cloned()
    }
}

/// The end of a monitor that was gone when it was looked for. `process` is there when it was not reaped yet.
pub(crate) async fn settle_unseen(
    folder: &Folder,
    jail: &Jail,
    process: Option<&Process>,
    clock: &Arc<dyn Clock>,
) -> Result<Exit> {
    let words = jail.last_words();
    let seen = Seen {
        is_stopped: folder.is_stop_requested(),
        is_killed: false,
        ended: process.and_then(Process::reap),
        told: words.as_deref().and_then(exit_code_in),
        has_stopped: words.as_deref().is_some_and(says_that_it_stops),
        was_followed: false,
    };
    let message = words.as_deref().and_then(end_of);
    note_exit(folder, clock, &seen, message).await
}

async fn note_exit(
    folder: &Folder,
    clock: &Arc<dyn Clock>,
    seen: &Seen,
    message: Option<String>,
) -> Result<Exit> {
    let (cause, code, signal) = seen.cause();
    folder.note_exit(Exit { cause, code, signal, at: clock.now(), message }).await
}

/// What is known of a monitor's end.
#[derive(Debug, Clone, Copy)]
struct Seen {
    is_stopped: bool,
    /// By the watchdog.
    is_killed: bool,
    /// Its status; only for a child of this process.
    ended: Option<Ended>,
    /// The exit code that it has written into its log.
    told: Option<i32>,
    /// It has said that its machine has ended.
    has_stopped: bool,
    /// Somebody read what it said until its end.
    was_followed: bool,
}

impl Seen {
    /// Why it has ended, with code and signal, as far as that is known. Firecracker exits with 0 when its guest reboots or halts, and
    /// only then by itself.
    fn cause(&self) -> (ExitCause, Option<i32>, Option<i32>) {
        let (code, signal) = match self.ended {
            Some(Ended::Code(code)) => (Some(code), None),
            Some(Ended::Signal(signal)) => (None, Some(signal)),
            None => (self.told, None),
        };
        let cause = match (code, signal) {
            _ if self.is_stopped => ExitCause::Stopped,
            _ if self.is_killed => ExitCause::Crashed,
            (Some(0), _) => ExitCause::Guest,
            (Some(_), _) => ExitCause::Crashed,
            // Killed on its way out.
            (None, _) if self.has_stopped => ExitCause::Guest,
            (None, Some(_)) => ExitCause::Crashed,
            // An orderly end is told; this one was not, though somebody listened.
            (None, None) if self.was_followed => ExitCause::Crashed,
            (None, None) => ExitCause::Unknown,
        };
        (cause, code, signal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_only_when_it_is_known() {
        let unseen = Seen {
            is_stopped: false,
            is_killed: false,
            ended: None,
            told: None,
            has_stopped: false,
            was_followed: false,
        };
        let cause = |seen: Seen| seen.cause().0;
        assert_eq!(cause(unseen), ExitCause::Unknown);
        assert_eq!(cause(Seen { was_followed: true, ..unseen }), ExitCause::Crashed);
        assert_eq!(cause(Seen { told: Some(0), ..unseen }), ExitCause::Guest);
        assert_eq!(Seen { told: Some(148), ..unseen }.cause(), (ExitCause::Crashed, Some(148), None));
        assert_eq!(cause(Seen { ended: Some(Ended::Code(0)), ..unseen }), ExitCause::Guest);
        let killed = Seen { ended: Some(Ended::Signal(9)), ..unseen };
        assert_eq!(killed.cause(), (ExitCause::Crashed, None, Some(9)));
        assert_eq!(cause(Seen { has_stopped: true, ..killed }), ExitCause::Guest);
        assert_eq!(cause(Seen { has_stopped: true, told: Some(148), ..unseen }), ExitCause::Crashed);
        assert_eq!(cause(Seen { is_stopped: true, ..killed }), ExitCause::Stopped);
        assert_eq!(cause(Seen { is_killed: true, told: Some(0), ..unseen }), ExitCause::Crashed);
    }
}
