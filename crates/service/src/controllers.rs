//! Controllers as operators see them.

use flames_error::{Error, ErrorKind, Result};
use flames_model::{
    Controller, ControllerAllocation, ControllerId, EventKind, Exit, ExitCause, Incarnation,
    IncarnationState, Reason, ReasonCode,
};
use flames_records::{Change, ListPage, Outcome, Versioned};

use crate::mutation::{ATTEMPTS, wrong_outcome};
use crate::{Caller, Mutation, Service, codes};

/// A controller with what is reserved on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerView {
    /// The controller.
    pub controller: Controller,
    /// What is reserved on it.
    pub allocation: ControllerAllocation,
    /// How many lease renewals it has made: alive while this moves.
    pub renewals: u64,
}

impl Service {
    /// A controller. Errors: `NotFound` ([`codes::CONTROLLER_NOT_FOUND`]).
    pub async fn get_controller(&self, id: ControllerId) -> Result<ControllerView> {
        let controller = self
            .records()
            .controller(id)
            .await?
            .ok_or_else(|| codes::controller_not_found(&id.to_string()))?;
        self.controller_view(controller).await
    }

    async fn controller_view(&self, controller: Versioned<Controller>) -> Result<ControllerView> {
        let id = controller.id;
        let none = ControllerAllocation::empty(id);
        let allocation =
            self.records().allocation(id).await?.map_or(none, |allocation| allocation.into_record());
        let renewals = self.records().lease(id).await?.map_or(0, |lease| lease.renewals);
        Ok(ControllerView { controller: controller.into_record(), allocation, renewals })
    }

    /// A page of controllers, by id.
    pub async fn list_controllers(
        &self,
        after: Option<ControllerId>,
        limit: usize,
    ) -> Result<ListPage<ControllerView, ControllerId>> {
        let page = self.records().controllers(after, limit.min(100)).await?;
        let mut items = Vec::with_capacity(page.items.len());
        for controller in page.items {
            items.push(self.controller_view(controller).await?);
        }
        Ok(ListPage { items, next: page.next })
    }

    /// Says whether new VMs are placed on a controller.
    ///
    /// Errors: `NotFound`; `InvalidInput` ([`codes::IDEMPOTENCY_KEY_REUSED`]); `Unavailable`; `OutcomeUnknown`.
    pub async fn cordon_controller(
        &self,
        caller: &Caller,
        id: ControllerId,
        cordoned: bool,
        mutation: &Mutation,
    ) -> Result<ControllerView> {
        match self.replay(caller, mutation).await? {
            Some(Outcome::Controller(id)) => return self.get_controller(id).await,
            Some(_) => return Err(wrong_outcome()),
            None => {}
        }
        for _ in 0..ATTEMPTS {
            let old = self
                .records()
                .controller(id)
                .await?
                .ok_or_else(|| codes::controller_not_found(&id.to_string()))?;
            if old.cordoned == cordoned {
                return self.get_controller(id).await;
            }
            let event =
                caller.event(self.clock().now(), EventKind::ControllerCordoned { controller: id, cordoned });
            let mut change = Change::new();
            change
                .update_controller(&old, &Controller { cordoned, ..Controller::clone(&old) })
                .event(None, &event);
            self.record_request(caller, mutation, &mut change, Outcome::Controller(id));
            match self.records().apply_knowing(change).await {
                Ok(()) => return self.get_controller(id).await,
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    if let Some(Outcome::Controller(id)) = self.replay(caller, mutation).await? {
                        return self.get_controller(id).await;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(codes::contended("service.cordon_controller"))
    }

    /// Removes a controller. One that holds VMs is refused, unless the operator confirms that its host is dead: then each of its
    /// incarnations is ended and released as if the host had said so.
    ///
    /// Errors: `NotFound`; `Conflict` ([`codes::CONTROLLER_IN_USE`]); `Unavailable`; `OutcomeUnknown`.
    pub async fn remove_controller(
        &self,
        caller: &Caller,
        id: ControllerId,
        confirmed_dead: bool,
        mutation: &Mutation,
    ) -> Result<()> {
        match self.replay(caller, mutation).await? {
            Some(Outcome::ControllerRemoved(_)) => return Ok(()),
            Some(_) => return Err(wrong_outcome()),
            None => {}
        }
        for _ in 0..ATTEMPTS {
            let old = self
                .records()
                .controller(id)
                .await?
                .ok_or_else(|| codes::controller_not_found(&id.to_string()))?;
            if !old.cordoned {
                // Nothing new must come while it is emptied.
                self.cordon_controller(caller, id, true, &Mutation::default()).await?;
                continue;
            }
            if confirmed_dead {
                self.bury_assignments(caller, id).await?;
            }
            let allocation = self.records().allocation(id).await?;
            let Some(allocation) = allocation else {
                return Err(codes::controller_not_found(&id.to_string()));
            };
            if *allocation != ControllerAllocation::empty(id)
                || !self.records().assignments(id, None, 1).await?.items.is_empty()
            {
                return Err(controller_in_use(id));
            }
            let event = caller.event(self.clock().now(), EventKind::ControllerRemoved { controller: id });
            let mut change = Change::new();
            change.remove_controller(&old, &allocation).event(None, &event);
            self.record_request(caller, mutation, &mut change, Outcome::ControllerRemoved(id));
            match self.records().apply_knowing(change).await {
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                other => return other,
            }
        }
        Err(codes::contended("service.remove_controller"))
    }

    /// Ends, releases and forgets everything that is assigned to a controller whose host is confirmed dead.
    async fn bury_assignments(&self, caller: &Caller, id: ControllerId) -> Result<()> {
        loop {
            let page = self.records().assignments(id, None, 100).await?;
            if page.items.is_empty() {
                return Ok(());
            }
            for assignment in page.items {
                let entry = self.records().vm(&assignment.project, assignment.vm).await?;
                let current = entry
                    .as_ref()
                    .and_then(|entry| entry.incarnation.as_ref())
                    .filter(|i| i.id == assignment.incarnation);
                let Some(allocation) = self.records().allocation(id).await? else { return Ok(()) };
                let disk = self
                    .records()
                    .disk(&assignment.project, assignment.vm)
                    .await?
                    .filter(|disk| disk.controller == id);
                let now = self.clock().now();
                let (mut freed, mut address) = (Default::default(), None);
                let mut change = Change::new();
                change.remove_assignment(&assignment).due(&assignment.project, assignment.vm, now);
                if let (Some(entry), Some(incarnation)) = (&entry, current) {
                    if incarnation.released_at.is_none() {
                        (freed, address) = (incarnation.resources, incarnation.address.as_ref());
                    }
                    let buried = bury(incarnation, now);
                    let kind = EventKind::VmState { state: buried.state, exit: buried.exit };
                    let event =
                        caller.incarnation_event(now, &entry.vm, incarnation.id, kind, buried.reason.clone());
                    change
                        .require_vm(&entry.vm)
                        .update_incarnation(incarnation, &buried)
                        .event(Some(&assignment.project), &event);
                }
                if let Some(disk) = &disk {
                    freed = freed + flames_model::Resources { disk_mib: disk.size_mib, ..Default::default() };
                    change.remove_disk(disk);
                }
                change.update_allocation(&allocation, allocation.without(freed, address));
                let reason =
                    Reason::new(ReasonCode::SnapshotFailed, "The host was lost before the guest was saved.");
                let event = |kind, reason| flames_model::Event {
                    vm: Some(assignment.vm),
                    vm_name: Some(assignment.name.clone()),
                    incarnation: Some(assignment.incarnation),
                    reason: Some(reason),
                    ..caller.event(now, kind)
                };
                self.records().abandon_snapshot(&mut change, &assignment, reason, event).await?;
                match self.records().apply(change).await {
                    Err(error) if error.kind() != ErrorKind::Conflict => return Err(error),
                    _ => {}
                }
            }
        }
    }
}

/// The incarnation after its host is confirmed dead.
fn bury(incarnation: &Incarnation, now: flames_model::Timestamp) -> Incarnation {
    let mut buried = incarnation.clone();
    if !buried.state.has_ended() {
        buried.state = IncarnationState::Failed;
        buried.reason =
            Some(Reason::new(ReasonCode::HostConfirmedDead, "An operator confirmed that its host is dead."));
        buried.exit = Some(Exit { code: None, signal: None, at: now, cause: ExitCause::Machine });
        buried.timeline.entry(IncarnationState::Failed).or_insert(now);
    }
    buried.released_at = buried.released_at.or(Some(now));
    buried.purged_at = buried.purged_at.or(Some(now));
    // No report of the dead host counts any more, should it come back.
    buried.sequence = u64::MAX;
    buried
}

fn controller_in_use(id: ControllerId) -> Error {
    Error::new(ErrorKind::Conflict, "service.remove_controller", "the controller still holds VMs")
        .with_resource("controller", id.to_string())
        .with_code(codes::CONTROLLER_IN_USE)
        .with_user_message(format!(
            "The controller {id} still holds VMs. Delete them first, or, if its host is dead for certain, use --confirmed-dead."
        ))
}
