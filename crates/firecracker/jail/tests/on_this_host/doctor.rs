//! The checks of this host itself.

use std::sync::Arc;

use flames_clock::SystemClock;
use flames_firecracker_jail::{DoctorConfig, Outcome, checks};

use crate::support::Host;

pub(crate) async fn the_doctor_finds_what_this_host_has(host: &Host) {
    let supports = |version: &str| match version.strip_prefix('v') {
        Some(number) => Ok(number.to_owned()),
        None => Err("Install a release.".to_owned()),
    };
    let config = DoctorConfig {
        images: Some(host.folder.path().to_owned()),
        ..DoctorConfig::new(host.config.clone(), Arc::new(supports))
    };
    let found = checks(&config, &SystemClock::new()).await;
    for check in &found {
        println!("{:<16} {:<8} {}", check.name, check.outcome, check.found);
    }
    let outcome = |name: &str| found.iter().find(|check| check.name == name).unwrap().outcome;
    // What the other cases need, and have.
    for name in ["root", "kvm", "firecracker", "jailer", "versions", "users"] {
        assert_eq!(outcome(name), Outcome::Ok, "{name}");
    }
    assert_ne!(outcome("cgroups"), Outcome::Fatal);
    let elsewhere = DoctorConfig { images: Some("/dev/shm".into()), ..config };
    let found = checks(&elsewhere, &SystemClock::new()).await;
    let file_system = found.iter().find(|check| check.name == "file-system").unwrap();
    assert_eq!(file_system.outcome, Outcome::Warning, "{file_system:?}");
}
