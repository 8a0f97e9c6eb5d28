//! The real guest: our agent, by the protocol of `flames-guest-protocol`.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_error::{Error, ErrorKind, Result};
use flames_guest_protocol::client::{FileWriter, ProcessEvent, ProcessInput, ProcessOutput, ProcessStream};
use flames_guest_protocol::message::{
    AttachRequest, DirectoryEntry, ExecRequest, FileStatus, Info, ListDirectoryRequest, MakeDirectoryRequest,
    ProcessStatus, ReadFileRequest, RestoredRequest, TerminalSize, WriteFileRequest,
};
use flames_guest_protocol::{
    AgentClient, ConnectOptions, Error as AgentError, ErrorKind as AgentErrorKind, Identity,
};
use flames_vmm::GuestStream;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::{Guest, GuestConnector, GuestFileWriter, GuestInput, GuestOutput, GuestProcess};

const OPERATION: &str = "guest.agent";

/// Connects to agents.
#[derive(Debug, Clone, Copy)]
pub struct AgentConnector {
    /// How long a handshake and an operation may take.
    pub options: ConnectOptions,
    /// Whether the clocks of guests are set. Not, when they share the host's.
    pub sets_clocks: bool,
}

impl Default for AgentConnector {
    fn default() -> Self {
        Self { options: ConnectOptions::default(), sets_clocks: true }
    }
}

fn house(error: AgentError) -> Error {
    let kind = match error.kind {
        AgentErrorKind::NotFound => ErrorKind::NotFound,
        AgentErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
        AgentErrorKind::Conflict => ErrorKind::Conflict,
        AgentErrorKind::InvalidInput => ErrorKind::InvalidInput,
        AgentErrorKind::NotSupported => ErrorKind::NotSupported,
        AgentErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        AgentErrorKind::Exhausted => ErrorKind::Exhausted,
        AgentErrorKind::Unavailable => ErrorKind::Unavailable,
        AgentErrorKind::OutcomeUnknown => ErrorKind::OutcomeUnknown,
        AgentErrorKind::Corrupt => ErrorKind::Corrupt,
        AgentErrorKind::Internal => ErrorKind::Internal,
    };
    // Everything that an agent says is about the user's own guest.
    Error::new(kind, OPERATION, error.message.clone()).with_user_message(error.message)
}

#[async_trait]
impl GuestConnector for AgentConnector {
    async fn connect(&self, stream: GuestStream, identity: &Identity) -> Result<Box<dyn Guest>> {
        let client = AgentClient::connect(stream, identity, self.options).await.map_err(house)?;
        Ok(Box::new(Agent(client, self.sets_clocks)))
    }
}

#[derive(Debug)]
struct Agent(AgentClient, bool);

fn process(stream: ProcessStream) -> GuestProcess {
    GuestProcess { input: Box::new(Input(stream.input)), output: Box::new(Output(stream.output)) }
}

#[async_trait]
impl Guest for Agent {
    async fn info(&self) -> Result<Info> {
        self.0.info().await.map_err(house)
    }
    async fn set_clock(&self, epoch_ms: u64) -> Result<()> {
        if self.1 { self.0.set_clock(epoch_ms).await.map_err(house) } else { Ok(()) }
    }
    async fn flush(&self) -> Result<()> {
        self.0.flush().await.map_err(house)
    }
    async fn restored(&self, request: RestoredRequest) -> Result<()> {
        self.0.restored(request).await.map_err(house)
    }
    async fn shutdown(&self, grace: Duration) -> Result<()> {
        self.0.shutdown(grace).await.map_err(house)
    }
    async fn closed(&self) {
        self.0.closed().await;
    }
    async fn exec(&self, request: ExecRequest) -> Result<(String, GuestProcess)> {
        let (started, stream) = self.0.exec(request).await.map_err(house)?;
        Ok((started.process, process(stream)))
    }
    async fn attach(&self, request: AttachRequest) -> Result<(ProcessStatus, GuestProcess)> {
        let (status, stream) = self.0.attach(request).await.map_err(house)?;
        Ok((status, process(stream)))
    }
    async fn processes(&self) -> Result<Vec<ProcessStatus>> {
        self.0.processes().await.map_err(house)
    }
    async fn signal(&self, process: &str, signal: i32, group: bool) -> Result<()> {
        self.0.signal(process, signal, group).await.map_err(house)
    }
    async fn close_stdin(&self, process: &str) -> Result<()> {
        self.0.close_stdin(process).await.map_err(house)
    }
    async fn resize(&self, process: &str, size: TerminalSize) -> Result<()> {
        self.0.resize(process, size).await.map_err(house)
    }
    async fn acknowledge_exit(&self, process: &str) -> Result<()> {
        self.0.acknowledge_exit(process).await.map_err(house)
    }
    async fn read_file(
        &self,
        request: ReadFileRequest,
    ) -> Result<(FileStatus, BoxStream<'static, Result<Bytes>>)> {
        let (status, reader) = self.0.read_file(request).await.map_err(house)?;
        let pieces = stream::try_unfold(reader, async |mut reader| {
            Ok(reader.next().await.map_err(house)?.map(|piece| (piece, reader)))
        });
        Ok((status, pieces.boxed()))
    }
    async fn write_file(&self, request: WriteFileRequest) -> Result<Box<dyn GuestFileWriter>> {
        Ok(Box::new(Writer(self.0.write_file(request).await.map_err(house)?)))
    }
    async fn list_directory(&self, request: ListDirectoryRequest) -> Result<(Vec<DirectoryEntry>, bool)> {
        self.0.list_directory(request).await.map_err(house)
    }
    async fn stat(&self, path: &str, follow: bool) -> Result<FileStatus> {
        self.0.stat(path, follow).await.map_err(house)
    }
    async fn remove(&self, path: &str, recursive: bool) -> Result<()> {
        self.0.remove(path, recursive).await.map_err(house)
    }
    async fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.0.rename(from, to).await.map_err(house)
    }
    async fn make_directory(&self, request: MakeDirectoryRequest) -> Result<()> {
        self.0.make_directory(request).await.map_err(house)
    }
    async fn tcp(&self, port: u16) -> Result<GuestStream> {
        Ok(Box::new(self.0.tcp(port).await.map_err(house)?))
    }
}

#[derive(Debug)]
struct Input(ProcessInput);

#[async_trait]
impl GuestInput for Input {
    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write(bytes).await.map_err(house)
    }
    async fn close(&mut self) -> Result<()> {
        self.0.close().await.map_err(house)
    }
    async fn resize(&mut self, size: TerminalSize) -> Result<()> {
        self.0.resize(size).await.map_err(house)
    }
}

#[derive(Debug)]
struct Output(ProcessOutput);

#[async_trait]
impl GuestOutput for Output {
    async fn next(&mut self) -> Result<Option<ProcessEvent>> {
        self.0.next().await.map_err(house)
    }
}

#[derive(Debug)]
struct Writer(FileWriter);

#[async_trait]
impl GuestFileWriter for Writer {
    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write(bytes).await.map_err(house)
    }
    async fn finish(self: Box<Self>) -> Result<FileStatus> {
        self.0.finish().await.map_err(house)
    }
}
