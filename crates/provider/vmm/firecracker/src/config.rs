//! What the driver is told at its start.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flames_error::{Error, Result};
use flames_firecracker_jail::{JailConfig, Watchdog};
use flames_firecracker_network::NetworkConfig;
use flames_host::process::find_program;
use flames_vmm::IncarnationName;
use flames_vmm_local::ConsoleLimits;
use serde_json::Value;

/// How long each kind of call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// From the start of the jailer to an API that answers.
    pub start: Duration,
    /// One quick call of the API, one connection to a guest.
    pub command: Duration,
    /// To boot a machine, to pause or to resume one.
    pub machine: Duration,
    /// To save a guest, or to load one.
    pub snapshot: Duration,
    /// From the kill of a process to its end.
    pub kill: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(10),
            command: Duration::from_secs(5),
            machine: Duration::from_secs(30),
            snapshot: Duration::from_secs(300),
            kill: Duration::from_secs(10),
        }
    }
}

/// The driver's settings.
#[derive(Debug, Clone)]
pub struct FirecrackerConfig {
    /// The folder of the incarnations' records, consoles and snapshots; of this driver alone. Made (0700) when absent. Best on the file
    /// system of the jails: what is saved is then moved, and what is loaded is linked.
    pub folder: PathBuf,
    /// The jails: where they are, whose, which programs, which users.
    pub jail: JailConfig,
    /// The networks. None: guests have no network.
    pub network: Option<NetworkConfig>,
    /// A custom CPU template (`docs/cpu_templates/cpu-templates.md` of Firecracker), for every machine that is booted. Hosts that give
    /// snapshots to each other need the same.
    pub cpu_template: Option<Value>,
    /// The kernel's arguments, before those of the machine.
    pub boot_arguments: Vec<String>,
    /// Whether written pages are remembered, which makes diff snapshots small and costs the guest a fault for each page that it first
    /// writes after a snapshot. Without it a diff holds all that is resident.
    pub track_dirty_pages: bool,
    /// The most bytes of one guest's console that are kept on disk. At least 8 KiB.
    pub console_log_limit: u64,
    /// How many bytes a second of one guest's console are taken. What is beyond is dropped.
    pub console_bytes_per_second: u64,
    /// Kills a monitor whose API does not answer any more. None: it is let be.
    pub watchdog: Option<Watchdog>,
    /// How long calls may take.
    pub deadlines: Deadlines,
    /// How many monitors wait for their machines: each is a jail, a slot, a process of some 3 MiB and its copy of Firecracker's program (4 MiB,
    /// on disk and in the page cache). A start that finds one takes neither the jailer's time nor Firecracker's own; beyond them, and for machines
    /// whose files are on another file system than the jails, all is made as it is needed. They are made while nothing starts, from the first
    /// `adopt` or `prepare` on, and removed with the driver, or by the next driver's `adopt`. At most 256.
    pub spare_monitors: usize,
    /// Told when an incarnation's start comes so far; for whoever measures.
    pub milestones: Option<Milestones>,
}

/// How far a start is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Milestone {
    /// All is made, and Firecracker is told next to load a snapshot.
    Load,
    /// All is made, and Firecracker is told next to let the guest run, for the first time.
    Run,
}

/// What is called at a milestone, in the middle of the start: it must return at once.
pub type AtMilestone = dyn Fn(&IncarnationName, Milestone) + Send + Sync;

/// See [`AtMilestone`].
#[derive(Clone)]
pub struct Milestones(pub Arc<AtMilestone>);

impl fmt::Debug for Milestones {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Milestones(..)")
    }
}

/// The environment variables that name the programs, before `PATH` is asked.
const FIRECRACKER: (&str, &str) = ("FLAMES_FIRECRACKER", "firecracker");
const JAILER: (&str, &str) = ("FLAMES_JAILER", "jailer");

impl FirecrackerConfig {
    /// Defaults for a cluster: jails below `<folder>/jails`, no network, a console of 1 MiB, written pages remembered, the watchdog on. The
    /// programs are those that `FLAMES_FIRECRACKER` and `FLAMES_JAILER` name, else those on `PATH`.
    pub fn new(folder: impl Into<PathBuf>, cluster: impl Into<String>) -> Self {
        let folder = folder.into();
        let mut jail = JailConfig::new(folder.join("jails"), cluster);
        if let Some(path) = program(FIRECRACKER) {
            jail.firecracker = path;
        }
        if let Some(path) = program(JAILER) {
            jail.jailer = path;
        }
        Self {
            folder: folder.join("incarnations"),
            jail,
            network: None,
            cpu_template: None,
            boot_arguments: BOOT_ARGUMENTS.iter().map(|word| (*word).to_owned()).collect(),
            track_dirty_pages: true,
            console_log_limit: 1024 * 1024,
            console_bytes_per_second: 1024 * 1024,
            watchdog: Some(Watchdog::default()),
            deadlines: Deadlines::default(),
            spare_monitors: 0,
            milestones: None,
        }
    }

    pub(crate) fn console(&self) -> ConsoleLimits {
        ConsoleLimits { on_disk: self.console_log_limit, bytes_per_second: self.console_bytes_per_second }
    }

    /// Errors: `InvalidInput`, with the field.
    pub(crate) fn validate(&self) -> Result<()> {
        const OPERATION: &str = "vmm.new";
        let refuse = |field: &'static str, sentence: &str| Err(Error::invalid(OPERATION, field, sentence));
        self.console().check()?;
        if !self.folder.is_absolute() || self.folder.to_str().is_none() {
            return refuse("folder", "The folder's path must be absolute and valid UTF-8.");
        }
        if self.boot_arguments.iter().any(|word| !crate::machine::is_argument(word)) {
            return refuse("boot_arguments", crate::machine::ARGUMENT_SENTENCE);
        }
        if self.spare_monitors > crate::spares::MOST {
            return refuse("spare_monitors", "At most 256 monitors wait for their machines.");
        }
        self.jail.validate()?;
        self.network.as_ref().map_or(Ok(()), NetworkConfig::validate)
    }
}

/// The kernel's arguments of every machine: the console; what ends the machine at a reboot and after a panic (Firecracker's
/// `docs/getting-started.md`); no probing of keyboard parts that are not there.
const BOOT_ARGUMENTS: [&str; 6] =
    ["console=ttyS0", "reboot=k", "panic=1", "8250.nr_uarts=1", "i8042.noaux", "i8042.nomux"];

fn program((variable, name): (&str, &str)) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let found = match &named {
        Some(path) => find_program(path),
        None => find_program(Path::new(name)),
    };
    // What is named is told as missing under its own name.
    found.or(named).map(|path| std::path::absolute(&path).unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused_with_their_field() {
        let good = || FirecrackerConfig::new("/srv/flames", "clu1");
        good().validate().unwrap();
        let wrong = [
            ("console_log_limit", FirecrackerConfig { console_log_limit: 100, ..good() }),
            ("console_bytes_per_second", FirecrackerConfig { console_bytes_per_second: 1, ..good() }),
            ("folder", FirecrackerConfig { folder: "here".into(), ..good() }),
            ("spare_monitors", FirecrackerConfig { spare_monitors: 257, ..good() }),
            ("boot_arguments", FirecrackerConfig { boot_arguments: vec!["a\nb".into()], ..good() }),
        ];
        for (field, config) in wrong {
            assert_eq!(config.validate().unwrap_err().field(), Some(field));
        }
    }
}
