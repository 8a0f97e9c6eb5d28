use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flames_guest_protocol::config::{CONFIG_HEADER_LENGTH, Device};
use flames_guest_protocol::{ErrorKind, GuestConfig};

use super::{BootResult, wait_for};

/// Looks through the virtio disks for the config drive, until `limit` is over.
///
/// Errors: when there is none, or it is damaged.
pub fn find_config(limit: Duration) -> BootResult<GuestConfig> {
    let found = wait_for(limit, || disks().into_iter().find_map(|disk| read_config(&disk)));
    found.unwrap_or_else(|| Err("no config drive is among the virtio disks".to_owned()))
}

/// The nodes of the virtio disks, in their order.
fn disks() -> Vec<PathBuf> {
    let Ok(entries) = Path::new("/sys/block").read_dir() else { return Vec::new() };
    let mut names: Vec<_> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("vd"))
        .collect();
    // vdaa comes after vdz.
    names.sort_by_key(|name| (name.len(), name.clone()));
    names.into_iter().map(|name| Path::new("/dev").join(name)).collect()
}

/// The configuration on a disk; `None` when it is no config drive or not readable yet.
fn read_config(disk: &Path) -> Option<BootResult<GuestConfig>> {
    let mut file = File::open(disk).ok()?;
    let mut header = [0; CONFIG_HEADER_LENGTH];
    file.read_exact(&mut header).ok()?;
    let length = match GuestConfig::encoded_length(&header) {
        Ok(length) => length,
        Err(error) if error.kind == ErrorKind::NotFound => return None,
        Err(error) => return Some(Err(error.message)),
    };
    let mut drive = header.to_vec();
    let rest = (length - CONFIG_HEADER_LENGTH) as u64;
    if let Err(error) = file.take(rest).read_to_end(&mut drive) {
        return Some(Err(format!("read the config drive {}: {error}", disk.display())));
    }
    Some(GuestConfig::decode(&drive).map_err(|error| error.message))
}

/// The node of a device, once it is there.
///
/// Errors: when it does not appear.
pub(super) fn find_device(device: &Device, limit: Duration) -> BootResult<PathBuf> {
    let found = wait_for(limit, || match device {
        Device::Path(path) => Some(PathBuf::from(path)).filter(|path| path.exists()),
        Device::Serial(serial) => disks().into_iter().find(|disk| {
            let Some(name) = disk.file_name() else { return false };
            let file = Path::new("/sys/block").join(name).join("serial");
            std::fs::read_to_string(file).is_ok_and(|text| text.trim_end() == serial)
        }),
    });
    found.ok_or_else(|| match device {
        Device::Path(path) => format!("the disk {path} did not appear"),
        Device::Serial(serial) => format!("no disk has the serial number {serial:?}"),
    })
}
