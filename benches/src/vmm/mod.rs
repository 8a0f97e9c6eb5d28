//! `vmm`: what a driver adds to its monitor, beside the same done by hand in the same run and in turns.
//!
//! By hand: the jailer spawned, its chroot filled with links, and Firecracker told of the same machine over its socket with nothing between.
//! The hand has a network namespace with a tap before its clock runs; the driver makes all of a machine while its own runs: jail, control
//! groups, records that survive the host, namespace, tap, addresses, firewall, DNS forwarder. So a difference is what all of that takes.
//!
//! A cold boot takes many seconds where KVM emulates, so a start is measured until `InstanceStart` is issued, and until it is answered; the
//! machine is paused at once, on both sides, lest its processors take the time of those that start after it. What is restored comes from one snapshot
//! that was booted and saved once.

mod firecracker;
mod hand;
mod leftovers;
mod memory;
mod others;
mod ours;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use async_trait::async_trait;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use self::firecracker::Firecracker;
use self::leftovers::Run;
use self::ours::Ours;
use crate::measure::{Samples, median};
use crate::report::{Bar, Figure, Report, Row, Section, Side};

/// How many machines are worked on at once, by turns.
const AT_ONCE: [u32; 3] = [1, 10, 20];
/// The most of them.
const MOST_AT_ONCE: usize = 20;
/// More guests that are saved at once measure the disk alone.
const MOST_SAVED: usize = 10;
/// The bars of a driver, in milliseconds and bytes: from the receipt of an assignment to `InstanceStart` with everything made, and what the
/// process that drives keeps for one machine.
const ISSUED_P50_MS: f64 = 25.0;
const CROWDED_ISSUED_P99_MS: f64 = 80.0;
const DRIVER_KIB: f64 = 512.0;

/// Which driver is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Behind its jailer, with a network, beside the raw API.
    Firecracker,
    /// Alone: `bench boot` has it beside its command line by hand.
    Qemu,
    /// Alone: what the driver's own code takes.
    Simulated,
}

/// What is measured, and with what.
#[derive(Debug, Args)]
pub(crate) struct VmmArguments {
    /// The driver.
    #[arg(long, value_enum, default_value_t = Kind::Firecracker)]
    driver: Kind,
    /// Turns of each side with one machine at once.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=999))]
    rounds: u32,
    /// Turns of each side with many machines at once.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    crowds: u32,
    /// The guests' kernel.
    #[arg(long, value_name = "FILE", env = "FLAMES_TEST_KERNEL")]
    kernel: Option<PathBuf>,
    /// The static guest agent.
    #[arg(long, value_name = "FILE", env = "FLAMES_GUEST_AGENT")]
    agent: Option<PathBuf>,
    /// The custom CPU template that the kernel needs under Firecracker.
    #[arg(long, value_name = "FILE", env = "FLAMES_TEST_CPU_TEMPLATE")]
    cpu_template: Option<PathBuf>,
    /// Further arguments of the kernel.
    #[arg(long, value_name = "WORDS", default_value = "quiet loglevel=1", allow_hyphen_values = true)]
    kernel_arguments: String,
    /// The guests' memory.
    #[arg(long, default_value_t = 96)]
    memory_mib: u64,
    /// How many machines at once; the bars need 1 and 20.
    #[arg(long, value_name = "COUNTS", value_delimiter = ',', default_values_t = AT_ONCE,
          value_parser = clap::value_parser!(u32).range(1..=20))]
    at_once: Vec<u32>,
    /// How many monitors of Firecracker the driver keeps waiting; each start and each load of the driver's begins when they are there. 0: none.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=256))]
    spares: u32,
    /// Measures starts and loads, and leaves out what comes after them.
    #[arg(long)]
    only_starts: bool,
    /// Where machines and snapshots are kept meanwhile; one file system holds all of it.
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// One way of having machines, each with a number of its own from 0 on.
#[async_trait]
pub(crate) trait Machines: Send + Sync {
    /// Returns when what is made ahead is there; see `--spares`.
    async fn get_ready(&self) -> Result<()> {
        Ok(())
    }
    /// From nothing to `InstanceStart`: until it is issued, and until it is answered. The guest is paused then.
    async fn start(&self, number: usize) -> Result<[Duration; 2]>;
    /// From nothing until the load is issued, until the guest runs, and until its agent answers. Zero where that cannot be known.
    async fn restore(&self, number: usize) -> Result<[Duration; 3]>;
    async fn pause(&self, number: usize) -> Result<()>;
    async fn resume(&self, number: usize) -> Result<()>;
    /// Saves all of the guest's memory.
    async fn snapshot(&self, number: usize) -> Result<()>;
    /// Ends the machine and takes away all that was made for it.
    async fn end(&self, number: usize) -> Result<()>;
    /// The monitor's process.
    async fn pid(&self, number: usize) -> Result<Option<u32>>;
}

/// What is measured of a machine's life, in order.
const VERBS: [&str; 9] = [
    "Start, from nothing until InstanceStart is issued. ms.",
    "Start, from nothing until InstanceStart is answered and the guest paused. ms.",
    "Restore, from nothing until the load is issued. ms.",
    "Restore, from nothing to a guest that was loaded and runs. ms.",
    "Restore, from nothing to the agent's first answer. ms.",
    "Pause. ms.",
    "Full snapshot of a paused guest. ms.",
    "Resume. ms.",
    "Kill, and take everything away. ms.",
];

/// Samples of each verb.
type Life = [Samples; VERBS.len()];

/// Measures.
pub(crate) fn run(arguments: &VmmArguments) -> Result<Report> {
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        if arguments.driver == Kind::Simulated {
            return measure(arguments, &others::simulated(arguments)?, None, began).await;
        }
        let records = leftovers::records();
        leftovers::clear_earlier(&records).await;
        let above = arguments.folder.clone().unwrap_or_else(std::env::temp_dir);
        let run = Run::begin(&records, arguments.driver, &above)?;
        let measured = tokio::select! {
            measured = on_record(arguments, &run, began) => measured,
            told = told_to_end() => told.and_then(|()| bail!("interrupted")),
        };
        let ended = run.end().await.context("what the run has made cannot be cleared away");
        measured.and_then(|report| ended.map(|()| report))
    })
}

/// Measures with real machines, all of which are the run's.
async fn on_record(arguments: &VmmArguments, run: &Run, began: Instant) -> Result<Report> {
    if arguments.driver == Kind::Qemu {
        return measure(arguments, &others::qemu(arguments, run.folder()).await?, None, began).await;
    }
    let place = Firecracker::open(arguments, run.name(), run.folder()).await?;
    measure(arguments, &place.ours, Some(&place.by_hand), began).await
}

/// Returns at Ctrl-C or SIGTERM.
async fn told_to_end() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

async fn measure(
    arguments: &VmmArguments,
    ours: &Arc<Ours>,
    by_hand: Option<&Arc<hand::ByHand>>,
    began: Instant,
) -> Result<Report> {
    let mut bars = Vec::new();
    let mut judge = |bar: Bar| {
        // At once: the whole takes minutes.
        eprintln!("{bar}");
        bars.push(bar);
    };
    let is_real = arguments.driver == Kind::Firecracker;
    // Before anything else has grown this process.
    let (kept, memory) = memory::measure(ours, by_hand, arguments.memory_mib).await?;
    if is_real {
        judge(Bar::new(
            "memory of the driver's process for one machine, KiB",
            Side::AtMost,
            DRIVER_KIB,
            kept,
        ));
    }
    let mut sections: Vec<Section> = VERBS
        .iter()
        .map(|title| Section { title: (*title).to_owned(), key: "at once", rows: Vec::new() })
        .collect();
    for at_once in &arguments.at_once {
        let at_once = usize::try_from(*at_once)?;
        let turns = if at_once == 1 { arguments.rounds } else { arguments.crowds };
        let (mut of_ours, mut of_hand) = (Life::default(), Life::default());
        for turn in 0..turns {
            for is_ours in if turn % 2 == 0 { [true, false] } else { [false, true] } {
                match (is_ours, by_hand) {
                    (true, _) => live(ours, at_once, arguments.only_starts, &mut of_ours).await?,
                    (false, Some(hand)) => live(hand, at_once, arguments.only_starts, &mut of_hand).await?,
                    (false, None) => {}
                }
            }
        }
        let [start, _, load, ..] = &of_ours;
        if is_real && at_once == 1 {
            for (what, took) in [("InstanceStart", start), ("load", load)] {
                let name = format!("until the {what} is issued, alone, p50 ms");
                judge(Bar::new(name, Side::AtMost, ISSUED_P50_MS, took.quantile_ms(0.5)));
            }
        }
        if is_real && at_once == 20 {
            for (what, took) in [("InstanceStart", start), ("load", load)] {
                let name = format!("until the {what} is issued, 20 at once, p99 ms");
                judge(Bar::new(name, Side::AtMost, CROWDED_ISSUED_P99_MS, took.quantile_ms(0.99)));
            }
        }
        for ((section, ours), hand) in sections.iter_mut().zip(&of_ours).zip(&of_hand) {
            section.rows.extend(row(at_once, ours, by_hand.map(|_| hand)));
        }
    }
    sections.retain(|section| !section.rows.is_empty());
    sections.push(memory);
    let mut report = Report::new("vmm", began, sections, bars);
    if !is_real {
        report.skipped.push("skipped: by hand: only Firecracker has a raw API beside it here".to_owned());
    }
    Ok(report)
}

/// How long is waited after an end: the kernel takes namespaces down some time after their processes, and holds meanwhile what the next ones
/// need to be made.
const SETTLED: Duration = Duration::from_millis(300);

/// The life of so many machines at once, each step after all have done the one before.
async fn live<M: Machines + 'static>(
    machines: &Arc<M>,
    at_once: usize,
    only_starts: bool,
    life: &mut Life,
) -> Result<()> {
    let [issued, started, load_issued, restored, answered, pause, snapshot, resume, end] = life;
    machines.get_ready().await?;
    let starts = all(machines, at_once, |machines, number| async move { machines.start(number).await });
    for [until_issued, until_answered] in starts.await? {
        known(issued, until_issued);
        known(started, until_answered);
    }
    // Of a guest that has not yet come up; what is ended below has.
    timed(machines, at_once, |machines, number| async move { machines.end(number).await }).await?;
    tokio::time::sleep(SETTLED).await;
    machines.get_ready().await?;
    let restores = all(machines, at_once, |machines, number| async move { machines.restore(number).await });
    for [until_issued, until_it_runs, until_answered] in restores.await? {
        known(load_issued, until_issued);
        known(restored, until_it_runs);
        known(answered, until_answered);
    }
    if only_starts {
        let took = timed(machines, at_once, |machines, number| async move { machines.end(number).await });
        end.extend(took.await?);
        tokio::time::sleep(SETTLED).await;
        return Ok(());
    }
    let took = timed(machines, at_once, |machines, number| async move { machines.pause(number).await });
    pause.extend(took.await?);
    if at_once <= MOST_SAVED {
        let took =
            timed(machines, at_once, |machines, number| async move { machines.snapshot(number).await });
        snapshot.extend(took.await?);
    }
    let took = timed(machines, at_once, |machines, number| async move { machines.resume(number).await });
    resume.extend(took.await?);
    let took = timed(machines, at_once, |machines, number| async move { machines.end(number).await });
    end.extend(took.await?);
    tokio::time::sleep(SETTLED).await;
    Ok(())
}

fn known(samples: &mut Samples, took: Duration) {
    samples.extend((!took.is_zero()).then_some(took));
}

/// Does something to each of so many machines, at once.
pub(crate) async fn all<M, T, F>(
    machines: &Arc<M>,
    at_once: usize,
    work: impl Fn(Arc<M>, usize) -> F,
) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    // They end with this call, also when it is dropped.
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..at_once {
        tasks.spawn(work(Arc::clone(machines), number));
    }
    let mut done = Vec::with_capacity(at_once);
    // All come to their end, also after one that failed.
    while let Some(task) = tasks.join_next().await {
        done.push(task?);
    }
    done.into_iter().collect()
}

async fn timed<M, F>(
    machines: &Arc<M>,
    at_once: usize,
    work: impl Fn(Arc<M>, usize) -> F,
) -> Result<Vec<Duration>>
where
    M: Send + Sync + 'static,
    F: Future<Output = Result<()>> + Send + 'static,
{
    all(machines, at_once, |machines, number| {
        let done = work(machines, number);
        async move {
            let began = Instant::now();
            done.await?;
            Ok(began.elapsed())
        }
    })
    .await
}

fn figure(name: &'static str, value: f64) -> Figure {
    Figure { name, value }
}

fn row(at_once: usize, ours: &Samples, by_hand: Option<&Samples>) -> Option<Row> {
    if ours.is_empty() {
        return None;
    }
    let (p50, p99) = (ours.quantile_ms(0.5), ours.quantile_ms(0.99));
    let mut figures = vec![figure("ours p50", p50), figure("ours p99", p99)];
    if let Some(hand) = by_hand {
        let (hand_p50, hand_p99) = (hand.quantile_ms(0.5), hand.quantile_ms(0.99));
        figures.extend([
            figure("by hand p50", hand_p50),
            figure("by hand p99", hand_p99),
            figure("p50 ratio", p50 / hand_p50.max(1e-9)),
            figure("p50 more", p50 - hand_p50),
            figure("p99 ratio", p99 / hand_p99.max(1e-9)),
            figure("p99 more", p99 - hand_p99),
        ]);
    }
    Some(Row { key: at_once.to_string(), figures })
}

/// The middle one of what processes have.
fn middle(values: Vec<f64>) -> Result<f64> {
    ensure!(!values.is_empty(), "no process was there to be looked at");
    Ok(median(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it measures is told by a long run with real guests alone; that each step of a machine's life is measured is told here.
    #[test]
    fn a_short_run_measures_to_its_end() {
        let arguments = VmmArguments {
            driver: Kind::Simulated,
            rounds: 1,
            crowds: 1,
            kernel: None,
            agent: None,
            cpu_template: None,
            kernel_arguments: String::new(),
            memory_mib: 96,
            at_once: AT_ONCE.to_vec(),
            only_starts: false,
            spares: 0,
            folder: None,
        };
        let report = run(&arguments).unwrap();
        let verbs: Vec<_> = report.sections.iter().map(|section| section.rows.len()).collect();
        assert_eq!(verbs, [3, 3, 3, 2, 3, 3, 1], "of each that it has, alone and in crowds");
        assert!(report.passed() && report.skipped.len() == 1);
    }
}
