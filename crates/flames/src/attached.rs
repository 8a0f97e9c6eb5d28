//! A process in a guest, joined to this process's own input and output.

use std::process::ExitCode;

use bytes::Bytes;
use flames_client::{FrameReceiver, FrameSender, FrameStream};
use flames_wire::ExitStatus;
use flames_wire::stream::{MAX_CONTENT, StreamFrame};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::exit::{self, Failure};
use crate::{output, terminal};

/// SIGINT's number on Linux (signal(7)).
pub(crate) const SIGINT: u8 = 2;
/// SIGPIPE's number on Linux (signal(7)).
pub(crate) const SIGPIPE: u8 = 13;
/// SIGTERM's number on Linux (signal(7)).
pub(crate) const SIGTERM: u8 = 15;
/// Pieces of input that wait to be sent.
const INPUT_AHEAD: usize = 4;
/// Controls (sizes of the terminal) that wait to be sent.
const CONTROLS_AHEAD: usize = 16;

/// What is joined.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Joined {
    /// Standard input goes to the process.
    pub(crate) stdin: bool,
    /// The process has a terminal.
    pub(crate) terminal: bool,
    /// Output before this offset is left out.
    pub(crate) from: u64,
}

/// What the user wants beyond input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// Ctrl-C, or SIGINT: the number of times so far.
    Asked(u32),
    /// SIGTERM or SIGHUP.
    Ended,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The process ended so.
    Exited(ExitStatus),
    /// Its output ended without saying how it did.
    Silent,
    /// The connection broke; all output before this offset was shown.
    Cut(u64),
    /// The user left it to itself.
    Left,
    /// Nobody reads its output any more (`flames run … | head`).
    Unread,
}

impl Ended {
    /// The exit code of a command that shows this process alone.
    pub(crate) fn exit_code(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Exited(status) => {
                Ok(exit::of_workload(status.code, status.signal).unwrap_or(exit::FAILED).into())
            }
            Self::Left => Ok(ExitCode::from(128 + SIGINT)),
            Self::Unread => Ok(ExitCode::from(128 + SIGPIPE)),
            Self::Cut(_) => Err(Failure::failed("The connection to the process broke.")
                .advise("It runs on; see `flames attach`.")),
            Self::Silent => Err(Failure::failed("The process's output ended without its exit code.")
                .advise("Its VM may have been stopped: see `flames inspect`.")),
        }
    }
}

/// The signals that end a command, as a stream.
#[derive(Debug)]
pub(crate) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    count: u32,
}

impl Interrupts {
    pub(crate) fn listen() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|error| Failure::io("Signals cannot be received", &error));
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hangup: on(SignalKind::hangup())?,
            count: 0,
        })
    }

    /// The next one. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Interrupt {
        tokio::select! {
            _ = self.interrupt.recv() => {
                self.count += 1;
                Interrupt::Asked(self.count)
            }
            _ = self.terminate.recv() => Interrupt::Ended,
            _ = self.hangup.recv() => Interrupt::Ended,
        }
    }
}

/// Joins a process until it has ended. The terminal is in raw mode meanwhile, when the process has one and input is joined. `interrupted` is
/// told of what the user wants and answers whether to leave.
pub(crate) async fn join(
    stream: FrameStream,
    joined: Joined,
    interrupts: &mut Interrupts,
    mut interrupted: impl AsyncFnMut(Interrupt) -> Result<bool, Failure>,
) -> Result<Ended, Failure> {
    let FrameStream { sender, mut receiver } = stream;
    let raw = match joined.terminal && joined.stdin {
        true => terminal::RawMode::enter()
            .map_err(|error| Failure::io("The terminal cannot be set to raw mode", &error))?,
        false => None,
    };
    let (commands, controls) = mpsc::channel(CONTROLS_AHEAD);
    let input = joined.stdin.then(read_stdin);
    let sending = tokio::spawn(send(sender, controls, input));
    let _ended_with_this = AbortOnDrop(sending.abort_handle());
    let mut resized = signal(SignalKind::window_change())
        .map_err(|error| Failure::io("Signals cannot be received", &error))?;
    let resize = || {
        // Full: the guest takes nothing, and the size will have changed again when it does.
        terminal::size()
            .map(|size| commands.try_send(StreamFrame::Resize { rows: size.rows, columns: size.columns }))
    };
    if joined.terminal {
        let _ = resize();
    }
    let mut output = Box::pin(show(&mut receiver, joined.from));
    let ended = loop {
        tokio::select! {
            biased;
            shown = &mut output => break shown?,
            asked = interrupts.next() => if interrupted(asked).await? { break Ended::Left },
            _ = resized.recv(), if joined.terminal => drop(resize()),
        }
    };
    drop(raw);
    Ok(ended)
}

/// Sends controls and input, controls first. Ends when the connection is gone, which the receiving half tells.
async fn send(
    mut sender: FrameSender,
    mut controls: mpsc::Receiver<StreamFrame>,
    mut input: Option<mpsc::Receiver<Bytes>>,
) {
    loop {
        let frame = tokio::select! {
            biased;
            Some(frame) = controls.recv() => frame,
            piece = next_input(&mut input) => match piece {
                Some(bytes) => StreamFrame::Stdin(bytes),
                None => {
                    input = None;
                    StreamFrame::StdinClosed
                }
            },
            else => return,
        };
        if sender.send(&frame).await.is_err() {
            return;
        }
    }
}

async fn next_input(input: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match input {
        Some(input) => input.recv().await,
        None => std::future::pending().await,
    }
}

/// Writes a process's output where it belongs until it ends.
async fn show(receiver: &mut FrameReceiver, from: u64) -> Result<Ended, Failure> {
    let (mut exited, mut shown) = (None, from);
    loop {
        let frame = match receiver.next().await {
            Ok(Some(frame)) => frame,
            Err(error) if !error.is_retryable() => return Err(error.into()),
            // Neither an end nor a reason that stands in the way of going on elsewhere.
            Ok(None) | Err(_) => return Ok(exited.map_or(Ended::Cut(shown), Ended::Exited)),
        };
        let is_error = matches!(frame, StreamFrame::Stderr { .. });
        match frame {
            StreamFrame::Stdout { offset, data } | StreamFrame::Stderr { offset, data } => {
                match write_from(offset, &data, shown, is_error)? {
                    Some(behind) => shown = behind,
                    None => return Ok(Ended::Unread),
                }
            }
            StreamFrame::Truncated { before } if before > shown => {
                output::write_error(b"flames: some output is no longer kept\n")?;
                shown = before;
            }
            StreamFrame::Exit(status) => exited = Some(status),
            StreamFrame::End => return Ok(exited.map_or(Ended::Silent, Ended::Exited)),
            _ => {}
        }
    }
}

/// Writes what was not shown before; answers the offset behind all that is shown now, or none when nobody reads it.
fn write_from(offset: u64, data: &Bytes, shown: u64, is_error: bool) -> Result<Option<u64>, Failure> {
    let known = usize::try_from(shown.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
    let is_read = output::write_if_read(&data[known..], is_error)?;
    Ok(is_read.then(|| shown.max(offset.saturating_add(data.len() as u64))))
}

/// Standard input, read by a thread: a read of a terminal cannot be taken back, so it must not hold up the end of the process.
fn read_stdin() -> mpsc::Receiver<Bytes> {
    let (sender, pieces) = mpsc::channel(INPUT_AHEAD);
    let read = move || {
        use std::io::Read;
        let mut input = std::io::stdin().lock();
        let mut buffer = vec![0; MAX_CONTENT.min(32 * 1024)];
        while let Ok(count) = input.read(&mut buffer) {
            if count == 0 || sender.blocking_send(Bytes::copy_from_slice(&buffer[..count])).is_err() {
                return;
            }
        }
    };
    // Without the thread there is no input, which the process sees as its end.
    let _ = std::thread::Builder::new().name("stdin".to_owned()).spawn(read);
    pieces
}

/// A task that ends with what holds this.
#[derive(Debug)]
pub(crate) struct AbortOnDrop(pub(crate) tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reads all of a reader in pieces that fit into frames and uploads, as a stream.
pub(crate) fn pieces(
    reader: impl tokio::io::AsyncRead + Send + Unpin + 'static,
) -> impl futures::Stream<Item = flames_error::Result<Bytes>> + Send + 'static {
    futures::stream::try_unfold(reader, |mut reader| async move {
        let mut buffer = bytes::BytesMut::with_capacity(64 * 1024);
        let count = reader.read_buf(&mut buffer).await.map_err(|error| {
            flames_error::Error::new(
                flames_error::ErrorKind::Internal,
                "cli.read",
                "the input cannot be read",
            )
            .with_user_message(format!("The input cannot be read: {error}"))
            .with_source(error)
        })?;
        Ok((count > 0).then(|| (buffer.freeze(), reader)))
    })
}
