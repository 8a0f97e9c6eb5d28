//! Routes are upserted by key and removed by port or by VM.

use flames_error::ErrorKind;
use flames_ingress::{Registration, Target};

use crate::{Fixture, address, key, list_all, owner, ports_of, refused, route};

pub(crate) async fn a_registered_route_is_listed(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    let wanted = route("vm_1", 8080, &["a.example", "b.example"]);
    let registered = ingress.register(wanted.clone(), address(9001)).await.unwrap();
    let expected = Registration { route: wanted, target: address(9001), url: registered.url.clone() };
    assert_eq!(registered, expected);
    assert_eq!(ingress.get(&owner("vm_1")).await.unwrap(), list_all(&*ingress, 1_000).await);
    assert_eq!(list_all(&*ingress, 1_000).await, [expected]);
}

pub(crate) async fn a_registered_route_has_the_url_that_is_told_of_it(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    let mut urls = Vec::new();
    for wanted in
        [route("vm_1", 8080, &["a.example", "b.example"]), route("vm_1", 8081, &[]), route("vm_2", 8080, &[])]
    {
        let told = ingress.url(&wanted);
        let registered = ingress.register(wanted.clone(), address(9001)).await.unwrap();
        assert_eq!(registered.url, told, "{wanted:?}");
        assert_eq!(ingress.get(&wanted.key.vm).await.unwrap().last().unwrap().url, told, "as it is listed");
        urls.extend(told);
    }
    let count = urls.len();
    urls.sort();
    urls.dedup();
    assert_eq!(urls.len(), count, "each has its own: {urls:?}");
}

pub(crate) async fn registering_again_replaces_the_target(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    let wanted = route("vm_1", 8080, &["a.example"]);
    ingress.register(wanted.clone(), address(9001)).await.unwrap();
    let registered = ingress.register(wanted, address(9002)).await.unwrap();
    assert_eq!(registered.target, address(9002));
    assert_eq!(list_all(&*ingress, 1_000).await, [registered]);
}

pub(crate) async fn registering_again_replaces_the_host_names(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    ingress.register(route("vm_1", 8080, &["a.example", "b.example"]), address(9001)).await.unwrap();
    let registered = ingress.register(route("vm_1", 8080, &["b.example"]), address(9001)).await.unwrap();
    assert_eq!(registered.route.hosts, ["b.example"]);
    assert_eq!(list_all(&*ingress, 1_000).await, [registered]);
}

pub(crate) async fn registering_the_same_twice_changes_nothing(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    let wanted = route("vm_1", 8080, &["a.example"]);
    let first = ingress.register(wanted.clone(), address(9001)).await.unwrap();
    let second = ingress.register(wanted, address(9001)).await.unwrap();
    assert_eq!(first, second);
    assert_eq!(list_all(&*ingress, 1_000).await, [first]);
}

pub(crate) async fn an_unregistered_vm_has_no_routes(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    for port in [80, 443] {
        ingress.register(route("vm_1", port, &[]), address(9001)).await.unwrap();
        ingress.register(route("vm_10", port, &[]), address(9002)).await.unwrap();
    }
    ingress.unregister(&owner("vm_1")).await.unwrap();
    assert_eq!(ports_of(&*ingress, "vm_1").await, []);
    let left: Vec<_> = list_all(&*ingress, 1_000).await.into_iter().map(|left| left.route.key).collect();
    assert_eq!(left, [key("vm_10", 80), key("vm_10", 443)], "other VMs keep theirs");
}

pub(crate) async fn unregistering_twice_is_no_error(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    ingress.unregister(&owner("vm_1")).await.unwrap();
    ingress.unregister_port(&key("vm_1", 80)).await.unwrap();
    ingress.register(route("vm_1", 80, &[]), address(9001)).await.unwrap();
    for _ in 0..2 {
        ingress.unregister_port(&key("vm_1", 80)).await.unwrap();
        ingress.unregister(&owner("vm_1")).await.unwrap();
    }
    assert_eq!(list_all(&*ingress, 1_000).await, []);
}

pub(crate) async fn removing_one_port_leaves_the_others(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    for (vm, port) in [("vm_1", 80), ("vm_1", 443), ("vm_1", 8080), ("vm_2", 443)] {
        ingress.register(route(vm, port, &[]), address(9001)).await.unwrap();
    }
    ingress.unregister_port(&key("vm_1", 443)).await.unwrap();
    assert_eq!(ports_of(&*ingress, "vm_1").await, [80, 8080]);
    assert_eq!(ports_of(&*ingress, "vm_2").await, [443]);
}

pub(crate) async fn a_vms_routes_are_its_own(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    for vm in ["vm_1", "vm_10", "vm_0", "vm_1-a"] {
        for port in [8080, 65_535, 1, 80] {
            ingress.register(route(vm, port, &[]), address(9001)).await.unwrap();
        }
    }
    let routes = ingress.get(&owner("vm_1")).await.unwrap();
    let keys: Vec<_> = routes.into_iter().map(|registration| registration.route.key).collect();
    assert_eq!(keys, [1, 80, 8080, 65_535].map(|port| key("vm_1", port)), "by port");
    assert_eq!(ports_of(&*ingress, "vm_2").await, []);
}

pub(crate) async fn a_route_that_is_none_is_refused(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    let long_label = format!("{}.example", "a".repeat(64));
    let long_name = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(63)].join(".");
    for host in ["", "A.example", "a..b", "-a.example", "a-.example", "a_b.example", "a b", "ä.example"]
        .into_iter()
        .chain([long_label.as_str(), long_name.as_str()])
    {
        let answer = ingress.register(route("vm_1", 80, &["ok.example", host]), address(9001)).await;
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::InvalidInput, "host {host:?}");
    }
    refused(ingress.register(route("vm_1", 0, &[]), address(9001)).await, ErrorKind::InvalidInput);
    let many: Vec<String> = (0..33).map(|number| format!("h{number}.example")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    refused(ingress.register(route("vm_1", 80, &many), address(9001)).await, ErrorKind::InvalidInput);
    assert_eq!(list_all(&*ingress, 1_000).await, [], "nothing was kept of any");
    ingress.register(route("vm_1", 80, &many[..32]), address(9001)).await.unwrap();
}

pub(crate) async fn names_and_numbers_at_the_limit_are_taken(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    let label = "l".repeat(63);
    let name = [label.as_str(), &label, &label, &"n".repeat(61)].join(".");
    assert_eq!(name.len(), 253);
    let vm = "v".repeat(64);
    let mut wanted = Vec::new();
    for (vm, port, hosts) in [
        ("v", 1, vec!["a".to_owned()]),
        (vm.as_str(), 65_535, vec![name, format!("{label}.example"), "0-0.9".to_owned()]),
        ("vm_-0", 80, (0..32).map(|number| format!("h{number}.example")).collect()),
    ] {
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        wanted.push(ingress.register(route(vm, port, &hosts), address(65_535)).await.unwrap());
    }
    wanted.sort_by(|one, other| one.route.key.cmp(&other.route.key));
    assert_eq!(list_all(&*ingress, 1_000).await, wanted);
}

pub(crate) async fn a_guest_target_is_served_or_refused_as_declared(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    let target = Target::Guest { incarnation: "inc_1".to_owned(), port: 8080 };
    let answer = ingress.register(route("vm_1", 80, &["a.example"]), target.clone()).await;
    if ingress.capabilities().guest_targets {
        let registered = answer.unwrap();
        assert_eq!(registered.target, target);
        assert_eq!(list_all(&*ingress, 1_000).await, [registered]);
    } else {
        refused(answer, ErrorKind::NotSupported);
        assert_eq!(list_all(&*ingress, 1_000).await, []);
    }
}
