//! `cargo xtask test`: everything, real virtual machines included.
//!
//! What the tests find in their environment:
//! - `FLAMES_GUEST_AGENT`: the static agent binary for guests;
//! - `FLAMES_TEST_KERNEL`: the kernel for guests, when there is one, and `FLAMES_TEST_KERNEL_MODULES`: the folder of the
//!   modules that they must load with it, when it needs some; `FLAMES_TEST_CPU_TEMPLATE`: what it needs under Firecracker;
//! - `FLAMES_TEST_POSTGRES`, `_REDIS`, `_NATS`, `_ETCD`, `_S3`: the URL of a real server, one for all tests;
//!   `FLAMES_TEST_CADDY`: that program; `FLAMES_TEST_…_PROGRAM` (and `FLAMES_TEST_POSTGRES_BIN`): the programs, for tests that
//!   kill a server of their own. See the crate `flames-test-servers`;
//! - `FLAMES_SCHEMATHESIS`: that program, when it is installed;
//! - `FLAMES_FULL`: set by `--full`; what takes long or downloads much runs only then.
//! - `FLAMES_REQUIRE`: under CI or `--full`, the names of all that is there, with commas (`qemu,kernel,agent,…`). A
//!   suite that would skip for lack of one of these must fail instead;
//! - `TMPDIR`: a folder of this run, removed at its end.
//!
//! A test that prints a line `skipped: <reason>` counts as skipped, and a binary that ignores cases prints such lines
//! when it is asked for their list. A test that prints `report: <text>` has that text
//! shown under its suite.

mod doc_tests;
pub(crate) mod report;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::guest::TestKernel;
use crate::process::{Echo, Ended, Supervisor};
use crate::servers::{ServerKind, Servers};
use crate::stages::Stages;
use crate::tools::Tools;
use crate::{Verdict, guest, support, tools, workspace};
use doc_tests::DocTests;
use report::{Report, Skip};

/// nextest's exit code for "some tests failed" (its documentation calls it `TEST_RUN_FAILED`).
const NEXTEST_TESTS_FAILED: i32 = 100;

/// Packages, or what their names begin with, whose tests start guests.
const WITH_GUESTS: [&str; 5] =
    ["flames-vmm-", "flames-guest-", "flames-image", "flames-testbed", "flames-controller"];

/// By name.
type Versions = Vec<(&'static str, String)>;

#[derive(Args)]
pub(crate) struct TestArguments {
    /// Nothing may be skipped for lack of a program that is there: what CI does.
    #[arg(long)]
    full: bool,
    /// Only the tests of these packages (then no documentation tests).
    #[arg(short, long = "package", value_name = "PACKAGE")]
    packages: Vec<String>,
    /// Run only tests whose name contains one of these (then no documentation tests either).
    filters: Vec<String>,
}

impl TestArguments {
    /// Whether a guest may be started, for which agent and kernel are made.
    fn has_guests(&self) -> bool {
        let starts = |package: &String| {
            package == "flames" || WITH_GUESTS.iter().any(|prefix| package.starts_with(prefix))
        };
        self.packages.is_empty() || self.packages.iter().any(starts)
    }
}

/// Runs the tests and prints what ran, what was skipped and why, and how long each stage took.
///
/// # Errors
/// When something cannot be installed, built or started, or the run was interrupted.
pub(crate) fn run(arguments: &TestArguments) -> Result<Verdict> {
    let supervisor = Supervisor::start()?;
    let mut stages = Stages::default();
    let outcome = run_stages(arguments, &supervisor, &mut stages);
    let leftovers = supervisor.end_leftovers();
    println!("\n=== minutes\n{}", stages.table());
    let (report, versions) = outcome?;
    if !leftovers.is_empty() {
        println!("left running by tests, killed now: {}", leftovers.join(", "));
    }
    let summary = report.summary();
    let summary_file = workspace::target_folder().join("xtask/test-summary.txt");
    std::fs::create_dir_all(summary_file.parent().unwrap_or(Path::new(".")))?;
    std::fs::write(&summary_file, format!("{summary}\n")).context("cannot write the summary")?;
    let mut verdict = if report.all_passed() { Verdict::Passed } else { Verdict::Refused };
    // Of a run of some of its tests nothing can be said about an adapter.
    if arguments.filters.is_empty() {
        let of_all = arguments.packages.is_empty();
        let outcomes = support::keep(versions, report.results(), of_all)?;
        if of_all && is_ci() && support::check(&outcomes)? == Verdict::Refused {
            verdict = Verdict::Refused;
        }
    }
    println!("{summary}");
    Ok(verdict)
}

/// The report, and the versions of what adapters were tested against.
fn run_stages(
    arguments: &TestArguments,
    supervisor: &Supervisor,
    stages: &mut Stages,
) -> Result<(Report, Versions)> {
    let mut tools = stages.run("tools", || tools::install(supervisor))?;
    let servers = stages.run("servers", || Servers::start(supervisor, &ServerKind::ALL))?;
    tools.available.extend(servers.names());
    let (agent, kernel) =
        if arguments.has_guests() { guest_parts(supervisor, stages)? } else { (None, None) };
    tools.available.extend(agent.as_ref().map(|_| "agent"));
    tools.available.extend(kernel.as_ref().map(|_| "kernel"));
    let mut environment = environment(&tools, agent.as_deref(), kernel.as_ref(), arguments.full || is_ci())?;
    environment.extend(servers.environment());
    if arguments.full {
        environment.push(("FLAMES_FULL", "1".into()));
    }

    let store = supervisor.folder().join("nextest");
    let configuration = configuration(&store)?;
    let nextest = |verb: &str| {
        let mut command = workspace::cargo();
        command
            .args(["nextest", verb, "--config-file"])
            .arg(&configuration)
            .arg("--all-features")
            .args(arguments.packages.is_empty().then_some("--workspace"))
            .args(arguments.packages.iter().flat_map(|package| ["--package", package]))
            .current_dir(workspace::root())
            .envs(environment.clone());
        command
    };
    stages.run("build of tests", || supervisor.run_to_success(nextest("run").arg("--no-run")))?;
    let ended = stages.run("tests", || supervisor.run(nextest("run").args(&arguments.filters)))?;
    match ended {
        Ended::Exited(0 | NEXTEST_TESTS_FAILED) => {}
        other => bail!("nextest: {other}"),
    }
    let junit = std::fs::read_to_string(store.join("default/junit.xml"));
    let mut report = Report::from_junit(&junit.context("nextest wrote no JUnit file")?)?;
    let (listed, list) = supervisor.run_capturing(
        nextest("list").args(["--message-format", "json"]).args(&arguments.filters),
        Echo::No,
    )?;
    if !listed.success() {
        bail!("nextest list: {listed}");
    }
    report.add_ignored(&list, |binary, folder| {
        reasons_for_ignoring(supervisor, &environment, binary, folder)
    })?;

    if arguments.filters.is_empty() && arguments.packages.is_empty() {
        let doc_tests = stages.run("documentation tests", || {
            let mut command = workspace::cargo();
            command.args(["test", "--doc", "--workspace", "--all-features", "--no-fail-fast"]);
            command.current_dir(workspace::root()).envs(environment.clone());
            let (ended, text) = supervisor.run_capturing(&mut command, Echo::Yes)?;
            DocTests::from_output(&text, ended.success())
        })?;
        report.add_doc_tests(&doc_tests);
    }
    println!("\n=== suites\n{report}");
    if ended == Ended::Exited(NEXTEST_TESTS_FAILED) && report.all_passed() {
        bail!("nextest says that tests failed, and its JUnit file names none");
    }
    let mut versions = servers.versions();
    versions.extend(tools::qemu_version().map(|version| ("qemu", version)));
    versions.extend(tools::firecracker_version().map(|version| ("firecracker", version)));
    Ok((report, versions))
}

/// The checkout's settings of nextest, but with what it writes in a folder of this run: by default that is below the checkout,
/// wherever the target folder is, where another run may write at the same time.
fn configuration(store: &Path) -> Result<PathBuf> {
    let own = workspace::root().join(".config/nextest.toml");
    let settings = std::fs::read_to_string(&own).with_context(|| own.display().to_string())?;
    // A text of JSON is one of TOML too.
    let folder = serde_json::to_string(store.to_str().context("the temporary folder has no name in UTF-8")?)?;
    let path = store.with_extension("toml");
    std::fs::write(&path, format!("{settings}\n[store]\ndir = {folder}\n"))
        .with_context(|| path.display().to_string())?;
    Ok(path)
}

/// The agent for guests of tests, and a kernel when there is one.
fn guest_parts(
    supervisor: &Supervisor,
    stages: &mut Stages,
) -> Result<(Option<PathBuf>, Option<TestKernel>)> {
    let agent = stages.run("guest agent", || guest::build_agent(supervisor))?;
    let kernel = stages.run("test kernel", || {
        let kernel = guest::test_kernel(supervisor)?;
        match &kernel {
            Ok(kernel) => println!("{}", kernel.kernel.display()),
            Err(why) => println!("none: {why}; set FLAMES_TEST_KERNEL; suites that boot a guest skip"),
        }
        Ok(kernel.ok())
    })?;
    Ok((Some(agent), kernel))
}

fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false" && value != "0")
}

fn environment(
    tools: &Tools,
    agent: Option<&Path>,
    kernel: Option<&TestKernel>,
    require: bool,
) -> Result<Vec<(&'static str, OsString)>> {
    let mut environment = Vec::new();
    environment.extend(agent.map(|agent| ("FLAMES_GUEST_AGENT", agent.as_os_str().to_owned())));
    if let Some(kernel) = kernel {
        environment.extend(kernel.environment());
    }
    if let Some(schemathesis) = &tools.schemathesis {
        environment.push(("FLAMES_SCHEMATHESIS", schemathesis.as_os_str().to_owned()));
    }
    if require {
        environment.push(("FLAMES_REQUIRE", tools.available.join(",").into()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = tools.path_folders.iter().cloned().chain(std::env::split_paths(&path));
    // mke2fs lives where a user's PATH may not look.
    let folders: Vec<PathBuf> = folders.chain(["/usr/sbin", "/sbin"].map(PathBuf::from)).collect();
    environment.push(("PATH", std::env::join_paths(folders)?));
    Ok(environment)
}

/// Why a test binary ignores cases: the `skipped: <reason>` lines that it prints when asked for the list of these.
fn reasons_for_ignoring(
    supervisor: &Supervisor,
    environment: &[(&'static str, OsString)],
    binary: &Path,
    folder: &Path,
) -> Result<Vec<Skip>> {
    let mut command = Command::new(binary);
    // Reasons go to the standard error, since the list itself is for machines.
    let both = supervisor.folder().join("ignored.txt");
    let output = std::fs::File::create(&both)?;
    command.args(["--list", "--ignored", "--format", "terse"]).current_dir(folder);
    command.envs(environment.iter().cloned()).stdout(output.try_clone()?).stderr(output);
    supervisor.run(&mut command)?;
    Ok(report::skips(&String::from_utf8_lossy(&std::fs::read(&both)?)).collect())
}
