//! VMs as they are shown.

use std::collections::BTreeMap;

use flames_model::{ControllerId, IncarnationId, SnapshotId, Timestamp, VmId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Address, DesiredState, ExitCause, IncarnationState, NetworkStatus, ReasonCode, VmSpec, VmState};

/// Why something is as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reason {
    /// By kind.
    pub code: ReasonCode,
    /// As a sentence.
    pub message: String,
}

impl From<&flames_model::Reason> for Reason {
    fn from(reason: &flames_model::Reason) -> Self {
        Self { code: reason.code.into(), message: reason.message.clone() }
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Exit {
    /// The workload's exit code, when it exited.
    pub code: Option<i32>,
    /// The signal that ended the workload, when one did.
    pub signal: Option<i32>,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// What ended it.
    pub cause: ExitCause,
}

impl From<flames_model::Exit> for Exit {
    fn from(exit: flames_model::Exit) -> Self {
        Self { code: exit.code, signal: exit.signal, at: exit.at, cause: exit.cause.into() }
    }
}

/// Where one port of a guest is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Endpoint {
    /// The port inside the guest.
    pub guest_port: u16,
    /// The address that leads to it.
    #[schema(example = "127.0.0.1:8080")]
    pub address: String,
}

/// Where one port of a VM is reached through the ingress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Route {
    /// The port inside the guest.
    pub guest_port: u16,
    /// The URL.
    #[schema(example = "http://8080-vm-01890a5dac96774bbcceb302099a8057.localhost:7080")]
    pub url: String,
}

/// When an incarnation first was in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TimelineEntry {
    /// Which state.
    pub state: IncarnationState,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// One try at running a VM on one controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Incarnation {
    /// Its identity. Everything that a host makes for it is named after this.
    #[schema(value_type = String, example = "inc_01890a5dac96774bbcceb302099a8057")]
    pub id: IncarnationId,
    /// Which of the VM's runs.
    pub run: u64,
    /// Where it runs.
    #[schema(value_type = String, example = "ctl_01890a5dac96774bbcceb302099a8057")]
    pub controller: ControllerId,
    /// Where it is in its life, as last reported.
    pub state: IncarnationState,
    /// Why it is as it is, when that needs saying.
    pub reason: Option<Reason>,
    /// How it ended, when it has.
    pub exit: Option<Exit>,
    /// Where its ports are reached.
    pub endpoints: Vec<Endpoint>,
    /// Its guest's own address; null where its host gives none.
    #[serde(default)]
    pub address: Option<Address>,
    /// When it first was in each state, in the order of time.
    pub timeline: Vec<TimelineEntry>,
    /// When it was placed.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When its host gave back all that it held.
    #[schema(schema_with = crate::schema::optional_time)]
    pub released_at: Option<Timestamp>,
}

impl From<&flames_model::Incarnation> for Incarnation {
    fn from(incarnation: &flames_model::Incarnation) -> Self {
        let entry = |(state, at): (&flames_model::IncarnationState, &Timestamp)| TimelineEntry {
            state: (*state).into(),
            at: *at,
        };
        let mut timeline: Vec<_> = incarnation.timeline.iter().map(entry).collect();
        timeline.sort_by_key(|entry| (entry.at, entry.state));
        let endpoint = |endpoint: &flames_model::Endpoint| Endpoint {
            guest_port: endpoint.guest_port,
            address: endpoint.address.to_string(),
        };
        Self {
            id: incarnation.id,
            run: incarnation.run,
            controller: incarnation.controller,
            state: incarnation.state.into(),
            reason: incarnation.reason.as_ref().map(Into::into),
            exit: incarnation.exit.map(Into::into),
            endpoints: incarnation.endpoints.iter().map(endpoint).collect(),
            address: incarnation.address.as_ref().map(Into::into),
            timeline,
            created_at: incarnation.created_at,
            released_at: incarnation.released_at,
        }
    }
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Its identity.
    #[schema(value_type = String, example = "vm_01890a5dac96774bbcceb302099a8057")]
    pub id: VmId,
    /// Its name. Free again as soon as the VM is wanted deleted.
    pub name: String,
    /// Whose.
    pub project: String,
    /// What it is chosen by.
    pub labels: BTreeMap<String, String>,
    /// What was asked for.
    pub spec: VmSpec,
    /// What is wanted of it.
    pub desired: DesiredState,
    /// How it looks.
    pub state: VmState,
    /// Why it looks so, when that needs saying.
    pub reason: Option<Reason>,
    /// Counts the runs that were asked for.
    pub run: u64,
    /// Grows with each change of what is wanted; also the `ETag`.
    pub generation: u64,
    /// How often the present run was started again in a row.
    pub restarts: u32,
    /// The present try at it.
    pub incarnation: Option<Incarnation>,
    /// Whether what `spec.network` says is in force.
    #[serde(default)]
    pub network: NetworkStatus,
    /// Where its ports are reached through the ingress, while it runs or is paused.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// The snapshot that it was made from.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub restored_from: Option<SnapshotId>,
    /// When the present run is stopped at the latest.
    #[schema(schema_with = crate::schema::optional_time)]
    pub deadline: Option<Timestamp>,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When what is wanted changed last.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// When it was gone.
    #[schema(schema_with = crate::schema::optional_time)]
    pub deleted_at: Option<Timestamp>,
}

impl Vm {
    /// What is shown of a VM with its current incarnation, which looks like `state`. Its routes are for who knows the ingress to add.
    pub fn new(
        vm: &flames_model::Vm,
        incarnation: Option<&flames_model::Incarnation>,
        state: flames_model::VmState,
    ) -> Self {
        // The nearest cause first: no place now, else what the host says, else why it is wanted so. A host knows only that it was asked, not
        // that its time was up.
        let placed = vm.unplaced.is_none();
        let requested = flames_model::ReasonCode::Requested;
        let by_itself = vm.desired_reason.as_ref().is_some_and(|reason| reason.code != requested);
        let reported = incarnation.filter(|_| placed).and_then(|incarnation| incarnation.reason.as_ref());
        let reported = reported.filter(|reason| !(by_itself && reason.code == requested));
        let reason = vm.unplaced.as_ref().or(reported).or(vm.desired_reason.as_ref());
        Self {
            id: vm.id,
            name: vm.name.to_string(),
            project: vm.project.to_string(),
            labels: vm.labels.pairs().clone(),
            spec: (&*vm.spec).into(),
            desired: vm.desired.into(),
            state: state.into(),
            reason: reason.map(Into::into),
            run: vm.run,
            generation: vm.generation,
            restarts: vm.restarts,
            incarnation: incarnation.map(Into::into),
            network: NetworkStatus::new(vm, incarnation),
            routes: Vec::new(),
            restored_from: vm.restored_from,
            deadline: vm.deadline,
            created_at: vm.created_at,
            updated_at: vm.updated_at,
            deleted_at: vm.deleted_at,
        }
    }

    /// How the present run ended, when it has.
    pub fn exit(&self) -> Option<Exit> {
        self.incarnation.as_ref().and_then(|incarnation| incarnation.exit)
    }
}

/// A page of VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmList {
    /// The VMs, by id. May be fewer than asked though there are more.
    pub items: Vec<Vm>,
    /// Where the next page begins; null: this was the last.
    pub next_cursor: Option<String>,
}

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WaitResult {
    /// Whether the VM is as hoped. `false`: the time was up, or it can never be.
    pub reached: bool,
    /// The VM as last read.
    pub vm: Vm,
}
