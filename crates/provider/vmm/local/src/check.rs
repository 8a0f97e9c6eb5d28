//! Whether what a machine is made of is what it must be: files, kernels, names.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use flames_error::{Error, Result};
use flames_vmm::MachineSpec;

const OPERATION: &str = "vmm.prepare";
/// A disk's size is a multiple of it (virtio 1.2, section 5.2).
pub const SECTOR: u64 = 512;

/// What a driver takes for a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disks {
    /// Plain files.
    Files,
    /// Plain files, and block devices of the host.
    FilesAndDevices,
}

/// Whether every file that the specification names is there, under a path that can be told to a monitor.
///
/// Errors, with the field: `NotFound` for a file that is not there; `InvalidInput` for a path that is not absolute or not UTF-8, and for
/// what is no plain file (or no disk as `disks` says); `Internal` when it cannot be looked at.
pub fn files(spec: &MachineSpec, disks: Disks) -> Result<()> {
    let boot = &spec.boot;
    let files = std::iter::once(("boot.kernel", &boot.kernel))
        .chain(boot.initramfs.iter().map(|path| ("boot.initramfs", path)))
        .chain(spec.drives.iter().map(|drive| ("drives.path", &drive.path)));
    for (field, path) in files {
        if !path.is_absolute() || path.to_str().is_none() {
            return Err(Error::invalid(OPERATION, field, "A path is absolute and valid UTF-8."));
        }
        let found = path.metadata().map_err(|error| missing(field, path, error))?;
        let is_device =
            field == "drives.path" && disks == Disks::FilesAndDevices && found.file_type().is_block_device();
        if !found.is_file() && !is_device {
            return Err(Error::invalid(OPERATION, field, "A path names a plain file."));
        }
    }
    Ok(())
}

/// The error of a file of the specification that cannot be looked at: `NotFound` when it is not there, else `Internal`.
pub fn missing(field: &'static str, path: &Path, error: io::Error) -> Error {
    let error = match error.kind() {
        io::ErrorKind::NotFound => Error::not_found(OPERATION, "file", path.display().to_string()),
        _ => Error::internal(OPERATION, "a file cannot be looked at")
            .with_context("path", path.display())
            .with_source(error),
    };
    error.with_field(field)
}

/// What a file is that is given as a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelFile {
    /// An uncompressed ELF image for x86-64.
    Vmlinux,
    /// A compressed kernel that unpacks itself, as distributions package it.
    BzImage,
    /// Neither: an empty file, a script, an image for another boot loader.
    None,
}

/// Looks at the beginning of a kernel.
///
/// Errors: `InvalidInput`, with the field, for a kernel that must be unpacked first, and for one of another architecture; `Internal` when it
/// cannot be read.
pub fn kernel(path: &Path) -> Result<KernelFile> {
    let refuse = |sentence: &str| Err(Error::invalid(OPERATION, "boot.kernel", sentence));
    let mut head = [0; 1024];
    let length = File::open(path).and_then(|file| read_head(&file, &mut head)).map_err(|error| {
        Error::internal(OPERATION, "the kernel cannot be read")
            .with_context("path", path.display())
            .with_source(error)
    })?;
    let head = &head[..length];
    // Linux's x86 boot protocol: `HdrS` at 0x202.
    if head.get(0x202..0x206) == Some(b"HdrS") {
        return Ok(KernelFile::BzImage);
    }
    if head.starts_with(b"\xfd7zXZ") || head.starts_with(b"\x1f\x8b") || head.starts_with(b"\x28\xb5\x2f\xfd")
    {
        return refuse("The kernel is compressed: unpack it first.");
    }
    if !head.starts_with(b"\x7fELF") {
        return Ok(KernelFile::None);
    }
    // ELF: class 64 at offset 4, machine EM_X86_64 (62) at offset 18.
    if head.get(4) != Some(&2) || head.get(18..20) != Some(&[62, 0]) {
        return refuse("The kernel is not one for x86-64.");
    }
    Ok(KernelFile::Vmlinux)
}

/// Fills the buffer from the file's beginning, and tells how much of it there was.
pub fn read_head(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], length as u64)? {
            0 => break,
            count => length += count,
        }
    }
    Ok(length)
}

/// `InvalidInput` for a snapshot's name that is no plain file name.
pub fn snapshot_name(name: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if (1..=64).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('.') {
        return Ok(());
    }
    Err(Error::invalid(
        "vmm.snapshot",
        "name",
        "A snapshot's name is 1 to 64 of a-z, A-Z, 0-9, `_`, `-` and `.`, and does not begin with `.`.",
    ))
}

#[cfg(test)]
mod tests {
    use flames_error::ErrorKind;
    use flames_vmm::{BootSource, Drive, NetworkSpec, SecretBytes};

    use super::*;

    #[test]
    fn a_kernel_is_told_by_its_beginning_and_refused_with_the_field_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        let looked_at = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            kernel(&path)
        };
        let mut elf = vec![0; 1024];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[18] = 62;
        assert_eq!(looked_at(&elf).unwrap(), KernelFile::Vmlinux);
        let mut image = vec![0; 1024];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(looked_at(&image).unwrap(), KernelFile::BzImage);
        for neither in [&b""[..], b"#!/bin/sh\n", &[0; 4096]] {
            assert_eq!(looked_at(neither).unwrap(), KernelFile::None);
        }
        for (bytes, words) in [(&b"\xfd7zXZ\0"[..], "compressed"), (b"\x7fELF\x01", "x86-64")] {
            let error = looked_at(bytes).unwrap_err();
            assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("boot.kernel")));
            assert!(error.user_message().unwrap().contains(words), "{error:?}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_or_none_is_refused_with_the_field_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let spec = |kernel: &Path, disk: &Path| MachineSpec {
            vcpus: 1,
            memory_mib: 64,
            boot: BootSource { kernel: kernel.to_owned(), initramfs: None, extra_arguments: Vec::new() },
            drives: vec![Drive { name: "root".into(), path: disk.to_owned(), read_only: true }],
            guest_config: SecretBytes(Vec::new()),
            network: NetworkSpec::None,
        };
        files(&spec(&file, &file), Disks::Files).unwrap();
        for (kernel, disk, kind, field) in [
            (&*folder.path().join("none"), &*file, ErrorKind::NotFound, "boot.kernel"),
            (folder.path(), &file, ErrorKind::InvalidInput, "boot.kernel"),
            (&file, Path::new("here"), ErrorKind::InvalidInput, "drives.path"),
            (&file, Path::new("/dev/null"), ErrorKind::InvalidInput, "drives.path"),
        ] {
            let error = files(&spec(kernel, disk), Disks::FilesAndDevices).unwrap_err();
            assert_eq!((error.kind(), error.field()), (kind, Some(field)), "{error:?}");
        }
    }

    #[test]
    fn a_snapshots_name_stays_in_its_folder() {
        for name in ["", ".", "..", ".new-x", "a/b", "../x", "a\0", "ä", &"x".repeat(65)] {
            assert_eq!(snapshot_name(name).unwrap_err().kind(), ErrorKind::InvalidInput, "{name:?}");
        }
        snapshot_name("before-upgrade_1.0").unwrap();
    }
}
