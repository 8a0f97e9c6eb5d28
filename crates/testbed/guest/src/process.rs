//! A process of a simulated guest: its output, its input, its end.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use flames_controller::{GuestInput, GuestOutput, GuestProcess};
use flames_error::{Error, ErrorKind, Result};
use flames_guest_protocol::client::ProcessEvent;
use flames_guest_protocol::message::{ProcessExit, ProcessStatus, TerminalSize};
use flames_vmm_simulated::SimulatedGuest;
use tokio::sync::{mpsc, watch};

use crate::{OPERATION, lock};

/// Output that one process keeps, in bytes.
const KEPT: usize = 256 * 1024;
/// The least and the most that a signal's number is (signal(7)).
const SIGNALS: RangeInclusive<i32> = 1..=31;

/// A process. It runs as a task of its guest's.
#[derive(Debug)]
pub(crate) struct Process {
    argv: Vec<String>,
    number: u32,
    started_at_ms: u64,
    terminal: bool,
    state: watch::Sender<State>,
    input: Mutex<Option<mpsc::Sender<Bytes>>>,
    killed: watch::Sender<Option<i32>>,
}

#[derive(Debug, Default)]
struct State {
    output: VecDeque<Piece>,
    length: u64,
    exit: Option<ProcessExit>,
    acknowledged: bool,
}

#[derive(Debug)]
struct Piece {
    stream: u8,
    offset: u64,
    at_ms: u64,
    bytes: Bytes,
}

impl Process {
    pub(crate) fn new(
        argv: Vec<String>,
        number: u32,
        started_at_ms: u64,
        terminal: bool,
        input: Option<mpsc::Sender<Bytes>>,
    ) -> Self {
        Self {
            argv,
            number,
            started_at_ms,
            terminal,
            state: watch::Sender::default(),
            input: Mutex::new(input),
            killed: watch::Sender::default(),
        }
    }

    pub(crate) fn argv(&self) -> &[String] {
        &self.argv
    }

    pub(crate) fn has_terminal(&self) -> bool {
        self.terminal
    }

    pub(crate) fn write(&self, stream: u8, bytes: Bytes, at_ms: u64) {
        self.state.send_modify(|state| {
            let offset = state.length;
            state.length += bytes.len() as u64;
            state.output.push_back(Piece { stream, offset, at_ms, bytes });
            let mut kept: usize = state.output.iter().map(|piece| piece.bytes.len()).sum();
            while kept > KEPT && state.output.len() > 1 {
                kept -= state.output.pop_front().map_or(0, |piece| piece.bytes.len());
            }
        });
    }

    /// Ends it by a signal.
    pub(crate) fn kill(&self, signal: i32) -> Result<()> {
        if !SIGNALS.contains(&signal) {
            return Err(Error::invalid(OPERATION, "signal", "A signal is a number from 1 to 31."));
        }
        if self.state.borrow().exit.is_some() {
            return Err(Error::new(ErrorKind::Conflict, OPERATION, "the process has ended")
                .with_user_message("The process has ended."));
        }
        self.killed.send_replace(Some(signal));
        Ok(())
    }

    /// The signal, once there was one.
    pub(crate) async fn killed(&self) -> i32 {
        let mut killed = self.killed.subscribe();
        // The sender is this process's own, so it is there as long as this is waited for.
        let signal = killed.wait_for(Option::is_some).await.ok().and_then(|signal| *signal);
        match signal {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }

    /// Notes how it ended.
    pub(crate) fn end(&self, exit: ProcessExit) {
        self.close_input();
        self.state.send_modify(|state| state.exit = Some(exit));
    }

    pub(crate) fn close_input(&self) {
        lock(&self.input).take();
    }

    pub(crate) fn acknowledge(&self) {
        self.state.send_modify(|state| state.acknowledged = true);
    }

    pub(crate) fn status(&self, id: &str) -> ProcessStatus {
        let state = self.state.borrow();
        ProcessStatus {
            process: id.to_owned(),
            argv: self.argv.clone(),
            pid: self.number,
            tty: self.terminal,
            started_at_ms: self.started_at_ms,
            output_length: state.length,
            output_available_from: state.output.front().map_or(state.length, |piece| piece.offset),
            exit: state.exit.clone(),
            acknowledged: state.acknowledged,
        }
    }

    /// Its output from an offset on, and its input.
    pub(crate) fn attached(self: &Arc<Self>, guest: &SimulatedGuest, from: u64) -> GuestProcess {
        let changes = self.state.subscribe();
        GuestProcess {
            input: Box::new(Input(Arc::clone(self))),
            output: Box::new(Output { guest: guest.clone(), changes, next: from, over: false }),
        }
    }
}

/// The input of a process, as one of those who are attached has it. Whoever closes it closes it for all.
#[derive(Debug)]
struct Input(Arc<Process>);

#[async_trait]
impl GuestInput for Input {
    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let closed = || Error::new(ErrorKind::Conflict, OPERATION, "its standard input is closed");
        let input = lock(&self.0.input).clone().ok_or_else(closed)?;
        input.send(Bytes::copy_from_slice(bytes)).await.map_err(|_| closed())
    }

    async fn close(&mut self) -> Result<()> {
        self.0.close_input();
        Ok(())
    }

    async fn resize(&mut self, _size: TerminalSize) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Output {
    guest: SimulatedGuest,
    changes: watch::Receiver<State>,
    next: u64,
    over: bool,
}

impl Output {
    /// What is there to be told now.
    fn ready(&mut self) -> Option<ProcessEvent> {
        let state = self.changes.borrow_and_update();
        let first = state.output.front().map_or(state.length, |piece| piece.offset);
        if first > self.next {
            self.next = first;
            return Some(ProcessEvent::Truncated { available_from: first });
        }
        let piece = state.output.iter().find(|piece| piece.offset + piece.bytes.len() as u64 > self.next);
        if let Some(piece) = piece {
            let skipped = usize::try_from(self.next.saturating_sub(piece.offset)).unwrap_or(0);
            let offset = self.next.max(piece.offset);
            let content = piece.bytes.slice(skipped..);
            self.next = offset + content.len() as u64;
            return Some(ProcessEvent::Output { stream: piece.stream, offset, at_ms: piece.at_ms, content });
        }
        let exit = state.exit.clone()?;
        self.over = true;
        Some(ProcessEvent::Exited(exit))
    }
}

#[async_trait]
impl GuestOutput for Output {
    async fn next(&mut self) -> Result<Option<ProcessEvent>> {
        loop {
            self.guest.runs().await;
            if self.over {
                return Ok(None);
            }
            if let Some(event) = self.ready() {
                return Ok(Some(event));
            }
            self.changes.changed().await.map_err(|_| Error::unavailable(OPERATION, "the guest is gone"))?;
        }
    }
}
