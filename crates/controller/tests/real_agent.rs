//! A whole controller with the real agent, a folder on a disk and real time. Only the machine is simulated: the agent runs in this process,
//! and its workloads are processes of this machine.

// Helpers of tests, which Clippy does not take for tests.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_client::HostApi;
use flames_client::wire::host::{
    AssignmentsPage, Changes, HostSession, RegisterRequest, Registered, Renewed, ReportBatch, ReportOutcome,
    SnapshotReport, SnapshotReportOutcome,
};
use flames_client::wire::stream::{ExecRequest, FileRequest, StreamFrame, StreamRequest};
use flames_clock::{SystemClock, SystemRandom};
use flames_controller::{
    AgentConnector, Artefacts, Controller, ControllerConfig, ControllerParts, DEFAULT_OUTPUT_KEPT, DiskFiles,
    FileFolder, HostFolder, ShutdownMode, SnapshotStore,
};
use flames_error::{Error, Result};
use flames_guest_agent::{Agent, AgentOptions};
use flames_guest_protocol::GuestConfig;
use flames_model::{
    Assignment, ControllerId, ExitCause, ImageManifest, IncarnationState, Report, Resources, SessionToken,
    VmName, Wanted,
};
use flames_vmm::{AGENT_PORT, IncarnationName, SecretBytes};
use flames_vmm_simulated::{
    GuestFuture, GuestProgram, SimulatedConfig, SimulatedDriver, SimulatedGuest, SimulatedHost,
};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

#[derive(Debug)]
struct RealAgent;

impl GuestProgram for RealAgent {
    fn boot(&self, _: &IncarnationName, config: &SecretBytes, guest: SimulatedGuest) -> GuestFuture {
        let config = GuestConfig::decode(&config.0).unwrap();
        Box::pin(async move {
            let agent = Agent::new(config, AgentOptions::default()).unwrap();
            agent.start_workload();
            let mut listener = guest.listen(AGENT_PORT);
            let serve = async {
                while let Some(stream) = listener.accept().await {
                    let agent = Arc::clone(&agent);
                    guest.spawn(async move { agent.serve(stream).await });
                }
            };
            // As the agent's own binary ends.
            let end = async {
                let signal = agent.shutdown_requested().await;
                agent.end_processes(signal).await;
                agent.exits_delivered(Duration::from_secs(2)).await;
            };
            tokio::select! {
                () = serve => {}
                () = end => {}
            }
        })
    }
}

/// One assignment, and what is reported on it.
#[derive(Debug)]
struct OneVm {
    assignment: watch::Sender<Option<Assignment>>,
    report: watch::Sender<Option<Report>>,
}

#[async_trait]
impl HostApi for OneVm {
    async fn register(&self, request: &RegisterRequest) -> Result<Registered> {
        let session = SessionToken::from_uuid(Uuid::from_u128(1));
        let session = HostSession { controller: request.id, session };
        Ok(Registered { session, lease_ms: 60_000, changes_from: String::new() })
    }
    async fn renew(&self, _: &HostSession) -> Result<Renewed> {
        Ok(Renewed { lease_ms: 60_000 })
    }
    async fn assignments(
        &self,
        _: &HostSession,
        _: Option<flames_model::IncarnationId>,
        _: usize,
    ) -> Result<AssignmentsPage> {
        Ok(AssignmentsPage { items: self.assignment.borrow().iter().cloned().collect(), next: None })
    }
    async fn changes(&self, _: &HostSession, after: &str, wait: Duration) -> Result<Changes> {
        let mut changes = self.assignment.subscribe();
        let wanted = |assignment: &Option<Assignment>| {
            assignment.as_ref().map(|assignment| format!("{:?}", assignment.wanted)).unwrap_or_default()
        };
        let changed = changes.wait_for(|assignment| wanted(assignment) != after);
        let Ok(Ok(assignment)) =
            tokio::time::timeout(wait, changed).await.map(|told| told.map(|told| told.clone()))
        else {
            return Ok(Changes { changed: Vec::new(), next: after.to_owned() });
        };
        let next = wanted(&assignment);
        let assigned = |assignment: Assignment| flames_client::wire::host::Assigned {
            incarnation: assignment.incarnation,
            assignment: Some(Arc::new(assignment)),
        };
        Ok(Changes { changed: assignment.into_iter().map(assigned).collect(), next })
    }
    async fn report(&self, _: &HostSession, batch: &ReportBatch) -> Result<Vec<ReportOutcome>> {
        let outcomes = vec![ReportOutcome::Taken; batch.reports.len()];
        self.report.send_replace(batch.reports.last().cloned());
        Ok(outcomes)
    }
    async fn report_snapshot(&self, _: &HostSession, _: &SnapshotReport) -> Result<SnapshotReportOutcome> {
        Ok(SnapshotReportOutcome::Over)
    }
}

#[derive(Debug)]
struct NoArtefacts;

#[async_trait]
impl Artefacts for NoArtefacts {
    async fn rootfs(&self, _: &ImageManifest) -> Result<PathBuf> {
        Ok("/rootfs".into())
    }
    async fn kernel(&self, _: Option<&ImageManifest>) -> Result<PathBuf> {
        Ok("/kernel".into())
    }
    async fn default_kernel(&self) -> Result<Option<String>> {
        Ok(None)
    }
    async fn initramfs(&self) -> Result<Option<PathBuf>> {
        Ok(None)
    }
    async fn writable_layer(&self, path: &Path, _: u64) -> Result<()> {
        std::fs::write(path, "layer")
            .map_err(|error| Error::unavailable("test", "the layer was not written").with_source(error))
    }
    async fn sweep(&self, _needed: &[ImageManifest]) -> Result<()> {
        Ok(())
    }
}

fn assignment(controller: ControllerId, script: &str) -> Assignment {
    let id = Uuid::from_u128(1).simple();
    serde_json::from_value(serde_json::json!({
        "incarnation": format!("inc_{id}"), "vm": format!("vm_{id}"), "project": "default", "name": "vm",
        "controller": controller, "token": 1, "wanted": "running", "source": "boot", "kernel": null,
        "spec": {
            "image": "debian", "kernel": null, "vcpus": 1, "memory_mib": 64, "root_disk_mib": 64, "disk": "ephemeral",
            "command": ["/bin/sh", "-c", script], "args": [], "env": {"PLAIN": "env"},
            "secret_env": {"SECRET": "hush"}, "working_directory": "/", "user": null, "tty": false, "ports": [],
            "restart": {"rule": "never", "backoff_initial_ms": 1, "backoff_max_ms": 1, "max_restarts": null},
            "timeout_ms": null, "auto_delete_after_ms": null, "stop_grace_ms": 2000, "on_host_loss": "wait", "placement": {}
        },
        "image": {
            "kind": "rootfs", "blob": "b", "digest": "d", "size_bytes": 1,
            "defaults": {"entrypoint": [], "cmd": [], "env": {}, "working_directory": null, "user": null}
        }
    }))
    .unwrap()
}

struct World {
    host: Arc<SimulatedHost>,
    api: Arc<OneVm>,
    root: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let config = SimulatedConfig { program: Some(Arc::new(RealAgent)), ..SimulatedConfig::default() };
        let host = SimulatedHost::new(config, Arc::new(SystemClock::new()), Arc::new(SystemRandom));
        let api = OneVm { assignment: watch::Sender::new(None), report: watch::Sender::new(None) };
        Self { host, api: Arc::new(api), root: tempfile::tempdir().unwrap() }
    }

    async fn start(&self) -> Controller {
        // A controller that was dropped holds the folder until the runtime has dropped its tasks.
        let opened = async {
            loop {
                match FileFolder::open(self.root.path(), DEFAULT_OUTPUT_KEPT).await {
                    Ok(folder) => return folder,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        let folder = tokio::time::timeout(Duration::from_secs(10), opened).await.unwrap();
        let parts = ControllerParts {
            driver: Arc::new(SimulatedDriver::new(Arc::clone(&self.host))),
            api: self.api.clone(),
            artefacts: Arc::new(NoArtefacts),
            // The agent of this test shares this machine's clock, which is nobody's to set.
            guests: Arc::new(AgentConnector { sets_clocks: false, ..AgentConnector::default() }),
            folder: Arc::new(folder),
            snapshots: Arc::new(SnapshotStore::new(
                Arc::new(flames_blob_memory::MemoryBlobStore::new(Arc::new(SystemClock::new()))),
                Arc::new(DiskFiles),
                self.root.path().join("snapshots"),
            )),
            clock: Arc::new(SystemClock::new()),
            random: Arc::new(SystemRandom),
        };
        let capacity = Resources { vcpus: 4, memory_mib: 4096, disk_mib: 4096, vms: 4 };
        Controller::start(parts, ControllerConfig::new(VmName::new("host").unwrap(), capacity)).await.unwrap()
    }

    async fn until(&self, reached: impl Fn(&Report) -> bool) -> Report {
        let mut reports = self.api.report.subscribe();
        let wait = reports.wait_for(|report| report.as_ref().is_some_and(&reached));
        let reached = tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap().unwrap().clone();
        reached.unwrap()
    }

    fn want(&self, wanted: Wanted) {
        self.api.assignment.send_modify(|assignment| assignment.as_mut().unwrap().wanted = wanted);
    }

    async fn stream(
        &self,
        controller: &Controller,
        request: StreamRequest,
        send: Vec<StreamFrame>,
    ) -> Vec<StreamFrame> {
        let (sender, from_client) = mpsc::channel(4);
        let (to_client, mut receiver) = mpsc::channel(4);
        let id = self.api.assignment.borrow().as_ref().unwrap().incarnation;
        let serving = controller.streams().open(id, request).unwrap().run(to_client, from_client);
        let client = async {
            for frame in send {
                sender.send(frame.encode().unwrap()).await.unwrap();
            }
            let mut frames = Vec::new();
            while let Some(frame) = receiver.recv().await {
                frames.push(StreamFrame::decode(frame).unwrap());
            }
            frames
        };
        tokio::time::timeout(Duration::from_secs(30), async { tokio::join!(serving, client).1 })
            .await
            .unwrap()
    }
}

fn text(frames: &[StreamFrame], of_stderr: bool) -> String {
    let mut text = Vec::new();
    for frame in frames {
        match frame {
            StreamFrame::Stdout { data, .. } | StreamFrame::Data(data) if !of_stderr => {
                text.extend_from_slice(data)
            }
            StreamFrame::Stderr { data, .. } if of_stderr => text.extend_from_slice(data),
            _ => {}
        }
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_real_workload_runs_is_spoken_to_survives_a_restart_of_its_controller_and_is_stopped() {
    let world = World::new();
    let controller = world.start().await;
    let script =
        "echo $PLAIN $SECRET; echo oops >&2; trap 'echo bye; exit 5' TERM; while :; do sleep 0.05; done";
    world.api.assignment.send_replace(Some(assignment(controller.id(), script)));
    world.until(|report| report.state == IncarnationState::Running).await;

    let command = ["/bin/sh", "-c", "cat; exit 4"].map(str::to_owned).to_vec();
    let request = StreamRequest::Exec(ExecRequest { command, stdin: true, ..ExecRequest::default() });
    let input = vec![StreamFrame::Stdin(Bytes::from_static(b"through")), StreamFrame::StdinClosed];
    let frames = world.stream(&controller, request, input).await;
    assert_eq!(text(&frames, false), "through");
    assert!(
        frames.iter().any(|frame| matches!(frame, StreamFrame::Exit(exit) if exit.code == Some(4))),
        "{frames:?}"
    );

    let path = world.root.path().join("file").display().to_string();
    let write = FileRequest::Write { path: path.clone(), mode: Some(0o600), overwrite: false };
    let send = vec![
        StreamFrame::FileRequest(write),
        StreamFrame::Data(Bytes::from_static(b"content")),
        StreamFrame::End,
    ];
    world.stream(&controller, StreamRequest::Files, send).await;
    let read = vec![StreamFrame::FileRequest(FileRequest::Read { path })];
    assert_eq!(text(&world.stream(&controller, StreamRequest::Files, read).await, false), "content");

    drop(controller);
    let controller = world.start().await;
    world.until(|report| report.sequence > 1_000 && report.state == IncarnationState::Running).await;
    world.want(Wanted::Stopped);
    let report = world.until(|report| report.released).await;
    let exit = report.exit.unwrap();
    assert_eq!(
        (report.state, exit.code, exit.cause),
        (IncarnationState::Stopped, Some(5), ExitCause::Stopped)
    );
    let logs = StreamRequest::Logs { follow: false, since: None, tail: None };
    let frames = world.stream(&controller, logs, Vec::new()).await;
    assert_eq!(text(&frames, false), "env hush\nbye\n");
    assert!(text(&frames, true).starts_with("oops\n"));
    world.want(Wanted::Purged);
    world.until(|report| report.purged).await;
    controller.shutdown(ShutdownMode::LeaveRunning).await;
    assert_eq!(world.host.residue(), Vec::<String>::new());
    assert_eq!(world.host.started_twice(), Vec::new());
}

#[tokio::test]
async fn a_real_workload_that_is_not_there_failed_with_127_and_one_that_ends_with_its_code() {
    for (script, state, code) in
        [("exit 3", IncarnationState::Stopped, 3), ("", IncarnationState::Failed, 127)]
    {
        let world = World::new();
        let controller = world.start().await;
        let mut assignment = assignment(controller.id(), script);
        if script.is_empty() {
            Arc::make_mut(&mut assignment.spec).command = Some(vec!["/no/such/program".to_owned()]);
        }
        let id = assignment.incarnation;
        world.api.assignment.send_replace(Some(assignment));
        let report = world.until(|report| report.released).await;
        assert_eq!((report.state, report.exit.unwrap().code), (state, Some(code)), "{report:?}");
        assert!(!world.root.path().join("incarnations").join(id.to_string()).join("disk.ext4").exists());
        controller.shutdown(ShutdownMode::LeaveRunning).await;
        let folder = FileFolder::open(world.root.path(), DEFAULT_OUTPUT_KEPT).await.unwrap();
        assert!(folder.incarnations().await.unwrap()[0].record.as_ref().unwrap().is_released());
    }
}
