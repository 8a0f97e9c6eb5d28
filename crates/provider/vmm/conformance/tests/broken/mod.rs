//! Drivers that break one promise each: the simulated one, bent in one place.

// Tests, though not in a test function.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flames_error::{Error, ErrorKind, Result};
use flames_vmm::{
    AgentChannel, ConsoleChunk, DriverCapabilities, ExitCause, Found, GuestStream, IncarnationName,
    MachineSpec, NetworkPolicy, Observation, Phase, Prepared, SnapshotArtefacts, SnapshotKind, StartFrom,
    Stats, StopHow, Update, VmDriver,
};
use flames_vmm_conformance::async_trait;
use flames_vmm_simulated::SimulatedDriver;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    CapabilitiesChangeAfterAStart,
    SaysExclusive,
    SaysMultiplexed,
    PausesThoughItSaysNot,
    SavesThoughItSaysNot,
    AdoptForgetsWhatIsPrepared,
    AdoptFindsTwice,
    AdoptFindsAGhost,
    AdoptFindsOnlyOnce,
    AdoptKills,
    AdoptBelievesThatAllRuns,
    GuestsDieWithTheDriver,
    AdoptedIsNotStopped,
    AdoptedIsNotStarted,
    AdoptedIsNotConnected,
    AdoptedForgetsItsSpec,
    AdoptedNeverExits,
    PrepareStarts,
    PrepareTwiceFails,
    PrepareIgnoresAnotherSpec,
    PrepareLeavesHalfOnFailure,
    PrepareTakesAnyKernel,
    PrepareRefusesWhatIsHalfMade,
    PrepareChoosesPortsAnew,
    StartAnswersEarly,
    StartTwiceRunsTwo,
    StartAtOnceRunsTwo,
    StartGivenUpRunsTwo,
    StartMakesUpWhatWasNotPrepared,
    StartRunsTheExitedAgain,
    StartIgnoresLeavePaused,
    StartDoesNotRestore,
    StartBootsWithoutItsSnapshot,
    StatsStandStill,
    StatsOfWhatIsGone,
    UpdateTakesAnyDrive,
    UpdateTakesWhatDoesNotRun,
    ReplacesPoliciesThoughItSaysNot,
    PolicyOnlySaysSo,
    PolicyEndsWithItsDriver,
    PolicyOfNoTapIsTaken,
    PauseDoesNothing,
    PauseOnlySaysSo,
    PauseTwiceResumes,
    ResumeTwiceFails,
    PauseTakesWhatDoesNotRun,
    PauseAnswersConflictForNothing,
    SavesOnAProcessorUntold,
    SnapshotLeavesPaused,
    SnapshotsAreNotDeleted,
    DiffOfNothingIsTaken,
    ConnectsToWhatDoesNotRun,
    ConnectionsAreDeaf,
    ConnectionsOutliveTheVm,
    ConsoleIgnoresTheOffset,
    ConsoleEndsWithTheVm,
    ConsoleOfNothingIsEmpty,
    StopAnswersEarly,
    StopWaitsForTheButton,
    StopTwiceFails,
    StopForgetsWhatIsPrepared,
    StopSparesThePaused,
    StopEndsAll,
    ObserveMakesUpWhatIsNotThere,
    ObserveSaysRunningAfterACrash,
    ObserveBlamesACrash,
    HintsAreLost,
    DestroyOnlyStops,
    DestroyOfNothingFails,
    DestroyLeavesSomething,
    DestroyRemovesAll,
}

#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) inner: SimulatedDriver,
    pub(crate) fault: Fault,
    mine: Mutex<BTreeSet<IncarnationName>>,
    under_way: Mutex<BTreeSet<IncarnationName>>,
    said_paused: Mutex<BTreeSet<IncarnationName>>,
    adoptions: AtomicU32,
    next_port: AtomicU16,
}

impl Broken {
    pub(crate) fn new(inner: SimulatedDriver, fault: Fault) -> Self {
        let next_port = AtomicU16::new(1_000);
        let [mine, under_way, said_paused] = [(); 3].map(|()| Mutex::default());
        Self { inner, fault, mine, under_way, said_paused, adoptions: AtomicU32::new(0), next_port }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn phase(&self, name: &IncarnationName) -> Option<Phase> {
        self.inner.host().machine(name).map(|machine| machine.phase)
    }

    fn adopted(&self, name: &IncarnationName) -> bool {
        self.phase(name).is_some() && !self.mine.lock().unwrap().contains(name)
    }

    /// Something more on the host than there should be, hidden from the driver's user.
    async fn twin(&self, name: &IncarnationName, spec: &MachineSpec, runs: bool) -> Result<()> {
        let twin = IncarnationName::new(format!("{name}_twin"))?;
        self.inner.prepare(&twin, spec).await?;
        if runs { self.inner.start(&twin, StartFrom::Boot, false).await } else { Ok(()) }
    }

    async fn second(&self, name: &IncarnationName) -> Result<()> {
        let spec = self.inner.host().machine(name).and_then(|machine| machine.spec).unwrap();
        self.twin(name, &spec, true).await
    }

    fn bend(&self, name: &IncarnationName, seen: &mut Observation) {
        let unseen = seen.exit.as_ref().is_some_and(|exit| exit.cause == ExitCause::Unknown);
        let crashed = seen.exit.as_ref().is_some_and(|exit| exit.cause == ExitCause::Crashed);
        let runs = match self.fault {
            Fault::AdoptBelievesThatAllRuns => unseen,
            Fault::AdoptedNeverExits => seen.phase == Phase::Exited && self.adopted(name),
            Fault::ObserveSaysRunningAfterACrash => crashed,
            _ => false,
        };
        if runs {
            (seen.phase, seen.exit) = (Phase::Running, None);
        }
        if self.is(Fault::ObserveBlamesACrash)
            && let Some(exit) = &mut seen.exit
        {
            exit.cause = ExitCause::Crashed;
        }
        if self.said_paused.lock().unwrap().contains(name) {
            seen.phase = Phase::Paused;
        }
    }
}

/// Leaves a name in the set when it is dropped before its work is done.
struct UnderWay<'a>(&'a Mutex<BTreeSet<IncarnationName>>, &'a IncarnationName);

impl UnderWay<'_> {
    fn done(self) {
        self.0.lock().unwrap().remove(self.1);
    }
}

fn error(kind: ErrorKind) -> Error {
    Error::new(kind, "vmm.broken", "broken")
}

fn echo() -> GuestStream {
    let (read, write) = tokio::io::simplex(4096);
    Box::new(tokio::io::join(read, write))
}

impl Drop for Broken {
    fn drop(&mut self) {
        if self.is(Fault::GuestsDieWithTheDriver) {
            self.inner.host().reboot();
        }
    }
}

#[async_trait]
impl VmDriver for Broken {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    async fn capabilities(&self) -> Result<DriverCapabilities> {
        let mut told = self.inner.capabilities().await?;
        match self.fault {
            Fault::CapabilitiesChangeAfterAStart if self.inner.host().peak_use().machines > 0 => {
                told.max_vcpus += 1
            }
            Fault::SaysExclusive => told.agent_channel = AgentChannel::Exclusive,
            Fault::SaysMultiplexed => told.agent_channel = AgentChannel::Multiplexed,
            Fault::PausesThoughItSaysNot => told.pause = false,
            Fault::SavesOnAProcessorUntold => told.guest_cpu = flames_vmm::GuestCpu::default(),
            Fault::SavesThoughItSaysNot => (told.snapshot, told.diff_snapshot) = (false, false),
            _ => {}
        }
        Ok(told)
    }

    async fn adopt(&self) -> Result<Vec<Found>> {
        let mut found = self.inner.adopt().await?;
        found.retain(|found| !found.incarnation.as_str().ends_with("_twin"));
        for found in &mut found {
            self.bend(&found.incarnation, &mut found.observation);
        }
        match self.fault {
            Fault::AdoptForgetsWhatIsPrepared => {
                found.retain(|found| found.observation.phase != Phase::Prepared)
            }
            Fault::AdoptFindsTwice => found.extend(found.clone()),
            Fault::AdoptFindsAGhost => {
                let observation = Observation {
                    phase: Phase::Unknown,
                    exit: None,
                    pid: None,
                    prepared: Prepared::default(),
                };
                found.push(Found { incarnation: IncarnationName::new("ghost")?, observation });
            }
            Fault::AdoptFindsOnlyOnce if self.adoptions.fetch_add(1, Ordering::Relaxed) > 0 => found.clear(),
            Fault::AdoptKills => {
                for found in &found {
                    self.inner.stop(&found.incarnation, StopHow::Kill).await?;
                }
            }
            Fault::PolicyEndsWithItsDriver => {
                for found in &found {
                    let _ = self
                        .inner
                        .update(&found.incarnation, &Update::Network(NetworkPolicy::default()))
                        .await;
                }
            }
            _ => {}
        }
        Ok(found)
    }

    async fn prepare(&self, name: &IncarnationName, spec: &MachineSpec) -> Result<Prepared> {
        let is_there = self.phase(name);
        match self.fault {
            Fault::AdoptedForgetsItsSpec if self.adopted(name) => return Ok(Prepared::default()),
            Fault::PrepareTwiceFails if is_there.is_some() => return Err(error(ErrorKind::AlreadyExists)),
            Fault::PrepareIgnoresAnotherSpec if is_there.is_some() => return Ok(Prepared::default()),
            Fault::PrepareRefusesWhatIsHalfMade if is_there == Some(Phase::Unknown) => {
                return Err(error(ErrorKind::Conflict));
            }
            Fault::DestroyLeavesSomething => self.twin(name, spec, false).await?,
            _ => {}
        }
        self.mine.lock().unwrap().insert(name.clone());
        let mut spec = spec.clone();
        if self.is(Fault::PrepareTakesAnyKernel) {
            spec.boot.kernel = std::env::current_exe().unwrap();
        }
        let answer = self.inner.prepare(name, &spec).await;
        match (self.fault, answer) {
            (Fault::PrepareStarts, Ok(prepared)) => {
                self.inner.start(name, StartFrom::Boot, false).await?;
                Ok(prepared)
            }
            (Fault::PrepareLeavesHalfOnFailure, Err(error)) => {
                (spec.vcpus, spec.memory_mib, spec.boot.initramfs) = (1, 64, None);
                spec.boot.kernel = std::env::current_exe().unwrap();
                spec.drives.clear();
                self.twin(name, &spec, false).await?;
                Err(error)
            }
            (Fault::PrepareChoosesPortsAnew, Ok(mut prepared)) => {
                for address in prepared.forwards.values_mut() {
                    address.set_port(self.next_port.fetch_add(1, Ordering::Relaxed));
                }
                Ok(prepared)
            }
            (_, answer) => answer,
        }
    }

    async fn start(&self, name: &IncarnationName, mut from: StartFrom, mut leave_paused: bool) -> Result<()> {
        let phase = self.phase(name);
        let was_under_way = self.under_way.lock().unwrap().contains(name);
        match self.fault {
            Fault::StartAnswersEarly => {
                let (driver, name) = (SimulatedDriver::new(Arc::clone(self.inner.host())), name.clone());
                tokio::spawn(async move { driver.start(&name, from, leave_paused).await });
                return Ok(());
            }
            Fault::StartTwiceRunsTwo if phase == Some(Phase::Running) => return self.second(name).await,
            Fault::StartAtOnceRunsTwo | Fault::StartGivenUpRunsTwo if was_under_way => {
                return self.second(name).await;
            }
            Fault::StartMakesUpWhatWasNotPrepared if phase.is_none() => return Ok(()),
            Fault::AdoptedIsNotStarted if self.adopted(name) => return Err(error(ErrorKind::NotFound)),
            Fault::StartDoesNotRestore if matches!(from, StartFrom::Snapshot(_)) => {
                return Err(error(ErrorKind::Internal));
            }
            Fault::StartBootsWithoutItsSnapshot => from = StartFrom::Boot,
            Fault::StartIgnoresLeavePaused => leave_paused = false,
            Fault::StartRunsTheExitedAgain if phase == Some(Phase::Exited) => {
                let spec = self.inner.host().machine(name).and_then(|machine| machine.spec).unwrap();
                self.inner.destroy(name).await?;
                self.inner.prepare(name, &spec).await?;
            }
            _ => {}
        }
        let under_way = UnderWay(&self.under_way, name);
        self.under_way.lock().unwrap().insert(name.clone());
        let answer = self.inner.start(name, from, leave_paused).await;
        under_way.done();
        answer
    }

    async fn pause(&self, name: &IncarnationName) -> Result<()> {
        match (self.fault, self.phase(name)) {
            (Fault::PauseDoesNothing, Some(Phase::Running)) => Ok(()),
            (Fault::PauseOnlySaysSo, Some(Phase::Running)) => {
                self.said_paused.lock().unwrap().insert(name.clone());
                Ok(())
            }
            (Fault::PauseTwiceResumes, Some(Phase::Paused)) => self.inner.resume(name).await,
            (Fault::PauseTakesWhatDoesNotRun, Some(Phase::Prepared | Phase::Exited)) => Ok(()),
            (Fault::PauseAnswersConflictForNothing, None) => Err(error(ErrorKind::Conflict)),
            _ => self.inner.pause(name).await,
        }
    }

    async fn resume(&self, name: &IncarnationName) -> Result<()> {
        self.said_paused.lock().unwrap().remove(name);
        if self.is(Fault::ResumeTwiceFails) && self.phase(name) == Some(Phase::Running) {
            return Err(error(ErrorKind::Conflict));
        }
        self.inner.resume(name).await
    }

    async fn update(&self, name: &IncarnationName, update: &Update) -> Result<()> {
        let takes = match update {
            Update::DrivePath { .. } => self.is(Fault::UpdateTakesAnyDrive),
            Update::BalloonMib(_) => self.is(Fault::UpdateTakesWhatDoesNotRun),
            Update::Network(_) => {
                let machine = self.inner.host().machine(name);
                let has_tap = machine.is_some_and(|machine| machine.network_policy.is_some());
                self.is(Fault::PolicyOnlySaysSo) || (self.is(Fault::PolicyOfNoTapIsTaken) && !has_tap)
            }
        };
        if takes { Ok(()) } else { self.inner.update(name, update).await }
    }

    async fn snapshot(
        &self,
        name: &IncarnationName,
        snapshot: &str,
        kind: SnapshotKind,
    ) -> Result<SnapshotArtefacts> {
        let kind = if self.is(Fault::DiffOfNothingIsTaken) { SnapshotKind::Full } else { kind };
        let saved = self.inner.snapshot(name, snapshot, kind).await?;
        if self.is(Fault::SnapshotLeavesPaused) {
            self.inner.pause(name).await?;
        }
        Ok(saved)
    }

    async fn delete_snapshot(&self, name: &IncarnationName, snapshot: &str) -> Result<()> {
        if self.is(Fault::SnapshotsAreNotDeleted) {
            Ok(())
        } else {
            self.inner.delete_snapshot(name, snapshot).await
        }
    }

    async fn connect(&self, name: &IncarnationName, port: u32) -> Result<GuestStream> {
        match self.fault {
            Fault::ConnectsToWhatDoesNotRun if self.phase(name).is_some() => Ok(echo()),
            Fault::ConnectionsOutliveTheVm if self.phase(name) == Some(Phase::Running) => Ok(echo()),
            Fault::ConnectionsAreDeaf if self.phase(name) == Some(Phase::Running) => {
                Ok(Box::new(tokio::io::join(tokio::io::empty(), tokio::io::sink())))
            }
            Fault::AdoptedIsNotConnected if self.adopted(name) => Err(error(ErrorKind::Unavailable)),
            _ => self.inner.connect(name, port).await,
        }
    }

    async fn accept(&self, name: &IncarnationName, port: u32) -> Result<BoxStream<'static, GuestStream>> {
        self.inner.accept(name, port).await
    }

    async fn console(&self, name: &IncarnationName, from: u64) -> Result<ConsoleChunk> {
        match (self.fault, self.phase(name)) {
            (Fault::ConsoleIgnoresTheOffset, _) => self.inner.console(name, 0).await,
            (Fault::ConsoleEndsWithTheVm, Some(Phase::Exited)) => Err(error(ErrorKind::NotFound)),
            (Fault::ConsoleOfNothingIsEmpty, None) => Ok(ConsoleChunk { offset: from, data: Bytes::new() }),
            _ => self.inner.console(name, from).await,
        }
    }

    async fn stats(&self, name: &IncarnationName) -> Result<Stats> {
        let zero = Duration::ZERO;
        match (self.fault, self.phase(name)) {
            (Fault::StatsStandStill, Some(Phase::Running))
            | (Fault::StatsOfWhatIsGone, Some(Phase::Prepared | Phase::Exited)) => {
                Ok(Stats { resident_bytes: 1, cpu_time: zero, uptime: zero })
            }
            _ => self.inner.stats(name).await,
        }
    }

    async fn stop(&self, name: &IncarnationName, mut how: StopHow) -> Result<()> {
        match (self.fault, self.phase(name)) {
            (Fault::AdoptedIsNotStopped, Some(_)) if self.adopted(name) => {
                return Err(error(ErrorKind::NotFound));
            }
            (Fault::StopAnswersEarly, Some(Phase::Running)) => {
                let (driver, name) = (SimulatedDriver::new(Arc::clone(self.inner.host())), name.clone());
                tokio::spawn(async move { driver.stop(&name, how).await });
                return Ok(());
            }
            (Fault::StopTwiceFails, Some(Phase::Exited)) => return Err(error(ErrorKind::Conflict)),
            (Fault::StopForgetsWhatIsPrepared, Some(Phase::Prepared)) => {
                return self.inner.destroy(name).await;
            }
            (Fault::StopSparesThePaused, Some(Phase::Paused)) => return Ok(()),
            (Fault::StopWaitsForTheButton, _) if how != StopHow::Kill => {
                how = StopHow::PowerOff { grace: Duration::from_secs(3_600) };
            }
            (Fault::StopEndsAll, Some(_)) => self.inner.host().reboot(),
            _ => {}
        }
        self.inner.stop(name, how).await
    }

    async fn observe(&self, name: &IncarnationName) -> Result<Observation> {
        match self.inner.observe(name).await {
            Err(_) if self.is(Fault::ObserveMakesUpWhatIsNotThere) => Ok(Observation {
                phase: Phase::Unknown,
                exit: None,
                pid: None,
                prepared: Prepared::default(),
            }),
            mut answer => {
                if let Ok(seen) = &mut answer {
                    self.bend(name, seen);
                }
                answer
            }
        }
    }

    async fn destroy(&self, name: &IncarnationName) -> Result<()> {
        match (self.fault, self.phase(name)) {
            (Fault::DestroyOnlyStops, Some(_)) => return self.inner.stop(name, StopHow::Kill).await,
            (Fault::DestroyOfNothingFails, None) => return Err(error(ErrorKind::NotFound)),
            (Fault::DestroyRemovesAll, Some(_)) => {
                for name in self.inner.host().phases().into_keys() {
                    self.inner.destroy(&name).await?;
                }
            }
            _ => {}
        }
        self.inner.destroy(name).await
    }

    async fn exits(&self) -> Result<BoxStream<'static, IncarnationName>> {
        if self.is(Fault::HintsAreLost) { Ok(stream::pending().boxed()) } else { self.inner.exits().await }
    }
}
