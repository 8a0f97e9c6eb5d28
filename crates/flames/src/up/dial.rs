//! What an ingress and the control plane know of each other: how ports inside guests are reached (through the host's link and the guest's
//! agent), and under which URLs callers reach them.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use flames_clock::ClockExt;
use flames_error::{Error, Result};
use flames_ingress::{Dial, Duplex, IngressProvider, Route, RouteKey, RouteOwner};
use flames_model::VmId;
use flames_service::{LinkStream, LinkTarget, PortUrls, Service};
use flames_transport_link::TcpOverLink;
use futures::FutureExt;
use futures::future::BoxFuture;

/// How long a stream to a guest's host may take to open.
const OPENING: Duration = Duration::from_secs(10);

/// Dials what reconciliation names: see `flames_service::LinkTarget`. The ingress is there before the service, which shows where it listens.
#[derive(Debug, Default)]
pub(super) struct GuestDial {
    service: OnceLock<Service>,
}

impl GuestDial {
    /// From now on guests are reached through this service. The first one counts.
    pub(super) fn reach_through(&self, service: Service) {
        let _ = self.service.set(service);
    }
}

impl Dial for GuestDial {
    fn dial(&self, incarnation: &str, port: u16) -> BoxFuture<'_, Result<Box<dyn Duplex>>> {
        let target = incarnation.parse::<LinkTarget>();
        async move {
            let starting = || Error::unavailable("ingress.dial", "the control plane is starting");
            let service = self.service.get().ok_or_else(starting)?;
            let opening = service.open_link(target?, LinkStream::Tcp(port));
            let channel = service.clock().timeout(OPENING, opening).await.unwrap_or_else(|late| {
                Err(Error::unavailable("ingress.dial", "the guest's host did not answer in time")
                    .with_source(late))
            })?;
            Ok(Box::new(TcpOverLink::new(channel)) as Box<dyn Duplex>)
        }
        .boxed()
    }
}

/// The URLs that the ingress gives the routes of reconciliation, which have no host names of their own.
#[derive(Debug)]
pub(super) struct IngressUrls(pub(super) Arc<dyn IngressProvider>);

impl PortUrls for IngressUrls {
    fn url(&self, vm: VmId, guest_port: u16) -> Option<String> {
        let key = RouteKey { vm: RouteOwner::new(vm.to_string()).ok()?, port: guest_port };
        self.0.url(&Route { key, hosts: Vec::new() })
    }
}
