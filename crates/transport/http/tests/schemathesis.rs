//! Hostile requests, made from the served description: Schemathesis finds no failure, and no answer that the description does not allow.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper of tests fails the test")]

#[path = "api/common.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_client::wire::stream::{
    DirectoryEntry, FileAnswer, FileInfo, FileKind, FileRequest, ProcessAnswer, ProcessInfo, ProcessRequest,
    StreamFrame,
};
use flames_clock::Timestamp;
use flames_error::Result;
use flames_service::{HostLinks, LinkChannel, LinkStream, LinkTarget};
use flames_transport_http::{Access, ServeConfig, serve_tcp};
use tokio::net::TcpListener;
use tokio::process::Command;

use common::{Harness, place_and_run};

const TOKEN: &str = "a-token-of-the-test";
/// How long Schemathesis generates requests. It is also what CI pays for this test.
const BUDGET: Duration = Duration::from_secs(75);
/// When it is ended from outside: a run that hangs is a failure.
const DEADLINE: Duration = Duration::from_secs(240);
/// What a schema cannot say, and so is kept out of the requests; and where a guest runs.
const CONFIGURATION: &str = r#"
[[operations]]
include-operation-id = ["list_events", "list_controller_events"]
# Following never ends. A text, since a boolean would be sent as `False`.
parameters = { "query.follow" = "false" }

[[operations]]
include-operation-id = "wait_vm"
# A longer wait tests patience alone.
parameters = { "query.timeout_ms" = 20 }

[[operations]]
include-tag = ["files", "processes"]
parameters = { "path.vm" = "web" }

[[operations]]
include-operation-id = ["read_logs", "read_console"]
parameters = { "path.vm" = "web" }
"#;
/// Checks that ask for what the API does not promise.
const NOT_PROMISED: &[&str] = &[
    // What fits the schema can be refused for reasons that a schema cannot say: 412, 422 for a key that is used again, a back-off whose
    // maximum is below its beginning, a port that stands twice.
    "positive_data_acceptance",
    // A deletion is a wish: the VM can be read until its host has let go of it, and then its tombstone, by id, for some days.
    "use_after_free",
    // Requests about guests go to the one VM that runs, whichever was created before.
    "ensure_resource_availability",
];

/// A guest that answers everything as asked.
#[derive(Debug)]
struct Obliging;

fn info() -> FileInfo {
    FileInfo {
        kind: FileKind::File,
        size_bytes: 3,
        mode: 0o644,
        uid: 0,
        gid: 0,
        modified_at: Timestamp::UNIX_EPOCH,
        link_target: None,
    }
}

async fn answers(stream: &LinkStream, host: &mut LinkChannel) -> Vec<StreamFrame> {
    let request = match stream {
        LinkStream::Files | LinkStream::Processes => host.receiver.recv().await,
        _ => None,
    };
    let request = request.map(|request| StreamFrame::decode(request).unwrap());
    match request {
        Some(StreamFrame::FileRequest(FileRequest::Read { .. })) => {
            vec![StreamFrame::FileAnswer(FileAnswer::Info(info())), StreamFrame::Data(Bytes::from("web"))]
        }
        Some(StreamFrame::FileRequest(FileRequest::Write { .. })) => {
            host.sender.send(StreamFrame::FileAnswer(FileAnswer::Ready).encode().unwrap()).await.ok();
            while let Some(frame) = host.receiver.recv().await {
                if matches!(StreamFrame::decode(frame), Ok(StreamFrame::End)) {
                    break;
                }
            }
            vec![StreamFrame::FileAnswer(FileAnswer::Info(info()))]
        }
        Some(StreamFrame::FileRequest(FileRequest::List { .. })) => {
            let entries = vec![DirectoryEntry { name: "a".to_owned(), info: info() }];
            vec![StreamFrame::FileAnswer(FileAnswer::Entries { entries, more: true })]
        }
        Some(StreamFrame::FileRequest(FileRequest::Stat { .. })) => {
            vec![StreamFrame::FileAnswer(FileAnswer::Info(info()))]
        }
        Some(StreamFrame::FileRequest(_)) => vec![StreamFrame::FileAnswer(FileAnswer::Done)],
        Some(StreamFrame::ProcessRequest(ProcessRequest::List)) => {
            let process = ProcessInfo {
                id: "main".to_owned(),
                command: vec!["sleep".to_owned(), "60".to_owned()],
                pid: Some(2),
                terminal: false,
                started_at: Timestamp::UNIX_EPOCH,
                output_bytes: 0,
                output_from: 0,
                exit: None,
            };
            vec![StreamFrame::ProcessAnswer(ProcessAnswer::Processes(vec![process]))]
        }
        Some(StreamFrame::ProcessRequest(_)) => vec![StreamFrame::ProcessAnswer(ProcessAnswer::Done)],
        _ => vec![StreamFrame::Stdout { offset: 0, data: Bytes::from_static(b"out\xff\n") }],
    }
}

#[async_trait]
impl HostLinks for Obliging {
    async fn open(&self, _target: LinkTarget, stream: LinkStream) -> Result<LinkChannel> {
        let (server, mut host) = LinkChannel::pair();
        // Ends with the channel, which the server drops with the request.
        tokio::spawn(async move {
            let mut frames = answers(&stream, &mut host).await;
            frames.push(StreamFrame::End);
            for frame in frames {
                host.sender.send(frame.encode().unwrap()).await.ok();
            }
        });
        Ok(server)
    }
}

fn is_required(name: &str) -> bool {
    let required = std::env::var("FLAMES_REQUIRE").unwrap_or_default();
    required.split(',').any(|required| required == name || required == "all")
}

async fn fuzz(program: &Path, address: &str, folder: &Path) -> (bool, String) {
    let configuration = folder.join("schemathesis.toml");
    std::fs::write(&configuration, CONFIGURATION).unwrap();
    let run = Command::new(program)
        .arg("--config-file")
        .arg(&configuration)
        .args(["run", &format!("http://{address}/openapi.json")])
        .args(["--header", &format!("Authorization: Bearer {TOKEN}")])
        .args(["--exclude-checks", &NOT_PROMISED.join(",")])
        .args(["--max-examples", "15", "--max-time", &BUDGET.as_secs().to_string()])
        .args(["--request-timeout", "20", "--seed", "20260101", "--continue-on-failure", "--no-color"])
        .args(["--generation-database", "none", "--suppress-health-check", "all"])
        .current_dir(folder)
        .env("HOME", folder)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(DEADLINE, run).await.expect("schemathesis did not end").unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.success(), text.concat())
}

/// How many operations the run found, if it chose and tried all of them.
fn tried_all(text: &str) -> Option<u64> {
    let number = |begin: &str| text.lines().find_map(|line| line.trim().strip_prefix(begin)).map(str::trim);
    let (chosen, all) = number("Operations:")?.strip_suffix(" total")?.split_once(" selected / ")?;
    let tried = number("Tested:")?;
    (chosen == all && tried == all).then(|| all.parse().ok())?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_requests_get_no_5xx_and_no_answer_that_the_description_does_not_allow() {
    let Some(program) = std::env::var_os("FLAMES_SCHEMATHESIS").map(PathBuf::from) else {
        let reason = "schemathesis: FLAMES_SCHEMATHESIS is not set (`cargo xtask test` installs it)";
        assert!(!is_required("schemathesis"), "{reason}");
        return println!("skipped: {reason}");
    };
    let harness = Harness::with(Arc::new(Obliging), |_| {});
    let vm = harness.create("web").await;
    place_and_run(&harness.service, vm["id"].as_str().unwrap()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let router = harness.api.router(Access::Token { token: TOKEN.to_owned(), hosts: Vec::new() });
    let serving = serve_tcp(listener, router, ServeConfig::default(), harness.api.stop_token());
    let server = tokio::spawn(serving);
    let folder = tempfile::tempdir().unwrap();
    let (passed, text) = fuzz(&program, &address, folder.path()).await;
    harness.api.shutdown().await;
    server.await.unwrap();
    assert!(passed, "{text}");
    println!("{text}");
    let generated = text.lines().find(|line| line.contains(" generated, ")).map(str::trim);
    // A run that did not reach every operation proves less than it says.
    assert!(generated.is_some() && tried_all(&text).is_some_and(|tried| tried >= 41), "{text}");
    println!("report: schemathesis: {}", generated.unwrap_or_default());
}
