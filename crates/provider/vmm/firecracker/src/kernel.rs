//! Whether files are what a machine can use: kernels, and the file systems on disks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use flames_error::{Error, Result};

const OPERATION: &str = "vmm.prepare";
/// A disk's size is a multiple of it (virtio 1.2, section 5.2).
pub(crate) const SECTOR: u64 = 512;

/// `InvalidInput` unless the file is a kernel that Firecracker boots: an uncompressed ELF image for x86-64.
pub(crate) fn check_kernel(path: &Path) -> Result<()> {
    let refuse = |sentence: &str| Err(Error::invalid(OPERATION, "boot.kernel", sentence));
    let mut head = [0; 1024];
    let length = File::open(path)
        .and_then(|file| read_up_to(&file, &mut head, 0))
        .map_err(|error| unreadable(path, error))?;
    let head = &head[..length];
    // Linux's x86 boot protocol: `HdrS` at 0x202.
    if head.get(0x202..0x206) == Some(b"HdrS") {
        return refuse(
            "The kernel is a `bzImage`. Firecracker boots the uncompressed `vmlinux`: extract it first.",
        );
    }
    if head.starts_with(b"\xfd7zXZ") || head.starts_with(b"\x1f\x8b") || head.starts_with(b"\x28\xb5\x2f\xfd")
    {
        return refuse("The kernel is compressed: unpack it first.");
    }
    if !head.starts_with(b"\x7fELF") {
        return refuse("The kernel is not an ELF `vmlinux`.");
    }
    // ELF: class 64 at offset 4, machine EM_X86_64 (62) at offset 18.
    if head.get(4) != Some(&2) || head.get(18..20) != Some(&[62, 0]) {
        return refuse("The kernel is not one for x86-64.");
    }
    Ok(())
}

/// `InvalidInput` when the file cannot be a disk: not of whole sectors, or smaller than the file system that stands on it.
pub(crate) fn check_disk(name: &str, path: &Path) -> Result<()> {
    let refuse = |sentence: String| Err(Error::invalid(OPERATION, "drives.path", sentence));
    let mut head = [0; 4096];
    let mut look = || {
        let file = File::open(path)?;
        let read = read_up_to(&file, &mut head, 0)?;
        Ok((file.metadata()?.len(), read))
    };
    let (length, read) = look().map_err(|error| unreadable(path, error))?;
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

fn unreadable(path: &Path, error: io::Error) -> Error {
    Error::internal(OPERATION, "a file cannot be read")
        .with_context("path", path.display())
        .with_source(error)
}

fn read_up_to(file: &File, buffer: &mut [u8], from: u64) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], from + length as u64)? {
            0 => break,
            count => length += count,
        }
    }
    Ok(length)
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
