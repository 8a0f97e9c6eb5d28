//! Registering, renewing the lease, and learning what to run.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flames_client::HostApi;
use flames_client::wire::host::{HostSession, RegisterRequest, Registered};
use flames_clock::{ClockExt, Monotonic};
use flames_error::{Error, ErrorKind, Result};
use tokio::sync::{mpsc, watch};

use crate::backoff::Backoff;
use crate::config::{Refused, Superseded};
use crate::session::SessionCell;
use crate::shared::Shared;
use crate::supervisor::Instruction;

/// The most assignments asked for at once.
const PAGE: usize = 256;
/// How often in a row a controller that was superseded registers again, when it is to stop then: an answer to a registration that was lost
/// on the way makes it look superseded by itself.
const SUPERSEDED_MOST: u32 = 3;
/// After this long a supersession does not count as in a row.
const SUPERSEDED_WITHIN: Duration = Duration::from_secs(600);

/// Shorter leases count as this long, so that a wrong answer does not make renewing a busy loop.
const LEASE_LEAST: Duration = Duration::from_millis(300);

/// Registers and follows the assignments.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) shared: Arc<Shared>,
    pub(crate) api: Arc<dyn HostApi>,
    pub(crate) session: SessionCell,
    pub(crate) instructions: mpsc::Sender<Instruction>,
    /// Set when it gives up, to the sentence that says why.
    pub(crate) given_up: watch::Sender<Option<String>>,
}

/// Why following a registration ended.
enum End {
    /// The registration is not taken any more.
    Session(Option<ErrorKind>),
    /// The supervisor is gone: the controller is being shut down.
    Supervisor,
}

impl Follower {
    pub(crate) async fn run(self) {
        let mut superseded: Vec<Monotonic> = Vec::new();
        loop {
            let Some(registered) = self.register().await else { return };
            let session = registered.session;
            let renewer = self.renew(&registered);
            let following = async {
                tokio::select! {
                    biased;
                    by = self.session.ended(&session) => End::Session(by),
                    () = renewer => End::Session(None),
                    () = self.follow(&registered) => End::Supervisor,
                }
            };
            match following.await {
                End::Supervisor => return,
                End::Session(Some(ErrorKind::LeaseLost))
                    if self.shared.config.superseded == Superseded::Stop =>
                {
                    let now = self.shared.clock.monotonic();
                    superseded.retain(|at| now.saturating_since(*at) < SUPERSEDED_WITHIN);
                    superseded.push(now);
                    if superseded.len() > SUPERSEDED_MOST as usize {
                        let sentence = format!(
                            "Another process registers as the controller `{}` ({}). This one stops; its VMs run on. Each host needs a data \
                             folder of its own: one of the two was copied.",
                            self.shared.config.name, self.shared.id
                        );
                        tracing::error!("{sentence}");
                        self.given_up.send_replace(Some(sentence));
                        return;
                    }
                    tracing::warn!("another registration superseded this controller's; it registers again");
                }
                End::Session(by) => {
                    tracing::info!(?by, "the registration ended; the controller registers again")
                }
            }
        }
    }

    /// Registers, however long it takes; none when it is not let in and gives up.
    async fn register(&self) -> Option<Registered> {
        let timings = &self.shared.config.timings;
        let config = &self.shared.config;
        let mut backoff = Backoff::new(timings);
        let mut told = false;
        loop {
            let request = RegisterRequest {
                id: self.shared.id,
                name: config.name.clone(),
                capacity: config.capacity,
                labels: config.labels.clone(),
                driver: self.shared.driver_info(),
                address_block: config.address_block,
            };
            let call = self.api.register(&request);
            match self.shared.within("controller.register", timings.api_call, call).await {
                Ok(registered) => {
                    self.session.set(registered.session);
                    tracing::info!(controller = %self.shared.id, "registered");
                    return Some(registered);
                }
                Err(error) if config.refused == Refused::Stop && is_refusal(&error) => {
                    let sentence = error.user_message().unwrap_or(error.message()).to_owned();
                    tracing::error!(?error, "the controller is not let in");
                    self.given_up.send_replace(Some(sentence));
                    return None;
                }
                Err(error) => {
                    let wait = backoff.next(self.shared.random.as_ref());
                    match error.is_retryable() {
                        // Once for each outage at a level that people see.
                        true if !told => {
                            told = true;
                            let user_message = error.user_message();
                            tracing::warn!(%error, user_message, "not registered yet; it is tried again and again");
                        }
                        true => tracing::debug!(?error, ?wait, "not registered yet"),
                        // An operator may set it right (another name, a removed controller), so it is tried on.
                        false => {
                            tracing::error!(?error, user_message = error.user_message(), "not registered");
                        }
                    }
                    self.shared.clock.sleep(wait).await;
                }
            }
        }
    }

    /// Renews the lease at a third of it, until the registration is not taken any more.
    async fn renew(&self, registered: &Registered) {
        let session = registered.session;
        let mut lease = Duration::from_millis(registered.lease_ms).max(LEASE_LEAST);
        let mut backoff = Backoff::new(&self.shared.config.timings);
        let mut wait = lease / 3;
        loop {
            self.shared.clock.sleep(wait).await;
            let limit = self.shared.config.timings.api_call.min(lease / 3);
            match self.shared.within("controller.renew", limit, self.api.renew(&session)).await {
                Ok(renewed) => {
                    lease = Duration::from_millis(renewed.lease_ms).max(LEASE_LEAST);
                    backoff.reset();
                    wait = lease / 3;
                }
                Err(error) => {
                    if self.is_lost(&session, &error) {
                        return;
                    }
                    tracing::debug!(?error, "the lease was not renewed; it is tried again");
                    wait = backoff.next(self.shared.random.as_ref()).min(lease / 3);
                }
            }
        }
    }

    /// Whether the error ended the registration; notes it for all.
    fn is_lost(&self, session: &HostSession, error: &Error) -> bool {
        let lost = matches!(error.kind(), ErrorKind::LeaseLost | ErrorKind::NotFound);
        if lost {
            self.session.lost(session, error.kind());
        }
        lost
    }

    /// Follows the assignments until the supervisor is gone. Reads all of them first, and again from time to time.
    async fn follow(&self, registered: &Registered) {
        let timings = &self.shared.config.timings;
        let session = registered.session;
        let mut position = registered.changes_from.clone();
        let mut backoff = Backoff::new(timings);
        let mut listed_at: Option<Monotonic> = None;
        loop {
            let now = self.shared.clock.monotonic();
            let until_listing = listed_at
                .map_or(Duration::ZERO, |at| timings.resync.saturating_sub(now.saturating_since(at)));
            let done = match until_listing.is_zero() {
                true => {
                    let listed = self.list(&session).await;
                    if listed.is_ok() {
                        listed_at = Some(self.shared.clock.monotonic());
                    }
                    listed
                }
                false => self.changes(&session, &mut position, until_listing).await,
            };
            match done {
                Ok(true) => backoff.reset(),
                Ok(false) => return,
                Err(error) => {
                    if !self.is_lost(&session, &error) {
                        tracing::debug!(?error, "assignments were not read; it is tried again");
                    }
                    self.shared.clock.sleep(backoff.next(self.shared.random.as_ref())).await;
                }
            }
        }
    }

    /// Reads everything that is assigned. False: the supervisor is gone.
    async fn list(&self, session: &HostSession) -> Result<bool> {
        let limit = self.shared.config.timings.api_call;
        let mut after = None;
        let mut listed = BTreeSet::new();
        loop {
            let call = self.api.assignments(session, after, PAGE);
            let page = self.shared.within("controller.assignments", limit, call).await?;
            for assignment in page.items {
                listed.insert(assignment.incarnation);
                if !self.instruct(Instruction::Assigned(Arc::new(assignment))).await {
                    return Ok(false);
                }
            }
            match page.next {
                Some(next) if after.is_none_or(|after| next > after) => after = Some(next),
                Some(_) => {
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        "controller.assignments",
                        "the pages do not go on",
                    ));
                }
                None => return Ok(self.instruct(Instruction::Listed(listed)).await),
            }
        }
    }

    /// Waits for changes, at most `most`. False: the supervisor is gone.
    async fn changes(&self, session: &HostSession, position: &mut String, most: Duration) -> Result<bool> {
        let timings = &self.shared.config.timings;
        let wait = timings.long_poll.min(most);
        let call = self.api.changes(session, position, wait);
        let limit = timings.api_call.saturating_add(wait);
        let changes = self.shared.within("controller.changes", limit, call).await?;
        let stands_still = changes.changed.is_empty() && changes.next == *position;
        for change in changes.changed {
            let instruction = match change.assignment {
                Some(assignment) => Instruction::Assigned(assignment),
                None => Instruction::Absent(change.incarnation),
            };
            if !self.instruct(instruction).await {
                return Ok(false);
            }
        }
        // Only now: what was not handed on would be told again.
        *position = changes.next;
        if stands_still {
            // A server that answers at once with nothing must not make this a busy loop.
            let _ = self.shared.clock.timeout(Duration::from_millis(1), std::future::pending::<()>()).await;
        }
        Ok(true)
    }

    async fn instruct(&self, instruction: Instruction) -> bool {
        self.instructions.send(instruction).await.is_ok()
    }
}

/// Whether the control plane does not let this controller in, as it is.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::AlreadyExists | ErrorKind::InvalidInput)
}
