//! Networks on the command line, each against a real `flames up` with the simulated driver, which keeps every policy where it has a block.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use support::{Installation, eventually};

fn with_block(block: &str) -> Installation {
    let mut installation = Installation::new();
    installation.up(&["--driver", "simulated", "--address-block", block, "--address-block-ipv6", "auto"]);
    installation.import_small_image();
    installation
}

#[test]
fn a_vm_has_an_address_of_its_hosts_block_and_inspect_tells_its_policy() {
    let installation = with_block("10.88.0.0/28");
    let network = [
        "--allow-domain",
        "*.example.com",
        "--allow",
        "192.0.2.0/24",
        "--allow-port",
        "443",
        "--private-network",
        "team",
        "--upload",
        "1M",
    ];
    let run = ["run", "-d", "--name", "web", "-p", "80"];
    installation.run(&[&run[..], &network, &["test", "--", "sleep", "infinity"]].concat()).ok();
    let vm = installation.inspect("web");
    assert_eq!(vm["incarnation"]["address"]["ipv4"], "10.88.0.2");
    assert!(vm["incarnation"]["address"]["ipv6"].as_str().unwrap().starts_with("fd"), "{vm:#}");
    assert_eq!(vm["incarnation"]["endpoints"][0]["address"], "10.88.0.2:80");
    assert_eq!(vm["spec"]["network"]["egress"]["mode"], "allow_list");
    assert_eq!(vm["spec"]["network"]["upload"]["bytes_per_second"], 1_000_000);
    let shown = installation.run(&["inspect", "web"]).ok();
    for told in ["allow-list 192.0.2.0/24 *.example.com :443", "team", "10.88.0.2", "1000000 bytes/s"] {
        assert!(shown.contains(told), "{told} is not in {shown}");
    }
    let controllers = installation.run(&["controllers"]).ok();
    assert!(controllers.contains("1/4 of 10.88.0.0/28"), "{controllers}");
    installation.run(&["rm", "-f", "web"]).ok();
    let controllers = installation.run(&["--json", "controllers"]).json();
    assert_eq!(controllers[0]["address_block"]["taken"], 0, "{controllers:#}");
}

#[test]
fn a_vm_reaches_nothing_unless_it_asks_and_a_policy_that_nobody_keeps_is_told() {
    let mut installation = Installation::simulated();
    installation.import_small_image();
    installation.run(&["run", "-d", "--name", "plain", "test", "--", "sleep", "infinity"]).ok();
    let plain = installation.inspect("plain");
    assert_eq!(plain["spec"]["network"]["egress"]["mode"], "deny");
    assert!(plain["incarnation"]["address"].is_null(), "{plain:#}");
    let mut command =
        installation.command(&["run", "-d", "--name", "asks", "--egress", "allow", "test", "--", "true"]);
    let mut waits =
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let reason = eventually("it waits for a host that keeps its policy", || {
        let ended = installation.run(&["--json", "inspect", "asks"]);
        let vm: serde_json::Value = serde_json::from_str(&ended.stdout).ok()?;
        Some(vm["reason"]["message"].as_str()?.to_owned())
    });
    assert!(reason.contains("`allow`") && reason.contains("`unrestricted`"), "{reason}");
    waits.kill().unwrap();
    waits.wait().unwrap();
    // With a block the host keeps it, and takes the VM by itself.
    installation.kill();
    installation.up(&["--driver", "simulated", "--address-block", "10.88.0.0/28"]);
    eventually("it is placed", || {
        installation.inspect("asks")["incarnation"]["address"]["ipv4"].as_str().map(drop)
    });
}

#[test]
fn what_a_network_cannot_be_is_refused_with_its_field() {
    let installation = with_block("10.88.0.0/28");
    for (flags, said) in [
        (&["--allow", "10.0.0.0/8"][..], "spec.network.egress.ranges"),
        (&["--egress", "allow", "--allow", "8.8.8.8"], "8.8.8.8/32"),
        (&["--egress", "allow", "--allow", "10.0.0.1/8"], "192.0.2.0/24"),
        (&["--egress", "deny", "--allow-domain", "a.com"], "spec.network.egress.domains"),
        (&["--allow-domain", "a b"], "api.example.com"),
        (&["--egress", "allow-list"], "deny"),
        (&["--private-network", "Team"], "private network"),
        (&["--upload", "1K"], "10000"),
    ] {
        let ended = installation.run(&[&["run", "-d"][..], flags, &["test", "--", "true"]].concat());
        let told = ended.failed(2);
        assert!(told.contains(said), "{flags:?}: {told}");
    }
    for flags in [["--allow-port", "0"], ["--allow-port", "9-8"], ["--upload", "fast"], ["--egress", "some"]]
    {
        installation.run(&[&["run", "-d"][..], &flags, &["test"]].concat()).failed(2);
    }
    assert_eq!(installation.run(&["-q", "ps", "--all"]).ok(), "");
    for (block, said) in [("10.88.0.0/31", "/8 to a /30"), ("10.88.0.1/28", "192.0.2.0/24")] {
        let told = Installation::new().run(&[
            "up",
            "--listen",
            "0",
            "--driver",
            "simulated",
            "--address-block",
            block,
        ]);
        assert!(told.code != 0 && told.stderr.contains(said), "{told:?}");
    }
    let told = Installation::new().run(&[
        "up",
        "--listen",
        "0",
        "--driver",
        "qemu",
        "--address-block",
        "10.88.0.0/28",
    ]);
    assert!(told.failed(2).contains("address_block"));
}

#[test]
fn a_network_is_changed_while_its_vm_runs_and_shown_with_whether_it_is_in_force() {
    let installation = with_block("10.88.0.0/28");
    installation.run(&["run", "-d", "--name", "web", "test", "--", "sleep", "infinity"]).ok();
    let set = ["network", "set", "web", "--allow-domain", "pypi.org", "--upload", "1M"];
    assert_eq!(installation.run(&set).ok(), "web\n");
    let shown = installation.run(&["--json", "network", "show", "web"]).json();
    let told = (&shown["in_force"], &shown["revision"], &shown["applied_revision"]);
    assert_eq!(told, (&true.into(), &1.into(), &1.into()), "{shown:#}");
    let shown = installation.run(&["network", "show", "web"]).ok();
    assert!(shown.contains("allow-list pypi.org") && shown.contains("1000000 bytes/s"), "{shown}");
    let vm = installation.inspect("web");
    assert_eq!((&vm["run"], &vm["state"]), (&1.into(), &"running".into()), "it is not restarted");
    let events = installation.run(&["events", "--vm", "web"]).ok();
    assert!(events.contains("network changed (revision 1)"), "{events}");
    assert!(events.contains("under network revision 1"), "{events}");
    installation.run(&["network", "set", "web"]).failed(2);
    installation.run(&["network", "set", "web", "--egress", "allow", "--allow", "8.8.8.8"]).failed(2);
    installation.run(&["network", "set", "nobody", "--egress", "deny"]).failed(3);
}

#[test]
fn a_host_without_addresses_changes_a_network_once_its_vm_is_stopped() {
    let installation = Installation::simulated();
    installation.import_small_image();
    installation.run(&["run", "-d", "--name", "web", "test", "--", "sleep", "infinity"]).ok();
    let set = ["network", "set", "web", "--egress", "unrestricted"];
    let refused = installation.run(&set);
    assert!(refused.stderr.contains("flames stop web"), "{}", refused.stderr);
    refused.failed(2);
    installation.run(&["stop", "web"]).ok();
    installation.run(&set).ok();
    installation.run(&["start", "web"]).ok();
    let shown = installation.run(&["--json", "network", "show", "web"]).json();
    assert_eq!(
        (&shown["in_force"], &shown["network"]["egress"]["mode"]),
        (&true.into(), &"unrestricted".into())
    );
}
