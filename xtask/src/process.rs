//! Child processes that cannot outlive a run.
//!
//! Each child leads a process group of its own, so that one Ctrl-C ends it with all that it started. What moves into
//! another session (a virtual machine is meant to outlive the daemon that started it) is still caught: this process
//! is the *child subreaper* (prctl(2), `PR_SET_CHILD_SUBREAPER`), so every orphan below it comes back to it and
//! [`Supervisor::end_leftovers`] finds it.

mod beside;

use std::fmt;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tempfile::TempDir;

pub(crate) use beside::Beside;

/// How long an interrupted child may take to end its own children before it is killed. nextest waits ten seconds for
/// its tests.
const GRACE: Duration = Duration::from_secs(15);

/// How long the output of a child that has exited is still read: something that it left running may hold the pipe.
const OUTPUT_DRAIN: Duration = Duration::from_secs(5);

/// The person at the keyboard, or the machine's shutdown, has ended the run.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("interrupted: every process of this run has been ended")
    }
}

impl std::error::Error for Interrupted {}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself, with this exit code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
}

impl Ended {
    pub(crate) fn success(self) -> bool {
        self == Self::Exited(0)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(formatter, "exit code {code}"),
            Self::Signalled(signal) => write!(formatter, "signal {signal}"),
        }
    }
}

/// Whether the output of a child is for the developer's eyes too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Echo {
    Yes,
    No,
}

/// Owns the run's temporary folder and all its children, one at a time but for those [`Supervisor::start_beside`]
/// started; ends both when dropped.
pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    signals: signal_hook::iterator::Handle,
    /// `None` only while being dropped.
    folder: Option<TempDir>,
}

#[derive(Default)]
struct Shared {
    interruptions: AtomicUsize,
    /// The group of the child that runs now. Signals are sent under this lock, so never to a number that is free again.
    running: Mutex<Option<Pid>>,
    /// What runs beside it, and how it ended.
    beside: Mutex<Vec<(Pid, Option<Ended>)>>,
    /// What is left running is meant to be.
    left: AtomicBool,
}

impl Shared {
    fn interrupted(&self) -> bool {
        self.interruptions.load(Ordering::SeqCst) > 0
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = *self.running.lock().unwrap_or_else(PoisonError::into_inner) {
            // The only failure is that the group has ended already, which is what is wanted.
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }

    /// The first interruption asks, the second, or the end of the grace, does not.
    fn interrupt(self: &Arc<Self>) {
        if self.interruptions.fetch_add(1, Ordering::SeqCst) > 0 {
            self.signal(Signal::KILL);
            self.kill_beside();
            return;
        }
        self.signal(Signal::TERM);
        let shared = Arc::clone(self);
        std::thread::spawn(move || {
            std::thread::sleep(GRACE);
            shared.signal(Signal::KILL);
        });
    }
}

impl Supervisor {
    /// Takes over Ctrl-C, SIGTERM and SIGHUP, and makes a temporary folder for this run.
    ///
    /// # Errors
    /// When the system refuses one of these.
    pub(crate) fn start() -> Result<Self> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .context("cannot become the parent of orphaned children")?;
        // In the system's folder and not under target/: a path to a unix socket may have 108 bytes only.
        let folder =
            tempfile::Builder::new().prefix("flames-").tempdir().context("cannot make a temporary folder")?;
        let shared = Arc::new(Shared::default());
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot listen for signals")?;
        let handle = signals.handle();
        let listener = Arc::clone(&shared);
        std::thread::spawn(move || {
            for _ in signals.forever() {
                eprintln!("\ninterrupted: ending what runs (once more to kill it at once)");
                listener.interrupt();
            }
        });
        Ok(Self { shared, signals: handle, folder: Some(folder) })
    }

    /// The temporary folder of this run, which every child gets as `TMPDIR`.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.as_ref().map_or(Path::new("/nonexistent"), TempDir::path)
    }

    /// Runs `command` to its end, with its output on this terminal and no input.
    ///
    /// # Errors
    /// [`Interrupted`], or when it cannot be started.
    pub(crate) fn run(&self, command: &mut Command) -> Result<Ended> {
        let child = self.spawn(command)?;
        self.wait_for(child)
    }

    /// Like [`Self::run`], and fails when the command does.
    ///
    /// # Errors
    /// As for [`Self::run`], and when the command did not exit with 0.
    pub(crate) fn run_to_success(&self, command: &mut Command) -> Result<()> {
        let ended = self.run(command)?;
        anyhow::ensure!(ended.success(), "{}: {ended}", described(command));
        Ok(())
    }

    /// Like [`Self::run`], and returns what the command wrote to its standard output.
    ///
    /// # Errors
    /// As for [`Self::run`].
    pub(crate) fn run_capturing(&self, command: &mut Command, echo: Echo) -> Result<(Ended, String)> {
        command.stdout(Stdio::piped());
        let mut child = self.spawn(command)?;
        let output = child.stdout.take().context("the child has no standard output")?;
        // Bounded, so that a flood waits for its reader; the reader ends with the pipe.
        let (sender, receiver) = mpsc::sync_channel::<String>(1024);
        std::thread::spawn(move || {
            let mut lines = BufReader::new(output);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
                line.clear();
            }
        });
        let collector = std::thread::spawn(move || {
            let mut text = String::new();
            // No deadline while the child runs: it is the child's own silence. The caller drops us at the end.
            while let Ok(line) = receiver.recv() {
                if echo == Echo::Yes {
                    print!("{line}");
                }
                text.push_str(&line);
            }
            text
        });
        let ended = self.wait_for(child)?;
        let deadline = Instant::now() + OUTPUT_DRAIN;
        while !collector.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        anyhow::ensure!(
            collector.is_finished(),
            "{}: something that it left running holds its output",
            described(command)
        );
        let text =
            collector.join().map_err(|_| anyhow::anyhow!("the reader of a child's output has failed"))?;
        Ok((ended, text))
    }

    /// Kills every process below this one that is still there, and says which. Call it when no child is running.
    pub(crate) fn end_leftovers(&self) -> Vec<String> {
        let mut killed = Vec::new();
        let mut seen = Vec::new();
        // An orphan's children come to us only when it has died, so one round may not be enough.
        for _ in 0..200 {
            self.reap();
            let living = living_descendants();
            if living.is_empty() {
                break;
            }
            for (pid, name) in living {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                if !seen.contains(&pid) {
                    seen.push(pid);
                    killed.push(format!("{} {name}", pid.as_raw_nonzero()));
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        killed
    }

    fn spawn(&self, command: &mut Command) -> Result<std::process::Child> {
        if self.shared.interrupted() {
            return Err(Interrupted.into());
        }
        command.stdin(Stdio::null()).env("TMPDIR", self.folder()).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {}", described(command)))?;
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        *self.shared.running.lock().unwrap_or_else(PoisonError::into_inner) = group;
        // An interruption between the look above and this line had no group to signal yet.
        if self.shared.interrupted() {
            self.shared.signal(Signal::TERM);
        }
        Ok(child)
    }

    /// Waits for `child`, and meanwhile for every orphan that comes to this process: unreaped, it would look alive to
    /// a test that waits for it to be gone.
    fn wait_for(&self, child: std::process::Child) -> Result<Ended> {
        let wanted = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let ended = loop {
            match rustix::process::wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) if Some(pid) == wanted => break ended(status),
                Ok(Some((pid, status))) => self.shared.note(pid, status),
                Ok(None) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for a child"),
            }
        };
        *self.shared.running.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if self.shared.interrupted() { Err(Interrupted.into()) } else { Ok(ended) }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if !self.shared.left.load(Ordering::SeqCst) {
            self.end_leftovers();
        }
        self.signals.close();
        if let Some(folder) = self.folder.take() {
            let path = folder.path().to_owned();
            if let Err(error) = folder.close() {
                eprintln!("warning: {} could not be removed: {error}", path.display());
            }
        }
    }
}

fn ended(status: WaitStatus) -> Ended {
    match status.exit_status() {
        Some(code) => Ended::Exited(code),
        None => Ended::Signalled(status.terminating_signal().unwrap_or(0)),
    }
}

/// A command as a person would type it, without its environment.
fn described(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Every process whose line of parents leads to this one, but zombies.
fn living_descendants() -> Vec<(Pid, String)> {
    let processes = all_processes();
    let mut family = vec![rustix::process::getpid().as_raw_nonzero().get()];
    let mut index = 0;
    while let Some(&parent) = family.get(index) {
        family.extend(processes.iter().filter(|process| process.parent == parent).map(|process| process.pid));
        index += 1;
    }
    processes
        .into_iter()
        .filter(|process| process.alive && family.iter().skip(1).any(|pid| *pid == process.pid))
        .filter_map(|process| Some((Pid::from_raw(process.pid)?, process.name)))
        .collect()
}

struct Process {
    pid: i32,
    parent: i32,
    alive: bool,
    name: String,
}

fn all_processes() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let stat = std::fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
            parse_stat(&stat)
        })
        .collect()
}

/// One line of `/proc/<pid>/stat` (proc_pid_stat(5)): `pid (name) state ppid …`, where the name may hold anything.
fn parse_stat(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    Some(Process {
        pid: pid.parse().ok()?,
        parent: fields.next()?.parse().ok()?,
        alive: !matches!(state, "Z" | "X"),
        name: name.to_owned(),
    })
}

/// A supervisor waits for any child of its process, so two cannot work at once in one, nor can it and who has children of
/// its own.
#[cfg(test)]
pub(crate) static ALONE: Mutex<()> = Mutex::new(());

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_child_gets_the_folder_of_the_run_and_no_input() {
        let _alone = ALONE.lock();
        let supervisor = Supervisor::start().unwrap();
        let (ended, text) =
            supervisor.run_capturing(&mut shell("cat; echo $TMPDIR; exit 3"), Echo::No).unwrap();
        assert_eq!(ended, Ended::Exited(3));
        assert_eq!(Path::new(text.trim()), supervisor.folder());
    }

    #[test]
    fn a_command_that_fails_is_an_error_that_names_it() {
        let _alone = ALONE.lock();
        let supervisor = Supervisor::start().unwrap();
        let error = supervisor.run_to_success(&mut shell("exit 4")).unwrap_err();
        assert_eq!(error.to_string(), "sh -c exit 4: exit code 4");
    }

    #[test]
    fn an_interruption_ends_the_child_with_its_group_and_nothing_runs_after_it() {
        let _alone = ALONE.lock();
        let supervisor = Supervisor::start().unwrap();
        let shared = Arc::clone(&supervisor.shared);
        let interrupter = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            shared.interrupt();
        });
        let start = Instant::now();
        let error = supervisor.run(&mut shell("sleep 1000 & sleep 1000")).unwrap_err();
        interrupter.join().unwrap();
        assert!(error.is::<Interrupted>(), "{error}");
        assert!(start.elapsed() < GRACE);
        assert!(supervisor.run(&mut shell("true")).unwrap_err().is::<Interrupted>());
        // Signalled together, they die one after the other.
        let dying = Instant::now();
        while !living_descendants().is_empty() && dying.elapsed() < GRACE {
            supervisor.reap();
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(supervisor.end_leftovers(), [] as [&str; 0], "the group was to end with the signal");
    }

    #[test]
    fn a_child_beside_others_runs_on_until_it_is_ended_and_its_end_is_known() {
        let _alone = ALONE.lock();
        let supervisor = Supervisor::start().unwrap();
        let log = tempfile::tempfile().unwrap();
        let server =
            supervisor.start_beside(&shell("trap 'exit 7' TERM; while :; do sleep 0.05; done"), &log);
        let server = server.unwrap();
        let short = supervisor.start_beside(&shell("exit 5"), &log).unwrap();
        // Its end comes while another command is waited for.
        supervisor.run_to_success(&mut shell("sleep 0.5")).unwrap();
        assert_eq!(supervisor.end_of(&short), Some(Ended::Exited(5)));
        assert_eq!(supervisor.end_of(&server), None);
        supervisor.shared.interrupt();
        assert_eq!(
            supervisor.end_of(&server),
            None,
            "an interruption leaves its end to the one who started it"
        );
        assert_eq!(supervisor.end(&server, Duration::from_secs(20)), Ended::Exited(7));
    }

    #[test]
    fn a_command_past_its_time_limit_is_ended() {
        let _alone = ALONE.lock();
        let supervisor = Supervisor::start().unwrap();
        let limit = Duration::from_millis(300);
        let error = supervisor.within(limit, || supervisor.run(&mut shell("sleep 1000"))).unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
        supervisor.within(limit * 100, || supervisor.run_to_success(&mut shell("true"))).unwrap();
    }

    #[test]
    fn a_process_that_moved_into_its_own_session_is_found_and_killed() {
        let _alone = ALONE.lock();
        let supervisor = Supervisor::start().unwrap();
        supervisor.run_to_success(&mut shell("setsid sleep 1000 >/dev/null 2>&1 & sleep 0.3")).unwrap();
        let killed = supervisor.end_leftovers();
        assert!(matches!(killed.as_slice(), [only] if only.ends_with(" sleep")), "{killed:?}");
        assert!(living_descendants().is_empty());
    }

    #[test]
    fn the_folder_is_gone_after_the_run() {
        let _alone = ALONE.lock();
        let supervisor = Supervisor::start().unwrap();
        let folder = supervisor.folder().to_owned();
        supervisor.run_to_success(&mut shell("mkdir -p $TMPDIR/a/b && touch $TMPDIR/a/b/c")).unwrap();
        assert!(folder.join("a/b/c").exists());
        drop(supervisor);
        assert!(!folder.exists());
    }

    #[test]
    fn a_process_name_with_spaces_and_brackets_is_read_right() {
        let process = parse_stat("42 (a) S 7 (b)) S 1 42 42 0 -1 4194304").unwrap();
        assert_eq!((process.pid, process.parent, process.name.as_str()), (42, 1, "a) S 7 (b)"));
        assert!(!parse_stat("42 (gone) Z 1 42").unwrap().alive);
        assert!(parse_stat("nonsense").is_none());
    }
}
