//! What holds for the process of a jail.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use flames_clock::SystemClock;
use flames_error::ErrorKind;
use flames_firecracker_jail::{
    Hierarchies, Home, IoLimits, JailSpec, Launch, Limits, Resource, Verdict, Watchdog,
};

use crate::support::{API, Host, answers, inside, launch, name, of_process, remove, running, spec};

fn line<'a>(status: &'a str, key: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim()
}

pub(crate) async fn a_jailed_firecracker_answers_and_is_confined(host: &Host) {
    let jails = host.open().await;
    let (jail, vmm) = running(&jails, "inc_1").await;
    let pid = vmm.process.identity().pid;
    let status = of_process(pid, "status");
    let user = jail.slot().user.to_string();
    assert_eq!(line(&status, "Uid:").split_whitespace().collect::<Vec<_>>(), [user.as_str(); 4]);
    assert_eq!(line(&status, "Gid:").split_whitespace().collect::<Vec<_>>(), [user.as_str(); 4]);
    assert_eq!(line(&status, "Groups:"), "");
    assert_eq!(line(&status, "CapEff:"), "0000000000000000");
    assert_eq!(line(&status, "Umask:"), "0077");
    let limits = of_process(pid, "limits");
    let limit = |name: &str| line(&limits, name).split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    assert_eq!(limit("Max core file size"), "0 0");
    assert_eq!(limit("Max open files"), "1024 1024");
    let filtered = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().filter(|task| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap();
        line(&status, "Seccomp:") == "2"
    });
    assert!(filtered.count() >= 1, "the thread that talks with us has a filter of system calls");
    let (seen, root) =
        (std::fs::metadata(format!("/proc/{pid}/root/")).unwrap(), std::fs::metadata(jail.root()).unwrap());
    assert_eq!((seen.dev(), seen.ino()), (root.dev(), root.ino()), "its root is the chroot");
    assert_eq!(of_process(pid, "mountinfo").lines().count(), 1, "it sees one mount, its root");
    let environment = of_process(pid, "environ");
    assert_eq!(environment, "", "nothing of ours");
    drop(vmm);
    remove(&jails, "inc_1").await;
    assert_eq!(host.residue(), Vec::<String>::new());
}

pub(crate) async fn the_limits_stand_in_the_groups_and_the_process_is_in_them(host: &Host) {
    let jails = host.open().await;
    let limits = Limits {
        io: Some(IoLimits {
            read_bytes: Some(50 << 20),
            write_operations: Some(1000),
            ..IoLimits::default()
        }),
        ..Limits::for_guest(2, 256 << 20)
    };
    let spec = JailSpec { limits, ..spec() };
    let jail = jails.create(&name("inc_1"), spec).await.unwrap();
    let vmm = jail.start(launch()).await.unwrap();
    answers(&jail, &vmm).await;
    let pid = vmm.process.identity().pid;
    let hierarchies = Hierarchies::probe().unwrap();
    let below = format!("{}/clu/inc-1", host.config.parent_group);
    let memory = (256_u64 << 20) + (64 << 20);
    let expected = [
        (Resource::Cpu, "cpu.max", "250000 100000".to_owned(), "cpu.cfs_quota_us", "250000".to_owned()),
        (Resource::Memory, "memory.max", memory.to_string(), "memory.limit_in_bytes", memory.to_string()),
        (Resource::Pids, "pids.max", "34".to_owned(), "pids.max", "34".to_owned()),
        (
            Resource::Io,
            "io.max",
            "rbps=52428800".to_owned(),
            "blkio.throttle.read_bps_device",
            "52428800".to_owned(),
        ),
    ];
    for (resource, new, new_value, old, old_value) in expected {
        let home = hierarchies.home(resource).expect("a host that can limit");
        let (file, value) = match home {
            Home::V2(_) => (new, new_value),
            Home::V1(_) => (old, old_value),
        };
        let group = home.root().join(&below);
        let text = std::fs::read_to_string(group.join(file)).unwrap();
        assert!(text.contains(&value), "{file}: {text}");
        let members = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert_eq!(members.trim(), pid.to_string(), "{file}");
    }
    remove(&jails, "inc_1").await;
    assert_eq!(host.residue(), Vec::<String>::new());
}

pub(crate) async fn a_vmm_joins_its_network_namespace(host: &Host) {
    let jails = host.open().await;
    let mut holder = std::process::Command::new("unshare").args(["-n", "sleep", "60"]).spawn().unwrap();
    let namespace = std::path::PathBuf::from(format!("/proc/{}/ns/net", holder.id()));
    let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
    while std::fs::read_link(&namespace).unwrap() == ours {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let jail = jails.create(&name("inc_1"), spec()).await.unwrap();
    let launch = Launch { network_namespace: Some(namespace.clone()), ..launch() };
    let vmm = jail.start(launch).await.unwrap();
    answers(&jail, &vmm).await;
    let joined = std::fs::read_link(format!("/proc/{}/ns/net", vmm.process.identity().pid)).unwrap();
    assert_eq!(joined, std::fs::read_link(&namespace).unwrap());
    assert_ne!(joined, ours);
    holder.kill().unwrap();
    holder.wait().unwrap();
    remove(&jails, "inc_1").await;
    assert_eq!(host.residue(), Vec::<String>::new());
}

pub(crate) async fn a_vmm_is_in_a_session_of_its_own_and_its_pid_is_that_of_the_jailer(host: &Host) {
    let jails = host.open().await;
    let (_, vmm) = running(&jails, "inc_1").await;
    let pid = vmm.process.identity().pid;
    let stat = of_process(pid, "stat");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    assert_eq!(fields[6 - 3], pid.to_string(), "its session");
    assert_eq!(fields[7 - 3], "0", "no terminal");
    let line = of_process(pid, "cmdline");
    assert!(line.starts_with("/firecracker\0--id\0inc-1\0"), "{line}");
    remove(&jails, "inc_1").await;
}

pub(crate) async fn two_live_incarnations_share_no_user(host: &Host) {
    let jails = host.open().await;
    let mut users = std::collections::BTreeSet::new();
    for index in 0..host.config.users.count {
        let slot = jails.reserve(&name(&format!("inc_{index}"))).await.unwrap();
        assert!(users.insert(slot.user));
    }
    let error = jails.create(&name("one_more"), spec()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    remove(&jails, "inc_3").await;
    let jail = jails.create(&name("one_more"), spec()).await.unwrap();
    assert_eq!(jail.slot().index, 3);
    drop((jail, jails));
    let jails = host.open().await;
    let kept = jails.scan().await.unwrap();
    assert_eq!(kept.len(), 1, "reserved and never made: free again after a restart");
    remove(&jails, "one_more").await;
    assert_eq!(host.residue(), Vec::<String>::new());
}

pub(crate) async fn a_firecracker_that_dies_at_once_is_told_with_its_words(host: &Host) {
    let jails = host.open().await;
    let jail = jails.create(&name("inc_1"), spec()).await.unwrap();
    let wrong = Launch { arguments: vec!["--nonsense".into()], ..Launch::default() };
    let vmm = jail.start(wrong).await.unwrap();
    let error = jail.answering(&vmm, &inside(API), Duration::from_secs(20)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.message().contains("nonsense"), "{error:?}");
    drop(vmm);
    jail.reset().await.unwrap();
    let missing = Launch { network_namespace: Some("/run/netns/not-there".into()), ..launch() };
    let vmm = jail.start(missing).await.unwrap();
    let error = jail.answering(&vmm, &inside(API), Duration::from_secs(20)).await.unwrap_err();
    assert!(error.message().contains("/run/netns/not-there"), "{error:?}");
    let refused = Launch { arguments: vec!["--no-seccomp".into()], ..Launch::default() };
    assert_eq!(jail.start(refused).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    remove(&jails, "inc_1").await;
    assert_eq!(host.residue(), Vec::<String>::new());
}

pub(crate) async fn a_vmm_that_stops_answering_is_killed(host: &Host) {
    let jails = host.open().await;
    let (jail, vmm) = running(&jails, "inc_1").await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(vmm.process.identity().pid).unwrap()).unwrap();
    let watchdog = Watchdog {
        every: Duration::from_millis(20),
        deadline: Duration::from_millis(200),
        misses: 3,
        silence: Duration::from_millis(300),
    };
    let clock = SystemClock::new();
    let ask = || async {
        let Ok(mut stream) = jail.connect(&inside(API)).await else { return false };
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        stream.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").await.is_ok()
            && stream.read_u8().await.is_ok()
    };
    let watch = watchdog.watch(&clock, &vmm.process, ask);
    let stop = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(vmm.process.is_alive(), "it answers, and is let be");
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    };
    let (verdict, ()) = tokio::join!(watch, stop);
    let Verdict::Killed { misses, silence } = verdict.unwrap() else { panic!("it was not killed") };
    assert!(misses >= 3 && silence >= Duration::from_millis(300));
    tokio::time::timeout(Duration::from_secs(5), vmm.process.ended()).await.unwrap().unwrap();
    remove(&jails, "inc_1").await;
    assert_eq!(host.residue(), Vec::<String>::new());
}
