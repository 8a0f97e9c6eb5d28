//! A host for Firecracker's machines: a network namespace that stands for it, and the users, groups and folders of this run alone.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use flames_clock::{SystemClock, SystemRandom};
use flames_vmm::{Egress, IncarnationName, MachineSpec, NetworkPolicy, NetworkSpec};
use flames_vmm_firecracker::{
    Blocks, ClusterName, FirecrackerConfig, FirecrackerDriver, Milestones, NetworkConfig, SlotRange,
};

use super::VmmArguments;
use super::hand::{ByHand, Machine};
use super::ours::Ours;

/// The driver's users; those of the hand are behind them.
const USERS: SlotRange = SlotRange { first_user: 3_100_000, count: 512 };
const PARENT_GROUP: &str = "flames-bench";

pub(super) struct Firecracker {
    pub(super) ours: Arc<Ours>,
    pub(super) by_hand: Arc<ByHand>,
}

/// The network namespace that stands for the host of this cluster.
fn host_namespace(cluster: &str) -> String {
    format!("{cluster}-host")
}

/// What the names of the hand's namespaces begin with.
fn hand_namespaces(cluster: &str) -> String {
    format!("{cluster}-hand")
}

fn add_namespace(name: &str) -> Result<PathBuf> {
    ip(&format!("netns add {name}"))?;
    ip(&format!("-n {name} link set lo up"))?;
    Ok(Path::new(NAMESPACES).join(name))
}

/// Where `ip` has the names of namespaces (ip-netns(8)).
const NAMESPACES: &str = "/run/netns";

fn namespaces(prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(NAMESPACES).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}

fn ip(words: &str) -> Result<String> {
    let output =
        Command::new("ip").args(words.split_ascii_whitespace()).output().context("`ip` cannot be run")?;
    ensure!(output.status.success(), "`ip {words}`: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The driver's settings, with the namespace that stands for the host.
fn config(cluster: &str, folder: &Path, host: PathBuf) -> Result<FirecrackerConfig> {
    let mut config = FirecrackerConfig::new(folder, cluster);
    config.jail.users = USERS;
    config.jail.parent_group = PARENT_GROUP.to_owned();
    let blocks = Blocks { ipv4: "10.231.0.0/24".parse()?, ipv6: Some("fd77:ba77::/64".parse()?) };
    let mut network = NetworkConfig::new(ClusterName::new(cluster)?, blocks, Vec::new());
    network.host_namespace = Some(host);
    network.enable_forwarding = true;
    config.network = Some(network);
    Ok(config)
}

/// Ends and takes away all that a run has made under the name of this cluster.
pub(super) async fn clear(cluster: &str, folder: &Path) -> Result<()> {
    let hands = namespaces(&hand_namespaces(cluster));
    for name in &hands {
        // Whoever is in there is a machine by hand.
        for pid in ip(&format!("netns pids {name}"))?.split_ascii_whitespace() {
            let pid = rustix::process::Pid::from_raw(pid.parse()?).context("no process has the number 0")?;
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let host = host_namespace(cluster);
    let path = Path::new(NAMESPACES).join(&host);
    let mut config = config(cluster, folder, path.clone())?;
    if !path.exists() {
        // Then no machine has a network.
        config.network = None;
    }
    let driver = FirecrackerDriver::new(config, Arc::new(SystemClock::new()), Arc::new(SystemRandom))?;
    super::leftovers::clear_machines(&driver).await?;
    for name in hands.iter().chain(path.exists().then_some(&host)) {
        ip(&format!("netns delete {name}"))?;
    }
    let roots = std::fs::read_dir("/sys/fs/cgroup")?.flatten().map(|entry| entry.path());
    for root in roots.chain([PathBuf::from("/sys/fs/cgroup")]) {
        let parent = root.join(PARENT_GROUP);
        let _ = std::fs::remove_dir(parent.join(cluster));
        // Others' may be in it.
        let _ = std::fs::remove_dir(parent);
    }
    Ok(())
}

impl Firecracker {
    /// For the run's cluster and folder, which [`clear`] takes away.
    pub(super) async fn open(arguments: &VmmArguments, cluster: &str, folder: &Path) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "Firecracker's jailer needs root");
        let mut config = config(cluster, folder, add_namespace(&host_namespace(cluster))?)?;
        if let Some(path) = &arguments.cpu_template {
            config.cpu_template = Some(serde_json::from_slice(&std::fs::read(path)?)?);
        }
        let issued: Arc<Mutex<HashMap<IncarnationName, Instant>>> = Arc::default();
        let told = Arc::clone(&issued);
        config.milestones = Some(Milestones(Arc::new(move |name, _| {
            // The first: of a restore that is its load.
            told.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(name.clone())
                .or_insert_with(Instant::now);
        })));
        let (plain, identity) = super::others::guest(arguments, folder)?;
        let machine = Machine {
            firecracker: config.jail.firecracker.clone(),
            jailer: config.jail.jailer.clone(),
            spec: MachineSpec { network: tap(0), ..plain.clone() },
            boot_arguments: config
                .boot_arguments
                .iter()
                .chain(&plain.boot.extra_arguments)
                .cloned()
                .collect(),
            cpu_template: config.cpu_template.clone(),
            identity: identity.clone(),
        };
        let spares = usize::try_from(arguments.spares)?;
        config.spare_monitors = spares;
        let driver = FirecrackerDriver::new(config, Arc::new(SystemClock::new()), Arc::new(SystemRandom))?;
        let driver = Arc::new(driver);
        let spec = move |number| MachineSpec { network: tap(number), ..plain.clone() };
        let counted = Arc::downgrade(&driver);
        let mut ours = Ours::new(driver, Some(identity), spec);
        let waiting = move || counted.upgrade().map_or(0, |driver| driver.waiting_spares());
        ours.spares =
            (spares > 0).then(|| (Box::new(waiting) as Box<dyn Fn() -> usize + Send + Sync>, spares));
        ours.issued = issued;
        ours.boot_and_save(folder).await?;
        let saved = ours.saved.clone().context("nothing was saved")?;
        let mut taps = Vec::new();
        for number in 0..super::MOST_AT_ONCE {
            let name = format!("{}{number}", hand_namespaces(cluster));
            let user = USERS.first_user + USERS.count + u32::try_from(number)?;
            let path = add_namespace(&name)?;
            ip(&format!("-n {name} tuntap add tap0 mode tap vnet_hdr user {user}"))?;
            ip(&format!("-n {name} link set tap0 up"))?;
            taps.push((path, user));
        }
        let by_hand = Arc::new(ByHand::new(folder.join("hand"), machine, saved, taps)?);
        Ok(Self { ours: Arc::new(ours), by_hand })
    }
}

/// The network of the machine with this number. What goes out is judged by a policy of the usual size.
fn tap(number: usize) -> NetworkSpec {
    let number = u8::try_from(number).unwrap_or(u8::MAX);
    let address = |last: u8| Ipv4Addr::new(10, 231, 0, number * 4 + last);
    NetworkSpec::Tap {
        address: (address(2).into(), 30),
        gateway: address(1).into(),
        mac: [2, 0xf1, 0xa3, 0, 1, number],
        policy: NetworkPolicy { egress: Egress::Allow { named: Vec::new() }, ..NetworkPolicy::default() },
    }
}
