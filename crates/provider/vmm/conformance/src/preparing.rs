//! Making ready.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use flames_error::ErrorKind;
use flames_vmm::{Drive, MachineSpec, NetworkSpec, Phase, PortForward, SecretBytes, Usability};

use crate::Fixture;
use crate::lab::{Lab, fresh_name, refused, same};

pub(crate) async fn the_capabilities_do_not_change(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let told = lab.driver().capabilities().await.unwrap();
    assert_eq!(told.usability, Usability::Usable, "the suite runs only where the driver works");
    assert!(told.max_vcpus >= 1 && !told.acceleration.is_empty());
    let name = lab.running().await;
    same(&told, &lab.driver().capabilities().await.unwrap());
    lab.destroy(&name).await;
    fixture.reopen().await;
    same(&told, &lab.driver().capabilities().await.unwrap());
}

pub(crate) async fn preparing_runs_nothing(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.prepared().await;
    lab.is(&name, Phase::Prepared).await;
    assert_eq!(lab.observe(&name).await.pid, None);
    assert_eq!(fixture.monitors().await, 0);
}

pub(crate) async fn preparing_twice_changes_nothing(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let spec = fixture.spec().await;
    let name = fresh_name();
    let first = lab.call("prepare", lab.driver().prepare(&name, &spec)).await.unwrap();
    let residue = fixture.residue().await;
    let again = lab.call("prepare", lab.driver().prepare(&name, &spec)).await.unwrap();
    same(&first, &again);
    same(&residue, &fixture.residue().await);
    lab.start(&name).await;
    let before = lab.observe(&name).await;
    same(&first, &lab.call("prepare", lab.driver().prepare(&name, &spec)).await.unwrap());
    same(&before, &lab.observe(&name).await);
}

pub(crate) async fn preparing_with_another_spec_is_a_conflict(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.prepared().await;
    let spec = fixture.spec().await;
    let mut larger = spec.clone();
    larger.memory_mib += 16;
    let mut told_otherwise = spec.clone();
    told_otherwise.guest_config = SecretBytes(b"another configuration".to_vec());
    for other in [larger, told_otherwise] {
        refused(lab.call("prepare", lab.driver().prepare(&name, &other)).await, ErrorKind::Conflict);
    }
    lab.prepare(&name, &spec).await;
    lab.start(&name).await;
}

pub(crate) async fn a_failed_prepare_leaves_nothing(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let spec = fixture.spec().await;
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent");
    let with = |change: &dyn Fn(&mut MachineSpec)| {
        let mut spec = spec.clone();
        change(&mut spec);
        spec
    };
    let drive = |path: &PathBuf| Drive { name: "absent".to_owned(), path: path.clone(), read_only: true };
    let impossible = [
        (with(&|spec| spec.vcpus = 0), ErrorKind::InvalidInput),
        (with(&|spec| spec.memory_mib = 1), ErrorKind::InvalidInput),
        (with(&|spec| spec.boot.kernel.clone_from(&absent)), ErrorKind::NotFound),
        (with(&|spec| spec.boot.initramfs = Some(absent.clone())), ErrorKind::NotFound),
        (with(&|spec| spec.drives.push(drive(&absent))), ErrorKind::NotFound),
    ];
    for (spec, kind) in impossible {
        let name = fresh_name();
        refused(lab.call("prepare", lab.driver().prepare(&name, &spec)).await, kind);
        lab.is_not_there(&name).await;
        assert!(lab.adopt().await.is_empty());
        lab.nothing_is_left().await;
    }
}

pub(crate) async fn a_kernel_that_is_none_is_refused(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let folder = tempfile::tempdir().unwrap();
    let mut spec = fixture.spec().await;
    spec.boot.kernel = folder.path().join("kernel");
    for content in ["".to_owned(), "this is no kernel\n".repeat(1_000)] {
        std::fs::write(&spec.boot.kernel, content).unwrap();
        let name = fresh_name();
        refused(lab.call("prepare", lab.driver().prepare(&name, &spec)).await, ErrorKind::InvalidInput);
        lab.is_not_there(&name).await;
        lab.nothing_is_left().await;
    }
}

pub(crate) async fn a_prepare_given_up_can_be_repeated(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let spec = fixture.spec().await;
    for millis in [0, 1, 5] {
        let name = fresh_name();
        let given_up =
            tokio::time::timeout(Duration::from_millis(millis), lab.driver().prepare(&name, &spec)).await;
        drop(given_up);
        if millis == 1 {
            // The process that gave up is gone, too. What it left half made may be found as anything that does not run.
            fixture.reopen().await;
            assert!(
                lab.adopt()
                    .await
                    .values()
                    .all(|found| matches!(found.phase, Phase::Prepared | Phase::Unknown))
            );
        }
        lab.prepare(&name, &spec).await;
        lab.is(&name, Phase::Prepared).await;
        lab.start(&name).await;
        lab.is(&name, Phase::Running).await;
        lab.destroy(&name).await;
        lab.nothing_is_left().await;
    }
}

pub(crate) async fn a_forwarded_port_is_chosen_once_and_kept(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let mut spec = fixture.spec().await;
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let forward = |guest_port| PortForward { listen: any, guest_port };
    spec.network = NetworkSpec::User { forwards: vec![forward(80), forward(443)], isolated: true };
    let name = fresh_name();
    let prepared = lab.call("prepare", lab.driver().prepare(&name, &spec)).await.unwrap();
    let (http, https) = (prepared.forwards[&80], prepared.forwards[&443]);
    assert!(http.port() != 0 && https.port() != 0 && http != https);
    same(&prepared, &lab.call("prepare", lab.driver().prepare(&name, &spec)).await.unwrap());
    lab.start(&name).await;
    same(&prepared, &lab.observe(&name).await.prepared);
    fixture.reopen().await;
    same(&prepared, &lab.adopt().await[&name].prepared);
}
