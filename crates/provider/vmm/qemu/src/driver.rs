//! The driver: incarnations by name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use flames_clock::{Clock, ClockExt};
use flames_error::{Error, ErrorKind, Result};
use flames_host::blocking;
use flames_host::files::{failed, remove_all};
use flames_host::process::scan;
use flames_vmm::{
    AGENT_PORT, AgentChannel, BootSource, ConsoleChunk, DriverCapabilities, Found, GuestStream,
    IncarnationName, MachineSpec, Observation, Phase, Prepared, SnapshotArtefacts, SnapshotKind, StartFrom,
    Stats, StopHow, Update, Usability, VmDriver,
};
use flames_vmm_local::{Folder, Incarnations, OnHost, open_root};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::json;

use crate::acceleration::{Accelerated, Accelerations, channel_problem};
use crate::command_line::has_balloon;
use crate::config::{Channel, QemuConfig};
use crate::context::Context;
use crate::folder::Records;
use crate::prepare::Kernels;
use crate::vm::Vm;

/// The names of folders in which a kernel is tried begin with it.
const TRIAL: &str = ".try-";

/// Runs VMs with QEMU. See the crate's documentation.
#[derive(Debug)]
pub struct QemuDriver {
    context: Arc<Context>,
    vms: Incarnations<Vm>,
    kernels: Kernels,
    accelerations: Accelerations,
}

impl QemuDriver {
    /// A driver over the folder of the settings, which is made when it is absent. At one time, one driver works in a folder.
    ///
    /// Errors: `InvalidInput` for settings out of range; `Internal` when the folder cannot be made or entered.
    pub fn new(mut config: QemuConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        config.console().check()?;
        config.folder = open_root(&config.folder)?;
        if config.folder.to_str().is_none() {
            return Err(Error::invalid("vmm.new", "folder", "The folder's path must be valid UTF-8."));
        }
        Ok(Self {
            vms: Incarnations::new(config.folder.clone()),
            context: Arc::new(Context::new(config, clock)?),
            kernels: Kernels::default(),
            accelerations: Accelerations::default(),
        })
    }

    /// Tries the kernel under KVM now, when that has not been done since the host's boot and the settings ask for it, so that
    /// the first `prepare` with it need not. Takes up to the probe's deadline.
    ///
    /// Errors: as [`VmDriver::prepare`] for the kernel.
    pub async fn probe(&self, kernel: &Path, initramfs: Option<&Path>) -> Result<Accelerated> {
        let mut boot = BootSource {
            kernel: kernel.to_owned(),
            initramfs: initramfs.map(Path::to_owned),
            extra_arguments: Vec::new(),
        };
        // Not among what `adopt` waits for: a host need not wait for it, and what clears leftovers away leaves a try alone.
        let machine = self.kernels.machine(&mut boot).await?;
        self.accelerations.decide(&self.context, &boot, machine).await
    }

    /// The kernels and initramfs that the incarnations on this host were prepared with, whatever process made them. For whoever makes
    /// such files, to know which are needed no more.
    ///
    /// Errors: `Unavailable`, `Corrupt` when that of one incarnation cannot be known.
    pub async fn boot_files(&self) -> Result<BTreeSet<PathBuf>> {
        self.vms.boot_files(|folder| Ok(folder.spec()?.spec.boot)).await
    }
}

#[async_trait]
impl VmDriver for QemuDriver {
    fn name(&self) -> &'static str {
        "qemu"
    }

    async fn capabilities(&self) -> Result<DriverCapabilities> {
        let context = &self.context;
        let installed = context.installed().await;
        // Measured now, so that the first start need not.
        context.tsc_khz().await;
        let problem = installed.as_ref().err().map(|error| error.message().to_owned());
        let problem = problem.or_else(|| channel_problem(context).map(|error| error.message().to_owned()));
        let is_serial = context.config.channel == Channel::VirtioSerial;
        Ok(DriverCapabilities {
            usability: problem.map_or(Usability::Usable, Usability::Unusable),
            acceleration: self.accelerations.describe(context),
            version: installed.ok().map(|installed| installed.version.clone()),
            agent_channel: if is_serial { AgentChannel::Exclusive } else { AgentChannel::Multiplexed },
            pause: true,
            snapshot: is_serial,
            diff_snapshot: false,
            guest_cpu: self.accelerations.guest_cpu(context),
            user_network: true,
            tap_network: false,
            live_network_policy: false,
            // The contract's limit; QEMU's microvm takes 288.
            max_vcpus: 256,
        })
    }

    async fn adopt(&self) -> Result<Vec<Found>> {
        {
            let _clearing = self.vms.clearing().await;
            self.clear_leftovers().await?;
        }
        let observe = |incarnation: IncarnationName| async move { self.observe(&incarnation).await };
        Ok(self.vms.found(self.vms.names().await?, observe).await)
    }

    async fn prepare(&self, incarnation: &IncarnationName, spec: &MachineSpec) -> Result<Prepared> {
        let _making = self.vms.making().await;
        self.vms
            .on(incarnation, |vm| async move {
                vm.prepare(&self.context, &self.kernels, &self.accelerations, spec).await
            })
            .await
    }

    fn waited_for(&self) -> Option<String> {
        self.accelerations.waited_for()
    }

    async fn start(&self, incarnation: &IncarnationName, from: StartFrom, leave_paused: bool) -> Result<()> {
        let snapshot = match &from {
            StartFrom::Boot => None,
            StartFrom::Snapshot(artefacts) => Some(artefacts.state.as_path()),
        };
        self.vms
            .on(incarnation, |vm| async move { vm.start(&self.context, snapshot, leave_paused).await })
            .await
    }

    async fn pause(&self, incarnation: &IncarnationName) -> Result<()> {
        self.vms.on(incarnation, |vm| async move { vm.pause(&self.context).await }).await
    }

    async fn resume(&self, incarnation: &IncarnationName) -> Result<()> {
        self.vms.on(incarnation, |vm| async move { vm.resume(&self.context).await }).await
    }

    async fn update(&self, incarnation: &IncarnationName, update: &Update) -> Result<()> {
        const OPERATION: &str = "vmm.update";
        let mebibytes = match update {
            Update::BalloonMib(mebibytes) => *mebibytes,
            Update::DrivePath { .. } => {
                return Err(Error::new(
                    ErrorKind::NotSupported,
                    OPERATION,
                    "a disk's file cannot be replaced live",
                ));
            }
            Update::Network(_) => {
                let message = "this driver has no taps, and so no policy of one";
                return Err(Error::new(ErrorKind::NotSupported, OPERATION, message));
            }
        };
        self.vms
            .on(incarnation, |vm| async move {
                let _turn = vm.turn(&self.context, OPERATION).await?;
                let attached = vm.alive(&self.context, OPERATION).await?;
                let record = vm.folder.spec()?;
                if !has_balloon(&record) {
                    let message = "the machine has no device slot left for a balloon";
                    return Err(Error::new(ErrorKind::NotSupported, OPERATION, message));
                }
                // Below the least memory of a machine no guest lives.
                let left =
                    record.spec.memory_mib.checked_sub(mebibytes).filter(|left| *left >= 16).ok_or_else(
                        || {
                            Error::invalid(
                                OPERATION,
                                "balloon_mib",
                                "A balloon leaves its machine at least 16 MiB.",
                            )
                        },
                    )?;
                let arguments = json!({ "value": left * 1024 * 1024 });
                let done =
                    attached.command("balloon", arguments, self.context.config.deadlines.command).await;
                done.map(|_| ()).map_err(|error| vm.command_failed(OPERATION, &attached, error))
            })
            .await
    }

    async fn snapshot(
        &self,
        incarnation: &IncarnationName,
        name: &str,
        kind: SnapshotKind,
    ) -> Result<SnapshotArtefacts> {
        self.vms.on(incarnation, |vm| async move { vm.snapshot(&self.context, name, kind).await }).await
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
                    Err(error) => return Err(vm.command_failed(OPERATION, &attached, error)),
                }
                let silent = |error| {
                    Error::unavailable(OPERATION, "nothing answers in the guest")
                        .with_resource("incarnation", vm.name.as_str())
                        .with_source(error)
                };
                match vm.folder.spec()?.channel {
                    Channel::VirtioSerial if port == AGENT_PORT => {
                        let stream = vm.folder.connect("agent.sock").await.map_err(silent)?;
                        Ok(Box::new(vm.agent.replace(stream)) as GuestStream)
                    }
                    Channel::VirtioSerial => {
                        let message = "the virtio-serial channel leads to the agent's port only";
                        Err(Error::new(ErrorKind::NotSupported, OPERATION, message)
                            .with_context("port", port))
                    }
                    Channel::Vsock => {
                        let connect = crate::vsock::connect(&vm.folder, port);
                        let deadline = self.context.config.deadlines.command;
                        match self.context.clock.timeout(deadline, connect).await {
                            Ok(stream) => Ok(Box::new(stream.map_err(silent)?) as GuestStream),
                            Err(late) => Err(silent(std::io::Error::new(std::io::ErrorKind::TimedOut, late))),
                        }
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
                match vm.folder.spec()?.channel {
                    Channel::VirtioSerial => {
                        let message = "over the virtio-serial channel only the host connects";
                        Err(Error::new(ErrorKind::NotSupported, OPERATION, message))
                    }
                    Channel::Vsock => {
                        let accepted = crate::vsock::accept(&vm.folder, port)
                            .map_err(|error| failed("the guest's connections cannot be taken", error))?;
                        Ok(accepted.boxed())
                    }
                }
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
        let _making = self.vms.making().await;
        self.vms.on(incarnation, |vm| async move { vm.destroy(&self.context).await }).await
    }

    async fn exits(&self) -> Result<BoxStream<'static, IncarnationName>> {
        Ok(self.context.exits.hints())
    }
}

impl QemuDriver {
    /// Takes away what earlier drivers left half made, half removed, or under trial.
    async fn clear_leftovers(&self) -> Result<()> {
        let root = self.context.root().to_owned();
        let processes = blocking(move || {
            let io = |error| failed("leftovers cannot be removed", error);
            let mut processes = Vec::new();
            for left in Folder::left_over(&root, &[".new-", ".old-", TRIAL])? {
                // One that is locked is being made by a driver that was dropped and has not ended yet, or is a try under way.
                let folder = Folder::new(left);
                let Ok(Some(_lock)) = folder.try_lock() else { continue };
                if folder.path().file_name().is_some_and(|name| name.to_string_lossy().starts_with(TRIAL)) {
                    processes.extend(scan(&folder.monitor_marker()).map_err(io)?);
                }
                remove_all(folder.path()).map_err(io)?;
            }
            Ok(processes)
        })
        .await?;
        for process in &processes {
            crate::attached::end(process, &*self.context.clock, self.context.config.deadlines.kill).await;
        }
        Ok(())
    }
}
