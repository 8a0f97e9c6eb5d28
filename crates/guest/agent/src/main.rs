//! The agent's binary: PID 1 of a guest, or a service of its init system.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use flames_guest_agent::{Agent, AgentOptions, boot, channel, console};
use flames_guest_protocol::GuestConfig;

/// How long the host may take to collect the exits of a VM that ends.
const EXITS_TIMEOUT: Duration = Duration::from_secs(2);

const USAGE: &str = "usage: flames-guest-agent [service [--config FILE] [--listen PATH]] | --version
  As PID 1 it boots the guest. As a service it reads the config drive, or FILE of the same content, and serves the
  virtio-serial port and vsock, or the unix socket PATH.";

fn main() -> ExitCode {
    if std::process::id() == 1 {
        return init();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut words = arguments.iter().map(String::as_str);
    let mut config = None;
    let mut listen = None;
    match words.next() {
        Some("--version") => {
            console::line(env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Some("service") => {}
        _ => return usage(),
    }
    while let Some(word) = words.next() {
        let value = words.next().map(PathBuf::from);
        match (word, value) {
            ("--config", Some(value)) => config = Some(value),
            ("--listen", Some(value)) => listen = Some(value),
            _ => return usage(),
        }
    }
    match service(config, listen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            console::line(&why);
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    console::line(USAGE);
    ExitCode::from(2)
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    // One thread: an agent waits most of its life. The others are for file work, and go when it is done.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_keep_alive(Duration::from_secs(2))
        .build()
        .map_err(|error| format!("start the runtime: {error}"))
}

fn init() -> ExitCode {
    // The build aborts at a panic, and the end of PID 1 is the end of the kernel: say why before that.
    std::panic::set_hook(Box::new(|panic| boot::fatal(&panic.to_string())));
    let booted = boot::run().unwrap_or_else(|why| boot::fatal(&why));
    let runtime = runtime().unwrap_or_else(|why| boot::fatal(&why));
    let boot::Booted { config, steps, roots } = booted;
    let ended: Result<(), String> = runtime.block_on(async {
        let options = AgentOptions { init: true, boot: steps, ..AgentOptions::default() };
        let agent = Agent::new(config, options).map_err(|error| error.message)?;
        agent.start_workload();
        // Sessions go on to the end, so that the host hears of the exits.
        tokio::select! {
            () = end(&agent) => {}
            () = channel::serve_all(&agent) => return Err("no channel to the host is there".to_owned()),
        }
        boot::end_everything(Duration::from_secs(2), &roots).await;
        Ok(())
    });
    match ended {
        Ok(()) => boot::restart(),
        Err(why) => boot::fatal(&why),
    }
}

/// Waits for the host's request to end, ends the processes, and lets the host collect their exits.
async fn end(agent: &Arc<Agent>) {
    let signal = agent.shutdown_requested().await;
    agent.end_processes(signal).await;
    agent.exits_delivered(EXITS_TIMEOUT).await;
}

fn service(config: Option<PathBuf>, listen: Option<PathBuf>) -> Result<(), String> {
    let config = match config {
        Some(path) => {
            let drive = std::fs::read(&path).map_err(|error| format!("read {}: {error}", path.display()))?;
            GuestConfig::decode(&drive).map_err(|error| error.message)?
        }
        None => boot::find_config(Duration::from_secs(30))?,
    };
    let vm = listen.is_none();
    runtime()?.block_on(async {
        let agent = Agent::new(config, AgentOptions::default()).map_err(|error| error.message)?;
        agent.start_workload();
        let serving = async {
            match &listen {
                Some(path) => channel::serve_unix(&agent, path).await.map_err(|error| error.to_string()),
                None => {
                    channel::serve_all(&agent).await;
                    Err("no channel to the host is there".to_owned())
                }
            }
        };
        tokio::select! {
            () = end(&agent) => Ok(()),
            ended = serving => ended,
        }
    })?;
    if vm {
        // The machine is the init system's to end.
        let status = std::process::Command::new("/sbin/reboot").status();
        status.map_err(|error| format!("/sbin/reboot: {error}"))?;
    }
    Ok(())
}
