//! The real binary with real guests behind Firecracker's jailer: needs root, `/dev/kvm`, `firecracker` and `jailer`, a kernel
//! (`FLAMES_TEST_KERNEL`, with `FLAMES_TEST_CPU_TEMPLATE` when it needs one), the agent (`FLAMES_GUEST_AGENT`) and busybox as the user land.
//! `flames up` runs in a network namespace of the test's own, with a small internet around it.

// A case fails by panicking: an answer that must be there is unwrapped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod host;
mod lab;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use flames_conformance_runner::{CASE_LIMIT, Case, Suite, Time, run};
use host::{BOOT, Host};
use lab::{METADATA, OTHER_PORT, PRIVATE, PUBLIC, PUBLIC_TOO, PUBLIC6};
use support::{eventually, wait};

fn main() -> ExitCode {
    let unavailable = host::unavailable();
    // Not in a case, whose time is limited; and nothing is started to list them.
    if unavailable.is_none() && !std::env::args().any(|argument| argument == "--list") {
        host::base();
    }
    let code = run(Suite {
        name: "real-firecracker",
        provider: "flames",
        unavailable,
        time: Time::Real,
        cases: cases(),
    });
    host::clear_all();
    code
}

macro_rules! cases {
    ($($case:ident),+ $(,)?) => {
        fn cases() -> Vec<Case> {
            vec![$(Case {
                name: stringify!($case),
                ignored: None,
                // One of them boots a guest.
                limit: CASE_LIMIT + BOOT,
                run: Box::new(|| Box::pin(async { $case() })),
            }),+]
        }
    };
}

cases![
    a_command_runs_in_a_guest_that_boots_and_reaches_nothing,
    a_snapshot_restored_twice_has_two_addresses_and_neither_reaches_the_other,
    a_guest_is_restored_from_a_difference_whose_base_is_removed,
    a_port_answers_at_its_url_at_the_guests_address_and_by_port_forward,
    a_guest_reaches_what_is_public_or_named_and_no_private_address_else,
    a_guest_reaches_nothing_under_deny_and_all_when_unrestricted,
    a_list_of_names_and_ports_is_kept_to,
    guests_of_one_private_network_reach_each_other,
    guests_survive_a_kill_9_of_flames_with_their_network,
    a_block_that_is_used_up_is_told_and_the_next_address_that_is_free_is_used,
];

fn a_command_runs_in_a_guest_that_boots_and_reaches_nothing() {
    let host = Host::new();
    let script = format!(
        "uname -n; busybox ip -4 -o address show dev eth0; busybox nc -w 12 {PUBLIC} 80 </dev/null || echo unreached; exit 7"
    );
    let run = ["-q", "run", "--rm", "--name", "first", "--memory", "64M", "--disk", "64M", "busybox"];
    let mut command = host.installation.command(&[&run[..], &["--", "sh", "-c", &script]].concat());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    // A boot may take longer than other commands; the case's own limit ends it.
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(7), "{said}");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "first");
    assert!(lines[1].contains("10.77.0.2/30"), "{lines:?}");
    assert_eq!(lines[2], "unreached");
    host.assert_clean();
}

fn a_snapshot_restored_twice_has_two_addresses_and_neither_reaches_the_other() {
    let host = Host::with_saved_guest(&["--address-block-ipv6", "fd77::/64"]);
    for name in ["y", "z"] {
        host.restore(name, &[]);
    }
    let (of_y, of_z) = (host.address("y"), host.address("z"));
    assert_ne!(of_y, of_z);
    let looked_at = [("y", &of_y, &of_z), ("z", &of_z, &of_y)];
    let macs: BTreeSet<String> = thread::scope(|scope| {
        let host = &host;
        let each = looked_at.map(|(name, own, other)| scope.spawn(move || is_itself(host, name, own, other)));
        each.map(|mac| mac.join().unwrap()).into()
    });
    assert_eq!(macs.len(), 2, "{macs:?}");
    host.installation.run(&["rm", "-f", "y", "z"]).ok();
    host.assert_clean();
}

/// Asserts that a restored guest is what its host says, and returns its MAC address.
fn is_itself(host: &Host, name: &str, own: &str, other: &str) -> String {
    let script =
        "uname -n; cat /sys/class/net/eth0/address; busybox ip -o address show dev eth0 scope global";
    let told = host.inside(name, script);
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!((lines.len(), lines[0]), (4, name), "{lines:?}");
    assert!(lines[2].contains(&format!("{own}/30")), "{lines:?}");
    let shown = host.installation.inspect(name);
    let own6 = shown["incarnation"]["address"]["ipv6"].as_str().unwrap();
    assert!(own6.starts_with("fd77::") && lines[3].contains(&format!("{own6}/126")), "{lines:?}");
    // What its processes opened before it was saved is served under the new address.
    assert!(host.answers(&format!("http://{own}:8000/")), "{name}");
    host.assert_reaches(name, &[PUBLIC, PUBLIC6], &[&format!("{other} 8000")]);
    lines[1].to_owned()
}

fn a_guest_is_restored_from_a_difference_whose_base_is_removed() {
    let host = Host::with_saved_guest(&[]);
    let vm = "web";
    host.restore(vm, &[]);
    let run = |arguments: &[&str]| host.installation.run(arguments);
    let mark = |word: &str| {
        let script = format!("echo {word} > /run/mark; echo {word} > /mark");
        let marking = || run(&["exec", vm, "--", "sh", "-c", &script]);
        // Firecracker ends what is open to a guest as it saves it, and its host connects anew.
        eventually("it is marked", || (marking().code == 0).then_some(()));
    };
    mark("one");
    let full = run(&["--json", "snapshot", "create", vm, "--name", "full"]).json();
    mark("two");
    let create = ["--json", "snapshot", "create", vm, "--name", "difference", "--diff", "--base", "full"];
    let difference = run(&create).json();
    assert_eq!(difference["base"], full["id"], "{difference:#}");
    let size = |snapshot: &serde_json::Value, of: &str| snapshot[of].as_u64().unwrap();
    assert_eq!(size(&full, "own_bytes"), size(&full, "stored_bytes"));
    println!(
        "report: stored {} bytes whole, {} of the difference's own",
        size(&full, "stored_bytes"),
        size(&difference, "own_bytes")
    );
    assert!(size(&difference, "own_bytes") < size(&difference, "stored_bytes"), "{difference:#}");
    let listed = run(&["snapshot", "ls"]).ok();
    let line = listed.lines().find(|line| line.starts_with("difference")).unwrap().to_owned();
    assert!(line.contains("full"), "{listed}");
    run(&["rm", "-f", vm]).ok();
    run(&["snapshot", "rm", "full"]).ok();
    run(&["-q", "restore", "difference", "--name", "again"]).ok();
    assert_eq!(host.inside("again", "cat /run/mark /mark"), "two\ntwo");
    assert!(host.answers(&format!("http://{}:8000/", host.address("again"))), "its server goes on");
    run(&["rm", "-f", "again"]).ok();
    host.assert_clean();
}

fn a_port_answers_at_its_url_at_the_guests_address_and_by_port_forward() {
    let host = Host::with_saved_guest(&[]);
    host.restore("web", &[]);
    let shown = host.installation.inspect("web");
    let url = shown["routes"][0]["url"].as_str().unwrap();
    let endpoint = shown["incarnation"]["endpoints"][0]["address"].as_str().unwrap();
    assert_eq!(endpoint, format!("{}:8000", host.address("web")));
    eventually("its URL answers", || host.answers(url).then_some(()));
    assert!(host.answers(&format!("http://{endpoint}/")));
    let mut command = host.installation.command(&["--json", "port-forward", "web", "8000"]);
    let mut forward = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(forward.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let told: serde_json::Value = serde_json::from_str(&line).unwrap();
    let from = format!("http://{}/", told["address"].as_str().unwrap());
    let mut curl = Command::new("curl");
    assert_eq!(support::finish(curl.args(["-sS", "-m", "20", &from]), b"").ok(), host::PAGE);
    support::signal(&forward, "INT");
    assert_eq!(wait(&mut forward), 0);
    host.installation.run(&["rm", "-f", "web"]).ok();
    host.assert_clean();
}

/// The host, as a guest sees it.
const HOST: &str = "169.254.77.1";

/// Asserts what two guests reach, at the same time.
fn assert_both(host: &Host, [one, other]: [(&str, &[&str], &[&str]); 2]) {
    thread::scope(|scope| {
        scope.spawn(|| host.assert_reaches(one.0, one.1, one.2));
        host.assert_reaches(other.0, other.1, other.2);
    });
}

fn a_guest_reaches_what_is_public_or_named_and_no_private_address_else() {
    let host = Host::with_saved_guest(&[]);
    host.restore("allowed", &[]);
    host.restore("named", &["--egress", "allow", "--allow", "10.40.0.0/16"]);
    assert_both(
        &host,
        [
            ("allowed", &[PUBLIC], &[PRIVATE, METADATA, HOST]),
            ("named", &[PUBLIC, PRIVATE], &[METADATA, HOST]),
        ],
    );
    assert_eq!(host.resolve("allowed", "good.test").as_deref(), Some(PUBLIC));
    assert_eq!(host.resolve("allowed", "inside.test"), None, "a name does not lead to a private address");
    let shown = host.installation.run(&["inspect", "named"]).ok();
    assert!(shown.contains("allow 10.40.0.0/16") && shown.contains(&host.address("named")), "{shown}");
    host.installation.run(&["rm", "-f", "allowed", "named"]).ok();
    host.assert_clean();
}

fn a_guest_reaches_nothing_under_deny_and_all_when_unrestricted() {
    let host = Host::with_saved_guest(&[]);
    host.restore("denied", &["--egress", "deny"]);
    host.restore("open", &["--egress", "unrestricted"]);
    assert_both(
        &host,
        [
            ("denied", &[], &[PUBLIC, PRIVATE, METADATA, HOST]),
            ("open", &[PUBLIC, PRIVATE, METADATA], &[HOST]),
        ],
    );
    assert_eq!(host.resolve("denied", "good.test"), None);
    // Each is put under another policy while it runs.
    let set = |name: &str, policy: &str| {
        host.installation.run(&["network", "set", name, "--egress", policy]).ok();
        let shown = host.installation.inspect(name);
        assert_eq!(shown["network"]["in_force"], true, "{shown}");
        assert_eq!(shown["state"], "running");
    };
    set("denied", "allow");
    set("open", "deny");
    assert_both(
        &host,
        [
            ("denied", &[PUBLIC], &[PRIVATE, METADATA, HOST]),
            ("open", &[], &[PUBLIC, PRIVATE, METADATA, HOST]),
        ],
    );
    assert_eq!(host.resolve("denied", "good.test").as_deref(), Some(PUBLIC));
    let shown = host.installation.run(&["network", "show", "denied"]).ok();
    assert!(shown.contains("allow") && !shown.contains("not in force"), "{shown}");
    host.installation.run(&["rm", "-f", "denied", "open"]).ok();
    host.assert_clean();
}

fn a_list_of_names_and_ports_is_kept_to() {
    let host = Host::with_saved_guest(&[]);
    host.restore("listed", &["--allow-domain", "good.test", "--allow-port", "80"]);
    // Not before its name was asked for.
    host.assert_reaches("listed", &[], &[PUBLIC]);
    assert_eq!(host.resolve("listed", "good.test").as_deref(), Some(PUBLIC));
    assert_eq!(host.resolve("listed", "other.test"), None);
    let other_port = format!("{PUBLIC} {OTHER_PORT}");
    host.assert_reaches("listed", &[PUBLIC], &[PUBLIC_TOO, &other_port]);
    let refused = host.installation.run(&["restore", host::SAVED, "--egress", "allow", "--allow", "8.8.8.8"]);
    let said = refused.failed(2);
    assert!(said.contains("8.8.8.8/32"), "{said}");
    host.installation.run(&["rm", "-f", "listed"]).ok();
    host.assert_clean();
}

fn guests_of_one_private_network_reach_each_other() {
    let host = Host::with_saved_guest(&[]);
    for (name, network) in [("a", "team"), ("b", "team"), ("c", "others")] {
        host.restore(name, &["--egress", "deny", "--private-network", network]);
    }
    let [of_a, of_b, of_c] = ["a", "b", "c"].map(|name| format!("{} 8000", host.address(name)));
    assert_both(&host, [("a", &[&of_b], &[&of_c, PUBLIC]), ("c", &[], &[&of_a, &of_b])]);
    host.installation.run(&["rm", "-f", "a", "b", "c"]).ok();
    host.assert_clean();
}

fn guests_survive_a_kill_9_of_flames_with_their_network() {
    let mut host = Host::with_saved_guest(&[]);
    for name in ["a", "b"] {
        host.restore(name, &[]);
    }
    let before = ["a", "b"].map(|name| host.address(name));
    let monitors = host.monitors();
    assert_eq!(monitors.len(), 2, "{monitors:?}");
    // Whether the host has heard of it or not: it comes to that.
    host.installation.run(&["network", "set", "b", "--egress", "deny", "--no-wait"]).ok();
    host.installation.kill();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(host.monitors(), monitors, "the machines run on without Flames");
    host.up(&[]);
    for name in ["a", "b"] {
        let again = || host.installation.run(&["exec", name, "--", "uname", "-n"]);
        eventually("it is found again", || (again().stdout.trim() == name).then_some(()));
        assert_eq!(host.installation.inspect(name)["state"], "running");
    }
    assert_eq!(host.resolve("a", "good.test").as_deref(), Some(PUBLIC), "its names resolve again");
    host.assert_reaches("a", &[PUBLIC], &[PRIVATE]);
    let in_force = || host.installation.inspect("b")["network"]["in_force"] == true;
    eventually("its changed network is in force", || in_force().then_some(()));
    host.assert_reaches("b", &[], &[PUBLIC]);
    assert_eq!(["a", "b"].map(|name| host.address(name)), before);
    assert_eq!(host.monitors(), monitors);
    host.restore("c", &[]);
    assert!(!before.contains(&host.address("c")), "an address that is held is not given away");
    host.installation.run(&["rm", "-f", "a", "b", "c"]).ok();
    host.assert_clean();
}

fn a_block_that_is_used_up_is_told_and_the_next_address_that_is_free_is_used() {
    let host = Host::with_saved_guest(&["--address-block", "10.77.0.0/30"]);
    host.restore("a", &[]);
    let only = host.address("a");
    host.installation.run(&["-q", "restore", host::SAVED, "--name", "b", "--no-wait"]).ok();
    let reason = eventually("b waits", || {
        let shown = host.installation.inspect("b");
        Some(shown["reason"]["message"].as_str()?.to_owned())
    });
    assert!(reason.contains("No address is left"), "{reason}");
    assert_eq!(host.installation.inspect("b")["state"], "pending");
    host.installation.run(&["rm", "-f", "a"]).ok();
    eventually("b runs", || (host.installation.inspect("b")["state"] == "running").then_some(()));
    assert_eq!(host.address("b"), only);
    host.assert_reaches("b", &[PUBLIC], &[]);
    host.installation.run(&["rm", "-f", "b"]).ok();
    host.assert_clean();
}
