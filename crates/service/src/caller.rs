//! Who calls, and how a mutation is made safe to send twice.

use flames_clock::Timestamp;
use flames_model::{Actor, Event, EventKind, IncarnationId, ProjectName, Reason, Vm};

/// Who calls, for which project, in which request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Whose things are meant.
    pub project: ProjectName,
    /// Who.
    pub actor: Actor,
    /// The request, for tracing.
    pub request_id: String,
}

impl Caller {
    /// The control plane itself, acting for a project.
    pub fn system(project: ProjectName, request_id: impl Into<String>) -> Self {
        Self { project, actor: Actor::System, request_id: request_id.into() }
    }

    /// An event that this caller causes.
    pub(crate) fn event(&self, at: Timestamp, kind: EventKind) -> Event {
        Event {
            at,
            actor: self.actor.clone(),
            request_id: self.request_id.clone(),
            kind,
            vm: None,
            vm_name: None,
            incarnation: None,
            reason: None,
        }
    }

    /// An event on a VM that this caller causes.
    pub(crate) fn vm_event(&self, at: Timestamp, vm: &Vm, kind: EventKind, reason: Option<Reason>) -> Event {
        Event {
            vm: Some(vm.id),
            vm_name: Some(vm.name.clone()),
            incarnation: vm.incarnation,
            reason,
            ..self.event(at, kind)
        }
    }

    pub(crate) fn incarnation_event(
        &self,
        at: Timestamp,
        vm: &Vm,
        incarnation: IncarnationId,
        kind: EventKind,
        reason: Option<Reason>,
    ) -> Event {
        Event { incarnation: Some(incarnation), ..self.vm_event(at, vm, kind, reason) }
    }
}

/// What makes a request recognisable when it is sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestKey {
    /// The client's key: 1 to 255 printable ASCII bytes.
    pub key: String,
    /// Method and path: the same key on another route is another request.
    pub route: String,
    /// A digest of the body: the same key with another body is a mistake.
    pub body_digest: String,
}

/// How a mutation is to be applied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mutation {
    /// Carry it out at most once under this key, and answer a repetition with what came of it.
    pub request: Option<RequestKey>,
    /// Only if the record has this generation.
    pub if_generation: Option<u64>,
}
