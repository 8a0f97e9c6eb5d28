//! Exec, attach, list, signal.

use std::pin::pin;
use std::time::Duration;

use flames_client::wire::stream::{
    ExecRequest, ExitStatus, MAX_CONTENT, ProcessAnswer, ProcessInfo, ProcessRequest, StreamFrame,
};
use flames_clock::{ClockExt, Timestamp};
use flames_error::{Error, ErrorKind, Result};
use flames_guest_protocol::client::ProcessEvent;
use flames_guest_protocol::message::{
    AttachRequest, ExecRequest as AgentExec, MAIN_PROCESS, ProcessExit, ProcessStatus, TerminalSize,
};

use super::{AcceptedStream, Broken, FromClient, LOOK, ToClient, unexpected};
use crate::folder::OutputEntry;
use crate::guest::{Guest, GuestInput, GuestOutput, GuestProcess};

/// The most processes of one frame: each has at most 64 KiB of arguments on the agent's side, so a frame takes one at the worst.
const PROCESSES_PER_FRAME: usize = 1;
/// How long the end of a run may take to be known, once its guest is cut off.
const END_KNOWN: Duration = Duration::from_secs(5);
/// Bytes of a log that are read at once.
const PAGE: usize = 256 * 1024;

type Served = Result<(), Broken>;

fn exit_status(exit: &ProcessExit) -> ExitStatus {
    ExitStatus { code: exit.code, signal: exit.signal }
}

/// Gives an error in starting a process the code of one. What the guest had no room for, and a connection that broke, keep theirs.
fn of_start(error: Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::InvalidInput
            if error.code().is_none() =>
        {
            error.with_code("PROCESS_NOT_STARTED")
        }
        _ => error,
    }
}

/// Gives an error about a process the code of one.
fn of_process(error: Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound if error.code().is_none() => error.with_code("PROCESS_NOT_FOUND"),
        _ => error,
    }
}

/// The frames of a piece of output. A terminal's counts as standard output.
fn output_frames(stream: u8, mut offset: u64, mut data: bytes::Bytes) -> Vec<StreamFrame> {
    let mut frames = Vec::new();
    while !data.is_empty() {
        let piece = data.split_to(data.len().min(MAX_CONTENT));
        let length = piece.len() as u64;
        frames.push(match stream {
            2 => StreamFrame::Stderr { offset, data: piece },
            _ => StreamFrame::Stdout { offset, data: piece },
        });
        offset = offset.saturating_add(length);
    }
    frames
}

impl AcceptedStream {
    pub(super) async fn exec(&self, request: &ExecRequest, to: &ToClient, from: &mut FromClient) -> Served {
        let guest = self.guest().await?;
        let size = request.terminal.map(|size| TerminalSize { rows: size.rows, columns: size.columns });
        let asked = AgentExec {
            process: None,
            argv: request.command.clone(),
            env: request.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            working_directory: request.working_directory.clone(),
            user: request.user.clone(),
            tty: size,
            stdin: request.stdin,
        };
        let (id, process) = match self.ask(guest.exec(asked.clone())).await {
            Err(error) if error.kind() == ErrorKind::Exhausted => {
                self.forget_ended(guest.as_ref()).await?;
                self.ask(guest.exec(asked)).await.map_err(of_start)?
            }
            started => started.map_err(of_start)?,
        };
        to.send(StreamFrame::Started { process: id.clone() }).await?;
        let mut told = 0;
        let ended = self.relay(guest.as_ref(), &id, process, &mut told, to, from).await?;
        if ended {
            // It is kept until the host has it; without an answer it is only kept longer.
            let _ = self.ask(guest.acknowledge_exit(&id)).await;
        }
        to.send(StreamFrame::End).await
    }

    /// Lets the agent forget processes that have ended and that nobody came back to.
    async fn forget_ended(&self, guest: &dyn Guest) -> Result<()> {
        for process in self.ask(guest.processes()).await? {
            if process.exit.is_some() && !process.acknowledged && process.process != MAIN_PROCESS {
                self.ask(guest.acknowledge_exit(&process.process)).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn attach(
        &self,
        process: &str,
        offset: u64,
        to: &ToClient,
        from: &mut FromClient,
    ) -> Served {
        let mut told = offset;
        let is_main = process == MAIN_PROCESS;
        if is_main && !self.wait_for_guest_or_end(from).await? {
            to.send(StreamFrame::Started { process: process.to_owned() }).await?;
            return self.replay(told, to).await;
        }
        let guest = self.guest().await?;
        let request = AttachRequest {
            process: process.to_owned(),
            from_offset: offset,
            stdin: true,
            lossless: false,
            follow: true,
        };
        let attached = match self.ask(guest.attach(request)).await {
            // The guest is just ending: what its workload said is on this host's disk.
            Err(error) if is_main && error.kind() == ErrorKind::Unavailable => {
                to.send(StreamFrame::Started { process: process.to_owned() }).await?;
                return self.replay(told, to).await;
            }
            attached => attached.map_err(of_process)?.1,
        };
        to.send(StreamFrame::Started { process: process.to_owned() }).await?;
        match self.relay(guest.as_ref(), process, attached, &mut told, to, from).await {
            Ok(_) => to.send(StreamFrame::End).await,
            // The workload's end may have taken the guest along before its agent could tell; the host has it.
            Err(Broken::Failed(error)) if is_main && error.kind() == ErrorKind::Unavailable => {
                let known = async {
                    loop {
                        let changes = self.changes();
                        if changes.is_none() || self.exit().is_some() {
                            return;
                        }
                        self.changed(changes, LOOK).await;
                    }
                };
                match self.shared.clock.timeout(END_KNOWN, known).await {
                    Ok(()) => self.replay(told, to).await,
                    Err(_) => Err(error.into()),
                }
            }
            Err(broken) => Err(broken),
        }
    }

    /// Waits until the guest's agent is there (true) or the run is over (false), as long as the agent may take to be there.
    async fn wait_for_guest_or_end(&self, from: &mut FromClient) -> Result<bool, Broken> {
        let ready = async {
            loop {
                let changes = self.changes();
                if self.guest_now().is_some() {
                    return true;
                }
                if self.live().is_none_or(|live| live.exit.is_some()) {
                    return false;
                }
                self.changed(changes, LOOK).await;
            }
        };
        let limit = self.shared.config.timings.agent_ready;
        tokio::select! {
            biased;
            // Late: the wait for the agent that follows tells so.
            ready = self.shared.clock.timeout(limit, ready) => Ok(ready.unwrap_or(true)),
            () = from.gone() => Err(Broken::ClientGone),
        }
    }

    /// What the host kept of the workload's output from an offset on, and its end.
    async fn replay(&self, from: u64, to: &ToClient) -> Served {
        let (mut position, mut told) = (0, from);
        loop {
            let page = self.shared.folder.read_output(self.id, position, PAGE).await?;
            if page.entries.is_empty() {
                break;
            }
            position = page.next;
            for entry in page.entries.into_iter().filter(|entry| entry.end() > from) {
                told = send_entry(entry, told, to).await?;
            }
        }
        if let Some(exit) = self.exit() {
            to.send(StreamFrame::Exit(ExitStatus { code: exit.code, signal: exit.signal })).await?;
        }
        to.send(StreamFrame::End).await
    }

    /// Carries output to the client and input to the process. Says whether the process has ended; false: its output is over.
    async fn relay(
        &self,
        guest: &dyn Guest,
        id: &str,
        process: GuestProcess,
        told: &mut u64,
        to: &ToClient,
        from: &mut FromClient,
    ) -> Result<bool, Broken> {
        let GuestProcess { mut input, mut output } = process;
        let outward = pin!(carry_output(output.as_mut(), told, to));
        let inward = pin!(self.carry_input(guest, id, input.as_mut(), from));
        tokio::select! {
            biased;
            ended = outward => ended,
            broken = inward => Err(broken),
        }
    }

    /// Carries what the client sends. Ends only with the client, or with its error.
    async fn carry_input(
        &self,
        guest: &dyn Guest,
        id: &str,
        input: &mut dyn GuestInput,
        from: &mut FromClient,
    ) -> Broken {
        // A process that does not take input (any more) goes on all the same.
        let mut takes = true;
        loop {
            match from.next().await {
                Ok(StreamFrame::Stdin(data)) if takes => takes = input.write(&data).await.is_ok(),
                Ok(StreamFrame::Stdin(_)) => {}
                Ok(StreamFrame::StdinClosed) => {
                    takes = false;
                    // One that has ended has closed it already.
                    let _ = input.close().await;
                }
                Ok(StreamFrame::Resize { rows, columns }) => {
                    // A process without a terminal, or one that has ended, has no size to change.
                    let _ = input.resize(TerminalSize { rows, columns }).await;
                }
                Ok(StreamFrame::Signal(signal)) => {
                    // It may have ended meanwhile, which its output tells.
                    let _ = self.ask(guest.signal(id, i32::from(signal), false)).await;
                }
                Ok(_) => return unexpected().into(),
                Err(broken) => return broken,
            }
        }
    }

    pub(super) async fn processes(&self, to: &ToClient, from: &mut FromClient) -> Served {
        let StreamFrame::ProcessRequest(request) = self.first(from).await? else {
            return Err(unexpected().into());
        };
        let guest = self.guest().await?;
        match request {
            ProcessRequest::List => {
                let found = self.ask(guest.processes()).await?;
                for some in found.chunks(PROCESSES_PER_FRAME) {
                    let infos = some.iter().map(process_info).collect();
                    to.send(StreamFrame::ProcessAnswer(ProcessAnswer::Processes(infos))).await?;
                }
                if found.is_empty() {
                    to.send(StreamFrame::ProcessAnswer(ProcessAnswer::Processes(Vec::new()))).await?;
                }
            }
            ProcessRequest::Signal { process, signal } => {
                let signalling = guest.signal(&process, signal.signal, signal.group);
                self.ask(signalling).await.map_err(of_process)?;
                to.send(StreamFrame::ProcessAnswer(ProcessAnswer::Done)).await?;
            }
        }
        to.send(StreamFrame::End).await
    }
}

/// Sends one kept piece of output, but for what was told before. Answers the offset behind it.
pub(super) async fn send_entry(mut entry: OutputEntry, told: u64, to: &ToClient) -> Result<u64, Broken> {
    if entry.offset > told {
        to.send(StreamFrame::Truncated { before: entry.offset }).await?;
    }
    let end = entry.end();
    let known = usize::try_from(told.saturating_sub(entry.offset)).unwrap_or(usize::MAX);
    let known = known.min(entry.data.len());
    let rest = entry.data.split_off(known);
    for frame in output_frames(entry.stream, entry.offset.saturating_add(known as u64), rest) {
        to.send(frame).await?;
    }
    Ok(told.max(end))
}

async fn carry_output(output: &mut dyn GuestOutput, told: &mut u64, to: &ToClient) -> Result<bool, Broken> {
    let mut ended = false;
    while let Some(event) = output.next().await? {
        match event {
            ProcessEvent::Output { stream, offset, content, .. } => {
                *told = (*told).max(offset.saturating_add(content.len() as u64));
                for frame in output_frames(stream, offset, content) {
                    to.send(frame).await?;
                }
            }
            ProcessEvent::Truncated { available_from } => {
                *told = (*told).max(available_from);
                to.send(StreamFrame::Truncated { before: available_from }).await?;
            }
            ProcessEvent::Exited(exit) => {
                ended = true;
                to.send(StreamFrame::Exit(exit_status(&exit))).await?;
            }
        }
    }
    Ok(ended)
}

/// A guest's time, which may be anything.
pub(super) fn guest_time(ms: u64) -> Timestamp {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

fn process_info(status: &ProcessStatus) -> ProcessInfo {
    ProcessInfo {
        id: status.process.clone(),
        command: status.argv.clone(),
        pid: (status.pid != 0).then_some(status.pid),
        terminal: status.tty,
        started_at: guest_time(status.started_at_ms),
        output_bytes: status.output_length,
        output_from: status.output_available_from,
        exit: status.exit.as_ref().map(exit_status),
    }
}
