//! A simulated host under the suite.

// Tests, though not in a test function: a panic is how they fail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use flames_clock::{SeededRandom, SimulatedClock};
use flames_conformance_runner::Suite;
use flames_vmm::{
    BootSource, IncarnationName, MachineSpec, NetworkPolicy, NetworkSpec, SecretBytes, VmDriver,
};
use flames_vmm_conformance::{Capabilities, Fixture, Harness, Time, async_trait};
use flames_vmm_simulated::{GuestOrigin, SimulatedConfig, SimulatedDriver, SimulatedFiles, SimulatedHost};
use tempfile::TempDir;

/// Puts the driver under test together.
pub(crate) type Wrap = Arc<dyn Fn(SimulatedDriver) -> Arc<dyn VmDriver> + Send + Sync>;

/// Hosts of one sort, on simulated time.
pub(crate) struct Simulated {
    /// What they are like.
    pub(crate) config: SimulatedConfig,
    /// What is told to the suite.
    pub(crate) told: Capabilities,
    /// The driver under test.
    pub(crate) wrap: Wrap,
}

impl Simulated {
    /// The driver as it is.
    pub(crate) fn new(config: SimulatedConfig) -> Self {
        let told = Capabilities {
            agent_channel: config.agent_channel,
            pause: config.pause,
            snapshot: config.snapshot,
            diff_snapshot: config.diff_snapshot,
            user_network: true,
            live_network_policy: config.live_network_policy,
            guest_writes_console: true,
            guest_answers: true,
            guest_powers_off: true,
        };
        Self { config, told, wrap: Arc::new(|driver| Arc::new(driver)) }
    }

    /// The suite for it.
    pub(crate) fn suite(self) -> Suite {
        let told = self.told;
        flames_vmm_conformance::suite(self, told)
    }
}

#[async_trait]
impl Harness<dyn Fixture> for Simulated {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn time(&self) -> Time {
        Time::Paused
    }

    async fn fresh(&self) -> Box<dyn Fixture> {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("vmlinux");
        std::fs::write(&kernel, b"\x7fELF, as far as the simulation looks").unwrap();
        let config = SimulatedConfig { files: SimulatedFiles::OnDisk, ..self.config.clone() };
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        let host = SimulatedHost::new(config, clock, Arc::new(SeededRandom::new(1)));
        let wrap = Arc::clone(&self.wrap);
        let driver = Mutex::new(Some(wrap(SimulatedDriver::new(Arc::clone(&host)))));
        Box::new(Host { host, wrap, driver, kernel, _folder: folder })
    }
}

struct Host {
    host: Arc<SimulatedHost>,
    wrap: Wrap,
    driver: Mutex<Option<Arc<dyn VmDriver>>>,
    kernel: PathBuf,
    _folder: TempDir,
}

#[async_trait]
impl Fixture for Host {
    fn driver(&self) -> Arc<dyn VmDriver> {
        Arc::clone(self.driver.lock().unwrap().as_ref().expect("the driver is open"))
    }

    async fn close(&self) {
        if let Some(driver) = self.driver.lock().unwrap().take() {
            assert_eq!(Arc::strong_count(&driver), 1, "a case holds on to a driver that is to be gone");
        }
    }

    async fn reopen(&self) {
        self.close().await;
        *self.driver.lock().unwrap() = Some((self.wrap)(SimulatedDriver::new(Arc::clone(&self.host))));
    }

    async fn spec(&self) -> MachineSpec {
        MachineSpec {
            vcpus: 1,
            memory_mib: 128,
            boot: BootSource { kernel: self.kernel.clone(), initramfs: None, extra_arguments: Vec::new() },
            drives: Vec::new(),
            guest_config: SecretBytes(b"configuration".to_vec()),
            network: NetworkSpec::None,
        }
    }

    async fn tap(&self) -> Option<NetworkSpec> {
        Some(NetworkSpec::Tap {
            address: ("10.9.0.2".parse().unwrap(), 30),
            gateway: "10.9.0.1".parse().unwrap(),
            mac: [2, 0, 0, 0, 0, 1],
            policy: NetworkPolicy::default(),
        })
    }

    async fn policy_in_place(&self, incarnation: &IncarnationName) -> Option<NetworkPolicy> {
        self.host.machine(incarnation)?.network_policy
    }

    async fn crash(&self, incarnation: &IncarnationName) {
        assert!(self.host.crash_vm(incarnation));
    }

    async fn power_off_guest(&self, incarnation: &IncarnationName) {
        assert!(self.host.power_off_guest(incarnation));
    }

    async fn was_restored(&self, incarnation: &IncarnationName) -> Option<bool> {
        let origin = self.host.machine(incarnation).and_then(|machine| machine.origin);
        origin.map(|origin| origin != GuestOrigin::Booted)
    }

    async fn monitors(&self) -> usize {
        self.host.running().len()
    }

    async fn residue(&self) -> Vec<String> {
        self.host.residue()
    }
}
