//! Names: what resolves, to what, and for how long.

use std::net::UdpSocket;
use std::time::Duration;

use flames_firecracker_network::{DomainPattern, Egress, NetworkConfig, Policy};

use crate::lab::{Lab, METADATA, PRIVATE, PUBLIC, PUBLIC_TOO, PUBLIC6, RESOLVER, inside, still_talks};
use crate::resolver::{A, AAAA, Answer, CNAME, NO_ERROR, NO_SUCH_NAME, REFUSED, TXT, ask, push_name};

fn names(domains: &[&str], ranges: &[&str]) -> Policy {
    Policy {
        egress: Egress::AllowList {
            ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            domains: domains.iter().map(|domain| DomainPattern::new(domain).unwrap()).collect(),
            ports: Vec::new(),
        },
        private_network: None,
    }
}

impl crate::lab::Guest {
    fn ask(&self, name: &str, kind: u16) -> Answer {
        ask(&self.ns.path(), &self.gateway(), name, kind, false).expect("the forwarder answers")
    }

    fn resolve(&self, name: &str) -> Vec<String> {
        self.ask(name, A).addresses
    }
}

pub(crate) async fn a_listed_name_resolves_and_becomes_reachable(lab: &Lab) {
    lab.resolver.set("api.example.com", 300, &[PUBLIC, PUBLIC6]);
    lab.resolver.set("deep.down.example.org", 300, &[PUBLIC_TOO]);
    let networks = lab.networks().await;
    let policy = names(&["api.example.com", "*.example.org"], &[]);
    let guest = lab.guest(&networks.create(&lab.request(1, policy)).await.unwrap());
    assert!(guest.reach(PUBLIC, 80).is_err(), "not before it was resolved");
    assert_eq!(guest.resolve("API.Example.com"), Answer::addresses(&[PUBLIC]));
    assert!(guest.reach(PUBLIC, 80).is_ok());
    assert!(guest.reach(PUBLIC6, 80).is_err(), "nobody asked for its address of IPv6");
    assert_eq!(guest.ask("api.example.com", AAAA).addresses, Answer::addresses(&[PUBLIC6]));
    assert!(guest.reach(PUBLIC6, 80).is_ok());
    assert_eq!(guest.resolve("deep.down.example.org"), Answer::addresses(&[PUBLIC_TOO]));
    assert!(guest.reach(PUBLIC_TOO, 80).is_ok());
    let gateway = guest.attachment.addresses.ipv6.clone().unwrap().gateway.to_string();
    let over_ipv6 = ask(&guest.ns.path(), &gateway, "api.example.com", A, false).unwrap();
    assert_eq!(over_ipv6.addresses, Answer::addresses(&[PUBLIC]));
    // Under a policy that goes by no names, every name resolves.
    networks.set_policy(&lab.request(1, Policy::allow())).await.unwrap();
    lab.resolver.set("any.example.net", 300, &[PUBLIC_TOO]);
    assert_eq!(guest.resolve("any.example.net"), Answer::addresses(&[PUBLIC_TOO]));
}

pub(crate) async fn a_name_that_is_not_listed_is_refused_and_nobody_is_asked(lab: &Lab) {
    let networks = lab.networks().await;
    let policy = names(&["api.example.com", "*.example.org"], &[]);
    let guest = lab.guest(&networks.create(&lab.request(1, policy)).await.unwrap());
    for name in
        ["example.com", "x.api.example.com", "example.org", "badexample.org", "api.example.com.evil.net"]
    {
        lab.resolver.set(name, 300, &[PUBLIC]);
        assert_eq!(guest.ask(name, A), Answer { code: REFUSED, addresses: vec![], records: 0 }, "{name}");
        assert_eq!(guest.ask(name, TXT).code, REFUSED, "{name}");
        assert!(!lab.resolver.was_asked_for(name), "{name}");
    }
    assert!(guest.reach(PUBLIC, 80).is_err());
    assert_eq!(guest.ask("api.example.com", A).code, NO_SUCH_NAME, "a listed one that does not exist");
    networks.set_policy(&lab.request(1, Policy::deny())).await.unwrap();
    assert_eq!(guest.ask("api.example.com", A).code, REFUSED);
}

pub(crate) async fn a_name_that_leads_to_a_special_address_leads_nowhere(lab: &Lab) {
    let networks = lab.networks().await;
    let policy = names(&["*.example.com"], &["10.200.0.0/24"]);
    let guest = lab.guest(&networks.create(&lab.request(1, policy)).await.unwrap());
    let own = guest.gateway();
    for address in [METADATA, "127.0.0.1", "192.168.7.7", "100.64.0.9", "169.254.77.1", "0.0.0.0", &own] {
        lab.resolver.set("rebind.example.com", 300, &[address]);
        let told = guest.ask("rebind.example.com", A);
        assert_eq!(told, Answer { code: NO_ERROR, addresses: vec![], records: 0 }, "{address}");
        assert!(guest.reach(address, 80).is_err(), "{address}");
    }
    for address in ["fd99::5", "::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "fd00:ec2::254", "fe80::1"] {
        lab.resolver.set("rebind.example.com", 300, &[address]);
        assert_eq!(guest.ask("rebind.example.com", AAAA).addresses, Vec::<String>::new(), "{address}");
    }
    lab.resolver.set("mixed.example.com", 300, &["192.168.7.7", PUBLIC, METADATA]);
    assert_eq!(guest.resolve("mixed.example.com"), Answer::addresses(&[PUBLIC]));
    assert!(guest.reach(PUBLIC, 80).is_ok());
    lab.resolver.set("inside.example.com", 300, &[PRIVATE[0]]);
    assert_eq!(
        guest.resolve("inside.example.com"),
        Answer::addresses(&[PRIVATE[0]]),
        "a range that is named"
    );
    networks.set_policy(&lab.request(1, Policy::allow())).await.unwrap();
    lab.resolver.set("rebind.example.com", 300, &[METADATA]);
    assert_eq!(guest.resolve("rebind.example.com"), Vec::<String>::new(), "where every name resolves too");
}

pub(crate) async fn aliases_are_followed_inside_of_an_answer_only(lab: &Lab) {
    let networks = lab.networks().await;
    let guest = lab.guest(&networks.create(&lab.request(1, names(&["www.example.com"], &[]))).await.unwrap());
    let alias = |target: &str| {
        let mut data = Vec::new();
        push_name(&mut data, target);
        data
    };
    let address = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets().to_vec();
    let records = vec![
        ("www.example.com".to_owned(), CNAME, 60, alias("cdn.example.net")),
        ("cdn.example.net".to_owned(), A, 60, address(PUBLIC)),
        ("unasked.example.net".to_owned(), A, 60, address(PUBLIC_TOO)),
    ];
    lab.resolver.set_records("www.example.com", A, records);
    let told = guest.ask("www.example.com", A);
    assert_eq!((told.addresses, told.records), (Answer::addresses(&[PUBLIC]), 2));
    assert!(guest.reach(PUBLIC, 80).is_ok() && guest.reach(PUBLIC_TOO, 80).is_err());
    // An alias without its end leads nowhere: its target is not asked for.
    lab.resolver.set("cdn.example.net", 60, &[PUBLIC_TOO]);
    let dangling = vec![("www.example.com".to_owned(), CNAME, 60, alias("cdn.example.net"))];
    lab.resolver.set_records("www.example.com", A, dangling);
    assert_eq!(guest.resolve("www.example.com"), Vec::<String>::new());
    assert!(!lab.resolver.was_asked_for("cdn.example.net"));
}

pub(crate) async fn an_address_is_reachable_for_as_long_as_its_answer_lives(lab: &Lab) {
    let mut config = lab.config();
    config.dns.shortest_lifetime = Duration::from_secs(1);
    config.dns.longest_lifetime = Duration::from_secs(2);
    let networks = lab.networks_with(config).await;
    let guest = lab.guest(&networks.create(&lab.request(1, names(&["a.example.com"], &[]))).await.unwrap());
    lab.resolver.set("a.example.com", 0, &[PUBLIC]);
    assert_eq!(guest.resolve("a.example.com"), Answer::addresses(&[PUBLIC]));
    let mut open = guest.connect(PUBLIC, 80).unwrap();
    // The bound, the grace of ten seconds, and a moment.
    tokio::time::sleep(Duration::from_secs(13)).await;
    assert!(guest.reach(PUBLIC, 80).is_err(), "no new connection");
    assert!(still_talks(&mut open), "an open connection goes on");
    assert_eq!(guest.resolve("a.example.com"), Answer::addresses(&[PUBLIC]));
    assert!(guest.reach(PUBLIC, 80).is_ok(), "asked again, reachable again");
    // Longer than the bound, and asked again before its end: the time begins anew.
    lab.resolver.set("a.example.com", 86_400, &[PUBLIC]);
    tokio::time::sleep(Duration::from_secs(9)).await;
    guest.resolve("a.example.com");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(guest.reach(PUBLIC, 80).is_ok());
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(guest.reach(PUBLIC, 80).is_err());
}

pub(crate) async fn names_resolve_over_tcp_and_from_a_truncated_answer(lab: &Lab) {
    let many: Vec<String> = (1..=40).map(|last| format!("198.51.100.{last}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    lab.resolver.set("many.example.com", 300, &many);
    lab.resolver.only_over_tcp("many.example.com");
    lab.resolver.set("unlisted.example.net", 300, &[PUBLIC]);
    let networks = lab.networks().await;
    let guest =
        lab.guest(&networks.create(&lab.request(1, names(&["many.example.com"], &[]))).await.unwrap());
    let over_tcp = |name: &str| ask(&guest.ns.path(), &guest.gateway(), name, A, true).unwrap();
    assert_eq!(over_tcp("unlisted.example.net").code, REFUSED, "TCP is no way around");
    let over_udp = guest.ask("many.example.com", A);
    assert_eq!(over_udp.records, 0, "it does not fit");
    assert_eq!(over_tcp("many.example.com").addresses.len(), 32, "as many as one answer may hold");
    assert!(guest.reach(PUBLIC, 80).is_ok());
}

pub(crate) async fn another_resolver_is_not_reachable(lab: &Lab) {
    lab.resolver.set("evil.example.net", 300, &[PUBLIC]);
    let networks = lab.networks().await;
    let guest = lab.guest(&networks.create(&lab.request(1, names(&["a.example.com"], &[]))).await.unwrap());
    for tcp in [false, true] {
        let direct = |namespace: &std::path::Path| ask(namespace, RESOLVER, "evil.example.net", A, tcp);
        assert!(direct(&lab.host.path()).is_some(), "it is there");
        assert_eq!(direct(&guest.ns.path()), None);
    }
    // Nor the host's address, nor another machine's forwarder.
    let other = networks.create(&lab.request(2, Policy::allow())).await.unwrap();
    for address in ["169.254.77.1", &other.addresses.gateway.to_string()] {
        assert_eq!(ask(&guest.ns.path(), address, "evil.example.net", A, false), None, "{address}");
    }
}

pub(crate) async fn a_forwarder_withstands_garbage_and_floods(lab: &Lab) {
    lab.resolver.set("a.example.com", 300, &[PUBLIC]);
    let mut config = lab.config();
    config.dns.queries_per_second = 20;
    let networks = lab.networks_with(config).await;
    let guest = lab.guest(&networks.create(&lab.request(1, names(&["a.example.com"], &[]))).await.unwrap());
    let gateway = guest.gateway();
    let answered = inside(guest.ns.path(), move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((gateway.as_str(), 53)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        for length in [0, 1, 11, 12, 13, 100, 511, 512, 513, 1400] {
            socket.send(&vec![0xff; length]).unwrap();
            socket.send(&vec![0; length]).unwrap();
        }
        let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        push_name(&mut query, "a.example.com");
        query.extend([0, 1, 0, 1]);
        for _ in 0..2_000 {
            let _ = socket.send(&query);
        }
        let mut buffer = [0; 1500];
        std::iter::from_fn(|| socket.recv(&mut buffer).ok()).count()
    });
    assert!((1..200).contains(&answered), "{answered} of 2000 were answered");
    // Open connections that say nothing use up their own bound and no more.
    let idle: Vec<_> = (0..20)
        .filter_map(|_| {
            let to = (guest.gateway(), 53);
            inside(guest.ns.path(), move || std::net::TcpStream::connect(to).ok())
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(guest.resolve("a.example.com"), Answer::addresses(&[PUBLIC]), "it serves on");
    drop(idle);
}

pub(crate) async fn resolved_addresses_outlive_a_restart(lab: &Lab) {
    lab.resolver.set("a.example.com", 300, &[PUBLIC]);
    let request = lab.request(1, names(&["a.example.com"], &[]));
    let networks = lab.networks().await;
    let guest = lab.guest(&networks.create(&request).await.unwrap());
    guest.resolve("a.example.com");
    let mut open = guest.connect(PUBLIC, 80).unwrap();
    drop(networks);
    assert!(still_talks(&mut open) && guest.reach(PUBLIC, 80).is_ok(), "packets flow with nobody there");
    let networks = lab.networks().await;
    let attachment = networks.adopt(&request).await.unwrap();
    assert_eq!(attachment, guest.attachment);
    assert!(still_talks(&mut open) && guest.reach(PUBLIC, 80).is_ok());
    assert!(guest.reach(PUBLIC_TOO, 80).is_err());
    assert_eq!(guest.resolve("a.example.com"), Answer::addresses(&[PUBLIC]));
}

pub(crate) async fn a_name_that_is_no_longer_listed_leads_nowhere(lab: &Lab) {
    lab.resolver.set("a.example.com", 300, &[PUBLIC]);
    lab.resolver.set("b.example.com", 300, &[PUBLIC_TOO]);
    let networks = lab.networks().await;
    let both = lab.request(1, names(&["a.example.com", "b.example.com"], &[]));
    let guest = lab.guest(&networks.create(&both).await.unwrap());
    guest.resolve("a.example.com");
    guest.resolve("b.example.com");
    let (mut a, mut b) = (guest.connect(PUBLIC, 80).unwrap(), guest.connect(PUBLIC_TOO, 80).unwrap());
    networks.set_policy(&lab.request(1, names(&["a.example.com"], &[]))).await.unwrap();
    assert!(still_talks(&mut a) && guest.reach(PUBLIC, 80).is_ok(), "without asking again");
    assert!(!still_talks(&mut b) && guest.reach(PUBLIC_TOO, 80).is_err());
    assert_eq!(guest.ask("b.example.com", A).code, REFUSED);
}

pub(crate) async fn without_a_resolver_a_name_fails_in_time(lab: &Lab) {
    let mut config = NetworkConfig { ..lab.config() };
    config.dns.upstreams = vec!["198.51.100.99:53".parse().unwrap(), "203.0.113.99:53".parse().unwrap()];
    config.dns.upstream_deadline = Duration::from_millis(400);
    let networks = lab.networks_with(config).await;
    let guest = lab.guest(&networks.create(&lab.request(1, names(&["a.example.com"], &[]))).await.unwrap());
    let begun = std::time::Instant::now();
    assert_eq!(guest.ask("a.example.com", A).code, 2, "a failure of the server");
    assert!(begun.elapsed() < Duration::from_secs(2));
}
