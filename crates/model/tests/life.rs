//! What must hold of every life that a VM can have, whatever users, hosts and time do to it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

use std::collections::BTreeMap;

use flames_model::*;
use jiff::SignedDuration;
use proptest::prelude::*;

/// What may happen next.
#[derive(Debug, Clone)]
enum Happening {
    User(Request),
    Reconcile,
    Report { state: IncarnationState, code: Option<i32>, released: bool, purged: bool, stale: Staleness },
    HostObeys,
    TimePasses(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Staleness {
    Fresh,
    OldSequence,
    OtherToken,
}

fn request() -> impl Strategy<Value = Request> {
    prop::sample::select(vec![
        Request::Start,
        Request::Stop,
        Request::Restart,
        Request::Pause,
        Request::Resume,
        Request::Delete,
    ])
}

fn incarnation_state() -> impl Strategy<Value = IncarnationState> {
    use IncarnationState::*;
    prop::sample::select(vec![Preparing, Starting, Running, Pausing, Paused, Stopping, Stopped, Failed, Lost])
}

fn happening() -> impl Strategy<Value = Happening> {
    let stale = prop::sample::select(vec![
        Staleness::Fresh,
        Staleness::Fresh,
        Staleness::OldSequence,
        Staleness::OtherToken,
    ]);
    prop_oneof![
        3 => request().prop_map(Happening::User),
        6 => Just(Happening::Reconcile),
        4 => Just(Happening::HostObeys),
        4 => (incarnation_state(), prop::option::of(0..3_i32), any::<bool>(), any::<bool>(), stale)
            .prop_map(|(state, code, released, purged, stale)| Happening::Report { state, code, released, purged, stale }),
        2 => (1..400_000_u64).prop_map(Happening::TimePasses),
    ]
}

fn restart_policy() -> impl Strategy<Value = RestartPolicy> {
    let rule = prop::sample::select(vec![RestartRule::Never, RestartRule::OnFailure, RestartRule::Always]);
    (rule, prop::option::of(0..3_u32)).prop_map(|(rule, max_restarts)| RestartPolicy {
        rule,
        max_restarts,
        ..Default::default()
    })
}

fn spec() -> impl Strategy<Value = VmSpec> {
    (restart_policy(), prop::option::of(1..900_000_u64), prop::option::of(0..60_000_u64)).prop_map(
        |(restart, timeout_ms, auto_delete_after_ms)| VmSpec {
            image: ImageName::new("debian").unwrap(),
            kernel: None,
            vcpus: 1,
            memory_mib: 128,
            root_disk_mib: 64,
            disk: DiskKind::Ephemeral,
            command: None,
            args: vec![],
            env: BTreeMap::new(),
            secret_env: BTreeMap::new(),
            working_directory: None,
            user: None,
            tty: false,
            stdin: false,
            ports: vec![],
            network: Default::default(),
            restart,
            wake_on_request: false,
            timeout_ms,
            auto_delete_after_ms,
            stop_grace_ms: 1_000,
            on_host_loss: OnHostLoss::Wait,
            placement: Labels::default(),
        },
    )
}

/// A control plane and a host, as small as can be: one VM, no faults but those that happen to it.
#[derive(Debug, Clone)]
struct World {
    vm: Vm,
    incarnation: Option<Incarnation>,
    told: Option<Wanted>,
    now: Timestamp,
    /// For each run, how often something was started for it without a restart policy's leave.
    plain_starts: BTreeMap<u64, u32>,
    released: u32,
}

impl World {
    fn new(spec: VmSpec) -> Self {
        let now = Timestamp::from_second(1_767_225_600).unwrap();
        let deadline = spec.timeout_ms.map(|ms| now + SignedDuration::from_millis(ms.try_into().unwrap()));
        let vm = Vm {
            id: VmId::from_uuid(uuid::Uuid::from_u128(1)),
            project: ProjectName::new("default").unwrap(),
            name: VmName::new("a").unwrap(),
            labels: Labels::default(),
            spec: spec.into(),
            desired: DesiredState::Running,
            desired_reason: None,
            run: 1,
            generation: 1,
            placements: 0,
            incarnation: None,
            disk: None,
            deadline,
            restarts: 0,
            unplaced: None,
            network_revision: 0,
            restored_from: None,
            created_at: now,
            updated_at: now,
            deleted_at: None,
        };
        Self { vm, incarnation: None, told: None, now, plain_starts: BTreeMap::new(), released: 0 }
    }

    fn happen(&mut self, happening: &Happening) {
        match happening {
            Happening::User(request) => {
                let deadline = self
                    .vm
                    .spec
                    .timeout_ms
                    .map(|ms| self.now + SignedDuration::from_millis(ms.try_into().unwrap()));
                if let Ok(Some(new)) = apply_request(&self.vm, self.incarnation.as_ref(), *request, deadline)
                {
                    self.vm = Vm { updated_at: self.now, ..new };
                }
            }
            Happening::Reconcile => {
                self.reconcile();
            }
            Happening::Report { state, code, released, purged, stale } => {
                self.report(*state, *code, *released, *purged, *stale)
            }
            Happening::HostObeys => self.host_obeys(),
            Happening::TimePasses(ms) => self.now += SignedDuration::from_millis((*ms).try_into().unwrap()),
        }
    }

    /// Takes one step and says whether there was one to take.
    fn reconcile(&mut self) -> bool {
        match next_step(&self.vm, self.incarnation.as_ref(), self.now) {
            Step::Wait(_) => return false,
            Step::Want(wanted, _) => {
                let news = self.told != Some(wanted);
                self.told = Some(wanted);
                return news;
            }
            Step::Place { restart } => {
                assert!(
                    self.incarnation.as_ref().is_none_or(|last| last.released_at.is_some()),
                    "two at once"
                );
                if restart {
                    self.vm.restarts += 1;
                } else {
                    *self.plain_starts.entry(self.vm.run).or_default() += 1;
                }
                self.vm.placements += 1;
                let id = IncarnationId::from_uuid(uuid::Uuid::from_u128(self.vm.placements.into()));
                self.vm.incarnation = Some(id);
                self.told = Some(Wanted::Running);
                self.incarnation = Some(Incarnation {
                    id,
                    project: self.vm.project.clone(),
                    vm: self.vm.id,
                    run: self.vm.run,
                    controller: ControllerId::from_uuid(uuid::Uuid::from_u128(1)),
                    resources: self.vm.spec.resources(),
                    address: None,
                    token: FencingToken(self.vm.placements),
                    source: Source::Boot,
                    state: IncarnationState::Scheduled,
                    state_before_loss: None,
                    sequence: 0,
                    reason: None,
                    exit: None,
                    endpoints: vec![],
                    network: Default::default(),
                    timeline: BTreeMap::new(),
                    created_at: self.now,
                    released_at: None,
                    purged_at: None,
                });
            }
            Step::Expire => {
                self.vm.desired = DesiredState::Stopped;
                self.vm.deadline = None;
            }
            Step::AutoDelete => self.vm.desired = DesiredState::Deleted,
            Step::FinishDelete => self.vm.deleted_at = Some(self.now),
            Step::PurgeTombstone => return false,
        }
        true
    }

    fn report(
        &mut self,
        state: IncarnationState,
        code: Option<i32>,
        released: bool,
        purged: bool,
        stale: Staleness,
    ) {
        let Some(before) = self.incarnation.clone() else { return };
        let exit = state.has_ended().then_some(Exit {
            code,
            signal: None,
            at: self.now,
            cause: ExitCause::Workload,
        });
        let report = Report {
            incarnation: before.id,
            vm: before.vm,
            project: before.project.clone(),
            token: if stale == Staleness::OtherToken {
                FencingToken(before.token.0 + 7)
            } else {
                before.token
            },
            sequence: if stale == Staleness::OldSequence { before.sequence } else { before.sequence + 1 },
            state,
            reason: None,
            exit,
            endpoints: vec![],
            network: Default::default(),
            timeline: BTreeMap::new(),
            released,
            purged,
        };
        match apply_report(&before, &report, self.now) {
            Ok(after) => {
                assert_eq!(stale, Staleness::Fresh, "a stale report was taken: {report:?}");
                if before.released_at.is_none() && after.released_at.is_some() {
                    self.released += 1;
                }
                self.incarnation = Some(after);
            }
            Err(_) => assert_eq!(self.incarnation.as_ref(), Some(&before)),
        }
    }

    /// The host does at once whatever it was told.
    fn host_obeys(&mut self) {
        match self.told {
            Some(Wanted::Running) => {
                self.report(IncarnationState::Running, None, false, false, Staleness::Fresh)
            }
            Some(Wanted::Paused) => {
                self.report(IncarnationState::Paused, None, false, false, Staleness::Fresh)
            }
            Some(Wanted::Stopped) => {
                self.report(IncarnationState::Stopped, Some(0), true, false, Staleness::Fresh)
            }
            Some(Wanted::Purged) => {
                self.report(IncarnationState::Stopped, Some(0), true, true, Staleness::Fresh)
            }
            None => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_events_leaves_deleted(spec in spec(), life in prop::collection::vec(happening(), 1..80)) {
        let mut world = World::new(spec);
        for happening in &life {
            let before = world.clone();
            world.happen(happening);
            if before.vm.desired == DesiredState::Deleted {
                prop_assert_eq!(world.vm.desired, DesiredState::Deleted);
                prop_assert_eq!(world.vm.run, before.vm.run);
                prop_assert_eq!(world.vm.placements, before.vm.placements, "a deleted VM was placed");
            }
            if before.vm.deleted_at.is_some() {
                prop_assert_eq!(world.vm.deleted_at, before.vm.deleted_at);
                prop_assert_eq!(observed_state(&world.vm, world.incarnation.as_ref()), VmState::Deleted);
            }
        }
    }

    #[test]
    fn every_reachable_state_has_a_way_to_deleted(spec in spec(), life in prop::collection::vec(happening(), 0..80)) {
        let mut world = World::new(spec);
        for happening in &life {
            world.happen(happening);
        }
        world.happen(&Happening::User(Request::Delete));
        for _ in 0..8 {
            world.reconcile();
            world.host_obeys();
        }
        prop_assert!(world.vm.deleted_at.is_some(), "{:?}", world);
        let placed = u32::try_from(world.vm.placements).unwrap();
        prop_assert_eq!(world.released, placed, "every incarnation gives its resources back exactly once");
    }

    #[test]
    fn a_run_that_ended_is_not_started_again_without_policy_or_a_new_run(
        spec in spec(),
        life in prop::collection::vec(happening(), 1..80),
    ) {
        let mut world = World::new(spec);
        for happening in &life {
            world.happen(happening);
        }
        for (run, starts) in &world.plain_starts {
            prop_assert!(*starts <= 1, "run {} was started {} times", run, starts);
        }
        if world.vm.spec.restart.rule == RestartRule::Never {
            prop_assert_eq!(world.vm.restarts, 0);
        }
    }

    #[test]
    fn with_an_obeying_host_a_vm_settles_where_it_is_wanted(spec in spec(), life in prop::collection::vec(happening(), 0..60)) {
        let mut world = World::new(spec);
        for happening in &life {
            world.happen(happening);
        }
        let mut quiet = 0;
        for _ in 0..32 {
            let before = (world.vm.clone(), world.incarnation.as_ref().map(|i| (i.state, i.released_at)));
            world.reconcile();
            world.host_obeys();
            let after = (world.vm.clone(), world.incarnation.as_ref().map(|i| (i.state, i.released_at)));
            quiet = if before == after { quiet + 1 } else { 0 };
        }
        prop_assert!(quiet > 2, "it never settles: {:?}", world);
        let state = observed_state(&world.vm, world.incarnation.as_ref());
        let ended = matches!(state, VmState::Stopped | VmState::Failed | VmState::Restarting);
        match world.vm.desired {
            DesiredState::Running => prop_assert!(state == VmState::Running || ended, "{}", state),
            DesiredState::Paused => prop_assert!(state == VmState::Paused || ended, "{}", state),
            DesiredState::Stopped => prop_assert!(ended, "{}", state),
            DesiredState::Deleted => prop_assert_eq!(state, VmState::Deleted),
        }
    }
}
