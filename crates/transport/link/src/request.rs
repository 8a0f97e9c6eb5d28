//! What a stream is for, as it is told to a controller.

use flames_service::LinkStream;
use flames_wire::ExecRequest;
use flames_wire::stream::{StreamRequest, TerminalSize};

/// The wire form of what a stream is for.
pub fn stream_request(stream: LinkStream) -> StreamRequest {
    match stream {
        LinkStream::Exec(process) => StreamRequest::Exec(ExecRequest {
            command: process.command,
            env: process.env.into_iter().collect(),
            working_directory: process.working_directory,
            user: process.user,
            terminal: process.terminal.map(|(rows, columns)| TerminalSize { rows, columns }),
            stdin: process.stdin,
        }),
        LinkStream::Attach { process, from } => StreamRequest::Attach { process, from },
        LinkStream::Files => StreamRequest::Files,
        LinkStream::Logs { follow, since, tail } => StreamRequest::Logs { follow, since, tail },
        LinkStream::Console { follow } => StreamRequest::Console { follow },
        LinkStream::Tcp(port) => StreamRequest::Tcp { port },
        LinkStream::Processes => StreamRequest::Processes,
    }
}
