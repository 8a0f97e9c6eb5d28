//! The harnesses behind every published figure.
//!
//! Each compares Flames with something that does the same without it, in the same run and in turns, so that the verdict is a ratio and
//! holds on a slow or busy machine too. Absolute times are told, never judged, but for those of `vmm`, which are goals of their own.
//!
//! Exit codes: 0 = every bar was met; 1 = one was missed; 2 = it could not be measured.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "to print is what this program is for")]

mod api;
mod boot;
mod measure;
#[cfg(feature = "providers")]
mod providers;
mod report;
#[cfg(feature = "vmm")]
mod vmm;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::report::Report;

/// Measures Flames against the same without it.
#[derive(Debug, Parser)]
#[command(version)]
struct CommandLine {
    #[command(subcommand)]
    harness: Harness,
}

#[derive(Debug, Subcommand)]
enum Harness {
    /// The HTTP API over the simulated driver, beside a bare handler of the same JSON.
    Api(WithOutput<api::ApiArguments>),
    /// From the request to a real guest's first byte of output, beside the same QEMU started by hand.
    Boot(WithOutput<boot::BootArguments>),
    /// Each adapter beside its backend doing the same work by hand.
    #[cfg(feature = "providers")]
    Providers(WithOutput<providers::ProvidersArguments>),
    /// A driver of machines, beside its monitor's raw API.
    #[cfg(feature = "vmm")]
    Vmm(WithOutput<vmm::VmmArguments>),
    /// The embedded proxy alone, for `providers` to measure from outside.
    #[cfg(feature = "providers")]
    #[command(hide = true)]
    ProxyServer(providers::proxy::ServerArguments),
}

#[derive(Debug, Args)]
struct WithOutput<A: Args> {
    /// Print JSON in place of tables.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    arguments: A,
}

fn main() -> ExitCode {
    // As a server does.
    flames_allocator::keep_freed_memory();
    flames_allocator::give_back_whole_huge_pages();
    let (json, measured) = match CommandLine::parse().harness {
        Harness::Api(with) => (with.json, api::run(&with.arguments)),
        Harness::Boot(with) => (with.json, boot::run(&with.arguments)),
        #[cfg(feature = "providers")]
        Harness::Providers(with) => (with.json, providers::run(&with.arguments)),
        #[cfg(feature = "vmm")]
        Harness::Vmm(with) => (with.json, vmm::run(&with.arguments)),
        #[cfg(feature = "providers")]
        Harness::ProxyServer(arguments) => return providers::proxy::serve(&arguments),
    };
    match measured.and_then(|report| told(&report, json)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Prints a report, and answers whether every bar was met.
fn told(report: &Report, json: bool) -> anyhow::Result<bool> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        println!("{report}");
    }
    Ok(report.passed())
}
