//! What all servers have in common: to be started, watched, killed and cleaned away.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::Process;
use crate::{Unavailable, free_ports};

/// How long a server may take until it answers, on a machine that is busy with builds.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long a server may take to end by itself where it is asked to.
const END_LIMIT: Duration = Duration::from_secs(5);

const POLL: Duration = Duration::from_millis(20);

/// How often a server is started on other ports when somebody else took one of them first.
const ATTEMPTS: usize = 4;

/// How much of the end of a server's log an error shows.
const LOG_TAIL: u64 = 3 * 1024;

/// Waits for the end of its standard input, which is the end of the process that started it, and then does what that
/// process would have done: ends the server (its number comes in a line) by signal `$1` and removes all further arguments.
const WATCHER: &str = r#"
signal=$1
shift
process=
while read -r line; do
    case $line in
        done) exit 0 ;;
        none) process= ;;
        *) process=$line ;;
    esac
done
if [ -n "$process" ]; then
    kill -s CONT -- "-$process"
    kill -s "$signal" -- "-$process"
    tries=0
    while [ "$tries" -lt 30 ] && kill -0 "$process"; do
        sleep 0.1
        tries=$((tries + 1))
    done
    kill -s KILL -- "-$process"
fi
rm -rf -- "$@"
"#;

/// A user of the system to run as.
#[derive(Debug, Clone, Copy)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// How to run a server.
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    /// `None`: as this process.
    pub(crate) user: Option<User>,
    /// One look whether it serves; the error says why not yet.
    pub(crate) is_ready: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// What a server is called and how it ends well.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    /// As in [`Unavailable::service`].
    pub(crate) service: &'static str,
    /// How many ports it opens.
    pub(crate) ports: usize,
    /// By what it is ended when it is no longer needed: something gentler than KILL where that would leave traces.
    pub(crate) end_by: Signal,
    /// What it leaves outside of its folder when it was killed, for its ports.
    pub(crate) litter: fn(&[u16]) -> Vec<PathBuf>,
}

/// For a server that keeps to its folder.
pub(crate) fn no_litter(_: &[u16]) -> Vec<PathBuf> {
    Vec::new()
}

/// A server that runs, or that was killed and can be started again.
pub(crate) struct Server {
    kind: Kind,
    launch: Launch,
    ports: Vec<u16>,
    running: Mutex<Running>,
    // After what runs in it: fields are dropped in this order.
    folder: TempDir,
}

struct Running {
    process: Option<Process>,
    watcher: Watcher,
}

impl Server {
    /// Makes a folder below `folder`, lets `prepare` fill it for the ports given, and starts what it says.
    pub(crate) fn start(
        kind: Kind,
        folder: &Path,
        prepare: impl Fn(&Path, &[u16]) -> Result<Launch, String>,
    ) -> Result<Self, Unavailable> {
        let broken = |reason: String| Unavailable::broken(kind.service, reason);
        let mut attempt = 1;
        loop {
            let ports = free_ports(kind.ports).map_err(|error| broken(format!("no free port: {error}")))?;
            let folder = tempfile::Builder::new()
                .prefix(&format!("flames-{}-", kind.service))
                .tempdir_in(folder)
                .map_err(|error| broken(format!("no folder below {}: {error}", folder.display())))?;
            let watcher = Watcher::start(folder.path(), kind, &ports)
                .map_err(|error| broken(format!("no watcher: {error}")))?;
            let launch = prepare(folder.path(), &ports).map_err(broken)?;
            let running = Mutex::new(Running { process: None, watcher });
            let server = Self { kind, launch, ports, running, folder };
            match server.launch_until_ready() {
                Ok(()) => return Ok(server),
                Err(why) if attempt < ATTEMPTS && is_collision(&why) => attempt += 1,
                Err(why) => return Err(broken(why)),
            }
        }
    }

    pub(crate) fn port(&self, index: usize) -> u16 {
        self.ports.get(index).copied().unwrap_or_default()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        let mut running = self.running();
        running.process.as_mut().and_then(|process| process.is_running().then(|| process.pid()))
    }

    /// SIGKILL, to it and to all that it started, none of which is there any more when this returns.
    pub(crate) fn kill(&self) {
        self.end(Signal::KILL);
    }

    /// Ends it as its kind wants to be ended; for good.
    pub(crate) fn stop(&self) {
        self.end(self.kind.end_by);
    }

    fn end(&self, signal: Signal) {
        let mut running = self.running();
        if let Some(mut process) = running.process.take() {
            process.end(signal, END_LIMIT);
            running.watcher.tell("none");
        }
    }

    /// SIGSTOP: it keeps its connections, and takes new ones, and never answers.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.running().process {
            process.signal_family(signal);
        }
    }

    /// Starts it again, with the same ports and data; kills it before when it runs.
    pub(crate) fn restart(&self) -> Result<(), Unavailable> {
        self.kill();
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            match self.launch_until_ready() {
                Ok(()) => return Ok(()),
                // The kernel may need a moment to give back what the killed one held.
                Err(why) if is_collision(&why) && Instant::now() < deadline => thread::sleep(POLL * 5),
                Err(why) => return Err(Unavailable::broken(self.kind.service, why)),
            }
        }
    }

    /// The end of what the server wrote, since it was started the last time.
    pub(crate) fn log_tail(&self) -> String {
        tail(&self.log()).unwrap_or_else(|error| format!("(no log: {error})"))
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn launch_until_ready(&self) -> Result<(), String> {
        let Launch { program, arguments, user, .. } = &self.launch;
        let mut command = Command::new(program);
        command.args(arguments);
        let log = File::create(self.log()).map_err(|error| format!("no log file: {error}"))?;
        // A group of its own: what ends this process's group, a Ctrl-C for one, does not half-end a server.
        let mut running = self.running();
        let child = in_folder(&mut command, self.folder.path(), *user, &log)
            .and_then(|command| command.process_group(0).spawn())
            .map_err(|error| format!("{} does not start: {error}", program.display()))?;
        running.watcher.tell(&child.id().to_string());
        let mut process = Process::new(child);
        let result = self.wait_until_ready(&mut process);
        if result.is_err() {
            process.end(self.kind.end_by, END_LIMIT);
            running.watcher.tell("none");
        } else {
            running.process = Some(process);
        }
        result
    }

    fn wait_until_ready(&self, process: &mut Process) -> Result<(), String> {
        let deadline = Instant::now() + READY_LIMIT;
        let mut ports_are_open = false;
        loop {
            if !process.is_running() {
                return Err(format!("it ended at once; its log ends:\n{}", self.log_tail()));
            }
            // Only its own: another server that took a port first would answer as well.
            ports_are_open = ports_are_open || {
                let open = process.listens_on();
                self.ports.iter().all(|port| open.contains(port))
            };
            let why_not = if ports_are_open {
                match (self.launch.is_ready)() {
                    Ok(()) => return Ok(()),
                    Err(why) => why,
                }
            } else {
                format!("it does not listen on all of its ports {:?} yet", self.ports)
            };
            if Instant::now() >= deadline {
                return Err(format!(
                    "not ready after {} s: {why_not}; its log ends:\n{}",
                    READY_LIMIT.as_secs(),
                    self.log_tail()
                ));
            }
            thread::sleep(POLL);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        for path in (self.kind.litter)(&self.ports) {
            // It is there only when the server was killed.
            let _ = std::fs::remove_file(path);
        }
        // From here on the folder is removed by its own drop.
        self.running().watcher.tell("done");
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Server")
            .field("service", &self.kind.service)
            .field("ports", &self.ports)
            .field("folder", &self.folder.path())
            .finish_non_exhaustive()
    }
}

/// Runs a command of a server's preparation to its end.
pub(crate) fn run_to_end(command: &mut Command, folder: &Path, user: Option<User>) -> Result<(), String> {
    let name = Path::new(command.get_program()).display().to_string();
    let log_path = folder.join("prepare.log");
    let log = File::create(&log_path).map_err(|error| format!("no log file: {error}"))?;
    let mut child = in_folder(command, folder, user, &log)
        .and_then(Command::spawn)
        .map_err(|error| format!("{name} does not start: {error}"))?;
    let deadline = Instant::now() + READY_LIMIT;
    let why = loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => break format!("{name}: {status}"),
            Ok(None) if Instant::now() < deadline => thread::sleep(POLL),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                break format!("{name} did not end within {} s", READY_LIMIT.as_secs());
            }
            Err(error) => break format!("{name}: {error}"),
        }
    };
    Err(format!("{why}; its output ends:\n{}", tail(&log_path).unwrap_or_default()))
}

/// Nothing of this process's environment reaches a server but `PATH`: etcd, for one, takes its settings from there.
fn in_folder<'a>(
    command: &'a mut Command,
    folder: &Path,
    user: Option<User>,
    log: &File,
) -> std::io::Result<&'a mut Command> {
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", folder)
        .env("TMPDIR", folder)
        .env("LC_ALL", "C")
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?);
    if let Some(User { uid, gid }) = user {
        command.uid(uid).gid(gid);
    }
    Ok(command)
}

/// Whether a server did not start because something else had its place; then another try may work.
fn is_collision(why: &str) -> bool {
    let why = why.to_lowercase();
    ["address already in use", "pre-existing shared memory block", "address in use"]
        .iter()
        .any(|sign| why.contains(sign))
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct Watcher {
    child: Child,
    input: Option<ChildStdin>,
}

impl Watcher {
    fn start(folder: &Path, kind: Kind, ports: &[u16]) -> std::io::Result<Self> {
        let signal = if kind.end_by == Signal::QUIT { "QUIT" } else { "KILL" };
        // In a group of its own, since it has to outlive whoever ends the whole group of a test.
        let mut child = Command::new("/bin/sh")
            .args(["-c", WATCHER, "flames-test-watcher"])
            .arg(signal)
            .arg(folder)
            .args((kind.litter)(ports))
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let input = child.stdin.take();
        Ok(Self { child, input })
    }

    fn tell(&mut self, line: &str) {
        if let Some(input) = &mut self.input {
            // When it is gone, there is only one who cleans up left: this process.
            let _ = writeln!(input, "{line}");
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

/// The methods that every server has; and those of servers that are one program, whose version it tells when it is asked by that argument,
/// and whose URL is a scheme and the address.
macro_rules! common_methods {
    ($server:ident, $service:ident, $program:ident, $version:literal, $scheme:literal) => {
        $crate::server::common_methods!($server);

        impl $server {
            /// Where its program is, when it is installed; starts nothing.
            ///
            /// # Errors
            /// When it is not.
            pub fn find() -> Result<std::path::PathBuf, $crate::Unavailable> {
                $program()
            }

            /// The version of the program installed, in numbers.
            ///
            /// # Errors
            /// When it is not installed.
            pub fn version() -> Result<String, $crate::Unavailable> {
                $crate::locate::version($service, &$program()?, $version)
            }

            #[doc = concat!("`", $scheme, "://127.0.0.1:port`.")]
            #[must_use]
            pub fn url(&self) -> String {
                format!(concat!($scheme, "://{}"), self.address())
            }
        }
    };
    ($server:ident) => {
        impl $server {
            /// Where it listens.
            #[must_use]
            pub fn address(&self) -> std::net::SocketAddr {
                std::net::SocketAddr::from(([127, 0, 0, 1], self.server.port(0)))
            }

            /// Kills it by SIGKILL with all that it started; when this returns, none of that is left. Its data stay.
            pub fn kill(&self) {
                self.server.kill();
            }

            /// Starts it again on the same ports and data, and waits until it serves. Kills it first when it runs.
            ///
            /// # Errors
            /// When it does not serve within a minute, with the end of its log.
            pub fn restart(&self) -> Result<(), $crate::Unavailable> {
                self.server.restart()
            }

            /// Stops it where it stands (SIGSTOP): connections stay, and no answer comes.
            pub fn freeze(&self) {
                self.server.freeze();
            }

            /// Lets it go on after [`Self::freeze`].
            pub fn thaw(&self) {
                self.server.thaw();
            }

            /// The process, when it runs.
            pub fn pid(&self) -> Option<u32> {
                self.server.pid()
            }

            /// The folder with its data, its configuration and its log (`server.log`).
            pub fn folder(&self) -> &std::path::Path {
                self.server.folder()
            }

            /// The end of its log since the last start.
            pub fn log_tail(&self) -> String {
                self.server.log_tail()
            }
        }
    };
}
pub(crate) use common_methods;
