//! Events as they are shown.

use flames_model::{ControllerId, EventKind, IncarnationId, SnapshotId, Timestamp, VmId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{DesiredState, Exit, IncarnationState, Reason, SnapshotState};

/// What kind of caller caused something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActorKind {
    /// A client of the API.
    User,
    /// A controller.
    Controller,
    /// The control plane itself.
    System,
}

/// Who caused something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Actor {
    /// What kind of caller.
    pub kind: ActorKind,
    /// Which one; null for the control plane itself.
    pub id: Option<String>,
}

impl From<&flames_model::Actor> for Actor {
    fn from(actor: &flames_model::Actor) -> Self {
        match actor {
            flames_model::Actor::User(name) => Self { kind: ActorKind::User, id: Some(name.clone()) },
            flames_model::Actor::Controller(id) => {
                Self { kind: ActorKind::Controller, id: Some(id.to_string()) }
            }
            flames_model::Actor::System => Self { kind: ActorKind::System, id: None },
        }
    }
}

/// What happened. New ones may be added: ignore what you do not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    /// A VM was created.
    VmCreated,
    /// What is wanted of a VM was changed.
    VmDesired,
    /// A VM's labels were changed.
    VmLabelled,
    /// What a VM may reach was changed.
    VmNetwork,
    /// A VM's machine is under another network than before, or its host tells why it is not.
    VmNetworkApplied,
    /// No place was found for a VM; it is tried again.
    VmUnplaced,
    /// A VM was placed on a controller.
    VmPlaced,
    /// A VM's incarnation is in another state.
    VmState,
    /// A VM's incarnation gave back all that it held.
    VmReleased,
    /// A VM is gone.
    VmDeleted,
    /// An image was added or replaced.
    ImageImported,
    /// An image was removed.
    ImageRemoved,
    /// A snapshot was asked for.
    SnapshotCreated,
    /// A snapshot is in another state.
    SnapshotState,
    /// A snapshot was removed.
    SnapshotDeleted,
    /// A controller registered.
    ControllerRegistered,
    /// A controller takes nothing new, or takes VMs again.
    ControllerCordoned,
    /// A controller did not renew its lease.
    ControllerLost,
    /// A controller was removed.
    ControllerRemoved,
    /// Something that this version does not know.
    #[serde(other)]
    Unknown,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its place in the log: where a follower that has seen this event resumes.
    #[schema(pattern = "^[0-9]+-[0-9]+$", example = "42-0")]
    pub position: String,
    /// What happened.
    #[serde(rename = "type")]
    pub event_type: EventType,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Who caused it.
    pub actor: Actor,
    /// The request that caused it.
    pub request_id: String,
    /// The VM concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub vm: Option<VmId>,
    /// The VM's name at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_name: Option<String>,
    /// The incarnation concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub incarnation: Option<IncarnationId>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// `vm_desired`: what is wanted now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<DesiredState>,
    /// `vm_desired`: the run it is wanted for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<u64>,
    /// `vm_network`, `vm_network_applied`: the revision of the network that is wanted, or that the machine is under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_revision: Option<u64>,
    /// `vm_state`: which state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<IncarnationState>,
    /// `vm_state`: how the workload ended, when it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// `vm_placed`, `controller_…`: which controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub controller: Option<ControllerId>,
    /// `controller_cordoned`: whether it takes nothing new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordoned: Option<bool>,
    /// `image_…`: which image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// `snapshot_…`: which snapshot. `vm` is the one that was saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub snapshot: Option<SnapshotId>,
    /// `snapshot_state`: which state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_state: Option<SnapshotState>,
}

impl Event {
    /// What is shown of an event at a position of the log.
    pub fn new(position: String, event: &flames_model::Event) -> Self {
        let mut shown = Self {
            position,
            event_type: EventType::Unknown,
            at: event.at,
            actor: (&event.actor).into(),
            request_id: event.request_id.clone(),
            vm: event.vm,
            vm_name: event.vm_name.as_ref().map(ToString::to_string),
            incarnation: event.incarnation,
            reason: event.reason.as_ref().map(Into::into),
            desired: None,
            run: None,
            network_revision: None,
            state: None,
            exit: None,
            controller: None,
            cordoned: None,
            image: None,
            snapshot: None,
            snapshot_state: None,
        };
        shown.event_type = match &event.kind {
            EventKind::VmCreated => EventType::VmCreated,
            EventKind::VmDesired { desired, run } => {
                (shown.desired, shown.run) = (Some((*desired).into()), Some(*run));
                EventType::VmDesired
            }
            EventKind::VmLabelled => EventType::VmLabelled,
            EventKind::VmNetwork { revision } => {
                shown.network_revision = Some(*revision);
                EventType::VmNetwork
            }
            EventKind::VmNetworkApplied { revision } => {
                shown.network_revision = Some(*revision);
                EventType::VmNetworkApplied
            }
            EventKind::VmUnplaced => EventType::VmUnplaced,
            EventKind::VmPlaced { controller } => {
                shown.controller = Some(*controller);
                EventType::VmPlaced
            }
            EventKind::VmState { state, exit } => {
                (shown.state, shown.exit) = (Some((*state).into()), exit.map(Into::into));
                EventType::VmState
            }
            EventKind::VmReleased => EventType::VmReleased,
            EventKind::VmDeleted => EventType::VmDeleted,
            EventKind::ImageImported { image } => {
                shown.image = Some(image.to_string());
                EventType::ImageImported
            }
            EventKind::ImageRemoved { image } => {
                shown.image = Some(image.to_string());
                EventType::ImageRemoved
            }
            EventKind::SnapshotCreated { snapshot } => {
                shown.snapshot = Some(*snapshot);
                EventType::SnapshotCreated
            }
            EventKind::SnapshotState { snapshot, state } => {
                (shown.snapshot, shown.snapshot_state) = (Some(*snapshot), Some((*state).into()));
                EventType::SnapshotState
            }
            EventKind::SnapshotDeleted { snapshot } => {
                shown.snapshot = Some(*snapshot);
                EventType::SnapshotDeleted
            }
            EventKind::ControllerRegistered { controller } => {
                shown.controller = Some(*controller);
                EventType::ControllerRegistered
            }
            EventKind::ControllerCordoned { controller, cordoned } => {
                (shown.controller, shown.cordoned) = (Some(*controller), Some(*cordoned));
                EventType::ControllerCordoned
            }
            EventKind::ControllerLost { controller } => {
                shown.controller = Some(*controller);
                EventType::ControllerLost
            }
            EventKind::ControllerRemoved { controller } => {
                shown.controller = Some(*controller);
                EventType::ControllerRemoved
            }
        };
        shown
    }
}

/// A page of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventList {
    /// The events, oldest first.
    pub items: Vec<Event>,
    /// Where to go on: the last event's position, or what was asked for when there was none. Never null, since more may come.
    pub next_cursor: String,
}

/// One message of `text/event-stream`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerSentEvent {
    /// The event's position: what to resume from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[0-9]+-[0-9]+$")]
    pub id: Option<String>,
    /// The event's type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// An `Event` as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_a_newer_server_is_unknown_and_no_error() {
        let json = r#"{"position":"1-0","type":"vm_teleported","at":"2026-01-01T00:00:00Z",
            "actor":{"kind":"system","id":null},"request_id":"r","where":"moon"}"#;
        let event: Event = serde_json::from_str(json).unwrap();
        assert_eq!(event.event_type, EventType::Unknown);
    }
}
