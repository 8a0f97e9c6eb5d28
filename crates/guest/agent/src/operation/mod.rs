//! One module for each family of operations. Every stream is served by one task, which ends with its session.

mod files;
mod processes;
mod system;
mod write_file;

use std::sync::Arc;
use std::time::Duration;

use flames_guest_protocol::frame::{FrameKind, read_frame, write_json};
use flames_guest_protocol::message::{Done, Operation};
use flames_guest_protocol::{Error, ErrorKind, MuxStream, Result};
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::agent::Agent;

/// How long a controller may take to send its request, and to take the last words of a stream.
const CONTROLLER_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves one stream: reads the request, does it, answers. A stream that breaks is simply dropped.
pub(crate) async fn serve(agent: Arc<Agent>, mut stream: MuxStream) {
    if let Err(error) = request(&agent, &mut stream).await {
        let answer = write_json(&mut stream, FrameKind::Failure, &error);
        let _ = timeout(CONTROLLER_TIMEOUT, answer).await;
    }
    let _ = timeout(CONTROLLER_TIMEOUT, stream.shutdown()).await;
}

async fn request(agent: &Arc<Agent>, stream: &mut MuxStream) -> Result<()> {
    let reading = timeout(CONTROLLER_TIMEOUT, read_frame(stream)).await;
    let frame = reading
        .map_err(|_| Error::new(ErrorKind::Unavailable, "no request came"))??
        .filter(|frame| frame.kind == FrameKind::Request)
        .ok_or_else(|| Error::new(ErrorKind::Corrupt, "a stream begins with a request"))?;
    match Operation::decode(&frame.payload)? {
        Operation::Info => respond(stream, &agent.info()).await,
        Operation::Exec(request) => processes::exec(agent, stream, &request).await,
        Operation::ListProcesses => processes::list(agent, stream).await,
        Operation::Attach(request) => processes::attach(agent, stream, &request).await,
        Operation::Signal(request) => {
            agent.table().signal(&request.process, request.signal, request.group)?;
            done(stream).await
        }
        Operation::CloseStdin(request) => {
            processes::close_stdin(agent, &request.process).await?;
            done(stream).await
        }
        Operation::Resize(request) => {
            agent.table().get(&request.process)?.resize(request.size)?;
            done(stream).await
        }
        Operation::Wait(request) => {
            let exit = processes::wait(agent, stream, &request.process).await?;
            respond(stream, &exit).await
        }
        Operation::AcknowledgeExit(request) => {
            agent.table().acknowledge(&request.process)?;
            done(stream).await
        }
        Operation::ReadFile(request) => files::read(stream, request).await,
        Operation::WriteFile(request) => write_file::write(stream, request).await,
        Operation::ListDirectory(request) => files::list(stream, request).await,
        Operation::Stat(request) => {
            let status = files::blocking(move || files::stat(&request.path, request.follow)).await?;
            respond(stream, &status).await
        }
        Operation::Remove(request) => {
            files::blocking(move || files::remove(&request)).await?;
            done(stream).await
        }
        Operation::Rename(request) => {
            files::blocking(move || files::rename(&request)).await?;
            done(stream).await
        }
        Operation::MakeDirectory(request) => {
            files::blocking(move || files::make_directory(&request)).await?;
            done(stream).await
        }
        Operation::Tcp(request) => system::tcp(stream, request.port).await,
        Operation::SetClock(request) => {
            crate::clock::set_ms(request.epoch_ms)
                .map_err(|error| Error::from_io("set the clock", &error))?;
            done(stream).await
        }
        Operation::Flush => {
            files::blocking(|| {
                rustix::fs::sync();
                Ok(())
            })
            .await?;
            done(stream).await
        }
        Operation::Restored(request) => {
            agent.become_restored(&request)?;
            done(stream).await
        }
        Operation::Shutdown(request) => {
            // The answer goes out first: the session may end with the request.
            done(stream).await?;
            let _ = timeout(CONTROLLER_TIMEOUT, stream.shutdown()).await;
            agent.request_shutdown(Duration::from_millis(request.grace_ms));
            Ok(())
        }
        Operation::Events(request) => processes::events(agent, stream, request.after_sequence).await,
    }
}

async fn respond<T: Serialize>(stream: &mut MuxStream, answer: &T) -> Result<()> {
    write_json(stream, FrameKind::Response, answer).await
}

async fn done(stream: &mut MuxStream) -> Result<()> {
    respond(stream, &Done {}).await
}
