//! Monitors that wait for their machines: each is one machine's, or is taken away.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use flames_error::ErrorKind;
use flames_test_guests::{process, until_killed};
use flames_vmm::{Phase, StopHow, VmDriver};
use flames_vmm_firecracker::{FirecrackerConfig, FirecrackerDriver, SlotRange};

use crate::bad_input::Mounted;
use crate::recovery::{config_of, prepared_victim};
use crate::support::{Host, PATIENCE, base, driver_of, name, phase, spec, talk, traces, until};

fn config(host: &Host) -> FirecrackerConfig {
    FirecrackerConfig { spare_monitors: 2, ..host.config() }
}

async fn waiting(driver: &FirecrackerDriver, count: usize) {
    let begun = Instant::now();
    while driver.waiting_spares() != count {
        assert!(begun.elapsed() < PATIENCE, "{} of {count} wait", driver.waiting_spares());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The monitors of this cluster that wait: they are told apart by whose jail their input is the lock of.
fn monitors(host: &Host) -> Vec<u32> {
    let jails = host.config().jail.cluster_folder();
    let mut found = Vec::new();
    for (pid, folder) in process::all() {
        if std::fs::read_link(folder.join("fd/0")).is_ok_and(|input| input.starts_with(&jails)) {
            found.push(pid);
        }
    }
    found
}

fn limit_of_files(pid: u32) -> String {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max file size")).unwrap().to_owned();
    line.split_ascii_whitespace().nth(3).unwrap().to_owned()
}

/// Of the group that the process is in, in version 2 or 1.
fn limit_of_memory(pid: u32) -> u64 {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let file = match controllers {
            "memory" => format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes"),
            "" => format!("/sys/fs/cgroup{path}/memory.max"),
            _ => return None,
        };
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    };
    groups.lines().find_map(of).expect("a limit of memory")
}

pub(crate) async fn a_machine_takes_a_monitor_that_waits_and_is_confined_as_any_other(host: &Host) {
    let driver = driver_of(config(host));
    assert!(driver.adopt().await.unwrap().is_empty(), "a spare is no incarnation");
    waiting(&driver, 2).await;
    let before = monitors(host);
    assert_eq!((before.len(), host.monitors()), (2, 2), "in groups of their own");
    let incarnation = name("inc_taken");
    driver.prepare(&incarnation, &spec()).await.unwrap();
    driver.prepare(&incarnation, &spec()).await.unwrap();
    assert_eq!(phase(&driver, &incarnation).await, Phase::Prepared);
    driver.start(&incarnation, base::plain(), false).await.unwrap();
    let pid = driver.observe(&incarnation).await.unwrap().pid.unwrap();
    assert!(before.contains(&pid), "{pid} of {before:?}");
    assert_ne!(limit_of_files(pid), "unlimited");
    assert!(limit_of_memory(pid) < 1 << 30, "the machine's limit, and not the spare's");
    driver.adopt().await.unwrap();
    assert!(process::is_alive(pid), "its groups bear a spare's name, which nobody takes for a spare");
    drop(talk(&driver, &incarnation).await);
    driver.pause(&incarnation).await.unwrap();
    driver.resume(&incarnation).await.unwrap();
    // Another is made in its place, and each of them is used once.
    waiting(&driver, 2).await;
    let mut seen = vec![pid];
    for number in 0..4 {
        let next = name(&format!("inc_next_{number}"));
        driver.prepare(&next, &spec()).await.unwrap();
        driver.start(&next, base::plain(), true).await.unwrap();
        let pid = driver.observe(&next).await.unwrap().pid.unwrap();
        assert!(!seen.contains(&pid));
        seen.push(pid);
        driver.destroy(&next).await.unwrap();
    }
    driver.stop(&incarnation, StopHow::Kill).await.unwrap();
    until(&driver, &incarnation, Phase::Exited).await;
    driver.destroy(&incarnation).await.unwrap();
    driver.close().await;
    assert!(host.residue().is_empty(), "{:?}", host.residue());
    assert!(monitors(host).is_empty());
}

pub(crate) async fn what_waits_is_removed_with_its_driver(host: &Host) {
    let driver = driver_of(config(host));
    driver.adopt().await.unwrap();
    waiting(&driver, 2).await;
    let pids = monitors(host);
    drop(driver);
    let begun = Instant::now();
    while !host.residue().is_empty() || !monitors(host).is_empty() {
        assert!(begun.elapsed() < PATIENCE, "{:?} of {pids:?}", host.residue());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Set for a process of this test program that is a driver with spares, to be killed: the driver's folder and cluster.
pub(crate) const VICTIM: &str = "FLAMES_FIRECRACKER_TEST_SPARES";

pub(crate) fn victim(what: &OsStr) -> ! {
    let (folder, cluster) = what.to_str().unwrap().rsplit_once(' ').unwrap();
    let config = FirecrackerConfig { spare_monitors: 2, ..config_of(folder, cluster) };
    until_killed(async {
        let driver = driver_of(config);
        driver.adopt().await.unwrap();
        waiting(&driver, 2).await;
        driver.prepare(&name("inc_victim"), &spec()).await.unwrap();
        waiting(&driver, 2).await;
        println!("prepared");
    })
}

pub(crate) async fn a_prepared_machine_keeps_its_monitor_over_the_death_of_its_driver(host: &Host) {
    prepared_victim(VICTIM, host).kill();
    let incarnation = name("inc_victim");
    let before = monitors(host);
    assert_eq!(before.len(), 3, "one that is the machine's, and two that wait");
    let driver = host.driver();
    let found = driver.adopt().await.unwrap();
    assert_eq!((found.len(), found[0].observation.phase), (1, Phase::Prepared));
    let pids = monitors(host);
    assert!(pids.len() == 1 && before.contains(&pids[0]), "what waited for nobody is gone: {pids:?}");
    driver.start(&incarnation, base::plain(), false).await.unwrap();
    assert_eq!(driver.observe(&incarnation).await.unwrap().pid, pids.first().copied());
    drop(talk(&*driver, &incarnation).await);
    driver.destroy(&incarnation).await.unwrap();
    assert!(host.residue().is_empty(), "{:?}", host.residue());
}

pub(crate) async fn a_spares_name_is_no_incarnations(host: &Host) {
    let driver = host.driver();
    let error = driver.prepare(&name("flames_spare_1"), &spec()).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("incarnation")));
    assert!(host.residue().is_empty());
}

pub(crate) async fn a_machine_that_no_spare_fits_gets_the_slot_of_one(host: &Host) {
    let mounted = Mounted::at(host.folder.path().join("elsewhere"));
    let mut config = config(host);
    config.spare_monitors = 3;
    config.jail.base = mounted.0.join("jails");
    config.jail.users = SlotRange { first_user: 3_400_000, count: 2 };
    let driver = driver_of(config.clone());
    driver.adopt().await.unwrap();
    waiting(&driver, 2).await;
    let begun = Instant::now();
    let problem = loop {
        if let Some(problem) = driver.spare_problem() {
            break problem;
        }
        assert!(begun.elapsed() < PATIENCE, "the third cannot be made, and nobody is told");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(problem.contains("2 microVMs"), "{problem}");
    // Their files would have to be mounted.
    let incarnations = [name("inc_one"), name("inc_two")];
    for incarnation in &incarnations {
        driver.prepare(incarnation, &spec()).await.unwrap();
        assert_eq!(phase(&driver, incarnation).await, Phase::Prepared);
    }
    let error = driver.prepare(&name("inc_three"), &spec()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error:?}");
    for incarnation in &incarnations {
        driver.destroy(incarnation).await.unwrap();
    }
    waiting(&driver, 2).await;
    driver.close().await;
    let left = traces::of(&config);
    assert!(left.is_empty(), "{left:?}");
}
