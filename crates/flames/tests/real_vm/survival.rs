//! What outlives a pause, a snapshot, a run, a kill.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::guest::ask;
use crate::support::busybox::{import_busybox, make_busybox};
use crate::support::fleet::{Fleet, Running};
use crate::support::{Installation, eventually, wait};
use crate::{assert_clean, installation, start, up_with, variable};

/// A workload that counts into a file it holds open under a name that is gone, and serves.
pub(crate) const HOLDER: &str = "\
    exec 3<>/tmp/held; busybox rm /tmp/held; echo $$ > /tmp/pid; \
    (while true; do echo served by $(uname -n) | nc -l -p 8000; done) & \
    i=0; while true; do i=$((i+1)); echo $i >&3; echo $i > /tmp/count; sleep 0.1; done";

pub(crate) fn inside(installation: &Installation, vm: &str, script: &str) -> String {
    installation.run(&["exec", vm, "--", "sh", "-c", script]).ok().trim().to_owned()
}

/// How far the workload has counted, as its open file says.
pub(crate) fn held(installation: &Installation, vm: &str) -> u64 {
    let script = "busybox tail -n 1 /proc/$(cat /tmp/pid)/fd/3";
    inside(installation, vm, script).parse().unwrap()
}

pub(crate) fn a_pause_keeps_a_process_and_its_open_file() {
    let installation = installation();
    start(&installation, "x", HOLDER);
    eventually("it counts", || {
        (installation.run(&["exec", "x", "--", "cat", "/tmp/count"]).code == 0).then_some(())
    });
    let (pid, before) = (inside(&installation, "x", "cat /tmp/pid"), held(&installation, "x"));
    installation.run(&["pause", "x"]).ok();
    assert_eq!(installation.inspect("x")["state"], "paused");
    thread::sleep(Duration::from_secs(3));
    installation.run(&["resume", "x"]).ok();
    assert_eq!(installation.inspect("x")["state"], "running");
    assert_eq!(
        inside(&installation, "x", "cat /tmp/pid; kill -0 $(cat /tmp/pid) && echo alive"),
        format!("{pid}\nalive")
    );
    eventually("it counts on", || (held(&installation, "x") > before + 3).then_some(()));
    assert_clock_is_right(&installation, "x");
}

pub(crate) fn assert_clock_is_right(installation: &Installation, vm: &str) {
    let guest: u64 = inside(installation, vm, "busybox date +%s").parse().unwrap();
    let host = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(host.abs_diff(guest) <= 2, "the guest's clock says {guest}, the host's {host}");
}

pub(crate) fn a_snapshot_is_restored_twice_and_both_go_on() {
    let installation = installation();
    installation
        .run(&[
            "run", "-d", "--name", "x", "--memory", "128M", "-p", "8000", "busybox", "--", "sh", "-c", HOLDER,
        ])
        .ok();
    eventually("it counts", || {
        (installation.run(&["exec", "x", "--", "cat", "/tmp/count"]).code == 0).then_some(())
    });
    inside(&installation, "x", "echo precious > /tmp/unsynced");
    let (pid, before) = (inside(&installation, "x", "cat /tmp/pid"), held(&installation, "x"));
    let began = std::time::Instant::now();
    assert_eq!(installation.run(&["-q", "snapshot", "create", "x", "--name", "s"]).ok(), "s\n");
    eprintln!("snapshot: {:?}", began.elapsed());
    let snapshot = installation.run(&["--json", "snapshot", "inspect", "s"]).json();
    assert_eq!(snapshot["state"], "ready", "{snapshot:#}");
    assert!(snapshot["stored_bytes"].as_u64().unwrap() < 64 << 20, "{snapshot:#}");
    eprintln!("sizes: {} of {}", snapshot["stored_bytes"], snapshot["logical_bytes"]);
    assert_eq!(installation.inspect("x")["state"], "running");
    eventually("it counts on after it was saved", || (held(&installation, "x") > before + 3).then_some(()));
    // Time goes by, so that clocks that stood still would show.
    thread::sleep(Duration::from_secs(4));
    for name in ["y", "z"] {
        let began = std::time::Instant::now();
        assert_eq!(installation.run(&["-q", "restore", "s", "--name", name]).ok(), format!("{name}\n"));
        eprintln!("restore: {:?}", began.elapsed());
    }
    let vms = ["x", "y", "z"];
    let distinct = |what: &str, of: &dyn Fn(&str) -> String| {
        let all: std::collections::BTreeSet<String> = vms.iter().map(|vm| of(vm)).collect();
        assert_eq!(all.len(), vms.len(), "{what}: {all:?}");
    };
    for vm in vms {
        assert_eq!(
            inside(&installation, vm, "cat /tmp/pid; kill -0 $(cat /tmp/pid) && echo alive"),
            format!("{pid}\nalive")
        );
        assert_eq!(inside(&installation, vm, "cat /tmp/unsynced"), "precious");
        let now = held(&installation, vm);
        assert!(now >= before, "{vm} counted to {now}, and the snapshot was taken after {before}");
        eventually("it counts on", || (held(&installation, vm) > now + 3).then_some(()));
        assert_eq!(inside(&installation, vm, "uname -n"), vm);
        assert_clock_is_right(&installation, vm);
        let endpoint =
            installation.inspect(vm)["incarnation"]["endpoints"][0]["address"].as_str().unwrap().to_owned();
        // What listened when it was saved said its host name then; the next answer is of now.
        eventually("its server answers with its own name", || {
            (ask(&endpoint) == format!("served by {vm}\n")).then_some(())
        });
    }
    distinct("addresses", &|vm| {
        installation.inspect(vm)["incarnation"]["endpoints"][0]["address"].to_string()
    });
    distinct("random bytes", &|vm| {
        inside(&installation, vm, "busybox head -c 16 /dev/urandom | busybox od -An -tx1")
    });
    distinct("incarnations", &|vm| installation.inspect(vm)["incarnation"]["id"].to_string());
    // The one that booted has the image's own, which is none.
    assert_ne!(
        inside(&installation, "y", "cat /etc/machine-id"),
        inside(&installation, "z", "cat /etc/machine-id")
    );
    // A restored one is stopped and started like any other, and boots then.
    installation.run(&["stop", "y"]).ok();
    installation.run(&["snapshot", "rm", "s"]).ok();
    assert_eq!(inside(&installation, "z", "uname -n"), "z", "it runs on without its snapshot");
    installation.run(&["start", "y"]).ok();
    assert_eq!(inside(&installation, "y", "uname -n"), "y");
    installation.run(&["rm", "-f", "x", "y", "z"]).ok();
    assert_eq!(installation.run(&["-q", "snapshot", "ls"]).ok(), "");
    assert_clean(&installation);
    eventually("nothing saved is left on the host", || {
        let left = |folder: &str| {
            fs::read_dir(installation.data().join("snapshots").join(folder)).map_or(0, Iterator::count)
        };
        (left("staging") + left("cache") == 0).then_some(())
    });
}

pub(crate) fn a_kill_9_in_the_middle_of_a_snapshot_leaves_the_guest_running() {
    let mut installation = installation();
    start(&installation, "x", HOLDER);
    eventually("it counts", || {
        (installation.run(&["exec", "x", "--", "cat", "/tmp/count"]).code == 0).then_some(())
    });
    for pause in [20, 150, 400] {
        let before = held(&installation, "x");
        let name = format!("s{pause}");
        installation.run(&["-q", "snapshot", "create", "x", "--name", &name, "--no-wait"]).ok();
        thread::sleep(Duration::from_millis(pause));
        installation.kill();
        up_with(&mut installation, &[]);
        eventually("the snapshot is ready all the same", || {
            let snapshot = installation.run(&["--json", "snapshot", "inspect", &name]).json();
            assert_ne!(snapshot["state"], "failed", "{snapshot:#}");
            (snapshot["state"] == "ready").then_some(())
        });
        eventually("the guest runs on", || (held(&installation, "x") > before + 3).then_some(()));
    }
    installation.run(&["restore", "s150", "--name", "y"]).ok();
    assert_eq!(inside(&installation, "y", "uname -n"), "y");
    installation.run(&["rm", "-f", "x", "y"]).ok();
    assert_clean(&installation);
}

pub(crate) fn three_guests_survive_a_kill_9_of_flames() {
    let mut installation = installation();
    start(&installation, "a", "sleep 1000");
    start(&installation, "b", "sleep 1000");
    // Its end falls into the time in which nobody looks.
    start(&installation, "c", "echo before; sleep 2; echo after; exit 5");
    let machines = installation.machines();
    assert_eq!(machines.len(), 3);
    installation.kill();
    thread::sleep(Duration::from_secs(4));
    assert_eq!(installation.machines(), machines, "the machines run on without Flames");
    up_with(&mut installation, &[]);
    for name in ["a", "b"] {
        assert_eq!(installation.run(&["exec", name, "--", "uname", "-n"]).ok(), format!("{name}\n"));
        assert_eq!(installation.inspect(name)["state"], "running");
    }
    let ended = eventually("the end of c is known", || {
        let vm = installation.inspect("c");
        (vm["state"] == "stopped").then_some(vm)
    });
    assert_eq!(ended["incarnation"]["exit"]["code"], 5, "{ended:#}");
    assert_eq!(installation.run(&["logs", "c"]).ok(), "before\nafter\n");
    let still = installation.machines();
    assert!(still.len() == 2 && still.iter().all(|pid| machines.contains(pid)), "{still:?} of {machines:?}");
    installation.run(&["rm", "-f", "a", "b", "c"]).ok();
    assert_clean(&installation);
}

pub(crate) fn a_watched_run_goes_on_over_a_kill_9_of_flames() {
    let mut installation = installation();
    let script = "echo one; sleep 6; echo two; exit 6";
    let mut command =
        installation.command(&["-q", "run", "--name", "x", "busybox", "--", "sh", "-c", script]);
    let mut watching = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "one");
    installation.kill();
    up_with(&mut installation, &[]);
    assert_eq!(lines.next().unwrap().unwrap(), "two");
    assert!(lines.next().is_none(), "nothing is shown twice");
    assert_eq!(wait(&mut watching), 6);
}

pub(crate) fn what_keeps_a_guest_from_running_is_told_and_leaves_nothing() {
    let installation = installation();
    let said = installation.run(&["run", "--rm", "busybox", "--", "/no/such/program"]).failed(127);
    assert!(said.contains("/no/such/program"), "{said}");
    installation.run(&["run", "--rm", "nosuch", "--", "true"]).failed(3);
    let said = installation.run(&["run", "--rm", "--user", "nobody-at-all", "busybox", "--", "sh"]);
    assert!(said.code != 0 && said.stderr.contains("nobody-at-all"), "{said:?}");
    assert_clean(&installation);
    let said = Installation::new().run(&["up", "--listen", "0", "--kernel", "/bin/sh"]).failed(2);
    assert!(said.contains("/bin/sh") && said.contains("a kernel is"), "{said}");
}

pub(crate) fn a_stopped_guest_costs_no_process_and_a_removed_one_nothing() {
    let installation = installation();
    start(&installation, "x", "sleep 1000");
    assert_eq!(installation.machines().len(), 1);
    installation.run(&["stop", "x"]).ok();
    eventually("the machine is gone", || installation.machines().is_empty().then_some(()));
    installation.run(&["start", "x"]).ok();
    assert_eq!(installation.machines().len(), 1);
    installation.run(&["rm", "-f", "x"]).ok();
    assert_clean(&installation);
}

pub(crate) fn a_persistent_disk_outlives_a_run_and_an_ephemeral_one_does_not() {
    let installation = installation();
    let script = "cat /kept 2>/dev/null || echo none; echo kept > /kept; sync";
    for (name, disk) in [("p", Some("--persistent")), ("e", None)] {
        let mut arguments = vec!["-q", "run", "--name", name, "--disk", "64M"];
        arguments.extend(disk);
        arguments.extend(["busybox", "--", "sh", "-c", script]);
        assert_eq!(installation.run(&arguments).ok(), "none\n");
        installation.run(&["start", name]).ok();
        let log = eventually("the second run wrote", || {
            let log = installation.run(&["logs", name]);
            (log.code == 0 && !log.stdout.is_empty()).then_some(log.stdout)
        });
        assert_eq!(log, if disk.is_some() { "kept\n" } else { "none\n" }, "{name}");
    }
    installation.run(&["rm", "-f", "p", "e"]).ok();
    assert_clean(&installation);
}

pub(crate) fn a_run_that_lasts_too_long_is_stopped() {
    let installation = installation();
    let ended = installation.run(&[
        "run",
        "--name",
        "x",
        "--timeout",
        "4s",
        "--stop-grace",
        "1s",
        "busybox",
        "--",
        "sleep",
        "1000",
    ]);
    assert_ne!(ended.code, 0, "{ended:?}");
    let vm = installation.inspect("x");
    assert_eq!((&vm["state"], &vm["desired"]), (&"stopped".into(), &"stopped".into()), "{vm:#}");
    let events = installation.run(&["--json", "events", "--vm", "x"]).ok();
    assert!(events.contains("timed_out"), "{events}");
}

pub(crate) fn an_ephemeral_up_leaves_no_guest_behind() {
    let mut installation = Installation::new();
    up_with(&mut installation, &["--ephemeral"]);
    import_busybox(&installation);
    start(&installation, "x", "sleep 1000");
    assert_eq!(installation.machines().len(), 1);
    assert_eq!(installation.interrupt().0, 0);
    assert_eq!(installation.machines(), Vec::<u32>::new());
    assert!(!installation.data().join("ephemeral").exists());
    up_with(&mut installation, &["--ephemeral"]);
    import_busybox(&installation);
    start(&installation, "x", "sleep 1000");
    installation.kill();
    assert_eq!(installation.machines().len(), 1);
    up_with(&mut installation, &["--ephemeral"]);
    assert_eq!(installation.machines(), Vec::<u32>::new(), "what was killed is cleared away");
}

pub(crate) fn a_guest_on_a_host_of_its_own_survives_kills_of_its_server_and_of_its_host() {
    let fleet = Fleet::new();
    let mut server = fleet.server("server", &[]);
    let (api, address) = (server.told["url"].as_str().unwrap().replace("http://", ""), server.host_address());
    let token = fleet.token(&server);
    let host = |fleet: &Fleet| {
        let (kernel, agent) =
            (variable("FLAMES_TEST_KERNEL").unwrap(), variable("FLAMES_GUEST_AGENT").unwrap());
        let server = format!("http://{address}");
        let mut arguments =
            vec!["controller", "run", "--server", &server, "--name", "real", "--accel", "tcg"];
        arguments.extend(["--kernel", kernel.to_str().unwrap(), "--agent", agent.to_str().unwrap()]);
        arguments.extend(["--join-token-file", token.to_str().unwrap()]);
        let modules = std::env::var("FLAMES_TEST_KERNEL_MODULES").ok();
        if let Some(modules) = &modules {
            arguments.extend(["--kernel-modules", modules]);
        }
        Running::start(&fleet.place("host"), &arguments)
    };
    let mut daemon = host(&fleet);
    server.has_hosts(1);
    let root = fleet.place("busybox");
    make_busybox(&root);
    server.run(&["image", "import", "busybox", root.to_str().unwrap()]).ok();
    // The image goes to the host through the server: the host has no other way to it.
    server.run(&["run", "-d", "--name", "x", "busybox", "--", "sleep", "100000"]).ok();
    server.run(&["exec", "x", "--", "sh", "-c", "echo written > /tmp/kept"]).ok();
    let machines = fleet.machines();
    assert_eq!(machines.len(), 1);
    daemon.kill();
    assert_eq!(fleet.machines(), machines, "a machine needs no daemon");
    let daemon = host(&fleet);
    server.kill();
    let serves = ["server", "--listen", &api, "--host-listen", &address, "--ingress-listen", "127.0.0.1:0"];
    let server = Running::start(&fleet.place("server"), &serves);
    eventually("the guest answers", || {
        let said = server.run(&["exec", "x", "--", "cat", "/tmp/kept"]);
        (said.code == 0).then(|| assert_eq!(said.stdout, "written\n"))
    });
    assert_eq!(fleet.machines(), machines, "it is the same machine");
    server.run(&["rm", "-f", "x"]).ok();
    eventually("nothing of it is left", || fleet.machines().is_empty().then_some(()));
    drop(daemon);
}
