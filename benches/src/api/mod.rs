//! `api`: what accepting and running VMs costs, without the time of any machine.

mod bare;
mod load;
mod watch;
mod world;

use std::time::{Duration, Instant};

use clap::Args;
use tokio::runtime::Runtime;

use self::bare::Bare;
use self::load::{Load, Pace, Post};
use self::watch::Watch;
use self::world::World;
use crate::measure::{Samples, count, median, process_cpu};
use crate::report::{Bar, Figure, Report, Row, Section, Side};

/// The bearer token of the API under test.
const TOKEN: &str = "bench-token";
/// The image that every VM is of.
const IMAGE: &str = "bench";
/// Threads of the server, as many as the machine that the bars are set for has.
const WORKERS: usize = 2;
/// Clients of the load at a quarter.
const QUARTER_CLIENTS: usize = 16;
/// Clients of the load over many existing VMs.
const POPULATION_CLIENTS: usize = 4;

/// How much is measured.
#[derive(Debug, Args)]
pub(crate) struct ApiArguments {
    /// Turns of each measurement; the middle one counts.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// How long the clients of one turn load, in milliseconds.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    window_ms: u64,
    /// How many clients load at once, by turns.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64],
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_024))]
    clients: Vec<usize>,
    /// VMs created in one turn over existing ones.
    #[arg(long, default_value_t = 400)]
    vms: usize,
    /// The smaller number of existing VMs.
    #[arg(long, default_value_t = 1_000)]
    few: usize,
    /// The larger number of existing VMs.
    #[arg(long, default_value_t = 100_000)]
    many: usize,
}

/// Measures.
pub(crate) fn run(arguments: &ApiArguments) -> anyhow::Result<Report> {
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    let like = {
        let world = runtime.block_on(World::start(0, true))?;
        let vm = runtime.block_on(load::one_vm(world.address))?;
        runtime.block_on(world.shutdown())?;
        vm
    };
    let bare = runtime.block_on(Bare::start(like))?;
    let bench = Bench { arguments, runtime: &runtime, bare: &bare };
    let (rates, top) = bench.rates()?;
    let (quarter, quarter_bar) = bench.quarter(&top)?;
    let (population, population_bar) = bench.population()?;
    runtime.block_on(bare.shutdown())?;
    let bars = vec![
        Bar::new("accepted / bare, at the top of each", Side::AtLeast, 0.3, top.accepted / top.bare),
        Bar::new("reaching running / accepted, at the top", Side::AtLeast, 0.5, top.running / top.accepted),
        quarter_bar,
        population_bar,
    ];
    Ok(Report::new("api", began, vec![rates, quarter, population], bars))
}

/// The highest rates, in requests or VMs a second.
#[derive(Debug, Default, Clone, Copy)]
struct Top {
    bare: f64,
    accepted: f64,
    /// At the number of clients at which most were accepted.
    running: f64,
}

struct Bench<'a> {
    arguments: &'a ApiArguments,
    runtime: &'a Runtime,
    bare: &'a Bare,
}

fn figure(name: &'static str, value: f64) -> Figure {
    Figure { name, value }
}

fn took(posts: &[Post]) -> impl Iterator<Item = Duration> {
    posts.iter().map(|post| post.took)
}

/// What one turn of load on Flames came to.
struct Turn {
    posts: Vec<Post>,
    /// When each was seen running.
    running: Vec<Instant>,
    accepted_per_second: f64,
    running_per_second: f64,
    /// What the server used of processors for each VM, until all ran, in microseconds.
    cpu_us: f64,
}

impl Turn {
    fn run(load: Load, watch: &Watch) -> anyhow::Result<Self> {
        let (cpu, watching, began) = (process_cpu(), watch.cpu(), Instant::now());
        let sent = load.run()?;
        let running = watch.all_running(&sent.posts)?;
        let clients = sent.cpu + (watch.cpu() - watching);
        let cpu = (process_cpu() - cpu).saturating_sub(clients);
        let last = running.iter().max().map_or(Duration::ZERO, |last| last.saturating_duration_since(began));
        let vms = count(sent.posts.len());
        Ok(Self {
            accepted_per_second: vms / sent.elapsed.as_secs_f64(),
            running_per_second: vms / last.as_secs_f64(),
            cpu_us: cpu.as_secs_f64() * 1e6 / vms,
            posts: sent.posts,
            running,
        })
    }

    fn until_running(&self) -> impl Iterator<Item = Duration> {
        self.posts.iter().zip(&self.running).map(|(post, at)| at.saturating_duration_since(post.at))
    }
}

impl Bench<'_> {
    fn window(&self) -> Duration {
        Duration::from_millis(self.arguments.window_ms)
    }

    /// A world with so many VMs, for the length of a measurement.
    fn with_world<T>(
        &self,
        existing: usize,
        measure: impl FnOnce(&World, &Watch) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let world = self.runtime.block_on(World::start(existing, true))?;
        let watch = self.runtime.block_on(Watch::start(&world.service))?;
        let measured = measure(&world, &watch);
        drop(watch);
        self.runtime.block_on(world.shutdown())?;
        measured
    }

    /// Deletes what a turn created, so that each turn begins with as many VMs as the first: none. What many VMs cost is measured by itself.
    fn clear(&self, world: &World, turn: &Turn) -> anyhow::Result<()> {
        self.runtime.block_on(world.clear(turn.posts.iter().map(|post| post.vm)))
    }

    /// As much as clients can get, from Flames and from the bare handler, by turns.
    fn rates(&self) -> anyhow::Result<(Section, Top)> {
        let mut top = Top::default();
        let mut rows = Vec::new();
        for &clients in &self.arguments.clients {
            let (alone, alone_cpu) = self.alone(clients)?;
            let row = self.with_world(0, |world, watch| {
                let pace = Pace::Closed(self.window());
                let (mut bare_rate, mut bare_cpu) = (Vec::new(), Vec::new());
                let (mut accepted, mut running, mut cpu_us) = (Vec::new(), Vec::new(), Vec::new());
                let (mut bare_took, mut took_ours, mut until_running) =
                    (Samples::default(), Samples::default(), Samples::default());
                // The first turn only warms up.
                for round in 0..=self.arguments.rounds {
                    let cpu = process_cpu();
                    let bare = Load { server: self.bare.address, clients, pace }.run()?;
                    let cpu = (process_cpu() - cpu).saturating_sub(bare.cpu);
                    let turn = Turn::run(Load { server: world.address, clients, pace }, watch)?;
                    self.clear(world, &turn)?;
                    if round == 0 {
                        continue;
                    }
                    bare_cpu.push(cpu.as_secs_f64() * 1e6 / count(bare.posts.len()));
                    bare_rate.push(count(bare.posts.len()) / bare.elapsed.as_secs_f64());
                    bare_took.extend(took(&bare.posts));
                    accepted.push(turn.accepted_per_second);
                    running.push(turn.running_per_second);
                    cpu_us.push(turn.cpu_us);
                    took_ours.extend(took(&turn.posts));
                    until_running.extend(turn.until_running());
                }
                let (bare, accepted, running) = (median(bare_rate), median(accepted), median(running));
                top.bare = top.bare.max(bare);
                if accepted > top.accepted {
                    (top.accepted, top.running) = (accepted, running);
                }
                let figures = vec![
                    figure("bare/s", bare),
                    figure("bare µs", median(bare_cpu)),
                    figure("accepted/s", accepted),
                    figure("of bare", accepted / bare),
                    figure("alone/s", alone),
                    figure("alone µs", alone_cpu),
                    figure("running/s", running),
                    figure("of accepted", running / accepted),
                    figure("µs/VM", median(cpu_us)),
                    figure("bare p50 ms", bare_took.quantile_ms(0.5)),
                    figure("bare p99 ms", bare_took.quantile_ms(0.99)),
                    figure("POST p50 ms", took_ours.quantile_ms(0.5)),
                    figure("POST p99 ms", took_ours.quantile_ms(0.99)),
                    figure("running p50 ms", until_running.quantile_ms(0.5)),
                    figure("running p99 ms", until_running.quantile_ms(0.99)),
                ];
                Ok(Row { key: clients.to_string(), figures })
            })?;
            rows.push(row);
        }
        let title = "As many creates as the clients can get. running/s: all accepted, by the time until the last ran. alone: creates while nothing brings them to run. µs: the server's processor time for each; µs/VM: until it runs.";
        Ok((Section { title: title.to_owned(), key: "clients", rows }, top))
    }

    /// Creates a second when nothing brings them to run, and what each costs the server of processors, in microseconds.
    fn alone(&self, clients: usize) -> anyhow::Result<(f64, f64)> {
        let world = self.runtime.block_on(World::start(0, false))?;
        let (mut rates, mut costs) = (Vec::new(), Vec::new());
        for _ in 0..self.arguments.rounds {
            let cpu = process_cpu();
            let sent =
                Load { server: world.address, clients, pace: Pace::Closed(self.window() / 2) }.run()?;
            let cpu = (process_cpu() - cpu).saturating_sub(sent.cpu);
            rates.push(count(sent.posts.len()) / sent.elapsed.as_secs_f64());
            costs.push(cpu.as_secs_f64() * 1e6 / count(sent.posts.len()));
        }
        self.runtime.block_on(world.shutdown())?;
        Ok((median(rates), median(costs)))
    }

    /// How long a POST takes when each server has a quarter of what it can do.
    fn quarter(&self, top: &Top) -> anyhow::Result<(Section, Bar)> {
        self.with_world(0, |world, watch| {
            let window = self.window() * 2;
            let load = |server, rate: f64| Load {
                server,
                clients: QUARTER_CLIENTS,
                pace: Pace::Open(rate / 4.0, window),
            };
            let mut rows = [("bare", Vec::new(), Vec::new()), ("Flames", Vec::new(), Vec::new())];
            let mut until_running = Samples::default();
            for _ in 0..self.arguments.rounds {
                let bare = load(self.bare.address, top.bare).run()?;
                let turn = Turn::run(load(world.address, top.accepted), watch)?;
                until_running.extend(turn.until_running());
                self.clear(world, &turn)?;
                for ((_, p50, p99), posts) in rows.iter_mut().zip([&bare.posts, &turn.posts]) {
                    let samples: Samples = took(posts).collect();
                    p50.push(samples.quantile_ms(0.5));
                    p99.push(samples.quantile_ms(0.99));
                }
            }
            let [bare, flames] = rows.map(|(name, p50, p99)| (name, median(p50), median(p99)));
            let row = |(key, p50, p99): (&str, f64, f64), rate: f64| Row {
                key: key.to_owned(),
                figures: vec![
                    figure("requests/s", rate / 4.0),
                    figure("POST p50 ms", p50),
                    figure("POST p99 ms", p99),
                ],
            };
            let mut ours = row(flames, top.accepted);
            ours.figures.push(figure("running p50 ms", until_running.quantile_ms(0.5)));
            ours.figures.push(figure("running p99 ms", until_running.quantile_ms(0.99)));
            let title = format!("A quarter of the top rate of each, by {QUARTER_CLIENTS} clients.");
            let section = Section { title, key: "server", rows: vec![ours, row(bare, top.bare)] };
            Ok((section, Bar::new("POST p99 / bare p99, at a quarter", Side::AtMost, 5.0, flames.2 / bare.2)))
        })
    }

    /// What a create costs until its VM runs, with few and with many VMs in the records.
    fn population(&self) -> anyhow::Result<(Section, Bar)> {
        let &ApiArguments { few, many, vms, .. } = self.arguments;
        let measured = self.with_world(few, |small, watch_small| {
            self.with_world(many, |large, watch_large| {
                let mut measured = [(few, Vec::new(), Vec::new()), (many, Vec::new(), Vec::new())];
                // The first turn only warms up.
                for round in 0..=self.arguments.rounds.max(5) {
                    let sides = [(small, watch_small), (large, watch_large)];
                    for ((_, cpu, latency), (world, watch)) in measured.iter_mut().zip(sides) {
                        let load = Load {
                            server: world.address,
                            clients: POPULATION_CLIENTS,
                            pace: Pace::Count(vms),
                        };
                        let turn = Turn::run(load, watch)?;
                        if round > 0 {
                            cpu.push(turn.cpu_us);
                            latency.push(took(&turn.posts).collect::<Samples>().quantile_ms(0.5));
                        }
                    }
                }
                Ok(measured.map(|(existing, cpu, latency)| (existing, median(cpu), median(latency))))
            })
        })?;
        let rows = measured
            .iter()
            .map(|(existing, cpu, latency)| Row {
                key: existing.to_string(),
                figures: vec![figure("processor µs/VM", *cpu), figure("POST p50 ms", *latency)],
            })
            .collect();
        let title = format!(
            "What {vms} further creates cost the server until all run, by {POPULATION_CLIENTS} clients, beside existing VMs."
        );
        let [(_, few_cpu, _), (_, many_cpu, _)] = measured;
        let bar = Bar::new("cost at many VMs / at few", Side::AtMost, 1.3, many_cpu / few_cpu);
        Ok((Section { title, key: "existing", rows }, bar))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it measures is told by a long run alone; that every VM of a short one comes to run is told here.
    #[test]
    fn a_short_run_measures_to_its_end() {
        let arguments =
            ApiArguments { rounds: 1, window_ms: 20, clients: vec![1, 8], vms: 8, few: 2, many: 4 };
        let report = run(&arguments).unwrap();
        assert_eq!((report.sections.len(), report.bars.len()), (3, 4));
        assert!(report.bars.iter().all(|bar| bar.measured > 0.0), "{:?}", report.bars);
    }
}
