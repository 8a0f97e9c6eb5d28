//! Machines by hand: the jailer's process, a chroot of links, and HTTP on Firecracker's socket.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use async_trait::async_trait;
use flames_guest_protocol::{AgentClient, ConnectOptions, Identity};
use flames_vmm::{AGENT_PORT, MachineSpec, NetworkSpec, SnapshotArtefacts};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use super::Machines;
use super::ours::{LOOK, PATIENCE};

/// The machine, and the programs that run it.
pub(super) struct Machine {
    pub(super) firecracker: PathBuf,
    pub(super) jailer: PathBuf,
    pub(super) spec: MachineSpec,
    pub(super) boot_arguments: Vec<String>,
    pub(super) cpu_template: Option<Value>,
    pub(super) identity: Identity,
}

pub(crate) struct ByHand {
    folder: PathBuf,
    machine: Machine,
    saved: SnapshotArtefacts,
    /// A namespace with a tap, and the user that may open it, for each machine at once.
    taps: Vec<(PathBuf, u32)>,
    config: PathBuf,
    running: Mutex<HashMap<usize, Arc<Mutex<Running>>>>,
    made: AtomicU64,
}

struct Running {
    child: Child,
    folder: PathBuf,
    root: File,
    api: BufReader<UnixStream>,
}

impl Running {
    /// A path in the chroot that is short enough for a socket's address.
    fn inside(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.root.as_raw_fd()))
    }

    async fn call(&mut self, method: &str, path: &str, body: &Value) -> Result<()> {
        let body = body.to_string();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.api.write_all((head + &body).as_bytes()).await?;
        let (mut line, mut length) = (String::new(), 0);
        self.api.read_line(&mut line).await?;
        let is_good = line.split(' ').nth(1).is_some_and(|status| status.starts_with('2'));
        loop {
            let mut header = String::new();
            ensure!(self.api.read_line(&mut header).await? > 0, "Firecracker hung up at {method} {path}");
            match header.trim().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse()?
                }
                Some(_) => {}
                None => break,
            }
        }
        let mut answer = vec![0; length];
        self.api.read_exact(&mut answer).await?;
        ensure!(is_good, "{method} {path}: {} {}", line.trim(), String::from_utf8_lossy(&answer));
        Ok(())
    }

    async fn set_state(&mut self, state: &str) -> Result<()> {
        self.call("PATCH", "/vm", &json!({ "state": state })).await
    }

    /// Returns once the agent has answered.
    async fn answer(&self, identity: &Identity) -> Result<()> {
        let path = self.inside("vsock");
        loop {
            if connected(&path, identity).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

async fn connected(path: &Path, identity: &Identity) -> Result<()> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes()).await?;
    while stream.read_u8().await? != b'\n' {}
    let options = ConnectOptions { handshake_timeout: Duration::from_secs(5), ..ConnectOptions::default() };
    AgentClient::connect(stream, identity, options).await?;
    Ok(())
}

impl ByHand {
    pub(super) fn new(
        folder: PathBuf,
        machine: Machine,
        saved: SnapshotArtefacts,
        taps: Vec<(PathBuf, u32)>,
    ) -> Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let config = folder.join("config");
        let mut bytes = machine.spec.guest_config.0.clone();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        std::fs::write(&config, bytes)?;
        super::ours::readable(&config)?;
        Ok(Self { folder, machine, saved, taps, config, running: Mutex::default(), made: AtomicU64::new(0) })
    }

    async fn running(&self, number: usize) -> Result<Arc<Mutex<Running>>> {
        self.running.lock().await.get(&number).cloned().context("there is no machine of this number")
    }

    /// A Firecracker that answers, behind its jailer.
    async fn make(&self, number: usize, loads: bool) -> Result<Running> {
        let id = format!("h{}", self.made.fetch_add(1, Ordering::Relaxed));
        let (namespace, user) = self.taps.get(number).context("no tap for this number")?;
        let machine = &self.machine;
        let folder = self.folder.join(&id);
        let program = machine.firecracker.file_name().context("Firecracker has no name")?;
        let root = folder.join(program).join(&id).join("root");
        std::fs::create_dir_all(root.join("drives"))?;
        std::fs::hard_link(&self.config, root.join("drives/flames_config"))?;
        if loads {
            std::fs::hard_link(&self.saved.state, root.join("state"))?;
            std::fs::hard_link(
                self.saved.memory.as_deref().context("no memory was saved")?,
                root.join("memory"),
            )?;
        } else {
            std::fs::hard_link(&machine.spec.boot.kernel, root.join("kernel"))?;
            let initramfs = machine.spec.boot.initramfs.as_deref().context("no initramfs")?;
            std::fs::hard_link(initramfs, root.join("initramfs"))?;
        }
        let user = user.to_string();
        let mut command = Command::new(&machine.jailer);
        command.args(["--id", &id, "--uid", &user, "--gid", &user, "--cgroup-version", "1"]);
        command.arg("--exec-file").arg(&machine.firecracker).arg("--chroot-base-dir").arg(&folder);
        command.arg("--netns").arg(namespace).args(["--", "--api-sock", "/api"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().context("the jailer cannot be started")?;
        let root = File::open(&root)?;
        let socket = PathBuf::from(format!("/proc/self/fd/{}/api", root.as_raw_fd()));
        let api = loop {
            match UnixStream::connect(&socket).await {
                Ok(api) => break BufReader::new(api),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
            if let Some(ended) = child.try_wait()? {
                bail!("the jailer by hand ended: {ended}");
            }
        };
        Ok(Running { child, folder, root, api })
    }

    async fn keep(&self, number: usize, running: Running) -> Arc<Mutex<Running>> {
        let running = Arc::new(Mutex::new(running));
        self.running.lock().await.insert(number, Arc::clone(&running));
        running
    }
}

#[async_trait]
impl Machines for ByHand {
    async fn start(&self, number: usize) -> Result<[Duration; 2]> {
        let machine = &self.machine;
        let NetworkSpec::Tap { mac, .. } = &machine.spec.network else { bail!("the machine has no tap") };
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        let began = Instant::now();
        let mut vm = self.make(number, false).await?;
        let shape = json!({ "vcpu_count": machine.spec.vcpus, "mem_size_mib": machine.spec.memory_mib, "track_dirty_pages": true });
        vm.call("PUT", "/machine-config", &shape).await?;
        if let Some(template) = &machine.cpu_template {
            vm.call("PUT", "/cpu-config", template).await?;
        }
        let boot = json!({ "kernel_image_path": "/kernel", "initrd_path": "/initramfs", "boot_args": machine.boot_arguments.join(" ") });
        vm.call("PUT", "/boot-source", &boot).await?;
        let drive = json!({ "drive_id": "flames_config", "path_on_host": "/drives/flames_config", "is_root_device": false, "is_read_only": true });
        vm.call("PUT", "/drives/flames_config", &drive).await?;
        let interface = json!({ "iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": mac });
        vm.call("PUT", "/network-interfaces/eth0", &interface).await?;
        vm.call("PUT", "/vsock", &json!({ "guest_cid": 3, "uds_path": "/vsock" })).await?;
        vm.call("PUT", "/entropy", &json!({})).await?;
        vm.call("PUT", "/balloon", &json!({ "amount_mib": 0, "deflate_on_oom": true })).await?;
        let issued = began.elapsed();
        vm.call("PUT", "/actions", &json!({ "action_type": "InstanceStart" })).await?;
        vm.set_state("Paused").await?;
        let took = began.elapsed();
        self.keep(number, vm).await;
        Ok([issued, took])
    }

    async fn restore(&self, number: usize) -> Result<[Duration; 3]> {
        let began = Instant::now();
        let mut vm = self.make(number, true).await?;
        let load = json!({
            "snapshot_path": "/state",
            "mem_backend": { "backend_type": "File", "backend_path": "/memory" },
            "track_dirty_pages": true,
            "resume_vm": true,
        });
        let issued = began.elapsed();
        vm.call("PUT", "/snapshot/load", &load).await?;
        let loaded = began.elapsed();
        let answer = tokio::time::timeout(PATIENCE, vm.answer(&self.machine.identity));
        answer.await.context("the guest does not answer by hand")??;
        let answered = began.elapsed();
        self.keep(number, vm).await;
        Ok([issued, loaded, answered])
    }

    async fn pause(&self, number: usize) -> Result<()> {
        self.running(number).await?.lock().await.set_state("Paused").await
    }

    async fn resume(&self, number: usize) -> Result<()> {
        self.running(number).await?.lock().await.set_state("Resumed").await
    }

    async fn snapshot(&self, number: usize) -> Result<()> {
        let create =
            json!({ "snapshot_type": "Full", "snapshot_path": "/new-state", "mem_file_path": "/new-memory" });
        self.running(number).await?.lock().await.call("PUT", "/snapshot/create", &create).await
    }

    async fn end(&self, number: usize) -> Result<()> {
        let vm = self.running(number).await?;
        let mut vm = vm.lock().await;
        vm.child.kill().await?;
        std::fs::remove_dir_all(&vm.folder)?;
        self.running.lock().await.remove(&number);
        Ok(())
    }

    async fn pid(&self, number: usize) -> Result<Option<u32>> {
        Ok(self.running(number).await?.lock().await.child.id())
    }
}
