//! Creating VMs and saying what is wanted of them.

use std::sync::Arc;

use flames_clock::{ClockExt, Timestamp};
use flames_error::{Error, ErrorKind, Result};
use flames_model::{
    DesiredState, EventKind, Image, ImageKind, ImageName, Labels, Request, RequestRefusal, Vm, VmId, VmName,
    VmSpec, VmState, apply_request,
};
use flames_records::{Change, ListPage, Outcome, Versioned, VmFilter};

use crate::mutation::{ATTEMPTS, Decision, wrong_outcome};
use crate::{Caller, Mutation, Service, VmRef, VmView, codes};

/// What a new VM is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateVm {
    /// Its name; none: one is made up.
    pub name: Option<VmName>,
    /// What it is chosen by.
    pub labels: Labels,
    /// What is asked for.
    pub spec: VmSpec,
}

impl Service {
    /// Creates a VM that is wanted running.
    ///
    /// Errors: `InvalidInput` ([`codes::INVALID_FIELD`], naming field and range; [`codes::IDEMPOTENCY_KEY_REUSED`]); `NotFound`
    /// ([`codes::IMAGE_NOT_FOUND`]); `AlreadyExists` ([`codes::VM_NAME_TAKEN`]); `Unavailable`; `OutcomeUnknown`.
    pub async fn create_vm(&self, caller: &Caller, create: CreateVm, mutation: &Mutation) -> Result<VmView> {
        let CreateVm { name, labels, spec } = create;
        spec.validate().map_err(codes::coded_input)?;
        let spec = Arc::new(spec);
        for _ in 0..ATTEMPTS {
            let (image, kernel) = match self.usable_images(caller, &spec).await {
                Ok(images) => images,
                // What was carried out once stays so, whatever became of its images since.
                Err(error) => return self.replayed_vm(caller, mutation).await?.ok_or(error),
            };
            let vm = Arc::new(self.new_vm(caller, name.as_ref(), &labels, &spec)?);
            let mut change = Change::new();
            change
                .insert_vm(Arc::clone(&vm))
                .require_image(&image)
                .event(Some(&vm.project), &caller.vm_event(vm.created_at, &vm, EventKind::VmCreated, None))
                .due(&vm.project, vm.id, vm.created_at);
            if let Some(kernel) = &kernel {
                change.require_image(kernel);
            }
            if let Some(deadline) = vm.deadline {
                change.due(&vm.project, vm.id, deadline);
            }
            if mutation.request.is_some() {
                self.record_request(caller, mutation, &mut change, Outcome::Vm(vm.id));
            }
            match self.records().apply_knowing(change).await {
                Ok(()) => return Ok(VmView { vm, incarnation: None, state: VmState::Pending }),
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    // The request may have been carried out before: its record is written by the commit that does it, and by no other.
                    if let Some(view) = self.replayed_vm(caller, mutation).await? {
                        return Ok(view);
                    }
                    if let Some(name) = &name
                        && let Some(other) = self.records().vm_named(&caller.project, name).await?
                    {
                        return Err(name_taken(name, other));
                    }
                    // A made-up name met another, or the image changed: decide anew.
                }
                Err(error) => return Err(error),
            }
        }
        Err(codes::contended("service.create_vm"))
    }

    pub(crate) async fn replayed_vm(&self, caller: &Caller, mutation: &Mutation) -> Result<Option<VmView>> {
        match self.replay(caller, mutation).await? {
            Some(Outcome::Vm(id)) => {
                let view = self.view(caller, id).await?;
                view.map(Some).ok_or_else(|| codes::vm_not_found(&id.to_string()))
            }
            Some(_) => Err(wrong_outcome()),
            None => Ok(None),
        }
    }

    /// A VM that is wanted running from now on. Without a name, one is made up.
    pub(crate) fn new_vm(
        &self,
        caller: &Caller,
        name: Option<&VmName>,
        labels: &Labels,
        spec: &Arc<VmSpec>,
    ) -> Result<Vm> {
        let id = self.new_vm_id();
        let now = self.clock().now();
        let name = match name {
            Some(name) => name.clone(),
            None => VmName::new(format!("vm-{}", &id.uuid().simple().to_string()[20..]))?,
        };
        Ok(Vm {
            id,
            project: caller.project.clone(),
            name,
            labels: labels.clone(),
            deadline: self.deadline(spec),
            spec: Arc::clone(spec),
            network_revision: 0,
            desired: DesiredState::Running,
            desired_reason: None,
            run: 1,
            generation: 1,
            placements: 0,
            incarnation: None,
            disk: None,
            restarts: 0,
            unplaced: None,
            restored_from: None,
            created_at: now,
            updated_at: now,
            deleted_at: None,
        })
    }

    fn deadline(&self, spec: &VmSpec) -> Option<Timestamp> {
        spec.timeout_ms.map(|timeout| self.clock().now_plus(std::time::Duration::from_millis(timeout)))
    }

    /// The image that a VM is to be made from, and its kernel.
    async fn usable_images(
        &self,
        caller: &Caller,
        spec: &VmSpec,
    ) -> Result<(Versioned<Image>, Option<Versioned<Image>>)> {
        let image = self.usable_image(caller, &spec.image, ImageKind::Rootfs, "spec.image").await?;
        let kernel = match &spec.kernel {
            Some(name) => Some(self.usable_image(caller, name, ImageKind::Kernel, "spec.kernel").await?),
            None => None,
        };
        Ok((image, kernel))
    }

    async fn usable_image(
        &self,
        caller: &Caller,
        name: &ImageName,
        kind: ImageKind,
        field: &'static str,
    ) -> Result<Versioned<Image>> {
        let found = self.records().image(&caller.project, name).await?.filter(|image| !image.removing);
        let image = found.ok_or_else(|| codes::image_not_found(name).with_field(field))?;
        if image.manifest.kind != kind {
            let wanted = if kind == ImageKind::Kernel { "a kernel" } else { "a root file system" };
            return Err(Error::invalid(
                "service.create_vm",
                field,
                format!("The image `{name}` is not {wanted}."),
            )
            .with_code(codes::IMAGE_WRONG_KIND));
        }
        Ok(image)
    }

    /// A page of VMs, by id. May be short though there are more: go on behind `next`.
    ///
    /// Errors: `Unavailable`.
    pub async fn list_vms(
        &self,
        caller: &Caller,
        filter: &VmFilter,
        after: Option<VmId>,
        limit: usize,
    ) -> Result<ListPage<VmView, VmId>> {
        let page = self.records().list_vms(&caller.project, filter, after, limit).await?;
        Ok(ListPage { items: page.items.into_iter().map(VmView::from).collect(), next: page.next })
    }

    /// Wants a VM running. A run that is over is followed by a new one; a paused VM goes on; a running one is left alone.
    ///
    /// Errors: as all changes of a VM: `NotFound`, `Conflict` ([`codes::VM_DELETED`], [`codes::GENERATION_MISMATCH`]), `Unavailable`,
    /// `OutcomeUnknown`.
    pub async fn start_vm(&self, caller: &Caller, vm: &VmRef, mutation: &Mutation) -> Result<VmView> {
        self.request(caller, vm, mutation, Request::Start).await
    }

    /// Wants a VM stopped. Errors: as [`Service::start_vm`].
    pub async fn stop_vm(&self, caller: &Caller, vm: &VmRef, mutation: &Mutation) -> Result<VmView> {
        self.request(caller, vm, mutation, Request::Stop).await
    }

    /// Wants a new run of a VM, ending the present one first. Errors: as [`Service::start_vm`].
    pub async fn restart_vm(&self, caller: &Caller, vm: &VmRef, mutation: &Mutation) -> Result<VmView> {
        self.request(caller, vm, mutation, Request::Restart).await
    }

    /// Wants a VM paused.
    ///
    /// Errors: as [`Service::start_vm`]; `Conflict` ([`codes::VM_NOT_RUNNING`]) when its run is over or it is stopped.
    pub async fn pause_vm(&self, caller: &Caller, vm: &VmRef, mutation: &Mutation) -> Result<VmView> {
        self.request(caller, vm, mutation, Request::Pause).await
    }

    /// Wants a paused VM running again. Errors: as [`Service::pause_vm`].
    pub async fn resume_vm(&self, caller: &Caller, vm: &VmRef, mutation: &Mutation) -> Result<VmView> {
        self.request(caller, vm, mutation, Request::Resume).await
    }

    /// Wants a VM gone; its name is free at once. Deleting a VM that is being deleted, or is gone, is no error.
    ///
    /// Errors: `NotFound`; `Conflict` ([`codes::GENERATION_MISMATCH`]); `Unavailable`; `OutcomeUnknown`.
    pub async fn delete_vm(&self, caller: &Caller, vm: &VmRef, mutation: &Mutation) -> Result<VmView> {
        match self.request(caller, vm, mutation, Request::Delete).await {
            // Gone already: what was asked for is so.
            Err(error) if error.code() == Some(codes::VM_DELETED) => self.get_vm(caller, vm).await,
            other => other,
        }
    }

    async fn request(
        &self,
        caller: &Caller,
        vm: &VmRef,
        mutation: &Mutation,
        request: Request,
    ) -> Result<VmView> {
        self.change_vm(caller, vm, mutation, |entry| {
            let incarnation = entry.incarnation.as_deref();
            let deadline = self.deadline(&entry.vm.spec);
            match apply_request(&entry.vm, incarnation, request, deadline) {
                Ok(None) => Ok(Decision::Unchanged),
                Ok(Some(new)) => {
                    let kind = EventKind::VmDesired { desired: new.desired, run: new.run };
                    Ok(Decision::Become(Box::new(new), kind))
                }
                Err(RequestRefusal::Deleted) => Err(codes::vm_deleted(&entry.vm.id.to_string())),
                Err(RequestRefusal::NotRunning) => {
                    Err(Error::new(ErrorKind::Conflict, "service.request", "the VM does not run")
                        .with_resource("vm", entry.vm.id.to_string())
                        .with_code(codes::VM_NOT_RUNNING)
                        .with_user_message(format!(
                            "The VM `{0}` does not run. Start it with `flames start {0}`.",
                            entry.vm.name
                        )))
                }
            }
        })
        .await
    }

    /// Replaces a VM's labels. Errors: as [`Service::start_vm`].
    pub async fn set_labels(
        &self,
        caller: &Caller,
        vm: &VmRef,
        labels: Labels,
        mutation: &Mutation,
    ) -> Result<VmView> {
        self.change_vm(caller, vm, mutation, |entry| {
            if entry.vm.desired == DesiredState::Deleted {
                return Err(codes::vm_deleted(&entry.vm.id.to_string()));
            }
            if entry.vm.labels == labels {
                return Ok(Decision::Unchanged);
            }
            let new = Vm { labels: labels.clone(), ..Vm::clone(&entry.vm) };
            Ok(Decision::Become(Box::new(new), EventKind::VmLabelled))
        })
        .await
    }
}

pub(crate) fn name_taken(name: &VmName, other: VmId) -> Error {
    Error::new(ErrorKind::AlreadyExists, "service.create_vm", "another VM has this name")
        .with_resource("vm", other.to_string())
        .with_field("name")
        .with_code(codes::VM_NAME_TAKEN)
        .with_user_message(format!(
            "The name `{name}` belongs to {other}. Choose another, or delete that VM first."
        ))
}
