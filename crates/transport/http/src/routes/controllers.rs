//! Controllers, as operators see them.

use axum::Json as JsonAnswer;
use axum::extract::State;
use flames_model::ControllerId;
use flames_service::{Caller, ControllerView, codes};
use flames_wire::{Controller, ControllerDelete, ControllerList, PageQuery};
use http::StatusCode;

use crate::access::By;
use crate::api::Api;
use crate::failure::{Answer, Failure};
use crate::input::{Change, NoBody, PathOf, QueryOf, limit};

fn shown(view: &ControllerView) -> Controller {
    Controller::new(&view.controller, &view.allocation, view.renewals)
}

fn controller_id(text: &str, field: &str) -> Answer<ControllerId> {
    text.parse().map_err(|error: flames_error::Error| {
        Failure(error.with_field(field).with_code(codes::INVALID_FIELD))
    })
}

/// List controllers
#[utoipa::path(get, path = "/v1/controllers", tag = "controllers", params(PageQuery), responses(
    (status = 200, description = "A page of controllers, by id.", body = ControllerList),
))]
pub(crate) async fn list_controllers(
    State(api): State<Api>,
    By(_caller): By,
    QueryOf(query): QueryOf<PageQuery>,
) -> Answer<JsonAnswer<ControllerList>> {
    let after = query.cursor.map(|id| controller_id(&id, "cursor")).transpose()?;
    let page = api.service.list_controllers(after, limit(query.limit, 50, 200)?).await?;
    Ok(JsonAnswer(ControllerList {
        items: page.items.iter().map(shown).collect(),
        next_cursor: page.next.map(|id| id.to_string()),
    }))
}

/// Read a controller
#[utoipa::path(get, path = "/v1/controllers/{id}", tag = "controllers", responses(
    (status = 200, description = "The controller.", body = Controller),
))]
pub(crate) async fn get_controller(
    State(api): State<Api>,
    By(_caller): By,
    PathOf(id): PathOf<String>,
) -> Answer<JsonAnswer<Controller>> {
    let view = api.service.get_controller(controller_id(&id, "id")?).await?;
    Ok(JsonAnswer(shown(&view)))
}

async fn cordon(
    api: &Api,
    caller: &Caller,
    id: &str,
    cordoned: bool,
    change: Change,
) -> Answer<(StatusCode, JsonAnswer<Controller>)> {
    let id = controller_id(id, "id")?;
    let view = api.service.cordon_controller(caller, id, cordoned, &change.with(&[])).await?;
    Ok((StatusCode::ACCEPTED, JsonAnswer(shown(&view))))
}

/// Take a controller out of use
///
/// Nothing new is placed on it; what runs there goes on.
#[utoipa::path(post, path = "/v1/controllers/{id}/cordon", tag = "controllers", responses(
    (status = 202, description = "It takes nothing new.", body = Controller),
))]
pub(crate) async fn cordon_controller(
    State(api): State<Api>,
    By(caller): By,
    PathOf(id): PathOf<String>,
    change: Change,
    NoBody: NoBody,
) -> Answer<(StatusCode, JsonAnswer<Controller>)> {
    cordon(&api, &caller, &id, true, change).await
}

/// Take a controller into use again
#[utoipa::path(post, path = "/v1/controllers/{id}/uncordon", tag = "controllers", responses(
    (status = 202, description = "It takes VMs again.", body = Controller),
))]
pub(crate) async fn uncordon_controller(
    State(api): State<Api>,
    By(caller): By,
    PathOf(id): PathOf<String>,
    change: Change,
    NoBody: NoBody,
) -> Answer<(StatusCode, JsonAnswer<Controller>)> {
    cordon(&api, &caller, &id, false, change).await
}

/// Remove a controller
///
/// Refused while it holds VMs, unless an operator confirms that its host is dead: then each of its VMs is ended as if the host had
/// said so. Confirming it wrongly can run a VM twice.
#[utoipa::path(delete, path = "/v1/controllers/{id}", tag = "controllers", params(ControllerDelete), responses(
    (status = 204, description = "The controller is gone."),
))]
pub(crate) async fn remove_controller(
    State(api): State<Api>,
    By(caller): By,
    PathOf(id): PathOf<String>,
    QueryOf(query): QueryOf<ControllerDelete>,
    change: Change,
    NoBody: NoBody,
) -> Answer<StatusCode> {
    let id = controller_id(&id, "id")?;
    api.service.remove_controller(&caller, id, query.confirmed_dead, &change.with(&[])).await?;
    Ok(StatusCode::NO_CONTENT)
}
