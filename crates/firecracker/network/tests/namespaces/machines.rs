//! Machines among each other.

use std::path::Path;

use flames_firecracker_network::{ClusterName, NetworkConfig, NetworkRequest, Policy, PrivateNetwork, Slot};

use crate::lab::{Guest, Lab, PUBLIC, Servers, connect, greet, reach, still_talks};

fn shared(lab: &Lab, slot: u32, network: Option<&str>) -> NetworkRequest {
    let private_network = network.map(|name| PrivateNetwork::new(name).unwrap());
    lab.request(slot, Policy { private_network, ..Policy::allow() })
}

fn addresses(guest: &Guest) -> [String; 2] {
    [guest.address().to_string(), guest.attachment.addresses.ipv6.clone().unwrap().guest.to_string()]
}

fn reaches(from: &Guest, to: &Guest) -> [bool; 2] {
    addresses(to).map(|address| from.reach(&address, 80).is_ok())
}

pub(crate) async fn machines_reach_each_other_in_a_private_network_only(lab: &Lab) {
    let networks = lab.networks().await;
    let mut guests = Vec::new();
    let mut servers = Servers::default();
    for (slot, network) in [(1, Some("blue")), (2, Some("blue")), (3, Some("red")), (4, None)] {
        let guest = lab.guest(&networks.create(&shared(lab, slot, network)).await.unwrap());
        servers.tcp(&guest.ns, 80);
        assert!(guest.reach(PUBLIC, 80).is_ok(), "{slot}");
        guests.push(guest);
    }
    let [blue, blue_too, red, alone] = guests.as_slice() else { panic!() };
    assert_eq!(reaches(blue, blue_too), [true, true]);
    assert_eq!(reaches(blue_too, blue), [true, true]);
    let seen = blue.reach(&addresses(blue_too)[0], 80).unwrap();
    assert_eq!(seen, blue.address().to_string(), "under its own address");
    for (from, to) in [(blue, red), (red, blue), (blue, alone), (alone, blue), (red, alone), (alone, red)] {
        assert_eq!(reaches(from, to), [false, false]);
    }
    // Around by what would route it: the other's address with the host's help, and a name for it.
    assert!(reach(Path::new(&red.attachment.namespace), &addresses(blue)[0], 80).is_err());
    drop(servers);
}

pub(crate) async fn a_machine_that_leaves_a_private_network_is_out_of_it(lab: &Lab) {
    let networks = lab.networks().await;
    let one = lab.guest(&networks.create(&shared(lab, 1, Some("blue"))).await.unwrap());
    let other = lab.guest(&networks.create(&shared(lab, 2, Some("blue"))).await.unwrap());
    let mut servers = Servers::default();
    servers.tcp(&one.ns, 80);
    servers.tcp(&other.ns, 80);
    let mut open = connect(&one.ns.path(), &addresses(&other)[0], 80).unwrap();
    greet(&mut open).unwrap();
    assert!(still_talks(&mut open));
    networks.set_policy(&shared(lab, 2, Some("red"))).await.unwrap();
    assert!(!still_talks(&mut open), "open connections are cut");
    assert_eq!((reaches(&one, &other), reaches(&other, &one)), ([false, false], [false, false]));
    networks.set_policy(&shared(lab, 1, Some("red"))).await.unwrap();
    assert_eq!(reaches(&one, &other), [true, true]);
    assert!(!lab.host.nft("list ruleset").contains("members_blue"), "nobody is in it any more");
    networks.set_policy(&shared(lab, 1, None)).await.unwrap();
    networks.set_policy(&shared(lab, 2, None)).await.unwrap();
    assert_eq!(reaches(&one, &other), [false, false]);
    let rules = lab.host.nft("list ruleset");
    assert!(!rules.contains("members_") && !rules.contains("via_"), "{rules}");
}

pub(crate) async fn two_clusters_on_one_host_leave_each_other_alone(lab: &Lab) {
    let networks = lab.networks().await;
    let cluster = ClusterName::new(format!("{}b", lab.cluster.as_str())).unwrap();
    let mut config = NetworkConfig { cluster, ..lab.config() };
    config.blocks.ipv4 = "10.78.0.0/24".parse().unwrap();
    config.blocks.ipv6 = None;
    let before_the_other = lab.snapshot();
    let others = lab.networks_with(config).await;
    let request = NetworkRequest { slot: Slot::new(1).unwrap(), ..shared(lab, 1, Some("blue")) };
    let mine = lab.guest(&networks.create(&request).await.unwrap());
    let theirs = lab.guest(&others.create(&request).await.unwrap());
    let mut servers = Servers::default();
    servers.tcp(&mine.ns, 80);
    servers.tcp(&theirs.ns, 80);
    assert!(mine.reach(PUBLIC, 80).is_ok() && theirs.reach(PUBLIC, 80).is_ok());
    assert!(mine.reach(&theirs.address().to_string(), 80).is_err());
    assert!(theirs.reach(&mine.address().to_string(), 80).is_err());
    assert_eq!(others.scan().await.unwrap().len(), 1);
    networks.remove(&request.incarnation).await.unwrap();
    assert!(theirs.reach(PUBLIC, 80).is_ok(), "one cluster's removal is not the other's");
    others.remove(&request.incarnation).await.unwrap();
    drop((servers, mine, theirs));
    lab.assert_as(&before_the_other, "in the end");
}
