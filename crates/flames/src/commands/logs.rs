//! `flames logs`.

use std::process::ExitCode;

use flames_wire::LogQuery;
use futures::StreamExt;

use super::{Context, now};
use crate::args::LogsArgs;
use crate::exit::Outcome;
use crate::output;

/// Shows a workload's output, or the machine's console.
pub(super) async fn logs(context: &Context, arguments: &LogsArgs) -> Outcome {
    let client = &context.api.client;
    if arguments.console {
        let mut bytes = client.console(&arguments.vm, arguments.follow).await?;
        while let Some(piece) = bytes.next().await {
            output::write(&piece?)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let query = LogQuery {
        follow: arguments.follow,
        since: arguments.since.map(|moment| moment.before(now())),
        tail: arguments.tail,
    };
    if context.output.json {
        let mut chunks = client.log_chunks(&arguments.vm, &query).await?;
        while let Some(chunk) = chunks.next().await {
            context.output.json_line(&chunk?)?;
        }
    } else {
        let mut bytes = client.logs(&arguments.vm, &query).await?;
        while let Some(piece) = bytes.next().await {
            output::write(&piece?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
