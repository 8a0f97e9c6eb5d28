//! A `flames up --driver firecracker` in a [`Lab`], and a snapshot of a guest that was made once for all test processes: where KVM emulates a
//! guest's kernel a boot takes half a minute, a restore some milliseconds.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use flames_conformance_runner::Unavailable;
use sha2::{Digest, Sha256};

use crate::lab::{self, Lab, RESOLVER};
use crate::support::busybox::import_busybox;
use crate::support::{Installation, finish, flames};

/// What lets the test kernel run on a KVM that emulates a guest's kernel mode, and the C library's programs with it; on others it does
/// nothing of note. See `shared/guest-kernel/README.md`.
const ARGUMENTS: &str = "quiet loglevel=1 noxsave clearcpuid=141,308,295,151,158,288,59 lpj=5000000 tsc=reliable no_timer_check \
    random.trust_cpu=off GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-AVX,-AVX512F,-XSAVE,-XSAVEC";
/// How long a boot may take, on a busy host too, and one whose KVM emulates much.
pub(crate) const BOOT: Duration = Duration::from_secs(180);
/// The programs that cases call.
const PROGRAMS: [&str; 5] = ["ip", "nft", "nsenter", "curl", "cp"];
/// What the saved guest runs: a page on port 8000.
const SERVER: &str =
    "mkdir -p /tmp/www; echo a page > /tmp/www/index.html; busybox httpd -p 8000 -h /tmp/www; sleep 1000000";
/// The addresses of every case's guests.
pub(crate) const BLOCK: &str = "10.77.0.0/24";
/// What the saved guest's page is.
pub(crate) const PAGE: &str = "a page\n";
/// The snapshot's name.
pub(crate) const SAVED: &str = "saved";

fn file(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_file())
}

fn program(name: &str, variable: &str) -> bool {
    file(variable).is_some() || find(name)
}

fn find(name: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|folder| folder.join(name).is_file())
}

/// Why no guest can be started here, without starting one.
pub(crate) fn unavailable() -> Option<Unavailable> {
    let lacks =
        |service: &str, reason: &str| Some(Unavailable { service: service.into(), reason: reason.into() });
    if !rustix::process::geteuid().is_root() {
        return lacks("firecracker", "not root");
    }
    if !program("firecracker", "FLAMES_FIRECRACKER") || !program("jailer", "FLAMES_JAILER") {
        return lacks("firecracker", "no `firecracker` and `jailer` on PATH");
    }
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return lacks("firecracker", "no /dev/kvm that opens");
    }
    if !Path::new("/dev/net/tun").exists() {
        return lacks("firecracker", "no /dev/net/tun");
    }
    if let Some(missing) = PROGRAMS.iter().find(|name| !find(name)) {
        return lacks("firecracker", &format!("`{missing}` is not on PATH"));
    }
    if file("FLAMES_TEST_KERNEL").is_none() {
        return lacks("kernel", "FLAMES_TEST_KERNEL names no kernel");
    }
    if file("FLAMES_GUEST_AGENT").is_none() {
        return lacks("agent", "FLAMES_GUEST_AGENT names no agent (`cargo xtask test` builds it)");
    }
    if !Path::new("/bin/busybox").is_file() {
        return lacks("busybox", "/bin/busybox is absent (apt install busybox-static)");
    }
    None
}

/// A host with Flames on it. What runs there ends with this.
pub(crate) struct Host {
    pub(crate) installation: Installation,
    pub(crate) lab: Lab,
}

/// The data folders of this process's hosts, so that what is left of one whose case did not end in time is ended too.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Ends all that is left of this process's hosts.
pub(crate) fn clear_all() {
    let folders = std::mem::take(&mut *FOLDERS.lock().unwrap_or_else(PoisonError::into_inner));
    for folder in folders {
        let text = folder.display().to_string();
        for entry in entries(Path::new("/proc")) {
            let line = fs::read(entry.join("cmdline")).unwrap_or_default();
            let pid = entry.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
            if let Some(pid) = pid.filter(|_| String::from_utf8_lossy(&line).contains(&text)) {
                kill(pid);
            }
        }
        clear(&cluster_of(&folder));
    }
    lab::clear_all();
}

/// What all names on the host of a data folder's machines begin with.
fn cluster_of(data: &Path) -> String {
    hex::encode(&Sha256::digest(data.as_os_str().as_encoded_bytes())[..4])
}

fn kill(pid: u32) {
    // It may be gone already.
    let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
}

impl Host {
    /// With nothing on it but the image `busybox`.
    pub(crate) fn new() -> Self {
        let mut host = Self::down();
        host.up(&[]);
        import_busybox(&host.installation);
        host
    }

    /// With the snapshot [`SAVED`], too.
    pub(crate) fn with_saved_guest(more: &[&str]) -> Self {
        let mut host = Self::down();
        copy(&base(), &host.installation.folder.path().join("data"));
        host.up(more);
        host
    }

    fn down() -> Self {
        let lab = Lab::new();
        let mut installation = Installation::new();
        installation.namespace = Some(lab.host.path());
        FOLDERS.lock().unwrap().push(installation.data());
        Self { installation, lab }
    }

    /// Starts `flames up` here, on what an earlier one left.
    pub(crate) fn up(&mut self, more: &[&str]) {
        let (kernel, agent) = (file("FLAMES_TEST_KERNEL").unwrap(), file("FLAMES_GUEST_AGENT").unwrap());
        let mut arguments = vec!["--driver", "firecracker", "--kernel", kernel.to_str().unwrap()];
        arguments.extend(["--agent", agent.to_str().unwrap(), "--kernel-arguments", ARGUMENTS]);
        arguments.extend(["--boot-deadline", "150s"]);
        arguments.extend(["--resolvers", RESOLVER]);
        let template = file("FLAMES_TEST_CPU_TEMPLATE");
        if let Some(template) = &template {
            arguments.extend(["--cpu-template", template.to_str().unwrap()]);
        }
        if !more.contains(&"--address-block") {
            arguments.extend(["--address-block", BLOCK]);
        }
        arguments.extend_from_slice(more);
        self.installation.up(&arguments);
    }

    /// Makes a VM of the saved one, with more flags.
    #[track_caller]
    pub(crate) fn restore(&self, name: &str, more: &[&str]) {
        let mut arguments = vec!["-q", "restore", SAVED, "--name", name];
        arguments.extend_from_slice(more);
        self.installation.run(&arguments).ok();
    }

    /// What a script says inside of a VM, which must succeed.
    #[track_caller]
    pub(crate) fn inside(&self, vm: &str, script: &str) -> String {
        self.installation.run(&["exec", vm, "--", "sh", "-c", script]).ok().trim().to_owned()
    }

    /// Asserts that a VM gets a connection to port 80 (or another that is named) of each address of `reached`, and to none of `unreached`.
    #[track_caller]
    pub(crate) fn assert_reaches(&self, vm: &str, reached: &[&str], unreached: &[&str]) {
        let mut script = String::new();
        // What is dropped is told by the time only, and a guest on an emulated kernel may take long for a connection.
        for (address, seconds) in reached.iter().map(|it| (it, 20)).chain(unreached.iter().map(|it| (it, 4)))
        {
            let (to, port) = address.split_once(' ').unwrap_or((address, "80"));
            script += &format!(
                "busybox nc -w {seconds} {to} {port} </dev/null >/dev/null 2>&1 && echo '{address}'; "
            );
        }
        let told = self.inside(vm, &format!("{script} true"));
        let found: Vec<&str> = told.lines().collect();
        assert_eq!(found, reached, "what {vm} reaches");
    }

    /// Whether the saved guest's page is at a URL, for the host.
    pub(crate) fn answers(&self, url: &str) -> bool {
        let ended = self.lab.on_host("curl", &["-sS", "-m", "20", url]);
        ended.code == 0 && ended.stdout == PAGE
    }

    /// The address of a name, as a VM's resolver tells it; none: it tells none. (What is linked statically cannot ask by the C library.)
    pub(crate) fn resolve(&self, vm: &str, name: &str) -> Option<String> {
        let script = format!("busybox nslookup -type=a {name}");
        let ended = self.installation.run(&["exec", vm, "--", "sh", "-c", &script]);
        let answer = ended.stdout.split_once(&format!("Name:\t{name}"))?.1;
        Some(answer.lines().find_map(|line| line.strip_prefix("Address: "))?.trim().to_owned())
    }

    /// The VM's own address.
    #[track_caller]
    pub(crate) fn address(&self, vm: &str) -> String {
        let shown = self.installation.inspect(vm);
        shown["incarnation"]["address"]["ipv4"].as_str().unwrap_or_else(|| panic!("{shown:#}")).to_owned()
    }

    /// The live monitors of this data folder's machines.
    pub(crate) fn monitors(&self) -> Vec<u32> {
        monitors(&cluster_of(&self.installation.data()))
    }

    /// Everything on the host that was made for VMs, in words.
    pub(crate) fn residue(&self) -> Vec<String> {
        let data = self.installation.data();
        let cluster = cluster_of(&data);
        let mut found: Vec<String> =
            monitors(&cluster).into_iter().map(|pid| format!("process {pid}")).collect();
        found.extend(namespaces(&cluster).into_iter().map(|name| format!("namespace {name}")));
        for group in groups(&cluster) {
            let left = entries(&group).into_iter().filter(|path| path.is_dir());
            found.extend(left.map(|path| format!("group {}", path.display())));
        }
        let jails = data.join("firecracker/jails");
        let folders = [data.join("firecracker/incarnations"), jails.join(&cluster), jails.join(".slots")];
        for path in folders.iter().flat_map(|folder| entries(folder)) {
            if !path.ends_with(".lock") {
                found.push(path.display().to_string());
            }
        }
        let links = self.lab.host.ip("-o link");
        found.extend(links.lines().filter(|line| line.contains(": fl")).map(str::to_owned));
        let rules = self.lab.on_host("nft", &["list", "ruleset"]).ok();
        let told = |line: &&str| line.contains("10.77.0.") && !line.contains(BLOCK);
        found.extend(rules.lines().filter(told).map(|line| format!("rule {}", line.trim())));
        found
    }

    /// Nothing of any VM is left.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        let installation = &self.installation;
        assert_eq!(installation.run(&["-q", "ps", "--all"]).ok(), "");
        assert_eq!(self.residue(), Vec::<String>::new());
        installation.books_are_closed();
        let controllers = installation.run(&["--json", "controllers"]).json();
        assert_eq!(controllers[0]["address_block"]["taken"], 0, "{controllers:#}");
        assert_eq!(controllers[0]["reserved"]["vms"], 0, "{controllers:#}");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.installation.is_up() {
            self.installation.kill();
        }
        clear(&cluster_of(&self.installation.data()));
    }
}

/// The live processes in a cluster's control groups.
fn monitors(cluster: &str) -> Vec<u32> {
    let group = format!("/flames/{cluster}/");
    let mut found = Vec::new();
    for entry in entries(Path::new("/proc")) {
        let pid = entry.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
        let groups = fs::read_to_string(entry.join("cgroup")).unwrap_or_default();
        let stat = fs::read_to_string(entry.join("stat")).unwrap_or_default();
        let is_zombie = stat.rfind(')').is_none_or(|at| stat[at..].starts_with(") Z"));
        found.extend(pid.filter(|_| groups.contains(&group) && !is_zombie));
    }
    found.sort_unstable();
    found
}

fn groups(cluster: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let below = |root: PathBuf| root.join("flames").join(cluster);
    let roots = std::iter::once(root.to_owned()).chain(entries(root));
    roots.map(below).filter(|path| path.is_dir()).collect()
}

fn namespaces(cluster: &str) -> Vec<String> {
    let own = format!("flames-{cluster}-");
    let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.to_owned());
    entries(Path::new("/run/netns")).iter().filter_map(name).filter(|name| name.starts_with(&own)).collect()
}

/// Ends and removes all that a cluster has on this host, its data folder apart.
fn clear(cluster: &str) {
    for _ in 0..200 {
        let running = monitors(cluster);
        if running.is_empty() {
            break;
        }
        running.into_iter().for_each(kill);
        thread::sleep(Duration::from_millis(10));
    }
    for name in namespaces(cluster) {
        let _ = Command::new("ip").args(["netns", "delete", &name]).status();
    }
    let groups = groups(cluster);
    for folder in groups.iter().flat_map(|group| entries(group)).chain(groups.iter().cloned()) {
        if folder.is_dir() {
            let _ = fs::remove_dir(folder);
        }
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn copy(from: &Path, to: &Path) {
    finish(Command::new("cp").args(["-a", "--sparse=always", "--reflink=auto"]).args([from, to]), b"").ok();
}

/// A data folder with the image `busybox` and the snapshot [`SAVED`]. Made by the first process that asks; others wait for it.
pub(crate) fn base() -> PathBuf {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(scratch).unwrap();
    let folder = scratch.join(format!("flames-firecracker-{}", digest()));
    let lock = File::create(folder.with_extension("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    if !folder.exists() {
        make(&folder);
    }
    folder
}

fn make(folder: &Path) {
    let begun = Instant::now();
    let mut host = Host::new();
    let installation = &host.installation;
    let create = ["-q", "run", "-d", "--name", "base", "--memory", "64M", "--disk", "64M", "-p", "8000"];
    let workload = ["--egress", "allow", "busybox", "--", "sh", "-c", SERVER];
    let mut command = installation.command(&[&create[..], &workload[..]].concat());
    // Longer than a command may take otherwise.
    let mut child = command.stdin(std::process::Stdio::null()).spawn().unwrap();
    while child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < BOOT, "the guest boots within {BOOT:?}");
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(installation.inspect("base")["state"], "running");
    installation.run(&["-q", "snapshot", "create", "base", "--name", SAVED]).ok();
    installation.run(&["rm", "-f", "base"]).ok();
    let (code, log) = host.installation.interrupt();
    assert_eq!(code, 0, "{log}");
    let half = folder.with_extension("half");
    let _ = fs::remove_dir_all(&half);
    copy(&host.installation.data(), &half);
    fs::rename(half, folder).unwrap();
    println!("report: a guest was booted and saved in {:?}", begun.elapsed());
}

/// Of all that the base follows from.
fn digest() -> String {
    let mut hash = Sha256::new();
    hash.update(finish(flames().arg("--version"), b"").ok());
    hash.update([ARGUMENTS, SERVER].concat());
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_flames"));
    let named = ["FLAMES_TEST_KERNEL", "FLAMES_GUEST_AGENT", "FLAMES_TEST_CPU_TEMPLATE"];
    for path in named.iter().filter_map(|name| file(name)).chain([binary]) {
        let found = path.metadata().unwrap();
        hash.update(format!("{} {} {} {}", path.display(), found.ino(), found.size(), found.mtime()));
    }
    hex::encode(&hash.finalize()[..8])
}
