//! The front door for developers: `cargo xtask <command>`.
//!
//! Exit codes: 0 = all is well; 1 = the check or the tests said no; 2 = the command itself could not be carried out;
//! 130 = interrupted.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "to print is what this program is for")]

mod bench;
mod default_tree;
mod demo;
mod guest;
mod layers;
mod process;
mod servers;
mod stages;
mod support;
mod test;
mod tools;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// What developers of Flames run.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fail on an import between workspace crates that docs/adr and the layer rules forbid.
    Layers(ManifestArguments),
    /// Fail when the default build of the `flames` binary carries a cloud SDK or another optional back-end.
    DefaultTree(ManifestArguments),
    /// Boot a real microVM through the whole control plane, from a fresh clone.
    Demo(demo::DemoArguments),
    /// Install what is missing, build, and run every test, real virtual machines included.
    Test(test::TestArguments),
    /// Start the real servers that adapters are tested against, for one command or until Ctrl-C.
    Servers(servers::ServersArguments),
    /// Write docs/support.md from the outcomes of the last `cargo xtask test`, or check it.
    Support(support::SupportArguments),
    /// Measure Flames against the same without it; fails when a bar is missed.
    Bench(bench::BenchArguments),
}

#[derive(Args)]
struct ManifestArguments {
    /// The workspace to look at, when it is not this one.
    #[arg(long, value_name = "CARGO_TOML")]
    manifest_path: Option<PathBuf>,
}

impl ManifestArguments {
    fn path(self) -> PathBuf {
        self.manifest_path.unwrap_or_else(|| workspace::root().join("Cargo.toml"))
    }
}

fn main() -> ExitCode {
    let result = match CommandLine::parse().command {
        Command::Layers(arguments) => layers::check(&arguments.path()),
        Command::DefaultTree(arguments) => default_tree::check(&arguments.path()),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Servers(arguments) => servers::run(&arguments),
        Command::Support(arguments) => support::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
    };
    match result {
        Ok(Verdict::Passed) => ExitCode::SUCCESS,
        Ok(Verdict::Refused) => ExitCode::from(1),
        Err(error) if error.is::<process::Interrupted>() => {
            // Not the error as a whole: what was being done then is of no interest.
            eprintln!("{}", process::Interrupted);
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// What a check found, apart from whether it could be made at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Nothing to object to.
    Passed,
    /// The check was made and says no; it has printed why.
    Refused,
}
