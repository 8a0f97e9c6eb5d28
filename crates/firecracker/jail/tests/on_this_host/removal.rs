//! Nothing is left.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use flames_firecracker_jail::{Hierarchies, State};

use crate::support::{API, Host, answers, found, inside, is_prepared, launch, name, remove, running, spec};

/// Everything that jails could leave on this host, wherever it is.
fn host_state(host: &Host) -> Vec<String> {
    let mut state = host.residue();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    state.extend(mounts.lines().filter(|line| line.contains("jail")).map(str::to_owned));
    for home in Hierarchies::probe().unwrap().homes() {
        let count = std::fs::read_dir(home.root()).unwrap().flatten().filter(|entry| {
            entry
                .file_name()
                .to_str()
                .is_some_and(|name| name == host.config.parent_group || name == "firecracker")
        });
        state.push(format!("{}: {}", home.root().display(), count.count()));
    }
    state
}

pub(crate) async fn rounds_of_jails_leave_the_host_as_it_was(host: &Host) {
    let before = host_state(host);
    for round in 0..30_u64 {
        let jails = host.open().await;
        let incarnation = format!("inc_{round}");
        let jail = jails.create(&name(&incarnation), spec()).await.unwrap();
        match round % 3 {
            // Never started; started and alive; started, and killed at some point of its start.
            0 => {}
            1 => {
                let vmm = jail.start(launch()).await.unwrap();
                answers(&jail, &vmm).await;
            }
            _ => {
                let vmm = jail.start(launch()).await.unwrap();
                tokio::time::sleep(Duration::from_micros(round * 150)).await;
                vmm.process.kill().unwrap();
            }
        }
        remove(&jails, &incarnation).await;
        assert_eq!(host_state(host), before, "round {round}");
    }
}

pub(crate) async fn a_removal_twice_or_of_nothing_is_no_error(host: &Host) {
    let jails = host.open().await;
    remove(&jails, "never_there").await;
    let (_, _vmm) = running(&jails, "inc_1").await;
    remove(&jails, "inc_1").await;
    remove(&jails, "inc_1").await;
    assert!(jails.find(&name("inc_1")).await.unwrap().is_none());
    assert_eq!(host.residue(), Vec::<String>::new());
}

pub(crate) async fn what_somebody_mounted_in_a_jail_is_unmounted_and_not_removed(host: &Host) {
    let precious = host.folder.path().join("precious");
    std::fs::create_dir(&precious).unwrap();
    std::fs::write(precious.join("file"), "still there").unwrap();
    let jails = host.open().await;
    let jail = jails.create(&name("inc_1"), spec()).await.unwrap();
    let point = jail.root().join("mounted_here");
    std::fs::create_dir(&point).unwrap();
    for _ in 0..2 {
        let done =
            std::process::Command::new("mount").arg("--bind").arg(&precious).arg(&point).status().unwrap();
        assert!(done.success());
    }
    jail.make_folder(&inside("mounted_here")).unwrap();
    assert_eq!(std::fs::metadata(&precious).unwrap().uid(), 0, "it was given to the VMM");
    remove(&jails, "inc_1").await;
    assert_eq!(std::fs::read_to_string(precious.join("file")).unwrap(), "still there");
    assert_eq!(host.residue(), Vec::<String>::new());
    // And of one that was half removed when its controller was killed.
    let old = host.config.cluster_folder().join(".old-inc_2");
    std::fs::create_dir(&old).unwrap();
    let done = std::process::Command::new("mount").arg("--bind").arg(&precious).arg(&old).status().unwrap();
    assert!(done.success());
    drop((jail, jails));
    let _jails = host.open().await;
    assert_eq!(std::fs::read_to_string(precious.join("file")).unwrap(), "still there");
    assert_eq!(host.residue(), Vec::<String>::new());
}

pub(crate) async fn a_group_without_a_folder_is_found_and_removed(host: &Host) {
    let jails = host.open().await;
    let (jail, vmm) = running(&jails, "inc_1").await;
    std::fs::remove_dir_all(jail.folder()).unwrap();
    drop((jail, jails));
    let jails = host.open().await;
    let all = jails.scan().await.unwrap();
    assert_eq!(all.len(), 1);
    assert!(all[0].name == name("inc_1") && all[0].jail.is_none());
    assert!(matches!(all[0].state, State::Damaged(_)));
    remove(&jails, "inc_1").await;
    assert!(!vmm.process.is_alive());
    assert_eq!(host.residue(), Vec::<String>::new());
}

pub(crate) async fn a_reset_jail_can_be_started_again(host: &Host) {
    let jails = host.open().await;
    let (jail, vmm) = running(&jails, "inc_1").await;
    jail.reset().await.unwrap();
    assert!(!vmm.process.is_alive());
    assert!(is_prepared(&found(&jails, "inc_1").await));
    let again = jail.start(launch()).await.unwrap();
    answers(&jail, &again).await;
    again.process.kill().unwrap();
    again.process.ended().await.unwrap();
    again.process.reap();
    assert!(matches!(found(&jails, "inc_1").await.state, State::Gone));
    assert!(jail.connect(&inside(API)).await.is_err());
    remove(&jails, "inc_1").await;
    assert_eq!(host.residue(), Vec::<String>::new());
}
