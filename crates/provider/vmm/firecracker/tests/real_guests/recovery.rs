//! What the next driver makes of what an earlier one left, wherever that was killed.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use flames_test_guests::{Victim, until_killed};
use flames_vmm::{ExitCause, IncarnationName, Phase, StartFrom, VmDriver};
use flames_vmm_firecracker::FirecrackerConfig;

use crate::support::{Host, base, driver_of, name, phase, running, spec, talk, until};

/// Set for a process of this test program that is a driver, to be killed: the driver's folder and cluster.
pub(crate) const VICTIM: &str = "FLAMES_FIRECRACKER_TEST_VICTIM";

/// A driver over the host of another process that starts one incarnation and then does nothing.
pub(crate) fn victim(what: &OsStr) -> ! {
    let (folder, cluster) = what.to_str().unwrap().rsplit_once(' ').unwrap();
    until_killed(async {
        let driver = driver_of(config_of(folder, cluster));
        driver.capabilities().await.unwrap();
        let from = base::plain();
        driver.prepare(&name("inc_victim"), &spec()).await.unwrap();
        println!("prepared");
        driver.start(&name("inc_victim"), from, false).await.unwrap();
        println!("started");
    })
}

/// As [`Host::config`], for another process.
pub(crate) fn config_of(folder: &str, cluster: &str) -> FirecrackerConfig {
    let other = Host::new();
    let own = FirecrackerConfig::new(Path::new(folder), cluster);
    let mut config = other.config();
    config.folder = own.folder;
    config.jail.cluster = own.jail.cluster;
    config
}

/// A process of this program over the host, once it has prepared its incarnation. `kind`: what it is.
pub(crate) fn prepared_victim(kind: &str, host: &Host) -> Victim {
    let mut victim = Victim::spawn(kind, format!("{} {}", host.folder.path().display(), host.cluster));
    victim.says("prepared");
    victim
}

pub(crate) async fn a_guest_outlives_a_driver_that_is_killed(host: &Host) {
    let mut victim = prepared_victim(VICTIM, host);
    victim.says("started");
    victim.kill();
    let incarnation = name("inc_victim");
    let pids = host.pids(&incarnation);
    assert_eq!(pids.len(), 1);
    let driver = host.driver();
    let found = driver.adopt().await.unwrap();
    assert_eq!((found.len(), found[0].observation.phase), (1, Phase::Running));
    assert_eq!(found[0].observation.pid, pids.first().copied());
    let mut stream = talk(&*driver, &incarnation).await;
    // The exit of a process that is nobody's child here is seen all the same, with the code that its log tells.
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"reboot\n").await.unwrap();
    let exit = until(&*driver, &incarnation, Phase::Exited).await.exit.unwrap();
    assert_eq!((exit.cause, exit.signal), (ExitCause::Guest, None), "{exit:?}");
    // None when it had to be ended on its way out.
    assert!(matches!(exit.code, Some(0) | None), "{exit:?}");
    driver.destroy(&incarnation).await.unwrap();
    assert!(host.residue().is_empty());
}

pub(crate) async fn a_driver_killed_at_any_point_of_a_start_leaves_what_the_next_can_start(host: &Host) {
    let incarnation = name("inc_victim");
    let mut phases = std::collections::BTreeMap::new();
    for delay_ms in [0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 30, 40, 60] {
        let victim = prepared_victim(VICTIM, host);
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        victim.kill();

        let driver = host.driver();
        let found = driver.adopt().await.unwrap();
        assert_eq!(found.len(), 1);
        let phase = found[0].observation.phase;
        *phases.entry(format!("{phase:?}")).or_insert(0) += 1;
        match phase {
            Phase::Prepared | Phase::Starting | Phase::Running => {
                driver.start(&incarnation, base::plain(), false).await.unwrap();
            }
            // Between the note that it may run and the word that lets it.
            Phase::Paused => driver.resume(&incarnation).await.unwrap(),
            phase => panic!("{phase:?} after {delay_ms} ms"),
        }
        assert_eq!(driver.observe(&incarnation).await.unwrap().phase, Phase::Running, "after {delay_ms} ms");
        assert_eq!(host.monitors(), 1, "after {delay_ms} ms");
        driver.destroy(&incarnation).await.unwrap();
        assert!(host.residue().is_empty(), "{:?} after {delay_ms} ms", host.residue());
    }
    println!("report: phases found after a kill during a start: {phases:?}");
}

pub(crate) async fn a_loaded_guest_that_was_not_let_go_is_started_anew(host: &Host) {
    let incarnation = name("inc_loaded");
    let driver = host.driver();
    driver.prepare(&incarnation, &spec()).await.unwrap();
    driver.start(&incarnation, base::plain(), true).await.unwrap();
    assert_eq!(phase(&*driver, &incarnation).await, Phase::Paused);
    drop(driver);
    // As after a kill between the load and the note that the guest may run.
    std::fs::remove_file(host.path(&incarnation, "let-go")).unwrap();
    let pids = host.pids(&incarnation);
    let driver = host.driver();
    assert_eq!(driver.adopt().await.unwrap()[0].observation.phase, Phase::Starting);
    assert_eq!(host.pids(&incarnation), pids, "adopting changes nothing");
    driver.start(&incarnation, base::plain(), false).await.unwrap();
    assert_eq!(phase(&*driver, &incarnation).await, Phase::Running);
    assert_ne!(host.pids(&incarnation), pids);
    assert_eq!(host.monitors(), 1);
    talk(&*driver, &incarnation).await;
}

pub(crate) async fn a_monitor_with_damaged_records_is_unknown_and_is_destroyed(host: &Host) {
    let jail = |incarnation: &IncarnationName| host.config().jail.cluster_folder().join(incarnation.as_str());
    for damaged in ["spec.json", "exit.json", "jail.json", "process.json", "no folder"] {
        let incarnation = name("inc_damaged");
        let driver = host.driver();
        running(&*driver, &incarnation).await;
        drop(driver);
        match damaged {
            "no folder" => std::fs::remove_dir_all(host.config().folder.join(incarnation.as_str())).unwrap(),
            "jail.json" | "process.json" => {
                std::fs::write(jail(&incarnation).join(damaged), "garbage").unwrap();
            }
            _ => std::fs::write(host.path(&incarnation, damaged), "garbage").unwrap(),
        }
        let driver = host.driver();
        let found = driver.adopt().await.unwrap();
        assert_eq!(found[0].observation.phase, Phase::Unknown, "{damaged}");
        assert_eq!(host.monitors(), 1);
        assert!(driver.start(&incarnation, StartFrom::Boot, false).await.is_err(), "{damaged}");
        driver.destroy(&incarnation).await.unwrap();
        assert!(host.residue().is_empty(), "{damaged}: {:?}", host.residue());
    }
}

pub(crate) async fn what_is_half_made_is_cleared_away(host: &Host) {
    let driver = host.driver();
    driver.adopt().await.unwrap();
    let root = host.config().folder;
    for leftover in [".new-inc_1-0", ".old-inc_2"] {
        std::fs::create_dir(root.join(leftover)).unwrap();
        std::fs::write(root.join(leftover).join("spec.json"), "{}").unwrap();
    }
    assert!(driver.adopt().await.unwrap().is_empty());
    assert!(host.residue().is_empty());
    // A record without the rest: the next `prepare` of the same makes it, and `destroy` takes it away.
    for finish in [true, false] {
        let incarnation = name("inc_half");
        driver.prepare(&incarnation, &spec()).await.unwrap();
        std::fs::remove_dir_all(host.config().jail.cluster_folder().join("inc_half")).unwrap();
        assert_eq!(driver.adopt().await.unwrap()[0].observation.phase, Phase::Unknown);
        if finish {
            driver.prepare(&incarnation, &spec()).await.unwrap();
            driver.start(&incarnation, base::plain(), false).await.unwrap();
            talk(&*driver, &incarnation).await;
        }
        driver.destroy(&incarnation).await.unwrap();
        assert!(host.residue().is_empty());
    }
}
