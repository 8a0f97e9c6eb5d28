//! What is found out at the start: whether settings are right, and what the server does with conditions.

use std::sync::Arc;

use bytes::Bytes;
use flames_error::{Error, ErrorKind, Result};
use object_store::{PutMode, UpdateVersion};

use super::calls::Calls;
use super::failures::Failure;

const OPERATION: &str = "blob.open";

/// Looks into the bucket, and tells whether the server refuses a put whose condition does not hold. Some servers take such puts
/// and silently ignore the condition (Garage 2), so it is tried, with an object that is removed again. When settings are wrong,
/// the look fails and nothing is written.
pub(super) async fn probe(calls: &Arc<Calls>, id: &str) -> Result<bool> {
    calls.page(OPERATION, &calls.names.records(), None, None, Some(1)).await.map_err(for_users)?;
    let path = calls.names.probe(id);
    calls
        .put(OPERATION, &path, Bytes::from_static(b"first").into())
        .await
        .map_err(|failure| for_users(failure.into_error(OPERATION)))?;
    let outcome = keeps_conditions(calls, &path).await;
    // What cannot be removed is a few bytes that nobody reads.
    let _ = calls.delete(OPERATION, &path).await;
    outcome
}

async fn keeps_conditions(calls: &Arc<Calls>, path: &object_store::path::Path) -> Result<bool> {
    let Some(first) = calls.head(OPERATION, path).await? else {
        return Err(Error::internal(OPERATION, "the server does not show what was just put there"));
    };
    calls
        .put(OPERATION, path, Bytes::from_static(b"second").into())
        .await
        .map_err(|failure| failure.into_error(OPERATION))?;
    let outdated = UpdateVersion { e_tag: first.e_tag, version: first.version };
    Ok(refuses(calls, path, PutMode::Create).await?
        && refuses(calls, path, PutMode::Update(outdated)).await?)
}

/// Whether a put is refused whose condition does not hold.
async fn refuses(calls: &Arc<Calls>, path: &object_store::path::Path, mode: PutMode) -> Result<bool> {
    for attempt in 1.. {
        match calls.put_once(OPERATION, path, Bytes::from_static(b"third"), mode.clone()).await {
            Err(Failure::Refused) => return Ok(true),
            Ok(_) | Err(Failure::NotKnown(_)) => return Ok(false),
            Err(Failure::Passing { .. }) if attempt < calls.limits.attempts => calls.pause(attempt).await,
            Err(failure) => return Err(failure.into_error(OPERATION)),
        }
    }
    Ok(false)
}

/// At the start the operator reads what was made of his settings.
fn for_users(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Unavailable | ErrorKind::PermissionDenied => {
            let line = error.message().to_owned();
            error.with_user_message(line)
        }
        _ => error,
    }
}
