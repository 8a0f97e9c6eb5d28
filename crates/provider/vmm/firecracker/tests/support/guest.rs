//! The guest: the test kernel, and an initramfs of one static program.

use std::path::PathBuf;
use std::process::Command;

use flames_test_guests::CpioWriter;
use serde_json::Value;

use super::SCRATCH;

const TEMPLATE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../../../../shared/guest-kernel/cpu-template.json");

/// What lets the test kernel run on a KVM that emulates a guest's kernel mode, and the C library's programs with it; on others it does
/// nothing of note. See `shared/guest-kernel/README.md`.
pub(crate) const ARGUMENTS: &str = "quiet loglevel=1 noxsave clearcpuid=141,308,295,151,158,288,59 lpj=5000000 tsc=reliable \
    no_timer_check random.trust_cpu=off GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-AVX,-AVX512F,-XSAVE,-XSAVEC";

/// Writes on its console from time to time, and answers each line on vsock port 1024: most by themselves.
const INIT: &str = r#"
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <unistd.h>
static struct sockaddr_vm at(unsigned cid, unsigned port) {
    struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_port = port, .svm_cid = cid };
    return address;
}
/* The first line of the disk with this letter. */
static void tell_disk(int to, char letter) {
    char path[] = "/dev/vd?", line[513] = "none\n";
    path[7] = letter;
    int disk = open(path, O_RDONLY);
    if (disk >= 0) { long count = read(disk, line, 512); line[count > 0 ? count : 0] = 0; close(disk); }
    char *end = strchr(line, '\n');
    if (end) end[1] = 0; else strcat(line, "\n");
    write(to, line, strlen(line));
}
static void serve(int to) {
    char buffer[4096];
    long count;
    while ((count = read(to, buffer, sizeof buffer)) > 0) {
        if (!strncmp(buffer, "reboot\n", 7)) reboot(RB_AUTOBOOT);
        else if (!strncmp(buffer, "disk ", 5)) tell_disk(to, buffer[5]);
        else if (!strncmp(buffer, "flood\n", 6)) {
            write(to, "flooding\n", 9);
            if (!fork()) for (;;) write(1, "a line of a flood of lines that does not end\n", 45);
        } else if (!strncmp(buffer, "call\n", 5)) {
            struct sockaddr_vm host = at(VMADDR_CID_HOST, 2000);
            int out = socket(AF_VSOCK, SOCK_STREAM, 0);
            if (!connect(out, (void *)&host, sizeof host)) write(out, "hello host", 10);
            close(out);
            write(to, "called\n", 7);
        } else write(to, buffer, count);
    }
}
int main(void) {
    int console = open("/dev/console", O_RDWR);
    if (console >= 0) { dup2(console, 0); dup2(console, 1); dup2(console, 2); }
    mount("dev", "/dev", "devtmpfs", 0, "");
    struct sockaddr_vm any = at(VMADDR_CID_ANY, 1024);
    int server = socket(AF_VSOCK, SOCK_STREAM, 0), one;
    if (bind(server, (void *)&any, sizeof any) || listen(server, 64)) write(1, "no vsock\n", 9);
    write(1, "the guest is up\n", 16);
    if (!fork()) for (unsigned n = 0;; n++) { usleep(200000); char line[32]; write(1, line, sprintf(line, "tick %u\n", n)); }
    while ((one = accept(server, 0, 0)) >= 0) {
        if (!fork()) { close(server); serve(one); _exit(0); }
        close(one);
    }
    for (;;) pause();
}
"#;

/// The template that the emulated kernel needs; on a machine without it the hardware's processor is shown as it is.
pub(crate) fn cpu_template() -> Option<Value> {
    let path = std::env::var_os("FLAMES_TEST_CPU_TEMPLATE").unwrap_or_else(|| TEMPLATE.into());
    let text = std::fs::read(path).ok()?;
    Some(serde_json::from_slice(&text).expect("the CPU template is JSON"))
}

pub(crate) fn initramfs() -> PathBuf {
    SCRATCH.made_of("initramfs", INIT.as_bytes(), |path| {
        let folder = tempfile::tempdir().unwrap();
        let (source, program) = (folder.path().join("init.c"), folder.path().join("init"));
        std::fs::write(&source, INIT).unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-static", "-O1", "-s", "-w", "-o"]).args([&program, &source]);
        assert!(compiler.status().unwrap().success(), "the test guest can be compiled");
        let mut archive = CpioWriter::new(Vec::new());
        archive.directory("dev", 0o755).unwrap();
        // The kernel opens it for init (Documentation/admin-guide/devices.txt).
        archive.character_device("dev/console", 0o600, 5, 1).unwrap();
        archive.file("init", 0o755, &std::fs::read(&program).unwrap()).unwrap();
        std::fs::write(path, archive.finish().unwrap()).unwrap();
    })
}
