//! The guest: a kernel, and an initramfs of busybox and a script.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use flames_image::kernel::{GUEST_MODULES, ordered_modules};

use super::{find, made_once};

const BUSYBOX: &str = "/bin/busybox";
const KERNEL: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../../../../shared/guest-kernel/vmlinux-6.12-emulated.xz");

/// Tells its disks on the console, then answers each line at the agent's port: most by themselves.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
# A kernel that found no /dev/console in the initramfs has opened none.
exec </dev/console >/dev/console 2>&1
while read -r module; do insmod "$module" || echo "insmod $module failed"; done < /modules.list
# A driver that was just loaded finds its devices on its own time.
[ -s /modules.list ] && while [ ! -e /sys/block/vda/serial ] && [ $((tries=tries+1)) -lt 100 ]; do usleep 20000; done
for disk in /sys/block/vd*; do
    [ -e $disk/serial ] || continue
    echo "disk ${disk##*/} $(cat $disk/serial) read_only=$(cat $disk/ro) size=$(cat $disk/size)"
    [ "$(cat $disk/serial)" = flames-config ] && echo "told: $(head -n 1 /dev/${disk##*/})"
done
if [ -e /sys/class/net/eth0 ]; then
    ifconfig lo 127.0.0.1 up
    ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
    nc -ll -p 7 -e cat &
fi
[ -x /vsock ] && /vsock &
echo "the guest is up"
for port in /sys/class/virtio-ports/*; do
    [ "$(cat $port/name)" = flames.agent ] && agent=/dev/${port##*/}
done
[ -z "$agent" ] && exec sleep 100000
exec 3<>$agent
while :; do
    if read -r line <&3; then
        case "$line" in
            reboot) reboot -f ;;
            flood) (while :; do echo "a line of a flood of lines that does not end"; done >/dev/console) & echo flooding >&3 ;;
            *) echo "$line" >&3 ;;
        esac
    else
        # Nobody is connected on the host's side.
        usleep 20000
    fi
done
"#;

pub(crate) fn busybox_is_static() -> bool {
    // A program that is linked dynamically names its loader.
    std::fs::read(BUSYBOX).is_ok_and(|bytes| {
        let head = &bytes[..bytes.len().min(4096)];
        head.starts_with(b"\x7fELF") && !head.windows(8).any(|window| window == b"/ld-linu")
    })
}

/// Where the kernel comes from, or why there is none.
pub(crate) fn kernel_source() -> Result<PathBuf, String> {
    match std::env::var_os("FLAMES_TEST_KERNEL") {
        Some(path) if Path::new(&path).is_file() => Ok(path.into()),
        Some(path) => Err(format!("FLAMES_TEST_KERNEL names no file: {}", Path::new(&path).display())),
        None if !Path::new(KERNEL).is_file() => Err(format!("no FLAMES_TEST_KERNEL, and no {KERNEL}")),
        None if find("xz").is_none() => Err("`xz`, which unpacks the test kernel, is not on PATH".to_owned()),
        None => Ok(KERNEL.into()),
    }
}

pub(crate) fn kernel() -> PathBuf {
    let source = kernel_source().unwrap();
    if source != Path::new(KERNEL) {
        return source.canonicalize().unwrap();
    }
    let packed = source.metadata().unwrap();
    made_once(&format!("vmlinux-{}-{}", packed.size(), packed.mtime()), |path| {
        let unpacked = Command::new("xz").arg("-dc").arg(&source).output().unwrap();
        assert!(unpacked.status.success(), "the test kernel can be unpacked");
        std::fs::write(path, unpacked.stdout).unwrap();
    })
}

/// The modules that the test kernel needs, in the order in which they must be loaded.
fn modules() -> Vec<PathBuf> {
    std::env::var_os("FLAMES_TEST_KERNEL_MODULES")
        .map(|folder| ordered_modules(Path::new(&folder), &GUEST_MODULES).unwrap())
        .unwrap_or_default()
}

/// How much memory the test kernel needs.
pub(crate) fn memory_mib() -> u64 {
    // A distribution's kernel unpacks itself, and has a bigger initramfs.
    if modules().is_empty() { 64 } else { 192 }
}

pub(crate) fn initramfs() -> PathBuf {
    with_files("init", &[])
}

/// An initramfs with one more program.
pub(crate) fn initramfs_with(name: &str, program: &Path) -> PathBuf {
    with_files(name, &[(name, &std::fs::read(program).unwrap())])
}

fn with_files(name: &str, more: &[(&str, &[u8])]) -> PathBuf {
    let busybox = std::fs::read(BUSYBOX).unwrap();
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules", "proc", "sys"] {
        archive.add(folder, 0o040_755, &[]);
    }
    archive.add("bin/busybox", 0o100_755, &busybox);
    archive.add("init", 0o100_755, INIT.as_bytes());
    let mut list = String::new();
    for module in modules() {
        let path = format!("modules/{}", module.file_name().unwrap().to_str().unwrap());
        archive.add(&path, 0o100_644, &std::fs::read(module).unwrap());
        list.push_str(&format!("/{path}\n"));
    }
    archive.add("modules.list", 0o100_644, list.as_bytes());
    for (path, bytes) in more {
        archive.add(path, 0o100_755, bytes);
    }
    archive.add("TRAILER!!!", 0, &[]);
    // Named after its content, so that a changed script is never taken for the old one.
    let sum = archive
        .0
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    made_once(&format!("{name}-{sum:x}.cpio"), |path| std::fs::write(path, &archive.0).unwrap())
}

/// The kernel's initramfs format: cpio, "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add(&mut self, path: &str, mode: u32, content: &[u8]) {
        let inode = self.0.len() + 1;
        let fields = [inode, mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, path.len() + 1, 0];
        self.0.extend_from_slice(b"070701");
        for field in fields {
            write!(self.0, "{field:08x}").unwrap();
        }
        self.0.extend_from_slice(path.as_bytes());
        self.0.push(0);
        self.align();
        self.0.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}
