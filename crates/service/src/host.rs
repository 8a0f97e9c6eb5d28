//! What controllers call: registering, renewing, and learning what to run.

use std::sync::Arc;
use std::time::Duration;

use flames_error::{ErrorKind, Result};
use flames_model::{
    Actor, AddressBlock, Assignment, Controller, ControllerAllocation, ControllerId, ControllerLease,
    DriverInfo, EventKind, IncarnationId, Labels, Resources, SessionToken, VmName,
};
use flames_records::{Change, ControllerCredential, ListPage, Position, Records, Versioned, Waited};

use crate::mutation::ATTEMPTS;
use crate::{Caller, Service, codes};

/// The most changes of assignments that are told at once: an answer of some 100 KiB. A controller that is behind asks again, and neither side
/// builds what its allocator has to fetch from the kernel and gives back each time.
const CHANGES: usize = 64;

/// A controller, proven to be the one that registered last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostSession {
    /// Which controller.
    pub controller: ControllerId,
    /// Its registration.
    pub session: SessionToken,
}

/// What a controller says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Register {
    /// Its identity, kept in the host's data folder.
    pub id: ControllerId,
    /// Its name.
    pub name: VmName,
    /// What it offers.
    pub capacity: Resources,
    /// What it is chosen by.
    pub labels: Labels,
    /// What it runs VMs with.
    pub driver: DriverInfo,
    /// Where its guests have their addresses from.
    pub address_block: Option<AddressBlock>,
}

/// What a controller proves itself with that registers over a network.
#[derive(Clone, PartialEq, Eq)]
pub struct HostProof {
    /// The controller's own secret: 64 hex digits that it drew itself.
    pub secret: String,
    /// Whether it also showed a join token that holds. Only then one that is not known yet is taken in.
    pub may_join: bool,
}

impl std::fmt::Debug for HostProof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostProof").field("may_join", &self.may_join).finish_non_exhaustive()
    }
}

/// What a registration gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registered {
    /// To be named in every further call.
    pub session: HostSession,
    /// How long a lease renewal is good for: renew at a third of it.
    pub lease: Duration,
    /// From where on to follow changes of assignments; what stood before is read by [`Service::host_assignments`].
    pub changes_from: Position,
}

/// What a renewal tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewed {
    /// How long this renewal is good for.
    pub lease: Duration,
}

/// One assignment as a controller learns of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// Which incarnation.
    pub incarnation: IncarnationId,
    /// What to make of it; none: it is not assigned (any more), and nothing of it is to be left on the host.
    pub assignment: Option<Arc<Assignment>>,
}

/// Changes of assignments since a place in their log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedChanges {
    /// Each changed assignment as it is now, once.
    pub changed: Vec<Assigned>,
    /// From where on to go on.
    pub next: Position,
}

impl Service {
    fn host_caller(&self, controller: ControllerId, project: flames_model::ProjectName) -> Caller {
        Caller { project, actor: Actor::Controller(controller), request_id: "host".to_owned() }
    }

    /// Takes a controller of this process in, or takes it in again: a newer registration supersedes the older one, without a conflict.
    ///
    /// Errors: `InvalidInput` ([`codes::INVALID_FIELD`]) for an address block that cannot be; `AlreadyExists`
    /// ([`codes::CONTROLLER_NAME_TAKEN`]); `Conflict` ([`codes::ADDRESS_BLOCK_IN_USE`]) for another block than the one that VMs hold addresses
    /// of; `Unavailable`.
    pub async fn register_controller(&self, register: Register) -> Result<Registered> {
        self.register(register, None).await
    }

    /// As [`Service::register_controller`], for a controller that calls over a network. Its secret is the one with which it joined; a controller
    /// that never joined needs a join token, and joins with this secret from then on.
    ///
    /// Errors: also `PermissionDenied` ([`codes::UNAUTHENTICATED`]); `InvalidInput` when the secret cannot be one.
    pub async fn admit_controller(&self, register: Register, proof: &HostProof) -> Result<Registered> {
        if proof.secret.len() != 64 || !proof.secret.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let sentence = "A controller's secret is 64 hex digits.";
            return Err(flames_error::Error::invalid("service.register_controller", "secret", sentence)
                .with_code(codes::INVALID_FIELD));
        }
        self.register(register, Some(proof)).await
    }

    /// Whether a controller is the one that joined under this id, and what its registration has to add or to rely on.
    async fn prove(&self, id: ControllerId, proof: Option<&HostProof>, change: &mut Change) -> Result<()> {
        let Some(proof) = proof else { return Ok(()) };
        // A random secret of 32 bytes: a plain digest of it cannot be turned back. Digests are compared in constant time.
        let digest = blake3::hash(proof.secret.as_bytes());
        match self.records().credential(id).await? {
            Some(known) if blake3::Hash::from_hex(&known.digest).is_ok_and(|known| known == digest) => {
                change.require_credential(&known);
                Ok(())
            }
            Some(_) => Err(codes::wrong_secret(&id.to_string())),
            None if proof.may_join => {
                let since = self.clock().now();
                let digest = digest.to_hex().to_string();
                change.insert_credential(&ControllerCredential { controller: id, digest, since });
                Ok(())
            }
            None => Err(codes::may_not_join()),
        }
    }

    async fn register(&self, register: Register, proof: Option<&HostProof>) -> Result<Registered> {
        if let Some(block) = &register.address_block {
            block.validate().map_err(codes::coded_input)?;
        }
        let session = SessionToken::from_uuid(self.parts.ids.next_id());
        for _ in 0..ATTEMPTS {
            let now = self.clock().now();
            let old = self.records().controller(register.id).await?;
            let controller = Controller {
                id: register.id,
                // A name is kept from the first registration on, so that the index of names stays true.
                name: old.as_ref().map_or_else(|| register.name.clone(), |old| old.name.clone()),
                capacity: register.capacity,
                labels: register.labels.clone(),
                driver: register.driver.clone(),
                address_block: register.address_block,
                cordoned: old.as_ref().is_some_and(|old| old.cordoned),
                session,
                created_at: old.as_ref().map_or(now, |old| old.created_at),
                registered_at: now,
            };
            let renewals = self.records().lease(register.id).await?.map_or(0, |lease| lease.renewals) + 1;
            let lease =
                ControllerLease { controller: register.id, session, renewals, duration_ms: self.lease_ms() };
            let mut change = Change::new();
            self.prove(register.id, proof, &mut change).await?;
            match &old {
                Some(old) => {
                    if old.address_block != register.address_block {
                        self.exchange_address_block(&mut change, old).await?;
                    }
                    change.update_controller(old, &controller)
                }
                None => change.insert_controller(&controller, &ControllerAllocation::empty(register.id)),
            };
            let project = flames_model::ProjectName::new("default")?;
            let event = self
                .host_caller(register.id, project)
                .event(now, EventKind::ControllerRegistered { controller: register.id });
            change.set_lease(&lease).event(None, &event);
            // Read before the commit: a change between here and there is told twice, never missed.
            let changes_from = self.newest_assignment_change(register.id).await?;
            match self.records().apply(change).await {
                Ok(_) => {
                    let session = HostSession { controller: register.id, session };
                    return Ok(Registered { session, lease: self.config().lease, changes_from });
                }
                Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::OutcomeUnknown) => {
                    let named = self.records().controller_named(&register.name).await?;
                    if old.is_none() && named.is_some_and(|id| id != register.id) {
                        return Err(name_taken(&register.name));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(codes::contended("service.register_controller"))
    }

    /// Proves that no address of the controller's block is taken. Placements prove that the controller is as they saw it, so that none
    /// takes an address of the old block meanwhile.
    async fn exchange_address_block(&self, change: &mut Change, old: &Controller) -> Result<()> {
        let Some(allocation) = self.records().allocation(old.id).await? else { return Ok(()) };
        if !allocation.addresses.is_empty() {
            return Err(address_block_in_use(old, allocation.addresses.count()));
        }
        change.require_allocation(&allocation);
        Ok(())
    }

    fn lease_ms(&self) -> u64 {
        u64::try_from(self.config().lease.as_millis()).unwrap_or(u64::MAX)
    }

    async fn newest_assignment_change(&self, controller: ControllerId) -> Result<Position> {
        let mut position = Position::START;
        loop {
            let changes =
                self.records().assignment_changes(controller, position, flames_records::MAX_PAGE).await?;
            let Some(last) = changes.last() else { return Ok(position) };
            position = last.position;
        }
    }

    /// Whether a session is the controller's present one. Errors: `LeaseLost` ([`codes::CONTROLLER_SUPERSEDED`]); `NotFound` when the
    /// controller was removed: register again.
    pub(crate) async fn check_session(&self, session: &HostSession) -> Result<Versioned<Controller>> {
        let id = session.controller;
        let controller = self
            .records()
            .controller(id)
            .await?
            .ok_or_else(|| codes::controller_not_found(&id.to_string()))?;
        if controller.session == session.session {
            Ok(controller)
        } else {
            Err(codes::superseded(&id.to_string()))
        }
    }

    /// Whether a session is the controller's present one, for parts that serve it outside the calls below.
    ///
    /// Errors: as [`Service::host_assignments`].
    pub async fn confirm_session(&self, session: &HostSession) -> Result<()> {
        self.check_session(session).await.map(drop)
    }

    /// Renews a controller's lease. Errors: `LeaseLost`, `NotFound` as [`Service::host_assignments`]; `Unavailable`.
    pub async fn renew_lease(&self, session: &HostSession) -> Result<Renewed> {
        for _ in 0..ATTEMPTS {
            let lease = self.records().lease(session.controller).await?;
            let lease = lease.ok_or_else(|| codes::controller_not_found(&session.controller.to_string()))?;
            if lease.session != session.session {
                return Err(codes::superseded(&session.controller.to_string()));
            }
            let renewed = ControllerLease {
                renewals: lease.renewals + 1,
                duration_ms: self.lease_ms(),
                ..ControllerLease::clone(&lease)
            };
            let mut change = Change::new();
            change.update_lease(&lease, &renewed);
            match self.records().apply(change).await {
                Ok(_) => return Ok(Renewed { lease: self.config().lease }),
                // An unknown outcome is tried again: a renewal too many harms nobody.
                Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::OutcomeUnknown) => {}
                Err(error) => return Err(error),
            }
        }
        Err(codes::contended("service.renew_lease"))
    }

    /// A page of all that is assigned to a controller, by incarnation.
    ///
    /// Errors: `LeaseLost` ([`codes::CONTROLLER_SUPERSEDED`]); `NotFound` when the controller was removed; `Unavailable`.
    pub async fn host_assignments(
        &self,
        session: &HostSession,
        after: Option<IncarnationId>,
        limit: usize,
    ) -> Result<ListPage<Assignment, IncarnationId>> {
        self.check_session(session).await?;
        let page = self.records().assignments(session.controller, after, limit).await?;
        Ok(ListPage { items: page.items.into_iter().map(Versioned::into_record).collect(), next: page.next })
    }

    /// Waits, at most `wait` (cut to the longest wait), until an assignment of the controller changed behind `after`, and answers
    /// each changed one as it is now. An empty answer means that nothing changed.
    ///
    /// Errors: as [`Service::host_assignments`].
    pub async fn host_changes(
        &self,
        session: &HostSession,
        after: Position,
        wait: Duration,
    ) -> Result<AssignedChanges> {
        self.check_session(session).await?;
        let controller = session.controller;
        let log = Records::assigned_log(controller)?;
        let deadline = self.clock().monotonic().saturating_add(wait.min(self.config().longest_wait));
        let read = || async {
            let changes = self.records().assignment_changes(controller, after, CHANGES).await?;
            Ok((!changes.is_empty()).then_some(changes))
        };
        let waited = self
            .records()
            .wait_until(self.clock().as_ref(), &log, self.config().poll, deadline, read)
            .await?;
        let Waited::Ready(changes) = waited else {
            return Ok(AssignedChanges { changed: Vec::new(), next: after });
        };
        let next = changes.last().map_or(after, |change| change.position);
        let mut incarnations: Vec<_> = changes.iter().map(|change| change.incarnation).collect();
        incarnations.sort_unstable();
        incarnations.dedup();
        let mut changed = Vec::with_capacity(incarnations.len());
        for incarnation in incarnations {
            let assignment = self.records().assignment(controller, incarnation).await?;
            let assignment = assignment.map(|assignment| assignment.record);
            changed.push(Assigned { incarnation, assignment });
        }
        // What lies at or before `after` was told and taken. Kept otherwise: a log that is not trimmed costs room, not truth.
        if let Err(error) = self.records().trim_assigned(controller, after).await {
            tracing::debug!(%error, "the log of assignments was not trimmed");
        }
        Ok(AssignedChanges { changed, next })
    }
}

fn address_block_in_use(controller: &Controller, taken: u32) -> flames_error::Error {
    let block =
        controller.address_block.map_or_else(|| "no block".to_owned(), |block| block.ipv4.to_string());
    flames_error::Error::new(
        ErrorKind::Conflict,
        "service.register_controller",
        "the controller's address block cannot be changed while addresses of it are taken",
    )
    .with_resource("controller", controller.id.to_string())
    .with_code(codes::ADDRESS_BLOCK_IN_USE)
    .with_user_message(format!(
        "{taken} VMs of the controller `{}` hold addresses of its block {block}, so it cannot have another one. Stop them first, or set          `address_block` back.",
        controller.name
    ))
}

fn name_taken(name: &VmName) -> flames_error::Error {
    flames_error::Error::new(
        ErrorKind::AlreadyExists,
        "service.register_controller",
        "another controller has this name",
    )
    .with_field("name")
    .with_code(codes::CONTROLLER_NAME_TAKEN)
    .with_user_message(format!(
        "Another controller is named `{name}`. Choose another name, or remove that one first."
    ))
}
