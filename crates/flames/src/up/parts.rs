//! The parts of an all-in-one Flames: a control plane and a host, in one process.

use std::sync::Arc;

use flames_client::{Client, ClientConfig, HostClient};
use flames_clock::Clock;
use flames_controller::{Refused, ShutdownMode, Superseded};
use flames_transport_host::HostConfig;
use flames_transport_link::{InProcessLinks, Registration};

use super::EPHEMERAL;
use super::host::{Host, Plane};
use super::plane::ControlPlane;
use crate::config::UpConfig;
use crate::data::LockedFolder;
use crate::exit::Failure;
use crate::output::Output;
use crate::providers::Plans;

/// Everything but the listeners.
pub(super) struct Parts {
    pub(super) plane: ControlPlane,
    pub(super) host: Host,
    _registration: Registration,
}

impl Parts {
    pub(super) async fn start(
        folder: &LockedFolder,
        arguments: &UpConfig,
        plans: Plans,
        clock: &Arc<dyn Clock>,
        output: Output,
    ) -> Result<Self, Failure> {
        let base =
            if arguments.ephemeral { folder.make(EPHEMERAL)? } else { folder.folder().path().to_owned() };
        let links = InProcessLinks::new(clock.clone());
        let plane = ControlPlane::start(&base, folder, plans, Arc::new(links.clone()), clock).await?;
        let router = flames_transport_host::router(plane.service.clone(), HostConfig::default());
        let client = Client::over(router, ClientConfig::default().with_clock(clock.clone()));
        let reached = Plane {
            api: Arc::new(HostClient::new(client)),
            blobs: plane.providers.blobs.clone(),
            // There can be no other process: this one holds the folder.
            superseded: Superseded::RegisterAgain,
            refused: Refused::TryOn,
        };
        let host = match Host::start(&base, folder, arguments, reached, clock, output).await {
            Ok(host) => host,
            Err(failure) => {
                plane.shutdown().await;
                return Err(failure);
            }
        };
        let registration = links.register(host.controller.id(), host.handler());
        Ok(Self { plane, host, _registration: registration })
    }

    /// Takes it apart, in the order in which the parts need each other: reports are taken until the controller has ended.
    pub(super) async fn shutdown(self, mode: ShutdownMode) {
        self.plane.api.shutdown().await;
        self.host.shutdown(mode).await;
        self.plane.shutdown().await;
    }
}
