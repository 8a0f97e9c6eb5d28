//! What PID 1 does: everything before the workload, and the end of the VM. Each step that fails ends the boot with
//! one line on the console.

mod drives;
mod modules;
mod mounts;
pub(crate) mod network;
mod power;

use std::time::Duration;

use flames_guest_protocol::GuestConfig;
use flames_guest_protocol::message::BootStep;

pub use drives::find_config;
pub use power::{end_everything, fatal, restart};

use crate::clock;

/// How long each device may take to appear.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(15);

/// What the boot hands to the agent.
#[derive(Debug)]
pub struct Booted {
    /// The configuration from the config drive.
    pub config: GuestConfig,
    /// When each step was done.
    pub steps: Vec<BootStep>,
    /// The file systems to make read-only at the end, the topmost first.
    pub roots: mounts::Roots,
}

/// Why the boot ended: one line for the console.
pub type BootResult<T> = Result<T, String>;

/// Boots: kernel file systems, modules, config drive, root, names, network. Blocks; call it before a runtime.
///
/// Errors: what could not be done, in one line.
pub fn run() -> BootResult<Booted> {
    let mut steps = Vec::new();
    let mut done = |name: &str| {
        steps.push(BootStep { name: name.to_owned(), uptime_ms: clock::uptime_ms() });
    };
    done("start");
    mounts::kernel_file_systems()?;
    // What PID 1 has in its memory is not the workload's to read.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    modules::load_all()?;
    done("modules");
    let config = find_config(DEVICE_TIMEOUT)?;
    done("config");
    if config.epoch_ms > 0 {
        clock::set_ms(config.epoch_ms).map_err(|error| format!("set the clock: {error}"))?;
    }
    let roots = match &config.root {
        Some(root) => mounts::switch_root(root, DEVICE_TIMEOUT)?,
        None => mounts::stay()?,
    };
    done("root");
    if !config.hostname.is_empty() {
        rustix::system::sethostname(config.hostname.as_bytes())
            .map_err(|error| format!("set the host name {:?}: {error}", config.hostname))?;
    }
    network::loopback()?;
    if let Some(network) = &config.network {
        network::configure(network, DEVICE_TIMEOUT)?;
    }
    network::write_files(&config.hostname, config.network.as_ref());
    done("network");
    Ok(Booted { config, steps, roots })
}

/// Looks until `find` has something or the time is over.
fn wait_for<T>(limit: Duration, mut find: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = std::time::Instant::now() + limit;
    loop {
        if let Some(found) = find() {
            return Some(found);
        }
        if std::time::Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
