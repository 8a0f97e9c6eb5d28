//! Guests of a simulated host. What they do is said by their workload's command:
//!
//! * `forever`: runs until it is asked to end.
//! * `exit CODE [AFTER_MS [OUTPUT]]`: writes its output, and exits.
//! * `hasty CODE [AFTER_MS [OUTPUT]]`: as `exit`, and the guest ends as soon as the host says that it has the exit.
//! * `missing`: cannot be started.
//! * `flood BYTES`: writes that much, in small pieces, and exits with 0.
//! * `stubborn`: does not end when asked to.
//! * `silent`: its agent never answers.
//! * `halt MS`: the guest powers itself off after a time.
//! * nothing: there is no workload.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_controller::{Guest, GuestConnector, GuestFileWriter, GuestInput, GuestOutput, GuestProcess};
use flames_error::{Error, ErrorKind, Result};
use flames_guest_protocol::client::ProcessEvent;
use flames_guest_protocol::message::{
    AttachRequest, DirectoryEntry, ExecRequest, FileKind, FileStatus, Info, ListDirectoryRequest,
    MakeDirectoryRequest, ProcessExit, ProcessStatus, ReadFileRequest, RestoredRequest, TerminalSize,
    WriteFileRequest,
};
use flames_guest_protocol::{GuestConfig, Identity};
use flames_vmm::{AGENT_PORT, GuestStream, IncarnationName, SecretBytes};
use flames_vmm_simulated::{GuestFuture, GuestProgram, SimulatedGuest};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

/// The guests of one host, by incarnation.
#[derive(Debug, Default)]
pub(crate) struct Guests(Mutex<BTreeMap<String, Arc<Inside>>>);

#[derive(Debug)]
pub(crate) struct Inside {
    pub(crate) config: GuestConfig,
    /// Who its agent takes itself for, and the host name.
    who: Mutex<(Identity, String)>,
    state: watch::Sender<State>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    pub(crate) output: Vec<u8>,
    pub(crate) exit: Option<ProcessExit>,
    pub(crate) acknowledged: bool,
    pub(crate) asked_to_end: bool,
    pub(crate) signals: Vec<(String, i32)>,
    pub(crate) input: Vec<u8>,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) epoch_ms: Option<u64>,
    pub(crate) flushed: u32,
    /// The seed and the machine's id that it was told after it was loaded.
    pub(crate) restored: Option<(String, String)>,
}

impl Guests {
    pub(crate) fn inside(&self, incarnation: &str) -> Option<Arc<Inside>> {
        self.0.lock().unwrap().get(incarnation).cloned()
    }
}

impl Inside {
    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub(crate) fn hostname(&self) -> String {
        self.who.lock().unwrap().1.clone()
    }

    fn exits(&self, code: Option<i32>, signal: Option<i32>, start_error: Option<&str>) {
        let start_error = start_error.map(str::to_owned);
        self.state.send_modify(|state| {
            state.exit.get_or_insert(ProcessExit { code, signal, at_ms: 0, start_error });
        });
    }

    fn writes(&self, text: &[u8]) {
        self.state.send_modify(|state| state.output.extend_from_slice(text));
    }

    fn argv(&self) -> Vec<String> {
        self.config.workload.as_ref().map(|workload| workload.argv.clone()).unwrap_or_default()
    }
}

/// The program of every guest. Hold it apart from the guests: the host owns it, and they are looked at from outside.
#[derive(Debug)]
pub(crate) struct Program(pub(crate) Arc<Guests>);

fn number(argv: &[String], at: usize) -> u64 {
    argv.get(at).map_or(0, |text| text.parse().unwrap())
}

impl GuestProgram for Program {
    fn boot(
        &self,
        incarnation: &IncarnationName,
        config: &SecretBytes,
        guest: SimulatedGuest,
    ) -> GuestFuture {
        let config = GuestConfig::decode(&config.0).unwrap();
        let identity = Identity { incarnation: config.incarnation.clone(), key: config.key.clone() };
        let who = Mutex::new((identity, config.hostname.clone()));
        let inside = Arc::new(Inside { config, who, state: watch::Sender::default() });
        let name = incarnation.to_string();
        self.0.0.lock().unwrap().insert(incarnation.to_string(), Arc::clone(&inside));
        Box::pin(async move {
            guest.write_console("kernel: hello\n");
            let argv = inside.argv();
            let what = argv.first().cloned().unwrap_or_default();
            if what == "silent" {
                guest.write_console("init: \u{1b}[31mno agent here\n");
                return std::future::pending().await;
            }
            let mut listener = guest.listen(AGENT_PORT);
            let echo = async {
                while let Some(mut stream) = listener.accept().await {
                    let name = name.clone();
                    guest.spawn(async move {
                        let mut byte = [0];
                        // Which machine this is.
                        let _ = stream.write_all(format!("{name}\n").as_bytes()).await;
                        while stream.read_exact(&mut byte).await.is_ok()
                            && stream.write_all(&byte).await.is_ok()
                        {}
                    });
                }
            };
            let sleep = |ms| tokio::time::sleep(Duration::from_millis(ms));
            let mut acknowledged = inside.state.subscribe();
            let workload = async {
                match what.as_str() {
                    "exit" | "hasty" => {
                        inside.writes(argv.get(3).map_or("", String::as_str).as_bytes());
                        sleep(number(&argv, 2)).await;
                        inside.exits(Some(i32::try_from(number(&argv, 1)).unwrap()), None, None);
                    }
                    "late" => {
                        sleep(number(&argv, 1)).await;
                        inside.writes(b"at last\n");
                    }
                    "missing" => inside.exits(Some(127), None, Some("missing: no such file or directory")),
                    "flood" => {
                        let mut left = number(&argv, 1);
                        while left > 0 {
                            let piece = left.min(700);
                            left -= piece;
                            inside.writes(&vec![b'x'; usize::try_from(piece).unwrap()]);
                            tokio::task::yield_now().await;
                        }
                        inside.exits(Some(0), None, None);
                    }
                    "halt" => {
                        sleep(number(&argv, 1)).await;
                        return true;
                    }
                    _ => {}
                }
                what == "hasty" && acknowledged.wait_for(|state| state.acknowledged).await.is_ok()
            };
            let mut state = inside.state.subscribe();
            let asked = async {
                state.wait_for(|state| state.asked_to_end).await.unwrap();
                if what == "stubborn" {
                    return std::future::pending().await;
                }
                sleep(20).await;
                inside.exits(None, Some(15), None);
                sleep(5).await;
            };
            let halted = async {
                if !workload.await {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = asked => {}
                () = halted => {}
                () = echo => {}
            }
        })
    }
}

/// Opens sessions with these guests: one byte must come back over the connection, and the key must be the guest's.
#[derive(Debug)]
pub(crate) struct Connector(pub(crate) Arc<Guests>);

#[async_trait]
impl GuestConnector for Connector {
    async fn connect(&self, mut stream: GuestStream, identity: &Identity) -> Result<Box<dyn Guest>> {
        let gone = |_| Error::unavailable("guest.connect", "the agent does not answer");
        let mut name = String::new();
        loop {
            match stream.read_u8().await.map_err(gone)? {
                b'\n' => break,
                byte => name.push(char::from(byte)),
            }
        }
        stream.write_all(b"h").await.map_err(gone)?;
        stream.read_exact(&mut [0]).await.map_err(gone)?;
        let inside = self.0.inside(&name).ok_or_else(|| Error::internal("guest", "nobody"))?;
        let who = inside.who.lock().unwrap().0.clone();
        if who.incarnation != identity.incarnation || who.key.to_hex() != identity.key.to_hex() {
            return Err(Error::new(ErrorKind::PermissionDenied, "guest.connect", "another key"));
        }
        let (mut read, write) = tokio::io::split(stream);
        let (sender, alive) = watch::channel(());
        let task = tokio::spawn(async move {
            let _open = (sender, write);
            let _ = read.read(&mut [0]).await;
        });
        Ok(Box::new(Session { inside, alive, task }))
    }
}

#[derive(Debug)]
struct Session {
    inside: Arc<Inside>,
    alive: watch::Receiver<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Session {
    fn check(&self) -> Result<()> {
        match self.alive.has_changed() {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::unavailable("guest", "the session is gone")),
        }
    }
}

fn status(size: usize) -> FileStatus {
    let (uid, gid, mode) = (0, 0, 0o644);
    FileStatus { kind: FileKind::File, size: size as u64, mode, uid, gid, modified_ms: 0, link_target: None }
}

#[async_trait]
impl Guest for Session {
    async fn info(&self) -> Result<Info> {
        self.check()?;
        let (identity, hostname) = self.inside.who.lock().unwrap().clone();
        Ok(Info {
            agent_version: "test".to_owned(),
            incarnation: identity.incarnation,
            kernel: "test".to_owned(),
            hostname,
            init: true,
            uptime_ms: 1,
            boot: Vec::new(),
        })
    }
    async fn set_clock(&self, epoch_ms: u64) -> Result<()> {
        self.check()?;
        self.inside.state.send_modify(|state| state.epoch_ms = Some(epoch_ms));
        Ok(())
    }
    async fn flush(&self) -> Result<()> {
        self.check()?;
        self.inside.state.send_modify(|state| state.flushed += 1);
        Ok(())
    }
    async fn restored(&self, request: RestoredRequest) -> Result<()> {
        self.check()?;
        let RestoredRequest { incarnation, key, hostname, seed, machine_id, .. } = request;
        *self.inside.who.lock().unwrap() = (Identity { incarnation, key }, hostname);
        let told = (seed.expose().to_owned(), machine_id);
        self.inside.state.send_modify(|state| state.restored = Some(told));
        Ok(())
    }
    async fn shutdown(&self, _grace: Duration) -> Result<()> {
        self.check()?;
        self.inside.state.send_modify(|state| state.asked_to_end = true);
        Ok(())
    }
    async fn closed(&self) {
        let mut alive = self.alive.clone();
        while alive.changed().await.is_ok() {}
    }
    async fn exec(&self, request: ExecRequest) -> Result<(String, GuestProcess)> {
        self.check()?;
        let echo = format!("ran {}\n", request.argv.join(" "));
        let exit = ProcessExit { code: Some(7), signal: None, at_ms: 0, start_error: None };
        let output =
            ProcessEvent::Output { stream: 1, offset: 0, at_ms: 0, content: Bytes::from(echo.into_bytes()) };
        let events = vec![ProcessEvent::Exited(exit), output];
        let process =
            GuestProcess { input: Box::new(Input(self.inside.clone())), output: Box::new(Told(events)) };
        Ok(("p1".to_owned(), process))
    }
    async fn attach(&self, request: AttachRequest) -> Result<(ProcessStatus, GuestProcess)> {
        self.check()?;
        if request.process != "main" || self.inside.argv().is_empty() {
            return Err(Error::not_found("guest.attach", "process", request.process));
        }
        let follower = Follower {
            inside: self.inside.clone(),
            state: self.inside.state.subscribe(),
            alive: self.alive.clone(),
            told: usize::try_from(request.from_offset).unwrap(),
            ended: false,
        };
        let status = ProcessStatus {
            process: "main".to_owned(),
            argv: self.inside.argv(),
            pid: 2,
            tty: false,
            started_at_ms: 0,
            output_length: 0,
            output_available_from: 0,
            exit: None,
            acknowledged: false,
        };
        let input = Box::new(Input(self.inside.clone()));
        Ok((status, GuestProcess { input, output: Box::new(follower) }))
    }
    async fn processes(&self) -> Result<Vec<ProcessStatus>> {
        Ok(Vec::new())
    }
    async fn signal(&self, process: &str, signal: i32, _group: bool) -> Result<()> {
        let process = process.to_owned();
        self.inside.state.send_modify(|state| state.signals.push((process, signal)));
        Ok(())
    }
    async fn close_stdin(&self, _process: &str) -> Result<()> {
        Ok(())
    }
    async fn resize(&self, _process: &str, _size: TerminalSize) -> Result<()> {
        Ok(())
    }
    async fn acknowledge_exit(&self, process: &str) -> Result<()> {
        self.check()?;
        if process == "main" {
            self.inside.state.send_modify(|state| state.acknowledged = true);
        }
        Ok(())
    }
    async fn read_file(
        &self,
        request: ReadFileRequest,
    ) -> Result<(FileStatus, BoxStream<'static, Result<Bytes>>)> {
        let content = self.inside.state().files.get(&request.path).cloned();
        let content = content.ok_or_else(|| Error::not_found("guest.read_file", "file", request.path))?;
        let pieces: Vec<_> = content.chunks(3).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Ok((status(content.len()), futures::stream::iter(pieces).boxed()))
    }
    async fn write_file(&self, request: WriteFileRequest) -> Result<Box<dyn GuestFileWriter>> {
        Ok(Box::new(Writer { inside: self.inside.clone(), path: request.path, content: Vec::new() }))
    }
    async fn list_directory(&self, request: ListDirectoryRequest) -> Result<(Vec<DirectoryEntry>, bool)> {
        let after = request.after.unwrap_or_default();
        let files = self.inside.state().files;
        let mut entries: Vec<_> = files
            .iter()
            .filter(|(name, _)| **name > after)
            .map(|(name, content)| DirectoryEntry { name: name.clone(), status: status(content.len()) })
            .collect();
        let most = request.limit.unwrap_or(10_000) as usize;
        let more = entries.len() > most;
        entries.truncate(most);
        Ok((entries, more))
    }
    async fn stat(&self, path: &str, _follow: bool) -> Result<FileStatus> {
        Err(Error::not_found("guest.stat", "file", path))
    }
    async fn remove(&self, path: &str, _recursive: bool) -> Result<()> {
        self.inside.state.send_modify(|state| drop(state.files.remove(path)));
        Ok(())
    }
    async fn rename(&self, _from: &str, _to: &str) -> Result<()> {
        Ok(())
    }
    async fn make_directory(&self, _request: MakeDirectoryRequest) -> Result<()> {
        Ok(())
    }
    async fn tcp(&self, port: u16) -> Result<GuestStream> {
        if port != 80 {
            return Err(Error::unavailable("guest.tcp", "nothing listens there"));
        }
        let (read, write) = tokio::io::simplex(1024);
        Ok(Box::new(tokio::io::join(read, write)))
    }
}

/// Events that are all there already, last first.
#[derive(Debug)]
struct Told(Vec<ProcessEvent>);

#[async_trait]
impl GuestOutput for Told {
    async fn next(&mut self) -> Result<Option<ProcessEvent>> {
        Ok(self.0.pop())
    }
}

#[derive(Debug)]
struct Follower {
    inside: Arc<Inside>,
    state: watch::Receiver<State>,
    alive: watch::Receiver<()>,
    told: usize,
    ended: bool,
}

#[async_trait]
impl GuestOutput for Follower {
    async fn next(&mut self) -> Result<Option<ProcessEvent>> {
        loop {
            let (content, exit) = {
                let state = self.state.borrow_and_update();
                let new = state.output.get(self.told..).unwrap_or_default();
                (Bytes::copy_from_slice(&new[..new.len().min(16 * 1024)]), state.exit.clone())
            };
            if !content.is_empty() {
                let offset = self.told as u64;
                self.told += content.len();
                return Ok(Some(ProcessEvent::Output { stream: 1, offset, at_ms: 1_000, content }));
            }
            match exit {
                _ if self.ended => return Ok(None),
                Some(exit) => {
                    self.ended = true;
                    return Ok(Some(ProcessEvent::Exited(exit)));
                }
                None => {}
            }
            tokio::select! {
                biased;
                _ = self.state.changed() => {}
                gone = self.alive.changed() => if gone.is_err() {
                    return Err(Error::unavailable("guest.output", format!("cut off: {}", self.inside.config.incarnation)));
                },
            }
        }
    }
}

#[derive(Debug)]
struct Input(Arc<Inside>);

#[async_trait]
impl GuestInput for Input {
    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.state.send_modify(|state| state.input.extend_from_slice(bytes));
        Ok(())
    }
    async fn close(&mut self) -> Result<()> {
        Ok(())
    }
    async fn resize(&mut self, _size: TerminalSize) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Writer {
    inside: Arc<Inside>,
    path: String,
    content: Vec<u8>,
}

#[async_trait]
impl GuestFileWriter for Writer {
    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.content.extend_from_slice(bytes);
        Ok(())
    }
    async fn finish(self: Box<Self>) -> Result<FileStatus> {
        let (path, content) = (self.path, self.content);
        let size = content.len();
        self.inside.state.send_modify(|state| drop(state.files.insert(path, content)));
        Ok(status(size))
    }
}
