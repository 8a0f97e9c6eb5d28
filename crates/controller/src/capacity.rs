//! What a host has.

use std::path::Path;

use flames_error::{Error, Result};
use flames_model::Resources;

/// How much of a host is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Virtual processors for each processor of the host, in percent.
    pub vcpu_percent: u64,
    /// Memory left to the host, in MiB.
    pub memory_kept_mib: u64,
    /// Disk left to the host, in MiB.
    pub disk_kept_mib: u64,
    /// The most machines.
    pub vms: u64,
}

impl Default for Offer {
    /// Four virtual processors for each of the host's, 512 MiB of memory and 1 GiB of disk kept back, 512 machines.
    fn default() -> Self {
        Self { vcpu_percent: 400, memory_kept_mib: 512, disk_kept_mib: 1_024, vms: 512 }
    }
}

/// What this host can offer: processors that this process may use, all of the memory, and what is free on the data folder's disk or
/// is taken there by disks of VMs already.
///
/// Errors: `Unavailable` when the host does not say.
pub async fn detect_capacity(data_folder: &Path, offer: Offer) -> Result<Resources> {
    let folder = data_folder.to_owned();
    tokio::task::spawn_blocking(move || detect(&folder, offer)).await.map_err(|error| {
        Error::internal("controller.capacity", "looking at the host was interrupted").with_source(error)
    })?
}

fn unknown(what: &'static str) -> Error {
    Error::unavailable("controller.capacity", "the host does not say what it has").with_context("of", what)
}

fn detect(folder: &Path, offer: Offer) -> Result<Resources> {
    let processors = std::thread::available_parallelism()
        .map_err(|error| unknown("processors").with_source(error))?
        .get() as u64;
    let memory = std::fs::read_to_string("/proc/meminfo")
        .map_err(|error| unknown("memory").with_source(error))
        .and_then(|text| total_memory_mib(&text).ok_or_else(|| unknown("memory")))?;
    let disk = rustix::fs::statvfs(folder)
        .map_err(|error| unknown("disk").with_source(std::io::Error::from(error)))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let ours = ["disks", "incarnations"].iter().map(|name| allocated(&folder.join(name))).sum::<u64>();
    Ok(Resources {
        vcpus: processors.saturating_mul(offer.vcpu_percent) / 100,
        memory_mib: memory.saturating_sub(offer.memory_kept_mib),
        disk_mib: (free.saturating_add(ours) >> 20).saturating_sub(offer.disk_kept_mib),
        vms: offer.vms,
    })
}

/// `MemTotal` of proc_meminfo(5), which is in KiB.
fn total_memory_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib / 1024)
}

/// What the files of a folder take on the disk, holes apart.
fn allocated(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => allocated(&entry.path()),
        // stat(2): in units of 512 bytes, whatever the file system's block is.
        Ok(metadata) => metadata.blocks().saturating_mul(512),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_host_offers_something_and_keeps_back_what_it_was_told() {
        let folder = tempfile::tempdir().unwrap();
        let all = Offer { vcpu_percent: 100, memory_kept_mib: 0, disk_kept_mib: 0, vms: 3 };
        let offered = detect_capacity(folder.path(), all).await.unwrap();
        assert!(offered.vcpus >= 1 && offered.memory_mib > 0 && offered.disk_mib > 0 && offered.vms == 3);
        let less = Offer { memory_kept_mib: 16, ..all };
        let kept_back = detect_capacity(folder.path(), less).await.unwrap();
        assert_eq!(kept_back.memory_mib, offered.memory_mib - 16);
    }

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        assert_eq!(total_memory_mib("MemTotal:        4046028 kB\nMemFree: 1 kB\n"), Some(3951));
        assert_eq!(total_memory_mib("MemFree: 1 kB\n"), None);
    }
}
