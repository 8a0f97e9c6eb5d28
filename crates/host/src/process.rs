//! Processes of the host: starting one that outlives us, telling it apart from any other, waiting for its end.
//!
//! A process is known by (boot id, pid, start time) and by words on its command line that only it can have. It is signalled
//! through a pidfd that was opened *before* the identity was checked, so a pid that the kernel reuses meanwhile is never hit.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use flames_clock::{Clock, ClockExt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getuid, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

pub use crate::spawn::{
    BindMount, Confinement, Program, forking, open_bounded_pipe, spawn_detached, without_forks,
};

/// The kernel's clock ticks per second as `/proc` counts them: `USER_HZ`, 100 on every architecture that we run on (proc(5)).
const TICKS_PER_SECOND: u64 = 100;

/// Which process it is, among all since the host booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its number, which the kernel gives to another one after its end.
    pub pid: u32,
    /// Clock ticks from the host's boot to the process's start (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
}

/// Words that stand next to each other on the command line of the process meant, and of no other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker(Vec<OsString>);

impl Marker {
    /// The words, in their order.
    pub fn new(words: impl IntoIterator<Item = OsString>) -> Self {
        Self(words.into_iter().collect())
    }

    fn is_on(&self, command_line: &[u8]) -> bool {
        let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
        words.windows(self.0.len()).any(|window| window.iter().zip(&self.0).all(|(a, b)| *a == b.as_bytes()))
    }
}

/// How a process ended, as far as its parent can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// The host's boot id: another one means that no process of before is left. Errors: those of reading `/proc`.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// What `/proc/PID/stat` tells (proc(5)).
#[derive(Debug, Clone, Copy)]
struct Stat {
    state: u8,
    cpu_ticks: u64,
    start_ticks: u64,
    resident_pages: u64,
}

impl Stat {
    fn read(pid: u32) -> io::Result<Self> {
        let text = std::fs::read(format!("/proc/{pid}/stat"))?;
        Self::parse(&text)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable /proc/PID/stat"))
    }

    /// The name in parentheses may hold anything, parentheses too: fields are counted behind the last one.
    fn parse(text: &[u8]) -> Option<Self> {
        let behind_name = text.iter().rposition(|byte| *byte == b')')? + 1;
        let fields: Vec<&str> =
            std::str::from_utf8(&text[behind_name..]).ok()?.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            state: *fields.first()?.as_bytes().first()?,
            cpu_ticks: number(14)?.saturating_add(number(15)?),
            start_ticks: number(22)?,
            resident_pages: number(24)?,
        })
    }

    fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// The identity of the process that has the pid now.
fn identify(pid: u32) -> io::Result<Identity> {
    Ok(Identity { pid, start_ticks: Stat::read(pid)?.start_ticks })
}

/// A process that was proven to be the one meant.
#[derive(Debug)]
pub struct Process {
    identity: Identity,
    descriptor: AsyncFd<OwnedFd>,
}

impl Process {
    /// A child of ours that was not yet reaped, so that its pid is surely its own. Its command line is not looked at: it may
    /// not stand there yet when `exec` has just succeeded.
    pub fn of_child(pid: u32) -> io::Result<Self> {
        let descriptor = open_descriptor(pid)?.ok_or(io::ErrorKind::NotFound)?;
        Self::new(Identity { pid, start_ticks: Stat::read(pid)?.start_ticks }, descriptor)
    }

    /// The living process that has the pid now, whichever it is; none when there is none. What proves that it is the one meant must be
    /// looked at after this, since the pid may have been another's before.
    pub fn of_pid(pid: u32) -> io::Result<Option<Self>> {
        let Some(descriptor) = open_descriptor(pid)? else { return Ok(None) };
        match identify(pid) {
            Ok(identity) => Self::new(identity, descriptor).map(Some),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn new(identity: Identity, descriptor: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` is open, and the same, for as long as it lives; it is never taken out of the `AsyncFd`.
        #[allow(unsafe_code)]
        let descriptor = unsafe { AsyncFd::register(descriptor) }?;
        Ok(Self { identity, descriptor })
    }

    /// The process, when it still is there (alive, or ended and not yet reaped).
    pub fn find(identity: Identity, marker: &Marker) -> io::Result<Option<Self>> {
        Self::find_proven(identity, |pid| has_marker(pid, marker))
    }

    /// As [`Process::find`], with another proof than a marker that the process with this pid is the one meant: a process may write over
    /// its own command line, but not over who its user is. The proof is asked for a process that has the right start time.
    pub fn find_proven(identity: Identity, is_meant: impl Fn(u32) -> bool) -> io::Result<Option<Self>> {
        let Some(descriptor) = open_descriptor(identity.pid)? else { return Ok(None) };
        let is_it = || match Stat::read(identity.pid) {
            Ok(stat) => Ok((stat.start_ticks == identity.start_ticks).then_some(stat)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        };
        let Some(stat) = is_it()? else { return Ok(None) };
        // An ended process has no command line any more; its start time alone must do, and nothing can be hit any more. It
        // may end between the two looks.
        if !stat.has_ended() && !is_meant(identity.pid) && !is_it()?.is_some_and(|stat| stat.has_ended()) {
            return Ok(None);
        }
        Self::new(identity, descriptor).map(Some)
    }

    /// Which process it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether it can still do anything. One that is about to end ([`Process::ended`] is soon to return) cannot.
    pub fn is_alive(&self) -> bool {
        let mut polled = [PollFd::new(self.descriptor.get_ref(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A pidfd becomes readable when the last thread has ended (pidfd_open(2)), a little after the process became a zombie.
        let all_ended = matches!(poll(&mut polled, Some(&now)), Ok(ready) if ready > 0);
        !all_ended && Stat::read(self.identity.pid).is_ok_and(|stat| !stat.has_ended())
    }

    /// Returns once the process has ended.
    pub async fn ended(&self) -> io::Result<()> {
        self.descriptor.readable().await.map(|_| ())
    }

    /// Sends SIGKILL; no error when it has ended.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.descriptor.get_ref(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns true once the process has ended, false after the deadline.
    pub async fn ends_within(&self, clock: &dyn Clock, deadline: Duration) -> bool {
        matches!(clock.timeout(deadline, self.ended()).await, Ok(Ok(())))
    }

    /// Kills the process and returns once it is gone; false when it does not go before the deadline.
    pub async fn kill_within(&self, clock: &dyn Clock, deadline: Duration) -> bool {
        (!self.is_alive() || self.kill().is_ok()) && self.ends_within(clock, deadline).await
    }

    /// Takes the exit status of an ended child; `None` when it is not our child, or was taken before.
    pub fn reap(&self) -> Option<Ended> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::PidFd(self.descriptor.get_ref().as_fd()), options).ok()??;
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Some(Ended::Code(code)),
            (None, Some(signal)) => Some(Ended::Signal(signal)),
            (None, None) => None,
        }
    }

    /// (resident bytes, processor time, time since the start).
    pub fn usage(&self) -> io::Result<(u64, Duration, Duration)> {
        let stat = Stat::read(self.identity.pid)?;
        let uptime = std::fs::read_to_string("/proc/uptime")?;
        let host_seconds: f64 =
            uptime.split_ascii_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or_default();
        let started = Duration::from_millis(stat.start_ticks * 1000 / TICKS_PER_SECOND);
        let resident = stat.resident_pages * rustix::param::page_size() as u64;
        let cpu = Duration::from_millis(stat.cpu_ticks * 1000 / TICKS_PER_SECOND);
        Ok((resident, cpu, Duration::from_secs_f64(host_seconds.max(0.0)).saturating_sub(started)))
    }
}

fn open_descriptor(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(descriptor) => Ok(Some(descriptor)),
        // EINVAL: the number now belongs to a thread (ENOENT from Linux 6.16 on).
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// Whether the words of the marker stand on the process's command line now.
pub fn has_marker(pid: u32, marker: &Marker) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| marker.is_on(&line))
}

/// The process's real user (`Uid:` of `/proc/PID/status`, proc(5)), which it cannot hide; none when it is gone.
pub fn user_of(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Every process of our user that has the marker on its command line. Reads all of `/proc`: for recovery only.
pub fn scan(marker: &Marker) -> io::Result<Vec<Process>> {
    let ours = getuid().as_raw();
    every(|pid, owner| owner == ours && has_marker(pid, marker))
}

/// Every process that has the marker on its command line and one of these users. Reads all of `/proc`: for recovery only.
pub fn scan_of(marker: &Marker, users: &[u32]) -> io::Result<Vec<Process>> {
    every(|pid, owner| {
        users.contains(&owner)
            && has_marker(pid, marker)
            && user_of(pid).is_some_and(|user| users.contains(&user))
    })
}

/// Every process of the user. Reads all of `/proc`.
pub fn processes_of(user: u32) -> io::Result<Vec<Process>> {
    // A process that must not be looked into belongs to root there (proc(5)), whoever its user is.
    every(|pid, owner| (owner == user || owner == 0) && user_of(pid) == Some(user))
}

/// Every living process of which `is_meant` says so, by its pid and the owner of `/proc/PID`.
fn every(is_meant: impl Fn(u32, u32) -> bool) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(owner) = entry.metadata().map(|metadata| metadata.uid()) else { continue };
        if !is_meant(pid, owner) {
            continue;
        }
        let Ok(identity) = identify(pid) else { continue };
        if let Some(process) = Process::find_proven(identity, |pid| is_meant(pid, owner))?
            && process.is_alive()
        {
            found.push(process);
        }
    }
    Ok(found)
}

/// Kills every process of our user that has the marker on its command line, without waiting for its end. Reads all of `/proc`. Needs no
/// runtime, so it may be called where one is ending.
pub fn kill_marked(marker: &Marker) {
    let ours = getuid().as_raw();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if !entry.metadata().is_ok_and(|metadata| metadata.uid() == ours) {
            continue;
        }
        // Opened before the look, so that a pid that is reused meanwhile is never hit.
        let Ok(Some(descriptor)) = open_descriptor(pid) else { continue };
        if has_marker(pid, marker) {
            // One that ended by itself is as good.
            let _ = pidfd_send_signal(&descriptor, Signal::KILL);
        }
    }
}

/// The program's path: as given when it has a slash, else looked up on `PATH`.
pub fn find_program(name: &Path) -> Option<std::path::PathBuf> {
    let is_program =
        |path: &Path| path.metadata().is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0);
    if name.as_os_str().as_bytes().contains(&b'/') {
        return is_program(name).then(|| name.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|candidate| is_program(candidate))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let mut line = b"42 (a) b (c) S".to_vec();
        for field in 4..=30 {
            line.extend_from_slice(format!(" {field}").as_bytes());
        }
        let stat = Stat::parse(&line).unwrap();
        assert_eq!((stat.state, stat.cpu_ticks, stat.start_ticks, stat.resident_pages), (b'S', 29, 22, 24));
        assert!(Stat::parse(b"").is_none());
        assert!(Stat::parse(b"1 (x) S 2 3").is_none());
    }

    #[test]
    fn a_marker_matches_whole_neighbouring_words_only() {
        let marker = Marker::new(["-pidfile".into(), "/data/inc_1/monitor.pid".into()]);
        assert!(marker.is_on(b"qemu\0-pidfile\0/data/inc_1/monitor.pid\0-S\0"));
        assert!(!marker.is_on(b"qemu\0-pidfile\0/data/inc_10/monitor.pid\0-S\0"));
        assert!(!marker.is_on(b"tail\0-f\0/data/inc_1/monitor.pid\0"));
        assert!(!marker.is_on(b""));
    }

    /// Right after `exec` the command line may not stand there yet.
    async fn found(identity: Identity, marker: &Marker) -> Process {
        loop {
            if let Some(process) = Process::find(identity, marker).unwrap() {
                return process;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn a_reused_pid_is_not_taken_for_the_process_that_had_it() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let marker = Marker::new(["sleep".into(), "60".into()]);
        let identity = identify(child.id()).unwrap();
        found(identity, &marker).await;
        let later = Identity { start_ticks: identity.start_ticks + 1, ..identity };
        assert!(Process::find(later, &marker).unwrap().is_none(), "another start time");
        let other = Marker::new(["sleep".into(), "61".into()]);
        assert!(Process::find(identity, &other).unwrap().is_none(), "another command line");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Process::find(identity, &marker).unwrap().is_none(), "gone");
    }

    #[tokio::test]
    #[allow(clippy::zombie_processes, reason = "it is reaped through its pidfd")]
    async fn the_end_of_a_child_is_seen_with_its_signal() {
        let child = Command::new("sleep").arg("62").spawn().unwrap();
        let marker = Marker::new(["sleep".into(), "62".into()]);
        let process = found(identify(child.id()).unwrap(), &marker).await;
        assert!(process.is_alive());
        process.kill().unwrap();
        process.ended().await.unwrap();
        assert!(!process.is_alive());
        assert_eq!(process.reap(), Some(Ended::Signal(9)));
        assert_eq!(process.reap(), None);
    }
}
