//! Where a machine may go, and who may come to it.

use flames_firecracker_network::{Blocks, Egress, HOST_ADDRESS, NetworkConfig, Policy, PortRange};

use crate::lab::{
    HOST_PORTS, LINK_LOCAL, Lab, METADATA, OTHER_PORT, PRIVATE, PRIVATE6, PUBLIC, PUBLIC_TOO, PUBLIC6,
    inside, reach, still_talks,
};

fn special() -> impl Iterator<Item = &'static str> {
    PRIVATE.into_iter().chain(PRIVATE6).chain([LINK_LOCAL, METADATA])
}

fn allow_naming(ranges: &[&str]) -> Policy {
    let named = ranges.iter().map(|range| range.parse().unwrap()).collect();
    Policy { egress: Egress::Allow { named }, private_network: None }
}

fn allow_list(ranges: &[&str], ports: &[u16]) -> Policy {
    Policy {
        egress: Egress::AllowList {
            ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            domains: Vec::new(),
            ports: ports.iter().map(|port| PortRange::single(*port).unwrap()).collect(),
        },
        private_network: None,
    }
}

pub(crate) async fn allow_reaches_the_public_internet_and_nothing_special(lab: &Lab) {
    let networks = lab.networks().await;
    let guest = lab.guest(&networks.create(&lab.request(1, Policy::allow())).await.unwrap());
    assert_eq!(guest.reach(PUBLIC, 80).unwrap(), "203.0.113.1", "masqueraded");
    assert_eq!(guest.reach(PUBLIC6, 80).unwrap(), "2001:db8:1::1", "masqueraded");
    for address in special() {
        assert!(reach(&lab.host.path(), address, 80).is_ok(), "{address} is there");
        assert!(guest.reach(address, 80).is_err(), "{address}");
    }
}

pub(crate) async fn what_is_special_is_reachable_when_it_is_named(lab: &Lab) {
    let networks = lab.networks().await;
    let named = ["10.200.0.0/16", "169.254.0.0/16", "fd99::/16"];
    let guest = lab.guest(&networks.create(&lab.request(1, allow_naming(&named))).await.unwrap());
    for address in ["10.200.0.5", LINK_LOCAL, "fd99::5", PUBLIC] {
        assert!(guest.reach(address, 80).is_ok(), "{address}");
    }
    for address in ["192.168.7.7", "100.64.0.9", METADATA, "fd00:ec2::254"] {
        assert!(guest.reach(address, 80).is_err(), "{address}");
    }
    networks.set_policy(&lab.request(1, allow_naming(&[METADATA]))).await.unwrap();
    assert!(guest.reach(METADATA, 80).is_ok());
    assert!(guest.reach(LINK_LOCAL, 80).is_err() && guest.reach("10.200.0.5", 80).is_err());
    // A list is no way around either: everything is not special.
    networks.set_policy(&lab.request(1, allow_list(&["0.0.0.0/0", "::/0"], &[]))).await.unwrap();
    assert!(guest.reach(PUBLIC, 80).is_ok() && guest.reach(PUBLIC6, 80).is_ok());
    for address in special() {
        assert!(guest.reach(address, 80).is_err(), "{address}");
    }
}

pub(crate) async fn deny_reaches_nothing(lab: &Lab) {
    let networks = lab.networks().await;
    let guest = lab.guest(&networks.create(&lab.request(1, Policy::deny())).await.unwrap());
    for address in special().chain([PUBLIC, PUBLIC6]) {
        assert!(guest.reach(address, 80).is_err(), "{address}");
    }
    networks.set_policy(&lab.request(1, Policy::allow())).await.unwrap();
    assert!(guest.reach(PUBLIC, 80).is_ok(), "the policy was what denied it");
}

pub(crate) async fn an_allow_list_reaches_its_ranges_at_its_ports_only(lab: &Lab) {
    let networks = lab.networks().await;
    let policy = allow_list(&["198.51.100.10", "2001:db8:100::/48", "10.200.0.0/24"], &[80]);
    let guest = lab.guest(&networks.create(&lab.request(1, policy)).await.unwrap());
    for address in [PUBLIC, PUBLIC6, "10.200.0.5"] {
        assert!(guest.reach(address, 80).is_ok(), "{address}");
        assert!(guest.reach(address, OTHER_PORT).is_err(), "{address} at another port");
    }
    for address in [PUBLIC_TOO, "192.168.7.7", METADATA, "fd99::5"] {
        assert!(guest.reach(address, 80).is_err(), "{address}");
    }
    networks.set_policy(&lab.request(1, allow_list(&["198.51.100.10"], &[]))).await.unwrap();
    assert!(guest.reach(PUBLIC, OTHER_PORT).is_ok(), "without ports every port is meant");
}

pub(crate) async fn a_policy_that_changes_cuts_what_it_no_longer_admits(lab: &Lab) {
    let networks = lab.networks().await;
    let guest = lab.guest(&networks.create(&lab.request(1, Policy::allow())).await.unwrap());
    let mut kept = guest.connect(PUBLIC, 80).unwrap();
    let mut cut = guest.connect(PUBLIC_TOO, 80).unwrap();
    let mut from_host = crate::lab::connect(&lab.host.path(), &guest.address().to_string(), 22).err();
    assert!(from_host.take().unwrap().contains("refused"), "the guest's own answer: nothing listens");
    assert!(still_talks(&mut kept) && still_talks(&mut cut));
    networks.set_policy(&lab.request(1, allow_list(&["198.51.100.10"], &[]))).await.unwrap();
    assert!(still_talks(&mut kept), "what both policies admit goes on");
    assert!(!still_talks(&mut cut));
    assert!(guest.reach(PUBLIC, 80).is_ok() && guest.reach(PUBLIC_TOO, 80).is_err());
}

pub(crate) async fn the_host_is_unreachable_but_for_its_listed_ports(lab: &Lab) {
    let listed = vec![PortRange::single(HOST_PORTS[0]).unwrap()];
    let networks = lab.networks_with(NetworkConfig { host_ports: listed, ..lab.config() }).await;
    let guest =
        lab.guest(&networks.create(&lab.request(1, allow_naming(&["169.254.0.0/16"]))).await.unwrap());
    assert!(guest.reach(PUBLIC, 80).is_ok());
    let host = HOST_ADDRESS.to_string();
    assert!(guest.reach(&host, HOST_PORTS[0]).is_ok());
    for address in [&host, "203.0.113.1", "2001:db8:1::1", &guest.gateway()] {
        assert!(guest.reach(address, HOST_PORTS[1]).is_err(), "{address}");
    }
    assert!(guest.reach("203.0.113.1", HOST_PORTS[0]).is_err(), "listed ports are at one address");
    assert!(reach(&lab.world.path(), "203.0.113.1", HOST_PORTS[1]).is_ok(), "others are not kept out");
}

pub(crate) async fn the_host_reaches_a_machine_and_the_world_does_not(lab: &Lab) {
    let networks = lab.networks().await;
    let guest = lab.guest(&networks.create(&lab.request(1, Policy::deny())).await.unwrap());
    let mut servers = crate::lab::Servers::default();
    servers.tcp(&guest.ns, 80);
    let address = guest.address().to_string();
    assert_eq!(reach(&lab.host.path(), &address, 80).unwrap(), HOST_ADDRESS.to_string());
    assert!(reach(&lab.world.path(), &address, 80).is_err());
    let ipv6 = guest.attachment.addresses.ipv6.clone().unwrap().guest.to_string();
    assert!(reach(&lab.world.path(), &ipv6, 80).is_err());
}

pub(crate) async fn without_a_block_of_ipv6_there_is_none(lab: &Lab) {
    let mut config = lab.config();
    config.blocks = Blocks { ipv6: None, ..config.blocks };
    let networks = lab.networks_with(config).await;
    let guest = lab.guest(&networks.create(&lab.request(1, Policy::allow())).await.unwrap());
    assert!(guest.reach(PUBLIC, 80).is_ok());
    // The guest helps itself to addresses, and to a gateway: the one that there would be, and whoever answers.
    guest.ns.ip("addr add fd77:77::6/126 dev eth0 nodad");
    guest.ns.ip("route add default via fd77:77::5");
    assert!(guest.reach(PUBLIC6, 80).is_err());
    let settings = inside(&guest.attachment.namespace, || {
        std::fs::read_to_string("/proc/sys/net/ipv6/conf/tap0/disable_ipv6").unwrap()
    });
    assert_eq!(settings.trim(), "1");
}

pub(crate) async fn a_machine_holds_no_more_connections_than_it_may(lab: &Lab) {
    let networks = lab.networks_with(NetworkConfig { max_connections: 5, ..lab.config() }).await;
    let guest = lab.guest(&networks.create(&lab.request(1, Policy::allow())).await.unwrap());
    let mut held: Vec<_> = (0..5).map(|_| guest.connect(PUBLIC, 80).unwrap()).collect();
    assert!(guest.connect(PUBLIC_TOO, 80).is_err());
    assert!(held.iter_mut().all(still_talks), "those that it holds go on");
}
