//! What the next driver makes of what an earlier one left, wherever that was killed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use flames_clock::SystemClock;
use flames_test_guests::{Victim, until_killed};
use flames_vmm::{ExitCause, Phase, StartFrom, StopHow, VmDriver};
use flames_vmm_qemu::{QemuConfig, QemuDriver};
use serde_json::{Value, json};

use crate::support::{Host, is_alive, name, phase, running, stat, talk, until};

/// Set for a process of this test binary that is a driver, to be killed.
pub(crate) const CHILD: &str = "FLAMES_QEMU_TEST_CHILD";

/// A driver over the folder that starts one incarnation and then does nothing.
pub(crate) fn child(folder: OsString) -> ! {
    until_killed(async {
        let config =
            QemuConfig { acceleration: flames_vmm_qemu::Acceleration::Tcg, ..QemuConfig::new(folder) };
        let driver = QemuDriver::new(config, Arc::new(SystemClock::new())).unwrap();
        driver.capabilities().await.unwrap();
        driver.prepare(&name("inc_child"), &Host::new().spec()).await.unwrap();
        println!("prepared");
        driver.start(&name("inc_child"), StartFrom::Boot, false).await.unwrap();
        println!("started");
    })
}

fn prepared_child(host: &Host) -> Victim {
    let mut child = Victim::spawn(CHILD, host.root());
    child.says("prepared");
    child
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn change(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut record = read(path);
    change(&mut record);
    std::fs::write(path, serde_json::to_vec(&record).unwrap()).unwrap();
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned()
}

fn start_ticks(pid: u32) -> u64 {
    stat(pid)[22 - 3].parse().unwrap()
}

fn process_record(pid: u32, start_ticks: u64, boot_id: &str) -> Vec<u8> {
    let monitor = json!({ "pid": pid, "start_ticks": start_ticks });
    let record =
        json!({ "schema": 1, "boot_id": boot_id, "leave_paused": false, "monitor": monitor, "helper": null });
    serde_json::to_vec(&record).unwrap()
}

pub(crate) async fn a_guest_outlives_a_driver_that_is_killed(host: &Host) {
    let incarnation = name("inc_child");
    let mut child = prepared_child(host);
    child.says("started");
    let pids = host.pids(&incarnation);
    child.kill();

    let driver = host.driver();
    let found = driver.adopt().await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].observation.phase, Phase::Running);
    assert_eq!(found[0].observation.pid, pids.first().copied());
    let mut stream = talk(&*driver, &incarnation).await;
    // The exit of a process that is nobody's child here is seen all the same, with the cause that QEMU announces.
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"reboot\n").await.unwrap();
    let exit = until(&*driver, &incarnation, Phase::Exited).await.exit.unwrap();
    assert_eq!((exit.cause, exit.code, exit.signal), (ExitCause::Guest, None, None));
    driver.destroy(&incarnation).await.unwrap();
    assert!(host.residue().is_empty());
}

pub(crate) async fn a_driver_killed_at_any_point_of_a_start_leaves_what_the_next_can_start(host: &Host) {
    let incarnation = name("inc_child");
    let mut phases = std::collections::BTreeMap::new();
    // A start takes about 100 ms; what is noted on disk is in its first tens.
    for delay_ms in [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 17, 20, 25, 30, 40, 60, 80, 120] {
        let child = prepared_child(host);
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        child.kill();

        let driver = host.driver();
        let found = driver.adopt().await.unwrap();
        assert_eq!(found.len(), 1);
        let phase = found[0].observation.phase;
        assert!(
            matches!(phase, Phase::Prepared | Phase::Starting | Phase::Running),
            "{phase:?} after {delay_ms} ms"
        );
        *phases.entry(format!("{phase:?}")).or_insert(0) += 1;
        driver.start(&incarnation, StartFrom::Boot, false).await.unwrap();
        assert_eq!(driver.observe(&incarnation).await.unwrap().phase, Phase::Running, "after {delay_ms} ms");
        assert_eq!(host.monitors(), 1, "after {delay_ms} ms");
        driver.destroy(&incarnation).await.unwrap();
        assert!(host.residue().is_empty(), "{:?} after {delay_ms} ms", host.residue());
    }
    println!("report: phases found after a kill during a start: {phases:?}");
}

pub(crate) async fn a_monitor_is_in_a_session_of_its_own_without_a_terminal(host: &Host) {
    let driver = host.driver();
    let incarnation = name("inc_session");
    running(&*driver, &incarnation, &host.spec()).await;
    let pid = driver.observe(&incarnation).await.unwrap().pid.unwrap();
    let fields = stat(pid);
    let (group, session, terminal) = (&fields[2], &fields[3], &fields[4]);
    assert_eq!(
        (group, session),
        (&pid.to_string(), &pid.to_string()),
        "no signal of our terminal reaches it"
    );
    assert_eq!(terminal, "0");
    for number in [0, 1, 2] {
        let open = std::fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap();
        let expected =
            if number == 2 { host.path(&incarnation, "monitor.errors") } else { PathBuf::from("/dev/null") };
        assert_eq!(open, expected);
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &host.path(&incarnation, ".").metadata().unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o700);
}

pub(crate) async fn what_was_noted_but_not_started_is_prepared(host: &Host) {
    let incarnation = name("inc_noted");
    host.driver().prepare(&incarnation, &host.spec()).await.unwrap();
    let mut record: Value = serde_json::from_slice(&process_record(1, 1, &boot_id())).unwrap();
    record["monitor"] = Value::Null;
    std::fs::write(host.path(&incarnation, "process.json"), serde_json::to_vec(&record).unwrap()).unwrap();
    let driver = host.driver();
    assert_eq!(driver.adopt().await.unwrap()[0].observation.phase, Phase::Prepared);
    driver.start(&incarnation, StartFrom::Boot, false).await.unwrap();
    assert_eq!(phase(&*driver, &incarnation).await, Phase::Running);
}

/// A monitor of which only the command line tells, as after a kill between its start and the note of its pid.
async fn never_noted(host: &Host) -> (flames_vmm::IncarnationName, u32) {
    let incarnation = name("inc_orphan");
    let driver = host.driver();
    driver.prepare(&incarnation, &host.spec()).await.unwrap();
    driver.start(&incarnation, StartFrom::Boot, true).await.unwrap();
    drop(driver);
    change(&host.path(&incarnation, "process.json"), |record| record["monitor"] = Value::Null);
    let pid = host.pids(&incarnation)[0];
    (incarnation, pid)
}

pub(crate) async fn a_monitor_that_was_never_noted_is_ended_and_its_guest_started_once(host: &Host) {
    let (incarnation, orphan) = never_noted(host).await;
    let driver = host.driver();
    assert_eq!(driver.adopt().await.unwrap()[0].observation.phase, Phase::Starting);
    assert!(is_alive(orphan), "adopting changes nothing");
    driver.start(&incarnation, StartFrom::Boot, false).await.unwrap();
    let observed = driver.observe(&incarnation).await.unwrap();
    assert_eq!(observed.phase, Phase::Running);
    assert_ne!(observed.pid, Some(orphan));
    assert!(!is_alive(orphan));
    assert_eq!(host.monitors(), 1);
    talk(&*driver, &incarnation).await;
}

pub(crate) async fn a_monitor_that_was_never_noted_is_destroyed(host: &Host) {
    let (incarnation, orphan) = never_noted(host).await;
    let driver = host.driver();
    driver.stop(&incarnation, StopHow::Kill).await.unwrap();
    assert!(!is_alive(orphan));
    assert_eq!(phase(&*driver, &incarnation).await, Phase::Prepared);
    driver.destroy(&incarnation).await.unwrap();
    assert!(host.residue().is_empty());

    let (incarnation, orphan) = never_noted(host).await;
    host.driver().destroy(&incarnation).await.unwrap();
    assert!(!is_alive(orphan));
    assert!(host.residue().is_empty());
}

pub(crate) async fn a_loaded_guest_that_was_not_let_go_is_let_go_by_the_next_start(host: &Host) {
    let incarnation = name("inc_loaded");
    let driver = host.driver();
    driver.prepare(&incarnation, &host.spec()).await.unwrap();
    driver.start(&incarnation, StartFrom::Boot, true).await.unwrap();
    drop(driver);
    // As after a kill between the note of the pid and the command that lets the guest go.
    change(&host.path(&incarnation, "process.json"), |record| record["leave_paused"] = Value::Bool(false));
    let pids = host.pids(&incarnation);
    let driver = host.driver();
    assert_eq!(driver.adopt().await.unwrap()[0].observation.phase, Phase::Starting);
    driver.start(&incarnation, StartFrom::Boot, false).await.unwrap();
    assert_eq!(phase(&*driver, &incarnation).await, Phase::Running);
    assert_eq!(host.pids(&incarnation), pids);
    talk(&*driver, &incarnation).await;
}

pub(crate) async fn a_pid_that_another_process_has_now_is_never_killed(host: &Host) {
    let mut stranger = Command::new("sleep").arg("600").spawn().unwrap();
    let ticks = start_ticks(stranger.id());
    // With the right start time only the command line tells; with a wrong one, that too.
    for (number, ticks) in [ticks, ticks - 1].into_iter().enumerate() {
        let incarnation = name(&format!("inc_reused_{number}"));
        host.driver().prepare(&incarnation, &host.spec()).await.unwrap();
        std::fs::write(
            host.path(&incarnation, "process.json"),
            process_record(stranger.id(), ticks, &boot_id()),
        )
        .unwrap();
        let driver = host.driver();
        let observed = driver.observe(&incarnation).await.unwrap();
        assert_eq!(observed.phase, Phase::Exited);
        assert_eq!(observed.exit.unwrap().cause, ExitCause::Unknown);
        assert_eq!(observed.pid, None);
        driver.stop(&incarnation, StopHow::Kill).await.unwrap();
        driver.destroy(&incarnation).await.unwrap();
        assert!(is_alive(stranger.id()), "it is not ours");
    }
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

pub(crate) async fn nothing_runs_after_the_hosts_reboot(host: &Host) {
    let incarnation = name("inc_rebooted");
    host.driver().prepare(&incarnation, &host.spec()).await.unwrap();
    let record = process_record(std::process::id(), start_ticks(std::process::id()), "another-boot");
    std::fs::write(host.path(&incarnation, "process.json"), record).unwrap();
    let driver = host.driver();
    let exit = driver.adopt().await.unwrap()[0].observation.exit.clone().unwrap();
    assert_eq!(exit.cause, ExitCause::Unknown);
    driver.destroy(&incarnation).await.unwrap();
}

pub(crate) async fn garbage_is_found_as_unknown_and_is_destroyed(host: &Host) {
    let driver = host.driver();
    let root = host.root();
    std::fs::write(root.join("inc_a_file"), "x").unwrap();
    std::fs::create_dir(root.join("inc_empty")).unwrap();
    std::fs::create_dir(root.join("inc_garbage")).unwrap();
    std::fs::write(root.join("inc_garbage/spec.json"), b"\xff\x00{").unwrap();
    std::fs::create_dir(root.join("inc_half")).unwrap();
    std::fs::write(root.join("inc_half/spec.json"), b"{\"schema\": 1").unwrap();
    std::fs::create_dir_all(root.join("inc_nested/spec.json")).unwrap();
    std::os::unix::fs::symlink("/nonexistent", root.join("inc_symlink")).unwrap();
    std::fs::write(root.join("Not An Incarnation"), "x").unwrap();

    let found = driver.adopt().await.unwrap();
    let names: Vec<&str> = found.iter().map(|found| found.incarnation.as_str()).collect();
    assert_eq!(names, ["inc_a_file", "inc_empty", "inc_garbage", "inc_half", "inc_nested", "inc_symlink"]);
    for found in found {
        assert_eq!(found.observation.phase, Phase::Unknown);
        let incarnation = found.incarnation;
        assert!(driver.start(&incarnation, StartFrom::Boot, false).await.is_err());
        assert!(driver.prepare(&incarnation, &host.spec()).await.is_err());
        driver.destroy(&incarnation).await.unwrap();
        assert!(driver.observe(&incarnation).await.is_err());
    }
    assert_eq!(host.residue(), [root.join("Not An Incarnation").display().to_string()]);
}

pub(crate) async fn a_monitor_with_damaged_records_is_unknown_and_is_destroyed(host: &Host) {
    for damaged in ["spec.json", "process.json", "exit.json"] {
        let incarnation = name("inc_damaged");
        let driver = host.driver();
        running(&*driver, &incarnation, &host.spec()).await;
        drop(driver);
        std::fs::write(host.path(&incarnation, damaged), "garbage").unwrap();
        let driver = host.driver();
        assert_eq!(driver.adopt().await.unwrap()[0].observation.phase, Phase::Unknown, "{damaged}");
        assert_eq!(host.monitors(), 1);
        driver.destroy(&incarnation).await.unwrap();
        assert!(host.residue().is_empty(), "{damaged}: {:?}", host.residue());
    }
}

pub(crate) async fn what_is_half_made_is_cleared_away(host: &Host) {
    let driver = host.driver();
    for leftover in [".new-inc_1-0", ".old-inc_2", ".try-kvm"] {
        std::fs::create_dir(host.root().join(leftover)).unwrap();
        std::fs::write(host.root().join(leftover).join("spec.json"), "{}").unwrap();
    }
    assert!(driver.adopt().await.unwrap().is_empty());
    assert!(host.residue().is_empty());
}
