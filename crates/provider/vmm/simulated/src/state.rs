//! What is on a simulated host.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use flames_clock::Timestamp;
use flames_error::{Error, ErrorKind, Result};
use flames_vmm::{
    Drive, Exit, ExitCause, IncarnationName, MachineSpec, NetworkPolicy, NetworkSpec, Observation, Phase,
    Prepared, SecretBytes,
};

use crate::console::ConsoleLog;
use crate::guest::GuestShared;
use crate::host::HostCapacity;
use crate::power::PowerState;

/// What the driver picks ports from when asked for any: behind the well-known ones, so that a wish for a fixed port is rarely met
/// by one that was picked.
const FIRST_PICKED_PORT: u16 = 20_000;

/// What one incarnation did on a host, kept after it was destroyed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Life {
    /// How often it was made (repeated calls that changed nothing are not counted).
    pub prepares: u32,
    /// How often its monitor was started.
    pub starts: u32,
    /// How often its monitor ended.
    pub exits: u32,
    /// How it ended last, as it truly was, also when no driver saw it.
    pub last_exit: Option<ExitCause>,
    /// How often it was destroyed.
    pub destroys: u32,
}

/// What the live machines of a host use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResourceUse {
    /// Live machines: starting, running or paused.
    pub machines: u64,
    /// Their processors.
    pub vcpus: u64,
    /// Their memory in MiB.
    pub memory_mib: u64,
}

impl ResourceUse {
    fn add(&mut self, spec: &MachineSpec) {
        self.machines += 1;
        self.vcpus += u64::from(spec.vcpus);
        self.memory_mib += spec.memory_mib;
    }

    fn remove(&mut self, spec: &MachineSpec) {
        self.machines -= 1;
        self.vcpus -= u64::from(spec.vcpus);
        self.memory_mib -= spec.memory_mib;
    }

    fn most(self, other: Self) -> Self {
        Self {
            machines: self.machines.max(other.machines),
            vcpus: self.vcpus.max(other.vcpus),
            memory_mib: self.memory_mib.max(other.memory_mib),
        }
    }
}

/// How a machine ends.
#[derive(Debug, Clone)]
pub(crate) struct Ending {
    pub(crate) cause: ExitCause,
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) message: Option<String>,
}

impl Ending {
    /// Killed by `stop` or `destroy`.
    pub(crate) fn killed() -> Self {
        Self { cause: ExitCause::Stopped, code: None, signal: Some(9), message: None }
    }

    /// Killed from outside.
    pub(crate) fn crashed(message: Option<String>) -> Self {
        Self { cause: ExitCause::Crashed, code: None, signal: Some(9), message }
    }
}

#[derive(Debug)]
pub(crate) enum Place {
    /// `prepare` is under way, or was given up.
    HalfMade,
    Made(Box<Machine>),
}

#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) spec: Arc<MachineSpec>,
    pub(crate) prepared: Prepared,
    pub(crate) stage: Stage,
    pub(crate) pid: u32,
    pub(crate) stop_requested: bool,
    pub(crate) console: Arc<Mutex<ConsoleLog>>,
    pub(crate) balloon_mib: u64,
    pub(crate) drives: Vec<Drive>,
    pub(crate) network_policy: Option<NetworkPolicy>,
}

#[derive(Debug)]
pub(crate) enum Stage {
    Prepared,
    Live(Arc<GuestShared>),
    Exited {
        exit: Exit,
        /// Whether a driver has seen it.
        seen: bool,
    },
}

impl Machine {
    /// A machine that nothing was prepared for yet.
    pub(crate) fn new(spec: &MachineSpec, console_limit: usize) -> Self {
        Self {
            spec: Arc::new(spec.clone()),
            prepared: Prepared::default(),
            stage: Stage::Prepared,
            pid: 0,
            stop_requested: false,
            console: Arc::new(Mutex::new(ConsoleLog::new(console_limit))),
            balloon_mib: 0,
            drives: spec.drives.clone(),
            network_policy: match &spec.network {
                NetworkSpec::Tap { policy, .. } => Some(policy.clone()),
                NetworkSpec::None | NetworkSpec::User { .. } => None,
            },
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        match &self.stage {
            Stage::Prepared => Phase::Prepared,
            Stage::Exited { .. } => Phase::Exited,
            Stage::Live(guest) => match guest.power.state() {
                PowerState::Starting => Phase::Starting,
                PowerState::Running => Phase::Running,
                PowerState::Paused => Phase::Paused,
                PowerState::Gone => Phase::Exited,
            },
        }
    }

    fn observe(&mut self, now: Timestamp) -> Observation {
        if let Stage::Exited { exit, seen: seen @ false } = &mut self.stage {
            exit.at = now;
            *seen = true;
        }
        let (exit, pid) = match &self.stage {
            Stage::Prepared => (None, None),
            Stage::Live(_) => (None, Some(self.pid)),
            Stage::Exited { exit, .. } => (Some(exit.clone()), None),
        };
        Observation { phase: self.phase(), exit, pid, prepared: self.prepared.clone() }
    }
}

/// A saved guest.
#[derive(Debug, Clone)]
pub(crate) struct SavedGuest {
    pub(crate) of: IncarnationName,
    pub(crate) name: String,
    /// The snapshot that this one builds on.
    pub(crate) base: Option<PathBuf>,
    /// The configuration that the guest was started with: it holds it in its memory.
    pub(crate) config: SecretBytes,
}

/// What guests hold in their memory: all the same, but for what they were told.
pub(crate) fn guest_memory() -> Vec<u8> {
    b"what every guest has in its memory\n".repeat(64)
}

/// The memory file of a snapshot: of a diff, what was written since its base, and zeros.
pub(crate) fn saved_memory(is_diff: bool) -> Vec<u8> {
    let mut memory = guest_memory();
    if is_diff {
        memory[..1024].fill(0);
        memory[1100..].fill(0);
    }
    memory
}

/// What a file with a saved guest begins with.
const SAVED: &str = "simulated guest 1";

impl SavedGuest {
    /// As the content of a file.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{SAVED}\n{}\n{}\n", self.of, self.name).into_bytes();
        bytes.extend_from_slice(&self.config.0);
        bytes
    }

    /// What [`SavedGuest::to_bytes`] wrote; none when it is something else.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut lines = bytes.splitn(4, |byte| *byte == b'\n');
        let mut text = || std::str::from_utf8(lines.next()?).ok();
        let (magic, of, name) = (text()?, text()?, text()?);
        let (of, name) = (IncarnationName::new(of).ok()?, name.to_owned());
        let config = SecretBytes(lines.next()?.to_vec());
        (magic == SAVED).then_some(Self { of, name, base: None, config })
    }
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) places: BTreeMap<IncarnationName, Place>,
    pub(crate) snapshots: BTreeMap<PathBuf, SavedGuest>,
    /// The snapshot that was taken last of each, whether its files are there or not.
    pub(crate) latest: BTreeMap<IncarnationName, PathBuf>,
    /// Files that were brought here from elsewhere.
    pub(crate) files: BTreeMap<PathBuf, Vec<u8>>,
    /// How many drivers are there to see an exit.
    pub(crate) drivers: usize,
    pub(crate) used: ResourceUse,
    pub(crate) peak: ResourceUse,
    /// What is promised to machines that have not exited, started or not.
    reserved: ResourceUse,
    ports: BTreeSet<u16>,
    next_port: u16,
    next_pid: u32,
    pub(crate) lives: BTreeMap<IncarnationName, Life>,
    destroyed: VecDeque<IncarnationName>,
    /// Addresses that a machine was made with while another had them, with both names.
    pub(crate) address_conflicts: Vec<(IpAddr, IncarnationName, IncarnationName)>,
}

impl State {
    pub(crate) fn new() -> Self {
        Self {
            places: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            latest: BTreeMap::new(),
            files: BTreeMap::new(),
            drivers: 0,
            used: ResourceUse::default(),
            peak: ResourceUse::default(),
            reserved: ResourceUse::default(),
            ports: BTreeSet::new(),
            next_port: FIRST_PICKED_PORT,
            next_pid: 1_000,
            lives: BTreeMap::new(),
            destroyed: VecDeque::new(),
            address_conflicts: Vec::new(),
        }
    }

    /// The machine of this name. `NotFound` also for one that is only half made.
    pub(crate) fn machine(
        &mut self,
        operation: &'static str,
        name: &IncarnationName,
    ) -> Result<&mut Machine> {
        match self.places.get_mut(name) {
            Some(Place::Made(machine)) => Ok(machine),
            Some(Place::HalfMade) | None => Err(Error::not_found(operation, "incarnation", name.as_str())),
        }
    }

    /// The guest of this name, running or paused.
    pub(crate) fn live(
        &mut self,
        operation: &'static str,
        name: &IncarnationName,
    ) -> Result<Arc<GuestShared>> {
        let machine = self.machine(operation, name)?;
        match (machine.phase(), &machine.stage) {
            (Phase::Running | Phase::Paused, Stage::Live(guest)) => Ok(Arc::clone(guest)),
            (phase, _) => Err(not_in_phase(operation, name, phase)),
        }
    }

    pub(crate) fn observe(&mut self, name: &IncarnationName, now: Timestamp) -> Option<Observation> {
        Some(match self.places.get_mut(name)? {
            Place::Made(machine) => machine.observe(now),
            Place::HalfMade => {
                Observation { phase: Phase::Unknown, exit: None, pid: None, prepared: Prepared::default() }
            }
        })
    }

    /// Makes the machine. On an error nothing of it is there.
    pub(crate) fn make(
        &mut self,
        name: &IncarnationName,
        mut machine: Box<Machine>,
        capacity: Option<HostCapacity>,
    ) -> Result<Prepared> {
        const OPERATION: &str = "vmm.prepare";
        let spec = &machine.spec;
        self.places.remove(name);
        let mut reserved = self.reserved;
        reserved.add(spec);
        if capacity.is_some_and(|most| reserved.vcpus > most.vcpus || reserved.memory_mib > most.memory_mib) {
            return Err(Error::new(ErrorKind::Exhausted, OPERATION, "the host is full"));
        }
        let prepared = Prepared { forwards: self.take_ports(spec)? };
        self.reserved = reserved;
        self.note_address(name, spec);
        self.lives.entry(name.clone()).or_default().prepares += 1;
        machine.prepared = prepared.clone();
        self.places.insert(name.clone(), Place::Made(machine));
        Ok(prepared)
    }

    /// Notes whether another machine has the address that this one is made with.
    fn note_address(&mut self, name: &IncarnationName, spec: &MachineSpec) {
        let NetworkSpec::Tap { address: (address, _), .. } = spec.network else { return };
        let has_it = |machine: &Machine| {
            let gone = matches!(machine.phase(), Phase::Exited);
            !gone
                && matches!(machine.spec.network, NetworkSpec::Tap { address: (other, _), .. } if other == address)
        };
        let holder = self.places.iter().find_map(|(other, place)| match place {
            Place::Made(machine) if has_it(machine) => Some(other.clone()),
            _ => None,
        });
        if let Some(holder) = holder {
            self.address_conflicts.push((address, holder, name.clone()));
        }
    }

    fn take_ports(&mut self, spec: &MachineSpec) -> Result<BTreeMap<u16, SocketAddr>> {
        let NetworkSpec::User { forwards, .. } = &spec.network else { return Ok(BTreeMap::new()) };
        let mut taken = BTreeMap::new();
        for forward in forwards {
            let wished = forward.listen.port();
            let port = if wished == 0 { self.pick_port() } else { Some(wished) };
            let Some(port) = port.filter(|port| self.ports.insert(*port)) else {
                for address in taken.values() {
                    self.ports.remove(&SocketAddr::port(address));
                }
                let error = Error::new(ErrorKind::Exhausted, "vmm.prepare", "the port is taken");
                return Err(error.with_context("port", wished));
            };
            taken.insert(forward.guest_port, SocketAddr::new(forward.listen.ip(), port));
        }
        Ok(taken)
    }

    fn pick_port(&mut self) -> Option<u16> {
        let candidates = (self.next_port..=u16::MAX).chain(FIRST_PICKED_PORT..self.next_port);
        let port = candidates.into_iter().find(|port| !self.ports.contains(port))?;
        self.next_port = port.checked_add(1).unwrap_or(FIRST_PICKED_PORT);
        Some(port)
    }

    /// Notes that the machine's monitor runs now.
    pub(crate) fn started(&mut self, name: &IncarnationName, guest: Arc<GuestShared>) {
        let Some(Place::Made(machine)) = self.places.get_mut(name) else { return };
        machine.stage = Stage::Live(guest);
        machine.pid = self.next_pid;
        self.next_pid = self.next_pid.checked_add(1).unwrap_or(1_000);
        self.used.add(&machine.spec);
        self.peak = self.peak.most(self.used);
        self.lives.entry(name.clone()).or_default().starts += 1;
    }

    /// Notes that the machine's monitor is gone, and gives back its guest. None when it does not run, or is another than `only`.
    pub(crate) fn ended(
        &mut self,
        name: &IncarnationName,
        only: Option<&Arc<GuestShared>>,
        ending: Ending,
        now: Timestamp,
    ) -> Option<Arc<GuestShared>> {
        let Some(Place::Made(machine)) = self.places.get_mut(name) else { return None };
        let Stage::Live(guest) = &machine.stage else { return None };
        if only.is_some_and(|only| !Arc::ptr_eq(only, guest)) {
            return None;
        }
        let guest = Arc::clone(guest);
        let cause = match ending.cause {
            ExitCause::Guest if machine.stop_requested => ExitCause::Stopped,
            cause => cause,
        };
        let seen = self.drivers > 0;
        let exit = if seen {
            Exit { cause, code: ending.code, signal: ending.signal, at: now, message: ending.message }
        } else {
            Exit { cause: ExitCause::Unknown, code: None, signal: None, at: now, message: None }
        };
        machine.stage = Stage::Exited { exit, seen };
        self.used.remove(&machine.spec);
        self.reserved.remove(&machine.spec);
        let life = self.lives.entry(name.clone()).or_default();
        life.exits += 1;
        life.last_exit = Some(cause);
        Some(guest)
    }

    /// Removes what is there and does not run. False when it runs.
    pub(crate) fn remove(&mut self, name: &IncarnationName, lives_kept: usize) -> bool {
        match self.places.get(name) {
            None => return true,
            Some(Place::HalfMade) => {}
            Some(Place::Made(machine)) => match machine.stage {
                Stage::Live(_) => return false,
                Stage::Prepared => self.reserved.remove(&machine.spec),
                Stage::Exited { .. } => {}
            },
        }
        if let Some(Place::Made(machine)) = self.places.remove(name) {
            for address in machine.prepared.forwards.values() {
                self.ports.remove(&address.port());
            }
        }
        self.snapshots.retain(|_, saved| saved.of != *name);
        self.latest.remove(name);
        self.lives.entry(name.clone()).or_default().destroys += 1;
        self.destroyed.push_back(name.clone());
        while self.destroyed.len() > lives_kept {
            if let Some(oldest) =
                self.destroyed.pop_front().filter(|oldest| !self.places.contains_key(oldest))
            {
                self.lives.remove(&oldest);
            }
        }
        true
    }

    /// Whether what was brought here as a guest's memory is one.
    pub(crate) fn is_memory_whole(&self, memory: Option<&std::path::Path>) -> bool {
        memory.and_then(|path| self.files.get(path)).is_none_or(|content| *content == guest_memory())
    }

    /// Whether the snapshot and all that it builds on are there.
    pub(crate) fn is_whole(&self, path: &PathBuf) -> bool {
        let mut next = Some(path);
        while let Some(path) = next {
            let Some(saved) = self.snapshots.get(path) else { return false };
            next = saved.base.as_ref();
        }
        true
    }
}

pub(crate) fn not_in_phase(operation: &'static str, name: &IncarnationName, phase: Phase) -> Error {
    Error::new(ErrorKind::Conflict, operation, "the VM is in another phase")
        .with_resource("incarnation", name.as_str())
        .with_context("phase", format!("{phase:?}"))
}
