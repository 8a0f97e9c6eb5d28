//! A real kernel under QEMU takes what is made here: the initramfs, the image as a read-only root, and the writable layer over it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Tar, check, have, make_from_bytes, program};
use flames_image::cpio::CpioWriter;
use flames_image::debian::unpacked_xz;
use flames_image::kernel::{GUEST_MODULES, KernelFormat, ordered_modules, recognise};
use flames_image::writable::ensure;

const BOOT_DEADLINE: Duration = Duration::from_secs(120);

/// What the guest runs as its first program: loads modules, lays the overlay, shows that both layers are there.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
while read -r module; do insmod "$module" || echo "insmod $module failed"; done < /flames/modules.list
for try in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vdb ] && break; sleep 0.2; done
mkdir -p /lower /upper /newroot
mount -t ext4 -o ro /dev/vda /lower && mount -t ext4 /dev/vdb /upper
mkdir -p /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /newroot
echo "read: $(cat /newroot/etc/greeting)"
echo changed > /newroot/etc/greeting && rm /newroot/etc/other && echo "wrote: $(cat /newroot/etc/greeting)"
ls /newroot/etc/other 2>/dev/null || echo "removed"
umount /newroot; umount /upper; umount /lower; sync
echo "done: $(uname -r)"
reboot -f
"#;

const WITH_ACPI: &str = "microvm,pit=on,pic=on,rtc=on,acpi=on";
const WITHOUT_ACPI: &str = "microvm,acpi=off,pit=on,pic=on,rtc=on";

struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The test kernel: `FLAMES_TEST_KERNEL`, else the one beside the repository.
fn test_kernel(cache: &Path) -> Option<PathBuf> {
    let beside =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/guest-kernel/vmlinux-6.12-emulated.xz");
    let named = std::env::var_os("FLAMES_TEST_KERNEL").map(PathBuf::from);
    let kernel = named.unwrap_or(beside);
    if !kernel.is_file() {
        let required = std::env::var("FLAMES_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == "kernel"), "no test kernel: set FLAMES_TEST_KERNEL");
        eprintln!("skipped: this test needs a kernel (FLAMES_TEST_KERNEL)");
        return None;
    }
    Some(unpacked_xz(&kernel, cache).unwrap())
}

fn initramfs(modules: &[PathBuf]) -> Vec<u8> {
    let mut archive = CpioWriter::new(Vec::new());
    for folder in ["bin", "dev", "proc", "sys", "flames"] {
        archive.directory(folder, 0o755).unwrap();
    }
    archive.character_device("dev/console", 0o600, 5, 1).unwrap();
    archive.file("bin/busybox", 0o755, &fs::read(program("busybox").unwrap()).unwrap()).unwrap();
    archive.file("init", 0o755, INIT.as_bytes()).unwrap();
    let mut list = String::new();
    for module in modules {
        let name = format!("flames/{}", module.file_name().unwrap().to_str().unwrap());
        archive.file(&name, 0o644, &fs::read(module).unwrap()).unwrap();
        list.push_str(&format!("/{name}\n"));
    }
    archive.file("flames/modules.list", 0o644, list.as_bytes()).unwrap();
    archive.finish().unwrap()
}

/// Boots, and answers what the guest wrote to its console until it went down.
fn boot(kernel: &Path, modules: &[PathBuf], machine: &str, arguments: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let image =
        Tar::new().directory("etc").file("etc/greeting", b"hello from below\n").file("etc/other", b"x\n");
    let made = make_from_bytes(&image.done(), |_| {}).unwrap();
    ensure(&at("upper"), 64 << 20).unwrap();
    fs::write(at("initramfs"), initramfs(modules)).unwrap();
    fs::set_permissions(&made.image, fs::Permissions::from_mode(0o444)).unwrap();
    let drive = |path: &Path, id: &str, options: &str| {
        format!("file={},if=none,id={id},format=raw{options}", path.display())
    };
    let child = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg", "-cpu", "qemu64", "-m", "256M", "-smp", "1", "-M", machine])
        .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(at("initramfs"))
        .args(["-drive", &drive(&made.image, "a", ",readonly=on"), "-device", "virtio-blk-device,drive=a"])
        .args(["-drive", &drive(&at("upper"), "b", ""), "-device", "virtio-blk-device,drive=b"])
        .arg("-serial")
        .arg(format!("file:{}", at("console").display()))
        .args(["-append", &format!("console=ttyS0 quiet panic=-1 reboot=t {arguments}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut guest = Guest(child);
    let until = Instant::now() + BOOT_DEADLINE;
    let console = || String::from_utf8_lossy(&fs::read(at("console")).unwrap_or_default()).into_owned();
    while guest.0.try_wait().unwrap().is_none() {
        assert!(Instant::now() < until, "the guest did not end: {}", console());
        std::thread::sleep(Duration::from_millis(50));
    }
    // What the kernel of the guest wrote is sound by the tools of the host.
    if have("mke2fs") {
        check(&at("upper"));
        check(&made.image);
    }
    console()
}

fn expect(console: &str) {
    for line in ["read: hello from below", "wrote: changed", "removed", "done: "] {
        assert!(
            console.lines().any(|found| found.trim_end().starts_with(line)),
            "no {line:?} in:\n{console}"
        );
    }
    assert!(!console.contains("failed") && !console.contains("EXT4-fs error"), "{console}");
}

#[test]
fn a_guest_reads_the_image_and_writes_to_its_own_layer() {
    let folder = tempfile::tempdir().unwrap();
    if !have("qemu") || !have("busybox") {
        return;
    }
    let Some(kernel) = test_kernel(folder.path()) else { return };
    let modules = std::env::var_os("FLAMES_TEST_KERNEL_MODULES")
        .map(|folder| ordered_modules(Path::new(&folder), &GUEST_MODULES).unwrap())
        .unwrap_or_default();
    let console = match recognise(&kernel).unwrap() {
        KernelFormat::Vmlinux => boot(&kernel, &modules, WITHOUT_ACPI, ""),
        // A distribution's.
        KernelFormat::BzImage => boot(&kernel, &modules, WITH_ACPI, &early_clock_rate()),
    };
    expect(&console);
}

/// With ACPI a guest calibrates its clock against a device that emulation serves too slowly, unless it is told the rate.
fn early_clock_rate() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap();
    let rate = cpus.lines().find_map(|line| line.strip_prefix("cpu MHz")).unwrap();
    let rate = rate.trim_start_matches([' ', '\t', ':']).parse::<f64>().unwrap();
    format!("tsc_early_khz={}", (rate * 1000.0) as u64)
}

/// Whether what downloads from the archives of this machine's apt is to run: `cargo xtask test --full`.
fn full(what: &str) -> bool {
    let full = std::env::var_os("FLAMES_FULL").is_some();
    if !full {
        eprintln!("skipped: it {what} (`cargo xtask test --full` runs it)");
    }
    full
}

#[test]
fn debian_s_kernel_loads_its_modules_in_the_order_given() {
    if !full("downloads 27 MB with apt") || !have("qemu") || !have("busybox") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let first = flames_image::debian::kernel(folder.path(), &mut |what| eprintln!("{what}")).unwrap();
    assert_eq!(flames_image::debian::kernel(folder.path(), &mut |_| panic!("not again")).unwrap(), first);
    assert_eq!(recognise(&first.kernel).unwrap(), KernelFormat::BzImage);
    eprintln!("{:#?}", first.modules);
    expect(&boot(&first.kernel, &first.modules, WITH_ACPI, &early_clock_rate()));
}

#[test]
fn a_base_image_is_made_from_debian_packages() {
    if !full("downloads the base system with apt, 40 MB") || !have("mmdebstrap") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let tar = flames_image::debian::base_tar(folder.path(), &mut |what| eprintln!("{what}")).unwrap();
    eprintln!("{:?}, {} bytes", started.elapsed(), fs::metadata(&tar).unwrap().len());
    assert!(fs::metadata(&tar).unwrap().len() < 120 << 20);
    assert_eq!(flames_image::debian::base_tar(folder.path(), &mut |_| panic!("not again")).unwrap(), tar);
    let made = common::make(&flames_image::ConversionRequest::new(&tar)).unwrap();
    eprintln!(
        "{:?} {} bytes, compressed {}",
        started.elapsed(),
        made.result.size,
        made.result.compressed_size
    );
    if have("mke2fs") {
        check(&made.image);
    }
    if have("root") {
        let mounted = common::Mounted::new(&made.image, "ro,loop");
        assert!(mounted.text("etc/os-release").contains("Debian"));
        assert!(mounted.has("bin/bash") && mounted.has("usr/bin/ls"));
    }
}
