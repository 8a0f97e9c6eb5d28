//! Simulated guests: an agent and a workload that exist only in this process.
//!
//! A workload says what it does by its arguments: `exit=3` (end with that code, at once unless told otherwise), `signal=9`,
//! `after=500` (milliseconds until then), `say=hello` (a line of output), `missing` (cannot be started). Anything else runs until it
//! is stopped. The same words work for processes started by `exec`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_clock::Clock;
use flames_controller::{Guest, GuestConnector, GuestFileWriter, GuestInput, GuestOutput, GuestProcess};
use flames_error::{Error, ErrorKind, Result};
use flames_guest_protocol::client::ProcessEvent;
use flames_guest_protocol::message::{
    AttachRequest, DirectoryEntry, ExecRequest, FileKind, FileStatus, Info, ListDirectoryRequest,
    MAIN_PROCESS, MakeDirectoryRequest, ProcessExit, ProcessStatus, ReadFileRequest, TerminalSize,
    WriteFileRequest,
};
use flames_guest_protocol::{AgentKey, GuestConfig, Identity};
use flames_vmm::{AGENT_PORT, GuestStream, IncarnationName, SecretBytes};
use flames_vmm_simulated::{GuestFuture, GuestProgram, SimulatedGuest};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::Notify;

/// The largest file that a simulated guest keeps, in bytes.
const LARGEST_FILE: usize = 16 * 1024 * 1024;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a workload does.
#[derive(Debug, Clone, Default)]
struct Script {
    code: Option<i32>,
    signal: Option<i32>,
    after: Duration,
    said: Vec<u8>,
    missing: bool,
}

impl Script {
    fn of(argv: &[String]) -> Self {
        let mut script = Self::default();
        for word in argv {
            match word.split_once('=') {
                Some(("exit", code)) => script.code = code.parse().ok(),
                Some(("signal", signal)) => script.signal = signal.parse().ok(),
                Some(("after", ms)) => script.after = Duration::from_millis(ms.parse().unwrap_or(0)),
                Some(("say", line)) => script.said.extend_from_slice(format!("{line}\n").as_bytes()),
                _ => script.missing |= word == "missing",
            }
        }
        script
    }

    fn ends(&self) -> bool {
        self.missing || self.code.is_some() || self.signal.is_some()
    }

    fn exit(&self, at_ms: u64) -> ProcessExit {
        let start_error = self.missing.then(|| "No such file or directory".to_owned());
        let code = if self.missing { Some(127) } else { self.code.filter(|_| self.signal.is_none()) };
        ProcessExit { code, signal: self.signal, at_ms, start_error }
    }
}

/// What goes on in one guest.
#[derive(Debug)]
struct Mind {
    key: AgentKey,
    hostname: String,
    argv: Vec<String>,
    machine: SimulatedGuest,
    clock: Arc<dyn Clock>,
    main: Mutex<Main>,
    changed: Notify,
    files: Mutex<BTreeMap<String, Bytes>>,
}

#[derive(Debug, Default)]
struct Main {
    said: Vec<u8>,
    exit: Option<ProcessExit>,
    acknowledged: bool,
}

impl Mind {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.now().as_millisecond()).unwrap_or(0)
    }

    fn runs_something(&self) -> bool {
        !self.argv.is_empty()
    }

    fn end_main(&self, exit: ProcessExit) {
        let mut main = lock(&self.main);
        if self.runs_something() && main.exit.is_none() {
            main.exit = Some(exit);
        }
        drop(main);
        self.changed.notify_waiters();
    }

    fn end_by_signal(&self, signal: i32) {
        self.end_main(ProcessExit {
            code: None,
            signal: Some(signal),
            at_ms: self.now_ms(),
            start_error: None,
        });
    }

    async fn run_main(&self) {
        let script = Script::of(&self.argv);
        lock(&self.main).said.clone_from(&script.said);
        self.changed.notify_waiters();
        self.clock.sleep(script.after).await;
        if script.ends() {
            self.end_main(script.exit(self.now_ms()));
        }
    }
}

#[derive(Debug, Default)]
struct Minds {
    by_incarnation: BTreeMap<String, Arc<Mind>>,
    /// What was seen that must never be: two guests of one VM alive at once.
    doubled: Vec<String>,
}

/// All simulated guests of a process: what runs in them, and how a controller reaches their agents.
#[derive(Debug, Clone)]
pub struct SimulatedGuests {
    minds: Arc<Mutex<Minds>>,
    clock: Arc<dyn Clock>,
}

impl SimulatedGuests {
    /// No guests yet; `clock` is theirs.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { minds: Arc::default(), clock }
    }

    /// Which VMs, by host name, ever had two guests alive at once, on whichever hosts.
    pub fn doubled(&self) -> Vec<String> {
        lock(&self.minds).doubled.clone()
    }
}

/// Forgets a guest when its machine is gone.
struct Forget {
    minds: Weak<Mutex<Minds>>,
    name: String,
}

impl Drop for Forget {
    fn drop(&mut self) {
        if let Some(minds) = self.minds.upgrade() {
            lock(&minds).by_incarnation.remove(&self.name);
        }
    }
}

impl GuestProgram for SimulatedGuests {
    fn boot(
        &self,
        incarnation: &IncarnationName,
        config: &SecretBytes,
        guest: SimulatedGuest,
    ) -> GuestFuture {
        let Ok(config) = GuestConfig::decode(&config.0) else {
            guest.write_console("flames-agent: fatal: the configuration cannot be read\n");
            return Box::pin(async {});
        };
        let mind = Arc::new(Mind {
            key: config.key,
            hostname: config.hostname,
            argv: config.workload.map(|workload| workload.argv).unwrap_or_default(),
            machine: guest.clone(),
            clock: Arc::clone(&self.clock),
            main: Mutex::default(),
            changed: Notify::new(),
            files: Mutex::default(),
        });
        let name = incarnation.as_str().to_owned();
        let mut minds = lock(&self.minds);
        let twin = minds.by_incarnation.iter().find(|(_, other)| other.hostname == mind.hostname);
        if let Some((twin, _)) = twin {
            let doubled = format!("{}: {name} began while {twin} was alive", mind.hostname);
            minds.doubled.push(doubled);
        }
        minds.by_incarnation.insert(name.clone(), Arc::clone(&mind));
        drop(minds);
        let forget = Forget { minds: Arc::downgrade(&self.minds), name };
        Box::pin(async move {
            let _forget = forget;
            let mut listener = guest.listen(AGENT_PORT);
            let serve = async {
                // One session at a time: a newer connection ends the older one.
                let mut session: Option<GuestStream> = None;
                while let Some(stream) = listener.accept().await {
                    drop(session.replace(stream));
                }
                std::future::pending::<()>().await;
            };
            let work = async {
                if mind.runs_something() {
                    mind.run_main().await;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                biased;
                () = guest.power_button() => mind.end_by_signal(15),
                () = serve => {}
                () = work => {}
            }
        })
    }
}

#[async_trait]
impl GuestConnector for SimulatedGuests {
    async fn connect(&self, stream: GuestStream, identity: &Identity) -> Result<Box<dyn Guest>> {
        let mind = lock(&self.minds).by_incarnation.get(&identity.incarnation).cloned();
        let mind = mind.ok_or_else(|| Error::unavailable("testbed.connect", "no agent answers yet"))?;
        if mind.key.to_hex() != identity.key.to_hex() {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                "testbed.connect",
                "the key is another incarnation's",
            ));
        }
        mind.machine.runs().await;
        Ok(Box::new(Session { mind, _stream: Mutex::new(stream) }))
    }
}

struct Session {
    mind: Arc<Mind>,
    /// Held so that the guest sees the session; nothing is said on it.
    _stream: Mutex<GuestStream>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("mind", &self.mind).finish_non_exhaustive()
    }
}

fn no_process(process: &str) -> Error {
    Error::not_found("testbed.process", "process", process)
}

fn no_file(path: &str) -> Error {
    Error::not_found("testbed.file", "file", path)
        .with_user_message(format!("There is no file `{path}` in the guest."))
}

fn file_status(content: &Bytes) -> FileStatus {
    let size = u64::try_from(content.len()).unwrap_or(u64::MAX);
    FileStatus { kind: FileKind::File, size, mode: 0o644, uid: 0, gid: 0, modified_ms: 0, link_target: None }
}

impl Session {
    fn main_status(&self) -> ProcessStatus {
        let main = lock(&self.mind.main);
        ProcessStatus {
            process: MAIN_PROCESS.to_owned(),
            argv: self.mind.argv.clone(),
            pid: 2,
            tty: false,
            started_at_ms: 0,
            output_length: u64::try_from(main.said.len()).unwrap_or(0),
            output_available_from: 0,
            exit: main.exit.clone(),
            acknowledged: main.acknowledged,
        }
    }
}

#[async_trait]
impl Guest for Session {
    async fn info(&self) -> Result<Info> {
        self.mind.machine.runs().await;
        Ok(Info {
            agent_version: "simulated".to_owned(),
            incarnation: self.mind.machine.incarnation().as_str().to_owned(),
            kernel: "simulated".to_owned(),
            hostname: self.mind.hostname.clone(),
            init: true,
            uptime_ms: 0,
            boot: Vec::new(),
        })
    }

    async fn set_clock(&self, _epoch_ms: u64) -> Result<()> {
        self.mind.machine.runs().await;
        Ok(())
    }

    async fn shutdown(&self, _grace: Duration) -> Result<()> {
        self.mind.machine.runs().await;
        self.mind.end_by_signal(15);
        self.mind.machine.power_off();
        Ok(())
    }

    async fn closed(&self) {
        self.mind.machine.stopped().await;
    }

    async fn exec(&self, request: ExecRequest) -> Result<(String, GuestProcess)> {
        self.mind.machine.runs().await;
        let script = Script::of(&request.argv);
        if script.missing {
            return Err(no_process(request.argv.first().map_or("", String::as_str)));
        }
        let exit = Script { code: script.code.or(Some(0)), ..script.clone() }.exit(self.mind.now_ms());
        let output = Spoken {
            said: script.said,
            after: Some((script.after, Arc::clone(&self.mind.clock))),
            exit: Some(exit),
        };
        let process = request.process.unwrap_or_else(|| "exec".to_owned());
        Ok((process, GuestProcess { input: Box::new(Deaf), output: Box::new(output) }))
    }

    async fn attach(&self, request: AttachRequest) -> Result<(ProcessStatus, GuestProcess)> {
        self.mind.machine.runs().await;
        if request.process != MAIN_PROCESS || !self.mind.runs_something() {
            return Err(no_process(&request.process));
        }
        let output = MainOutput { mind: Arc::clone(&self.mind), from: request.from_offset, told_exit: false };
        Ok((self.main_status(), GuestProcess { input: Box::new(Deaf), output: Box::new(output) }))
    }

    async fn processes(&self) -> Result<Vec<ProcessStatus>> {
        self.mind.machine.runs().await;
        Ok(if self.mind.runs_something() { vec![self.main_status()] } else { Vec::new() })
    }

    async fn signal(&self, process: &str, signal: i32, _group: bool) -> Result<()> {
        self.mind.machine.runs().await;
        if process != MAIN_PROCESS || !self.mind.runs_something() {
            return Err(no_process(process));
        }
        self.mind.end_by_signal(signal);
        Ok(())
    }

    async fn close_stdin(&self, process: &str) -> Result<()> {
        if process == MAIN_PROCESS { Ok(()) } else { Err(no_process(process)) }
    }

    async fn resize(&self, process: &str, _size: TerminalSize) -> Result<()> {
        Err(Error::new(ErrorKind::Conflict, "testbed.resize", "the process has no terminal")
            .with_resource("process", process))
    }

    async fn acknowledge_exit(&self, process: &str) -> Result<()> {
        self.mind.machine.runs().await;
        if process == MAIN_PROCESS {
            lock(&self.mind.main).acknowledged = true;
        }
        Ok(())
    }

    async fn read_file(
        &self,
        request: ReadFileRequest,
    ) -> Result<(FileStatus, BoxStream<'static, Result<Bytes>>)> {
        let content =
            lock(&self.mind.files).get(&request.path).cloned().ok_or_else(|| no_file(&request.path))?;
        let from = usize::try_from(request.offset).unwrap_or(usize::MAX).min(content.len());
        let length =
            request.length.map_or(usize::MAX, |length| usize::try_from(length).unwrap_or(usize::MAX));
        let part = content.slice(from..from.saturating_add(length).min(content.len()));
        Ok((file_status(&content), futures::stream::once(async move { Ok(part) }).boxed()))
    }

    async fn write_file(&self, request: WriteFileRequest) -> Result<Box<dyn GuestFileWriter>> {
        if !request.overwrite && lock(&self.mind.files).contains_key(&request.path) {
            return Err(Error::new(ErrorKind::AlreadyExists, "testbed.write", "the file is there already"));
        }
        Ok(Box::new(Writing { mind: Arc::clone(&self.mind), path: request.path, content: Vec::new() }))
    }

    async fn list_directory(&self, request: ListDirectoryRequest) -> Result<(Vec<DirectoryEntry>, bool)> {
        let folder = format!("{}/", request.path.trim_end_matches('/'));
        let files = lock(&self.mind.files);
        let entries = files.iter().filter_map(|(path, content)| {
            let name = path.strip_prefix(&folder)?;
            (!name.contains('/'))
                .then(|| DirectoryEntry { name: name.to_owned(), status: file_status(content) })
        });
        Ok((entries.collect(), false))
    }

    async fn stat(&self, path: &str, _follow: bool) -> Result<FileStatus> {
        lock(&self.mind.files).get(path).map(file_status).ok_or_else(|| no_file(path))
    }

    async fn remove(&self, path: &str, _recursive: bool) -> Result<()> {
        lock(&self.mind.files).remove(path).map(|_| ()).ok_or_else(|| no_file(path))
    }

    async fn rename(&self, from: &str, to: &str) -> Result<()> {
        let mut files = lock(&self.mind.files);
        let content = files.remove(from).ok_or_else(|| no_file(from))?;
        files.insert(to.to_owned(), content);
        Ok(())
    }

    async fn make_directory(&self, _request: MakeDirectoryRequest) -> Result<()> {
        // Directories are implied by the files in them.
        Ok(())
    }

    async fn tcp(&self, _port: u16) -> Result<GuestStream> {
        Err(Error::unavailable("testbed.tcp", "nothing listens on that port"))
    }
}

#[derive(Debug)]
struct Writing {
    mind: Arc<Mind>,
    path: String,
    content: Vec<u8>,
}

#[async_trait]
impl GuestFileWriter for Writing {
    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.content.len() + bytes.len() > LARGEST_FILE {
            return Err(Error::new(
                ErrorKind::Exhausted,
                "testbed.write",
                "the simulated guest's disk is full",
            ));
        }
        self.content.extend_from_slice(bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<FileStatus> {
        let content = Bytes::from(self.content);
        let status = file_status(&content);
        lock(&self.mind.files).insert(self.path, content);
        Ok(status)
    }
}

/// An input that nobody reads.
#[derive(Debug)]
struct Deaf;

#[async_trait]
impl GuestInput for Deaf {
    async fn write(&mut self, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        Ok(())
    }

    async fn resize(&mut self, _size: TerminalSize) -> Result<()> {
        Ok(())
    }
}

/// The output of a process that says all it has to say at once.
#[derive(Debug)]
struct Spoken {
    said: Vec<u8>,
    after: Option<(Duration, Arc<dyn Clock>)>,
    exit: Option<ProcessExit>,
}

#[async_trait]
impl GuestOutput for Spoken {
    async fn next(&mut self) -> Result<Option<ProcessEvent>> {
        if !self.said.is_empty() {
            let content = Bytes::from(std::mem::take(&mut self.said));
            return Ok(Some(ProcessEvent::Output { stream: 1, offset: 0, at_ms: 0, content }));
        }
        if let Some((after, clock)) = self.after.take() {
            clock.sleep(after).await;
        }
        Ok(self.exit.take().map(ProcessEvent::Exited))
    }
}

/// The workload's output, from an offset on.
#[derive(Debug)]
struct MainOutput {
    mind: Arc<Mind>,
    from: u64,
    told_exit: bool,
}

#[async_trait]
impl GuestOutput for MainOutput {
    async fn next(&mut self) -> Result<Option<ProcessEvent>> {
        loop {
            self.mind.machine.runs().await;
            let changed = self.mind.changed.notified();
            {
                let main = lock(&self.mind.main);
                let from = usize::try_from(self.from).unwrap_or(usize::MAX);
                if let Some(rest) = main.said.get(from..).filter(|rest| !rest.is_empty()) {
                    let event = ProcessEvent::Output {
                        stream: 1,
                        offset: self.from,
                        at_ms: self.mind.now_ms(),
                        content: Bytes::copy_from_slice(rest),
                    };
                    self.from += u64::try_from(rest.len()).unwrap_or(0);
                    return Ok(Some(event));
                }
                if self.told_exit {
                    return Ok(None);
                }
                if let Some(exit) = &main.exit {
                    self.told_exit = true;
                    return Ok(Some(ProcessEvent::Exited(exit.clone())));
                }
            }
            changed.await;
        }
    }
}
