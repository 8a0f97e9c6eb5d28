//! Whether files are what a machine can use: kernels, and the file systems on disks.

use std::fs::File;
use std::io;
use std::path::Path;

use flames_error::{Error, Result};
use flames_vmm_local::check::{self, KernelFile, SECTOR, read_head};

const OPERATION: &str = "vmm.prepare";

/// `InvalidInput` unless the file is a kernel that Firecracker boots: an uncompressed ELF image for x86-64.
pub(crate) fn check_kernel(path: &Path) -> Result<()> {
    let sentence = match check::kernel(path)? {
        KernelFile::Vmlinux => return Ok(()),
        KernelFile::BzImage => {
            "The kernel is a `bzImage`. Firecracker boots the uncompressed `vmlinux`: extract it first."
        }
        KernelFile::None => "The kernel is not an ELF `vmlinux`.",
    };
    Err(Error::invalid(OPERATION, "boot.kernel", sentence))
}

/// `InvalidInput` when the file cannot be a disk: not of whole sectors, or smaller than the file system that stands on it.
pub(crate) fn check_disk(name: &str, path: &Path) -> Result<()> {
    let refuse = |sentence: String| Err(Error::invalid(OPERATION, "drives.path", sentence));
    let mut head = [0; 4096];
    let mut look = || {
        let file = File::open(path)?;
        let read = read_head(&file, &mut head)?;
        Ok::<_, io::Error>((file.metadata()?.len(), read))
    };
    let (length, read) = look().map_err(|error| {
        Error::internal(OPERATION, "a file cannot be read")
            .with_context("path", path.display())
            .with_source(error)
    })?;
    if length == 0 || length % SECTOR != 0 {
        return refuse(format!(
            "The disk `{name}` has {length} bytes; a disk has a whole number of sectors of {SECTOR} bytes, and at least one."
        ));
    }
    match file_system_bytes(&head[..read]) {
        Some(needed) if needed > length => refuse(format!(
            "The disk `{name}` has {length} bytes, and the image on it needs {needed}. Make the disk larger, or use a smaller image."
        )),
        _ => Ok(()),
    }
}

/// How many bytes the file system takes of which this is the beginning, where it is one that tells.
fn file_system_bytes(head: &[u8]) -> Option<u64> {
    let u32_at = |at: usize| head.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let u64_at = |at: usize| head.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    // Documentation/filesystems/squashfs.rst; `struct squashfs_super_block`: s_magic, bytes_used at 40.
    if head.starts_with(b"hsqs") {
        return u64_at(40);
    }
    // Documentation/filesystems/ext4/super.rst: the super block is at 1024; s_blocks_count_lo at 4, s_log_block_size at 0x18,
    // s_magic at 0x38, s_feature_incompat at 0x60 (0x80: 64bit), s_blocks_count_hi at 0x150.
    const SUPER: usize = 1024;
    if head.get(SUPER + 0x38..SUPER + 0x3a) == Some(&[0x53, 0xef]) {
        let block = 1024_u64.checked_shl(u32_at(SUPER + 0x18)?)?;
        let is_64_bit = u32_at(SUPER + 0x60)? & 0x80 != 0;
        let high = if is_64_bit { u64::from(u32_at(SUPER + 0x150)?) << 32 } else { 0 };
        return (high | u64::from(u32_at(SUPER + 4)?)).checked_mul(block);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use flames_error::ErrorKind;

    fn written(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    #[test]
    fn only_an_uncompressed_elf_image_is_a_kernel() {
        let mut elf = vec![0; 1024];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[18] = 62;
        let (_folder, path) = written(&elf);
        check_kernel(&path).unwrap();
        let mut image = vec![0; 1024];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        for (bytes, words) in [
            (&b""[..], "not an ELF"),
            (&b"#!/bin/sh\n"[..], "not an ELF"),
            (&b"\xfd7zXZ\0"[..], "compressed"),
            (&b"\x7fELF\x01"[..], "x86-64"),
            (&image[..], "bzImage"),
        ] {
            let (_folder, path) = written(bytes);
            let error = check_kernel(&path).unwrap_err();
            assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("boot.kernel")));
            assert!(error.user_message().unwrap().contains(words), "{error:?}");
        }
    }

    #[test]
    fn a_disk_that_is_smaller_than_the_image_on_it_is_refused_with_both_sizes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        File::create(&path).unwrap().set_len(8 << 20).unwrap();
        check_disk("root", &path).unwrap();
        let made = std::process::Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&path).status();
        if made.is_ok_and(|status| status.success()) {
            check_disk("root", &path).unwrap();
            std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4 << 20).unwrap();
            let error = check_disk("root", &path).unwrap_err();
            let sentence = error.user_message().unwrap();
            assert!(sentence.contains("8388608") && sentence.contains("4194304"), "{sentence}");
        }
        let mut squashed = vec![0; 4096];
        squashed[..4].copy_from_slice(b"hsqs");
        squashed[40..48].copy_from_slice(&5000_u64.to_le_bytes());
        assert_eq!(file_system_bytes(&squashed), Some(5000));
        for length in [0, 100] {
            let (_folder, path) = written(&vec![0; length]);
            assert_eq!(check_disk("root", &path).unwrap_err().field(), Some("drives.path"));
        }
    }
}
