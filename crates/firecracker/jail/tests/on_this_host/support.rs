//! A place on this host for one case, and what is left there after it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use flames_clock::SystemClock;
use flames_conformance_runner::Unavailable;
use flames_firecracker_jail::{
    Found, Hierarchies, Inside, Jail, JailConfig, JailName, JailSpec, Jails, Launch, Limits, SlotRange,
    State, Vmm,
};
use flames_host::process::{find_program, processes_of};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Set for a process of this test binary that is a controller, to be killed.
pub(crate) const CHILD: &str = "FLAMES_JAIL_TEST_CHILD";
pub(crate) const API: &str = "run/api.sock";
const SLOTS: u32 = 32;

fn program(variable: &str, name: &str) -> Option<PathBuf> {
    let given = std::env::var_os(variable).map(PathBuf::from);
    find_program(given.as_deref().unwrap_or(Path::new(name)))
}

/// Without starting anything: it is asked when the cases are listed.
pub(crate) fn unavailable() -> Option<Unavailable> {
    let lacks = |reason: &str| Some(Unavailable { service: "firecracker".into(), reason: reason.into() });
    if !Path::new("/proc/self/ns/user").exists() || !is_root() {
        return lacks("the jailer needs root");
    }
    if program("FLAMES_JAILER", "jailer").is_none() {
        return lacks("there is no `jailer` (FLAMES_JAILER, or on PATH)");
    }
    if program("FLAMES_FIRECRACKER", "firecracker").is_none() {
        return lacks("there is no `firecracker` (FLAMES_FIRECRACKER, or on PATH)");
    }
    if !Path::new("/dev/kvm").exists() {
        return lacks("there is no /dev/kvm");
    }
    None
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) fn name(text: &str) -> JailName {
    JailName::new(text).unwrap()
}

pub(crate) fn inside(path: &str) -> Inside {
    Inside::new(path).unwrap()
}

pub(crate) struct Host {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) config: JailConfig,
}

impl Host {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let folder = tempfile::tempdir().unwrap();
        // Users that no other test has, at the same time, in another process.
        let first_user = 10_000_000 + process % 4_000_000 * 1000 + number % 31 * SLOTS;
        let config = JailConfig {
            firecracker: program("FLAMES_FIRECRACKER", "firecracker").unwrap(),
            jailer: program("FLAMES_JAILER", "jailer").unwrap(),
            users: SlotRange { first_user, count: SLOTS },
            parent_group: format!("flames-test-{process}-{number}"),
            ..JailConfig::new(folder.path().join("jails"), "clu")
        };
        Self { folder, config }
    }

    pub(crate) async fn open(&self) -> Jails {
        Jails::open(self.config.clone(), Arc::new(SystemClock::new())).await.unwrap()
    }

    /// A file beside the jails.
    pub(crate) fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// Everything that is there, and should not be when every jail was removed.
    pub(crate) fn residue(&self) -> Vec<String> {
        let mut residue = Vec::new();
        let here = self.folder.path().to_str().unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        residue.extend(mounts.lines().filter(|line| line.contains(here)).map(str::to_owned));
        for home in Hierarchies::probe().unwrap().homes() {
            let group = home.root().join(&self.config.parent_group);
            if group.exists() {
                residue.push(group.display().to_string());
            }
        }
        for user in self.users() {
            residue.extend(
                processes_of(user).unwrap().iter().map(|process| format!("{:?}", process.identity())),
            );
        }
        let mut list = |folder: &Path, except: &str| {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.file_name() != except {
                    residue.push(entry.path().display().to_string());
                }
            }
        };
        list(&self.config.slots_folder(), ".lock");
        list(&self.config.cluster_folder(), ".lock");
        residue
    }

    fn users(&self) -> std::ops::Range<u32> {
        let range = self.config.users;
        // All of them would be one look at every process each.
        range.first_user..range.first_user + range.count.min(4)
    }
}

impl Drop for Host {
    /// Whatever the case did: nothing of it stays on this host.
    fn drop(&mut self) {
        let range = self.config.users;
        for user in range.first_user..range.first_user + range.count {
            // None of a case that has passed.
            for pid in pids_of(user) {
                let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let begun = Instant::now();
        for home in Hierarchies::probe().unwrap().homes() {
            let parent = home.root().join(&self.config.parent_group);
            while parent.exists() && begun.elapsed() < Duration::from_secs(5) {
                for cluster in std::fs::read_dir(&parent).into_iter().flatten().flatten() {
                    for group in std::fs::read_dir(cluster.path()).into_iter().flatten().flatten() {
                        let _ = std::fs::remove_dir(group.path());
                    }
                    let _ = std::fs::remove_dir(cluster.path());
                }
                let _ = std::fs::remove_dir(&parent);
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

fn pids_of(user: u32) -> Vec<u32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| flames_host::process::user_of(*pid) == Some(user))
        .collect()
}

pub(crate) fn spec() -> JailSpec {
    JailSpec { limits: Limits::for_guest(1, 128 << 20), ..JailSpec::default() }
}

pub(crate) fn launch() -> Launch {
    Launch { arguments: vec!["--api-sock".into(), format!("/{API}").into()], ..Launch::default() }
}

/// A jail whose Firecracker answers.
pub(crate) async fn running(jails: &Jails, incarnation: &str) -> (Jail, Vmm) {
    let jail = jails.create(&name(incarnation), spec()).await.unwrap();
    let vmm = jail.start(launch()).await.unwrap();
    answers(&jail, &vmm).await;
    (jail, vmm)
}

/// Waits for the API, and asks it for its version.
pub(crate) async fn answers(jail: &Jail, vmm: &Vmm) {
    let mut stream = jail.answering(vmm, &inside(API), Duration::from_secs(20)).await.unwrap();
    stream.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 17];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 \r\nSe", "{}", String::from_utf8_lossy(&answer));
}

pub(crate) async fn found(jails: &Jails, incarnation: &str) -> Found {
    jails.find(&name(incarnation)).await.unwrap().expect("the jail is found")
}

pub(crate) fn is_prepared(found: &Found) -> bool {
    matches!(found.state, State::Prepared)
}

pub(crate) async fn remove(jails: &Jails, incarnation: &str) {
    jails.remove(&name(incarnation)).await.unwrap();
}

pub(crate) fn of_process(pid: u32, file: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap()
}
