//! From a prepared jail to a Firecracker that answers.
//!
//! Every point at which the controller may be killed:
//!
//! * before `process.json` is written: the jail is prepared.
//! * between that and the fork: the same; nobody holds the jail's lock.
//! * between the fork and the second `process.json`, with the pid: a jailer, or a Firecracker, that has run no guest, since it is
//!   asked to only by a driver that has the pid on record. It is found by its command line, and, when it is too young for that, by the
//!   lock that it has had since the fork. The next start ends it first; the removal too.
//! * after that: the process is known by (boot id, pid, start time, command line or user). Whether its guest has run is the driver's to
//!   know ([`Jail::reset`]), and to have on its disk before it lets it run: these records are not flushed, so that a host that died may
//!   find the jail prepared.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use flames_clock::ClockExt;
use flames_error::{Error, ErrorKind, Result};
use flames_host::blocking;
use flames_host::files::{failed, remove_all};
use flames_host::process::{Confinement, Ended, Process, Program, open_bounded_pipe, spawn_detached};
use tokio::net::UnixStream;

use crate::chroot::Inside;
use crate::command;
use crate::group::Weight;
use crate::jail::{Jail, State, situation};
use crate::limits::disk_of;
use crate::may_die_here;
use crate::record::{ProcessRecord, SCHEMA};

const OPERATION: &str = "jail.start";
/// Between two looks for a socket that is to come.
const SHORTEST_LOOK: Duration = Duration::from_micros(500);
const LONGEST_LOOK: Duration = Duration::from_millis(20);
/// The most bytes of a message that are kept.
const LONGEST_MESSAGE: usize = 2048;

/// How a jail's VMM is started.
#[derive(Debug, Clone, Default)]
pub struct Launch {
    /// The network namespace that the VMM is in (`/run/netns/…`); the host's when there is none.
    pub network_namespace: Option<PathBuf>,
    /// Firecracker's arguments. Not `--id`, `--config-file`, `--no-api`, nor what changes the filter of system calls. Sockets are best in
    /// `run`, which is empty at each start.
    pub arguments: Vec<OsString>,
}

/// The VMM of a jail.
#[derive(Debug)]
pub struct Vmm {
    /// Its process, which outlives this value.
    pub process: Process,
    /// Held open, so that what was said outlives the process.
    _output: File,
}

impl Jail {
    /// Starts the jailer, which becomes Firecracker, or takes the one that waits, whose launch was the same. Returns when it is on record; it may not answer yet, see [`Jail::answering`].
    /// Leftovers of a start that was cut short are ended first. Nothing that the VMM could do is awaited.
    ///
    /// Errors: `Conflict` when it was started before; `InvalidInput` for arguments or limits; `NotFound` when a file that is to be
    /// mounted is gone; `NotSupported` when the host cannot limit it, or Firecracker is not where it was; `Unavailable` when what
    /// was cut short does not end; `Internal`.
    ///
    /// A dropped call goes on by itself; what it leaves is found as that of a killed process.
    pub async fn start(&self, launch: Launch) -> Result<Vmm> {
        self.launch(launch, false).await
    }

    pub(crate) async fn launch(&self, launch: Launch, waits: bool) -> Result<Vmm> {
        command::check(&launch.arguments, self.shared.config.allow_without_seccomp)?;
        let waiting = self.end_unfinished().await?;
        let jail = self.clone();
        blocking(move || match waiting {
            Some(process) if !waits => jail.take_waiting(process),
            Some(_) => Err(Error::new(ErrorKind::Conflict, OPERATION, "its process waits already")),
            None => jail.start_now(&launch, waits),
        })
        .await
    }

    /// From now on its process is one that was started: whoever finds it does not know what it has been told.
    pub(crate) fn take_waiting(&self, process: Process) -> Result<Vmm> {
        let noted = ProcessRecord {
            schema: SCHEMA,
            boot_id: self.shared.boot_id.clone(),
            process: Some(process.identity()),
            waits: false,
        };
        may_die_here!("before a process waits no more");
        self.folder.write_process(&noted)?;
        may_die_here!("before a process that waited is told");
        self.attach(process)
    }

    pub(crate) fn start_now(&self, launch: &Launch, waits: bool) -> Result<Vmm> {
        let shared = &self.shared;
        let io = |error| failed("the jailer cannot be started", error);
        let record = &self.record;
        shared.config.installed()?;
        if !record.firecracker.is_file() {
            let sentence =
                "The Firecracker that this microVM was prepared for was removed. Create the microVM again.";
            return Err(Error::new(ErrorKind::NotSupported, OPERATION, "firecracker is not where it was")
                .with_user_message(sentence)
                .with_context("path", record.firecracker.display()));
        }
        let lock = self.folder.lock()?.ok_or_else(|| {
            Error::unavailable(OPERATION, "an earlier process of this incarnation is still there")
        })?;
        self.clear_for_start()?;
        let root = self.root();
        let mut mounts = Vec::new();
        for placed in &record.placed {
            mounts.extend(placed.mount(&root)?);
        }
        let mut noted =
            ProcessRecord { schema: SCHEMA, boot_id: shared.boot_id.clone(), process: None, waits };
        may_die_here!("before the start is noted");
        self.folder.write_process(&noted)?;
        may_die_here!("before the groups are made");
        let disk = disk_of(self.chroot()?.device().map_err(io)?, std::path::Path::new("/sys"));
        let limits = &record.spec.limits;
        let settings = limits.plan(shared.groups.hierarchies(), disk, shared.config.allow_without_limits)?;
        let groups = shared.groups.make(record.started_name(), &settings)?;
        may_die_here!("before a start goes ahead of others");
        shared.groups.weigh(record.started_name(), Weight::Ahead)?;
        let output = open_bounded_pipe(&self.folder.join("output")).map_err(io)?;
        let namespace = launch.network_namespace.as_deref();
        let arguments = command::build(record, self.folder.path(), namespace, &launch.arguments);
        may_die_here!("before the jailer is started");
        let pid = spawn_detached(Program {
            binary: &shared.config.jailer,
            arguments: &arguments,
            inherited: &[],
            // Empty, as `/dev/null`; and locked for as long as the process, or its fork before exec, has it.
            input: Some(lock),
            output: Some(output.try_clone().map_err(io)?),
            errors: output.try_clone().map_err(io)?,
            confinement: Confinement { groups, umask: Some(0o077), no_core_file: true, mounts },
        })
        .map_err(io)?;
        may_die_here!("before the process is noted");
        // One that has ended already is still there: only we reap it.
        let process = Process::of_child(pid).map_err(io)?;
        noted.process = Some(process.identity());
        self.folder.write_process(&noted)?;
        may_die_here!("before the process is told");
        Ok(Vmm { process, _output: output })
    }

    /// Ends the precedence that the jail's processes have had on busy processors since [`Jail::start`]: sixteen times what a running machine
    /// gets, so that a start beside many guests at work takes no longer than it needs. To be called before anything of a guest runs. Blocks
    /// for the write of one file of the kernel's.
    ///
    /// Errors: `Internal`.
    pub fn fall_in_line(&self) -> Result<()> {
        self.shared.groups.weigh(self.record.started_name(), Weight::Even)
    }

    /// The jailer makes what is here itself, and refuses to when it is there. Nothing of the jail runs.
    fn clear_for_start(&self) -> Result<()> {
        let io = |error| failed("the chroot cannot be cleared", error);
        let root = self.root();
        let program = self.record.firecracker.file_name().unwrap_or_default();
        let mut pid_file = program.to_owned();
        pid_file.push(".pid");
        for name in [program, &*pid_file, "dev".as_ref(), "run".as_ref(), "old_root".as_ref()] {
            remove_all(&root.join(name)).map_err(io)?;
        }
        self.chroot()?.make_folder("run").map_err(io)
    }

    /// The process that waits to be started, when there is one.
    async fn end_unfinished(&self) -> Result<Option<Process>> {
        let clock = &self.shared.clock;
        let ends = async {
            loop {
                let (folder, record, boot_id) =
                    (self.folder.clone(), self.record.clone(), self.shared.boot_id.clone());
                match blocking(move || situation(&folder, &record, &boot_id)).await? {
                    State::Prepared => return Ok(None),
                    State::Waiting(process) if process.is_alive() => return Ok(Some(process)),
                    State::Waiting(process) => {
                        process.reap();
                        return Ok(None);
                    }
                    State::Unfinished(processes) => {
                        for process in &processes {
                            process.kill().map_err(|error| failed("a process cannot be killed", error))?;
                            let _ = process.ended().await;
                            process.reap();
                        }
                        clock.sleep(Duration::from_millis(1)).await;
                    }
                    State::Started(_) | State::Gone | State::Damaged(_) => {
                        return Err(Error::new(
                            ErrorKind::Conflict,
                            OPERATION,
                            "the jail was started before",
                        )
                        .with_resource("incarnation", self.name().as_str()));
                    }
                }
            }
        };
        clock.timeout(self.shared.config.kill_deadline, ends).await.unwrap_or_else(|_| {
            Err(Error::unavailable(OPERATION, "what an earlier start has left does not end"))
        })
    }

    /// Back to prepared, for a VMM whose guest has run nothing: kills it when it lives, and forgets it.
    ///
    /// Errors: `Unavailable` when it does not end.
    pub async fn reset(&self) -> Result<()> {
        self.shared.end_all(self.name(), Some(&self.folder), Some(&self.record)).await?;
        let folder = self.folder.clone();
        blocking(move || folder.forget_process()).await
    }

    /// The VMM of a jail that was found as [`State::Started`]. Errors: `Internal`.
    pub fn attach(&self, process: Process) -> Result<Vmm> {
        let output = open_bounded_pipe(&self.folder.join("output"))
            .map_err(|error| failed("the output cannot be opened", error))?;
        Ok(Vmm { process, _output: output })
    }

    /// Connects to the VMM's socket (its API), as soon as it listens.
    ///
    /// Errors: `Internal` when the process ends before, with what it said; `Unavailable` after the deadline. The process is let be.
    pub async fn answering(&self, vmm: &Vmm, socket: &Inside, deadline: Duration) -> Result<UnixStream> {
        let clock = &self.shared.clock;
        let begun = clock.monotonic();
        let connect = async {
            loop {
                if let Ok(stream) = self.connect(socket).await {
                    return Ok(stream);
                }
                if !vmm.process.is_alive() {
                    let how = match vmm.process.reap() {
                        Some(Ended::Code(code)) => format!("with exit code {code}"),
                        Some(Ended::Signal(signal)) => format!("by signal {signal}"),
                        None => "in an unknown way".to_owned(),
                    };
                    let said = self.last_words().unwrap_or_else(|| "nothing".to_owned());
                    let message = format!("Firecracker ended at its start, {how}; it said: {said}");
                    return Err(Error::internal(OPERATION, message)
                        .with_user_message("Firecracker could not be started on this host.")
                        .with_resource("incarnation", self.name().as_str()));
                }
                // Some 6 ms on an idle host. The longer it has taken the less often is looked, lest many that wait keep those from
                // coming into being that they wait for; at most an eighth is lost.
                let waited = clock.monotonic().saturating_since(begun);
                clock.sleep((waited / 8).clamp(SHORTEST_LOOK, LONGEST_LOOK)).await;
            }
        };
        clock.timeout(deadline, connect).await.unwrap_or_else(|_| {
            Err(Error::unavailable(OPERATION, "Firecracker does not answer after its start"))
        })
    }

    /// The end of what the jailer and Firecracker said and nobody has read, at most 2 KiB. Reads it.
    pub fn last_words(&self) -> Option<String> {
        let mut output = open_bounded_pipe(&self.folder.join("output")).ok()?;
        let mut said = Vec::new();
        let mut part = [0; 4096];
        // The writer may go on: no more is read than the pipe can hold.
        for _ in 0..16 {
            let Ok(count @ 1..) = output.read(&mut part) else { break };
            said.extend_from_slice(&part[..count]);
            let surplus = said.len().saturating_sub(LONGEST_MESSAGE);
            said.drain(..surplus);
        }
        let text = String::from_utf8_lossy(&said);
        let text = text.trim();
        let start = text.char_indices().rev().take(LONGEST_MESSAGE).last().map_or(0, |(index, _)| index);
        (!text.is_empty()).then(|| text[start..].to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    #[test]
    fn a_lock_that_a_process_has_as_its_input_lasts_until_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let jail = crate::record::JailFolder::new(folder.path().to_owned());
        let lock = jail.lock().unwrap().unwrap();
        assert!(jail.lock().unwrap().is_none(), "held by another open file");
        let copy = lock.as_fd().try_clone_to_owned().unwrap();
        drop(lock);
        assert!(jail.lock().unwrap().is_none(), "handed on");
        drop(copy);
        assert!(jail.lock().unwrap().is_some());
    }
}
