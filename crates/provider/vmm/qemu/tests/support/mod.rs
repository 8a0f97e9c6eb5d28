//! A host for tests, and a guest: the test kernel with a shell script as its `/init`.
#![allow(dead_code, unused_imports, reason = "each test binary uses its part")]

mod guest;

pub(crate) use flames_test_guests::process::{find, is_alive, stat};
pub(crate) use flames_test_guests::words::{PATIENCE, ask, console_with, name, phase, talk, until};
pub(crate) use guest::initramfs_with;

use std::path::PathBuf;
use std::sync::Arc;

use flames_clock::SystemClock;
use flames_test_guests::{Scratch, kernel, process};
use flames_vmm::{BootSource, IncarnationName, MachineSpec, NetworkSpec, SecretBytes, StartFrom, VmDriver};
use flames_vmm_conformance::Unavailable;
use flames_vmm_qemu::{Acceleration, QemuConfig, QemuDriver};
use tempfile::TempDir;

/// The test run's own folder.
pub(crate) const SCRATCH: Scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));

/// Why no guest can be started here, without starting one.
pub(crate) fn unavailable() -> Option<Unavailable> {
    let lacks = |service: &str, reason: String| Some(Unavailable { service: service.to_owned(), reason });
    if find("qemu-system-x86_64").is_none() {
        return lacks("qemu", "`qemu-system-x86_64` is not on PATH (apt install qemu-system-x86)".to_owned());
    }
    if !guest::busybox_is_static() {
        return lacks(
            "busybox",
            "/bin/busybox is absent or not static (apt install busybox-static)".to_owned(),
        );
    }
    if let Err(reason) = kernel::source() {
        return lacks("kernel", reason);
    }
    None
}

/// A folder for a driver's incarnations. What runs there ends with it.
pub(crate) struct Host {
    folder: TempDir,
}

impl Drop for Host {
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            process::kill(pid);
        }
    }
}

impl Host {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join("vms")
    }

    /// Settings for tests: emulation, a small console.
    pub(crate) fn config(&self) -> QemuConfig {
        QemuConfig {
            acceleration: Acceleration::Tcg,
            console_log_limit: 64 * 1024,
            ..QemuConfig::new(self.folder.path().join("vms"))
        }
    }

    pub(crate) fn driver(&self) -> Arc<dyn VmDriver> {
        Arc::new(self.driver_with(self.config()))
    }

    pub(crate) fn driver_with(&self, config: QemuConfig) -> QemuDriver {
        QemuDriver::new(config, Arc::new(SystemClock::new())).unwrap()
    }

    pub(crate) fn spec(&self) -> MachineSpec {
        MachineSpec {
            vcpus: 1,
            memory_mib: guest::memory_mib(),
            boot: BootSource {
                kernel: kernel::unpacked(SCRATCH),
                initramfs: Some(guest::initramfs()),
                extra_arguments: Vec::new(),
            },
            drives: Vec::new(),
            guest_config: SecretBytes(b"what the guest is told\n".to_vec()),
            network: NetworkSpec::None,
        }
    }

    /// The live processes with this host's folder on their command line.
    fn processes(&self) -> Vec<(u32, Vec<String>)> {
        let root = self.root();
        let mut found = Vec::new();
        for (pid, folder) in process::all() {
            let Ok(line) = std::fs::read(folder.join("cmdline")) else { continue };
            let words: Vec<String> = line
                .split(|byte| *byte == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            if words.iter().any(|word| word.contains(root.to_str().unwrap())) {
                found.push((pid, words));
            }
        }
        found
    }

    pub(crate) fn monitors(&self) -> usize {
        self.processes().iter().filter(|(_, words)| words[0].ends_with("qemu-system-x86_64")).count()
    }

    fn of(&self, incarnation: &IncarnationName) -> Vec<(u32, Vec<String>)> {
        let folder = format!("{}/", self.root().join(incarnation.as_str()).display());
        let mut processes = self.processes();
        processes.retain(|(_, words)| words.iter().any(|word| word.contains(&folder)));
        processes
    }

    pub(crate) fn pids(&self, incarnation: &IncarnationName) -> Vec<u32> {
        self.of(incarnation).into_iter().map(|(pid, _)| pid).collect()
    }

    pub(crate) fn command_lines(&self, incarnation: &IncarnationName) -> Vec<Vec<String>> {
        self.of(incarnation).into_iter().map(|(_, words)| words).collect()
    }

    /// As somebody else would.
    pub(crate) fn kill(&self, incarnation: &IncarnationName) {
        let pids = self.pids(incarnation);
        assert!(!pids.is_empty(), "{incarnation} has a process");
        for pid in pids {
            process::signal(pid, "-9");
        }
    }

    /// Folders, snapshots and processes.
    pub(crate) fn residue(&self) -> Vec<String> {
        let mut residue = Vec::new();
        for entry in std::fs::read_dir(self.root()).into_iter().flatten().flatten() {
            residue.push(entry.path().display().to_string());
            for snapshot in std::fs::read_dir(entry.path().join("snapshots")).into_iter().flatten().flatten()
            {
                residue.push(snapshot.path().display().to_string());
            }
        }
        residue
            .extend(self.processes().into_iter().map(|(pid, words)| format!("process {pid} {}", words[0])));
        residue.sort();
        residue
    }

    pub(crate) fn path(&self, incarnation: &IncarnationName, file: &str) -> PathBuf {
        self.root().join(incarnation.as_str()).join(file)
    }

    /// The bytes that the console's log takes on disk.
    pub(crate) fn console_on_disk(&self, incarnation: &IncarnationName) -> u64 {
        process::console_on_disk(&self.path(incarnation, ""))
    }
}

/// Prepares and starts.
pub(crate) async fn running(driver: &dyn VmDriver, incarnation: &IncarnationName, spec: &MachineSpec) {
    driver.prepare(incarnation, spec).await.unwrap();
    driver.start(incarnation, StartFrom::Boot, false).await.unwrap();
}
