//! Policies of guests that run. The host of the networks is a namespace of the test's own.

use flames_error::ErrorKind;
use flames_vmm::{Bandwidth, Egress, NetworkPolicy, Phase, Update, VmDriver};

use crate::support::world::{World, admits_all, rules};
use crate::support::{Host, ask, base, driver_of, name, phase, running, talk};

fn allow() -> NetworkPolicy {
    NetworkPolicy {
        egress: Egress::Allow { named: Vec::new() },
        upload: Some(Bandwidth { bytes_per_second: 1_000_000, burst_bytes: 100_000 }),
        ..NetworkPolicy::default()
    }
}

pub(crate) async fn a_policy_is_replaced_while_its_guest_runs_and_outlives_the_driver(host: &Host) {
    let world = World::new(&host.cluster);
    let driver = driver_of(world.networked(host.config()));
    let incarnation = name("inc_policy");
    driver.prepare(&incarnation, &base::networked_spec(3)).await.unwrap();
    driver.start(&incarnation, base::networked(), false).await.unwrap();
    let mut stream = talk(&driver, &incarnation).await;
    assert!(!admits_all(&rules(&host.cluster, &incarnation)));
    for _ in 0..2 {
        driver.update(&incarnation, &Update::Network(allow())).await.unwrap();
        assert!(admits_all(&rules(&host.cluster, &incarnation)));
    }
    assert_eq!(ask(&mut stream, "still there?").await, "still there?");
    drop((stream, driver));
    // As somebody else would leave it: what adopts the machine puts it under the policy that it was put under last.
    let driver = driver_of(world.networked(host.config()));
    driver.adopt().await.unwrap();
    assert_eq!(phase(&driver, &incarnation).await, Phase::Running);
    assert!(admits_all(&rules(&host.cluster, &incarnation)));
    driver.prepare(&incarnation, &base::networked_spec(3)).await.unwrap();
    driver.pause(&incarnation).await.unwrap();
    driver.update(&incarnation, &Update::Network(NetworkPolicy::default())).await.unwrap();
    assert!(!admits_all(&rules(&host.cluster, &incarnation)));
    assert_eq!(phase(&driver, &incarnation).await, Phase::Paused);
    driver.destroy(&incarnation).await.unwrap();
}

pub(crate) async fn a_policy_that_cannot_be_changes_nothing(host: &Host) {
    let world = World::new(&host.cluster);
    let driver = driver_of(world.networked(host.config()));
    let (networked, plain) = (name("inc_networked"), name("inc_plain"));
    driver.prepare(&networked, &base::networked_spec(4)).await.unwrap();
    driver.start(&networked, base::networked(), false).await.unwrap();
    running(&driver, &plain).await;
    let before = rules(&host.cluster, &networked);
    let range = |text: &str| (text.parse().unwrap(), 16);
    let wrong = [
        NetworkPolicy {
            egress: Egress::Allow { named: vec![range("10.1.0.1")] },
            ..NetworkPolicy::default()
        },
        NetworkPolicy { private_network: Some("No Name".to_owned()), ..NetworkPolicy::default() },
        NetworkPolicy { download: Some(Bandwidth { bytes_per_second: 1, burst_bytes: 1 }), ..allow() },
    ];
    for policy in wrong {
        let error = driver.update(&networked, &Update::Network(policy)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
    }
    let error = driver.update(&plain, &Update::Network(allow())).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("network")));
    assert_eq!(rules(&host.cluster, &networked), before);
    for incarnation in [networked, plain] {
        assert_eq!(phase(&driver, &incarnation).await, Phase::Running);
        driver.destroy(&incarnation).await.unwrap();
    }
}
