//! Clients: they ask for VM operations and retry as good clients do, and remember what was accepted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flames_clock::{Clock, Random, RandomExt};
use flames_error::{Error, Result};
use flames_model::{
    Actor, DesiredState, DiskKind, Egress, ImageName, Labels, NetworkSpec, OnHostLoss, ProjectName,
    RestartPolicy, RestartRule, SnapshotId, VmId, VmName, VmSpec,
};
use flames_service::{
    Caller, CreateVm, Mutation, NewSnapshot, NewSnapshotKind, RequestKey, RestoreSnapshot, Service,
    SnapshotRef, VmRef, VmView,
};

use crate::faults::Faults;
use crate::networks;

/// What a client may ask of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Ask {
    Create,
    Start,
    Stop,
    Restart,
    Pause,
    Resume,
    Delete,
    SetLabels,
    SetNetwork,
    Snapshot,
    Restore,
    DeleteSnapshot,
}

/// What a client was told.
#[derive(Debug, Clone)]
pub(crate) struct Accepted {
    pub(crate) ask: Ask,
    pub(crate) vm: VmId,
    /// What is wanted of the VM after that, and in which run.
    pub(crate) desired: DesiredState,
    pub(crate) run: u64,
}

/// What all clients were told, and how often they asked.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) accepted: Vec<Accepted>,
    /// Snapshots that were accepted; whether a removal was asked for, accepted or not.
    pub(crate) snapshots: BTreeMap<SnapshotId, bool>,
    /// Creates that were sent, by the VM's name; whether one was accepted.
    pub(crate) creates: BTreeMap<String, bool>,
    pub(crate) asked: u64,
    /// Refusals that a client cannot have deserved.
    pub(crate) undeserved: Vec<String>,
}

pub(crate) type SharedLedger = Arc<Mutex<Ledger>>;

pub(crate) struct Client {
    pub(crate) number: u64,
    pub(crate) service: Service,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) ledger: SharedLedger,
    pub(crate) faults: Arc<Faults>,
    /// Broken on purpose: retries without its key.
    pub(crate) forgets_its_key: bool,
}

pub(crate) fn caller() -> Result<Caller> {
    Ok(Caller {
        project: ProjectName::new("default")?,
        actor: Actor::User("testbed".into()),
        request_id: "testbed".into(),
    })
}

impl Client {
    /// Asks for `operations` things, one after the other.
    pub(crate) async fn run(self, operations: u64) {
        for number in 0..operations {
            self.clock.sleep(Duration::from_millis(self.random.below(2_500))).await;
            if let Err(error) = self.one(number).await {
                self.ledger().undeserved.push(format!("client {}: {error}", self.number));
            }
        }
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn one(&self, number: u64) -> Result<()> {
        let known: Vec<VmId> = self.ledger().accepted.iter().map(|accepted| accepted.vm).collect();
        let ask = match self.random.below(if known.is_empty() { 1 } else { 30 }) {
            0..=4 => Ask::Create,
            5..=6 => Ask::Start,
            7..=8 => Ask::Stop,
            9..=10 => Ask::Restart,
            11 => Ask::Pause,
            12 => Ask::Resume,
            13 => Ask::SetLabels,
            14..=19 => Ask::Snapshot,
            20..=22 => Ask::Restore,
            23 => Ask::DeleteSnapshot,
            24..=27 => Ask::SetNetwork,
            _ => Ask::Delete,
        };
        self.ledger().asked += 1;
        if ask == Ask::Create {
            return self.create(number).await;
        }
        let at = usize::try_from(self.random.below(u64::try_from(known.len()).unwrap_or(1))).unwrap_or(0);
        let Some(vm) = known.get(at).copied() else { return Ok(()) };
        match ask {
            Ask::Snapshot => return self.snapshot(number, vm).await,
            Ask::Restore => return self.restore(number).await,
            Ask::DeleteSnapshot => return self.delete_snapshot(number).await,
            _ => {}
        }
        let reference = VmRef::Id(vm);
        let caller = caller()?;
        let labels = Labels::new([("client".to_owned(), self.number.to_string())].into(), "labels")?;
        let network = networks::any(self.random.as_ref());
        let answer = self
            .retried(number, |mutation| {
                let (service, caller, reference, labels, network) =
                    (&self.service, &caller, &reference, labels.clone(), network.clone());
                async move {
                    match ask {
                        Ask::Start | Ask::Create | Ask::Snapshot | Ask::Restore | Ask::DeleteSnapshot => {
                            service.start_vm(caller, reference, &mutation).await
                        }
                        Ask::Stop => service.stop_vm(caller, reference, &mutation).await,
                        Ask::Restart => service.restart_vm(caller, reference, &mutation).await,
                        Ask::Pause => service.pause_vm(caller, reference, &mutation).await,
                        Ask::Resume => service.resume_vm(caller, reference, &mutation).await,
                        Ask::Delete => service.delete_vm(caller, reference, &mutation).await,
                        Ask::SetLabels => service.set_labels(caller, reference, labels, &mutation).await,
                        Ask::SetNetwork => service.set_network(caller, reference, network, &mutation).await,
                    }
                }
            })
            .await;
        match answer {
            Ok(view) => self.accept(ask, &view),
            // A VM that is deleted or over may refuse.
            Err(error) if matches!(error.code(), Some("VM_DELETED" | "VM_NOT_RUNNING")) => {}
            Err(error) if error.is_retryable() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn accept(&self, ask: Ask, view: &VmView) {
        let accepted = Accepted { ask, vm: view.vm.id, desired: view.vm.desired, run: view.vm.run };
        self.ledger().accepted.push(accepted);
    }

    async fn snapshot(&self, number: u64, vm: VmId) -> Result<()> {
        let (caller, reference) = (caller()?, VmRef::Id(vm));
        let kind = match self.random.below(2) {
            0 => NewSnapshotKind::Full,
            _ => NewSnapshotKind::Diff { base: None },
        };
        let answer = self
            .retried(number, |mutation| {
                let (service, caller, reference) = (&self.service, &caller, &reference);
                let new = NewSnapshot { name: None, kind: kind.clone() };
                async move { service.create_snapshot(caller, reference, new, &mutation).await }
            })
            .await;
        match answer {
            Ok(snapshot) => {
                self.ledger().snapshots.entry(snapshot.id).or_default();
                Ok(())
            }
            Err(error)
                if refuses(
                    &error,
                    &[
                        "VM_DELETED",
                        "VM_NOT_RUNNING",
                        "SNAPSHOT_IN_PROGRESS",
                        "SNAPSHOT_NOT_FOUND",
                        "SNAPSHOT_BASE_UNUSABLE",
                    ],
                ) =>
            {
                Ok(())
            }
            Err(error) if error.is_retryable() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn some_snapshot(&self) -> Option<SnapshotId> {
        let known: Vec<SnapshotId> = self.ledger().snapshots.keys().copied().collect();
        let at = self.random.below(u64::try_from(known.len().max(1)).unwrap_or(1));
        known.get(usize::try_from(at).unwrap_or(0)).copied()
    }

    async fn restore(&self, number: u64) -> Result<()> {
        let Some(snapshot) = self.some_snapshot() else { return Ok(()) };
        let (caller, reference) = (caller()?, SnapshotRef::Id(snapshot));
        let name = format!("copy-{}-{number}", self.number);
        self.ledger().creates.insert(name.clone(), false);
        let labels = Labels::new([("create".to_owned(), name.clone())].into(), "labels")?;
        let answer = self
            .retried(number, |mutation| {
                let restore = RestoreSnapshot { name: None, labels: Some(labels.clone()), network: None };
                let (service, caller, reference) = (&self.service, &caller, &reference);
                async move { service.restore_snapshot(caller, reference, restore, &mutation).await }
            })
            .await;
        match answer {
            Ok(view) => {
                self.ledger().creates.insert(name, true);
                self.accept(Ask::Create, &view);
                Ok(())
            }
            Err(error) if refuses(&error, &["SNAPSHOT_NOT_FOUND", "SNAPSHOT_NOT_READY"]) => Ok(()),
            Err(error) if error.is_retryable() => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn delete_snapshot(&self, number: u64) -> Result<()> {
        let Some(snapshot) = self.some_snapshot() else { return Ok(()) };
        self.ledger().snapshots.insert(snapshot, true);
        let (caller, reference) = (caller()?, SnapshotRef::Id(snapshot));
        let answer = self
            .retried(number, |mutation| {
                let (service, caller, reference) = (&self.service, &caller, &reference);
                async move { service.delete_snapshot(caller, reference, &mutation).await }
            })
            .await;
        match answer {
            Err(error) if refuses(&error, &["SNAPSHOT_NOT_FOUND", "SNAPSHOT_IN_USE"]) => Ok(()),
            Err(error) if !error.is_retryable() => Err(error),
            _ => Ok(()),
        }
    }

    async fn create(&self, number: u64) -> Result<()> {
        let name = format!("vm-{}-{number}", self.number);
        self.ledger().creates.insert(name.clone(), false);
        let mut create = CreateVm {
            name: Some(VmName::new(name.clone())?),
            labels: Labels::default(),
            spec: self.spec()?,
        };
        // Without a name of its own, only the key keeps a repetition from making a second VM.
        let labels = [("create".to_owned(), name.clone())].into();
        create.labels = Labels::new(labels, "labels")?;
        if self.random.below(2) == 0 {
            create.name = None;
        }
        let caller = caller()?;
        let answer = self
            .retried(number, |mutation| {
                let (service, caller, create) = (&self.service, &caller, create.clone());
                async move { service.create_vm(caller, create, &mutation).await }
            })
            .await;
        match answer {
            Ok(view) => {
                self.ledger().creates.insert(name, true);
                self.accept(Ask::Create, &view);
                Ok(())
            }
            Err(error) if error.is_retryable() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn spec(&self) -> Result<VmSpec> {
        let below = |bound| self.random.below(bound);
        let mut args = Vec::new();
        match below(4) {
            0 => args.extend(words(&format!("sleep {}.{:03} ; exit {}", below(20), below(1_000), below(2)))),
            1 => args.extend(words("echo hello ; sleep infinity")),
            2 => args.extend(words("sleep infinity")),
            _ => {}
        }
        let rule = match below(4) {
            0 => RestartRule::Always,
            1 => RestartRule::OnFailure,
            _ => RestartRule::Never,
        };
        Ok(VmSpec {
            image: ImageName::new("debian")?,
            kernel: None,
            vcpus: u32::try_from(1 + below(2)).unwrap_or(1),
            memory_mib: 64 + 64 * below(4),
            root_disk_mib: 64,
            disk: if below(3) == 0 { DiskKind::Persistent } else { DiskKind::Ephemeral },
            command: None,
            args,
            env: BTreeMap::new(),
            secret_env: BTreeMap::new(),
            working_directory: None,
            user: None,
            tty: false,
            stdin: false,
            ports: Vec::new(),
            network: NetworkSpec {
                egress: if below(4) == 0 { Egress::Allow { named: Vec::new() } } else { Egress::Deny },
                ..NetworkSpec::default()
            },
            restart: RestartPolicy { rule, max_restarts: Some(3), ..RestartPolicy::default() },
            wake_on_request: false,
            timeout_ms: (below(6) == 0).then(|| 5_000 + below(60_000)),
            auto_delete_after_ms: (below(6) == 0).then(|| below(30_000)),
            stop_grace_ms: 1_000,
            on_host_loss: OnHostLoss::Wait,
            placement: Labels::default(),
        })
    }

    /// Sends a request until the answer is certain, with the same key each time.
    async fn retried<T, F, R>(&self, number: u64, send: F) -> Result<T>
    where
        F: Fn(Mutation) -> R,
        R: Future<Output = Result<T>>,
    {
        let mut last = Error::unavailable("testbed.client", "never sent");
        for attempt in 0..12_u32 {
            let key = if self.forgets_its_key { format!("{number}-{attempt}") } else { number.to_string() };
            let request = RequestKey {
                key: format!("{}-{key}", self.number),
                route: "testbed".into(),
                body_digest: number.to_string(),
            };
            let mutation = Mutation { request: Some(request), if_generation: None };
            let answer = if self.faults.strikes(6) {
                // A proxy on the way was impatient, and two replicas carry the request out at once.
                self.faults.count("client's request doubled");
                let (one, _) = futures::future::join(send(mutation.clone()), send(mutation)).await;
                one
            } else {
                send(mutation).await
            };
            match answer {
                Err(error) if error.is_retryable() => last = error,
                _ if self.faults.strikes(6) => {
                    self.faults.count("client's answer lost");
                    last = Error::unavailable("testbed.client", "the answer was lost on the way");
                }
                answer => return answer,
            }
            let pause = 50_u64 << attempt.min(6);
            self.clock.sleep(Duration::from_millis(pause + self.random.below(pause))).await;
        }
        Err(last)
    }
}

/// Whether this is a refusal that a client must reckon with.
fn refuses(error: &Error, codes: &[&str]) -> bool {
    error.code().is_some_and(|code| codes.contains(&code))
}

/// The words of a line.
fn words(line: &str) -> impl Iterator<Item = String> {
    line.split(' ').map(str::to_owned)
}
