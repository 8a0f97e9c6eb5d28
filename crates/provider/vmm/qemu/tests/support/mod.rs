//! A host for tests, and a guest: the test kernel with a shell script as its `/init`.
#![allow(dead_code, unused_imports, reason = "each test binary uses its part")]

mod guest;

pub(crate) use guest::initramfs_with;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use flames_clock::SystemClock;
use flames_vmm::{
    AGENT_PORT, BootSource, GuestStream, IncarnationName, MachineSpec, NetworkSpec, Observation, Phase,
    SecretBytes, StartFrom, VmDriver,
};
use flames_vmm_conformance::Unavailable;
use flames_vmm_qemu::{Acceleration, QemuConfig, QemuDriver};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take under emulation on a busy host.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

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
    if let Err(reason) = guest::kernel_source() {
        return lacks("kernel", reason);
    }
    None
}

/// A program on `PATH`.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// A folder for a driver's incarnations. What runs there ends with it.
pub(crate) struct Host {
    folder: TempDir,
}

impl Drop for Host {
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
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
                kernel: guest::kernel(),
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
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
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
            assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
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
        let folder = std::fs::read_dir(self.root().join(incarnation.as_str())).unwrap();
        let is_console = |name: &str| name.starts_with("console.") && name != "console.sock";
        folder
            .flatten()
            .filter(|entry| is_console(&entry.file_name().to_string_lossy()))
            // A part may be dropped between the listing and the look at it.
            .filter_map(|entry| Some(entry.metadata().ok()?.len()))
            .sum()
    }
}

pub(crate) fn name(text: &str) -> IncarnationName {
    IncarnationName::new(text).unwrap()
}

/// Prepares and starts.
pub(crate) async fn running(driver: &dyn VmDriver, incarnation: &IncarnationName, spec: &MachineSpec) {
    driver.prepare(incarnation, spec).await.unwrap();
    driver.start(incarnation, StartFrom::Boot, false).await.unwrap();
}

pub(crate) async fn phase(driver: &dyn VmDriver, incarnation: &IncarnationName) -> Phase {
    driver.observe(incarnation).await.unwrap().phase
}

/// Waits until the incarnation is in the phase.
pub(crate) async fn until(driver: &dyn VmDriver, incarnation: &IncarnationName, phase: Phase) -> Observation {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let observed = driver.observe(incarnation).await.unwrap();
        if observed.phase == phase {
            return observed;
        }
        assert!(Instant::now() < deadline, "{incarnation} does not become {phase:?}: {observed:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A connection over which the guest has echoed.
pub(crate) async fn talk(driver: &dyn VmDriver, incarnation: &IncarnationName) -> GuestStream {
    let mut stream = driver.connect(incarnation, AGENT_PORT).await.unwrap();
    assert_eq!(ask(&mut stream, "hello").await, "hello");
    stream
}

/// Says a line and returns the line that is answered.
pub(crate) async fn ask(stream: &mut GuestStream, line: &str) -> String {
    timeout(PATIENCE, async {
        stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        loop {
            match stream.read_u8().await.unwrap() {
                b'\n' => return String::from_utf8(answer).unwrap(),
                byte => answer.push(byte),
            }
        }
    })
    .await
    .expect("the guest answers")
}

/// Waits until the console has the text, and returns all of it.
pub(crate) async fn console_with(driver: &dyn VmDriver, incarnation: &IncarnationName, text: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut read = Vec::new();
        let mut from = 0;
        loop {
            let chunk = driver.console(incarnation, from).await.unwrap();
            if chunk.data.is_empty() {
                break;
            }
            from = chunk.offset + chunk.data.len() as u64;
            read.extend_from_slice(&chunk.data);
        }
        let read = String::from_utf8_lossy(&read).into_owned();
        if read.contains(text) {
            return read;
        }
        assert!(Instant::now() < deadline, "no {text:?} on the console: {read}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Whether the process is there and not a zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    !stat[stat.rfind(')').unwrap()..].starts_with(") Z")
}

/// The fields of `/proc/PID/stat` from the third on.
pub(crate) fn stat(pid: u32) -> Vec<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat[stat.rfind(')').unwrap() + 2..].split_whitespace().map(str::to_owned).collect()
}

/// A file of the test run's own that is made once, whoever is first.
fn made_once(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(folder).unwrap();
    let path = folder.join(name);
    if !path.exists() {
        let mine = tempfile::Builder::new().prefix(name).tempfile_in(folder).unwrap().into_temp_path();
        make(&mine);
        mine.persist(&path).unwrap();
    }
    path
}
