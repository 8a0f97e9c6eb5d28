//! The commands that speak to the API.

mod config;
mod controllers;
mod copy;
mod doctor;
mod events;
mod exec;
#[cfg(feature = "firecracker")]
mod host_doctor;
mod images;
mod lifecycle;
mod list;
mod logs;
mod network;
mod port_forward;
mod run;
mod show;
mod snapshots;

use std::process::ExitCode;

use flames_model::Timestamp;

use crate::args::{Arguments, Command, Global};
use crate::connect::{self, Api};
use crate::exit::Outcome;
use crate::output::Output;

/// What a command works with.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) api: Api,
    pub(crate) output: Output,
}

impl Context {
    fn new(global: &Global, output: Output) -> Result<Self, crate::exit::Failure> {
        Ok(Self { api: connect::find(global)?, output })
    }
}

/// Carries out a command; `up`, `completions` and the image conversion are not among them.
pub(crate) async fn carry_out(arguments: Arguments, output: Output) -> Outcome {
    let Arguments { global, command } = arguments;
    let context = || Context::new(&global, output);
    match command {
        Command::Run(arguments) => Box::pin(run::run(&context()?, *arguments)).await,
        Command::Ps(arguments) => list::ps(&context()?, &arguments).await,
        Command::Inspect { vms } => show::inspect(&context()?, &vms).await,
        Command::Logs(arguments) => logs::logs(&context()?, &arguments).await,
        Command::Exec(arguments) => exec::exec(&context()?, arguments).await,
        Command::Attach(arguments) => exec::attach(&context()?, arguments).await,
        Command::Cp(arguments) => copy::copy(&context()?, arguments).await,
        Command::PortForward(arguments) => port_forward::port_forward(&context()?, &arguments).await,
        Command::Stop(arguments) => lifecycle::change(&context()?, lifecycle::Change::Stop, &arguments).await,
        Command::Start(arguments) => {
            lifecycle::change(&context()?, lifecycle::Change::Start, &arguments).await
        }
        Command::Restart(arguments) => {
            lifecycle::change(&context()?, lifecycle::Change::Restart, &arguments).await
        }
        Command::Pause(arguments) => {
            lifecycle::change(&context()?, lifecycle::Change::Pause, &arguments).await
        }
        Command::Resume(arguments) => {
            lifecycle::change(&context()?, lifecycle::Change::Resume, &arguments).await
        }
        Command::Network { action } => network::network(&context()?, action).await,
        Command::Snapshot { action } => snapshots::snapshots(&context()?, action).await,
        Command::Restore(arguments) => snapshots::restore(&context()?, arguments).await,
        Command::Rm(arguments) => lifecycle::remove(&context()?, &arguments).await,
        Command::Events { follow, controllers, vm, after } => {
            events::events(&context()?, follow, controllers, vm.as_deref(), after).await
        }
        Command::Controllers { action } => controllers::controllers(&global, output, action).await,
        Command::Image { action } => images::images(&context()?, action).await,
        Command::Config { action } => config::config(&global, output, &action).await,
        Command::Db { action } => config::db(&global, output, &action).await,
        Command::Doctor(arguments) => doctor::doctor(&global, output, &arguments).await,
        Command::Version => show::version(&global, output).await,
        Command::Up(_) | Command::Server(_) | Command::Completions { .. } | Command::ConvertImage => {
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// This machine's time, for showing ages.
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}
