//! What a driver has left on the host, as seen from outside of it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use flames_test_guests::process::{all, is_alive, kill};
use flames_vmm::IncarnationName;
use flames_vmm_firecracker::FirecrackerConfig;

/// The living processes in the cluster's control groups.
pub(crate) fn processes(config: &FirecrackerConfig, incarnation: Option<&IncarnationName>) -> Vec<u32> {
    let cluster = format!("/{}/{}/", config.jail.parent_group, config.jail.cluster);
    // Groups have the jailer's form of the name.
    let id = incarnation.map(|name| name.as_str().replace('_', "-"));
    let group = id.map_or_else(|| cluster.clone(), |id| format!("{cluster}{id}"));
    let mut found = Vec::new();
    for (pid, folder) in all() {
        let groups = std::fs::read_to_string(folder.join("cgroup")).unwrap_or_default();
        let is_in = |line: &str| match line.find(&group) {
            Some(at) => incarnation.is_none() || line[at..].trim_end() == group,
            None => false,
        };
        if groups.lines().any(is_in) && is_alive(pid) {
            found.push(pid);
        }
    }
    found
}

/// Folders, snapshots, jails, slots, control groups, namespaces and processes of the cluster's incarnations.
pub(crate) fn of(config: &FirecrackerConfig) -> Vec<String> {
    let mut found = Vec::new();
    for entry in entries(&config.folder) {
        found.push(entry.display().to_string());
        found.extend(entries(&entry.join("snapshots")).iter().map(|path| path.display().to_string()));
    }
    for entry in entries(&config.jail.cluster_folder()) {
        if !entry.ends_with(".lock") {
            found.push(entry.display().to_string());
        }
    }
    found.extend(slots(config).into_iter().map(|(path, owner)| format!("{} {owner}", path.display())));
    found.extend(groups(config).iter().map(|path| path.display().to_string()));
    found.extend(namespaces(config).into_iter().map(|name| format!("namespace {name}")));
    found.extend(processes(config, None).into_iter().map(|pid| format!("process {pid}")));
    found.sort();
    found
}

/// Ends and removes all of it; for a test that failed.
pub(crate) fn clear(config: &FirecrackerConfig) {
    for _ in 0..200 {
        let running = processes(config, None);
        if running.is_empty() {
            break;
        }
        running.into_iter().for_each(kill);
        std::thread::sleep(Duration::from_millis(10));
    }
    for (path, _) in slots(config) {
        let _ = std::fs::remove_file(path);
    }
    for name in namespaces(config) {
        let _ = Command::new("ip").args(["netns", "delete", &name]).status();
    }
    let _ = std::fs::remove_dir_all(config.jail.cluster_folder());
    for _ in 0..200 {
        // A group is busy for a moment after its last process.
        let left: Vec<PathBuf> = groups(config).into_iter().chain(cluster_groups(config)).collect();
        if left.is_empty() {
            break;
        }
        for group in left {
            let _ = std::fs::remove_dir(group);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    for root in entries(Path::new("/sys/fs/cgroup")) {
        // Others' clusters may be in it.
        let _ = std::fs::remove_dir(root.join(&config.jail.parent_group));
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn slots(config: &FirecrackerConfig) -> Vec<(PathBuf, String)> {
    let own = format!("{}/", config.jail.cluster);
    entries(&config.jail.slots_folder())
        .into_iter()
        .filter_map(|path| {
            let owner = std::fs::read_link(&path).ok()?.display().to_string();
            owner.starts_with(&own).then_some((path, owner))
        })
        .collect()
}

fn cluster_groups(config: &FirecrackerConfig) -> Vec<PathBuf> {
    let below = |root: PathBuf| root.join(&config.jail.parent_group).join(&config.jail.cluster);
    let roots = std::iter::once(PathBuf::from("/sys/fs/cgroup")).chain(entries(Path::new("/sys/fs/cgroup")));
    roots.map(below).filter(|path| path.is_dir()).collect()
}

fn groups(config: &FirecrackerConfig) -> Vec<PathBuf> {
    let mut groups = Vec::new();
    for cluster in cluster_groups(config) {
        groups.extend(entries(&cluster).into_iter().filter(|path| path.is_dir()));
    }
    groups.sort();
    // One hierarchy may have several names.
    groups.dedup_by_key(|path| path.canonicalize().ok());
    groups
}

fn namespaces(config: &FirecrackerConfig) -> Vec<String> {
    let own = format!("flames-{}-", config.jail.cluster);
    entries(Path::new("/run/netns"))
        .iter()
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .filter(|name| name.starts_with(&own))
        .collect()
}
