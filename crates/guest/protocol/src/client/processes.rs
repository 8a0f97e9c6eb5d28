use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};

use super::{AgentClient, cut_off, failure, response, within};
use crate::error::{Error, ErrorKind, Result};
use crate::frame::{Frame, FrameKind, FrameReader, OUTPUT_HEADER_LENGTH, write_frame, write_json};
use crate::limits::{CONTENT_LENGTH, MAX_PROCESSES};
use crate::message::{
    AttachRequest, Done, Event, EventsRequest, ExecRequest, ExecStarted, Operation, ProcessExit,
    ProcessRequest, ProcessStatus, ResizeRequest, SignalRequest, TerminalSize, is_process_id,
};
use crate::mux::MuxStream;

/// What happens on an attached process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessEvent {
    /// Output: `stream` is 1 for standard output, 2 for standard error, 3 for a terminal.
    Output {
        /// Which output.
        stream: u8,
        /// The offset of the first byte in all of the process's output.
        offset: u64,
        /// When the agent read it, in milliseconds since 1970.
        at_ms: u64,
        /// The bytes.
        content: Bytes,
    },
    /// The output before this offset is gone.
    Truncated {
        /// The offset of the first byte that is still there.
        available_from: u64,
    },
    /// The process ended; its output before that was all delivered.
    Exited(ProcessExit),
}

/// A process that this side is attached to. Dropping it detaches, and the process runs on.
#[derive(Debug)]
pub struct ProcessStream {
    /// Its input.
    pub input: ProcessInput,
    /// Its output.
    pub output: ProcessOutput,
}

/// The way to an attached process.
#[derive(Debug)]
pub struct ProcessInput {
    io: WriteHalf<MuxStream>,
    open: bool,
}

impl ProcessInput {
    /// Writes to its standard input, and waits while the process does not read: give it a deadline or a `select!`
    /// only when the stream is to be dropped then, since a part may have been sent.
    ///
    /// Errors: `Conflict` after [`ProcessInput::close`], `Unavailable` when the stream is gone.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if !self.open {
            return Err(Error::new(ErrorKind::Conflict, "the standard input is closed"));
        }
        for piece in bytes.chunks(CONTENT_LENGTH) {
            write_frame(&mut self.io, FrameKind::Data, piece).await?;
        }
        self.flush().await
    }

    /// Closes its standard input; of a terminal: sends its end-of-file character.
    pub async fn close(&mut self) -> Result<()> {
        if std::mem::take(&mut self.open) {
            write_frame(&mut self.io, FrameKind::End, &[]).await?;
            self.flush().await?;
        }
        Ok(())
    }

    /// Changes the size of its terminal.
    pub async fn resize(&mut self, size: TerminalSize) -> Result<()> {
        write_json(&mut self.io, FrameKind::Resize, &size).await?;
        self.flush().await
    }

    async fn flush(&mut self) -> Result<()> {
        self.io.flush().await.map_err(|error| Error::from_io("write to the process", &error))
    }
}

/// The way from an attached process.
#[derive(Debug)]
pub struct ProcessOutput {
    frames: FrameReader<ReadHalf<MuxStream>>,
}

impl ProcessOutput {
    /// The next event; `None` when the process ended and all was told, or the replay that was asked for is over.
    /// Waits without limit. Cancel-safe.
    ///
    /// Errors: `Unavailable` when the stream was cut off: attach again from the last offset.
    pub async fn next(&mut self) -> Result<Option<ProcessEvent>> {
        let Some(frame) = self.frames.next().await? else { return Err(cut_off()) };
        match frame.kind {
            FrameKind::Output => output(frame).map(Some),
            FrameKind::Truncated if frame.payload.len() == 8 => {
                Ok(Some(ProcessEvent::Truncated { available_from: frame.payload.clone().get_u64_le() }))
            }
            FrameKind::Exit => Ok(Some(ProcessEvent::Exited(frame.json::<ProcessExit>()?))),
            FrameKind::End => Ok(None),
            _ => Err(failure(&frame)),
        }
    }
}

fn output(frame: Frame) -> Result<ProcessEvent> {
    if frame.payload.len() < OUTPUT_HEADER_LENGTH {
        return Err(frame.unexpected());
    }
    let mut content = frame.payload;
    let (stream, offset, at_ms) = (content.get_u8(), content.get_u64_le(), content.get_u64_le());
    Ok(ProcessEvent::Output { stream, offset, at_ms, content })
}

/// The events of one guest.
#[derive(Debug)]
pub struct EventStream {
    frames: FrameReader<MuxStream>,
}

impl EventStream {
    /// The next event. Waits without limit. Cancel-safe.
    ///
    /// Errors: `Unavailable` when the stream was cut off: follow again after the last sequence number.
    pub async fn next(&mut self) -> Result<Event> {
        let Some(frame) = self.frames.next().await? else { return Err(cut_off()) };
        match frame.kind {
            FrameKind::Event => frame.json(),
            _ => Err(failure(&frame)),
        }
    }
}

fn attached(stream: MuxStream) -> ProcessStream {
    let (reader, writer) = tokio::io::split(stream);
    ProcessStream {
        input: ProcessInput { io: writer, open: true },
        output: ProcessOutput { frames: FrameReader::new(reader) },
    }
}

fn named(process: &str) -> ProcessRequest {
    ProcessRequest { process: process.to_owned() }
}

impl AgentClient {
    /// Starts a process and attaches to it, from its first byte of output and without loss while this stream is
    /// read.
    ///
    /// Errors: `NotFound` or `PermissionDenied` when the program cannot be started, `AlreadyExists` when the
    /// process id is in use, `InvalidInput`, `Exhausted` when the guest has too many processes.
    pub async fn exec(&self, request: ExecRequest) -> Result<(ExecStarted, ProcessStream)> {
        let (started, stream): (ExecStarted, _) = self.start(&Operation::Exec(request)).await?;
        if !is_process_id(&started.process) {
            return Err(Error::new(ErrorKind::Corrupt, "the guest answered with an impossible process id"));
        }
        Ok((started, attached(stream)))
    }

    /// Every process that the agent knows.
    pub async fn processes(&self) -> Result<Vec<ProcessStatus>> {
        let stream = self.request(&Operation::ListProcesses).await?;
        let mut frames = FrameReader::new(stream);
        let mut processes = Vec::new();
        within(Some(self.timeout), "list the guest's processes", async {
            // One frame for each, since an argument list may be long.
            while processes.len() <= MAX_PROCESSES {
                let frame = frames.next().await?.ok_or_else(cut_off)?;
                match frame.kind {
                    FrameKind::End => return Ok(processes),
                    _ => processes.push(response(&frame)?),
                }
            }
            Err(Error::new(ErrorKind::Corrupt, "the guest lists too many processes"))
        })
        .await
    }

    /// Joins a process that runs or has ended.
    ///
    /// Errors: `NotFound`.
    pub async fn attach(&self, request: AttachRequest) -> Result<(ProcessStatus, ProcessStream)> {
        let (status, stream) = self.start(&Operation::Attach(request)).await?;
        Ok((status, attached(stream)))
    }

    /// Sends a signal to a process, or to its whole group.
    ///
    /// Errors: `NotFound`, `Conflict` when it has ended, `InvalidInput`.
    pub async fn signal(&self, process: &str, signal: i32, group: bool) -> Result<()> {
        let process = process.to_owned();
        self.done(&Operation::Signal(SignalRequest { process, signal, group })).await
    }

    /// Closes a process's standard input, also when this side is not attached.
    ///
    /// Errors: `NotFound`.
    pub async fn close_stdin(&self, process: &str) -> Result<()> {
        self.done(&Operation::CloseStdin(named(process))).await
    }

    /// Changes the size of a process's terminal, also when this side is not attached.
    ///
    /// Errors: `NotFound`, `Conflict` when it has no terminal.
    pub async fn resize(&self, process: &str, size: TerminalSize) -> Result<()> {
        let process = process.to_owned();
        self.done(&Operation::Resize(ResizeRequest { process, size })).await
    }

    /// Waits until a process has ended; `limit` of `None` waits as long as the session lives.
    ///
    /// Errors: `NotFound`, `Unavailable` when the limit passed or the session ended.
    pub async fn wait(&self, process: &str, limit: Option<Duration>) -> Result<ProcessExit> {
        let (exit, _stream) = self.start_within(&Operation::Wait(named(process)), limit).await?;
        Ok(exit)
    }

    /// Says that this side has the exit for good; the agent forgets the process, but never `main`. Idempotent.
    ///
    /// Errors: `Conflict` while it runs.
    pub async fn acknowledge_exit(&self, process: &str) -> Result<()> {
        match self.done(&Operation::AcknowledgeExit(named(process))).await {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Follows events after a sequence number; 0 begins with every exit that is not acknowledged.
    pub async fn events(&self, after_sequence: u64) -> Result<EventStream> {
        let operation = Operation::Events(EventsRequest { after_sequence });
        let (Done {}, stream) = self.start(&operation).await?;
        Ok(EventStream { frames: FrameReader::new(stream) })
    }
}
