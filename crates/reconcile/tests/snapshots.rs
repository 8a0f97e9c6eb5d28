//! Snapshots as users and hosts see them, over the real service and reconciliation.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub, reason = "tests")]
#![allow(dead_code, reason = "the world is shared with other tests")]

mod world;

use std::time::Duration;

use flames_blob::{BlobKey, BlobStore, BlobStoreExt, PutOptions};
use flames_clock::Clock;
use flames_model::*;
use flames_service::*;
use world::*;

fn no_key() -> Mutation {
    Mutation::default()
}

async fn create(world: &World, vm: &str, name: Option<&str>) -> flames_error::Result<Snapshot> {
    create_of(world, vm, name, NewSnapshotKind::Full).await
}

async fn create_of(
    world: &World,
    vm: &str,
    name: Option<&str>,
    kind: NewSnapshotKind,
) -> flames_error::Result<Snapshot> {
    let name = name.map(|name| SnapshotName::new(name).unwrap());
    let new = NewSnapshot { name, kind };
    world.service.create_snapshot(&caller(), &VmRef::parse(vm).unwrap(), new, &no_key()).await
}

fn diff(base: Option<&str>) -> NewSnapshotKind {
    NewSnapshotKind::Diff { base: base.map(|base| SnapshotRef::parse(base).unwrap()) }
}

async fn delete(world: &World, snapshot: &str) -> flames_error::Result<()> {
    world.service.delete_snapshot(&caller(), &SnapshotRef::parse(snapshot).unwrap(), &no_key()).await
}

async fn get(world: &World, snapshot: &str) -> flames_error::Result<Snapshot> {
    world.service.get_snapshot(&caller(), &SnapshotRef::parse(snapshot).unwrap()).await
}

async fn restore(world: &World, snapshot: &str, name: &str) -> flames_error::Result<VmView> {
    let restore = RestoreSnapshot { name: Some(VmName::new(name).unwrap()), labels: None, network: None };
    world
        .service
        .restore_snapshot(&caller(), &SnapshotRef::parse(snapshot).unwrap(), restore, &no_key())
        .await
}

fn code<T>(answer: flames_error::Result<T>) -> &'static str {
    match answer {
        Ok(_) => "it was done",
        Err(error) => error.code().unwrap_or("no code"),
    }
}

async fn report(
    world: &World,
    host: &Host,
    of: &Snapshot,
    sequence: u64,
    progress: SnapshotProgress,
) -> SnapshotReportOutcome {
    let report = SnapshotReport {
        snapshot: of.id,
        project: of.project.clone(),
        incarnation: of.incarnation,
        token: of.token,
        sequence,
        progress,
    };
    world.service.report_snapshot(&host.session, &report).await.unwrap()
}

/// Stores a manifest with one piece. Answers both keys.
async fn stored(world: &World, of: &Snapshot, piece: &str) -> (String, String) {
    let digest = format!("{piece:0>64}");
    let file = SnapshotFile {
        role: SnapshotFileRole::State,
        length: 5,
        chunks: vec![SnapshotChunk { offset: 0, digest: digest.clone() }],
    };
    let manifest = SnapshotManifest {
        schema: SnapshotManifest::SCHEMA,
        snapshot: of.id,
        files: vec![file],
        agent: of.incarnation,
        agent_key: SecretString::new("00"),
    };
    let text = serde_json::to_vec(&manifest).unwrap();
    let manifest = SnapshotManifest::blob(&of.id.uuid().simple().to_string());
    let chunk = SnapshotManifest::chunk_blob(&digest);
    for (key, bytes) in [(&manifest, text), (&chunk, b"piece".to_vec())] {
        let key = BlobKey::new(key.clone()).unwrap();
        world.service.blobs().put_bytes(&key, bytes.into(), PutOptions::default()).await.unwrap();
    }
    (manifest, chunk)
}

/// Takes a snapshot to its end, as a host does.
async fn take(world: &World, host: &Host, of: &Snapshot, piece: &str) -> (String, String) {
    let (manifest, chunk) = stored(world, of, piece).await;
    let sizes = SnapshotSizes { logical_bytes: 5, stored_bytes: 5, chunks: 1, own_bytes: 5 };
    report(world, host, of, 1, SnapshotProgress::Taking).await;
    let named = SnapshotProgress::Named { manifest: manifest.clone(), sizes, base: of.base };
    assert_eq!(report(world, host, of, 2, named).await, SnapshotReportOutcome::Taken);
    let ready = SnapshotProgress::Ready { manifest: manifest.clone(), sizes };
    assert_eq!(report(world, host, of, 3, ready).await, SnapshotReportOutcome::Taken);
    (manifest, chunk)
}

async fn running(world: &World, host: &mut Host, name: &str) {
    world.create(name, |_| {}).await;
    world.settle().await;
    host.obey(world).await;
    world.settle().await;
    assert_eq!(world.state(name).await, VmState::Running);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_ordered_taken_restored_and_removed() {
    let world = World::new().await;
    let mut host = world.add_host(1, 8).await;
    running(&world, &mut host, "x").await;
    let snapshot = create(&world, "x", Some("s")).await.unwrap();
    assert_eq!(host.assignment(&world, "x").await.snapshot, Some(snapshot.id));
    assert_eq!(code(create(&world, "x", None).await), "SNAPSHOT_IN_PROGRESS");
    assert_eq!(code(restore(&world, "s", "y").await), "SNAPSHOT_NOT_READY");
    let (manifest, _) = take(&world, &host, &snapshot, "1").await;
    assert_eq!(host.assignment(&world, "x").await.snapshot, None);
    assert_eq!(get(&world, "s").await.unwrap().state, SnapshotState::Ready);
    assert_eq!(code(create(&world, "x", Some("s")).await), "SNAPSHOT_NAME_TAKEN");
    let copy = restore(&world, "s", "y").await.unwrap();
    assert_eq!(copy.vm.restored_from, Some(snapshot.id));
    assert_eq!(code(delete(&world, "s").await), "SNAPSHOT_IN_USE");
    assert_eq!(
        get(&world, "s").await.unwrap().state,
        SnapshotState::Ready,
        "a refused removal changes nothing"
    );
    world.settle().await;
    let order = host.assignment(&world, "y").await.restore.unwrap();
    assert_eq!((order.snapshot, order.manifest), (snapshot.id, manifest));
    let told = host.assignment(&world, "y").await;
    host.report(&world, &told, IncarnationState::Running, |report| {
        report.timeline.insert(IncarnationState::Running, world.clock.now());
    })
    .await;
    delete(&world, "s").await.unwrap();
    assert_eq!(code(get(&world, "s").await), "SNAPSHOT_NOT_FOUND");
    assert_eq!(code(restore(&world, "s", "z").await), "SNAPSHOT_NOT_FOUND");
    // It has run: from now on it boots.
    world.service.restart_vm(&caller(), &VmRef::parse("y").unwrap(), &no_key()).await.unwrap();
    for _ in 0..4 {
        world.settle().await;
        host.obey(&world).await;
    }
    world.settle().await;
    let again = host.assignment(&world, "y").await;
    assert_eq!((again.source, again.restore), (Source::Boot, None));
}

#[tokio::test(start_paused = true)]
async fn only_what_runs_or_is_paused_is_saved() {
    let world = World::new().await;
    assert_eq!(code(create(&world, "nobody", None).await), "VM_NOT_FOUND");
    world.create("x", |_| {}).await;
    assert_eq!(code(create(&world, "x", None).await), "VM_NOT_RUNNING");
    let mut host = world.add_host(1, 8).await;
    running(&world, &mut host, "y").await;
    world.service.stop_vm(&caller(), &VmRef::parse("y").unwrap(), &no_key()).await.unwrap();
    world.settle().await;
    host.obey(&world).await;
    world.settle().await;
    assert_eq!(code(create(&world, "y", None).await), "VM_NOT_RUNNING");
}

#[tokio::test(start_paused = true)]
async fn ready_is_refused_of_what_was_not_named() {
    let world = World::new().await;
    let mut host = world.add_host(1, 8).await;
    running(&world, &mut host, "x").await;
    let snapshot = create(&world, "x", None).await.unwrap();
    let (manifest, _) = stored(&world, &snapshot, "1").await;
    let ready = SnapshotProgress::Ready { manifest, sizes: SnapshotSizes::default() };
    assert_eq!(report(&world, &host, &snapshot, 1, ready).await, SnapshotReportOutcome::NotNamed);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_a_vm_that_is_deleted_fails_and_says_so() {
    let world = World::new().await;
    let mut host = world.add_host(1, 8).await;
    running(&world, &mut host, "x").await;
    let snapshot = create(&world, "x", Some("s")).await.unwrap();
    world.service.delete_vm(&caller(), &VmRef::parse("x").unwrap(), &no_key()).await.unwrap();
    for _ in 0..4 {
        world.settle().await;
        host.obey(&world).await;
    }
    world.settle().await;
    let failed = get(&world, "s").await.unwrap();
    assert_eq!(
        (failed.state, failed.reason.map(|reason| reason.code)),
        (SnapshotState::Failed, Some(ReasonCode::SnapshotFailed))
    );
    let late = report(&world, &host, &snapshot, 9, SnapshotProgress::Taking).await;
    assert_eq!(late, SnapshotReportOutcome::Over);
}

#[tokio::test(start_paused = true)]
async fn a_removal_withdraws_the_order() {
    let world = World::new().await;
    let mut host = world.add_host(1, 8).await;
    running(&world, &mut host, "x").await;
    let snapshot = create(&world, "x", Some("s")).await.unwrap();
    delete(&world, "s").await.unwrap();
    assert_eq!(host.assignment(&world, "x").await.snapshot, None);
    assert_eq!(
        report(&world, &host, &snapshot, 1, SnapshotProgress::Taking).await,
        SnapshotReportOutcome::Over
    );
    create(&world, "x", Some("s")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_no_host_can_load_waits_and_says_why() {
    let world = World::new().await;
    let mut host = world.add_host(1, 8).await;
    running(&world, &mut host, "x").await;
    let snapshot = create(&world, "x", Some("s")).await.unwrap();
    take(&world, &host, &snapshot, "1").await;
    // The host comes back with another version of its driver.
    let mut register = host.register.clone();
    register.driver.version = Some("2.0".to_owned());
    world.service.register_controller(register).await.unwrap();
    restore(&world, "s", "y").await.unwrap();
    // Placement looks at hosts as it saw them a moment ago; what it commits then conflicts, and is tried anew.
    world.clock.sleep(Duration::from_secs(10)).await;
    let view = world.view("y").await;
    assert_eq!(view.state, VmState::Pending);
    let reason = view.vm.unplaced.clone().unwrap();
    assert!(reason.message.contains("version"), "{reason:?}");
}

#[tokio::test(start_paused = true)]
async fn pieces_are_kept_while_a_snapshot_names_them_and_swept_afterwards() {
    let world = World::new().await;
    let mut host = world.add_host(1, 8).await;
    running(&world, &mut host, "x").await;
    let first = create(&world, "x", Some("a")).await.unwrap();
    let (manifest_a, shared) = take(&world, &host, &first, "1").await;
    let second = create(&world, "x", Some("b")).await.unwrap();
    let (manifest_b, _) = take(&world, &host, &second, "1").await;
    let there = async |key: &str| world.service.blobs().exists(&BlobKey::new(key).unwrap()).await.unwrap();
    let config = SweepConfig { grace: Duration::from_secs(5), takeover: Duration::from_secs(60) };
    let mut sweeper = ImageSweeper::new(world.service.clone(), config);
    let mut sweep = async || {
        for _ in 0..4 {
            sweeper.sweep().await.unwrap();
            world.clock.sleep(Duration::from_secs(30)).await;
        }
    };
    sweep().await;
    assert!(there(&manifest_a).await && there(&manifest_b).await && there(&shared).await);
    delete(&world, "a").await.unwrap();
    sweep().await;
    assert!(!there(&manifest_a).await && there(&manifest_b).await && there(&shared).await);
    delete(&world, "b").await.unwrap();
    sweep().await;
    assert!(!there(&manifest_b).await && !there(&shared).await);
}

#[tokio::test(start_paused = true)]
async fn a_difference_is_saved_from_the_newest_ready_snapshot_of_the_run_which_stays_until_it_is_ready() {
    let world = World::new().await;
    let mut host = world.add_host(1, 8).await;
    running(&world, &mut host, "x").await;
    assert_eq!(code(create_of(&world, "x", None, diff(None)).await), "SNAPSHOT_BASE_UNUSABLE");
    for (name, piece) in [("old", "a"), ("new", "b")] {
        let full = create(&world, "x", Some(name)).await.unwrap();
        assert_eq!((full.base, host.assignment(&world, "x").await.snapshot_base), (None, None));
        take(&world, &host, &full, piece).await;
        world.clock.advance(Duration::from_secs(1)).await;
    }
    let newest = get(&world, "new").await.unwrap();
    assert_eq!(code(create_of(&world, "x", None, diff(Some("old"))).await), "SNAPSHOT_BASE_UNUSABLE");
    assert_eq!(code(create_of(&world, "x", None, diff(Some("none"))).await), "SNAPSHOT_NOT_FOUND");
    let difference = create_of(&world, "x", Some("d"), diff(Some("new"))).await.unwrap();
    assert_eq!(difference.base, Some(newest.id));
    let ordered = SnapshotBase { snapshot: newest.id, manifest: newest.manifest.clone().unwrap() };
    assert_eq!(host.assignment(&world, "x").await.snapshot_base, Some(ordered));
    let refused = delete(&world, "new").await.unwrap_err();
    assert_eq!(refused.code(), Some("SNAPSHOT_IN_USE"));
    assert!(refused.user_message().unwrap().contains("`d`"), "{refused:?}");
    delete(&world, "old").await.unwrap();
    take(&world, &host, &difference, "d").await;
    assert_eq!(host.assignment(&world, "x").await.snapshot_base, None);
    assert_eq!(get(&world, "d").await.unwrap().base, Some(newest.id));
    // It names all that it consists of itself.
    delete(&world, "new").await.unwrap();
    assert_eq!(get(&world, "d").await.unwrap().state, SnapshotState::Ready);
    restore(&world, "d", "y").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_host_that_has_saved_all_in_place_of_a_difference_says_so_and_another_run_has_no_base() {
    let world = World::new().await;
    let mut host = world.add_host(1, 8).await;
    running(&world, &mut host, "x").await;
    let full = create(&world, "x", Some("s")).await.unwrap();
    take(&world, &host, &full, "1").await;
    let mut whole = create_of(&world, "x", Some("d"), diff(None)).await.unwrap();
    whole.base = None;
    take(&world, &host, &whole, "2").await;
    assert_eq!(get(&world, "d").await.unwrap().base, None);
    world.service.restart_vm(&caller(), &VmRef::parse("x").unwrap(), &no_key()).await.unwrap();
    for _ in 0..2 {
        world.settle().await;
        host.obey(&world).await;
    }
    assert_eq!(world.state("x").await, VmState::Running);
    assert_eq!(code(create_of(&world, "x", None, diff(None)).await), "SNAPSHOT_BASE_UNUSABLE");
}
