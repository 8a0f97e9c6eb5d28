//! The Flames binary: control plane, controller and command line.

mod args;
mod attached;
mod commands;
mod config;
mod connect;
mod daemon;
mod data;
mod exit;
mod output;
mod pack;
mod progress;
mod providers;
mod server;
#[cfg(feature = "simulated")]
mod simulated;
mod terminal;
mod up;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::{Arguments, Command, ControllerAction};
use crate::exit::{Failure, Outcome};
use crate::output::Output;

/// Threads that serve requests: an idle server stays small, and work that blocks has threads of its own.
const WORKERS: usize = 2;
/// Threads for work that blocks, at most.
const BLOCKING: usize = 64;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors, and go to standard output.
            let code = if error.use_stderr() { exit::USAGE } else { 0 };
            let _ = error.print();
            return code.into();
        }
    };
    let output = Output { json: arguments.global.json, quiet: arguments.global.quiet };
    let docs = docs(&arguments);
    match carry_out(arguments, output) {
        Ok(code) => code,
        Err(failure) => {
            terminal::restore();
            output.failure(&failure, docs.as_deref());
            failure.exit.into()
        }
    }
}

/// Where pages about errors are served.
fn docs(arguments: &Arguments) -> Option<String> {
    match &arguments.command {
        Command::Up(_)
        | Command::Server(_)
        | Command::Controllers { action: Some(ControllerAction::Run(_)) }
        | Command::Config { .. }
        | Command::Db { .. }
        | Command::Completions { .. }
        | Command::ConvertImage => None,
        _ => connect::find(&arguments.global).ok().and_then(|api| api.pages),
    }
}

/// For processes that serve.
fn server_runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build()
        .map_err(|error| Failure::io("The runtime cannot be started", &error))
}

fn carry_out(arguments: Arguments, output: Output) -> Outcome {
    match arguments.command {
        Command::ConvertImage => Ok(flames_image::child_main()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "flames", &mut script);
            output::write(&script).map(|()| ExitCode::SUCCESS)
        }
        Command::Up(up) => server_runtime()?.block_on(Box::pin(up::run(&arguments.global, output, *up))),
        Command::Server(server) => {
            server_runtime()?.block_on(Box::pin(server::run(&arguments.global, output, *server)))
        }
        Command::Controllers { action: Some(ControllerAction::Run(run)) } => {
            server_runtime()?.block_on(Box::pin(daemon::run(&arguments.global, output, *run)))
        }
        _ => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| Failure::io("The runtime cannot be started", &error))?;
            let outcome = runtime.block_on(Box::pin(commands::carry_out(arguments, output)));
            // A read of standard input that is under way holds nothing up.
            runtime.shutdown_background();
            outcome
        }
    }
}
