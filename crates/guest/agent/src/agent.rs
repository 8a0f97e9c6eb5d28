use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flames_guest_protocol::config::{NetworkConfig, WorkloadConfig};
use flames_guest_protocol::message::{
    BootStep, ExecRequest, Info, MAIN_PROCESS, RestoredRequest, TerminalSize, is_process_id,
};
use flames_guest_protocol::{Error, ErrorKind, GuestChannel, GuestConfig, Identity, Result, SessionEnd};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::process::{DEFAULT_PATH, Process, Start, Table};
use crate::reaper::Reaper;
use crate::user::{self, User};
use crate::{console, operation};

/// The output of `main` that is kept for the host's logs.
const MAIN_RING_BYTES: usize = 1024 * 1024;
/// The output of every other process that is kept.
const EXEC_RING_BYTES: usize = 256 * 1024;
/// A terminal whose size nobody has said yet.
const DEFAULT_TERMINAL: TerminalSize = TerminalSize { rows: 24, columns: 80 };
/// How long a session of an identity that is no more may go on: the answer to what replaced it is a few bytes.
const LAST_ANSWER: Duration = Duration::from_millis(50);
/// The longest grace of a shutdown.
const MAX_GRACE: Duration = Duration::from_secs(3600);

/// How an agent runs.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// Whether it is PID 1, and so reaps every orphan and ends the VM.
    pub init: bool,
    /// Where `/etc/passwd` and `/etc/group` are looked up; `/` but in tests.
    pub root: PathBuf,
    /// The steps of the boot so far.
    pub boot: Vec<BootStep>,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self { init: false, root: PathBuf::from("/"), boot: Vec::new() }
    }
}

/// A shutdown that the host asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShutdownSignal {
    /// How long processes may take between SIGTERM and SIGKILL.
    pub grace: Duration,
}

/// The agent of one guest: its processes, and the operations on them and on the guest.
#[derive(Debug)]
pub struct Agent {
    /// Who this guest is. Another one after it was restored from a snapshot.
    identity: watch::Sender<Identity>,
    hostname: Mutex<String>,
    network: Mutex<Option<NetworkConfig>>,
    workload: WorkloadConfig,
    options: AgentOptions,
    boot: Mutex<Vec<BootStep>>,
    table: Arc<Table>,
    shutdown: watch::Sender<Option<ShutdownSignal>>,
    reaping: AbortHandle,
    sessions: AtomicUsize,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.reaping.abort();
    }
}

impl Agent {
    /// An agent that has started nothing yet. Must be called within a tokio runtime with its drivers enabled.
    ///
    /// Errors: `Internal` when the system's signals cannot be watched.
    pub fn new(config: GuestConfig, options: AgentOptions) -> Result<Arc<Self>> {
        let table = Arc::new(Table::new());
        let reaper = Reaper::new().map_err(|error| Error::from_io("watch for ended processes", &error))?;
        let reaping = tokio::spawn(reaper.run(Arc::downgrade(&table), options.init)).abort_handle();
        Ok(Arc::new(Self {
            identity: watch::Sender::new(Identity { incarnation: config.incarnation, key: config.key }),
            hostname: Mutex::new(config.hostname),
            network: Mutex::new(config.network),
            workload: config.workload.unwrap_or_default(),
            boot: Mutex::new(options.boot.clone()),
            options,
            table,
            shutdown: watch::Sender::new(None),
            reaping,
            sessions: AtomicUsize::new(0),
        }))
    }

    /// Starts the workload as the process `main`. One that cannot be started is a process that ended with 127 or
    /// 126 and the reason; a configuration without a program starts nothing.
    pub fn start_workload(&self) {
        let workload = &self.workload;
        if workload.argv.is_empty() {
            return;
        }
        let request = ExecRequest {
            process: Some(MAIN_PROCESS.to_owned()),
            argv: workload.argv.clone(),
            tty: workload.tty.then_some(DEFAULT_TERMINAL),
            stdin: workload.stdin,
            ..ExecRequest::default()
        };
        match self.spawn(&request, MAIN_RING_BYTES) {
            Ok(_) => self.boot_step("workload"),
            Err(error) => {
                console::line(&format!("the workload did not start: {}", error.message));
                self.table.record_failure(MAIN_PROCESS, &workload.argv, &error);
            }
        }
    }

    /// Serves one controller after the other on a byte stream, until it ends or fails.
    pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(self: &Arc<Self>, io: S) {
        let mut identity = self.identity.subscribe();
        let mut channel = GuestChannel::new(io, identity.borrow_and_update().clone());
        loop {
            tokio::select! {
                biased;
                // Its sender is this agent's own.
                _ = identity.changed() => {
                    channel.set_identity(identity.borrow_and_update().clone());
                    continue;
                }
                accepted = channel.accept() => if accepted.is_err() { return },
            }
            let mut operations = JoinSet::new();
            let _counted = Counted::new(&self.sessions);
            let serving = channel.serve(|stream| {
                while operations.try_join_next().is_some() {}
                operations.spawn(operation::serve(self.clone(), stream));
            });
            let end = tokio::select! {
                biased;
                end = serving => end,
                () = replaced(&mut identity) => SessionEnd::Superseded,
            };
            operations.shutdown().await;
            match end {
                SessionEnd::Disconnected => return,
                SessionEnd::Superseded => {}
                SessionEnd::Broken(why) => console::line(&format!("a session broke: {why}")),
            }
        }
    }

    /// Becomes what a restored guest is from now on: clock, randomness, names and network first, the identity last. Sessions of the old
    /// identity end a moment later, so that the answer goes out.
    ///
    /// Errors: `InvalidInput` for a seed that is none; what the kernel refuses.
    pub(crate) fn become_restored(&self, request: &RestoredRequest) -> Result<()> {
        let old = self.network.lock().unwrap_or_else(PoisonError::into_inner).clone();
        crate::restored::apply(request, old.as_ref(), self.options.init)?;
        // Only now: a try that failed half-way is made again from what was there before it.
        if let Some(new) = &request.network {
            *self.network.lock().unwrap_or_else(PoisonError::into_inner) = Some(new.clone());
        }
        if !request.hostname.is_empty() {
            self.hostname.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&request.hostname);
        }
        self.boot_step("restored");
        self.identity
            .send_replace(Identity { incarnation: request.incarnation.clone(), key: request.key.clone() });
        Ok(())
    }

    /// Waits until the host asks for a shutdown.
    pub async fn shutdown_requested(&self) -> ShutdownSignal {
        let mut requests = self.shutdown.subscribe();
        loop {
            if let Some(signal) = *requests.borrow_and_update() {
                return signal;
            }
            if requests.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Ends every process that the agent started: SIGTERM, then SIGKILL when the grace is over. A later request
    /// may shorten the grace. Gives back when none runs, or 5 s after SIGKILL.
    pub async fn end_processes(&self, signal: ShutdownSignal) {
        self.table.close();
        self.table.signal_all(rustix::process::Signal::TERM);
        let begun = tokio::time::Instant::now();
        let mut requests = self.shutdown.subscribe();
        let mut exits = self.table.exits();
        let mut grace = signal.grace;
        while self.table.running() > 0 && begun.elapsed() < grace {
            tokio::select! {
                _ = exits.changed() => {}
                _ = requests.changed() => {
                    let shorter = requests.borrow_and_update().map_or(grace, |again| again.grace);
                    grace = grace.min(begun.elapsed() + shorter);
                }
                () = tokio::time::sleep(grace.saturating_sub(begun.elapsed())) => {}
            }
        }
        self.table.signal_all(rustix::process::Signal::KILL);
        let _ = tokio::time::timeout(Duration::from_secs(5), async {
            while self.table.running() > 0 && exits.changed().await.is_ok() {}
        })
        .await;
    }

    /// Waits until the host has every exit, so that none is lost with the VM; at most `limit`, and not at all when
    /// no host is connected.
    pub async fn exits_delivered(&self, limit: Duration) {
        let owed = || self.table.list().iter().any(|process| process.unacknowledged_exit().is_some());
        let _ = tokio::time::timeout(limit, async {
            while self.sessions.load(Ordering::Relaxed) > 0 && owed() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Notes that a step of the boot is done.
    pub fn boot_step(&self, name: &str) {
        let step = BootStep { name: name.to_owned(), uptime_ms: crate::clock::uptime_ms() };
        self.boot.lock().unwrap_or_else(PoisonError::into_inner).push(step);
    }

    pub(crate) fn request_shutdown(&self, grace: Duration) {
        self.shutdown.send_replace(Some(ShutdownSignal { grace: grace.min(MAX_GRACE) }));
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    pub(crate) fn info(&self) -> Info {
        let system = rustix::system::uname();
        let node = system.nodename().to_string_lossy().into_owned();
        Info {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            incarnation: self.identity.borrow().incarnation.clone(),
            kernel: system.release().to_string_lossy().into_owned(),
            hostname: Some(self.hostname.lock().unwrap_or_else(PoisonError::into_inner).clone())
                .filter(|hostname| !self.options.init && !hostname.is_empty())
                .unwrap_or(node),
            init: self.options.init,
            uptime_ms: crate::clock::uptime_ms(),
            boot: self.boot.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Starts a process beside the workload.
    pub(crate) fn exec(&self, request: &ExecRequest) -> Result<Arc<Process>> {
        match &request.process {
            Some(id) if id == MAIN_PROCESS => {
                Err(Error::new(ErrorKind::InvalidInput, "the id main is the workload's"))
            }
            Some(id) if !is_process_id(id) => Err(Error::new(
                ErrorKind::InvalidInput,
                "a process id is letters, digits, - and _, at most 64",
            )),
            _ => self.spawn(request, EXEC_RING_BYTES),
        }
    }

    fn spawn(&self, request: &ExecRequest, ring_bytes: usize) -> Result<Arc<Process>> {
        let user = self.user(request.user.as_deref().or(self.workload.user.as_deref()))?;
        let env = self.environment(request, user.as_ref());
        let working_directory = request
            .working_directory
            .as_deref()
            .or(self.workload.working_directory.as_deref())
            .filter(|path| !path.is_empty())
            .unwrap_or("/");
        self.table.start(&Start {
            id: request.process.clone(),
            ring_bytes,
            spawn: crate::process::Spawn {
                argv: &request.argv,
                env: &env,
                working_directory,
                user: user.as_ref(),
                tty: request.tty,
                stdin: request.stdin,
            },
        })
    }

    // An agent that is not root cannot change users: unless one is asked for, it does not try.
    fn user(&self, asked: Option<&str>) -> Result<Option<User>> {
        match asked.filter(|user| !user.is_empty()) {
            Some(user) => user::look_up(&self.options.root, user).map(Some),
            None if rustix::process::getuid().is_root() => user::look_up(&self.options.root, "0").map(Some),
            None => Ok(None),
        }
    }

    fn environment(&self, request: &ExecRequest, user: Option<&User>) -> Vec<(String, String)> {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut env = vec![pair("PATH", DEFAULT_PATH)];
        env.push(pair("HOME", user.map_or("/", |user| user.home.as_str())));
        if request.tty.is_some() {
            env.push(pair("TERM", "xterm"));
        }
        // The kernel hands it to PID 1 from its command line; the guest's programs need it on the same hardware.
        if let Ok(tunables) = std::env::var("GLIBC_TUNABLES") {
            env.push(pair("GLIBC_TUNABLES", &tunables));
        }
        env.extend(self.workload.env.iter().cloned());
        env.extend(self.workload.secret_env.iter().map(|(name, value)| pair(name, value.expose())));
        env.extend(request.env.iter().cloned());
        env
    }
}

/// Returns a moment after the guest has become another: what was answered is on its way by then.
async fn replaced(identity: &mut watch::Receiver<Identity>) {
    let mut looked = identity.clone();
    if looked.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(LAST_ANSWER).await;
}

/// A session while it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(sessions: &'a AtomicUsize) -> Self {
        sessions.fetch_add(1, Ordering::Relaxed);
        Self(sessions)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
