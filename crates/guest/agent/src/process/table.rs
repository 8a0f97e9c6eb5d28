use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flames_guest_protocol::limits::MAX_PROCESSES;
use flames_guest_protocol::message::{MAIN_PROCESS, ProcessExit};
use flames_guest_protocol::{Error, ErrorKind, Result};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use super::ring::Ring;
use super::spawn::{Spawn, Spawned, spawn};
use super::{Process, State, pump};
use crate::clock::now_ms;
use crate::watched::watch;

// Data pieces between a stream and a process that does not read.
const INPUT_QUEUE: usize = 4;

/// The number of a process's output streams on the wire.
const STANDARD_OUTPUT: u8 = 1;
const STANDARD_ERROR: u8 = 2;
const TERMINAL: u8 = 3;

/// A process to start, and how it is known.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    /// `None`: the table makes an id.
    pub(crate) id: Option<String>,
    pub(crate) ring_bytes: usize,
    pub(crate) spawn: Spawn<'a>,
}

/// Every process that the agent started. Spawning, signalling and reaping take one lock, so that a signal never
/// reaches a number that was given to another process, and an exit never comes before its process is known.
#[derive(Debug)]
pub(crate) struct Table {
    inner: Mutex<Inner>,
    exits: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    processes: BTreeMap<String, Arc<Process>>,
    running: HashMap<u32, Arc<Process>>,
    next_id: u64,
    sequence: u64,
    closed: bool,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self { inner: Mutex::default(), exits: watch::Sender::new(0) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes at every exit.
    pub(crate) fn exits(&self) -> watch::Receiver<u64> {
        self.exits.subscribe()
    }

    /// Starts a process. Must be called within a tokio runtime.
    ///
    /// Errors: `AlreadyExists`, `Exhausted`, `Unavailable` during a shutdown, and those of starting a program.
    pub(crate) fn start(&self, request: &Start<'_>) -> Result<Arc<Process>> {
        let mut inner = self.inner();
        let id = inner.reserve(request.id.clone())?;
        let spawned = spawn(&request.spawn)?;
        let pid = spawned.pid;
        let process = match watched(id, request, spawned) {
            Ok(process) => process,
            Err(error) => {
                if let Some(pid) = number(pid) {
                    let _ = rustix::process::kill_process_group(pid, Signal::KILL);
                }
                return Err(Error::from_io("watch the new process", &error));
            }
        };
        inner.processes.insert(process.id.clone(), process.clone());
        inner.running.insert(pid, process.clone());
        Ok(process)
    }

    /// Records a process that could not be started as one that has ended, so that the host learns why.
    pub(crate) fn record_failure(&self, id: &str, argv: &[String], error: &Error) {
        let mut inner = self.inner();
        let process = Arc::new(Process {
            id: id.to_owned(),
            argv: argv.to_vec(),
            pid: 0,
            started_at_ms: now_ms(),
            terminal: None,
            input: None,
            state: Mutex::new(State::new(0, 0)),
            changed: watch::Sender::new(()),
        });
        // As a shell would answer.
        let code = if error.kind == ErrorKind::NotFound { 127 } else { 126 };
        let exit = ProcessExit {
            code: Some(code),
            signal: None,
            at_ms: now_ms(),
            start_error: Some(error.message.clone()),
        };
        inner.processes.insert(id.to_owned(), process.clone());
        self.ended(&mut inner, &process, exit);
    }

    pub(crate) fn list(&self) -> Vec<Arc<Process>> {
        self.inner().processes.values().cloned().collect()
    }

    /// Errors: `NotFound`.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Process>> {
        self.inner().processes.get(id).cloned().ok_or_else(|| {
            let shown: String = id.chars().take(100).collect();
            Error::new(ErrorKind::NotFound, format!("no process {shown:?}"))
        })
    }

    /// Forgets an exit that the host has; `main` and its output stay.
    ///
    /// Errors: `NotFound`, `Conflict` while it runs.
    pub(crate) fn acknowledge(&self, id: &str) -> Result<()> {
        let process = self.get(id)?;
        let mut state = process.state();
        if state.exit.is_none() {
            return Err(Error::new(ErrorKind::Conflict, format!("the process {id} still runs")));
        }
        state.acknowledged = true;
        drop(state);
        if id != MAIN_PROCESS {
            self.inner().processes.remove(id);
            process.stop_pumps();
        }
        Ok(())
    }

    /// Errors: `NotFound`, `Conflict` when it has ended, `InvalidInput`.
    pub(crate) fn signal(&self, id: &str, signal: i32, group: bool) -> Result<()> {
        let signal = Signal::from_named_raw(signal).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, format!("{signal} is no signal: they are 1 to 31"))
        })?;
        let process = self.get(id)?;
        let inner = self.inner();
        let pid = number(process.pid).filter(|_| inner.running.contains_key(&process.pid));
        let Some(pid) = pid else {
            return Err(Error::new(ErrorKind::Conflict, format!("the process {id} has ended")));
        };
        let sent = match group {
            true => rustix::process::kill_process_group(pid, signal),
            false => rustix::process::kill_process(pid, signal),
        };
        sent.map_err(|error| Error::from_io("send the signal", &error.into()))
    }

    /// Sends a signal to the group of every process that runs.
    pub(crate) fn signal_all(&self, signal: Signal) {
        for pid in self.inner().running.keys().filter_map(|pid| number(*pid)) {
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    pub(crate) fn running(&self) -> usize {
        self.inner().running.len()
    }

    /// From now on nothing is started.
    pub(crate) fn close(&self) {
        self.inner().closed = true;
    }

    /// Collects the exits of children: of all (`adopted`, PID 1), or of those that this table started.
    pub(crate) fn reap(&self, adopted: bool) {
        let mut inner = self.inner();
        if adopted {
            while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
                self.reaped(&mut inner, pid, status);
            }
        } else {
            let pids: Vec<u32> = inner.running.keys().copied().collect();
            for pid in pids.into_iter().filter_map(number) {
                if let Ok(Some((pid, status))) = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG) {
                    self.reaped(&mut inner, pid, status);
                }
            }
        }
    }

    fn reaped(&self, inner: &mut Inner, pid: Pid, status: WaitStatus) {
        if !status.exited() && !status.signaled() {
            return;
        }
        let Ok(pid) = u32::try_from(pid.as_raw_nonzero().get()) else { return };
        let Some(process) = inner.running.remove(&pid) else { return };
        let exit = ProcessExit {
            code: status.exit_status(),
            signal: status.terminating_signal(),
            at_ms: now_ms(),
            start_error: None,
        };
        self.ended(inner, &process, exit);
    }

    fn ended(&self, inner: &mut Inner, process: &Process, exit: ProcessExit) {
        inner.sequence += 1;
        process.ended(exit, inner.sequence);
        self.exits.send_replace(inner.sequence);
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        for process in self.list() {
            process.stop_pumps();
        }
    }
}

impl Inner {
    fn reserve(&mut self, id: Option<String>) -> Result<String> {
        if self.closed {
            return Err(Error::new(ErrorKind::Unavailable, "the guest is shutting down"));
        }
        if self.processes.len() >= MAX_PROCESSES {
            return Err(Error::new(
                ErrorKind::Exhausted,
                format!("the agent knows {MAX_PROCESSES} processes, running or not acknowledged"),
            ));
        }
        match id {
            Some(id) if self.processes.contains_key(&id) => {
                Err(Error::new(ErrorKind::AlreadyExists, format!("a process {id} is known already")))
            }
            Some(id) => Ok(id),
            None => loop {
                self.next_id += 1;
                let id = format!("p{}", self.next_id);
                if !self.processes.contains_key(&id) {
                    return Ok(id);
                }
            },
        }
    }
}

impl State {
    fn new(ring_bytes: usize, open_outputs: usize) -> Self {
        Self {
            ring: Ring::new(ring_bytes),
            open_outputs,
            exit: None,
            acknowledged: false,
            readers: BTreeMap::new(),
            next_reader: 0,
            pumps: Vec::new(),
        }
    }
}

/// Sets up what moves a new process's output and input.
fn watched(id: String, request: &Start<'_>, spawned: Spawned) -> std::io::Result<Arc<Process>> {
    let terminal = spawned.terminal.map(|fd| watch(Arc::new(fd))).transpose()?.map(Arc::new);
    let stdin = spawned.stdin.map(pipe::Sender::from_owned_fd).transpose()?;
    let pipes = [(STANDARD_OUTPUT, spawned.stdout), (STANDARD_ERROR, spawned.stderr)];
    let mut outputs = Vec::new();
    for (stream, fd) in pipes {
        if let Some(fd) = fd {
            outputs.push((stream, pipe::Receiver::from_owned_fd(fd)?));
        }
    }
    let (input, inputs) = mpsc::channel(INPUT_QUEUE);
    let has_input = terminal.is_some() || stdin.is_some();
    let open_outputs = outputs.len() + usize::from(terminal.is_some());
    let process = Arc::new(Process {
        id,
        argv: request.spawn.argv.to_vec(),
        pid: spawned.pid,
        started_at_ms: now_ms(),
        terminal: terminal.clone(),
        input: has_input.then_some(input),
        state: Mutex::new(State::new(request.ring_bytes, open_outputs)),
        changed: watch::Sender::new(()),
    });
    let mut pumps = Vec::new();
    for (stream, output) in outputs {
        let pumping = pump::pipe_output(process.clone(), stream, output);
        pumps.push(tokio::spawn(pumping).abort_handle());
    }
    if let Some(terminal) = terminal {
        let pumping = pump::terminal_output(process.clone(), TERMINAL, terminal.clone());
        pumps.push(tokio::spawn(pumping).abort_handle());
        pumps.push(tokio::spawn(pump::terminal_input(terminal, inputs)).abort_handle());
    } else if let Some(stdin) = stdin {
        pumps.push(tokio::spawn(pump::pipe_input(stdin, inputs)).abort_handle());
    }
    process.state().pumps = pumps;
    Ok(process)
}

fn number(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}
