//! What is committed together: reports of many incarnations, and the steps of many VMs.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub, reason = "tests")]
#![allow(dead_code, reason = "the world is shared with other tests")]

mod world;

use std::collections::BTreeSet;
use std::sync::Arc;

use flames_error::{Error, ErrorKind, Result};
use flames_model::*;
use flames_records::Position;
use flames_service::*;
use flames_state::{
    Commit, Committed, Entry, HintStream, Key, KeyRange, LogEntry, Page, PageRequest, StateStore,
};
use flames_state_memory::MemoryStore;
use world::{Host, World, caller};

/// A store that refuses each commit of more than so many appends to logs, as one whose records others change all the time would refuse
/// those of many records.
#[derive(Debug)]
struct Contested(MemoryStore, usize);

#[async_trait::async_trait]
impl StateStore for Contested {
    fn name(&self) -> &'static str {
        "contested"
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        self.0.get(key).await
    }

    async fn scan(&self, range: &KeyRange, page: PageRequest) -> Result<Page> {
        self.0.scan(range, page).await
    }

    async fn commit(&self, commit: &Commit) -> Result<Committed> {
        if commit.appends.len() > self.1 {
            return Err(Error::new(ErrorKind::Conflict, "test.commit", "contested"));
        }
        self.0.commit(commit).await
    }

    async fn read_log(&self, log: &Key, after: Position, limit: usize) -> Result<Vec<LogEntry>> {
        self.0.read_log(log, after, limit).await
    }

    async fn trim_log(&self, log: &Key, through: Position) -> Result<()> {
        self.0.trim_log(log, through).await
    }

    async fn changes(&self, prefix: &Key) -> Result<HintStream> {
        self.0.changes(prefix).await
    }
}

/// Creates VMs, and lets reconciliation find them all at once.
async fn create(world: &mut World, count: usize) {
    world.stop_reconciler();
    for number in 0..count {
        world.create(&format!("vm-{number}"), |_| {}).await;
    }
    world.start_reconciler();
    world.settle().await;
}

async fn events(world: &World, takes: impl Fn(&EventKind) -> bool) -> Vec<(u64, Event)> {
    let events = world.service.events(&caller(), Position::START, 1_000).await.unwrap();
    let taken = events.into_iter().filter(|entry| takes(&entry.event.kind));
    taken.map(|entry| (entry.position.as_raw().0, entry.event)).collect()
}

async fn assignments(world: &World, host: &mut Host) -> Vec<Assignment> {
    host.changes(world)
        .await
        .into_iter()
        .filter_map(|assigned| assigned.assignment.as_deref().cloned())
        .collect()
}

async fn reserved(world: &World, host: &Host) -> Resources {
    world.service.get_controller(host.session.controller).await.unwrap().allocation.reserved
}

fn is_placed(kind: &EventKind) -> bool {
    matches!(kind, EventKind::VmPlaced { .. })
}

fn is_running(kind: &EventKind) -> bool {
    matches!(kind, EventKind::VmState { state: IncarnationState::Running, .. })
}

#[tokio::test(start_paused = true)]
async fn vms_that_wait_are_placed_several_in_one_commit_and_their_host_is_reserved_their_sum() {
    let mut world = World::new().await;
    let mut host = world.add_host(1, 40).await;
    create(&mut world, 20).await;
    let placed = events(&world, is_placed).await;
    let commits: BTreeSet<u64> = placed.iter().map(|(commit, _)| *commit).collect();
    assert_eq!(placed.len(), 20);
    assert!(commits.len() <= 5, "{commits:?}");
    assert_eq!(
        reserved(&world, &host).await,
        Resources { vcpus: 20, memory_mib: 2_560, disk_mib: 1_280, vms: 20 }
    );
    assert_eq!(assignments(&world, &mut host).await.len(), 20);
}

#[tokio::test(start_paused = true)]
async fn vms_that_are_placed_together_do_not_overcommit_their_host() {
    let mut world = World::new().await;
    let mut host = world.add_host(1, 3).await;
    create(&mut world, 8).await;
    assert_eq!(events(&world, is_placed).await.len(), 3);
    assert_eq!(events(&world, |kind| matches!(kind, EventKind::VmUnplaced)).await.len(), 5);
    assert_eq!(reserved(&world, &host).await.vcpus, 3);
    assert_eq!(assignments(&world, &mut host).await.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn vms_that_cannot_be_placed_together_are_placed_one_by_one() {
    // A placement appends an event and tells the controller.
    let mut world = World::over(Arc::new(Contested(MemoryStore::new(), 2))).await;
    let mut host = world.add_host(1, 40).await;
    create(&mut world, 10).await;
    assert_eq!(events(&world, is_placed).await.len(), 10);
    assert_eq!(reserved(&world, &host).await.vcpus, 10);
    assert_eq!(assignments(&world, &mut host).await.len(), 10);
}

#[tokio::test(start_paused = true)]
async fn reports_on_many_incarnations_are_taken_by_few_commits() {
    let mut world = World::new().await;
    let mut host = world.add_host(1, 40).await;
    create(&mut world, 20).await;
    let told = assignments(&world, &mut host).await;
    let reports: Vec<_> = told.iter().map(|told| host.next_report(told, IncarnationState::Running)).collect();
    let outcomes = world.service.reports(&host.session, &reports).await.unwrap();
    assert_eq!(outcomes, [ReportOutcome::Taken; 20]);
    let running = events(&world, is_running).await;
    let commits: BTreeSet<u64> = running.iter().map(|(commit, _)| *commit).collect();
    assert_eq!(running.len(), 20);
    assert!(commits.len() <= 2, "{commits:?}");
    let again = world.service.reports(&host.session, &reports).await.unwrap();
    assert_eq!(again, [ReportOutcome::Taken; 20], "a batch that is doubled changes nothing");
    assert_eq!(events(&world, is_running).await.len(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_report_in_a_batch_that_is_stale_changes_nothing_and_the_others_count() {
    let mut world = World::new().await;
    let mut host = world.add_host(1, 40).await;
    create(&mut world, 3).await;
    let told = assignments(&world, &mut host).await;
    let mut reports: Vec<_> =
        told.iter().map(|told| host.next_report(told, IncarnationState::Running)).collect();
    reports[1].token = FencingToken(7);
    let mut unknown = reports[2].clone();
    unknown.incarnation = IncarnationId::from_uuid(uuid::Uuid::from_u128(9));
    reports.push(unknown);
    let outcomes = world.service.reports(&host.session, &reports).await.unwrap();
    let stale = ReportOutcome::Stale(Refusal::StaleToken);
    assert_eq!(outcomes, [ReportOutcome::Taken, stale, ReportOutcome::Taken, ReportOutcome::Unknown]);
    for (told, state) in told.iter().zip([VmState::Running, VmState::Scheduled, VmState::Running]) {
        assert_eq!(world.state(told.name.as_str()).await, state);
    }
}

#[tokio::test(start_paused = true)]
async fn a_report_in_a_batch_on_anothers_incarnation_is_forbidden_and_the_others_count() {
    let mut world = World::new().await;
    let mut host = world.add_host(1, 1).await;
    create(&mut world, 1).await;
    let mut other = world.add_host(2, 1).await;
    world.create("elsewhere", |_| {}).await;
    world.clock.advance(std::time::Duration::from_secs(5)).await;
    world.settle().await;
    let mine = assignments(&world, &mut host).await;
    let theirs = assignments(&world, &mut other).await;
    let reports = [
        host.next_report(&theirs[0], IncarnationState::Running),
        host.next_report(&mine[0], IncarnationState::Running),
    ];
    let outcomes = world.service.reports(&host.session, &reports).await.unwrap();
    assert_eq!(outcomes, [ReportOutcome::Forbidden, ReportOutcome::Taken]);
    assert_eq!(world.state("elsewhere").await, VmState::Scheduled);
    let alone = world.service.report(&host.session, &reports[0]).await.unwrap_err();
    assert_eq!(alone.kind(), ErrorKind::PermissionDenied);
}

#[tokio::test(start_paused = true)]
async fn reports_on_one_incarnation_in_a_batch_count_in_their_order() {
    let mut world = World::new().await;
    let mut host = world.add_host(1, 40).await;
    create(&mut world, 2).await;
    let told = assignments(&world, &mut host).await;
    let states = [IncarnationState::Preparing, IncarnationState::Starting, IncarnationState::Running];
    let mut reports: Vec<_> = states.iter().map(|state| host.next_report(&told[0], *state)).collect();
    reports.insert(1, host.next_report(&told[1], IncarnationState::Running));
    let outcomes = world.service.reports(&host.session, &reports).await.unwrap();
    assert_eq!(outcomes, [ReportOutcome::Taken; 4]);
    let of_first = |kind: &EventKind| matches!(kind, EventKind::VmState { .. });
    let seen: Vec<_> = events(&world, of_first)
        .await
        .into_iter()
        .filter(|(_, event)| event.incarnation == Some(told[0].incarnation))
        .map(|(_, event)| event.kind)
        .collect();
    assert_eq!(seen, states.map(|state| EventKind::VmState { state, exit: None }));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_was_over_before_it_was_told_still_tells_that_it_ran() {
    let mut world = World::new().await;
    let mut host = world.add_host(1, 1).await;
    create(&mut world, 1).await;
    let told = assignments(&world, &mut host).await;
    let at = flames_clock::Clock::now(world.clock.as_ref());
    for state in [IncarnationState::Stopping, IncarnationState::Stopped] {
        let mut report = host.next_report(&told[0], state);
        report.timeline = [(IncarnationState::Running, at), (state, at)].into();
        report.exit = Some(Exit { code: Some(0), signal: None, at, cause: ExitCause::Workload });
        world.service.report(&host.session, &report).await.unwrap();
    }
    let seen = events(&world, |kind| matches!(kind, EventKind::VmState { .. })).await;
    let seen: Vec<_> = seen
        .into_iter()
        .map(|(_, event)| match event.kind {
            EventKind::VmState { state, .. } => state,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(seen, [IncarnationState::Running, IncarnationState::Stopping, IncarnationState::Stopped]);
}

#[tokio::test(start_paused = true)]
async fn reports_that_are_not_taken_together_are_taken_one_by_one() {
    let mut world = World::over(Arc::new(Contested(MemoryStore::new(), 2))).await;
    let mut host = world.add_host(1, 40).await;
    create(&mut world, 5).await;
    let told = assignments(&world, &mut host).await;
    let reports: Vec<_> = told.iter().map(|told| host.next_report(told, IncarnationState::Running)).collect();
    let outcomes = world.service.reports(&host.session, &reports).await.unwrap();
    assert_eq!(outcomes, [ReportOutcome::Taken; 5]);
    assert_eq!(events(&world, is_running).await.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn releases_in_one_batch_each_give_their_reservation_back_once() {
    let mut world = World::new().await;
    let mut host = world.add_host(1, 40).await;
    create(&mut world, 6).await;
    let told = assignments(&world, &mut host).await;
    let mut reports: Vec<_> =
        told.iter().map(|told| host.next_report(told, IncarnationState::Stopped)).collect();
    for report in &mut reports {
        report.exit =
            Some(Exit { code: Some(0), signal: None, at: Timestamp::UNIX_EPOCH, cause: ExitCause::Workload });
        report.released = true;
    }
    for _ in 0..2 {
        let outcomes = world.service.reports(&host.session, &reports).await.unwrap();
        assert!(outcomes.iter().all(|outcome| *outcome == ReportOutcome::Taken), "{outcomes:?}");
        assert_eq!(reserved(&world, &host).await, Resources::default());
    }
}
