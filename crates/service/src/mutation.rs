//! The one way in which the API changes things: read, decide, commit with event and idempotency record, and replay when the
//! request was carried out already.

use std::sync::Arc;

use flames_clock::{ClockExt, RandomExt};
use flames_error::{Error, ErrorKind, Result};
use flames_model::{Vm, VmId};
use flames_records::{Change, Idempotency, IdempotencyKey, Outcome, VmEntry};

use crate::caller::RequestKey;
use crate::{Caller, Mutation, Service, VmRef, VmView, codes};

/// How often a mutation is decided anew when others change the same record.
pub(crate) const ATTEMPTS: u32 = 16;

/// What a mutation makes of a VM.
pub(crate) enum Decision {
    /// It is as asked for already.
    Unchanged,
    /// It becomes this, for this event.
    Become(Box<Vm>, flames_model::EventKind),
}

impl Service {
    /// The key under which a request's idempotency record is kept.
    fn idempotency_key(caller: &Caller, request: &RequestKey) -> IdempotencyKey {
        let mut hasher = blake3::Hasher::new();
        let actor = format!("{:?}", caller.actor);
        for part in [actor.as_str(), request.route.as_str(), request.key.as_str()] {
            // Lengths keep two requests apart whose parts only meet elsewhere.
            hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        IdempotencyKey { project: caller.project.clone(), digest: hasher.finalize().to_hex().to_string() }
    }

    /// What came of this request, if it was carried out. Errors: `InvalidInput` ([`codes::IDEMPOTENCY_KEY_REUSED`]).
    pub(crate) async fn replay(&self, caller: &Caller, mutation: &Mutation) -> Result<Option<Outcome>> {
        let Some(request) = &mutation.request else { return Ok(None) };
        let key = Self::idempotency_key(caller, request);
        match self.records().idempotency(&key).await? {
            Some(known) if known.expires_at <= self.clock().now() => Ok(None),
            Some(known) if known.body_digest != request.body_digest => Err(codes::key_reused()),
            Some(known) => Ok(Some(known.into_record().outcome)),
            None => Ok(None),
        }
    }

    /// Adds the idempotency record to a change. Without a key of the client's, one of our own makes the commit's outcome
    /// knowable for a while.
    pub(crate) fn record_request(
        &self,
        caller: &Caller,
        mutation: &Mutation,
        change: &mut Change,
        outcome: Outcome,
    ) {
        let (request, kept) = match &mutation.request {
            Some(request) => (request.clone(), self.config().idempotency_kept),
            None => {
                let key =
                    format!("own:{:032x}{:032x}", self.parts.random.next_u64(), self.parts.random.next_u64());
                let request = RequestKey { key, route: String::new(), body_digest: String::new() };
                (request, std::time::Duration::from_secs(600))
            }
        };
        let key = Self::idempotency_key(caller, &request);
        let expires_at = self.clock().now_plus(kept);
        change
            .insert_idempotency(&key, &Idempotency { body_digest: request.body_digest, outcome, expires_at });
    }

    /// Changes one VM as `decide` says.
    ///
    /// Errors: `NotFound`; `Conflict` ([`codes::GENERATION_MISMATCH`], [`codes::VM_DELETED`], and what `decide` refuses);
    /// `InvalidInput` ([`codes::IDEMPOTENCY_KEY_REUSED`]); `Unavailable` ([`codes::CONTENDED`]); `OutcomeUnknown`.
    pub(crate) async fn change_vm(
        &self,
        caller: &Caller,
        vm: &VmRef,
        mutation: &Mutation,
        decide: impl Fn(&VmEntry) -> Result<Decision> + Send + Sync,
    ) -> Result<VmView> {
        if let Some(Outcome::Vm(id)) = self.replay(caller, mutation).await? {
            return self.view(caller, id).await?.ok_or_else(|| codes::vm_not_found(&id.to_string()));
        }
        let id = self.resolve(caller, vm).await?;
        for _ in 0..ATTEMPTS {
            let Some(entry) = self.records().vm(&caller.project, id).await? else {
                return match self.records().tombstone(&caller.project, id).await? {
                    Some(_) => Err(codes::vm_deleted(&vm.to_string())),
                    None => Err(codes::vm_not_found(&vm.to_string())),
                };
            };
            if let Some(expected) = mutation.if_generation.filter(|expected| *expected != entry.vm.generation)
            {
                return Err(codes::generation_mismatch(expected, entry.vm.generation));
            }
            let now = self.clock().now();
            let (new, kind) = match decide(&entry)? {
                Decision::Unchanged => {
                    // What is so already needs no change; but a client's key must not act later, when it would be one.
                    let mut change = Change::new();
                    change.require_vm(&entry.vm);
                    if mutation.request.is_some() {
                        self.record_request(caller, mutation, &mut change, Outcome::Vm(id));
                        match self.records().apply_knowing(change).await {
                            Err(error) if error.kind() == ErrorKind::Conflict => {
                                match self.replay(caller, mutation).await? {
                                    Some(_) => {}
                                    None => continue,
                                }
                            }
                            Err(error) => return Err(error),
                            Ok(()) => {}
                        }
                    }
                    return Ok(entry.into());
                }
                Decision::Become(new, kind) => (new, kind),
            };
            let new = Arc::new(Vm { generation: entry.vm.generation + 1, updated_at: now, ..*new });
            let mut change = Change::new();
            change
                .update_vm(&entry.vm, Arc::clone(&new))
                .event(Some(&caller.project), &caller.vm_event(now, &new, kind, new.desired_reason.clone()))
                .due(&new.project, id, now);
            if let Some(deadline) = new.deadline.filter(|_| new.deadline != entry.vm.deadline) {
                change.due(&new.project, id, deadline);
            }
            self.record_request(caller, mutation, &mut change, Outcome::Vm(id));
            match self.records().apply_knowing(change).await {
                Ok(()) => {
                    let state = flames_model::observed_state(&new, entry.incarnation.as_deref());
                    let incarnation = entry.incarnation.map(|incarnation| incarnation.record);
                    return Ok(VmView { vm: new, incarnation, state });
                }
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    // Either the VM changed, or a twin of this request was faster.
                    if let Some(Outcome::Vm(id)) = self.replay(caller, mutation).await? {
                        return self
                            .view(caller, id)
                            .await?
                            .ok_or_else(|| codes::vm_not_found(&id.to_string()));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(codes::contended("service.change_vm"))
    }

    pub(crate) fn new_vm_id(&self) -> VmId {
        VmId::from_uuid(self.parts.ids.next_id())
    }
}

/// The error of an outcome that does not belong to the route: only possible when a record was tampered with.
pub(crate) fn wrong_outcome() -> Error {
    Error::internal("service.replay", "an idempotency record holds the outcome of another route")
}
