//! The real binary, run as a user runs it, in a folder of its own.
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod busybox;
pub(crate) mod fleet;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long anything may take, also on a busy host under emulation.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

/// What a command ended with.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// The command's standard output, which must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }

    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    /// What it said of its failure, which must have this exit code.
    #[track_caller]
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stderr
    }
}

/// The binary without anything that the tester's own environment says to it.
pub(crate) fn flames() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flames"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FLAMES_") {
            command.env_remove(name);
        }
    }
    command
}

/// A program in the network namespace of this path, without anything that the tester's own environment says to Flames, but for where
/// Firecracker is.
pub(crate) fn entering(namespace: &Path, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display())).arg("--").arg(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("FLAMES_") && !["FLAMES_FIRECRACKER", "FLAMES_JAILER"].contains(&text.as_ref()) {
            command.env_remove(name);
        }
    }
    command
}

/// Waits for a child, with a limit; it is killed at the limit.
#[track_caller]
pub(crate) fn wait(child: &mut Child) -> i32 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or_else(|| -status.signal().unwrap_or(0));
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("a command did not end within {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a command to its end, giving it `input`.
#[track_caller]
pub(crate) fn finish(command: &mut Command, input: &[u8]) -> Ended {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let read = |mut pipe: Box<dyn Read + Send>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = read(Box::new(child.stdout.take().unwrap()));
    let stderr = read(Box::new(child.stderr.take().unwrap()));
    let mut stdin = child.stdin.take().unwrap();
    // A command that does not read its input is no failure here.
    let _ = stdin.write_all(input);
    drop(stdin);
    let code = wait(&mut child);
    Ended { code, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A data folder, with or without a `flames up` on it. Everything that runs there ends with it.
pub(crate) struct Installation {
    pub(crate) folder: TempDir,
    /// The network namespace that `flames up` runs in; none: the tester's own.
    pub(crate) namespace: Option<PathBuf>,
    up: Option<Child>,
    log: Option<thread::JoinHandle<String>>,
}

impl Installation {
    /// Nothing is left of what the controller keeps of VMs. It hears a moment after a VM is gone that nobody asks of it any more.
    pub(crate) fn books_are_closed(&self) {
        for folder in ["incarnations", "logs", "disks"] {
            let path = self.data().join("controller").join(folder);
            eventually(folder, || fs::read_dir(&path).unwrap().next().is_none().then_some(()));
        }
    }

    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), namespace: None, up: None, log: None }
    }

    /// With a simulated host, up.
    pub(crate) fn simulated() -> Self {
        let mut installation = Self::new();
        installation.up(&["--driver", "simulated"]);
        installation
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join("data")
    }

    /// A command on this installation.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = flames();
        command.arg("--data").arg(self.folder.path().join("data")).args(arguments);
        command
    }

    #[track_caller]
    pub(crate) fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Ended {
        finish(&mut self.command(arguments), b"")
    }

    /// Starts `flames up` on any free port, and returns what it says of itself once it serves.
    #[track_caller]
    pub(crate) fn up(&mut self, arguments: &[&str]) -> serde_json::Value {
        assert!(self.up.is_none(), "one is up already");
        let mut command = match &self.namespace {
            None => flames(),
            Some(path) => entering(path, env!("CARGO_BIN_EXE_flames")),
        };
        let data = self.folder.path().join("data");
        command.arg("--data").arg(data).args(["--json", "up", "--listen", "0", "--log", "info"]);
        let mut child =
            command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stderr = child.stderr.take().unwrap();
        self.log = Some(thread::spawn(move || {
            let mut log = Vec::new();
            stderr.read_to_end(&mut log).unwrap();
            String::from_utf8_lossy(&log).into_owned()
        }));
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        self.up = Some(child);
        serde_json::from_str(&line).unwrap_or_else(|error| {
            wait(self.up.as_mut().unwrap());
            panic!("`flames up` did not come up ({error}): {}", self.log.take().unwrap().join().unwrap())
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.up.as_ref().unwrap().id()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.is_some()
    }

    /// As a power cut does.
    pub(crate) fn kill(&mut self) {
        let mut up = self.up.take().unwrap();
        up.kill().unwrap();
        up.wait().unwrap();
    }

    /// As Ctrl-C does; the exit code, and what it logged.
    #[track_caller]
    pub(crate) fn interrupt(&mut self) -> (i32, String) {
        let mut up = self.up.take().unwrap();
        signal(&up, "INT");
        let code = wait(&mut up);
        (code, self.log.take().unwrap().join().unwrap())
    }

    /// A tar of a folder with one file, imported as the image `test`.
    #[track_caller]
    pub(crate) fn import_small_image(&self) {
        let folder = self.folder.path().join("image");
        fs::create_dir_all(folder.join("etc")).unwrap();
        fs::write(folder.join("etc/motd"), "hello\n").unwrap();
        self.run(&["image", "import", "test", folder.to_str().unwrap()]).ok();
    }

    #[track_caller]
    pub(crate) fn inspect(&self, vm: &str) -> serde_json::Value {
        self.run(&["--json", "inspect", vm]).json()
    }

    /// The live processes that have this installation's folder on their command line, `flames up` apart.
    pub(crate) fn machines(&self) -> Vec<u32> {
        let own = self.up.as_ref().map(Child::id);
        machines_below(&self.data()).into_iter().filter(|pid| Some(*pid) != own).collect()
    }
}

/// The live QEMU processes that have this folder on their command line.
pub(crate) fn machines_below(folder: &Path) -> Vec<u32> {
    let folder = folder.display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains(&folder) && line.contains("qemu-system") {
            found.push(pid);
        }
    }
    found.sort_unstable();
    found
}

impl Drop for Installation {
    fn drop(&mut self) {
        if let Some(up) = &mut self.up {
            let _ = up.kill();
            let _ = up.wait();
        }
        for pid in self.machines() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
        if thread::panicking()
            && let Some(log) = self.log.take()
        {
            eprintln!("what `flames up` logged:\n{}", log.join().unwrap_or_default());
        }
    }
}

/// Sends a signal to a child.
pub(crate) fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

pub(crate) fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).unwrap().mode() & 0o777
}
