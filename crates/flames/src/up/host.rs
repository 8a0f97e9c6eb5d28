//! The host: a driver, and the controller that drives it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use flames_blob::BlobStore;
use flames_client::HostApi;
use flames_clock::{Clock, SystemRandom};
use flames_controller::{
    Controller, ControllerConfig, ControllerParts, DEFAULT_OUTPUT_KEPT, FileFolder, GuestStreams, Offer,
    Refused, ShutdownMode, SnapshotStore, Superseded, Timings, detect_capacity,
};
use flames_error::Result;
use flames_model::{IncarnationId, Labels, Resources};
use flames_service::LinkChannel;
use flames_transport_link::LinkHandler;
use flames_wire::stream::StreamRequest;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::machines::{self, Machines};
use crate::config::UpConfig;
use crate::data::LockedFolder;
use crate::exit::Failure;
use crate::output::Output;

/// How the control plane is reached from a host, and what becomes of a controller that is not let in.
pub(crate) struct Plane {
    pub(crate) api: Arc<dyn HostApi>,
    pub(crate) blobs: Arc<dyn BlobStore>,
    pub(crate) superseded: Superseded,
    pub(crate) refused: Refused,
}

/// A controller with its driver.
pub(crate) struct Host {
    pub(crate) controller: Controller,
    /// The driver with what accelerates it, for people.
    pub(crate) driver: String,
    /// The kernel of VMs that name none.
    pub(crate) kernel: Option<String>,
    streams: TaskTracker,
    warming: Option<JoinHandle<()>>,
}

impl Host {
    /// Puts it together, with its files below `base`. The controller registers by itself, for as long as that takes.
    pub(crate) async fn start(
        base: &Path,
        folder: &LockedFolder,
        arguments: &UpConfig,
        plane: Plane,
        clock: &Arc<dyn Clock>,
        output: Output,
    ) -> std::result::Result<Self, Failure> {
        let machines = Machines::start(base, folder, arguments, plane.blobs.clone(), clock, output).await?;
        let host_folder: PathBuf = base.join("controller");
        let address_block = super::network::address_block(folder.folder().path(), arguments)?;
        let kept = FileFolder::open(&host_folder, DEFAULT_OUTPUT_KEPT).await?;
        let capacity = capacity(arguments, detect_capacity(&host_folder, Offer::default()).await?);
        let capabilities = machines.driver.capabilities().await?;
        let version = capabilities.version.map(|version| format!(" {version}")).unwrap_or_default();
        let driver = format!("{}{version}, {}", machines.driver.name(), capabilities.acceleration);
        let labels = Labels::new(arguments.host_labels.iter().cloned().collect(), "host-label")?;
        let config = ControllerConfig {
            labels,
            superseded: plane.superseded,
            refused: plane.refused,
            address_block,
            timings: Timings { agent_ready: arguments.boot_deadline, ..Timings::default() },
            ..ControllerConfig::new(arguments.name.clone(), capacity)
        };
        let controller = Controller::start(
            ControllerParts {
                driver: machines.driver,
                api: plane.api,
                artefacts: machines.artefacts,
                guests: machines.guests,
                folder: Arc::new(kept),
                snapshots: Arc::new(SnapshotStore::new(
                    plane.blobs,
                    machines.files,
                    machines::snapshots(base),
                )),
                clock: clock.clone(),
                random: Arc::new(SystemRandom),
            },
            config,
        )
        .await
        .map_err(|error| Failure::from(error).advise("`flames doctor` looks at what VMs need here."))?;
        Ok(Self {
            controller,
            driver,
            kernel: machines.kernel,
            streams: TaskTracker::new(),
            warming: machines.warming,
        })
    }

    /// Takes streams to its guests, whichever way they come.
    pub(crate) fn handler(&self) -> Arc<dyn LinkHandler> {
        Arc::new(Streams { streams: self.controller.streams(), tasks: self.streams.clone() })
    }

    /// Takes it apart; what it has to report is reported meanwhile.
    pub(crate) async fn shutdown(self, mode: ShutdownMode) {
        self.controller.shutdown(mode).await;
        self.streams.close();
        self.streams.wait().await;
        if let Some(warming) = self.warming {
            // Cut off, it takes the machine that it tries along.
            warming.abort();
            let _ = warming.await;
        }
    }
}

fn capacity(arguments: &UpConfig, detected: Resources) -> Resources {
    Resources {
        vcpus: arguments.capacity_cpus.unwrap_or(detected.vcpus),
        memory_mib: arguments.capacity_memory.unwrap_or(detected.memory_mib),
        disk_mib: arguments.capacity_disk.unwrap_or(detected.disk_mib),
        vms: arguments.capacity_vms.unwrap_or(detected.vms),
    }
}

/// The controller's end of links.
#[derive(Debug)]
struct Streams {
    streams: GuestStreams,
    tasks: TaskTracker,
}

#[async_trait]
impl LinkHandler for Streams {
    async fn open(
        &self,
        incarnation: IncarnationId,
        request: StreamRequest,
        channel: LinkChannel,
    ) -> Result<()> {
        let accepted = self.streams.open(incarnation, request)?;
        self.tasks.spawn(accepted.run(channel.sender, channel.receiver));
        Ok(())
    }
}
