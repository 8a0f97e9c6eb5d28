use std::io;
use std::sync::Arc;

use flames_guest_protocol::limits::CONTENT_LENGTH;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::{Input, Process};
use crate::watched::WatchedFd;

// The end-of-file character of a terminal in its default mode (VEOF, ^D).
const END_OF_FILE: u8 = 4;

/// Moves a pipe's output into the ring until its end.
pub(super) async fn pipe_output(process: Arc<Process>, stream: u8, mut pipe: pipe::Receiver) {
    let mut buffer = vec![0; CONTENT_LENGTH];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        process.push(stream, &buffer[..count]).await;
    }
    process.output_closed();
}

/// Moves a terminal's output into the ring until its last process has let go of it.
pub(super) async fn terminal_output(process: Arc<Process>, stream: u8, terminal: Arc<WatchedFd>) {
    let mut buffer = vec![0; CONTENT_LENGTH];
    // A terminal that nobody holds any more answers with EIO.
    while let Ok(count @ 1..) = read_terminal(&terminal, &mut buffer).await {
        process.push(stream, &buffer[..count]).await;
    }
    process.output_closed();
}

async fn read_terminal(terminal: &WatchedFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = terminal.readable().await?;
        // A hang-up stays in the readiness for ever, so that a read that would block means the end.
        let hung_up = ready.ready().is_read_closed();
        match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *buffer)?)) {
            Ok(result) => return result,
            Err(_) if hung_up => return Ok(0),
            Err(_) => {}
        }
    }
}

/// Writes what comes to a pipe; ends, and closes the pipe, at its close or when nobody reads it.
pub(super) async fn pipe_input(mut pipe: pipe::Sender, mut inputs: mpsc::Receiver<Input>) {
    while let Some(Input::Data(bytes)) = inputs.recv().await {
        if pipe.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// Writes what comes to a terminal; a close is its end-of-file character, and it stays open.
pub(super) async fn terminal_input(terminal: Arc<WatchedFd>, mut inputs: mpsc::Receiver<Input>) {
    while let Some(input) = inputs.recv().await {
        let written = match &input {
            Input::Data(bytes) => write_terminal(&terminal, bytes).await,
            Input::Close => write_terminal(&terminal, &[END_OF_FILE]).await,
        };
        if written.is_err() {
            return;
        }
    }
}

async fn write_terminal(terminal: &WatchedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = terminal.writable().await?;
        let hung_up = ready.ready().is_write_closed();
        match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
            Ok(result) => bytes = &bytes[result?..],
            Err(_) if hung_up => return Err(io::ErrorKind::BrokenPipe.into()),
            Err(_) => {}
        }
    }
    Ok(())
}
