//! The embedded proxy, beside nginx and Caddy: each in its own processes, in front of one upstream, asked by the same clients in turns.

mod rivals;
mod wire;

use std::io::Read as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use flames_ingress::{IngressProvider, Route, RouteKey, RouteOwner, Target};
use flames_ingress_proxy::{AccessLog, AccessRecord, Hooks, Proxy, ProxyConfig};
use tokio::sync::Mutex;

use self::rivals::{HOST, Rival};
use self::wire::{Client, Upstream};
use super::compare::{Effort, Operation, load, operation};
use super::{Findings, ProvidersArguments, figure};
use crate::measure::{Samples, count, median};
use crate::report::Row;

const DOMAIN: &str = "bench.test";
/// How many times as many turns tell what routes cost: it is little, so the middle one must be sure.
const MANY_ROUTES_ROUNDS: u32 = 3;
/// Clients of one turn, each with a connection that is kept.
const CLIENTS: [usize; 2] = [16, 64];
/// Route changes that are timed.
const CHANGES: usize = 200;

/// The embedded proxy as a program of its own.
#[derive(Debug, Args)]
pub(crate) struct ServerArguments {
    /// Where every route goes.
    #[arg(long)]
    upstream: SocketAddr,
    /// How many routes there are.
    #[arg(long)]
    routes: usize,
}

/// nginx and Caddy write no access log here either.
#[derive(Debug)]
struct NoLog;

impl AccessLog for NoLog {
    fn is_enabled(&self) -> bool {
        false
    }

    fn record(&self, _: AccessRecord) {}
}

async fn start(upstream: SocketAddr, routes: usize) -> Result<Proxy> {
    let hooks = Hooks { access_log: Arc::new(NoLog), ..Hooks::default() };
    let proxy = Proxy::start(ProxyConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)), DOMAIN), hooks).await?;
    for number in 0..routes {
        proxy.register(route(number)?, Target::Address(upstream)).await?;
    }
    Ok(proxy)
}

fn route(number: usize) -> Result<Route> {
    Ok(Route {
        key: RouteKey { vm: RouteOwner::new(format!("vm_{number}"))?, port: 8_080 },
        hosts: Vec::new(),
    })
}

/// Serves until the standard input ends.
pub(crate) fn serve(arguments: &ServerArguments) -> ExitCode {
    let served = || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let proxy = runtime.block_on(start(arguments.upstream, arguments.routes))?;
        println!("{}", proxy.addresses().first().context("an address")?);
        let mut input = [0];
        while std::io::stdin().read(&mut input)? > 0 {}
        runtime.block_on(proxy.shutdown(Duration::from_secs(1)));
        Ok(())
    };
    match served() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Connections to one proxy, one for each client.
struct Clients(Vec<Mutex<Client>>);

async fn asking(rival: &Rival, clients: usize) -> Result<Operation> {
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(Mutex::new(Client::connect(rival.address, HOST).await?));
    }
    Ok(operation(&Arc::new(Clients(connections)), async |clients, number| {
        // One client has one connection: nobody waits here.
        let mut client = clients.0.get(number).context("a client")?.lock().await;
        let (status, _) = client.get("/").await?;
        ensure!(status == 200, "answered {status}");
        Ok(1)
    }))
}

/// What turns on one proxy came to.
#[derive(Default)]
struct Turns {
    rates: Vec<f64>,
    cpu_us: Vec<f64>,
    took: Samples,
}

impl Turns {
    fn p99(&self) -> f64 {
        self.took.quantile_ms(0.99)
    }
}

/// Measures proxies under the same load, in turns.
async fn in_turns(effort: Effort, rivals: &[Rival], clients: usize) -> Result<Vec<Turns>> {
    let mut loads = Vec::new();
    for rival in rivals {
        let asks = asking(rival, clients).await?;
        load(&asks, clients, effort.window / 4).await?;
        loads.push((asks, Turns::default()));
    }
    for round in 0..effort.rounds as usize {
        for turn in 0..rivals.len() {
            let index = (turn + round) % rivals.len();
            let (Some(rival), Some((asks, turns))) = (rivals.get(index), loads.get_mut(index)) else {
                continue;
            };
            let before = rival.cpu()?;
            let (rate, took) = load(asks, clients, effort.window).await?;
            let used = rival.cpu()?.saturating_sub(before);
            turns.cpu_us.push(used.as_secs_f64() * 1e6 / count(took.len()).max(1.0));
            turns.rates.push(rate);
            turns.took.extend(took);
        }
    }
    Ok(loads.into_iter().map(|(_, turns)| turns).collect())
}

pub(crate) async fn measure(arguments: &ProvidersArguments, findings: &mut Findings) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let upstream = Upstream::start().await?;
    let mut rivals = vec![Rival::ours(upstream.address, 1)?];
    match Rival::nginx(folder.path(), upstream.address) {
        Ok(nginx) => rivals.push(nginx),
        Err(missing) => findings.skip("ingress beside nginx", missing),
    }
    match Rival::caddy(folder.path(), upstream.address).await {
        Ok(caddy) => rivals.push(caddy),
        Err(missing) => findings.skip("ingress beside Caddy", missing),
    }
    requests(arguments, &rivals, findings).await?;
    downloads(arguments, &rivals, findings).await?;
    websockets(arguments, &rivals, findings).await?;
    drop(rivals);
    many_routes(arguments, upstream.address, findings).await?;
    changes(upstream.address, findings).await
}

async fn requests(arguments: &ProvidersArguments, rivals: &[Rival], findings: &mut Findings) -> Result<()> {
    for clients in CLIENTS {
        let turns = in_turns(arguments.effort(), rivals, clients).await?;
        let Some(ours) = turns.first() else { continue };
        let mut rows = Vec::new();
        for (rival, theirs) in rivals.iter().zip(&turns) {
            let ratio = median(ours.rates.iter().zip(&theirs.rates).map(|(a, b)| a / b).collect());
            rows.push(Row {
                key: rival.name.to_owned(),
                figures: vec![
                    figure("requests /s", median(theirs.rates.clone())),
                    figure("p50 ms", theirs.took.quantile_ms(0.5)),
                    figure("p99 ms", theirs.p99()),
                    figure("CPU µs / request", median(theirs.cpu_us.clone())),
                    figure("flames / it", ratio),
                ],
            });
            if rival.name == "nginx" {
                findings.at_least(
                    format!("proxy, {clients} clients: requests/s of ours / nginx"),
                    0.8,
                    ratio,
                );
                findings.at_most(
                    format!("proxy, {clients} clients: p99 of ours / nginx"),
                    1.3,
                    ours.p99() / theirs.p99().max(1e-9),
                );
            }
        }
        findings.section(
            format!("ingress/proxy: a KiB over kept connections, {clients} clients"),
            "proxy",
            rows,
        );
    }
    Ok(())
}

async fn downloads(arguments: &ProvidersArguments, rivals: &[Rival], findings: &mut Findings) -> Result<()> {
    let bytes = arguments.download_mib * 1_024 * 1_024;
    let mut rows = Vec::new();
    for rival in rivals {
        let mut client = Client::connect(rival.address, HOST).await?;
        let (cpu, began) = (rival.cpu()?, Instant::now());
        let (status, size) = client.get(&format!("/bytes/{bytes}")).await?;
        ensure!(status == 200 && size == bytes, "{}: {status}, {size} bytes", rival.name);
        rows.push(Row {
            key: rival.name.to_owned(),
            figures: vec![
                figure("MiB /s", arguments.download_mib as f64 / began.elapsed().as_secs_f64()),
                figure("CPU s", rival.cpu()?.saturating_sub(cpu).as_secs_f64()),
                figure("memory MiB", rival.memory_kib()? as f64 / 1_024.0),
            ],
        });
    }
    findings.section(format!("ingress/proxy: a download of {} MiB", arguments.download_mib), "proxy", rows);
    Ok(())
}

async fn websockets(arguments: &ProvidersArguments, rivals: &[Rival], findings: &mut Findings) -> Result<()> {
    let mut rows = Vec::new();
    for rival in rivals {
        let before = rival.memory_kib()?;
        let mut held = Vec::new();
        for _ in 0..arguments.websockets {
            held.push(Client::connect(rival.address, HOST).await?.upgrade().await?);
        }
        let grown = rival.memory_kib()?.saturating_sub(before) as f64;
        rows.push(Row {
            key: rival.name.to_owned(),
            figures: vec![
                figure("MiB before", before as f64 / 1_024.0),
                figure("MiB more", grown / 1_024.0),
                figure("KiB for each", grown / count(held.len()).max(1.0)),
            ],
        });
    }
    findings.section(
        format!("ingress/proxy: memory for {} idle WebSockets", arguments.websockets),
        "proxy",
        rows,
    );
    Ok(())
}

async fn many_routes(
    arguments: &ProvidersArguments,
    upstream: SocketAddr,
    findings: &mut Findings,
) -> Result<()> {
    // The second of the same tells how far two runs of one thing are apart: no less can be told of many routes.
    let rivals =
        [Rival::ours(upstream, 1)?, Rival::ours(upstream, 1)?, Rival::ours(upstream, arguments.routes)?];
    let effort = Effort { rounds: arguments.rounds * MANY_ROUTES_ROUNDS, ..arguments.effort() };
    let turns = in_turns(effort, &rivals, 16).await?;
    let [one, again, many] = &turns[..] else { return Ok(()) };
    let over_one =
        |turns: &Turns| median(turns.rates.iter().zip(&one.rates).map(|(rate, one)| rate / one).collect());
    let row = |key: String, turns: &Turns| Row {
        key,
        figures: vec![
            figure("requests /s", median(turns.rates.clone())),
            figure("of one route's", over_one(turns)),
            figure("p99 ms", turns.p99()),
        ],
    };
    let rows = vec![
        row("1".to_owned(), one),
        row("1, another".to_owned(), again),
        row(arguments.routes.to_string(), many),
    ];
    findings.section("ingress/proxy by its number of routes, 16 clients", "routes", rows);
    findings.at_least(
        format!("proxy: requests/s with {} routes / with one", arguments.routes),
        0.95,
        over_one(many),
    );
    Ok(())
}

/// From the call that changes a route to the first request that sees it.
async fn changes(upstream: SocketAddr, findings: &mut Findings) -> Result<()> {
    let proxy = start(upstream, 1).await?;
    let address = *proxy.addresses().first().context("an address")?;
    let mut took = Vec::new();
    for number in 1..=CHANGES {
        let mut client = Client::connect(address, &format!("8080-vm_{number}.{DOMAIN}")).await?;
        let began = Instant::now();
        proxy.register(route(number)?, Target::Address(upstream)).await?;
        while client.get("/").await?.0 != 200 {}
        took.push(began.elapsed());
    }
    proxy.shutdown(Duration::from_secs(1)).await;
    let took: Samples = took.into_iter().collect();
    let figures = vec![figure("p50 ms", took.quantile_ms(0.5)), figure("p99 ms", took.quantile_ms(0.99))];
    findings.section(
        "ingress/proxy: from a route's registration to the answer of the first request that sees it",
        "changes",
        vec![Row { key: CHANGES.to_string(), figures }],
    );
    findings.at_most("proxy: a route change is visible, p99 in ms", 5.0, took.quantile_ms(0.99));
    Ok(())
}
