//! The machine as the guest sees it, and the monitor as the host does.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use flames_error::ErrorKind;
use flames_test_guests::process;
use flames_vmm::{Drive, ExitCause, Phase, StartFrom, Update, VmDriver};
use flames_vmm_firecracker::Watchdog;
use futures::StreamExt;
use tokio::io::AsyncReadExt;

use crate::support::{Host, PATIENCE, TOLD, ask, base, driver_of, name, phase, running, spec, talk, until};

pub(crate) async fn a_guest_is_told_its_configuration_which_only_its_user_reads(host: &Host) {
    let driver = host.driver();
    let incarnation = name("inc_told");
    running(&*driver, &incarnation).await;
    let mut stream = talk(&*driver, &incarnation).await;
    assert_eq!(ask(&mut stream, "disk a").await, TOLD, "its last disk");
    assert_eq!(ask(&mut stream, "disk b").await, "none");
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&host.path(&incarnation, ".")), 0o700);
    let config = host.path(&incarnation, "guest-config").metadata().unwrap();
    assert_eq!((config.mode() & 0o777, config.uid()), (0o440, 0));
    let jail = host.config().jail.cluster_folder().join("inc_told");
    assert_eq!(mode(&jail), 0o700);
    let inside = jail.join("firecracker/inc-told/root/drives/flames_config");
    let found = inside.metadata().unwrap();
    assert_eq!((found.mode() & 0o777, found.uid()), (0o440, 0), "nobody writes it");
    let user = jail.join("firecracker/inc-told/root/drives").metadata().unwrap().uid();
    assert!(user >= 3_000_000 && found.gid() == user, "its user, who is alone in its group, reads it");
    let kernel = jail.join("firecracker/inc-told/root/kernel").metadata().unwrap();
    let original = spec().boot.kernel.metadata().unwrap();
    assert_eq!((original.uid(), original.mode()), (0, kernel.mode()), "what is shared keeps its owner");
}

pub(crate) async fn a_monitor_is_confined(host: &Host) {
    let driver = host.driver();
    let (one, other) = (name("inc_one"), name("inc_other"));
    let mut users = std::collections::BTreeSet::new();
    for incarnation in [&one, &other] {
        running(&*driver, incarnation).await;
        let pid = driver.observe(incarnation).await.unwrap().pid.unwrap();
        assert_eq!(host.pids(incarnation), [pid]);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_ascii_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
        };
        let user: u32 = field("Uid:")[0].parse().unwrap();
        assert!(user >= 3_000_000 && field("Uid:").iter().all(|id| *id == user.to_string()));
        assert_eq!(field("CapEff:"), ["0000000000000000"]);
        assert_eq!(field("Seccomp:"), ["2"], "a filter of system calls");
        users.insert(user);
        for kind in ["net", "mnt"] {
            let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/{kind}")).unwrap();
            assert_ne!(namespace(&pid.to_string()), namespace("self"), "{kind}");
        }
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert!(core.split_ascii_whitespace().filter(|word| *word == "0").count() == 2, "{core}");
    }
    assert_eq!(users.len(), 2, "a user each");
}

/// Whether this process has the capability of this number (linux/capability.h).
fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() & (1 << number) != 0
}

/// The first is an image that many machines share, the second this machine's own.
pub(crate) async fn disks_are_shared_or_sparse_and_bounded_and_none_is_copied(host: &Host) {
    const SIZE: u64 = 256 * 1024 * 1024;
    let driver = host.driver();
    let incarnation = name("inc_disks");
    let (image, layer) = (host.folder.path().join("image"), host.folder.path().join("layer"));
    std::fs::write(&image, vec![7; 1024 * 1024]).unwrap();
    std::fs::set_permissions(&image, std::fs::Permissions::from_mode(0o444)).unwrap();
    std::fs::File::create(&layer).unwrap().set_len(SIZE).unwrap();
    let drive = |name: &str, path: &std::path::Path, read_only| Drive {
        name: name.to_owned(),
        path: path.to_owned(),
        read_only,
    };
    let mut machine = spec();
    machine.drives =
        vec![drive("image", &image, true), drive("layer", &layer, false), drive("more", &image, true)];
    driver.prepare(&incarnation, &machine).await.unwrap();
    let drives = host.config().jail.cluster_folder().join("inc_disks/firecracker/inc-disks/root/drives");
    for (inside, outside) in [("image", &image), ("layer", &layer), ("more", &image)] {
        let (found, source) = (drives.join(inside).metadata().unwrap(), outside.metadata().unwrap());
        assert_eq!((found.dev(), found.ino()), (source.dev(), source.ino()), "{inside} is the file itself");
    }
    assert!(layer.metadata().unwrap().blocks() * 512 < 64 * 1024, "nothing is written ahead");
    driver.start(&incarnation, StartFrom::Boot, true).await.unwrap();
    let pid = driver.observe(&incarnation).await.unwrap().pid.unwrap();
    let largest = || {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max file size")).unwrap().to_owned();
        line.split_ascii_whitespace().nth(3).unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(largest(), SIZE, "the monitor writes no larger file than its largest disk");
    std::fs::OpenOptions::new().write(true).open(&layer).unwrap().set_len(2 * SIZE).unwrap();
    let grown = Update::DrivePath { name: "layer".to_owned(), path: layer.clone() };
    let answer = driver.update(&incarnation, &grown).await;
    if has_capability(24) {
        answer.unwrap();
        assert_eq!(largest(), 2 * SIZE, "a disk that was made larger may be written to its end");
    } else {
        // Without CAP_SYS_RESOURCE nobody raises a limit; then it is said, and nothing has changed.
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(largest(), SIZE);
    }
    driver.destroy(&incarnation).await.unwrap();
    let (owner, links) = (layer.metadata().unwrap().uid(), image.metadata().unwrap().nlink());
    assert_eq!((owner, links), (0, 1), "they are root's again, and nobody else's");
}

pub(crate) async fn a_guest_calls_its_host(host: &Host) {
    let driver = host.driver();
    let incarnation = name("inc_calls");
    driver.prepare(&incarnation, &spec()).await.unwrap();
    let mut from_guest = driver.accept(&incarnation, 2000).await.unwrap();
    driver.start(&incarnation, base::plain(), false).await.unwrap();
    let mut stream = talk(&*driver, &incarnation).await;
    assert_eq!(ask(&mut stream, "call").await, "called");
    let mut hello = String::new();
    from_guest.next().await.unwrap().read_to_string(&mut hello).await.unwrap();
    assert_eq!(hello, "hello host");
    let silent = driver.connect(&incarnation, 4000).await;
    assert!(silent.is_err_and(|error| error.kind() == ErrorKind::Unavailable));
}

pub(crate) async fn a_flood_on_the_console_stays_in_its_bounds(host: &Host) {
    let mut config = host.config();
    config.console_bytes_per_second = 32 * 1024;
    let driver = driver_of(config.clone());
    let incarnation = name("inc_flood");
    running(&driver, &incarnation).await;
    let mut stream = talk(&driver, &incarnation).await;
    assert_eq!(ask(&mut stream, "flood").await, "flooding");
    let on_disk = || process::console_on_disk(&host.path(&incarnation, ""));
    let before = driver.stats(&incarnation).await.unwrap().resident_bytes;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(on_disk() <= config.console_log_limit, "{}", on_disk());
    }
    let chunk = driver.console(&incarnation, 0).await.unwrap();
    let end = chunk.offset + chunk.data.len() as u64;
    assert!(end < 512 * 1024, "taken at its rate only: {end} bytes in 3 s");
    let after = driver.stats(&incarnation).await.unwrap().resident_bytes;
    assert!(after < before + 16 * 1024 * 1024, "{before} {after}");
    drop(driver);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let driver = driver_of(config);
    assert_eq!(phase(&driver, &incarnation).await, Phase::Running, "nobody reads, and it runs on");
    driver.stop(&incarnation, flames_vmm::StopHow::Kill).await.unwrap();
}

pub(crate) async fn a_paused_guest_runs_on_after_its_resume(host: &Host) {
    let driver = host.driver();
    let incarnation = name("inc_paused");
    running(&*driver, &incarnation).await;
    let end = || async {
        let chunk = driver.console(&incarnation, 0).await.unwrap();
        chunk.offset + chunk.data.len() as u64
    };
    for hold_open in [false, true] {
        let stream = if hold_open { Some(talk(&*driver, &incarnation).await) } else { None };
        driver.pause(&incarnation).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = end().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(end().await, before, "nothing is written meanwhile");
        driver.resume(&incarnation).await.unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        while end().await <= before {
            assert!(std::time::Instant::now() < deadline, "it writes on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(stream);
        talk(&*driver, &incarnation).await;
    }
}

pub(crate) async fn a_balloon_leaves_enough(host: &Host) {
    let driver = host.driver();
    let incarnation = name("inc_balloon");
    running(&*driver, &incarnation).await;
    for mebibytes in [8, 8, 0] {
        driver.update(&incarnation, &Update::BalloonMib(mebibytes)).await.unwrap();
    }
    let error = driver.update(&incarnation, &Update::BalloonMib(60)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    talk(&*driver, &incarnation).await;
}

pub(crate) async fn a_monitor_that_does_not_answer_is_killed_with_the_reason(host: &Host) {
    let mut config = host.config();
    config.watchdog = Some(Watchdog {
        every: Duration::from_millis(100),
        deadline: Duration::from_millis(200),
        misses: 3,
        silence: Duration::from_millis(600),
    });
    let driver = driver_of(config);
    let (hangs, fine) = (name("inc_hangs"), name("inc_fine"));
    running(&driver, &hangs).await;
    running(&driver, &fine).await;
    let mut exits = driver.exits().await.unwrap();
    process::signal(host.pids(&hangs)[0], "-STOP");
    let hint = tokio::time::timeout(PATIENCE, exits.next()).await.expect("it is killed");
    assert_eq!(hint.as_ref(), Some(&hangs));
    let exit = until(&driver, &hangs, Phase::Exited).await.exit.unwrap();
    assert_eq!(exit.cause, ExitCause::Crashed);
    assert!(exit.message.as_deref().is_some_and(|words| words.contains("did not answer")), "{exit:?}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(phase(&driver, &fine).await, Phase::Running);
}
