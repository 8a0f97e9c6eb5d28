//! What runs the guests' processors here, and how that is found out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use flames_error::{ErrorKind, Result};
use flames_vmm::{GuestStream, Phase, SecretBytes, Usability, VmDriver};
use flames_vmm_qemu::{Acceleration, AgentProbe, Deadlines, QemuConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Host, PATIENCE, name, phase, running, talk};

/// The test guest's agent echoes.
#[derive(Debug, Default)]
struct Echo {
    connected: AtomicU32,
}

#[async_trait]
impl AgentProbe for Echo {
    fn guest_config(&self) -> SecretBytes {
        SecretBytes(b"only a try\n".to_vec())
    }

    async fn first_message(&self, mut stream: GuestStream, guest_config: &SecretBytes) -> Result<()> {
        assert_eq!(guest_config.0, b"only a try\n");
        self.connected.fetch_add(1, Ordering::Relaxed);
        let failed = |error| flames_error::Error::unavailable("probe", "no echo").with_source(error);
        stream.write_all(b"are you there?\n").await.map_err(failed)?;
        stream.read_u8().await.map_err(failed).map(|_| ())
    }
}

fn automatic(host: &Host, probe: &Arc<Echo>) -> QemuConfig {
    QemuConfig {
        acceleration: Acceleration::Auto,
        probe: Some(Arc::clone(probe) as Arc<dyn AgentProbe>),
        deadlines: Deadlines { probe: Duration::from_secs(3), ..Deadlines::default() },
        ..host.config()
    }
}

pub(crate) async fn a_kernel_is_tried_under_kvm_once_and_the_outcome_kept(host: &Host) {
    let incarnation = name("inc_auto");
    let probe = Arc::new(Echo::default());
    let driver = host.driver_with(automatic(host, &probe));
    let before = driver.capabilities().await.unwrap();
    assert!(before.acceleration.starts_with("tcg: "), "{}", before.acceleration);

    driver.prepare(&incarnation, &host.spec()).await.unwrap();
    let tries = probe.connected.load(Ordering::Relaxed);
    let told = driver.capabilities().await.unwrap().acceleration;
    println!("report: acceleration here is {told}");
    if told.starts_with("tcg: ") {
        assert!(told.contains("/dev/kvm is there but the kernel ") && !told.contains('\n'), "{told}");
    } else {
        assert_eq!(told, "kvm: the kernel reached its agent");
    }
    let residue = host.residue();
    assert!(
        residue.iter().all(|left| !left.contains(".try-") && !left.starts_with("process")),
        "{residue:?}"
    );

    // Neither this driver nor the next tries the kernel again.
    let spec = host.spec();
    let again = driver.probe(&spec.boot.kernel, spec.boot.initramfs.as_deref()).await.unwrap();
    assert_eq!((again.kvm, &again.description), (told.starts_with("kvm"), &told));
    drop(driver);
    let driver = host.driver_with(automatic(host, &probe));
    assert_eq!(driver.probe(&spec.boot.kernel, spec.boot.initramfs.as_deref()).await.unwrap(), again);
    assert_eq!(probe.connected.load(Ordering::Relaxed), tries);

    // And what was decided runs.
    driver.start(&incarnation, flames_vmm::StartFrom::Boot, false).await.unwrap();
    talk(&driver, &incarnation).await;
}

/// Listens for a guest that never says anything.
#[derive(Debug)]
struct Deaf;

#[async_trait]
impl AgentProbe for Deaf {
    fn guest_config(&self) -> SecretBytes {
        SecretBytes(b"only a try\n".to_vec())
    }

    async fn first_message(&self, _stream: GuestStream, _guest_config: &SecretBytes) -> Result<()> {
        std::future::pending().await
    }
}

async fn eventually(what: &str, is: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn a_try_is_told_of_holds_nobody_up_and_takes_its_machine_along_when_given_up(host: &Host) {
    let config = QemuConfig {
        acceleration: Acceleration::Auto,
        probe: Some(Arc::new(Deaf)),
        deadlines: Deadlines { probe: Duration::from_secs(120), ..Deadlines::default() },
        ..host.config()
    };
    let driver = Arc::new(host.driver_with(config));
    assert_eq!(driver.waited_for(), None);
    let (trying, spec) = (Arc::clone(&driver), host.spec());
    let incarnation = name("inc_waits");
    let (preparing, of) = (Arc::clone(&driver), incarnation.clone());
    let prepare = tokio::spawn(async move { preparing.prepare(&of, &spec).await.map(drop) });
    eventually("the try runs", || host.monitors() == 1).await;
    let told = driver.waited_for().unwrap();
    assert!(told.contains("KVM") && told.contains("at most 120 s"), "{told}");
    let other = host.driver();
    assert!(other.adopt().await.unwrap().is_empty());
    assert_eq!(host.monitors(), 1, "a try under way is not taken for left behind");

    prepare.abort();
    assert!(prepare.await.unwrap_err().is_cancelled());
    eventually("its machine is gone", || host.monitors() == 0).await;
    eventually("its folder is gone", || host.residue().is_empty()).await;
    assert_eq!(trying.waited_for(), None);
}

pub(crate) async fn without_a_listener_for_the_agent_there_is_no_kvm(host: &Host) {
    let driver = host.driver_with(QemuConfig { acceleration: Acceleration::Auto, ..host.config() });
    let told = driver.capabilities().await.unwrap();
    assert!(told.acceleration.starts_with("tcg: "), "{}", told.acceleration);
    assert!(told.acceleration.contains("/dev/kvm"), "{}", told.acceleration);
    let incarnation = name("inc_tcg");
    running(&driver, &incarnation, &host.spec()).await;
    assert_eq!(phase(&driver, &incarnation).await, Phase::Running);
    assert!(host.command_lines(&incarnation).concat().contains(&"tcg,thread=multi".to_owned()));
    assert_eq!(driver.capabilities().await.unwrap(), told);
}

pub(crate) async fn without_qemu_the_driver_says_what_to_install(host: &Host) {
    let driver = host.driver_with(QemuConfig { binary: "no-such-qemu".into(), ..host.config() });
    let told = driver.capabilities().await.unwrap();
    let Usability::Unusable(why) = told.usability else { panic!("it cannot be usable") };
    assert!(why.contains("install"), "{why}");
    assert_eq!(told.version, None);
    let error = driver.prepare(&name("inc_none"), &host.spec()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    assert_eq!(error.user_message(), Some(&*why));
    assert!(driver.adopt().await.unwrap().is_empty());

    let driver = host.driver_with(QemuConfig { binary: "/bin/true".into(), ..host.config() });
    assert!(matches!(driver.capabilities().await.unwrap().usability, Usability::Unusable(_)));
}
