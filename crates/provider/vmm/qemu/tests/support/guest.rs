//! The guest: a kernel, and an initramfs of busybox and a script.

use std::path::{Path, PathBuf};

use flames_image::kernel::{GUEST_MODULES, ordered_modules};
use flames_test_guests::CpioWriter;

use super::SCRATCH;

const BUSYBOX: &str = "/bin/busybox";

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
    let mut archive = CpioWriter::new(Vec::new());
    for folder in ["bin", "dev", "modules", "proc", "sys"] {
        archive.directory(folder, 0o755).unwrap();
    }
    archive.file("bin/busybox", 0o755, &busybox).unwrap();
    archive.file("init", 0o755, INIT.as_bytes()).unwrap();
    let mut list = String::new();
    for module in modules() {
        let path = format!("modules/{}", module.file_name().unwrap().to_str().unwrap());
        archive.file(&path, 0o644, &std::fs::read(module).unwrap()).unwrap();
        list.push_str(&format!("/{path}\n"));
    }
    archive.file("modules.list", 0o644, list.as_bytes()).unwrap();
    for (path, bytes) in more {
        archive.file(path, 0o755, bytes).unwrap();
    }
    let archive = archive.finish().unwrap();
    SCRATCH.made_of(name, &archive, |path| std::fs::write(path, &archive).unwrap())
}
