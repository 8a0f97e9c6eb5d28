//! A host and a driver on simulated time.

#![allow(clippy::unwrap_used, dead_code)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flames_clock::{SeededRandom, SimulatedClock};
use flames_error::{ErrorKind, Result};
use flames_vmm::{
    BootSource, IncarnationName, MachineSpec, NetworkSpec, Observation, SecretBytes, StartFrom, VmDriver,
};
use flames_vmm_simulated::{SimulatedConfig, SimulatedDriver, SimulatedHost};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn name(text: &str) -> IncarnationName {
    IncarnationName::new(text).unwrap()
}

pub(crate) fn spec() -> MachineSpec {
    MachineSpec {
        vcpus: 2,
        memory_mib: 256,
        boot: BootSource { kernel: PathBuf::from("/vmlinux"), initramfs: None, extra_arguments: Vec::new() },
        drives: Vec::new(),
        guest_config: SecretBytes(b"key".to_vec()),
        network: NetworkSpec::None,
    }
}

pub(crate) fn host(config: SimulatedConfig) -> (Arc<SimulatedHost>, SimulatedDriver) {
    seeded(config, 7)
}

pub(crate) fn seeded(config: SimulatedConfig, seed: u64) -> (Arc<SimulatedHost>, SimulatedDriver) {
    let clock = Arc::new(SimulatedClock::at_fixed_start());
    let host = SimulatedHost::new(config, clock, Arc::new(SeededRandom::new(seed)));
    let driver = SimulatedDriver::new(Arc::clone(&host));
    (host, driver)
}

pub(crate) async fn start(driver: &SimulatedDriver, name: &IncarnationName) -> Result<()> {
    driver.start(name, StartFrom::Boot, false).await
}

pub(crate) async fn running(driver: &SimulatedDriver, text: &str) -> IncarnationName {
    let name = name(text);
    driver.prepare(&name, &spec()).await.unwrap();
    start(driver, &name).await.unwrap();
    name
}

pub(crate) async fn observe(driver: &SimulatedDriver, name: &IncarnationName) -> Observation {
    driver.observe(name).await.unwrap()
}

#[track_caller]
pub(crate) fn refused<T>(answer: Result<T>, kind: ErrorKind) {
    match answer {
        Ok(_) => panic!("it succeeded, but should be {kind}"),
        Err(error) => assert_eq!(error.kind(), kind, "{error:?}"),
    }
}

pub(crate) async fn given_up<T>(after: Duration, call: impl Future<Output = T>) {
    assert!(tokio::time::timeout(after, call).await.is_err(), "the call was to be given up");
}

pub(crate) async fn pass(duration: Duration) {
    tokio::time::sleep(duration).await;
}
