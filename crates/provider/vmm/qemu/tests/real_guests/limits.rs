//! What a guest, or a failing monitor, can cost its host.

use std::time::Duration;

use flames_error::ErrorKind;
use flames_vmm::{NetworkSpec, Phase, PortForward, StartFrom, VmDriver};
use tokio::time::{Instant, sleep};

use crate::support::{Host, ask, console_with, name, phase, running, talk};

pub(crate) async fn a_flood_on_the_console_stays_in_its_bounds_with_a_driver_and_without(host: &Host) {
    let incarnation = name("inc_flood");
    let limit = host.config().console_log_limit;
    let driver = host.driver();
    running(&*driver, &incarnation, &host.spec()).await;
    let mut stream = talk(&*driver, &incarnation).await;
    assert_eq!(ask(&mut stream, "flood").await, "flooding");
    let written = |driver: std::sync::Arc<dyn VmDriver>| async move {
        let chunk = driver.console(&name("inc_flood"), 0).await.unwrap();
        chunk.offset + chunk.data.len() as u64
    };
    let deadline = Instant::now() + Duration::from_secs(40);
    while written(driver.clone()).await < 3 * limit {
        assert!(host.console_on_disk(&incarnation) <= limit);
        assert!(Instant::now() < deadline, "the guest floods");
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(ask(&mut stream, "still there").await, "still there");
    drop((stream, driver));

    // The old driver's tasks end with it.
    sleep(Duration::from_millis(300)).await;
    let before = host.console_on_disk(&incarnation);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(host.console_on_disk(&incarnation), before, "nothing grows while no driver runs");

    let driver = host.driver();
    assert_eq!(driver.adopt().await.unwrap()[0].observation.phase, Phase::Running);
    let mut stream = talk(&*driver, &incarnation).await;
    assert_eq!(ask(&mut stream, "not held up").await, "not held up");
    let grown = written(driver.clone()).await;
    let deadline = Instant::now() + Duration::from_secs(40);
    while written(driver.clone()).await <= grown {
        assert!(Instant::now() < deadline, "the console goes on with the next driver");
        assert!(host.console_on_disk(&incarnation) <= limit);
        sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn the_monitors_last_words_are_told_and_bounded(host: &Host) {
    let incarnation = name("inc_words");
    let driver = host.driver();
    let mut spec = host.spec();
    // An ELF file for x86-64 that says of itself nothing that QEMU could boot.
    let kernel = host.path(&name("kernel"), "");
    let kernel = kernel.parent().unwrap().parent().unwrap().join("kernel");
    let mut elf = vec![0; 4096];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18] = 62;
    std::fs::write(&kernel, elf).unwrap();
    spec.boot.kernel = kernel;
    driver.prepare(&incarnation, &spec).await.unwrap();
    let error = driver.start(&incarnation, StartFrom::Boot, false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.message().contains("kernel"), "{error:?}");
    assert!(error.message().len() < 2048);
    assert_eq!(phase(&*driver, &incarnation).await, Phase::Prepared, "nothing of it has run");
    assert_eq!(host.monitors(), 0);
}

pub(crate) async fn a_port_that_is_taken_fails_the_start_and_not_the_incarnation(host: &Host) {
    let incarnation = name("inc_port");
    let mut spec = host.spec();
    let forward = PortForward { listen: "127.0.0.1:0".parse().unwrap(), guest_port: 7 };
    spec.network = NetworkSpec::User { forwards: vec![forward], isolated: false };
    let prepared = host.driver().prepare(&incarnation, &spec).await.unwrap();
    // The driver that held the port is gone.
    let taken = std::net::TcpListener::bind(prepared.forwards[&7]).unwrap();
    let driver = host.driver();
    let error = driver.start(&incarnation, StartFrom::Boot, false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error:?}");
    assert_eq!(phase(&*driver, &incarnation).await, Phase::Prepared);
    drop(taken);
    driver.start(&incarnation, StartFrom::Boot, false).await.unwrap();
    console_with(&*driver, &incarnation, "the guest is up").await;
    assert_eq!(driver.observe(&incarnation).await.unwrap().prepared, prepared);
}
