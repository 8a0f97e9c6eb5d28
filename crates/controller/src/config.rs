//! What a controller is told about itself, and how long things may take.

use std::time::Duration;

use flames_model::{AddressBlock, Labels, Resources, VmName};

/// What a controller does when it is not let in: its name is taken, or it cannot prove itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Refused {
    /// It tries on: somebody may set it right.
    #[default]
    TryOn,
    /// It stops, and says why. Its VMs run on.
    Stop,
}

/// What a controller does when another process has registered as it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Superseded {
    /// It registers again a few times, since an answer that was lost on the way looks the same; then it stops, and says so. Its VMs run on.
    #[default]
    Stop,
    /// It registers again, always. For a controller inside the process that serves the API, where there can be no other.
    RegisterAgain,
}

/// What a controller is told about itself.
#[derive(Debug, Clone)]
pub struct ControllerConfig {
    /// Its name.
    pub name: VmName,
    /// What it is chosen by.
    pub labels: Labels,
    /// What it offers; see [`crate::detect_capacity`].
    pub capacity: Resources,
    /// Where its guests have their addresses from: the block that its driver was given too. None: they have none of their own.
    pub address_block: Option<AddressBlock>,
    /// What it does when another process has registered as it.
    pub superseded: Superseded,
    /// What it does when it is not let in.
    pub refused: Refused,
    /// How long things may take, and how often things happen.
    pub timings: Timings,
    /// What it keeps and does at most.
    pub bounds: Bounds,
}

impl ControllerConfig {
    /// The defaults for a host of this name that offers this much.
    pub fn new(name: VmName, capacity: Resources) -> Self {
        Self {
            name,
            labels: Labels::default(),
            capacity,
            address_block: None,
            superseded: Superseded::default(),
            refused: Refused::default(),
            timings: Timings::default(),
            bounds: Bounds::default(),
        }
    }
}

/// How long things may take, and how often things happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// From the start of a machine until its agent must have answered.
    pub agent_ready: Duration,
    /// All of making an incarnation's image, disk and machine, retries among it.
    pub prepare: Duration,
    /// All of making an incarnation that is loaded from a snapshot: what is fetched may be large.
    pub restore: Duration,
    /// Saving a guest, while it stands still.
    pub save: Duration,
    /// Storing what was saved, retries among it.
    pub store: Duration,
    /// One call of the driver. Stopping may take its grace on top.
    pub driver_call: Duration,
    /// One call of the API. A long-poll may take its wait on top.
    pub api_call: Duration,
    /// One operation on a guest's agent.
    pub guest_call: Duration,
    /// How long a long-poll waits.
    pub long_poll: Duration,
    /// How often everything assigned is read anew and reported anew, so that nothing lost on the way stays lost.
    pub resync: Duration,
    /// How often a machine is looked at when no hint of its exit comes.
    pub observe: Duration,
    /// How often a machine that is being ended is looked at.
    pub observe_ending: Duration,
    /// How long the power button may take, once the agent has been asked, before the machine is killed.
    pub power_off_grace: Duration,
    /// How long the agent may take to end the guest after the workload's end.
    pub guest_shutdown: Duration,
    /// How long a machine may be in a phase that the driver cannot tell, before it is given up.
    pub unknown_phase: Duration,
    /// How long a machine that nobody knows is left alone.
    pub stray_grace: Duration,
    /// The first wait before something that failed is tried again; doubled each time, with jitter.
    pub backoff_first: Duration,
    /// The longest such wait.
    pub backoff_most: Duration,
    /// How long a shutdown that ends all VMs may take. What has not ended then is taken up by the next controller over the folder.
    pub shutdown_stop: Duration,
    /// How long a shutdown waits for reports to be taken.
    pub shutdown_reports: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            agent_ready: seconds(60),
            prepare: seconds(600),
            restore: seconds(3_600),
            save: seconds(600),
            store: seconds(4 * 3_600),
            driver_call: seconds(60),
            api_call: seconds(15),
            guest_call: seconds(10),
            long_poll: seconds(25),
            resync: seconds(300),
            observe: seconds(15),
            observe_ending: Duration::from_millis(500),
            power_off_grace: seconds(5),
            guest_shutdown: seconds(5),
            unknown_phase: seconds(30),
            stray_grace: seconds(60),
            backoff_first: Duration::from_millis(100),
            backoff_most: seconds(10),
            // The longest grace of a VM is an hour.
            shutdown_stop: seconds(3_600 + 120),
            shutdown_reports: seconds(5),
        }
    }
}

/// What a controller keeps and does at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Incarnations that are worked on at the same time, or as many as the capacity has machines, if that is more. Further ones wait for
    /// their turn.
    pub incarnations: usize,
    /// Machines that are made at the same time.
    pub preparations: usize,
    /// Streams to guests that are open at the same time.
    pub streams: usize,
    /// Bytes of a workload's output taken in one second, on average. A workload that writes faster waits.
    pub output_bytes_per_second: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            incarnations: 4_096,
            preparations: 16,
            streams: 1_024,
            output_bytes_per_second: 16 * 1024 * 1024,
        }
    }
}
