//! The Flames binary: control plane, controller and command line.

mod args;
mod attached;
mod commands;
mod config;
mod connect;
mod daemon;
mod data;
mod exit;
mod memory;
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
            if !error.use_stderr() {
                let _ = error.print();
                return ExitCode::SUCCESS;
            }
            if asks_for_json(std::env::args_os()) {
                Output { json: true, quiet: false }.failure(&Failure::of_usage(&error), None);
            } else {
                let _ = error.print();
            }
            return exit::USAGE.into();
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

/// Whether words that could not be read as a command ask for JSON. What stands behind `--` is another program's.
fn asks_for_json(mut words: impl Iterator<Item = std::ffi::OsString>) -> bool {
    words.by_ref().take_while(|word| word != "--").any(|word| word == "--json")
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

/// Runs a process that serves: `run` to its end, and beside it what gives back memory.
fn serve(run: impl Future<Output = Outcome>) -> Outcome {
    flames_allocator::keep_freed_memory();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build()
        .map_err(|error| Failure::io("The runtime cannot be started", &error))?;
    let clock = flames_clock::SystemClock::new();
    let memory = memory::give_back_when_quiet(
        &clock,
        memory::processor_time,
        flames_allocator::give_back_freed_memory,
    );
    runtime.block_on(async {
        tokio::select! {
            outcome = Box::pin(run) => outcome,
            never = memory => never,
        }
    })
}

fn carry_out(arguments: Arguments, output: Output) -> Outcome {
    match arguments.command {
        Command::ConvertImage => Ok(flames_image::child_main()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "flames", &mut script);
            output::write(&script).map(|()| ExitCode::SUCCESS)
        }
        Command::Up(up) => {
            // On somebody's own machine it is to be small while it has little to do. Where that fails it is larger, and nothing else.
            drop(flames_allocator::begin_on_small_pages());
            serve(up::run(&arguments.global, output, *up))
        }
        Command::Server(server) => {
            flames_allocator::give_back_whole_huge_pages();
            serve(server::run(&arguments.global, output, *server))
        }
        Command::Controllers { action: Some(ControllerAction::Run(run)) } => {
            flames_allocator::give_back_whole_huge_pages();
            serve(daemon::run(&arguments.global, output, *run))
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
