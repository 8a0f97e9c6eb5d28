//! Waiting for a VM.

use std::time::Duration;

use axum::Json as JsonAnswer;
use axum::extract::State;
use flames_service::WaitFor;
use flames_wire::{WaitQuery, WaitResult};

use super::shown;
use crate::access::By;
use crate::api::{Api, stopping};
use crate::failure::{Answer, invalid};
use crate::input::{QueryOf, VmPath};

const LONGEST_MS: u64 = 3_600_000;
/// Shorter than the time-outs that HTTP clients have by default.
const DEFAULT_MS: u64 = 10_000;

/// Wait for a VM
///
/// Answers as soon as the VM is as hoped, can never be, or the time is up; not reaching it is no error.
#[utoipa::path(get, path = "/v1/vms/{vm}/wait", tag = "vms", params(WaitQuery), responses(
    (status = 200, description = "How the wait ended, and the VM.", body = WaitResult),
))]
pub(crate) async fn wait_vm(
    State(api): State<Api>,
    By(caller): By,
    VmPath(vm): VmPath,
    QueryOf(query): QueryOf<WaitQuery>,
) -> Answer<JsonAnswer<WaitResult>> {
    let hope = WaitFor::parse(&query.hope)?;
    let timeout_ms = query.timeout_ms.unwrap_or(DEFAULT_MS);
    if timeout_ms > LONGEST_MS {
        return Err(invalid("timeout_ms", "A wait is 0 to 3600000 ms."));
    }
    let _place = api.stream_permit()?;
    let waiting = api.service.wait_vm(&caller, &vm, hope, Duration::from_millis(timeout_ms));
    let outcome = tokio::select! {
        biased;
        outcome = waiting => outcome?,
        () = api.stop.cancelled() => return Err(stopping().into()),
    };
    Ok(JsonAnswer(WaitResult { reached: outcome.reached, vm: shown(&api.service, &outcome.view) }))
}
