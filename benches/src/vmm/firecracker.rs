//! A host for Firecracker's machines: a network namespace that stands for it, and the users, groups and folders of this run alone.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use flames_clock::{SystemClock, SystemRandom};
use flames_vmm::{Egress, IncarnationName, MachineSpec, NetworkPolicy, NetworkSpec, VmDriver};
use flames_vmm_firecracker::{
    Blocks, ClusterName, FirecrackerConfig, FirecrackerDriver, Milestones, NetworkConfig, SlotRange,
};
use tempfile::TempDir;

use super::VmmArguments;
use super::hand::{ByHand, Machine};
use super::ours::Ours;

/// The driver's users; those of the hand are behind them.
const USERS: SlotRange = SlotRange { first_user: 3_100_000, count: 512 };
const PARENT_GROUP: &str = "flames-bench";

pub(super) struct Firecracker {
    pub(super) ours: Arc<Ours>,
    pub(super) by_hand: Arc<ByHand>,
    cluster: String,
    driver: Weak<FirecrackerDriver>,
    // Last: what works in it is gone by then.
    namespaces: Namespaces,
    _folder: TempDir,
}

/// Network namespaces that end with this.
#[derive(Default)]
struct Namespaces(Vec<String>);

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

impl Namespaces {
    fn add(&mut self, name: String) -> Result<PathBuf> {
        ip(&format!("netns add {name}"))?;
        let path = Path::new("/run/netns").join(&name);
        ip(&format!("-n {name} link set lo up"))?;
        self.0.push(name);
        Ok(path)
    }
}

fn ip(words: &str) -> Result<()> {
    let output =
        Command::new("ip").args(words.split_ascii_whitespace()).output().context("`ip` cannot be run")?;
    ensure!(output.status.success(), "`ip {words}`: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The run's own folder.
pub(super) fn folder(arguments: &VmmArguments) -> Result<TempDir> {
    let above = arguments.folder.clone().unwrap_or_else(std::env::temp_dir);
    let above = std::path::absolute(above)?;
    let folder = tempfile::Builder::new().prefix("flames-bench-vmm-").tempdir_in(&above);
    folder.with_context(|| format!("{} cannot be written", above.display()))
}

impl Firecracker {
    pub(super) async fn open(arguments: &VmmArguments) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "Firecracker's jailer needs root");
        let folder = folder(arguments)?;
        let cluster = format!("bench{}", std::process::id());
        let mut namespaces = Namespaces::default();
        let host = namespaces.add(format!("flb{}host", std::process::id()))?;
        let mut config = FirecrackerConfig::new(folder.path(), &cluster);
        config.jail.users = USERS;
        config.jail.parent_group = PARENT_GROUP.to_owned();
        if let Some(path) = &arguments.cpu_template {
            config.cpu_template = Some(serde_json::from_slice(&std::fs::read(path)?)?);
        }
        let blocks = Blocks { ipv4: "10.231.0.0/24".parse()?, ipv6: Some("fd77:ba77::/64".parse()?) };
        let mut network = NetworkConfig::new(ClusterName::new(&cluster)?, blocks, Vec::new());
        network.host_namespace = Some(host);
        network.enable_forwarding = true;
        config.network = Some(network);
        let issued: Arc<Mutex<HashMap<IncarnationName, Instant>>> = Arc::default();
        let told = Arc::clone(&issued);
        config.milestones = Some(Milestones(Arc::new(move |name, _| {
            // The first: of a restore that is its load.
            told.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(name.clone())
                .or_insert_with(Instant::now);
        })));
        let (plain, identity) = super::others::guest(arguments, folder.path())?;
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
        let known = Arc::downgrade(&driver);
        let counted = Weak::clone(&known);
        let mut ours = Ours::new(driver, Some(identity), spec);
        let waiting = move || counted.upgrade().map_or(0, |driver| driver.waiting_spares());
        ours.spares =
            (spares > 0).then(|| (Box::new(waiting) as Box<dyn Fn() -> usize + Send + Sync>, spares));
        ours.issued = issued;
        ours.boot_and_save(folder.path()).await?;
        let saved = ours.saved.clone().context("nothing was saved")?;
        let mut taps = Vec::new();
        for number in 0..super::MOST_AT_ONCE {
            let name = format!("flb{}hand{number}", std::process::id());
            let user = USERS.first_user + USERS.count + u32::try_from(number)?;
            let path = namespaces.add(name.clone())?;
            ip(&format!("-n {name} tuntap add tap0 mode tap vnet_hdr user {user}"))?;
            ip(&format!("-n {name} link set tap0 up"))?;
            taps.push((path, user));
        }
        let by_hand = Arc::new(ByHand::new(folder.path().join("hand"), machine, saved, taps)?);
        Ok(Self { ours: Arc::new(ours), by_hand, cluster, driver: known, namespaces, _folder: folder })
    }

    /// Ends what a measurement that failed has left, and takes away what was made for the run.
    pub(super) async fn close(self) -> Result<()> {
        for found in self.ours.driver.adopt().await? {
            self.ours.driver.destroy(&found.incarnation).await?;
        }
        if let Some(driver) = self.driver.upgrade() {
            driver.close().await;
        }
        drop((self.ours, self.by_hand));
        let roots = std::fs::read_dir("/sys/fs/cgroup")?.flatten().map(|entry| entry.path());
        for root in roots.chain([PathBuf::from("/sys/fs/cgroup")]) {
            let parent = root.join(PARENT_GROUP);
            let _ = std::fs::remove_dir(parent.join(&self.cluster));
            // Others' may be in it.
            let _ = std::fs::remove_dir(parent);
        }
        drop(self.namespaces);
        Ok(())
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
