//! Processes: started, watched, kept until the host has their exit.

mod pump;
mod ring;
mod spawn;
mod table;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use flames_guest_protocol::message::{ProcessExit, ProcessStatus, TerminalSize};
use flames_guest_protocol::{Error, ErrorKind, Result};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub(crate) use ring::Found;
pub(crate) use spawn::{DEFAULT_PATH, Spawn};
pub(crate) use table::{Start, Table};

use crate::watched::WatchedFd;
use ring::Ring;

/// How long output of a process that has ended may still come: a descendant that keeps the pipe open does not
/// delay the news of the exit further.
const DRAIN: Duration = Duration::from_secs(2);

/// What is written to a process's input.
#[derive(Debug)]
pub(crate) enum Input {
    Data(Bytes),
    Close,
}

/// One process. Its output, exit and readers stand behind one lock, which is never held across an await.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) id: String,
    argv: Vec<String>,
    pid: u32,
    started_at_ms: u64,
    terminal: Option<Arc<WatchedFd>>,
    input: Option<mpsc::Sender<Input>>,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    ring: Ring,
    open_outputs: usize,
    exit: Option<(ProcessExit, u64, Instant)>,
    acknowledged: bool,
    readers: BTreeMap<u64, u64>,
    next_reader: u64,
    pumps: Vec<AbortHandle>,
}

impl Process {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn status(&self) -> ProcessStatus {
        let state = self.state();
        ProcessStatus {
            process: self.id.clone(),
            argv: short(&self.argv),
            pid: self.pid,
            tty: self.terminal.is_some(),
            started_at_ms: self.started_at_ms,
            output_length: state.ring.end(),
            output_available_from: state.ring.start(),
            exit: state.exit.as_ref().map(|(exit, ..)| exit.clone()),
            acknowledged: state.acknowledged,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn exit(&self) -> Option<ProcessExit> {
        self.state().exit.as_ref().map(|(exit, ..)| exit.clone())
    }

    /// The exit and its sequence number, unless the host has it already.
    pub(crate) fn unacknowledged_exit(&self) -> Option<(u64, ProcessExit)> {
        let state = self.state();
        match &state.exit {
            Some((exit, sequence, _)) if !state.acknowledged => Some((*sequence, exit.clone())),
            _ => None,
        }
    }

    /// Wakes at every change of output, readers and exit.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// What stands at `offset`.
    pub(crate) fn read(&self, offset: u64) -> Found {
        self.state().ring.read(offset)
    }

    pub(crate) fn output_end(&self) -> u64 {
        self.state().ring.end()
    }

    /// The exit, once no more output is to be expected; else when to look again at the latest.
    pub(crate) fn finished(&self) -> (Option<ProcessExit>, Option<Instant>) {
        let state = self.state();
        match &state.exit {
            Some((exit, _, at)) if state.open_outputs == 0 || at.elapsed() >= DRAIN => {
                (Some(exit.clone()), None)
            }
            Some((_, _, at)) => (None, Some(*at + DRAIN)),
            None => (None, None),
        }
    }

    /// Registers a reader for whom output is kept: the process waits for it.
    pub(crate) fn hold(self: &Arc<Self>, position: u64) -> Holder {
        let mut state = self.state();
        let number = state.next_reader;
        state.next_reader += 1;
        state.readers.insert(number, position);
        Holder { process: self.clone(), number }
    }

    /// Hands bytes to its input, and waits while the process does not read.
    ///
    /// Errors: `Conflict` when it has no open input.
    pub(crate) async fn write(&self, input: Input) -> Result<()> {
        let closed = || Error::new(ErrorKind::Conflict, format!("the input of {} is not open", self.id));
        let sender = self.input.as_ref().ok_or_else(closed)?;
        sender.send(input).await.map_err(|_| closed())
    }

    /// Changes the size of its terminal.
    ///
    /// Errors: `Conflict` when it has none.
    pub(crate) fn resize(&self, size: TerminalSize) -> Result<()> {
        let terminal = self.terminal.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Conflict, format!("the process {} has no terminal", self.id))
        })?;
        spawn::set_terminal_size(terminal.get_ref(), size)
            .map_err(|error| Error::from_io("resize the terminal", &error))
    }

    fn ended(&self, exit: ProcessExit, sequence: u64) {
        self.state().exit = Some((exit, sequence, Instant::now()));
        self.changed.send_replace(());
    }

    fn output_closed(&self) {
        let mut state = self.state();
        state.open_outputs = state.open_outputs.saturating_sub(1);
        drop(state);
        self.changed.send_replace(());
    }

    fn stop_pumps(&self) {
        for pump in self.state().pumps.drain(..) {
            pump.abort();
        }
    }

    /// Appends output, waiting for the readers that hold it.
    async fn push(&self, stream: u8, content: &[u8]) {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            {
                let mut state = self.state();
                let kept_from = state.ring.start_after(content.len());
                if state.readers.values().all(|position| *position >= kept_from) {
                    state.ring.push(stream, crate::clock::now_ms(), content);
                    break;
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
        self.changed.send_replace(());
    }
}

/// A reader for whom output is kept, until it is dropped.
#[derive(Debug)]
pub(crate) struct Holder {
    process: Arc<Process>,
    number: u64,
}

impl Holder {
    pub(crate) fn advance(&self, position: u64) {
        if let Some(held) = self.process.state().readers.get_mut(&self.number) {
            *held = position;
        }
        self.process.changed.send_replace(());
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.process.state().readers.remove(&self.number);
        self.process.changed.send_replace(());
    }
}

// A status must fit into one message, and an argument list may be as long as a request.
fn short(argv: &[String]) -> Vec<String> {
    const MOST: usize = 4096;
    let mut left = MOST;
    let mut shown = Vec::new();
    for argument in argv {
        if left == 0 {
            break;
        }
        let text: String = argument.chars().take(left.min(1024)).collect();
        left = left.saturating_sub(text.len() + 1);
        shown.push(text);
    }
    shown
}
