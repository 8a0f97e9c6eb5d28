//! What callers are shown of a VM.

use std::sync::Arc;

use flames_error::Result;
use flames_model::{Incarnation, Vm, VmId, VmName, VmState, observed_state};
use flames_records::{Tombstone, VmEntry};

use crate::{Caller, Service, codes};

/// Names a VM: by id, or by name while it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmRef {
    /// By id.
    Id(VmId),
    /// By name.
    Name(VmName),
}

impl VmRef {
    /// Reads a reference: an id when it looks like one, else a name. `InvalidInput` when it is neither.
    pub fn parse(text: &str) -> Result<Self> {
        match text.parse() {
            Ok(id) => Ok(Self::Id(id)),
            Err(_) => VmName::new(text)
                .map(Self::Name)
                .map_err(|error| error.with_field("vm").with_code(codes::INVALID_FIELD)),
        }
    }
}

impl std::fmt::Display for VmRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Name(name) => write!(f, "{name}"),
        }
    }
}

impl From<VmId> for VmRef {
    fn from(id: VmId) -> Self {
        Self::Id(id)
    }
}

/// A VM with its current incarnation and how it looks from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmView {
    /// What is wanted.
    pub vm: Arc<Vm>,
    /// The present try at it.
    pub incarnation: Option<Arc<Incarnation>>,
    /// How it looks.
    pub state: VmState,
}

impl From<VmEntry> for VmView {
    fn from(entry: VmEntry) -> Self {
        let state = entry.state();
        let incarnation = entry.incarnation.map(|incarnation| incarnation.record);
        Self { vm: entry.vm.record, incarnation, state }
    }
}

impl From<Tombstone> for VmView {
    fn from(tombstone: Tombstone) -> Self {
        let state = observed_state(&tombstone.vm, tombstone.incarnation.as_ref());
        Self { vm: Arc::new(tombstone.vm), incarnation: tombstone.incarnation.map(Arc::new), state }
    }
}

impl Service {
    /// The id that a reference names. Errors: `NotFound` ([`codes::VM_NOT_FOUND`]).
    pub(crate) async fn resolve(&self, caller: &Caller, vm: &VmRef) -> Result<VmId> {
        match vm {
            VmRef::Id(id) => Ok(*id),
            VmRef::Name(name) => self
                .records()
                .vm_named(&caller.project, name)
                .await?
                .ok_or_else(|| codes::vm_not_found(name.as_str())),
        }
    }

    /// A VM, deleted ones included as long as their tombstone is kept.
    ///
    /// Errors: `NotFound` ([`codes::VM_NOT_FOUND`]).
    pub async fn get_vm(&self, caller: &Caller, vm: &VmRef) -> Result<VmView> {
        let id = self.resolve(caller, vm).await?;
        self.view(caller, id).await?.ok_or_else(|| codes::vm_not_found(&vm.to_string()))
    }

    /// The view of a VM or of its tombstone, or none.
    pub(crate) async fn view(&self, caller: &Caller, id: VmId) -> Result<Option<VmView>> {
        if let Some(entry) = self.records().vm(&caller.project, id).await? {
            return Ok(Some(entry.into()));
        }
        Ok(self
            .records()
            .tombstone(&caller.project, id)
            .await?
            .map(|tombstone| tombstone.into_record().into()))
    }
}
