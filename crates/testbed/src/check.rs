//! The judgement: what must never be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use flames_error::Result;
use flames_model::{
    AddressSlots, ControllerId, DesiredState, EventKind, ExitCause, Incarnation, IncarnationId,
    IncarnationState, ProjectName, ReasonCode, Resources, SnapshotState, Step, Vm, VmId, VmState, next_step,
};
use flames_records::{EventEntry, Position, Records, VmFilter};
use flames_vmm_simulated::SimulatedHost;

use crate::clients::{Ask, SharedLedger};
use crate::faults::Histogram;
use crate::networks;

/// Something that must never be, as a sentence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation(pub String);

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is looked at: the raw store and the hosts themselves.
pub(crate) struct Truth {
    pub(crate) records: Records,
    pub(crate) hosts: Vec<(u64, Arc<SimulatedHost>)>,
    pub(crate) ledger: SharedLedger,
    pub(crate) followed: Vec<EventEntry>,
    pub(crate) doubled: Vec<String>,
    /// The host that was never down for long, or cut off.
    pub(crate) never_away: Option<ControllerId>,
    /// What is wrong with the blobs of images.
    pub(crate) blobs: Vec<String>,
}

/// Where hosts keep what they save.
const STAGING: &str = "/snapshots/staging";

/// A VM at the end of a run, deleted or not.
pub(crate) struct Final {
    pub(crate) vm: Vm,
    pub(crate) incarnation: Option<Incarnation>,
    pub(crate) state: VmState,
}

pub(crate) struct Seen {
    pub(crate) vms: BTreeMap<VmId, Final>,
    pub(crate) events: Vec<EventEntry>,
    system_events: Vec<EventEntry>,
}

impl Truth {
    async fn see(&self) -> Result<Seen> {
        let project = ProjectName::new("default")?;
        let mut vms = BTreeMap::new();
        let mut after = None;
        loop {
            let page = self.records.list_vms(&project, &VmFilter::default(), after, 500).await?;
            for entry in page.items {
                let state = entry.state();
                let incarnation = entry.incarnation.map(flames_records::Versioned::into_record);
                vms.insert(entry.vm.id, Final { vm: entry.vm.into_record(), incarnation, state });
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        let events = self.log(Some(&project)).await?;
        let system_events = self.log(None).await?;
        // The deleted are known by their events only.
        let named: BTreeSet<VmId> = events.iter().filter_map(|entry| entry.event.vm).collect();
        for id in named {
            if let Some(tombstone) = self.records.tombstone(&project, id).await? {
                let tombstone = tombstone.into_record();
                vms.insert(
                    id,
                    Final { vm: tombstone.vm, incarnation: tombstone.incarnation, state: VmState::Deleted },
                );
            }
        }
        Ok(Seen { vms, events, system_events })
    }

    async fn log(&self, project: Option<&ProjectName>) -> Result<Vec<EventEntry>> {
        let (mut all, mut after) = (Vec::new(), Position::START);
        loop {
            let page = self.records.events(project, after, 1_000).await?;
            let Some(last) = page.last() else { return Ok(all) };
            after = last.position;
            all.extend(page);
        }
    }
}

/// Everything that must never be and is.
pub(crate) async fn all(truth: &Truth) -> Result<Vec<Violation>> {
    let seen = truth.see().await?;
    let mut found = Vec::new();
    found.extend(truth.doubled.iter().map(|doubled| format!("two of one VM at once: {doubled}")));
    found.extend(truth.ledger.lock().unwrap_or_else(PoisonError::into_inner).undeserved.iter().cloned());
    found.extend(truth.blobs.iter().cloned());
    placed_where_wanted(truth, &seen, &mut found);
    owned(truth, &seen, &mut found);
    reservations(truth, &seen, &mut found).await?;
    addresses(truth, &seen, &mut found).await?;
    networks::in_force(truth, &seen, &mut found);
    promises(truth, &seen, &mut found);
    history(&seen, &mut found);
    followed(truth, &seen, &mut found);
    never_lost(truth, &seen, &mut found);
    saved(truth, &seen, &mut found).await?;
    Ok(found.into_iter().map(Violation).collect())
}

/// Every accepted snapshot is ready, or failed with a reason, or was removed because somebody asked for that; and no host keeps anything of one.
async fn saved(truth: &Truth, seen: &Seen, found: &mut Vec<String>) -> Result<()> {
    for (id, last) in &seen.vms {
        let reason = last.incarnation.as_ref().and_then(|incarnation| incarnation.reason.as_ref());
        if let Some(reason) = reason.filter(|reason| reason.code == ReasonCode::SnapshotUnusable) {
            found.push(format!("{id} could not be restored: {}", reason.message));
        }
    }
    let project = ProjectName::new("default")?;
    let mut there = BTreeSet::new();
    let mut after = None;
    loop {
        let page = truth.records.snapshots(&project, after, 500).await?;
        for snapshot in page.items.into_iter().map(|snapshot| snapshot.record) {
            let explained = match snapshot.state {
                SnapshotState::Ready => snapshot.manifest.is_some(),
                SnapshotState::Failed => snapshot.reason.is_some(),
                SnapshotState::Pending | SnapshotState::Taking | SnapshotState::Deleting => false,
            };
            if !explained {
                found.push(format!("{} is {} for ever", snapshot.id, snapshot.state));
            }
            there.insert(snapshot.id);
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    let asked = truth.ledger.lock().unwrap_or_else(PoisonError::into_inner).snapshots.clone();
    let lost = asked.iter().filter(|(id, removed)| !there.contains(id) && !**removed);
    found.extend(lost.map(|(id, _)| format!("the snapshot {id} is gone, and nobody removed it")));
    for (number, host) in &truth.hosts {
        let left = host.files().into_iter().filter(|path| path.starts_with(STAGING));
        found.extend(left.map(|path| format!("host {number} still keeps {}", path.display())));
    }
    Ok(())
}

/// Every accepted VM is where it should be, or tells why not.
fn placed_where_wanted(truth: &Truth, seen: &Seen, found: &mut Vec<String>) {
    for (id, last) in &seen.vms {
        let (vm, state) = (&last.vm, last.state);
        let incarnation = last.incarnation.as_ref();
        let explained = match (vm.desired, state) {
            (DesiredState::Running, VmState::Running)
            | (DesiredState::Paused, VmState::Paused)
            | (DesiredState::Deleted, VmState::Deleted)
            | (_, VmState::Stopped) => true,
            (_, VmState::Failed) => incarnation.is_some_and(|incarnation| incarnation.reason.is_some()),
            (DesiredState::Running | DesiredState::Paused, VmState::Pending) => vm.unplaced.is_some(),
            _ => false,
        };
        if !explained {
            let next = next_step(vm, incarnation, vm.updated_at);
            found.push(format!(
                "{id} ({}) is wanted {:?} and is {state} (next: {next:?})",
                vm.name, vm.desired
            ));
        }
        let Some(incarnation) = incarnation else { continue };
        let alive = truth.hosts.iter().filter(|(_, host)| is_alive(host, incarnation.id)).count();
        let should = usize::from(matches!(state, VmState::Running | VmState::Paused));
        if alive != should {
            found.push(format!("{id} is {state}, and {alive} machines of it are alive"));
        }
        let code = incarnation.reason.as_ref().map(|reason| reason.code);
        let broke = matches!(code, Some(ReasonCode::MachineFailed | ReasonCode::GuestStopped));
        if broke
            && incarnation.exit.is_some_and(|exit| exit.cause == ExitCause::Machine)
            && !broke_by_itself(truth, incarnation.id)
        {
            found.push(format!("{id} is said to have broken down, but its machine was ended from outside"));
        }
    }
}

fn is_alive(host: &SimulatedHost, incarnation: IncarnationId) -> bool {
    let name = incarnation.to_string();
    host.running().iter().any(|running| running.as_str() == name)
        || host
            .phases()
            .iter()
            .any(|(other, phase)| other.as_str() == name && *phase == flames_vmm::Phase::Paused)
}

fn broke_by_itself(truth: &Truth, incarnation: IncarnationId) -> bool {
    let Ok(name) = flames_vmm::IncarnationName::new(incarnation.to_string()) else { return false };
    truth.hosts.iter().any(|(_, host)| {
        matches!(
            host.life(&name).last_exit,
            Some(flames_vmm::ExitCause::Crashed | flames_vmm::ExitCause::Guest)
        )
    })
}

/// No machine, prepared or alive, without an owner; none started twice.
fn owned(truth: &Truth, seen: &Seen, found: &mut Vec<String>) {
    let current: BTreeSet<String> = seen
        .vms
        .values()
        .filter_map(|last| last.incarnation.as_ref())
        .filter(|incarnation| incarnation.released_at.is_none())
        .map(|incarnation| incarnation.id.to_string())
        .collect();
    for (number, host) in &truth.hosts {
        for (name, phase) in host.phases() {
            if !current.contains(name.as_str()) {
                found.push(format!("host {number} keeps {name} ({phase:?}), which nobody owns"));
            }
        }
        found.extend(
            host.addresses_given_twice()
                .into_iter()
                .map(|given| format!("host {number} gave one address to two machines at once: {given}")),
        );
        found.extend(host.started_twice().iter().map(|name| format!("host {number} started {name} twice")));
        let most = host.peak_use();
        if most.vcpus > 6 || most.memory_mib > 4_096 {
            found.push(format!("host {number} was overcommitted: {most:?}"));
        }
    }
}

/// No two incarnations that hold something hold one address; none is taken without such an incarnation, and none has another address than
/// its place in its controller's block.
async fn addresses(truth: &Truth, seen: &Seen, found: &mut Vec<String>) -> Result<()> {
    let mut held: BTreeMap<ControllerId, BTreeMap<u32, IncarnationId>> = BTreeMap::new();
    let blocks: BTreeMap<ControllerId, _> = truth
        .records
        .controllers(None, 100)
        .await?
        .items
        .into_iter()
        .filter_map(|controller| Some((controller.id, controller.address_block?)))
        .collect();
    let unreleased = seen.vms.values().filter_map(|last| last.incarnation.as_ref());
    for incarnation in unreleased.filter(|incarnation| incarnation.released_at.is_none()) {
        let block = blocks.get(&incarnation.controller);
        let Some(address) = incarnation.address else {
            if block.is_some() {
                found.push(format!("{} has no address of its controller's block", incarnation.id));
            }
            continue;
        };
        if block.and_then(|block| block.address(address.slot)) != Some(address) {
            found.push(format!("{} has {address:?}, which is none of its controller's", incarnation.id));
        }
        let on = held.entry(incarnation.controller).or_default();
        if let Some(other) = on.insert(address.slot, incarnation.id) {
            found.push(format!("{} and {other} have one address: {}", incarnation.id, address.ipv4));
        }
    }
    for allocation in truth.records.allocations(None).await?.items {
        let should: AddressSlots =
            held.get(&allocation.controller).into_iter().flat_map(BTreeMap::keys).copied().collect();
        if allocation.addresses != should {
            found.push(format!(
                "{} has {:?} taken of its addresses, and {should:?} is held",
                allocation.controller, allocation.addresses
            ));
        }
    }
    Ok(())
}

/// No reservation without an incarnation or a disk, and the other way round.
async fn reservations(truth: &Truth, seen: &Seen, found: &mut Vec<String>) -> Result<()> {
    let mut held: BTreeMap<ControllerId, Resources> = BTreeMap::new();
    for last in seen.vms.values() {
        if let Some(incarnation) =
            last.incarnation.as_ref().filter(|incarnation| incarnation.released_at.is_none())
        {
            let sum = held.entry(incarnation.controller).or_default();
            *sum = *sum + incarnation.resources;
        }
        if let Some(disk) = truth.records.disk(&last.vm.project, last.vm.id).await? {
            let sum = held.entry(disk.controller).or_default();
            *sum = *sum + Resources { disk_mib: disk.size_mib, ..Resources::default() };
            if last.state == VmState::Deleted {
                found.push(format!("{} is deleted and its disk is still reserved", last.vm.id));
            }
        }
    }
    for allocation in truth.records.allocations(None).await?.items {
        let should = held.get(&allocation.controller).copied().unwrap_or_default();
        if allocation.reserved != should {
            found.push(format!(
                "{} has {:?} reserved, and {should:?} is held",
                allocation.controller, allocation.reserved
            ));
        }
    }
    for controller in truth.records.controllers(None, 100).await?.items {
        for assignment in truth.records.assignments(controller.id, None, 1_000).await?.items {
            let known = seen.vms.get(&assignment.vm).and_then(|last| last.incarnation.as_ref());
            if known.is_none_or(|incarnation| incarnation.id != assignment.incarnation) {
                found.push(format!("{} is assigned, and no VM has it", assignment.incarnation));
            }
        }
    }
    Ok(())
}

/// What clients were told holds: accepted is there, deleted stays deleted, one request made one VM.
fn promises(truth: &Truth, seen: &Seen, found: &mut Vec<String>) {
    let ledger = truth.ledger.lock().unwrap_or_else(PoisonError::into_inner);
    for accepted in &ledger.accepted {
        let Some(last) = seen.vms.get(&accepted.vm) else {
            found.push(format!("{} was accepted ({:?}) and is not there", accepted.vm, accepted.ask));
            continue;
        };
        if accepted.desired == DesiredState::Deleted && last.vm.desired != DesiredState::Deleted {
            found.push(format!("{} was deleted and came back", accepted.vm));
        }
        if last.vm.run < accepted.run {
            found.push(format!("{} was told run {} and has run {}", accepted.vm, accepted.run, last.vm.run));
        }
        let told = |kind: &EventKind| match accepted.ask {
            Ask::Create => *kind == EventKind::VmCreated,
            Ask::SetNetwork => matches!(kind, EventKind::VmNetwork { .. }),
            _ => {
                matches!(kind, EventKind::VmDesired { desired, run } if *desired == accepted.desired && *run == accepted.run)
            }
        };
        let by_create =
            accepted.ask != Ask::Create && accepted.desired == DesiredState::Running && accepted.run == 1;
        let in_events =
            seen.events.iter().any(|entry| entry.event.vm == Some(accepted.vm) && told(&entry.event.kind));
        if !in_events && !by_create && accepted.ask != Ask::SetLabels {
            found.push(format!(
                "{} was accepted ({:?}, run {}) and no event says so",
                accepted.vm, accepted.ask, accepted.run
            ));
        }
    }
    for (name, accepted) in &ledger.creates {
        let label = |vm: &Vm| vm.labels.pairs().get("create") == Some(name);
        let relabelled: BTreeSet<VmId> = ledger
            .accepted
            .iter()
            .filter(|accepted| accepted.ask == Ask::SetLabels)
            .map(|accepted| accepted.vm)
            .collect();
        let made =
            seen.vms.values().filter(|last| label(&last.vm) && !relabelled.contains(&last.vm.id)).count();
        if made > 1 {
            found.push(format!("one request made {made} VMs ({name}, accepted: {accepted})"));
        }
    }
}

/// Every state that the records hold was told by an event, in order.
fn history(seen: &Seen, found: &mut Vec<String>) {
    for (id, last) in &seen.vms {
        let of_vm: Vec<_> = seen.events.iter().filter(|entry| entry.event.vm == Some(*id)).collect();
        let placed =
            of_vm.iter().filter(|entry| matches!(entry.event.kind, EventKind::VmPlaced { .. })).count();
        if u64::try_from(placed).unwrap_or(0) != last.vm.placements {
            found.push(format!("{id} was placed {} times, and {placed} events say so", last.vm.placements));
        }
        let released = of_vm.iter().filter(|entry| entry.event.kind == EventKind::VmReleased).count();
        let still_held =
            last.incarnation.as_ref().is_some_and(|incarnation| incarnation.released_at.is_none());
        if released + usize::from(still_held) != placed {
            found.push(format!(
                "{id} was placed {placed} times and released {released} times (held: {still_held})"
            ));
        }
        if last.state == VmState::Deleted
            && !of_vm.iter().any(|entry| entry.event.kind == EventKind::VmDeleted)
        {
            found.push(format!("{id} is gone, and no event says so"));
        }
        let Some(incarnation) = &last.incarnation else { continue };
        let told = of_vm.iter().rev().find_map(|entry| match &entry.event.kind {
            EventKind::VmState { state, .. } if entry.event.incarnation == Some(incarnation.id) => {
                Some(*state)
            }
            _ => None,
        });
        if told.unwrap_or(IncarnationState::Scheduled) != incarnation.state {
            found.push(format!("{id} is {:?}, and the last event says {told:?}", incarnation.state));
        }
        // A VM whose next step is to do something did not settle.
        if !matches!(
            next_step(&last.vm, Some(incarnation), last.vm.updated_at),
            Step::Wait(_) | Step::Want(..) | Step::Place { .. } | Step::FinishDelete
        ) {
            continue;
        }
        if last.vm.desired == DesiredState::Stopped && incarnation.released_at.is_none() {
            found.push(format!("{id} is wanted stopped and still holds its place"));
        }
    }
}

/// A follower of events that resumes loses none.
fn followed(truth: &Truth, seen: &Seen, found: &mut Vec<String>) {
    if truth.followed != seen.events {
        found.push(format!("the follower saw {} events of {}", truth.followed.len(), seen.events.len()));
    }
}

/// A host that was never away is never taken for lost.
fn never_lost(truth: &Truth, seen: &Seen, found: &mut Vec<String>) {
    let lost = seen.system_events.iter().filter(|entry| match entry.event.kind {
        EventKind::ControllerLost { controller } => Some(controller) == truth.never_away,
        _ => false,
    });
    let lost = lost.count();
    if lost > 0 {
        found.push(format!("the host that was never away was taken for lost {lost} times"));
    }
}

/// A digest of everything that happened.
pub(crate) async fn trace(truth: &Truth, faults: &Histogram) -> Result<String> {
    let seen = truth.see().await?;
    let mut hasher = blake3::Hasher::new();
    for entry in seen.events.iter().chain(&seen.system_events) {
        hasher.update(format!("{entry:?}").as_bytes());
    }
    for last in seen.vms.values() {
        hasher.update(format!("{:?}{:?}", last.vm, last.incarnation).as_bytes());
    }
    hasher.update(format!("{faults:?}").as_bytes());
    Ok(hasher.finalize().to_hex().to_string())
}
