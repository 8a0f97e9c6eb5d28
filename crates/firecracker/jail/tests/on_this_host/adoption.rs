//! What the next controller makes of what an earlier one left, wherever that was killed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use flames_clock::SystemClock;
use flames_error::ErrorKind;
use flames_firecracker_jail::{Artefact, JailConfig, JailSpec, Jails, SlotRange, State};
use flames_host::process::Process;
use serde_json::{Value, json};

use crate::support::{CHILD, Host, answers, found, inside, is_prepared, launch, name, remove, running, spec};

/// A controller that makes and starts one jail and then does nothing.
pub(crate) fn child(settings: OsString) -> ! {
    let settings: Value = serde_json::from_slice(settings.as_encoded_bytes()).unwrap();
    let text = |key: &str| settings[key].as_str().unwrap().to_owned();
    let config = JailConfig {
        firecracker: text("firecracker").into(),
        jailer: text("jailer").into(),
        users: SlotRange {
            first_user: u32::try_from(settings["user"].as_u64().unwrap()).unwrap(),
            count: 32,
        },
        parent_group: text("group"),
        ..JailConfig::new(text("base"), "clu")
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let jails = Jails::open(config, Arc::new(SystemClock::new())).await.unwrap();
        println!("open");
        let jail = jails.create(&name("inc_child"), spec()).await.unwrap();
        let vmm = jail.start(launch()).await.unwrap();
        answers(&jail, &vmm).await;
        println!("started");
        std::future::pending::<()>().await;
    });
    unreachable!()
}

/// With what it says, which is read to the end of neither.
struct Controller(std::process::Child, std::io::BufReader<std::process::ChildStdout>);

impl Drop for Controller {
    /// As `kill -9`.
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Controller {
    fn new(host: &Host, hears: &str) -> Self {
        use std::io::{BufRead, Read};
        let config = &host.config;
        let settings = json!({
            "firecracker": config.firecracker, "jailer": config.jailer, "user": config.users.first_user,
            "group": config.parent_group, "base": config.base,
        });
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(CHILD, settings.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut controller = Self(child, said);
        let is_heard = controller.1.by_ref().lines().any(|line| line.unwrap() == hears);
        assert!(is_heard, "it came as far as {hears}");
        controller
    }
}

fn record(host: &Host, incarnation: &str) -> PathBuf {
    host.config.cluster_folder().join(incarnation).join("process.json")
}

fn change(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut record: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut record);
    std::fs::write(path, record.to_string()).unwrap();
}

pub(crate) async fn a_vmm_is_found_by_the_next_controller(host: &Host) {
    drop(Controller::new(host, "started"));
    let jails = host.open().await;
    let all = jails.scan().await.unwrap();
    assert_eq!(all.len(), 1);
    let found = found(&jails, "inc_child").await;
    let State::Started(process) = found.state else { panic!("{:?}", found.state) };
    assert!(process.is_alive());
    let jail = found.jail.unwrap();
    let vmm = jail.attach(process).unwrap();
    answers(&jail, &vmm).await;
    let other = jails.reserve(&name("another")).await.unwrap();
    assert_ne!(other.user, jail.slot().user, "its slot was adopted too");
    assert_eq!(jail.start(launch()).await.unwrap_err().kind(), ErrorKind::Conflict);
    remove(&jails, "inc_child").await;
    assert!(!vmm.process.is_alive());
    remove(&jails, "another").await;
    assert_eq!(host.residue(), Vec::<String>::new());
}

pub(crate) async fn a_controller_killed_at_any_point_of_a_start_leaves_what_the_next_can_start(host: &Host) {
    let mut seen = std::collections::BTreeMap::new();
    for round in 0..40_u64 {
        let controller = Controller::new(host, "open");
        tokio::time::sleep(Duration::from_micros(round * 400)).await;
        drop(controller);
        let jails = host.open().await;
        let state = match jails.find(&name("inc_child")).await.unwrap() {
            None => "nothing",
            Some(found) => match found.state {
                State::Prepared => "prepared",
                State::Unfinished(_) => "unfinished",
                State::Started(_) => "started",
                State::Waiting(_) | State::Gone | State::Damaged(_) => {
                    panic!("round {round}: {:?}", found.state)
                }
            },
        };
        *seen.entry(state).or_insert(0) += 1;
        if state != "started" {
            let (jail, vmm) = running(&jails, "inc_child").await;
            assert!(vmm.process.is_alive());
            let of_user = flames_host::process::processes_of(jail.slot().user).unwrap();
            assert_eq!(of_user.len(), 1, "round {round}: one VMM of one incarnation");
        }
        remove(&jails, "inc_child").await;
        assert_eq!(host.residue(), Vec::<String>::new(), "round {round}");
    }
    println!("a killed controller left: {seen:?}");
}

pub(crate) async fn a_process_that_was_never_noted_is_ended_by_the_next_start(host: &Host) {
    let jails = host.open().await;
    let (jail, vmm) = running(&jails, "inc_1").await;
    change(&record(host, "inc_1"), |record| record["process"] = Value::Null);
    let State::Unfinished(processes) = found(&jails, "inc_1").await.state else { panic!("it is found") };
    assert_eq!(processes[0].identity(), vmm.process.identity());
    let again = jail.start(launch()).await.unwrap();
    answers(&jail, &again).await;
    assert!(!vmm.process.is_alive() && again.process.is_alive());
    remove(&jails, "inc_1").await;
    assert_eq!(host.residue(), Vec::<String>::new());
}

pub(crate) async fn a_pid_that_another_process_has_now_is_never_killed(host: &Host) {
    let jails = host.open().await;
    let (_, vmm) = running(&jails, "inc_1").await;
    vmm.process.kill().unwrap();
    vmm.process.ended().await.unwrap();
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    let stat = crate::support::of_process(other.id(), "stat");
    let ticks: u64 =
        stat.rsplit(')').next().unwrap().split_whitespace().nth(22 - 3).unwrap().parse().unwrap();
    for start_ticks in [ticks, ticks + 1] {
        let process = json!({ "pid": other.id(), "start_ticks": start_ticks });
        change(&record(host, "inc_1"), |record| record["process"] = process);
        assert!(matches!(found(&jails, "inc_1").await.state, State::Gone));
    }
    remove(&jails, "inc_1").await;
    assert!(other.try_wait().unwrap().is_none(), "it lives");
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(host.residue(), Vec::<String>::new());
}

/// A process of root's that has on its command line what a jailer has. It runs until what is given with it is dropped.
#[allow(clippy::zombie_processes, reason = "it is reaped through its pidfd")]
fn jailer_of(incarnation: &str, folder: &Path) -> (Process, ChildStdin) {
    let id = incarnation.replace('_', "-");
    // Two commands, so that the shell stays itself.
    let words = ["-c", "read line; exit", "sh", "--id", &id, "--chroot-base-dir"];
    let mut child = Command::new("sh").args(words).arg(folder).stdin(Stdio::piped()).spawn().unwrap();
    let process = Process::of_child(child.id()).unwrap();
    // Right after `exec` its command line does not stand there yet.
    while crate::support::of_process(child.id(), "cmdline").is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    (process, child.stdin.take().unwrap())
}

pub(crate) async fn a_jailer_of_another_jail_of_the_same_name_is_never_killed(host: &Host) {
    let jails = host.open().await;
    let noted = json!({ "schema": 1, "boot_id": flames_host::process::boot_id().unwrap(), "process": null });
    // Cut short before it was on record, and damaged: each time all processes of the host are looked at.
    for left in [noted.to_string(), "{".to_owned()] {
        jails.create(&name("inc_1"), spec()).await.unwrap();
        std::fs::write(record(host, "inc_1"), &left).unwrap();
        let (other, lives) = jailer_of("inc_1", Path::new("/elsewhere/inc_1"));
        let (ours, _lives) = jailer_of("inc_1", &host.config.cluster_folder().join("inc_1"));
        remove(&jails, "inc_1").await;
        assert!(other.is_alive() && !ours.is_alive(), "{left}");
        drop(lives);
        other.ended().await.unwrap();
        other.reap();
    }
    assert_eq!(host.residue(), Vec::<String>::new());
}

pub(crate) async fn nothing_runs_after_the_hosts_reboot(host: &Host) {
    let jails = host.open().await;
    let jail = jails.create(&name("inc_1"), spec()).await.unwrap();
    let process = record(host, "inc_1");
    let noted = |pid: Value| json!({ "schema": 1, "boot_id": "an earlier one", "process": pid }).to_string();
    std::fs::write(&process, noted(json!({ "pid": std::process::id(), "start_ticks": 1 }))).unwrap();
    assert!(matches!(found(&jails, "inc_1").await.state, State::Gone));
    std::fs::write(&process, noted(Value::Null)).unwrap();
    assert!(is_prepared(&found(&jails, "inc_1").await));
    let vmm = jail.start(launch()).await.unwrap();
    answers(&jail, &vmm).await;
    remove(&jails, "inc_1").await;
    assert_eq!(host.residue(), Vec::<String>::new());
}

pub(crate) async fn a_jail_with_damaged_records_is_only_removed_with_its_process(host: &Host) {
    for file in ["jail.json", "process.json"] {
        let jails = host.open().await;
        let (_, vmm) = running(&jails, "inc_1").await;
        std::fs::write(host.config.cluster_folder().join("inc_1").join(file), b"\xff{").unwrap();
        drop(jails);
        let jails = host.open().await;
        let damaged = found(&jails, "inc_1").await;
        assert!(matches!(damaged.state, State::Damaged(_)), "{file}: {:?}", damaged.state);
        assert!(vmm.process.is_alive(), "finding changes nothing");
        remove(&jails, "inc_1").await;
        assert!(!vmm.process.is_alive());
        assert_eq!(host.residue(), Vec::<String>::new(), "{file}");
    }
}

pub(crate) async fn a_jail_is_never_made_over_another(host: &Host) {
    let jails = host.open().await;
    let (jail, vmm) = running(&jails, "inc_1").await;
    let again = jails.create(&name("inc_1"), spec()).await.unwrap();
    assert_eq!((again.slot(), again.root()), (jail.slot(), jail.root()));
    let other = JailSpec { artefacts: vec![Artefact::Empty { inside: inside("x"), bytes: 1 }], ..spec() };
    let error = jails.create(&name("inc_1"), other).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    answers(&jail, &vmm).await;
    remove(&jails, "inc_1").await;
    std::fs::create_dir(host.config.cluster_folder().join("inc_2")).unwrap();
    assert_eq!(jails.create(&name("inc_2"), spec()).await.unwrap_err().kind(), ErrorKind::Corrupt);
    remove(&jails, "inc_2").await;
    assert_eq!(host.residue(), Vec::<String>::new());
}

pub(crate) async fn one_controller_at_a_time_works_with_a_clusters_jails(host: &Host) {
    let jails = host.open().await;
    let second = Jails::open(host.config.clone(), Arc::new(SystemClock::new()));
    assert_eq!(second.await.unwrap_err().kind(), ErrorKind::Conflict);
    let other = JailConfig { cluster: "other".into(), ..host.config.clone() };
    let other = Jails::open(other, Arc::new(SystemClock::new())).await.unwrap();
    let (ours, theirs) = (jails.reserve(&name("a")).await.unwrap(), other.reserve(&name("a")).await.unwrap());
    assert_ne!(ours.user, theirs.user, "clusters that share a base share its users");
    remove(&jails, "a").await;
    remove(&other, "a").await;
}
