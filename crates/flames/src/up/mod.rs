//! `flames up`: the whole of Flames in one process.
//!
//! The parts are put together as on a fleet: the controller calls the host API through a client, and streams reach it through links; only
//! the client is over the router itself, and the links are in this process.

#[cfg_attr(
    not(any(feature = "qemu", feature = "firecracker")),
    allow(dead_code, reason = "only real machines boot")
)]
mod boot;
mod dial;
#[cfg(feature = "firecracker")]
pub(crate) mod firecracker;
pub(crate) mod host;
mod importer;
mod machines;
mod network;
mod parts;
pub(crate) mod plane;
#[cfg(feature = "qemu")]
mod probe;
pub(crate) mod serve;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

pub(crate) use boot::{checked_kernel, with_agent};
#[cfg(all(feature = "qemu", feature = "firecracker"))]
pub(crate) use machines::qemu_driver as qemu;

use flames_clock::{Clock, SystemClock};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Global, UpArgs};
use crate::config::{self, LogFormat, OnExit, Settings, UpConfig};
use crate::connect;
use crate::data::{ApiFile, DataFolder, LockedFolder, Works};
use crate::exit::{Failure, Outcome};
use crate::output::{self, Output};
use crate::providers::Plans;

/// The folder of everything that `--ephemeral` makes.
const EPHEMERAL: &str = "ephemeral";

/// Serves until told to end.
pub(crate) async fn run(global: &Global, output: Output, arguments: UpArgs) -> Outcome {
    // All that is wrong with the configuration is told before anything is touched.
    let settings = Settings::resolve(global, &arguments.settings, arguments.ephemeral);
    let settings = settings.map_err(|problems| config::failure(&problems))?;
    let arguments = UpConfig::of(&settings)?;
    let plans = Plans::of(&settings).map_err(|problems| config::failure(&problems))?;
    log_to_stderr(&arguments)?;
    let folder = match settings.path("data") {
        Some(path) => DataFolder::at(path),
        None => connect::data_folder(global)?,
    };
    let is_new = !folder.path().exists();
    let folder = folder.lock(Works::Everything)?;
    let token = folder.ensure_token()?;
    // Before anything is made: what cannot be served leaves nothing.
    let listener = match serve::bind(arguments.listen, "--listen").await {
        Ok(listener) => listener,
        Err(failure) => {
            if is_new {
                folder.remove_unused();
            }
            return Err(failure);
        }
    };
    // From here on a signal is heard, also while the parts are still being put together.
    let mut ends = Ends::listen()?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    machines::clear_ephemeral(&folder, &arguments, &clock).await?;
    let started = tokio::select! {
        started = parts::Parts::start(&folder, &arguments, plans, &clock, output) => match started {
            Ok(started) => started,
            Err(failure) => {
                if is_new {
                    folder.remove_unused();
                }
                return Err(failure);
            }
        },
        () = ends.next() => return Ok(ExitCode::SUCCESS),
    };
    let served = serve::Served::start(&started.plane.api, &folder, &token, listener, None).await;
    let mut served = match served {
        Ok(served) => served,
        Err(failure) => {
            started.shutdown(flames_controller::ShutdownMode::LeaveRunning).await;
            return Err(failure);
        }
    };
    let api = ApiFile::of_this_process(served.address);
    folder.announce(&api)?;
    tell(output, &folder, &api, &started)?;
    let outcome = tokio::select! {
        () = ends.next() => Ok(ExitCode::SUCCESS),
        why = started.host.controller.given_up() => Err(Failure::failed(why)),
        why = served.broke() => Err(Failure::failed(why)),
    };
    let stops = arguments.ephemeral || arguments.on_exit == OnExit::Stop;
    output.say(match stops {
        true => "Ending: VMs are being stopped. Ctrl-C once more ends at once.",
        false => "Ending: VMs run on. Ctrl-C once more ends at once.",
    });
    let mode = match stops {
        true => flames_controller::ShutdownMode::StopAll,
        false => flames_controller::ShutdownMode::LeaveRunning,
    };
    let drained = async {
        folder.withdraw();
        served.shutdown(&started.plane.api).await;
        started.shutdown(mode).await;
    };
    tokio::select! {
        () = drained => {}
        () = ends.next() => {
            folder.withdraw();
            return Ok(ExitCode::from(130));
        }
    }
    if arguments.ephemeral {
        machines::clear_ephemeral(&folder, &arguments, &clock).await?;
    }
    outcome
}

pub(crate) fn log_to_stderr(arguments: &UpConfig) -> Result<(), Failure> {
    let filter = tracing_subscriber::EnvFilter::try_new(&arguments.log).map_err(|error| {
        Failure::usage(format!("setting `log`: `{}` is no filter: {error}", arguments.log))
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let set = match arguments.log_format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
    set.map_err(|error| Failure::failed(format!("Logging cannot be set up: {error}")))
}

fn tell(output: Output, folder: &LockedFolder, api: &ApiFile, started: &parts::Parts) -> Result<(), Failure> {
    let data = folder.folder();
    let url = format!("http://{}", api.address);
    if output.json {
        return output.json_line(&json!({
            "url": url,
            "socket": data.socket_path(),
            "token_file": data.token_path(),
            "data": data.path(),
            "pid": api.pid,
            "driver": started.host.driver,
            "providers": started.plane.names(),
            "ingress": started.plane.ingress_address(),
        }));
    }
    let mut lines = vec![
        format!("Flames {} is up.", api.version),
        format!("  API      {url}   token in {}", data.token_path().display()),
        format!("  socket   {}", data.socket_path().display()),
        format!("  driver   {}", started.host.driver),
        format!("  stores   {}", started.plane.stores()),
    ];
    if let Some(kernel) = &started.host.kernel {
        lines.push(format!("  kernel   {kernel}"));
    }
    lines.push("In another terminal:".to_owned());
    lines.extend(data.named_for_a_shell());
    lines.push("  flames image import debian debian.tar".to_owned());
    lines.push("  flames run debian -- uname -a".to_owned());
    lines.push("Ctrl-C ends it.".to_owned());
    if output.quiet {
        return output::line(url);
    }
    lines.iter().try_for_each(output::line)
}

/// The signals that end it.
pub(crate) struct Ends {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Ends {
    pub(crate) fn listen() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|error| Failure::io("Signals cannot be received", &error));
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    /// Returns at the next one. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
