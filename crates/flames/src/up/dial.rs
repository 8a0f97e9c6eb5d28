//! What an ingress and the control plane know of each other: how ports inside guests are reached (through the host's link and the guest's
//! agent), under which URLs callers reach them, and who wakes a VM that a request is for.

use std::sync::Arc;
use std::time::Duration;

use flames_clock::ClockExt;
use flames_error::{Error, Result};
use flames_ingress::{Dial, Duplex, IngressProvider, Route, RouteKey, RouteOwner};
#[cfg(feature = "proxy")]
use flames_ingress_proxy::WakeTarget;
#[cfg(feature = "proxy")]
use flames_model::{Actor, VmState};
use flames_model::{ProjectName, VmId};
use flames_reconcile::RestingVms;
#[cfg(feature = "proxy")]
use flames_service::{Caller, Mutation, VmRef, WaitFor};
use flames_service::{LinkStream, LinkTarget, PortUrls, Service};
use flames_transport_link::TcpOverLink;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::providers::Wake;

/// How long a stream to a guest's host may take to open.
const OPENING: Duration = Duration::from_secs(10);

/// Dials what reconciliation names: see `flames_service::LinkTarget`. The ingress is there before the service, which shows where it listens;
/// whoever dials before waits for it, as long as the ingress lets them.
#[derive(Debug, Default)]
pub(super) struct GuestDial {
    service: watch::Sender<Option<Service>>,
}

impl GuestDial {
    /// From now on guests are reached through this service.
    pub(super) fn reach_through(&self, service: Service) {
        self.service.send_replace(Some(service));
    }

    async fn service(&self) -> Result<Service> {
        let starting = || Error::unavailable("ingress.dial", "the control plane is starting");
        let mut service = self.service.subscribe();
        let known = service.wait_for(Option::is_some).await.map_err(|gone| starting().with_source(gone))?;
        known.clone().ok_or_else(starting)
    }
}

impl Dial for GuestDial {
    fn dial(&self, incarnation: &str, port: u16) -> BoxFuture<'_, Result<Box<dyn Duplex>>> {
        let target = incarnation.parse::<LinkTarget>();
        async move {
            let (target, service) = (target?, self.service().await?);
            let opening =
                async { TcpOverLink::connect(service.open_link(target, LinkStream::Tcp(port)).await?).await };
            let connection = service.clock().timeout(OPENING, opening).await.unwrap_or_else(|late| {
                Err(Error::unavailable("ingress.dial", "the guest's host did not answer in time")
                    .with_source(late))
            })?;
            Ok(Box::new(connection) as Box<dyn Duplex>)
        }
        .boxed()
    }
}

/// Who wakes the VMs of `resting` through the service that `dial` reaches guests through; none without a proxy in this process.
pub(super) fn waker(dial: &Arc<GuestDial>, resting: &Arc<RestingVms>, project: ProjectName) -> Option<Wake> {
    #[cfg(feature = "proxy")]
    return Some(Arc::new(Waker { dial: dial.clone(), resting: resting.clone(), project }));
    #[cfg(not(feature = "proxy"))]
    {
        let _ = (dial, resting, project);
        None
    }
}

/// How long a VM that is woken may take to run; the proxy gives up sooner, by its own deadline.
#[cfg(feature = "proxy")]
const WAKING: Duration = Duration::from_secs(300);

/// Wakes VMs that rest, for the requests that the proxy has for them.
#[cfg(feature = "proxy")]
#[derive(Debug)]
struct Waker {
    dial: Arc<GuestDial>,
    resting: Arc<RestingVms>,
    project: ProjectName,
}

/// The VM that a host name of an ingress names: `{port}-{vm}.{domain}`, where the underscore of an id is a dash, since no host name has one.
#[cfg(feature = "proxy")]
fn named_by(host: &str) -> Option<VmId> {
    host.split('.').next()?.split_once('-')?.1.replacen('-', "_", 1).parse().ok()
}

#[cfg(feature = "proxy")]
impl WakeTarget for Waker {
    fn resting(&self, host: &str, route: Option<&RouteKey>) -> Option<RouteOwner> {
        let vm = match route {
            Some(route) => route.vm.as_str().parse().ok(),
            None => named_by(host),
        }?;
        self.resting.contains(vm).then(|| RouteOwner::new(vm.to_string()).ok()).flatten()
    }

    fn wake<'a>(&'a self, vm: &'a RouteOwner) -> BoxFuture<'a, Result<()>> {
        async move {
            let service = self.dial.service().await?;
            let id: VmId = vm.as_str().parse()?;
            let caller =
                Caller { project: self.project.clone(), actor: Actor::System, request_id: "wake".to_owned() };
            let (vm, mutation) = (VmRef::from(id), Mutation::default());
            // A paused VM goes on by it too.
            service.start_vm(&caller, &vm, &mutation).await?;
            let until = service.clock().monotonic().saturating_add(WAKING);
            loop {
                let left = until.saturating_since(service.clock().monotonic());
                let running = WaitFor::State(VmState::Running);
                let waited = service.wait_vm(&caller, &vm, running, left).await?;
                if waited.reached {
                    break;
                }
                let state = waited.view.state;
                let in_vain = matches!(
                    state,
                    VmState::Stopped | VmState::Failed | VmState::Deleting | VmState::Deleted
                );
                if in_vain || left.is_zero() {
                    return Err(Error::unavailable("ingress.wake", "the VM did not come to run")
                        .with_context("state", state.as_str()));
                }
            }
            // Its routes follow in a moment; until then it counts as resting.
            let left = until.saturating_since(service.clock().monotonic());
            service.clock().timeout(left, self.resting.awake(id)).await.map_err(|late| {
                Error::unavailable("ingress.wake", "the VM runs and has no routes").with_source(late)
            })
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

#[cfg(all(test, feature = "proxy"))]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_of_the_ingress_names_its_vm_and_others_name_none() {
        let id = "vm_01890a5dac96774bbcceb302099a8057";
        assert_eq!(named_by("8080-vm-01890a5dac96774bbcceb302099a8057.localhost"), id.parse().ok());
        for host in ["", "localhost", "8080.localhost", "8080-vm-1.localhost", "web.example"] {
            assert_eq!(named_by(host), None, "{host}");
        }
    }
}
