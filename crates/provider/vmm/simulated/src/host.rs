//! The machine that simulated VMs run on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex};

use flames_clock::{Clock, Random};
use flames_error::{Error, Result};
use flames_vmm::{AgentChannel, Drive, ExitCause, IncarnationName, MachineSpec, NetworkPolicy, Phase};
use tokio::sync::broadcast;

use crate::guest::{GuestOrigin, GuestProgram, GuestShared};
use crate::lock;
use crate::power::PowerState;
use crate::script::{Operation, Script};
use crate::state::{Ending, Life, Place, ResourceUse, Stage, State, saved_memory};
use crate::timings::SimulatedTimings;

/// How many hints of exits a slow listener may fall behind before it loses some.
const HINTS_KEPT: usize = 1_024;

/// What the paths in a spec mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SimulatedFiles {
    /// Nothing: every file named is there and right.
    #[default]
    Imagined,
    /// Files on the real disk: `prepare` looks whether they are there, and whether the kernel is one. Nothing is written.
    OnDisk,
}

/// The most that the machines on a host, prepared or live, may have together; `prepare` answers `Exhausted` beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostCapacity {
    /// Processors.
    pub vcpus: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
}

/// What a simulated host is like.
#[derive(Debug, Clone)]
pub struct SimulatedConfig {
    /// How long things take, at first.
    pub timings: SimulatedTimings,
    /// What runs in the guests. None: connections echo, and a guest obeys its power button.
    pub program: Option<Arc<dyn GuestProgram>>,
    /// How the agent's channel behaves.
    pub agent_channel: AgentChannel,
    /// Whether VMs can be paused.
    pub pause: bool,
    /// Whether they can be saved.
    pub snapshot: bool,
    /// Whether a snapshot can be a diff.
    pub diff_snapshot: bool,
    /// Whether the policy of a tap can be replaced while its guest lives.
    pub live_network_policy: bool,
    /// The most processors of one machine.
    pub max_vcpus: u32,
    /// What fits on the host. None: all.
    pub capacity: Option<HostCapacity>,
    /// What the paths in a spec mean.
    pub files: SimulatedFiles,
    /// How many bytes of each console are kept.
    pub console_limit: usize,
    /// How many bytes each direction of a connection holds.
    pub channel_buffer: usize,
    /// How many destroyed incarnations [`SimulatedHost::lives`] remembers; the oldest are forgotten first.
    pub lives_kept: usize,
}

impl Default for SimulatedConfig {
    fn default() -> Self {
        Self {
            timings: SimulatedTimings::INSTANT,
            program: None,
            agent_channel: AgentChannel::Exclusive,
            pause: true,
            snapshot: true,
            diff_snapshot: true,
            live_network_policy: true,
            max_vcpus: 32,
            capacity: None,
            files: SimulatedFiles::Imagined,
            console_limit: 256 * 1024,
            channel_buffer: 64 * 1024,
            lives_kept: 100_000,
        }
    }
}

/// A machine as it truly is, for checkers.
#[derive(Debug, Clone)]
pub struct MachineView {
    /// Where it is in its life; `Unknown` when `prepare` did not come to its end.
    pub phase: Phase,
    /// What it was prepared as. None when half made.
    pub spec: Option<Arc<MachineSpec>>,
    /// Its monitor's process, while there is one.
    pub pid: Option<u32>,
    /// How its guest came to life, while it lives.
    pub origin: Option<GuestOrigin>,
    /// The memory taken from the guest, in MiB.
    pub balloon_mib: u64,
    /// Its disks, as updated.
    pub drives: Vec<Drive>,
    /// The policy that its tap is under, as updated. None without a tap.
    pub network_policy: Option<NetworkPolicy>,
}

/// A simulated machine room of one: what is on it outlives every driver. Dropping it ends its guests.
#[derive(Debug)]
pub struct SimulatedHost {
    config: SimulatedConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    script: Script,
    pub(crate) timings: Mutex<SimulatedTimings>,
    pub(crate) state: Mutex<State>,
    pub(crate) hints: broadcast::Sender<IncarnationName>,
}

impl SimulatedHost {
    /// An empty host.
    pub fn new(config: SimulatedConfig, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Arc<Self> {
        let (timings, state) = (Mutex::new(config.timings), Mutex::new(State::new()));
        let (hints, _) = broadcast::channel(HINTS_KEPT);
        Arc::new(Self { config, clock, random, script: Script::default(), timings, state, hints })
    }

    /// What it is like.
    pub fn config(&self) -> &SimulatedConfig {
        &self.config
    }

    /// By which rules it misbehaves.
    pub fn script(&self) -> &Script {
        &self.script
    }

    /// Changes how long things take from now on.
    pub fn set_timings(&self, timings: SimulatedTimings) {
        *lock(&self.timings) = timings;
    }

    /// Kills a monitor from outside. False when none runs.
    pub fn crash_vm(&self, name: &IncarnationName) -> bool {
        self.end(name, None, Ending::crashed(None))
    }

    /// Makes a running guest power itself off. False when none runs (a paused one cannot).
    pub fn power_off_guest(&self, name: &IncarnationName) -> bool {
        let runs = self.machine(name).is_some_and(|machine| machine.phase == Phase::Running);
        runs && self.end(name, None, Ending::guest())
    }

    /// The host loses its power and comes back: every monitor is gone, what is on its disk stays. Drop its drivers first, as a
    /// real one would take them along; with none there, nobody knows afterwards why the VMs ended.
    pub fn reboot(&self) {
        for name in self.running() {
            self.end(
                &name,
                None,
                Ending { cause: ExitCause::Unknown, code: None, signal: None, message: None },
            );
        }
    }

    /// The incarnations whose monitor is alive: starting, running or paused.
    pub fn running(&self) -> Vec<IncarnationName> {
        let state = lock(&self.state);
        let is_live =
            |place: &Place| matches!(place, Place::Made(machine) if matches!(machine.stage, Stage::Live(_)));
        state.places.iter().filter(|(_, place)| is_live(place)).map(|(name, _)| name.clone()).collect()
    }

    /// All incarnations of which anything is there, with their true phase.
    pub fn phases(&self) -> BTreeMap<IncarnationName, Phase> {
        let state = lock(&self.state);
        let phase = |place: &Place| match place {
            Place::Made(machine) => machine.phase(),
            Place::HalfMade => Phase::Unknown,
        };
        state.places.iter().map(|(name, place)| (name.clone(), phase(place))).collect()
    }

    /// One machine as it truly is.
    pub fn machine(&self, name: &IncarnationName) -> Option<MachineView> {
        let state = lock(&self.state);
        let Place::Made(machine) = state.places.get(name)? else {
            return Some(MachineView {
                phase: Phase::Unknown,
                spec: None,
                pid: None,
                origin: None,
                balloon_mib: 0,
                drives: Vec::new(),
                network_policy: None,
            });
        };
        let guest = match &machine.stage {
            Stage::Live(guest) => Some(guest),
            Stage::Prepared | Stage::Exited { .. } => None,
        };
        Some(MachineView {
            phase: machine.phase(),
            spec: Some(Arc::clone(&machine.spec)),
            pid: guest.map(|_| machine.pid),
            origin: guest.map(|guest| guest.origin.clone()),
            balloon_mib: machine.balloon_mib,
            drives: machine.drives.clone(),
            network_policy: machine.network_policy.clone(),
        })
    }

    /// What each incarnation did here, up to the limit of [`SimulatedConfig::lives_kept`].
    pub fn lives(&self) -> BTreeMap<IncarnationName, Life> {
        lock(&self.state).lives.clone()
    }

    /// What one incarnation did here.
    pub fn life(&self, name: &IncarnationName) -> Life {
        lock(&self.state).lives.get(name).cloned().unwrap_or_default()
    }

    /// Incarnations whose monitor was started more than once: there must never be one.
    pub fn started_twice(&self) -> Vec<IncarnationName> {
        let state = lock(&self.state);
        state.lives.iter().filter(|(_, life)| life.starts > 1).map(|(name, _)| name.clone()).collect()
    }

    /// Addresses that a machine was made with while another had them, in words: there must never be one.
    pub fn addresses_given_twice(&self) -> Vec<String> {
        let state = lock(&self.state);
        let told = |(address, one, other): &(std::net::IpAddr, IncarnationName, IncarnationName)| {
            format!("{address}: {one} and {other}")
        };
        state.address_conflicts.iter().map(told).collect()
    }

    /// What the live machines use.
    pub fn resource_use(&self) -> ResourceUse {
        lock(&self.state).used
    }

    /// The most that the live machines ever used, each figure for itself.
    pub fn peak_use(&self) -> ResourceUse {
        lock(&self.state).peak
    }

    /// Everything that is left on the host, in words: nothing once all incarnations were destroyed.
    pub fn residue(&self) -> Vec<String> {
        let phases = self.phases();
        let places = phases.iter().map(|(name, phase)| format!("incarnation {name} ({phase:?})"));
        let state = lock(&self.state);
        let files = state.snapshots.keys().chain(state.files.keys());
        places.chain(files.map(|path| format!("file {}", path.display()))).collect()
    }

    /// The content of a file on the host, as far as it has to do with saved guests: one that was saved here, or was brought here.
    pub fn read_file(&self, path: &Path) -> Option<Vec<u8>> {
        let state = lock(&self.state);
        if let Some(bytes) = state.files.get(path) {
            return Some(bytes.clone());
        }
        if let Some(saved) = state.snapshots.get(path) {
            return Some(saved.to_bytes());
        }
        let state_file = path.with_file_name("state");
        let saved =
            path.file_name().filter(|name| *name == "memory").and_then(|_| state.snapshots.get(&state_file));
        saved.map(|saved| saved_memory(saved.base.is_some()))
    }

    /// Brings a file to the host, in place of the one that is there.
    pub fn write_file(&self, path: &Path, content: Vec<u8>) {
        lock(&self.state).files.insert(path.to_owned(), content);
    }

    /// Removes the files below a path that were brought to the host.
    pub fn remove_files(&self, below: &Path) {
        lock(&self.state).files.retain(|path, _| !path.starts_with(below));
    }

    /// The files that were brought to the host.
    pub fn files(&self) -> Vec<std::path::PathBuf> {
        lock(&self.state).files.keys().cloned().collect()
    }

    /// Notes that a machine's monitor is gone, and lets everything that hangs on it know.
    pub(crate) fn end(
        &self,
        name: &IncarnationName,
        only: Option<&Arc<GuestShared>>,
        ending: Ending,
    ) -> bool {
        let ended = lock(&self.state).ended(name, only, ending, self.clock.now());
        let Some(guest) = ended else { return false };
        guest.power.set(PowerState::Gone);
        lock(&guest.host_ports).clear();
        lock(&guest.listeners).clear();
        if !self.script.plan(Operation::Exits, Some(name), self.random.as_ref()).hint_lost {
            // With nobody listening there is nobody to tell.
            let _ = self.hints.send(name.clone());
        }
        true
    }

    pub(crate) fn check_files(&self, spec: &MachineSpec) -> Result<()> {
        const OPERATION: &str = "vmm.prepare";
        if self.config.files == SimulatedFiles::Imagined {
            return Ok(());
        }
        let named = spec.boot.initramfs.iter().chain(spec.drives.iter().map(|drive| &drive.path));
        for path in std::iter::once(&spec.boot.kernel).chain(named) {
            if !path.is_file() {
                return Err(Error::not_found(OPERATION, "file", path.display().to_string()));
            }
        }
        if is_kernel(&spec.boot.kernel) {
            Ok(())
        } else {
            Err(Error::invalid(OPERATION, "boot.kernel", "The kernel is neither an ELF file nor a bzImage."))
        }
    }
}

/// ELF's magic, or that of the Linux boot protocol's header (Documentation/arch/x86/boot.rst, offset 0x202).
fn is_kernel(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(0x206).read_to_end(&mut start));
    read.is_ok() && (start.starts_with(b"\x7fELF") || start.get(0x202..0x206) == Some(b"HdrS"))
}

impl Drop for SimulatedHost {
    fn drop(&mut self) {
        for place in lock(&self.state).places.values() {
            if let Place::Made(machine) = place
                && let Stage::Live(guest) = &machine.stage
            {
                guest.power.set(PowerState::Gone);
            }
        }
    }
}
