//! `cargo xtask test`: everything, real virtual machines included.
//!
//! What the tests find in their environment:
//! - `FLAMES_GUEST_AGENT`: the static agent binary for guests;
//! - `FLAMES_TEST_KERNEL`: the kernel for guests, when there is one;
//! - `FLAMES_SCHEMATHESIS`: that program, when it is installed;
//! - `FLAMES_FULL`: set by `--full`; what takes long or downloads much runs only then.
//! - `FLAMES_REQUIRE`: under CI or `--full`, the names of all that is there, with commas (`qemu,kernel,agent,…`). A
//!   suite that would skip for lack of one of these must fail instead;
//! - `TMPDIR`: a folder of this run, removed at its end.
//!
//! A test that prints a line `skipped: <reason>` counts as skipped, and a binary that ignores cases prints such lines
//! when it is asked for their list. A test that prints `report: <text>` has that text
//! shown under its suite.

mod report;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::process::{Echo, Ended, Supervisor};
use crate::stages::Stages;
use crate::tools::Tools;
use crate::{Verdict, guest, tools, workspace};
use report::{DocTests, Report};

/// nextest's exit code for "some tests failed" (its documentation calls it `TEST_RUN_FAILED`).
const NEXTEST_TESTS_FAILED: i32 = 100;

#[derive(Args)]
pub(crate) struct TestArguments {
    /// Nothing may be skipped for lack of a program that is there: what CI does.
    #[arg(long)]
    full: bool,
    /// Run only tests whose name contains one of these (then no documentation tests either).
    filters: Vec<String>,
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
    let report = outcome?;
    if !leftovers.is_empty() {
        println!("left running by tests, killed now: {}", leftovers.join(", "));
    }
    let summary = report.summary();
    let summary_file = workspace::target_folder().join("xtask/test-summary.txt");
    std::fs::create_dir_all(summary_file.parent().unwrap_or(Path::new(".")))?;
    std::fs::write(&summary_file, format!("{summary}\n")).context("cannot write the summary")?;
    println!("{summary}");
    Ok(if report.all_passed() { Verdict::Passed } else { Verdict::Refused })
}

fn run_stages(arguments: &TestArguments, supervisor: &Supervisor, stages: &mut Stages) -> Result<Report> {
    let mut tools = stages.run("tools", || tools::install(supervisor))?;
    let agent = stages.run("guest agent", || guest::build_agent(supervisor))?;
    tools.available.push("agent");
    let kernel = stages.run("test kernel", || {
        let kernel = guest::test_kernel(supervisor)?;
        match &kernel {
            Some(kernel) => println!("{}", kernel.display()),
            None => println!("none: set FLAMES_TEST_KERNEL; suites that boot a guest skip"),
        }
        Ok(kernel)
    })?;
    if kernel.is_some() {
        tools.available.push("kernel");
    }
    let mut environment = environment(&tools, &agent, kernel.as_deref(), arguments.full || is_ci())?;
    if arguments.full {
        environment.push(("FLAMES_FULL", "1".into()));
    }

    let nextest = |verb: &str| {
        let mut command = workspace::cargo();
        command
            .args(["nextest", verb, "--workspace"])
            .current_dir(workspace::root())
            .envs(environment.clone());
        command
    };
    stages.run("build of tests", || supervisor.run_to_success(nextest("run").arg("--no-run")))?;
    let junit = workspace::target_folder().join("nextest/default/junit.xml");
    // A file of an earlier run must not be read as this one's.
    if junit.exists() {
        std::fs::remove_file(&junit)?;
    }
    let ended = stages.run("tests", || supervisor.run(nextest("run").args(&arguments.filters)))?;
    match ended {
        Ended::Exited(0 | NEXTEST_TESTS_FAILED) => {}
        other => bail!("nextest: {other}"),
    }
    let mut report =
        Report::from_junit(&std::fs::read_to_string(&junit).context("nextest wrote no JUnit file")?)?;
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

    if arguments.filters.is_empty() {
        let doc_tests = stages.run("documentation tests", || {
            let mut command = workspace::cargo();
            command.args(["test", "--doc", "--workspace", "--no-fail-fast"]);
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
    Ok(report)
}

fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false" && value != "0")
}

fn environment(
    tools: &Tools,
    agent: &Path,
    kernel: Option<&Path>,
    require: bool,
) -> Result<Vec<(&'static str, OsString)>> {
    let mut environment = vec![("FLAMES_GUEST_AGENT", agent.as_os_str().to_owned())];
    if let Some(kernel) = kernel {
        environment.push(("FLAMES_TEST_KERNEL", kernel.as_os_str().to_owned()));
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
) -> Result<Vec<String>> {
    let mut command = Command::new(binary);
    // Reasons go to the standard error, since the list itself is for machines.
    let both = supervisor.folder().join("ignored.txt");
    let output = std::fs::File::create(&both)?;
    command.args(["--list", "--ignored", "--format", "terse"]).current_dir(folder);
    command.envs(environment.iter().cloned()).stdout(output.try_clone()?).stderr(output);
    supervisor.run(&mut command)?;
    Ok(report::skip_reasons(&String::from_utf8_lossy(&std::fs::read(&both)?)))
}
