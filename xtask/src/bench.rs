//! `cargo xtask bench`: builds the harnesses of `benches/` and what they measure, and runs them.
//!
//! The harnesses judge ratios; `vmm` alone judges times and memory too, since those are its goals. The exit code is 1 when a bar was missed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::process::{Ended, Supervisor};
use crate::servers::ServerKind;
use crate::{Verdict, guest, tools, workspace};

const HARNESS: &str = "flames-bench-harness";

#[derive(Args)]
pub(crate) struct BenchArguments {
    /// Which harness; none: each.
    harness: Option<Harness>,
    /// Print JSON in place of tables, one object for each harness.
    #[arg(long)]
    json: bool,
    /// For `vmm`: which driver, `firecracker`, `qemu` or `simulated`.
    #[arg(long, requires = "harness")]
    driver: Option<String>,
    /// Passed to the harness: `cargo xtask bench api -- --rounds 5`.
    #[arg(last = true, requires = "harness")]
    rest: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Harness {
    /// The HTTP API over the simulated driver, beside a bare handler of the same JSON.
    Api,
    /// From the request to a real guest's first byte of output, beside the same QEMU started by hand.
    Boot,
    /// Each adapter beside its backend doing the same work by hand: SQL, JetStream, object_store, Redis, nginx, Caddy.
    Providers,
    /// A driver of machines beside its monitor's raw API: start, restore, pause, resume, snapshot, end, memory. Needs root for Firecracker.
    Vmm,
}

impl Harness {
    fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Boot => "boot",
            Self::Providers => "providers",
            Self::Vmm => "vmm",
        }
    }
}

/// Runs the harnesses one after the other.
///
/// # Errors
/// When something cannot be built or measured, or the run was interrupted.
pub(crate) fn run(arguments: &BenchArguments) -> Result<Verdict> {
    let supervisor = Supervisor::start()?;
    let harnesses = match arguments.harness {
        Some(harness) => vec![harness],
        None => vec![Harness::Api, Harness::Boot, Harness::Providers, Harness::Vmm],
    };
    if arguments.driver.is_some() && arguments.harness != Some(Harness::Vmm) {
        bail!("only the harness `vmm` takes --driver");
    }
    let mut verdict = Verdict::Passed;
    for harness in harnesses {
        let mut command = command(&supervisor, harness)?;
        command.args(arguments.json.then_some("--json"));
        command.args(arguments.driver.iter().flat_map(|driver| ["--driver", driver])).args(&arguments.rest);
        match supervisor.run(&mut command)? {
            Ended::Exited(0) => {}
            Ended::Exited(1) => verdict = Verdict::Refused,
            other => bail!("the harness `{}` could not measure: {other}", harness.name()),
        }
    }
    Ok(verdict)
}

/// Builds what a harness needs.
fn command(supervisor: &Supervisor, harness: Harness) -> Result<Command> {
    let mut build = workspace::cargo();
    // Always both: another choice of packages is another choice of features, with which everything would be built anew.
    build.args(["build", "--release", "--package", HARNESS, "--package", "flames"]);
    match harness {
        Harness::Providers => drop(build.args(["--features", "flames-bench-harness/providers"])),
        Harness::Vmm => drop(build.args(["--features", "flames-bench-harness/vmm"])),
        Harness::Api | Harness::Boot => {}
    }
    build.current_dir(workspace::root());
    supervisor.run_to_success(&mut build)?;
    let mut command = Command::new(released(HARNESS));
    command.arg(harness.name());
    if matches!(harness, Harness::Boot | Harness::Vmm) {
        let agent = guest::build_agent(supervisor)?;
        let kernel = match guest::test_kernel(supervisor)? {
            Ok(kernel) => kernel,
            Err(why) => bail!("no kernel for guests: {why}; set FLAMES_TEST_KERNEL"),
        };
        command.arg("--agent").arg(agent).arg("--kernel").arg(kernel.kernel);
        if harness == Harness::Boot {
            command.arg("--flames").arg(released("flames"));
            if let Some(modules) = kernel.modules {
                command.arg("--kernel-modules").arg(modules);
            }
        } else if let Some(template) = kernel.cpu_template {
            command
                .arg("--cpu-template")
                .arg(template)
                .arg("--kernel-arguments")
                .arg(guest::EMULATED_ARGUMENTS);
        }
    }
    if harness == Harness::Providers {
        command.env("PATH", path_with_servers(supervisor)?);
    }
    Ok(command)
}

/// `PATH` with the folders of the servers that the harness starts. What cannot be installed is missing there, and the harness says so.
fn path_with_servers(supervisor: &Supervisor) -> Result<OsString> {
    for missing in tools::install_servers(supervisor, &ServerKind::ALL)? {
        eprintln!("missing: {missing}");
    }
    let programs = ServerKind::ALL.into_iter().filter_map(|kind| kind.find().ok());
    let own = programs.filter_map(|program| program.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::join_paths(own.chain(std::env::split_paths(&path)))?)
}

fn released(program: &str) -> PathBuf {
    workspace::target_folder().join("release").join(program)
}
