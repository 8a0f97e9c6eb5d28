//! Snapshots: asking for them, reading, removing, and making VMs of them.

use std::time::Duration;

use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use flames_error::Error;
use flames_model::{SnapshotId, VmId};
use flames_service::{NewSnapshot, NewSnapshotKind, RestoreSnapshot as Restore, SnapshotRef, codes};
use flames_wire::{
    CreateSnapshot, RestoreSnapshot, Snapshot, SnapshotKind, SnapshotList, SnapshotListQuery,
    SnapshotWaitQuery, SnapshotWaitResult, Vm,
};
use http::{HeaderValue, StatusCode, header};

use super::vm_answer;
use crate::access::By;
use crate::api::{Api, stopping};
use crate::failure::{Answer, invalid};
use crate::input::{Change, Json, NoBody, PathOf, QueryOf, VmPath, limit};

const LONGEST_MS: u64 = 3_600_000;
/// Shorter than the time-outs that HTTP clients have by default.
const DEFAULT_MS: u64 = 10_000;

/// Take a snapshot of a VM
///
/// The VM must run or be paused. It stands still while its memory and its disk are saved on its host, and goes on while that is stored. The
/// answer comes as soon as the wish is recorded; wait with `GET /v1/snapshots/{snapshot}/wait`. With the kind `diff` only what the memory has become
/// since the newest ready snapshot of the present run is saved and stored; the snapshot is whole all the same, and does not need the other one.
#[utoipa::path(post, path = "/v1/vms/{vm}/snapshots", tag = "snapshots",
    request_body(content = CreateSnapshot, description = "The snapshot to take."), responses(
    (status = 202, description = "It is recorded, or was under this idempotency key.", body = Snapshot,
        headers(("Location" = String, description = "Where the snapshot is read."))),
))]
pub(crate) async fn create_snapshot(
    State(api): State<Api>,
    By(caller): By,
    VmPath(vm): VmPath,
    change: Change,
    body: Json<CreateSnapshot>,
) -> Answer<Response> {
    let mutation = change.with(&body.bytes);
    let name = body.value.model_name()?;
    let base = body.value.base.as_deref().map(SnapshotRef::parse).transpose();
    let kind = match body.value.kind {
        SnapshotKind::Full => NewSnapshotKind::Full,
        SnapshotKind::Diff => NewSnapshotKind::Diff { base: base.map_err(|error| error.with_field("base"))? },
    };
    let snapshot = api.service.create_snapshot(&caller, &vm, NewSnapshot { name, kind }, &mutation).await?;
    let mut response = (StatusCode::ACCEPTED, JsonAnswer(Snapshot::from(&snapshot))).into_response();
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/snapshots/{}", snapshot.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// List snapshots
///
/// By id, and so nearly in the order in which they were asked for. A page of one VM's may be short though there are more: go on while
/// `next_cursor` is not null.
#[utoipa::path(get, path = "/v1/snapshots", tag = "snapshots", params(SnapshotListQuery), responses(
    (status = 200, description = "A page of snapshots.", body = SnapshotList),
))]
pub(crate) async fn list_snapshots(
    State(api): State<Api>,
    By(caller): By,
    QueryOf(query): QueryOf<SnapshotListQuery>,
) -> Answer<JsonAnswer<SnapshotList>> {
    let in_field =
        |field: &'static str| move |error: Error| error.with_field(field).with_code(codes::INVALID_FIELD);
    let of = query.vm.map(|id| id.parse::<VmId>()).transpose().map_err(in_field("vm"))?;
    let after = query.cursor.map(|id| id.parse::<SnapshotId>()).transpose().map_err(in_field("cursor"))?;
    let page = api.service.list_snapshots(&caller, of, after, limit(query.limit, 50, 200)?).await?;
    Ok(JsonAnswer(SnapshotList {
        items: page.items.iter().map(Snapshot::from).collect(),
        next_cursor: page.next.map(|id| id.to_string()),
    }))
}

/// Read a snapshot
#[utoipa::path(get, path = "/v1/snapshots/{snapshot}", tag = "snapshots", responses(
    (status = 200, description = "The snapshot.", body = Snapshot),
))]
pub(crate) async fn get_snapshot(
    State(api): State<Api>,
    By(caller): By,
    PathOf(snapshot): PathOf<String>,
) -> Answer<JsonAnswer<Snapshot>> {
    let snapshot = api.service.get_snapshot(&caller, &SnapshotRef::parse(&snapshot)?).await?;
    Ok(JsonAnswer(Snapshot::from(&snapshot)))
}

/// Wait for a snapshot
///
/// Answers as soon as the snapshot is ready, has failed, or the time is up; not reaching it is no error.
#[utoipa::path(get, path = "/v1/snapshots/{snapshot}/wait", tag = "snapshots", params(SnapshotWaitQuery), responses(
    (status = 200, description = "How the wait ended, and the snapshot.", body = SnapshotWaitResult),
))]
pub(crate) async fn wait_snapshot(
    State(api): State<Api>,
    By(caller): By,
    PathOf(snapshot): PathOf<String>,
    QueryOf(query): QueryOf<SnapshotWaitQuery>,
) -> Answer<JsonAnswer<SnapshotWaitResult>> {
    let timeout_ms = query.timeout_ms.unwrap_or(DEFAULT_MS);
    if timeout_ms > LONGEST_MS {
        return Err(invalid("timeout_ms", "A wait is 0 to 3600000 ms."));
    }
    let snapshot = SnapshotRef::parse(&snapshot)?;
    let _place = api.stream_permit()?;
    let waiting = api.service.wait_snapshot(&caller, &snapshot, Duration::from_millis(timeout_ms));
    let outcome = tokio::select! {
        biased;
        outcome = waiting => outcome?,
        () = api.stop.cancelled() => return Err(stopping().into()),
    };
    let snapshot = Snapshot::from(&outcome.snapshot);
    Ok(JsonAnswer(SnapshotWaitResult { reached: outcome.reached, snapshot }))
}

/// Remove a snapshot
///
/// Refused while a VM is still to be loaded from it. One that is under way is given up.
#[utoipa::path(delete, path = "/v1/snapshots/{snapshot}", tag = "snapshots", responses(
    (status = 204, description = "The snapshot is gone."),
))]
pub(crate) async fn delete_snapshot(
    State(api): State<Api>,
    By(caller): By,
    PathOf(snapshot): PathOf<String>,
    change: Change,
    NoBody: NoBody,
) -> Answer<StatusCode> {
    api.service.delete_snapshot(&caller, &SnapshotRef::parse(&snapshot)?, &change.with(&[])).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Make a VM of a snapshot
///
/// The VM has the spec of the one that was saved, goes on where that one was, and is wanted running. Ports get any free port of its host.
/// Before it is `running` its guest has a host name, a clock, randomness and an identity of its own.
#[utoipa::path(post, path = "/v1/snapshots/{snapshot}/restore", tag = "snapshots",
    request_body(content = RestoreSnapshot, description = "What the VM has of its own."), responses(
    (status = 202, description = "It is recorded, or was under this idempotency key.", body = Vm,
        headers(("ETag" = String, description = "The generation."), ("Location" = String, description = "Where the VM is read."))),
))]
pub(crate) async fn restore_snapshot(
    State(api): State<Api>,
    By(caller): By,
    PathOf(snapshot): PathOf<String>,
    change: Change,
    body: Json<RestoreSnapshot>,
) -> Answer<Response> {
    let mutation = change.with(&body.bytes);
    let (name, labels, network) = body.value.into_model()?;
    let snapshot = SnapshotRef::parse(&snapshot)?;
    let restore = Restore { name, labels, network };
    let view = api.service.restore_snapshot(&caller, &snapshot, restore, &mutation).await?;
    let mut response = vm_answer(&api.service, StatusCode::ACCEPTED, &view);
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/vms/{}", view.vm.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}
