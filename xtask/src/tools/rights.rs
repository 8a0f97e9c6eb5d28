//! What tests need beside programs: rights and devices of the host.

use std::fs::OpenOptions;
use std::path::Path;

use super::{Tools, find};

/// Adds what this host allows, under the names that suites use, or why it does not.
pub(super) fn look(tools: &mut Tools) {
    let is_root = rustix::process::geteuid().is_root();
    let has_tun = Path::new("/dev/net/tun").exists();
    let network = if !is_root {
        Err("root")
    } else if !has_tun {
        Err("/dev/net/tun")
    } else if find("nft").is_none() || find("ip").is_none() {
        Err("nft and ip")
    } else {
        Ok(())
    };
    let program = |name: &str, variable: &str| {
        std::env::var_os(variable).is_some_and(|path| Path::new(&path).is_file()) || find(name).is_some()
    };
    let firecracker = if !program("firecracker", "FLAMES_FIRECRACKER") || !program("jailer", "FLAMES_JAILER")
    {
        Err("firecracker and jailer on PATH, or in FLAMES_FIRECRACKER and FLAMES_JAILER")
    } else if OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        Err("a /dev/kvm that opens")
    } else {
        network
    };
    for (name, lacks) in [("network", network), ("firecracker", firecracker)] {
        match lacks {
            Ok(()) => tools.available.push(name),
            Err(what) => tools.missing.push(format!("what the suites of `{name}` need: {what}")),
        }
    }
}
