//! What steps that are committed together reserve on controllers.

use std::collections::BTreeMap;
use std::sync::Arc;

use flames_model::{AddressSlots, ControllerAllocation, ControllerId, Resources};
use flames_records::{Change, Versioned};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One step, decided and not committed yet.
pub(crate) struct Decided {
    /// All that it changes but the controller's allocation.
    pub(crate) change: Change,
    /// What it reserves.
    pub(crate) reserve: Option<Reserve>,
}

impl From<Change> for Decided {
    fn from(change: Change) -> Self {
        Self { change, reserve: None }
    }
}

/// What one placement reserves.
pub(crate) struct Reserve {
    /// What is stored of the controller.
    pub(crate) allocation: Versioned<ControllerAllocation>,
    pub(crate) resources: Resources,
    /// The places of the controller's address block.
    pub(crate) addresses: AddressSlots,
}

/// What is reserved by the steps of one commit, each controller's sum written once. To be kept until that commit is over.
#[derive(Default)]
pub(crate) struct Reservations {
    by_controller: BTreeMap<ControllerId, Reserve>,
    turn: Option<OwnedSemaphorePermit>,
}

impl Reservations {
    /// Takes the turn to place, unless it was taken already.
    pub(crate) async fn take_turn(&mut self, turns: &Arc<Semaphore>) {
        if self.turn.is_none() {
            // Turns are never closed.
            self.turn = Arc::clone(turns).acquire_owned().await.ok();
        }
    }

    /// What is stored of a controller's allocation, and what these steps add to it; none when they reserve nothing there.
    pub(crate) fn of(&self, controller: ControllerId) -> Option<&Reserve> {
        self.by_controller.get(&controller)
    }

    pub(crate) fn add(&mut self, reserve: Option<Reserve>) {
        let Some(reserve) = reserve else { return };
        match self.by_controller.get_mut(&reserve.allocation.controller) {
            Some(known) => {
                known.resources = known.resources + reserve.resources;
                known.addresses.insert_all(&reserve.addresses);
            }
            None => drop(self.by_controller.insert(reserve.allocation.controller, reserve)),
        }
    }

    /// How many operations writing these takes, with this one among them.
    pub(crate) fn operations_with(&self, reserve: Option<&Reserve>) -> usize {
        let is_new = |reserve: &&Reserve| !self.by_controller.contains_key(&reserve.allocation.controller);
        // A check and a put for each.
        2 * (self.by_controller.len() + usize::from(reserve.filter(is_new).is_some()))
    }

    /// Adds them to the change that they belong to.
    pub(crate) fn write(&self, change: &mut Change) {
        for Reserve { allocation, resources, addresses } in self.by_controller.values() {
            let mut new = ControllerAllocation::clone(allocation);
            new.reserved = new.reserved + *resources;
            new.addresses.insert_all(addresses);
            change.update_allocation(allocation, new);
        }
    }
}
