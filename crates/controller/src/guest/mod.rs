//! What a controller needs of the agent in a guest, as an interface: a simulated guest can stand in its place.
//!
//! Errors have the house's kinds. A connection that is gone is `Unavailable`, or `OutcomeUnknown` where the operation may have been
//! applied; what a guest answers keeps its kind; a guest that breaks the protocol is `Corrupt`.

mod agent;

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_error::Result;
use flames_guest_protocol::Identity;
use flames_guest_protocol::client::ProcessEvent;
use flames_guest_protocol::message::{
    AttachRequest, DirectoryEntry, ExecRequest, FileStatus, Info, ListDirectoryRequest, MakeDirectoryRequest,
    ProcessStatus, ReadFileRequest, RestoredRequest, TerminalSize, WriteFileRequest,
};
use flames_vmm::GuestStream;
use futures::stream::BoxStream;

pub use agent::AgentConnector;

/// Opens a session with the agent at the other end of a connection.
#[async_trait]
pub trait GuestConnector: Debug + Send + Sync + 'static {
    /// Opens a session; both sides prove that they hold the incarnation's key.
    ///
    /// Errors: `Unavailable` when no agent answers; `PermissionDenied` when it is another incarnation's; `NotSupported`; `Corrupt`.
    async fn connect(&self, stream: GuestStream, identity: &Identity) -> Result<Box<dyn Guest>>;
}

/// A session with one guest's agent. Dropping it ends the session, not the guest.
#[async_trait]
pub trait Guest: Debug + Send + Sync + 'static {
    /// What the guest is. Its answer is the sign that the guest is up.
    async fn info(&self) -> Result<Info>;
    /// Sets the guest's wall clock to this many milliseconds since 1970.
    async fn set_clock(&self, epoch_ms: u64) -> Result<()>;
    /// Has the guest write out what its file systems hold back.
    async fn flush(&self) -> Result<()>;
    /// Tells a guest that was loaded from a snapshot what it is from now on. The session ends after it; the next one is opened with the new
    /// identity.
    async fn restored(&self, request: RestoredRequest) -> Result<()>;
    /// Ends the guest's processes (SIGTERM, then SIGKILL after `grace`) and then the guest. Answers at once.
    async fn shutdown(&self, grace: Duration) -> Result<()>;
    /// Returns once the session has ended.
    async fn closed(&self);

    /// Starts a process and attaches to it; gives back its id. Errors: `NotFound`, `PermissionDenied` when it cannot be started;
    /// `AlreadyExists`; `InvalidInput`; `Exhausted`.
    async fn exec(&self, request: ExecRequest) -> Result<(String, GuestProcess)>;
    /// Joins a process. Errors: `NotFound`.
    async fn attach(&self, request: AttachRequest) -> Result<(ProcessStatus, GuestProcess)>;
    /// Every process that the agent knows.
    async fn processes(&self) -> Result<Vec<ProcessStatus>>;
    /// Sends a signal to a process, or to its whole group. Errors: `NotFound`; `Conflict` when it has ended; `InvalidInput`.
    async fn signal(&self, process: &str, signal: i32, group: bool) -> Result<()>;
    /// Closes a process's standard input. Errors: `NotFound`.
    async fn close_stdin(&self, process: &str) -> Result<()>;
    /// Changes the size of a process's terminal. Errors: `NotFound`; `Conflict` when it has none.
    async fn resize(&self, process: &str, size: TerminalSize) -> Result<()>;
    /// Says that the host has a process's exit for good. No error when the process is not there.
    async fn acknowledge_exit(&self, process: &str) -> Result<()>;

    /// Reads a file. Errors: `NotFound`; `PermissionDenied`; `InvalidInput` when it is no regular file.
    async fn read_file(
        &self,
        request: ReadFileRequest,
    ) -> Result<(FileStatus, BoxStream<'static, Result<Bytes>>)>;
    /// Begins to write a file, which appears whole or not at all. Errors: `NotFound`; `AlreadyExists`; `PermissionDenied`.
    async fn write_file(&self, request: WriteFileRequest) -> Result<Box<dyn GuestFileWriter>>;
    /// Lists a directory by name, and says whether more follow. Errors: `NotFound`; `InvalidInput`.
    async fn list_directory(&self, request: ListDirectoryRequest) -> Result<(Vec<DirectoryEntry>, bool)>;
    /// What a path is. Errors: `NotFound`.
    async fn stat(&self, path: &str, follow: bool) -> Result<FileStatus>;
    /// Removes a file, or a directory. Errors: `NotFound`; `Conflict` when a directory is not empty.
    async fn remove(&self, path: &str, recursive: bool) -> Result<()>;
    /// Renames within one file system. Errors: `NotFound`; `Conflict`.
    async fn rename(&self, from: &str, to: &str) -> Result<()>;
    /// Makes a directory. Errors: `NotFound`; `AlreadyExists`.
    async fn make_directory(&self, request: MakeDirectoryRequest) -> Result<()>;

    /// Connects to a TCP port of the guest's loopback. Errors: `Unavailable` when nothing listens there.
    async fn tcp(&self, port: u16) -> Result<GuestStream>;
}

/// A process in a guest that this side is attached to. Dropping it detaches, and the process runs on.
#[derive(Debug)]
pub struct GuestProcess {
    /// The way to it.
    pub input: Box<dyn GuestInput>,
    /// The way from it.
    pub output: Box<dyn GuestOutput>,
}

/// The way to an attached process.
#[async_trait]
pub trait GuestInput: Debug + Send + 'static {
    /// Writes to its standard input; waits while the process does not read. Errors: `Conflict` once closed; `Unavailable`.
    async fn write(&mut self, bytes: &[u8]) -> Result<()>;
    /// Closes its standard input. Errors: `Unavailable`.
    async fn close(&mut self) -> Result<()>;
    /// Changes the size of its terminal. Errors: `Unavailable`.
    async fn resize(&mut self, size: TerminalSize) -> Result<()>;
}

/// The way from an attached process.
#[async_trait]
pub trait GuestOutput: Debug + Send + 'static {
    /// The next event; none when all was told. Waits without limit; cancel-safe. Errors: `Unavailable` when it was cut off.
    async fn next(&mut self) -> Result<Option<ProcessEvent>>;
}

/// A file's content on its way to a guest. Dropping it leaves the guest's file as it was.
#[async_trait]
pub trait GuestFileWriter: Debug + Send + 'static {
    /// Sends a piece. Errors: `Unavailable`, and what the guest met.
    async fn write(&mut self, bytes: &[u8]) -> Result<()>;
    /// Puts the file in its place. Errors: `OutcomeUnknown`, and what the guest met.
    async fn finish(self: Box<Self>) -> Result<FileStatus>;
}
