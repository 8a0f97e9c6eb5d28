//! A folder, and the Firecrackers that run in it.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use flames_clock::SystemClock;
use flames_conformance_runner::Unavailable;
use flames_firecracker_api::{BootSource, Client, MachineConfig, Options};
use tempfile::TempDir;

/// How long anything may take on a busy host.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

const PROGRAM: &str = "FLAMES_FIRECRACKER";

/// The program, or why there is none.
pub(crate) fn program() -> Result<PathBuf, String> {
    match std::env::var_os(PROGRAM) {
        Some(path) if Path::new(&path).is_file() => Ok(path.into()),
        Some(path) => Err(format!("{PROGRAM} names no file: {}", Path::new(&path).display())),
        None => find("firecracker").ok_or_else(|| {
            format!("`firecracker` is not on PATH, and {PROGRAM} does not name it (install a release of 1.14.4 or newer)")
        }),
    }
}

pub(crate) fn unavailable() -> Option<Unavailable> {
    program().err().map(|reason| Unavailable { service: "firecracker".to_owned(), reason })
}

pub(crate) fn without_kvm() -> Option<String> {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => None,
        Err(error) => Some(format!("/dev/kvm cannot be used: {error}")),
    }
}

pub(crate) fn without_network() -> Option<String> {
    if !is_root() {
        return Some("a network namespace with a tap device needs root".to_owned());
    }
    if let Some(missing) = ["ip", "unshare"].into_iter().find(|program| find(program).is_none()) {
        return Some(format!("`{missing}` is not on PATH"));
    }
    (!Path::new("/dev/net/tun").exists()).then(|| "there is no /dev/net/tun".to_owned())
}

fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0\t0")))
}

fn find(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

pub(crate) struct Lab {
    folder: TempDir,
    spawned: AtomicUsize,
}

/// One Firecracker; killed when dropped.
pub(crate) struct Firecracker {
    pub(crate) client: Client,
    child: Child,
}

impl Drop for Firecracker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Firecracker {
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the process to end by itself.
    pub(crate) fn ends(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "Firecracker ends");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), spawned: AtomicUsize::new(0) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of zeros.
    pub(crate) fn file(&self, name: &str, length: u64) -> PathBuf {
        let path = self.path(name);
        std::fs::File::create(&path).unwrap().set_len(length).unwrap();
        path
    }

    /// One that answers.
    pub(crate) async fn spawn(&self) -> Firecracker {
        self.spawn_by(Command::new(program().unwrap())).await
    }

    /// One in a network namespace of its own, with the tap device `tap0`, which go with it.
    pub(crate) async fn spawn_with_tap(&self) -> Firecracker {
        let mut command = Command::new("unshare");
        command
            .args(["--net", "sh", "-ec", "ip tuntap add dev tap0 mode tap; exec \"$0\" \"$@\""])
            .arg(program().unwrap());
        self.spawn_by(command).await
    }

    async fn spawn_by(&self, mut command: Command) -> Firecracker {
        let number = self.spawned.fetch_add(1, Ordering::Relaxed);
        let socket = self.path(&format!("{number}.socket"));
        let output = std::fs::File::create(self.path(&format!("{number}.output"))).unwrap();
        let child = command
            .args(["--id", "lab", "--api-sock"])
            .arg(&socket)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stderr(output.try_clone().unwrap())
            .stdout(output)
            .spawn()
            .unwrap();
        let client = Client::new(&socket, Arc::new(SystemClock::new()), Options::default());
        let firecracker = Firecracker { client, child };
        firecracker.client.wait_until_serving(PATIENCE).await.unwrap();
        firecracker
    }

    /// One with a guest that halts for ever, ready to start.
    pub(crate) async fn spawn_configured(&self) -> Firecracker {
        self.configured(Command::new(program().unwrap())).await
    }

    /// The same with a PCI bus.
    pub(crate) async fn spawn_configured_with_pci(&self) -> Firecracker {
        let mut command = Command::new(program().unwrap());
        command.arg("--enable-pci");
        self.configured(command).await
    }

    async fn configured(&self, command: Command) -> Firecracker {
        let firecracker = self.spawn_by(command).await;
        let mut machine = MachineConfig::new(1, 32);
        machine.track_dirty_pages = true;
        firecracker.client.put_machine_config(&machine).await.unwrap();
        let kernel = BootSource {
            kernel_image_path: self.halting_kernel(),
            initrd_path: None,
            boot_args: Some("none".into()),
        };
        firecracker.client.put_boot_source(&kernel).await.unwrap();
        firecracker
    }

    /// The least kernel: an ELF file whose one segment, at 16 MiB, is `cli; hlt; jmp` back to the `hlt`.
    fn halting_kernel(&self) -> PathBuf {
        const ENTRY: u64 = 16 * 1024 * 1024;
        const CODE: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];
        const HEADERS: u64 = 64 + 56;
        let mut elf = Vec::new();
        // The file's header (ELF-64 Object File Format): class 64, little endian, version 1; executable, x86-64.
        elf.extend(b"\x7fELF\x02\x01\x01");
        elf.resize(16, 0);
        elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        elf.extend(ENTRY.to_le_bytes());
        elf.extend(64_u64.to_le_bytes());
        elf.extend([0; 12]);
        for field in [64_u16, 56, 1, 64, 0, 0] {
            elf.extend(field.to_le_bytes());
        }
        // The segment's: to be loaded, readable and executable.
        elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
        let length = CODE.len() as u64;
        for field in [HEADERS, ENTRY, ENTRY, length, length, 4096] {
            elf.extend(field.to_le_bytes());
        }
        elf.extend(CODE);
        let path = self.path("kernel");
        std::fs::write(&path, elf).unwrap();
        path
    }
}
