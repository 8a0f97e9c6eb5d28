//! Guests that are saved, stored, and loaded again.

use std::time::Duration;

use flames_blob::{BlobKey, BlobStore, BlobStoreExt, PutOptions};
use flames_clock::ClockExt;
use flames_model::{
    Assignment, CpuFacts, DriverInfo, IncarnationId, IncarnationState, Labels, ReasonCode, RestoreOrder,
    Snapshot, SnapshotId, SnapshotName, SnapshotPlatform, SnapshotSizes, SnapshotState, Source, Wanted,
};
use flames_vmm::Phase;
use uuid::Uuid;

use crate::crashes::killed_everywhere;
use crate::world::{World, name};

fn incarnation(number: u128) -> IncarnationId {
    IncarnationId::from_uuid(Uuid::from_u128(number))
}

fn snapshot_id(number: u128) -> SnapshotId {
    SnapshotId::from_uuid(Uuid::from_u128(number))
}

/// Where the snapshots of this world can be loaded.
fn platform(world: &World) -> SnapshotPlatform {
    SnapshotPlatform::of(&world.api.registrations().last().unwrap().driver, None)
}

/// Asks for a snapshot of a guest, if that was not done yet.
fn order(world: &World, of: IncarnationId, number: u128) -> SnapshotId {
    order_from(world, of, number, None)
}

/// As [`order`], as a difference from a snapshot.
fn order_from(world: &World, of: IncarnationId, number: u128, base: Option<SnapshotId>) -> SnapshotId {
    let id = snapshot_id(number);
    if world.api.has_snapshot(id) {
        return id;
    }
    let assignment = world.api.assignment(of);
    let snapshot = Snapshot {
        id,
        project: assignment.project.clone(),
        name: SnapshotName::new(format!("s-{number}")).unwrap(),
        vm: assignment.vm,
        vm_name: assignment.name.clone(),
        incarnation: of,
        controller: assignment.controller,
        token: assignment.token,
        parent: None,
        base,
        labels: Labels::default(),
        spec: assignment.spec.clone(),
        image: assignment.image.clone(),
        kernel: None,
        platform: platform(world),
        state: SnapshotState::Pending,
        reason: None,
        sequence: 0,
        manifest: None,
        sizes: SnapshotSizes::default(),
        created_at: assignment_time(),
        finished_at: None,
    };
    world.api.order(of, snapshot);
    id
}

fn assignment_time() -> flames_model::Timestamp {
    flames_model::Timestamp::UNIX_EPOCH
}

async fn until_finished(world: &World, id: SnapshotId) -> Snapshot {
    let wait = async {
        loop {
            let now = world.api.snapshot(id);
            if !now.state.is_under_way() {
                return now;
            }
            world.clock.advance(Duration::from_millis(5)).await;
        }
    };
    match world.clock.timeout(Duration::from_secs(600), wait).await {
        Ok(now) => now,
        Err(_) => panic!("it does not come to its end: {:#?}", world.api.snapshot(id)),
    }
}

async fn saved(world: &World, of: IncarnationId, number: u128) -> Snapshot {
    world.until_state(of, IncarnationState::Running).await;
    let id = order(world, of, number);
    until_finished(world, id).await
}

async fn restoring(world: &World, number: u128, snapshot: &Snapshot) -> Assignment {
    let assignment = world.assignment(number, &["forever"]).await;
    let restore = RestoreOrder {
        snapshot: snapshot.id,
        manifest: snapshot.manifest.clone().unwrap(),
        platform: snapshot.platform.clone(),
    };
    Assignment { source: Source::Snapshot(snapshot.id.to_string()), restore: Some(restore), ..assignment }
}

async fn restore(world: &World, number: u128, snapshot: &Snapshot) -> IncarnationId {
    let assignment = restoring(world, number, snapshot).await;
    let id = assignment.incarnation;
    if !world.api.knows(id) {
        world.api.assign(assignment);
    }
    id
}

fn runs(world: &World, id: IncarnationId) -> bool {
    world.host.phases().get(&name(id)) == Some(&Phase::Running)
}

fn staged(world: &World) -> Vec<std::path::PathBuf> {
    let all = world.host.files();
    all.into_iter().filter(|path| path.starts_with("/snapshots/staging")).collect()
}

/// The keys of a snapshot's pieces.
async fn pieces(world: &World) -> Vec<BlobKey> {
    let page = world.blobs.list("snapshots/chunks/", None, 100).await.unwrap();
    page.blobs.into_iter().map(|blob| blob.key).collect()
}

#[tokio::test(start_paused = true)]
async fn a_guest_is_saved_runs_on_and_is_loaded_twice_each_time_as_another() {
    let world = World::new();
    let controller = world.start().await;
    let first = world.assign(1, &["forever"]).await;
    let snapshot = saved(&world, first, 1).await;
    assert_eq!(snapshot.state, SnapshotState::Ready, "{snapshot:#?}");
    assert!(snapshot.sizes.stored_bytes > 0 && snapshot.sizes.chunks == 3, "{:?}", snapshot.sizes);
    world.clock.advance(Duration::from_secs(1)).await;
    assert_eq!(world.inside(first).state().flushed, 1);
    assert!(runs(&world, first), "it stands still");
    assert_eq!(staged(&world), Vec::<std::path::PathBuf>::new());
    let copies = [restore(&world, 2, &snapshot).await, restore(&world, 3, &snapshot).await];
    let mut seeds = std::collections::BTreeSet::new();
    for (number, copy) in [2, 3].into_iter().zip(copies) {
        let now = world.until_state(copy, IncarnationState::Running).await;
        assert!(now.timeline.contains_key(&IncarnationState::Restoring), "{:?}", now.timeline);
        assert!(!now.timeline.contains_key(&IncarnationState::Starting), "{:?}", now.timeline);
        let inside = world.inside(copy);
        assert_eq!(inside.hostname(), format!("vm-{number}"));
        let (seed, machine_id) = inside.state().restored.unwrap();
        assert_eq!((seed.len(), machine_id.len()), (64, 32));
        assert!(seeds.insert(seed), "two guests have the same seed");
    }
    let ids = [first, copies[0], copies[1]];
    for id in ids {
        world.api.want(id, Wanted::Stopped);
        world.until_released(id).await;
    }
    world.purge_all(controller, &ids).await;
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_step_a_guest_is_saved_once_and_loaded_once() {
    let story = async |world: &World| {
        let (first, copy) = (incarnation(1), incarnation(2));
        if !world.api.knows(first) {
            world.assign(1, &["forever"]).await;
        }
        world.until(first, |now| now.timeline.contains_key(&IncarnationState::Running)).await;
        let id = order(world, first, 1);
        let snapshot = until_finished(world, id).await;
        assert_eq!(snapshot.state, SnapshotState::Ready, "{snapshot:#?}");
        restore(world, 2, &snapshot).await;
        world.until(copy, |now| now.timeline.contains_key(&IncarnationState::Running)).await;
        for id in [first, copy] {
            if world.api.wanted(id) != Wanted::Stopped {
                world.api.want(id, Wanted::Stopped);
            }
            world.until_released(id).await;
        }
        vec![first, copy]
    };
    killed_everywhere(
        story,
        |world, ended| {
            for one in ended {
                assert_eq!(one.state, IncarnationState::Stopped, "{one:#?}");
            }
            assert_eq!(world.inside(incarnation(2)).hostname(), "vm-2");
            assert_eq!(staged(world), Vec::<std::path::PathBuf>::new());
        },
        100,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_paused_guest_is_saved_as_it_is_and_stays_paused() {
    let world = World::new();
    let _controller = world.start().await;
    let id = world.assign(1, &["forever"]).await;
    world.until_state(id, IncarnationState::Running).await;
    world.api.want(id, Wanted::Paused);
    world.until_state(id, IncarnationState::Paused).await;
    let ordered = order(&world, id, 1);
    assert_eq!(until_finished(&world, ordered).await.state, SnapshotState::Ready);
    world.clock.advance(Duration::from_secs(2)).await;
    assert_eq!(world.api.incarnation(id).state, IncarnationState::Paused);
    assert_eq!(world.inside(id).state().flushed, 0);
    world.api.want(id, Wanted::Running);
    world.until_state(id, IncarnationState::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_a_cut_and_a_swapped_piece_each_fail_the_restore_with_a_reason() {
    let world = World::new();
    let _controller = world.start().await;
    let id = world.assign(1, &["forever"]).await;
    let snapshot = saved(&world, id, 1).await;
    let keys = pieces(&world).await;
    let whole = world.blobs.get_bytes(&keys[0], 1 << 20).await.unwrap();
    let other = world.blobs.get_bytes(&keys[1], 1 << 20).await.unwrap();
    let cut = whole.slice(..whole.len() / 2);
    for (number, content) in [(2, None), (3, Some(cut)), (4, Some(other))] {
        match content {
            None => world.blobs.delete(&keys[0]).await.unwrap(),
            Some(bytes) => drop(world.blobs.put_bytes(&keys[0], bytes, PutOptions::default()).await.unwrap()),
        }
        let copy = restore(&world, number, &snapshot).await;
        let ended = world.until_released(copy).await;
        let reason = ended.reason.unwrap();
        assert_eq!(
            (ended.state, reason.code),
            (IncarnationState::Failed, ReasonCode::SnapshotUnusable),
            "{reason:?}"
        );
        assert!(reason.message.contains("Take the snapshot again"), "{}", reason.message);
        assert_eq!(world.host.life(&name(copy)).starts, 0);
    }
    world.blobs.put_bytes(&keys[0], whole, PutOptions::default()).await.unwrap();
    let copy = restore(&world, 5, &snapshot).await;
    world.until_state(copy, IncarnationState::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_is_gone_or_another_fails_the_restore() {
    let world = World::new();
    let _controller = world.start().await;
    let id = world.assign(1, &["forever"]).await;
    let snapshot = saved(&world, id, 1).await;
    let key = BlobKey::new(snapshot.manifest.clone().unwrap()).unwrap();
    for (number, content) in [(2, None), (3, Some("{}")), (4, Some("no JSON"))] {
        match content {
            None => world.blobs.delete(&key).await.unwrap(),
            Some(text) => {
                drop(world.blobs.put_bytes(&key, text.into(), PutOptions::default()).await.unwrap())
            }
        }
        let copy = restore(&world, number, &snapshot).await;
        let ended = world.until_released(copy).await;
        assert_eq!(ended.reason.unwrap().code, ReasonCode::SnapshotUnusable);
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_another_platform_is_refused_before_anything_is_fetched() {
    let world = World::new();
    let _controller = world.start().await;
    let id = world.assign(1, &["forever"]).await;
    let snapshot = saved(&world, id, 1).await;
    let here = platform(&world);
    let others = [
        SnapshotPlatform { driver: "firecracker".to_owned(), ..here.clone() },
        SnapshotPlatform { version: Some("0.0".to_owned()), ..here.clone() },
        SnapshotPlatform { cpu: CpuFacts::default(), ..here.clone() },
        SnapshotPlatform { kernel: Some("another".to_owned()), ..here },
    ];
    for (number, platform) in (2..).zip(others) {
        let mut assignment = restoring(&world, number, &snapshot).await;
        if let Some(order) = &mut assignment.restore {
            order.platform = platform;
        }
        let copy = assignment.incarnation;
        world.api.assign(assignment);
        let ended = world.until_released(copy).await;
        assert_eq!(ended.reason.unwrap().code, ReasonCode::Incompatible);
    }
    assert!(world.host.files().iter().all(|path| !path.starts_with("/snapshots/cache")));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_ends_before_it_is_saved_fails_its_snapshot_and_leaves_nothing() {
    let world = World::new();
    let controller = world.start().await;
    let id = world.assign(1, &["forever"]).await;
    world.until_state(id, IncarnationState::Running).await;
    world.api.want(id, Wanted::Stopped);
    let ordered = order(&world, id, 1);
    let snapshot = until_finished(&world, ordered).await;
    let reason = snapshot.reason.unwrap();
    assert_eq!((snapshot.state, reason.code), (SnapshotState::Failed, ReasonCode::SnapshotFailed));
    assert_eq!(staged(&world), Vec::<std::path::PathBuf>::new());
    world.until_released(id).await;
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn an_order_that_is_withdrawn_at_any_moment_leaves_nothing_and_the_guest_runs() {
    for wait in [0, 1, 5, 20, 40, 60, 100, 500] {
        let world = World::new();
        let controller = world.start().await;
        let id = world.assign(1, &["forever"]).await;
        world.until_state(id, IncarnationState::Running).await;
        order(&world, id, 1);
        world.clock.advance(Duration::from_millis(wait)).await;
        world.api.withdraw(id);
        world.clock.advance(Duration::from_secs(5)).await;
        assert_eq!(staged(&world), Vec::<std::path::PathBuf>::new(), "after {wait} ms");
        assert!(runs(&world, id), "after {wait} ms");
        world.api.want(id, Wanted::Stopped);
        world.until_released(id).await;
        world.purge_all(controller, &[id]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_snapshot_follows_the_first_and_stores_only_what_is_new() {
    let world = World::new();
    let _controller = world.start().await;
    let id = world.assign(1, &["forever"]).await;
    let first = saved(&world, id, 1).await;
    let before = pieces(&world).await.len();
    let second = saved(&world, id, 2).await;
    assert_eq!((first.state, second.state), (SnapshotState::Ready, SnapshotState::Ready));
    // Disk and memory are as they were.
    assert!(pieces(&world).await.len() <= before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_difference_is_put_together_with_its_base_and_a_guest_is_loaded_from_it_without_that() {
    let world = World::new();
    let controller = world.start().await;
    let id = world.assign(1, &["forever"]).await;
    let full = saved(&world, id, 1).await;
    assert!(world.api.registrations()[0].driver.diff_snapshot);
    let before = pieces(&world).await;
    let difference = until_finished(&world, order_from(&world, id, 2, Some(full.id))).await;
    assert_eq!((difference.state, difference.base), (SnapshotState::Ready, Some(full.id)), "{difference:#?}");
    // Of its own it has what its driver wrote about its devices alone.
    let new: Vec<_> = pieces(&world).await.into_iter().filter(|piece| !before.contains(piece)).collect();
    assert_eq!((new.len(), difference.sizes.chunks), (1, 3));
    let own = world.blobs.head(&new[0]).await.unwrap().size;
    assert_eq!(difference.sizes.own_bytes, own);
    assert!(difference.sizes.stored_bytes > own);
    assert_eq!(full.sizes.own_bytes, full.sizes.stored_bytes);
    // A second one stands on the first.
    let second = until_finished(&world, order_from(&world, id, 3, Some(difference.id))).await;
    assert_eq!(second.base, Some(difference.id));
    for blob in [full.manifest, difference.manifest] {
        world.blobs.delete(&BlobKey::new(blob.unwrap()).unwrap()).await.unwrap();
    }
    let copy = restore(&world, 4, &world.api.snapshot(second.id)).await;
    world.until_state(copy, IncarnationState::Running).await;
    assert_eq!(staged(&world), Vec::<std::path::PathBuf>::new());
    world.purge_all(controller, &[id, copy]).await;
}

#[tokio::test(start_paused = true)]
async fn a_difference_from_what_the_driver_did_not_save_last_is_saved_whole_and_says_so() {
    let world = World::new();
    let controller = world.start().await;
    let id = world.assign(1, &["forever"]).await;
    let first = saved(&world, id, 1).await;
    saved(&world, id, 2).await;
    let whole = until_finished(&world, order_from(&world, id, 3, Some(first.id))).await;
    assert_eq!((whole.state, whole.base), (SnapshotState::Ready, None), "{whole:#?}");
    let copy = restore(&world, 4, &whole).await;
    world.until_state(copy, IncarnationState::Running).await;
    world.purge_all(controller, &[id, copy]).await;
}

#[tokio::test(start_paused = true)]
async fn a_difference_whose_base_is_damaged_fails_and_the_next_one_is_whole() {
    let world = World::new();
    let controller = world.start().await;
    let id = world.assign(1, &["forever"]).await;
    let full = saved(&world, id, 1).await;
    for piece in pieces(&world).await {
        world.blobs.delete(&piece).await.unwrap();
    }
    let failed = until_finished(&world, order_from(&world, id, 2, Some(full.id))).await;
    assert_eq!(failed.state, SnapshotState::Failed, "{failed:#?}");
    assert_eq!(failed.reason.unwrap().code, ReasonCode::SnapshotFailed);
    assert!(runs(&world, id));
    let next = until_finished(&world, order_from(&world, id, 3, Some(full.id))).await;
    assert_eq!((next.state, next.base), (SnapshotState::Ready, None), "{next:#?}");
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_step_a_difference_is_saved_once_and_a_guest_loaded_from_it() {
    let story = async |world: &World| {
        let (first, copy) = (incarnation(1), incarnation(2));
        if !world.api.knows(first) {
            world.assign(1, &["forever"]).await;
        }
        world.until(first, |now| now.timeline.contains_key(&IncarnationState::Running)).await;
        let full = until_finished(world, order(world, first, 1)).await;
        let snapshot = until_finished(world, order_from(world, first, 2, Some(full.id))).await;
        assert_eq!(snapshot.state, SnapshotState::Ready, "{snapshot:#?}");
        restore(world, 2, &snapshot).await;
        world.until(copy, |now| now.timeline.contains_key(&IncarnationState::Running)).await;
        vec![first, copy]
    };
    let check = |world: &World, _: &[flames_model::Incarnation]| {
        assert_eq!(world.inside(incarnation(2)).hostname(), "vm-2");
        let saved = world.api.snapshot(snapshot_id(2));
        assert!([None, Some(snapshot_id(1))].contains(&saved.base), "{saved:#?}");
    };
    killed_everywhere(story, check, 100).await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_control_plane_only_delays_a_snapshot() {
    let world = World::new();
    let _controller = world.start().await;
    let id = world.assign(1, &["forever"]).await;
    world.until_state(id, IncarnationState::Running).await;
    let ordered = order(&world, id, 1);
    world.clock.advance(Duration::from_millis(80)).await;
    world.api.set_down(true);
    world.clock.advance(Duration::from_secs(30)).await;
    assert!(runs(&world, id), "it stands still while nobody can be told");
    world.api.set_down(false);
    assert_eq!(until_finished(&world, ordered).await.state, SnapshotState::Ready);
}

/// What a host tells of itself.
#[tokio::test(start_paused = true)]
async fn a_host_tells_what_its_guests_see() {
    let world = World::new();
    let _controller = world.start().await;
    let id = world.assign(1, &["forever"]).await;
    world.until_state(id, IncarnationState::Running).await;
    let DriverInfo { snapshot, cpu, default_kernel, .. } = world.api.registrations()[0].driver.clone();
    assert!(snapshot && !cpu.vendor.is_empty(), "{cpu:?}");
    assert_eq!(default_kernel.as_deref(), Some("the host's"));
}
