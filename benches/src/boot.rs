//! `boot`: how long from asking until the workload's first byte of output, through Flames and by hand.
//!
//! Through Flames: a running `flames up` on a private folder and port; the clock runs from the POST to the first byte that the log's
//! follower gets. By hand: the command line of the QEMU that Flames started for that VM, read from `/proc`, with files of its own in
//! place of what made it that VM (sockets in place of inherited descriptors, its config drive copied, a new writable layer, not stopped
//! at its start); the clock runs from the start of QEMU to the first byte of the workload's output on the agent's channel. What the
//! hand needs is there before its clock runs.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use flames_client::{Client, ClientConfig, Mutation};
use flames_guest_protocol::client::ProcessEvent;
use flames_guest_protocol::message::{AttachRequest, MAIN_PROCESS};
use flames_guest_protocol::{AgentClient, ConnectOptions, ErrorKind, GuestConfig, Identity};
use flames_wire::{CreateVm, LogQuery};
use futures::StreamExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::measure::{count, median};
use crate::report::{Bar, Figure, Report, Row, Section, Side};

/// How long one boot may take, also on a busy machine under emulation.
const PATIENCE: Duration = Duration::from_secs(120);
/// What the workload writes first.
const FIRST: &str = "first";
/// The image that every VM is of.
const IMAGE: &str = "bench";
/// Between two looks at something that comes into being.
const LOOK: Duration = Duration::from_millis(1);

/// What is measured with.
#[derive(Debug, Args)]
pub(crate) struct BootArguments {
    /// Boots of each side, by turns.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// The `flames` binary.
    #[arg(long, value_name = "FILE")]
    flames: PathBuf,
    /// The static guest agent.
    #[arg(long, value_name = "FILE", env = "FLAMES_GUEST_AGENT")]
    agent: PathBuf,
    /// The guests' kernel.
    #[arg(long, value_name = "FILE", env = "FLAMES_TEST_KERNEL")]
    kernel: PathBuf,
    /// The folder of that kernel's modules, when the guest needs some.
    #[arg(long, value_name = "DIR", env = "FLAMES_TEST_KERNEL_MODULES")]
    kernel_modules: Option<PathBuf>,
    /// A static busybox, from which the guests' image is made.
    #[arg(long, value_name = "FILE", default_value = "/bin/busybox")]
    busybox: PathBuf,
    /// What runs the guests' processors: what `flames up --accel` takes.
    #[arg(long, default_value = "tcg")]
    accel: String,
}

/// Measures.
pub(crate) fn run(arguments: &BootArguments) -> Result<Report> {
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let rounds = runtime.block_on(measure(arguments))?;
    let ratio = |round: &Round| round.flames.as_secs_f64() / round.by_hand.as_secs_f64();
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
    let row = |key: String, flames: f64, by_hand: f64, ratio: f64| Row {
        key,
        figures: vec![
            Figure { name: "Flames ms", value: flames },
            Figure { name: "by hand ms", value: by_hand },
            Figure { name: "ratio", value: ratio },
        ],
    };
    let mut rows: Vec<Row> = (1..)
        .zip(&rounds)
        .map(|(number, round): (u32, _)| {
            row(number.to_string(), milliseconds(round.flames), milliseconds(round.by_hand), ratio(round))
        })
        .collect();
    let of = |side: fn(&Round) -> Duration| median(rounds.iter().map(side).map(milliseconds).collect());
    let (flames, by_hand) = (of(|round| round.flames), of(|round| round.by_hand));
    rows.push(row("median".to_owned(), flames, by_hand, flames / by_hand));
    let title = format!(
        "POST to the first byte of output, beside the same QEMU command line by hand ({}, {} turns).",
        arguments.accel,
        count(rounds.len())
    );
    let bars = vec![Bar::new("boot: Flames / by hand, medians", Side::AtMost, 1.10, flames / by_hand)];
    Ok(Report::new("boot", began, vec![Section { title, key: "turn", rows }], bars))
}

struct Round {
    flames: Duration,
    by_hand: Duration,
}

async fn measure(arguments: &BootArguments) -> Result<Vec<Round>> {
    let folder = tempfile::Builder::new().prefix("flames-bench-").tempdir()?;
    let up = Up::start(arguments, folder.path()).await?;
    let root = folder.path().join("image");
    make_image(&arguments.busybox, &root)?;
    up.command(arguments, &["image", "import", IMAGE], &[&root]).await?;
    // The first boot reads files that later ones find in memory.
    let mut rounds = Vec::new();
    for number in 0..=arguments.rounds {
        let (flames, machine) = up.boot().await?;
        let by_hand = machine.boot(&folder.path().join(format!("hand-{number}"))).await?;
        if number > 0 {
            rounds.push(Round { flames, by_hand });
        }
    }
    up.interrupt().await?;
    Ok(rounds)
}

fn make_image(busybox: &Path, root: &Path) -> Result<()> {
    for name in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy(busybox, root.join("bin/busybox"))
        .with_context(|| format!("{} cannot be copied", busybox.display()))?;
    symlink("busybox", root.join("bin/sh"))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n")?;
    Ok(())
}

/// A running `flames up`, killed when dropped; its machines are ended by [`Up::boot`] and by the end of their VMs.
struct Up {
    child: Child,
    client: Client,
    data: PathBuf,
}

impl Up {
    async fn start(arguments: &BootArguments, folder: &Path) -> Result<Self> {
        let data = folder.join("data");
        let mut command = std::process::Command::new(&arguments.flames);
        command
            .arg("--data")
            .arg(&data)
            .args(["--json", "up", "--listen", "0", "--on-exit", "stop", "--accel", &arguments.accel])
            .arg("--kernel")
            .arg(&arguments.kernel)
            .arg("--agent")
            .arg(&arguments.agent)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if let Some(modules) = &arguments.kernel_modules {
            command.arg("--kernel-modules").arg(modules);
        }
        let mut command = Command::from(command);
        let mut child = command.kill_on_drop(true).spawn().context("flames cannot be started")?;
        let stdout = child.stdout.take().context("no output of flames")?.into_owned_fd()?;
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(fs::File::from(stdout)).read_line(&mut line).map(|_| line)
        });
        let line = tokio::time::timeout(PATIENCE, line).await.context("flames does not come up")???;
        let told: serde_json::Value = serde_json::from_str(&line).context("flames did not come up")?;
        let text = |name: &str| told[name].as_str().with_context(|| format!("flames does not tell {name}"));
        let token = fs::read_to_string(text("token_file")?)?;
        let address = text("url")?.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let client = Client::tcp(&address, ClientConfig::default().with_token(token.trim()))?;
        Ok(Self { child, client, data: fs::canonicalize(data)? })
    }

    async fn command(&self, arguments: &BootArguments, words: &[&str], paths: &[&Path]) -> Result<()> {
        let mut command = Command::new(&arguments.flames);
        command.arg("--data").arg(&self.data).args(words).args(paths).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output()).await??;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`flames {}` failed: {said}", words.join(" "));
        Ok(())
    }

    /// Boots a VM, and answers how long that took and what its machine was.
    async fn boot(&self) -> Result<(Duration, Machine)> {
        let mut create = CreateVm::new(IMAGE);
        let script = format!("echo {FIRST}; while :; do sleep 1000; done");
        create.spec.command = Some(["/bin/sh", "-c", &script].map(str::to_owned).to_vec());
        create.spec.stop_grace_ms = 0;
        let began = Instant::now();
        let vm = self.client.create_vm(&create, &Mutation::default()).await?;
        let id = vm.id.to_string();
        let first = async {
            let waited = self.client.wait_vm(&id, "running", PATIENCE).await?;
            ensure!(waited.reached, "the VM does not run: {:?}", waited.vm.reason);
            let mut log = self.client.logs(&id, &LogQuery { follow: true, ..LogQuery::default() }).await?;
            while let Some(piece) = log.next().await {
                if !piece?.is_empty() {
                    return Ok((began.elapsed(), waited.vm));
                }
            }
            bail!("the log ended before its first byte")
        };
        let (took, vm) = tokio::time::timeout(PATIENCE, first).await.context("no output came")??;
        let incarnation = vm.incarnation.context("the VM runs nowhere")?.id.to_string();
        let machine = Machine::of(&self.data.join("machines").join(&incarnation), &incarnation)?;
        self.client.delete_vm(&id, &Mutation::default()).await?;
        let waited = self.client.wait_vm(&id, "deleted", PATIENCE).await?;
        ensure!(waited.reached, "the VM was not removed");
        Ok((took, machine))
    }

    async fn interrupt(mut self) -> Result<()> {
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            let pid = rustix::process::Pid::from_raw(pid).context("no process")?;
            rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        }
        tokio::time::timeout(PATIENCE, self.child.wait()).await.context("flames does not end")??;
        Ok(())
    }
}

/// The QEMU of one VM: its command line, and what its guest was told.
struct Machine {
    words: Vec<String>,
    config: Vec<u8>,
}

impl Machine {
    /// The machine that runs in this folder.
    fn of(folder: &Path, incarnation: &str) -> Result<Self> {
        for entry in fs::read_dir("/proc")?.flatten() {
            let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
            let words: Vec<String> = line
                .split(|byte| *byte == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .filter(|word| !word.is_empty())
                .collect();
            let is_machine =
                words.iter().any(|word| word == "-M") && words.iter().any(|word| word.contains(incarnation));
            if is_machine {
                let config = fs::read(folder.join("guest-config"))
                    .with_context(|| format!("no config drive in {}", folder.display()))?;
                return Ok(Self { words, config });
            }
        }
        bail!("no process runs the machine {incarnation}")
    }

    /// The same machine with files in `place`, and the agent's socket.
    fn by_hand(&self, place: &Path) -> Result<(Vec<String>, PathBuf)> {
        let mut words = Vec::new();
        let mut line = self.words.iter();
        while let Some(word) = line.next() {
            words.push(word.clone());
            match word.as_str() {
                // It is to run at once.
                "-S" => {
                    words.pop();
                }
                "-pidfile" => {
                    line.next();
                    words.push(place.join("pid").display().to_string());
                }
                "-chardev" => {
                    let value = line.next().context("a -chardev without a value")?;
                    let id = value.split(',').find_map(|part| part.strip_prefix("id=")).context("no id")?;
                    let path = place.join(id).display().to_string();
                    words.push(format!("socket,id={id},path={path},server=on,wait=off"));
                }
                "-blockdev" => {
                    let value = line.next().context("a -blockdev without a value")?;
                    words.push(self.disk(value, place)?);
                }
                _ => {}
            }
        }
        Ok((words, place.join("agent")))
    }

    /// A disk that the machine writes to is made anew; the config drive is a copy; images are the same files.
    fn disk(&self, node: &str, place: &Path) -> Result<String> {
        let mut node: serde_json::Value = serde_json::from_str(node)?;
        let path = PathBuf::from(node["file"]["filename"].as_str().context("a disk without a file")?);
        let name = node["node-name"].as_str().context("a disk without a name")?.to_owned();
        let new = place.join(name);
        if path.file_name().is_some_and(|name| name == "guest-config") {
            fs::write(&new, &self.config)?;
        } else if node["read-only"] == false {
            // As large as the request's default.
            let size = CreateVm::new(IMAGE).spec.root_disk_mib << 20;
            flames_image::writable::ensure(&new, size).context("no writable layer")?;
        } else {
            return Ok(node.to_string());
        }
        node["file"]["filename"] = new.display().to_string().into();
        Ok(node.to_string())
    }

    /// Boots it by hand, and answers how long that took.
    async fn boot(&self, place: &Path) -> Result<Duration> {
        fs::create_dir(place)?;
        let (words, agent) = self.by_hand(place)?;
        let config = GuestConfig::decode(&self.config).context("the config drive cannot be read")?;
        let identity = Identity { incarnation: config.incarnation, key: config.key };
        let (program, arguments) = words.split_first().context("an empty command line")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let began = Instant::now();
        let mut child = command.spawn().context("QEMU cannot be started")?;
        let first = tokio::select! {
            first = tokio::time::timeout(PATIENCE, first_byte(&agent, &identity)) => first,
            ended = child.wait() => bail!("QEMU by hand ended: {:?}", ended?),
        };
        let took = began.elapsed();
        child.kill().await?;
        first.context("no output came by hand")??;
        fs::remove_dir_all(place)?;
        Ok(took)
    }
}

/// Returns at the first byte of the workload's output.
async fn first_byte(agent: &Path, identity: &Identity) -> Result<()> {
    let stream = loop {
        match UnixStream::connect(agent).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    };
    let options = ConnectOptions { handshake_timeout: PATIENCE, ..ConnectOptions::default() };
    let client = AgentClient::connect(stream, identity, options).await?;
    let attach = AttachRequest {
        process: MAIN_PROCESS.to_owned(),
        from_offset: 0,
        stdin: false,
        lossless: false,
        follow: true,
    };
    let (_, mut process) = loop {
        match client.attach(attach.clone()).await {
            Err(error) if error.kind == ErrorKind::NotFound => tokio::time::sleep(LOOK).await,
            attached => break attached?,
        }
    };
    while let Some(event) = process.output.next().await? {
        if let ProcessEvent::Output { content, .. } = event
            && !content.is_empty()
        {
            return Ok(());
        }
    }
    bail!("the workload ended without output")
}
