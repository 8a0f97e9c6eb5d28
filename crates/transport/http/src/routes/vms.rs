//! VMs: creating, reading, and saying what is wanted of them.

use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::response::Response;
use flames_error::{Error, Result};
use flames_model::{ControllerId, Labels, VmId};
use flames_service::{CreateVm as NewVm, Mutation, Service, VmFilter, VmRef, VmView, codes};
use flames_wire::{CreateVm, Network, SetLabels, Vm, VmList, VmListQuery, parse_label_filter};
use http::{HeaderValue, StatusCode, header};

use super::{shown, vm_answer};
use crate::access::By;
use crate::api::Api;
use crate::failure::Answer;
use crate::input::{Change, Json, NoBody, QueryOf, VmPath, limit};

/// Create a VM
///
/// The VM is wanted running; the answer comes as soon as that is recorded. Wait with `GET /v1/vms/{vm}/wait?for=running`.
#[utoipa::path(post, path = "/v1/vms", tag = "vms", request_body(content = CreateVm, description = "The VM to create."), responses(
    (status = 202, description = "It is recorded, or was under this idempotency key.", body = Vm,
        headers(("ETag" = String, description = "The generation."), ("Location" = String, description = "Where the VM is read."))),
))]
pub(crate) async fn create_vm(
    State(api): State<Api>,
    By(caller): By,
    change: Change,
    body: Json<CreateVm>,
) -> Answer<Response> {
    let mutation = change.with(&body.bytes);
    let (name, labels, spec) = body.value.into_model()?;
    let view = api.service.create_vm(&caller, NewVm { name, labels, spec }, &mutation).await?;
    let mut response = vm_answer(&api.service, StatusCode::ACCEPTED, &view);
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/vms/{}", view.vm.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// List VMs
///
/// By id, and so nearly in the order in which they were created. A filtered page may be short though there are more: go on while `next_cursor` is
/// not null.
#[utoipa::path(get, path = "/v1/vms", tag = "vms", params(VmListQuery), responses(
    (status = 200, description = "A page of VMs.", body = VmList),
))]
pub(crate) async fn list_vms(
    State(api): State<Api>,
    By(caller): By,
    QueryOf(query): QueryOf<VmListQuery>,
) -> Answer<JsonAnswer<VmList>> {
    let in_field =
        |field: &'static str| move |error: Error| error.with_field(field).with_code(codes::INVALID_FIELD);
    let filter = VmFilter {
        labels: query.labels.as_deref().map(parse_label_filter).transpose()?.unwrap_or_default(),
        state: query.state.map(Into::into),
        controller: query
            .controller
            .map(|id| id.parse::<ControllerId>())
            .transpose()
            .map_err(in_field("controller"))?,
    };
    let after = query.cursor.map(|id| id.parse::<VmId>()).transpose().map_err(in_field("cursor"))?;
    let limit = limit(query.limit, 50, 200)?;
    let page = api.service.list_vms(&caller, &filter, after, limit).await?;
    Ok(JsonAnswer(VmList {
        items: page.items.iter().map(|view| shown(&api.service, view)).collect(),
        next_cursor: page.next.map(|id| id.to_string()),
    }))
}

/// Read a VM
///
/// Deleted VMs can be read, by id, as long as a trace of them is kept.
#[utoipa::path(get, path = "/v1/vms/{vm}", tag = "vms", responses(
    (status = 200, description = "The VM.", body = Vm, headers(("ETag" = String, description = "The generation."))),
))]
pub(crate) async fn get_vm(State(api): State<Api>, By(caller): By, VmPath(vm): VmPath) -> Answer<Response> {
    Ok(vm_answer(&api.service, StatusCode::OK, &api.service.get_vm(&caller, &vm).await?))
}

/// Answers a change of a VM.
async fn changed(
    service: &Service,
    change: Change,
    body: &[u8],
    apply: impl AsyncFnOnce(&Mutation) -> Result<VmView>,
) -> Answer<Response> {
    let mutation = change.with(body);
    Ok(vm_answer(service, StatusCode::ACCEPTED, &apply(&mutation).await?))
}

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident, $method:ident, $path:literal, $described:literal;)*) => {
        $(
            $(#[$doc])*
            #[utoipa::path($method, path = $path, tag = "vms", responses(
                (status = 202, description = $described, body = Vm, headers(("ETag" = String, description = "The generation."))),
            ))]
            pub(crate) async fn $name(
                State(api): State<Api>,
                By(caller): By,
                VmPath(vm): VmPath,
                change: Change,
                NoBody: NoBody,
            ) -> Answer<Response> {
                let (service, vm): (&Service, &VmRef) = (&api.service, &vm);
                changed(service, change, &[], async |mutation| service.$name(&caller, vm, mutation).await).await
            }
        )*
    };
}

actions! {
    /// Start a VM
    ///
    /// A run that is over is followed by a new one; a paused VM goes on; a running one is left alone.
    start_vm, post, "/v1/vms/{vm}/start", "It is wanted running.";
    /// Stop a VM
    ///
    /// Its workload is asked to end, and killed when its grace is over.
    stop_vm, post, "/v1/vms/{vm}/stop", "It is wanted stopped.";
    /// Restart a VM
    ///
    /// Ends the present run and begins a new one.
    restart_vm, post, "/v1/vms/{vm}/restart", "A new run of it is wanted.";
    /// Pause a VM
    pause_vm, post, "/v1/vms/{vm}/pause", "It is wanted paused.";
    /// Resume a paused VM
    resume_vm, post, "/v1/vms/{vm}/resume", "It is wanted running.";
    /// Delete a VM
    ///
    /// Its name is free at once. Deleting a VM that is being deleted is no error.
    delete_vm, delete, "/v1/vms/{vm}", "It is wanted deleted.";
}

/// Replace a VM's labels
#[utoipa::path(put, path = "/v1/vms/{vm}/labels", tag = "vms", request_body(content = SetLabels, description = "The new labels."), responses(
    (status = 202, description = "It has these labels and no others.", body = Vm, headers(("ETag" = String, description = "The generation."))),
))]
pub(crate) async fn set_labels(
    State(api): State<Api>,
    By(caller): By,
    VmPath(vm): VmPath,
    change: Change,
    body: Json<SetLabels>,
) -> Answer<Response> {
    let labels =
        Labels::new(body.value.labels, "labels").map_err(|error| error.with_code(codes::INVALID_FIELD))?;
    changed(&api.service, change, &body.bytes, async |mutation| {
        api.service.set_labels(&caller, &vm, labels, mutation).await
    })
    .await
}

/// Replace a VM's network
///
/// What it may reach, and who may reach it, as a whole. A VM that runs or is paused is put under it at once by its host: what is not allowed any more
/// is cut, connections that are open among it. `network.in_force` tells when that is so; wait with `GET /v1/vms/{vm}/wait?for=network`. On a host that
/// cannot do that the VM must be stopped first. Any other VM has it from its next run on.
#[utoipa::path(put, path = "/v1/vms/{vm}/network", tag = "vms", request_body(content = Network, description = "The new network."), responses(
    (status = 202, description = "It is wanted.", body = Vm, headers(("ETag" = String, description = "The generation."))),
))]
pub(crate) async fn set_network(
    State(api): State<Api>,
    By(caller): By,
    VmPath(vm): VmPath,
    change: Change,
    body: Json<Network>,
) -> Answer<Response> {
    let network = body.value.into_model()?;
    changed(&api.service, change, &body.bytes, async |mutation| {
        api.service.set_network(&caller, &vm, network, mutation).await
    })
    .await
}
