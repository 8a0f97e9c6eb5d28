//! The test kernel: `FLAMES_TEST_KERNEL`, else the one beside the checkout.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Scratch;
use crate::process::find;

const BESIDE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../../../shared/guest-kernel/vmlinux-6.12-emulated.xz");

/// Where the kernel comes from, or why there is none.
pub fn source() -> Result<PathBuf, String> {
    match std::env::var_os("FLAMES_TEST_KERNEL") {
        Some(path) if Path::new(&path).is_file() => Ok(path.into()),
        Some(path) => Err(format!("FLAMES_TEST_KERNEL names no file: {}", Path::new(&path).display())),
        None if !Path::new(BESIDE).is_file() => Err(format!("no FLAMES_TEST_KERNEL, and no {BESIDE}")),
        None if find("xz").is_none() => Err("`xz`, which unpacks the test kernel, is not on PATH".to_owned()),
        None => Ok(BESIDE.into()),
    }
}

/// The kernel, unpacked. There must be a [`source`].
pub fn unpacked(scratch: Scratch) -> PathBuf {
    let source = source().unwrap();
    if source != Path::new(BESIDE) {
        return source.canonicalize().unwrap();
    }
    let packed = source.metadata().unwrap();
    scratch.made_once(&format!("vmlinux-{}-{}", packed.size(), packed.mtime()), |path| {
        let unpacked = Command::new("xz").arg("-dc").arg(&source).output().unwrap();
        assert!(unpacked.status.success(), "the test kernel can be unpacked");
        std::fs::write(path, unpacked.stdout).unwrap();
    })
}
