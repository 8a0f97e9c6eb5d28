//! vsock, where its helper is installed.

use std::process::Command;

use flames_error::ErrorKind;
use flames_vmm::{AGENT_PORT, AgentChannel, Phase, SnapshotKind, VmDriver};
use flames_vmm_qemu::{Channel, QemuConfig};
use futures::StreamExt;
use tokio::io::AsyncReadExt;

use crate::support::{Host, ask, console_with, name, phase, running};

/// Says hello to its host's port 2000, and echoes on port 1024, each connection in a process of its own.
const SERVER: &str = r#"
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <unistd.h>
static struct sockaddr_vm at(unsigned cid, unsigned port) {
    struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_port = port, .svm_cid = cid };
    return address;
}
int main(void) {
    struct sockaddr_vm any = at(VMADDR_CID_ANY, 1024), host = at(VMADDR_CID_HOST, 2000);
    int server = socket(AF_VSOCK, SOCK_STREAM, 0), one;
    if (bind(server, (void *)&any, sizeof any) || listen(server, 16)) return 1;
    if (!fork()) {
        for (;;) {
            int out = socket(AF_VSOCK, SOCK_STREAM, 0);
            if (!connect(out, (void *)&host, sizeof host)) { write(out, "hello host", 10); close(out); return 0; }
            close(out);
            usleep(50000);
        }
    }
    while ((one = accept(server, 0, 0)) >= 0) {
        if (!fork()) {
            char buffer[4096];
            long count;
            while ((count = read(one, buffer, sizeof buffer)) > 0) write(one, buffer, count);
            return 0;
        }
        close(one);
    }
    return 1;
}
"#;

pub(crate) async fn a_guest_is_reached_over_vsock_by_many_connections(host: &Host) {
    let folder = tempfile::tempdir().unwrap();
    let (source, server) = (folder.path().join("server.c"), folder.path().join("server"));
    std::fs::write(&source, SERVER).unwrap();
    let built =
        Command::new("cc").args(["-static", "-O1", "-w", "-o"]).args([&server, &source]).status().unwrap();
    assert!(built.success());

    let incarnation = name("inc_vsock");
    let config = || QemuConfig { channel: Channel::Vsock, ..host.config() };
    let driver = host.driver_with(config());
    let told = driver.capabilities().await.unwrap();
    assert_eq!((told.agent_channel, told.snapshot), (AgentChannel::Multiplexed, false));
    let mut spec = host.spec();
    spec.boot.initramfs = Some(crate::support::initramfs_with("vsock", &server));
    driver.prepare(&incarnation, &spec).await.unwrap();
    let mut from_guest = driver.accept(&incarnation, 2000).await.unwrap();
    running(&driver, &incarnation, &spec).await;
    console_with(&driver, &incarnation, "the guest is up").await;
    let mut hello = String::new();
    from_guest.next().await.unwrap().read_to_string(&mut hello).await.unwrap();
    assert_eq!(hello, "hello host");

    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(driver.connect(&incarnation, AGENT_PORT).await.unwrap());
    }
    for (index, stream) in streams.iter_mut().enumerate() {
        assert_eq!(ask(stream, &format!("number {index}")).await, format!("number {index}"));
    }
    let silent = driver.connect(&incarnation, 4000).await;
    assert!(silent.is_err_and(|error| error.kind() == ErrorKind::Unavailable));
    let saved = driver.snapshot(&incarnation, "some", SnapshotKind::Full).await.unwrap_err();
    assert_eq!(saved.kind(), ErrorKind::NotSupported);

    drop((streams, driver));
    let driver = host.driver_with(config());
    assert_eq!(driver.adopt().await.unwrap()[0].observation.phase, Phase::Running);
    let mut stream = driver.connect(&incarnation, AGENT_PORT).await.unwrap();
    assert_eq!(ask(&mut stream, "to the next driver").await, "to the next driver");
    assert_eq!(host.pids(&incarnation).len(), 2, "the monitor and its helper");
    host.kill(&incarnation);
    crate::support::until(&driver, &incarnation, Phase::Exited).await;
    assert_eq!(phase(&driver, &incarnation).await, Phase::Exited);
    driver.destroy(&incarnation).await.unwrap();
    assert!(host.residue().is_empty());
}
