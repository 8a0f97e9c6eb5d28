//! The machine as its guest sees it.

use std::os::unix::fs::PermissionsExt;

use flames_error::ErrorKind;
use flames_vmm::{Drive, ExitCause, NetworkSpec, Phase, PortForward, StartFrom, StopHow, Update, VmDriver};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Host, PATIENCE, console_with, name, phase, running, talk};

/// Names a kernel as a distribution packages it, compressed and with ACPI.
pub(crate) const DISTRIBUTION_KERNEL: &str = "FLAMES_TEST_DISTRIBUTION_KERNEL";

fn disk(host: &Host, name: &str, sectors: u64, read_only: bool) -> Drive {
    let path = host.root().with_file_name(format!("{name}, of \"1\".img"));
    std::fs::File::create(&path).unwrap().set_len(sectors * 512).unwrap();
    Drive { name: name.to_owned(), path, read_only }
}

pub(crate) async fn a_guest_sees_its_disks_in_order_with_their_names(host: &Host) {
    let incarnation = name("inc_disks");
    let driver = host.driver();
    let mut spec = host.spec();
    spec.drives =
        vec![disk(host, "root", 4096, true), disk(host, "data", 8192, false), disk(host, "more", 16, false)];
    running(&*driver, &incarnation, &spec).await;
    let console = console_with(&*driver, &incarnation, "the guest is up").await;
    for line in [
        "disk vda root read_only=1 size=4096",
        "disk vdb data read_only=0 size=8192",
        "disk vdc more read_only=0 size=16",
        "disk vdd flames-config read_only=1 size=1",
    ] {
        assert!(console.contains(line), "{line}: {console}");
    }
}

pub(crate) async fn a_guest_is_told_its_configuration_which_only_its_owner_reads(host: &Host) {
    let incarnation = name("inc_told");
    let driver = host.driver();
    running(&*driver, &incarnation, &host.spec()).await;
    let console = console_with(&*driver, &incarnation, "the guest is up").await;
    assert!(console.contains("told: what the guest is told"), "{console}");
    let file = host.path(&incarnation, "guest-config").metadata().unwrap();
    assert_eq!((file.permissions().mode() & 0o777, file.len()), (0o600, 512));
    let words = host.command_lines(&incarnation).concat().join(" ");
    assert!(!words.contains("what the guest is told"), "not on the command line");
    let spec = std::fs::read_to_string(host.path(&incarnation, "spec.json")).unwrap();
    assert!(spec.contains("\"guest_config\": []"), "not in the record: {spec}");
}

pub(crate) async fn a_forwarded_port_leads_into_the_guest(host: &Host) {
    let incarnation = name("inc_network");
    let driver = host.driver();
    let mut spec = host.spec();
    let forward = PortForward { listen: "127.0.0.1:0".parse().unwrap(), guest_port: 7 };
    spec.network = NetworkSpec::User { forwards: vec![forward], isolated: false };
    running(&*driver, &incarnation, &spec).await;
    console_with(&*driver, &incarnation, "the guest is up").await;
    let address = driver.observe(&incarnation).await.unwrap().prepared.forwards[&7];
    assert!(address.ip().is_loopback());
    let mut answer = [0; 6];
    let echo = async {
        // QEMU accepts at once and connects to the guest afterwards, so a try may end before the guest listens.
        loop {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            if stream.write_all(b"echo!\n").await.is_ok() && stream.read_exact(&mut answer).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, echo).await.expect("the guest echoes");
    assert_eq!(&answer, b"echo!\n");
}

pub(crate) async fn a_balloon_takes_memory_and_leaves_enough(host: &Host) {
    let incarnation = name("inc_balloon");
    let driver = host.driver();
    running(&*driver, &incarnation, &host.spec()).await;
    talk(&*driver, &incarnation).await;
    driver.update(&incarnation, &Update::BalloonMib(8)).await.unwrap();
    driver.update(&incarnation, &Update::BalloonMib(0)).await.unwrap();
    let error =
        driver.update(&incarnation, &Update::BalloonMib(host.spec().memory_mib - 4)).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("balloon_mib")));
    talk(&*driver, &incarnation).await;
}

pub(crate) async fn two_machines_may_not_write_one_disk(host: &Host) {
    let (first, second) = (name("inc_first"), name("inc_second"));
    let driver = host.driver();
    let mut spec = host.spec();
    spec.drives = vec![disk(host, "data", 4096, false)];
    running(&*driver, &first, &spec).await;
    driver.prepare(&second, &spec).await.unwrap();
    let error = driver.start(&second, StartFrom::Boot, false).await.unwrap_err();
    assert!(error.message().contains("lock"), "{error:?}");
    assert_eq!(phase(&*driver, &first).await, Phase::Running);
    driver.destroy(&first).await.unwrap();
    driver.start(&second, StartFrom::Boot, false).await.unwrap();
}

pub(crate) async fn a_distribution_kernel_boots_on_a_machine_with_acpi(host: &Host) {
    let incarnation = name("inc_distribution");
    let driver = host.driver();
    let mut spec = host.spec();
    spec.boot.kernel = std::env::var_os(DISTRIBUTION_KERNEL).unwrap().into();
    spec.memory_mib = 192;
    // More than a machine without ACPI has room for.
    spec.drives = (0..8).map(|number| disk(host, &format!("disk{number}"), 16, true)).collect();
    running(&*driver, &incarnation, &spec).await;
    console_with(&*driver, &incarnation, "the guest is up").await;
    assert!(host.command_lines(&incarnation).concat().iter().any(|word| word.contains("acpi=on")));
    // It has a power button, though nothing in this guest heeds it.
    let grace = std::time::Duration::from_millis(200);
    driver.stop(&incarnation, StopHow::PowerOff { grace }).await.unwrap();
    assert_eq!(driver.observe(&incarnation).await.unwrap().exit.unwrap().cause, ExitCause::Stopped);
}
