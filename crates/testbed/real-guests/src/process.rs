//! Programs and processes, as seen from outside of a driver.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A program on `PATH`.
pub fn find(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// Every process that there is now, with its folder below `/proc`. Any may be gone when it is looked at.
pub fn all() -> impl Iterator<Item = (u32, PathBuf)> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
}

/// Whether the process is there and not a zombie.
pub fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    !stat[stat.rfind(')').unwrap()..].starts_with(") Z")
}

/// The fields of `/proc/PID/stat` from the third on.
pub fn stat(pid: u32) -> Vec<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat[stat.rfind(')').unwrap() + 2..].split_whitespace().map(str::to_owned).collect()
}

/// Sends a signal, by its option of `kill`, to a process that must be there.
pub fn signal(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// Kills a process that may be gone already.
pub fn kill(pid: u32) {
    let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
}

/// The bytes that a console's log takes in an incarnation's folder.
pub fn console_on_disk(folder: &Path) -> u64 {
    let is_part = |name: &str| name.strip_prefix("console.").is_some_and(|at| at.parse::<u64>().is_ok());
    std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .filter(|entry| is_part(&entry.file_name().to_string_lossy()))
        // A part may be dropped between the listing and the look at it.
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .sum()
}
