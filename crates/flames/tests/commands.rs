//! The commands, each against a real `flames up` with the simulated driver.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use support::{Installation, eventually, finish, flames, signal, wait};

fn with_image() -> Installation {
    let installation = Installation::simulated();
    installation.import_small_image();
    installation
}

fn with_vm(name: &str) -> Installation {
    let installation = with_image();
    installation.run(&["run", "-d", "--name", name, "test", "--", "sleep", "infinity"]).ok();
    installation
}

#[test]
fn a_vm_is_created_listed_inspected_stopped_started_and_removed() {
    let installation = with_image();
    let created =
        ["run", "-d", "--name", "web", "--label", "team=web", "-p", "80", "test", "--", "sleep", "infinity"];
    assert_eq!(installation.run(&created).ok(), "web\n");
    let listed = installation.run(&["ps", "--filter", "label=team=web"]).ok();
    assert!(listed.contains("web") && listed.contains("running") && listed.contains("->80"), "{listed}");
    assert!(!installation.run(&["ps", "--filter", "label=team=db"]).ok().contains("web"));
    let shown = installation.run(&["inspect", "web"]).ok();
    for told in ["web", "running", "team=web", "sleep infinity", "preparing", "starting"] {
        assert!(shown.contains(told), "{told} is not in {shown}");
    }
    installation.run(&["stop", "web"]).ok();
    assert_eq!(installation.inspect("web")["state"], "stopped");
    assert!(!installation.run(&["ps"]).ok().contains("web"), "what is over is shown with --all");
    installation.run(&["start", "web"]).ok();
    let vm = installation.inspect("web");
    assert_eq!((&vm["state"], &vm["run"]), (&"running".into(), &2.into()));
    let said = installation.run(&["rm", "web"]).failed(4);
    assert!(said.contains("flames rm -f web"), "{said}");
    installation.run(&["rm", "-f", "web"]).ok();
    installation.run(&["inspect", "web"]).failed(3);
    assert_eq!(installation.run(&["-q", "ps", "--all"]).ok(), "");
}

#[test]
fn run_ends_as_its_workload_ends_and_keeps_its_outputs_apart() {
    let installation = with_image();
    let said = installation.run(&["-q", "run", "test", "--", "echo", "to", "stdout"]);
    assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (0, "to stdout\n", ""));
    let said = installation.run(&["-q", "run", "test", "--", "warn", "to stderr"]);
    assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (0, "", "to stderr\n"));
    installation.run(&["run", "test", "--", "exit", "42"]).failed(42);
    let phases = installation.run(&["run", "test", "--", "true"]);
    for phase in ["creating", "booting", "running"] {
        assert!(phases.stderr.contains(phase), "{phase} is not in {}", phases.stderr);
    }
}

#[test]
fn run_with_rm_leaves_no_vm() {
    let installation = with_image();
    installation.run(&["run", "--rm", "test", "--", "exit", "5"]).failed(5);
    let said = installation.run(&["run", "--rm", "--name", "gone", "test", "--", "nosuch"]).failed(127);
    assert!(said.contains("Without --rm") && !said.contains("inspect gone"), "{said}");
    assert_eq!(installation.run(&["-q", "ps", "--all"]).ok(), "");
}

#[test]
fn a_run_whose_output_nobody_reads_any_more_ends_and_leaves_no_vm() {
    let installation = with_image();
    let mut command = installation.command(&["run", "--rm", "-i", "test", "--", "cat"]);
    let mut run = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut input = run.stdin.take().unwrap();
    input.write_all(b"first\n").unwrap();
    let mut output = BufReader::new(run.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "first\n");
    drop(output);
    input.write_all(b"second\n").unwrap();
    // As a shell tells of a program that SIGPIPE ended.
    assert_eq!(wait(&mut run), 141);
    assert_eq!(installation.run(&["-q", "ps", "--all"]).ok(), "");
}

#[test]
fn an_image_without_a_workload_stays_up_and_is_told_how_to_be_used() {
    let installation = with_image();
    let ran = installation.run(&["run", "--name", "bare", "test"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "bare\n"), "{}", ran.stderr);
    for told in ["stays up", "flames exec bare -- ", "flames stop bare"] {
        assert!(ran.stderr.contains(told), "{told} is not in {}", ran.stderr);
    }
    assert_eq!(installation.inspect("bare")["state"], "running");
    assert_eq!(installation.run(&["exec", "bare", "--", "echo", "hello"]).ok(), "hello\n");
    let vm = installation.run(&["--json", "run", "--name", "plain", "test"]).json();
    assert_eq!((&vm["name"], &vm["state"]), (&"plain".into(), &"running".into()));
    let ran = installation.run(&["run", "--rm", "--name", "passing", "test"]);
    assert!(ran.code == 0 && ran.stderr.contains("removes"), "{} {}", ran.code, ran.stderr);
}

#[test]
fn a_workload_that_is_not_in_the_image_is_told_with_a_shell_s_code() {
    let installation = with_image();
    let said = installation.run(&["run", "--name", "x", "test", "--", "nosuch"]).failed(127);
    assert!(said.contains("nosuch") && said.contains("not found"), "{said}");
    assert_eq!(installation.inspect("x")["state"], "failed");
    // Also by who does not wait for its end.
    let said = installation.run(&["run", "-d", "--name", "y", "test", "--", "nosuch"]).failed(127);
    assert!(said.contains("nosuch") && said.contains("not found"), "{said}");
    assert_eq!(installation.run(&["run", "-d", "--name", "z", "test", "--", "true"]).ok(), "z\n");
}

#[test]
fn ctrl_c_reaches_the_workload_as_sigint() {
    let installation = with_image();
    let mut command = installation.command(&["run", "--name", "x", "test", "--", "sleep", "infinity"]);
    let mut run = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(run.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("running") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it never ran");
    }
    // The signal is heard from when the command began; the workload gets it once it is attached to.
    eventually("the workload is attached to", || {
        let processes = installation.run(&["exec", "x", "--", "true"]);
        (processes.code == 0).then_some(())
    });
    signal(&run, "INT");
    assert_eq!(wait(&mut run), 130);
    assert_eq!(installation.inspect("x")["incarnation"]["exit"]["signal"], 2);
}

#[test]
fn run_passes_its_standard_input_to_the_workload_until_its_end() {
    let installation = with_image();
    let said = finish(&mut installation.command(&["-q", "run", "--rm", "-i", "test", "--", "cat"]), b"hi\n");
    assert_eq!(said.ok(), "hi\n");
    let said = finish(&mut installation.command(&["-q", "run", "--rm", "-i", "test", "--", "cat"]), b"");
    assert_eq!(said.ok(), "", "an input that is empty ends too");
    let said = finish(&mut installation.command(&["-q", "run", "--rm", "test", "--", "cat"]), b"unread\n");
    assert_eq!(said.ok(), "", "without -i the workload has none");
    let said = finish(&mut installation.command(&["-q", "run", "-i", "test", "--", "exit", "3"]), b"late");
    said.failed(3);
}

#[test]
fn what_happened_to_hosts_is_shown_apart() {
    let installation = with_image();
    let events = installation.run(&["--json", "events", "--controllers"]).ok();
    assert!(events.contains("controller_registered") && !events.contains("image_imported"), "{events}");
    installation.run(&["controllers", "cordon", "local"]).ok();
    let events = installation.run(&["events", "--controllers"]).ok();
    assert!(events.contains("controller cordoned"), "{events}");
    assert!(!installation.run(&["events"]).ok().contains("controller"));
    installation.run(&["events", "--controllers", "--vm", "x"]).failed(2);
}

#[test]
fn exec_has_its_own_input_output_and_exit_code() {
    let installation = with_vm("x");
    assert_eq!(installation.run(&["exec", "x", "--", "echo", "in", "there"]).ok(), "in there\n");
    installation.run(&["exec", "x", "--", "exit", "9"]).failed(9);
    let said = finish(&mut installation.command(&["exec", "-i", "x", "--", "cat"]), b"piped\nthrough");
    assert_eq!(said.ok(), "piped\nthrough");
    let said = installation.run(&["exec", "x", "nosuch"]).failed(127);
    assert!(said.contains("nosuch"), "{said}");
    installation.run(&["exec", "nobody", "--", "true"]).failed(3);
    installation.run(&["stop", "x"]).ok();
    let said = installation.run(&["exec", "x", "--", "true"]).failed(4);
    assert!(said.contains("flames start x"), "{said}");
}

#[test]
fn logs_and_attach_show_what_was_written() {
    let installation = with_image();
    installation.run(&["-q", "run", "--name", "x", "test", "--", "echo", "written"]).ok();
    assert_eq!(installation.run(&["logs", "x"]).ok(), "written\n");
    assert_eq!(installation.run(&["logs", "-f", "x"]).ok(), "written\n");
    assert_eq!(installation.run(&["logs", "--tail", "0", "x"]).ok(), "");
    assert_eq!(installation.run(&["attach", "--no-stdin", "x"]).ok(), "written\n");
    let chunk: serde_json::Value = installation.run(&["--json", "logs", "x"]).json();
    assert_eq!((&chunk["stream"], &chunk["text"]), (&"stdout".into(), &"written\n".into()));
}

#[test]
fn a_vm_is_paused_and_runs_on() {
    let installation = with_vm("x");
    installation.run(&["pause", "x"]).ok();
    assert_eq!(installation.inspect("x")["state"], "paused");
    installation.run(&["exec", "x", "--", "true"]).failed(4);
    installation.run(&["resume", "x"]).ok();
    installation.run(&["exec", "x", "--", "true"]).ok();
    installation.run(&["restart", "x"]).ok();
    assert_eq!(installation.inspect("x")["run"], 2);
}

#[test]
fn a_snapshot_is_created_listed_inspected_restored_and_removed() {
    let installation = with_vm("x");
    assert_eq!(installation.run(&["-q", "snapshot", "create", "x", "--name", "before"]).ok(), "before\n");
    let watched = installation.run(&["snapshot", "create", "x"]);
    assert!(watched.stderr.contains("asking for a snapshot"), "{}", watched.stderr);
    let made_up = watched.ok().trim().to_owned();
    assert!(made_up.starts_with("x-"), "{made_up}");
    let listed = installation.run(&["snapshot", "ls"]).ok();
    assert!(listed.contains("before") && listed.contains(&made_up) && listed.contains("ready"), "{listed}");
    assert_eq!(installation.run(&["-q", "snapshots", "ls", "--vm", "x"]).ok().lines().count(), 2);
    let shown = installation.run(&["snapshot", "inspect", "before"]).ok();
    for told in ["before", "ready", "simulated", "pieces"] {
        assert!(shown.contains(told), "{told} is not in {shown}");
    }
    let json = installation.run(&["--json", "snapshot", "inspect", "before"]).json();
    assert_eq!((&json["state"], &json["vm_name"]), (&"ready".into(), &"x".into()));
    assert_eq!(installation.run(&["-q", "restore", "before", "--name", "y", "-l", "copy=yes"]).ok(), "y\n");
    let copy = installation.inspect("y");
    assert_eq!(
        (&copy["state"], &copy["restored_from"], &copy["labels"]["copy"]),
        (&"running".into(), &json["id"], &"yes".into())
    );
    let shown = installation.run(&["inspect", "y"]).ok();
    assert!(shown.contains("restored from") && shown.contains("restoring"), "{shown}");
    assert_eq!(installation.run(&["exec", "y", "--", "echo", "alive"]).ok(), "alive\n");
    let events = installation.run(&["--json", "events", "--vm", "x"]).ok();
    for told in ["snapshot_created", "snapshot_state"] {
        assert!(events.contains(told), "{told} is not in {events}");
    }
    let difference = ["--json", "snapshot", "create", "x", "--diff", "--name", "difference"];
    let difference = installation.run(&difference).json();
    assert_eq!(difference["state"], "ready");
    let listed = installation.run(&["snapshot", "ls"]).ok();
    let line = listed.lines().find(|line| line.starts_with("difference")).unwrap();
    assert!(line.contains(&made_up), "{listed}");
    installation.run(&["snapshot", "create", "x", "--diff", "--base", "before"]).failed(4);
    installation.run(&["snapshot", "create", "x", "--base", "before"]).failed(2);
    installation.run(&["snapshot", "create", "y", "--diff"]).failed(4);
    installation.run(&["snapshot", "rm", "before", &made_up, "difference"]).ok();
    assert_eq!(installation.run(&["-q", "snapshot", "ls"]).ok(), "");
    assert_eq!(installation.run(&["exec", "y", "--", "echo", "alive"]).ok(), "alive\n");
}

#[test]
fn what_cannot_be_saved_or_restored_is_told() {
    let installation = with_vm("x");
    installation.run(&["snapshot", "create", "nobody"]).failed(3);
    installation.run(&["restore", "nothing"]).failed(3);
    installation.run(&["snapshot", "inspect", "nothing"]).failed(3);
    installation.run(&["snapshot", "rm", "nothing"]).failed(3);
    installation.run(&["snapshot", "create", "x", "--name", "Not A Name"]).failed(2);
    installation.run(&["-q", "snapshot", "create", "x", "--name", "s"]).ok();
    let said = installation.run(&["snapshot", "create", "x", "--name", "s"]).failed(4);
    assert!(said.contains("`s`"), "{said}");
    installation.run(&["restore", "s", "--name", "x"]).failed(4);
    installation.run(&["stop", "x"]).ok();
    let said = installation.run(&["snapshot", "create", "x"]).failed(4);
    assert!(said.contains("only a running or paused one can be saved"), "{said}");
}

#[test]
fn a_port_of_the_guest_is_reached_here() {
    let installation = with_vm("x");
    let mut command = installation.command(&["--json", "port-forward", "x", "80"]);
    let mut forward = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(forward.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let told: serde_json::Value = serde_json::from_str(&line).unwrap();
    // A port of a simulated guest gives back what it gets.
    let mut stream = TcpStream::connect(told["address"].as_str().unwrap()).unwrap();
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    stream.write_all(b"there and back").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = String::new();
    stream.read_to_string(&mut back).unwrap();
    assert_eq!(back, "there and back");
    signal(&forward, "INT");
    assert_eq!(wait(&mut forward), 0);
    installation.run(&["port-forward", "nobody", "80"]).failed(3);
}

#[test]
fn events_tell_what_happened_in_order_and_can_be_followed() {
    let installation = with_image();
    installation.run(&["run", "--name", "x", "test", "--", "true"]).ok();
    installation.run(&["rm", "x"]).ok();
    let told = installation.run(&["--json", "events"]).ok();
    let events: Vec<serde_json::Value> =
        told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let types: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let place = |of: &str| {
        types.iter().position(|each| *each == of).unwrap_or_else(|| panic!("{of} not in {types:?}"))
    };
    assert!(place("image_imported") < place("vm_created") && place("vm_created") < place("vm_placed"));
    assert!(place("vm_placed") < place("vm_released") && place("vm_released") < place("vm_deleted"));
    let after = events[place("vm_created") - 1]["position"].as_str().unwrap();
    let mut command = installation.command(&["--json", "events", "-f", "--after", after]);
    let mut follower = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let first: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(first["type"], "vm_created");
    installation.run(&["run", "--name", "y", "test", "--", "true"]).ok();
    assert!(lines.any(|line| line.unwrap().contains("\"y\"")), "a follower sees what comes");
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn a_run_whose_time_was_up_says_so() {
    let installation = with_image();
    installation
        .run(&["run", "-d", "--name", "x", "--timeout", "1s", "test", "--", "sleep", "infinity"])
        .ok();
    eventually("it is stopped", || (installation.inspect("x")["state"] == "stopped").then_some(()));
    let reason = &installation.inspect("x")["reason"];
    assert_eq!(reason["code"], "timed_out", "{reason}");
}

#[test]
fn nothing_is_placed_on_a_cordoned_controller() {
    let installation = with_image();
    installation.run(&["controllers", "cordon", "local"]).ok();
    let mut run = installation
        .command(&["run", "--name", "x", "test", "--", "true"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the VM is told to have no place", || {
        let vm = installation.run(&["--json", "inspect", "x"]);
        (vm.code == 0 && vm.stdout.contains("no_capacity")).then_some(())
    });
    assert_eq!(installation.inspect("x")["state"], "pending");
    installation.run(&["controllers", "uncordon", "local"]).ok();
    assert_eq!(wait(&mut run), 0);
    installation.run(&["controllers", "cordon", "nobody"]).failed(3);
    let listed = installation.run(&["controllers"]).ok();
    assert!(listed.contains("local") && listed.contains("simulated"), "{listed}");
}

#[test]
fn what_is_not_allowed_names_the_field_and_leaves_no_vm() {
    let installation = with_image();
    let refused = |arguments: &[&str], told: &str| {
        let mut all = vec!["run"];
        all.extend_from_slice(arguments);
        let said = installation.run(&all).failed(2);
        assert!(said.contains(told), "{told} is not in {said}");
    };
    refused(&["--cpus", "0", "test"], "spec.vcpus");
    refused(&["--memory", "10T", "test"], "spec.memory_mib");
    refused(&["--name", &"n".repeat(10_240), "test"], "name");
    refused(&["--label", "a=\u{7}", "test"], "labels");
    refused(&["-p", "0", "test"], "1 to 65535");
    refused(&["--secret-env", "A=b", "test"], "environment");
    refused(&["-i", "-d", "test"], "--detach");
    let said = installation.run(&["run", "nosuch"]).failed(3);
    assert!(said.contains("flames image import"), "{said}");
    let said = installation.run(&["run", "--kernel", "test", "test"]).failed(2);
    assert!(said.contains("spec.kernel"), "{said}");
    assert_eq!(installation.run(&["-q", "ps", "--all"]).ok(), "");
}

#[test]
fn a_secret_cannot_be_read_back() {
    let installation = with_image();
    let mut command =
        installation.command(&["run", "--name", "x", "--secret-env", "KEY", "test", "--", "true"]);
    finish(command.env("KEY", "hunter2"), b"").ok();
    let shown = installation.run(&["--json", "inspect", "x"]).ok();
    assert!(shown.contains("KEY") && !shown.contains("hunter2"), "{shown}");
    assert!(!installation.run(&["--json", "events"]).ok().contains("hunter2"));
}

#[test]
fn images_are_imported_listed_refused_and_removed() {
    let installation = with_image();
    let listed = installation.run(&["--json", "image", "ls"]).json();
    assert_eq!(listed[0]["name"], "test");
    installation.run(&["run", "--name", "x", "test", "--", "true"]).ok();
    let said = installation.run(&["image", "rm", "test"]).failed(4);
    assert!(said.contains("IMAGE_IN_USE"), "{said}");
    installation.run(&["rm", "x"]).ok();
    installation.run(&["image", "rm", "test"]).ok();
    installation.run(&["image", "rm", "test"]).failed(3);
    let bad = |arguments: &[&str], input: &[u8]| {
        let mut all = vec!["image", "import", "bad"];
        all.extend_from_slice(arguments);
        finish(&mut installation.command(&all), input).failed(2)
    };
    assert!(bad(&["-"], b"").contains("empty"));
    assert!(bad(&["-"], b"this is no archive at all").contains("errors/IMAGE_"));
    let said = bad(&["/bin/sh", "--kind", "kernel"], b"");
    assert!(said.contains("ordinary program") && !said.contains("uploads"), "{said}");
    let hostile = hostile_archive();
    let said = bad(&["-"], &hostile);
    assert!(said.contains("IMAGE_REFUSED") && said.contains("escape"), "{said}");
    let devices = archive_with_a_device();
    let said = bad(&["-"], &devices);
    assert!(said.contains("IMAGE_REFUSED") && said.contains("--device-nodes skip"), "{said}");
    let skipped = &["image", "import", "skipped", "-", "--device-nodes", "skip"];
    finish(&mut installation.command(skipped), &devices).ok();
    installation.run(&["image", "rm", "skipped"]).ok();
    installation.run(&["image", "import", "x", "/no/such/file"]).failed(3);
    assert_eq!(installation.run(&["-q", "image", "ls"]).ok(), "");
    let left = std::fs::read_dir(installation.data().join("staging/uploads")).unwrap().count();
    assert_eq!(left, 0, "nothing half-made stays");
}

/// A tar whose one file lies outside of it.
fn hostile_archive() -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..12].copy_from_slice(b"../../escape");
    header.set_size(4);
    header.set_mode(0o644);
    header.set_cksum();
    let mut archive = tar::Builder::new(Vec::new());
    archive.append(&header, &b"evil"[..]).unwrap();
    archive.into_inner().unwrap()
}

/// A tar with `dev/null`, as one of a whole system has it.
fn archive_with_a_device() -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path("dev/null").unwrap();
    header.set_entry_type(tar::EntryType::Char);
    header.set_device_major(1).unwrap();
    header.set_device_minor(3).unwrap();
    header.set_mode(0o666);
    header.set_size(0);
    header.set_cksum();
    let mut archive = tar::Builder::new(Vec::new());
    archive.append(&header, &b""[..]).unwrap();
    archive.into_inner().unwrap()
}

#[test]
fn words_that_are_no_command_are_told_in_json_too() {
    let said = finish(flames().args(["--json", "nosuch"]), b"").failed(2);
    let told: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(told["error"]["exit_code"], 2);
    assert!(told["error"]["message"].as_str().unwrap().contains("nosuch"), "{said}");
    let nowhere = tempfile::tempdir().unwrap();
    let others = ["exec", "x", "--", "--json", "--nosuch"];
    let said = finish(flames().env("HOME", nowhere.path()).args(others), b"").failed(5);
    assert!(said.starts_with("flames: "), "{said}");
}

#[test]
fn help_versions_and_completions_need_no_server() {
    let nowhere = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| finish(flames().env("HOME", nowhere.path()).args(arguments), b"");
    let help = run(&["--help"]).ok();
    assert!(
        help.contains("Exit codes") && help.contains("flames up") && !help.contains("__convert-image"),
        "{help}"
    );
    for command in ["up", "run", "exec", "cp", "doctor"] {
        let help = run(&[command, "--help"]).ok();
        assert!(help.contains("Example"), "{command}: {help}");
    }
    let version = run(&["--json", "version"]).json();
    assert_eq!(
        (&version["client"], &version["server"]),
        (&env!("CARGO_PKG_VERSION").into(), &serde_json::Value::Null)
    );
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&["completions", shell]).ok().contains("port-forward"));
    }
    run(&["ps"]).failed(5);
    run(&["nosuch"]).failed(2);
    let error: serde_json::Value = serde_json::from_str(&run(&["--json", "ps"]).failed(5)).unwrap();
    assert_eq!(error["error"]["exit_code"], 5);
}

#[test]
fn doctor_tells_what_keeps_vms_from_starting_and_what_to_do() {
    let nowhere = tempfile::tempdir().unwrap();
    let mut command = flames();
    command
        .env("HOME", nowhere.path())
        .env("FLAMES_QEMU", "/no/such/qemu")
        .args(["doctor", "--agent", "/bin/sh"]);
    let said = finish(&mut command, b"");
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.stdout.contains("FATAL") && said.stdout.contains("/no/such/qemu"), "{}", said.stdout);
    assert!(
        said.stderr.contains("apt install qemu-system-x86") && said.stderr.contains("crt-static"),
        "{}",
        said.stderr
    );
    let checks: serde_json::Value = serde_json::from_str(&finish(command.arg("--json"), b"").stdout).unwrap();
    let verdict = |name: &str| {
        let check = checks.as_array().unwrap().iter().find(|check| check["name"] == name).unwrap();
        check["verdict"].as_str().unwrap().to_owned()
    };
    assert_eq!((verdict("qemu").as_str(), verdict("data folder").as_str()), ("fatal", "ok"));
}
