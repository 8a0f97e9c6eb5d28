//! The child's side.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, setrlimit};

use super::{Assignment, Bounds, LONGEST_LINE, Line};
use crate::error::{ImageError, Result};
use crate::rootfs::{Progress, convert};

/// How often progress is told within one phase.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Runs one conversion, as told on standard input. The `flames` binary calls it for [`super::CONVERT_COMMAND`], before it starts anything
/// else (a runtime, threads): the bounds hold for the whole process.
pub fn child_main() -> ExitCode {
    let outcome = run();
    let failed = outcome.is_err();
    let line = match outcome {
        Ok(line) => line,
        Err(error) => Line::Failed { error },
    };
    match (say(&line), failed) {
        (Ok(()), false) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn run() -> Result<Line> {
    let mut input = BufReader::new(std::io::stdin());
    let mut text = Vec::new();
    input.by_ref().take(LONGEST_LINE as u64).read_until(b'\n', &mut text)?;
    let assignment: Assignment = serde_json::from_slice(&text)
        .map_err(|error| ImageError::internal(format!("no assignment: {error}")))?;
    bound(&assignment.bounds)?;
    thread::Builder::new().name("parent".to_owned()).stack_size(128 << 10).spawn(move || {
        // The parent says nothing more: this returns when it is gone.
        let _ = input.read(&mut [0]);
        std::process::exit(2);
    })?;
    let mut told: Option<(String, Instant)> = None;
    let mut tell = |progress: Progress| {
        let now = Instant::now();
        let is_due =
            told.as_ref().is_none_or(|(phase, at)| *phase != progress.phase || now - *at >= PROGRESS_EVERY);
        if is_due {
            told = Some((progress.phase.clone(), now));
            // A parent that is gone is noticed by the thread above.
            let _ = say(&Line::Progress { progress });
        }
    };
    let result = convert(&assignment.request, &assignment.staging, &mut tell)?;
    Ok(Line::Done { result: Box::new(result) })
}

fn bound(bounds: &Bounds) -> Result<()> {
    let limits = [
        (Resource::As, bounds.memory_bytes),
        (Resource::Cpu, bounds.cpu_seconds),
        (Resource::Fsize, bounds.file_bytes),
        (Resource::Nofile, bounds.open_files),
        (Resource::Core, 0),
    ];
    for (resource, most) in limits {
        // Never above what this process has already.
        let most = rustix::process::getrlimit(resource).maximum.map_or(most, |present| present.min(most));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    Ok(())
}

fn say(line: &Line) -> std::io::Result<()> {
    let mut output = std::io::stdout().lock();
    serde_json::to_writer(&mut output, line)?;
    output.write_all(b"\n")?;
    output.flush()
}
