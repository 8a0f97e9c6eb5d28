//! A server and hosts in processes of their own, with the simulated driver.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use flames_conformance_runner::Faults;
use flames_test_servers::{CutProxy, free_ports};
use support::fleet::{Fleet, Running};
use support::{PATIENCE, eventually, finish, mode, signal, wait};

/// A server with one host.
fn server_and_host(fleet: &Fleet) -> (Running, Running) {
    let server = fleet.server("server", &[]);
    let token = fleet.token(&server);
    let host = fleet.host("one", server.told["host_url"].as_str().unwrap(), &token, &[]);
    server.has_hosts(1);
    server.import_small_image();
    (server, host)
}

#[test]
fn every_stream_reaches_vms_on_two_hosts_through_one_server() {
    let fleet = Fleet::new();
    let server = fleet.server("server", &[]);
    let token = fleet.token(&server);
    let url = server.told["host_url"].as_str().unwrap();
    // One VM fits on each, so that each has one.
    let _hosts: Vec<_> =
        ["one", "two"].iter().map(|name| fleet.host(name, url, &token, &["--capacity-vms", "1"])).collect();
    server.has_hosts(2);
    server.import_small_image();
    let said = server.run(&["-q", "run", "--rm", "test", "--", "echo", "to", "stdout"]);
    assert_eq!((said.code, said.stdout.as_str()), (0, "to stdout\n"), "{}", said.stderr);
    for vm in ["a", "b"] {
        server.sleeper(vm);
    }
    let host_of = |vm: &str| server.inspect(vm)["incarnation"]["controller"].as_str().unwrap().to_owned();
    assert_ne!(host_of("a"), host_of("b"));
    for vm in ["a", "b"] {
        assert_eq!(server.run(&["exec", vm, "--", "echo", "in", vm]).ok(), format!("in {vm}\n"));
        server.run(&["exec", vm, "--", "exit", "9"]).failed(9);
        let piped = finish(&mut server.command(&["exec", "-i", vm, "--", "cat"]), &vec![b'x'; 3 << 20]);
        assert_eq!(piped.ok().len(), 3 << 20, "more than every window on the way");
        let file = fleet.place("file");
        fs::write(&file, vec![7; 300_000]).unwrap();
        let inside = format!("{vm}:/tmp/file");
        server.run(&["cp", file.to_str().unwrap(), &inside]).ok();
        let back = fleet.place("back");
        server.run(&["cp", &inside, back.to_str().unwrap()]).ok();
        assert_eq!(fs::read(back).unwrap(), vec![7; 300_000]);
        let mut forward = server.command(&["--json", "port-forward", vm, "80"]);
        let mut forward = forward.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(forward.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let told: serde_json::Value = serde_json::from_str(&line).unwrap();
        let mut stream = TcpStream::connect(told["address"].as_str().unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"there and back").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "there and back", "each direction ends for itself");
        signal(&forward, "INT");
        assert_eq!(wait(&mut forward), 0);
    }
    // No third one fits anywhere.
    let said = server.run(&["ps", "--all"]).ok();
    assert!(said.contains('a') && said.contains('b'), "{said}");
    server.run(&["rm", "-f", "a", "b"]).ok();
    let said = server.run(&["-q", "run", "--name", "log", "test", "--", "echo", "kept"]);
    assert_eq!(said.ok(), "kept\n");
    assert_eq!(server.run(&["logs", "log"]).ok(), "kept\n");
}

#[test]
fn vms_outlive_a_server_that_is_killed_and_hosts_come_back_to_the_next_one() {
    let fleet = Fleet::new();
    let (mut server, _host) = server_and_host(&fleet);
    server.sleeper("lives");
    let before = server.inspect("lives");
    let (address, port) = (server.host_address(), server.told["url"].as_str().unwrap().to_owned());
    server.kill();
    // The same places, as a service manager would start it again.
    let server = Running::start(
        &fleet.place("server"),
        &[
            "server",
            "--listen",
            port.strip_prefix("http://").unwrap(),
            "--host-listen",
            &address,
            "--ingress-listen",
            "127.0.0.1:0",
        ],
    );
    server.answers("lives");
    let after = server.inspect("lives");
    assert_eq!(after["state"], "running");
    assert_eq!(after["incarnation"]["id"], before["incarnation"]["id"], "it is the same run");
    server.sleeper("next");
}

#[test]
fn a_server_that_is_told_to_end_leaves_vms_alone() {
    let fleet = Fleet::new();
    let (mut server, mut host) = server_and_host(&fleet);
    server.sleeper("lives");
    let began = Instant::now();
    let (code, _) = server.terminate();
    assert_eq!(code, 0);
    assert!(began.elapsed() < Duration::from_secs(20), "it drained for {:?}", began.elapsed());
    let server = fleet.server("server", &["--host-listen", &server.host_address()]);
    server.answers("lives");
    let (code, log) = host.terminate();
    assert_eq!(code, 0, "{log}");
}

#[test]
fn a_host_that_has_no_link_is_told_within_a_deadline_and_can_be_tried_again() {
    let fleet = Fleet::new();
    let (server, mut host) = server_and_host(&fleet);
    server.sleeper("far");
    host.kill();
    let began = Instant::now();
    let said = server.run(&["--json", "exec", "far", "--", "true"]);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let error: serde_json::Value = serde_json::from_str(&said.failed(1)).unwrap();
    assert_eq!(error["error"]["code"], "HOST_UNREACHABLE", "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains("is not connected"), "{error}");
}

#[test]
fn a_host_keeps_its_identity_and_needs_its_token_once() {
    let fleet = Fleet::new();
    let (server, mut host) = server_and_host(&fleet);
    let secret = host.data.join("controller.secret");
    assert_eq!(mode(&secret), 0o600);
    let id = host.told["controller"].clone();
    assert_eq!(host.terminate().0, 0);
    // The token is gone, and so is its file.
    let tokens = server.run(&["--json", "controllers", "token", "ls"]).json();
    let token = tokens[0]["id"].as_str().unwrap();
    server.run(&["controllers", "token", "rm", token]).ok();
    server.run(&["controllers", "token", "rm", token]).failed(3);
    let url = server.told["host_url"].as_str().unwrap();
    let arguments = ["controller", "run", "--server", url, "--driver", "simulated", "--name", "one"];
    let again = Running::start(&host.data, &arguments);
    assert_eq!(again.told["controller"], id);
    server.sleeper("there");
    server.answers("there");
}

#[test]
fn a_host_is_let_in_only_with_a_token_that_holds() {
    let fleet = Fleet::new();
    let server = fleet.server("server", &[]);
    let url = server.told["host_url"].as_str().unwrap();
    let token = fleet.token(&server);
    let refused = |name: &str| {
        let said = fleet.host_refused(name, url, &fleet.place("join-token"), &[]).failed(1);
        assert!(said.contains("flames controllers token create"), "{said}");
    };
    fs::write(&token, format!("flames-join-{}", "0".repeat(64))).unwrap();
    refused("wrong");
    let short = server.run(&["controllers", "token", "create", "--ttl", "1s"]).ok();
    std::thread::sleep(Duration::from_millis(1_200));
    fs::write(&token, short).unwrap();
    refused("late");
    assert!(server.run(&["--json", "controllers"]).json().as_array().unwrap().is_empty());
    // A token of a file always holds.
    drop(server);
    fs::write(&token, "a-token-that-an-operator-chose\n").unwrap();
    let server = fleet.server("server", &["--join-token-file", token.to_str().unwrap()]);
    let _host = fleet.host("right", server.told["host_url"].as_str().unwrap(), &token, &[]);
    server.has_hosts(1);
}

#[test]
fn a_host_with_another_secret_or_a_name_that_is_taken_is_not_let_in() {
    let fleet = Fleet::new();
    let (server, mut host) = server_and_host(&fleet);
    let url = server.told["host_url"].as_str().unwrap().to_owned();
    let token = fleet.place("join-token");
    let mut twin = fleet.host_arguments("one", &url, &token);
    twin.insert(0, "--data".to_owned());
    twin.insert(1, fleet.place("twin").display().to_string());
    let said = finish(support::flames().args(&twin), b"").failed(1);
    assert!(said.contains("Another controller is named `one`"), "{said}");
    assert_eq!(host.terminate().0, 0);
    // Who has the identity without the secret is somebody else, whatever token they show.
    fs::write(host.data.join("controller.secret"), "0".repeat(64)).unwrap();
    let said = fleet.host_refused("one", &url, &token, &[]).failed(1);
    assert!(said.contains("with another secret"), "{said}");
}

#[test]
fn a_removed_host_is_forgotten_with_its_secret_and_may_join_anew() {
    let fleet = Fleet::new();
    let (server, mut host) = server_and_host(&fleet);
    assert_eq!(host.terminate().0, 0);
    server.run(&["controllers", "remove", "one"]).ok();
    fs::write(host.data.join("controller.secret"), "1".repeat(64)).unwrap();
    let url = server.told["host_url"].as_str().unwrap();
    let _host = fleet.host("one", url, &fleet.place("join-token"), &[]);
    server.has_hosts(1);
}

#[test]
fn garbage_on_the_host_listener_harms_nobody() {
    let fleet = Fleet::new();
    let (server, _host) = server_and_host(&fleet);
    server.sleeper("calm");
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET /host/v1/link HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: flames-link\r\n\r\n",
        b"GET /host/v1/link HTTP/1.1\r\nHost: x\r\nx-flames-controller: ctl_00000000000000000000000000000000\r\nx-flames-session: 0\r\n\r\n",
        b"POST /host/v1/register HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{",
        b"GET /v1/vms HTTP/1.1\r\nHost: x\r\n\r\n",
        &[0xff; 4096],
    ] {
        let mut stream = TcpStream::connect(server.host_address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        // It may be closed before all of it was taken.
        let _ = stream.write_all(garbage);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.starts_with("HTTP/1.1 2") && !answer.starts_with("HTTP/1.1 101"), "{answer}");
    }
    server.answers("calm");
}

#[test]
fn a_link_that_is_cut_heals() {
    let fleet = Fleet::new();
    let server = fleet.server("server", &[]);
    let token = fleet.token(&server);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let proxy = runtime.block_on(CutProxy::before(server.host_address().parse().unwrap())).unwrap();
    let _host = fleet.host("far", &format!("http://{}", proxy.address()), &token, &[]);
    server.has_hosts(1);
    server.import_small_image();
    server.sleeper("x");
    for bytes in [0, 1, 10, 100, 1_000, 5_000] {
        server.answers("x");
        // Whatever was under way is told as lost or done, and the next one finds a link again.
        runtime.block_on(proxy.cut_after(bytes));
        server.run(&["exec", "x", "--", "echo", "here"]);
        runtime.block_on(proxy.heal());
    }
    server.answers("x");
}

#[test]
fn a_server_refuses_what_it_would_forget_or_what_others_could_read() {
    let fleet = Fleet::new();
    let refused = |arguments: &[&str]| {
        let mut command = support::flames();
        command.arg("--data").arg(fleet.place("none")).arg("server").args(["--listen", "0"]).args(arguments);
        let said = finish(&mut command, b"").failed(2);
        assert!(!fleet.place("none").exists(), "nothing was touched");
        said
    };
    let said = refused(&["--state-backend", "memory"]);
    assert!(said.contains("state.backend") && said.contains("postgres"), "{said}");
    let said = refused(&["--queue-backend", "memory"]);
    assert!(said.contains("queue.backend") && said.contains("nats"), "{said}");
    let said = refused(&["--host-listen", "0.0.0.0:0"]);
    assert!(said.contains("host_certificate") && said.contains("host_plaintext"), "{said}");
    let said = refused(&["--host-certificate", "/no/such/file"]);
    assert!(said.contains("host_key"), "{said}");
    let said = fleet.host_refused("h", "http://192.0.2.1:7071", &fleet.place("none"), &[]).failed(2);
    assert!(said.contains("join_token"), "{said}");
    fs::write(fleet.place("token"), "a-token-that-an-operator-chose").unwrap();
    let said = fleet.host_refused("h", "http://192.0.2.1:7071", &fleet.place("token"), &[]).failed(2);
    assert!(said.contains("https://"), "{said}");
}

#[test]
fn one_server_works_with_a_file_of_records_and_no_second_one() {
    let fleet = Fleet::new();
    let server = fleet.server("server", &[]);
    let state = server.data.join("state.sqlite");
    let mut second = support::flames();
    second.arg("--data").arg(fleet.place("second")).args(["server", "--listen", "0", "--host-listen", "0"]);
    second.args(["--ingress-listen", "127.0.0.1:0", "--state-path", state.to_str().unwrap()]);
    let said = finish(&mut second, b"").failed(4);
    assert!(said.contains("state.path") && said.contains("postgres"), "{said}");
}

#[test]
fn a_server_and_a_host_share_a_data_folder() {
    let fleet = Fleet::new();
    let server = fleet.server("both", &[]);
    let token = fleet.token(&server);
    let url = server.told["host_url"].as_str().unwrap();
    let mut host = fleet.host("both", url, &token, &[]);
    server.has_hosts(1);
    server.import_small_image();
    server.sleeper("x");
    server.answers("x");
    assert_eq!(host.terminate().0, 0);
    server.run(&["ps"]).ok();
}

#[test]
fn a_host_waits_for_servers_that_are_not_there_yet() {
    let fleet = Fleet::new();
    let server = fleet.server("server", &[]);
    let token = fleet.token(&server);
    let address = server.host_address();
    drop(server);
    // The first of the two is never there.
    let nobody = free_ports(1).unwrap()[0];
    let servers = format!("http://127.0.0.1:{nobody},http://{address}");
    let _host = fleet.host("early", &servers, &token, &[]);
    std::thread::sleep(Duration::from_millis(500));
    let server = fleet.server("server", &["--host-listen", &address]);
    server.has_hosts(1);
    server.import_small_image();
    server.sleeper("x");
    server.answers("x");
    eventually("the VM is told to run", || (server.inspect("x")["state"] == "running").then_some(()));
}

/// An authority, and a certificate of it for 127.0.0.1 and localhost.
fn certificate(fleet: &Fleet) -> [String; 3] {
    let file = |name: &str| fleet.place(name).display().to_string();
    let openssl = |arguments: &str| {
        let mut command = std::process::Command::new("openssl");
        let ended = command.args(arguments.split(' ')).current_dir(fleet.folder.path()).output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    };
    fs::write(fleet.place("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1").unwrap();
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 2",
    );
    openssl(
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout host.key -out host.csr -subj /CN=flames",
    );
    openssl(
        "x509 -req -in host.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out host.pem -days 2 -extfile names",
    );
    [file("ca.pem"), file("host.pem"), file("host.key")]
}

#[test]
fn hosts_join_over_tls_and_trust_only_their_authority() {
    let fleet = Fleet::new();
    let [ca, certificate, key] = certificate(&fleet);
    let server = fleet.server("server", &["--host-certificate", &certificate, "--host-key", &key]);
    let url = server.told["host_url"].as_str().unwrap().replace("127.0.0.1", "localhost");
    assert!(url.starts_with("https://"), "{url}");
    let token = fleet.token(&server);
    let _host = fleet.host("safe", &url, &token, &["--server-ca", &ca]);
    server.has_hosts(1);
    server.import_small_image();
    server.sleeper("x");
    server.answers("x");
    // An authority that did not sign it: the host waits for a server that proves itself, and tells nobody its secrets.
    let elsewhere = Fleet::new();
    let [other, _, _] = self::certificate(&elsewhere);
    let mut wary = fleet.host("wary", &url, &token, &["--server-ca", &other]);
    std::thread::sleep(Duration::from_secs(1));
    server.has_hosts(1);
    let (code, log) = wary.terminate();
    assert_eq!(code, 0);
    assert!(log.contains("does not prove itself by its certificate"), "{log}");
    // Without TLS nothing is said either.
    let mut plain = fleet.host("plain", &url.replace("https", "http"), &token, &[]);
    std::thread::sleep(Duration::from_millis(500));
    server.has_hosts(1);
    plain.terminate();
}

#[test]
fn a_snapshot_is_stored_and_restored_by_hosts_that_reach_no_store() {
    let fleet = Fleet::new();
    let server = fleet.server("server", &[]);
    let token = fleet.token(&server);
    let url = server.told["host_url"].as_str().unwrap();
    let _hosts: Vec<_> =
        ["one", "two"].iter().map(|name| fleet.host(name, url, &token, &["--capacity-vms", "1"])).collect();
    server.has_hosts(2);
    server.import_small_image();
    server.sleeper("x");
    server.run(&["snapshot", "create", "x", "--name", "saved"]).ok();
    server.run(&["restore", "saved", "--name", "y"]).ok();
    server.answers("y");
    let host_of = |vm: &str| server.inspect(vm)["incarnation"]["controller"].as_str().unwrap().to_owned();
    assert_ne!(host_of("x"), host_of("y"), "its pieces went from one host to the other");
}

#[test]
fn a_configuration_is_checked_for_the_role_that_reads_it() {
    let fleet = Fleet::new();
    let server = fleet.server("server", &[]);
    let url = server.told["host_url"].as_str().unwrap();
    let check = |arguments: &[&str]| {
        let mut command = support::flames();
        command.arg("--data").arg(fleet.place("none")).args(["--json", "config", "check", "--listen", "0"]);
        finish(command.args(arguments), b"")
    };
    let told = check(&["--for", "controller", "--server", url]).json();
    assert_eq!(
        (&told["checks"][0]["provider"], &told["checks"][0]["verdict"]),
        (&"server".into(), &"ok".into())
    );
    let nobody = format!("http://127.0.0.1:{}", free_ports(1).unwrap()[0]);
    let told = check(&["--for", "controller", "--server", &nobody]);
    assert_eq!(told.code, 2);
    assert!(told.stdout.contains(&nobody), "{}", told.stdout);
    let told = check(&["--for", "controller"]);
    assert!(told.code == 2 && told.stdout.contains("--server"), "{}", told.stdout);
    assert_eq!(check(&["--state-backend", "memory"]).code, 0, "`flames up` may");
    let told = check(&["--for", "server", "--state-backend", "memory"]);
    assert!(told.code == 2 && told.stdout.contains("state.backend"), "{}", told.stdout);
}
