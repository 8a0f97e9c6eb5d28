//! Kernels: which files are one, and which modules a guest needs with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::elf::Elf;
use crate::error::{ImageError, ImageErrorKind, Result};

/// The largest kernel taken, in bytes.
pub const LARGEST_KERNEL: u64 = 512 << 20;

/// What a guest of ours may use, and loads when its kernel has it as a module: transports, block, network, console, vsock, entropy,
/// balloon, and the file systems of its root. What a kernel has built in or lacks is passed over.
pub const GUEST_MODULES: [&str; 12] = [
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "ext4",
    "overlay",
    "squashfs",
    "erofs",
];

/// The forms of a kernel that a virtual machine monitor loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelFormat {
    /// An uncompressed ELF for x86-64: Firecracker and QEMU (with a PVH note) load it.
    Vmlinux,
    /// A compressed image with the setup header of the x86 boot protocol: QEMU loads it, Firecracker does not.
    BzImage,
}

/// Tells a kernel's form by its bytes.
///
/// Errors: `NotAKernel` with what it looks like instead; `TooLarge`; `NotFound`, `Io`.
pub fn recognise(path: &Path) -> Result<KernelFormat> {
    let named = |error: ImageError| error.at_path(path);
    let file = File::open(path).map_err(|error| named(error.into()))?;
    let metadata = file.metadata()?;
    let not = |what: &str| {
        Err(named(ImageError::new(
            ImageErrorKind::NotAKernel,
            format!("{what}; a kernel is an uncompressed vmlinux (ELF, x86-64) or a bzImage"),
        )))
    };
    if !metadata.is_file() {
        return not("not a file");
    }
    if metadata.len() > LARGEST_KERNEL {
        return Err(named(ImageError::too_large(format!("a kernel is at most {LARGEST_KERNEL} bytes"))));
    }
    let mut start = Vec::new();
    file.take(64 << 10).read_to_end(&mut start)?;
    recognise_bytes(&start).or_else(not)
}

/// By the first bytes of a file; the error says what they are instead.
fn recognise_bytes(start: &[u8]) -> std::result::Result<KernelFormat, &'static str> {
    if let Some(elf) = Elf::parse(start) {
        return match (elf.kind(), elf.is_x86_64()) {
            (Some(2 | 3), true) if elf.segment_types().contains(&3) => Err("an ordinary program"),
            (Some(2 | 3), true) => Ok(KernelFormat::Vmlinux),
            (Some(2 | 3), false) => Err("an ELF file for another processor"),
            _ => Err("an ELF file that is no program, such as a kernel module"),
        };
    }
    // Documentation/arch/x86/boot.rst: 0xAA55 at 0x1FE, "HdrS" at 0x202.
    if start.get(0x202..0x206) == Some(b"HdrS") && start.get(0x1FE..0x200) == Some(&[0x55, 0xAA]) {
        return Ok(KernelFormat::BzImage);
    }
    Err(match start {
        [] => "an empty file",
        [0x1f, 0x8b, ..] => "a gzip file: unpack it first",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "an xz file: unpack it first",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "a zstd file: unpack it first",
        [0x7f, b'E', b'L', b'F', ..] => "an ELF file that is not for x86-64",
        [b'#', b'!', ..] => "a script",
        [b'!', b'<', b'a', b'r', b'c', b'h', b'>', ..] => "a package or library archive",
        _ => "none of the known forms",
    })
}

/// The modules named, with all that they depend on, in the order in which they must be loaded. `folder` is a kernel's
/// `lib/modules/<version>`. Dependencies are read from the modules themselves, since a package's `modules.dep` is only made at its
/// installation. Names that are built in, or that this kernel lacks, are passed over.
///
/// Errors: `Unsupported` for compressed modules (unpack them first); `Malformed` when a dependency is missing; `Io`.
pub fn ordered_modules(folder: &Path, wanted: &[&str]) -> Result<Vec<PathBuf>> {
    let mut known = BTreeMap::new();
    find_modules(folder, &mut known, 0)?;
    let mut order = Vec::new();
    let mut done = BTreeSet::new();
    for name in wanted {
        add_module(&normal(name), &known, &mut order, &mut done, true)?;
    }
    Ok(order)
}

/// A module's name in file names may have `-` where its real one has `_`.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn find_modules(folder: &Path, known: &mut BTreeMap<String, PathBuf>, depth: usize) -> Result<()> {
    if depth > 16 {
        return Ok(());
    }
    let listing = fs::read_dir(folder).map_err(|error| ImageError::from(error).at_path(folder))?;
    for item in listing {
        let item = item?;
        let path = item.path();
        // `build` and `source` are links to elsewhere.
        if item.file_type()?.is_dir() {
            find_modules(&path, known, depth + 1)?;
        } else if let Some(name) = item.file_name().to_str() {
            let stem =
                name.split_once(".ko").filter(|(_, rest)| matches!(*rest, "" | ".xz" | ".zst" | ".gz"));
            if let Some((stem, _)) = stem {
                known.insert(normal(stem), path);
            }
        }
    }
    Ok(())
}

fn add_module(
    name: &str,
    known: &BTreeMap<String, PathBuf>,
    order: &mut Vec<PathBuf>,
    done: &mut BTreeSet<String>,
    may_lack: bool,
) -> Result<()> {
    if !done.insert(name.to_owned()) {
        return Ok(());
    }
    let Some(path) = known.get(name) else {
        if may_lack {
            return Ok(());
        }
        return Err(ImageError::malformed("another module depends on this one, and it is not there")
            .at(name.as_bytes()));
    };
    if path.extension().is_none_or(|extension| extension != "ko") {
        return Err(ImageError::unsupported("a compressed module; unpack it first").at_path(path));
    }
    let bytes = fs::read(path)?;
    for needed in dependencies(&bytes).map_err(|error| error.at_path(path))? {
        add_module(&normal(&needed), known, order, done, false)?;
    }
    order.push(path.clone());
    Ok(())
}

/// The names in the `depends=` entry of a module's `.modinfo`.
fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    let section = Elf::parse(module).and_then(|elf| elf.section(b".modinfo"));
    let section = section.ok_or_else(|| ImageError::malformed("not a kernel module"))?;
    let entries = section.split(|byte| *byte == 0);
    let names = entries.filter_map(|entry| entry.strip_prefix(b"depends="));
    Ok(names
        .flat_map(|list| list.split(|byte| *byte == b','))
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_kernel_is_refused_with_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        let program = fs::read("/proc/self/exe").unwrap();
        let cases: [(&[u8], &str); 5] = [
            (b"", "an empty file"),
            (b"#!/bin/sh\n", "a script"),
            (b"\x1f\x8b\x08 and so on", "a gzip file"),
            (&program, "an ordinary program"),
            (&[0; 4096], "none of the known forms"),
        ];
        for (bytes, what) in cases {
            fs::write(&path, bytes).unwrap();
            let error = recognise(&path).unwrap_err();
            assert_eq!(error.kind, ImageErrorKind::NotAKernel);
            assert!(error.message.contains(what), "{error}");
        }
        assert_eq!(recognise(folder.path()).unwrap_err().kind, ImageErrorKind::NotAKernel);
        assert_eq!(recognise(&folder.path().join("none")).unwrap_err().kind, ImageErrorKind::NotFound);
    }

    #[test]
    fn a_bzimage_is_known_by_its_setup_header() {
        let mut bytes = vec![0u8; 0x300];
        bytes[0x1FE..0x206].copy_from_slice(b"\x55\xAAeeHdrS");
        assert_eq!(recognise_bytes(&bytes), Ok(KernelFormat::BzImage));
        bytes[0x202] = b'h';
        assert!(recognise_bytes(&bytes).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 64..512)) {
            let _ = recognise_bytes(&bytes);
            bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
            let _ = recognise_bytes(&bytes);
            let _ = dependencies(&bytes);
        }
    }
}
