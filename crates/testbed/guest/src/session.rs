//! A session with a simulated guest's agent.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_controller::{Guest, GuestFileWriter, GuestProcess};
use flames_error::{Error, ErrorKind, Result};
use flames_guest_protocol::message::{
    AttachRequest, DirectoryEntry, ExecRequest, FileStatus, Info, ListDirectoryRequest, MakeDirectoryRequest,
    ProcessStatus, ReadFileRequest, RestoredRequest, TerminalSize, WriteFileRequest,
};
use flames_vmm::GuestStream;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::watch;

use crate::machine::{Machine, Who};
use crate::{Alive, OPERATION, Watching, lock};

/// Bytes on their way through a guest's port.
const PIPE: usize = 64 * 1024;

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) machine: Arc<Machine>,
    /// The machine's name.
    pub(crate) name: String,
    pub(crate) alive: Arc<Mutex<Alive>>,
    pub(crate) close: Arc<watch::Sender<bool>>,
    pub(crate) closing: watch::Receiver<bool>,
    pub(crate) _watching: Watching,
}

impl Session {
    /// The machine, while it runs. A paused one does not answer.
    async fn machine(&self) -> Result<&Arc<Machine>> {
        tokio::select! {
            biased;
            () = self.closed() => Err(Error::unavailable(OPERATION, "the guest is gone")),
            () = self.machine.guest.runs() => Ok(&self.machine),
        }
    }
}

#[async_trait]
impl Guest for Session {
    async fn info(&self) -> Result<Info> {
        let machine = self.machine().await?;
        Ok(Info {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            incarnation: machine.guest.incarnation().to_string(),
            kernel: "simulated".to_owned(),
            hostname: machine.who().hostname,
            init: true,
            uptime_ms: 0,
            boot: Vec::new(),
        })
    }

    async fn set_clock(&self, _epoch_ms: u64) -> Result<()> {
        self.machine().await.map(drop)
    }

    async fn flush(&self) -> Result<()> {
        self.machine().await.map(drop)
    }

    async fn restored(&self, request: RestoredRequest) -> Result<()> {
        let machine = self.machine().await?;
        let RestoredRequest { incarnation, key, hostname, .. } = request;
        lock(&self.alive).goes_by(&hostname, &self.name);
        machine.become_another(Who { incarnation, key, hostname });
        self.close.send_replace(true);
        Ok(())
    }

    async fn shutdown(&self, _grace: Duration) -> Result<()> {
        let machine = Arc::clone(self.machine().await?);
        let guest = machine.guest.clone();
        guest.clone().spawn(async move {
            machine.end_all().await;
            guest.power_off();
        });
        Ok(())
    }

    async fn closed(&self) {
        // The sender ends with its task, which means the same.
        let _ = self.closing.clone().wait_for(|closed| *closed).await;
    }

    async fn exec(&self, request: ExecRequest) -> Result<(String, GuestProcess)> {
        let machine = self.machine().await?;
        if !Machine::knows(&request.argv) {
            let name = request.argv.first().cloned().unwrap_or_default();
            return Err(Error::not_found(OPERATION, "program", name.clone())
                .with_user_message(format!("The program `{name}` was not found.")));
        }
        let (id, process) =
            machine.start(request.process, request.argv, request.tty.is_some(), request.stdin)?;
        Ok((id, process.attached(&machine.guest, 0)))
    }

    async fn attach(&self, request: AttachRequest) -> Result<(ProcessStatus, GuestProcess)> {
        let machine = self.machine().await?;
        let process = machine.process(&request.process)?;
        Ok((process.status(&request.process), process.attached(&machine.guest, request.from_offset)))
    }

    async fn processes(&self) -> Result<Vec<ProcessStatus>> {
        let processes = self.machine().await?.processes();
        Ok(processes.iter().map(|(id, process)| process.status(id)).collect())
    }

    async fn signal(&self, process: &str, signal: i32, _group: bool) -> Result<()> {
        self.machine().await?.process(process)?.kill(signal)
    }

    async fn close_stdin(&self, process: &str) -> Result<()> {
        self.machine().await?.process(process)?.close_input();
        Ok(())
    }

    async fn resize(&self, process: &str, _size: TerminalSize) -> Result<()> {
        if self.machine().await?.process(process)?.has_terminal() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Conflict, OPERATION, "the process has no terminal")
            .with_resource("process", process))
    }

    async fn acknowledge_exit(&self, process: &str) -> Result<()> {
        if let Ok(process) = self.machine().await?.process(process) {
            process.acknowledge();
        }
        Ok(())
    }

    async fn read_file(
        &self,
        request: ReadFileRequest,
    ) -> Result<(FileStatus, BoxStream<'static, Result<Bytes>>)> {
        let (status, part) = self.machine().await?.files.read(&request)?;
        Ok((status, futures::stream::once(async move { Ok(part) }).boxed()))
    }

    async fn write_file(&self, request: WriteFileRequest) -> Result<Box<dyn GuestFileWriter>> {
        self.machine().await?.files.write(request)
    }

    async fn list_directory(&self, request: ListDirectoryRequest) -> Result<(Vec<DirectoryEntry>, bool)> {
        Ok((self.machine().await?.files.list(&request.path), false))
    }

    async fn stat(&self, path: &str, _follow: bool) -> Result<FileStatus> {
        self.machine().await?.files.stat(path)
    }

    async fn remove(&self, path: &str, _recursive: bool) -> Result<()> {
        self.machine().await?.files.remove(path)
    }

    async fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.machine().await?.files.rename(from, to)
    }

    async fn make_directory(&self, _request: MakeDirectoryRequest) -> Result<()> {
        self.machine().await.map(drop)
    }

    async fn tcp(&self, _port: u16) -> Result<GuestStream> {
        let machine = self.machine().await?;
        let (ours, theirs) = tokio::io::duplex(PIPE);
        machine.guest.spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(theirs);
            // It ends with the connection.
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        });
        Ok(Box::new(ours))
    }
}
