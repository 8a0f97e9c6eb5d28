//! Programs of the machine, run with a deadline and bounded output.

use std::io::{ErrorKind, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::{ImageError, ImageErrorKind, Result};

/// The most that is kept of each output, in bytes.
const MOST_OUTPUT: u64 = 4 << 20;

/// Runs a program in a process group of its own and answers what it wrote to its standard output. At the deadline, and on any failure here,
/// the whole group is killed.
///
/// Errors: `MissingProgram` (with the Debian package that has it), `TimedOut`, `Io` with the end of what it wrote to standard error.
pub(crate) fn run(command: &mut Command, package: &str, deadline: Duration) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let started = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => ImageError::new(
            ImageErrorKind::MissingProgram,
            format!("the program `{name}` is not installed (Debian package `{package}`)"),
        ),
        _ => error.into(),
    })?;
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let output = child.stdout.take().map(|pipe| thread::spawn(move || read_bounded(pipe)));
    let errors = child.stderr.take().map(|pipe| thread::spawn(move || read_bounded(pipe)));
    let waited = wait(&mut child, started + deadline);
    if waited.is_err()
        && let Some(group) = group
    {
        // It may have ended by itself in this moment.
        let _ = kill_process_group(group, Signal::KILL);
        let _ = child.wait();
    }
    let join = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
        reader.and_then(|it| it.join().ok()).unwrap_or_default()
    };
    let (output, errors) = (join(output), join(errors));
    match waited? {
        Some(status) if status.success() => Ok(output),
        Some(status) => {
            let text = String::from_utf8_lossy(&errors);
            let lines: Vec<&str> = text.trim().lines().collect();
            let last = lines[lines.len().saturating_sub(5)..].join("; ");
            Err(ImageError::new(ImageErrorKind::Io, format!("`{name}` failed ({status}): {last}")))
        }
        None => Err(ImageError::internal("a program ended without a status")),
    }
}

fn wait(child: &mut std::process::Child, until: Instant) -> Result<Option<ExitStatus>> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            return Err(ImageError::new(ImageErrorKind::TimedOut, "a program did not end within its time"));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Keeps the first bytes and reads on, so that the program never waits for a reader.
fn read_bounded(mut pipe: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let _ = pipe.by_ref().take(MOST_OUTPUT).read_to_end(&mut kept);
    let _ = std::io::copy(&mut pipe, &mut std::io::sink());
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_past_its_deadline_is_killed_with_its_children() {
        let started = Instant::now();
        let error =
            run(Command::new("sh").args(["-c", "sleep 60 & sleep 60"]), "dash", Duration::from_millis(200));
        assert_eq!(error.unwrap_err().kind, ImageErrorKind::TimedOut);
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_missing_program_and_a_failing_one_say_what_to_do() {
        let error =
            run(&mut Command::new("no-such-program"), "some-package", Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.kind, ImageErrorKind::MissingProgram);
        assert!(error.message.contains("some-package"));
        let error =
            run(Command::new("sh").args(["-c", "echo why >&2; exit 3"]), "dash", Duration::from_secs(5));
        assert!(error.unwrap_err().message.contains("why"));
    }
}
