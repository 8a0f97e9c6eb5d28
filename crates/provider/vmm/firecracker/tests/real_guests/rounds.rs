//! A host that is left exactly as it was found, whatever was done and whoever was killed.
//!
//! The host is one of its own: this program runs itself in fresh namespaces of network, mounts and processes, where it is the first process
//! and nothing else is going on. So everything that is there can be compared, without looking away from anything.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flames_clock::{RandomExt, SeededRandom, SystemRandom};
use flames_error::ErrorKind;
use flames_vmm::{
    IncarnationName, MachineSpec, NetworkSpec, Phase, SnapshotKind, StartFrom, StopHow, VmDriver,
};
use flames_vmm_firecracker::{FirecrackerConfig, SlotRange};

use crate::support::base::{self, networked_spec, with_network};
use crate::support::{Host, driver_of, name, spec, traces};

/// Set for a process of this test program that is alone in its namespaces: what it does there.
pub(crate) const ALONE: &str = "FLAMES_FIRECRACKER_TEST_ALONE";
/// Set for a controller in there, to be killed: its seed.
const CONTROLLER: &str = "FLAMES_FIRECRACKER_TEST_CONTROLLER";
/// The seed of a run that failed, to see it again.
const SEED: &str = "FLAMES_SEED";
/// How many monitors wait for a machine.
const SPARES: usize = 2;

pub(crate) fn make_networked() {
    alone("make");
}

pub(crate) async fn rounds_of_making_and_destroying_leave_the_host_exactly_as_found(_: &Host) {
    alone("rounds");
}

pub(crate) async fn drivers_dropped_at_random_points_leave_a_host_that_the_next_clears(_: &Host) {
    alone("dropped");
}

pub(crate) async fn controllers_killed_at_random_points_leave_a_host_that_the_next_clears(_: &Host) {
    alone("killed");
}

/// Runs this program in namespaces of its own, which end with it, and what runs in them too.
fn alone(what: &str) {
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(std::env::current_exe().unwrap())
        .env(ALONE, what)
        .stdin(Stdio::null());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{said}");
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{what}: {}\n{said}\n{complained}", output.status);
}

pub(crate) fn alone_as(what: &str) -> ExitCode {
    if let Some(seed) = std::env::var_os(CONTROLLER) {
        controller(what, seed.to_str().unwrap().parse().unwrap());
    }
    // What others have mounted goes when they take its place away, whoever has it too. It does not go for them by this.
    for line in std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().rev() {
        let at = line.split(' ').nth(4).unwrap();
        if at != "/" && !["/proc", "/sys", "/dev"].iter().any(|kept| Path::new(at).starts_with(kept)) {
            let _ = Command::new("umount").args(["-l", at]).status();
        }
    }
    // Named namespaces are files there.
    run("mount", &["-t", "tmpfs", "alone", "/run"]);
    run("ip", &["link", "set", "lo", "up"]);
    match what {
        "make" => base::make_networked(),
        "rounds" => rounds(),
        "dropped" => dropped(),
        "killed" => killed(),
        unknown => panic!("{unknown}"),
    }
    ExitCode::SUCCESS
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn full(few: u32, many: u32) -> u32 {
    if std::env::var_os("FLAMES_FULL").is_some() { many } else { few }
}

fn seed() -> u64 {
    let given = std::env::var(SEED).ok().map(|text| text.parse().unwrap());
    let seed = given.unwrap_or_else(|| SystemRandom.next_u64());
    println!("report: {SEED}={seed}");
    seed
}

/// A host with jails, slots and control groups that nobody else has.
fn config(host: &Host) -> FirecrackerConfig {
    let mut config = with_network(host.config());
    config.jail.base = host.folder.path().join("jails");
    config.jail.parent_group = format!("flames-test-{}", host.cluster);
    config.jail.users = SlotRange { first_user: 3_100_000, count: 16 };
    config.spare_monitors = SPARES;
    config
}

/// The same without monitors that wait.
fn without_spares(config: &FirecrackerConfig) -> FirecrackerConfig {
    FirecrackerConfig { spare_monitors: 0, ..config.clone() }
}

/// Everything that there is: links, namespaces, rules, mounts, control groups, processes with their users, files.
fn photo(host: &Host, config: &FirecrackerConfig) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut add = |kind: &str, text: String| {
        seen.extend(text.lines().map(|line| format!("{kind}: {line}")));
    };
    add("link", run("ip", &["-o", "link", "show"]));
    add("address", run("ip", &["-o", "address", "show"]));
    add("route", run("ip", &["route", "show", "table", "all"]));
    add("namespace", run("ip", &["netns", "list"]));
    add("rules", run("nft", &["list", "ruleset"]));
    add("mount", std::fs::read_to_string("/proc/self/mountinfo").unwrap());
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        tree(&hierarchy.path().join(&config.jail.parent_group), false, &mut |path| add("group", path));
    }
    tree(host.folder.path(), true, &mut |path| add("file", path));
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let status = read("status");
        let user = status.lines().find(|line| line.starts_with("Uid:")).unwrap_or_default();
        add("process", format!("{pid} {} {user}", read("comm").trim()));
    }
    seen
}

fn tree(path: &Path, with_files: bool, add: &mut impl FnMut(String)) {
    let Ok(found) = path.symlink_metadata() else { return };
    if found.is_dir() || with_files {
        add(format!("{} {}", path.display(), if found.is_file() { found.len() } else { 0 }));
    }
    if found.is_dir() {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            tree(&entry.path(), with_files, add);
        }
    }
}

/// Panics unless everything is as it was. A program that a killed controller had started may need a moment to end.
fn is_as_before(before: &BTreeSet<String>, host: &Host, config: &FirecrackerConfig, when: &str) {
    let begun = Instant::now();
    let mut after = photo(host, config);
    while after != *before && begun.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(20));
        // This is the first process, which every orphan is given to.
        while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
        after = photo(host, config);
    }
    let after = &after;
    let (gone, new): (Vec<_>, Vec<_>) =
        (before.difference(after).collect(), after.difference(before).collect());
    assert!(gone.is_empty() && new.is_empty(), "{when}: gone {gone:#?}, new {new:#?}");
}

/// One round, so that what a cluster has for itself is there; none of that may name the incarnation.
async fn warm_up(host: &Host, config: &FirecrackerConfig, driver: &dyn VmDriver) -> BTreeSet<String> {
    let untouched = photo(host, config);
    let incarnation = name("inc_warm");
    driver.prepare(&incarnation, &networked_spec(0)).await.unwrap();
    driver.start(&incarnation, base::networked(), false).await.unwrap();
    let during = photo(host, config);
    assert!(during.iter().any(|line| line.starts_with("namespace:")), "there is something to be seen");
    assert!(during.iter().any(|line| line.contains("31000")), "a user of the range is in use: {during:#?}");
    driver.destroy(&incarnation).await.unwrap();
    let warm = photo(host, config);
    for line in warm.difference(&untouched) {
        let is_ours = line.contains("inc_warm") || line.contains("inc-warm") || line.contains("31000");
        let is_allowed = ["file:", "group:", "rules:"].iter().any(|kind| line.starts_with(kind));
        assert!(is_allowed && !is_ours, "left of the first incarnation: {line}");
    }
    warm
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// How long the calls of the rounds took.
#[derive(Default)]
struct Times {
    prepared: Vec<Duration>,
    started: Vec<Duration>,
    destroyed: Vec<Duration>,
}

impl Times {
    async fn round(
        &mut self,
        driver: &dyn VmDriver,
        round: u32,
        (spec, from): (&MachineSpec, StartFrom),
        random: &SeededRandom,
    ) {
        let incarnation = name(&format!("inc_{round}"));
        let at = Instant::now();
        driver.prepare(&incarnation, spec).await.unwrap();
        self.prepared.push(at.elapsed());
        let at = Instant::now();
        driver.start(&incarnation, from, random.below(4) == 0).await.unwrap();
        self.started.push(at.elapsed());
        match random.below(4) {
            0 => drop(driver.snapshot(&incarnation, "some", SnapshotKind::Full).await.unwrap()),
            1 => driver.pause(&incarnation).await.unwrap(),
            2 => driver.stop(&incarnation, StopHow::Kill).await.unwrap(),
            _ => {}
        }
        let at = Instant::now();
        driver.destroy(&incarnation).await.unwrap();
        self.destroyed.push(at.elapsed());
    }

    fn medians(mut self) -> String {
        let median = |times: &mut Vec<Duration>| {
            times.sort();
            times[times.len() / 2]
        };
        format!(
            "medians: prepare {:?}, restore {:?}, destroy {:?}",
            median(&mut self.prepared),
            median(&mut self.started),
            median(&mut self.destroyed)
        )
    }
}

fn rounds() {
    let (host, random) = (Host::new(), SeededRandom::new(seed()));
    let config = config(&host);
    runtime().block_on(async {
        let before = warm_up(&host, &config, &driver_of(without_spares(&config))).await;
        let driver = driver_of(config.clone());
        refused_addresses(&driver).await;
        // One after the other, to be measured; all others, where many are wanted, four at a time.
        let count = 20;
        let mut times = Times::default();
        for round in 0..count {
            let spec = networked_spec(u8::try_from(round % 8).unwrap());
            times.round(&driver, round, (&spec, base::networked()), &random).await;
        }
        println!("report: {count} rounds with a network: {}", times.medians());
        let more = full(0, 180);
        let worker = async |worker: u32| {
            let mut times = Times::default();
            let spec = networked_spec(u8::try_from(worker).unwrap());
            for round in (count..count + more).filter(|round| round % 4 == worker) {
                times.round(&driver, round, (&spec, base::networked()), &random).await;
            }
        };
        tokio::join!(worker(0), worker(1), worker(2), worker(3));
        driver.close().await;
        is_as_before(&before, &host, &config, &format!("after {} rounds", count + more));
        let mut times = Times::default();
        for round in 0..count {
            times.round(&driver, 1000 + round, (&spec(), base::plain()), &random).await;
        }
        is_as_before(&before, &host, &config, "after rounds without a network");
        println!("report: {count} rounds without a network: {}", times.medians());
        drop(driver);
    });
    traces::clear(&config);
}

/// An address that is none of this host's, or no machine's.
async fn refused_addresses(driver: &dyn VmDriver) {
    let mut spec = networked_spec(0);
    for wrong in ["10.214.0.2", "10.213.0.3"] {
        let NetworkSpec::Tap { address, .. } = &mut spec.network else { panic!("a tap") };
        address.0 = wrong.parse().unwrap();
        let error = driver.prepare(&name("inc_address"), &spec).await.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("network.address")));
        assert!(error.user_message().unwrap().contains("10.213.0"), "{error:?}");
    }
}

/// What a controller does all day, until something ends it.
async fn work(driver: Arc<dyn VmDriver>, seed: u64) {
    let random = SeededRandom::new(seed);
    for round in 0.. {
        let slot = u8::try_from(random.below(4)).unwrap();
        let incarnation = name(&format!("inc_{seed}_{round}"));
        // So that some of them find a monitor that waits, which is made while nothing is on its way.
        if random.below(2) == 0 {
            tokio::time::sleep(Duration::from_millis(random.below(100))).await;
        }
        // What is left of an earlier one may have the address.
        if driver.prepare(&incarnation, &networked_spec(slot)).await.is_err() {
            continue;
        }
        let _ = driver.start(&incarnation, base::networked(), random.below(3) == 0).await;
        if random.below(2) == 0 {
            let _ = driver.snapshot(&incarnation, "some", SnapshotKind::Full).await;
        }
        if random.below(2) == 0 {
            let _ = driver.destroy(&incarnation).await;
        }
    }
}

/// What the next driver finds can be known, and can be taken away.
async fn clear(config: &FirecrackerConfig, when: &str) -> Vec<Phase> {
    let driver = driver_of(without_spares(config));
    let mut phases = Vec::new();
    for found in driver.adopt().await.unwrap() {
        phases.push(found.observation.phase);
        driver.destroy(&found.incarnation).await.unwrap_or_else(|error| panic!("{when}: {error:?}"));
        gone(&driver, &found.incarnation).await;
    }
    // Twice, since what is half removed has no name until it is looked for.
    assert!(driver.adopt().await.unwrap().is_empty(), "{when}");
    phases
}

async fn gone(driver: &dyn VmDriver, incarnation: &IncarnationName) {
    assert_eq!(driver.observe(incarnation).await.unwrap_err().kind(), ErrorKind::NotFound);
}

fn dropped() {
    let (host, seed) = (Host::new(), seed());
    let (config, random) = (config(&host), SeededRandom::new(seed));
    let before =
        runtime().block_on(async { warm_up(&host, &config, &driver_of(without_spares(&config))).await });
    let mut phases = Vec::new();
    for round in 0..full(10, 50) {
        let own = runtime();
        let driver: Arc<dyn VmDriver> = Arc::new(driver_of(config.clone()));
        own.spawn(work(driver, random.below(1_000_000)));
        std::thread::sleep(Duration::from_millis(random.below(300)));
        // Every call ends where it waits; what blocks goes on to its end.
        own.shutdown_timeout(Duration::from_secs(5));
        let when = format!("round {round} of seed {seed}");
        phases.extend(runtime().block_on(clear(&config, &when)));
        is_as_before(&before, &host, &config, &when);
    }
    tell("drivers were dropped", phases);
    traces::clear(&config);
}

fn killed() {
    let (host, seed) = (Host::new(), seed());
    let (config, random) = (config(&host), SeededRandom::new(seed));
    let before =
        runtime().block_on(async { warm_up(&host, &config, &driver_of(without_spares(&config))).await });
    let mut phases = Vec::new();
    for round in 0..full(10, 50) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(ALONE, format!("{} {}", host.folder.path().display(), host.cluster))
            .env(CONTROLLER, random.below(1_000_000).to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Until it is at work, and then some.
        std::thread::sleep(Duration::from_millis(40 + random.below(400)));
        child.kill().unwrap();
        child.wait().unwrap();
        let when = format!("round {round} of seed {seed}");
        phases.extend(runtime().block_on(clear(&config, &when)));
        is_as_before(&before, &host, &config, &when);
    }
    tell("controllers were killed", phases);
    traces::clear(&config);
}

fn controller(what: &str, seed: u64) -> ! {
    let (folder, cluster) = what.rsplit_once(' ').unwrap();
    let mut config = config(&Host::new());
    let own = FirecrackerConfig::new(Path::new(folder), cluster);
    config.jail.base = own.jail.base;
    config.jail.parent_group = format!("flames-test-{cluster}");
    config.jail.cluster = cluster.to_owned();
    config.folder = own.folder;
    let config = with_network(config);
    runtime().block_on(work(Arc::new(driver_of(config)), seed));
    unreachable!()
}

fn tell(what: &str, phases: Vec<Phase>) {
    let mut counted = std::collections::BTreeMap::new();
    for phase in phases {
        *counted.entry(format!("{phase:?}")).or_insert(0) += 1;
    }
    println!("report: phases found where {what}: {counted:?}");
}
