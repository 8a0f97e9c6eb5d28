//! What a kernel file is, and which kind of machine it boots on.
//!
//! QEMU's microvm tells a guest about its virtio-mmio devices in one of two ways, and no machine serves both kinds of kernels
//! (tried with QEMU 7.2): with ACPI on, a kernel without ACPI finds no device and no interrupt for it; with ACPI off, the devices
//! stand on the kernel's command line as `virtio_mmio.device=`, which distribution kernels do not read
//! (`CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES` is off in Debian's).

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use flames_error::{Error, Result};
use flames_vmm_local::check::{self, KernelFile};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The word in `BootSource::extra_arguments` that names the kind of machine, `acpi` or `mmio`, when it is not to be found out. The
/// driver takes it; the guest does not see it.
pub const MACHINE_ARGUMENT: &str = "flames.machine=";

/// How the machine tells its guest about its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MachineKind {
    /// By ACPI tables. Has a power button and 24 device slots.
    Acpi,
    /// By the kernel's command line. No power button, 8 device slots.
    Mmio,
}

/// A file that is a kernel at this moment; another one after the file was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl FileIdentity {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let found = path.metadata()?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
        })
    }
}

/// Takes the machine's kind out of the arguments, when it is there. `InvalidInput` when it names none that there is.
pub(crate) fn take_machine_argument(arguments: &mut Vec<String>) -> Result<Option<MachineKind>> {
    let mut kind = None;
    let mut unknown = false;
    arguments.retain(|argument| match argument.strip_prefix(MACHINE_ARGUMENT) {
        None => true,
        Some("acpi") => {
            kind = Some(MachineKind::Acpi);
            false
        }
        Some("mmio") => {
            kind = Some(MachineKind::Mmio);
            false
        }
        Some(_) => {
            unknown = true;
            false
        }
    });
    if unknown {
        return Err(Error::invalid(
            "vmm.prepare",
            "boot.extra_arguments",
            "`flames.machine=` is `acpi` (for distribution kernels) or `mmio` (for kernels without ACPI).",
        ));
    }
    Ok(kind)
}

/// The kind of machine that the kernel boots on. Reads all of an ELF kernel. `InvalidInput` when the file is not a kernel.
///
/// A bzImage is compressed and cannot be looked into; it is a distribution's, built with ACPI.
pub(crate) fn inspect(path: &Path) -> Result<MachineKind> {
    match check::kernel(path)? {
        KernelFile::BzImage => Ok(MachineKind::Acpi),
        KernelFile::None => {
            let sentence = "The kernel is neither an ELF `vmlinux` nor a `bzImage`.";
            Err(Error::invalid("vmm.prepare", "boot.kernel", sentence))
        }
        KernelFile::Vmlinux => {
            let found =
                File::open(path).and_then(|mut file| contains(&mut file, b"ACPI: Interpreter enabled"));
            let found = found.map_err(|error| {
                Error::internal("vmm.prepare", "the kernel cannot be read")
                    .with_context("path", path.display())
                    .with_source(error)
            })?;
            Ok(if found { MachineKind::Acpi } else { MachineKind::Mmio })
        }
    }
}

/// The kernel's SHA-256, in hex.
pub(crate) fn digest(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hex::encode(hash.finalize()))
}

/// Whether the text stands anywhere in the file. Holds 256 KiB of it at a time.
fn contains(file: &mut File, text: &[u8]) -> io::Result<bool> {
    let mut buffer = vec![0; 256 * 1024];
    let mut kept = 0;
    loop {
        let count = file.read(&mut buffer[kept..])?;
        if count == 0 {
            return Ok(false);
        }
        let filled = kept + count;
        let part = &buffer[..filled];
        let mut from = 0;
        while let Some(at) = part[from..].iter().position(|byte| *byte == text[0]) {
            if part[from + at..].starts_with(text) {
                return Ok(true);
            }
            from += at + 1;
        }
        kept = filled.min(text.len() - 1);
        buffer.copy_within(filled - kept..filled, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flames_error::ErrorKind;

    fn kernel(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    fn elf(tail: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 300_000];
        bytes[..5].copy_from_slice(b"\x7fELF\x02");
        bytes[18] = 62;
        bytes.extend_from_slice(tail);
        bytes
    }

    #[test]
    fn an_elf_kernel_with_acpi_gets_a_machine_with_acpi() {
        let (_folder, with) = kernel(&elf(b"xx ACPI: Interpreter enabled\n"));
        assert_eq!(inspect(&with).unwrap(), MachineKind::Acpi);
        let (_folder, without) = kernel(&elf(b"virtio_mmio"));
        assert_eq!(inspect(&without).unwrap(), MachineKind::Mmio);
    }

    #[test]
    fn a_text_across_two_reads_is_found() {
        let mut bytes = elf(b"");
        bytes.resize(256 * 1024 - 7, 0);
        bytes.extend_from_slice(b"ACPI: Interpreter enabled");
        let (_folder, path) = kernel(&bytes);
        assert_eq!(inspect(&path).unwrap(), MachineKind::Acpi);
    }

    #[test]
    fn what_is_not_a_kernel_is_refused_with_the_field_named() {
        for bytes in [&b""[..], b"#!/bin/sh\n", b"\xfd7zXZ\0", b"\x7fELF\x01", &[0; 4096]] {
            let (_folder, path) = kernel(bytes);
            let error = inspect(&path).unwrap_err();
            assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("boot.kernel")));
        }
    }

    #[test]
    fn the_machine_argument_is_taken_and_others_are_kept() {
        let mut arguments = vec!["a=b".into(), "flames.machine=acpi".into(), "c".into()];
        assert_eq!(take_machine_argument(&mut arguments).unwrap(), Some(MachineKind::Acpi));
        assert_eq!(arguments, ["a=b", "c"]);
        assert_eq!(take_machine_argument(&mut arguments).unwrap(), None);
        let error = take_machine_argument(&mut vec!["flames.machine=pc".into()]).unwrap_err();
        assert_eq!(error.field(), Some("boot.extra_arguments"));
    }
}
