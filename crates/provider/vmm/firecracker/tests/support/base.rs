//! Snapshots of guests that have booted, made once for all test processes: a boot takes half a minute on a host whose KVM emulates, a
//! restore some milliseconds.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use flames_test_guests::kernel;
use flames_vmm::{
    AGENT_PORT, Egress, MachineSpec, NetworkPolicy, NetworkSpec, SnapshotArtefacts, SnapshotKind, StartFrom,
    VmDriver,
};
use flames_vmm_firecracker::{Blocks, ClusterName, FirecrackerConfig, NetworkConfig};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::world::World;
use super::{Host, SCRATCH, driver_of, guest, name, spec};

/// How long a boot may take, on a busy host too.
const BOOT: Duration = Duration::from_secs(180);
/// Changed whenever a driver of before would have saved another machine.
const GENERATION: u32 = 1;

/// What the machine of [`spec`] is restored from. Must have been made.
pub(crate) fn plain() -> StartFrom {
    super::from(artefacts(&folder("plain")))
}

/// What the machine of [`networked_spec`] is restored from. Must have been made.
pub(crate) fn networked() -> StartFrom {
    super::from(artefacts(&folder("networked")))
}

pub(crate) fn artefacts(folder: &Path) -> SnapshotArtefacts {
    SnapshotArtefacts { state: folder.join("state"), memory: Some(folder.join("memory")) }
}

/// The machine with a tap, in the slot with this number of the block of [`with_network`].
pub(crate) fn networked_spec(slot: u8) -> MachineSpec {
    let address = |last: u8| Ipv4Addr::new(10, 213, 0, slot * 4 + last);
    MachineSpec {
        network: NetworkSpec::Tap {
            address: (address(2).into(), 30),
            gateway: address(1).into(),
            mac: [2, 0xf1, 0xa3, 0, 0, slot],
            policy: NetworkPolicy { egress: Egress::Deny, ..NetworkPolicy::default() },
        },
        ..spec()
    }
}

/// Networks whose host is the namespace of this process.
pub(crate) fn with_network(mut config: FirecrackerConfig) -> FirecrackerConfig {
    let cluster = ClusterName::new(&config.jail.cluster).unwrap();
    let blocks = Blocks { ipv4: "10.213.0.0/24".parse().unwrap(), ipv6: None };
    let mut network = NetworkConfig::new(cluster, blocks, Vec::new());
    network.enable_forwarding = true;
    config.network = Some(network);
    config
}

/// Makes the snapshots that are not there yet. One process of all makes one; the others wait.
pub(crate) fn make_plain() {
    make(&folder("plain"), &spec(), |config| config);
}

/// As [`make_plain`], with a tap: in a network namespace of the caller's own.
pub(crate) fn make_networked() {
    make(&folder("networked"), &networked_spec(0), with_network);
}

/// As [`make_networked`], for a process that shares its network namespace with others: the host of the network is another.
pub(crate) fn make_networked_apart() {
    let folder = folder("networked");
    if !folder.exists() {
        let world = World::new(&Host::new().cluster);
        make(&folder, &networked_spec(0), |config| world.networked(config));
    }
}

fn make(folder: &Path, spec: &MachineSpec, configure: impl FnOnce(FirecrackerConfig) -> FirecrackerConfig) {
    if folder.exists() {
        return;
    }
    let lock = File::create(folder.with_extension("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    if folder.exists() {
        return;
    }
    let begun = Instant::now();
    let host = Host::new();
    let config = configure(host.config());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let driver = driver_of(config);
        let incarnation = name("inc_base");
        driver.prepare(&incarnation, spec).await.unwrap();
        driver.start(&incarnation, StartFrom::Boot, false).await.unwrap();
        while !answers(&driver).await {
            let console = driver.console(&incarnation, 0).await.unwrap().data;
            let observed = driver.observe(&incarnation).await.unwrap();
            let words = String::from_utf8_lossy(&console).into_owned();
            assert!(observed.exit.is_none(), "the guest boots: {observed:?}; its console: {words}");
            assert!(begun.elapsed() < BOOT, "the guest boots within {BOOT:?}; its console: {words}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        driver.snapshot(&incarnation, "base", SnapshotKind::Full).await.unwrap();
        std::fs::rename(host.path(&incarnation, "snapshots/base"), folder).unwrap();
        driver.destroy(&incarnation).await.unwrap();
    });
    println!("report: {} was booted and saved in {:?}", folder.display(), begun.elapsed());
}

async fn answers(driver: &dyn VmDriver) -> bool {
    let attempt = async {
        let mut stream = driver.connect(&name("inc_base"), AGENT_PORT).await.ok()?;
        stream.write_all(b"up?\n").await.ok()?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.ok()?;
        (answer == *b"up?\n").then_some(())
    };
    tokio::time::timeout(Duration::from_secs(5), attempt).await.is_ok_and(|answered| answered.is_some())
}

/// Named after all that it follows from.
fn folder(kind: &str) -> PathBuf {
    // The files are large to be read each time.
    static DIGEST: OnceLock<String> = OnceLock::new();
    SCRATCH.path().join(format!("firecracker-{kind}-{}", DIGEST.get_or_init(digest)))
}

/// Of a file that each test process needs to know; read once for all of them.
fn digest_of(file: &Path) -> Vec<u8> {
    let found = file.metadata().unwrap();
    let kept = format!("digest-{}-{}-{}", found.ino(), found.size(), found.mtime());
    let kept = SCRATCH.made_once(&kept, |path| {
        std::fs::write(path, Sha256::digest(std::fs::read(file).unwrap())).unwrap();
    });
    std::fs::read(kept).unwrap()
}

fn digest() -> String {
    let config = FirecrackerConfig::new("/nowhere", "test");
    let version = Command::new(&config.jail.firecracker).arg("--version").output().unwrap();
    let mut hash = Sha256::new();
    hash.update(GENERATION.to_le_bytes());
    // Behind it stands a line of the log, with the time.
    hash.update(version.stdout.split(|byte| *byte == b'\n').next().unwrap());
    hash.update(guest::ARGUMENTS);
    hash.update(config.boot_arguments.join(" "));
    hash.update(guest::cpu_template().map(|template| template.to_string()).unwrap_or_default());
    hash.update(super::MEMORY_MIB.to_le_bytes());
    for file in [kernel::unpacked(SCRATCH), guest::initramfs()] {
        hash.update(digest_of(&file));
    }
    hex::encode(&hash.finalize()[..8])
}
