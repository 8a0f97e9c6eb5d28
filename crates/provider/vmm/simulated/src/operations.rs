//! What a simulated host does when a driver asks for it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flames_clock::ClockExt;
use flames_error::{Error, ErrorKind, Result};
use flames_vmm::{
    IncarnationName, MachineSpec, NetworkSpec, Phase, Prepared, SnapshotArtefacts, SnapshotKind, StartFrom,
    Stats, StopHow, Update,
};

use crate::guest::{GuestOrigin, GuestShared};
use crate::host::SimulatedHost;
use crate::lock;
use crate::power::{Power, PowerState};
use crate::script::{Death, PlannedDeath};
use crate::state::{Ending, Machine, Place, SavedGuest, Stage, not_in_phase};
use crate::timings::{SimulatedTimings, Span};

impl SimulatedHost {
    fn draw(&self, which: impl FnOnce(&SimulatedTimings) -> Span) -> Duration {
        let span = which(&lock(&self.timings));
        span.draw(self.random.as_ref())
    }

    async fn take(&self, which: impl FnOnce(&SimulatedTimings) -> Span) {
        let duration = self.draw(which);
        if !duration.is_zero() {
            self.clock.sleep(duration).await;
        }
    }

    /// Does something to a guest later, unless it is gone by then; at once when there is nothing to wait for. The waiting task ends with
    /// the guest.
    fn later(
        self: &Arc<Self>,
        guest: &Arc<GuestShared>,
        after: Duration,
        then: impl FnOnce(&Arc<Self>, &Arc<GuestShared>) + Send + 'static,
    ) {
        if after.is_zero() {
            then(self, guest);
            return;
        }
        let (clock, guest) = (Arc::clone(&self.clock), Arc::clone(guest));
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = guest.power.until(|state| state == PowerState::Gone) => {}
                () = clock.sleep(after) => if let Some(host) = guest.host.upgrade() { then(&host, &guest); },
            }
        });
    }

    /// Ends a guest by its own doing, once its processors run.
    fn end_when_running(self: &Arc<Self>, guest: &Arc<GuestShared>) {
        if guest.power.state() == PowerState::Running {
            guest.end(Ending::guest());
            return;
        }
        let guest = Arc::clone(guest);
        tokio::spawn(async move {
            guest.power.until(|state| matches!(state, PowerState::Running | PowerState::Gone)).await;
            guest.end(Ending::guest());
        });
    }

    pub(crate) async fn prepare(&self, name: &IncarnationName, spec: &MachineSpec) -> Result<Prepared> {
        const OPERATION: &str = "vmm.prepare";
        spec.validate()?;
        if spec.vcpus > self.config().max_vcpus {
            return Err(Error::invalid(OPERATION, "vcpus", "This host gives a machine fewer processors."));
        }
        if let NetworkSpec::User { forwards, .. } = &spec.network {
            let ports: BTreeMap<u16, ()> = forwards.iter().map(|forward| (forward.guest_port, ())).collect();
            if ports.len() != forwards.len() || ports.contains_key(&0) {
                return Err(Error::invalid(
                    OPERATION,
                    "network.forwards",
                    "A guest port is forwarded once, and not 0.",
                ));
            }
        }
        self.check_files(spec)?;
        let duration = self.draw(|timings| timings.prepare);
        // All of a host share one lock: what takes long is done before.
        let new = || Box::new(Machine::new(spec, self.config().console_limit));
        let at_once = duration.is_zero().then(new);
        {
            let mut state = lock(&self.state);
            match state.places.get(name) {
                Some(Place::Made(machine)) if *machine.spec == *spec => return Ok(machine.prepared.clone()),
                Some(Place::Made(_)) => return Err(another_spec(name)),
                Some(Place::HalfMade) => {}
                None if at_once.is_some() => {}
                None => drop(state.places.insert(name.clone(), Place::HalfMade)),
            }
            if let Some(machine) = at_once {
                return state.make(name, machine, self.config().capacity);
            }
        }
        self.clock.sleep(duration).await;
        let machine = new();
        let mut state = lock(&self.state);
        match state.places.get(name) {
            Some(Place::Made(machine)) if *machine.spec == *spec => Ok(machine.prepared.clone()),
            Some(Place::Made(_)) => Err(another_spec(name)),
            Some(Place::HalfMade) => state.make(name, machine, self.config().capacity),
            None => Err(Error::new(ErrorKind::Conflict, OPERATION, "it was destroyed meanwhile")
                .with_resource("incarnation", name.as_str())),
        }
    }

    pub(crate) async fn start(
        self: &Arc<Self>,
        name: &IncarnationName,
        from: &StartFrom,
        leave_paused: bool,
        death: Option<PlannedDeath>,
    ) -> Result<()> {
        let (guest, is_new) = match self.begin_start(name, from)? {
            Some(begun) => begun,
            None => return Ok(()),
        };
        if is_new {
            let duration = self.draw(|timings| match from {
                StartFrom::Boot => timings.start,
                StartFrom::Snapshot(_) => timings.restore,
            });
            self.later(&guest, duration, move |host, guest| host.finish_start(guest, leave_paused, death));
        }
        guest.power.until(|state| state != PowerState::Starting).await;
        if guest.ran.load(Ordering::Relaxed) {
            return Ok(());
        }
        let said = match lock(&self.state).machine("vmm.start", name).map(|machine| &machine.stage) {
            Ok(Stage::Exited { exit, .. }) => exit.message.clone(),
            _ => None,
        };
        let message = said.unwrap_or_else(|| "the monitor died at once".to_owned());
        Err(Error::internal("vmm.start", message).with_resource("incarnation", name.as_str()))
    }

    /// The guest that is starting, and whether this call made it; none when it already runs.
    fn begin_start(
        self: &Arc<Self>,
        name: &IncarnationName,
        from: &StartFrom,
    ) -> Result<Option<(Arc<GuestShared>, bool)>> {
        const OPERATION: &str = "vmm.start";
        let mut state = lock(&self.state);
        let machine = state.machine(OPERATION, name)?;
        match (&machine.stage, machine.phase()) {
            (Stage::Prepared, _) => {}
            (Stage::Live(guest), Phase::Starting) => return Ok(Some((Arc::clone(guest), false))),
            (Stage::Live(_), Phase::Running | Phase::Paused) => return Ok(None),
            (_, phase) => return Err(not_in_phase(OPERATION, name, phase)),
        }
        let (spec, console) = (Arc::clone(&machine.spec), Arc::clone(&machine.console));
        let mut saved_config = None;
        let origin = match from {
            StartFrom::Boot => GuestOrigin::Booted,
            StartFrom::Snapshot(_) if !self.config().snapshot => {
                return Err(Error::new(ErrorKind::NotSupported, OPERATION, "this host has no snapshots"));
            }
            StartFrom::Snapshot(artefacts) => {
                let own = state
                    .snapshots
                    .get(&artefacts.state)
                    .filter(|_| state.is_whole(&artefacts.state))
                    .cloned();
                let brought =
                    || state.files.get(&artefacts.state).and_then(|bytes| SavedGuest::from_bytes(bytes));
                // A memory that was brought here is whole, or it is no guest's.
                let brought = || brought().filter(|_| state.is_memory_whole(artefacts.memory.as_deref()));
                let Some(saved) = own.or_else(brought) else {
                    return Err(Error::new(ErrorKind::Corrupt, OPERATION, "the snapshot is not whole")
                        .with_context("state", artefacts.state.display()));
                };
                saved_config = Some(saved.config);
                GuestOrigin::Restored { of: saved.of, snapshot: saved.name }
            }
        };
        let guest = Arc::new(GuestShared {
            name: name.clone(),
            origin,
            saved_config,
            vcpus: spec.vcpus,
            memory_mib: spec.memory_mib,
            started_at: self.clock.monotonic(),
            power: Power::new(PowerState::Starting),
            host: Arc::downgrade(self),
            console,
            ran: AtomicBool::new(false),
            button_handled: AtomicBool::new(false),
            being_saved: AtomicBool::new(false),
            listeners: Mutex::default(),
            host_ports: Mutex::default(),
            exclusive_line: Mutex::default(),
        });
        state.started(name, Arc::clone(&guest));
        Ok(Some((guest, true)))
    }

    fn finish_start(
        self: &Arc<Self>,
        guest: &Arc<GuestShared>,
        leave_paused: bool,
        death: Option<PlannedDeath>,
    ) {
        if let Some(PlannedDeath::Starting(message)) = death {
            self.end(&guest.name, Some(guest), Ending::crashed(Some(message)));
            return;
        }
        let config = match lock(&self.state).machine("vmm.start", &guest.name) {
            Ok(machine) if matches!(&machine.stage, Stage::Live(live) if Arc::ptr_eq(live, guest)) => {
                let own = || machine.spec.guest_config.clone();
                self.config().program.as_ref().map(|_| guest.saved_config.clone().unwrap_or_else(own))
            }
            _ => return,
        };
        let how = match &guest.origin {
            GuestOrigin::Booted => "boots",
            GuestOrigin::Restored { .. } => "runs on",
        };
        let words = format!(
            "simulated guest {}: {how}, {} vcpus, {} MiB\n",
            guest.name, guest.vcpus, guest.memory_mib
        );
        lock(&guest.console).write(words.as_bytes());
        guest.ran.store(true, Ordering::Relaxed);
        guest.power.set(if leave_paused { PowerState::Paused } else { PowerState::Running });
        if let (Some(program), Some(config)) = (&self.config().program, config) {
            guest.run(Arc::clone(program), config);
        }
        if let Some(PlannedDeath::Later(after, how)) = death {
            self.later(guest, after, move |host, guest| match how {
                Death::PowerOff => host.end_when_running(guest),
                Death::Crash => drop(host.end(&guest.name, Some(guest), Ending::crashed(None))),
            });
        }
    }

    pub(crate) async fn pause(&self, name: &IncarnationName) -> Result<()> {
        self.switch("vmm.pause", name, PowerState::Paused, |timings| timings.pause).await
    }

    pub(crate) async fn resume(&self, name: &IncarnationName) -> Result<()> {
        self.switch("vmm.resume", name, PowerState::Running, |timings| timings.resume).await
    }

    async fn switch(
        &self,
        operation: &'static str,
        name: &IncarnationName,
        to: PowerState,
        which: impl FnOnce(&SimulatedTimings) -> Span,
    ) -> Result<()> {
        if !self.config().pause {
            return Err(Error::new(ErrorKind::NotSupported, operation, "this host cannot pause"));
        }
        if lock(&self.state).live(operation, name)?.power.state() == to {
            return Ok(());
        }
        self.take(which).await;
        lock(&self.state).live(operation, name)?.power.set(to);
        Ok(())
    }

    pub(crate) fn update(&self, name: &IncarnationName, update: &Update) -> Result<()> {
        const OPERATION: &str = "vmm.update";
        let mut state = lock(&self.state);
        state.live(OPERATION, name)?;
        let machine = state.machine(OPERATION, name)?;
        match update {
            Update::BalloonMib(mib) if *mib >= machine.spec.memory_mib => {
                return Err(Error::invalid(OPERATION, "balloon_mib", "The guest must keep some memory."));
            }
            Update::BalloonMib(mib) => machine.balloon_mib = *mib,
            Update::DrivePath { name: drive, path } => {
                let known = machine.drives.iter_mut().find(|known| known.name == *drive);
                let no_such =
                    || Error::invalid(OPERATION, "drives.name", "The machine has no disk of this name.");
                known.ok_or_else(no_such)?.path.clone_from(path);
            }
            Update::Network(_) if !self.config().live_network_policy => {
                let message = "this host replaces no policy of a live machine";
                return Err(Error::new(ErrorKind::NotSupported, OPERATION, message));
            }
            Update::Network(policy) => {
                let no_tap =
                    || Error::invalid(OPERATION, "network", "The machine has no network of its own.");
                machine.network_policy.as_mut().ok_or_else(no_tap)?.clone_from(policy);
            }
        }
        Ok(())
    }

    /// Saves a guest. It is paused meanwhile, and stays so when the call is given up.
    pub(crate) async fn snapshot(
        &self,
        name: &IncarnationName,
        snapshot: &str,
        kind: SnapshotKind,
    ) -> Result<SnapshotArtefacts> {
        const OPERATION: &str = "vmm.snapshot";
        let is_diff = matches!(kind, SnapshotKind::DiffOf(_));
        if !self.config().snapshot || (is_diff && !self.config().diff_snapshot) {
            return Err(Error::new(ErrorKind::NotSupported, OPERATION, "this host has no such snapshots"));
        }
        let path = snapshot_path(OPERATION, name, snapshot)?;
        let artefacts =
            SnapshotArtefacts { memory: Some(path.with_file_name("memory")), state: path.clone() };
        let base = match &kind {
            SnapshotKind::Full => None,
            SnapshotKind::DiffOf(base) => Some(snapshot_path(OPERATION, name, base)?),
        };
        let guest = {
            let mut state = lock(&self.state);
            let guest = state.live(OPERATION, name)?;
            match (state.snapshots.get(&path), &base) {
                (Some(known), base) if known.base == *base => return Ok(artefacts),
                (Some(_), _) => {
                    return Err(Error::new(ErrorKind::Conflict, OPERATION, "another snapshot has this name")
                        .with_resource("snapshot", snapshot));
                }
                (None, Some(base)) if !state.is_whole(base) && state.latest.get(name) != Some(base) => {
                    return Err(Error::not_found(OPERATION, "snapshot", base.display().to_string()));
                }
                (None, _) => guest,
            }
        };
        let _saving = Saving::begin(&guest)?;
        let before = guest.power.state();
        guest.power.set(PowerState::Paused);
        self.take(|timings| timings.snapshot).await;
        let mut state = lock(&self.state);
        let same = Arc::ptr_eq(&state.live(OPERATION, name)?, &guest);
        if !same {
            return Err(not_in_phase(OPERATION, name, Phase::Exited));
        }
        let config = match &guest.saved_config {
            Some(config) => config.clone(),
            None => state.machine(OPERATION, name)?.spec.guest_config.clone(),
        };
        let saved = SavedGuest { of: name.clone(), name: snapshot.to_owned(), base, config };
        state.latest.insert(name.clone(), path.clone());
        state.snapshots.insert(path, saved);
        guest.power.set(before);
        Ok(artefacts)
    }

    pub(crate) fn delete_snapshot(&self, name: &IncarnationName, snapshot: &str) -> Result<()> {
        const OPERATION: &str = "vmm.delete_snapshot";
        if !self.config().snapshot {
            return Err(Error::new(ErrorKind::NotSupported, OPERATION, "this host has no snapshots"));
        }
        let path = snapshot_path(OPERATION, name, snapshot)?;
        lock(&self.state).snapshots.remove(&path);
        Ok(())
    }

    pub(crate) fn stats(&self, name: &IncarnationName) -> Result<Stats> {
        let mut state = lock(&self.state);
        let guest = state.live("vmm.stats", name)?;
        let balloon_mib = state.machine("vmm.stats", name)?.balloon_mib;
        let uptime = self.clock.monotonic().saturating_since(guest.started_at);
        let resident_bytes = (guest.memory_mib - balloon_mib.min(guest.memory_mib)) * 1024 * 1024;
        // As if one processor were always busy.
        Ok(Stats { resident_bytes, cpu_time: uptime, uptime })
    }

    pub(crate) async fn stop(self: &Arc<Self>, name: &IncarnationName, how: StopHow) -> Result<()> {
        let Some(guest) = self.begin_end("vmm.stop", name)? else { return Ok(()) };
        if let StopHow::PowerOff { grace } = how {
            guest.power.press_button();
            if self.config().program.is_none() && !guest.button_handled.swap(true, Ordering::Relaxed) {
                let duration = self.draw(|timings| timings.power_off);
                self.later(&guest, duration, |host, guest| host.end_when_running(guest));
            }
            let gone = guest.power.until(|state| state == PowerState::Gone);
            if self.clock.timeout(grace, gone).await.is_ok() {
                return Ok(());
            }
        }
        self.take(|timings| timings.kill).await;
        self.end(name, Some(&guest), Ending::killed());
        Ok(())
    }

    /// The guest, if its monitor runs, noting that it is us who end it.
    fn begin_end(&self, operation: &'static str, name: &IncarnationName) -> Result<Option<Arc<GuestShared>>> {
        let mut state = lock(&self.state);
        let machine = state.machine(operation, name)?;
        let Stage::Live(guest) = &machine.stage else { return Ok(None) };
        let guest = Arc::clone(guest);
        machine.stop_requested = true;
        Ok(Some(guest))
    }

    pub(crate) async fn destroy(&self, name: &IncarnationName) -> Result<()> {
        if !lock(&self.state).places.contains_key(name) {
            return Ok(());
        }
        loop {
            if let Ok(Some(guest)) = self.begin_end("vmm.destroy", name) {
                self.take(|timings| timings.kill).await;
                self.end(name, Some(&guest), Ending::killed());
            }
            self.take(|timings| timings.destroy).await;
            // A start that ran beside us may have made it live again.
            if lock(&self.state).remove(name, self.config().lives_kept) {
                return Ok(());
            }
        }
    }
}

/// One snapshot at a time: a second would take the first one's pause for the guest's own.
struct Saving<'a>(&'a GuestShared);

impl<'a> Saving<'a> {
    fn begin(guest: &'a GuestShared) -> Result<Self> {
        if guest.being_saved.swap(true, Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Conflict, "vmm.snapshot", "another snapshot is being taken")
                .with_resource("incarnation", guest.name.as_str()));
        }
        Ok(Self(guest))
    }
}

impl Drop for Saving<'_> {
    fn drop(&mut self) {
        self.0.being_saved.store(false, Ordering::Relaxed);
    }
}

fn another_spec(name: &IncarnationName) -> Error {
    Error::new(ErrorKind::Conflict, "vmm.prepare", "it was prepared with another spec")
        .with_resource("incarnation", name.as_str())
}

/// Where a snapshot would lie. There is no such file: only the host knows these paths.
fn snapshot_path(operation: &'static str, name: &IncarnationName, snapshot: &str) -> Result<PathBuf> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    if (1..=64).contains(&snapshot.len()) && snapshot.bytes().all(allowed) {
        Ok(PathBuf::from(format!("/simulated/{name}/snapshots/{snapshot}/state")))
    } else {
        Err(Error::invalid(operation, "name", "A snapshot's name is 1 to 64 bytes of a-z, 0-9, `_` and `-`."))
    }
}
