//! A child that runs on while others come and go, such as a server; and a time limit for one that does not end.

use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use super::{Ended, GRACE, Interrupted, Shared, Supervisor, described, ended};

/// How often an end is looked for.
const POLL: Duration = Duration::from_millis(20);

/// A child that runs beside others.
#[derive(Debug)]
pub(crate) struct Beside {
    pid: Pid,
}

impl Beside {
    /// Its process.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }
}

impl Shared {
    /// Keeps how a child that runs beside others ended; others are of no interest.
    pub(super) fn note(&self, pid: Pid, status: WaitStatus) {
        let mut beside = self.beside.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, end)) = beside.iter_mut().find(|(known, end)| *known == pid && end.is_none()) {
            *end = Some(ended(status));
        }
    }

    pub(super) fn kill_beside(&self) {
        for (pid, end) in self.beside.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if end.is_none() {
                // It leads a group only once its session is made; the only other failure is that it has ended.
                let _ = rustix::process::kill_process_group(*pid, Signal::KILL);
                let _ = rustix::process::kill_process(*pid, Signal::KILL);
            }
        }
    }

    fn end_of(&self, child: &Beside) -> Option<Ended> {
        let beside = self.beside.lock().unwrap_or_else(PoisonError::into_inner);
        beside.iter().find(|(pid, _)| *pid == child.pid).and_then(|(_, end)| *end)
    }
}

impl Supervisor {
    /// Starts `command` with its output in `log`, in a session of its own, so that neither Ctrl-C nor the end of the
    /// terminal reaches it but through here. It keeps the `TMPDIR` of this process, since it may outlive this run.
    ///
    /// # Errors
    /// [`Interrupted`], or when it cannot be started.
    pub(crate) fn start_beside(&self, command: &Command, log: &File) -> Result<Beside> {
        if self.shared.interrupted() {
            return Err(Interrupted.into());
        }
        // setsid(1) replaces itself by the program, under the same number, when it leads no group, as here.
        let mut session = Command::new("setsid");
        session.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            session.current_dir(folder);
        }
        session.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
        let child = session.spawn().with_context(|| format!("cannot start {}", described(command)))?;
        let pid =
            i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a child without a number")?;
        self.shared.beside.lock().unwrap_or_else(PoisonError::into_inner).push((pid, None));
        Ok(Beside { pid })
    }

    /// How the child ended, or `None` while it runs. Call it when no other command is running.
    pub(crate) fn end_of(&self, child: &Beside) -> Option<Ended> {
        self.reap();
        self.shared.end_of(child)
    }

    /// Asks the child to end, also after an interruption; kills it when it has not within `limit`.
    pub(crate) fn end(&self, child: &Beside, limit: Duration) -> Ended {
        let deadline = Instant::now() + limit;
        let mut asked = false;
        let mut killed = false;
        loop {
            if let Some(end) = self.end_of(child) {
                return end;
            }
            if !asked {
                asked = true;
                let _ = rustix::process::kill_process(child.pid, Signal::TERM);
            } else if !killed && Instant::now() >= deadline {
                killed = true;
                self.shared.kill_beside();
            } else if Instant::now() >= deadline + GRACE {
                // Not even a killed process ends while the kernel holds it; the rest is for the system's administrator.
                return Ended::Signalled(Signal::KILL.as_raw());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Ends this supervision and leaves what runs beside, with all that it started, to itself.
    pub(crate) fn leave(self) {
        self.shared.left.store(true, Ordering::SeqCst);
    }

    /// [`Interrupted`] when the run has been.
    ///
    /// # Errors
    /// That.
    pub(crate) fn check(&self) -> Result<()> {
        if self.shared.interrupted() { Err(Interrupted.into()) } else { Ok(()) }
    }

    /// Does `work`, which runs one command; a command that has not ended within `limit` is ended.
    ///
    /// # Errors
    /// Those of `work`, and when the limit was reached.
    pub(crate) fn within<T>(&self, limit: Duration, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let (finished, watched) = mpsc::sync_channel::<()>(1);
        let shared = std::sync::Arc::clone(&self.shared);
        let watchdog = std::thread::spawn(move || {
            let passed = |limit| watched.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
            if !passed(limit) {
                return false;
            }
            shared.signal(Signal::TERM);
            if passed(GRACE) {
                shared.signal(Signal::KILL);
            }
            true
        });
        let result = work();
        drop(finished);
        let expired = watchdog.join().unwrap_or(false);
        self.check()?;
        anyhow::ensure!(!expired, "it did not end within {} s and was ended", limit.as_secs());
        result
    }

    /// Takes in every child that has ended, orphans too.
    pub(super) fn reap(&self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            self.shared.note(pid, status);
        }
    }
}
