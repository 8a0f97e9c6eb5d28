//! What the agent promises about processes, with real ones.

use std::time::Duration;

use crate::common::*;
use flames_guest_protocol::ErrorKind;
use flames_guest_protocol::client::ProcessEvent;
use flames_guest_protocol::config::WorkloadConfig;
use flames_guest_protocol::message::{AttachRequest, ExecRequest, Happened, TerminalSize};
use flames_guest_protocol::{AgentClient, SecretString};

#[tokio::test]
async fn exec_gives_both_outputs_and_the_exit_code() {
    let client = connect(&agent(None)).await;
    let (started, mut process) = client.exec(shell("echo out; echo err >&2; exit 7")).await.unwrap();
    let got = collect(&mut process.output).await.unwrap();
    assert_eq!((got.stdout.as_slice(), got.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(got.exit.unwrap().code, Some(7));
    assert!(started.pid > 0);
}

#[tokio::test]
async fn stdin_reaches_the_process_and_its_end_does_too() {
    let client = connect(&agent(None)).await;
    let request = ExecRequest { stdin: true, ..shell("cat") };
    let (_, mut process) = client.exec(request).await.unwrap();
    process.input.write(b"hello").await.unwrap();
    process.input.close().await.unwrap();
    let got = collect(&mut process.output).await.unwrap();
    assert_eq!(got.stdout, b"hello");
    assert_eq!(got.exit.unwrap().code, Some(0));
    assert_eq!(process.input.write(b"x").await.unwrap_err().kind, ErrorKind::Conflict);
}

#[tokio::test]
async fn a_process_that_does_not_read_its_stdin_blocks_nobody_else() {
    let client = connect(&agent(None)).await;
    let request = ExecRequest { stdin: true, process: Some("deaf".into()), ..shell("sleep 60") };
    let (_, mut deaf) = client.exec(request).await.unwrap();
    let flood = deaf.input.write(&[0; 4 << 20]);
    assert!(tokio::time::timeout(Duration::from_millis(300), flood).await.is_err(), "it must wait");
    let (_, mut other) = client.exec(shell("echo still here")).await.unwrap();
    assert_eq!(collect(&mut other.output).await.unwrap().stdout, b"still here\n");
    client.signal("deaf", 9, true).await.unwrap();
    assert_eq!(client.wait("deaf", None).await.unwrap().signal, Some(9));
}

#[tokio::test]
async fn a_slow_reader_of_an_exec_loses_nothing() {
    let client = connect(&agent(None)).await;
    let (_, mut process) = client.exec(shell("head -c 8000000 /dev/zero")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let got = collect(&mut process.output).await.unwrap();
    assert_eq!((got.stdout.len(), got.truncated), (8_000_000, None));
}

#[tokio::test]
async fn a_terminal_has_its_size_and_learns_of_a_new_one() {
    let client = connect(&agent(None)).await;
    let size = TerminalSize { rows: 33, columns: 111 };
    let script = "stty size; trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.05; done";
    let request = ExecRequest { tty: Some(size), process: Some("tty".into()), ..shell(script) };
    let (_, mut process) = client.exec(request).await.unwrap();
    let got = collect_until(&mut process.output, "ready").await;
    assert!(String::from_utf8_lossy(&got.terminal).starts_with("33 111"), "{got:?}");
    process.input.resize(TerminalSize { rows: 20, columns: 50 }).await.unwrap();
    let got = collect(&mut process.output).await.unwrap();
    assert!(String::from_utf8_lossy(&got.terminal).contains("20 50"), "{got:?}");
    assert_eq!(got.exit.unwrap().code, Some(4));
}

#[tokio::test]
async fn a_terminal_echoes_and_its_input_can_be_ended() {
    let client = connect(&agent(None)).await;
    let tty = Some(TerminalSize { rows: 24, columns: 80 });
    let (_, mut process) =
        client.exec(ExecRequest { tty, ..shell("cat; test -t 0 && exit 5") }).await.unwrap();
    process.input.write(b"line\n").await.unwrap();
    collect_until(&mut process.output, "line\r\nline").await;
    process.input.close().await.unwrap();
    assert_eq!(collect(&mut process.output).await.unwrap().exit.unwrap().code, Some(5));
}

#[tokio::test]
async fn a_signal_ends_a_process_with_its_number() {
    let client = connect(&agent(None)).await;
    let request = ExecRequest { process: Some("sleeper".into()), ..shell("sleep 60; true") };
    let (_, mut process) = client.exec(request).await.unwrap();
    client.signal("sleeper", 15, true).await.unwrap();
    assert_eq!(collect(&mut process.output).await.unwrap().exit.unwrap().signal, Some(15));
    assert_eq!(client.signal("sleeper", 15, true).await.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(client.signal("sleeper", 0, true).await.unwrap_err().kind, ErrorKind::InvalidInput);
    assert_eq!(client.signal("nobody", 15, true).await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn a_process_outlives_its_stream_and_its_session_and_is_replayed() {
    let agent = agent(None);
    let client = connect(&agent).await;
    let script = "echo one; read line; echo got $line; exit 3";
    let request = ExecRequest { stdin: true, process: Some("kept".into()), ..shell(script) };
    let (_, mut process) = client.exec(request).await.unwrap();
    let first = collect_until(&mut process.output, "one\n").await;
    drop(process);
    drop(client);

    let client = connect(&agent).await;
    let attach = AttachRequest {
        process: "kept".into(),
        from_offset: first.next_offset,
        stdin: true,
        follow: true,
        ..AttachRequest::default()
    };
    let (status, mut process) = client.attach(attach.clone()).await.unwrap();
    assert!(status.exit.is_none());
    process.input.write(b"two\n").await.unwrap();
    assert_eq!(collect(&mut process.output).await.unwrap().stdout, b"got two\n");

    let whole = AttachRequest { from_offset: 0, stdin: false, ..attach };
    let (_, mut process) = client.attach(whole).await.unwrap();
    let got = collect(&mut process.output).await.unwrap();
    assert_eq!((got.stdout.as_slice(), got.exit.unwrap().code), (&b"one\ngot two\n"[..], Some(3)));
}

#[tokio::test]
async fn output_that_the_ring_lost_is_announced() {
    let agent = agent(workload("head -c 5000000 /dev/zero; echo; echo tail"));
    let client = connect(&agent).await;
    client.wait("main", None).await.unwrap();
    let request = AttachRequest { process: "main".into(), follow: true, ..AttachRequest::default() };
    let (_, mut process) = client.attach(request).await.unwrap();
    let got = collect(&mut process.output).await.unwrap();
    assert!(got.truncated.unwrap() > 3_000_000, "{:?}", got.truncated);
    assert!(got.stdout.ends_with(b"\ntail\n"));
    assert_eq!(got.next_offset, 5_000_006);
}

#[tokio::test]
async fn a_replay_without_follow_ends_while_the_process_runs() {
    let agent = agent(workload("echo hello; sleep 60"));
    let client = connect(&agent).await;
    let request = AttachRequest { process: "main".into(), ..AttachRequest::default() };
    let mut stdout = Vec::new();
    while stdout.is_empty() {
        let (_, mut process) = client.attach(request.clone()).await.unwrap();
        let got = collect(&mut process.output).await.unwrap();
        assert!(got.exit.is_none());
        stdout = got.stdout;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(stdout, b"hello\n");
    client.signal("main", 9, true).await.unwrap();
}

#[tokio::test]
async fn an_exit_is_kept_over_a_reconnect_until_it_is_acknowledged() {
    let agent = agent(workload("exit 42"));
    let client = connect(&agent).await;
    assert_eq!(client.wait("main", None).await.unwrap().code, Some(42));
    drop(client);

    let client = connect(&agent).await;
    let mut events = client.events(0).await.unwrap();
    let event = events.next().await.unwrap();
    let Happened::ProcessExited { process, exit } = event.happened else { panic!() };
    assert_eq!((process.as_str(), exit.code), ("main", Some(42)));
    client.acknowledge_exit("main").await.unwrap();
    client.acknowledge_exit("main").await.unwrap();

    let (_, mut other) =
        client.exec(ExecRequest { process: Some("b".into()), ..shell("exit 1") }).await.unwrap();
    collect(&mut other.output).await.unwrap();
    let mut events = client.events(0).await.unwrap();
    let Happened::ProcessExited { process, .. } = events.next().await.unwrap().happened else { panic!() };
    assert_eq!(process, "b");
    client.acknowledge_exit("b").await.unwrap();
    let known: Vec<String> =
        client.processes().await.unwrap().into_iter().map(|status| status.process).collect();
    assert_eq!(known, ["main"]);
}

#[tokio::test]
async fn a_running_process_cannot_be_acknowledged() {
    let agent = agent(workload("sleep 60"));
    let client = connect(&agent).await;
    assert_eq!(client.acknowledge_exit("main").await.unwrap_err().kind, ErrorKind::Conflict);
    client.signal("main", 9, true).await.unwrap();
}

#[tokio::test]
async fn the_same_process_id_never_starts_twice() {
    let client = connect(&agent(None)).await;
    let request = ExecRequest { process: Some("once".into()), ..shell("exit 0") };
    client.exec(request.clone()).await.unwrap();
    assert_eq!(client.exec(request).await.unwrap_err().kind, ErrorKind::AlreadyExists);
    let main = ExecRequest { process: Some("main".into()), ..shell("exit 0") };
    assert_eq!(client.exec(main).await.unwrap_err().kind, ErrorKind::InvalidInput);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_told_by_name() {
    let client = connect(&agent(None)).await;
    let request = ExecRequest { argv: vec!["no-such-program".into()], ..ExecRequest::default() };
    let error = client.exec(request).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.message.contains("no-such-program"), "{error}");
    let request = ExecRequest { working_directory: Some("/nowhere".into()), ..shell("true") };
    assert!(client.exec(request).await.unwrap_err().message.contains("/nowhere"));
}

#[tokio::test]
async fn a_workload_that_cannot_start_ends_with_127_and_the_reason() {
    let workload = WorkloadConfig { argv: vec!["/no/such".into()], ..WorkloadConfig::default() };
    let client = connect(&agent(Some(workload))).await;
    let exit = client.wait("main", None).await.unwrap();
    assert_eq!(exit.code, Some(127));
    assert!(exit.start_error.unwrap().contains("/no/such"));
}

#[tokio::test]
async fn environment_and_directory_come_from_the_workload_and_can_be_overridden() {
    let workload = WorkloadConfig {
        env: vec![("A".into(), "1".into()), ("B".into(), "1".into())],
        secret_env: vec![("TOKEN".into(), SecretString::new("hush"))],
        working_directory: Some("/usr".into()),
        ..WorkloadConfig::default()
    };
    let client = connect(&agent(Some(workload))).await;
    let script = "echo $A $B $TOKEN $PWD $HOME";
    let request = ExecRequest { env: vec![("B".into(), "2".into())], ..shell(script) };
    let (_, mut process) = client.exec(request).await.unwrap();
    let text = String::from_utf8(collect(&mut process.output).await.unwrap().stdout).unwrap();
    assert!(text.starts_with("1 2 hush /usr /"), "{text}");
}

async fn output_as(client: &AgentClient, user: &str) -> String {
    let request = ExecRequest { user: Some(user.into()), ..shell("id -u; id -g; id -G") };
    let (_, mut process) = client.exec(request).await.unwrap();
    String::from_utf8(collect(&mut process.output).await.unwrap().stdout).unwrap().replace('\n', " ")
}

#[tokio::test]
async fn a_process_runs_as_the_user_that_was_asked_for() {
    assert!(rustix::process::getuid().is_root(), "switching users needs root");
    let client = connect(&agent(None)).await;
    assert_eq!(output_as(&client, "1234:5678").await, "1234 5678 5678 ");
    assert!(output_as(&client, "nobody").await.starts_with("65534 65534 "));
    let request = ExecRequest { user: Some("no-such-user".into()), ..shell("true") };
    assert_eq!(client.exec(request).await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn a_shutdown_asks_then_kills_and_tells_the_exits() {
    let agent = agent(workload("trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done"));
    let client = connect(&agent).await;
    let (_, stubborn) = client
        .exec(ExecRequest {
            process: Some("stubborn".into()),
            ..shell("trap '' TERM; echo up; while :; do sleep 0.05; done")
        })
        .await
        .unwrap();
    for process in ["main", "stubborn"] {
        let request = AttachRequest { process: process.into(), follow: true, ..AttachRequest::default() };
        let (_, mut stream) = client.attach(request).await.unwrap();
        collect_until(&mut stream.output, "up").await;
    }
    client.shutdown(Duration::from_millis(400)).await.unwrap();
    let signal = agent.shutdown_requested().await;
    assert_eq!(signal.grace, Duration::from_millis(400));
    agent.end_processes(signal).await;
    assert_eq!(client.wait("main", None).await.unwrap().code, Some(9));
    assert_eq!(client.wait("stubborn", None).await.unwrap().signal, Some(9));
    assert_eq!(client.exec(shell("true")).await.unwrap_err().kind, ErrorKind::Unavailable);
    drop(stubborn);
}

#[tokio::test]
async fn a_descendant_that_keeps_the_output_open_does_not_delay_the_exit_for_ever() {
    let client = connect(&agent(None)).await;
    let (_, mut process) = client.exec(shell("(sleep 20; echo late) & echo now; exit 2")).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), collect(&mut process.output)).await;
    let got = ended.unwrap().unwrap();
    assert_eq!((got.stdout.as_slice(), got.exit.unwrap().code), (&b"now\n"[..], Some(2)));
}

#[tokio::test]
async fn a_process_waits_no_longer_for_a_reader_that_is_gone() {
    let client = connect(&agent(None)).await;
    let request = ExecRequest { process: Some("loud".into()), ..shell("head -c 4000000 /dev/zero; exit 6") };
    let (_, mut process) = client.exec(request).await.unwrap();
    assert!(matches!(process.output.next().await.unwrap(), Some(ProcessEvent::Output { .. })));
    drop(process);
    assert_eq!(client.wait("loud", Some(Duration::from_secs(20))).await.unwrap().code, Some(6));
}

#[tokio::test]
async fn more_processes_than_the_bound_are_refused() {
    let client = connect(&agent(None)).await;
    for _ in 0..flames_guest_protocol::limits::MAX_PROCESSES {
        let (_, mut process) = client.exec(shell("exit 0")).await.unwrap();
        collect(&mut process.output).await.unwrap();
    }
    assert_eq!(client.exec(shell("exit 0")).await.unwrap_err().kind, ErrorKind::Exhausted);
}
