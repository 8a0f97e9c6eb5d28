//! One guest, and what its processes do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flames_clock::Clock;
use flames_error::{Error, ErrorKind, Result};
use flames_guest_protocol::AgentKey;
use flames_guest_protocol::config::WorkloadConfig;
use flames_guest_protocol::message::{MAIN_PROCESS, ProcessExit};
use flames_vmm_simulated::SimulatedGuest;
use tokio::sync::mpsc;

use crate::files::Files;
use crate::process::Process;
use crate::{OPERATION, lock};

/// The commands that simulated guests know.
const WORDS: [&str; 8] = ["echo", "warn", "sleep", "exit", "true", "false", "cat", "signal"];
/// What stands between two commands.
const THEN: &str = ";";
/// Processes of one guest.
const PROCESSES: usize = 64;
/// Pieces of standard input that wait.
const INPUT_AHEAD: usize = 4;
/// SIGTERM (signal(7)).
const SIGTERM: i32 = 15;
/// What a real guest takes to end its processes.
const ENDING: Duration = Duration::from_millis(20);

/// One guest.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) guest: SimulatedGuest,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) files: Files,
    who: Mutex<Who>,
    processes: Mutex<BTreeMap<String, Arc<Process>>>,
}

/// Who a guest takes itself for.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    pub(crate) incarnation: String,
    pub(crate) key: AgentKey,
    pub(crate) hostname: String,
}

/// What a command ends the whole line with.
enum Ends {
    Code(i32),
    Signal(i32),
    NotFound(String),
}

impl Machine {
    pub(crate) fn new(who: Who, guest: SimulatedGuest, clock: Arc<dyn Clock>) -> Self {
        Self { guest, clock, files: Files::default(), who: Mutex::new(who), processes: Mutex::default() }
    }

    pub(crate) fn who(&self) -> Who {
        lock(&self.who).clone()
    }

    /// Becomes another.
    pub(crate) fn become_another(&self, who: Who) {
        *lock(&self.who) = who;
    }

    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.now().as_millisecond()).unwrap_or(0)
    }

    /// Whether a command is one that guests know.
    pub(crate) fn knows(argv: &[String]) -> bool {
        argv.first().is_some_and(|word| WORDS.contains(&word.as_str()))
    }

    pub(crate) fn process(&self, id: &str) -> Result<Arc<Process>> {
        lock(&self.processes).get(id).cloned().ok_or_else(|| {
            Error::not_found(OPERATION, "process", id)
                .with_user_message(format!("There is no process `{id}`."))
        })
    }

    pub(crate) fn processes(&self) -> Vec<(String, Arc<Process>)> {
        lock(&self.processes).iter().map(|(id, process)| (id.clone(), Arc::clone(process))).collect()
    }

    /// What the VM is for. One that cannot be started is a process that has ended.
    pub(crate) fn start_workload(self: &Arc<Self>, workload: WorkloadConfig) {
        // The first process of a guest: the id is free, and there is room.
        let _ = self.start(Some(MAIN_PROCESS.to_owned()), workload.argv, workload.tty, workload.stdin);
    }

    /// Starts a process; under an id that is free, when none is given.
    pub(crate) fn start(
        self: &Arc<Self>,
        id: Option<String>,
        argv: Vec<String>,
        terminal: bool,
        stdin: bool,
    ) -> Result<(String, Arc<Process>)> {
        let (input, receiver) = match stdin || terminal {
            true => {
                let (input, receiver) = mpsc::channel(INPUT_AHEAD);
                (Some(input), Some(receiver))
            }
            false => (None, None),
        };
        let (id, process) = {
            let mut processes = lock(&self.processes);
            if processes.len() >= PROCESSES {
                return Err(Error::new(ErrorKind::Exhausted, OPERATION, "too many processes")
                    .with_user_message("The guest has as many processes as it takes."));
            }
            let id = id.unwrap_or_else(|| format!("p{}", processes.len() + 1));
            if processes.contains_key(&id) {
                return Err(Error::new(ErrorKind::AlreadyExists, OPERATION, "the process id is taken"));
            }
            let number = u32::try_from(processes.len()).unwrap_or(u32::MAX).saturating_add(2);
            let process = Arc::new(Process::new(argv, number, self.now_ms(), terminal, input));
            processes.insert(id.clone(), Arc::clone(&process));
            (id, process)
        };
        let (machine, running) = (Arc::clone(self), Arc::clone(&process));
        self.guest.spawn(async move {
            let ends = tokio::select! {
                biased;
                signal = running.killed() => Ends::Signal(signal),
                ends = machine.play(&running, receiver) => ends,
            };
            let at_ms = machine.now_ms();
            running.end(match ends {
                Ends::Code(code) => ProcessExit { code: Some(code), signal: None, at_ms, start_error: None },
                Ends::Signal(signal) => {
                    ProcessExit { code: None, signal: Some(signal), at_ms, start_error: None }
                }
                Ends::NotFound(why) => {
                    ProcessExit { code: Some(127), signal: None, at_ms, start_error: Some(why) }
                }
            });
        });
        Ok((id, process))
    }

    /// Ends all processes, as a guest does that powers itself off.
    pub(crate) async fn end_all(&self) {
        for (_, process) in self.processes() {
            // One that has ended needs no signal.
            let _ = process.kill(SIGTERM);
        }
        self.clock.sleep(ENDING).await;
    }

    /// Plays a line of commands to its end.
    async fn play(&self, process: &Process, mut input: Option<mpsc::Receiver<Bytes>>) -> Ends {
        let mut last = Ends::Code(0);
        for command in process.argv().split(|word| word == THEN) {
            last = self.play_one(command, process, &mut input).await;
            let ends_all = matches!(command.first().map(String::as_str), Some("exit" | "signal"));
            if ends_all || matches!(last, Ends::NotFound(_)) {
                break;
            }
        }
        last
    }

    async fn play_one(
        &self,
        command: &[String],
        process: &Process,
        input: &mut Option<mpsc::Receiver<Bytes>>,
    ) -> Ends {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["echo", rest @ ..] => process.write(1, format!("{}\n", rest.join(" ")).into(), self.now_ms()),
            ["warn", rest @ ..] => process.write(2, format!("{}\n", rest.join(" ")).into(), self.now_ms()),
            ["true"] => {}
            ["false"] => return Ends::Code(1),
            ["exit", code] => return Ends::Code(code.parse().unwrap_or(2)),
            ["signal", number] => return number.parse().map_or(Ends::Code(2), Ends::Signal),
            ["sleep", "infinity"] => std::future::pending().await,
            ["sleep", seconds] => {
                match seconds.parse::<f64>().ok().and_then(|it| Duration::try_from_secs_f64(it).ok()) {
                    Some(duration) => self.clock.sleep(duration).await,
                    None => return Ends::Code(1),
                }
            }
            ["cat"] => {
                if let Some(input) = input {
                    while let Some(piece) = input.recv().await {
                        process.write(1, piece, self.now_ms());
                    }
                }
            }
            _ => {
                let name = words.first().copied().unwrap_or_default();
                return Ends::NotFound(format!("{name}: not found; simulated guests know a few words only"));
            }
        }
        Ends::Code(0)
    }
}
