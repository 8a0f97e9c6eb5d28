//! The sweep of images' blobs: what is needed stays, what is not goes, and nothing can begin to need what goes.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub, reason = "tests")]
#![allow(dead_code, reason = "the world is shared with other tests")]

mod world;

use std::time::Duration;

use flames_blob::{BlobKey, BlobStoreExt, PutOptions};
use flames_clock::Clock;
use flames_error::ErrorKind;
use flames_model::*;
use flames_reconcile::ImageSweepConfig;
use flames_records::{Change, Condemned};
use flames_service::*;
use world::{World, caller};

const CONFIG: SweepConfig =
    SweepConfig { grace: Duration::from_secs(60), takeover: Duration::from_secs(600) };

fn manifest(content: &str) -> ImageManifest {
    ImageManifest {
        kind: ImageKind::Rootfs,
        blob: format!("images/rootfs/{content}"),
        digest: content.to_owned(),
        size_bytes: 1,
        defaults: ImageDefaults::default(),
    }
}

async fn store(world: &World, content: &str) {
    let key = BlobKey::new(manifest(content).blob).unwrap();
    world.service.blobs().put_bytes(&key, "bytes".into(), PutOptions::default()).await.unwrap();
}

async fn import(world: &World, name: &str, content: &str) {
    store(world, content).await;
    let name = ImageName::new(name).unwrap();
    world.service.name_image(&caller(), &name, manifest(content), &Mutation::default()).await.unwrap();
}

async fn there(world: &World) -> Vec<String> {
    let blobs = world.service.blobs().list("", None, 100).await.unwrap().blobs;
    let name = |key: &BlobKey| key.as_str().rsplit('/').next().unwrap().to_owned();
    blobs.iter().filter(|blob| !blob.key.as_str().starts_with("image/")).map(|blob| name(&blob.key)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_blob_stays_as_long_as_an_image_or_an_incarnation_that_lives_names_it() {
    let world = World::new().await;
    let mut sweeper = ImageSweeper::new(world.service.clone(), CONFIG);
    let mut host = world.add_host(1, 4).await;
    import(&world, "app", "first").await;
    world.create("vm", |spec| spec.image = ImageName::new("app").unwrap()).await;
    world.settle().await;
    import(&world, "app", "second").await;
    world.clock.sleep(Duration::from_secs(120)).await;
    assert_eq!(sweeper.sweep().await.unwrap(), Swept::default());
    assert_eq!(there(&world).await, ["first", "second"], "the VM is made from the first");

    world.service.delete_vm(&caller(), &VmRef::parse("vm").unwrap(), &Mutation::default()).await.unwrap();
    for _ in 0..3 {
        world.settle().await;
        host.obey(&world).await;
    }
    world.settle().await;
    assert_eq!(sweeper.sweep().await.unwrap(), Swept { removed: 1, bytes: 5 });
    assert_eq!(there(&world).await, ["second"]);
    let app = ImageName::new("app").unwrap();
    world.service.remove_image(&caller(), &app, &Mutation::default()).await.unwrap();
    sweeper.sweep().await.unwrap();
    assert!(there(&world).await.is_empty());
    assert!(world.records.all_condemned(None, 10).await.unwrap().items.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_is_young_is_left_to_its_import_and_what_is_no_image_alone() {
    let world = World::new().await;
    let mut sweeper = ImageSweeper::new(world.service.clone(), CONFIG);
    let other = BlobKey::new("vaults/other").unwrap();
    world.service.blobs().put_bytes(&other, "bytes".into(), PutOptions::default()).await.unwrap();
    world.clock.sleep(Duration::from_secs(120)).await;
    store(&world, "young").await;
    sweeper.sweep().await.unwrap();
    assert_eq!(there(&world).await, ["young", "other"]);
    world.clock.sleep(Duration::from_secs(61)).await;
    sweeper.sweep().await.unwrap();
    assert_eq!(there(&world).await, ["other"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_can_begin_to_name_a_blob_that_is_condemned_or_was_since_it_was_seen() {
    let world = World::new().await;
    store(&world, "doomed").await;
    let blob = manifest("doomed").blob;
    let seen = world.records.condemnations().await.unwrap();
    let condemned = Condemned { blob: blob.clone(), by: 1, at: world.clock.now() };
    let mut change = Change::new();
    change.condemn_blob(&condemned);
    world.records.apply(change).await.unwrap();
    let name = ImageName::new("app").unwrap();
    let naming =
        async || world.service.name_image(&caller(), &name, manifest("doomed"), &Mutation::default()).await;
    let refused = naming().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.user_message().unwrap().contains("Try again"));

    let stored = world.records.condemned(&blob).await.unwrap().unwrap();
    let mut change = Change::new();
    change.pardon_blob(&stored);
    world.records.apply(change).await.unwrap();
    let mut late = Change::new();
    late.keep_blob(&blob, seen);
    late.insert_image(&Image {
        project: caller().project,
        name: name.clone(),
        manifest: manifest("doomed"),
        removing: false,
        created_at: world.clock.now(),
    });
    assert_eq!(world.records.apply(late).await.unwrap_err().kind(), ErrorKind::Conflict);
    naming().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_sweeper_that_is_gone_began_another_finishes_but_not_before_its_time() {
    let world = World::new().await;
    let mut sweeper = ImageSweeper::new(world.service.clone(), CONFIG);
    import(&world, "app", "kept").await;
    store(&world, "doomed").await;
    for content in ["kept", "doomed", "gone-already"] {
        let mut change = Change::new();
        change.condemn_blob(&Condemned { blob: manifest(content).blob, by: 1, at: world.clock.now() });
        world.records.apply(change).await.unwrap();
    }
    world.clock.sleep(Duration::from_secs(120)).await;
    sweeper.sweep().await.unwrap();
    assert_eq!(there(&world).await, ["doomed", "kept"], "it is the other's");
    world.clock.sleep(Duration::from_secs(601)).await;
    sweeper.sweep().await.unwrap();
    assert_eq!(there(&world).await, ["kept"]);
    assert!(world.records.all_condemned(None, 10).await.unwrap().items.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_removal_of_an_image_has_its_blob_swept_at_once_when_it_is_old() {
    let mut world = World::new().await;
    let config = ImageSweepConfig { every: Duration::from_secs(24 * 3_600), sweep: CONFIG };
    world.reconciler.as_mut().unwrap().sweep_images(world.service.clone(), config);
    import(&world, "app", "old").await;
    world.clock.sleep(Duration::from_secs(3_600)).await;
    assert_eq!(there(&world).await, ["old"]);
    let app = ImageName::new("app").unwrap();
    world.service.remove_image(&caller(), &app, &Mutation::default()).await.unwrap();
    world.clock.sleep(Duration::from_secs(5)).await;
    assert!(there(&world).await.is_empty());
}
