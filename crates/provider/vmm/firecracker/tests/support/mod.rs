//! A host for tests, and a guest that is restored from a snapshot which was made once.
#![allow(dead_code, unused_imports, reason = "each test binary uses its part")]

pub(crate) mod base;
pub(crate) mod guest;
pub(crate) mod traces;
pub(crate) mod world;

pub(crate) use flames_test_guests::words::{PATIENCE, ask, name, phase, talk, until};

use std::path::PathBuf;
use std::sync::Arc;

use flames_clock::{RandomExt, SystemClock, SystemRandom};
use flames_test_guests::process::{self, find};
use flames_test_guests::{Scratch, kernel};
use flames_vmm::{BootSource, IncarnationName, MachineSpec, NetworkSpec, SecretBytes, StartFrom, VmDriver};
use flames_vmm_conformance::Unavailable;
use flames_vmm_firecracker::{FirecrackerConfig, FirecrackerDriver, SlotRange};
use tempfile::TempDir;

/// The test run's own folder, below the target folder.
pub(crate) const SCRATCH: Scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
/// The guest's memory.
pub(crate) const MEMORY_MIB: u64 = 64;
/// What the guest reads on its configuration disk.
pub(crate) const TOLD: &str = "what the guest is told";
/// The name, below the root of every hierarchy of control groups, of what tests make.
pub(crate) const PARENT_GROUP: &str = "flames-test";

/// Why no guest can be started here, without starting one.
pub(crate) fn unavailable() -> Option<Unavailable> {
    let lacks = |reason: String| Some(Unavailable { service: "firecracker".to_owned(), reason });
    if !rustix::process::geteuid().is_root() {
        return lacks("not root".to_owned());
    }
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return lacks(format!("no /dev/kvm: {error}"));
    }
    let config = FirecrackerConfig::new("/nowhere", "test");
    for program in [&config.jail.firecracker, &config.jail.jailer] {
        if !program.is_file() {
            return lacks(format!("no {}", program.display()));
        }
    }
    for program in ["cc", "ip", "unshare"] {
        if find(program).is_none() {
            return lacks(format!("`{program}` is not on PATH"));
        }
    }
    kernel::source().err().and_then(lacks)
}

/// One host for a driver: a cluster of its own, whose jails stand beside those of the other tests so that they share no user. What runs
/// there ends with it.
pub(crate) struct Host {
    pub(crate) folder: TempDir,
    pub(crate) cluster: String,
}

impl Drop for Host {
    fn drop(&mut self) {
        traces::clear(&self.config());
    }
}

impl Host {
    pub(crate) fn new() -> Self {
        let number: u64 = SystemRandom.next_u64();
        // Below the target folder, since the jails are there: what is on one file system is linked.
        let folder = tempfile::Builder::new().prefix("firecracker-").tempdir_in(SCRATCH.path()).unwrap();
        Self { folder, cluster: format!("t{number:016x}") }
    }

    /// Settings for tests: a small console, and the users of all tests.
    pub(crate) fn config(&self) -> FirecrackerConfig {
        let mut config = FirecrackerConfig::new(self.folder.path(), &self.cluster);
        config.jail.base = SCRATCH.path().join("firecracker-jails");
        config.jail.users = SlotRange { first_user: 3_000_000, count: 4096 };
        config.jail.parent_group = PARENT_GROUP.to_owned();
        config.cpu_template = guest::cpu_template();
        config.console_log_limit = 64 * 1024;
        config
    }

    pub(crate) fn driver(&self) -> Arc<dyn VmDriver> {
        Arc::new(driver_of(self.config()))
    }

    pub(crate) fn path(&self, incarnation: &IncarnationName, file: &str) -> PathBuf {
        self.config().folder.join(incarnation.as_str()).join(file)
    }

    /// Everything on this host that was made for incarnations, in words.
    pub(crate) fn residue(&self) -> Vec<String> {
        traces::of(&self.config())
    }

    pub(crate) fn monitors(&self) -> usize {
        traces::processes(&self.config(), None).len()
    }

    pub(crate) fn pids(&self, incarnation: &IncarnationName) -> Vec<u32> {
        traces::processes(&self.config(), Some(incarnation))
    }

    /// As somebody else would.
    pub(crate) fn kill(&self, incarnation: &IncarnationName) {
        let pids = self.pids(incarnation);
        assert!(!pids.is_empty(), "{incarnation} has a process");
        pids.into_iter().for_each(process::kill);
    }
}

pub(crate) fn driver_of(config: FirecrackerConfig) -> FirecrackerDriver {
    FirecrackerDriver::new(config, Arc::new(SystemClock::new()), Arc::new(SystemRandom)).unwrap()
}

pub(crate) fn spec() -> MachineSpec {
    MachineSpec {
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        boot: BootSource {
            kernel: kernel::unpacked(SCRATCH),
            initramfs: Some(guest::initramfs()),
            extra_arguments: guest::ARGUMENTS.split_ascii_whitespace().map(str::to_owned).collect(),
        },
        drives: Vec::new(),
        guest_config: SecretBytes(format!("{TOLD}\n").into_bytes()),
        network: NetworkSpec::None,
    }
}

/// Prepares and restores.
pub(crate) async fn running(driver: &dyn VmDriver, incarnation: &IncarnationName) {
    driver.prepare(incarnation, &spec()).await.unwrap();
    driver.start(incarnation, base::plain(), false).await.unwrap();
}

/// What is restored.
pub(crate) fn from(artefacts: flames_vmm::SnapshotArtefacts) -> StartFrom {
    StartFrom::Snapshot(artefacts)
}
