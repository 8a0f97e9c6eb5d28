//! The real binary with real guests: QEMU, a kernel (`FLAMES_TEST_KERNEL`, with its modules in
//! `FLAMES_TEST_KERNEL_MODULES` when it needs some), the agent (`FLAMES_GUEST_AGENT`) and busybox as the user land.

// A case fails by panicking: an answer that must be there is unwrapped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use flames_conformance_runner::{Case, Suite, Time, Unavailable, run};
use support::fleet::{Fleet, Running};
use support::{Installation, eventually, finish, wait};

fn main() -> ExitCode {
    run(Suite {
        name: "real-vm",
        provider: "flames",
        unavailable: unavailable(),
        time: Time::Real,
        cases: cases(),
    })
}

macro_rules! cases {
    ($($case:ident),+ $(,)?) => {
        fn cases() -> Vec<Case> {
            vec![$(Case {
                name: stringify!($case),
                ignored: None,
                run: Box::new(|| Box::pin(async { $case() })),
            }),+]
        }
    };
}

cases![
    a_command_runs_in_a_guest_and_its_output_and_exit_code_come_back,
    a_guest_is_what_was_asked_for,
    a_workload_reads_the_standard_input_of_run_to_its_end,
    exec_runs_in_the_guest_with_its_own_input_and_exit_code,
    a_terminal_is_passed_through_and_set_back,
    files_are_copied_both_ways,
    a_server_in_the_guest_is_reached_by_its_port_and_by_port_forward,
    a_port_of_a_guest_answers_at_its_url_while_it_runs,
    a_paused_guest_stands_still_and_goes_on,
    a_pause_keeps_a_process_and_its_open_file,
    a_snapshot_is_restored_twice_and_both_go_on,
    a_kill_9_in_the_middle_of_a_snapshot_leaves_the_guest_running,
    three_guests_survive_a_kill_9_of_flames,
    a_watched_run_goes_on_over_a_kill_9_of_flames,
    what_keeps_a_guest_from_running_is_told_and_leaves_nothing,
    a_stopped_guest_costs_no_process_and_a_removed_one_nothing,
    a_persistent_disk_outlives_a_run_and_an_ephemeral_one_does_not,
    a_run_that_lasts_too_long_is_stopped,
    an_ephemeral_up_leaves_no_guest_behind,
    a_guest_on_a_host_of_its_own_survives_kills_of_its_server_and_of_its_host,
];

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_file())
}

/// Why no guest can be started here, without starting one.
fn unavailable() -> Option<Unavailable> {
    let lacks =
        |service: &str, reason: &str| Some(Unavailable { service: service.into(), reason: reason.into() });
    let paths = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&paths).any(|folder| folder.join("qemu-system-x86_64").is_file()) {
        return lacks("qemu", "`qemu-system-x86_64` is not on PATH (apt install qemu-system-x86)");
    }
    if variable("FLAMES_TEST_KERNEL").is_none() {
        return lacks("kernel", "FLAMES_TEST_KERNEL names no kernel");
    }
    if variable("FLAMES_GUEST_AGENT").is_none() {
        return lacks("agent", "FLAMES_GUEST_AGENT names no agent (`cargo xtask test` builds it)");
    }
    if !PathBuf::from("/bin/busybox").is_file() {
        return lacks("busybox", "/bin/busybox is absent (apt install busybox-static)");
    }
    None
}

/// How every `flames up` of these cases is started. Emulation: the same everywhere, with or without a KVM that can run the kernel.
fn up_with(installation: &mut Installation, more: &[&str]) {
    let (kernel, agent) = (variable("FLAMES_TEST_KERNEL").unwrap(), variable("FLAMES_GUEST_AGENT").unwrap());
    let modules = std::env::var("FLAMES_TEST_KERNEL_MODULES").ok();
    let mut arguments =
        vec!["--accel", "tcg", "--kernel", kernel.to_str().unwrap(), "--agent", agent.to_str().unwrap()];
    if let Some(modules) = &modules {
        arguments.extend(["--kernel-modules", modules]);
    }
    arguments.extend_from_slice(more);
    installation.up(&arguments);
}

/// Up, with busybox as the image `busybox`.
fn installation() -> Installation {
    let mut installation = Installation::new();
    up_with(&mut installation, &[]);
    import_busybox(&installation);
    installation
}

fn import_busybox(installation: &Installation) {
    let root = installation.folder.path().join("busybox");
    if !root.exists() {
        make_busybox(&root);
    }
    installation.run(&["image", "import", "busybox", root.to_str().unwrap()]).ok();
}

fn make_busybox(root: &Path) {
    for folder in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for name in [
        "sh", "cat", "echo", "sleep", "uname", "nc", "id", "stty", "tty", "wc", "sync", "kill", "free", "pwd",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nguest:x:1000:1000::/tmp:/bin/sh\n").unwrap();
    fs::write(root.join("etc/os-release"), "NAME=\"the image's own\"\n").unwrap();
}

fn start(installation: &Installation, name: &str, script: &str) {
    installation.run(&["run", "-d", "--name", name, "busybox", "--", "sh", "-c", script]).ok();
}

/// Nothing of any VM is left: no process, no folder, no record.
fn assert_clean(installation: &Installation) {
    assert_eq!(installation.machines(), Vec::<u32>::new());
    assert_eq!(installation.run(&["-q", "ps", "--all"]).ok(), "");
    for folder in ["controller/incarnations", "controller/logs", "controller/disks"] {
        let left: Vec<_> = fs::read_dir(installation.data().join(folder)).unwrap().flatten().collect();
        assert!(left.is_empty(), "{folder} holds {left:?}");
    }
    let machines = fs::read_dir(installation.data().join("machines")).unwrap().flatten();
    let left: Vec<_> =
        machines.filter(|entry| entry.file_name().to_string_lossy().starts_with("inc_")).collect();
    assert!(left.is_empty(), "{left:?}");
}

fn a_command_runs_in_a_guest_and_its_output_and_exit_code_come_back() {
    let installation = installation();
    let script = "uname -sr; cat /etc/os-release; echo $NONCE; echo aside >&2; exit 7";
    let ended =
        installation.run(&["-q", "run", "--rm", "-e", "NONCE=4711", "busybox", "--", "sh", "-c", script]);
    assert_eq!(ended.code, 7, "{ended:?}");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert!(lines[0].starts_with("Linux "), "{lines:?}");
    assert_eq!(lines[1..], ["NAME=\"the image's own\"", "4711"]);
    assert!(ended.stderr.contains("aside"), "{}", ended.stderr);
    assert_clean(&installation);
}

fn a_guest_is_what_was_asked_for() {
    let installation = installation();
    let script = "uname -n; id -u; pwd; echo $SECRET; free -m | sed -n 2p";
    let mut command = installation.command(&[
        "-q",
        "run",
        "--rm",
        "--name",
        "asked",
        "--user",
        "guest",
        "--workdir",
        "/tmp",
        "--memory",
        "128M",
        "--secret-env",
        "SECRET",
        "busybox",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let told = finish(command.env("SECRET", "hunter2"), b"");
    let lines: Vec<&str> = told.stdout.lines().collect();
    assert_eq!(lines[..4], ["asked", "1000", "/tmp", "hunter2"], "{told:?}");
}

fn a_workload_reads_the_standard_input_of_run_to_its_end() {
    let installation = installation();
    let mut command = installation.command(&["-q", "run", "--rm", "-i", "busybox", "--", "cat"]);
    assert_eq!(finish(&mut command, b"hi\n").ok(), "hi\n");
    let input = vec![b'x'; 1_000_000];
    let mut command = installation.command(&["-q", "run", "--rm", "-i", "busybox", "--", "wc", "-c"]);
    assert_eq!(finish(&mut command, &input).ok().trim(), "1000000");
    assert_clean(&installation);
}

fn exec_runs_in_the_guest_with_its_own_input_and_exit_code() {
    let installation = installation();
    start(&installation, "x", "echo said; sleep 1000");
    assert_eq!(installation.run(&["exec", "x", "--", "uname", "-n"]).ok(), "x\n");
    installation.run(&["exec", "x", "--", "sh", "-c", "exit 9"]).failed(9);
    installation.run(&["exec", "x", "--", "sh", "-c", "kill -9 $$"]).failed(137);
    let input = vec![b'x'; 300_000];
    let counted = finish(&mut installation.command(&["exec", "-i", "x", "--", "wc", "-c"]), &input);
    assert_eq!(counted.ok().trim(), "300000");
    let said = installation.run(&["exec", "x", "--", "nosuch"]).failed(127);
    assert!(said.contains("nosuch"), "{said}");
    assert_eq!(installation.run(&["logs", "x"]).ok(), "said\n");
    assert!(installation.run(&["logs", "--console", "x"]).code == 0);
}

fn a_terminal_is_passed_through_and_set_back() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};
    let installation = installation();
    start(&installation, "x", "sleep 1000");
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let theirs = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    tcsetwinsize(&theirs, Winsize { ws_row: 33, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let before = tcgetattr(&theirs).unwrap();
    let copy = || Stdio::from(OwnedFd::from(theirs.try_clone().unwrap()));
    let mut command = installation.command(&[
        "exec",
        "-it",
        "x",
        "--",
        "sh",
        "-c",
        "tty; stty size; read line; echo got $line; exit 4",
    ]);
    let mut exec = command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap();
    let mut terminal = File::from(ours);
    let mut typing = terminal.try_clone().unwrap();
    let reader = thread::spawn(move || {
        let (mut seen, mut piece) = (String::new(), [0; 1024]);
        while !seen.contains("got hello") {
            let count = terminal.read(&mut piece).unwrap();
            seen.push_str(&String::from_utf8_lossy(&piece[..count]));
            if seen.contains("33 99") && !seen.contains("hello") {
                typing.write_all(b"hello\r").unwrap();
            }
        }
        // Closing this end would hang the other up.
        (seen, terminal)
    });
    assert_eq!(wait(&mut exec), 4);
    let (seen, _terminal) = reader.join().unwrap();
    assert!(seen.contains("/dev/pts/"), "{seen}");
    let after = tcgetattr(&theirs).unwrap();
    assert_eq!(
        (after.local_modes, after.input_modes, after.output_modes),
        (before.local_modes, before.input_modes, before.output_modes)
    );
}

fn files_are_copied_both_ways() {
    let installation = installation();
    start(&installation, "x", "sleep 1000");
    let here = installation.folder.path().join("here");
    fs::create_dir_all(here.join("sub")).unwrap();
    let content: Vec<u8> = (0..2_000_000_u32).map(|number| (number % 251) as u8).collect();
    fs::write(here.join("blob"), &content).unwrap();
    fs::write(here.join("sub/small"), "small").unwrap();
    installation.run(&["cp", here.join("blob").to_str().unwrap(), "x:/tmp/"]).ok();
    assert_eq!(
        installation.run(&["exec", "x", "--", "wc", "-c", "/tmp/blob"]).ok().trim(),
        "2000000 /tmp/blob"
    );
    let back = installation.folder.path().join("back");
    installation.run(&["cp", "x:/tmp/blob", back.to_str().unwrap()]).ok();
    assert!(fs::read(&back).unwrap() == content, "the file came back changed");
    installation.run(&["cp", here.to_str().unwrap(), "x:/tmp/tree"]).failed(2);
    installation.run(&["cp", "-r", here.to_str().unwrap(), "x:/tmp/tree"]).ok();
    let tree = installation.folder.path().join("tree");
    installation.run(&["cp", "-r", "x:/tmp/tree", tree.to_str().unwrap()]).ok();
    assert_eq!(fs::read_to_string(tree.join("sub/small")).unwrap(), "small");
    finish(&mut installation.command(&["cp", "-", "x:/tmp/piped"]), b"through a pipe").ok();
    assert_eq!(installation.run(&["cp", "x:/tmp/piped", "-"]).ok(), "through a pipe");
    let said = installation.run(&["cp", "x:/no/such", "-"]).failed(3);
    assert!(said.contains("/no/such"), "{said}");
    assert!(!installation.folder.path().join("such").exists());
}

fn ask(address: &str) -> String {
    eventually("the server in the guest answers", || {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        (!answer.is_empty()).then_some(answer)
    })
}

fn a_server_in_the_guest_is_reached_by_its_port_and_by_port_forward() {
    let installation = installation();
    let script = "while true; do echo served by $(uname -n) | nc -l -p 8000; done";
    installation.run(&["run", "-d", "--name", "x", "-p", "8000", "busybox", "--", "sh", "-c", script]).ok();
    let vm = installation.inspect("x");
    let endpoint = vm["incarnation"]["endpoints"][0]["address"].as_str().unwrap();
    assert!(endpoint.starts_with("127.0.0.1:"), "{endpoint}");
    assert_eq!(ask(endpoint), "served by x\n");
    let mut command = installation.command(&["--json", "port-forward", "x", "8000"]);
    let mut forward = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(forward.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let told: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(ask(told["address"].as_str().unwrap()), "served by x\n");
    support::signal(&forward, "INT");
    assert_eq!(wait(&mut forward), 0);
}

/// What a GET of this URL answers: the name is in the `Host` header, the address is the ingress's, as a name server would say.
fn get(url: &str) -> String {
    let authority = url.strip_prefix("http://").unwrap().trim_end_matches('/');
    let (host, port) = authority.rsplit_once(':').unwrap();
    assert!(host.ends_with(".localhost"), "{url}");
    let mut stream = TcpStream::connect(("127.0.0.1", port.parse::<u16>().unwrap())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET /hello HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn a_port_of_a_guest_answers_at_its_url_while_it_runs() {
    let installation = installation();
    // It listens on the guest's loopback only: the way in is the agent's.
    let server = "echo hello > /tmp/hello; busybox httpd -f -p 127.0.0.1:8080 -h /tmp";
    installation.run(&["run", "-d", "--name", "web", "-p", "8080", "busybox", "--", "sh", "-c", server]).ok();
    let url = installation.inspect("web")["routes"][0]["url"].as_str().unwrap().to_owned();
    // The server in the guest may need a moment more than the guest.
    eventually("the guest answers", || get(&url).ends_with("hello\n").then_some(()));
    installation.run(&["stop", "web"]).ok();
    eventually("the route is gone", || get(&url).starts_with("HTTP/1.1 404").then_some(()));
    installation.run(&["rm", "web"]).ok();
    assert_clean(&installation);
}

fn a_paused_guest_stands_still_and_goes_on() {
    let installation = installation();
    start(&installation, "x", "i=0; while true; do i=$((i+1)); echo $i; sleep 0.1; done");
    let count = || installation.run(&["logs", "x"]).ok().lines().count();
    eventually("it counts", || (count() > 3).then_some(()));
    installation.run(&["pause", "x"]).ok();
    // What it wrote before that has come by now.
    thread::sleep(Duration::from_millis(500));
    let paused = count();
    thread::sleep(Duration::from_millis(1_000));
    assert_eq!(count(), paused);
    installation.run(&["exec", "x", "--", "true"]).failed(4);
    installation.run(&["resume", "x"]).ok();
    eventually("it counts on", || (count() > paused + 3).then_some(()));
}

/// A workload that counts into a file it holds open under a name that is gone, and serves.
const HOLDER: &str = "\
    exec 3<>/tmp/held; busybox rm /tmp/held; echo $$ > /tmp/pid; \
    (while true; do echo served by $(uname -n) | nc -l -p 8000; done) & \
    i=0; while true; do i=$((i+1)); echo $i >&3; echo $i > /tmp/count; sleep 0.1; done";

fn inside(installation: &Installation, vm: &str, script: &str) -> String {
    installation.run(&["exec", vm, "--", "sh", "-c", script]).ok().trim().to_owned()
}

/// How far the workload has counted, as its open file says.
fn held(installation: &Installation, vm: &str) -> u64 {
    let script = "busybox tail -n 1 /proc/$(cat /tmp/pid)/fd/3";
    inside(installation, vm, script).parse().unwrap()
}

fn a_pause_keeps_a_process_and_its_open_file() {
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

fn assert_clock_is_right(installation: &Installation, vm: &str) {
    let guest: u64 = inside(installation, vm, "busybox date +%s").parse().unwrap();
    let host = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(host.abs_diff(guest) <= 2, "the guest's clock says {guest}, the host's {host}");
}

fn a_snapshot_is_restored_twice_and_both_go_on() {
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

fn a_kill_9_in_the_middle_of_a_snapshot_leaves_the_guest_running() {
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

fn three_guests_survive_a_kill_9_of_flames() {
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

fn a_watched_run_goes_on_over_a_kill_9_of_flames() {
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

fn what_keeps_a_guest_from_running_is_told_and_leaves_nothing() {
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

fn a_stopped_guest_costs_no_process_and_a_removed_one_nothing() {
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

fn a_persistent_disk_outlives_a_run_and_an_ephemeral_one_does_not() {
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

fn a_run_that_lasts_too_long_is_stopped() {
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

fn an_ephemeral_up_leaves_no_guest_behind() {
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

fn a_guest_on_a_host_of_its_own_survives_kills_of_its_server_and_of_its_host() {
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
