use std::sync::Arc;

use flames_guest_protocol::frame::{
    FrameKind, FrameReader, output_frame, read_frame, write_frame, write_json,
};
use flames_guest_protocol::limits::CONTENT_LENGTH;
use flames_guest_protocol::message::{
    AttachRequest, Event, ExecRequest, ExecStarted, Happened, ProcessExit, TerminalSize,
};
use flames_guest_protocol::{Error, ErrorKind, MuxStream, Result};
use tokio::io::{AsyncRead, AsyncWrite};

use super::respond;
use crate::agent::Agent;
use crate::process::{Found, Input, Process};

pub(super) async fn exec(agent: &Arc<Agent>, stream: &mut MuxStream, request: &ExecRequest) -> Result<()> {
    let process = agent.exec(request)?;
    let attach = AttachRequest {
        process: process.id.clone(),
        from_offset: 0,
        stdin: request.stdin || request.tty.is_some(),
        lossless: true,
        follow: true,
    };
    // Held from before the first byte, so that a fast process waits for the reader.
    let holder = process.hold(0);
    respond(stream, &ExecStarted { process: process.id.clone(), pid: process.pid() }).await?;
    join(stream, &process, &attach, Some(holder)).await
}

pub(super) async fn attach(
    agent: &Arc<Agent>,
    stream: &mut MuxStream,
    request: &AttachRequest,
) -> Result<()> {
    let process = agent.table().get(&request.process)?;
    let holder = request.lossless.then(|| process.hold(request.from_offset.min(process.output_end())));
    respond(stream, &process.status()).await?;
    join(stream, &process, request, holder).await
}

pub(super) async fn list(agent: &Arc<Agent>, stream: &mut MuxStream) -> Result<()> {
    for process in agent.table().list() {
        respond(stream, &process.status()).await?;
    }
    write_frame(stream, FrameKind::End, &[]).await
}

pub(super) async fn close_stdin(agent: &Arc<Agent>, process: &str) -> Result<()> {
    let process = agent.table().get(process)?;
    match process.write(Input::Close).await {
        // It is closed already.
        Err(error) if error.kind == ErrorKind::Conflict => Ok(()),
        result => result,
    }
}

/// Waits for the exit, or until the controller drops the stream.
pub(super) async fn wait(agent: &Arc<Agent>, stream: &mut MuxStream, process: &str) -> Result<ProcessExit> {
    let process = agent.table().get(process)?;
    let mut changes = process.changes();
    loop {
        changes.borrow_and_update();
        if let Some(exit) = process.exit() {
            return Ok(exit);
        }
        tokio::select! {
            _ = changes.changed() => {}
            gone = dropped(stream) => return Err(gone),
        }
    }
}

pub(super) async fn events(agent: &Arc<Agent>, stream: &mut MuxStream, after: u64) -> Result<()> {
    super::done(stream).await?;
    let mut exits = agent.table().exits();
    let mut told = after;
    loop {
        exits.borrow_and_update();
        let mut news: Vec<Event> = agent
            .table()
            .list()
            .into_iter()
            .filter_map(|process| {
                let (sequence, exit) = process.unacknowledged_exit()?;
                let happened = Happened::ProcessExited { process: process.id.clone(), exit };
                (sequence > told).then_some(Event { sequence, happened })
            })
            .collect();
        news.sort_by_key(|event| event.sequence);
        for event in news {
            write_json(stream, FrameKind::Event, &event).await?;
            told = event.sequence;
        }
        tokio::select! {
            _ = exits.changed() => {}
            gone = dropped(stream) => return Err(gone),
        }
    }
}

/// Ends when the controller lets go of the stream, on which it has nothing more to say.
async fn dropped(stream: &mut MuxStream) -> Error {
    match read_frame(stream).await {
        Ok(Some(frame)) => frame.unexpected(),
        Ok(None) => Error::new(ErrorKind::Unavailable, "the controller let go"),
        Err(error) => error,
    }
}

async fn join(
    stream: &mut MuxStream,
    process: &Arc<Process>,
    request: &AttachRequest,
    holder: Option<crate::process::Holder>,
) -> Result<()> {
    let (reader, mut writer) = tokio::io::split(&mut *stream);
    tokio::select! {
        told = tell_output(&mut writer, process, request, holder) => told,
        error = take_input(reader, process, request.stdin) => Err(error),
    }
}

async fn tell_output<W: AsyncWrite + Unpin>(
    writer: &mut W,
    process: &Arc<Process>,
    request: &AttachRequest,
    holder: Option<crate::process::Holder>,
) -> Result<()> {
    let mut changes = process.changes();
    let mut offset = request.from_offset.min(process.output_end());
    loop {
        changes.borrow_and_update();
        // Asked before the output is read: what came before the end must not be missed.
        let (exit, look_again) = process.finished();
        match process.read(offset) {
            Found::Piece(piece) => {
                let content = &piece.content[..piece.content.len().min(CONTENT_LENGTH)];
                output_frame(writer, piece.stream, piece.offset, piece.at_ms, content).await?;
                offset += content.len() as u64;
                if let Some(holder) = &holder {
                    holder.advance(offset);
                }
                continue;
            }
            Found::Gone { available_from } => {
                write_frame(writer, FrameKind::Truncated, &available_from.to_le_bytes()).await?;
                offset = available_from;
                continue;
            }
            Found::Nothing => {}
        }
        if let Some(exit) = &exit {
            write_json(writer, FrameKind::Exit, exit).await?;
        }
        if exit.is_some() || !request.follow {
            return write_frame(writer, FrameKind::End, &[]).await;
        }
        match look_again {
            Some(at) => {
                let _ = tokio::time::timeout_at(at, changes.changed()).await;
            }
            None => {
                let _ = changes.changed().await;
            }
        }
    }
}

/// Takes the controller's frames until it lets go of the stream.
async fn take_input<R: AsyncRead + Unpin>(reader: R, process: &Process, wanted: bool) -> Error {
    let mut frames = FrameReader::new(reader);
    let mut open = wanted;
    loop {
        let frame = match frames.next().await {
            Ok(Some(frame)) => frame,
            // It has no more to say but still listens.
            Ok(None) => return std::future::pending().await,
            Err(error) => return error,
        };
        let taken = match frame.kind {
            FrameKind::Data if open => process.write(Input::Data(frame.payload)).await,
            FrameKind::End if open => process.write(Input::Close).await,
            // For an input that is closed: a process that ended must not break the stream of its output.
            FrameKind::Data | FrameKind::End => Ok(()),
            FrameKind::Resize => match frame.json::<TerminalSize>() {
                Ok(size) => process.resize(size),
                Err(error) => return error,
            },
            _ => return frame.unexpected(),
        };
        if taken.is_err() {
            open = false;
        }
    }
}
