//! The real binary with real guests: QEMU, a kernel (`FLAMES_TEST_KERNEL`, with its modules in
//! `FLAMES_TEST_KERNEL_MODULES` when it needs some), the agent (`FLAMES_GUEST_AGENT`) and busybox as the user land.

// A case fails by panicking: an answer that must be there is unwrapped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod guest;
#[path = "../support/mod.rs"]
mod support;
mod survival;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use flames_conformance_runner::{CASE_LIMIT, Case, Suite, Time, Unavailable, run};
use guest::*;
use support::Installation;
use support::busybox::import_busybox;
use survival::*;

fn main() -> ExitCode {
    run(Suite {
        name: "real-vm",
        provider: "flames",
        unavailable: unavailable(),
        time: Time::Real,
        cases: cases(),
    })
}

macro_rules! cases {
    ($($case:ident),+ $(,)?) => {
        fn cases() -> Vec<Case> {
            vec![$(Case {
                name: stringify!($case),
                ignored: None,
                limit: CASE_LIMIT,
                run: Box::new(|| Box::pin(async { $case() })),
            }),+]
        }
    };
}

cases![
    a_command_runs_in_a_guest_and_its_output_and_exit_code_come_back,
    a_guest_is_what_was_asked_for,
    a_workload_reads_the_standard_input_of_run_to_its_end,
    exec_runs_in_the_guest_with_its_own_input_and_exit_code,
    a_terminal_is_passed_through_and_set_back,
    files_are_copied_both_ways,
    a_server_in_the_guest_is_reached_by_its_port_and_by_port_forward,
    a_port_of_a_guest_answers_at_its_url_while_it_runs,
    a_request_wakes_a_guest_that_is_paused_or_stopped,
    a_guest_reaches_nothing_unless_it_is_unrestricted,
    a_paused_guest_stands_still_and_goes_on,
    a_pause_keeps_a_process_and_its_open_file,
    a_snapshot_is_restored_twice_and_both_go_on,
    a_kill_9_in_the_middle_of_a_snapshot_leaves_the_guest_running,
    three_guests_survive_a_kill_9_of_flames,
    a_watched_run_goes_on_over_a_kill_9_of_flames,
    what_keeps_a_guest_from_running_is_told_and_leaves_nothing,
    a_stopped_guest_costs_no_process_and_a_removed_one_nothing,
    a_persistent_disk_outlives_a_run_and_an_ephemeral_one_does_not,
    a_run_that_lasts_too_long_is_stopped,
    an_ephemeral_up_leaves_no_guest_behind,
    a_guest_on_a_host_of_its_own_survives_kills_of_its_server_and_of_its_host,
];

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_file())
}

/// Why no guest can be started here, without starting one.
fn unavailable() -> Option<Unavailable> {
    let lacks =
        |service: &str, reason: &str| Some(Unavailable { service: service.into(), reason: reason.into() });
    let paths = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&paths).any(|folder| folder.join("qemu-system-x86_64").is_file()) {
        return lacks("qemu", "`qemu-system-x86_64` is not on PATH (apt install qemu-system-x86)");
    }
    if variable("FLAMES_TEST_KERNEL").is_none() {
        return lacks("kernel", "FLAMES_TEST_KERNEL names no kernel");
    }
    if variable("FLAMES_GUEST_AGENT").is_none() {
        return lacks("agent", "FLAMES_GUEST_AGENT names no agent (`cargo xtask test` builds it)");
    }
    if !PathBuf::from("/bin/busybox").is_file() {
        return lacks("busybox", "/bin/busybox is absent (apt install busybox-static)");
    }
    None
}

/// How every `flames up` of these cases is started. Emulation: the same everywhere, with or without a KVM that can run the kernel.
fn up_with(installation: &mut Installation, more: &[&str]) {
    let (kernel, agent) = (variable("FLAMES_TEST_KERNEL").unwrap(), variable("FLAMES_GUEST_AGENT").unwrap());
    let modules = std::env::var("FLAMES_TEST_KERNEL_MODULES").ok();
    let mut arguments =
        vec!["--accel", "tcg", "--kernel", kernel.to_str().unwrap(), "--agent", agent.to_str().unwrap()];
    if let Some(modules) = &modules {
        arguments.extend(["--kernel-modules", modules]);
    }
    arguments.extend_from_slice(more);
    installation.up(&arguments);
}

/// Up, with busybox as the image `busybox`.
fn installation() -> Installation {
    let mut installation = Installation::new();
    up_with(&mut installation, &[]);
    import_busybox(&installation);
    installation
}

fn start(installation: &Installation, name: &str, script: &str) {
    installation.run(&["run", "-d", "--name", name, "busybox", "--", "sh", "-c", script]).ok();
}

/// Nothing of any VM is left: no process, no folder, no record.
fn assert_clean(installation: &Installation) {
    assert_eq!(installation.machines(), Vec::<u32>::new());
    assert_eq!(installation.run(&["-q", "ps", "--all"]).ok(), "");
    installation.books_are_closed();
    let machines = fs::read_dir(installation.data().join("machines")).unwrap().flatten();
    let left: Vec<_> =
        machines.filter(|entry| entry.file_name().to_string_lossy().starts_with("inc_")).collect();
    assert!(left.is_empty(), "{left:?}");
}
