//! `flames up` of the demo, and the commands that are sent to it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::process::{Beside, Echo, Supervisor};

/// How long `flames up` may take: it fetches Debian's kernel (30 MB) when that is not there.
const UP_LIMIT: Duration = Duration::from_secs(600);
/// How long it may take to stop its VMs and end.
const END_LIMIT: Duration = Duration::from_secs(90);
/// How often is looked whether it is up.
const POLL: Duration = Duration::from_millis(50);
/// How long it may serve before it has said so.
const SAYS_SO: Duration = Duration::from_secs(1);
/// How the part of what it says begins that tells a person how to go on.
const HOW_TO_GO_ON: &str = "In another terminal";
/// How much of a log is shown when something failed, in lines.
const TAIL: usize = 25;
/// Variables that would send the demo's commands elsewhere are not passed on; these say only how VMs are run.
const PASSED_ON: [&str; 2] = ["FLAMES_QEMU", "FLAMES_LOG"];

/// What `flames up` is given.
pub(super) struct Settings {
    pub(super) flames: PathBuf,
    pub(super) agent: PathBuf,
    pub(super) kernel: PathBuf,
    /// `None`: as `flames up` chooses.
    pub(super) accel: Option<&'static str>,
    pub(super) folder: PathBuf,
}

/// The control plane of the demo, running.
pub(super) struct ControlPlane {
    settings: Settings,
    process: Beside,
}

/// What is read of the `api.json` in a data folder.
#[derive(Deserialize)]
struct Api {
    pid: i32,
}

/// Fails when `flames up` of an earlier demo still works in this folder, and says how to end it.
///
/// # Errors
/// That.
pub(super) fn refuse_a_second(folder: &Path) -> Result<()> {
    let Some(api) = read_api(&data(folder)) else { return Ok(()) };
    let arguments = std::fs::read(format!("/proc/{}/cmdline", api.pid)).unwrap_or_default();
    // The number alone may be another process's by now.
    let is_flames = arguments.split(|byte| *byte == 0).any(|argument| argument == b"up");
    ensure!(
        !is_flames,
        "`flames up` of an earlier demo still runs here, as process {0}. To stop it with its VMs: kill {0}. Or give another folder with --data",
        api.pid
    );
    Ok(())
}

fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

fn read_api(data: &Path) -> Option<Api> {
    serde_json::from_slice(&std::fs::read(data.join("api.json")).ok()?).ok()
}

impl ControlPlane {
    /// Starts it on a free port and waits until it serves; meanwhile shows what it says.
    ///
    /// # Errors
    /// When it does not come up; it has been ended then.
    pub(super) fn start(supervisor: &Supervisor, settings: Settings) -> Result<Self> {
        let log_path = settings.folder.join("up.log");
        let log = File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
        let mut command = command(&settings.flames);
        command.args(up_arguments(&settings));
        println!("{}", typed(&command));
        let process = supervisor.start_beside(&command, &log)?;
        let control = Self { settings, process };
        let up = control.wait(supervisor, &log_path);
        if let Err(error) = up {
            control.stop(supervisor)?;
            return Err(error);
        }
        Ok(control)
    }

    fn wait(&self, supervisor: &Supervisor, log: &Path) -> Result<()> {
        let mut log = File::open(log)?;
        let mut shown = 0;
        let deadline = Instant::now() + UP_LIMIT;
        let mut serves_since = None;
        let mut told = false;
        loop {
            // Looked at before the log, so that nothing it says before is missed.
            let ended = supervisor.end_of(&self.process);
            let serves =
                read_api(&data(&self.settings.folder)).is_some_and(|api| api.pid == self.process.pid());
            log.seek(SeekFrom::Start(shown))?;
            let mut news = String::new();
            log.read_to_string(&mut news)?;
            let whole = news.rfind('\n').map_or("", |end| &news[..=end]);
            shown += whole.len() as u64;
            // How to go on is told by the demo itself.
            for line in whole.lines() {
                told |= line.starts_with(HOW_TO_GO_ON);
                if !told {
                    println!("  {line}");
                }
            }
            if let Some(ended) = ended {
                bail!("`flames up` has ended: {ended}");
            }
            if serves {
                // It serves a moment before it says so.
                let since = *serves_since.get_or_insert_with(Instant::now);
                if told || since.elapsed() > SAYS_SO {
                    return Ok(());
                }
            }
            supervisor.check()?;
            ensure!(Instant::now() < deadline, "`flames up` was not up after {} s", UP_LIMIT.as_secs());
            std::thread::sleep(POLL);
        }
    }

    /// The folder of the demo.
    pub(super) fn folder(&self) -> &Path {
        &self.settings.folder
    }

    /// Runs a command of `flames` with its output shown, and answers that output.
    ///
    /// # Errors
    /// When it fails or takes longer than `limit`.
    pub(super) fn call(
        &self,
        supervisor: &Supervisor,
        limit: Duration,
        arguments: &[&str],
    ) -> Result<String> {
        let command = self.command(arguments);
        println!("{}", typed(&command));
        run(supervisor, limit, command, Echo::Yes)
    }

    /// Like [`Self::call`], and shows nothing.
    ///
    /// # Errors
    /// As for [`Self::call`].
    pub(super) fn call_silently(
        &self,
        supervisor: &Supervisor,
        limit: Duration,
        arguments: &[&str],
    ) -> Result<String> {
        run(supervisor, limit, self.command(arguments), Echo::No)
    }

    /// What a command of `flames` says as JSON.
    ///
    /// # Errors
    /// As for [`Self::call`].
    pub(super) fn json(
        &self,
        supervisor: &Supervisor,
        limit: Duration,
        arguments: &[&str],
    ) -> Result<String> {
        let mut command = self.command(&["--json"]);
        command.args(arguments);
        run(supervisor, limit, command, Echo::No)
    }

    /// Removes the VMs with this label: those of a demo that was killed.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub(super) fn remove_left_vms(&self, supervisor: &Supervisor, label: &str) -> Result<()> {
        let limit = END_LIMIT;
        let filter = format!("label={label}");
        let left = self.call_silently(supervisor, limit, &["--quiet", "ps", "--all", "--filter", &filter])?;
        let left: Vec<&str> = left.split_whitespace().collect();
        if !left.is_empty() {
            println!("removing what an earlier demo left: {}", left.join(" "));
            let mut arguments = vec!["rm", "--force"];
            arguments.extend(left);
            self.call_silently(supervisor, limit, &arguments)?;
        }
        Ok(())
    }

    /// Shows the end of what `flames up` said.
    pub(super) fn tell_log(&self) {
        let path = self.settings.folder.join("up.log");
        println!("the end of {}:", path.display());
        tell_tail(&std::fs::read(&path).unwrap_or_default());
    }

    /// Shows the end of a VM's serial console.
    pub(super) fn tell_console(&self, supervisor: &Supervisor, limit: Duration, vm: &str) {
        match self.call_silently(supervisor, limit, &["logs", "--console", vm]) {
            Ok(console) => {
                println!("the end of the console of {vm}:");
                tell_tail(console.as_bytes());
            }
            Err(error) => println!("the console of {vm} cannot be shown: {error:#}"),
        }
    }

    /// Ends it with its VMs.
    ///
    /// # Errors
    /// When it did not end as it should; nothing of it is left then, either.
    pub(super) fn stop(&self, supervisor: &Supervisor) -> Result<()> {
        if supervisor.end_of(&self.process).is_some() {
            return Ok(());
        }
        let ended = supervisor.end(&self.process, END_LIMIT);
        let left = supervisor.end_leftovers();
        if !left.is_empty() {
            println!("left running, killed now: {}", left.join(", "));
        }
        println!("`flames up` and its VMs have ended");
        // Asked to end a second time, by a second Ctrl-C, it says so with 130.
        if !ended.success() && supervisor.check().is_ok() {
            self.tell_log();
            bail!("`flames up` did not end well: {ended}");
        }
        Ok(())
    }

    /// What to type when it is left running.
    pub(super) fn how_to_use(&self, vm: &str) -> String {
        let flames = shown(&self.settings.flames);
        format!(
            "Left running. What to type next:\n  \
             export FLAMES_DATA={data}\n  \
             {flames} ps\n  \
             {flames} exec -it {vm} -- /bin/bash          # a shell in the VM that runs\n  \
             {flames} run --rm -it debian -- /bin/bash    # a VM of its own, gone with its shell\n  \
             {flames} events                              # all that happened\n\
             To stop it, with its VMs:\n  \
             kill {pid}",
            data = data(&self.settings.folder).display(),
            pid = self.process.pid(),
        )
    }

    /// What to type when it has been ended.
    pub(super) fn how_to_start_again(&self) -> String {
        let flames = shown(&self.settings.flames);
        let mut up = Command::new(&self.settings.flames);
        up.args(up_arguments(&self.settings));
        format!(
            "What to type next:\n  \
             cargo xtask demo --keep      # the same, left running, or by hand:\n  \
             {up}\n  \
             {flames} --data {data} run --rm -it debian -- /bin/bash    # in another terminal\n\
             What was made is kept for the next run: {folder}",
            up = typed(&up).trim_start_matches("$ "),
            data = shown(&data(&self.settings.folder)),
            folder = shown(&self.settings.folder),
        )
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(&self.settings.flames);
        command.arg("--data").arg(data(&self.settings.folder)).args(arguments);
        command
    }
}

/// Port 0 is any free one; VMs are stopped at the end, so that nothing stays behind.
fn up_arguments(settings: &Settings) -> Vec<OsString> {
    let mut arguments = vec!["up".into(), "--data".into(), data(&settings.folder).into_os_string()];
    arguments.extend(["--listen", "0", "--on-exit", "stop"].map(OsString::from));
    if let Some(accel) = settings.accel {
        arguments.extend(["--accel", accel].map(OsString::from));
    }
    arguments.extend(["--kernel".into(), settings.kernel.clone().into_os_string()]);
    arguments.extend(["--agent".into(), settings.agent.clone().into_os_string()]);
    arguments
}

/// `flames`, without what the caller's environment says about another one.
fn command(flames: &Path) -> Command {
    let mut command = Command::new(flames);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("FLAMES_") && !PASSED_ON.contains(&text.as_ref()) {
            command.env_remove(&name);
        }
    }
    command
}

fn run(supervisor: &Supervisor, limit: Duration, mut command: Command, echo: Echo) -> Result<String> {
    let (ended, output) = supervisor
        .within(limit, || supervisor.run_capturing(&mut command, echo))
        .with_context(|| typed(&command))?;
    ensure!(ended.success(), "{}: {ended}", typed(&command));
    Ok(output)
}

fn tell_tail(text: &[u8]) {
    // What a guest wrote must not drive this terminal.
    let text: String = String::from_utf8_lossy(text)
        .chars()
        .filter(|character| *character == '\n' || !character.is_control())
        .collect();
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(TAIL)..] {
        println!("  {line}");
    }
}

/// A command as a person would type it in this folder.
fn typed(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| {
        let word = shown(Path::new(word));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:,".contains(&byte);
        if !word.is_empty() && word.bytes().all(plain) {
            word
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    });
    format!("$ {}", words.collect::<Vec<_>>().join(" "))
}

/// A path, from this folder when it is below it.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_so_that_it_can_be_typed() {
        let here = std::env::current_dir().unwrap();
        let mut command = Command::new(here.join("target/flames"));
        command.args(["run", "it's", "", "a=b"]);
        assert_eq!(typed(&command), r"$ target/flames run 'it'\''s' '' a=b");
    }

    #[test]
    fn a_demo_whose_control_plane_is_gone_is_no_hindrance_and_one_that_runs_is() {
        let folder = tempfile::tempdir().unwrap();
        refuse_a_second(folder.path()).unwrap();
        std::fs::create_dir(data(folder.path())).unwrap();
        let api = data(folder.path()).join("api.json");
        std::fs::write(&api, format!("{{\"pid\": {}}}", std::process::id())).unwrap();
        refuse_a_second(folder.path()).unwrap();
        let mut server = Command::new("sh")
            .args(["-c", "echo; read line", "up"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // Its arguments are to be seen from its first word on, not from its start on.
        server.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        std::fs::write(&api, format!("{{\"pid\": {}}}", server.id())).unwrap();
        let error = refuse_a_second(folder.path());
        drop(server.stdin.take());
        server.wait().unwrap();
        assert!(error.unwrap_err().to_string().contains("kill"));
    }
}
