//! Who a machine says that it is.

use flames_firecracker_network::Policy;

use crate::lab::{Lab, PUBLIC, PUBLIC6, reach};
use crate::resolver::{A, ask};

pub(crate) async fn a_forged_mac_address_is_dropped(lab: &Lab) {
    let networks = lab.networks().await;
    let guest = lab.guest(&networks.create(&lab.request(1, Policy::allow())).await.unwrap());
    assert!(guest.reach(PUBLIC, 80).is_ok() && guest.reach(PUBLIC6, 80).is_ok());
    guest.ns.ip("link set eth0 address 02:f1:00:00:00:99");
    assert!(guest.reach(PUBLIC, 80).is_err() && guest.reach(PUBLIC6, 80).is_err());
    guest.ns.ip("link set eth0 address 02:f1:00:00:00:01");
    assert!(guest.reach(PUBLIC, 80).is_ok());
}

pub(crate) async fn a_forged_address_is_dropped(lab: &Lab) {
    let networks = lab.networks().await;
    let (one, other) = (lab.request(1, Policy::allow()), lab.request(2, Policy::allow()));
    let guest = lab.guest(&networks.create(&one).await.unwrap());
    let neighbour = networks.create(&other).await.unwrap().addresses.guest;
    assert!(guest.reach(PUBLIC, 80).is_ok());
    let gateway = guest.gateway();
    // A neighbour's, the gateway's own neighbour in the block, one of the world's, the host's.
    for forged in [
        neighbour.to_string(),
        "10.77.0.200".to_owned(),
        "203.0.113.77".to_owned(),
        "169.254.77.1".to_owned(),
    ] {
        guest.ns.ip(&format!("addr add {forged}/32 dev eth0"));
        guest.ns.ip(&format!("route replace default via {gateway} src {forged}"));
        assert!(guest.reach(PUBLIC, 80).is_err(), "{forged}");
        guest.ns.ip(&format!("addr del {forged}/32 dev eth0"));
        guest.ns.ip(&format!("route replace default via {gateway}"));
    }
    assert!(guest.reach(PUBLIC, 80).is_ok());
}

pub(crate) async fn a_forged_ipv6_address_is_dropped(lab: &Lab) {
    let networks = lab.networks().await;
    let guest = lab.guest(&networks.create(&lab.request(1, Policy::allow())).await.unwrap());
    assert!(guest.reach(PUBLIC6, 80).is_ok());
    let gateway = guest.attachment.addresses.ipv6.clone().unwrap().gateway;
    for forged in ["fd77:77::a", "2001:db8:1::77", "fe80::77"] {
        guest.ns.ip(&format!("addr add {forged}/128 dev eth0 nodad"));
        guest.ns.ip(&format!("route replace default via {gateway} dev eth0 src {forged}"));
        assert!(guest.reach(PUBLIC6, 80).is_err(), "{forged}");
        guest.ns.ip(&format!("route replace default via {gateway} dev eth0"));
        guest.ns.ip(&format!("addr del {forged}/128 dev eth0"));
    }
    assert!(guest.reach(PUBLIC6, 80).is_ok());
}

pub(crate) async fn a_router_that_a_guest_plays_is_not_believed(lab: &Lab) {
    let networks = lab.networks().await;
    let guest = lab.guest(&networks.create(&lab.request(1, Policy::allow())).await.unwrap());
    assert!(guest.reach(PUBLIC6, 80).is_ok());
    // The namespace takes no routes or addresses from anybody, whatever comes out of the tap.
    let taken = crate::lab::inside(&guest.attachment.namespace, || {
        [
            "ipv6/conf/tap0/accept_ra",
            "ipv6/conf/tap0/accept_redirects",
            "ipv4/conf/tap0/accept_redirects",
            "ipv4/conf/all/accept_redirects",
        ]
        .map(|setting| std::fs::read_to_string(format!("/proc/sys/net/{setting}")).unwrap().trim().to_owned())
    });
    assert_eq!(taken, ["0", "0", "0", "0"]);
}

pub(crate) async fn what_breaks_out_into_the_namespace_reaches_nothing(lab: &Lab) {
    let networks = lab.networks().await;
    let guest = lab.guest(&networks.create(&lab.request(1, Policy::allow())).await.unwrap());
    assert!(guest.reach(PUBLIC, 80).is_ok());
    let namespace = &guest.attachment.namespace;
    for address in [PUBLIC, PUBLIC6, "169.254.77.1", "203.0.113.1", "10.200.0.5"] {
        assert!(reach(namespace, address, 80).is_err(), "{address}");
    }
    lab.resolver.set("public.example", 60, &[PUBLIC]);
    assert_eq!(ask(namespace, crate::lab::RESOLVER, "public.example", A, false), None);
}
