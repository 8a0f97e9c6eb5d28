//! Servers and hosts, each the real binary in a process and a data folder of its own.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use tempfile::TempDir;

use super::{Ended, eventually, finish, flames, machines_below, signal, wait};

/// A server or a host. It ends with this value.
pub(crate) struct Running {
    /// What it said of itself once it ran.
    pub(crate) told: serde_json::Value,
    pub(crate) data: PathBuf,
    child: Option<Child>,
    log: Option<thread::JoinHandle<String>>,
}

impl Running {
    /// Starts one and returns once it runs.
    #[track_caller]
    pub(crate) fn start<S: AsRef<str>>(data: &Path, arguments: &[S]) -> Self {
        let mut command = flames();
        command.arg("--data").arg(data).args(["--json"]).args(arguments.iter().map(AsRef::as_ref));
        let mut child =
            command.env("FLAMES_LOG", "info").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let log = thread::spawn(move || {
            let mut log = Vec::new();
            stderr.read_to_end(&mut log).unwrap();
            String::from_utf8_lossy(&log).into_owned()
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let told = serde_json::from_str(&line);
        let mut running =
            Self { told: serde_json::Value::Null, data: data.to_owned(), child: Some(child), log: Some(log) };
        running.told = told.unwrap_or_else(|error| {
            let (code, log) = running.ended();
            panic!("it did not start ({error}), code {code}: {log}")
        });
        running
    }

    /// Waits until it has ended by itself; its exit code, and what it logged.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> (i32, String) {
        let code = wait(self.child.as_mut().unwrap());
        self.child = None;
        (code, self.log.take().unwrap().join().unwrap())
    }

    /// As a power cut does.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// As a service manager does; the exit code, and what it logged.
    #[track_caller]
    pub(crate) fn terminate(&mut self) -> (i32, String) {
        signal(self.child.as_ref().unwrap(), "TERM");
        self.ended()
    }

    /// A command of somebody on the same machine.
    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        finish(&mut self.command(arguments), b"")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = flames();
        command.arg("--data").arg(&self.data).args(arguments);
        command
    }

    /// Where controllers call it, without its scheme.
    pub(crate) fn host_address(&self) -> String {
        let url = self.told["host_url"].as_str().unwrap();
        url.split_once("://").unwrap().1.to_owned()
    }

    #[track_caller]
    pub(crate) fn inspect(&self, vm: &str) -> serde_json::Value {
        self.run(&["--json", "inspect", vm]).json()
    }

    /// Waits until so many hosts have registered.
    #[track_caller]
    pub(crate) fn has_hosts(&self, count: usize) {
        eventually("the hosts have registered", || {
            let hosts = self.run(&["--json", "controllers"]).json();
            (hosts.as_array().unwrap().len() == count).then_some(())
        });
    }

    #[track_caller]
    pub(crate) fn import_small_image(&self) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("etc")).unwrap();
        fs::write(folder.path().join("etc/motd"), "hello\n").unwrap();
        self.run(&["image", "import", "test", folder.path().to_str().unwrap()]).ok();
    }

    /// Makes a VM that runs until it is stopped.
    #[track_caller]
    pub(crate) fn sleeper(&self, name: &str) {
        self.run(&["run", "-d", "--name", name, "test", "--", "sleep", "infinity"]).ok();
    }

    /// Runs a command in a VM that must answer, also while links are being made again.
    #[track_caller]
    pub(crate) fn answers(&self, vm: &str) {
        eventually("the VM answers", || {
            let said = self.run(&["exec", vm, "--", "echo", "here"]);
            (said.code == 0 && said.stdout == "here\n").then_some(())
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking()
            && let Some(log) = self.log.take()
        {
            eprintln!("what ran in {} logged:\n{}", self.data.display(), log.join().unwrap_or_default());
        }
    }
}

/// A place for servers and hosts.
pub(crate) struct Fleet {
    pub(crate) folder: TempDir,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// The machines of all hosts.
    pub(crate) fn machines(&self) -> Vec<u32> {
        machines_below(&self.folder.path().canonicalize().unwrap())
    }

    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    /// A server of that name, with these further arguments.
    #[track_caller]
    pub(crate) fn server(&self, name: &str, more: &[&str]) -> Running {
        let mut arguments = vec!["server", "--listen", "0", "--ingress-listen", "127.0.0.1:0"];
        if !more.contains(&"--host-listen") {
            arguments.extend(["--host-listen", "0"]);
        }
        arguments.extend(more);
        Running::start(&self.place(name), &arguments)
    }

    /// A file with a join token of a server.
    #[track_caller]
    pub(crate) fn token(&self, server: &Running) -> PathBuf {
        let token = server.run(&["controllers", "token", "create"]).ok();
        let path = self.place("join-token");
        fs::write(&path, token).unwrap();
        path
    }

    pub(crate) fn host_arguments(&self, name: &str, servers: &str, token: &Path) -> Vec<String> {
        let token = token.display().to_string();
        ["controller", "run", "--server", servers, "--driver", "simulated", "--name", name]
            .into_iter()
            .chain(["--join-token-file", &token])
            .map(str::to_owned)
            .collect()
    }

    /// A simulated host of that name.
    #[track_caller]
    pub(crate) fn host(&self, name: &str, servers: &str, token: &Path, more: &[&str]) -> Running {
        let mut arguments = self.host_arguments(name, servers, token);
        arguments.extend(more.iter().map(|more| (*more).to_owned()));
        Running::start(&self.place(name), &arguments)
    }

    /// A host that is not let in, or that cannot be started: runs it to its end.
    #[track_caller]
    pub(crate) fn host_refused(&self, name: &str, servers: &str, token: &Path, more: &[&str]) -> Ended {
        let mut command = flames();
        command
            .arg("--data")
            .arg(self.place(name))
            .args(self.host_arguments(name, servers, token))
            .args(more);
        finish(&mut command, b"")
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for pid in self.machines() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}
