//! Under which URLs ports of VMs are reached.

use std::fmt::Debug;

use flames_model::{VmId, VmState};

use crate::{Service, VmView};

/// Who knows the URLs of ports: whoever put an ingress beside the service.
pub trait PortUrls: Debug + Send + Sync + 'static {
    /// The URL of one port of one VM, from memory; none: it has none.
    fn url(&self, vm: VmId, guest_port: u16) -> Option<String>;
}

/// No URLs: for parts of the system without an ingress.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoUrls;

impl PortUrls for NoUrls {
    fn url(&self, _vm: VmId, _guest_port: u16) -> Option<String> {
        None
    }
}

impl Service {
    /// Where the ports of a VM are reached while it runs or is paused: guest port and URL of each.
    pub fn routes(&self, view: &VmView) -> Vec<(u16, String)> {
        if !matches!(view.state, VmState::Running | VmState::Pausing | VmState::Paused) {
            return Vec::new();
        }
        let ports = view.vm.spec.ports.iter().map(|port| port.guest_port);
        ports.filter_map(|port| Some((port, self.parts.urls.url(view.vm.id, port)?))).collect()
    }
}
