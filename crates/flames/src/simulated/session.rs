//! A session with a simulated guest.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_controller::{Guest, GuestFileWriter, GuestInput, GuestOutput, GuestProcess};
use flames_error::{Error, ErrorKind, Result};
use flames_guest_protocol::client::ProcessEvent;
use flames_guest_protocol::message::{
    AttachRequest, DirectoryEntry, ExecRequest, FileStatus, Info, ListDirectoryRequest, MakeDirectoryRequest,
    ProcessStatus, ReadFileRequest, TerminalSize, WriteFileRequest,
};
use flames_vmm::GuestStream;
use futures::stream::BoxStream;
use tokio::sync::{mpsc, watch};

use super::{Machine, OPERATION, Process, State, WORDS, gone, lock, no_files};

#[derive(Debug)]
pub(super) struct Session {
    pub(super) machine: Arc<Machine>,
    pub(super) closing: watch::Receiver<bool>,
    pub(super) _watching: crate::attached::AbortOnDrop,
}

impl Session {
    /// The machine, while it runs. A paused one does not answer.
    async fn machine(&self) -> Result<&Arc<Machine>> {
        tokio::select! {
            biased;
            () = self.closed() => Err(gone()),
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
            hostname: machine.hostname.clone(),
            init: true,
            uptime_ms: 0,
            boot: Vec::new(),
        })
    }

    async fn set_clock(&self, _epoch_ms: u64) -> Result<()> {
        self.machine().await.map(drop)
    }

    async fn shutdown(&self, grace: Duration) -> Result<()> {
        let machine = self.machine().await?.clone();
        const SIGTERM: i32 = 15;
        let processes: Vec<_> = lock(&machine.processes).values().cloned().collect();
        for process in processes {
            // One that has ended needs no signal.
            let _ = process.kill(SIGTERM);
        }
        let (guest, clock) = (machine.guest.clone(), machine.clock.clone());
        machine.guest.spawn(async move {
            // What a real guest takes to end its processes.
            clock.sleep(grace.min(Duration::from_millis(20))).await;
            guest.power_off();
        });
        Ok(())
    }

    async fn closed(&self) {
        // The sender ends with the watcher, which means the same.
        let _ = self.closing.clone().wait_for(|closed| *closed).await;
    }

    async fn exec(&self, request: ExecRequest) -> Result<(String, GuestProcess)> {
        let machine = self.machine().await?;
        let id = request.process.unwrap_or_else(|| format!("p{}", lock(&machine.processes).len() + 1));
        if lock(&machine.processes).contains_key(&id) {
            return Err(Error::new(ErrorKind::AlreadyExists, OPERATION, "the process id is taken"));
        }
        let known = request.argv.first().is_some_and(|word| WORDS.contains(&word.as_str()));
        if !known {
            let name = request.argv.first().cloned().unwrap_or_default();
            return Err(Error::not_found(OPERATION, "program", name.clone())
                .with_user_message(format!("The program `{name}` was not found.")));
        }
        let process = machine.start(id.clone(), request.argv, request.tty.is_some(), request.stdin)?;
        Ok((id, process.attached(0)))
    }

    async fn attach(&self, request: AttachRequest) -> Result<(ProcessStatus, GuestProcess)> {
        let process = self.machine().await?.process(&request.process)?;
        Ok((process.status(&request.process), process.attached(request.from_offset)))
    }

    async fn processes(&self) -> Result<Vec<ProcessStatus>> {
        let machine = self.machine().await?;
        let processes = lock(&machine.processes);
        Ok(processes.iter().map(|(id, process)| process.status(id)).collect())
    }

    async fn signal(&self, process: &str, signal: i32, _group: bool) -> Result<()> {
        self.machine().await?.process(process)?.kill(signal)
    }

    async fn close_stdin(&self, process: &str) -> Result<()> {
        lock(&self.machine().await?.process(process)?.input).take();
        Ok(())
    }

    async fn resize(&self, process: &str, _size: TerminalSize) -> Result<()> {
        let process = self.machine().await?.process(process)?;
        if process.terminal {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Conflict, OPERATION, "the process has no terminal"))
    }

    async fn acknowledge_exit(&self, process: &str) -> Result<()> {
        if let Ok(process) = self.machine().await?.process(process) {
            process.state.send_modify(|state| state.acknowledged = true);
        }
        Ok(())
    }

    async fn read_file(&self, _: ReadFileRequest) -> Result<(FileStatus, BoxStream<'static, Result<Bytes>>)> {
        Err(no_files())
    }
    async fn write_file(&self, _: WriteFileRequest) -> Result<Box<dyn GuestFileWriter>> {
        Err(no_files())
    }
    async fn list_directory(&self, _: ListDirectoryRequest) -> Result<(Vec<DirectoryEntry>, bool)> {
        Err(no_files())
    }
    async fn stat(&self, _: &str, _: bool) -> Result<FileStatus> {
        Err(no_files())
    }
    async fn remove(&self, _: &str, _: bool) -> Result<()> {
        Err(no_files())
    }
    async fn rename(&self, _: &str, _: &str) -> Result<()> {
        Err(no_files())
    }
    async fn make_directory(&self, _: MakeDirectoryRequest) -> Result<()> {
        Err(no_files())
    }

    async fn tcp(&self, _port: u16) -> Result<GuestStream> {
        let machine = self.machine().await?;
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        machine.guest.spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(theirs);
            // It ends with the connection.
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        });
        Ok(Box::new(ours))
    }
}

#[derive(Debug)]
pub(super) struct Input {
    pub(super) process: Arc<Process>,
    pub(super) input: Option<mpsc::Sender<Bytes>>,
}

#[async_trait]
impl GuestInput for Input {
    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let closed = || Error::new(ErrorKind::Conflict, OPERATION, "its standard input is closed");
        let input = self.input.as_ref().ok_or_else(closed)?;
        input.send(Bytes::copy_from_slice(bytes)).await.map_err(|_| closed())
    }

    async fn close(&mut self) -> Result<()> {
        self.input = None;
        lock(&self.process.input).take();
        Ok(())
    }

    async fn resize(&mut self, _size: TerminalSize) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Output {
    pub(super) changes: watch::Receiver<State>,
    pub(super) next: u64,
    pub(super) over: bool,
}

#[async_trait]
impl GuestOutput for Output {
    async fn next(&mut self) -> Result<Option<ProcessEvent>> {
        if self.over {
            return Ok(None);
        }
        loop {
            {
                let state = self.changes.borrow_and_update();
                let first = state.output.first().map_or(state.length, |piece| piece.1);
                if first > self.next {
                    self.next = first;
                    return Ok(Some(ProcessEvent::Truncated { available_from: first }));
                }
                let piece = state.output.iter().find(|piece| piece.1 + piece.3.len() as u64 > self.next);
                if let Some((stream, offset, at_ms, bytes)) = piece {
                    let skipped = usize::try_from(self.next.saturating_sub(*offset)).unwrap_or(0);
                    let offset = self.next.max(*offset);
                    let content = bytes.slice(skipped..);
                    self.next = offset + content.len() as u64;
                    return Ok(Some(ProcessEvent::Output {
                        stream: *stream,
                        offset,
                        at_ms: *at_ms,
                        content,
                    }));
                }
                if let Some(exit) = &state.exit {
                    self.over = true;
                    return Ok(Some(ProcessEvent::Exited(exit.clone())));
                }
            }
            self.changes.changed().await.map_err(|_| gone())?;
        }
    }
}
