//! What the state's writer writes: commits, and the removal of old log entries.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use flames_error::Result;
use flames_sqlite::{Failed, Work};
use flames_state::{Commit, Committed, HintFanout, Key, Position, Version};
use sqlx::SqliteConnection;
use tokio::sync::oneshot;

use crate::batch::Batch;
use crate::error::{at_commit, not_written};
use crate::sql::{self, Changes};

/// How many log entries one request to trim removes, so that a long log does not hold up the commits.
pub(crate) const TRIM_STEP: u32 = 1_000;

pub(crate) const COMMIT: &str = "state.commit";
pub(crate) const TRIM: &str = "state.trim_log";

/// What the writer is asked for. It answers once the outcome is on disk.
#[derive(Debug)]
pub(crate) enum Request {
    /// To apply a commit that is within the limits.
    Commit { commit: Commit, answer: oneshot::Sender<Result<Committed>> },
    /// To remove at most [`TRIM_STEP`] entries of a log; answers how many were removed.
    Trim { log: Key, through: Position, answer: oneshot::Sender<Result<u64>> },
}

impl Request {
    fn commit(&self) -> Option<&Commit> {
        match self {
            Self::Commit { commit, .. } => Some(commit),
            Self::Trim { .. } => None,
        }
    }
}

/// What became of a request, when its transaction was committed.
pub(crate) enum Done {
    Commit(Result<Committed>),
    Trim(u64),
}

/// The state of one file, and who hears of its changes.
pub(crate) struct Commits {
    pub(crate) hints: Arc<HintFanout>,
    pub(crate) path: PathBuf,
}

impl Work for Commits {
    type Request = Request;
    type Done = Done;

    fn bytes(request: &Request) -> usize {
        request.commit().map_or(0, Commit::bytes)
    }

    fn is_abandoned(request: &Request) -> bool {
        match request {
            Request::Commit { answer, .. } => answer.is_closed(),
            Request::Trim { answer, .. } => answer.is_closed(),
        }
    }

    async fn transact(
        &mut self,
        connection: &mut SqliteConnection,
        requests: &[Request],
    ) -> Result<Vec<Done>, Failed> {
        let checked: BTreeSet<&Key> = requests
            .iter()
            .filter_map(Request::commit)
            .flat_map(|commit| &commit.checks)
            .map(|check| check.key())
            .collect();
        let checked: Vec<_> = checked.into_iter().collect();
        let (first_number, stored) = sql::begin(connection, requests.len(), &checked).await?;
        let stored = stored
            .iter()
            .map(|(key, version)| (&key[..], Version::from_raw(u64::try_from(*version).unwrap_or(0))));
        let mut batch = Batch::over(stored);
        let mut done = Vec::with_capacity(requests.len());
        for (number, request) in (first_number..).zip(requests) {
            done.push(match request {
                Request::Commit { commit, .. } => Done::Commit(batch.apply(commit, number)),
                Request::Trim { log, through, .. } => {
                    Done::Trim(sql::trim(connection, log, *through, TRIM_STEP).await?)
                }
            });
        }
        let changes = Changes { puts: batch.puts(), deletes: batch.deletes(), appends: batch.appends() };
        sql::write(connection, &changes).await?;
        if batch.is_unchanged() && !requests.iter().any(|request| matches!(request, Request::Trim { .. })) {
            // Every commit was refused: nothing is worth an fsync.
            sqlx::query("ROLLBACK").execute(connection).await?;
            return Ok(done);
        }
        sqlx::query("COMMIT").execute(connection).await.map_err(|error| Failed::AtCommit(Arc::new(error)))?;
        Ok(done)
    }

    fn answer(&mut self, request: Request, done: Done) {
        // Nobody may be waiting for an answer any more; what was done stays done.
        match (request, done) {
            (Request::Commit { commit, answer }, Done::Commit(outcome)) => {
                if outcome.is_ok() {
                    self.hints.publish(&commit);
                }
                let _ = answer.send(outcome);
            }
            (Request::Trim { answer, .. }, Done::Trim(removed)) => {
                let _ = answer.send(Ok(removed));
            }
            // An answer dropped is an unknown outcome for the caller: right for what cannot be.
            (Request::Commit { .. }, Done::Trim(_)) | (Request::Trim { .. }, Done::Commit(_)) => {}
        }
    }

    fn refuse(&mut self, request: Request, failed: &Failed) {
        let error = |operation| match failed {
            Failed::Before(cause) | Failed::Alone(cause) => {
                not_written(operation, &self.path, Arc::clone(cause))
            }
            Failed::AtCommit(cause) => at_commit(operation, &self.path, Arc::clone(cause)),
        };
        // Nobody may be waiting any more.
        match request {
            Request::Commit { answer, .. } => drop(answer.send(Err(error(COMMIT)))),
            Request::Trim { answer, .. } => drop(answer.send(Err(error(TRIM)))),
        }
    }
}
