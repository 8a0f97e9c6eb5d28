//! The driver: incarnations by name.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use flames_clock::{Clock, ClockExt, Random};
use flames_error::{Error, Result};
use flames_firecracker_jail::JailName;
use flames_host::blocking;
use flames_host::files::{failed, remove_all};
use flames_vmm::{
    AgentChannel, ConsoleChunk, DriverCapabilities, Found, GuestCpu, GuestStream, IncarnationName,
    MachineSpec, Observation, Phase, Prepared, SnapshotArtefacts, SnapshotKind, StartFrom, Stats, StopHow,
    Update, Usability, VmDriver,
};
use flames_vmm_local::{Folder, Incarnations, OnHost, open_root};
use futures::StreamExt;
use futures::stream::BoxStream;
use sha2::{Digest, Sha256};

use crate::config::FirecrackerConfig;
use crate::context::Context;
use crate::folder::Records;
use crate::machine::MAX_VCPUS;
use crate::spares::Spares;
use crate::vm::{Before, Situation, Vm, to_the_end};

/// Runs VMs with Firecracker behind its jailer. See the crate's documentation.
#[derive(Debug)]
pub struct FirecrackerDriver {
    context: Arc<Context>,
    vms: Incarnations<Vm>,
}

impl Drop for FirecrackerDriver {
    /// The monitors run on; the tasks that followed them end.
    fn drop(&mut self) {
        self.context.close();
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
        config.folder = open_root(&config.folder)?;
        Ok(Self {
            vms: Incarnations::new(config.folder.clone()),
            context: Arc::new(Context::new(config, clock, random)),
        })
    }

    /// The kernels and initramfs that the incarnations on this host were prepared with, whatever process made them. For whoever makes
    /// such files, to know which are needed no more.
    ///
    /// Errors: `Unavailable`, `Corrupt` when that of one incarnation cannot be known.
    pub async fn boot_files(&self) -> Result<BTreeSet<std::path::PathBuf>> {
        self.vms.boot_files(|folder| Ok(folder.spec()?.spec.boot)).await
    }

    /// How many monitors wait for a machine now: at most [`FirecrackerConfig::spare_monitors`].
    pub fn waiting_spares(&self) -> usize {
        self.context.spares.count()
    }

    /// Why none can be made at present, for an operator; none when the last one was made. A start does without.
    pub fn spare_problem(&self) -> Option<String> {
        self.context.spares.problem()
    }

    /// The host's processor, as the template leaves it to guests.
    fn guest_cpu(&self) -> GuestCpu {
        let host = GuestCpu::of_host();
        let Some(template) = &self.context.config.cpu_template else { return host };
        let digest = Sha256::digest(template.to_string());
        GuestCpu { model: format!("{} template {}", host.model, hex::encode(&digest[..8])), ..host }
    }

    /// Takes away what earlier drivers left half made or half removed, and networks of incarnations that are no more.
    async fn clear_leftovers(&self) -> Result<()> {
        let root = self.context.root().to_owned();
        blocking(move || {
            Folder::left_over(&root, &[".new-", ".old-"])?
                .iter()
                .try_for_each(|left| remove_all(left))
                .map_err(|error| failed("leftovers cannot be removed", error))
        })
        .await?;
        let known = self.vms.names().await?;
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
            known.iter().any(|known| known.as_str() == name)
                || jails.iter().any(|jail| jail.name.as_str() == name)
                || is_spare(name)
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
        let mut names = self.vms.names().await?;
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
        let adopt = |vm: Arc<Vm>| async move {
            if vm.has_network.load(Ordering::Acquire) {
                return Ok(());
            }
            let request = crate::network::live_request(&vm.folder, &vm.folder.spec()?)?;
            if request.is_some() {
                crate::network::bring_up(&self.context, request.as_ref()).await?;
                vm.has_network.store(true, Ordering::Release);
            }
            Ok(())
        };
        // What cannot be taken over is made anew by the next start; a guest that runs is not to be ended for it.
        let _ = self.vms.on(incarnation, adopt).await;
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
            let _clearing = self.vms.clearing().await;
            self.clear_leftovers().await?;
        }
        Spares::keep(&self.context);
        let observe = |incarnation: IncarnationName| async move {
            let observation = self.observe(&incarnation).await?;
            let has_network = [Phase::Prepared, Phase::Starting, Phase::Running, Phase::Paused];
            if has_network.contains(&observation.phase) {
                self.adopt_network(&incarnation).await;
            }
            Ok(observation)
        };
        Ok(self.vms.found(self.names().await?, observe).await)
    }

    async fn prepare(&self, incarnation: &IncarnationName, spec: &MachineSpec) -> Result<Prepared> {
        let making = self.vms.making().await;
        self.vms
            .on(incarnation, |vm| {
                let (context, spec) = (Arc::clone(&self.context), spec.clone());
                to_the_end(async move {
                    let _making = making;
                    vm.prepare(context, spec).await
                })
            })
            .await
    }

    async fn start(&self, incarnation: &IncarnationName, from: StartFrom, leave_paused: bool) -> Result<()> {
        self.vms
            .on(incarnation, |vm| to_the_end(vm.start(Arc::clone(&self.context), from, leave_paused)))
            .await
    }

    async fn pause(&self, incarnation: &IncarnationName) -> Result<()> {
        self.vms.on(incarnation, |vm| async move { vm.pause(&self.context).await }).await
    }

    async fn resume(&self, incarnation: &IncarnationName) -> Result<()> {
        self.vms.on(incarnation, |vm| async move { vm.resume(&self.context).await }).await
    }

    async fn update(&self, incarnation: &IncarnationName, update: &Update) -> Result<()> {
        self.vms.on(incarnation, |vm| async move { vm.update(&self.context, update).await }).await
    }

    async fn snapshot(
        &self,
        incarnation: &IncarnationName,
        name: &str,
        kind: SnapshotKind,
    ) -> Result<SnapshotArtefacts> {
        self.vms
            .on(incarnation, |vm| to_the_end(vm.snapshot(Arc::clone(&self.context), name.to_owned(), kind)))
            .await
    }

    async fn delete_snapshot(&self, incarnation: &IncarnationName, name: &str) -> Result<()> {
        self.vms.on(incarnation, |vm| async move { vm.delete_snapshot(&self.context, name).await }).await
    }

    async fn connect(&self, incarnation: &IncarnationName, port: u32) -> Result<GuestStream> {
        const OPERATION: &str = "vmm.connect";
        self.vms
            .on(incarnation, |vm| async move {
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
        self.vms
            .on(incarnation, |vm| async move {
                if !vm.folder.exists() {
                    return Err(vm.not_found(OPERATION));
                }
                let jail = match vm.situation(&self.context).await? {
                    Situation::Before(Before::Prepared(jail) | Before::Stale(jail)) => jail,
                    Situation::Alive(attached) => attached.jail.clone(),
                    Situation::Before(Before::Half) => {
                        return Err(vm.conflict(OPERATION, "it is not prepared to its end"));
                    }
                    Situation::Exited(_) => return Err(vm.conflict(OPERATION, "it has exited")),
                };
                Ok(crate::vsock::accept(&jail, port)?.boxed())
            })
            .await
    }

    async fn console(&self, incarnation: &IncarnationName, from: u64) -> Result<ConsoleChunk> {
        let limits = self.context.config.console();
        self.vms.on(incarnation, |vm| async move { vm.console(limits, from).await }).await
    }

    async fn stats(&self, incarnation: &IncarnationName) -> Result<Stats> {
        self.vms
            .on(incarnation, |vm| async move { vm.stats(&*vm.alive(&self.context, "vmm.stats").await?) })
            .await
    }

    async fn stop(&self, incarnation: &IncarnationName, how: StopHow) -> Result<()> {
        self.vms.on(incarnation, |vm| async move { vm.stop(&self.context, how).await }).await
    }

    async fn observe(&self, incarnation: &IncarnationName) -> Result<Observation> {
        self.vms.on(incarnation, |vm| async move { vm.observe(&self.context).await }).await
    }

    async fn destroy(&self, incarnation: &IncarnationName) -> Result<()> {
        let making = self.vms.making().await;
        self.vms
            .on(incarnation, |vm| {
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
        Ok(self.context.exits.hints())
    }
}
