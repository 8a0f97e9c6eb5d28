//! `flames up` as a whole, with the simulated driver: what it makes, keeps, refuses and leaves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use std::fs;

use support::{Installation, eventually, finish, flames, mode};

#[test]
fn up_says_where_the_api_is_and_keeps_its_secrets_to_its_user() {
    let mut installation = Installation::new();
    let told = installation.up(&["--driver", "simulated"]);
    let data = installation.data();
    assert!(told["url"].as_str().unwrap().starts_with("http://127.0.0.1:"), "{told}");
    assert_eq!(told["token_file"], data.join("token").to_str().unwrap());
    assert_eq!(mode(&data), 0o700);
    for file in ["token", "api.json", "api.sock", "state.sqlite"] {
        assert_eq!(mode(&data.join(file)) & 0o177, 0, "{file} is for its user alone");
    }
    let token = fs::read_to_string(data.join("token")).unwrap();
    assert_eq!(token.trim().len(), 64);
    let api: serde_json::Value = serde_json::from_slice(&fs::read(data.join("api.json")).unwrap()).unwrap();
    assert_eq!(api["pid"], installation.pid());
}

#[test]
fn a_second_up_on_one_folder_is_refused_and_says_who_works_there() {
    let installation = Installation::simulated();
    let said = installation.run(&["up", "--listen", "0", "--driver", "simulated"]).failed(4);
    assert!(said.contains("Another `flames up`") && said.contains(&installation.pid().to_string()), "{said}");
    installation.run(&["ps"]).ok();
}

#[test]
fn a_port_that_is_taken_is_told_with_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let installation = Installation::new();
    let said = installation.run(&["up", "--listen", &port, "--driver", "simulated"]).failed(4);
    assert!(said.contains("--listen"), "{said}");
    assert!(!installation.data().exists(), "nothing was made");
}

#[test]
fn ctrl_c_drains_and_takes_back_where_the_api_was() {
    let mut installation = Installation::simulated();
    installation.import_small_image();
    installation.run(&["run", "-d", "--name", "lives", "test", "--", "sleep", "infinity"]).ok();
    let (code, _) = installation.interrupt();
    assert_eq!(code, 0);
    assert!(!installation.data().join("api.json").exists());
    assert!(!installation.data().join("api.sock").exists());
    let said = installation.run(&["ps"]).failed(5);
    assert!(said.contains("flames up"), "{said}");
}

#[test]
fn what_was_answered_survives_a_kill_9() {
    let mut installation = Installation::simulated();
    installation.import_small_image();
    installation.run(&["run", "--name", "kept", "--label", "a=b", "test", "--", "exit", "3"]).failed(3);
    let token = fs::read_to_string(installation.data().join("token")).unwrap();
    installation.kill();
    installation.run(&["ps"]).failed(5);
    installation.up(&["--driver", "simulated"]);
    assert_eq!(fs::read_to_string(installation.data().join("token")).unwrap(), token);
    let vm = installation.inspect("kept");
    assert_eq!(
        (&vm["state"], &vm["labels"]["a"], &vm["incarnation"]["exit"]["code"]),
        (&"stopped".into(), &"b".into(), &3.into())
    );
    assert!(installation.run(&["image", "ls"]).ok().contains("test"));
    // The same controller, registered again: a VM that is started finds it.
    installation.run(&["start", "kept"]).ok();
    assert_eq!(installation.run(&["--json", "controllers"]).json().as_array().unwrap().len(), 1);
}

#[test]
fn a_vm_whose_simulated_host_died_is_told_to_have_failed_and_can_be_removed() {
    let mut installation = Installation::simulated();
    installation.import_small_image();
    installation.run(&["run", "-d", "--name", "lost", "test", "--", "sleep", "infinity"]).ok();
    installation.kill();
    installation.up(&["--driver", "simulated"]);
    eventually("the VM is over", || {
        let state = installation.inspect("lost")["state"].as_str().unwrap().to_owned();
        matches!(state.as_str(), "failed" | "stopped").then_some(())
    });
    installation.run(&["rm", "lost"]).ok();
    installation.run(&["inspect", "lost"]).failed(3);
}

#[test]
fn ephemeral_leaves_nothing_but_the_token() {
    let mut installation = Installation::new();
    installation.up(&["--driver", "simulated", "--ephemeral"]);
    installation.import_small_image();
    installation.run(&["run", "-d", "--name", "gone", "test", "--", "sleep", "infinity"]).ok();
    assert_eq!(installation.interrupt().0, 0);
    let mut left: Vec<_> =
        fs::read_dir(installation.data()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["host.lock", "lock", "token", "version"]);
    installation.up(&["--driver", "simulated", "--ephemeral"]);
    assert_eq!(installation.run(&["--json", "ps", "--all"]).json().as_array().unwrap().len(), 0);
}

#[test]
fn on_exit_stop_ends_what_runs() {
    let mut installation = Installation::new();
    installation.up(&["--driver", "simulated", "--on-exit", "stop"]);
    installation.import_small_image();
    installation.run(&["run", "-d", "--name", "ends", "test", "--", "sleep", "infinity"]).ok();
    assert_eq!(installation.interrupt().0, 0);
    installation.up(&["--driver", "simulated"]);
    let vm = installation.inspect("ends");
    assert_eq!(vm["state"], "stopped", "{vm:#}");
}

#[test]
fn a_wrong_token_and_none_are_refused_and_the_right_one_is_taken() {
    let mut installation = Installation::new();
    let told = installation.up(&["--driver", "simulated"]);
    let elsewhere = tempfile::tempdir().unwrap();
    let with = |token: Option<&str>| {
        let mut command = flames();
        command.arg("--data").arg(elsewhere.path()).args(["--api", told["url"].as_str().unwrap(), "ps"]);
        if let Some(token) = token {
            command.env("FLAMES_TOKEN", token);
        }
        finish(&mut command, b"")
    };
    for token in [Some("0".repeat(64)), None] {
        let said = with(token.as_deref()).failed(1);
        assert!(said.contains("UNAUTHENTICATED") && said.contains("FLAMES_TOKEN"), "{said}");
    }
    let token = fs::read_to_string(installation.data().join("token")).unwrap();
    with(Some(token.trim())).ok();
}

#[test]
fn a_data_folder_with_a_long_path_works() {
    let mut installation = Installation::new();
    let deep = installation.folder.path().join("d".repeat(100)).join("e".repeat(60));
    fs::create_dir_all(&deep).unwrap();
    std::os::unix::fs::symlink(&deep, installation.folder.path().join("data")).unwrap();
    installation.up(&["--driver", "simulated"]);
    installation.run(&["ps"]).ok();
    let mut direct = flames();
    let socket = format!("unix:{}", installation.data().join("api.sock").display());
    finish(direct.args(["--api", &socket, "ps"]).env("HOME", installation.folder.path()), b"").ok();
}

#[test]
fn an_idle_up_takes_less_than_60_mib() {
    let installation = Installation::simulated();
    installation.import_small_image();
    installation.run(&["run", "--rm", "test", "--", "true"]).ok();
    let status = fs::read_to_string(format!("/proc/{}/status", installation.pid())).unwrap();
    let kib = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    // What it wrote itself, whichever way it was built.
    let own = kib("RssAnon:");
    assert!(own < 30 * 1024, "{own} KiB of its own");
    // Beside that it maps its program: unoptimised, and with every adapter, that is several times what a user's is.
    if !cfg!(debug_assertions) {
        let all = kib("VmRSS:");
        assert!(all < 60 * 1024, "{all} KiB resident");
    }
}
