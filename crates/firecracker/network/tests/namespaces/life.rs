//! How networks come, stay and go, whatever is cut off in between.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use flames_error::{Error, ErrorKind};
use flames_firecracker_network::{
    AfterStep, DomainPattern, Egress, Found, NetworkConfig, Policy, PortRange, PrivateNetwork,
};
use futures::future::join_all;
use serde_json::{Value, json};

use crate::lab::{Lab, Ns, PUBLIC, PUBLIC6, inside, run};

fn shared() -> Policy {
    Policy { private_network: Some(PrivateNetwork::new("blue").unwrap()), ..Policy::allow() }
}

/// Ends an operation after so many steps, and notes their names.
fn cut_after(steps: usize, seen: &Arc<Mutex<Vec<&'static str>>>) -> AfterStep {
    let (count, seen) = (AtomicUsize::new(0), Arc::clone(seen));
    AfterStep(Arc::new(move |name| {
        seen.lock().unwrap().push(name);
        if count.fetch_add(1, Ordering::Relaxed) == steps {
            return Err(Error::internal("test", "cut off here"));
        }
        Ok(())
    }))
}

fn cut(lab: &Lab, steps: usize, seen: &Arc<Mutex<Vec<&'static str>>>) -> NetworkConfig {
    NetworkConfig { after_step: Some(cut_after(steps, seen)), ..lab.config() }
}

pub(crate) async fn creating_and_removing_may_be_repeated(lab: &Lab) {
    let before = lab.snapshot();
    let networks = lab.networks().await;
    let request = lab.request(1, shared());
    let attachment = networks.create(&request).await.unwrap();
    assert_eq!(networks.attachment(&request).unwrap(), attachment);
    let guest = lab.guest(&attachment);
    let made = lab.snapshot();
    assert_eq!(networks.create(&request).await.unwrap(), attachment);
    lab.assert_as(&made, "made twice");
    assert!(guest.reach(PUBLIC, 80).is_ok() && guest.reach(PUBLIC6, 80).is_ok());
    drop(guest);
    for _ in 0..2 {
        networks.remove(&request.incarnation).await.unwrap();
        lab.assert_as(&before, "in the end");
    }
}

pub(crate) async fn a_network_that_is_removed_leaves_nothing(lab: &Lab) {
    let before = lab.snapshot();
    let networks = lab.networks().await;
    let stays = lab.request(9, shared());
    networks.create(&stays).await.unwrap();
    let with_one = lab.snapshot();
    for round in 0..5 {
        for (slot, policy) in [(1, shared()), (2, Policy::allow()), (3, Policy::deny())] {
            networks.create(&lab.request(slot, policy)).await.unwrap();
        }
        for slot in 1..=3 {
            networks.remove(&lab.request(slot, shared()).incarnation).await.unwrap();
        }
        lab.assert_as(&with_one, &format!("round {round}"));
    }
    networks.remove(&stays.incarnation).await.unwrap();
    lab.assert_as(&before, "in the end");
}

/// How many steps an operation has, found by cutting off ever later until it comes to its end.
const AT_MOST: usize = 30;

pub(crate) async fn a_creation_that_was_cut_off_anywhere_is_finished_by_the_next(lab: &Lab) {
    let before = lab.snapshot();
    let request = lab.request(1, shared());
    let seen = Arc::default();
    let mut whole = None;
    for steps in 0..AT_MOST {
        let cut_off = lab.networks_with(cut(lab, steps, &seen)).await.create(&request).await;
        let networks = lab.networks().await;
        networks.create(&request).await.unwrap_or_else(|error| panic!("after {steps} steps: {error:?}"));
        let made = lab.snapshot();
        let text = made["rules"].clone();
        assert!(text.contains("10.77.0.6") && text.contains("members_blue"), "after {steps} steps: {text}");
        let guest = lab.guest(&networks.attachment(&request).unwrap());
        assert!(guest.reach(PUBLIC, 80).is_ok() && guest.reach(PUBLIC6, 80).is_ok(), "after {steps} steps");
        drop(guest);
        networks.remove(&request.incarnation).await.unwrap();
        lab.assert_as(&before, &format!("after {steps} steps"));
        if cut_off.is_ok() {
            whole = Some(steps);
            break;
        }
    }
    assert!(whole.is_some_and(|steps| steps >= 12), "it was cut off at each of its steps: {whole:?}");
}

pub(crate) async fn a_creation_that_was_cut_off_anywhere_is_removed_whole(lab: &Lab) {
    let before = lab.snapshot();
    let request = lab.request(1, shared());
    let seen = Arc::default();
    for steps in 0..AT_MOST {
        let cut_off = lab.networks_with(cut(lab, steps, &seen)).await.create(&request).await;
        let networks = lab.networks().await;
        let found = networks.scan().await.unwrap();
        assert_eq!(found.len(), 1, "after {steps} steps it is found: {found:?}");
        networks.remove(&request.incarnation).await.unwrap();
        lab.assert_as(&before, &format!("after {steps} steps"));
        if cut_off.is_ok() {
            return;
        }
    }
    panic!("a creation has no more than {AT_MOST} steps");
}

pub(crate) async fn a_removal_that_was_cut_off_anywhere_is_finished_by_the_next(lab: &Lab) {
    let before = lab.snapshot();
    let request = lab.request(1, shared());
    let seen = Arc::default();
    for again_by_creating in [false, true] {
        for steps in 0..AT_MOST {
            let networks = lab.networks().await;
            networks.create(&request).await.unwrap();
            let removed = lab.networks_with(cut(lab, steps, &seen)).await.remove(&request.incarnation).await;
            drop(networks);
            let networks = lab.networks().await;
            if again_by_creating {
                networks.create(&request).await.unwrap();
                let guest = lab.guest(&networks.attachment(&request).unwrap());
                assert!(guest.reach(PUBLIC, 80).is_ok(), "after {steps} steps");
            }
            networks.remove(&request.incarnation).await.unwrap();
            lab.assert_as(&before, &format!("after {steps} steps"));
            if removed.is_ok() {
                break;
            }
            assert!(steps + 1 < AT_MOST);
        }
    }
}

pub(crate) async fn a_slots_interface_that_is_anothers_is_a_conflict(lab: &Lab) {
    let networks = lab.networks().await;
    let first = lab.request(1, Policy::allow());
    networks.create(&first).await.unwrap();
    let mut second = lab.request(2, Policy::allow());
    second.slot = first.slot;
    let before = lab.snapshot();
    let refused = networks.create(&second).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused:?}");
    networks.remove(&second.incarnation).await.unwrap();
    lab.assert_as(&before, "the first one's stands");
    networks.remove(&first.incarnation).await.unwrap();
    networks.create(&second).await.unwrap();
    // An interface that nobody of ours made.
    let name = lab.host.ip("-o link show").lines().find_map(|line| {
        line.split([':', '@']).map(str::trim).find(|word| word.starts_with("fl")).map(str::to_owned)
    });
    networks.remove(&second.incarnation).await.unwrap();
    lab.host.ip(&format!("link add {} type veth peer name other", name.unwrap()));
    let before = lab.snapshot();
    assert_eq!(networks.create(&second).await.unwrap_err().kind(), ErrorKind::Conflict);
    networks.remove(&second.incarnation).await.unwrap();
    lab.assert_as(&before, "it is left alone");
}

pub(crate) async fn a_host_that_does_not_forward_is_refused_or_made_to(lab: &Lab) {
    let forwarding = |value: &'static str| {
        inside(lab.host.path(), move || std::fs::write("/proc/sys/net/ipv4/ip_forward", value).unwrap());
    };
    let random = || Arc::new(flames_clock::SystemRandom);
    forwarding("0");
    let before = lab.snapshot();
    let refused = flames_firecracker_network::Networks::open(lab.config(), random()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotSupported);
    assert!(refused.user_message().unwrap().contains("net.ipv4.ip_forward=1"), "{refused:?}");
    lab.assert_as(&before, "in the end");
    let networks = lab.networks_with(NetworkConfig { enable_forwarding: true, ..lab.config() }).await;
    let guest = lab.guest(&networks.create(&lab.request(1, Policy::allow())).await.unwrap());
    assert!(guest.reach(PUBLIC, 80).is_ok());
}

pub(crate) async fn a_scan_tells_what_stands_and_whether_it_is_whole(lab: &Lab) {
    let networks = lab.networks().await;
    assert_eq!(networks.scan().await.unwrap(), []);
    let (one, other) = (lab.request(1, Policy::allow()), lab.request(2, shared()));
    networks.create(&one).await.unwrap();
    let other_found = networks.create(&other).await.unwrap();
    let found = |request: &flames_firecracker_network::NetworkRequest, whole| Found {
        incarnation: request.incarnation.clone(),
        slot: Some(request.slot),
        whole,
    };
    assert_eq!(networks.scan().await.unwrap(), [found(&one, true), found(&other, true)]);
    // Its name taken away by hand: the rest is still told.
    run(&format!("ip netns del {}", other_found.namespace.file_name().unwrap().to_str().unwrap()));
    assert_eq!(networks.scan().await.unwrap(), [found(&one, true), found(&other, false)]);
    networks.remove(&other.incarnation).await.unwrap();
    assert_eq!(networks.scan().await.unwrap(), [found(&one, true)]);
}

pub(crate) async fn adoption_refuses_what_is_not_there(lab: &Lab) {
    let request = lab.request(1, shared());
    let seen = Arc::default();
    assert_eq!(lab.networks().await.adopt(&request).await.unwrap_err().kind(), ErrorKind::NotFound);
    lab.networks_with(cut(lab, 5, &seen)).await.create(&request).await.unwrap_err();
    let networks = lab.networks().await;
    assert_eq!(networks.adopt(&request).await.unwrap_err().kind(), ErrorKind::NotFound, "it is half made");
    assert_eq!(networks.set_policy(&request).await.unwrap_err().kind(), ErrorKind::NotFound);
    let far = lab.request(200, shared());
    assert_eq!(networks.create(&far).await.unwrap_err().kind(), ErrorKind::Exhausted);
    let mut shouting = lab.request(1, shared());
    shouting.mac = [0xff; 6];
    assert_eq!(networks.create(&shouting).await.unwrap_err().field(), Some("mac"));
}

/// What the kernel was told directly is told by `nft`, put by `nft` into a fresh namespace, and told again: the same, if each rule, set and
/// element is one that `nft` itself would have made of those words.
pub(crate) async fn the_rules_are_those_that_nft_reads_in_them(lab: &Lab) {
    let networks = lab.networks_with(NetworkConfig { host_ports: vec![port(7001)], ..lab.config() }).await;
    let listed = Policy {
        egress: Egress::AllowList {
            ranges: ["10.200.0.0/16", "10.201.128.0/17", "198.51.100.0/24", "2001:db8:100::/48", "0.0.0.0/0"]
                .map(|range| range.parse().unwrap())
                .to_vec(),
            domains: vec![DomainPattern::new("*.example.com").unwrap()],
            ports: vec![port(80), PortRange::new(440, 450).unwrap()],
        },
        ..shared()
    };
    let mut told = vec![];
    for (slot, policy) in [(1, listed), (2, Policy::allow()), (3, Policy::deny()), (4, shared())] {
        let attachment = networks.create(&lab.request(slot, policy)).await.unwrap();
        told.push(attachment.namespace.file_name().unwrap().to_str().unwrap().to_owned());
    }
    told.push(lab.host.name.clone());
    for namespace in told {
        let rules = rules_in(&namespace);
        assert!(rules.len() > 20, "{rules:?}");
        for rule in &rules {
            let text = rule.to_string();
            assert!(!text.contains("\"base\""), "nft knows each field by its name: {text}");
        }
        let copy = Ns::new(format!("{}copy", lab.host.name));
        copy.ip("tuntap add tap0 mode tap");
        let changes: Vec<Value> = rules.iter().map(|object| json!({ "add": object })).collect();
        let file = std::env::temp_dir().join(format!("{}.json", copy.name));
        std::fs::write(&file, json!({ "nftables": changes }).to_string()).unwrap();
        copy.nft(&format!("-j -f {}", file.display()));
        std::fs::remove_file(&file).unwrap();
        let copied = rules_in(&copy.name);
        for (copied, rule) in copied.iter().zip(&rules) {
            assert_eq!(copied.to_string(), rule.to_string(), "{namespace}");
        }
        assert_eq!(copied.len(), rules.len());
    }
}

fn port(number: u16) -> PortRange {
    PortRange::new(number, number).unwrap()
}

/// Without what is the namespace's own, each object behind what it leads to: the handles, and in which order what has none was made.
fn rules_in(namespace: &str) -> Vec<Value> {
    let text = run(&format!("ip netns exec {namespace} nft -j list ruleset"));
    let listed: Value = serde_json::from_str(&text).unwrap();
    let mut rules = Vec::new();
    for object in listed["nftables"].as_array().unwrap() {
        let (kind, words) = object.as_object().unwrap().iter().next().unwrap();
        let mut words = words.clone();
        let is_frames = kind == "chain" && words["family"] == "netdev";
        let Some(fields) = words.as_object_mut().filter(|_| kind != "metainfo") else { continue };
        fields.remove("handle");
        if is_frames {
            // nft 1.0.6 does not tell the device that it needs to be told.
            fields.insert("dev".to_owned(), json!("tap0"));
        }
        if let Some(Value::Array(elements)) = fields.get_mut("elem") {
            elements.sort_by_key(ToString::to_string);
        }
        rules.push(json!({ kind: words }));
    }
    let rank = |object: &Value| {
        let kinds = ["table", "chain", "set", "map", "rule"];
        let kind = kinds.iter().position(|kind| object.get(kind).is_some());
        let chain = object.pointer("/rule/chain");
        (kind, chain.unwrap_or(object).to_string())
    };
    rules.sort_by_key(rank);
    rules
}

pub(crate) async fn twenty_networks_are_made_at_once(lab: &Lab) {
    let before = lab.snapshot();
    let networks = lab.networks().await;
    let mut alone = Vec::new();
    for slot in 30..40 {
        let begun = Instant::now();
        networks.create(&lab.request(slot, Policy::allow())).await.unwrap();
        alone.push(begun.elapsed());
    }
    alone.sort_unstable();
    let begun = Instant::now();
    let requests: Vec<_> = (1..=20).map(|slot| lab.request(slot, shared())).collect();
    let made = join_all(requests.iter().map(|request| networks.create(request))).await;
    let together = begun.elapsed();
    assert!(made.iter().all(Result::is_ok));
    println!("one network: median {:?}, longest {:?}; twenty at once: {together:?}", alone[5], alone[9]);
    let guests = [&made[0], &made[19]].map(|attachment| lab.guest(attachment.as_ref().unwrap()));
    let mut servers = crate::lab::Servers::default();
    servers.tcp(&guests[1].ns, 80);
    assert!(guests[0].reach(PUBLIC, 80).is_ok());
    assert!(guests[0].reach(&guests[1].address().to_string(), 80).is_ok());
    drop((servers, guests));
    let begun = Instant::now();
    let gone = join_all(requests.iter().map(|request| networks.remove(&request.incarnation))).await;
    println!("twenty removed at once: {:?}", begun.elapsed());
    assert!(gone.iter().all(Result::is_ok));
    for slot in 30..40 {
        networks.remove(&lab.request(slot, shared()).incarnation).await.unwrap();
    }
    lab.assert_as(&before, "in the end");
}
