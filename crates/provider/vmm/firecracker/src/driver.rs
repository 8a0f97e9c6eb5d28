//! The driver: incarnations by name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use flames_clock::{Clock, ClockExt, Random};
use flames_error::{Error, ErrorKind, Result};
use flames_firecracker_jail::JailName;
use flames_host::blocking;
use flames_host::console::ConsoleLog;
use flames_host::files::{create_private_folder, failed, remove_all};
use flames_vmm::{
    AgentChannel, ConsoleChunk, DriverCapabilities, Found, GuestCpu, GuestStream, IncarnationName,
    MAX_CONSOLE_CHUNK, MachineSpec, Observation, Phase, Prepared, SnapshotArtefacts, SnapshotKind, StartFrom,
    Stats, StopHow, Update, Usability, VmDriver,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use sha2::{Digest, Sha256};
use tokio_stream::wrappers::BroadcastStream;

use crate::config::FirecrackerConfig;
use crate::context::Context;
use crate::folder::Folder;
use crate::machine::MAX_VCPUS;
use crate::spares::Spares;
use crate::vm::{Situation, Vm, to_the_end};

/// How many incarnations are looked at at once by `adopt`.
const ADOPTED_AT_ONCE: usize = 16;

/// Runs VMs with Firecracker behind its jailer. See the crate's documentation.
#[derive(Debug)]
pub struct FirecrackerDriver {
    context: Arc<Context>,
    vms: Mutex<BTreeMap<IncarnationName, Arc<Vm>>>,
    /// `adopt` clears away what is half made or half removed; nothing is being made or removed meanwhile.
    making: Arc<tokio::sync::RwLock<()>>,
}

impl Drop for FirecrackerDriver {
    /// The monitors run on; the tasks that followed them end.
    fn drop(&mut self) {
        self.context.close();
        for vm in self.vms.lock().unwrap_or_else(PoisonError::into_inner).values() {
            vm.detach();
        }
    }
}

impl FirecrackerDriver {
    /// A driver over the folder of the settings, which is made when it is absent. The host's jails and networks are opened at the first call
    /// that needs them; from then on no other driver of the cluster works with them.
    ///
    /// Errors: `InvalidInput` for settings out of range; `Internal` when the folder cannot be made.
    pub fn new(
        mut config: FirecrackerConfig,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Result<Self> {
        config.validate()?;
        let make = || {
            if let Some(above) = config.folder.parent() {
                std::fs::create_dir_all(above)?;
            }
            match create_private_folder(&config.folder) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            config.folder.canonicalize()
        };
        config.folder = make().map_err(|error| failed("the driver's folder cannot be made", error))?;
        Ok(Self {
            context: Arc::new(Context::new(config, clock, random)),
            vms: Mutex::default(),
            making: Arc::default(),
        })
    }

    /// The kernels and initramfs that the incarnations on this host were prepared with, whatever process made them. For whoever makes
    /// such files, to know which are needed no more.
    ///
    /// Errors: `Unavailable`, `Corrupt` when that of one incarnation cannot be known.
    pub async fn boot_files(&self) -> Result<BTreeSet<std::path::PathBuf>> {
        let root = self.context.root().to_owned();
        blocking(move || {
            let unreadable = |error| failed("the driver's folder cannot be listed", error);
            let mut files = BTreeSet::new();
            for entry in std::fs::read_dir(&root).map_err(unreadable)? {
                let name = entry.map_err(unreadable)?.file_name();
                let Some(name) = name.to_str().and_then(|name| IncarnationName::new(name).ok()) else {
                    continue;
                };
                let boot = Folder::of(&root, &name).spec()?.spec.boot;
                files.insert(boot.kernel);
                files.extend(boot.initramfs);
            }
            Ok(files)
        })
        .await
    }

    /// How many monitors wait for a machine now: at most [`FirecrackerConfig::spare_monitors`].
    pub fn waiting_spares(&self) -> usize {
        self.context.spares.count()
    }

    /// The host's processor, as the template leaves it to guests.
    fn guest_cpu(&self) -> GuestCpu {
        let host = GuestCpu::of_host();
        let Some(template) = &self.context.config.cpu_template else { return host };
        let digest = Sha256::digest(template.to_string());
        GuestCpu { model: format!("{} template {}", host.model, hex::encode(&digest[..8])), ..host }
    }

    fn vm(&self, name: &IncarnationName) -> Result<Arc<Vm>> {
        let mut vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(vm) = vms.get(name) {
            return Ok(Arc::clone(vm));
        }
        let vm = Arc::new(Vm::new(name.clone(), Folder::of(self.context.root(), name))?);
        vms.insert(name.clone(), Arc::clone(&vm));
        Ok(vm)
    }

    /// Runs a call on an incarnation, and forgets it afterwards when nothing of it is on the host.
    async fn on<'a, T, F>(&'a self, name: &IncarnationName, call: impl FnOnce(Arc<Vm>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + 'a,
    {
        let vm = self.vm(name)?;
        let _forget = Forget { driver: self, name: name.clone() };
        call(vm).await
    }

    /// Takes away what earlier drivers left half made or half removed, and networks of incarnations that are no more.
    async fn clear_leftovers(&self) -> Result<()> {
        let root = self.context.root().to_owned();
        let known = blocking(move || {
            let io = |error| failed("leftovers cannot be removed", error);
            let mut known = BTreeSet::new();
            for entry in std::fs::read_dir(&root).map_err(io)?.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if [".new-", ".old-"].iter().any(|prefix| name.starts_with(prefix)) {
                    remove_all(&entry.path()).map_err(io)?;
                } else {
                    known.insert(name);
                }
            }
            Ok(known)
        })
        .await?;
        let host = self.context.host().await?;
        let mut jails = host.jails.scan().await?;
        // Before the networks, which their processes hold.
        for left in jails.extract_if(.., |jail| jail.name.is_spare()) {
            if !self.context.spares.knows(&left.name) {
                Spares::remove(&self.context, &left.name).await;
            }
        }
        let Some(networks) = &host.networks else { return Ok(()) };
        let is_spare = |name: &str| JailName::new(name).is_ok_and(|name| self.context.spares.knows(&name));
        let is_known = |name: &str| {
            known.contains(name) || jails.iter().any(|jail| jail.name.as_str() == name) || is_spare(name)
        };
        for found in networks.scan().await? {
            if !is_known(found.incarnation.as_str()) {
                networks.remove(&found.incarnation).await?;
            }
        }
        Ok(())
    }

    /// The names of all that is on this host: by folder, and by a jail that has lost its folder.
    async fn names(&self) -> Result<BTreeSet<IncarnationName>> {
        let root = self.context.root().to_owned();
        let mut names = blocking(move || {
            let entries = std::fs::read_dir(&root)
                .map_err(|error| failed("the driver's folder cannot be listed", error))?;
            // What has no incarnation's name is not ours.
            let name = |entry: std::fs::DirEntry| IncarnationName::new(entry.file_name().to_str()?).ok();
            Ok(entries.flatten().filter_map(name).collect::<BTreeSet<_>>())
        })
        .await?;
        for jail in self.context.host().await?.jails.scan().await? {
            if jail.name.is_spare() {
                continue;
            }
            names.extend(IncarnationName::new(jail.name.as_str()).ok());
        }
        Ok(names)
    }

    /// Takes over the network of what is there, so that its names resolve again.
    async fn adopt_network(&self, incarnation: &IncarnationName) {
        let Ok(vm) = self.vm(incarnation) else { return };
        let _forget = Forget { driver: self, name: incarnation.clone() };
        if vm.has_network.load(Ordering::Acquire) {
            return;
        }
        let request = vm.folder.spec().and_then(|record| crate::network::live_request(&vm.folder, &record));
        let Ok(Some(request)) = request else { return };
        // What cannot be taken over is made anew by the next start; a guest that runs is not to be ended for it.
        if crate::network::bring_up(&self.context, Some(&request)).await.is_ok() {
            vm.has_network.store(true, Ordering::Release);
        }
    }
}

/// Forgets an incarnation that has no folder, once no other call is at work on it.
struct Forget<'a> {
    driver: &'a FirecrackerDriver,
    name: IncarnationName,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let mut vms = self.driver.vms.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = vms.get(&self.name).is_some_and(|vm| Arc::strong_count(vm) == 1 && !vm.folder.exists());
        if idle {
            vms.remove(&self.name);
        }
    }
}

#[async_trait]
impl VmDriver for FirecrackerDriver {
    fn name(&self) -> &'static str {
        "firecracker"
    }

    async fn capabilities(&self) -> Result<DriverCapabilities> {
        let version = self.context.version().await;
        let mut problem = version.as_ref().err().map(|error| error.message().to_owned());
        if problem.is_none() {
            // A host that another driver works on, or whose networks lack something.
            let host = self.context.host().await;
            problem = host.err().map(|error| error.user_message().unwrap_or(error.message()).to_owned());
        }
        let networks = self.context.config.network.is_some() && problem.is_none();
        Ok(DriverCapabilities {
            usability: problem.map_or(Usability::Usable, Usability::Unusable),
            acceleration: "kvm".to_owned(),
            version: version.ok().map(|version| version.to_string()),
            agent_channel: AgentChannel::Multiplexed,
            pause: true,
            snapshot: true,
            diff_snapshot: true,
            user_network: false,
            tap_network: networks,
            live_network_policy: networks,
            guest_cpu: self.guest_cpu(),
            max_vcpus: MAX_VCPUS,
        })
    }

    async fn adopt(&self) -> Result<Vec<Found>> {
        {
            let _making = self.making.write().await;
            self.clear_leftovers().await?;
        }
        Spares::keep(&self.context);
        let found = futures::stream::iter(self.names().await?)
            .map(|incarnation| async move {
                let unknown = Observation {
                    phase: Phase::Unknown,
                    exit: None,
                    pid: None,
                    prepared: Prepared::default(),
                };
                let observation = match self.observe(&incarnation).await {
                    Ok(observation) => observation,
                    Err(error) if error.kind() == ErrorKind::NotFound => return None,
                    Err(_) => unknown,
                };
                if matches!(
                    observation.phase,
                    Phase::Prepared | Phase::Starting | Phase::Running | Phase::Paused
                ) {
                    self.adopt_network(&incarnation).await;
                }
                Some(Found { incarnation, observation })
            })
            .buffered(ADOPTED_AT_ONCE)
            .filter_map(|found| async { found })
            .collect()
            .await;
        Ok(found)
    }

    async fn prepare(&self, incarnation: &IncarnationName, spec: &MachineSpec) -> Result<Prepared> {
        let making = Arc::clone(&self.making).read_owned().await;
        self.on(incarnation, |vm| {
            let (context, spec) = (Arc::clone(&self.context), spec.clone());
            to_the_end(async move {
                let _making = making;
                vm.prepare(context, spec).await
            })
        })
        .await
    }

    async fn start(&self, incarnation: &IncarnationName, from: StartFrom, leave_paused: bool) -> Result<()> {
        self.on(incarnation, |vm| to_the_end(vm.start(Arc::clone(&self.context), from, leave_paused))).await
    }

    async fn pause(&self, incarnation: &IncarnationName) -> Result<()> {
        self.on(incarnation, |vm| async move { vm.pause(&self.context).await }).await
    }

    async fn resume(&self, incarnation: &IncarnationName) -> Result<()> {
        self.on(incarnation, |vm| async move { vm.resume(&self.context).await }).await
    }

    async fn update(&self, incarnation: &IncarnationName, update: &Update) -> Result<()> {
        self.on(incarnation, |vm| async move { vm.update(&self.context, update).await }).await
    }

    async fn snapshot(
        &self,
        incarnation: &IncarnationName,
        name: &str,
        kind: SnapshotKind,
    ) -> Result<SnapshotArtefacts> {
        self.on(incarnation, |vm| to_the_end(vm.snapshot(Arc::clone(&self.context), name.to_owned(), kind)))
            .await
    }

    async fn delete_snapshot(&self, incarnation: &IncarnationName, name: &str) -> Result<()> {
        self.on(incarnation, |vm| async move { vm.delete_snapshot(&self.context, name).await }).await
    }

    async fn connect(&self, incarnation: &IncarnationName, port: u32) -> Result<GuestStream> {
        const OPERATION: &str = "vmm.connect";
        self.on(incarnation, |vm| async move {
            let attached = vm.alive(&self.context, OPERATION).await?;
            match attached.phase().await {
                Ok(Phase::Running) => {}
                Ok(_) => return Err(vm.conflict(OPERATION, "it does not run")),
                Err(error) => return Err(vm.call_failed(OPERATION, &attached, error).await),
            }
            let connect = crate::vsock::connect(&attached.jail, &*self.context.clock, port);
            match self.context.clock.timeout(self.context.config.deadlines.command, connect).await {
                Ok(Ok(stream)) => Ok(Box::new(stream) as GuestStream),
                Ok(Err(error)) => Err(error.with_resource("incarnation", vm.name.as_str())),
                Err(late) => {
                    Err(Error::unavailable(OPERATION, "nothing answers in the guest").with_source(late))
                }
            }
        })
        .await
    }

    async fn accept(
        &self,
        incarnation: &IncarnationName,
        port: u32,
    ) -> Result<BoxStream<'static, GuestStream>> {
        const OPERATION: &str = "vmm.accept";
        self.on(incarnation, |vm| async move {
            if !vm.folder.exists() {
                return Err(vm.not_found(OPERATION));
            }
            let jail = match vm.situation(&self.context).await? {
                Situation::Prepared(jail) | Situation::Stale(jail) => jail,
                Situation::Alive(attached) => attached.jail.clone(),
                Situation::Half => return Err(vm.conflict(OPERATION, "it is not prepared to its end")),
                Situation::Exited(_) => return Err(vm.conflict(OPERATION, "it has exited")),
            };
            Ok(crate::vsock::accept(&jail, port)?.boxed())
        })
        .await
    }

    async fn console(&self, incarnation: &IncarnationName, from: u64) -> Result<ConsoleChunk> {
        const OPERATION: &str = "vmm.console";
        self.on(incarnation, |vm| async move {
            let log = ConsoleLog::new(vm.folder.path(), self.context.config.console_log_limit);
            match log.read(from, MAX_CONSOLE_CHUNK).await {
                Ok(chunk) => Ok(ConsoleChunk { offset: chunk.offset, data: chunk.data }),
                Err(_) if !vm.folder.exists() => Err(vm.not_found(OPERATION)),
                Err(error) => Err(failed("the console's log cannot be read", error)),
            }
        })
        .await
    }

    async fn stats(&self, incarnation: &IncarnationName) -> Result<Stats> {
        const OPERATION: &str = "vmm.stats";
        self.on(incarnation, |vm| async move {
            let attached = vm.alive(&self.context, OPERATION).await?;
            let (resident_bytes, cpu_time, uptime) = attached
                .process()
                .usage()
                .map_err(|error| vm.conflict(OPERATION, "its process has just ended").with_source(error))?;
            Ok(Stats { resident_bytes, cpu_time, uptime })
        })
        .await
    }

    async fn stop(&self, incarnation: &IncarnationName, how: StopHow) -> Result<()> {
        self.on(incarnation, |vm| async move { vm.stop(&self.context, how).await }).await
    }

    async fn observe(&self, incarnation: &IncarnationName) -> Result<Observation> {
        self.on(incarnation, |vm| async move { vm.observe(&self.context).await }).await
    }

    async fn destroy(&self, incarnation: &IncarnationName) -> Result<()> {
        let making = Arc::clone(&self.making).read_owned().await;
        self.on(incarnation, |vm| {
            let context = Arc::clone(&self.context);
            to_the_end(async move {
                let _making = making;
                vm.destroy(context).await
            })
        })
        .await
    }

    /// The monitors that wait. What another call makes a machine of meanwhile is that machine's.
    async fn close(&self) {
        Spares::end(&self.context).await;
    }

    async fn exits(&self) -> Result<BoxStream<'static, IncarnationName>> {
        let hints = BroadcastStream::new(self.context.exits.subscribe());
        Ok(hints.filter_map(|hint| async { hint.ok() }).boxed())
    }
}
