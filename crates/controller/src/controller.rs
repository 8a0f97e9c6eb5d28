//! The whole daemon, put together and taken apart.

use std::sync::Arc;
use std::time::Duration;

use flames_client::HostApi;
use flames_clock::{Clock, ClockExt, IdSource, Random, UuidSource};
use flames_error::{Error, ErrorKind, Result};
use flames_model::ControllerId;
use flames_vmm::{Usability, VmDriver};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::artefacts::Artefacts;
use crate::config::ControllerConfig;
use crate::folder::HostFolder;
use crate::follow::Follower;
use crate::guest::GuestConnector;
use crate::report::Reporter;
use crate::session::{SessionCell, Sessions};
use crate::shared::Shared;
use crate::snapshots::SnapshotStore;
use crate::streams::GuestStreams;
use crate::supervisor::Supervisor;

/// Instructions on their way to the supervisor.
const INSTRUCTIONS: usize = 256;
/// How long the driver may take to clear away what it keeps for machines to come.
const CLOSING: Duration = Duration::from_secs(10);

/// What a controller works with.
#[derive(Debug, Clone)]
pub struct ControllerParts {
    /// The virtual machine monitors of this host.
    pub driver: Arc<dyn VmDriver>,
    /// The control plane.
    pub api: Arc<dyn HostApi>,
    /// What machines are made from.
    pub artefacts: Arc<dyn Artefacts>,
    /// The agents in guests.
    pub guests: Arc<dyn GuestConnector>,
    /// What this host keeps.
    pub folder: Arc<dyn HostFolder>,
    /// Saved guests.
    pub snapshots: Arc<SnapshotStore>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness, fit for secrets: agents' keys come from it.
    pub random: Arc<dyn Random>,
}

/// What becomes of the VMs of a controller that is shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownMode {
    /// They run on; the next controller over the same folder takes them up.
    LeaveRunning,
    /// Each is ended as if that had been asked for, within its own grace.
    StopAll,
}

/// The host daemon. Dropping it stops it at once, wherever it is, as a crash would: VMs run on, and another takes them up.
#[derive(Debug)]
pub struct Controller {
    shared: Arc<Shared>,
    streams: GuestStreams,
    sessions: Sessions,
    stop: watch::Sender<bool>,
    drained: watch::Receiver<bool>,
    given_up: watch::Receiver<Option<String>>,
    tasks: JoinSet<()>,
}

impl Controller {
    /// Starts a controller. It takes up what runs on the host, and registers, by itself and for as long as that takes.
    ///
    /// Errors: `NotSupported` when the driver does not work here, with a sentence that says what to do; those of
    /// [`HostFolder::identity`]; `Unavailable` when the driver does not answer.
    pub async fn start(parts: ControllerParts, config: ControllerConfig) -> Result<Self> {
        let ControllerParts { driver, clock, random, .. } = &parts;
        let limit = config.timings.driver_call;
        let capabilities = clock.timeout(limit, driver.capabilities()).await.unwrap_or_else(|late| {
            Err(Error::unavailable("controller.start", "the driver did not answer").with_source(late))
        })?;
        if let Usability::Unusable(why) = &capabilities.usability {
            return Err(Error::new(
                ErrorKind::NotSupported,
                "controller.start",
                "the driver does not work here",
            )
            .with_context("driver", driver.name())
            .with_context("why", why)
            .with_user_message(why.clone()));
        }
        let ids = UuidSource::new(Arc::clone(clock), Arc::clone(random));
        let id = parts.folder.identity(ControllerId::from_uuid(ids.next_id())).await?;
        let api = Arc::clone(&parts.api);
        // Without it only guests that name a kernel are loaded where they were not saved.
        let default_kernel = parts.artefacts.default_kernel().await.unwrap_or_else(|error| {
            tracing::warn!(?error, "the default kernel cannot be told apart from others");
            None
        });
        let session = SessionCell::new();
        let shared = Arc::new(Shared::new(id, config, capabilities, default_kernel, session.clone(), parts));
        let (instruct, instructions) = mpsc::channel(INSTRUCTIONS);
        let (stop, stopping) = watch::channel(false);
        let (set_drained, drained) = watch::channel(false);
        let (give_up, given_up) = watch::channel(None);
        let sessions = session.watched();
        let follower = Follower {
            shared: Arc::clone(&shared),
            api: Arc::clone(&api),
            session: session.clone(),
            instructions: instruct.clone(),
            given_up: give_up,
        };
        let reporter = Reporter { shared: Arc::clone(&shared), api, session, instructions: instruct };
        let supervisor = Supervisor::new(Arc::clone(&shared), instructions, stopping, set_drained);
        let mut tasks = JoinSet::new();
        tasks.spawn(supervisor.run());
        tasks.spawn(reporter.run());
        tasks.spawn(follower.run());
        let streams = GuestStreams::new(Arc::clone(&shared));
        Ok(Self { shared, streams, sessions, stop, drained, given_up, tasks })
    }

    /// Its identity.
    pub fn id(&self) -> ControllerId {
        self.shared.id
    }

    /// Serves streams to its guests. Holds no VM and no task up; refuses everything once the controller is gone.
    pub fn streams(&self) -> GuestStreams {
        self.streams.clone()
    }

    /// Tells which registration is the present one.
    pub fn sessions(&self) -> Sessions {
        self.sessions.clone()
    }

    /// Returns once the controller has given up for good, with the sentence that says why: another process has registered as it, or it
    /// is not let in. Its VMs
    /// run on, and are looked after until it is shut down.
    pub async fn given_up(&self) -> String {
        let mut given_up = self.given_up.clone();
        loop {
            if let Some(sentence) = given_up.borrow_and_update().clone() {
                return sentence;
            }
            if given_up.changed().await.is_err() {
                // It is being shut down, which is no giving up.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Shuts the controller down. Returns once nothing of it runs any more. What it has to report is reported, if that can be done within
    /// [`crate::Timings::shutdown_reports`]; if not, the next controller over the folder does.
    pub async fn shutdown(mut self, mode: ShutdownMode) {
        if mode == ShutdownMode::StopAll {
            self.shared.draining.send_replace(true);
            let limit = self.shared.config.timings.shutdown_stop;
            let drained = self.drained.wait_for(|drained| *drained);
            let ended = self.shared.clock.timeout(limit, drained).await.is_ok();
            if !ended {
                tracing::warn!(
                    "not every VM could be ended in time; the next controller over the folder takes them up"
                );
            }
        }
        let flushed = async {
            while !self.shared.reports.is_idle() {
                self.shared.clock.sleep(Duration::from_millis(10)).await;
            }
        };
        let limit = self.shared.config.timings.shutdown_reports;
        // What was not reported in time is reported by the next controller over the folder.
        let _ = self.shared.clock.timeout(limit, flushed).await;
        self.streams.close();
        self.stop.send_replace(true);
        // The supervisor ends by itself, once its workers have; the others are stopped where they are.
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                tracing::error!(?error, "a part of the controller broke down");
            }
            self.tasks.abort_all();
        }
        if self.shared.clock.timeout(CLOSING, self.shared.driver.close()).await.is_err() {
            tracing::warn!("the driver could not be closed in time; the next controller clears up after it");
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.streams.close();
        self.tasks.abort_all();
    }
}
