//! Making VMs from snapshots.

use std::sync::Arc;

use flames_error::{Error, ErrorKind, Result};
use flames_model::{EventKind, Labels, NetworkSpec, Snapshot, SnapshotState, Vm, VmName, VmSpec, VmState};
use flames_records::{Change, Outcome};

use crate::mutation::ATTEMPTS;
use crate::{Caller, Mutation, Service, SnapshotRef, VmView, codes};

/// What a VM that is made from a snapshot has of its own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RestoreSnapshot {
    /// Its name; none: one is made up.
    pub name: Option<VmName>,
    /// What it is chosen by; none: the labels of the VM that was saved.
    pub labels: Option<Labels>,
    /// What it may reach, and who may reach it; none: as the VM that was saved.
    pub network: Option<NetworkSpec>,
}

impl Service {
    /// Makes a VM of a snapshot: wanted running, with the spec of the VM that was saved. Ports get any free port of their host.
    ///
    /// Errors: `NotFound` ([`codes::SNAPSHOT_NOT_FOUND`]); `Conflict` ([`codes::SNAPSHOT_NOT_READY`]); `AlreadyExists`
    /// ([`codes::VM_NAME_TAKEN`]); `InvalidInput` ([`codes::INVALID_FIELD`]; [`codes::IDEMPOTENCY_KEY_REUSED`]); `Unavailable`;
    /// `OutcomeUnknown`.
    pub async fn restore_snapshot(
        &self,
        caller: &Caller,
        snapshot: &SnapshotRef,
        restore: RestoreSnapshot,
        mutation: &Mutation,
    ) -> Result<VmView> {
        if let Some(view) = self.replayed_vm(caller, mutation).await? {
            return Ok(view);
        }
        for _ in 0..ATTEMPTS {
            let found = self.find_snapshot(caller, snapshot).await?;
            if found.state != SnapshotState::Ready {
                return Err(not_ready(&found));
            }
            let mut spec = VmSpec::clone(&found.spec);
            for port in &mut spec.ports {
                // The VM that was saved may have it.
                port.host_port = None;
            }
            if let Some(network) = &restore.network {
                spec.network = network.clone();
                spec.validate().map_err(codes::coded_input)?;
            }
            let labels = restore.labels.clone().unwrap_or_else(|| found.labels.clone());
            let new = self.new_vm(caller, restore.name.as_ref(), &labels, &Arc::new(spec))?;
            let vm = Vm { restored_from: Some(found.id), ..new };
            let mut change = Change::new();
            change
                .insert_vm(&vm)
                .require_snapshot(&found)
                .event(Some(&vm.project), &caller.vm_event(vm.created_at, &vm, EventKind::VmCreated, None))
                .due(&vm.project, vm.id, vm.created_at);
            if let Some(deadline) = vm.deadline {
                change.due(&vm.project, vm.id, deadline);
            }
            if mutation.request.is_some() {
                self.record_request(caller, mutation, &mut change, Outcome::Vm(vm.id));
            }
            match self.records().apply_knowing(change).await {
                Ok(()) => return Ok(VmView { vm: vm.into(), incarnation: None, state: VmState::Pending }),
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    if let Some(view) = self.replayed_vm(caller, mutation).await? {
                        return Ok(view);
                    }
                    if let Some(name) = &restore.name
                        && let Some(other) = self.records().vm_named(&caller.project, name).await?
                    {
                        return Err(crate::vms::name_taken(name, other));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(codes::contended("service.restore_snapshot"))
    }
}

fn not_ready(snapshot: &Snapshot) -> Error {
    let why = snapshot.reason.as_ref().map(|reason| format!(": {}", reason.message)).unwrap_or_default();
    Error::new(ErrorKind::Conflict, "service.restore_snapshot", "the snapshot is not ready")
        .with_resource("snapshot", snapshot.id.to_string())
        .with_code(codes::SNAPSHOT_NOT_READY)
        .with_user_message(format!("The snapshot `{}` is {}, not ready{why}", snapshot.name, snapshot.state))
}
