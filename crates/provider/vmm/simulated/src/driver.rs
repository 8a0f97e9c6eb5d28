//! The driver: the host's operations, bent by its script.

use std::future::{Future, pending};
use std::sync::Arc;

use async_trait::async_trait;
use flames_error::{Error, ErrorKind, Result};
use flames_vmm::{
    AGENT_PORT, AgentChannel, ConsoleChunk, DriverCapabilities, Found, GuestStream, IncarnationName,
    MachineSpec, Observation, Phase, Prepared, SnapshotArtefacts, SnapshotKind, StartFrom, Stats, StopHow,
    Update, Usability, VmDriver,
};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::broadcast::error::RecvError;

use crate::host::SimulatedHost;
use crate::lock;
use crate::script::{Lie, Operation, Plan, Trouble};

/// A [`VmDriver`] over a [`SimulatedHost`]. Dropping it changes nothing on the host, except that an exit in the time without a
/// driver is not seen: it is found later, with [`flames_vmm::ExitCause::Unknown`].
#[derive(Debug)]
pub struct SimulatedDriver {
    host: Arc<SimulatedHost>,
}

impl SimulatedDriver {
    /// A driver of this host.
    pub fn new(host: Arc<SimulatedHost>) -> Self {
        lock(&host.state).drivers += 1;
        Self { host }
    }

    /// Its host.
    pub fn host(&self) -> &Arc<SimulatedHost> {
        &self.host
    }

    fn plan(&self, operation: Operation, incarnation: Option<&IncarnationName>) -> Plan {
        self.host.script().plan(operation, incarnation, self.host.random.as_ref())
    }

    /// Does the work, as badly as planned.
    async fn perform<T>(
        &self,
        operation: Operation,
        plan: &Plan,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        if let Some(by) = plan.delay {
            self.host.clock.sleep(by).await;
        }
        strike(operation, plan.before).await?;
        let done = work.await;
        strike(operation, plan.after).await?;
        done
    }
}

fn bend(observation: &mut Observation, lie: Option<Lie>) {
    match lie {
        None => return,
        Some(Lie::Unknown) => observation.phase = Phase::Unknown,
        Some(Lie::EarlierPhase) => {
            observation.phase = match observation.phase {
                Phase::Exited | Phase::Paused => Phase::Running,
                Phase::Running => Phase::Starting,
                Phase::Starting => Phase::Prepared,
                phase @ (Phase::Prepared | Phase::Unknown) => phase,
            }
        }
    }
    observation.exit = None;
}

async fn strike(operation: Operation, trouble: Option<Trouble>) -> Result<()> {
    match trouble {
        None => Ok(()),
        Some(Trouble::Fail(kind)) => Err(Error::new(kind, operation.as_str(), "a simulated failure")),
        Some(Trouble::Hang) => pending().await,
    }
}

impl Drop for SimulatedDriver {
    fn drop(&mut self) {
        lock(&self.host.state).drivers -= 1;
    }
}

#[async_trait]
impl VmDriver for SimulatedDriver {
    fn name(&self) -> &'static str {
        "simulated"
    }

    async fn capabilities(&self) -> Result<DriverCapabilities> {
        let config = self.host.config();
        let capabilities = DriverCapabilities {
            usability: Usability::Usable,
            acceleration: "none (simulated)".to_owned(),
            version: None,
            agent_channel: config.agent_channel,
            pause: config.pause,
            snapshot: config.snapshot,
            diff_snapshot: config.snapshot && config.diff_snapshot,
            guest_cpu: flames_vmm::GuestCpu::emulated("simulated"),
            user_network: true,
            tap_network: true,
            live_network_policy: config.live_network_policy,
            max_vcpus: config.max_vcpus,
        };
        let plan = self.plan(Operation::Capabilities, None);
        self.perform(Operation::Capabilities, &plan, async { Ok(capabilities) }).await
    }

    async fn adopt(&self) -> Result<Vec<Found>> {
        let plan = self.plan(Operation::Adopt, None);
        let found = async {
            let mut state = lock(&self.host.state);
            let names: Vec<IncarnationName> = state.places.keys().cloned().collect();
            let now = self.host.clock.now();
            let observed = |name: IncarnationName| {
                let observation = state.observe(&name, now)?;
                Some(Found { incarnation: name, observation })
            };
            Ok(names.into_iter().filter_map(observed).collect::<Vec<_>>())
        };
        let mut found = self.perform(Operation::Adopt, &plan, found).await?;
        for Found { incarnation, observation } in &mut found {
            let lie = self.plan(Operation::Adopt, Some(incarnation)).lie;
            bend(observation, lie);
        }
        Ok(found)
    }

    async fn prepare(&self, incarnation: &IncarnationName, spec: &MachineSpec) -> Result<Prepared> {
        let plan = self.plan(Operation::Prepare, Some(incarnation));
        self.perform(Operation::Prepare, &plan, self.host.prepare(incarnation, spec)).await
    }

    async fn start(&self, incarnation: &IncarnationName, from: StartFrom, leave_paused: bool) -> Result<()> {
        let mut plan = self.plan(Operation::Start, Some(incarnation));
        let death = plan.death.take();
        let work = self.host.start(incarnation, &from, leave_paused, death);
        self.perform(Operation::Start, &plan, work).await
    }

    async fn pause(&self, incarnation: &IncarnationName) -> Result<()> {
        let plan = self.plan(Operation::Pause, Some(incarnation));
        self.perform(Operation::Pause, &plan, self.host.pause(incarnation)).await
    }

    async fn resume(&self, incarnation: &IncarnationName) -> Result<()> {
        let plan = self.plan(Operation::Resume, Some(incarnation));
        self.perform(Operation::Resume, &plan, self.host.resume(incarnation)).await
    }

    async fn update(&self, incarnation: &IncarnationName, update: &Update) -> Result<()> {
        let plan = self.plan(Operation::Update, Some(incarnation));
        self.perform(Operation::Update, &plan, async { self.host.update(incarnation, update) }).await
    }

    async fn snapshot(
        &self,
        incarnation: &IncarnationName,
        name: &str,
        kind: SnapshotKind,
    ) -> Result<SnapshotArtefacts> {
        let plan = self.plan(Operation::Snapshot, Some(incarnation));
        self.perform(Operation::Snapshot, &plan, self.host.snapshot(incarnation, name, kind)).await
    }

    async fn delete_snapshot(&self, incarnation: &IncarnationName, name: &str) -> Result<()> {
        let plan = self.plan(Operation::DeleteSnapshot, Some(incarnation));
        let work = async { self.host.delete_snapshot(incarnation, name) };
        self.perform(Operation::DeleteSnapshot, &plan, work).await
    }

    async fn connect(&self, incarnation: &IncarnationName, port: u32) -> Result<GuestStream> {
        const OPERATION: &str = Operation::Connect.as_str();
        let plan = self.plan(Operation::Connect, Some(incarnation));
        let work = async {
            let config = self.host.config();
            let guest = running_guest(&self.host, OPERATION, incarnation)?;
            if config.agent_channel == AgentChannel::Exclusive && port != AGENT_PORT {
                return Err(Error::new(ErrorKind::NotSupported, OPERATION, "only the agent's port exists"));
            }
            guest.connect(port, config.agent_channel, config.program.is_some(), config.channel_buffer)
        };
        self.perform(Operation::Connect, &plan, work).await
    }

    async fn accept(
        &self,
        incarnation: &IncarnationName,
        port: u32,
    ) -> Result<BoxStream<'static, GuestStream>> {
        const OPERATION: &str = Operation::Accept.as_str();
        let plan = self.plan(Operation::Accept, Some(incarnation));
        let work = async {
            if self.host.config().agent_channel == AgentChannel::Exclusive {
                return Err(Error::new(
                    ErrorKind::NotSupported,
                    OPERATION,
                    "the guest cannot connect to its host",
                ));
            }
            let guest = lock(&self.host.state).live(OPERATION, incarnation)?;
            let connections = guest.open_host_port(port);
            Ok(stream::unfold(connections, async |mut connections| {
                connections.recv().await.map(|stream| (stream, connections))
            })
            .boxed())
        };
        self.perform(Operation::Accept, &plan, work).await
    }

    async fn console(&self, incarnation: &IncarnationName, from: u64) -> Result<ConsoleChunk> {
        let plan = self.plan(Operation::Console, Some(incarnation));
        let work = async {
            let mut state = lock(&self.host.state);
            let console = &state.machine(Operation::Console.as_str(), incarnation)?.console;
            Ok(lock(console).read(from))
        };
        self.perform(Operation::Console, &plan, work).await
    }

    async fn stats(&self, incarnation: &IncarnationName) -> Result<Stats> {
        let plan = self.plan(Operation::Stats, Some(incarnation));
        self.perform(Operation::Stats, &plan, async { self.host.stats(incarnation) }).await
    }

    async fn stop(&self, incarnation: &IncarnationName, how: StopHow) -> Result<()> {
        let plan = self.plan(Operation::Stop, Some(incarnation));
        self.perform(Operation::Stop, &plan, self.host.stop(incarnation, how)).await
    }

    async fn observe(&self, incarnation: &IncarnationName) -> Result<Observation> {
        let plan = self.plan(Operation::Observe, Some(incarnation));
        let work = async {
            let now = self.host.clock.now();
            let observed = lock(&self.host.state).observe(incarnation, now);
            let not_found =
                || Error::not_found(Operation::Observe.as_str(), "incarnation", incarnation.as_str());
            let mut observation = observed.ok_or_else(not_found)?;
            bend(&mut observation, plan.lie);
            Ok(observation)
        };
        self.perform(Operation::Observe, &plan, work).await
    }

    async fn destroy(&self, incarnation: &IncarnationName) -> Result<()> {
        let plan = self.plan(Operation::Destroy, Some(incarnation));
        self.perform(Operation::Destroy, &plan, self.host.destroy(incarnation)).await
    }

    async fn exits(&self) -> Result<BoxStream<'static, IncarnationName>> {
        let hints = self.host.hints.subscribe();
        Ok(stream::unfold(hints, async |mut hints| {
            loop {
                match hints.recv().await {
                    Ok(name) => return Some((name, hints)),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                }
            }
        })
        .boxed())
    }
}

fn running_guest(
    host: &SimulatedHost,
    operation: &'static str,
    incarnation: &IncarnationName,
) -> Result<Arc<crate::guest::GuestShared>> {
    let mut state = lock(&host.state);
    let guest = state.live(operation, incarnation)?;
    match state.machine(operation, incarnation)?.phase() {
        Phase::Running => Ok(guest),
        phase => Err(crate::state::not_in_phase(operation, incarnation, phase)),
    }
}
