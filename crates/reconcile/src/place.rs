//! Placing a VM: decide on a view that may be old, then commit what only holds if the truth agrees.

use std::sync::{Arc, PoisonError};

use flames_clock::{Monotonic, RandomExt};
use flames_error::Result;
use flames_model::{
    AddressSlots, AppliedNetwork, Assignment, Controller, ControllerAllocation, ControllerId, Disk, DiskId,
    EventKind, FencingToken, GuestAddress, Image, ImageManifest, Incarnation, IncarnationId,
    IncarnationState, Reason, ReasonCode, Resources, RestoreOrder, Snapshot, Source, Vm, Wanted,
    restores_from,
};
use flames_records::{Change, DueEntry, Versioned, VmEntry};
use flames_scheduler::{Candidate, Decision, Request};

use crate::reserve::{Decided, Reservations, Reserve};
use crate::vm::VmReconciler;

/// The controllers as they were seen a moment ago.
#[derive(Debug, Clone)]
pub(crate) struct PlacementView {
    seen_at: Monotonic,
    controllers: Arc<Vec<(Versioned<Controller>, Held)>>,
}

/// What is held on a controller.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    reserved: Resources,
    addresses: u32,
}

/// What an incarnation is made from, with the records that must not change until that is committed.
enum Origin {
    Images(Versioned<Image>, Option<Versioned<Image>>),
    Snapshot(Versioned<Snapshot>),
}

impl Origin {
    /// The root file system and the kernel.
    fn manifests(&self) -> (ImageManifest, Option<ImageManifest>) {
        match self {
            Self::Images(image, kernel) => {
                (image.manifest.clone(), kernel.as_ref().map(|kernel| kernel.manifest.clone()))
            }
            // The saved guest has these mounted, whatever their names mean now.
            Self::Snapshot(snapshot) => (snapshot.image.clone(), snapshot.kernel.clone()),
        }
    }

    fn restore(&self) -> Option<RestoreOrder> {
        match self {
            Self::Images(..) => None,
            Self::Snapshot(snapshot) => Some(RestoreOrder {
                snapshot: snapshot.id,
                manifest: snapshot.manifest.clone()?,
                platform: snapshot.platform.clone(),
            }),
        }
    }
}

/// A place that was found and seen to fit.
struct Place {
    controller: Versioned<Controller>,
    allocation: Versioned<ControllerAllocation>,
    /// The guest's, where the controller has a block.
    address: Option<GuestAddress>,
}

impl Place {
    /// On this controller, if there is room by its allocation and what was added to that.
    fn on(
        controller: Versioned<Controller>,
        allocation: Versioned<ControllerAllocation>,
        added: (Resources, &AddressSlots),
        wanted: Resources,
    ) -> Option<Self> {
        let (resources, addresses) = added;
        if !controller.capacity.fit(&(allocation.reserved + resources + wanted)) {
            return None;
        }
        let address = match &controller.address_block {
            Some(block) => {
                let slot = allocation.addresses.lowest_free(addresses, block.slots())?;
                Some(block.address(slot)?)
            }
            None => None,
        };
        Some(Self { controller, allocation, address })
    }
}

impl VmReconciler {
    /// Finds a place for the VM and makes an incarnation there, or says why there is none.
    pub(crate) async fn place(
        &self,
        due: &DueEntry,
        entry: &VmEntry,
        restart: bool,
        reservations: &mut Reservations,
    ) -> Result<Decided> {
        let vm: &Vm = &entry.vm;
        let disk =
            if vm.has_persistent_disk() { self.parts.records.disk(&vm.project, vm.id).await? } else { None };
        let new_disk =
            if disk.is_none() { vm.spec.persistent_disk_resources() } else { Resources::default() };
        let wanted = vm.spec.resources() + new_disk;
        let origin = match self.origin(entry).await? {
            Ok(origin) => origin,
            Err(reason) => return Ok(self.unplaced(due, entry, reason).into()),
        };
        let pinned = disk.as_ref().map(|disk| disk.controller);
        let restore = origin.restore();
        let platform = restore.as_ref().map(|restore| &restore.platform);
        let request = Request {
            resources: wanted,
            placement: &vm.spec.placement,
            network: &vm.spec.network,
            host_port: vm.spec.asks_for_host_port(),
            pinned,
            platform,
        };
        reservations.take_turn(&self.placing).await;
        let place = match self.find_place(&request, reservations).await? {
            Ok(place) => place,
            Err(reason) => return Ok(self.unplaced(due, entry, reason).into()),
        };
        self.placed(due, entry, place, wanted, disk, origin, restart).await
    }

    /// What the VM's next incarnation is made from, or why it cannot be made.
    async fn origin(&self, entry: &VmEntry) -> Result<std::result::Result<Origin, Reason>> {
        let vm: &Vm = &entry.vm;
        let last = entry.incarnation.as_deref();
        if let Some(from) = restores_from(vm, last) {
            let snapshot = self.parts.records.snapshot(&vm.project, from).await?;
            return Ok(match snapshot.filter(|snapshot| snapshot.manifest.is_some()) {
                Some(snapshot) => Ok(Origin::Snapshot(snapshot)),
                None => {
                    let message = "The snapshot that it is made from is not there any more.";
                    Err(Reason::new(ReasonCode::SnapshotUnusable, message))
                }
            });
        }
        let image = self.parts.records.image(&vm.project, &vm.spec.image).await?;
        let kernel = match &vm.spec.kernel {
            Some(name) => self.parts.records.image(&vm.project, name).await?.map(Some),
            None => Some(None),
        };
        Ok(match (image, kernel) {
            (Some(image), Some(kernel)) => Ok(Origin::Images(image, kernel)),
            _ => Err(Reason::new(ReasonCode::ImageMissing, "Its image or kernel is not there any more.")),
        })
    }

    /// A place that fits by the allocation as it is now. A view that misled is read anew, once.
    async fn find_place(
        &self,
        request: &Request<'_>,
        reservations: &Reservations,
    ) -> Result<std::result::Result<Place, Reason>> {
        let mut nowhere = Reason::new(ReasonCode::NoCapacity, "No controller has room.");
        for fresh in [false, true] {
            let candidates = self.candidates(fresh, reservations).await?;
            let known: Vec<Candidate> = candidates.iter().map(|(candidate, _)| candidate.clone()).collect();
            match flames_scheduler::place(request, &known, self.parts.random.next_u64()) {
                Decision::Nowhere(reason) => nowhere = reason,
                Decision::Place(id) => {
                    let chosen = candidates.into_iter().find(|(candidate, _)| candidate.controller.id == id);
                    let none = AddressSlots::default();
                    let (allocation, added) = match reservations.of(id) {
                        Some(added) => (Some(added.allocation.clone()), (added.resources, &added.addresses)),
                        None => (self.parts.records.allocation(id).await?, (Resources::default(), &none)),
                    };
                    if let (Some((_, controller)), Some(allocation)) = (chosen, allocation)
                        && let Some(place) = Place::on(controller, allocation, added, request.resources)
                    {
                        return Ok(Ok(place));
                    }
                }
            }
        }
        Ok(Err(nowhere))
    }

    async fn candidates(
        &self,
        fresh: bool,
        reservations: &Reservations,
    ) -> Result<Vec<(Candidate, Versioned<Controller>)>> {
        let now = self.parts.clock.monotonic();
        let kept = self.view.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let usable =
            kept.filter(|view| !fresh && now.saturating_since(view.seen_at) < self.parts.config.view_age);
        let controllers = match usable {
            Some(view) => view.controllers,
            None => {
                let controllers = Arc::new(self.read_controllers().await?);
                let read = PlacementView { seen_at: now, controllers: controllers.clone() };
                *self.view.lock().unwrap_or_else(PoisonError::into_inner) = Some(read);
                controllers
            }
        };
        let candidate = |(controller, held): &(Versioned<Controller>, Held)| {
            let alive = self.liveness.is_alive(controller.id);
            let Held { reserved, addresses } = match reservations.of(controller.id) {
                Some(added) => Held {
                    reserved: held.reserved + added.resources,
                    addresses: held.addresses + added.addresses.count(),
                },
                None => *held,
            };
            let block = controller.address_block.as_ref();
            let addresses_left = block.map(|block| block.slots().saturating_sub(addresses));
            let record = Arc::clone(&controller.record);
            (Candidate { controller: record, reserved, addresses_left, alive }, controller.clone())
        };
        Ok(controllers.iter().map(candidate).collect())
    }

    async fn read_controllers(&self) -> Result<Vec<(Versioned<Controller>, Held)>> {
        let mut held = std::collections::BTreeMap::new();
        let mut after: Option<ControllerId> = None;
        loop {
            let page = self.parts.records.allocations(after).await?;
            held.extend(page.items.iter().map(|allocation| {
                let addresses = allocation.addresses.count();
                (allocation.controller, Held { reserved: allocation.reserved, addresses })
            }));
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        let mut controllers = Vec::new();
        let mut after: Option<ControllerId> = None;
        loop {
            let page = self.parts.records.controllers(after, flames_records::MAX_PAGE).await?;
            controllers.extend(page.items.into_iter().map(|controller| {
                let held = held.get(&controller.id).copied().unwrap_or_default();
                (controller, held)
            }));
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(controllers),
            }
        }
    }

    /// Says why the VM has no place, and asks for another try. The event is written when the reason is a new one.
    fn unplaced(&self, due: &DueEntry, entry: &VmEntry, reason: Reason) -> Change {
        let vm: &Vm = &entry.vm;
        let mut change = Change::new();
        change.settle(due);
        if vm.unplaced.as_ref() == Some(&reason) {
            change.require_vm(&entry.vm);
        } else {
            let event = self.event(vm, vm.incarnation, EventKind::VmUnplaced, Some(reason.clone()));
            let new = Vm { unplaced: Some(reason), updated_at: self.parts.clock.now(), ..vm.clone() };
            change.update_vm(&entry.vm, new).event(Some(&vm.project), &event);
        }
        change.due(&vm.project, vm.id, self.retry_at());
        change
    }

    /// What is committed when the VM is placed there.
    #[expect(clippy::too_many_arguments, reason = "all that one placement commits together")]
    async fn placed(
        &self,
        due: &DueEntry,
        entry: &VmEntry,
        place: Place,
        wanted: Resources,
        disk: Option<Versioned<Disk>>,
        origin: Origin,
        restart: bool,
    ) -> Result<Decided> {
        let old: &Vm = &entry.vm;
        let now = self.parts.clock.now();
        let id = IncarnationId::from_uuid(self.parts.ids.next_id());
        let token = FencingToken(old.placements + 1);
        let mut change = Change::new();
        change.settle(due).require_controller(&place.controller);
        // The origin too: what an assignment names is kept from the commit on, and before it by the record of its origin.
        match &origin {
            Origin::Images(image, kernel) => {
                change.require_image(image);
                if let Some(kernel) = kernel.as_ref().filter(|kernel| kernel.name != image.name) {
                    change.require_image(kernel);
                }
            }
            Origin::Snapshot(snapshot) => drop(change.require_snapshot(snapshot)),
        }
        let ((image, kernel), restore) = (origin.manifests(), origin.restore());
        let source = match &restore {
            Some(restore) => Source::Snapshot(restore.snapshot.to_string()),
            None => Source::Boot,
        };

        let mut disk_id = disk.as_ref().map(|disk| disk.id);
        if old.has_persistent_disk() && disk.is_none() {
            let new = Disk {
                id: DiskId::from_uuid(self.parts.ids.next_id()),
                project: old.project.clone(),
                vm: old.id,
                controller: place.controller.id,
                size_mib: old.spec.root_disk_mib,
                created_at: now,
            };
            disk_id = Some(new.id);
            change.insert_disk(&new);
        }
        let restarts = match &entry.incarnation {
            Some(last) if restart && last.ran_for_ms() <= old.spec.restart.backoff_max_ms => old.restarts + 1,
            Some(_) if restart => 1,
            _ => old.restarts,
        };
        let vm = Vm {
            incarnation: Some(id),
            placements: token.0,
            disk: disk_id,
            restarts,
            unplaced: None,
            updated_at: now,
            ..old.clone()
        };
        let incarnation = Incarnation {
            id,
            project: old.project.clone(),
            vm: old.id,
            run: old.run,
            controller: place.controller.id,
            resources: old.spec.resources(),
            address: place.address,
            token,
            source: source.clone(),
            state: IncarnationState::Scheduled,
            state_before_loss: None,
            sequence: 0,
            reason: None,
            exit: None,
            endpoints: Vec::new(),
            network: AppliedNetwork { revision: old.network_revision, trouble: None },
            timeline: [(IncarnationState::Scheduled, now)].into(),
            created_at: now,
            released_at: None,
            purged_at: None,
        };
        let assignment = Assignment {
            incarnation: id,
            vm: old.id,
            project: old.project.clone(),
            name: old.name.clone(),
            controller: place.controller.id,
            token,
            wanted: if old.desired == flames_model::DesiredState::Paused {
                Wanted::Paused
            } else {
                Wanted::Running
            },
            spec: old.spec.clone(),
            network_revision: old.network_revision,
            address: place.address,
            source,
            image,
            kernel,
            restore,
            snapshot: None,
            snapshot_base: None,
        };
        if let Some(last) = &entry.incarnation {
            change.remove_incarnation(last);
        }
        if let Some(last) = self.current_assignment(entry).await? {
            change.remove_assignment(&last);
            self.abandon_snapshot(&mut change, old, &last).await?;
        }
        let event = self.event(&vm, Some(id), EventKind::VmPlaced { controller: place.controller.id }, None);
        change
            .update_vm(&entry.vm, vm)
            .insert_incarnation(incarnation)
            .insert_assignment(assignment)
            .event(Some(&old.project), &event);
        let addresses = place.address.iter().map(|address| address.slot).collect();
        let reserve = Reserve { allocation: place.allocation, resources: wanted, addresses };
        Ok(Decided { change, reserve: Some(reserve) })
    }
}
