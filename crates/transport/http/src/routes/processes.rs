//! Processes of a guest.

use axum::Json as JsonAnswer;
use axum::extract::State;
use flames_error::{Error, ErrorKind};
use flames_wire::stream::{ProcessAnswer, ProcessRequest};
use flames_wire::{ProcessList, SignalProcess};
use http::StatusCode;
use serde::Deserialize;

use super::guest::Guest;
use crate::access::By;
use crate::api::Api;
use crate::failure::{Answer, invalid};
use crate::input::{Change, Json, PathOf, VmPath};

/// More processes than any agent keeps (`flames-guest-protocol`: 128): who sends more does not keep to the protocol.
const MAX_PROCESSES: usize = 1_024;

fn unexpected() -> Error {
    Error::new(ErrorKind::Corrupt, "http.processes", "an answer that does not belong here")
}

/// List the guest's processes
///
/// Those that its agent started: the workload, `main`, and what was started by exec.
#[utoipa::path(get, path = "/v1/vms/{vm}/processes", tag = "processes", responses(
    (status = 200, description = "The processes.", body = ProcessList),
))]
pub(crate) async fn list_processes(
    State(api): State<Api>,
    By(caller): By,
    VmPath(vm): VmPath,
) -> Answer<JsonAnswer<ProcessList>> {
    let mut guest = Guest::processes(&api, &caller, &vm, ProcessRequest::List).await?;
    let mut items = Vec::new();
    while let Some(answer) = guest.process_answer().await? {
        let ProcessAnswer::Processes(processes) = answer else { return Err(unexpected().into()) };
        items.extend(processes);
        if items.len() > MAX_PROCESSES {
            return Err(unexpected().into());
        }
    }
    Ok(JsonAnswer(ProcessList { items }))
}

#[derive(Debug, Deserialize)]
pub(crate) struct ProcessPath {
    process: String,
}

/// Whether a text can be a process's id.
pub(super) fn is_process_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// Send a signal to a process of the guest
#[utoipa::path(post, path = "/v1/vms/{vm}/processes/{process}/signal", tag = "processes",
    request_body(content = SignalProcess, description = "The signal."),
    responses((status = 204, description = "It was sent."),
))]
pub(crate) async fn signal_process(
    State(api): State<Api>,
    By(caller): By,
    VmPath(vm): VmPath,
    PathOf(path): PathOf<ProcessPath>,
    change: Change,
    body: Json<SignalProcess>,
) -> Answer<StatusCode> {
    change.refuse_key()?;
    if !is_process_id(&path.process) {
        return Err(invalid("process", "A process id is 1 to 64 of letters, digits, `-` and `_`."));
    }
    if !(1..=31).contains(&body.value.signal) {
        return Err(invalid("signal", "A signal is 1 to 31."));
    }
    let request = ProcessRequest::Signal { process: path.process, signal: body.value };
    let mut guest = Guest::processes(&api, &caller, &vm, request).await?;
    match guest.process_answer().await? {
        Some(ProcessAnswer::Done) => Ok(StatusCode::NO_CONTENT),
        _ => Err(unexpected().into()),
    }
}
