//! Changing the network of a VM.

use std::sync::Arc;

use flames_error::{Error, ErrorKind, Result};
use flames_model::{Controller, ControllerId, DesiredState, EventKind, Incarnation, NetworkSpec, Vm};
use flames_records::VmEntry;

use crate::mutation::{ATTEMPTS, Decision};
use crate::{Caller, Mutation, Service, VmRef, VmView, codes};

/// The incarnation whose machine a change of the network would have to reach: the present run's, as long as it may live.
fn living(entry: &VmEntry) -> Option<&Incarnation> {
    let runs = matches!(entry.vm.desired, DesiredState::Running | DesiredState::Paused);
    entry.incarnation.as_deref().filter(|incarnation| {
        runs && incarnation.run == entry.vm.run
            && incarnation.released_at.is_none()
            && !incarnation.state.has_ended()
    })
}

impl Service {
    /// Replaces what a VM may reach, and who may reach it. A VM that lives is put under it by its host, connections that it does not admit
    /// are cut; [`Vm::is_network_in_force`] tells when that is so. A VM without a machine has it from its next run on, on a host that keeps it.
    ///
    /// Errors: as [`Service::start_vm`]; `InvalidInput` ([`codes::INVALID_FIELD`], with the field); `NotSupported`
    /// ([`codes::NETWORK_NOT_CHANGEABLE`]) when the VM lives on a host that cannot change it.
    pub async fn set_network(
        &self,
        caller: &Caller,
        vm: &VmRef,
        network: NetworkSpec,
        mutation: &Mutation,
    ) -> Result<VmView> {
        // First of all: what is never allowed is refused for what it is, not for a generation that is stale as well (RFC 9110 §13.2.1).
        network.validate().map_err(codes::coded_input)?;
        for _ in 0..ATTEMPTS {
            let host = self.host_of_living(caller, vm).await?;
            let known = host.as_ref().map(|(id, _)| *id);
            let answer = self
                .change_vm(caller, vm, mutation, |entry| {
                    let old: &Vm = &entry.vm;
                    if old.desired == DesiredState::Deleted {
                        return Err(codes::vm_deleted(&old.id.to_string()));
                    }
                    if old.spec.network == network {
                        return Ok(Decision::Unchanged);
                    }
                    let mut new = Vm { network_revision: old.network_revision + 1, ..old.clone() };
                    Arc::make_mut(&mut new.spec).network.clone_from(&network);
                    if let Some(incarnation) = living(entry) {
                        if known != Some(incarnation.controller) {
                            return Err(moved());
                        }
                        if let Some((_, controller)) = &host
                            && !(controller.driver.live_network && incarnation.address.is_some())
                        {
                            return Err(not_changeable(old, controller));
                        }
                    }
                    let kind = EventKind::VmNetwork { revision: new.network_revision };
                    Ok(Decision::Become(Box::new(new), kind))
                })
                .await;
            match answer {
                Err(error) if error.kind() == ErrorKind::Conflict && error.code() == Some(MOVED) => {}
                answer => return answer,
            }
        }
        Err(codes::contended("service.set_network"))
    }

    /// The host on which the VM lives, if it does.
    async fn host_of_living(
        &self,
        caller: &Caller,
        vm: &VmRef,
    ) -> Result<Option<(ControllerId, Controller)>> {
        let id = match self.resolve(caller, vm).await {
            Ok(id) => id,
            // Whether that is an error, tells who finds out whether the request was carried out before.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(entry) = self.records().vm(&caller.project, id).await? else { return Ok(None) };
        let Some(incarnation) = living(&entry) else { return Ok(None) };
        let controller = self.records().controller(incarnation.controller).await?;
        Ok(controller.map(|controller| (controller.id, controller.into_record())))
    }
}

/// Marks an answer that never leaves [`Service::set_network`]: the VM got another host between two reads.
const MOVED: &str = "MOVED";

fn moved() -> Error {
    Error::new(ErrorKind::Conflict, "service.set_network", "the VM is on another host by now")
        .with_code(MOVED)
}

fn not_changeable(vm: &Vm, controller: &Controller) -> Error {
    Error::new(ErrorKind::NotSupported, "service.set_network", "the host cannot change the network of what lives")
        .with_resource("vm", vm.id.to_string())
        .with_context("controller", controller.id)
        .with_code(codes::NETWORK_NOT_CHANGEABLE)
        .with_field("spec.network")
        .with_user_message(format!(
            "The VM `{0}` runs on `{1}`, whose driver {2} cannot change the network of a VM that runs. Stop it with `flames stop {0}`, \
             change its network, and start it again.",
            vm.name, controller.name, controller.driver.name
        ))
}
