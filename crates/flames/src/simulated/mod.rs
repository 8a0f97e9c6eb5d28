//! Guests that only pretend, for the simulated driver: they know a few words and run no code of anybody's.
//!
//! | Command | What it does |
//! |---|---|
//! | `echo WORD…`, `warn WORD…` | writes the words to standard output or standard error, ends with 0 |
//! | `sleep SECONDS` or `sleep infinity` | waits |
//! | `exit CODE`, `true`, `false` | ends with that code |
//! | `cat` | gives back its standard input |
//!
//! Anything else is not found in the image. Signals end a process. A port of a guest gives back what it gets. There are no files.

mod session;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_clock::{Clock, Random};
use flames_controller::{Artefacts, Guest, GuestConnector, GuestProcess};
use flames_error::{Error, ErrorKind, Result};
use flames_guest_protocol::message::{MAIN_PROCESS, ProcessExit, ProcessStatus};
use flames_guest_protocol::{GuestConfig, Identity};
use flames_model::ImageManifest;
use flames_vmm::{AGENT_PORT, GuestStream, IncarnationName, SecretBytes, VmDriver};
use flames_vmm_simulated::{
    GuestFuture, GuestProgram, SimulatedConfig, SimulatedDriver, SimulatedGuest, SimulatedHost,
    SimulatedTimings,
};
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};

use session::{Input, Output, Session};

const OPERATION: &str = "guest.simulated";
/// The commands that simulated guests know.
const WORDS: [&str; 7] = ["echo", "warn", "sleep", "exit", "true", "false", "cat"];
/// Output that one process keeps, in bytes.
const KEPT: usize = 256 * 1024;
/// Processes of one guest.
const PROCESSES: usize = 64;
/// Pieces of standard input that wait.
const INPUT_AHEAD: usize = 4;
/// The least and the most that a signal's number is (signal(7)).
const SIGNALS: std::ops::RangeInclusive<i32> = 1..=31;

/// The guests of one simulated host. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Simulation {
    guests: Arc<Mutex<BTreeMap<String, Arc<Machine>>>>,
    clock: Arc<dyn Clock>,
}

/// One guest.
#[derive(Debug)]
struct Machine {
    guest: SimulatedGuest,
    hostname: String,
    clock: Arc<dyn Clock>,
    processes: Mutex<BTreeMap<String, Arc<Process>>>,
}

/// One process.
#[derive(Debug)]
struct Process {
    argv: Vec<String>,
    number: u32,
    started_at_ms: u64,
    terminal: bool,
    state: watch::Sender<State>,
    input: Mutex<Option<mpsc::Sender<Bytes>>>,
    killed: watch::Sender<Option<i32>>,
}

#[derive(Debug, Default)]
struct State {
    output: Vec<(u8, u64, u64, Bytes)>,
    length: u64,
    exit: Option<ProcessExit>,
    acknowledged: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Simulation {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { guests: Arc::default(), clock }
    }

    /// A driver whose guests are these.
    pub(crate) fn driver(&self, random: Arc<dyn Random>) -> Arc<dyn VmDriver> {
        let config = SimulatedConfig {
            timings: SimulatedTimings::realistic(),
            program: Some(Arc::new(self.clone())),
            ..SimulatedConfig::default()
        };
        Arc::new(SimulatedDriver::new(SimulatedHost::new(config, self.clock.clone(), random)))
    }
}

impl GuestProgram for Simulation {
    fn boot(
        &self,
        incarnation: &IncarnationName,
        config: &SecretBytes,
        guest: SimulatedGuest,
    ) -> GuestFuture {
        let (guests, name) = (self.guests.clone(), incarnation.to_string());
        let config = GuestConfig::decode(&config.0);
        let clock = self.clock.clone();
        Box::pin(async move {
            // A guest that cannot read its configuration powers itself off.
            let Ok(config) = config else { return };
            let machine = Arc::new(Machine {
                guest: guest.clone(),
                hostname: config.hostname,
                clock,
                processes: Mutex::default(),
            });
            let mut listener = guest.listen(AGENT_PORT);
            lock(&guests).insert(name.clone(), machine.clone());
            let _forgotten = Forget { guests, name };
            if let Some(workload) = config.workload.filter(|workload| !workload.argv.is_empty()) {
                // A workload that cannot be started is a process that has ended.
                let _ = machine.start(MAIN_PROCESS.to_owned(), workload.argv, workload.tty, false);
            }
            let mut open = Vec::new();
            while let Some(stream) = listener.accept().await {
                // One connection at a time: a new one ends the one before.
                open.clear();
                open.push(stream);
            }
        })
    }
}

/// Takes a guest off the list when it is gone.
struct Forget {
    guests: Arc<Mutex<BTreeMap<String, Arc<Machine>>>>,
    name: String,
}

impl Drop for Forget {
    fn drop(&mut self) {
        lock(&self.guests).remove(&self.name);
    }
}

fn gone() -> Error {
    Error::unavailable(OPERATION, "the guest is gone")
}

fn no_process(id: &str) -> Error {
    Error::not_found(OPERATION, "process", id).with_user_message(format!("There is no process `{id}`."))
}

fn no_files() -> Error {
    Error::new(ErrorKind::NotSupported, OPERATION, "simulated guests have no files")
        .with_user_message("Simulated guests have no files.")
}

impl Machine {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.now().as_millisecond()).unwrap_or(0)
    }

    fn process(&self, id: &str) -> Result<Arc<Process>> {
        lock(&self.processes).get(id).cloned().ok_or_else(|| no_process(id))
    }

    fn start(
        self: &Arc<Self>,
        id: String,
        argv: Vec<String>,
        terminal: bool,
        stdin: bool,
    ) -> Result<Arc<Process>> {
        let (input, receiver) = mpsc::channel(INPUT_AHEAD);
        let process = {
            let mut processes = lock(&self.processes);
            if processes.len() >= PROCESSES {
                return Err(Error::new(ErrorKind::Exhausted, OPERATION, "too many processes")
                    .with_user_message("The guest has as many processes as it takes."));
            }
            let process = Arc::new(Process {
                argv,
                number: processes.len() as u32 + 2,
                started_at_ms: self.now_ms(),
                terminal,
                state: watch::Sender::default(),
                input: Mutex::new((stdin || terminal).then_some(input)),
                killed: watch::Sender::default(),
            });
            processes.insert(id, process.clone());
            process
        };
        let (machine, running) = (self.clone(), process.clone());
        self.guest.spawn(async move {
            let mut killed = running.killed.subscribe();
            let exit = tokio::select! {
                biased;
                Ok(signal) = killed.wait_for(Option::is_some) => ProcessExit {
                    code: None, signal: *signal, at_ms: machine.now_ms(), start_error: None,
                },
                (code, start_error) = machine.play(&running, receiver) => ProcessExit {
                    code: Some(code), signal: None, at_ms: machine.now_ms(), start_error,
                },
            };
            lock(&running.input).take();
            running.state.send_modify(|state| state.exit = Some(exit));
        });
        Ok(process)
    }

    /// Plays a command; answers its exit code, or why it could not be started.
    async fn play(&self, process: &Process, mut input: mpsc::Receiver<Bytes>) -> (i32, Option<String>) {
        let words: Vec<&str> = process.argv.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["echo", rest @ ..] => process.write(1, format!("{}\n", rest.join(" ")).into(), self.now_ms()),
            ["warn", rest @ ..] => process.write(2, format!("{}\n", rest.join(" ")).into(), self.now_ms()),
            ["true"] => {}
            ["false"] => return (1, None),
            ["exit", code] => return (code.parse().unwrap_or(2), None),
            ["sleep", "infinity"] => std::future::pending().await,
            ["sleep", seconds] => {
                match seconds.parse::<f64>().ok().and_then(|it| Duration::try_from_secs_f64(it).ok()) {
                    Some(duration) => self.clock.sleep(duration).await,
                    None => return (1, None),
                }
            }
            ["cat"] => {
                while let Some(piece) = input.recv().await {
                    process.write(1, piece, self.now_ms());
                }
            }
            _ => {
                let name = words.first().copied().unwrap_or_default();
                return (127, Some(format!("{name}: not found; simulated guests know a few words only")));
            }
        }
        (0, None)
    }
}

impl Process {
    fn write(&self, stream: u8, bytes: Bytes, at_ms: u64) {
        self.state.send_modify(|state| {
            let offset = state.length;
            state.length += bytes.len() as u64;
            state.output.push((stream, offset, at_ms, bytes));
            let mut kept: usize = state.output.iter().map(|piece| piece.3.len()).sum();
            while kept > KEPT && state.output.len() > 1 {
                kept -= state.output.remove(0).3.len();
            }
        });
    }

    fn kill(&self, signal: i32) -> Result<()> {
        if !SIGNALS.contains(&signal) {
            return Err(Error::invalid(OPERATION, "signal", "A signal is a number from 1 to 31."));
        }
        if self.state.borrow().exit.is_some() {
            return Err(Error::new(ErrorKind::Conflict, OPERATION, "the process has ended")
                .with_user_message("The process has ended."));
        }
        self.killed.send_replace(Some(signal));
        Ok(())
    }

    fn status(&self, id: &str) -> ProcessStatus {
        let state = self.state.borrow();
        ProcessStatus {
            process: id.to_owned(),
            argv: self.argv.clone(),
            pid: self.number,
            tty: self.terminal,
            started_at_ms: self.started_at_ms,
            output_length: state.length,
            output_available_from: state.output.first().map_or(state.length, |piece| piece.1),
            exit: state.exit.clone(),
            acknowledged: state.acknowledged,
        }
    }

    fn attached(self: &Arc<Self>, from: u64) -> GuestProcess {
        let input = lock(&self.input).clone();
        GuestProcess {
            input: Box::new(Input { process: self.clone(), input }),
            output: Box::new(Output { changes: self.state.subscribe(), next: from, over: false }),
        }
    }
}

#[async_trait]
impl GuestConnector for Simulation {
    async fn connect(&self, stream: GuestStream, identity: &Identity) -> Result<Box<dyn Guest>> {
        let machine = lock(&self.guests).get(&identity.incarnation).cloned();
        let machine = machine.ok_or_else(|| Error::unavailable(OPERATION, "no agent answers yet"))?;
        let (closed, closing) = watch::channel(false);
        // Held until the other end goes: that is the session's end.
        let watching = tokio::spawn(async move {
            let mut stream = stream;
            let mut byte = [0; 1];
            while matches!(stream.read(&mut byte).await, Ok(1)) {}
            closed.send_replace(true);
        });
        let watching = crate::attached::AbortOnDrop(watching.abort_handle());
        Ok(Box::new(Session { machine, closing, _watching: watching }))
    }
}

/// Simulated machines are made from nothing.
#[derive(Debug)]
pub(crate) struct NoArtefacts;

#[async_trait]
impl Artefacts for NoArtefacts {
    async fn rootfs(&self, image: &ImageManifest) -> Result<PathBuf> {
        Ok(PathBuf::from("/simulated").join(&image.digest))
    }

    async fn kernel(&self, _kernel: Option<&ImageManifest>) -> Result<PathBuf> {
        Ok(PathBuf::from("/simulated/kernel"))
    }

    async fn initramfs(&self) -> Result<Option<PathBuf>> {
        Ok(None)
    }

    async fn writable_layer(&self, _path: &Path, _size_bytes: u64) -> Result<()> {
        Ok(())
    }
}
