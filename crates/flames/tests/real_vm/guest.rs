//! What a guest that runs does, and what is told of one that does not.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::support::{eventually, finish, wait};
use crate::{assert_clean, installation, start};

pub(crate) fn a_command_runs_in_a_guest_and_its_output_and_exit_code_come_back() {
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

pub(crate) fn a_guest_is_what_was_asked_for() {
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

pub(crate) fn a_workload_reads_the_standard_input_of_run_to_its_end() {
    let installation = installation();
    let mut command = installation.command(&["-q", "run", "--rm", "-i", "busybox", "--", "cat"]);
    assert_eq!(finish(&mut command, b"hi\n").ok(), "hi\n");
    let input = vec![b'x'; 1_000_000];
    let mut command = installation.command(&["-q", "run", "--rm", "-i", "busybox", "--", "wc", "-c"]);
    assert_eq!(finish(&mut command, &input).ok().trim(), "1000000");
    assert_clean(&installation);
}

pub(crate) fn exec_runs_in_the_guest_with_its_own_input_and_exit_code() {
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

pub(crate) fn a_terminal_is_passed_through_and_set_back() {
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

pub(crate) fn files_are_copied_both_ways() {
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

pub(crate) fn ask(address: &str) -> String {
    eventually("the server in the guest answers", || {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        (!answer.is_empty()).then_some(answer)
    })
}

pub(crate) fn a_server_in_the_guest_is_reached_by_its_port_and_by_port_forward() {
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
    crate::support::signal(&forward, "INT");
    assert_eq!(wait(&mut forward), 0);
}

/// What a GET of this URL answers: the name is in the `Host` header, the address is the ingress's, as a name server would say.
pub(crate) fn get(url: &str) -> String {
    let authority = url.strip_prefix("http://").unwrap().trim_end_matches('/');
    let (host, port) = authority.rsplit_once(':').unwrap();
    assert!(host.ends_with(".localhost"), "{url}");
    let mut stream = TcpStream::connect(("127.0.0.1", port.parse::<u16>().unwrap())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(stream, "GET /hello HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

pub(crate) fn a_port_of_a_guest_answers_at_its_url_while_it_runs() {
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

pub(crate) fn a_request_wakes_a_guest_that_is_paused_or_stopped() {
    let installation = installation();
    let server = "echo hello > /tmp/hello; busybox httpd -f -p 127.0.0.1:8080 -h /tmp";
    let run = ["run", "-d", "--name", "web", "-p", "8080", "--wake-on-request", "busybox", "--", "sh", "-c"];
    installation.run(&[&run[..], &[server]].concat()).ok();
    let url = installation.inspect("web")["routes"][0]["url"].as_str().unwrap().to_owned();
    eventually("the guest answers", || get(&url).ends_with("hello\n").then_some(()));
    installation.run(&["pause", "web"]).ok();
    let answer = get(&url);
    assert!(answer.ends_with("hello\n"), "it waits until the guest goes on, and no longer: {answer}");
    assert_eq!(installation.inspect("web")["state"], "running");
    installation.run(&["stop", "web"]).ok();
    let answer = get(&url);
    assert!(answer.ends_with("hello\n"), "it waits until the new run's server listens, too: {answer}");
    assert_eq!(installation.inspect("web")["run"], 2, "one wake made one run");
    installation.run(&["rm", "-f", "web"]).ok();
    assert!(get(&url).starts_with("HTTP/1.1 404"), "nobody is left to wake");
    assert_clean(&installation);
}

pub(crate) fn a_guest_reaches_nothing_unless_it_is_unrestricted() {
    let installation = installation();
    // The host's loopback, as QEMU's user-mode network shows it to guests.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || listener.incoming().for_each(drop));
    let script = format!("nc -w 10 10.0.2.2 {port} </dev/null && echo reached || echo unreached");
    let run = |egress: &[&str]| {
        let workload = ["busybox", "--", "sh", "-c", &script];
        installation.run(&[&["-q", "run", "--rm"][..], egress, &workload].concat()).ok()
    };
    assert_eq!(run(&[]), "unreached\n");
    assert_eq!(run(&["--egress", "unrestricted"]), "reached\n");
}

pub(crate) fn a_paused_guest_stands_still_and_goes_on() {
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
